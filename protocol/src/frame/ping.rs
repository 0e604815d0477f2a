//! `ping`: is anybody there, how far away, and what time is it.

use super::macros::frame;
use crate::id::RequestId;

frame! {
    /// Asks for a `pong`; counts as a sign of life.
    Ping = 9 "ping" {
        /// The request's number.
        request: RequestId,
    }
}
