//! `error`: the reply to a request that failed.

use super::macros::frame;
use super::state::StateItem;
use super::wire::{Many, OptionalInteger};
use crate::error::{Retry, WireErrorCode};
use crate::id::RequestId;

frame! {
    /// The request failed and changed nothing, unless the code says that its outcome is unknown.
    Error = 39 "error" {
        /// The request it answers; nil where none could be read.
        request: Option<RequestId>,
        /// Which error.
        code: WireErrorCode,
        /// One sentence for people, without anything secret.
        text: String,
        /// What to do next.
        retry: Retry,
        /// How long to wait first, in milliseconds.
        after_ms: Option<u64> as OptionalInteger = None,
        /// With `conflict`: those of the request's keys whose conditions did not hold, as they are.
        current: Vec<StateItem> as Many<StateItem> = Vec::new(),
    }
}
