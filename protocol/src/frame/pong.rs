//! `pong`: the reply to `ping`.

use super::macros::frame;
use super::wire::Integer;
use crate::id::RequestId;

frame! {
    /// The answer to a `ping`.
    Pong = 44 "pong" {
        /// The `ping` it answers.
        request: RequestId,
        /// The server's clock, in milliseconds since 1970.
        time_ms: u64 as Integer,
    }
}
