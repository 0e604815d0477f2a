//! The connection of a machine: from the token over `hello` to the heartbeat, its end, and what comes after that.

use std::fmt;
use std::time::Duration;

use roomful_protocol::codec::Encoding;
use roomful_protocol::error::{CloseCode, ErrorCode, Retry};
use roomful_protocol::frame::{ClientFrame, Goaway, Hello, Ping, Pong, Refresh, Welcome};
use roomful_protocol::id::RequestId;
use roomful_protocol::limits::TOKEN_BYTES_MAX;
use roomful_protocol::payload::{Payload, PayloadFormat};
use roomful_protocol::text::Text;

use super::requests::Request;
use super::step::{Answer, CallId, ConnectionState, Identity, Output};
use super::{Machine, Turn};
use crate::error::{CloseReason, Error, Refusal};

/// Where the connection stands; each holds what exists then.
#[derive(Debug)]
pub(super) enum Phase {
    /// Not wanted.
    Suspended,
    /// The token source was asked.
    FetchingToken { until: Duration },
    /// A socket is being opened.
    Opening { until: Duration },
    /// `hello` is sent, and the joins behind it.
    Greeting { hello: RequestId, until: Duration },
    /// `welcome` came.
    Open(Open),
    /// The next attempt waits for its time.
    Waiting { until: Duration },
    /// For good.
    Closed(CloseReason),
}

/// A living connection.
#[derive(Debug)]
pub(super) struct Open {
    since: Duration,
    heartbeat: Duration,
    /// When something last went out, and came in.
    sent: Duration,
    heard: Duration,
    /// When to ask the token source again, after it failed.
    renew_at: Option<Duration>,
    /// Whether the next token is to be sent as `refresh`.
    renewing: bool,
}

/// The token, and what is known about it.
#[derive(Debug, Default)]
pub(super) struct Token {
    text: Option<Text<TOKEN_BYTES_MAX>>,
    /// Fetched for this very attempt: if it is refused, another one won't be better.
    fresh: bool,
}

impl Token {
    /// It is refused, or will be soon.
    pub(super) fn forget(&mut self) {
        self.text = None;
    }
}

/// Why a connection ended, or an attempt failed.
#[derive(Debug)]
pub(super) enum Cause {
    Network(String),
    NotOpened {
        text: String,
        after: Option<Duration>,
    },
    Token(String),
    Timeout(&'static str),
    /// Nothing came for two heartbeats.
    Silence,
    /// The server left a hole in the order of events; coming back with the last position fills it, and a quick resume hides it from the others.
    Gap,
    HelloRefused(Refusal),
    Closed {
        code: u16,
        reason: String,
    },
}

impl Phase {
    pub(super) fn is_greeting_with(&self, request: RequestId) -> bool {
        matches!(self, Self::Greeting { hello, .. } if *hello == request)
    }
}

impl Machine {
    /// Whether requests can be sent.
    pub(super) const fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    /// Whether joins can be sent: they may follow `hello` without waiting.
    pub(super) const fn is_greeted(&self) -> bool {
        matches!(self.phase, Phase::Open(_) | Phase::Greeting { .. })
    }

    pub(super) fn come_back(&mut self, turn: &mut Turn<'_>) {
        if matches!(self.phase, Phase::Suspended | Phase::Waiting { .. }) {
            self.begin(turn);
        }
    }

    pub(super) fn suspend(&mut self, turn: &mut Turn<'_>) {
        self.abort(turn);
        self.forget_connection(turn);
        self.phase = Phase::Suspended;
        turn.state(ConnectionState::Suspended);
    }

    /// Leaves every room and says goodbye.
    pub(super) fn close(&mut self, turn: &mut Turn<'_>) {
        if self.is_open() {
            self.leave_all(turn);
            turn.out.push(Output::Close);
        } else {
            self.abort(turn);
        }
        self.close_for_good(CloseReason::ByApplication, turn);
    }

