//! Centrifugo 6, where a binary is given: its JSON protocol, and settings by its environment.
//!
//! A message holds one object a line. Commands and replies share an id; what was published comes as a push; an empty object is a ping and
//! is answered with one. See <https://centrifugal.dev/docs/transports/client_protocol>.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use roomful_protocol::websocket::OpCode;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Answer, Heard, LaunchArgs, Listener, Peer, Seat, Upgrade};
use crate::process::Launch;

/// A Centrifugo. It has as many threads as cores that it may use.
#[derive(Debug)]
pub(super) struct Centrifugo;

/// Ids of the greeting; those of publishes follow.
const CONNECT: u32 = 1;
const SUBSCRIBE: u32 = 2;

/// Whatever the server says. Nothing is copied out of it.
#[derive(Debug, Deserialize)]
struct Reply<'a> {
    #[serde(default)]
    id: u32,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    push: Option<Push<'a>>,
}

#[derive(Debug, Deserialize)]
struct Push<'a> {
    #[serde(borrow, rename = "pub")]
    publication: Option<Publication<'a>>,
    #[serde(borrow)]
    disconnect: Option<&'a RawValue>,
    #[serde(borrow)]
    unsubscribe: Option<&'a RawValue>,
}

/// The payload is text without escapes.
#[derive(Debug, Deserialize)]
struct Publication<'a> {
    #[serde(borrow)]
    data: &'a str,
}

impl Peer for Centrifugo {
    fn name(&self) -> &'static str {
        "Centrifugo, JSON"
    }

    fn launch(&self, args: &LaunchArgs, _: Option<usize>) -> Result<Launch> {
        let program = args.centrifugo.as_ref();
        let program = program.context("no binary was given; name one with --centrifugo FILE")?;
        if !program.is_file() {
            bail!("there is no file {}", program.display());
        }
        // It doesn't tell which port it got, so it can't choose one itself.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let environment = [
            ("CENTRIFUGO_HTTP_SERVER_ADDRESS", "127.0.0.1".to_owned()),
            ("CENTRIFUGO_HTTP_SERVER_PORT", port.to_string()),
            // Everybody may subscribe and publish without a token.
            ("CENTRIFUGO_CLIENT_INSECURE", "true".to_owned()),
            ("CENTRIFUGO_LOG_LEVEL", "info".to_owned()),
        ];
        Ok(Launch {
            environment: environment.to_vec(),
            listening,
            ..Launch::new(program, &[])
        })
    }

    fn upgrade(&self, _: &Seat) -> Result<Upgrade> {
        Ok(Upgrade {
            path: "/connection/websocket".to_owned(),
            subprotocol: None,
            code: OpCode::Text,
        })
    }

    fn greeting(&self, seat: &Seat) -> Result<Vec<Vec<u8>>> {
        let commands = format!(
            "{{\"id\":{CONNECT},\"connect\":{{}}}}\n{{\"id\":{SUBSCRIBE},\"subscribe\":{{\"channel\":\"{}\"}}}}",
            channel(seat)
        );
        Ok(vec![commands.into_bytes()])
    }

    fn publish(&self, seat: &Seat, sequence: u32, payload: &[u8], out: &mut Vec<u8>) {
        let id = SUBSCRIBE + sequence;
        let head = format!(
            "{{\"id\":{id},\"publish\":{{\"channel\":\"{}\",\"data\":\"",
            channel(seat)
        );
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\"}}");
    }

    fn read(
        &self,
        _: &mut Seat,
        message: &[u8],
        listener: Listener<'_>,
        answer: Answer<'_>,
    ) -> Result<()> {
        let lines = message.split(|byte| *byte == b'\n');
        for line in lines.filter(|line| !line.is_empty()) {
            if line == b"{}" {
                answer(b"{}");
            } else {
                reply(line, listener)?;
            }
        }
        Ok(())
    }
}

fn reply(line: &[u8], listener: Listener<'_>) -> Result<()> {
    let reply: Reply<'_> =
        serde_json::from_slice(line).context("the server sent something else than a reply")?;
    if let Some(error) = reply.error {
        bail!("the server refused command {}: {error}", reply.id);
    }
    match reply.push {
        Some(Push {
            publication: Some(publication),
            ..
        }) => listener(Heard::Delivery {
            offset: None,
            payload: publication.data.as_bytes(),
        }),
        Some(Push {
            disconnect: Some(reason),
            ..
        }) => bail!("the server ends the connection: {reason}"),
        Some(Push {
            unsubscribe: Some(reason),
            ..
        }) => bail!("the server ended a subscription: {reason}"),
        None if reply.id == SUBSCRIBE => listener(Heard::Joined { head: None }),
        // Others' coming and going, and replies that nobody counts.
        Some(_) | None => Ok(()),
    }
}

/// What stands before a colon would be the name of a namespace.
fn channel(seat: &Seat) -> String {
    seat.room.replace(':', "-")
}

/// It says where it will listen, a moment before it does.
fn listening(line: &str) -> Option<SocketAddr> {
    let address = address(line)?;
    for _ in 0..200 {
        if TcpStream::connect(address).is_ok() {
            break;
        }
        thread::park_timeout(Duration::from_millis(10));
    }
    Some(address)
}

/// `serving websocket, … endpoints on 127.0.0.1:43211`, as text or inside JSON.
fn address(line: &str) -> Option<SocketAddr> {
    let (_, behind) = line.split_once(" endpoints on ")?;
    let of_address = |character: char| character.is_ascii_digit() || ".:".contains(character);
    let end = behind
        .find(|character| !of_address(character))
        .unwrap_or(behind.len());
    behind.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::Conversation;
    use super::*;

    #[test]
    fn a_connection_joins_and_gets_what_was_published() {
        let mut conversation = Conversation::with(Centrifugo);
        let replies = br#"{"id":1,"connect":{"client":"x","version":"6","ping":25,"pong":true}}
{"id":2,"subscribe":{}}"#;
        conversation.reads(replies, &["joined"]);
        assert_eq!(
            conversation.publishes(b"payload"),
            br#"{"id":3,"publish":{"channel":"chat-room","data":"payload"}}"#
        );
        let deliveries =
            br#"{"push":{"channel":"chat-room","pub":{"data":"payload","info":{"client":"x"}}}}
{"id":3,"publish":{}}
{"push":{"channel":"chat-room","pub":{"data":"other"}}}
"#;
        conversation.reads(deliveries, &["payload", "other"]);
        assert!(conversation.answers().is_empty());
        conversation.reads(b"{}", &[]);
        assert_eq!(conversation.answers(), [b"{}"]);
    }

    #[test]
    fn what_goes_wrong_ends_the_run() {
        for message in [
            &br#"{"id":2,"error":{"code":103,"message":"permission denied"}}"#[..],
            br#"{"push":{"disconnect":{"code":3008,"reason":"slow"}}}"#,
            br#"{"push":{"channel":"x","unsubscribe":{"code":2500}}}"#,
            b"null and void",
        ] {
            assert!(
                Conversation::with(Centrifugo).refuses(message),
                "{message:?}"
            );
        }
    }

    #[test]
    fn the_address_is_found_in_either_log() {
        let expected = Some(SocketAddr::from(([127, 0, 0, 1], 43211)));
        for line in [
            "2025-01-01 00:00:00 [INF] serving websocket, api endpoints on 127.0.0.1:43211",
            r#"{"level":"info","message":"serving websocket, api endpoints on 127.0.0.1:43211"}"#,
        ] {
            assert_eq!(address(line), expected, "{line}");
        }
        assert_eq!(address("starting Centrifugo"), None);
    }
}
