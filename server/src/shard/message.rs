//! What shards send each other: data that could travel between nodes as it is.
//!
//! A shard plays two parts. As *edge* it holds connections and, for each room that some of them are in, a
//! hub; as *owner* it orders the rooms that are homed on it. Requests go from edge to owner, replies and
//! turns back. Between two shards messages arrive in the order in which they were sent, which is what makes
//! recovery meet the live stream without a gap: see [`Chunk::live`].

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use roomful_protocol::codec::Encoding;
use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{
    self, Durability, Entry, EntryKind, JoinProducer, LocksPage, PresenceDelta, Recovery,
    Signalled, StateItem, StatePage, Watch,
};
use roomful_protocol::id::{
    Epoch, Key, KeyPrefix, MemberId, Offset, ProducerId, RequestId, RoomAlias, RoomId, RoomName,
    SessionId, TenantId, UserId,
};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;

pub use super::request::{Author, Request};
use crate::auth::{Identity, TokenId, Verb};
use crate::session::revocations::Subject;

/// A shard of this node, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

impl ShardId {
    /// Where the answers to the back end's calls go: the control side, which is no shard and has no connections.
    pub const CONTROL: Self = Self(u16::MAX);
}

/// A connection of a shard: a slot, and how often the slot was used before, so that a late message never
/// meets a stranger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    /// The slot.
    pub slot: u32,
    /// Its use.
    pub generation: u32,
}

/// Where a reply goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The shard that holds the connection.
    pub shard: ShardId,
    /// The connection.
    pub connection: ConnectionId,
    /// The request; none for a signal that asked for no reply.
    pub request: Option<RequestId>,
}

impl Origin {
    /// Of what nobody has asked for: no reply goes anywhere.
    pub const NOBODY: Self = Self {
        shard: ShardId::CONTROL,
        connection: ConnectionId {
            slot: 0,
            generation: 0,
        },
        request: None,
    };

    /// The origin of a call that no connection makes.
    #[must_use]
    pub const fn control(call: RequestId) -> Self {
        Self {
            shard: ShardId::CONTROL,
            connection: ConnectionId {
                slot: 0,
                generation: 0,
            },
            request: Some(call),
        }
    }
}

/// A message between shards.
#[derive(Debug)]
pub enum Message {
    /// To the home of a room, which opens it if it is not.
    Join(Box<Join>),
    /// To the owner of a room.
    Request {
        /// The room, by the number that the directory gave it.
        room: RoomAlias,
        /// What is asked.
        request: Request,
    },
    /// To the shard of a connection: the end of one request.
    Reply {
        /// Whose request.
        to: Origin,
        /// What came of it.
        outcome: Result<frame::Reply, Refusal>,
    },
    /// To the shard of a connection: the end of a join.
    Joined {
        /// Whose.
        to: Origin,
        /// The room's number.
        room: RoomAlias,
        /// What came of it.
        outcome: Result<Box<Admitted>, Refusal>,
    },
    /// To a shard with members: what a turn of the room brought.
    Turn(Turn),
    /// To a shard with members: an answer to [`Request::Pull`].
    Chunk(Chunk),
    /// To the shard of a member: one signal for it alone.
    Direct {
        /// The member's connection.
        to: ConnectionId,
        /// The signal.
        signal: Box<Signalled>,
    },
    /// To a shard with members: an answer to [`Request::PullPresence`].
    Presence {
        /// The room.
        room: RoomAlias,
        /// The asked revision.
        since: u64,
        /// What changed since then, or the first part of it; none when that is too far back.
        delta: Option<Arc<Delta>>,
    },
    /// To a shard with members: these memberships are over.
    Ended {
        /// The room.
        room: RoomAlias,
        /// Whose; none: everybody's on that shard.
        connection: Option<ConnectionId>,
        /// Why.
        code: ErrorCode,
    },
    /// To the shard of a session's former holder: another connection has resumed it.
    Evict(ConnectionId),
    /// To every shard: whose connections end now.
    Revoke(Box<Revoke>),
    /// To the home of a room: what the back end asks of it.
    Call(Box<Call>),
    /// To the control side: what a call gave that no connection asks for.
    Answer {
        /// Whose call.
        to: Origin,
        /// What came of it.
        answer: Answer,
    },
}

