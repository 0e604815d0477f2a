//! Whether what clients were told of one room is linearizable, and says so exactly.
//!
//! In general that asks for a search over orders. Here the room's log is the order: every write and every change of a lock has a
//! position, every page names its own, and a refusal is explained by one of the states between. So it is enough that
//!
//! 1. the log by itself is a sequential execution: each write stands there once, its conditions held in the state just before it
//!    (versions, absence, and the newest grant for a fence), it made of its keys what it asked for, and locks change hands by the rules;
//! 2. everybody was told what that execution gives, at a point of it: an acknowledged write its own position, a page the state of
//!    the position it names, a refusal or a grant some state that gives exactly that answer;
//! 3. points respect time: an operation's point is not before that of any operation that was answered before it was sent,
//!    and a write's is behind it.
//!
//! A point that may be chosen is the first one that fits, going through operations in the order of their beginning. That
//! choice is never worse than another: every other fitting one is later, and a later one only leaves less room to those behind. An
//! operation with an unknown outcome binds nobody; if it stands in the log, then behind what had been answered before it was sent.

use std::collections::{BTreeMap, HashMap};

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{
    Change, Error, LockChange, LockReply, LockRequest, LockWhy, LocksPage, OpId, Reply, StateItem,
    StatePage, StateRequest,
};
use roomful_protocol::id::{Key, Offset, UserId};
use roomful_protocol::position::Position;

use super::folded::{Folded, Written};
use super::history::{Answer, Asked, Operation};

/// What a check has seen.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) taken: u64,
    pub(crate) conflicts: u64,
    pub(crate) stale_fences: u64,
    pub(crate) pages: u64,
    pub(crate) grants: u64,
    pub(crate) expiries: u64,
    /// Writes with an unknown outcome that have taken effect.
    pub(crate) unknown_and_there: u64,
    pub(crate) unknown: u64,
}

/// Checks one room; what is wrong is an error.
pub(crate) fn check(folded: &Folded, operations: &[Operation]) -> Result<Seen, String> {
    let checker = Checker { folded };
    let mut seen = checker.writes_are_sequential(operations)?;
    checker.leases_last(operations)?;
    checker.answers_fit(operations, &mut seen)?;
    seen.taken = folded.writes.len() as u64;
    seen.expiries = folded.expired.len() as u64;
    Ok(seen)
}

struct Checker<'a> {
    folded: &'a Folded,
}

