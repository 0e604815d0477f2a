//! One shard's thread: sockets in, inputs to the core, bytes out.
//!
//! Tasks of the thread's own runtime wait for what may happen: one reads each connection, one takes the mail,
//! one sleeps until the next timer, one ends turns. Each borrows the [`Driver`] for as long as it takes to
//! step the core, never over an await. A turn ends after one yield, so that everybody who is ready is read
//! first and what they publish leaves together. A panic while a connection's input is handled ends that
//! connection; one in the tasks for mail, time and turns ends the thread.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use roomful_protocol::error::CloseCode;
use roomful_protocol::id::Epoch;
use roomful_protocol::websocket::{ReadLimits, Reader, Role, WebSocketEvent};
use slab::Slab;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::Notify;
use tokio::task::{JoinError, LocalSet, spawn_local, yield_now};
use tokio::time::{Instant, sleep, timeout};

use super::mailbox::{Letter, Mailbox};
use super::socket::{GOODBYE, Socket};
use super::verifier::Verifier;
use super::{Post, TransportSettings};
use crate::auth::{AuthError, Identity};
use crate::clock::Clock;
use crate::http::Upgraded;
use crate::journal::memory::MemoryJournal;
use crate::metrics::ShardCounters;
use crate::shard::message::{ConnectionId, Message, ShardId};
use crate::shard::{Flush, Host, Input, Shard, Shared};

/// What a thread is made of.
pub(super) struct Thread {
    pub(super) id: ShardId,
    pub(super) shared: Shared,
    pub(super) counters: Arc<ShardCounters>,
    pub(super) first_epoch: Epoch,
    pub(super) clock: Clock,
    pub(super) posts: Vec<Post>,
    pub(super) verifier: Option<Verifier>,
    pub(super) settings: TransportSettings,
}

impl Thread {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread or no event queue.
    pub(super) fn start(self) -> io::Result<JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let name = format!("shard-{}", self.id.0);
        std::thread::Builder::new().name(name).spawn(move || {
            let local = LocalSet::new();
            local.block_on(&runtime, self.run());
        })
    }

    async fn run(self) {
        let Some(own) = self.posts.get(usize::from(self.id.0)).cloned() else {
            return;
        };
        let journal = Box::new(MemoryJournal::new(self.first_epoch));
        let shard = Shard::new(
            self.id,
            self.shared,
            journal,
            self.counters,
            self.clock.now(),
        );
        let wakes = Rc::new(Wakes {
            flush: Notify::new(),
            tick: Notify::new(),
        });
        let host = ThreadHost {
            id: self.id,
            posts: self.posts,
            verifier: self.verifier,
            sockets: Slab::new(),
            next_generation: 0,
            turn_budget: self.settings.turn_budget,
            turn_started: Instant::now(),
            wants: Wants::default(),
        };
        let limits = ReadLimits {
            message_bytes_max: self.settings.message_bytes_max,
            ..ReadLimits::default()
        };
        let driver = Driver {
            shard,
            host,
            clock: self.clock,
            settings: self.settings,
            limits,
            buffer: vec![0; READ_BUFFER_BYTES],
            wakes: Rc::clone(&wakes),
            sleeping_until_ms: None,
        };
        let driver = Rc::new(RefCell::new(driver));
        // A shard without one of these three is no shard: whichever ends takes the thread with it.
        tokio::select! {
            ended = spawn_local(end_turns(Rc::clone(&driver), Rc::clone(&wakes))) => report(&ended),
            ended = spawn_local(keep_time(Rc::clone(&driver), wakes)) => report(&ended),
            ended = spawn_local(take_mail(driver, own.mailbox)) => report(&ended),
        }
    }
}

fn report(ended: &Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a shard's task has ended");
    }
}

/// Handles what others of the process send.
async fn take_mail(driver: Rc<RefCell<Driver>>, mailbox: Arc<Mailbox>) {
    loop {
        for letter in mailbox.take().await {
            handle_letter(&driver, letter);
        }
    }
}

/// Ends a turn whenever something was put off to its end.
async fn end_turns(driver: Rc<RefCell<Driver>>, wakes: Rc<Wakes>) {
    loop {
        wakes.flush.notified().await;
        loop {
            yield_now().await;
            if flush(&driver) == Flush::Done {
                break;
            }
        }
    }
}

