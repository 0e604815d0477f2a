//! A shard: the part of a node that one thread runs, as a state machine without I/O.
//!
//! It holds connections, the hubs of the rooms that they are in, and the rooms that are homed on it. Whoever
//! runs it feeds it one [`Input`] at a time with the time of day, ends each turn with [`Shard::flush`], and
//! provides a [`Host`] for what leaves: a thread with sockets in a server, a virtual network in the
//! simulation. The same inputs give the same outputs: nothing here reads a clock, draws a random number or
//! iterates a hash map on its way out.
//!
//! Read on in [`message`] (what shards tell each other), `edge` (from a frame to a request, by way of
//! `hello`, `enter` and `ask`), `owner` (from a request to a room), `deliver` (from a room's turn to the
//! members), `catch_up` (members who are behind), `write` (one connection's bytes), `drain` (the end of all of
//! them), `guard` (what becomes of a panic), [`hub`] and [`wheel`].

mod afford;
mod ask;
mod catch_up;
mod deliver;
mod drain;
mod edge;
mod enter;
mod guard;
mod hello;
pub mod hub;
mod keyed;
pub mod message;
mod owner;
mod request;
mod revoke;
mod settings;
pub mod view;
pub mod wheel;
mod write;

pub use ask::{check_payload, page_limit};
pub use settings::ShardSettings;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::io::IoSlice;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use roomful_protocol::codec::Encoding;
use roomful_protocol::error::CloseCode;
use roomful_protocol::id::{RoomAlias, RoomId, SessionId};
use roomful_protocol::websocket::OpCode;

use crate::auth::{AuthError, Identity};
use crate::clock::Now;
use crate::connection::{Connection, Outlet, Terms};
use crate::directory::Directory;
use crate::journal::{Completion, Journals, Ticket};
use crate::memory::Memory;
use crate::metrics::ShardCounters;
use crate::room::{Room, RoomTimer};
use crate::session::index::Sessions;
use crate::session::users::Users;
use crate::wire;
use catch_up::Catching;
use guard::Suspect;
use hub::Hub;
use message::{Attachment, ConnectionId, Message, Recipient, Request, ShardId};
use wheel::Wheel;

/// One shard.
#[derive(Debug)]
pub struct Shard {
    id: ShardId,
    settings: Arc<ShardSettings>,
    /// Of connections that have not been welcomed yet.
    terms: Arc<Terms>,
    directory: Directory,
    sessions: Sessions,
    memory: Memory,
    users: Users,
    journals: Journals,
    counters: Arc<ShardCounters>,
    /// By slot.
    outlets: Vec<Option<Outlet>>,
    hubs: HashMap<RoomAlias, Hub>,
    rooms: HashMap<RoomAlias, Room>,
    rooms_by_id: HashMap<RoomId, RoomAlias>,
    /// Rooms whose code has panicked lately.
    suspects: HashMap<RoomId, Suspect>,
    /// Whose call of the journal a ticket is.
    tickets: HashMap<Ticket, RoomAlias>,
    wheel: Wheel<Timer>,
    /// Messages of this shard to itself: handled before the step ends, in order.
    local: VecDeque<Message>,
    /// Timers that are due and have not been looked at, in their order.
    fired: VecDeque<Timer>,
    /// Members who are being given what they lack.
    catching: VecDeque<Catching>,
    /// Connections with staged messages.
    staged: VecDeque<ConnectionId>,
    /// Rooms with something to send.
    dirty_rooms: BTreeSet<RoomAlias>,
    /// The room that was flushed last, so that the next one is next.
    last_room: RoomAlias,
    /// Hubs with turns to hand on.
    dirty_hubs: BTreeSet<RoomAlias>,
    /// The hub that was served last, so that the next one is next.
    last_hub: RoomAlias,
    /// What is left to say, once the server stops.
    goodbyes: Option<drain::Goodbyes>,
    /// Looks for the connections of those who are revoked.
    sweeps: VecDeque<revoke::Sweep>,
}

