//! The locks of a room: each has one holder, a lease and a queue, and a fence that only ever grows.
//!
//! The room calls it, on one copy for what is committed and on another for what is on its way. Deciding changes nothing and
//! gives the whole lock as it is to stand, which goes into the log; [`Locks::apply`] is the same for an entry that was just made
//! and for one that is replayed. The fence of a grant is the offset of its entry, and the newest of each lock stays known when it
//! is free, so that an older one counts for nothing; where too many are free, the longest free ones are forgotten, and no fence
//! of theirs counts any more. A renewal is in no entry: whoever rebuilds the locks begins each lease anew. A lease ends by the
//! monotonic clock; the time of day that is told of its end is as that was when it was granted or renewed. Holders are known by
//! member and session; who of them is still there, the room knows.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use roomful_protocol::frame::{
    Holder, LockChange, LockInfo, LockReply, LockWhy, LocksPage, LoggedHolder, LoggedWaiter, Waiter,
};
use roomful_protocol::id::{Epoch, Key, MemberId, Offset, SessionId, UserId};
use roomful_protocol::limits::PAGE_MAX;
use roomful_protocol::position::Position;

use crate::clock::Now;
use crate::metrics::Quota;

/// The locks of a room.
#[derive(Debug, Clone, Default)]
pub struct Locks {
    /// Held, or waited for.
    taken: BTreeMap<Key, Lock>,
    /// The newest grants of the others.
    free: BTreeMap<Key, Offset>,
    /// The same by their age.
    by_grant: BTreeSet<(Offset, Key)>,
    /// How many wait, over all.
    waiting: usize,
}

#[derive(Debug, Clone)]
struct Lock {
    held: Option<LoggedHolder>,
    /// When the lease ends, on the monotonic clock.
    ends_ms: u64,
    queue: Vec<LoggedWaiter>,
    /// The newest grant.
    fence: Offset,
}

/// How many locks there are, and for how long they are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockBounds {
    /// Locks that are held, and as many free ones whose newest grant is known.
    pub locks_max: usize,
    /// Who waits for one of them.
    pub queue_max: usize,
    /// Longest lease, in milliseconds.
    pub ttl_max_ms: u64,
}

/// Who asks for a lock.
#[derive(Debug, Clone)]
pub struct Asker {
    /// The member.
    pub member: MemberId,
    /// Its user.
    pub user: UserId,
    /// Its session.
    pub session: SessionId,
}

/// Where the next entry will stand, and when that is decided.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The epoch.
    pub epoch: Epoch,
    /// The offset.
    pub offset: Offset,
    /// The time, by which leases go.
    pub now: Now,
}

/// What becomes of somebody who asks for a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
    /// This goes into the log.
    Changed(LockChange, LockReply),
    /// It holds the lock already, by this grant: it is renewed.
    Held(Offset),
    /// It waits already.
    Waits(LockReply),
}

/// Why a lock is not given. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockRefusal {
    /// Somebody else holds it, for so many milliseconds if it is not renewed.
    Taken(u64),
    /// The asker neither holds it nor waits for it.
    NotHeld,
    /// The lock was granted again since.
    StaleFence,
    /// There are as many as there may be.
    Quota(Quota),
}

impl Locks {
    /// Judges somebody who would like to have a lock.
    ///
    /// # Errors
    /// Somebody else has it and the asker doesn't wait, or a bound would be exceeded.
    pub fn acquire(
        &self,
        name: &Key,
        asker: &Asker,
        (ttl_ms, waits): (u64, bool),
        place: Place,
        bounds: LockBounds,
    ) -> Result<Acquired, LockRefusal> {
        let Some(lock) = self.taken.get(name) else {
            if self.taken.len() >= bounds.locks_max {
                return Err(LockRefusal::Quota(Quota::Locks));
            }
            return Ok(granted(name, asker, ttl_ms, place));
        };
        if let Some(held) = &lock.held
            && (held.member, held.session) == (asker.member, asker.session)
        {
            return Ok(Acquired::Held(held.fence));
        }
        let is_asker = |waiter: &LoggedWaiter| waiter.member == asker.member;
        if let Some(place) = lock.queue.iter().position(is_asker) {
            return Ok(Acquired::Waits(queued(place)));
        }
        if !waits {
            let left_ms = lock.ends_ms.saturating_sub(place.now.monotonic_ms);
            return Err(LockRefusal::Taken(left_ms));
        }
        if lock.queue.len() >= bounds.queue_max {
            return Err(LockRefusal::Quota(Quota::LockQueue));
        }
        let mut queue = lock.queue.clone();
        queue.push(LoggedWaiter {
            member: asker.member,
            user: asker.user.clone(),
            session: asker.session,
            ttl_ms,
        });
        let reply = queued(lock.queue.len());
        let change = LockChange {
            lock: name.clone(),
            why: LockWhy::Queued,
            held: lock.held.clone(),
            queue,
        };
        Ok(Acquired::Changed(change, reply))
    }