fn flush(driver: &Rc<RefCell<Driver>>) -> Flush {
    let mut borrowed = driver.borrow_mut();
    let Driver {
        shard, host, clock, ..
    } = &mut *borrowed;
    host.turn_started = Instant::now();
    let flush = shard.flush(clock.now(), host);
    settle(driver, &mut borrowed);
    flush
}

/// Steps the core when its next timer is due.
async fn keep_time(driver: Rc<RefCell<Driver>>, wakes: Rc<Wakes>) {
    loop {
        let wait_ms = {
            let mut driver = driver.borrow_mut();
            driver.sleeping_until_ms = driver.shard.next_tick_ms();
            let now_ms = driver.clock.monotonic_ms();
            driver
                .sleeping_until_ms
                .map_or(IDLE_MS, |due_ms| due_ms.saturating_sub(now_ms))
        };
        tokio::select! {
            () = sleep(Duration::from_millis(wait_ms)) => step(&driver, Input::Tick),
            () = wakes.tick.notified() => {}
        }
    }
}

fn step(driver: &Rc<RefCell<Driver>>, input: Input<'_>) {
    let mut borrowed = driver.borrow_mut();
    borrowed.step(input);
    settle(driver, &mut borrowed);
}

fn handle_letter(driver: &Rc<RefCell<Driver>>, letter: Letter) {
    match letter {
        Letter::Message(message) => step(driver, Input::Mail(message)),
        Letter::Verified(connection, outcome) => step(
            driver,
            Input::Verified {
                connection,
                outcome,
            },
        ),
        Letter::Drain { reconnect_after_ms } => step(driver, Input::Drain { reconnect_after_ms }),
        Letter::Opened(upgraded) => {
            if let Err(error) = open(driver, *upgraded) {
                tracing::warn!(%error, "a connection could not be taken over");
            }
        }
    }
}

/// Takes a socket in, and what was read of it already.
fn open(driver: &Rc<RefCell<Driver>>, upgraded: Upgraded) -> io::Result<()> {
    let mut borrowed = driver.borrow_mut();
    let this = &mut *borrowed;
    let stream = match prepare(upgraded.stream, &this.settings) {
        Ok(stream) => stream,
        Err(error) => {
            this.host.own_count().fetch_sub(1, Ordering::Relaxed);
            return Err(error);
        }
    };
    let (read, write) = stream.into_split();
    let generation = this.host.next_generation;
    this.host.next_generation = generation.wrapping_add(1);
    let slot = this
        .host
        .sockets
        .insert(Socket::plain(generation, write, upgraded.place));
    let connection = ConnectionId {
        slot: u32::try_from(slot).expect("connections are counted in 32 bits"),
        generation,
    };
    this.step(Input::Opened {
        connection,
        encoding: upgraded.encoding,
    });
    this.received(connection, &mut upgraded.read_ahead.to_vec());
    settle(driver, &mut borrowed);
    spawn_local(read_connection(Rc::clone(driver), connection, read));
    Ok(())
}

fn prepare(stream: std::net::TcpStream, settings: &TransportSettings) -> io::Result<TcpStream> {
    #[cfg(target_os = "linux")]
    {
        let unsent = u32::try_from(settings.kernel_unsent_bytes_max).unwrap_or(u32::MAX);
        socket2::SockRef::from(&stream).set_tcp_notsent_lowat(unsent)?;
    }
    #[cfg(not(target_os = "linux"))]
    let _unused = settings;
    TcpStream::from_std(stream)
}

/// Reads a connection until it ends, on either side.
async fn read_connection(
    driver: Rc<RefCell<Driver>>,
    connection: ConnectionId,
    mut read: OwnedReadHalf,
) {
    poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| {
            poll_read(&driver, connection, &mut read, context)
        }));
        polled.unwrap_or_else(|_| {
            tracing::error!("handling a connection's input panicked; the connection is closed");
            step(&driver, Input::Gone { connection });
            Poll::Ready(())
        })
    })
    .await;
    drop(timeout(GOODBYE, discard(read)).await);
}

