//! Who is not let in any more, although the token is good: the list that all shards share.
//!
//! The admin listener writes it, shards look at it when somebody says hello, resumes or refreshes. An entry ends by
//! itself when the tokens that it is about have expired; the list is bounded. That it outlives the process is left to
//! `revocation_file`, closing the connections that are there to the shards.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use roomful_protocol::id::{SessionId, TenantId, UserId};

use crate::auth::{Identity, TokenId};

/// The list; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Revocations {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Until when, in milliseconds since 1970.
    entries: DashMap<(TenantId, Subject), u64>,
    /// How many there are, so that a look at an empty list costs nothing.
    count: AtomicUsize,
}

/// Who or what is revoked, within a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// A user, with all connections and tokens.
    User(UserId),
    /// One session.
    Session(SessionId),
    /// One token, by its `jti`.
    TokenId(TokenId),
}

/// The list has as many entries as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} users, sessions and token ids are revoked, as many as may be")]
pub struct TooManyRevocations(pub usize);

impl Revocations {
    /// Revokes until a time; an entry that is there already gets the new time.
    ///
    /// # Errors
    /// The list has `max` entries, none of which has ended at `now_ms`.
    pub fn revoke(
        &self,
        (tenant, subject): (TenantId, Subject),
        until_ms: u64,
        now_ms: u64,
        max: usize,
    ) -> Result<(), TooManyRevocations> {
        if self.count() >= max {
            self.expire(now_ms);
        }
        match self.inner.entries.entry((tenant, subject)) {
            Entry::Occupied(mut entry) => {
                entry.insert(until_ms);
            }
            Entry::Vacant(entry) => {
                if self.inner.count.fetch_add(1, Ordering::SeqCst) >= max {
                    self.inner.count.fetch_sub(1, Ordering::SeqCst);
                    return Err(TooManyRevocations(max));
                }
                entry.insert(until_ms);
            }
        }
        Ok(())
    }