    /// Judges a release: the lock without its holder, or without the one who waits.
    ///
    /// # Errors
    /// The member neither holds it nor waits for it.
    pub fn release(&self, name: &Key, member: MemberId) -> Result<LockChange, LockRefusal> {
        let lock = self.taken.get(name).ok_or(LockRefusal::NotHeld)?;
        let without = lock.without(name, LockWhy::Released, |of, _| of == member);
        without.ok_or(LockRefusal::NotHeld)
    }

    /// Holds a lock for longer, and says until when. A lease is never shortened, and a renewal leaves no entry.
    ///
    /// # Errors
    /// The member does not hold it by this grant.
    pub fn renew(
        &mut self,
        name: &Key,
        member: MemberId,
        fence: Offset,
        ttl_ms: u64,
        now: Now,
    ) -> Result<u64, LockRefusal> {
        let lock = self.taken.get_mut(name).ok_or(LockRefusal::NotHeld)?;
        let held = lock.held.as_mut();
        let held = held
            .filter(|held| held.member == member)
            .ok_or(LockRefusal::NotHeld)?;
        if held.fence != fence {
            return Err(LockRefusal::StaleFence);
        }
        lock.ends_ms = lock.ends_ms.max(now.monotonic_ms.saturating_add(ttl_ms));
        let left_ms = lock.ends_ms - now.monotonic_ms;
        held.until_ms = now.unix_ms.saturating_add(left_ms);
        Ok(held.until_ms)
    }

    /// What has to happen next, if anything has, and whom it is about: who is gone leaves, a lease that is over ends, and who is
    /// first gets what is free. An entry each: ask again when it has been applied.
    pub fn due(
        &self,
        place: Place,
        is_here: impl Fn(MemberId, SessionId) -> bool,
    ) -> Option<(UserId, LockChange)> {
        let mut locks = self.taken.iter();
        locks.find_map(|(name, lock)| {
            let left = || {
                let mut parties = lock.parties();
                let (_, gone, _) = parties.find(|(of, _, session)| !is_here(*of, *session))?;
                let is_gone = |of, session| !is_here(of, session);
                Some((gone.clone(), lock.without(name, LockWhy::Left, is_gone)?))
            };
            let expired = || {
                let held = lock.held.as_ref()?;
                let change = LockChange {
                    lock: name.clone(),
                    why: LockWhy::Expired,
                    held: None,
                    queue: lock.queue.clone(),
                };
                (lock.ends_ms <= place.now.monotonic_ms).then(|| (held.user.clone(), change))
            };
            let next = || {
                let first = lock.queue.first().filter(|_| lock.held.is_none())?;
                Some((first.user.clone(), lock.next(name, place)?))
            };
            left().or_else(expired).or_else(next)
        })
    }

    /// Makes the change of an entry; a lease that it grants begins now, by the monotonic clock.
    pub fn apply(&mut self, change: &LockChange, now_ms: u64, free_max: usize) {
        let name = &change.lock;
        let before = self.taken.remove(name);
        let known = self.free.remove(name);
        if let Some(fence) = known {
            self.by_grant.remove(&(fence, name.clone()));
        }
        let known = known.or(before.as_ref().map(|lock| lock.fence));
        self.waiting -= before.as_ref().map_or(0, |lock| lock.queue.len());
        let mut held = change.held.clone();
        let ttl_ms = held.as_ref().map_or(0, |held| held.ttl_ms);
        let mut ends_ms = now_ms.saturating_add(ttl_ms);
        if let (Some(held), Some(before)) = (&mut held, &before)
            && let Some(renewed) = &before.held
            && held.fence == renewed.fence
        {
            held.until_ms = held.until_ms.max(renewed.until_ms);
            ends_ms = before.ends_ms;
        }
        let fence = held.as_ref().map(|held| held.fence).or(known);
        let fence = fence.unwrap_or_default();
        if held.is_none() && change.queue.is_empty() {
            return self.set_free(name.clone(), fence, free_max);
        }
        self.waiting += change.queue.len();
        let queue = change.queue.clone();
        let lock = Lock {
            held,
            ends_ms,
            queue,
            fence,
        };
        self.taken.insert(name.clone(), lock);
    }

