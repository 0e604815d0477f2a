//! `history`: a page of the log.

use super::macros::frame;
use super::wire::Integer;
use super::wire_enum;
use crate::id::{RequestId, RoomAlias};
use crate::position::Position;

frame! {
    /// Reads a page of the log. Reply: `ok` with the page, in ascending order whichever way it was asked for.
    History = 7 "history" {
        /// The request's number.
        request: RequestId,
        /// The room.
        room: RoomAlias,
        /// Where to start, not included; none: before the first entry forwards, after the last backwards.
        from: Option<Position> = None,
        /// Which way.
        direction: Direction = Direction::Backward,
        /// At most this many entries, at least 1; the server gives at most 1,000 and may give fewer.
        limit: u64 as Integer = 100,
    }
}

wire_enum! {
    /// Which way a page goes.
    pub Direction {
        /// To newer entries.
        Forward = 0 "forward",
        /// To older entries.
        Backward = 1 "backward",
    }
}
