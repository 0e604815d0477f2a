//! `hello`: who connects.

use super::macros::frame;
use crate::id::RequestId;
use crate::limits::TOKEN_BYTES_MAX;
use crate::text::Text;

frame! {
    /// The first frame of a connection. Reply: `welcome`, or `error` and a close.
    Hello = 1 "hello" {
        /// The request's number.
        request: RequestId,
        /// A signed JWT (RFC 7519); none on an anonymous server.
        token: Option<Text<TOKEN_BYTES_MAX>> = None,
        /// The resume token of an earlier `welcome` or `goaway`, to go on with its session.
        resume: Option<Text<1024>> = None,
        /// Name and version of the client software, for the server's log.
        agent: Option<Text<128>> = None,
    }
}
