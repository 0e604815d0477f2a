//! What goes into the machine and what comes out of it.

use std::time::Duration;

use roomful_protocol::error::WireErrorCode;
use roomful_protocol::frame::{
    ClientFrame, CursorRequest, Cursors, Direction, Durability, Entry, HistoryPage, LockInfo,
    LockRequest, LockWhy, LocksPage, MembersPage, OpId, PresenceChange, Published, Recovery,
    ServerFrame, StateChange, StatePage, StateRequest, TimerRequest, TimerWhat, TimersPage, Watch,
};
use roomful_protocol::id::{Key, KeyPrefix, MemberId, RoomAlias, SessionId, SignalKey, UserId};
use roomful_protocol::limits::TOKEN_BYTES_MAX;
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_protocol::text::Text;

use crate::error::{CloseReason, Error, Refusal};

/// The world at the moment of a step: the machine has neither a clock nor dice of its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct At {
    /// Time since some fixed moment; never goes back.
    pub now: Duration,
    /// Random bits, fresh for each step.
    pub random: u64,
}

/// Names a call of the application until its one [`Output::Reply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// Names a membership of this client; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomKey(pub u64);

/// Something happened.
#[derive(Debug)]
pub enum Input {
    /// The application wants something.
    Command(Command),
    /// The token source answered [`Output::FetchToken`].
    Token(Result<Text<TOKEN_BYTES_MAX>, String>),
    /// The socket that [`Output::Open`] asked for is open.
    Opened,
    /// It could not be opened.
    OpenFailed {
        /// Why.
        text: String,
        /// How long to stay away, where the server said so.
        after: Option<Duration>,
    },
    /// A message arrived and was decoded.
    Frame(ServerFrame),
    /// A message arrived that is no frame.
    Unreadable(String),
    /// Something else arrived, such as a WebSocket ping: a sign of life.
    Heard,
    /// The socket is gone; with code and reason, if it was closed in order.
    Closed(Option<(u16, String)>),
    /// The application doesn't keep up, so the socket isn't read: silence proves nothing now.
    ReadingPaused,
    /// It is read again.
    ReadingResumed,
    /// [`super::Machine::deadline`] has passed.
    Tick,
}

/// What the application can want.
#[derive(Debug)]
pub enum Command {
    /// Enter a room. The reply is the first [`Answer::Joined`].
    Join {
        /// The call.
        call: CallId,
        /// The new membership's name.
        key: RoomKey,
        /// The room's name, unchecked.
        name: String,
        /// How.
        options: JoinOptions,
    },
    /// Something about a room that was joined.
    Room {
        /// The call.
        call: CallId,
        /// The membership.
        key: RoomKey,
        /// What.
        request: RoomRequest,
    },
    /// Leave a room whose handles are all gone; no reply.
    Abandon(RoomKey),
    /// A signal that asks for no reply.
    SignalUnconfirmed {
        /// The membership.
        key: RoomKey,
        /// What to send.
        signal: Signal,
    },
    /// Measure the round trip.
    RoundTrip(CallId),
    /// Send one `publish` as it is, past the queue.
    RawPublish {
        /// The call.
        call: CallId,
        /// The room.
        alias: RoomAlias,
        /// Its op id.
        op: Option<OpId>,
        /// The content.
        payload: Payload,
    },
    /// Drop the socket as a failing network would.
    Cut,
    /// Drop the socket and stay away.
    Suspend,
    /// Connect: the first time, or after `Suspend`.
    Resume,
    /// Close for good.
    Close,
}

/// A request about one room.
#[derive(Debug)]
pub enum RoomRequest {
    /// Leave it.
    Leave,
    /// Append to its log.
    Publish(Payload),
    /// Send a signal and hear that it is on its way.
    Signal(Signal),
    /// Set the own presence value, or take it away.
    SetPresence(Option<Payload>),
    /// Change what is sent of presence.
    Watch(Watch),
    /// Read a page of members.
    Members {
        /// Start after this one.
        after: Option<MemberId>,
        /// At most this many.
        limit: u64,
    },
    /// Read a page of the log.
    History {
        /// Where to start, not included.
        from: Option<Position>,
        /// Which way.
        direction: Direction,
        /// At most this many.
        limit: u64,
    },
    /// Write, read or watch the state. A write gets its op id here.
    State(StateRequest),
    /// Take a lock, and hold it.
    Acquire {
        /// Which.
        lock: Key,
        /// For how long between two renewals.
        ttl: Duration,
        /// Whether to wait for it.
        queue: bool,
    },
    /// Release, read or watch locks.
    Lock(LockRequest),
    /// Set, cancel or read timers.
    Timer(TimerRequest),
    /// Move or read the own cursors.
    Cursor(CursorRequest),
}