    fn begin(&mut self, turn: &mut Turn<'_>) {
        turn.state(ConnectionState::Connecting);
        self.token.fresh = false;
        if self.config.has_token_source && self.token.text.is_none() {
            self.phase = Phase::FetchingToken {
                until: turn.at.now + self.config.connect_timeout,
            };
            turn.out.push(Output::FetchToken);
        } else {
            self.open(turn);
        }
    }

    fn open(&mut self, turn: &mut Turn<'_>) {
        self.phase = Phase::Opening {
            until: turn.at.now + self.config.connect_timeout,
        };
        turn.out.push(Output::Open);
    }

    pub(super) fn token_arrived(
        &mut self,
        outcome: Result<Text<TOKEN_BYTES_MAX>, String>,
        turn: &mut Turn<'_>,
    ) {
        match (&mut self.phase, outcome) {
            (Phase::FetchingToken { .. }, Ok(text)) => {
                self.token = Token {
                    text: Some(text),
                    fresh: true,
                };
                self.open(turn);
            }
            (Phase::FetchingToken { .. }, Err(text)) => self.lost(Cause::Token(text), turn),
            (Phase::Open(open), Ok(text)) => {
                self.token.text = Some(text.clone());
                if std::mem::take(&mut open.renewing) {
                    self.request(Request::Refresh, turn, |request| {
                        Refresh {
                            request,
                            token: text,
                        }
                        .into()
                    });
                }
            }
            (Phase::Open(open), Err(_)) if open.renewing => {
                open.renew_at = Some(turn.at.now + RENEW_AGAIN);
            }
            (_, Ok(text)) => self.token.text = Some(text),
            (_, Err(_)) => {}
        }
    }

    pub(super) fn opened(&mut self, turn: &mut Turn<'_>) {
        if !matches!(self.phase, Phase::Opening { .. }) {
            return;
        }
        let hello = Hello {
            request: self.requests.number(),
            token: self.token.text.clone(),
            resume: self.resume.clone(),
            agent: self
                .config
                .agent
                .as_deref()
                .and_then(|text| Text::new(text).ok()),
        };
        self.phase = Phase::Greeting {
            hello: hello.request,
            until: turn.at.now + self.config.request_timeout,
        };
        self.send(hello.into(), turn);
        self.join_all(turn);
    }

    pub(super) fn welcome(&mut self, welcome: Welcome, turn: &mut Turn<'_>) {
        if !self.phase.is_greeting_with(welcome.request) {
            return;
        }
        let now = turn.at.now;
        self.phase = Phase::Open(Open {
            since: now,
            heartbeat: Duration::from_millis(welcome.heartbeat_ms).max(HEARTBEAT_MIN),
            sent: now,
            heard: now,
            renew_at: None,
            renewing: false,
        });
        self.resume = Text::new(&welcome.resume).ok();
        self.limits = Some(welcome.limits);
        self.reconnect_after = None;
        let Welcome {
            user,
            session,
            resumed,
            ..
        } = welcome;
        turn.out.push(Output::Identity(Identity {
            user,
            session,
            resumed,
        }));
        turn.state(ConnectionState::Connected);
        // A server may answer a pipelined join before `welcome`; its publishes waited for the limits.
        self.pump(turn);
    }

    pub(super) fn goaway(&mut self, goaway: &Goaway) {
        self.reconnect_after = Some(Duration::from_millis(goaway.reconnect_after_ms));
        self.resume = Text::new(&goaway.resume).ok();
    }

    /// Asks for a token that will replace the present one on the living connection.
    pub(super) fn renew_token(&mut self, turn: &mut Turn<'_>) {
        self.token.forget();
        let Phase::Open(open) = &mut self.phase else {
            return;
        };
        if self.config.has_token_source {
            open.renewing = true;
            open.renew_at = None;
            turn.out.push(Output::FetchToken);
        }
    }

    pub(super) fn heard(&mut self, now: Duration) {
        if let Phase::Open(open) = &mut self.phase {
            open.heard = now;
        }
    }

    pub(super) fn round_trip(&mut self, call: CallId, turn: &mut Turn<'_>) {
        if !self.is_open() {
            return turn.reply(call, Err(Error::NotConnected));
        }
        self.ping(Some(call), turn);
    }