/// What a shard is told.
#[derive(Debug)]
pub enum Input<'a> {
    /// A connection was handed over. Its slot is free.
    Opened {
        /// Slot and use, chosen by the host.
        connection: ConnectionId,
        /// Of the subprotocol.
        encoding: Encoding,
    },
    /// A whole message came.
    Message {
        /// From where.
        connection: ConnectionId,
        /// Whether it is a text message.
        text: bool,
        /// Its bytes.
        payload: &'a [u8],
    },
    /// A WebSocket ping came.
    Ping {
        /// From where.
        connection: ConnectionId,
        /// To be sent back.
        payload: &'a [u8],
    },
    /// A WebSocket pong came.
    Pong {
        /// From where.
        connection: ConnectionId,
    },
    /// The peer sent a close frame, which is answered with the same code.
    Closed {
        /// From where.
        connection: ConnectionId,
        /// The code, where there was one.
        code: Option<u16>,
    },
    /// The peer broke the WebSocket protocol: this is the answer.
    Close {
        /// From where.
        connection: ConnectionId,
        /// What to answer.
        code: CloseCode,
    },
    /// The socket is gone.
    Gone {
        /// Whose.
        connection: ConnectionId,
    },
    /// A socket that would have blocked takes bytes again.
    Writable {
        /// Whose.
        connection: ConnectionId,
    },
    /// A token has been checked.
    Verified {
        /// Whose.
        connection: ConnectionId,
        /// What it says.
        outcome: Result<Identity, AuthError>,
    },
    /// Another shard has sent something.
    Mail(Message),
    /// The journal has done something.
    Journal(Completion),
    /// A room that is homed here has something to do, though nobody may be in it.
    Wake(RoomId),
    /// The configuration has been read again: what follows goes by this.
    Settings(Arc<ShardSettings>),
    /// Time has passed.
    Tick,
    /// The server stops: everybody is told when to come back, and closed.
    Drain {
        /// How long that may take, in milliseconds: the connections are spread over it.
        spread_ms: u64,
    },
}

impl Input<'_> {
    /// The connection that it concerns alone.
    fn connection(&self) -> Option<ConnectionId> {
        match self {
            Self::Opened { connection, .. }
            | Self::Message { connection, .. }
            | Self::Ping { connection, .. }
            | Self::Pong { connection }
            | Self::Close { connection, .. }
            | Self::Closed { connection, .. }
            | Self::Gone { connection }
            | Self::Writable { connection }
            | Self::Verified { connection, .. } => Some(*connection),
            Self::Mail(_)
            | Self::Journal(_)
            | Self::Wake(_)
            | Self::Settings(_)
            | Self::Tick
            | Self::Drain { .. } => None,
        }
    }
}

/// What a shard needs of whoever runs it.
pub trait Host {
    /// Writes to a socket, in order, without waiting. Less than everything means that it would block;
    /// [`Input::Writable`] follows.
    fn write(&mut self, connection: ConnectionId, slices: &[IoSlice<'_>]) -> usize;

    /// The connection has ended here. Its last words are written as far as they go, then the socket is
    /// closed; nothing of it comes back.
    fn finish(&mut self, connection: ConnectionId, last_words: Vec<Bytes>);

    /// The connection has a session. A host that counts those without one has one less.
    fn authenticated(&mut self, _connection: ConnectionId) {}

    /// A connection that was not to be read may be read again; [`Shard::is_reading`] says which ones may.
    fn read_again(&mut self, connection: ConnectionId);

    /// Checks a token; [`Input::Verified`] follows.
    fn verify(&mut self, connection: ConnectionId, token: &str);

    /// Sends to another shard. Messages to one shard arrive in order.
    fn send(&mut self, to: ShardId, message: Message);

    /// Whether another shard's mailbox has room for what can be pulled later instead.
    fn can_send(&self, to: ShardId) -> bool;

    /// 128 random bits that nobody can guess.
    fn random(&mut self) -> u128;

    /// Another kind of work begins, which has a share of the turn's time of its own: none can starve the others.
    fn begin(&mut self, phase: Phase) {
        let _ = phase;
    }

    /// Whether the share of time is used up, so that the rest should wait for the next turn.
    fn turn_is_spent(&mut self) -> bool;
}

/// What a turn consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Sockets are read, and what they say is handled.
    Read,
    /// Mail of other threads is handled.
    Mail,
    /// Connections that have ended are forgotten, and timers that are due looked at.
    Timers,
    /// Rooms send what the turn brought.
    Rooms,
    /// Members who are behind are given what they lack.
    CatchUp,
    /// Turns are handed to members.
    FanOut,
    /// Replies are written.
    Replies,
}

/// What several shards of a node share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The rooms.
    pub directory: Directory,
    /// The sessions.
    pub sessions: Sessions,
    /// The users who are connected.
    pub users: Users,
    /// The configuration.
    pub settings: Arc<ShardSettings>,
    /// What may be held.
    pub memory: Memory,
}

