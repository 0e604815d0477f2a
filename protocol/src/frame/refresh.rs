//! `refresh`: a fresh token on a living connection.

use super::macros::frame;
use crate::id::RequestId;
use crate::limits::TOKEN_BYTES_MAX;
use crate::text::Text;

frame! {
    /// Replaces the connection's token; its user and tenant stay. Reply: `ok` with the new expiry.
    Refresh = 8 "refresh" {
        /// The request's number.
        request: RequestId,
        /// A signed JWT.
        token: Text<TOKEN_BYTES_MAX>,
    }
}
