//! What all connections of one user have together: the shares of a user, over all shards.
//!
//! A connection enters when its session opens and holds its share until it ends. The share outlives the last of them until
//! nothing of it is missing any more, so that nobody gets a new one by coming again. Users whom the server has invented are not counted here, since a new one costs nothing. It is touched for each message of
//! a user with a token, under a lock that only the user's own connections want. What a refusal says is left to the
//! shard.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use roomful_protocol::id::{TenantId, UserId};

use crate::connection::{Bucket, Rate};

/// The users who are connected, or were just now; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Users {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    shares: DashMap<UserKey, Arc<Share>>,
    /// Shares without a connection.
    left: AtomicUsize,
    /// How many of them the last sweep had to leave.
    kept: AtomicUsize,
}

/// Whose share it is.
type UserKey = (TenantId, UserId);

/// What the connections of a user may do together.
#[derive(Debug, Clone, Copy)]
pub struct UserLimits {
    /// Connections at a time.
    pub connections_max: u32,
    /// Memberships of all of them at a time.
    pub memberships_max: u32,
    /// Messages.
    pub messages: Rate,
    /// Bytes of messages.
    pub bytes: Rate,
    /// Joins.
    pub joins: Rate,
    /// Rooms that are opened because the user joins them.
    pub rooms: Rate,
}

/// The user has as many connections as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyConnections;

#[derive(Debug)]
struct Share {
    key: UserKey,
    /// Changed under the map's lock alone, so that nobody enters a share that goes.
    connections: AtomicU32,
    memberships: AtomicU32,
    /// Held for a few additions.
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    messages: Bucket,
    bytes: Bucket,
    joins: Bucket,
    rooms: Bucket,
}

/// A connection's part in the share of its user; dropping it leaves.
#[derive(Debug)]
pub struct Held {
    users: Users,
    share: Arc<Share>,
    /// Memberships that this connection has, or has asked for.
    memberships: u32,
}

impl Users {
    /// A connection of a user begins.
    ///
    /// # Errors
    /// The user has as many as it may have.
    pub fn enter(
        &self,
        tenant: &TenantId,
        user: &UserId,
        limits: &UserLimits,
        now_ms: u64,
    ) -> Result<Held, TooManyConnections> {
        self.sweep(limits, now_ms);
        let key = (tenant.clone(), user.clone());
        let share = match self.inner.shares.entry(key) {
            Entry::Occupied(entry) => {
                let share = entry.get();
                let connections = share.connections.load(Ordering::Relaxed);
                if connections >= limits.connections_max {
                    return Err(TooManyConnections);
                }
                if connections == 0 {
                    self.inner.left.fetch_sub(1, Ordering::Relaxed);
                }
                share.connections.store(connections + 1, Ordering::Relaxed);
                Arc::clone(share)
            }
            Entry::Vacant(entry) => {
                let share = Arc::new(Share::new(entry.key().clone(), limits, now_ms));
                entry.insert(Arc::clone(&share));
                share
            }
        };
        Ok(Held {
            users: self.clone(),
            share,
            memberships: 0,
        })
    }

