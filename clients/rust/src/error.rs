//! What can go wrong, and what to do about it.

use std::time::Duration;

use roomful_protocol::error::{ErrorCode, Retry, WireErrorCode};
use roomful_protocol::frame::StateItem;
use roomful_protocol::payload::PayloadError;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The server answered with an error. Its retry class says what helps.
    #[error("the server refused: {0}")]
    Refused(Refusal),
    /// A condition of a write doesn't hold; nothing was changed. The keys it concerns, as they are.
    #[error("a condition does not hold: {refusal}")]
    Conflict {
        /// What the server said.
        refusal: Refusal,
        /// The keys as they are.
        current: Vec<StateItem>,
    },
    /// The lock was released while it was waited for.
    #[error("the lock was released while it was waited for")]
    LockReleased,
    /// A publish was sent, its answer got lost, and the server no longer knows its op id: it may or may not be in the log. Look into the
    /// history before publishing it again.
    #[error("whether the publish took effect is not known")]
    OutcomeUnknown,
    /// The call only makes sense on a living connection, and there is none. Try again when [`crate::Client::state`] says so.
    #[error("not connected")]
    NotConnected,
    /// The connection ended before the answer came. Reads can be repeated; a signal may or may not have arrived.
    #[error("the connection ended before the answer came")]
    ConnectionLost,
    /// The server didn't answer in time.
    #[error("no answer within the request timeout")]
    Timeout,
    /// Too many publishes wait for their acknowledgement. Nothing was queued; wait for some of them.
    #[error("{count} publishes with {bytes} bytes wait already; the bounds are in Options")]
    QueueFull {
        /// Publishes waiting.
        count: usize,
        /// Bytes of payload waiting.
        bytes: usize,
    },
    /// The room was left, by [`crate::Room::leave`] or by the server. Join it again for a new membership.
    #[error("not a member of the room any more")]
    NotJoined,
    /// This client is in the room already; use the handle that exists.
    #[error("this client has joined the room already")]
    AlreadyJoined,
    /// The payload isn't what its format says. Nothing was sent.
    #[error("the payload is not what its format says")]
    Payload(#[source] PayloadError),
    /// The payload doesn't fit into what the server accepts in one message. Nothing was sent.
    #[error("the payload has {got} bytes; the server takes {max}")]
    PayloadTooLarge {
        /// Bytes of the payload.
        got: usize,
        /// Bytes that the server takes, in a payload or in its whole message.
        max: usize,
    },
    /// The server's answer is none to this kind of request: one of the two breaks the protocol.
    #[error("the server's answer does not fit the request")]
    UnexpectedAnswer,
    /// The first attempt to connect failed. [`crate::Client::start`] goes on trying instead.
    #[error("cannot connect: {0}")]
    CannotConnect(String),
    /// The address is not one.
    #[error("the address must be ws://HOST:PORT, with or without a path: {0}")]
    Address(String),
    /// The client is closed for good, and why.
    #[error("the client is closed: {0}")]
    Closed(CloseReason),
}

impl Error {
    /// The server's error code, where the server said no.
    #[must_use]
    pub fn code(&self) -> Option<WireErrorCode> {
        match self {
            Self::Refused(refusal) | Self::Conflict { refusal, .. } => Some(refusal.code),
            Self::OutcomeUnknown => Some(ErrorCode::OpIdExpired.into()),
            _ => None,
        }
    }
}

/// An error that the server sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {text}")]
pub struct Refusal {
    /// Which error.
    pub code: WireErrorCode,
    /// One sentence for people.
    pub text: String,
    /// What helps.
    pub retry: Retry,
    /// How long to wait first, where the server said so.
    pub after: Option<Duration>,
}

/// Why a client is closed for good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// [`crate::Client::close`] was called, or every handle dropped.
    #[error("by the application")]
    ByApplication,
    /// The server closed with a code that forbids coming back, for example because another connection took the session over.
    #[error("the server closed with {code} {reason}")]
    ByServer {
        /// The WebSocket close code.
        code: u16,
        /// Its text.
        reason: String,
    },
    /// The token was refused, and the token source had no better one. Sign in again and make a new client.
    #[error("the token was refused: {0}")]
    NotAuthenticated(String),
    /// The server refused the `hello`, and says that asking again won't help.
    #[error("the server refused the session: {0}")]
    HelloRefused(Refusal),
}
