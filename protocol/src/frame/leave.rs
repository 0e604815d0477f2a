//! `leave`: out of a room.

use super::macros::frame;
use crate::id::{RequestId, RoomAlias};

frame! {
    /// Leaves a room; its presence goes at once. Reply: `ok`, after which nothing of the room follows.
    Leave = 3 "leave" {
        /// The request's number.
        request: RequestId,
        /// The room, as `joined` named it.
        room: RoomAlias,
    }
}