/// Whether a turn is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// Everything has left.
    Done,
    /// The turn's time was up: call [`Shard::flush`] again after the other work of the thread.
    More,
}

/// What a shard wants to be woken for. Every connection has two of these at first, so what others need is boxed.
#[derive(Debug)]
enum Timer {
    Connection(ConnectionTimer, ConnectionId),
    Session(Box<(SessionId, Attachment)>),
    Room(Box<(RoomAlias, RoomTimer)>),
    Suspect(Box<RoomId>),
    Wake(Box<RoomId>),
    Drain,
}

/// What a connection has timers for.
#[derive(Debug, Clone, Copy)]
enum ConnectionTimer {
    Hello,
    Heartbeat,
    Stall,
    Token,
}

impl Shard {
    /// An empty shard.
    #[must_use]
    pub fn new(
        id: ShardId,
        shared: Shared,
        journals: Journals,
        counters: Arc<ShardCounters>,
        now: Now,
    ) -> Self {
        Self {
            id,
            terms: shared.settings.terms(),
            settings: shared.settings,
            directory: shared.directory,
            sessions: shared.sessions,
            memory: shared.memory,
            users: shared.users,
            journals,
            counters,
            outlets: Vec::new(),
            hubs: HashMap::new(),
            rooms: HashMap::new(),
            rooms_by_id: HashMap::new(),
            suspects: HashMap::new(),
            tickets: HashMap::new(),
            wheel: Wheel::new(now.monotonic_ms),
            local: VecDeque::new(),
            fired: VecDeque::new(),
            catching: VecDeque::new(),
            staged: VecDeque::new(),
            dirty_rooms: BTreeSet::new(),
            last_room: RoomAlias(0),
            dirty_hubs: BTreeSet::new(),
            last_hub: RoomAlias(0),
            goodbyes: None,
            sweeps: VecDeque::new(),
        }
    }

    /// Handles one input. What it brings about leaves at once or with the next [`Shard::flush`].
    pub fn step(&mut self, input: Input<'_>, now: Now, host: &mut dyn Host) {
        match input.connection() {
            Some(id) => {
                self.guard_connection(id, now, host, |shard, host| shard.handle(input, now, host));
            }
            None => self.handle(input, now, host),
        }
        self.handle_local(now, host);
    }

    fn handle(&mut self, input: Input<'_>, now: Now, host: &mut dyn Host) {
        match input {
            Input::Opened {
                connection,
                encoding,
            } => self.opened(connection, encoding, now, host),
            Input::Message {
                connection,
                text,
                payload,
            } => self.message(connection, text, payload, now, host),
            Input::Ping {
                connection,
                payload,
            } => {
                if self.take_control(connection, now, host) {
                    self.stage_bytes(connection, &wire::control(OpCode::Pong, payload));
                }
            }
            Input::Pong { connection } => {
                self.take_control(connection, now, host);
            }
            Input::Closed { connection, code } => self.closed(connection, code, now, host),
            Input::Close { connection, code } => self.close(connection, code, now, host),
            Input::Gone { connection } => self.gone(connection, now, host),
            Input::Writable { connection } => self.writable(connection, now, host),
            Input::Verified {
                connection,
                outcome,
            } => self.verified(connection, outcome, now, host),
            Input::Mail(message) => self.local.push_back(message),
            Input::Journal(completion) => self.journal_completed(completion, now, host),
            Input::Wake(room) => self.wake_room(&room, now, host),
            Input::Settings(settings) => {
                self.terms = settings.terms();
                self.settings = settings;
            }
            Input::Tick => self.tick(now, host),
            Input::Drain { spread_ms } => self.drain(spread_ms, now, host),
        }
    }