impl Checker<'_> {
    /// Each write of the log was asked for, and was to be taken where it stands.
    fn writes_are_sequential(&self, operations: &[Operation]) -> Result<Seen, String> {
        let mut seen = Seen::default();
        let mut asked: HashMap<OpId, &[Change]> = HashMap::new();
        for operation in operations {
            if let Asked::State(StateRequest::Write { op, changes }) = &operation.asked {
                let op = op.ok_or("a write without an op id can't be found in the log")?;
                asked.insert(op, changes);
                let is_unknown = operation.answer.is_none();
                let is_there = self.folded.places.contains_key(&op);
                seen.unknown += u64::from(is_unknown);
                seen.unknown_and_there += u64::from(is_unknown && is_there);
            }
        }
        for (at, Written { op, changes }) in &self.folded.writes {
            let wanted = asked.get(op);
            let wanted = wanted.ok_or_else(|| format!("{at}: nobody asked for {op:?}"))?;
            let before = Offset(at.0 - 1);
            for change in *wanted {
                if !self.is_as_known(change, before) {
                    let there = self.folded.value_at(&change.key, before);
                    return Err(format!("{at}: a lost update: {change:?} over {there:?}"));
                }
                if !self.is_fence_new(change, before) {
                    return Err(format!("{at}: a stale fence: {change:?}"));
                }
            }
            let made = wanted.iter().map(|change| (&change.key, &change.value));
            if !made.eq(changes.iter().map(|change| (&change.key, &change.value))) {
                return Err(format!("{at}: {changes:?} is not what was asked for"));
            }
        }
        Ok(seen)
    }

    /// Whether the conditions on version and absence hold.
    fn is_as_known(&self, change: &Change, at: Offset) -> bool {
        let (version, value) = self.folded.value_at(&change.key, at);
        let version = Position::new(self.folded.epoch, version);
        change.if_version.is_none_or(|wanted| wanted == version)
            && !(change.if_absent && value.is_some())
    }

    /// Whether the condition on a lock holds.
    fn is_fence_new(&self, change: &Change, at: Offset) -> bool {
        let newest = |lock| self.folded.fence_at(lock, at);
        let guard = change.if_fence.as_ref();
        guard.is_none_or(|guard| newest(&guard.lock) == Some(guard.fence))
    }

    /// No lease ended before the time that its holder was told.
    fn leases_last(&self, operations: &[Operation]) -> Result<(), String> {
        let mut told: BTreeMap<(&Key, Offset), u64> = BTreeMap::new();
        for operation in operations {
            if let Asked::Lock(LockRequest::Acquire { lock, .. } | LockRequest::Renew { lock, .. }) =
                &operation.asked
                && let Some(Ok(Reply::Lock(LockReply::Granted { fence, until_ms }))) =
                    operation.answer.as_ref().map(|answer| &answer.reply)
            {
                let told = told.entry((lock, fence.offset)).or_default();
                *told = (*told).max(*until_ms);
            }
        }
        for (lock, fence, time_ms) in &self.folded.expired {
            let until_ms = told.get(&(lock, *fence)).copied().unwrap_or_default();
            if *time_ms < until_ms {
                return Err(format!(
                    "{lock}: the lease of {fence} ended at {time_ms}, and was to last until {until_ms}"
                ));
            }
        }
        Ok(())
    }

    /// Gives each operation its point.
    fn answers_fit(&self, operations: &[Operation], seen: &mut Seen) -> Result<(), String> {
        let mut order: Vec<_> = operations.iter().collect();
        order.sort_unstable_by_key(|operation| operation.invoked);
        // Points of operations that were answered, and when; those before the one that is looked at count.
        let mut answered: BTreeMap<u64, Offset> = BTreeMap::new();
        let mut floor = Offset(0);
        for operation in order {
            while let Some(first) = answered.first_entry()
                && *first.key() < operation.invoked
            {
                floor = floor.max(first.remove());
            }
            let wrong = |what: &str| format!("{what}, behind {floor}: {operation:?}");
            self.stands_behind(operation, floor).map_err(wrong)?;
            if let Some(Answer { at, reply }) = &operation.answer {
                let point = match reply {
                    Ok(reply) => self.point(operation, reply, floor, seen),
                    Err(error) => self.refusal(operation, error, floor, seen),
                };
                answered.insert(*at, point.map_err(wrong)?);
            }
        }
        Ok(())
    }

    /// A write that is in the log is there behind what was answered before it was sent, whatever became of its answer.
    fn stands_behind(&self, operation: &Operation, floor: Offset) -> Result<(), &'static str> {
        let Asked::State(StateRequest::Write { op: Some(op), .. }) = &operation.asked else {
            return Ok(());
        };
        match self.folded.places.get(op) {
            Some(at) if *at <= floor => {
                Err("a write stands before what was known when it was sent")
            }
            _ => Ok(()),
        }
    }

    fn point(
        &self,
        operation: &Operation,
        reply: &Reply,
        floor: Offset,
        seen: &mut Seen,
    ) -> Result<Offset, &'static str> {
        let user = &operation.user;
        match (&operation.asked, reply) {
            (Asked::State(StateRequest::Write { op: Some(op), .. }), Reply::Published(told)) => {
                let at = self.folded.places.get(op);
                let at = *at.ok_or("an acknowledged write is lost")?;
                let is_told = told.position == Position::new(self.folded.epoch, at);
                is_told.then_some(at).ok_or("a write stands elsewhere")
            }
            (Asked::State(StateRequest::Get { .. }), Reply::State(page)) => {
                seen.pages += 1;
                self.page(page, floor)
            }
            (Asked::Lock(LockRequest::Get { .. }), Reply::Locks(page)) => {
                seen.pages += 1;
                self.locks_page(page, floor)
            }
            (
                Asked::Lock(LockRequest::Acquire { lock, .. } | LockRequest::Renew { lock, .. }),
                Reply::Lock(LockReply::Granted { fence, .. }),
            ) => {
                seen.grants += 1;
                let fence = *fence;
                let holds = |at| {
                    let held = self.lock(lock, at).and_then(|lock| lock.held.as_ref());
                    held.is_some_and(|held| (&held.user, held.fence) == (user, fence.offset))
                };
                let found = self.first(floor.max(fence.offset), holds);
                found.ok_or("who was granted a lock never held it")
            }
            (
                Asked::Lock(LockRequest::Acquire { lock, .. }),
                Reply::Lock(LockReply::Queued { place }),
            ) => {
                let waits = |at| {
                    let queue = self.lock(lock, at).map_or(&[][..], |lock| &lock.queue);
                    let place = queue.get(usize::try_from(*place).unwrap_or(usize::MAX));
                    place.is_some_and(|waiter| waiter.user == *user)
                };
                let found = self.first(floor, waits);
                found.ok_or("who was told to wait never did at that place")
            }
            (Asked::Lock(LockRequest::Release { lock }), Reply::Done) => {
                let gave_back = |at: Offset| {
                    let before = self.lock(lock, Offset(at.0 - 1));
                    let now = self.lock(lock, at);
                    now.is_some_and(|now| now.why == LockWhy::Released)
                        && is_party(before, user)
                        && !is_party(now, user)
                };
                let found = self.first(floor.next(), gave_back);
                found.ok_or("what was given back never was")
            }
            _ => Err("an answer to something else"),
        }
    }

    fn page(&self, page: &StatePage, floor: Offset) -> Result<Offset, &'static str> {
        let at = self.position(page.position, floor)?;
        let told = page.items.iter().map(|item| {
            let StateItem {
                key,
                version,
                value,
            } = item;
            (key, *version, value.as_ref())
        });
        let there = self.folded.values_at(at).into_iter();
        let there = there.map(|(key, version, value)| {
            (key, Position::new(self.folded.epoch, version), Some(value))
        });
        match page.next.is_none() && told.eq(there) {
            true => Ok(at),
            false => Err("a page is not the state of its position"),
        }
    }

    fn locks_page(&self, page: &LocksPage, floor: Offset) -> Result<Offset, &'static str> {
        let at = self.position(page.position, floor)?;
        let told = page.locks.iter().map(|lock| {
            let held = lock.held.as_ref().map(|held| (held.fence, held.member));
            let queue: Vec<_> = lock.queue.iter().map(|waiter| waiter.member).collect();
            (&lock.lock, held, queue)
        });
        let there = self.folded.locks_at(at).into_iter().map(|lock| {
            let held = lock.held.as_ref().map(|held| (held.fence, held.member));
            let queue: Vec<_> = lock.queue.iter().map(|waiter| waiter.member).collect();
            (&lock.lock, held, queue)
        });
        match page.next.is_none() && told.eq(there) {
            true => Ok(at),
            false => Err("a page has not the locks of its position"),
        }
    }

    /// Where a page is of.
    fn position(&self, position: Position, floor: Offset) -> Result<Offset, &'static str> {
        if position.epoch != self.folded.epoch || position.offset > self.folded.head {
            return Err("a page of nowhere");
        }
        match position.offset >= floor {
            true => Ok(position.offset),
            false => Err("a stale page"),
        }
    }

    fn refusal(
        &self,
        operation: &Operation,
        error: &Error,
        floor: Offset,
        seen: &mut Seen,
    ) -> Result<Offset, &'static str> {
        let user = &operation.user;
        let holds = |lock: &Key, at| {
            let held = self.lock(lock, at).and_then(|lock| lock.held.as_ref());
            held.filter(|held| held.user == *user)
                .map(|held| held.fence)
        };
        match (&operation.asked, error.code.known()) {
            (
                Asked::State(StateRequest::Write {
                    op: Some(op),
                    changes,
                }),
                Some(code),
            ) => {
                // What was sent once and refused is not there; an attempt that was sent before may come to be taken later.
                if operation.attempts == 1 && self.folded.places.contains_key(op) {
                    return Err("a refused write has taken effect");
                }
                let found = match code {
                    ErrorCode::Conflict => {
                        seen.conflicts += 1;
                        self.first(floor, |at| self.explains(changes, &error.current, at))
                    }
                    ErrorCode::StaleFence => {
                        seen.stale_fences += 1;
                        let is_old =
                            |at| !changes.iter().all(|change| self.is_fence_new(change, at));
                        self.first(floor, is_old)
                    }
                    _ => None,
                };
                found.ok_or("no state explains the refusal")
            }
            (Asked::Lock(LockRequest::Acquire { lock, .. }), Some(ErrorCode::LockTaken)) => {
                let is_taken = |at| {
                    let there = self.lock(lock, at);
                    there.is_some_and(|there| there.held.is_some() || !there.queue.is_empty())
                        && !is_party(there, user)
                };
                let found = self.first(floor, is_taken);
                found.ok_or("a lock was taken for nobody")
            }
            (Asked::Lock(LockRequest::Renew { lock, fence, .. }), Some(ErrorCode::StaleFence)) => {
                let is_other = |at| holds(lock, at).is_some_and(|held| held != fence.offset);
                let found = self.first(floor, is_other);
                found.ok_or("a good grant was stale")
            }
            (Asked::Lock(LockRequest::Renew { lock, .. }), Some(ErrorCode::LockNotHeld)) => {
                let found = self.first(floor, |at| holds(lock, at).is_none());
                found.ok_or("who holds a lock was told otherwise")
            }
            (Asked::Lock(LockRequest::Release { lock }), Some(ErrorCode::LockNotHeld)) => {
                let found = self.first(floor, |at| !is_party(self.lock(lock, at), user));
                found.ok_or("who holds a lock or waits was told otherwise")
            }
            _ => Err("a refusal that nothing explains"),
        }
    }

    /// Whether a write is refused in a state, with these keys as they are.
    fn explains(&self, changes: &[Change], current: &[StateItem], at: Offset) -> bool {
        let failing = changes
            .iter()
            .filter(|change| !self.is_as_known(change, at));
        let there = failing.map(|change| {
            let (version, value) = self.folded.value_at(&change.key, at);
            (
                &change.key,
                Position::new(self.folded.epoch, version),
                value,
            )
        });
        let told = current
            .iter()
            .map(|item| (&item.key, item.version, item.value.as_ref()));
        !current.is_empty() && there.eq(told)
    }

    fn lock(&self, lock: &Key, at: Offset) -> Option<&LockChange> {
        self.folded.lock_at(lock, at)
    }

    /// The first point from one on that fits.
    fn first(&self, from: Offset, fits: impl Fn(Offset) -> bool) -> Option<Offset> {
        let mut points = (from.0..=self.folded.head.0).map(Offset);
        points.find(|at| fits(*at))
    }
}

/// Whether somebody holds a lock or waits for it.
fn is_party(lock: Option<&LockChange>, user: &UserId) -> bool {
    lock.is_some_and(|lock| {
        let held = lock.held.iter().map(|held| &held.user);
        let mut parties = held.chain(lock.queue.iter().map(|waiter| &waiter.user));
        parties.any(|party| party == user)
    })
}
