//! The plain server's protocol: a message is a publish, a message is a delivery, and an empty one says "you are in the room".

use anyhow::Result;

use super::{Heard, Listener};

/// The plain server; see [`crate::plain_server`].
#[derive(Debug)]
pub(crate) struct Tungstenite;

/// Reads a message.
pub(super) fn read(message: &[u8], listener: Listener<'_>) -> Result<()> {
    if message.is_empty() {
        return listener(Heard::Joined {
            alias: 0,
            head: None,
        });
    }
    listener(Heard::Delivery {
        offset: None,
        payload: message,
    })
}
