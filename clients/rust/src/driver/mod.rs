//! The driver: one task that feeds the machine and does what it says, over one socket.
//!
//! It alone touches the socket; handles reach it through one bounded queue. It promises that nothing grows without bound: while a room's reader doesn't keep up it stops reading,
//! and while the socket doesn't take what is written it takes no more commands. What to say and when is the machine's decision.

mod socket;

use std::collections::{HashMap, VecDeque};
use std::future::{pending, poll_fn};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::{CloseReason, Error};
use crate::machine::{
    Answer, At, CallId, Command, ConnectionState, Identity, Input, JoinInfo, Machine, Output,
    RoomEvent, RoomKey,
};
use crate::options::Options;
use crate::replica::Replicas;
use roomful_protocol::position::Position;
use roomful_protocol::text::Text;
pub(crate) use socket::Address;
use socket::{Arrival, NotOpened, Socket};

/// A command on its way to the driver.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) command: Command,
    /// Where the answer goes.
    pub(crate) reply: Option<(CallId, oneshot::Sender<Result<Answer, Error>>)>,
    /// With a join: where the room's events go.
    pub(crate) reader: Option<(RoomKey, Reader)>,
}

/// The driver's end of a room.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) events: mpsc::Sender<RoomEvent>,
    pub(crate) view: Arc<Mutex<View>>,
}

/// What a room's handle shows.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// Of the last `joined`.
    pub(crate) info: Option<JoinInfo>,
    /// Where the client stands.
    pub(crate) position: Option<Position>,
    /// What is watched.
    pub(crate) replicas: Replicas,
}

/// What handles and driver share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: watch::Sender<ConnectionState>,
    pub(crate) identity: watch::Sender<Option<Identity>>,
    pub(crate) gaps: watch::Sender<u64>,
    /// Rooms whose last handle was dropped. A drop can't wait for the queue of commands; at most one entry a room.
    abandoned: Mutex<Vec<RoomKey>>,
    abandoned_now: Notify,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            state: watch::Sender::new(ConnectionState::Connecting),
            identity: watch::Sender::new(None),
            gaps: watch::Sender::new(0),
            abandoned: Mutex::default(),
            abandoned_now: Notify::new(),
        }
    }

    pub(crate) fn abandon(&self, key: RoomKey) {
        self.abandoned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(key);
        self.abandoned_now.notify_one();
    }

    /// Why calls fail now that the driver is gone.
    pub(crate) fn closed(&self) -> Error {
        match &*self.state.borrow() {
            ConnectionState::Closed(reason) => Error::Closed(reason.clone()),
            // The runtime was shut down under the driver.
            _ => Error::Closed(CloseReason::ByApplication),
        }
    }
}

/// The task's state.
pub(crate) struct Driver {
    machine: Machine,
    options: Options,
    address: Address,
    commands: mpsc::Receiver<Envelope>,
    shared: Arc<Shared>,
    /// Who waits for which answer.
    calls: HashMap<CallId, oneshot::Sender<Result<Answer, Error>>>,
    /// Where rooms' events go.
    readers: HashMap<RoomKey, Reader>,
    /// The socket, or the way to it.
    link: Link,
    /// The token source's answer, on its way.
    token: Option<BoxFuture<'static, Result<String, String>>>,
    /// What readers have no room for. Bounded by what one message brings, since none is read while anything is here.
    blocked: VecDeque<Delivery>,
    /// The machine's time zero.
    started: Instant,
    random: SmallRng,
    /// Empty between steps; kept for its memory.
    outputs: Vec<Output>,
}

enum Link {
    None,
    Opening(BoxFuture<'static, Result<Socket, NotOpened>>),
    Open(Box<Socket>),
}

/// On its way to a room's reader.
enum Delivery {
    Event(RoomKey, RoomEvent),
    End(RoomKey),
}

/// Everything that can wake the driver.
enum Happening {
    /// `None`: every handle is gone.
    Command(Option<Envelope>),
    Abandoned,
    Token(Result<String, String>),
    Opened(Result<Socket, NotOpened>),
    Arrived(Arrival),
    /// The first blocked reader has room, or is gone.
    Unblocked,
    Deadline,
}

impl Driver {
    pub(crate) fn new(
        machine: Machine,
        options: Options,
        address: Address,
        commands: mpsc::Receiver<Envelope>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            machine,
            options,
            address,
            commands,
            shared,
            calls: HashMap::new(),
            readers: HashMap::new(),
            link: Link::None,
            token: None,
            blocked: VecDeque::new(),
            started: Instant::now(),
            random: SmallRng::seed_from_u64(rand::random()),
            outputs: Vec::new(),
        }
    }

