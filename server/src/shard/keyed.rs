//! What a member asks of a room's keyed state, locks, timers and cursors.
//!
//! `edge` calls it with one frame at a time; a refusal is an `Err` and has changed nothing. Grants, payloads and rates are
//! checked here. What a member is sent of state and locks is the edge's own business and is answered here; conditions,
//! quotas, leases and everything else that concerns the room are left to it.

use std::collections::BTreeSet;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{
    self, Action, Change, Cursor, CursorRequest, Lock, LockRequest, OpId, Reply, State,
    StateRequest, Timer, TimerRequest,
};
use roomful_protocol::id::{RequestId, RoomAlias};

use super::ask::{check_payload, page_limit};
use super::edge::Outcome;
use super::message::{Author, ConnectionId, Refusal, Request, StateGrant, View};
use super::{Host, Shard};
use crate::auth::{Identity, Verb};
use crate::clock::Now;
use crate::connection::{Connection, Membership};

impl Shard {
    pub(super) fn ask_state(
        &mut self,
        id: ConnectionId,
        state: State,
        now: Now,
        host: &mut dyn Host,
    ) -> Outcome {
        let State {
            request,
            room,
            what,
        } = state;
        // Whoever is in the room may read; to write takes the grant.
        let verb = match what {
            StateRequest::Write { .. } | StateRequest::OnDisconnect { .. } => Some(Verb::State),
            StateRequest::Get { .. } | StateRequest::Watch { .. } => None,
        };
        let membership = self.member(id, room, verb)?;
        let to = self.origin(id, Some(request));
        match what {
            StateRequest::Write { op, changes } => {
                self.check_changes(id, &changes)?;
                check_op(op, membership)?;
                let request = Request::WriteState {
                    author: Author::Member(membership.member),
                    to,
                    op,
                    changes,
                };
                self.ask(id, room, request, host);
            }
            StateRequest::OnDisconnect { changes } => {
                self.check_changes(id, &changes)?;
                let open = self.connection(id).and_then(Connection::open);
                let token_id = open.and_then(|open| open.identity.token_id.clone());
                let request = Request::OnDisconnect {
                    member: membership.member,
                    to,
                    changes,
                    token_id,
                };
                self.ask(id, room, request, host);
            }
            StateRequest::Get {
                prefix,
                after,
                limit,
            } => {
                let limit = page_limit(limit)?;
                let request = Request::GetState {
                    to,
                    prefix,
                    after,
                    limit,
                };
                self.ask_page(id, room, request, now, host)?;
            }
            StateRequest::Watch { prefixes } => {
                let change = |view: &View| View::new(prefixes, view.locks);
                self.change_view(id, (request, room, membership), change, now)?;
            }
        }
        Ok(())
    }

    pub(super) fn ask_lock(
        &mut self,
        id: ConnectionId,
        lock: Lock,
        now: Now,
        host: &mut dyn Host,
    ) -> Outcome {
        let Lock {
            request,
            room,
            what,
        } = lock;
        let verb = match what {
            LockRequest::Acquire { .. }
            | LockRequest::Renew { .. }
            | LockRequest::Release { .. } => Some(Verb::Lock),
            LockRequest::Get { .. } | LockRequest::Watch { .. } => None,
        };
        let membership = self.member(id, room, verb)?;
        let member = membership.member;
        let to = self.origin(id, Some(request));
        let request = match what {
            LockRequest::Acquire {
                lock,
                ttl_ms,
                queue,
            } => Request::AcquireLock {
                member,
                to,
                lock,
                ttl_ms,
                queue,
            },
            LockRequest::Renew {
                lock,
                fence,
                ttl_ms,
            } => Request::RenewLock {
                member,
                to,
                lock,
                fence,
                ttl_ms,
            },
            LockRequest::Release { lock } => Request::ReleaseLock { member, to, lock },
            LockRequest::Get { after, limit } => {
                let limit = page_limit(limit)?;
                let request = Request::GetLocks { to, after, limit };
                return self.ask_page(id, room, request, now, host);
            }
            LockRequest::Watch { locks } => {
                let change = |view: &View| View::new(view.state.clone(), locks);
                return self.change_view(id, (request, room, membership), change, now);
            }
        };
        self.ask(id, room, request, host);
        Ok(())
    }