    fn ping(&mut self, call: Option<CallId>, turn: &mut Turn<'_>) {
        let request = Request::Ping {
            sent: turn.at.now,
            call,
        };
        self.request(request, turn, |request| Ping { request }.into());
    }

    pub(super) fn pong(&mut self, pong: &Pong, turn: &mut Turn<'_>) {
        if let Some(Request::Ping {
            sent,
            call: Some(call),
        }) = self.requests.close(pong.request)
        {
            turn.reply(
                call,
                Ok(Answer::RoundTrip(turn.at.now.saturating_sub(sent))),
            );
        }
    }

    pub(super) fn tick(&mut self, turn: &mut Turn<'_>) {
        let now = turn.at.now;
        self.tick_claims(turn);
        match &mut self.phase {
            Phase::FetchingToken { until } if *until <= now => {
                self.lost(Cause::Timeout("the token source"), turn);
            }
            Phase::Opening { until } if *until <= now => {
                self.drop_connection(Cause::Timeout("the server"), turn);
            }
            Phase::Greeting { until, .. } if *until <= now => {
                self.drop_connection(Cause::Timeout("the session"), turn);
            }
            Phase::Waiting { until } if *until <= now => self.begin(turn),
            Phase::Open(open) if self.reading && open.heard + 2 * open.heartbeat <= now => {
                self.drop_connection(Cause::Silence, turn);
            }
            Phase::Open(_) => self.tick_open(turn),
            _ => {}
        }
    }

    fn tick_open(&mut self, turn: &mut Turn<'_>) {
        let Phase::Open(open) = &mut self.phase else {
            return;
        };
        let now = turn.at.now;
        let quiet = open.sent + open.heartbeat <= now;
        if open.renew_at.is_some_and(|at| at <= now) {
            self.renew_token(turn);
        }
        if quiet {
            self.ping(None, turn);
        }
        self.expire_requests(turn);
        self.tick_rooms(turn);
    }

    pub(super) fn connection_deadline(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Suspended | Phase::Closed(_) => None,
            Phase::FetchingToken { until }
            | Phase::Opening { until }
            | Phase::Greeting { until, .. }
            | Phase::Waiting { until } => Some(*until),
            Phase::Open(open) => {
                let silence = self.reading.then_some(open.heard + 2 * open.heartbeat);
                let ping = open.sent + open.heartbeat;
                silence.into_iter().chain(open.renew_at).chain([ping]).min()
            }
        }
    }

    /// Ends the connection from this side.
    pub(super) fn drop_connection(&mut self, cause: Cause, turn: &mut Turn<'_>) {
        self.abort(turn);
        self.lost(cause, turn);
    }

    fn abort(&self, turn: &mut Turn<'_>) {
        if matches!(
            self.phase,
            Phase::Opening { .. } | Phase::Greeting { .. } | Phase::Open(_)
        ) {
            turn.out.push(Output::Abort);
        }
    }

    /// The connection is gone, or was never made: back to waiting, or the end.
    pub(super) fn lost(&mut self, cause: Cause, turn: &mut Turn<'_>) {
        if matches!(
            self.phase,
            Phase::Suspended | Phase::Waiting { .. } | Phase::Closed(_)
        ) {
            return;
        }
        if matches!(&self.phase, Phase::Open(open) if turn.at.now >= open.since + STABLE) {
            self.backoff.reset();
        }
        self.forget_connection(turn);
        let text = cause.to_string();
        match self.verdict(cause, turn.at.random) {
            Ok(delay) => {
                self.phase = Phase::Waiting {
                    until: turn.at.now + delay,
                };
                turn.state(ConnectionState::Waiting {
                    retry_in: delay,
                    cause: text,
                });
            }
            Err(reason) => self.close_for_good(reason, turn),
        }
    }

