//! `goaway`: the server will close this connection.

use super::macros::frame;
use super::wire::Integer;

frame! {
    /// The close frame follows. The client comes back after the given time and resumes.
    Goaway = 43 "goaway" {
        /// How long to wait before connecting again, in milliseconds.
        reconnect_after_ms: u64 as Integer,
        /// The resume token to bring.
        resume: String,
    }
}
