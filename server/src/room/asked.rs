//! What is asked of a room: to which of its parts each request goes, what it waits for, and the answer where its room has none.

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{Published, Reply};
use roomful_protocol::id::RoomAlias;

use super::{Context, Delta, LogState, Room, Wire};
use crate::journal::JournalError;
use crate::shard::message::{Message, Origin, Refusal, Request};

/// A request that waits for its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Where the reply goes.
    pub to: Origin,
    /// What would have to come.
    pub awaited: Awaited,
}

/// Which reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// That of a join.
    Joined,
    /// That of something that may have taken effect, whose outcome nobody else can tell.
    Published,
    /// Another.
    Other,
}

impl Asked {
    /// The reply that a request waits for.
    #[must_use]
    pub fn of(request: &Request) -> Option<Self> {
        let awaited = match request {
            Request::Join(_) => Awaited::Joined,
            Request::Publish { .. }
            | Request::WriteState { .. }
            | Request::SetTimer { .. }
            | Request::CancelTimer { .. } => Awaited::Published,
            Request::Leave { .. }
            | Request::Detach { .. }
            | Request::Signal { .. }
            | Request::SetPresence { .. }
            | Request::Describe { .. }
            | Request::Members { .. }
            | Request::History { .. }
            | Request::OnDisconnect { .. }
            | Request::SetGrant { .. }
            | Request::GetState { .. }
            | Request::AcquireLock { .. }
            | Request::RenewLock { .. }
            | Request::ReleaseLock { .. }
            | Request::GetLocks { .. }
            | Request::GetTimers { .. }
            | Request::SetCursor { .. }
            | Request::GetCursors { .. }
            | Request::Pull { .. }
            | Request::PullPresence { .. } => Awaited::Other,
        };
        let to = request.reply_to()?;
        Some(Self { to, awaited })
    }
}

impl Room {
    /// Hands a request to the part that it is for, or lets it wait for the log.
    pub(super) fn decide(&mut self, request: Request, context: &mut Context<'_>) {
        match &mut self.log.state {
            LogState::Open => {}
            LogState::Opening { waiting, .. } => return waiting.push(request),
            // Leaving needs no log.
            LogState::Failed(_)
                if matches!(request, Request::Leave { .. } | Request::Detach { .. }) => {}
            LogState::Failed(error) => {
                let error = *error;
                return refuse(&request, error, self.alias, context);
            }
        }
        match request {
            Request::Join(join) => self.join(*join, context),
            Request::Leave {
                member,
                attachment,
                to,
            } => self.leave(member, attachment, to, context),
            Request::Detach {
                member,
                attachment,
                shard,
            } => self.detach(member, attachment, shard, context),
            Request::Publish {
                author,
                to,
                op,
                payload,
            } => self.publish(&author, to, op, payload, context),
            Request::Signal {
                member,
                reply,
                to,
                key,
                payload,
            } => self.signal(member, reply, to, key, payload, context),
            Request::SetPresence { member, to, value } => {
                self.set_presence(member, to, value, context);
            }
            Request::Describe { to } => self.describe(to, context),
            Request::Members { to, after, limit } => {
                context.reply(to, Ok(Reply::Members(self.members.page(after, limit))));
            }
            Request::History {
                to,
                from,
                direction,
                limit,
            } => self.history(to, from, direction, limit, context),
            Request::Pull { shard, from } => self.pull(shard, from, context),
            Request::PullPresence { shard, since } => self.pull_presence(shard, since, context),
            Request::WriteState {
                author,
                to,
                op,
                changes,
            } => self.write_state(&author, to, op, &changes, context),
            Request::OnDisconnect {
                member,
                to,
                changes,
                token_id,
            } => self.on_disconnect(member, to, changes, token_id, context),
            Request::SetGrant { member, to, grant } => {
                self.set_grant(member, to, &grant, context);
            }
            Request::AcquireLock {
                member,
                to,
                lock,
                ttl_ms,
                queue,
            } => self.acquire_lock(member, to, &lock, (ttl_ms, queue), context),
            Request::RenewLock {
                member,
                to,
                lock,
                fence,
                ttl_ms,
            } => self.renew_lock(member, to, &lock, (fence, ttl_ms), context),
            Request::ReleaseLock { member, to, lock } => {
                self.release_lock(member, to, &lock, context);
            }
            Request::SetTimer {
                author,
                to,
                name,
                due_ms,
                payload,
            } => self.set_timer(&author, to, &name, (due_ms, payload), context),
            Request::CancelTimer { author, to, name } => {
                self.cancel_timer(&author, to, &name, context);
            }
            Request::GetState {
                to,
                prefix,
                after,
                limit,
            } => {
                let page = self.state_page(&[prefix], after.as_ref(), limit, context);
                context.reply(to, Ok(Reply::State(page)));
            }
            Request::GetLocks { to, after, limit } => {
                let page = self.locks_page(after.as_ref(), limit, context);
                context.reply(to, Ok(Reply::Locks(page)));
            }
            Request::GetTimers { to, after, limit } => {
                let page = self.timers_page(after.as_ref(), limit, context);
                context.reply(to, Ok(Reply::Timers(page)));
            }
            Request::SetCursor {
                member,
                to,
                read,
                delivered,
            } => self.set_cursor(member, to, (read, delivered), context),
            Request::GetCursors { member, to } => self.get_cursors(member, to, context),
        }
    }

