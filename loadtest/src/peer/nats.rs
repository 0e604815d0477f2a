//! nats-server over its WebSocket port, with the settings in `loadtest/peers/nats.conf`.
//!
//! The protocol is lines of text, and a line may announce a payload of so many bytes; WebSocket messages are pieces of that stream, cut
//! anywhere. See <https://docs.nats.io/reference/reference-protocols/nats-protocol>.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail};

use super::{Answer, Heard, LaunchArgs, Listener, Peer, Seat};
use crate::process::Launch;

/// A nats-server. It has as many threads as cores that it may use.
#[derive(Debug)]
pub(super) struct Nats;

impl Peer for Nats {
    fn name(&self) -> &'static str {
        "nats-server"
    }

    fn launch(&self, args: &LaunchArgs, _: Option<usize>) -> Result<Launch> {
        let arguments = ["--config", &args.set_up("nats.conf")?];
        Ok(Launch {
            listening,
            ..Launch::new(args.set_up("bin/nats-server")?, &arguments)
        })
    }

    /// The server answers the ping when it has taken all that came before it.
    fn greeting(&self, seat: &Seat) -> Result<Vec<Vec<u8>>> {
        let lines = format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"echo\":true}}\r\nSUB {} 1\r\nPING\r\n",
            seat.room
        );
        Ok(vec![lines.into_bytes()])
    }

    fn publish(&self, seat: &Seat, _: u32, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(format!("PUB {} {}\r\n", seat.room, payload.len()).as_bytes());
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }

    fn read(
        &self,
        seat: &mut Seat,
        message: &[u8],
        listener: Listener<'_>,
        answer: Answer<'_>,
    ) -> Result<()> {
        if seat.held.is_empty() {
            let rest = operations(message, listener, answer)?;
            seat.held.extend_from_slice(rest);
            return Ok(());
        }
        seat.held.extend_from_slice(message);
        let rest = operations(&seat.held, listener, answer)?.len();
        seat.held.drain(..seat.held.len() - rest);
        Ok(())
    }
}

/// Reads whole operations, and gives back the beginning of one that isn't.
fn operations<'a>(
    mut input: &'a [u8],
    listener: Listener<'_>,
    answer: Answer<'_>,
) -> Result<&'a [u8]> {
    while let Some(end) = input.windows(2).position(|window| window == b"\r\n") {
        let (line, rest) = (&input[..end], &input[end + 2..]);
        if let Some(arguments) = line.strip_prefix(b"MSG ") {
            let length = payload_bytes(arguments)?;
            let Some((payload, rest)) = rest.split_at_checked(length + 2) else {
                return Ok(input);
            };
            let payload = payload
                .strip_suffix(b"\r\n")
                .context("a payload that is longer than it says")?;
            listener(Heard::Delivery {
                offset: None,
                payload,
            })?;
            input = rest;
            continue;
        }
        match line {
            b"PING" => answer(b"PONG\r\n"),
            b"PONG" => listener(Heard::Joined { head: None })?,
            line if line.starts_with(b"INFO ") => {}
            line => bail!("the server sent {:?}", String::from_utf8_lossy(line)),
        }
        input = rest;
    }
    Ok(input)
}

/// The last of `subject sid [reply] bytes`.
fn payload_bytes(arguments: &[u8]) -> Result<usize> {
    let last = arguments.rsplit(|byte| *byte == b' ').next();
    let length = last.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    length.context("a delivery without a length")
}

/// `… Listening for websocket clients on ws://127.0.0.1:43211`.
fn listening(line: &str) -> Option<SocketAddr> {
    let (_, address) = line.split_once("websocket clients on ws://")?;
    address.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::Conversation;
    use super::*;

    #[test]
    fn a_stream_is_read_wherever_it_is_cut() {
        let stream =
            b"INFO {\"x\":1}\r\nPING\r\nPONG\r\nMSG room 1 7\r\npayload\r\nMSG room 1 2\r\n\r\n\r\nMSG r 1 to 1\r\nx\r\n";
        for pieces in 1..stream.len() {
            let mut conversation = Conversation::with(Nats);
            let mut heard = Vec::new();
            for piece in stream.chunks(pieces) {
                heard.extend(conversation.read(piece).unwrap());
            }
            assert_eq!(
                heard,
                ["joined", "payload", "\r\n", "x"],
                "pieces of {pieces}"
            );
            assert_eq!(conversation.answers(), [b"PONG\r\n"]);
        }
    }

    #[test]
    fn a_publish_says_where_and_how_long() {
        let message = Conversation::with(Nats).publishes(b"payload");
        assert_eq!(message, b"PUB chat:room 7\r\npayload\r\n");
    }

    #[test]
    fn what_goes_wrong_ends_the_run() {
        for message in [
            &b"-ERR 'Slow Consumer'\r\n"[..],
            b"MSG room 1 x\r\n",
            b"MSG room 1 2\r\nabcd",
        ] {
            assert!(Conversation::with(Nats).refuses(message), "{message:?}");
        }
    }

    #[test]
    fn only_the_websocket_port_is_taken() {
        let line = "[7] 2025/01/01 [INF] Listening for websocket clients on ws://127.0.0.1:43211";
        let expected = Some(SocketAddr::from(([127, 0, 0, 1], 43211)));
        assert_eq!(listening(line), expected);
        assert_eq!(
            listening("[7] [INF] Listening for client connections on 127.0.0.1:4222"),
            None
        );
    }
}