/// Reads what is there. Ready when the connection has ended.
fn poll_read(
    driver: &Rc<RefCell<Driver>>,
    connection: ConnectionId,
    read: &mut OwnedReadHalf,
    context: &mut Context<'_>,
) -> Poll<()> {
    let mut borrowed = driver.borrow_mut();
    let this = &mut *borrowed;
    for _ in 0..READS_PER_POLL {
        let Some(socket) = this.host.socket_mut(connection) else {
            return Poll::Ready(());
        };
        if socket
            .waker
            .as_ref()
            .is_none_or(|waker| !waker.will_wake(context.waker()))
        {
            socket.waker = Some(context.waker().clone());
        }
        let mut unread = mem::take(&mut socket.unread);
        if !this.shard.is_reading(connection) {
            if let Some(socket) = this.host.socket_mut(connection) {
                socket.unread = unread;
            }
            return Poll::Pending;
        }
        if !unread.is_empty() {
            this.received(connection, &mut unread);
            settle(driver, this);
            continue;
        }
        let mut buffer = mem::take(&mut this.buffer);
        // It is whole but after a panic, which took it along.
        buffer.resize(READ_BUFFER_BYTES, 0);
        let mut target = ReadBuf::new(&mut buffer);
        let outcome = Pin::new(&mut *read).poll_read(context, &mut target);
        let bytes = target.filled().len();
        match outcome {
            Poll::Pending => {
                this.buffer = buffer;
                return Poll::Pending;
            }
            Poll::Ready(Ok(())) if bytes > 0 => this.received(connection, &mut buffer[..bytes]),
            Poll::Ready(Ok(()) | Err(_)) => this.step(Input::Gone { connection }),
        }
        this.buffer = buffer;
        settle(driver, this);
    }
    // Others of this thread want to be read too.
    context.waker().wake_by_ref();
    Poll::Pending
}

async fn discard(mut read: OwnedReadHalf) {
    let mut buffer = [0; 1024];
    while let Ok(1..) = tokio::io::AsyncReadExt::read(&mut read, &mut buffer).await {}
}

/// Waits until a socket takes bytes again, and tells the core. If it then blocks once more, another task waits.
async fn unblock(driver: Rc<RefCell<Driver>>, connection: ConnectionId) {
    poll_fn(|context| match driver.borrow().host.socket(connection) {
        Some(socket) => socket.poll_writable(context).map(|_| ()),
        None => Poll::Ready(()),
    })
    .await;
    if let Some(socket) = driver.borrow_mut().host.socket_mut(connection) {
        socket.unblocking = None;
    }
    step(&driver, Input::Writable { connection });
}

/// Does what the core has asked for during a step.
fn settle(driver: &Rc<RefCell<Driver>>, this: &mut Driver) {
    loop {
        let wants = mem::take(&mut this.host.wants);
        for (socket, words) in wants.finished {
            let ended = this.host.own_count();
            spawn_local(async move {
                socket.finish(words).await;
                ended.fetch_sub(1, Ordering::Relaxed);
            });
        }
        for connection in wants.blocked {
            if let Some(socket) = this
                .host
                .socket_mut(connection)
                .filter(|socket| socket.unblocking.is_none())
            {
                let task = spawn_local(unblock(Rc::clone(driver), connection));
                socket.unblocking = Some(task.abort_handle());
            }
        }
        for post in wants
            .touched
            .into_iter()
            .filter_map(|shard| this.host.posts.get(usize::from(shard.0)))
        {
            post.mailbox.wake();
        }
        if wants.broken.is_empty() && wants.verified.is_empty() {
            break;
        }
        for (connection, outcome) in wants.verified {
            this.step(Input::Verified {
                connection,
                outcome,
            });
        }
        for connection in wants.broken {
            this.step(Input::Gone { connection });
        }
    }
    if !this.shard.is_idle() {
        this.wakes.flush.notify_one();
    }
    let next_ms = this.shard.next_tick_ms();
    if next_ms.is_some_and(|next_ms| {
        this.sleeping_until_ms
            .is_none_or(|until_ms| next_ms < until_ms)
    }) {
        this.sleeping_until_ms = next_ms;
        this.wakes.tick.notify_one();
    }
}

/// The core and everything that it needs.
struct Driver {
    shard: Shard,
    host: ThreadHost,
    clock: Clock,
    settings: TransportSettings,
    limits: ReadLimits,
    /// What every connection is read into: an idle one owns no buffer.
    buffer: Vec<u8>,
    wakes: Rc<Wakes>,
    /// Until when the time-keeping task sleeps.
    sleeping_until_ms: Option<u64>,
}

struct Wakes {
    flush: Notify,
    tick: Notify,
}

