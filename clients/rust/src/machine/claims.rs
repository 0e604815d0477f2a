//! The locks that the application holds or waits for: asked for again after every loss, and renewed for as long as they are wanted.
//!
//! The membership owns one [`Claims`]. A lock counts as held until its lease ends by this client's own clock, counted from when the request that
//! got it was sent, so that this client never believes longer than the server. What a lock guards is made safe by its fence alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{Lock, LockChanged, LockReply, LockRequest, Reply};
use roomful_protocol::id::{Key, RoomAlias};
use roomful_protocol::position::Position;

use super::requests::Request;
use super::step::{Answer, CallId, Output, RoomEvent, RoomKey};
use super::{Machine, Turn};
use crate::error::{Error, Refusal};

/// What the application wants of locks.
#[derive(Debug, Default)]
pub(super) struct Claims {
    wanted: BTreeMap<Key, Wanted>,
    held: BTreeMap<Key, Held>,
    /// Given up while there was no way to say so.
    given_up: BTreeSet<Key>,
}

#[derive(Debug)]
struct Wanted {
    calls: Vec<CallId>,
    ttl: Duration,
    queue: bool,
}

#[derive(Debug)]
struct Held {
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
        ends.chain(renewals.filter(|_| joined)).min()
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
        room.claims.given_up.remove(&lock);
        let wanted = room.claims.wanted.entry(lock.clone());
        let wanted = wanted.or_insert_with(|| Wanted {
            calls: Vec::new(),
            ttl,
            queue,
        });
        wanted.calls.push(call);
        wanted.ttl = ttl;
        wanted.queue |= queue;
        // Whoever waits has to hear of its grant.
        if queue && !room.options.locks {
            self.watch_locks(None, key, true, turn);
        }
        self.send_acquire(key, &lock, turn);
    }

    fn send_acquire(&mut self, key: RoomKey, lock: &Key, turn: &mut Turn<'_>) {
        let Some(room) = self.rooms.get(&key) else {
            return;
        };
        let (Some(alias), Some(wanted)) = (room.alias(), room.claims.wanted.get(lock)) else {
            return;
        };
        let what = LockRequest::Acquire {
            lock: lock.clone(),
            ttl_ms: millis(wanted.ttl),
            queue: wanted.queue,
        };
        self.ask_lock(key, lock, alias, what, turn);
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
        self.ask_lock(key, lock, alias, what, turn);
    }

    fn ask_lock(
        &mut self,
        key: RoomKey,
        lock: &Key,
        alias: RoomAlias,
        what: LockRequest,
        turn: &mut Turn<'_>,
    ) {
        let pending = Request::Lock {
            key,
            alias,
            lock: lock.clone(),
            sent: turn.at.now,
        };
        self.request(pending, turn, |request| {
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
        let Some(alias) = room.alias() else {
            room.claims.given_up.insert(lock);
            return turn.reply(call, Ok(Answer::Done));
        };
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

    /// The connection ended before the server said that it had the lock back.
    pub(super) fn release_lost(
        &mut self,
        call: CallId,
        key: RoomKey,
        lock: Key,
        turn: &mut Turn<'_>,
    ) {
        if let Some(room) = self.rooms.get_mut(&key) {
            room.claims.given_up.insert(lock);
        }
        turn.reply(call, Ok(Answer::Done));
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
    pub(super) fn lock_answered(
        &mut self,
        key: RoomKey,
        lock: Key,
        sent: Duration,
        reply: &Reply,
        turn: &mut Turn<'_>,
    ) {
        match reply {
            Reply::Lock(LockReply::Granted { fence, .. }) => {
                self.granted(key, lock, *fence, sent, turn);
            }
            // It waits, and its grant is told.
            Reply::Lock(LockReply::Queued { .. }) => {}
            _ => self.lock_failed(key, &lock, &Error::UnexpectedAnswer, turn),
        }
    }

    fn granted(
        &mut self,
        key: RoomKey,
        lock: Key,
        fence: Position,
        since: Duration,
        turn: &mut Turn<'_>,
    ) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        let renew_at = |ttl: Duration| since + ttl / 3;
        if let Some(held) = room.claims.held.get_mut(&lock) {
            if held.fence == fence {
                held.ends_at = held.ends_at.max(since + held.ttl);
                held.renew_at = held.renew_at.max(renew_at(held.ttl));
            }
            return;
        }
        let Some(Wanted { calls, ttl, .. }) = room.claims.wanted.remove(&lock) else {
            return;
        };
        let held = Held {
            fence,
            ttl,
            renew_at: renew_at(ttl),
            ends_at: since + ttl,
        };
        room.claims.held.insert(lock.clone(), held);
        for call in calls {
            turn.reply(call, Ok(Answer::Locked(fence)));
        }
        turn.out
            .push(Output::Event(key, RoomEvent::LockGranted { lock, fence }));
    }

    /// The server refused a lock, or its renewal.
    pub(super) fn lock_refused(
        &mut self,
        key: RoomKey,
        alias: RoomAlias,
        lock: &Key,
        refusal: Refusal,
        turn: &mut Turn<'_>,
    ) {
        let Some(room) = self.rooms.get_mut(&key) else {
            return;
        };
        // What was asked in an earlier membership has been asked again.
        if room.alias() != Some(alias) {
            return;
        }
        if !room.claims.held.contains_key(lock) {
            return self.lock_failed(key, lock, &Error::Refused(refusal), turn);
        }
        let lost = [ErrorCode::LockNotHeld, ErrorCode::StaleFence];
        if lost.map(Into::into).contains(&refusal.code) {
            self.lose(key, lock, turn);
        }
    }

    /// Nobody will get this lock: whoever waits is told.
    pub(super) fn lock_failed(
        &mut self,
        key: RoomKey,
        lock: &Key,
        error: &Error,
        turn: &mut Turn<'_>,
    ) {
        let room = self.rooms.get_mut(&key);
        let wanted = room.and_then(|room| room.claims.wanted.remove(lock));
        for call in wanted.into_iter().flat_map(|wanted| wanted.calls) {
            turn.reply(call, Err(error.clone()));
        }
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

    /// A lock changed in the room: a grant that was waited for, or the end of one.
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
        if let Some(held) = room.claims.held.get(&changed.lock) {
            if held.fence < position && own != Some(held.fence) {
                self.lose(key, &changed.lock, turn);
            }
        } else if let Some(fence) = own {
            self.granted(key, changed.lock.clone(), fence, turn.at.now, turn);
            // How old the grant is, this client does not know.
            self.send_renewal(key, &changed.lock, turn);
        }
    }

    /// Renews what is due, and lets go of what has ended.
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
        }
    }
}

fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use roomful_protocol::frame::{ClientFrame, Holder, LockWhy, Ok as OkFrame, Recovery};
    use roomful_protocol::id::{MemberId, Offset, RequestId, UserId};

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

    fn told(bench: &mut Bench, offset: u64, why: LockWhy, held: Option<(u64, u64)>) {
        let held = held.map(|(member, fence)| Holder {
            fence: Offset(fence),
            member: MemberId(member),
            user: UserId::parse("anon-1").unwrap(),
            until_ms: 0,
        });
        bench.frame(LockChanged {
            room: ALIAS,
            offset: Offset(offset),
            time_ms: 0,
            lock: lock(),
            why,
            held,
            queue: Vec::new(),
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
        bench.frame(OkFrame {
            request,
            reply: Reply::Lock(LockReply::Queued { place: 0 }),
        });
        told(&mut bench, 1, LockWhy::Released, None);
        assert_eq!(bench.reply(call), None);
        told(&mut bench, 2, LockWhy::Granted, Some((3, 2)));
        assert_eq!(bench.reply(call), Some(Ok(Answer::Locked(position(1, 2)))));
        told(&mut bench, 3, LockWhy::Expired, None);
        assert_eq!(losses(&bench), 1);
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
}
