//! The labels: closed enums, each value a series that exists from the start.

use roomful_protocol::websocket;

use super::cells::Label;
use crate::auth::AuthError;

/// Declares an enum whose variants are a label's values.
macro_rules! labels {
    ($( $(#[$meta:meta])* $name:ident by $label:literal { $( $(#[$vmeta:meta])* $variant:ident = $text:literal, )* } )*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $( $(#[$vmeta])* $variant, )* }

        impl Label for $name {
            const NAME: &'static str = $label;

            fn all() -> Vec<Self> {
                vec![$( Self::$variant ),*]
            }

            fn index(self) -> usize {
                self as usize
            }

            fn text(self) -> String {
                match self { $( Self::$variant => $text, )* }.to_owned()
            }
        }
    )*};
}
pub(super) use labels;

labels! {
    /// Which limit was met.
    LimitedBy by "limit" {
        /// Messages of a connection.
        Messages = "messages",
        /// Bytes of a connection.
        Bytes = "bytes",
        /// Joins of a connection.
        Joins = "joins",
        /// Pages that a connection asks for, and changes of what it watches.
        Pages = "pages",
        /// Pings and pongs of a connection.
        Control = "control",
        /// Messages of a user.
        UserMessages = "user_messages",
        /// Bytes of a user.
        UserBytes = "user_bytes",
        /// Joins of a user.
        UserJoins = "user_joins",
        /// Memberships of a user.
        UserMemberships = "user_memberships",
        /// Connections of a user.
        UserConnections = "user_connections",
        /// Rooms that a user opens.
        UserRooms = "user_rooms",
    }

    /// A bound of what a room keeps beside its log. The names are those of the configuration's keys, without `_max`.
    Quota by "bound" {
        /// Keys of the state.
        StateKeys = "state_keys",
        /// Bytes of one value of the state.
        StateValueBytes = "state_value_bytes",
        /// Bytes of the state.
        StateBytes = "state_bytes",
        /// Locks that are held.
        Locks = "locks",
        /// Who waits for one lock.
        LockQueue = "lock_queue",
        /// Timers that are set.
        Timers = "timers",
        /// Bytes of what one timer brings.
        TimerBytes = "timer_payload_bytes",
        /// Bytes of what members have left to be written when they are gone.
        DepartureBytes = "on_disconnect_bytes",
    }

    /// What a panic happened in, and ended.
    PanicPlace by "where" {
        /// The handling of one connection.
        Connection = "connection",
        /// The handing on of what one room sent.
        Hub = "hub",
        /// One room.
        Room = "room",
        /// A task of the control runtime. Counted by [`crate::tasks::Tasks`].
        Task = "task",
        /// The handling of a socket that had just been accepted.
        Acceptor = "acceptor",
        /// The check of a token on a verifier thread.
        Verifier = "verifier",
    }

    /// Why a token was refused.
    AuthFailure by "kind" {
        /// There are keys, and `hello` brought no token.
        Missing = "missing",
        /// It is not a JWT.
        Malformed = "malformed",
        /// Its algorithm is not the key's.
        Algorithm = "algorithm",
        /// No key has its id.
        UnknownKey = "unknown_key",
        /// The signature is wrong.
        Signature = "signature",
        /// It has expired.
        Expired = "expired",
        /// It is not valid yet.
        NotYetValid = "not_yet_valid",
        /// It is for another audience.
        Audience = "audience",
        /// It is of another issuer.
        Issuer = "issuer",
        /// A claim is missing, or is not what it must be.
        Claims = "claims",
        /// It names another user or tenant than the connection's.
        Mismatch = "mismatch",
        /// It, its user, or the session that it came with was revoked.
        Revoked = "revoked",
        /// The queue of tokens to check was full.
        Busy = "busy",
        /// Its key is unknown, and no keys could be fetched.
        KeysUnavailable = "keys_unavailable",
        /// Its check panicked.
        Internal = "internal",
    }

    /// How a peer broke the WebSocket protocol.
    Violation by "reason" {
        /// A frame that RFC 6455 forbids.
        Protocol = "protocol",
        /// Text that is not UTF-8.
        Utf8 = "utf8",
        /// A message longer than the limit.
        TooBig = "too_big",
        /// A message in too many fragments.
        Fragments = "fragments",
        /// A message that was not complete in time.
        MessageTimeout = "message_timeout",
    }

    /// What takes memory.
    MemoryKind by "kind" {
        /// The process before anybody came.
        Process = "process",
        /// Connections that are no WebSocket yet, or never.
        Http = "http",
        /// WebSocket connections.
        Connections = "connections",
        /// What TLS needs for each WebSocket connection over it.
        Tls = "tls",
        /// Sessions, those included that wait to be resumed.
        Sessions = "sessions",
        /// Messages that have not arrived whole.
        Input = "input",
        /// What waits to be written.
        Outboxes = "outboxes",
        /// Rooms, with members, presence values, results of operations and chunks of recoveries.
        Rooms = "rooms",
        /// The logs of rooms.
        Logs = "logs",
        /// What waits between shards.
        Mailboxes = "mailboxes",
    }

    /// What was let go of, or not taken in, for want of memory.
    MemoryShed by "what" {
        /// A connection whose outbox was among the heaviest.
        Outbox = "outbox",
        /// A connection whose unfinished message was among the heaviest, or grew.
        Input = "input",
        /// A publish.
        Publish = "publish",
        /// A write of state, a timer, or what a member leaves.
        Write = "write",
        /// A join.
        Join = "join",
        /// A presence value.
        Presence = "presence",
        /// A page of history or of members.
        Page = "page",
    }

    /// Why a connection got no WebSocket, or no answer to a request at all.
    HandshakeRejection by "reason" {
        /// What came is not HTTP.
        Malformed = "malformed",
        /// The request's head has too many bytes or lines.
        HeaderLimit = "header_limit",
        /// The request's head did not arrive in time.
        HeaderTimeout = "header_timeout",
        /// The request's target is not a plain path, or is too long.
        Target = "target",
        /// `Host` is missing, doubled or malformed.
        Host = "host",
        /// The request has a body.
        Body = "body",
        /// The method is not GET.
        Method = "method",
        /// HTTP/1.0.
        HttpVersion = "http_version",
        /// No `Upgrade: websocket`, or no `Connection: upgrade`.
        Upgrade = "upgrade",
        /// Another version of the WebSocket protocol.
        Version = "version",
        /// The key is missing, doubled or malformed.
        Key = "key",
        /// No subprotocol that we speak.
        Subprotocol = "subprotocol",
        /// The page, or the host name it used, may not connect.
        Origin = "origin",
        /// A proxy that has to begin with a PROXY protocol header sent none in time, or something else.
        ProxyHeader = "proxy_header",
        /// Its address has as many sockets as it may have.
        AddressConnections = "address_connections",
        /// Its address has as many sockets without a session as it may have.
        AddressUnauthenticated = "address_unauthenticated",
        /// There are as many sockets without a WebSocket as there may be.
        HttpConnections = "http_connections",
        /// There are as many WebSockets without a session as there may be.
        Unauthenticated = "unauthenticated",
        /// There have been as many WebSockets in this moment as there may be.
        Connects = "connects",
        /// There have been as many of its address.
        AddressConnects = "address_connects",
        /// Nearly all of the process's file descriptors are in use.
        Descriptors = "descriptors",
        /// The server has as many connections as it may have.
        Full = "full",
        /// The memory is above its soft mark.
        Memory = "memory",
        /// The server is about to end.
        Draining = "draining",
    }
}

impl From<websocket::Violation> for Violation {
    fn from(violation: websocket::Violation) -> Self {
        use websocket::Violation as Broken;

        match violation {
            Broken::Unmasked
            | Broken::Masked
            | Broken::ReservedBits
            | Broken::UnknownOpCode
            | Broken::FragmentedControl
            | Broken::LongControl
            | Broken::StrayContinuation
            | Broken::InterleavedMessage
            | Broken::NonMinimalLength
            | Broken::LengthOverflow
            | Broken::BadClose => Self::Protocol,
            Broken::NotUtf8 => Self::Utf8,
            Broken::MessageTooBig => Self::TooBig,
            Broken::TooManyFragments => Self::Fragments,
            Broken::MessageTimeout => Self::MessageTimeout,
        }
    }
}

impl From<AuthError> for AuthFailure {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Missing => Self::Missing,
            AuthError::Busy => Self::Busy,
            AuthError::KeysUnavailable => Self::KeysUnavailable,
            AuthError::Internal => Self::Internal,
            AuthError::TooLong
            | AuthError::Malformed
            | AuthError::CriticalHeader
            | AuthError::WrongType => Self::Malformed,
            AuthError::UnknownKey => Self::UnknownKey,
            AuthError::WrongAlgorithm => Self::Algorithm,
            AuthError::BadSignature => Self::Signature,
            AuthError::Expired => Self::Expired,
            AuthError::NotYetValid => Self::NotYetValid,
            AuthError::WrongAudience => Self::Audience,
            AuthError::WrongIssuer => Self::Issuer,
            AuthError::MissingClaim(_) | AuthError::BadClaim(_) | AuthError::LifetimeTooLong => {
                Self::Claims
            }
        }
    }
}
