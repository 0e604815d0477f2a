//! One shard's thread: sockets in, inputs to the core, bytes out.
//!
//! A turn of its loop waits until the kernel tells of sockets, another thread has sent a letter or a timer is
//! due; reads everybody who is ready; takes the mail; buries a few of those who have ended; looks at the timers;
//! and then lets the core hand out what came together, so that what several publish in one moment leaves in one
//! write a member. There is no task and no buffer per connection.
//! A panic while a connection is read ends that connection; the core has guards of its own, and any other panic ends
//! the thread.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use roomful_protocol::error::CloseCode;
use roomful_protocol::websocket::{ReadLimits, Reader, Role, Violation, WebSocketEvent};

use super::calls::Calls;
use super::core::Core;
use super::host::{ENDS_MAX, ThreadHost, Took};
use super::mailbox::{Letter, Mailbox};
use super::socket::{Heard, READS_MAX};
use super::verifier::Verifier;
use super::{Opened, Post, TransportSettings};
use crate::auth::AuthError;
use crate::clock::{Clock, Now};
use crate::journal::Completion;
use crate::memory::Memory;
use crate::metrics::{MemoryShed, PanicPlace, ShardCounters};
use crate::shard::message::{ConnectionId, ShardId};
use crate::shard::wheel::Wheel;
use crate::shard::{Host as _, Input, Phase};
use crate::survive::survive;

/// What a thread is made of.
pub(super) struct Thread {
    pub(super) id: ShardId,
    pub(super) poll: Poll,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) counters: Arc<ShardCounters>,
    pub(super) clock: Clock,
    pub(super) posts: Vec<Post>,
    pub(super) calls: Calls,
    pub(super) verifier: Option<Verifier>,
    pub(super) memory: Memory,
    pub(super) settings: TransportSettings,
}

/// The token of the mailbox; sockets have their slots.
pub(super) const MAIL: Token = Token(usize::MAX);

impl Thread {
    /// Starts the thread, which makes its core itself.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start<C: Core>(
        self,
        core: impl FnOnce(ShardId, Now) -> C + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let name = format!("shard-{}", self.id.0);
        std::thread::Builder::new().name(name).spawn(move || {
            let core = core(self.id, self.clock.now());
            let (mailbox, poll, mut driver) = self.into_driver(core);
            if let Err(error) = driver.run(poll, &mailbox) {
                tracing::error!(%error, "a shard can't wait for its sockets any more");
            }
        })
    }

    fn into_driver<C: Core>(self, core: C) -> (Arc<Mailbox>, Poll, Driver<C>) {
        let host = ThreadHost::new(
            self.id,
            self.clock.clone(),
            self.posts,
            self.calls,
            self.verifier,
            &self.settings,
        );
        let deadlines = Wheel::new(self.clock.monotonic_ms());
        let driver = Driver {
            core,
            counters: self.counters,
            host,
            clock: self.clock,
            memory: self.memory,
            settings: self.settings,
            buffer: vec![0; READ_BUFFER_BYTES],
            ended: VecDeque::new(),
            mail: VecDeque::new(),
            completed: VecDeque::new(),
            id: self.id,
            silent_until_ms: 0,
            deadlines,
            overdue: Vec::new(),
        };
        (self.mailbox, self.poll, driver)
    }
}

/// The core and everything that it needs.
struct Driver<C> {
    core: C,
    counters: Arc<ShardCounters>,
    host: ThreadHost,
    clock: Clock,
    memory: Memory,
    settings: TransportSettings,
    /// What every connection is read into: an idle one owns no buffer.
    buffer: Vec<u8>,
    /// Connections that have ended or broken, and which the core still has.
    ended: VecDeque<ConnectionId>,
    /// Letters that have been taken and not been read.
    mail: VecDeque<Letter>,
    /// What the journal has done, and the core has not been told.
    completed: VecDeque<Completion>,
    id: ShardId,
    /// Until then nothing is logged about slow turns, on the monotonic clock.
    silent_until_ms: u64,
    /// Connections that owe the rest of a message, until when they may.
    deadlines: Wheel<ConnectionId>,
    /// Those of them whose time was up at the last look.
    overdue: Vec<ConnectionId>,
}

