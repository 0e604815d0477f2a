//! What the core reaches of its thread: the sockets, the other shards, and chance.
//!
//! Writes happen at once. What would have to come back into the core (a broken socket, a token that is checked
//! already) is gathered in [`Wants`], since the core is in the middle of a step when it asks.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::Duration;

use bytes::Bytes;
use mio::net::TcpStream;
use slab::Slab;
use tokio::time::Instant;

use super::calls::Calls;
use super::mailbox::Letter;
use super::socket::Socket;
use super::verifier::Verifier;
use super::{Place, Post, TransportSettings};
use crate::auth::{AuthError, Identity};
use crate::clock::Clock;
use crate::shard::message::{ConnectionId, Message, ShardId};
use crate::shard::{Host, Phase};
use crate::tls::Records;

/// The thread's side of the core.
pub(super) struct ThreadHost {
    id: ShardId,
    clock: Clock,
    posts: Vec<Post>,
    calls: Calls,
    verifier: Option<Verifier>,
    sockets: Slab<Socket>,
    next_generation: u32,
    /// What all sockets hold of input that nobody has handled, in bytes.
    pub(super) input_bytes: usize,
    turn_budget: Duration,
    /// How long a goodbye may take, until the peer has closed too (RFC 6455 §7.1.1 leaves it open).
    close_timeout_ms: u64,
    watch: Watch,
    random: Random,
    /// What the core has asked for and what can't be done in the middle of a step.
    pub(super) wants: Wants,
    /// Sockets that may have more to read than one turn allows, or that may be read again.
    pub(super) again: VecDeque<ConnectionId>,
    /// Sockets that say goodbye, by the time at which each is looked at.
    goodbyes: VecDeque<(u64, ConnectionId)>,
}

/// What is done after a step.
#[derive(Default)]
pub(super) struct Wants {
    /// Sockets that turned out to be broken.
    pub(super) broken: VecDeque<ConnectionId>,
    /// Tokens that were checked at once.
    pub(super) verified: Vec<(ConnectionId, Result<Identity, AuthError>)>,
    /// Shards that have mail.
    pub(super) touched: Vec<ShardId>,
}

/// What a turn's time goes into.
#[derive(Debug)]
struct Watch {
    turn_began: Instant,
    phase_began: Instant,
    phase: Phase,
    longest: (Phase, Duration),
}

/// How long a turn took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Took {
    /// All of it.
    pub(super) all: Duration,
    /// The longest part.
    pub(super) longest: (Phase, Duration),
}

impl Watch {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            turn_began: now,
            phase_began: now,
            phase: Phase::Read,
            longest: (Phase::Read, Duration::ZERO),
        }
    }

    fn turn_to(&mut self, phase: Phase) {
        let now = Instant::now();
        let took = now - self.phase_began;
        if took > self.longest.1 {
            self.longest = (self.phase, took);
        }
        self.phase_began = now;
        self.phase = phase;
    }
}

/// Random bits, drawn from the system for many uses at a time.
struct Random {
    bytes: [u8; Self::BYTES],
    used: usize,
}

impl ThreadHost {
    pub(super) fn new(
        id: ShardId,
        clock: Clock,
        posts: Vec<Post>,
        calls: Calls,
        verifier: Option<Verifier>,
        settings: &TransportSettings,
    ) -> Self {
        Self {
            id,
            clock,
            posts,
            calls,
            verifier,
            sockets: Slab::new(),
            next_generation: 0,
            input_bytes: 0,
            turn_budget: settings.turn_budget,
            close_timeout_ms: settings.close_timeout_ms,
            watch: Watch::new(),
            random: Random::new(),
            wants: Wants::default(),
            again: VecDeque::new(),
            goodbyes: VecDeque::new(),
        }
    }

    /// Whose thread it is.
    pub(super) fn id(&self) -> ShardId {
        self.id
    }