    /// Runs until the client is closed.
    pub(crate) async fn run(mut self) {
        self.step(Input::Command(Command::Resume));
        while !matches!(*self.shared.state.borrow(), ConnectionState::Closed(_)) {
            let happening = self.next().await;
            self.handle(happening);
        }
        if let Link::Open(mut socket) = self.link {
            // A peer that doesn't take the goodbye isn't waited for.
            drop(timeout(GOODBYE, poll_fn(|cx| socket.poll_write(cx))).await);
        }
    }

    /// Waits for the next happening. Cancel safe: every part is.
    async fn next(&mut self) -> Happening {
        let deadline = self
            .machine
            .deadline()
            .map(|deadline| self.started + deadline);
        let reading = self.blocked.is_empty();
        let (mut opening, mut socket) = match &mut self.link {
            Link::None => (None, None),
            Link::Opening(opening) => (Some(opening), None),
            Link::Open(socket) => (None, Some(socket)),
        };
        let writable = socket
            .as_ref()
            .is_none_or(|socket| socket.backlog() < BACKLOG_MAX);
        let blocked = self
            .blocked
            .front()
            .and_then(|delivery| self.readers.get(&delivery.key()));
        tokio::select! {
            command = self.commands.recv(), if writable => Happening::Command(command),
            () = self.shared.abandoned_now.notified() => Happening::Abandoned,
            token = ready_or_never(&mut self.token) => Happening::Token(token),
            opened = ready_or_never(&mut opening) => Happening::Opened(opened),
            arrival = async {
                match &mut socket {
                    Some(socket) => poll_fn(|cx| socket.poll(reading, cx)).await,
                    None => pending().await,
                }
            } => Happening::Arrived(arrival),
            () = async {
                match blocked {
                    // The permit is given back: this task is the only sender, so the room stays free.
                    Some(reader) => drop(reader.events.reserve().await),
                    None => pending().await,
                }
            } => Happening::Unblocked,
            () = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => pending().await,
                }
            } => Happening::Deadline,
        }
    }

    fn handle(&mut self, happening: Happening) {
        match happening {
            Happening::Command(Some(envelope)) => self.take_all(envelope),
            Happening::Command(None) => self.step(Input::Command(Command::Close)),
            Happening::Abandoned => self.leave_abandoned(),
            Happening::Token(outcome) => {
                self.token = None;
                let bounded = |text: String| Text::new(&text).map_err(|error| error.to_string());
                self.step(Input::Token(outcome.and_then(bounded)));
            }
            Happening::Opened(Ok(socket)) => {
                self.link = Link::Open(Box::new(socket));
                self.step(Input::Opened);
            }
            Happening::Opened(Err(NotOpened { text, after })) => {
                self.link = Link::None;
                self.step(Input::OpenFailed { text, after });
            }
            Happening::Arrived(arrival) => self.arrived(arrival),
            Happening::Unblocked => self.unblock(),
            Happening::Deadline => self.step(Input::Tick),
        }
    }

    /// Takes the commands that are there already, so that their frames leave in one write.
    fn take_all(&mut self, first: Envelope) {
        self.take(first);
        for _ in 1..BATCH_MAX {
            let Ok(envelope) = self.commands.try_recv() else {
                return;
            };
            self.take(envelope);
        }
    }

    fn take(
        &mut self,
        Envelope {
            command,
            reply,
            reader,
        }: Envelope,
    ) {
        self.calls.extend(reply);
        self.readers.extend(reader);
        self.step(Input::Command(command));
    }

    fn leave_abandoned(&mut self) {
        let keys = std::mem::take(
            &mut *self
                .shared
                .abandoned
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        keys.into_iter()
            .for_each(|key| self.step(Input::Command(Command::Abandon(key))));
    }

    fn arrived(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Frame(frame) => self.step(Input::Frame(frame)),
            Arrival::Unreadable(text) => self.step(Input::Unreadable(text)),
            Arrival::SignOfLife => self.step(Input::Heard),
            Arrival::Ended(close) => {
                self.link = Link::None;
                self.step(Input::Closed(close));
            }
        }
    }

    fn unblock(&mut self) {
        for delivery in std::mem::take(&mut self.blocked) {
            self.deliver(delivery);
        }
        if self.blocked.is_empty() {
            self.step(Input::ReadingResumed);
        }
    }

    /// One input, and everything that follows from it.
    fn step(&mut self, input: Input) {
        let was_reading = self.blocked.is_empty();
        let at = At {
            now: self.started.elapsed(),
            random: self.random.next_u64(),
        };
        let mut outputs = std::mem::take(&mut self.outputs);
        self.machine.step(input, at, &mut outputs);
        outputs.drain(..).for_each(|output| self.do_output(output));
        self.outputs = outputs;
        self.shared
            .gaps
            .send_if_modified(|gaps| std::mem::replace(gaps, self.machine.gaps()) != *gaps);
        if was_reading && !self.blocked.is_empty() {
            self.machine.step(Input::ReadingPaused, at, &mut Vec::new());
        }
    }

    fn do_output(&mut self, output: Output) {
        match output {
            Output::FetchToken => {
                self.token = self
                    .options
                    .token_source
                    .as_ref()
                    .map(crate::TokenSource::fetch);
            }
            Output::Open => {
                self.link = Link::Opening(Box::pin(Socket::open(
                    self.address.clone(),
                    self.options.clone(),
                )));
            }
            Output::Send(frame) => {
                if let Link::Open(socket) = &mut self.link {
                    socket.push(&frame);
                }
            }
            Output::Abort => self.link = Link::None,
            Output::Close => {
                if let Link::Open(socket) = &mut self.link {
                    socket.push_close();
                }
            }
            Output::State(state) => drop(self.shared.state.send_replace(state)),
            Output::Identity(identity) => drop(self.shared.identity.send_replace(Some(identity))),
            Output::Reply(call, result) => self.reply(call, result),
            Output::Event(key, event) => {
                self.note(key, &event);
                self.deliver(Delivery::Event(key, event));
            }
            Output::Position(key, position) => {
                self.look(key, |view| view.position = Some(position));
            }
            Output::Ended(key) => self.deliver(Delivery::End(key)),
        }
    }

    fn reply(&mut self, call: CallId, result: Result<Answer, Error>) {
        // A caller that stopped waiting has no use for the answer.
        if let Some(caller) = self.calls.remove(&call) {
            drop(caller.send(result));
        }
    }

    /// Keeps what the room's handle shows up to date.
    fn note(&self, key: RoomKey, event: &RoomEvent) {
        match event {
            RoomEvent::Event { position, .. } => {
                self.look(key, |view| view.position = Some(*position));
            }
            RoomEvent::Joined(info) => self.look(key, |view| {
                view.position = Some(info.position);
                view.info = Some(info.clone());
            }),
            RoomEvent::State { position, .. } | RoomEvent::Lock { position, .. } => {
                self.look(key, |view| {
                    view.position = Some(*position);
                    view.replicas.note(event);
                });
            }
            RoomEvent::Timer { position, .. } => {
                self.look(key, |view| view.position = Some(*position));
            }
            RoomEvent::StateBegins(_)
            | RoomEvent::StatePage { .. }
            | RoomEvent::LocksBegin
            | RoomEvent::LocksPage { .. } => self.look(key, |view| view.replicas.note(event)),
            RoomEvent::CaughtUp(_)
            | RoomEvent::Reset(_)
            | RoomEvent::Signal { .. }
            | RoomEvent::Presence { .. }
            | RoomEvent::LockGranted { .. }
            | RoomEvent::LockLost { .. }
            | RoomEvent::CopyFailed(_)
            | RoomEvent::Left(_) => {}
        }
    }

    fn look(&self, key: RoomKey, change: impl FnOnce(&mut View)) {
        if let Some(reader) = self.readers.get(&key) {
            change(&mut reader.view.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        if !self.blocked.is_empty() {
            return self.blocked.push_back(delivery);
        }
        match delivery {
            Delivery::End(key) => drop(self.readers.remove(&key)),
            Delivery::Event(key, event) => {
                let Some(reader) = self.readers.get(&key) else {
                    return;
                };
                // Without a reader an event has nowhere to go: the application may publish alone.
                if let Err(mpsc::error::TrySendError::Full(event)) = reader.events.try_send(event) {
                    self.blocked.push_back(Delivery::Event(key, event));
                }
            }
        }
    }
}

impl Delivery {
    const fn key(&self) -> RoomKey {
        match self {
            Self::Event(key, _) | Self::End(key) => *key,
        }
    }
}

async fn ready_or_never<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

/// Messages that wait for the socket before commands have to.
const BACKLOG_MAX: usize = 256;

/// Commands taken in one turn, so that reading gets its own.
const BATCH_MAX: usize = 64;

/// How long the goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);