/// What the back end asks of a room. A publish opens the room if it is not; nothing else does.
#[derive(Debug)]
pub struct Call {
    /// The room.
    pub room: RoomId,
    /// Where the answer goes.
    pub to: Origin,
    /// What is asked.
    pub request: Request,
}

/// What a call gave.
#[derive(Debug)]
pub enum Answer {
    /// What a connection would have got.
    Reply(frame::Reply),
    /// What there is of a room; none if it is not open.
    Room(Option<OpenRoom>),
    /// How many connections a shard has ended.
    Swept(u64),
}

/// Whose connections the back end ends.
#[derive(Debug, Clone)]
pub struct Revoke {
    /// Where the answer goes.
    pub to: Origin,
    /// The tenant.
    pub tenant: TenantId,
    /// Who of it.
    pub subject: Subject,
}

/// What there is of a room while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenRoom {
    /// The last entry that was sent to the hubs.
    pub head: Position,
    /// Count of members, those in their grace included.
    pub occupancy: u64,
}

/// Whom of a shard a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipient {
    /// A room that is homed there, or will be; or the shard as a whole.
    Room,
    /// The members of a room.
    Hub(RoomAlias),
    /// One connection.
    Connection(ConnectionId),
}

impl Message {
    /// Whom it is for.
    #[must_use]
    pub fn recipient(&self) -> Recipient {
        match self {
            Self::Join(_) | Self::Request { .. } | Self::Call(_) | Self::Revoke(_) => {
                Recipient::Room
            }
            Self::Turn(Turn { room, .. })
            | Self::Chunk(Chunk { room, .. })
            | Self::Presence { room, .. }
            | Self::Ended {
                room,
                connection: None,
                ..
            } => Recipient::Hub(*room),
            Self::Reply { to, .. } | Self::Joined { to, .. } | Self::Answer { to, .. } => {
                Recipient::Connection(to.connection)
            }
            Self::Direct { to, .. }
            | Self::Ended {
                connection: Some(to),
                ..
            }
            | Self::Evict(to) => Recipient::Connection(*to),
        }
    }

    /// Whom it lets into which room, and where that is ordered.
    #[must_use]
    pub fn admits(&self) -> Option<(ShardId, RoomAlias, MemberId, Attachment)> {
        match self {
            Self::Joined {
                room,
                outcome: Ok(admitted),
                ..
            } => Some((admitted.home, *room, admitted.member, admitted.attachment)),
            _ => None,
        }
    }

    /// Whose request it ends.
    #[must_use]
    pub fn answers(&self) -> Option<Origin> {
        match self {
            Self::Reply { to, .. } | Self::Joined { to, .. } | Self::Answer { to, .. } => Some(*to),
            _ => None,
        }
    }

    /// About how many bytes of payload it keeps alive.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        let batch =
            |batch: &Option<Arc<Batch>>| batch.as_ref().map_or(0, |batch| batch.payload_bytes());
        match self {
            Self::Turn(turn) => {
                let signals = turn.signals.iter().flat_map(|signals| &signals.signals);
                let signals: usize = signals.map(|signal| signal.payload.bytes.len()).sum();
                batch(&turn.log) + signals
            }
            Self::Chunk(chunk) => batch(&chunk.batch),
            Self::Direct { signal, .. } => signal.payload.bytes.len(),
            Self::Request { request, .. } => request.payload_bytes(),
            Self::Call(call) => call.request.payload_bytes(),
            Self::Reply {
                outcome: Ok(frame::Reply::State(page)),
                ..
            } => state_bytes(page),
            Self::Joined {
                outcome: Ok(admitted),
                ..
            } => admitted.state.as_deref().map_or(0, state_bytes),
            Self::Reply {
                outcome: Ok(frame::Reply::History(page)),
                ..
            } => page
                .entries
                .iter()
                .map(|entry| entry.payload.bytes.len())
                .sum(),
            Self::Join(_)
            | Self::Revoke(_)
            | Self::Answer { .. }
            | Self::Reply { .. }
            | Self::Joined { .. }
            | Self::Presence { .. }
            | Self::Ended { .. }
            | Self::Evict(_) => 0,
        }
    }
}

fn state_bytes(page: &StatePage) -> usize {
    let values = page.items.iter().filter_map(|item| item.value.as_ref());
    values.map(|value| value.bytes.len()).sum()
}

