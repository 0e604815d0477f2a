//! `advance`: a position moved without an event.

use super::macros::frame;
use crate::id::{Offset, RoomAlias};

frame! {
    /// The member now stands at `offset`: the entries up to it were not for it. Together with events it leaves no gap.
    Advance = 35 "advance" {
        /// The room.
        room: RoomAlias,
        /// The new place.
        offset: Offset,
    }
}
