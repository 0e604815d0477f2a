//! `cursor`: how far a user has read.

use super::macros::{frame, record, variants};
use super::wire::Integer;
use crate::id::{RequestId, RoomAlias};
use crate::position::Position;

frame! {
    /// One of two requests about the own cursors. Reply: `ok` with them as they stand then.
    Cursor = 14 "cursor" {
        /// The request's number.
        request: RequestId,
        /// The room.
        room: RoomAlias,
        /// Which.
        what: CursorRequest,
    }
}

variants! {
    /// What a `cursor` frame asks for; on the wire `[kind, field, …]`.
    CursorRequest by CursorRequestKind {
        /// Moves cursors forward; one that is there already, or further, stays.
        Set = 0 "set" {
            /// Up to where the user has read.
            read: Option<Position> = None,
            /// Up to where the user has been delivered to.
            delivered: Option<Position> = None,
        },
        /// Reads them.
        Get = 1 "get",
    }
}

record! {
    /// A user's cursors in a room.
    Cursors {
        /// Up to where the user has read; nil: nothing yet.
        read: Option<Position>,
        /// Up to where the user has been delivered to; nil: nowhere yet.
        delivered: Option<Position>,
        /// How many entries others have published behind `read`.
        unread: u64 as Integer,
    }
}
