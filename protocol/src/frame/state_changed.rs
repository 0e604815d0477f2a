//! `state` from the server: what became of keys.

use super::macros::{frame, record};
use super::publish::OpId;
use super::wire::{Integer, Many};
use crate::id::{Key, Offset, RoomAlias, UserId};
use crate::payload::Payload;

frame! {
    /// One entry of the log that changed the keyed state. The changed keys have its offset as their version.
    StateChanged = 46 "state" {
        /// The room.
        room: RoomAlias,
        /// Its place.
        offset: Offset,
        /// When the owner took it, in milliseconds since 1970.
        time_ms: u64 as Integer,
        /// Who changed it.
        user: UserId,
        /// The operation's id, where it had one.
        op: Option<OpId>,
        /// Those of the changed keys that the member watches.
        changes: Vec<StateChange> as Many<StateChange>,
    }
}

record! {
    /// What became of one key.
    StateChange {
        /// Which.
        key: Key,
        /// Its value now, whole; nil: it was deleted.
        value: Option<Payload>,
    }
}

record! {
    /// The content of an entry that changed the keyed state.
    StateChanges {
        /// No two of one key.
        changes: Vec<StateChange> as Many<StateChange>,
    }
}
