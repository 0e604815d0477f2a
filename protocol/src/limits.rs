//! Bounds that belong to the protocol itself, whatever a server's configuration says.
//!
//! A server announces its own, configurable bounds in `welcome` as [`Limits`].

use crate::frame::record;
use crate::frame::wire::Integer;

/// Deepest nesting of arrays and maps in a message, a `json` payload inside it included.
pub const DEPTH_MAX: usize = 32;

/// Deepest nesting inside a `json` payload: what is left of [`DEPTH_MAX`] at the deepest place where a payload may stand, which is
/// eight levels down (batch, its frames, `ok`, reply, page, entries, entry, payload).
pub const PAYLOAD_DEPTH_MAX: usize = DEPTH_MAX - 8;

/// Most frames in one `batch`.
pub const BATCH_FRAMES_MAX: usize = 256;

/// Most entries or members in one page.
pub const PAGE_MAX: usize = 1_000;

/// Most changes in one write of the keyed state.
pub const CHANGES_MAX: usize = 64;

/// Most prefixes that a member watches the keyed state by.
pub const PREFIXES_MAX: usize = 16;

/// Longest token in `hello` and `refresh`, in bytes.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

record! {
    /// What a connection may do, as `welcome` tells it. Zero never means "unlimited".
    Limits {
        /// Longest message from the client, in bytes; a longer one closes with 1009.
        message_bytes_max: u64 as Integer,
        /// Longest payload of a publish, a signal or a presence value, in bytes.
        payload_bytes_max: u64 as Integer,
        /// Rooms joined at a time.
        rooms_max: u64 as Integer,
        /// Requests without a reply at a time; beyond it the server stops reading until one is answered.
        requests_max: u64 as Integer,
    }
}
