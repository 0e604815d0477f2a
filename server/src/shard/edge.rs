//! The shard as edge: from a client's frame to a request, and from a reply to a frame.
//!
//! Every message of a connection comes in here. It is decoded and counted against the client's rates;
//! `hello`, `enter` and `ask` handle the frames, and what they refuse becomes an `error` here. A connection
//! that has too many requests with owners, or is silent for too long, is dealt with here too; what leaves is
//! written by `write`.

use std::collections::VecDeque;
use std::sync::Arc;

use roomful_protocol::codec::{DecodeError, DecodeErrorKind, Encoding};
use roomful_protocol::error::{CloseCode, ErrorCode, Retry};
use roomful_protocol::frame::{self, ClientFrame, Frames, Pong, Reply};
use roomful_protocol::id::{RequestId, RoomAlias, RoomName};
use roomful_protocol::limits::BATCH_FRAMES_MAX;
use roomful_protocol::websocket::OpCode;

use super::message::{ConnectionId, Message, Origin, Refusal, Request};
use super::{ConnectionTimer, Host, Shard, ShardSettings, Timer};
use crate::auth::Verb;
use crate::clock::Now;
use crate::connection::{Connection, Membership, Open, Outlet, Phase, held_bytes};
use crate::metrics::{Label as _, LimitedBy};
use crate::wire;

/// A request was refused: what its `error` says.
pub(super) type Outcome = Result<(), Refusal>;

impl Shard {
    pub(super) fn opened(
        &mut self,
        id: ConnectionId,
        encoding: Encoding,
        now: Now,
        host: &mut dyn Host,
    ) {
        let slot = id.slot as usize;
        if self.outlets.len() <= slot {
            self.outlets.resize_with(slot + 1, || None);
        }
        let connection = Connection::new(now.monotonic_ms, &self.settings.rates);
        self.outlets[slot] = Some(Outlet {
            id,
            encoding,
            staged: Vec::new(),
            outbox: None,
            connection: Box::new(connection),
        });
        self.counters.connections.add(1);
        self.counters.connections_opened.add(1);
        if self.goodbyes.is_some() {
            return self.close(id, CloseCode::Restart, now, host);
        }
        self.wheel.set(
            now.monotonic_ms + self.settings.hello_timeout_ms,
            Timer::Connection(ConnectionTimer::Hello, id),
        );
        self.wheel.set(
            now.monotonic_ms + self.settings.heartbeat_ms,
            Timer::Connection(ConnectionTimer::Heartbeat, id),
        );
    }

    /// The client lives. Noted once a second at most: a flood shall cost as little as possible.
    pub(super) fn heard(&mut self, id: ConnectionId, now: Now) {
        let pause_ms = HEARD_INTERVAL_MS.min(self.settings.heartbeat_ms / 4);
        if let Some(connection) = self.connection_mut(id)
            && now.monotonic_ms >= connection.heard_ms + pause_ms
        {
            connection.heard_ms = now.monotonic_ms;
            connection.pinged = false;
        }
    }

    /// A ping or a pong came: whether it may be answered. One too many ends the connection, since no client needs more.
    pub(super) fn take_control(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) -> bool {
        self.heard(id, now);
        let rates = self.settings.rates;
        let Some(connection) = self.connection_mut(id) else {
            return false;
        };
        let taken = connection
            .seldom(&rates, now.monotonic_ms)
            .control
            .take(rates.control, now.monotonic_ms)
            .is_ok();
        if !taken {
            self.counters.rate_limited.of(LimitedBy::Control).add(1);
            self.close(id, CloseCode::RateLimited, now, host);
        }
        taken
    }

    /// A whole message came: a frame, or something that is none.
    pub(super) fn message(
        &mut self,
        id: ConnectionId,
        text: bool,
        payload: &[u8],
        now: Now,
        host: &mut dyn Host,
    ) {
        self.heard(id, now);
        self.counters.messages_received.add(1);
        let settings = Arc::clone(&self.settings);
        let Some(Outlet {
            encoding,
            connection,
            ..
        }) = self.outlet_mut(id)
        else {
            return;
        };
        let encoding = *encoding;
        let limited = take_bytes(connection, payload.len(), &settings, now);
        if text != (encoding == Encoding::Json) {
            return self.close(id, CloseCode::UnsupportedData, now, host);
        }
        if let Some(bytes) = connection.unauthenticated_bytes() {
            *bytes += payload.len();
            if *bytes > settings.hello_bytes_max {
                return self.close(id, CloseCode::HelloTimeout, now, host);
            }
        }
        match encoding.decode_client(payload) {
            Ok(frame) => match limited {
                Ok(()) => self.frames(id, frame, now, host),
                Err((limit, after_ms)) => {
                    self.limit(id, frame.request(), limit, after_ms, now, host);
                }
            },
            Err(error) => self.bad_frame(id, error, now, host),
        }
    }

