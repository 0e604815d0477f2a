//! The protocol's client side as a state machine: what a connection, a session and its rooms do, without I/O, clock or runtime.
//!
//! [`Machine::step`] takes one [`Input`] and appends the [`Output`]s that follow from it; the driver does them in order, and calls again with
//! [`Input::Tick`] when [`Machine::deadline`] has passed. The same steps at the same moments give the same outputs, so a simulation can replay it. It promises the
//! reader of a room every position once and in order, or a reset; and the publisher one outcome for each publish, in the order of publishing. What is held is bounded: publishes by
//! count and bytes, requests by what the application waits for. Sockets, encoding, and the queues towards readers are left to the driver.

mod backoff;
mod claims;
mod connection;
mod copies;
mod membership;
mod publishes;
mod requests;
mod step;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use roomful_protocol::codec::Encoding;
use roomful_protocol::frame::{self, Ok as OkFrame, OpId, Publish, Reply, ServerFrame};
use roomful_protocol::id::{ProducerId, RoomAlias, Sequence};
use roomful_protocol::limits::Limits;
use roomful_protocol::payload::Payload;
use roomful_protocol::text::Text;

pub use step::{
    Answer, At, CallId, Command, ConnectionState, Identity, Input, JoinInfo, JoinOptions, Output,
    RoomEvent, RoomKey, RoomRequest, Signal,
};

use crate::error::{Error, Refusal};
use backoff::Backoff;
use connection::{Cause, Phase, Token};
use membership::Membership;
use requests::{Expects, Request, Requests};

/// What a machine is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// How frames will be written; the machine needs it for their sizes alone.
    pub encoding: Encoding,
    /// Name and version for the server's log, at most 128 bytes.
    pub agent: Option<String>,
    /// Whether [`Output::FetchToken`] gets an answer.
    pub has_token_source: bool,
    /// The first half of every op id: 53 random bits.
    pub producer: ProducerId,
    /// The first ceiling of the delay before connecting again.
    pub reconnect_base: Duration,
    /// The last ceiling.
    pub reconnect_max: Duration,
    /// For the token and for opening the socket, each.
    pub connect_timeout: Duration,
    /// For every request but publishes.
    pub request_timeout: Duration,
    /// Publishes without acknowledgement.
    pub publishes_max: usize,
    /// Their payloads' bytes.
    pub publish_bytes_max: usize,
}

/// One client: a session, its connection, and its rooms.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    /// Where the connection stands.
    phase: Phase,
    backoff: Backoff,
    token: Token,
    /// The newest resume token.
    resume: Option<Text<RESUME_BYTES_MAX>>,
    /// The wait that `goaway` asked for.
    reconnect_after: Option<Duration>,
    /// What the last `welcome` allowed.
    limits: Option<Limits>,
    /// Whether the socket is being read.
    reading: bool,
    requests: Requests,
    /// By key, so that whatever concerns all rooms happens in the order of joining.
    rooms: BTreeMap<RoomKey, Membership>,
    /// The names of those that were left before their join was answered: until it is, the server refuses another one.
    left_early: BTreeMap<RoomKey, String>,
    /// The rooms' numbers on this connection.
    aliases: BTreeMap<RoomAlias, RoomKey>,
    /// Publishes without acknowledgement, and their bytes, in all rooms.
    queued: Load,
    /// The lowest sequence never sent. One counter for all rooms: it grows in each of them, and no room has to be remembered.
    next_sequence: u64,
    /// The next publish's place in the application's order.
    next_order: u64,
    /// Holes in the order of events that the server left; each made the client connect again.
    gaps: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Load {
    count: usize,
    bytes: usize,
}

/// One step's surroundings.
struct Turn<'a> {
    at: At,
    out: &'a mut Vec<Output>,
}

impl Turn<'_> {
    fn reply(&mut self, call: CallId, result: Result<Answer, Error>) {
        self.out.push(Output::Reply(call, result));
    }

    /// To whoever waits, if anybody does.
    fn reply_all(
        &mut self,
        calls: impl IntoIterator<Item = CallId>,
        result: &Result<Answer, Error>,
    ) {
        for call in calls {
            self.reply(call, result.clone());
        }
    }

    fn state(&mut self, state: ConnectionState) {
        self.out.push(Output::State(state));
    }
}