    /// What changed of presence, for a hub that has missed some of it.
    fn pull_presence(
        &self,
        shard: crate::shard::message::ShardId,
        since: u64,
        context: &mut Context<'_>,
    ) {
        let room = self.alias;
        let delta = self.members.since(room, since).map(|delta| Delta {
            delta,
            occupancy_changed: true,
            wire: Wire::default(),
            occupancy_wire: Wire::default(),
        });
        let delta = delta.map(std::sync::Arc::new);
        context.send(shard, Message::Presence { room, since, delta });
    }
}

/// Answers a request of a room that could not be opened.
pub(super) fn refuse(
    request: &Request,
    error: JournalError,
    room: RoomAlias,
    context: &mut Context<'_>,
) {
    let refusal = || match error {
        JournalError::Damaged => Refusal::new(
            ErrorCode::StorageDamaged,
            "what is stored of the room is damaged; it has to be repaired first",
        ),
        JournalError::Full => storage_full(),
        JournalError::Storage => {
            let text = "the room can't be opened: the storage failed";
            Refusal::later(ErrorCode::StorageFailed, text, 1000)
        }
        JournalError::Conflict => {
            let text = "the room is being opened by somebody else; try again";
            Refusal::later(ErrorCode::Overloaded, text, 1000)
        }
    };
    match (&request, request.reply_to()) {
        (Request::Join(join), _) => {
            let joined = Message::Joined {
                to: join.to,
                room,
                outcome: Err(refusal()),
            };
            context.send(join.to.shard, joined);
        }
        (_, Some(to)) => context.reply(to, Err(refusal())),
        (_, None) => {}
    }
}

/// The answer to what would have to be stored while the disk is full.
pub(super) fn storage_full() -> Refusal {
    let text = "the disk is full, so nothing can be stored now";
    Refusal::later(ErrorCode::StorageFull, text, 1000)
}

/// What a request came to. Where its entry stands is said in place, since nearly every request is a publish.
#[derive(Debug)]
pub(super) enum Settled {
    Published(Published),
    Other(Box<Result<Reply, Refusal>>),
}

impl From<Result<Reply, Refusal>> for Settled {
    fn from(outcome: Result<Reply, Refusal>) -> Self {
        match outcome {
            Ok(Reply::Published(published)) => Self::Published(published),
            outcome => Self::Other(Box::new(outcome)),
        }
    }
}

impl From<Settled> for Result<Reply, Refusal> {
    fn from(settled: Settled) -> Self {
        match settled {
            Settled::Published(published) => Ok(Reply::Published(published)),
            Settled::Other(outcome) => *outcome,
        }
    }
}