    /// How long to wait before the next attempt, or why there is none.
    fn verdict(&mut self, cause: Cause, random: u64) -> Result<Duration, CloseReason> {
        let hint = self.reconnect_after.take();
        if ends_the_session(&cause) {
            self.resume = None;
        }
        match cause {
            Cause::NotOpened { after, .. } => Ok(self.backoff.next_more(after, random)),
            // A server that says goodbye may be gone before its close frame is.
            Cause::Network(_) => Ok(self.backoff.next_more(hint, random)),
            Cause::Timeout(_) | Cause::Token(_) => Ok(self.backoff.next(random)),
            Cause::Silence | Cause::Gap => Ok(self.backoff.next_after_now(random)),
            Cause::HelloRefused(refusal) => {
                let text = refusal.text.clone();
                let never = CloseReason::HelloRefused(refusal.clone());
                self.follow(Some(refusal.retry), refusal.after, random, never, text)
            }
            Cause::Closed { code, reason } => {
                let retry = CloseCode::from_code(code).map(CloseCode::retry);
                let never = CloseReason::ByServer {
                    code,
                    reason: reason.clone(),
                };
                self.follow(retry, hint, random, never, reason)
            }
        }
    }

    fn follow(
        &mut self,
        retry: Option<Retry>,
        after: Option<Duration>,
        random: u64,
        never: CloseReason,
        text: String,
    ) -> Result<Duration, CloseReason> {
        match retry {
            Some(Retry::Never) => Err(never),
            Some(Retry::Now) => Ok(self.backoff.next_after_now(random)),
            Some(Retry::Refresh) if !self.config.has_token_source || self.token.fresh => {
                Err(CloseReason::NotAuthenticated(text))
            }
            Some(Retry::Refresh) => {
                self.token.forget();
                Ok(self.backoff.next_after_now(random))
            }
            Some(Retry::After) | None => Ok(self.backoff.next_more(after, random)),
        }
    }

    /// Ends what belonged to the connection: its requests and its aliases. Publishes go back to their queue.
    fn forget_connection(&mut self, turn: &mut Turn<'_>) {
        let (mut leaving, mut released) = (Vec::new(), Vec::new());
        for request in self.requests.close_all() {
            match request {
                Request::Call { call, .. }
                | Request::Ping {
                    call: Some(call), ..
                } => {
                    turn.reply(call, Err(Error::ConnectionLost));
                }
                // The value is remembered, and the next join brings it.
                Request::SetPresence { call, .. }
                | Request::Watch { call, .. }
                | Request::Change { call, .. }
                | Request::WatchState {
                    call: Some(call), ..
                }
                | Request::WatchLocks {
                    call: Some(call), ..
                } => {
                    turn.reply(call, Ok(Answer::Done));
                }
                Request::Release { call, key, lock } => released.push((call, key, lock)),
                Request::Leave(key) => leaving.push(key),
                // The next join asks for these again.
                Request::Join(_)
                | Request::Publish(_)
                | Request::Page(_)
                | Request::Lock(_)
                | Request::WatchState { call: None, .. }
                | Request::WatchLocks { call: None, .. }
                | Request::Refresh
                | Request::Ping { call: None, .. }
                | Request::Quiet => {}
            }
        }
        for key in leaving {
            self.left_by_request(key, Ok(Answer::Done), turn);
        }
        self.memberships_lost(turn);
        for (call, key, lock) in released {
            self.release_lost(call, key, lock, turn);
        }
    }

    fn close_for_good(&mut self, reason: CloseReason, turn: &mut Turn<'_>) {
        let error = Error::Closed(reason.clone());
        for request in self.requests.close_all() {
            let call = match request {
                Request::Call { call, .. }
                | Request::SetPresence { call, .. }
                | Request::Watch { call, .. }
                | Request::Change { call, .. }
                | Request::WatchState {
                    call: Some(call), ..
                }
                | Request::WatchLocks {
                    call: Some(call), ..
                }
                | Request::Release { call, .. }
                | Request::Ping {
                    call: Some(call), ..
                } => Some(call),
                Request::Join(_)
                | Request::Leave(_)
                | Request::Publish(_)
                | Request::Page(_)
                | Request::Lock(_)
                | Request::WatchState { call: None, .. }
                | Request::WatchLocks { call: None, .. }
                | Request::Refresh
                | Request::Ping { call: None, .. }
                | Request::Quiet => None,
            };
            if let Some(call) = call {
                turn.reply(call, Err(error.clone()));
            }
        }
        self.end_all(&error, turn);
        self.phase = Phase::Closed(reason.clone());
        turn.state(ConnectionState::Closed(reason));
    }