/// How to join a room.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// The last position that was seen, to get everything after it. Default: none, from now on.
    pub since: Option<Position>,
    /// Whether own events come back in the stream. Default: true. Without, only [`crate::Room::position`] moves over them.
    pub echo: bool,
    /// How much of presence to be sent. Default: nothing.
    pub watch: Watch,
    /// The own presence value. Default: none.
    pub presence: Option<Payload>,
    /// How the keys of the state begin that are to be sent and copied ([`crate::State`]); the empty prefix is every key's. Default: none.
    pub state: Option<Vec<KeyPrefix>>,
    /// Whether changes of locks are to be sent and copied ([`crate::Locks`]). Default: false.
    pub locks: bool,
}

impl Default for JoinOptions {
    fn default() -> Self {
        Self {
            since: None,
            echo: true,
            watch: Watch::None,
            presence: None,
            state: None,
            locks: false,
        }
    }
}

/// Something ephemeral to send.
#[derive(Debug, Clone)]
pub struct Signal {
    /// One member; none: all but oneself.
    pub to: Option<MemberId>,
    /// On a slow connection, a newer signal of the same sender and key replaces an older one.
    pub key: Option<SignalKey>,
    /// The content.
    pub payload: Payload,
}

impl Signal {
    /// A signal to all others, without a key.
    #[must_use]
    pub const fn new(payload: Payload) -> Self {
        Self {
            to: None,
            key: None,
            payload,
        }
    }

    /// To one member alone.
    #[must_use]
    pub fn to(self, member: MemberId) -> Self {
        Self {
            to: Some(member),
            ..self
        }
    }

    /// Replacing an older one of the same key.
    #[must_use]
    pub fn key(self, key: SignalKey) -> Self {
        Self {
            key: Some(key),
            ..self
        }
    }
}

/// What the machine wants done. The outputs of a step are done in their order.
#[derive(Debug)]
pub enum Output {
    /// Call the token source; answer with [`Input::Token`].
    FetchToken,
    /// Open a socket; answer with [`Input::Opened`] or [`Input::OpenFailed`].
    Open,
    /// Send a frame. Only between `Opened` and `Closed`, `Abort` or `Close`.
    Send(ClientFrame),
    /// Drop the socket, open or opening; no answer.
    Abort,
    /// Send what is queued, then a close frame with code 1000, and end.
    Close,
    /// The connection's state changed.
    State(ConnectionState),
    /// The server said who this client is.
    Identity(Identity),
    /// A call is done.
    Reply(CallId, Result<Answer, Error>),
    /// Something for the reader of a room.
    Event(RoomKey, RoomEvent),
    /// The client now stands here in the room.
    Position(RoomKey, Position),
    /// The membership is over; nothing of it follows.
    Ended(RoomKey),
}

/// What a successful call gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nothing but success.
    Done,
    /// To `Join`.
    Joined(JoinInfo),
    /// To `Publish`.
    Published(Published),
    /// To `Members`.
    Members(MembersPage),
    /// To `History`.
    History(HistoryPage),
    /// To `State` get.
    State(StatePage),
    /// To `Acquire`: the fence.
    Locked(Position),
    /// To `Lock` get.
    Locks(LocksPage),
    /// To `Timer` get.
    Timers(TimersPage),
    /// To `Cursor`.
    Cursors(Cursors),
    /// To `RoundTrip`.
    RoundTrip(Duration),
}

/// How the connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionState {
    /// A connection is being made.
    Connecting,
    /// The server knows this client, and requests are answered.
    Connected,
    /// The next attempt waits.
    Waiting {
        /// For how long, counted from the change to this state.
        retry_in: Duration,
        /// What ended the connection or the last attempt.
        cause: String,
    },
    /// [`crate::Client::suspend`] was called.
    Suspended,
    /// For good.
    Closed(CloseReason),
}

/// Who this client is, as `welcome` said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: UserId,
    /// The session.
    pub session: SessionId,
    /// Whether it is the session of the connection before.
    pub resumed: bool,
}