    /// Goes on with other settings.
    pub(super) fn adopt(&mut self, settings: &TransportSettings) {
        self.turn_budget = settings.turn_budget;
        self.close_timeout_ms = settings.close_timeout_ms;
    }

    /// The thread is awake, and a turn begins.
    pub(super) fn begin_turn(&mut self) {
        self.watch = Watch::new();
    }

    /// How long the turn took, and which part of it took the most.
    pub(super) fn end_turn(&mut self) -> Took {
        self.watch.turn_to(Phase::Read);
        Took {
            all: self.watch.phase_began - self.watch.turn_began,
            longest: self.watch.longest,
        }
    }

    /// The slot that the next socket gets.
    pub(super) fn vacant_slot(&self) -> usize {
        self.sockets.vacant_key()
    }

    /// Takes a socket in, in the vacant slot.
    pub(super) fn insert(
        &mut self,
        stream: TcpStream,
        tls: Option<Box<Records>>,
        place: Place,
    ) -> ConnectionId {
        let generation = self.next_generation;
        self.next_generation = generation.wrapping_add(1);
        let slot = self
            .sockets
            .insert(Socket::new(generation, stream, tls, place));
        ConnectionId {
            slot: u32::try_from(slot).expect("connections are counted in 32 bits"),
            generation,
        }
    }

    /// Whose socket is in a slot.
    pub(super) fn in_slot(&self, slot: usize) -> Option<ConnectionId> {
        let socket = self.sockets.get(slot)?;
        Some(ConnectionId {
            slot: u32::try_from(slot).ok()?,
            generation: socket.generation,
        })
    }

    pub(super) fn socket_mut(&mut self, connection: ConnectionId) -> Option<&mut Socket> {
        let socket = self.sockets.get_mut(connection.slot as usize)?;
        (socket.generation == connection.generation).then_some(socket)
    }

    /// The connections that the core has, each with the input that it holds.
    pub(super) fn inputs(&self) -> impl Iterator<Item = (ConnectionId, usize)> {
        let living = self
            .sockets
            .iter()
            .filter(|(_, socket)| !socket.is_saying_goodbye());
        living.filter_map(|(slot, socket)| {
            let connection = ConnectionId {
                slot: u32::try_from(slot).ok()?,
                generation: socket.generation,
            };
            Some((connection, socket.input_bytes()))
        })
    }

    /// Takes what a socket holds of input.
    pub(super) fn take_unread(&mut self, connection: ConnectionId) -> Box<[u8]> {
        let socket = self.socket_mut(connection);
        let unread = socket.map(Socket::take_unread);
        let unread = unread.unwrap_or_default();
        self.input_bytes -= unread.len();
        unread
    }

    /// Comes back to a socket in the next turn.
    pub(super) fn look_again(&mut self, connection: ConnectionId) {
        let fresh = self
            .socket_mut(connection)
            .is_some_and(|socket| !std::mem::replace(&mut socket.again, true));
        if fresh {
            self.again.push_back(connection);
        }
    }

    /// Goes on with a goodbye.
    pub(super) fn go_on(&mut self, connection: ConnectionId, buffer: &mut [u8]) {
        let Some(socket) = self.socket_mut(connection) else {
            return;
        };
        if socket.go_on(buffer) {
            self.remove(connection);
        } else if socket.is_readable() {
            self.look_again(connection);
        }
    }

    /// Closes sockets whose time to say goodbye is up, a few a turn.
    pub(super) fn close_overdue(&mut self) {
        let now_ms = self.clock.monotonic_ms();
        for _ in 0..ENDS_MAX {
            let Some((_, connection)) = self.goodbyes.pop_front_if(|(due_ms, _)| *due_ms <= now_ms)
            else {
                return;
            };
            self.remove(connection);
        }
    }

    /// When the next goodbye is looked at, on the monotonic clock in milliseconds.
    pub(super) fn next_goodbye_ms(&self) -> Option<u64> {
        self.goodbyes.front().map(|(due_ms, _)| *due_ms)
    }

