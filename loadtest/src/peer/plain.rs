//! The plain server: a message is a publish, a message is a delivery, and an empty one says "you are in the room", which the
//! path of the URL names.

use std::env;

use anyhow::Result;
use roomful_protocol::websocket::OpCode;

use super::{Answer, Heard, LaunchArgs, Listener, Peer, Seat, Upgrade};
use crate::process::Launch;

/// The plain server; see [`crate::plain_server`].
#[derive(Debug)]
pub(super) struct Plain;

impl Peer for Plain {
    fn name(&self) -> &'static str {
        "plain tokio-tungstenite"
    }

    fn launch(&self, _: &LaunchArgs, workers: Option<usize>) -> Result<Launch> {
        let mut launch = Launch::new(env::current_exe()?, &["plain-server"]);
        if let Some(workers) = workers {
            let threads = ["--threads".to_owned(), workers.to_string()];
            launch.arguments.extend(threads);
        }
        Ok(launch)
    }

    fn upgrade(&self, seat: &Seat) -> Result<Upgrade> {
        Ok(upgrade(seat))
    }

    fn greeting(&self, _: &Seat) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn publish(&self, _: &Seat, _: u32, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(payload);
    }

    fn read(
        &self,
        _: &mut Seat,
        message: &[u8],
        listener: Listener<'_>,
        _: Answer<'_>,
    ) -> Result<()> {
        read(message, listener)
    }
}

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
