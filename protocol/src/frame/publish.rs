//! `publish`: into the log.

use super::macros::{frame, record};
use crate::id::{ProducerId, RequestId, RoomAlias, Sequence};
use crate::payload::Payload;

frame! {
    /// Appends to the room's log. Reply: `ok` with the position, once stored at the room's durability class.
    Publish = 4 "publish" {
        /// The request's number.
        request: RequestId,
        /// The room.
        room: RoomAlias,
        /// The operation's id. With one, sending again after an unknown outcome takes effect once; without, at most one attempt is safe.
        op: Option<OpId>,
        /// What to append.
        payload: Payload,
    }
}

record! {
    /// `(producer, sequence)`: names an operation for ever.
    #[derive(Copy, Hash, PartialOrd, Ord)]
    OpId {
        /// Who.
        producer: ProducerId,
        /// Which of theirs.
        sequence: Sequence,
    }
}
