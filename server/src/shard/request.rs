//! What an edge asks of a room's owner.
//!
//! The edge has checked each request against grants and limits; what it means is left to the room. It could travel
//! between nodes as it is.

use roomful_protocol::frame::{Change, Direction, OpId};
use roomful_protocol::id::{Key, KeyPrefix, MemberId, SignalKey, UserId};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;

use super::message::{Attachment, Join, Origin, ShardId, StateGrant};
use crate::auth::TokenId;

/// Who publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Author {
    /// A member.
    Member(MemberId),
    /// The back end, in this user's name.
    BackEnd(UserId),
}

/// What an edge asks of a room's owner.
#[derive(Debug)]
pub enum Request {
    /// Enter.
    Join(Box<Join>),
    /// The member leaves for good. The reply is `Done`.
    Leave {
        /// Who.
        member: MemberId,
        /// Its attachment: an older one's leave is void.
        attachment: Attachment,
        /// Where the reply goes.
        to: Origin,
    },
    /// The member's connection is gone; its grace begins.
    Detach {
        /// Who.
        member: MemberId,
        /// Which attachment was lost.
        attachment: Attachment,
        /// The shard that held it.
        shard: ShardId,
    },
    /// Append.
    Publish {
        /// Who.
        author: Author,
        /// Where the reply goes.
        to: Origin,
        /// The operation's id; its producer is the member's, or made for the one operation of the back end's.
        op: Option<OpId>,
        /// What; checked.
        payload: Payload,
    },
    /// Send something ephemeral.
    Signal {
        /// Who.
        member: MemberId,
        /// Where the reply goes, if one is wanted.
        reply: Origin,
        /// To one member alone.
        to: Option<MemberId>,
        /// Its key.
        key: Option<SignalKey>,
        /// What.
        payload: Payload,
    },
    /// Change the member's presence value.
    SetPresence {
        /// Who.
        member: MemberId,
        /// Where the reply goes.
        to: Origin,
        /// The value.
        value: Option<Payload>,
    },
    /// What the room is like.
    Describe {
        /// Where the reply goes.
        to: Origin,
    },
    /// A page of members.
    Members {
        /// Where the reply goes.
        to: Origin,
        /// After this one.
        after: Option<MemberId>,
        /// At most so many.
        limit: usize,
    },
    /// A page of the log.
    History {
        /// Where the reply goes.
        to: Origin,
        /// Beside this position.
        from: Option<Position>,
        /// Which way.
        direction: Direction,
        /// At most so many.
        limit: usize,
    },
    /// Change the keyed state, all of it or nothing. The reply is `Published`.
    WriteState {
        /// Who.
        author: Author,
        /// Where the reply goes.
        to: Origin,
        /// The operation's id, as that of a publish.
        op: Option<OpId>,
        /// What; the values checked.
        changes: Vec<Change>,
    },
    /// Leave a write to be made when the member is gone, in the place of an earlier one. The reply is `Done`.
    OnDisconnect {
        /// Who.
        member: MemberId,
        /// Where the reply goes.
        to: Origin,
        /// What; the values checked. Nothing takes the earlier one away.
        changes: Vec<Change>,
        /// The token under which it is allowed: it is not made if that has been revoked.
        token_id: Option<TokenId>,
    },
    /// The member has another token. What it has left to be written is kept under that one, or taken away.
    SetGrant {
        /// Who.
        member: MemberId,
        /// Where it is; there is no reply.
        to: Origin,
        /// What the token says.
        grant: StateGrant,
    },
    /// A page of the keyed state.
    GetState {
        /// Where the reply goes.
        to: Origin,
        /// How the keys begin.
        prefix: KeyPrefix,
        /// After this one.
        after: Option<Key>,
        /// At most so many.
        limit: usize,
    },
    /// Take a lock, or wait for it. The reply is `Lock`.
    AcquireLock {
        /// Who.
        member: MemberId,
        /// Where the reply goes.
        to: Origin,
        /// Which.
        lock: Key,
        /// For how long, in milliseconds.
        ttl_ms: u64,
        /// Whether to wait.
        queue: bool,
    },
    /// Hold a lock for longer. The reply is `Lock`.
    RenewLock {
        /// Who.
        member: MemberId,
        /// Where the reply goes.
        to: Origin,
        /// Which.
        lock: Key,
        /// By which grant it is held.
        fence: Position,
        /// For how long from now, in milliseconds.
        ttl_ms: u64,
    },
    /// Give a lock back, or wait for it no more. The reply is `Done`.
    ReleaseLock {
        /// Who.
        member: MemberId,
        /// Where the reply goes.
        to: Origin,
        /// Which.
        lock: Key,
    },
    /// A page of locks.
    GetLocks {
        /// Where the reply goes.
        to: Origin,
        /// After this one.
        after: Option<Key>,
        /// At most so many.
        limit: usize,
    },
    /// Set a timer. The reply is `Published`.
    SetTimer {
        /// Who.
        author: Author,
        /// Where the reply goes.
        to: Origin,
        /// Its name.
        name: Key,
        /// When it fires, in milliseconds since 1970.
        due_ms: u64,
        /// What it brings; checked.
        payload: Payload,
    },
    /// Take a timer away. The reply is `Published`.
    CancelTimer {
        /// Who.
        author: Author,
        /// Where the reply goes.
        to: Origin,
        /// Its name.
        name: Key,
    },
    /// A page of timers.
    GetTimers {
        /// Where the reply goes.
        to: Origin,
        /// After this one.
        after: Option<Key>,
        /// At most so many.
        limit: usize,
    },
    /// Move the user's cursors forward. The reply is `Cursors`.
    SetCursor {
        /// Who.
        member: MemberId,
        /// Where the reply goes.
        to: Origin,
        /// Up to where the user has read.
        read: Option<Position>,
        /// Up to where the user has been delivered to.
        delivered: Option<Position>,
    },
    /// The user's cursors.
    GetCursors {
        /// Who.
        member: MemberId,
        /// Where the reply goes.
        to: Origin,
    },
    /// The hub's members at `from` need what follows.
    Pull {
        /// Whose hub.
        shard: ShardId,
        /// The position they stand at.
        from: Position,
    },
    /// The hub's members that were skipped by presence deltas need what changed since.
    PullPresence {
        /// Whose hub.
        shard: ShardId,
        /// The last revision they have seen.
        since: u64,
    },
}