impl Driver {
    fn step(&mut self, input: Input<'_>) {
        self.shard.step(input, self.clock.now(), &mut self.host);
    }

    /// Takes WebSocket frames out of what was read; what must wait is kept.
    fn received(&mut self, connection: ConnectionId, bytes: &mut [u8]) {
        let Some(socket) = self.host.socket_mut(connection) else {
            return;
        };
        let mut reader = mem::replace(&mut socket.reader, Reader::new(Role::Server));
        let now = self.clock.now();
        let mut limits = self.limits;
        if !self.shard.is_open(connection) {
            limits.message_bytes_max = limits.message_bytes_max.min(self.settings.hello_bytes_max);
        }
        let mut input = bytes;
        while self.shard.is_reading(connection) {
            let event = match reader.next(&mut input, &limits) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(violation) => {
                    tracing::debug!(%violation, "a connection broke the WebSocket protocol");
                    let code = violation.close_code();
                    self.shard
                        .step(Input::Close { connection, code }, now, &mut self.host);
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
                WebSocketEvent::Close { .. } => Input::Close {
                    connection,
                    code: CloseCode::Normal,
                },
            };
            self.shard.step(input, now, &mut self.host);
        }
        if let Some(socket) = self.host.socket_mut(connection) {
            socket.reader = reader;
            socket.unread = input.to_vec();
        }
    }
}

/// What the core reaches of the thread.
struct ThreadHost {
    id: ShardId,
    posts: Vec<Post>,
    verifier: Option<Verifier>,
    sockets: Slab<Socket>,
    next_generation: u32,
    turn_budget: Duration,
    turn_started: Instant,
    wants: Wants,
}

/// What the core has asked for and what can't be done in the middle of a step.
#[derive(Default)]
struct Wants {
    blocked: Vec<ConnectionId>,
    broken: Vec<ConnectionId>,
    finished: Vec<(Socket, Vec<Bytes>)>,
    touched: Vec<ShardId>,
    verified: Vec<(ConnectionId, Result<Identity, AuthError>)>,
}

impl ThreadHost {
    fn socket(&self, connection: ConnectionId) -> Option<&Socket> {
        let socket = self.sockets.get(connection.slot as usize)?;
        (socket.generation == connection.generation).then_some(socket)
    }

    fn socket_mut(&mut self, connection: ConnectionId) -> Option<&mut Socket> {
        let socket = self.sockets.get_mut(connection.slot as usize)?;
        (socket.generation == connection.generation).then_some(socket)
    }

    /// How many connections were dealt to this shard and have not said goodbye.
    fn own_count(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.posts[usize::from(self.id.0)].connections)
    }
}

impl Host for ThreadHost {
    fn write(&mut self, connection: ConnectionId, slices: &[IoSlice<'_>]) -> usize {
        let total = slices.iter().map(|slice| slice.len()).sum();
        let Some(socket) = self.socket(connection) else {
            return total;
        };
        match socket.write(slices) {
            Ok(written) => {
                if written < total {
                    self.wants.blocked.push(connection);
                }
                written
            }
            Err(_) => {
                // Whether the peer got it will show when it comes back with its position.
                self.wants.broken.push(connection);
                total
            }
        }
    }

    fn finish(&mut self, connection: ConnectionId, last_words: Vec<Bytes>) {
        if self.socket(connection).is_none() {
            return;
        }
        let mut socket = self.sockets.remove(connection.slot as usize);
        if let Some(waker) = socket.waker.take() {
            waker.wake();
        }
        if let Some(task) = socket.unblocking.take() {
            task.abort();
        }
        self.wants.finished.push((socket, last_words));
    }

    fn pause(&mut self, connection: ConnectionId, paused: bool) {
        let waker = self
            .socket(connection)
            .and_then(|socket| socket.waker.as_ref());
        if let (false, Some(waker)) = (paused, waker) {
            waker.wake_by_ref();
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
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .expect("the system gave random numbers when the process started");
        u128::from_ne_bytes(bytes)
    }

    fn turn_is_spent(&mut self) -> bool {
        self.turn_started.elapsed() >= self.turn_budget
    }
}

/// One read's worth: a few messages of the longest kind, and many of the usual.
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// Reads of one connection before others get their turn.
const READS_PER_POLL: usize = 4;

/// How long to sleep when no timer is set; setting one wakes the sleeper.
const IDLE_MS: u64 = 60_000;