impl Machine {
    /// A client that is suspended: [`Command::Resume`] connects it.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            phase: Phase::Suspended,
            backoff: Backoff::new(config.reconnect_base, config.reconnect_max),
            token: Token::default(),
            resume: None,
            reconnect_after: None,
            limits: None,
            reading: true,
            requests: Requests::new(),
            rooms: BTreeMap::new(),
            left_early: BTreeMap::new(),
            aliases: BTreeMap::new(),
            queued: Load::default(),
            next_sequence: 1,
            next_order: 0,
            gaps: 0,
            config,
        }
    }

    /// Takes one input; appends what follows from it.
    pub fn step(&mut self, input: Input, at: At, out: &mut Vec<Output>) {
        let turn = &mut Turn { at, out };
        match input {
            Input::Command(command) => self.command(command, turn),
            Input::Token(outcome) => self.token_arrived(outcome, turn),
            Input::Opened => self.opened(turn),
            Input::OpenFailed { text, after } => self.lost(Cause::NotOpened { text, after }, turn),
            Input::Frame(frame) => {
                self.heard(at.now);
                self.frame(frame, turn);
            }
            Input::Unreadable(text) => self.drop_connection(Cause::Network(text), turn),
            Input::Heard => self.heard(at.now),
            Input::Closed(None) => {
                self.lost(Cause::Network("the connection ended".to_owned()), turn);
            }
            Input::Closed(Some((code, reason))) => self.lost(Cause::Closed { code, reason }, turn),
            Input::ReadingPaused => self.reading = false,
            Input::ReadingResumed => {
                self.reading = true;
                self.heard(at.now);
            }
            Input::Tick => self.tick(turn),
        }
    }

    /// When the machine wants its next [`Input::Tick`], at the latest. May be earlier than needed, and never in the past for long:
    /// a tick moves it on.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let rooms = self
            .rooms
            .values()
            .filter_map(|room| room.deadline(self.is_open()));
        let connection = self.connection_deadline();
        rooms
            .chain(connection)
            .chain(self.requests.deadline())
            .min()
    }

    /// Holes that the server left in the order of events so far. Not zero means a fault of the server's, which the client has repaired.
    #[must_use]
    pub const fn gaps(&self) -> u64 {
        self.gaps
    }

    fn command(&mut self, command: Command, turn: &mut Turn<'_>) {
        if let Phase::Closed(reason) = &self.phase {
            let error = Error::Closed(reason.clone());
            if let Some(call) = command.call() {
                turn.reply(call, Err(error));
            }
            return;
        }
        match command {
            Command::Join {
                call,
                key,
                name,
                options,
            } => self.join(call, key, name, options, turn),
            Command::Room { call, key, request } => self.room_request(call, key, request, turn),
            Command::Abandon(key) => self.leave(None, key, turn),
            Command::SignalUnconfirmed { key, signal } => {
                self.signal_unconfirmed(key, signal, turn);
            }
            Command::RoundTrip(call) => self.round_trip(call, turn),
            Command::RawPublish {
                call,
                alias,
                op,
                payload,
            } => self.raw_publish(call, alias, op, payload, turn),
            Command::Cut => {
                self.drop_connection(Cause::Network("cut by the application".to_owned()), turn);
            }
            Command::Suspend => self.suspend(turn),
            Command::Resume => self.come_back(turn),
            Command::Close => self.close(turn),
        }
    }

    fn raw_publish(
        &mut self,
        call: CallId,
        room: RoomAlias,
        op: Option<OpId>,
        payload: Payload,
        turn: &mut Turn<'_>,
    ) {
        if !self.is_open() {
            return turn.reply(call, Err(Error::NotConnected));
        }
        if let Some(op) = op.filter(|op| op.producer == self.config.producer) {
            self.next_sequence = self.next_sequence.max(op.sequence.0 + 1);
        }
        let request = Request::Call {
            call,
            expects: Expects::Published,
        };
        self.request(request, turn, |request| {
            Publish {
                request,
                room,
                op,
                payload,
            }
            .into()
        });
    }

    fn frame(&mut self, frame: ServerFrame, turn: &mut Turn<'_>) {
        match frame {
            ServerFrame::Welcome(welcome) => self.welcome(*welcome, turn),
            ServerFrame::Joined(joined) => self.joined(*joined, turn),
            ServerFrame::Event(event) => self.event(event, turn),
            ServerFrame::Advance(advance) => self.advance(advance.room, advance.offset, turn),
            ServerFrame::Signalled(signal) => self.signalled(signal, turn),
            ServerFrame::PresenceDelta(delta) => self.presence_delta(delta, turn),
            ServerFrame::Ok(ok) => self.ok(ok, turn),
            ServerFrame::Error(error) => self.error(error, turn),
            ServerFrame::CaughtUp(caught_up) => self.caught_up(&caught_up, turn),
            ServerFrame::Left(left) => self.left(left, turn),
            ServerFrame::TokenExpiring(_) => self.renew_token(turn),
            ServerFrame::Goaway(goaway) => self.goaway(&goaway),
            ServerFrame::Pong(pong) => self.pong(&pong, turn),
            ServerFrame::StateChanged(changed) => self.state_changed(changed, turn),
            ServerFrame::LockChanged(changed) => self.lock_changed(&changed, turn),
            ServerFrame::TimerChanged(changed) => self.timer_changed(changed, turn),
            ServerFrame::ServerBatch(batch) => batch
                .frames
                .0
                .into_iter()
                .for_each(|frame| self.frame(frame, turn)),
        }
    }

    fn ok(&mut self, OkFrame { request: id, reply }: OkFrame, turn: &mut Turn<'_>) {
        let Some(request) = self.requests.close(id) else {
            return;
        };
        match request {
            Request::Publish(key) => self.published(key, id, &reply, turn),
            Request::Leave(key) => self.left_by_request(key, Ok(Answer::Done), turn),
            Request::Call { call, expects } => turn.reply(call, expects.answer(reply)),
            Request::SetPresence { call, .. }
            | Request::Watch { call, .. }
            | Request::Change { call, .. }
            | Request::Release { call, .. } => turn.reply(call, Expects::Done.answer(reply)),
            Request::WatchState { call, key } => {
                self.state_watched(key, id);
                turn.reply_all(call, &Expects::Done.answer(reply));
            }
            Request::WatchLocks { call, key } => {
                self.locks_watched(key, id);
                turn.reply_all(call, &Expects::Done.answer(reply));
            }
            Request::Page(key) => self.page_arrived(key, id, reply, turn),
            Request::Lock(asked) => self.lock_answered(asked, &reply, turn),
            Request::Join(_) | Request::Refresh | Request::Ping { .. } | Request::Quiet => {}
        }
    }

    fn error(
        &mut self,
        frame::Error {
            request,
            code,
            text,
            retry,
            after_ms,
            current,
        }: frame::Error,
        turn: &mut Turn<'_>,
    ) {
        let refusal = Refusal::new(code, text, retry, after_ms);
        let Some(id) = request else { return };
        if self.phase.is_greeting_with(id) {
            return self.drop_connection(Cause::HelloRefused(refusal), turn);
        }
        let Some(request) = self.requests.close(id) else {
            return;
        };
        let error = Error::Refused(refusal.clone());
        match request {
            Request::Join(key) => self.join_refused(key, refusal, turn),
            Request::Publish(key) => self.publish_refused(key, id, refusal, current, turn),
            Request::Page(key) => self.page_failed(key, id, error, turn),
            Request::Lock(asked) => self.lock_failed(&asked, &error, turn),
            Request::Leave(key) => self.left_by_request(key, Err(error), turn),
            Request::Release { call, key, lock } if self.was_too_late(key, &error) => {
                self.release_lost(call, key, lock, turn);
            }
            // It is remembered, and the next join brings it.
            Request::SetPresence { call, key, .. }
            | Request::Watch { call, key, .. }
            | Request::Change { call, key }
                if self.was_too_late(key, &error) =>
            {
                turn.reply(call, Ok(Answer::Done));
            }
            Request::WatchState { call, key } | Request::WatchLocks { call, key }
                if self.was_too_late(key, &error) =>
            {
                turn.reply_all(call, &Ok(Answer::Done));
            }
            Request::Call { call, .. }
            | Request::Change { call, .. }
            | Request::Release { call, .. }
            | Request::Ping {
                call: Some(call), ..
            } => turn.reply(call, Err(error)),
            Request::WatchState { call, key } => {
                self.state_not_watched(call, key, id, &error, turn);
            }
            Request::WatchLocks { call, key } => {
                self.locks_not_watched(call, key, id, &error, turn);
            }
            Request::SetPresence { call, key, before } => {
                if let Some(room) = self.rooms.get_mut(&key) {
                    room.options.presence = before;
                }
                turn.reply(call, Err(error));
            }
            Request::Watch { call, key, before } => {
                if let Some(room) = self.rooms.get_mut(&key) {
                    room.options.watch = before;
                }
                turn.reply(call, Err(error));
            }
            Request::Refresh => self.token.forget(),
            Request::Ping { call: None, .. } | Request::Quiet => {}
        }
    }

    /// Gives up the requests that waited too long.
    fn expire_requests(&mut self, turn: &mut Turn<'_>) {
        while let Some((id, request)) = self.requests.close_expired(turn.at.now) {
            match request {
                Request::Join(key) => self.join_timed_out(key, turn),
                Request::Leave(key) => self.left_by_request(key, Err(Error::Timeout), turn),
                Request::Call { call, .. }
                | Request::SetPresence { call, .. }
                | Request::Watch { call, .. }
                | Request::Change { call, .. }
                | Request::Release { call, .. }
                | Request::Ping {
                    call: Some(call), ..
                } => turn.reply(call, Err(Error::Timeout)),
                Request::WatchState { call, key } => {
                    self.state_not_watched(call, key, id, &Error::Timeout, turn);
                }
                Request::WatchLocks { call, key } => {
                    self.locks_not_watched(call, key, id, &Error::Timeout, turn);
                }
                Request::Page(key) => self.page_failed(key, id, Error::Timeout, turn),
                Request::Lock(asked) => self.lock_failed(&asked, &Error::Timeout, turn),
                Request::Publish(_)
                | Request::Refresh
                | Request::Ping { call: None, .. }
                | Request::Quiet => {}
            }
        }
    }

    /// The sequence for a publish that is sent for the first time.
    const fn next_sequence(&mut self) -> Sequence {
        let sequence = Sequence(self.next_sequence);
        self.next_sequence += 1;
        sequence
    }
}