    /// Ends a turn: what rooms gathered goes to the hubs, what hubs have goes to the sockets, and so does
    /// every staged reply.
    pub fn flush(&mut self, now: Now, host: &mut dyn Host) -> Flush {
        self.counters.turns.add(1);
        // What waits for a disk goes first: the rest of the turn happens meanwhile.
        self.journals.flush();
        self.sweep(now, host);
        host.begin(Phase::Rooms);
        self.flush_rooms(now, host);
        host.begin(Phase::CatchUp);
        self.catch_up(now, host);
        host.begin(Phase::FanOut);
        self.fan_out(now, host);
        host.begin(Phase::Replies);
        self.flush_staged(now, host);
        self.handle_local(now, host);
        self.journals.flush();
        if self.is_idle() {
            return Flush::Done;
        }
        self.counters.turn_over_budget.add(1);
        Flush::More
    }

    /// Lets rooms send, one after the other, until all have or the time is up.
    fn flush_rooms(&mut self, now: Now, host: &mut dyn Host) {
        for served in 1_usize.. {
            let Some(alias) = next_of(&self.dirty_rooms, self.last_room) else {
                return;
            };
            self.last_room = alias;
            self.dirty_rooms.remove(&alias);
            self.with_room(alias, now, host, |room, context| room.flush(context));
            self.handle_local(now, host);
            if served.is_multiple_of(self.settings.items_per_look) && host.turn_is_spent() {
                return;
            }
        }
    }

    /// When [`Input::Tick`] is due, on the monotonic clock in milliseconds.
    #[must_use]
    pub fn next_tick_ms(&self) -> Option<u64> {
        // What is due already and has to wait is due now.
        let waits = (!self.fired.is_empty()).then_some(0);
        waits.or_else(|| self.wheel.next_ms())
    }