    pub(super) fn bad_frame(
        &mut self,
        id: ConnectionId,
        error: DecodeError,
        now: Now,
        host: &mut dyn Host,
    ) {
        let code = match error.kind {
            DecodeErrorKind::Malformed | DecodeErrorKind::TrailingBytes => ErrorCode::BadFrame,
            DecodeErrorKind::UnknownType => ErrorCode::UnknownType,
        };
        self.refuse(id, error.request, Refusal::new(code, error.text));
        self.spend_error(id, now, host);
    }

    /// Counts an error that no well-made client makes; the last one that is allowed ends the connection.
    pub(super) fn spend_error(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        let rates = self.settings.rates;
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        if connection
            .seldom(&rates, now.monotonic_ms)
            .errors
            .take(rates.errors, now.monotonic_ms)
            .is_err()
        {
            self.close(id, CloseCode::PolicyViolation, now, host);
        }
    }

    /// Handles a frame, or those of a batch as far as the connection may go on: the rest waits.
    fn frames(&mut self, id: ConnectionId, frame: ClientFrame, now: Now, host: &mut dyn Host) {
        let ClientFrame::ClientBatch(batch) = frame else {
            return self.frame(id, frame, now, host);
        };
        let Frames(frames) = batch.frames;
        let mut frames = VecDeque::from(frames);
        while let Some(frame) = frames.pop_front() {
            self.frame(id, frame, now, host);
            let Some(connection) = self.connection_mut(id) else {
                return;
            };
            if connection.pauses.any() && !frames.is_empty() {
                return self.hold_back(id, frames);
            }
        }
    }

    /// Keeps frames until their connection may go on.
    pub(super) fn hold_back(&mut self, id: ConnectionId, frames: VecDeque<ClientFrame>) {
        let bytes: usize = frames.iter().map(held_bytes).sum();
        if let Some(connection) = self.connection_mut(id).filter(|_| !frames.is_empty()) {
            connection.backlog = Some(Box::new(frames));
            self.counters.backlog_bytes.add(bytes as u64);
        }
    }

    /// A reason not to read a connection is gone: what waits of its last message is handled, and then it is read again.
    pub(super) fn go_on(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        while let Some(connection) = self.connection_mut(id) {
            if connection.pauses.any() {
                return;
            }
            let Some(backlog) = &mut connection.backlog else {
                return host.read_again(id);
            };
            let frame = backlog.pop_front();
            if backlog.is_empty() {
                connection.backlog = None;
            }
            if let Some(frame) = frame {
                let bytes = held_bytes(&frame) as u64;
                self.counters.backlog_bytes.sub(bytes);
                self.frame(id, frame, now, host);
            }
        }
    }

    /// Refuses a frame for which a limit leaves no room. A sender that goes on regardless is closed.
    fn limit(
        &mut self,
        id: ConnectionId,
        request: Option<RequestId>,
        limit: LimitedBy,
        after_ms: u64,
        now: Now,
        host: &mut dyn Host,
    ) {
        let refusal = self.limited(limit, after_ms);
        self.refuse(id, request, refusal);
        self.spend_refusal(id, now, host);
    }

    /// Counts that a limit was met, and says so.
    pub(super) fn limited(&self, limit: LimitedBy, after_ms: u64) -> Refusal {
        self.counters.rate_limited.of(limit).add(1);
        let text = format!("too many {}; slow down", limit.text().replace('_', " "));
        Refusal::later(ErrorCode::RateLimited, text, after_ms)
    }

    /// Counts a refusal that a client which heeds it rarely gets; the last one that is allowed ends the connection.
    fn spend_refusal(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        let rates = self.settings.rates;
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        if connection
            .seldom(&rates, now.monotonic_ms)
            .refusals
            .take(rates.refusals, now.monotonic_ms)
            .is_err()
        {
            self.close(id, CloseCode::RateLimited, now, host);
        }
    }