/// A room, as it was found on joining.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinInfo {
    /// The own member number.
    pub member: MemberId,
    /// Where the client stands; events follow from the next offset.
    pub position: Position,
    /// The newest position at this moment.
    pub head: Position,
    /// What happened to the position that the client brought.
    pub recovery: Recovery,
    /// What an acknowledged publish survives.
    pub durability: Durability,
    /// The revision of presence that `occupancy` is of.
    pub revision: u64,
    /// Members, this one included.
    pub occupancy: u64,
    /// The room's number on this connection.
    pub alias: RoomAlias,
}

/// What the reader of a room gets, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoomEvent {
    /// An entry of the log. Exactly one for each position, in order, except over a [`RoomEvent::Reset`].
    Event {
        /// Where it stands.
        position: Position,
        /// What it is.
        entry: Entry,
    },
    /// The client joined again after the connection was lost. Changes of presence may have been missed: read the members again if
    /// `revision` is not the last one seen.
    Joined(JoinInfo),
    /// Everything that was missed has been given; what follows is live.
    CaughtUp(Position),
    /// What the reader holds is void: the room has a new history, or the missed part is no longer kept. Events follow from here;
    /// [`crate::Room::history`] reads backwards for a fresh start.
    Reset(Position),
    /// Something ephemeral of another member.
    Signal {
        /// Who sent it.
        from: MemberId,
        /// Whose member that is.
        user: UserId,
        /// Its key.
        key: Option<SignalKey>,
        /// The content.
        payload: Payload,
    },
    /// Presence changed.
    Presence {
        /// The revision that the changes lead to.
        revision: u64,
        /// Members now.
        occupancy: u64,
        /// What changed; empty for those who watch occupancy alone.
        changes: Vec<PresenceChange>,
    },
    /// An entry of the log that changed the state: what became of those keys that are watched. It counts among the positions as
    /// [`RoomEvent::Event`] does.
    State {
        /// Where it stands: the version of these keys from here on.
        position: Position,
        /// When it was taken, in milliseconds since 1970.
        time_ms: u64,
        /// Whose it is.
        user: UserId,
        /// The operation's id.
        op: Option<OpId>,
        /// Whole values; none: deleted.
        changes: Vec<StateChange>,
    },
    /// What was known of the state is void, and pages of it follow: after the first join, a [`RoomEvent::Reset`], and
    /// whenever other keys are watched.
    StateBegins(Vec<KeyPrefix>),
    /// Watched keys as they were at the page's position. Where a later change is known already, that counts.
    StatePage {
        /// The page.
        page: StatePage,
        /// Whether every watched key is known with it.
        complete: bool,
    },
    /// An entry of the log that changed a lock; for those who watch locks.
    Lock {
        /// Where it stands.
        position: Position,
        /// When it was taken, in milliseconds since 1970.
        time_ms: u64,
        /// What happened.
        why: LockWhy,
        /// The lock as it stands then.
        lock: LockInfo,
    },
    /// What was known of locks is void, and pages follow.
    LocksBegin,
    /// Locks as they were at the page's position.
    LocksPage {
        /// The page.
        page: LocksPage,
        /// Whether every lock is known with it.
        complete: bool,
    },
    /// This client holds a lock from now on, and renews it.
    LockGranted {
        /// Which.
        lock: Key,
        /// The grant, for [`roomful_protocol::frame::Change::if_fence`].
        fence: Position,
    },
    /// This client holds a lock no longer, without having released it.
    LockLost {
        /// Which.
        lock: Key,
        /// The grant that ended.
        fence: Position,
    },
    /// The server refused a page of what is watched, or a watch that nobody awaits, for good: the copy stays without it.
    CopyFailed(Error),
    /// An entry of the log about a timer.
    Timer {
        /// Where it stands.
        position: Position,
        /// When it was taken, in milliseconds since 1970.
        time_ms: u64,
        /// Who did it; of one that fired, who had set it.
        user: UserId,
        /// The timer's name.
        name: Key,
        /// What happened.
        what: TimerWhat,
        /// When it fires, or was to fire, in milliseconds since 1970.
        due_ms: u64,
        /// What it brings; none where it was taken away.
        payload: Option<Payload>,
    },
    /// The server ended the membership for good; the last event.
    Left(Refusal),
}

impl Refusal {
    pub(super) fn new(
        code: WireErrorCode,
        text: String,
        retry: roomful_protocol::error::Retry,
        after_ms: Option<u64>,
    ) -> Self {
        Self {
            code,
            text,
            retry,
            after: after_ms.map(Duration::from_millis),
        }
    }
}
