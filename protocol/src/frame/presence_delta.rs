//! `presence` from the server: who came, changed and went since the last one.

use super::macros::{frame, record};
use super::wire::{Integer, Many};
use super::wire_enum;
use crate::id::{MemberId, RoomAlias, UserId};
use crate::payload::Payload;

frame! {
    /// Changes since the revision before, at most one per member. For those who watch occupancy alone `changes` is empty.
    PresenceDelta = 37 "presence" {
        /// The room.
        room: RoomAlias,
        /// The revision that these changes lead to; grows.
        revision: u64 as Integer,
        /// How many members there are now.
        occupancy: u64 as Integer,
        /// By ascending member number.
        changes: Vec<PresenceChange> as Many<PresenceChange>,
    }
}

record! {
    /// What happened to one member.
    PresenceChange {
        /// Who.
        member: MemberId,
        /// What.
        kind: ChangeKind,
        /// Whose member it is.
        user: UserId,
        /// Its value now; nil when it has none or left.
        value: Option<Payload>,
    }
}

wire_enum! {
    /// What happened to a member.
    pub ChangeKind {
        /// It is there, with this value: came or changed.
        Present = 0 "present",
        /// It left, or its grace ended.
        Gone = 1 "gone",
    }
}