    /// Handles one frame.
    pub(super) fn frame(
        &mut self,
        id: ConnectionId,
        frame: ClientFrame,
        now: Now,
        host: &mut dyn Host,
    ) {
        let settings = Arc::clone(&self.settings);
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        if let Err((limit, after_ms)) = take_message(connection, &settings, now) {
            return self.limit(id, frame.request(), limit, after_ms, now, host);
        }
        match (&mut connection.phase, frame) {
            (Phase::Hello { bytes }, ClientFrame::Hello(hello)) => {
                let bytes = *bytes;
                self.hello(id, bytes, hello, now, host);
            }
            (Phase::Hello { .. }, frame) => {
                let refusal = Refusal::new(ErrorCode::BadState, "say hello first");
                self.refuse(id, frame.request(), refusal);
                self.spend_error(id, now, host);
            }
            (Phase::Authenticating { said }, frame) if said.waiting.len() < BATCH_FRAMES_MAX => {
                let bytes = held_bytes(&frame) as u64;
                said.waiting.push(frame);
                self.counters.backlog_bytes.add(bytes);
            }
            (Phase::Authenticating { .. }, _) => self.close(id, CloseCode::HelloTimeout, now, host),
            (Phase::Open(_), frame) => self.request(id, frame, now, host),
        }
    }

    pub(super) fn request(
        &mut self,
        id: ConnectionId,
        frame: ClientFrame,
        now: Now,
        host: &mut dyn Host,
    ) {
        let request = frame.request();
        let outcome = match frame {
            ClientFrame::Hello(_) => {
                Err(Refusal::new(ErrorCode::BadState, "hello was said already"))
            }
            ClientFrame::Join(join) => self.ask_join(id, *join, now, host),
            ClientFrame::Leave(leave) => self.ask_leave(id, leave.request, leave.room, host),
            ClientFrame::Publish(publish) => self.ask_publish(id, publish, host),
            ClientFrame::Signal(signal) => self.ask_signal(id, signal, host),
            ClientFrame::Presence(presence) => self.ask_presence(id, presence, now, host),
            ClientFrame::History(history) => self.ask_history(id, &history, now, host),
            ClientFrame::Refresh(refresh) => self.ask_refresh(id, &refresh, host),
            ClientFrame::Ping(ping) => {
                self.stage(
                    id,
                    &Pong {
                        request: ping.request,
                        time_ms: now.unix_ms,
                    }
                    .into(),
                );
                Ok(())
            }
            ClientFrame::State(state) => self.ask_state(id, state, now, host),
            ClientFrame::Lock(lock) => self.ask_lock(id, lock, now, host),
            ClientFrame::Timer(timer) => self.ask_timer(id, timer, now, host),
            ClientFrame::Cursor(cursor) => self.ask_cursor(id, &cursor, now, host),
            ClientFrame::ClientBatch(_) => Ok(()),
        };
        if let Err(refusal) = outcome {
            let limited = refusal.code == ErrorCode::RateLimited;
            self.refuse(id, request, refusal);
            if limited {
                self.spend_refusal(id, now, host);
            }
        }
    }

    /// The end of a request.
    pub(super) fn replied(
        &mut self,
        to: Origin,
        outcome: Result<Reply, Refusal>,
        now: Now,
        host: &mut dyn Host,
    ) {
        match (outcome, to.request) {
            (Ok(reply), Some(request)) => {
                self.stage(to.connection, &frame::Ok { request, reply }.into());
            }
            (Ok(_), None) => {}
            (Err(refusal), request) => self.refuse(to.connection, request, refusal),
        }
        self.returned(to.connection, now, host);
    }

    pub(super) fn refuse(
        &mut self,
        id: ConnectionId,
        request: Option<RequestId>,
        refusal: Refusal,
    ) {
        self.counters.messages_rejected.add(1);
        self.counters.errors.of(refusal.code).add(1);
        let retry = if refusal.after_ms.is_some() {
            Retry::After
        } else {
            refusal.code.retry()
        };
        let frame = frame::Error {
            request,
            code: refusal.code.into(),
            text: refusal.text,
            retry,
            after_ms: refusal.after_ms,
            current: refusal.current,
        };
        self.stage(id, &frame.into());
    }

    pub(super) fn ask(
        &mut self,
        id: ConnectionId,
        room: RoomAlias,
        request: Request,
        host: &mut dyn Host,
    ) {
        if let Some(home) = self.hubs.get(&room).map(|hub| hub.home) {
            if request.reply_to().is_some() {
                self.sent(id);
            }
            self.send(home, Message::Request { room, request }, host);
        }
    }

    /// A request went to an owner; with too many out, the connection is not read until some are back.
    pub(super) fn sent(&mut self, id: ConnectionId) {
        let max = self.terms(id).requests_max;
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        connection.in_flight += 1;
        connection.pauses.requests |= connection.in_flight >= max;
    }