    pub(super) fn ask_timer(
        &mut self,
        id: ConnectionId,
        timer: Timer,
        now: Now,
        host: &mut dyn Host,
    ) -> Outcome {
        let Timer {
            request,
            room,
            what,
        } = timer;
        let verb = match what {
            TimerRequest::Set { .. } | TimerRequest::Cancel { .. } => Some(Verb::Timer),
            TimerRequest::Get { .. } => None,
        };
        let author = Author::Member(self.member(id, room, verb)?.member);
        let to = self.origin(id, Some(request));
        let request = match what {
            TimerRequest::Set {
                name,
                due_ms,
                payload,
            } => {
                check_payload(&payload, self.terms(id).payload_bytes_max)?;
                Request::SetTimer {
                    author,
                    to,
                    name,
                    due_ms,
                    payload,
                }
            }
            TimerRequest::Cancel { name } => Request::CancelTimer { author, to, name },
            TimerRequest::Get { after, limit } => {
                let limit = page_limit(limit)?;
                let request = Request::GetTimers { to, after, limit };
                return self.ask_page(id, room, request, now, host);
            }
        };
        self.ask(id, room, request, host);
        Ok(())
    }

    pub(super) fn ask_cursor(
        &mut self,
        id: ConnectionId,
        cursor: &Cursor,
        now: Now,
        host: &mut dyn Host,
    ) -> Outcome {
        let member = self.member(id, cursor.room, None)?.member;
        let to = self.origin(id, Some(cursor.request));
        let request = match cursor.what {
            CursorRequest::Set { read, delivered } => Request::SetCursor {
                member,
                to,
                read,
                delivered,
            },
            CursorRequest::Get => Request::GetCursors { member, to },
        };
        // Either answer counts what is unread, which reads as much of the log as a long page.
        self.ask_page(id, cursor.room, request, now, host)
    }

    /// The connection has another token: rooms go by that one where it says something else of the state.
    pub(super) fn tell_grants(&mut self, id: ConnectionId, before: &Identity, host: &mut dyn Host) {
        let Some(open) = self.connection(id).and_then(Connection::open) else {
            return;
        };
        let known = open.memberships.iter().filter_map(|membership| {
            let name = &self.hubs.get(&membership.room)?.room.name;
            Some((*membership, StateGrant::of(before, name)))
        });
        for (membership, known) in known.collect::<Vec<_>>() {
            self.tell_grant(id, membership, &known, host);
        }
    }

    /// Tells a room what the connection's token says of its state, unless it knows.
    pub(super) fn tell_grant(
        &mut self,
        id: ConnectionId,
        membership: Membership,
        known: &StateGrant,
        host: &mut dyn Host,
    ) {
        let to = self.origin(id, None);
        let Membership { room, member, .. } = membership;
        let open = self.connection(id).and_then(Connection::open);
        if let (Some(open), Some(hub)) = (open, self.hubs.get(&room)) {
            let grant = StateGrant::of(&open.identity, &hub.room.name);
            if grant != *known {
                self.ask(id, room, Request::SetGrant { member, to, grant }, host);
            }
        }
    }

    /// Changes what of the log a member is sent. All that comes behind the answer is of the new view, so that a page that
    /// is asked for then leaves nothing out.
    fn change_view(
        &mut self,
        id: ConnectionId,
        (request, room, membership): (RequestId, RoomAlias, Membership),
        change: impl FnOnce(&View) -> View,
        now: Now,
    ) -> Outcome {
        self.take_page(id, now)?;
        if let Some(hub) = self.hubs.get_mut(&room) {
            hub.change_view(membership.index, change);
        }
        let reply = Reply::Done;
        self.stage(id, &frame::Ok { request, reply }.into());
        Ok(())
    }

    /// Whether changes may go to a room.
    fn check_changes(&self, id: ConnectionId, changes: &[Change]) -> Outcome {
        let bytes_max = self.terms(id).payload_bytes_max;
        let mut keys = BTreeSet::new();
        for change in changes {
            if !keys.insert(&change.key) {
                let text = format!("there are two changes of the key {}", change.key);
                return Err(Refusal::new(ErrorCode::BadValue, text));
            }
            match &change.value {
                Some(value) => check_payload(value, bytes_max)?,
                None if change.action == Action::Delete => {}
                None => {
                    let text = format!("the change of the key {} has no value", change.key);
                    return Err(Refusal::new(ErrorCode::BadValue, text));
                }
            }
        }
        Ok(())
    }
}

/// Whether an operation is of the producer that its member publishes with.
///
/// # Errors
/// It is of another.
pub(super) fn check_op(op: Option<OpId>, membership: Membership) -> Outcome {
    if op.is_some_and(|op| Some(op.producer) != membership.producer) {
        let text = "the operation's producer is not the one that join named";
        return Err(Refusal::new(ErrorCode::BadValue, text));
    }
    Ok(())
}