impl<C: Core> Driver<C> {
    /// # Errors
    /// The kernel tells of sockets no more.
    fn run(&mut self, mut poll: Poll, mailbox: &Mailbox) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        loop {
            match poll.poll(&mut events, self.wait()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                outcome => outcome?,
            }
            self.host.begin_turn();
            self.read_sockets(&events);
            self.host.begin(Phase::Mail);
            self.read_mail(mailbox, &poll);
            let to_shed = mailbox.take_to_shed();
            if to_shed > 0 {
                self.shed(to_shed);
            }
            self.host.begin(Phase::Timers);
            self.bury();
            self.keep_time();
            self.end_turn();
            self.count_input();
        }
    }

    /// Does what sockets need: those that had more than one turn allows, and those that the kernel tells of. Where the
    /// time is up, the rest is looked at in the next turn.
    fn read_sockets(&mut self, events: &Events) {
        for _ in 0..self.host.again.len().min(EVENTS_MAX) {
            let Some(connection) = self.host.again.pop_front() else {
                break;
            };
            if let Some(socket) = self.host.socket_mut(connection) {
                socket.again = false;
            }
            self.attend(connection);
            if self.host.turn_is_spent() {
                break;
            }
        }
        // None of them waits for those above, which may be as many in every turn.
        self.host.begin(Phase::Read);
        let mut spent = false;
        for event in events.iter().filter(|event| event.token() != MAIL) {
            let Token(slot) = event.token();
            if let Some(connection) = self.host.in_slot(slot) {
                // The kernel tells once, so it is noted in any case.
                self.told(connection, event, spent);
                spent = spent || self.host.turn_is_spent();
            }
        }
    }

    /// Opens letters, in their order, until all are read or the time is up.
    fn read_mail(&mut self, mailbox: &Mailbox, poll: &Poll) {
        if self.mail.is_empty() && self.completed.is_empty() {
            self.mail = mailbox.take();
        }
        for read in 1_usize.. {
            if let Some(completion) = self.completed.pop_front() {
                self.step(Input::Journal(completion));
            } else if let Some(letter) = self.mail.pop_front() {
                mailbox.free(&letter);
                self.open_letter(letter, poll);
            } else {
                return;
            }
            if read.is_multiple_of(LETTERS_PER_LOOK) && self.host.turn_is_spent() {
                return;
            }
        }
    }

    /// How long nothing has to be done unless somebody tells.
    fn wait(&self) -> Option<Duration> {
        let busy = !self.host.again.is_empty()
            || !self.ended.is_empty()
            || !self.mail.is_empty()
            || !self.completed.is_empty()
            || !self.overdue.is_empty()
            || !self.core.is_idle();
        if busy {
            return Some(Duration::ZERO);
        }
        let due = [
            self.core.next_tick_ms(),
            self.host.next_goodbye_ms(),
            self.deadlines.next_ms(),
        ];
        let next_ms = due.into_iter().flatten().min()?;
        Some(Duration::from_millis(
            next_ms.saturating_sub(self.clock.monotonic_ms()),
        ))
    }

    /// Tells the core of connections that have ended: a few a turn, since it takes longer than reading from one that
    /// lives, and thousands may end in one moment.
    fn bury(&mut self) {
        for _ in 0..ENDS_MAX {
            let Some(connection) = self.ended.pop_front() else {
                return;
            };
            self.step(Input::Gone { connection });
        }
    }

    fn keep_time(&mut self) {
        let now_ms = self.clock.monotonic_ms();
        if self
            .core
            .next_tick_ms()
            .is_some_and(|due_ms| due_ms <= now_ms)
        {
            self.step(Input::Tick);
        }
        self.host.close_overdue();
        self.end_messages(now_ms);
    }

    /// Closes those whose message has been on its way for too long: a few a turn.
    fn end_messages(&mut self, now_ms: u64) {
        self.deadlines.advance(now_ms, &mut self.overdue);
        let count = self.overdue.len().min(ENDS_MAX);
        for connection in self.overdue.drain(..count).collect::<Vec<_>>() {
            if self.is_message_late(connection, now_ms) {
                self.violated(connection, Violation::MessageTimeout);
                self.settle();
            }
        }
    }

    /// Whether a connection owes the rest of a message for too long; if not yet, it is looked at again.
    fn is_message_late(&mut self, connection: ConnectionId, now_ms: u64) -> bool {
        let reading = self.core.is_reading(connection);
        let Some(socket) = self.host.socket_mut(connection) else {
            return false;
        };
        socket.timed = false;
        let timeout_ms = self.settings.message_timeout_ms;
        let due_ms = match socket.reader.incomplete_since(now_ms) {
            Some(since_ms) if reading => since_ms + timeout_ms,
            // It is not read, so it may have sent the rest.
            Some(_) => now_ms + timeout_ms,
            None => return false,
        };
        if due_ms > now_ms {
            socket.timed = true;
            self.deadlines.set(due_ms, connection);
        }
        due_ms <= now_ms
    }

    /// Counts what a peer has violated, and closes its connection.
    fn violated(&mut self, connection: ConnectionId, violation: Violation) {
        tracing::debug!(%violation, "a connection broke the WebSocket protocol");
        self.counters.violations.of(violation.into()).add(1);
        let code = violation.close_code();
        let now = self.clock.now();
        self.core
            .step(Input::Close { connection, code }, now, &mut self.host);
    }

    /// Ends the turn. What its time didn't suffice for goes on in the next one.
    fn end_turn(&mut self) {
        if !self.core.is_idle() {
            self.core.flush(self.clock.now(), &mut self.host);
            self.settle();
        }
        let took = self.host.end_turn();
        let longest_us = u64::try_from(took.all.as_micros()).unwrap_or(u64::MAX);
        self.counters.turn_longest_us.note(longest_us);
        if took.all >= self.settings.turn_warning {
            self.counters.turns_stalled.add(1);
            self.warn(took);
        }
    }

    /// Says that a turn took too long, not too often: whatever makes one slow makes many slow.
    fn warn(&mut self, took: Took) {
        let now_ms = self.clock.monotonic_ms();
        if now_ms < self.silent_until_ms {
            return;
        }
        self.silent_until_ms = now_ms + WARNING_INTERVAL_MS;
        let (phase, phase_took) = took.longest;
        tracing::warn!(
            shard = self.id.0,
            took_ms = took.all.as_millis(),
            ?phase,
            phase_took_ms = phase_took.as_millis(),
            "a turn took too long; others of this shard waited for it"
        );
    }

    fn open_letter(&mut self, letter: Letter, poll: &Poll) {
        match letter {
            Letter::Message(message) => self.step(Input::Mail(message)),
            Letter::Verified(connection, outcome) => {
                // Counted here, since these counters have one writer.
                if outcome == Err(AuthError::Internal) {
                    self.counters.panics.of(PanicPlace::Verifier).add(1);
                }
                self.step(Input::Verified {
                    connection,
                    outcome,
                });
            }
            Letter::Reload(shard, transport) => {
                self.settings = *transport;
                self.host.adopt(&self.settings);
                self.step(Input::Settings(shard));
            }
            Letter::Journal(completions) => self.completed.extend(completions),
            Letter::Wake(room) => self.step(Input::Wake(room)),
            Letter::Drain { spread_ms } => self.step(Input::Drain { spread_ms }),
            Letter::Opened(opened) => {
                let client = opened.client;
                if let Err(error) = self.open(*opened, poll) {
                    tracing::warn!(%error, %client, "a connection could not be taken over");
                }
            }
        }
    }

    /// Takes a socket in, and what was read of it already.
    fn open(&mut self, opened: Opened, poll: &Poll) -> io::Result<()> {
        let mut stream = TcpStream::from_std(opened.stream);
        let token = Token(self.host.vacant_slot());
        poll.registry()
            .register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        let connection = self.host.insert(stream, opened.tls, opened.place);
        tracing::debug!(?connection, client = %opened.client, "a connection is open");
        self.step(Input::Opened {
            connection,
            encoding: opened.encoding,
        });
        if !opened.read_ahead.is_empty() {
            self.guarded(connection, |this| {
                this.received(connection, &mut opened.read_ahead.to_vec());
            });
        }
        // What TLS has read ahead, the kernel doesn't know of.
        let socket = self.host.socket_mut(connection);
        if socket.is_some_and(|socket| socket.is_readable()) {
            self.host.look_again(connection);
        }
        Ok(())
    }

    /// Notes what the kernel tells of a socket, and does what it needs, or puts that off.
    fn told(&mut self, connection: ConnectionId, event: &Event, later: bool) {
        let Some(socket) = self.host.socket_mut(connection) else {
            return;
        };
        let writable = socket.told(event);
        if writable && !socket.is_saying_goodbye() {
            self.guarded(connection, |this| this.step(Input::Writable { connection }));
        }
        if later {
            self.host.look_again(connection);
        } else {
            self.attend(connection);
        }
    }

    /// Reads what a socket has, or goes on with its goodbye.
    fn attend(&mut self, connection: ConnectionId) {
        let Some(socket) = self.host.socket_mut(connection) else {
            return;
        };
        let mut buffer = mem::take(&mut self.buffer);
        if socket.is_saying_goodbye() {
            self.host.go_on(connection, &mut buffer);
        } else {
            self.guarded(connection, |this| this.read(connection, &mut buffer));
        }
        self.buffer = buffer;
    }

    /// Reads a connection, or handles what was read. A panic ends the connection.
    fn guarded(&mut self, connection: ConnectionId, handle: impl FnOnce(&mut Self)) {
        if survive(|| handle(self)).is_none() {
            self.counters.panics.of(PanicPlace::Connection).add(1);
            tracing::error!("reading a connection panicked; it is closed");
            self.step(Input::Gone { connection });
        }
    }

    /// Reads what is there, as far as the connection may be read now.
    fn read(&mut self, connection: ConnectionId, buffer: &mut [u8]) {
        for _ in 0..READS_MAX {
            if !self.core.is_reading(connection) {
                return;
            }
            let mut unread = self.host.take_unread(connection);
            if !unread.is_empty() {
                self.received(connection, &mut unread);
                if self.host.turn_is_spent() {
                    break;
                }
                continue;
            }
            let Some(socket) = self.host.socket_mut(connection) else {
                return;
            };
            match socket.read(buffer) {
                Heard::Bytes(bytes) => self.received(connection, &mut buffer[..bytes]),
                Heard::Nothing => return,
                Heard::End => return self.ended.push_back(connection),
            }
            if self.host.turn_is_spent() {
                break;
            }
        }
        // Others of this thread want to be read too.
        let socket = self.host.socket_mut(connection);
        if socket.is_some_and(|socket| socket.has_input()) {
            self.host.look_again(connection);
        }
    }

    /// Takes WebSocket frames out of what was read; what must wait is kept.
    fn received(&mut self, connection: ConnectionId, bytes: &mut [u8]) {
        let Some(socket) = self.host.socket_mut(connection) else {
            return;
        };
        let mut reader = mem::replace(&mut socket.reader, Reader::new(Role::Server));
        let counted = reader.held_bytes() + socket.uncount_record();
        self.host.input_bytes -= counted;
        let now = self.clock.now();
        let mut input = bytes;
        for handled in 1_usize.. {
            let look = handled.is_multiple_of(MESSAGES_PER_LOOK);
            if !self.core.is_reading(connection) || (look && self.host.turn_is_spent()) {
                break;
            }
            // The first message may be what opens the connection.
            let limits = self.limits(connection);
            let event = match reader.next(&mut input, &limits) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(violation) => {
                    self.violated(connection, violation);
                    break;
                }
            };
            let input = match event {
                WebSocketEvent::Message { text, payload } => Input::Message {
                    connection,
                    text,
                    payload,
                },
                WebSocketEvent::Ping(payload) => Input::Ping {
                    connection,
                    payload,
                },
                WebSocketEvent::Pong(_) => Input::Pong { connection },
                WebSocketEvent::Close { code, .. } => Input::Closed { connection, code },
            };
            self.core.step(input, now, &mut self.host);
        }
        // One that is read no more for now keeps nothing of what it has been told.
        reader.release();
        // One that says goodbye has nothing to hear any more.
        let socket = self.host.socket_mut(connection);
        if let Some(socket) = socket.filter(|socket| !socket.is_saying_goodbye()) {
            let owes = reader.incomplete_since(now.monotonic_ms).is_some();
            socket.reader = reader;
            socket.keep_unread(input);
            if owes && !mem::replace(&mut socket.timed, true) {
                let due_ms = now.monotonic_ms + self.settings.message_timeout_ms;
                self.deadlines.set(due_ms, connection);
            }
            socket.count_record();
            let held = socket.input_bytes();
            self.host.input_bytes += held;
            self.count_input();
            if held + self.core.backlog_bytes(connection) > INPUT_FREE_BYTES
                && self.memory.is_over(self.host.id(), &self.counters)
            {
                self.counters.memory_sheds.of(MemoryShed::Input).add(1);
                self.step(Input::Close {
                    connection,
                    code: CloseCode::TryLater,
                });
            }
        }
        self.settle();
    }

    fn count_input(&self) {
        let bytes = self.host.input_bytes as u64;
        self.counters.input_bytes.set(bytes);
    }

    /// Closes the heaviest connections until so many bytes are free, or as many as one turn may.
    fn shed(&mut self, mut bytes: u64) {
        let mut heavy: Vec<_> = self
            .host
            .inputs()
            .map(|(connection, input)| {
                let input = input + self.core.backlog_bytes(connection);
                (self.core.outbox_bytes(connection), input, connection)
            })
            .filter(|(outbox, input, _)| outbox + input > INPUT_FREE_BYTES)
            .collect();
        heavy.sort_unstable_by_key(|(outbox, input, connection)| {
            (Reverse(outbox + input), connection.slot)
        });
        for (outbox, input, connection) in heavy.into_iter().take(SHEDS_MAX) {
            if bytes == 0 {
                break;
            }
            bytes = bytes.saturating_sub((outbox + input) as u64);
            // Whoever doesn't read may come back at once and catch up; whoever doesn't finish what it sends may not.
            let (shed, code) = if outbox >= input {
                (MemoryShed::Outbox, CloseCode::SlowConsumer)
            } else {
                (MemoryShed::Input, CloseCode::TryLater)
            };
            self.counters.memory_sheds.of(shed).add(1);
            self.step(Input::Close { connection, code });
        }
    }

    fn limits(&self, connection: ConnectionId) -> ReadLimits {
        ReadLimits {
            message_bytes_max: self.core.message_bytes_max(connection),
            fragments_max: self.settings.fragments_max,
        }
    }

    fn step(&mut self, input: Input<'_>) {
        self.core.step(input, self.clock.now(), &mut self.host);
        self.settle();
    }

    /// Does what the core has asked for during a step.
    fn settle(&mut self) {
        while let Some((connection, outcome)) = self.host.wants.verified.pop() {
            let input = Input::Verified {
                connection,
                outcome,
            };
            self.core.step(input, self.clock.now(), &mut self.host);
        }
        self.ended.append(&mut self.host.wants.broken);
        self.host.wake_touched();
    }
}

/// One read's worth: a few messages of the longest kind, and many of the usual.
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// What a connection may hold of a message without being closed for it: most messages, and any handshake.
const INPUT_FREE_BYTES: usize = 4 * 1024;

/// Connections that are closed in one turn to free memory.
const SHEDS_MAX: usize = 256;
/// A message takes a microsecond or a few; thousands of small ones fit into one read.
const MESSAGES_PER_LOOK: usize = 32;

/// A letter is a message between shards, or a new connection.
const LETTERS_PER_LOOK: usize = 16;

/// Least time between two warnings of one shard, in milliseconds.
const WARNING_INTERVAL_MS: u64 = 10_000;

/// Sockets read in one turn, of those that the kernel tells of and of those that had more: what one of them
/// publishes waits for the others to be read.
const EVENTS_MAX: usize = 256;