impl Request {
    /// About how many bytes of payload it keeps alive.
    pub(super) fn payload_bytes(&self) -> usize {
        match self {
            Self::Publish { payload, .. }
            | Self::Signal { payload, .. }
            | Self::SetTimer { payload, .. } => payload.bytes.len(),
            Self::WriteState { changes, .. } | Self::OnDisconnect { changes, .. } => {
                let values = changes.iter().filter_map(|change| change.value.as_ref());
                values.map(|value| value.bytes.len()).sum()
            }
            _ => 0,
        }
    }

    /// Where its reply goes, if it has one.
    #[must_use]
    pub fn reply_to(&self) -> Option<Origin> {
        match self {
            Self::Join(join) => Some(join.to),
            Self::Leave { to, .. }
            | Self::Publish { to, .. }
            | Self::Signal { reply: to, .. }
            | Self::SetPresence { to, .. }
            | Self::Describe { to }
            | Self::Members { to, .. }
            | Self::History { to, .. }
            | Self::WriteState { to, .. }
            | Self::OnDisconnect { to, .. }
            | Self::SetGrant { to, .. }
            | Self::GetState { to, .. }
            | Self::AcquireLock { to, .. }
            | Self::RenewLock { to, .. }
            | Self::ReleaseLock { to, .. }
            | Self::GetLocks { to, .. }
            | Self::SetTimer { to, .. }
            | Self::CancelTimer { to, .. }
            | Self::GetTimers { to, .. }
            | Self::SetCursor { to, .. }
            | Self::GetCursors { to, .. } => Some(*to),
            Self::Detach { .. } | Self::Pull { .. } | Self::PullPresence { .. } => None,
        }
        .filter(|to| to.request.is_some())
    }
}