    /// Puts in what an earlier process kept; what ends at 0 was taken back.
    pub(crate) fn restore(&self, whom: (TenantId, Subject), until_ms: u64) {
        if self.inner.entries.insert(whom, until_ms).is_none() {
            self.inner.count.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Until when somebody is revoked, in milliseconds since 1970.
    pub(super) fn until_ms(&self, whom: &(TenantId, Subject)) -> Option<u64> {
        self.inner.entries.get(whom).map(|until_ms| *until_ms)
    }

    /// All of them with their ends, in no order.
    pub(super) fn all(&self) -> Vec<((TenantId, Subject), u64)> {
        let entries = self.inner.entries.iter();
        entries
            .map(|entry| (entry.key().clone(), *entry.value()))
            .collect()
    }

    /// Takes an entry back; whether there was one.
    #[must_use]
    pub fn lift(&self, tenant: &TenantId, subject: &Subject) -> bool {
        let key = (tenant.clone(), subject.clone());
        let was_there = self.inner.entries.remove(&key).is_some();
        if was_there {
            self.inner.count.fetch_sub(1, Ordering::SeqCst);
        }
        was_there
    }

    /// Whether an identity, or the session that it wants to go on with, is revoked.
    #[must_use]
    pub fn covers(&self, identity: &Identity, session: Option<SessionId>, now_ms: u64) -> bool {
        if self.count() == 0 {
            return false;
        }
        let subjects = [
            Some(Subject::User(identity.user.clone())),
            session.map(Subject::Session),
            identity.token_id.clone().map(Subject::TokenId),
        ];
        subjects.into_iter().flatten().any(|subject| {
            let until_ms = self.inner.entries.get(&(identity.tenant.clone(), subject));
            until_ms.is_some_and(|until_ms| *until_ms > now_ms)
        })
    }

    /// Drops what has ended; how many are left.
    pub fn expire(&self, now_ms: u64) -> usize {
        self.inner.entries.retain(|_, until_ms| {
            let stays = *until_ms > now_ms;
            if !stays {
                self.inner.count.fetch_sub(1, Ordering::SeqCst);
            }
            stays
        });
        self.count()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.inner.count.load(Ordering::SeqCst)
    }

    /// Those of a tenant with their ends, sorted: what is behind `skip` of them, at most `limit`.
    #[must_use]
    pub fn page(&self, tenant: &TenantId, skip: usize, limit: usize) -> Vec<(Subject, u64)> {
        let of_tenant = self.inner.entries.iter().filter_map(|entry| {
            let (of, subject) = entry.key();
            (of == tenant).then(|| (subject.clone(), *entry.value()))
        });
        let mut all: Vec<_> = of_tenant.collect();
        all.sort_unstable();
        all.into_iter().skip(skip).take(limit).collect()
    }
}

impl Subject {
    /// Whether a connection with this identity and session is meant.
    #[must_use]
    pub fn is_of(&self, identity: &Identity, session: SessionId) -> bool {
        match self {
            Self::User(user) => *user == identity.user,
            Self::Session(id) => *id == session,
            Self::TokenId(id) => identity.token_id.as_ref() == Some(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> Subject {
        Subject::User(UserId::parse(name).unwrap())
    }

    fn of(name: &str) -> (TenantId, Subject) {
        (TenantId::default_tenant(), user(name))
    }

    fn identity(name: &str) -> Identity {
        Identity::anonymous(UserId::parse(name).unwrap())
    }

    /// An entry names its user until its end, is dropped then, and can be taken back before.
    #[test]
    fn a_revocation_ends() {
        let list = Revocations::default();
        list.revoke(of("ann"), 100, 0, 10).unwrap();
        assert!(list.covers(&identity("ann"), None, 99));
        assert!(!list.covers(&identity("ann"), None, 100));
        assert!(!list.covers(&identity("bob"), None, 0));
        assert_eq!((list.expire(99), list.expire(100)), (1, 0));
        list.revoke(of("ann"), 300, 200, 10).unwrap();
        assert!(list.lift(&TenantId::default_tenant(), &user("ann")));
        assert!(!list.lift(&TenantId::default_tenant(), &user("ann")));
        assert!(!list.covers(&identity("ann"), None, 200));
        assert_eq!(list.count(), 0);
    }

    /// Sessions and token ids are meant by themselves, and nothing of another tenant is.
    #[test]
    fn sessions_token_ids_and_tenants_are_told_apart() {
        let list = Revocations::default();
        let token_id = TokenId::parse("t-1").unwrap();
        let session = (TenantId::default_tenant(), Subject::Session(SessionId(7)));
        list.revoke(session, 100, 0, 10).unwrap();
        let token = Subject::TokenId(token_id.clone());
        list.revoke((TenantId::default_tenant(), token), 100, 0, 10)
            .unwrap();
        let ann = identity("ann");
        assert!(list.covers(&ann, Some(SessionId(7)), 0));
        assert!(!list.covers(&ann, Some(SessionId(8)), 0));
        let with_token = Identity {
            token_id: Some(token_id),
            ..ann
        };
        assert!(list.covers(&with_token, None, 0));
        let elsewhere = Identity {
            tenant: TenantId::parse("acme").unwrap(),
            ..with_token
        };
        assert!(!list.covers(&elsewhere, Some(SessionId(7)), 0));
    }

    /// A full list refuses until an entry has ended.
    #[test]
    fn the_list_is_bounded() {
        let list = Revocations::default();
        list.revoke(of("ann"), 100, 0, 1).unwrap();
        let full = list.revoke(of("bob"), 200, 99, 1);
        assert_eq!(full, Err(TooManyRevocations(1)));
        list.revoke(of("bob"), 200, 100, 1).unwrap();
        assert_eq!(
            list.page(&TenantId::default_tenant(), 0, 9),
            [(user("bob"), 200)]
        );
    }
}
