//! `caught_up`: recovery is complete.

use super::macros::frame;
use crate::id::{Offset, RoomAlias};

frame! {
    /// Everything up to `offset` has been sent; what follows is live. Comes once for each `joined` with `recovering`.
    CaughtUp = 40 "caught_up" {
        /// The room.
        room: RoomAlias,
        /// Where the member stands.
        offset: Offset,
    }
}
