//! `signal` from the server: something ephemeral from another member.

use super::macros::frame;
use crate::id::{MemberId, RoomAlias, SignalKey, UserId};
use crate::payload::Payload;

frame! {
    /// A signal of another member. Ordered per sender, never repeated, and dropped or replaced on a slow connection.
    Signalled = 36 "signal" {
        /// The room.
        room: RoomAlias,
        /// Who sent it.
        from: MemberId,
        /// Whose member that is.
        user: UserId,
        /// Its key.
        key: Option<SignalKey>,
        /// The content.
        payload: Payload,
    }
}
