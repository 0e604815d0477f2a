//! `joined`: the reply to `join`.

use super::lock::LocksPage;
use super::macros::frame;
use super::state::StatePage;
use super::wire::Integer;
use super::wire_enum;
use crate::id::{MemberId, RequestId, RoomAlias};
use crate::position::Position;

frame! {
    /// The room is entered. What follows, and in which order, depends on `recovery`.
    Joined = 33 "joined" {
        /// The `join` it answers.
        request: RequestId,
        /// The room's number on this connection and all others of this node.
        room: RoomAlias,
        /// The own member number.
        member: MemberId,
        /// Where the client stands now: for `recovering` its own `since`, else the head. Events follow from the offset after it.
        position: Position,
        /// The newest position at this moment.
        head: Position,
        /// What happened to `since`.
        recovery: Recovery,
        /// What an `ok` to a publish will mean here.
        durability: Durability,
        /// The revision of presence that `occupancy` is of; deltas follow from it.
        revision: u64 as Integer,
        /// How many members there are, this one included.
        occupancy: u64 as Integer,
        /// The first page of the state that was asked for; nil where none was, and where entries from `since` on tell it.
        state: Option<StatePage> = None,
        /// The first page of the locks, likewise.
        locks: Option<LocksPage> = None,
    }
}

wire_enum! {
    /// What happened to the position that a `join` brought.
    pub Recovery {
        /// It is the head, or there was none: what follows is live.
        Live = 0 "live",
        /// Everything after it follows in order, then `caught_up`.
        Recovering = 1 "recovering",
        /// It is of another epoch, older than the history, or beyond the head: what the client holds is void, and it starts from the head.
        Reset = 2 "reset",
    }
}

wire_enum! {
    /// What survives when a publish has been acknowledged.
    pub Durability {
        /// Nothing beyond the process.
        Memory = 0 "memory",
        /// The node's restart: it is synced to this node's disk.
        Local = 1 "local",
        /// A node's loss: a quorum has it.
        Replicated = 2 "replicated",
    }
}
