//! `signal`: ephemeral, to all others or to one.

use super::macros::frame;
use crate::id::{MemberId, RequestId, RoomAlias, SignalKey};
use crate::payload::Payload;

frame! {
    /// Sends something that is never stored: typing, a cursor, a player's position. Reply: `ok` once it is on its way; none where the
    /// request id is nil.
    Signal = 5 "signal" {
        /// The request's number; nil asks for no reply.
        request: Option<RequestId>,
        /// The room.
        room: RoomAlias,
        /// One member; nil for all but the sender.
        to: Option<MemberId>,
        /// On a slow connection a newer signal of the same sender and key replaces an older one; without a key it is dropped.
        key: Option<SignalKey>,
        /// What to send.
        payload: Payload,
    }
}
