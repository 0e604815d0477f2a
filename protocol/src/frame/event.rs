//! `event`: one entry of a room's log.

use super::macros::{frame, record};
use super::publish::OpId;
use super::wire::Integer;
use super::wire_enum;
use crate::id::{Offset, RoomAlias, UserId};
use crate::payload::Payload;

frame! {
    /// One entry of the log. Its epoch is the one that `joined` named.
    Event = 34 "event" {
        /// The room.
        room: RoomAlias,
        /// What is in the log there.
        entry: Entry,
    }
}

record! {
    /// An entry of the log.
    Entry {
        /// Its place: among live events one more than that of the `event` or `advance` before it.
        offset: Offset,
        /// When the owner took it, in milliseconds since 1970. Never less than the entry's before it.
        time_ms: u64 as Integer,
        /// What kind of entry.
        kind: EntryKind,
        /// Whose it is.
        user: UserId,
        /// The operation's id, where it had one: by it a client recognises its own.
        op: Option<OpId>,
        /// The content.
        payload: Payload,
    }
}

wire_enum! {
    /// What an entry is.
    pub EntryKind {
        /// A member published it.
        Publish = 0 "publish",
        /// A change of the keyed state.
        State = 1 "state",
        /// A lock changed hands.
        Lock = 2 "lock",
        /// A timer fired.
        Timer = 3 "timer",
        /// The server's own.
        System = 4 "system",
    }
}