    /// Remembers the newest grant of a free lock.
    pub(super) fn set_free(&mut self, name: Key, fence: Offset, free_max: usize) {
        self.by_grant.insert((fence, name.clone()));
        self.free.insert(name, fence);
        while self.free.len() > free_max
            && let Some((_, oldest)) = self.by_grant.pop_first()
        {
            self.free.remove(&oldest);
        }
    }

    /// Begins every lease anew: how often they were renewed is not known.
    pub fn begin_leases(&mut self, now: Now) {
        for lock in self.taken.values_mut() {
            if let Some(held) = &mut lock.held {
                held.until_ms = now.unix_ms.saturating_add(held.ttl_ms);
                lock.ends_ms = now.monotonic_ms.saturating_add(held.ttl_ms);
            }
        }
    }

    /// The newest grant of a lock, as far as it is known.
    #[must_use]
    pub fn fence(&self, name: &Key) -> Option<Offset> {
        let taken = self.taken.get(name).map(|lock| lock.fence);
        taken.or_else(|| self.free.get(name).copied())
    }

    /// When the first lease ends, on the monotonic clock.
    #[must_use]
    pub fn next_end_ms(&self) -> Option<u64> {
        let held = self.taken.values().filter(|lock| lock.held.is_some());
        held.map(|lock| lock.ends_ms).min()
    }

    /// Whether a lock stands otherwise now than an entry at this offset left it. That entry is the newest of its lock or not;
    /// only what it shows tells, since a lock doesn't remember its last entry.
    #[must_use]
    pub fn is_current(&self, change: &LockChange) -> bool {
        let Some(lock) = self.taken.get(&change.lock) else {
            return change.held.is_none() && change.queue.is_empty();
        };
        let fence = |held: &Option<LoggedHolder>| held.as_ref().map(|held| held.fence);
        fence(&lock.held) == fence(&change.held) && lock.queue == change.queue
    }

    /// Everybody who holds a lock or waits for one.
    pub fn askers(&self) -> impl Iterator<Item = (MemberId, &UserId, SessionId)> {
        self.taken.values().flat_map(Lock::parties)
    }

    /// A page of locks by ascending name. Beside `limit` it is bounded by how many members it names: it ends with the lock
    /// that goes beyond [`PAGE_MAX`] of them.
    #[must_use]
    pub fn page(&self, at: Position, after: Option<&Key>, limit: usize) -> LocksPage {
        let mut page = LocksPage {
            position: at,
            locks: Vec::new(),
            next: None,
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut members = 0;
        for (name, lock) in self.taken.range::<Key, _>((from, Bound::Unbounded)) {
            if page.locks.len() == limit || members > PAGE_MAX {
                page.next = page.locks.last().map(|lock| lock.lock.clone());
                break;
            }
            members += 1 + lock.queue.len();
            page.locks.push(LockInfo {
                lock: name.clone(),
                held: lock.held.as_ref().map(Holder::from),
                queue: lock.queue.iter().map(Waiter::from).collect(),
            });
        }
        page
    }

    /// Every lock as the log would say it now, by ascending name, with its newest grant.
    pub fn taken(&self) -> impl Iterator<Item = (LockChange, Offset)> {
        self.taken.iter().map(|(name, lock)| {
            let change = LockChange {
                lock: name.clone(),
                why: LockWhy::Granted,
                held: lock.held.clone(),
                queue: lock.queue.clone(),
            };
            (change, lock.fence)
        })
    }

    /// The free locks whose newest grant is known, by ascending name.
    pub fn free(&self) -> impl Iterator<Item = (&Key, Offset)> {
        self.free.iter().map(|(name, fence)| (name, *fence))
    }

    /// Whether nothing is known of any lock.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.free.is_empty()
    }

