//! `timer` from the server: a timer was set, taken away, or fired.

use super::macros::{frame, record};
use super::wire::Integer;
use super::wire_enum;
use crate::id::{Key, Offset, RoomAlias, UserId};
use crate::payload::Payload;

frame! {
    /// One entry of the log about a timer; every member gets it.
    TimerChanged = 48 "timer" {
        /// The room.
        room: RoomAlias,
        /// Its place.
        offset: Offset,
        /// When the owner took it, in milliseconds since 1970.
        time_ms: u64 as Integer,
        /// Who did it; of one that fired, who had set it.
        user: UserId,
        /// The timer's name.
        name: Key,
        /// What happened.
        what: TimerWhat,
        /// When it fires or was to fire, in milliseconds since 1970.
        due_ms: u64 as Integer,
        /// What it brings; nil where it was taken away.
        payload: Option<Payload>,
    }
}

wire_enum! {
    /// What happened to a timer.
    pub TimerWhat {
        /// It was set, maybe in the place of an earlier one.
        Set = 0 "set",
        /// It was taken away.
        Cancelled = 1 "cancelled",
        /// Its time came. It is set no more.
        Fired = 2 "fired",
    }
}

record! {
    /// The content of an entry about a timer.
    TimerChange {
        /// The timer's name.
        name: Key,
        /// What happened.
        what: TimerWhat,
        /// When it fires or was to fire, in milliseconds since 1970.
        due_ms: u64 as Integer,
        /// What it brings; nil where it was taken away.
        payload: Option<Payload>,
    }
}