/// A join, as its owner needs it.
#[derive(Debug)]
pub struct Join {
    /// The room.
    pub room: RoomId,
    /// Where the reply goes, and where the member is.
    pub to: Origin,
    /// The member's session: it keeps its member number over reconnects.
    pub session: SessionId,
    /// How often the session was attached before.
    pub attachment: Attachment,
    /// The user.
    pub user: UserId,
    /// Whether the user is anonymous, and so shares the scope of producers.
    pub anonymous: bool,
    /// The position to go on from.
    pub since: Option<Position>,
    /// The producer.
    pub producer: Option<JoinProducer>,
    /// The presence value; none keeps that of a member who comes back.
    pub value: Option<Payload>,
    /// Carried through for the edge.
    pub preferences: Preferences,
    /// Of which state and whether of the locks a first page is wanted. Carried through for the edge too.
    pub view: View,
    /// For what an earlier connection of the session has left to be written. Carried through for the edge too.
    pub grant: StateGrant,
}

/// Whether a member may change the state now, and by which token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateGrant {
    /// The token's id, if it has one.
    pub token_id: Option<TokenId>,
    /// Whether it allows that.
    pub is_allowed: bool,
}

impl StateGrant {
    /// What an identity may do with the state of a room.
    #[must_use]
    pub fn of(identity: &Identity, room: &RoomName) -> Self {
        Self {
            token_id: identity.token_id.clone(),
            is_allowed: identity.grants.allows(room, Verb::State),
        }
    }
}

/// What of the log a member is sent beside publishes and timers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct View {
    /// How the keys begin of which state; none: nothing of it.
    pub state: Option<Vec<KeyPrefix>>,
    /// Whether changes of locks.
    pub locks: bool,
}

impl View {
    /// The view in its one form: the prefixes ascending, and none that another one covers.
    #[must_use]
    pub fn new(state: Option<Vec<KeyPrefix>>, locks: bool) -> Self {
        let mut prefixes = state.unwrap_or_default();
        prefixes.sort();
        // What one covers follows it, with nothing else in between.
        prefixes.dedup_by(|later, kept| later.as_str().starts_with(kept.as_str()));
        let state = Some(prefixes).filter(|prefixes| !prefixes.is_empty());
        Self { state, locks }
    }

    /// Whether changes of this key are in it.
    #[must_use]
    pub fn shows(&self, key: &Key) -> bool {
        let mut prefixes = self.state.iter().flatten();
        prefixes.any(|prefix| prefix.is_of(key))
    }
}

/// What a member wants to be sent; the owner hands it back unread.
#[derive(Debug, Clone, Copy)]
pub struct Preferences {
    /// Whether own events come back.
    pub echo: bool,
    /// How much of presence.
    pub watch: Watch,
    /// The member's producer, by which its own events are known.
    pub producer: Option<ProducerId>,
}

/// Counts the attachments of a session, so that what an older one still says can be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attachment(pub u64);

/// A join that was granted.
#[derive(Debug)]
pub struct Admitted {
    /// The room, as its owner knows it.
    pub room: RoomId,
    /// The member.
    pub member: MemberId,
    /// The room's home.
    pub home: ShardId,
    /// Where the member stands: its `since` while recovering, else the head.
    pub position: Position,
    /// What has been sent to this shard's hub.
    pub head: Position,
    /// What happened to `since`.
    pub recovery: Recovery,
    /// What an ack means here.
    pub durability: Durability,
    /// Revision of presence.
    pub revision: u64,
    /// Count of members.
    pub occupancy: u64,
    /// As they came.
    pub preferences: Preferences,
    /// As it came.
    pub attachment: Attachment,
    /// As it came.
    pub view: View,
    /// As it came.
    pub grant: StateGrant,
    /// The first page of the state that the view asks for, unless the member recovers.
    pub state: Option<Box<StatePage>>,
    /// The first page of the locks, likewise.
    pub locks: Option<Box<LocksPage>>,
}

/// A request that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which error.
    pub code: ErrorCode,
    /// One sentence.
    pub text: String,
    /// How long to wait.
    pub after_ms: Option<u64>,
    /// Of a conflict: the keys whose conditions did not hold, as they are.
    pub current: Vec<StateItem>,
}

impl Refusal {
    /// A refusal without a time.
    #[must_use]
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
            after_ms: None,
            current: Vec::new(),
        }
    }

    /// A refusal of what may be tried again after a time.
    #[must_use]
    pub fn later(code: ErrorCode, text: impl Into<String>, after_ms: u64) -> Self {
        Self {
            after_ms: Some(after_ms),
            ..Self::new(code, text)
        }
    }
}