    /// About what they take in memory, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.taken.len() * LOCK_BYTES + self.waiting * WAITER_BYTES + self.free.len() * FREE_BYTES
    }
}

impl Lock {
    /// Who holds it and who waits for it.
    fn parties(&self) -> impl Iterator<Item = (MemberId, &UserId, SessionId)> {
        let held = self.held.iter();
        let held = held.map(|held| (held.member, &held.user, held.session));
        let queue = self.queue.iter();
        held.chain(queue.map(|waiter| (waiter.member, &waiter.user, waiter.session)))
    }

    /// The lock without those who are meant; none where nobody is.
    fn without(
        &self,
        name: &Key,
        why: LockWhy,
        is_meant: impl Fn(MemberId, SessionId) -> bool,
    ) -> Option<LockChange> {
        let held = self.held.as_ref();
        let held = held.filter(|held| !is_meant(held.member, held.session));
        let queue: Vec<_> = self
            .queue
            .iter()
            .filter(|waiter| !is_meant(waiter.member, waiter.session))
            .cloned()
            .collect();
        let changes = held.is_some() != self.held.is_some() || queue.len() < self.queue.len();
        changes.then(|| LockChange {
            lock: name.clone(),
            why,
            held: held.cloned(),
            queue,
        })
    }

    /// The lock in the hands of the first who waits.
    fn next(&self, name: &Key, place: Place) -> Option<LockChange> {
        let (first, rest) = self.queue.split_first()?;
        Some(LockChange {
            lock: name.clone(),
            why: LockWhy::Granted,
            held: Some(LoggedHolder {
                fence: place.offset,
                member: first.member,
                user: first.user.clone(),
                until_ms: place.now.unix_ms.saturating_add(first.ttl_ms),
                session: first.session,
                ttl_ms: first.ttl_ms,
            }),
            queue: rest.to_vec(),
        })
    }
}

fn granted(name: &Key, asker: &Asker, ttl_ms: u64, place: Place) -> Acquired {
    let until_ms = place.now.unix_ms.saturating_add(ttl_ms);
    let change = LockChange {
        lock: name.clone(),
        why: LockWhy::Granted,
        held: Some(LoggedHolder {
            fence: place.offset,
            member: asker.member,
            user: asker.user.clone(),
            until_ms,
            session: asker.session,
            ttl_ms,
        }),
        queue: Vec::new(),
    };
    let reply = LockReply::Granted {
        fence: Position::new(place.epoch, place.offset),
        until_ms,
    };
    Acquired::Changed(change, reply)
}

fn queued(place: usize) -> LockReply {
    LockReply::Queued {
        place: place as u64,
    }
}

/// A lock in its tree, with its name and its holder.
const LOCK_BYTES: usize = 384;

/// Who waits, in its list.
const WAITER_BYTES: usize = 96;

