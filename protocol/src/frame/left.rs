//! `left`: a membership ended, and not by the client's `leave`.

use super::macros::frame;
use super::wire::OptionalInteger;
use crate::error::{Retry, WireErrorCode};
use crate::id::RoomAlias;

frame! {
    /// The membership is over; nothing of the room follows. With another retry class than `never` the client joins again, with its last position.
    Left = 41 "left" {
        /// The room.
        room: RoomAlias,
        /// Why.
        code: WireErrorCode,
        /// One sentence for people.
        text: String,
        /// What to do next.
        retry: Retry,
        /// How long to wait first, in milliseconds.
        after_ms: Option<u64> as OptionalInteger = None,
    }
}
