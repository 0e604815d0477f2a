//! `welcome`: the reply to `hello`.

use super::macros::frame;
use super::wire::{Integer, OptionalInteger};
use crate::id::{RequestId, SessionId, UserId};
use crate::limits::Limits;

frame! {
    /// The session is open.
    Welcome = 32 "welcome" {
        /// The `hello` it answers.
        request: RequestId,
        /// The session.
        session: SessionId,
        /// Whether it is the one of the resume token; else it is new.
        resumed: bool,
        /// The user, from the token or given to an anonymous one.
        user: UserId,
        /// What to bring in a later `hello` to resume this session. Opaque; a secret of this client.
        resume: String,
        /// How often the client pings while nothing else goes out, in milliseconds. Two of these without a sign of life and either side gives up.
        heartbeat_ms: u64 as Integer,
        /// The server's clock, in milliseconds since 1970 (UTC).
        time_ms: u64 as Integer,
        /// When the token expires, in milliseconds since 1970; nil without a token.
        expires_ms: Option<u64> as OptionalInteger,
        /// What this connection may do.
        limits: Limits,
    }
}