/// A free lock in its two trees, with its name.
const FREE_BYTES: usize = 224;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const EPOCH: Epoch = Epoch(2);
    const BOUNDS: LockBounds = LockBounds {
        locks_max: 3,
        queue_max: 3,
        ttl_max_ms: 1_000,
    };

    fn key(name: &str) -> Key {
        Key::parse(name).unwrap()
    }

    fn asker(member: u64) -> Asker {
        Asker {
            member: MemberId(member),
            user: UserId::parse(&format!("user-{member}")).unwrap(),
            session: SessionId(u128::from(member)),
        }
    }

    /// The time of day goes its own way.
    fn at(now_ms: u64) -> Now {
        Now {
            monotonic_ms: now_ms,
            unix_ms: 5_000 - now_ms,
        }
    }

    fn place(offset: u64, now_ms: u64) -> Place {
        Place {
            epoch: EPOCH,
            offset: Offset(offset),
            now: at(now_ms),
        }
    }

    fn take(locks: &mut Locks, name: &str, member: u64, offset: u64) -> Result<(), LockRefusal> {
        let wish = (100, true);
        match locks.acquire(&key(name), &asker(member), wish, place(offset, 0), BOUNDS)? {
            Acquired::Changed(change, _) => locks.apply(&change, 0, BOUNDS.locks_max),
            Acquired::Held(_) | Acquired::Waits(_) => {}
        }
        Ok(())
    }

    fn settle(locks: &mut Locks, offset: &mut u64, now_ms: u64, here: &[u64]) -> Vec<LockWhy> {
        let mut whys = Vec::new();
        let is_here = |member: MemberId, _| here.contains(&member.0);
        while let Some((_, change)) = locks.due(place(*offset, now_ms), is_here) {
            *offset += 1;
            locks.apply(&change, now_ms, BOUNDS.locks_max);
            whys.push(change.why);
        }
        whys
    }

    #[test]
    fn whoever_tries_is_refused_and_told_for_how_long() {
        let mut locks = Locks::default();
        take(&mut locks, "a", 1, 1).unwrap();
        let refused = locks.acquire(&key("a"), &asker(2), (100, false), place(2, 30), BOUNDS);
        assert_eq!(refused, Err(LockRefusal::Taken(70)));
        let again = locks.acquire(&key("a"), &asker(1), (100, false), place(2, 30), BOUNDS);
        assert_eq!(again, Ok(Acquired::Held(Offset(1))));
    }

    #[test]
    fn every_bound_refuses_one_more() {
        let mut locks = Locks::default();
        for (offset, name) in (1..).zip(["a", "b", "c"]) {
            take(&mut locks, name, 1, offset).unwrap();
        }
        assert_eq!(
            take(&mut locks, "d", 1, 4),
            Err(LockRefusal::Quota(Quota::Locks))
        );
        for member in 2..=4 {
            take(&mut locks, "a", member, 4).unwrap();
        }
        assert_eq!(
            take(&mut locks, "a", 5, 4),
            Err(LockRefusal::Quota(Quota::LockQueue))
        );
        take(&mut locks, "a", 4, 4).unwrap();
    }

    #[test]
    fn a_lease_ends_and_the_first_who_waits_is_next() {
        let mut locks = Locks::default();
        (1..=3).for_each(|member| take(&mut locks, "a", member, member).unwrap());
        let mut offset = 4;
        assert!(settle(&mut locks, &mut offset, 99, &[1, 2, 3]).is_empty());
        assert_eq!(
            settle(&mut locks, &mut offset, 100, &[1, 2, 3]),
            [LockWhy::Expired, LockWhy::Granted]
        );
        assert_eq!(locks.fence(&key("a")), Some(Offset(5)));
        assert_eq!(
            settle(&mut locks, &mut offset, 150, &[3]),
            [LockWhy::Left, LockWhy::Granted]
        );
        assert_eq!(settle(&mut locks, &mut offset, 150, &[]), [LockWhy::Left]);
        assert_eq!(locks.taken().count(), 0);
        assert_eq!(locks.fence(&key("a")), Some(Offset(7)), "it stays known");
    }

    #[test]
    fn a_renewal_needs_the_newest_grant_and_never_shortens() {
        let mut locks = Locks::default();
        take(&mut locks, "a", 1, 1).unwrap();
        let mut renew = |member, fence, ttl_ms| {
            locks.renew(&key("a"), MemberId(member), Offset(fence), ttl_ms, at(0))
        };
        assert_eq!(renew(1, 1, 500), Ok(5_500));
        assert_eq!(renew(1, 1, 400), Ok(5_500));
        assert_eq!(renew(1, 2, 900), Err(LockRefusal::StaleFence));
        assert_eq!(renew(2, 1, 900), Err(LockRefusal::NotHeld));
        // A later entry of the same grant, made before the renewal, takes nothing back.
        let change = LockChange {
            lock: key("a"),
            why: LockWhy::Queued,
            held: Some(LoggedHolder {
                fence: Offset(1),
                member: MemberId(1),
                user: asker(1).user,
                until_ms: 100,
                session: SessionId(1),
                ttl_ms: 100,
            }),
            queue: Vec::new(),
        };
        locks.apply(&change, 300, 3);
        assert_eq!(locks.next_end_ms(), Some(500));
    }

    #[test]
    fn the_longest_free_locks_are_forgotten_first() {
        let mut locks = Locks::default();
        for (offset, name) in (1..).zip(["d", "c", "b", "a"]) {
            take(&mut locks, name, 1, offset).unwrap();
            let free = locks.release(&key(name), MemberId(1)).unwrap();
            locks.apply(&free, 0, BOUNDS.locks_max);
        }
        assert_eq!(locks.fence(&key("d")), None);
        assert_eq!(locks.fence(&key("c")), Some(Offset(2)));
        assert_eq!(locks.fence(&key("a")), Some(Offset(4)));
    }

    /// Random requests against a queue per lock: one holder at a time, in the order of asking, with growing fences.
    #[test]
    fn it_is_what_a_naive_model_says() {
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut locks = Locks::default();
            let mut model: BTreeMap<&str, (VecDeque<u64>, u64)> = BTreeMap::new();
            let (mut offset, mut now_ms) = (1, 0);
            for _ in 0..80 {
                now_ms += random.random_range(0..20);
                let name = ["a", "b", "c"][random.random_range(0..3)];
                let member = random.random_range(1..6);
                let (line, ends_ms) = model.entry(name).or_default();
                let wish = (100, random.random_range(0..3) > 0);
                match random.random_range(0..4) {
                    0 => match locks.release(&key(name), MemberId(member)) {
                        Ok(change) => {
                            offset += 1;
                            locks.apply(&change, now_ms, 9);
                            assert!(line.contains(&member), "seed {seed}");
                            if line.front() == Some(&member) {
                                *ends_ms = now_ms + 100;
                            }
                            line.retain(|of| *of != member);
                        }
                        Err(refusal) => {
                            assert_eq!(refusal, LockRefusal::NotHeld);
                            assert!(!line.contains(&member), "seed {seed}");
                        }
                    },
                    1 => {
                        let fence = locks.fence(&key(name)).unwrap_or_default();
                        let now = at(now_ms);
                        let renewed = locks.renew(&key(name), MemberId(member), fence, 100, now);
                        assert_eq!(renewed.is_ok(), line.front() == Some(&member));
                        if renewed.is_ok() {
                            *ends_ms = now_ms + 100;
                        }
                    }
                    _ => {
                        let place = place(offset, now_ms);
                        let got = locks.acquire(&key(name), &asker(member), wish, place, BOUNDS);
                        match got {
                            Ok(Acquired::Changed(change, reply)) => {
                                offset += 1;
                                locks.apply(&change, now_ms, 9);
                                let is_granted = matches!(reply, LockReply::Granted { .. });
                                assert_eq!(is_granted, line.is_empty(), "seed {seed}");
                                if is_granted {
                                    *ends_ms = now_ms + 100;
                                }
                                line.push_back(member);
                            }
                            Ok(Acquired::Held(_)) => assert_eq!(line.front(), Some(&member)),
                            Ok(Acquired::Waits(_)) => assert!(line.contains(&member)),
                            Err(_) => assert!(!line.contains(&member), "seed {seed}"),
                        }
                    }
                }
                let before: Vec<_> = ["a", "b", "c"].map(|name| locks.fence(&key(name))).into();
                settle(&mut locks, &mut offset, now_ms, &[1, 2, 3, 4, 5]);
                for (line, ends_ms) in model.values_mut() {
                    if !line.is_empty() && *ends_ms <= now_ms {
                        line.pop_front();
                        *ends_ms = now_ms + 100;
                    }
                }
                for (name, before) in ["a", "b", "c"].into_iter().zip(before) {
                    assert!(locks.fence(&key(name)) >= before, "fences only grow");
                    let expected: Vec<_> = model
                        .get(name)
                        .map(|(line, _)| line.iter().copied().collect())
                        .unwrap_or_default();
                    let found: Vec<_> = locks
                        .taken()
                        .filter(|(change, _)| change.lock == key(name))
                        .flat_map(|(change, _)| {
                            let held = change.held.map(|held| held.member.0);
                            let queue = change.queue.into_iter().map(|waiter| waiter.member.0);
                            held.into_iter().chain(queue).collect::<Vec<_>>()
                        })
                        .collect();
                    assert_eq!(found, expected, "seed {seed} at {now_ms}");
                }
                let queued: usize = locks.taken().map(|(change, _)| change.queue.len()).sum();
                assert_eq!(locks.waiting, queued);
            }
        }
    }
}