/// What a turn of a room brought to one shard.
#[derive(Debug, Clone)]
pub struct Turn {
    /// The room.
    pub room: RoomAlias,
    /// Turns up to this offset were left out for want of room: whoever was to get them has to pull.
    pub missed: Option<Offset>,
    /// New entries.
    pub log: Option<Arc<Batch>>,
    /// Whose entries these are: they are served first, so that nobody waits for a room of thousands to learn of his own.
    pub publishers: Arc<[(ShardId, ConnectionId)]>,
    /// Signals to everybody.
    pub signals: Option<Arc<Signals>>,
    /// Changes of presence.
    pub presence: Option<Arc<Delta>>,
}

/// Entries of one turn, encoded once per wire format for all members of all shards.
#[derive(Debug)]
pub struct Batch {
    /// The room.
    pub room: RoomAlias,
    /// Their epoch.
    pub epoch: Epoch,
    /// The offset before the first entry.
    pub after: Offset,
    /// Ascending, without a gap.
    pub entries: Vec<Arc<Entry>>,
    /// Whether all views are shown the same of it: it has nothing of state and locks.
    pub alike: bool,
    /// Whole WebSocket messages, as who watches neither state nor locks is sent them.
    pub wire: Wire,
}

impl Turn {
    /// Says that turns up to `offset` were left out, and nothing else.
    #[must_use]
    pub fn missed(room: RoomAlias, offset: Offset) -> Self {
        Self {
            room,
            missed: Some(offset),
            log: None,
            publishers: Arc::default(),
            signals: None,
            presence: None,
        }
    }

    /// Where the room is after it, if it tells.
    #[must_use]
    pub fn last(&self) -> Option<Offset> {
        self.missed.or(self.log.as_ref().map(|batch| batch.last()))
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.log.is_none() && self.signals.is_none() && self.presence.is_none()
    }
}

impl Batch {
    /// Entries behind an offset.
    #[must_use]
    pub fn new(room: RoomAlias, epoch: Epoch, after: Offset, entries: Vec<Arc<Entry>>) -> Self {
        let alike = !entries
            .iter()
            .any(|entry| matches!(entry.kind, EntryKind::State | EntryKind::Lock));
        Self {
            room,
            epoch,
            after,
            entries,
            alike,
            wire: Wire::default(),
        }
    }

    /// Bytes of its payloads.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.entries
            .iter()
            .map(|entry| entry.payload.bytes.len())
            .sum()
    }

    /// The offset of the last entry.
    #[must_use]
    pub fn last(&self) -> Offset {
        self.entries.last().map_or(self.after, |entry| entry.offset)
    }
}

/// Signals of one turn to everybody.
#[derive(Debug)]
pub struct Signals {
    /// In the order of arrival.
    pub signals: Vec<Signalled>,
    /// All of them as WebSocket messages.
    pub wire: Wire,
}

/// A presence delta, and what is left of it for those who watch occupancy alone.
#[derive(Debug)]
pub struct Delta {
    /// The delta.
    pub delta: PresenceDelta,
    /// Whether the count changed.
    pub occupancy_changed: bool,
    /// As a WebSocket message.
    pub wire: Wire,
    /// Without its changes, as a WebSocket message.
    pub occupancy_wire: Wire,
}

/// Entries for members who are behind.
#[derive(Debug)]
pub struct Chunk {
    /// The room.
    pub room: RoomAlias,
    /// Where they stand.
    pub from: Position,
    /// What they get; none when `from` is not in the history any more.
    pub batch: Option<Arc<Batch>>,
    /// Whether this reaches all that was sent to the hub before: since messages between two shards keep their
    /// order, the hub then stands exactly here.
    pub live: bool,
}

/// The bytes of something that many receive: made when the first receiver of a format needs them.
#[derive(Debug, Default)]
pub struct Wire {
    formats: [OnceLock<Bytes>; 2],
}

impl Wire {
    /// The bytes in this format, by `encode` at the first call.
    pub fn get(&self, encoding: Encoding, encode: impl FnOnce() -> Bytes) -> &Bytes {
        let [msgpack, json] = &self.formats;
        match encoding {
            Encoding::MessagePack => msgpack.get_or_init(encode),
            Encoding::Json => json.get_or_init(encode),
        }
    }
}