    /// Forgets shares without a connection of which nothing is missing, once there are twice as many as had to stay the last time: so
    /// they are bounded by those that are needed, and a newcomer pays for two of them.
    fn sweep(&self, limits: &UserLimits, now_ms: u64) {
        let Inner { shares, left, kept } = &*self.inner;
        if left.load(Ordering::Relaxed) < 2 * kept.load(Ordering::Relaxed).max(LEFT_MIN) {
            return;
        }
        shares.retain(|_, share| {
            let goes = share.connections.load(Ordering::Relaxed) == 0
                && share.buckets().are_full(limits, now_ms);
            if goes {
                left.fetch_sub(1, Ordering::Relaxed);
            }
            !goes
        });
        kept.store(left.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Takes one room from the share of a user who opens it; one whose share is forgotten already misses nothing of it.
    ///
    /// # Errors
    /// There is none left; the error is how long to wait, in milliseconds.
    pub fn take_room(
        &self,
        tenant: &TenantId,
        user: &UserId,
        rate: Rate,
        now_ms: u64,
    ) -> Result<(), u64> {
        let share = self.inner.shares.get(&(tenant.clone(), user.clone()));
        let share = share.map(|share| Arc::clone(share.value()));
        share.map_or(Ok(()), |share| share.buckets().rooms.take(rate, now_ms))
    }

    /// How many users are connected.
    #[must_use]
    pub fn connected(&self) -> usize {
        let left = self.inner.left.load(Ordering::Relaxed);
        self.inner.shares.len().saturating_sub(left)
    }
}

impl Held {
    /// Takes a message.
    ///
    /// # Errors
    /// There is none left; the error is how long to wait, in milliseconds.
    pub fn take_message(&self, limits: &UserLimits, now_ms: u64) -> Result<(), u64> {
        self.share.buckets().messages.take(limits.messages, now_ms)
    }

    /// Takes the bytes of a message.
    ///
    /// # Errors
    /// There are none left; the error is how long to wait, in milliseconds.
    pub fn take_bytes(&self, count: usize, limits: &UserLimits, now_ms: u64) -> Result<(), u64> {
        self.share
            .buckets()
            .bytes
            .borrow(count, limits.bytes, now_ms)
    }

    /// Takes a join.
    ///
    /// # Errors
    /// There is none left; the error is how long to wait, in milliseconds.
    pub fn take_join(&self, limits: &UserLimits, now_ms: u64) -> Result<(), u64> {
        self.share.buckets().joins.take(limits.joins, now_ms)
    }

    /// Takes a membership; whether there was one left.
    #[must_use]
    pub fn take_membership(&mut self, limits: &UserLimits) -> bool {
        let taken = &self.share.memberships;
        if taken.fetch_add(1, Ordering::Relaxed) >= limits.memberships_max {
            taken.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        self.memberships += 1;
        true
    }

    /// Gives a membership back.
    pub fn give_membership(&mut self) {
        if self.memberships > 0 {
            self.memberships -= 1;
            self.share.memberships.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Inner { shares, left, .. } = &*self.users.inner;
        // Held, so that no sweep sees it between the two.
        let _place = shares.get_mut(&self.share.key);
        self.share
            .memberships
            .fetch_sub(self.memberships, Ordering::Relaxed);
        if self.share.connections.fetch_sub(1, Ordering::Relaxed) == 1 {
            left.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Share {
    /// Of a user with one connection.
    fn new(key: UserKey, limits: &UserLimits, now_ms: u64) -> Self {
        Self {
            key,
            connections: AtomicU32::new(1),
            memberships: AtomicU32::new(0),
            buckets: Mutex::new(Buckets {
                messages: Bucket::full(limits.messages, now_ms),
                bytes: Bucket::full(limits.bytes, now_ms),
                joins: Bucket::full(limits.joins, now_ms),
                rooms: Bucket::full(limits.rooms, now_ms),
            }),
        }
    }

    fn buckets(&self) -> MutexGuard<'_, Buckets> {
        // Whole at any time: each is a number and a time.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buckets {
    fn are_full(&self, limits: &UserLimits, now_ms: u64) -> bool {
        self.messages.is_full(limits.messages, now_ms)
            && self.bytes.is_full(limits.bytes, now_ms)
            && self.joins.is_full(limits.joins, now_ms)
            && self.rooms.is_full(limits.rooms, now_ms)
    }
}

/// Fewer shares without a connection are not worth a sweep.
const LEFT_MIN: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> UserLimits {
        let one = Rate::per_second(1, 2);
        UserLimits {
            connections_max: 2,
            memberships_max: 3,
            messages: one,
            bytes: Rate::per_second(10, 10),
            joins: one,
            rooms: one,
        }
    }

    fn enter(users: &Users, user: &str) -> Result<Held, TooManyConnections> {
        let tenant = TenantId::default_tenant();
        users.enter(&tenant, &UserId::parse(user).unwrap(), &limits(), 0)
    }

    /// Two connections take from one share, and another user has one of its own.
    #[test]
    fn connections_of_a_user_share() {
        let users = Users::default();
        let [first, second] = [enter(&users, "ann").unwrap(), enter(&users, "ann").unwrap()];
        assert_eq!(enter(&users, "ann").err(), Some(TooManyConnections));
        let bob = enter(&users, "bob").unwrap();
        assert_eq!(first.take_message(&limits(), 0), Ok(()));
        assert_eq!(second.take_message(&limits(), 0), Ok(()));
        assert_eq!(first.take_message(&limits(), 0), Err(1_000));
        assert_eq!(bob.take_message(&limits(), 0), Ok(()));
        drop(first);
        let mut third = enter(&users, "ann").unwrap();
        assert!((0..3).all(|_| third.take_membership(&limits())));
        assert!(!third.take_membership(&limits()));
        drop(third);
        let mut fourth = enter(&users, "ann").unwrap();
        assert!(fourth.take_membership(&limits()), "what goes gives back");
    }

    /// Whoever comes again has what it had left; shares of which nothing is missing are forgotten.
    #[test]
    fn a_share_outlives_its_connections_until_it_is_whole() {
        let users = Users::default();
        let tenant = TenantId::default_tenant();
        let ann = UserId::parse("ann").unwrap();
        for taken in [Ok(()), Ok(()), Err(1_000)] {
            let held = enter(&users, "ann").unwrap();
            assert_eq!(held.take_message(&limits(), 0), taken);
            let rate = limits().rooms;
            assert_eq!(users.take_room(&tenant, &ann, rate, 0), taken);
        }
        for number in 0..10 * LEFT_MIN {
            enter(&users, &format!("guest-{number}")).unwrap();
        }
        assert!(users.inner.shares.len() <= 2 * LEFT_MIN + 1);
        assert_eq!(users.connected(), 0);
        assert_eq!(
            enter(&users, "ann").unwrap().take_message(&limits(), 0),
            Err(1_000)
        );
        users.inner.left.fetch_add(2 * LEFT_MIN, Ordering::Relaxed);
        let bob = users.enter(&tenant, &UserId::parse("bob").unwrap(), &limits(), 5_000);
        assert_eq!(
            users.inner.shares.len(),
            1,
            "after a while nothing is missing of any"
        );
        drop(bob);
    }
}