    pub(super) fn returned(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        let max = self.terms(id).requests_max;
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        connection.in_flight = connection.in_flight.saturating_sub(1);
        let pauses = &mut connection.pauses;
        let few = pauses.requests && connection.in_flight <= max / 2;
        let page = pauses.page && connection.in_flight == 0;
        if few || page {
            pauses.requests &= !few;
            pauses.page &= !page;
            if page {
                self.counters.pages_awaited.sub(1);
            }
            self.go_on(id, now, host);
        }
    }

    /// The connection's membership in a room, if its grants allow what it wants there.
    pub(super) fn member(
        &self,
        id: ConnectionId,
        room: RoomAlias,
        verb: Option<Verb>,
    ) -> Result<Membership, Refusal> {
        let open = self
            .connection(id)
            .and_then(Connection::open)
            .ok_or_else(|| not_joined(room))?;
        let membership = *open.membership(room).ok_or_else(|| not_joined(room))?;
        if let (Some(verb), Some(hub)) = (verb, self.hubs.get(&room)) {
            allowed(open, &hub.room.name, verb)?;
        }
        Ok(membership)
    }

    pub(super) fn origin(&self, connection: ConnectionId, request: Option<RequestId>) -> Origin {
        Origin {
            shard: self.id,
            connection,
            request,
        }
    }

    pub(super) fn heartbeat(&mut self, id: ConnectionId, now: Now, host: &mut dyn Host) {
        let heartbeat_ms = self.terms(id).heartbeat_ms;
        let Some(connection) = self.connection_mut(id) else {
            return;
        };
        if connection.pauses.replies {
            // It is not read, so it may well have said something.
            connection.heard_ms = now.monotonic_ms;
        }
        let silent_ms = now.monotonic_ms.saturating_sub(connection.heard_ms);
        if silent_ms >= 2 * heartbeat_ms {
            return self.close(id, CloseCode::HeartbeatTimeout, now, host);
        }
        let ask = silent_ms >= heartbeat_ms && !connection.pinged;
        connection.pinged |= ask;
        let patience_ms = if silent_ms >= heartbeat_ms {
            2 * heartbeat_ms
        } else {
            heartbeat_ms
        };
        let due_ms = connection.heard_ms + patience_ms;
        self.wheel
            .set(due_ms, Timer::Connection(ConnectionTimer::Heartbeat, id));
        if ask {
            self.stage_bytes(id, &wire::control(OpCode::Ping, &[]));
        }
    }
}

type Limited = Result<(), (LimitedBy, u64)>;

/// Takes a message's bytes from what the connection and its user may send.
fn take_bytes(
    connection: &mut Connection,
    bytes: usize,
    settings: &ShardSettings,
    now: Now,
) -> Limited {
    let now_ms = now.monotonic_ms;
    let taken = connection.bytes.borrow(bytes, settings.rates.bytes, now_ms);
    taken.map_err(|after_ms| (LimitedBy::Bytes, after_ms))?;
    let held = connection.open().and_then(|open| open.held.as_ref());
    held.map_or(Ok(()), |held| {
        held.take_bytes(bytes, &settings.user, now_ms)
    })
    .map_err(|after_ms| (LimitedBy::UserBytes, after_ms))
}

/// Takes a message from what the connection and its user may send.
fn take_message(connection: &mut Connection, settings: &ShardSettings, now: Now) -> Limited {
    let now_ms = now.monotonic_ms;
    let taken = connection.messages.take(settings.rates.messages, now_ms);
    taken.map_err(|after_ms| (LimitedBy::Messages, after_ms))?;
    let held = connection.open().and_then(|open| open.held.as_ref());
    held.map_or(Ok(()), |held| held.take_message(&settings.user, now_ms))
        .map_err(|after_ms| (LimitedBy::UserMessages, after_ms))
}

/// Least time between two notes that a client lives, in milliseconds.
const HEARD_INTERVAL_MS: u64 = 1_000;

pub(super) fn allowed(open: &Open, room: &RoomName, verb: Verb) -> Outcome {
    if open.identity.grants.allows(room, verb) {
        return Ok(());
    }
    Err(Refusal::new(
        ErrorCode::Forbidden,
        format!("no grant allows {} here", verb.name()),
    ))
}

pub(super) fn not_joined(room: RoomAlias) -> Refusal {
    Refusal::new(
        ErrorCode::NotJoined,
        format!("this connection is in no room {room}; join first"),
    )
}
