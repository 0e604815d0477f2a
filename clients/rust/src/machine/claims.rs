//! The locks that the application holds or waits for: asked for again after every loss, and renewed for as long as they are wanted.
//!
//! The membership owns one [`Claims`]. A lock counts as held until its lease ends by this client's own clock, counted from when the request that
//! got it was sent, so that this client never believes longer than the server. What a lock guards is made safe by its fence alone.
//!
//! A claim is numbered, and has one request on its way at a time: an answer counts for the claim that asked. What the room shows of a lock that is
//! waited for gives no fence, since it may be older than the claim or come instead of what it hides; it makes the claim ask again.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{Lock, LockChanged, LockReply, LockRequest, Reply, Waiter};
use roomful_protocol::id::{Key, RoomAlias};
use roomful_protocol::position::Position;

use super::membership::Membership;
use super::requests::{LockAsked, Request, again_after};
use super::step::{Answer, CallId, Output, RoomEvent, RoomKey};
use super::{Machine, Turn};
use crate::error::Error;

/// What the application wants of locks.
#[derive(Debug, Default)]
pub(super) struct Claims {
    wanted: BTreeMap<Key, Wanted>,
    held: BTreeMap<Key, Held>,
    /// Given up while there was no way to say so.
    given_up: BTreeSet<Key>,
    /// The number of the last one.
    last: u64,
}

#[derive(Debug)]
struct Wanted {
    claim: u64,
    calls: Vec<CallId>,
    ttl: Duration,
    queue: bool,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// To be asked for then.
    Due(Duration),
    /// On its way; `again` where the room has shown something since that the answer may not know.
    Asked { again: bool },
    /// The server said that it waits.
    Queued,
}

#[derive(Debug)]
struct Held {
    claim: u64,
    fence: Position,
    ttl: Duration,
    renew_at: Duration,
    ends_at: Duration,
}

impl Claims {
    /// When something has to be done.
    pub(super) fn deadline(&self, joined: bool) -> Option<Duration> {
        let ends = self.held.values().map(|held| held.ends_at);
        let renewals = self.held.values().map(|held| held.renew_at);
        let requests = self.wanted.values().filter_map(Wanted::due);
        let asked = renewals.chain(requests).filter(|_| joined);
        ends.chain(asked).min()
    }

    fn has(&self, lock: &Key) -> bool {
        self.held.contains_key(lock) || self.wanted.contains_key(lock)
    }

    /// Whether somebody waits in a queue, or means to.
    pub(super) fn waits(&self) -> bool {
        self.wanted.values().any(|wanted| wanted.queue)
    }

    fn waiting(&self) -> Vec<Key> {
        let waiting = self.wanted.iter().filter(|(_, wanted)| wanted.queue);
        waiting.map(|(lock, _)| lock.clone()).collect()
    }

    /// Everybody who waits.
    pub(super) fn into_calls(self) -> impl Iterator<Item = CallId> {
        self.wanted.into_values().flat_map(|wanted| wanted.calls)
    }

    fn ended(&mut self, now: Duration) -> Vec<(Key, Held)> {
        let ended = |_: &Key, held: &mut Held| held.ends_at <= now;
        self.held.extract_if(.., ended).collect()
    }
}

impl Wanted {
    fn due(&self) -> Option<Duration> {
        match self.stage {
            Stage::Due(at) => Some(at),
            Stage::Asked { .. } | Stage::Queued => None,
        }
    }
}