    /// Whether a flush would find nothing to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.dirty_rooms.is_empty()
            && self.dirty_hubs.is_empty()
            && self.staged.is_empty()
            && self.catching.is_empty()
            && self.sweeps.is_empty()
            && self.local.is_empty()
            && !self.journals.has_unsent()
    }

    /// Whether a connection may be read.
    #[must_use]
    pub fn is_reading(&self, connection: ConnectionId) -> bool {
        self.connection(connection)
            .is_some_and(|connection| !connection.pauses.any() && connection.backlog.is_none())
    }

    /// Whether a connection has said who it is.
    #[must_use]
    pub fn is_open(&self, connection: ConnectionId) -> bool {
        self.connection(connection)
            .is_some_and(|connection| connection.open().is_some())
    }

    /// Bytes that wait to be written to a connection.
    #[must_use]
    pub fn outbox_bytes(&self, connection: ConnectionId) -> usize {
        let outbox = self
            .outlet(connection)
            .and_then(|outlet| outlet.outbox.as_ref());
        outbox.map_or(0, |outbox| outbox.sizes().bytes)
    }

    /// Bytes of a connection's frames that were taken and wait to be handled.
    #[must_use]
    pub fn backlog_bytes(&self, connection: ConnectionId) -> usize {
        self.connection(connection)
            .map_or(0, Connection::backlog_bytes)
    }

    /// Longest message that a connection may send now, in bytes.
    #[must_use]
    pub fn message_bytes_max(&self, connection: ConnectionId) -> usize {
        let bytes = self.terms(connection).message_bytes_max;
        if self.is_open(connection) {
            bytes
        } else {
            bytes.min(self.settings.hello_bytes_max)
        }
    }

    /// What a connection was told, or will be.
    fn terms(&self, id: ConnectionId) -> &Terms {
        let open = self.connection(id).and_then(Connection::open);
        open.map_or(&self.terms, |open| &open.terms)
    }

    fn tick(&mut self, now: Now, host: &mut dyn Host) {
        let mut fired = Vec::new();
        self.wheel.advance(now.monotonic_ms, &mut fired);
        self.fired.extend(fired);
        for served in 1_usize.. {
            let Some(timer) = self.fired.pop_front() else {
                return;
            };
            self.timer(timer, now, host);
            self.handle_local(now, host);
            if served.is_multiple_of(self.settings.items_per_look) && host.turn_is_spent() {
                return;
            }
        }
    }

    fn timer(&mut self, timer: Timer, now: Now, host: &mut dyn Host) {
        match timer {
            Timer::Connection(what, id) => {
                self.guard_connection(id, now, host, |shard, host| match what {
                    ConnectionTimer::Hello => shard.hello_timed_out(id, now, host),
                    ConnectionTimer::Heartbeat => shard.heartbeat(id, now, host),
                    ConnectionTimer::Stall => shard.stalled(id, now, host),
                    ConnectionTimer::Token => shard.watch_token(id, now, host),
                });
            }
            Timer::Session(held) => self.session_over(held.0, held.1),
            Timer::Room(timer) => self.room_timer(timer.0, timer.1, now, host),
            Timer::Suspect(id) => self.watch_suspect(&id, now, host),
            Timer::Wake(id) => self.wake_room(&id, now, host),
            Timer::Drain => self.go_on_draining(now, host),
        }
    }

    fn handle_local(&mut self, now: Now, host: &mut dyn Host) {
        while let Some(message) = self.local.pop_front() {
            self.guarded_mail(message, now, host);
        }
    }

    /// Hands a message to the room, the hub or the connection that it is for, behind its guard. Rooms have theirs in
    /// [`Shard::with_room`].
    fn guarded_mail(&mut self, message: Message, now: Now, host: &mut dyn Host) {
        match message.recipient() {
            Recipient::Room => self.mail(message, now, host),
            Recipient::Hub(room) => self.guard_hub(room, now, host, |shard, host| {
                shard.mail(message, now, host);
            }),
            Recipient::Connection(id) => {
                let unheld = message.admits();
                let survived = self
                    .guard_connection(id, now, host, |shard, host| shard.mail(message, now, host));
                if let (false, Some((home, room, member, attachment))) = (survived, unheld) {
                    // The owner holds a member for nobody.
                    let shard = self.id;
                    let request = Request::Detach {
                        member,
                        attachment,
                        shard,
                    };
                    self.send(home, Message::Request { room, request }, host);
                }
            }
        }
    }

    fn mail(&mut self, message: Message, now: Now, host: &mut dyn Host) {
        match message {
            Message::Join(join) => self.join_room(*join, now, host),
            Message::Request { room, request } => self.request_room(room, request, now, host),
            Message::Reply { to, outcome } => self.replied(to, outcome, now, host),
            Message::Joined { to, room, outcome } => self.joined(to, room, outcome, now, host),
            Message::Turn(turn) => self.receive_turn(turn, host),
            Message::Chunk(chunk) => self.receive_chunk(chunk),
            Message::Direct { to, signal } => self.deliver_direct(to, &signal, now, host),
            Message::Presence { room, since, delta } => self.receive_presence(room, since, delta),
            Message::Ended {
                room,
                connection,
                code,
            } => self.ended(room, connection, code, host),
            Message::Evict(connection) => self.close(connection, CloseCode::Replaced, now, host),
            Message::Revoke(revoke) => self.begin_sweep(*revoke),
            Message::Call(call) => self.call_room(*call, now, host),
            // It is for the control side, which is no shard.
            Message::Answer { .. } => {}
        }
    }

    /// Sends to a shard: this one's messages are handled before the step ends, others' go out.
    fn send(&mut self, to: ShardId, message: Message, host: &mut dyn Host) {
        if to == self.id {
            self.local.push_back(message);
        } else {
            self.counters.mailbox_messages.add(1);
            host.send(to, message);
        }
    }

    fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        Some(&self.outlet(id)?.connection)
    }

    fn connection_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        Some(&mut self.outlet_mut(id)?.connection)
    }

    fn outlet(&self, id: ConnectionId) -> Option<&Outlet> {
        let outlet = self.outlets.get(id.slot as usize)?.as_ref()?;
        (outlet.id == id).then_some(outlet)
    }

    fn outlet_mut(&mut self, id: ConnectionId) -> Option<&mut Outlet> {
        outlet_of(&mut self.outlets, id)
    }
}

/// Whose turn it is after `last`, round and round.
fn next_of(dirty: &BTreeSet<RoomAlias>, last: RoomAlias) -> Option<RoomAlias> {
    let first = *dirty.first()?;
    // Most often there is one, and a search costs as much as encoding a frame.
    if dirty.len() == 1 {
        return Some(first);
    }
    let after = dirty.range((Bound::Excluded(last), Bound::Unbounded));
    Some(after.copied().next().unwrap_or(first))
}

/// A connection's outlet, where the rest of the shard is in use.
fn outlet_of(outlets: &mut [Option<Outlet>], id: ConnectionId) -> Option<&mut Outlet> {
    let outlet = outlets.get_mut(id.slot as usize)?.as_mut()?;
    (outlet.id == id).then_some(outlet)
}

impl fmt::Debug for dyn Host + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Host")
    }
}