    /// Sends a request and remembers it.
    pub(super) fn request(
        &mut self,
        request: Request,
        turn: &mut Turn<'_>,
        frame: impl FnOnce(RequestId) -> ClientFrame,
    ) -> RequestId {
        let id = self
            .requests
            .open(request, turn.at.now + self.config.request_timeout);
        self.send(frame(id), turn);
        id
    }

    pub(super) fn send(&mut self, frame: ClientFrame, turn: &mut Turn<'_>) {
        if let Phase::Open(open) = &mut self.phase {
            open.sent = turn.at.now;
        }
        turn.out.push(Output::Send(frame));
    }

    /// Whether a payload is within the server's limits. A longer message would close the connection for good, so it is stopped here.
    pub(super) fn check_size(&self, payload: &Payload) -> Result<(), Error> {
        let Some(limits) = &self.limits else {
            return Ok(());
        };
        let got = payload.bytes.len();
        let payload_max = usize::try_from(limits.payload_bytes_max).unwrap_or(usize::MAX);
        if got > payload_max {
            return Err(Error::PayloadTooLarge {
                got,
                max: payload_max,
            });
        }
        let message_max = usize::try_from(limits.message_bytes_max).unwrap_or(usize::MAX);
        if encoded_bytes(self.config.encoding, payload) + ENVELOPE_BYTES > message_max {
            return Err(Error::PayloadTooLarge {
                got,
                max: message_max,
            });
        }
        Ok(())
    }
}

/// How long a payload is once it is written.
fn encoded_bytes(encoding: Encoding, payload: &Payload) -> usize {
    match (encoding, payload.format) {
        (Encoding::MessagePack, _) | (Encoding::Json, PayloadFormat::Json) => payload.bytes.len(),
        (Encoding::Json, PayloadFormat::Binary | PayloadFormat::MessagePack) => {
            payload.bytes.len().div_ceil(3) * 4
        }
        (Encoding::Json, PayloadFormat::Text) => {
            payload.bytes.iter().map(|byte| escaped_bytes(*byte)).sum()
        }
    }
}

/// How long a byte of a text is inside a JSON string (RFC 8259 §7).
const fn escaped_bytes(byte: u8) -> usize {
    match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..=0x1f => 6,
        _ => 1,
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(text) | Self::NotOpened { text, .. } => f.write_str(text),
            Self::Token(text) => write!(f, "the token source failed: {text}"),
            Self::Timeout(what) => write!(f, "{what} didn't answer in time"),
            Self::Silence => f.write_str("nothing was heard for two heartbeats"),
            Self::Gap => f.write_str("the server left a gap in the order of events"),
            Self::HelloRefused(refusal) => write!(f, "the server refused the session: {refusal}"),
            Self::Closed { code, reason } => write!(f, "the server closed with {code} {reason}"),
        }
    }
}

/// A connection that lived this long was a success: the next delay starts small again. A server that takes clients in and throws them out at once must
/// not be met by a crowd that comes back without pause.
const STABLE: Duration = Duration::from_secs(5);

/// How soon a token source that failed is asked again while the old token still works.
const RENEW_AGAIN: Duration = Duration::from_secs(5);

/// Against a server that announces a heartbeat of nothing.
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);

/// More than a frame needs around its payload, with a signal's key of 64 bytes, or a join's room name of 255.
const ENVELOPE_BYTES: usize = 512;

/// Whether the session is over, so that its resume token would only be refused.
fn ends_the_session(cause: &Cause) -> bool {
    match cause {
        Cause::HelloRefused(refusal) => refusal.code == ErrorCode::Revoked.into(),
        Cause::Closed { code, .. } => *code == CloseCode::Revoked.code(),
        _ => false,
    }
}