impl Machine {
    pub(super) fn acquire(
        &mut self,
        call: CallId,
        key: RoomKey,
        (lock, ttl, queue): (Key, Duration, bool),
        turn: &mut Turn<'_>,
    ) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        if let Some(held) = room.claims.held.get(&lock) {
            return turn.reply(call, Ok(Answer::Locked(held.fence)));
        }
        let claims = &mut room.claims;
        claims.given_up.remove(&lock);
        if let Some(wanted) = claims.wanted.get_mut(&lock) {
            // Where the answer on its way is that somebody else has it, it is asked for again, to wait.
            wanted.queue |= queue;
            return wanted.calls.push(call);
        }
        claims.last += 1;
        let wanted = Wanted {
            claim: claims.last,
            calls: vec![call],
            ttl,
            queue,
            stage: Stage::Due(turn.at.now),
        };
        claims.wanted.insert(lock.clone(), wanted);
        self.send_acquire(key, &lock, turn);
    }

    /// Asks for a lock: once more after the answer, if one is on its way.
    fn send_acquire(&mut self, key: RoomKey, lock: &Key, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let watching = room.options.locks;
        let alias = room.alias();
        let Some(wanted) = room.claims.wanted.get_mut(lock) else {
            return;
        };
        if let Stage::Asked { again } = &mut wanted.stage {
            *again = true;
            return;
        }
        let (claim, queue) = (wanted.claim, wanted.queue);
        let what = LockRequest::Acquire {
            lock: lock.clone(),
            ttl_ms: millis(wanted.ttl),
            queue,
        };
        if alias.is_some() {
            wanted.stage = Stage::Asked { again: false };
        }
        if queue && !watching {
            self.rely_on_locks(key, turn);
        }
        if let Some(alias) = alias {
            self.ask_lock((key, alias), lock, claim, what, turn);
        }
    }

    /// Asks again for what is waited for.
    pub(super) fn ask_waiting(&mut self, key: RoomKey, turn: &mut Turn<'_>) {
        let room = self.rooms.get(&key);
        for lock in room.map(|room| room.claims.waiting()).unwrap_or_default() {
            self.send_acquire(key, &lock, turn);
        }
    }

    /// Nobody would be told of a grant: whoever waits for one waits no longer.
    pub(super) fn waiting_failed(&mut self, key: RoomKey, error: &Error, turn: &mut Turn<'_>) {
        let room = self.rooms.get(&key);
        for lock in room.map(|room| room.claims.waiting()).unwrap_or_default() {
            self.claim_failed(key, lock, error, turn);
        }
    }

    fn send_renewal(&mut self, key: RoomKey, lock: &Key, turn: &mut Turn<'_>) {
        let now = turn.at.now;
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let alias = room.alias();
        let (Some(alias), Some(held)) = (alias, room.claims.held.get_mut(lock)) else {
            return;
        };
        held.renew_at = now + held.ttl / 3;
        let what = LockRequest::Renew {
            lock: lock.clone(),
            fence: held.fence,
            ttl_ms: millis(held.ttl),
        };
        let claim = held.claim;
        self.ask_lock((key, alias), lock, claim, what, turn);
    }

    fn ask_lock(
        &mut self,
        (key, alias): (RoomKey, RoomAlias),
        lock: &Key,
        claim: u64,
        what: LockRequest,
        turn: &mut Turn<'_>,
    ) {
        let asked = LockAsked {
            key,
            alias,
            lock: lock.clone(),
            claim,
            sent: turn.at.now,
        };
        self.request(Request::Lock(asked), turn, |request| {
            Lock {
                request,
                room: alias,
                what,
            }
            .into()
        });
    }

    /// Gives a lock back, or stops waiting for it.
    pub(super) fn release(&mut self, call: CallId, key: RoomKey, lock: Key, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        room.claims.held.remove(&lock);
        let wanted = room.claims.wanted.remove(&lock);
        for waiting in wanted.into_iter().flat_map(|wanted| wanted.calls) {
            turn.reply(waiting, Err(Error::LockReleased));
        }
        match room.alias() {
            Some(alias) => {
                let pending = Request::Release {
                    call,
                    key,
                    lock: lock.clone(),
                };
                self.request(pending, turn, |request| {
                    Lock {
                        request,
                        room: alias,
                        what: LockRequest::Release { lock },
                    }
                    .into()
                });
            }
            None => {
                room.claims.given_up.insert(lock);
                turn.reply(call, Ok(Answer::Done));
            }
        }
        self.rely_less_on_locks(key, turn);
    }

    /// The connection or the membership ended before the server said that it had the lock back.
    pub(super) fn release_lost(
        &mut self,
        call: CallId,
        key: RoomKey,
        lock: Key,
        turn: &mut Turn<'_>,
    ) {
        turn.reply(call, Ok(Answer::Done));
        // A claim made since then asks again, and gets what there is.
        let room = self.rooms.get_mut(&key);
        let Some(room) = room.filter(|room| !room.claims.has(&lock)) else {
            return;
        };
        match room.alias() {
            Some(alias) => self.give_up(alias, lock, turn),
            None => {
                room.claims.given_up.insert(lock);
            }
        }
    }

    /// On a new membership everything is asked again: what the server still knows of, it confirms.
    pub(super) fn claims_joined(&mut self, key: RoomKey, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let Some(alias) = room.alias() else {
            return;
        };
        let given_up = std::mem::take(&mut room.claims.given_up);
        let held: Vec<Key> = room.claims.held.keys().cloned().collect();
        let wanted: Vec<Key> = room.claims.wanted.keys().cloned().collect();
        // What the last membership asked gets no answer that counts.
        for wanted in room.claims.wanted.values_mut() {
            wanted.stage = Stage::Due(turn.at.now);
        }
        for lock in given_up {
            self.give_up(alias, lock, turn);
        }
        for lock in held {
            self.send_renewal(key, &lock, turn);
        }
        for lock in wanted {
            self.send_acquire(key, &lock, turn);
        }
    }

    fn give_up(&mut self, alias: RoomAlias, lock: Key, turn: &mut Turn<'_>) {
        self.request(Request::Quiet, turn, |request| {
            Lock {
                request,
                room: alias,
                what: LockRequest::Release { lock },
            }
            .into()
        });
    }

    /// The answer to `acquire` or `renew`.
    pub(super) fn lock_answered(&mut self, asked: LockAsked, reply: &Reply, turn: &mut Turn<'_>) {
        if !self.is_of_this_membership(&asked) {
            return;
        }
        match reply {
            Reply::Lock(LockReply::Granted { fence, .. }) => self.granted(asked, *fence, turn),
            Reply::Lock(LockReply::Queued { .. }) => self.queued(&asked, turn),
            _ => self.lock_failed(&asked, &Error::UnexpectedAnswer, turn),
        }
    }

    /// What was asked in an earlier membership has been asked again.
    fn is_of_this_membership(&self, asked: &LockAsked) -> bool {
        let room = self.rooms.get(&asked.key);
        room.and_then(Membership::alias) == Some(asked.alias)
    }

    fn granted(&mut self, asked: LockAsked, fence: Position, turn: &mut Turn<'_>) {
        let LockAsked {
            key,
            alias,
            lock,
            claim,
            sent: since,
        } = asked;
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let renew_at = |ttl: Duration| since + ttl / 3;
        if let Some(held) = room.claims.held.get_mut(&lock) {
            if held.claim == claim {
                held.ends_at = held.ends_at.max(since + held.ttl);
                held.renew_at = held.renew_at.max(renew_at(held.ttl));
            }
            return;
        }
        let wanted = match room.claims.wanted.entry(lock.clone()) {
            Entry::Vacant(_) => return self.give_up(alias, lock, turn),
            // It was given back before it was asked for anew.
            Entry::Occupied(wanted) if wanted.get().claim != claim => return,
            Entry::Occupied(wanted) => wanted.remove(),
        };
        let held = Held {
            claim,
            fence,
            ttl: wanted.ttl,
            renew_at: renew_at(wanted.ttl),
            ends_at: since + wanted.ttl,
        };
        room.claims.held.insert(lock.clone(), held);
        turn.reply_all(wanted.calls, &Ok(Answer::Locked(fence)));
        turn.out
            .push(Output::Event(key, RoomEvent::LockGranted { lock, fence }));
        self.rely_less_on_locks(key, turn);
    }

    /// It waits, and the room shows when it does no longer.
    fn queued(&mut self, asked: &LockAsked, turn: &mut Turn<'_>) {
        let room = self.rooms.get_mut(&asked.key);
        let wanted = room.and_then(|room| room.claims.wanted.get_mut(&asked.lock));
        if let Some(wanted) = wanted.filter(|wanted| wanted.claim == asked.claim)
            && let Stage::Asked { again } = wanted.stage
        {
            wanted.stage = Stage::Queued;
            if again {
                self.send_acquire(asked.key, &asked.lock, turn);
            }
        }
    }

    /// The server refused a lock or its renewal, or didn't answer.
    pub(super) fn lock_failed(&mut self, asked: &LockAsked, error: &Error, turn: &mut Turn<'_>) {
        if !self.is_of_this_membership(asked) {
            return;
        }
        let (key, lock) = (asked.key, &asked.lock);
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let is = |code: ErrorCode| error.code() == Some(code.into());
        let held = room.claims.held.get(lock);
        if held.is_some_and(|held| held.claim == asked.claim) {
            if is(ErrorCode::LockNotHeld) || is(ErrorCode::StaleFence) {
                self.lose(key, lock, turn);
            }
            return;
        }
        let wanted = room.claims.wanted.get_mut(lock);
        let Some(wanted) = wanted.filter(|wanted| wanted.claim == asked.claim) else {
            return;
        };
        let taken = is(ErrorCode::LockTaken);
        if taken && wanted.queue {
            // Somebody has come to wait for it since it was asked for.
            wanted.stage = Stage::Due(turn.at.now);
            return self.send_acquire(key, lock, turn);
        }
        match again_after(error).filter(|_| !taken && *error != Error::Timeout) {
            Some(after) => wanted.stage = Stage::Due(turn.at.now + after),
            None => self.claim_failed(key, lock.clone(), error, turn),
        }
    }

    /// Nobody will get this lock: whoever waits is told, and so is the server, which may keep a place for it.
    fn claim_failed(&mut self, key: RoomKey, lock: Key, error: &Error, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let alias = room.alias();
        let wanted = room.claims.wanted.remove(&lock);
        let calls = wanted.into_iter().flat_map(|wanted| wanted.calls);
        turn.reply_all(calls, &Err(error.clone()));
        if let Some(alias) = alias.filter(|_| error.code() != Some(ErrorCode::LockTaken.into())) {
            self.give_up(alias, lock, turn);
        }
        self.rely_less_on_locks(key, turn);
    }

    fn lose(&mut self, key: RoomKey, lock: &Key, turn: &mut Turn<'_>) {
        let room = self.rooms.get_mut(&key);
        let held = room.and_then(|room| room.claims.held.remove(lock));
        if let Some(held) = held {
            let event = RoomEvent::LockLost {
                lock: lock.clone(),
                fence: held.fence,
            };
            turn.out.push(Output::Event(key, event));
        }
    }

    /// A lock changed in the room: the turn of one that was waited for, or the end of one.
    pub(super) fn lock_told(
        &mut self,
        key: RoomKey,
        changed: &LockChanged,
        position: Position,
        turn: &mut Turn<'_>,
    ) {
        let Some(room) = self.rooms.get(&key) else {
            return;
        };
        let own = changed.held.as_ref();
        let own = own.filter(|holder| Some(holder.member) == room.member);
        let own = own.map(|holder| Position::new(position.epoch, holder.fence));
        let is_own = |waiter: &Waiter| Some(waiter.member) == room.member;
        if let Some(held) = room.claims.held.get(&changed.lock) {
            if held.fence < position && own != Some(held.fence) {
                self.lose(key, &changed.lock, turn);
            }
            return;
        }
        let wanted = room.claims.wanted.get(&changed.lock);
        let waits = wanted.is_some_and(|wanted| wanted.queue && wanted.due().is_none());
        // Its turn has come; or it came and went while this client lagged, and nobody will tell of it.
        if waits && !changed.queue.iter().any(is_own) {
            self.send_acquire(key, &changed.lock, turn);
        }
    }

    /// Asks for and renews what is due, and lets go of what has ended.
    pub(super) fn tick_claims(&mut self, turn: &mut Turn<'_>) {
        let now = turn.at.now;
        let keys: Vec<RoomKey> = self.rooms.keys().copied().collect();
        for key in keys {
            let Some(room) = self.rooms.get_mut(&key) else {
                continue;
            };
            let alias = room.alias();
            let ended = room.claims.ended(now);
            let due = room.claims.held.iter();
            let due = due.filter(|(_, held)| alias.is_some() && held.renew_at <= now);
            let due: Vec<Key> = due.map(|(lock, _)| lock.clone()).collect();
            let is_due = |wanted: &Wanted| wanted.due().is_some_and(|at| at <= now);
            let asked = room.claims.wanted.iter();
            let asked = asked.filter(|(_, wanted)| alias.is_some() && is_due(wanted));
            let asked: Vec<Key> = asked.map(|(lock, _)| lock.clone()).collect();
            for (lock, Held { fence, .. }) in ended {
                let event = RoomEvent::LockLost {
                    lock: lock.clone(),
                    fence,
                };
                turn.out.push(Output::Event(key, event));
                match alias {
                    Some(alias) => self.give_up(alias, lock, turn),
                    None => drop(
                        self.rooms
                            .get_mut(&key)
                            .map(|room| room.claims.given_up.insert(lock)),
                    ),
                }
            }
            for lock in due {
                self.send_renewal(key, &lock, turn);
            }
            for lock in asked {
                self.send_acquire(key, &lock, turn);
            }
        }
    }
}

fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use roomful_protocol::frame::{
        Advance, ClientFrame, Holder, Left, LockWhy, Ok as OkFrame, Recovery, StateRequest, Watch,
    };
    use roomful_protocol::id::{MemberId, Offset, RequestId, UserId};
    use roomful_protocol::payload::Payload;

    use super::*;
    use crate::machine::RoomRequest;
    use crate::machine::tests::{ALIAS, Bench, position, refused};

    const TTL: Duration = Duration::from_secs(9);

    fn lock() -> Key {
        Key::parse("card").unwrap()
    }

    fn acquire(bench: &mut Bench, queue: bool) -> CallId {
        bench.request(RoomRequest::Acquire {
            lock: lock(),
            ttl: TTL,
            queue,
        })
    }

    /// The lock requests sent since the outputs were last cleared.
    fn asked(bench: &Bench) -> Vec<(RequestId, LockRequest)> {
        let frames = bench.sent().into_iter().filter_map(|frame| match frame {
            ClientFrame::Lock(Lock { request, what, .. }) => Some((request, what)),
            _ => None,
        });
        frames.collect()
    }

    fn granted(bench: &mut Bench, request: RequestId, offset: u64) {
        bench.frame(OkFrame {
            request,
            reply: Reply::Lock(LockReply::Granted {
                fence: position(1, offset),
                until_ms: 0,
            }),
        });
    }

    fn queued(bench: &mut Bench, request: RequestId) {
        bench.frame(OkFrame {
            request,
            reply: Reply::Lock(LockReply::Queued { place: 0 }),
        });
    }

    /// Answers the one request that was sent since the outputs were last cleared.
    fn grant_asked_again(bench: &mut Bench, offset: u64) {
        let mut asked = asked(bench);
        let (request, what) = asked.remove(0);
        assert!(matches!(what, LockRequest::Acquire { queue: true, .. }));
        assert_eq!(asked, []);
        granted(bench, request, offset);
    }

    fn told(bench: &mut Bench, offset: u64, why: LockWhy, held: Option<(u64, u64)>) {
        told_of(bench, offset, why, held, &[]);
    }

    /// The lock as the room shows it, after whatever came before.
    fn told_of(
        bench: &mut Bench,
        offset: u64,
        why: LockWhy,
        held: Option<(u64, u64)>,
        queue: &[u64],
    ) {
        let held = held.map(|(member, fence)| Holder {
            fence: Offset(fence),
            member: MemberId(member),
            user: UserId::parse("anon-1").unwrap(),
            until_ms: 0,
        });
        let queue = queue.iter().map(|member| Waiter {
            member: MemberId(*member),
            user: UserId::parse("anon-1").unwrap(),
        });
        if offset > 1 {
            bench.frame(Advance {
                room: ALIAS,
                offset: Offset(offset - 1),
            });
        }
        bench.frame(LockChanged {
            room: ALIAS,
            offset: Offset(offset),
            time_ms: 0,
            lock: lock(),
            why,
            held,
            queue: queue.collect(),
        });
    }

    fn losses(bench: &Bench) -> usize {
        let events = bench.room_events().into_iter();
        let lost = |event: &RoomEvent| matches!(event, RoomEvent::LockLost { .. });
        events.filter(lost).count()
    }

    fn holding() -> Bench {
        let mut bench = Bench::joined();
        let call = acquire(&mut bench, false);
        let (request, what) = asked(&bench)[0].clone();
        assert!(matches!(
            what,
            LockRequest::Acquire {
                ttl_ms: 9_000,
                queue: false,
                ..
            }
        ));
        granted(&mut bench, request, 3);
        assert_eq!(bench.reply(call), Some(Ok(Answer::Locked(position(1, 3)))));
        bench.outputs.clear();
        bench
    }

    #[test]
    fn a_lock_is_renewed_after_a_third_of_its_lease() {
        let mut bench = holding();
        for _ in 0..3 {
            assert_eq!(bench.wait(), TTL / 3);
            let (request, what) = asked(&bench)[0].clone();
            let fence = position(1, 3);
            assert!(matches!(what, LockRequest::Renew { fence: sent, .. } if sent == fence));
            bench.outputs.clear();
            granted(&mut bench, request, 3);
        }
        assert_eq!(losses(&bench), 0);
    }

    /// Goal: this client never believes longer than its lease. Method: no renewal is ever answered.
    #[test]
    fn a_lease_without_renewal_ends_on_time_and_is_given_up() {
        let mut bench = holding();
        let start = bench.now;
        while losses(&bench) == 0 {
            bench.wait();
        }
        assert_eq!(bench.now - start, TTL);
        let last = asked(&bench).pop().unwrap().1;
        assert_eq!(last, LockRequest::Release { lock: lock() });
    }

    #[test]
    fn a_refused_renewal_is_a_loss_and_a_busy_server_is_none() {
        let mut bench = holding();
        bench.wait();
        let request = asked(&bench)[0].0;
        bench.frame(refused(request, ErrorCode::RateLimited, Some(100)));
        assert_eq!(losses(&bench), 0);
        bench.outputs.clear();
        bench.wait();
        let request = asked(&bench)[0].0;
        bench.frame(refused(request, ErrorCode::StaleFence, None));
        assert_eq!(losses(&bench), 1);
    }

    #[test]
    fn who_waits_is_told_by_the_room_and_again_when_it_is_over() {
        let mut bench = Bench::joined();
        let call = acquire(&mut bench, true);
        let requests: Vec<_> = asked(&bench).into_iter().map(|(_, what)| what).collect();
        assert!(requests.contains(&LockRequest::Watch { locks: true }));
        let (request, _) = asked(&bench).pop().unwrap();
        queued(&mut bench, request);
        bench.outputs.clear();
        told_of(&mut bench, 1, LockWhy::Released, None, &[3]);
        assert_eq!(asked(&bench), []);
        told(&mut bench, 2, LockWhy::Granted, Some((3, 2)));
        grant_asked_again(&mut bench, 2);
        assert_eq!(bench.reply(call), Some(Ok(Answer::Locked(position(1, 2)))));
        told(&mut bench, 3, LockWhy::Expired, None);
        assert_eq!(losses(&bench), 1);
    }

    /// Goal: who lags waits for no turn that has come and gone. Method: the room shows nothing but that the lock is free, before and after the answer
    /// to the request.
    #[test]
    fn a_place_in_the_queue_that_is_gone_is_asked_for_again() {
        for is_late in [false, true] {
            let mut bench = Bench::joined();
            let call = acquire(&mut bench, true);
            let (request, _) = asked(&bench).pop().unwrap();
            bench.outputs.clear();
            if is_late {
                queued(&mut bench, request);
            }
            told(&mut bench, 4, LockWhy::Expired, None);
            if !is_late {
                assert_eq!(asked(&bench), [], "one request at a time");
                queued(&mut bench, request);
            }
            grant_asked_again(&mut bench, 5);
            assert_eq!(bench.reply(call), Some(Ok(Answer::Locked(position(1, 5)))));
        }
    }

    /// Goal: an answer counts for the claim that asked. Method: a lock is taken, given back and taken within one round trip; the room shows the first
    /// grant as well.
    #[test]
    fn an_earlier_grant_is_not_taken_for_a_later_one() {
        let mut bench = Bench::joined();
        acquire(&mut bench, true);
        bench.request(RoomRequest::Lock(LockRequest::Release { lock: lock() }));
        let second = acquire(&mut bench, true);
        let requests: Vec<_> = asked(&bench)
            .into_iter()
            .filter(|(_, what)| matches!(what, LockRequest::Acquire { .. }))
            .collect();
        bench.outputs.clear();
        granted(&mut bench, requests[0].0, 5);
        told(&mut bench, 5, LockWhy::Granted, Some((3, 5)));
        assert_eq!((bench.reply(second), asked(&bench)), (None, Vec::new()));
        granted(&mut bench, requests[1].0, 7);
        assert_eq!(
            bench.reply(second),
            Some(Ok(Answer::Locked(position(1, 7))))
        );
        told(&mut bench, 6, LockWhy::Released, None);
        assert_eq!(losses(&bench), 0);
    }

    #[test]
    fn a_grant_that_nobody_wants_any_more_is_given_back() {
        let mut bench = Bench::joined();
        acquire(&mut bench, false);
        let (request, _) = asked(&bench)[0].clone();
        bench.request(RoomRequest::Lock(LockRequest::Release { lock: lock() }));
        bench.outputs.clear();
        granted(&mut bench, request, 5);
        assert_eq!(asked(&bench)[0].1, LockRequest::Release { lock: lock() });
    }

    #[test]
    fn a_request_without_an_answer_leaves_nothing_with_the_server() {
        let mut bench = Bench::joined();
        let call = acquire(&mut bench, false);
        bench.outputs.clear();
        bench.wait();
        assert_eq!(bench.reply(call), Some(Err(Error::Timeout)));
        assert_eq!(asked(&bench)[0].1, LockRequest::Release { lock: lock() });
    }

    /// Goal: a server that has no time right now ends no claim, also one made before the connection was lost.
    #[test]
    fn a_lock_refused_for_a_while_is_asked_for_again() {
        let mut bench = Bench::joined();
        let call = acquire(&mut bench, true);
        bench.cut_and_reopen();
        bench.answer_join(position(1, 0), Recovery::Live);
        let (request, _) = asked(&bench).pop().unwrap();
        bench.outputs.clear();
        bench.frame(refused(request, ErrorCode::RateLimited, Some(100)));
        assert_eq!(bench.reply(call), None);
        assert_eq!(bench.wait(), Duration::from_millis(100));
        grant_asked_again(&mut bench, 5);
        assert_eq!(bench.reply(call), Some(Ok(Answer::Locked(position(1, 5)))));
    }

    /// Goal: one claim has one request on its way. Method: somebody comes to wait while one that would not wait is on its way, and is refused.
    #[test]
    fn who_comes_to_wait_asks_after_the_one_that_would_not() {
        let mut bench = Bench::joined();
        acquire(&mut bench, false);
        let (request, _) = asked(&bench)[0].clone();
        bench.outputs.clear();
        let waiting = acquire(&mut bench, true);
        assert_eq!(asked(&bench), []);
        bench.frame(refused(request, ErrorCode::LockTaken, Some(100)));
        let sent: Vec<_> = asked(&bench).into_iter().map(|(_, what)| what).collect();
        assert_eq!(sent[0], LockRequest::Watch { locks: true });
        assert!(matches!(
            sent.last(),
            Some(LockRequest::Acquire { queue: true, .. })
        ));
        assert_eq!(bench.reply(waiting), None);
    }

    /// Goal: who waits is told, though the watch it needs was not taken at once. Method: it waits between `join` and `joined`, which said nothing of
    /// locks; the watch that follows is refused for a while.
    #[test]
    fn who_waits_before_the_join_is_answered_watches_after_it() {
        let mut bench = Bench::new();
        bench.connect();
        bench.join();
        assert!(!bench.last_join().locks);
        acquire(&mut bench, true);
        bench.answer_join(position(1, 0), Recovery::Live);
        let sent = asked(&bench);
        assert_eq!(sent[0].1, LockRequest::Watch { locks: true });
        queued(&mut bench, sent.last().unwrap().0);
        bench.outputs.clear();
        bench.frame(refused(sent[0].0, ErrorCode::RateLimited, Some(100)));
        assert_eq!(bench.wait(), Duration::from_millis(100));
        let sent: Vec<_> = asked(&bench).into_iter().map(|(_, what)| what).collect();
        assert_eq!(sent[0], LockRequest::Watch { locks: true });
        assert!(matches!(
            sent.last(),
            Some(LockRequest::Acquire { queue: true, .. })
        ));
    }

    /// Goal: who waits hears of its grant. Method: the application watches locks no longer while it waits for two; they are unwatched behind the second.
    #[test]
    fn locks_are_watched_until_nobody_waits() {
        let release = |lock: &Key| RoomRequest::Lock(LockRequest::Release { lock: lock.clone() });
        let unwatch = LockRequest::Watch { locks: false };
        for is_released in [false, true] {
            let mut bench = Bench::joined();
            acquire(&mut bench, true);
            let (first, _) = asked(&bench).pop().unwrap();
            queued(&mut bench, first);
            bench.outputs.clear();
            let other = Key::parse("other").unwrap();
            bench.request(RoomRequest::Acquire {
                lock: other.clone(),
                ttl: TTL,
                queue: true,
            });
            let (second, _) = asked(&bench).pop().unwrap();
            let watched = bench.request(RoomRequest::Lock(unwatch.clone()));
            assert_eq!(bench.reply(watched), Some(Ok(Answer::Done)));
            bench.request(release(&lock()));
            let sent: Vec<_> = asked(&bench).into_iter().map(|(_, what)| what).collect();
            assert!(!sent.contains(&unwatch), "{sent:?}");
            if is_released {
                bench.request(release(&other));
            } else {
                granted(&mut bench, second, 5);
            }
            assert_eq!(
                asked(&bench).pop().map(|(_, what)| what),
                Some(unwatch.clone())
            );
        }
    }

    #[test]
    fn who_would_never_be_told_waits_no_longer() {
        let mut bench = Bench::joined();
        let call = acquire(&mut bench, true);
        let (watch, _) = asked(&bench)[0].clone();
        bench.outputs.clear();
        bench.frame(refused(watch, ErrorCode::Forbidden, None));
        assert!(matches!(bench.reply(call), Some(Err(Error::Refused(_)))));
        let release = LockRequest::Release { lock: lock() };
        assert_eq!(asked(&bench).last().map(|(_, what)| what), Some(&release));
    }

    /// Goal: a claim survives the connection. Method: one lock held and one waited for; after a cut, a renewal of the one and a request for the other
    /// go out, and the first turns out to be lost.
    #[test]
    fn claims_are_made_again_by_the_next_membership() {
        let mut bench = holding();
        let other = Key::parse("other").unwrap();
        let call = bench.request(RoomRequest::Acquire {
            lock: other.clone(),
            ttl: TTL,
            queue: true,
        });
        bench.cut_and_reopen();
        bench.answer_join(position(1, 0), Recovery::Live);
        let asked = asked(&bench);
        let renewal = asked
            .iter()
            .find(|(_, what)| matches!(what, LockRequest::Renew { .. }));
        let again = asked
            .iter()
            .find(|(_, what)| matches!(what, LockRequest::Acquire { lock, .. } if *lock == other));
        bench.frame(refused(renewal.unwrap().0, ErrorCode::LockNotHeld, None));
        assert_eq!(losses(&bench), 1);
        granted(&mut bench, again.unwrap().0, 5);
        assert_eq!(bench.reply(call), Some(Ok(Answer::Locked(position(1, 5)))));
    }

    #[test]
    fn a_lease_that_ends_offline_is_lost_and_given_up_on_coming_back() {
        let mut bench = holding();
        bench.command(crate::machine::Command::Suspend);
        assert_eq!(bench.wait(), TTL);
        assert_eq!(losses(&bench), 1);
        bench.command(crate::machine::Command::Resume);
        bench.open();
        bench.answer_join(position(1, 0), Recovery::Live);
        let sent: Vec<_> = asked(&bench).into_iter().map(|(_, what)| what).collect();
        assert_eq!(sent, [LockRequest::Release { lock: lock() }]);
    }

    #[test]
    fn a_release_ends_the_waiting_and_the_renewing() {
        let mut bench = Bench::joined();
        let waiting = acquire(&mut bench, true);
        let released = bench.request(RoomRequest::Lock(LockRequest::Release { lock: lock() }));
        assert_eq!(bench.reply(waiting), Some(Err(Error::LockReleased)));
        let (request, what) = asked(&bench).pop().unwrap();
        assert_eq!(what, LockRequest::Release { lock: lock() });
        bench.frame(OkFrame {
            request,
            reply: Reply::Done,
        });
        assert_eq!(bench.reply(released), Some(Ok(Answer::Done)));
    }

    /// Goal: a claim is ended by its own release alone. Method: the answer to a release is lost after the lock was asked for anew.
    #[test]
    fn a_lost_release_does_not_end_a_later_claim() {
        let mut bench = holding();
        bench.request(RoomRequest::Lock(LockRequest::Release { lock: lock() }));
        acquire(&mut bench, false);
        bench.cut_and_reopen();
        bench.answer_join(position(1, 0), Recovery::Live);
        let sent: Vec<_> = asked(&bench).into_iter().map(|(_, what)| what).collect();
        assert!(matches!(sent[..], [LockRequest::Acquire { .. }]));
    }

    #[test]
    fn a_release_whose_answer_is_lost_is_said_again() {
        let mut bench = holding();
        let released = bench.request(RoomRequest::Lock(LockRequest::Release { lock: lock() }));
        bench.step(crate::machine::Input::Closed(None));
        assert_eq!(bench.reply(released), Some(Ok(Answer::Done)));
        bench.wait();
        bench.outputs.clear();
        bench.open();
        bench.answer_join(position(1, 0), Recovery::Live);
        let sent: Vec<_> = asked(&bench).into_iter().map(|(_, what)| what).collect();
        assert_eq!(sent, [LockRequest::Release { lock: lock() }]);
    }

    /// Goal: a membership that the server ends and renews ends no claim, and forgets no release. Method: both are on their way when it does, beside what
    /// a join says too, and meet a room that is not joined.
    #[test]
    fn requests_that_cross_the_end_of_their_membership_are_made_again_by_the_next_one() {
        for is_joined_first in [false, true] {
            let mut bench = holding();
            let released = bench.request(RoomRequest::Lock(LockRequest::Release { lock: lock() }));
            let told = [
                bench.request(RoomRequest::SetPresence(Some(Payload::text("typing")))),
                bench.request(RoomRequest::Watch(Watch::Members)),
                bench.request(RoomRequest::Lock(LockRequest::Watch { locks: true })),
                bench.request(RoomRequest::State(StateRequest::OnDisconnect {
                    changes: Vec::new(),
                })),
                released,
            ];
            let crossed: Vec<_> = bench
                .sent()
                .iter()
                .filter_map(ClientFrame::request)
                .collect();
            bench.frame(Left {
                room: ALIAS,
                code: ErrorCode::FellBehind.into(),
                text: "behind".to_owned(),
                retry: ErrorCode::FellBehind.retry(),
                after_ms: None,
            });
            if is_joined_first {
                bench.answer_join(position(1, 0), Recovery::Live);
            }
            for request in crossed {
                bench.frame(refused(request, ErrorCode::NotJoined, None));
            }
            for call in told {
                assert_eq!(bench.reply(call), Some(Ok(Answer::Done)));
            }
            if !is_joined_first {
                bench.answer_join(position(1, 0), Recovery::Live);
            }
            let join = bench.last_join();
            assert_eq!(join.presence, Some(Payload::text("typing")));
            assert_eq!((join.watch, join.locks), (Watch::Members, true));
            let release = LockRequest::Release { lock: lock() };
            let releases = asked(&bench)
                .into_iter()
                .filter(|(_, what)| *what == release);
            assert_eq!(releases.count(), 2, "said, and said again");
        }
    }
}
