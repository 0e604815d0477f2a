//! The simplest protocol, which the servers of our own speak: the path of the URL names the room, a message is a publish or a
//! delivery, and an empty one says "you are in the room".

use anyhow::Result;
use roomful_protocol::websocket::OpCode;

use super::{Heard, Listener, Seat, Upgrade};

/// The room in the path of the URL.
pub(super) fn upgrade(seat: &Seat) -> Upgrade {
    Upgrade {
        path: format!("/{}", seat.room),
        subprotocol: None,
        code: OpCode::Binary,
    }
}

/// A message is a delivery unless it is empty.
pub(super) fn read(message: &[u8], listener: Listener<'_>) -> Result<()> {
    if message.is_empty() {
        return listener(Heard::Joined { head: None });
    }
    listener(Heard::Delivery {
        offset: None,
        payload: message,
    })
}