    /// Wakes the shards that have mail.
    pub(super) fn wake_touched(&mut self) {
        for shard in self.wants.touched.drain(..) {
            if let Some(post) = self.posts.get(usize::from(shard.0)) {
                post.mailbox.wake();
            }
        }
    }

    fn remove(&mut self, connection: ConnectionId) {
        if self.socket_mut(connection).is_some() {
            // Closing it takes it out of the kernel's list too.
            drop(self.sockets.remove(connection.slot as usize));
        }
    }
}

impl Host for ThreadHost {
    fn write(&mut self, connection: ConnectionId, slices: &[IoSlice<'_>]) -> usize {
        let total = slices.iter().map(|slice| slice.len()).sum();
        // Whoever is over stays in its rooms until it is buried, and costs no call meanwhile.
        let Some(socket) = self
            .socket_mut(connection)
            .filter(|socket| !socket.is_over())
        else {
            return total;
        };
        socket.write(slices).unwrap_or_else(|_| {
            // Whether the peer got it will show when it comes back with its position.
            self.wants.broken.push_back(connection);
            total
        })
    }

    fn finish(&mut self, connection: ConnectionId, last_words: Vec<Bytes>) {
        let due_ms = self.clock.monotonic_ms() + self.close_timeout_ms;
        if let Some(socket) = self.socket_mut(connection) {
            let input_bytes = socket.input_bytes();
            socket.say_goodbye(last_words);
            self.input_bytes -= input_bytes;
            self.goodbyes.push_back((due_ms, connection));
            self.go_on(connection, &mut [0; 1024]);
        }
    }

    fn authenticated(&mut self, connection: ConnectionId) {
        if let Some(socket) = self.socket_mut(connection) {
            socket.authenticated();
        }
    }

    fn read_again(&mut self, connection: ConnectionId) {
        let waits = self
            .socket_mut(connection)
            .is_some_and(|socket| socket.has_input());
        if waits {
            self.look_again(connection);
        }
    }

    fn verify(&mut self, connection: ConnectionId, token: &str) {
        let outcome = match &self.verifier {
            Some(verifier) => verifier.verify(self.id, connection, token),
            None => Some(Err(AuthError::Missing)),
        };
        if let Some(outcome) = outcome {
            self.wants.verified.push((connection, outcome));
        }
    }

    fn send(&mut self, to: ShardId, message: Message) {
        if to == ShardId::CONTROL {
            return self.calls.answer(message);
        }
        if let Some(post) = self.posts.get(usize::from(to.0)) {
            post.mailbox.push(Letter::Message(message));
            if !self.wants.touched.contains(&to) {
                self.wants.touched.push(to);
            }
        }
    }

    fn can_send(&self, to: ShardId) -> bool {
        self.posts
            .get(usize::from(to.0))
            .is_some_and(|post| post.mailbox.has_room())
    }

    fn random(&mut self) -> u128 {
        self.random.draw()
    }

    fn begin(&mut self, phase: Phase) {
        self.watch.turn_to(phase);
    }

    fn turn_is_spent(&mut self) -> bool {
        self.watch.phase_began.elapsed() >= self.turn_budget
    }
}

impl Random {
    const BYTES: usize = 64 * size_of::<u128>();

    const fn new() -> Self {
        Self {
            bytes: [0; Self::BYTES],
            used: Self::BYTES,
        }
    }

    fn draw(&mut self) -> u128 {
        if self.used == Self::BYTES {
            getrandom::fill(&mut self.bytes)
                .expect("the system gave random numbers when the process started");
            self.used = 0;
        }
        let (_, fresh) = self.bytes.split_at(self.used);
        let bits = fresh
            .first_chunk()
            .map_or(0, |chunk| u128::from_ne_bytes(*chunk));
        self.used += size_of::<u128>();
        bits
    }
}

/// Connections that are buried, or closed, in one turn.
pub(super) const ENDS_MAX: usize = 32;
