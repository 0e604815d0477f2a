//! The catalogues of errors and close codes: number, name, and what a client does next.
//!
//! One table each, here and nowhere else; `SPEC.md` prints them and a test compares the two.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::frame::wire_enum;

wire_enum! {
    /// What a client does after an error or a close.
    pub Retry {
        /// The same request will fail again; do not repeat it.
        Never = 0 "never",
        /// Repeat at once (once; then with back-off).
        Now = 1 "now",
        /// Repeat after the milliseconds that stand beside it, or with back-off where none stand there.
        After = 2 "after_ms",
        /// Get a fresh token first, then repeat.
        Refresh = 3 "refresh",
    }
}

macro_rules! catalogue {
    (
        $(#[$meta:meta])* $name:ident
        $( $(#[$vmeta:meta])* $variant:ident = $code:literal, $text:literal, $retry:ident; )*
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum $name { $( $(#[$vmeta])* $variant = $code, )* }

        impl $name {
            /// Every row of the catalogue, in its order.
            pub const ALL: &[Self] = &[$( Self::$variant, )*];

            /// The number on the wire.
            #[must_use]
            pub const fn code(self) -> u16 {
                self as u16
            }

            /// The stable short name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $text, )* }
            }

            /// What the client does next, unless the message says otherwise.
            #[must_use]
            pub const fn retry(self) -> Retry {
                match self { $( Self::$variant => Retry::$retry, )* }
            }

            /// The row of a number.
            #[must_use]
            pub fn from_code(code: u16) -> Option<Self> {
                Self::ALL.iter().copied().find(|row| row.code() == code)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} {}", self.code(), self.name())
            }
        }
    };
}

catalogue! {
    /// Why a request failed (`error`), or why a membership ended (`left`).
    ErrorCode
    /// The message is not a frame: wrong syntax, type, length or nesting, a missing field, or trailing bytes.
    BadFrame = 100, "bad_frame", Never;
    /// The first element is no frame type of this direction.
    UnknownType = 101, "unknown_type", Never;
    /// The frame is not allowed now: anything but `hello` first, or a second `hello`.
    BadState = 102, "bad_state", Never;
    /// The payload is not what its tag says.
    BadPayload = 103, "bad_payload", Never;
    /// The payload, or a presence value, is longer than the limit.
    PayloadTooLarge = 104, "payload_too_large", Never;
    /// A field's value is outside its range.
    BadValue = 105, "bad_value", Never;
    /// The token is missing, malformed, of an unknown key, of another audience or issuer, or its signature is wrong.
    InvalidToken = 200, "invalid_token", Refresh;
    /// The token was good and has expired.
    TokenExpired = 201, "token_expired", Refresh;
    /// The token names another user or tenant than the connection's.
    TokenMismatch = 202, "token_mismatch", Never;
    /// No grant allows this here. The same answer whether the room exists or not.
    Forbidden = 203, "forbidden", Never;
    /// The user, the session or the token was revoked.
    Revoked = 204, "revoked", Refresh;
    /// The room's name breaks the grammar.
    BadRoomName = 300, "bad_room_name", Never;
    /// No namespace of that name is configured.
    UnknownNamespace = 301, "unknown_namespace", Never;
    /// The alias is not one of a room that this connection has joined.
    NotJoined = 302, "not_joined", Never;
    /// This connection has joined the room already.
    AlreadyJoined = 303, "already_joined", Never;
    /// This connection is in as many rooms as it may be.
    TooManyRooms = 304, "too_many_rooms", Never;
    /// The room has as many members as it may have.
    RoomFull = 305, "room_full", After;
    /// The addressed member is not in the room.
    NoSuchMember = 306, "no_such_member", Never;
    /// The room's history was reopened after a fault; join again with the last position. What was in flight is unknown: send it again with its op id.
    RoomReopened = 307, "room_reopened", Now;
    /// The member fell behind what is kept of the history or of presence; join again.
    FellBehind = 308, "fell_behind", Now;
    /// Another connection of the session has taken the membership over.
    MembershipTaken = 309, "membership_taken", Never;
    /// The operation's id is below the window in which results are kept; it may or may not have taken effect.
    OpIdExpired = 400, "op_id_expired", Never;
    /// The operation's id was used before with another payload.
    OpIdConflict = 401, "op_id_conflict", Never;
    /// The outcome is unknown: the storage failed. Send it again with the same op id.
    OutcomeUnknown = 402, "outcome_unknown", Now;
    /// The room's kind refuses it.
    Rejected = 403, "rejected", Never;
    /// A condition of a write does not hold; the error carries what is there.
    Conflict = 404, "conflict", Never;
    /// The fence is not that of the lock's newest grant, as far as that is known.
    StaleFence = 405, "stale_fence", Never;
    /// Somebody else holds the lock, and the request would not wait for it.
    LockTaken = 406, "lock_taken", After;
    /// The member does not hold the lock, and does not wait for it.
    LockNotHeld = 407, "lock_not_held", Never;
    /// The room keeps as much as it may; the text says of what.
    QuotaExceeded = 408, "quota_exceeded", Never;
    /// Keys of this prefix are written under a lock alone.
    FenceRequired = 409, "fence_required", Never;
    /// Too many of something; the text says of what.
    RateLimited = 500, "rate_limited", After;
    /// The server is at a limit of its own; the text says which.
    Overloaded = 501, "overloaded", After;
    /// The server's fault. The log has the details.
    Internal = 502, "internal", After;
    /// The disk has too little room left to store anything more.
    StorageFull = 503, "storage_full", After;
    /// The storage failed; nothing is stored until the server has been restarted.
    StorageFailed = 504, "storage_failed", After;
    /// What is stored of the room is damaged; it is closed until it has been repaired.
    StorageDamaged = 505, "storage_damaged", Never;
}

catalogue! {
    /// Why the server closes a connection: the code of the WebSocket close frame, and its reason text.
    CloseCode
    /// The client closed, and this is the echo.
    Normal = 1000, "normal", Never;
    /// RFC 6455 was violated.
    ProtocolError = 1002, "protocol_error", Never;
    /// A text message on a binary subprotocol, or the other way round.
    UnsupportedData = 1003, "unsupported_data", Never;
    /// A text message, or a close reason, that is not UTF-8.
    InvalidUtf8 = 1007, "invalid_utf8", Never;
    /// The error budget is spent: too many bad frames, or one message in too many fragments or over too long a time.
    PolicyViolation = 1008, "error_budget_spent", Never;
    /// A message longer than the limit.
    MessageTooBig = 1009, "message_too_big", Never;
    /// The server's fault; nothing acknowledged is lost.
    InternalError = 1011, "internal_error", After;
    /// The server stops or restarts. Resume after the time in `goaway`.
    Restart = 1012, "restart", After;
    /// The server is full.
    TryLater = 1013, "try_later", After;
    /// The token in `hello` was refused.
    NotAuthenticated = 4401, "not_authenticated", Refresh;
    /// The user, the session or the token was revoked, and the session is over. A fresh token may begin a new one.
    Revoked = 4403, "revoked", Refresh;
    /// No `hello` in time, or too many bytes before it.
    HelloTimeout = 4408, "hello_timeout", After;
    /// Another connection resumed this session.
    Replaced = 4409, "replaced", Never;
    /// The token expired and was not refreshed. Resume with a fresh one.
    TokenExpired = 4410, "token_expired", Refresh;
    /// Nothing was heard for two heartbeats. Resume.
    HeartbeatTimeout = 4411, "heartbeat_timeout", Now;
    /// Too many requests were refused as `rate_limited`, too many pings or pongs came, or the user has too many connections.
    RateLimited = 4429, "rate_limited", After;
    /// Nothing could be written for too long, or control frames piled up. Resume.
    SlowConsumer = 4431, "slow_consumer", Now;
}

/// An error code on the wire: one of the catalogue, or one of a newer server's, kept as its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WireErrorCode(pub u16);

impl WireErrorCode {
    /// The row of the catalogue, where this version knows it.
    #[must_use]
    pub fn known(self) -> Option<ErrorCode> {
        ErrorCode::from_code(self.0)
    }
}

impl From<ErrorCode> for WireErrorCode {
    fn from(code: ErrorCode) -> Self {
        Self(code.code())
    }
}

impl fmt::Display for WireErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known() {
            Some(code) => code.fmt(f),
            None => write!(f, "{}", self.0),
        }
    }
}
