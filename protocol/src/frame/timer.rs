//! `timer`: set, cancel and read the timers of a room.

use super::macros::{frame, record, variants};
use super::wire::{Integer, Page};
use crate::id::{Key, RequestId, RoomAlias, UserId};
use crate::payload::Payload;
use crate::position::Position;

frame! {
    /// One of three requests about timers. Reply: `ok`, with a position for `set` and `cancel` and a page for `get`.
    Timer = 13 "timer" {
        /// The request's number.
        request: RequestId,
        /// The room.
        room: RoomAlias,
        /// Which.
        what: TimerRequest,
    }
}

variants! {
    /// What a `timer` frame asks for; on the wire `[kind, field, …]`.
    TimerRequest by TimerRequestKind {
        /// Sets a timer, in the place of one of that name.
        Set = 0 "set" {
            /// Its name.
            name: Key,
            /// When it fires, in milliseconds since 1970 by the server's clock; at once where that is past.
            due_ms: u64 as Integer,
            /// What it brings.
            payload: Payload,
        },
        /// Takes a timer away.
        Cancel = 1 "cancel" {
            /// Its name.
            name: Key,
        },
        /// A page of timers that are set, by ascending name.
        Get = 2 "get" {
            /// Start after this timer; none: from the first.
            after: Option<Key> = None,
            /// At most this many, at least 1; the server may give fewer.
            limit: u64 as Integer = 100,
        },
    }
}

record! {
    /// A page of timers.
    TimersPage {
        /// The position that it is the state of.
        position: Position,
        /// By ascending name.
        timers: Vec<TimerInfo> as Page<TimerInfo>,
        /// Where the next page starts; nil after the last.
        next: Option<Key>,
    }
}

record! {
    /// A timer that is set.
    TimerInfo {
        /// Its name.
        name: Key,
        /// When it fires, in milliseconds since 1970.
        due_ms: u64 as Integer,
        /// Who set it.
        user: UserId,
        /// What it brings.
        payload: Payload,
    }
}