/// Longest resume token that `hello` takes, in bytes.
const RESUME_BYTES_MAX: usize = 1024;

impl Command {
    /// Who waits for it.
    const fn call(&self) -> Option<CallId> {
        match self {
            Self::Join { call, .. }
            | Self::Room { call, .. }
            | Self::RoundTrip(call)
            | Self::RawPublish { call, .. } => Some(*call),
            Self::Abandon(_)
            | Self::SignalUnconfirmed { .. }
            | Self::Cut
            | Self::Suspend
            | Self::Resume
            | Self::Close => None,
        }
    }
}

impl Expects {
    fn answer(self, reply: Reply) -> Result<Answer, Error> {
        match (self, reply) {
            (Self::Done, Reply::Done) => Ok(Answer::Done),
            (Self::Published, Reply::Published(published)) => Ok(Answer::Published(published)),
            (Self::Members, Reply::Members(page)) => Ok(Answer::Members(page)),
            (Self::History, Reply::History(page)) => Ok(Answer::History(page)),
            (Self::State, Reply::State(page)) => Ok(Answer::State(page)),
            (Self::Locks, Reply::Locks(page)) => Ok(Answer::Locks(page)),
            (Self::Timers, Reply::Timers(page)) => Ok(Answer::Timers(page)),
            (Self::Cursors, Reply::Cursors(cursors)) => Ok(Answer::Cursors(cursors)),
            _ => Err(Error::UnexpectedAnswer),
        }
    }
}
