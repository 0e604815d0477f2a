//! `token_expiring`: time to refresh.

use super::macros::frame;
use super::wire::Integer;

frame! {
    /// The token expires soon; without a `refresh` the connection closes then with 4410.
    TokenExpiring = 42 "token_expiring" {
        /// When, in milliseconds since 1970.
        expires_ms: u64 as Integer,
    }
}
