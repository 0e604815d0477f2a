//! Which connection holds which session: the index that all shards share.
//!
//! It is touched when a connection says hello and when it goes, never for a message. A session has one holder
//! at a time; it is remembered for the session retention after it lost its connection, and after a start of
//! the process every session of before is taken for such a one. What a session is in, the rooms know.

use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use roomful_protocol::id::SessionId;

use super::revocations::Revocations;
use crate::shard::message::{Attachment, ConnectionId, ShardId};

/// The sessions of this node; clones share it.
#[derive(Debug, Clone)]
pub struct Sessions {
    sessions: Arc<DashMap<SessionId, Held>>,
    /// Until then a session of an earlier process may be resumed, in milliseconds since 1970.
    inherited_until_ms: u64,
    revocations: Revocations,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    /// None while it waits for a connection.
    holder: Option<(ShardId, ConnectionId)>,
    attachment: Attachment,
}

/// A session that a connection now holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// Which attachment this is.
    pub attachment: Attachment,
    /// Whether the session was there before.
    pub resumed: bool,
    /// Who held it until now and must be told.
    pub evicted: Option<(ShardId, ConnectionId)>,
}

impl Sessions {
    /// An empty index, in a process that started at `now_ms` and retains sessions for `retention_ms`.
    #[must_use]
    pub fn new(now_ms: u64, retention_ms: u64) -> Self {
        let sessions = Arc::new(DashMap::with_shard_amount(INDEX_SHARDS));
        Self {
            sessions,
            inherited_until_ms: now_ms + retention_ms,
            revocations: Revocations::default(),
        }
    }

    /// Who is not let in any more.
    #[must_use]
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// A new session.
    #[must_use]
    pub fn create(
        &self,
        session: SessionId,
        holder: (ShardId, ConnectionId),
        now_ms: u64,
    ) -> Attached {
        // Attachments are ordered even across a restart, since they start with the time.
        let attachment = Attachment(now_ms);
        self.sessions.insert(
            session,
            Held {
                holder: Some(holder),
                attachment,
            },
        );
        Attached {
            attachment,
            resumed: false,
            evicted: None,
        }
    }

    /// A session that a resume token names; none when its time is over.
    #[must_use]
    pub fn resume(
        &self,
        session: SessionId,
        holder: (ShardId, ConnectionId),
        now_ms: u64,
    ) -> Option<Attached> {
        match self.sessions.entry(session) {
            Entry::Occupied(mut entry) => {
                let held = entry.get_mut();
                held.attachment = Attachment((held.attachment.0 + 1).max(now_ms));
                let evicted = held.holder.replace(holder);
                Some(Attached {
                    attachment: held.attachment,
                    resumed: true,
                    evicted,
                })
            }
            Entry::Vacant(entry) if now_ms < self.inherited_until_ms => {
                let attachment = Attachment(now_ms);
                entry.insert(Held {
                    holder: Some(holder),
                    attachment,
                });
                Some(Attached {
                    attachment,
                    resumed: true,
                    evicted: None,
                })
            }
            Entry::Vacant(_) => None,
        }
    }

    /// The holder is gone. False when a later attachment has taken over already.
    #[must_use]
    pub fn detach(&self, session: SessionId, attachment: Attachment) -> bool {
        match self.sessions.get_mut(&session) {
            Some(mut held) if held.attachment == attachment => {
                held.holder = None;
                true
            }
            _ => false,
        }
    }

    /// The session is over, unless a later attachment has taken over already.
    pub fn end(&self, session: SessionId, attachment: Attachment) {
        self.sessions
            .remove_if(&session, |_, held| held.attachment == attachment);
    }

    /// The retention after a detachment is over: forgets the session, unless it was resumed. Whether it did.
    pub fn forget(&self, session: SessionId, attachment: Attachment) -> bool {
        let unchanged = |held: &Held| held.attachment == attachment && held.holder.is_none();
        self.sessions
            .remove_if(&session, |_, held| unchanged(held))
            .is_some()
    }
}

/// Locks of the map: many more than cores, so that two shards rarely meet.
const INDEX_SHARDS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: SessionId = SessionId(7);

    fn holder(slot: u32) -> (ShardId, ConnectionId) {
        (
            ShardId(0),
            ConnectionId {
                slot,
                generation: 0,
            },
        )
    }

    #[test]
    fn a_session_has_one_holder() {
        let sessions = Sessions::new(0, 100);
        let first = sessions.create(SESSION, holder(1), 1000);
        let second = sessions.resume(SESSION, holder(2), 1000).unwrap();
        assert_eq!((second.resumed, second.evicted), (true, Some(holder(1))));
        assert!(second.attachment > first.attachment);
        assert!(
            !sessions.detach(SESSION, first.attachment),
            "the former holder has nothing to give up"
        );
        assert!(sessions.detach(SESSION, second.attachment));
        assert!(sessions.forget(SESSION, second.attachment));
        assert_eq!(sessions.resume(SESSION, holder(3), 1000), None);
    }

    #[test]
    fn a_session_that_was_resumed_is_not_forgotten() {
        let sessions = Sessions::new(0, 100);
        let first = sessions.create(SESSION, holder(1), 1000);
        assert!(sessions.detach(SESSION, first.attachment));
        assert!(sessions.resume(SESSION, holder(2), 1000).is_some());
        assert!(!sessions.forget(SESSION, first.attachment));
    }

    #[test]
    fn a_session_of_an_earlier_process_is_taken_in_during_the_retention() {
        let sessions = Sessions::new(1000, 100);
        assert!(
            sessions
                .resume(SESSION, holder(1), 1099)
                .is_some_and(|attached| attached.resumed)
        );
        assert_eq!(sessions.resume(SessionId(8), holder(1), 1100), None);
    }
}
