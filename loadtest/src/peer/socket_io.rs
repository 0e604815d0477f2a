//! socket.io over its WebSocket transport, with the program in `loadtest/peers/socket-io.mjs`.
//!
//! engine.io's packets are text messages with a digit in front: 0 open, 2 ping, 3 pong, 4 message. Inside a message, socket.io's
//! have another: 0 connect, 2 event, 4 connect error. An event is a JSON array of its name and its arguments. See
//! <https://socket.io/docs/v4/engine-io-protocol/> and <https://socket.io/docs/v4/socket-io-protocol/>.

use anyhow::{Context as _, Result, bail};
use roomful_protocol::websocket::OpCode;

use super::{Answer, Heard, LaunchArgs, Listener, Peer, Seat, Upgrade};
use crate::process::Launch;

/// A server on socket.io. It has one thread, however many it is offered.
#[derive(Debug)]
pub(super) struct SocketIo;

/// An event named `p` with one text, which needs no escapes.
const EVENT: &[u8] = br#"42["p",""#;
const EVENT_END: &[u8] = br#""]"#;

impl Peer for SocketIo {
    fn name(&self) -> &'static str {
        "socket.io"
    }

    fn launch(&self, args: &LaunchArgs, _: Option<usize>) -> Result<Launch> {
        args.set_up("node_modules/socket.io/package.json")?;
        Ok(Launch::new(args.node()?, &[&args.set_up("socket-io.mjs")?]))
    }

    fn upgrade(&self, seat: &Seat) -> Result<Upgrade> {
        Ok(Upgrade {
            path: format!("/socket.io/?EIO=4&transport=websocket&room={}", seat.room),
            subprotocol: None,
            code: OpCode::Text,
        })
    }

    fn greeting(&self, _: &Seat) -> Result<Vec<Vec<u8>>> {
        Ok(vec![b"40".to_vec()])
    }

    fn publish(&self, _: &Seat, _: u32, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(EVENT);
        out.extend_from_slice(payload);
        out.extend_from_slice(EVENT_END);
    }

    fn read(
        &self,
        _: &mut Seat,
        message: &[u8],
        listener: Listener<'_>,
        answer: Answer<'_>,
    ) -> Result<()> {
        if let Some(event) = message.strip_prefix(EVENT) {
            let payload = event.strip_suffix(EVENT_END);
            return listener(Heard::Delivery {
                offset: None,
                payload: payload.context("an event with more than one text")?,
            });
        }
        match message {
            br#"42["joined"]"# => listener(Heard::Joined { head: None }),
            b"2" => {
                answer(b"3");
                Ok(())
            }
            // engine.io and socket.io say their settings and the connection's id.
            [b'0', ..] | [b'4', b'0', ..] => Ok(()),
            _ => bail!(
                "the server sent {:?}",
                String::from_utf8_lossy(&message[..message.len().min(200)])
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Conversation;
    use super::*;

    #[test]
    fn a_connection_joins_and_gets_what_was_published() {
        let mut conversation = Conversation::with(SocketIo);
        conversation.reads(br#"0{"sid":"x","pingInterval":25000}"#, &[]);
        conversation.reads(br#"40{"sid":"y"}"#, &[]);
        conversation.reads(br#"42["joined"]"#, &["joined"]);
        let message = conversation.publishes(b"payload");
        assert_eq!(message, br#"42["p","payload"]"#);
        conversation.reads(&message, &["payload"]);
        assert!(conversation.answers().is_empty());
        conversation.reads(b"2", &[]);
        assert_eq!(conversation.answers(), [b"3"]);
    }

    #[test]
    fn what_is_none_of_these_ends_the_run() {
        let mut conversation = Conversation::with(SocketIo);
        for message in [&br#"44{"message":"no"}"#[..], b"1", b"", br#"42["p","a"#] {
            assert!(conversation.refuses(message), "{message:?}");
        }
    }
}
