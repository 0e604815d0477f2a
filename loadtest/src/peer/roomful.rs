//! Roomful's protocol, in MessagePack.
//!
//! Every connection does what the real clients do: it says hello and joins in one go, brings a producer, and publishes with op ids.

use std::collections::hash_map::RandomState;
use std::env;
use std::hash::BuildHasher as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use roomful_protocol::codec::Encoding;
use roomful_protocol::frame::{
    ClientFrame, Hello, Join, JoinProducer, OpId, Publish, Reply, RoomText, ServerFrame, Watch,
};
use roomful_protocol::id::{INTEGER_MAX, ProducerId, RequestId, RoomAlias, RoomName, Sequence};
use roomful_protocol::payload::Payload;
use roomful_protocol::text::Text;
use roomful_protocol::websocket::OpCode;

use super::frames::{self, Frame, each_frame, encoded};
use super::token;
use super::{Ability, Answer, Heard, LaunchArgs, Listener, Peer, Seat, Upgrade};
use crate::process::Launch;
use crate::tls::{self, Manner, Secure};

/// A Roomful server.
#[derive(Debug)]
pub(crate) struct Roomful {
    /// Producer of connection 0. Chosen anew for each run: a server that is still running may remember those of the last one.
    producer_first: u64,
    /// Whether the server demands a token, and every connection brings one of its own.
    has_tokens: bool,
    /// Set where it is spoken to over TLS.
    secure: Option<Secure>,
}

const HELLO_REQUEST: u64 = 1;
const JOIN_REQUEST: u64 = 2;

impl Roomful {
    /// Without keys: everybody may do everything.
    pub(super) fn new() -> Self {
        Self {
            producer_first: RandomState::new().hash_one("producer") & (INTEGER_MAX >> 1),
            has_tokens: false,
            secure: None,
        }
    }

    /// With a key, and a token for each connection.
    pub(super) fn with_tokens() -> Self {
        Self {
            has_tokens: true,
            ..Self::new()
        }
    }

    /// Over TLS, with a certificate of its own.
    pub(super) fn over(manner: Manner) -> Self {
        Self {
            secure: Some(Secure::new(manner)),
            ..Self::new()
        }
    }

    fn producer(&self, connection: usize) -> ProducerId {
        ProducerId(self.producer_first + connection as u64)
    }
}

impl Peer for Roomful {
    fn name(&self) -> &'static str {
        match &self.secure {
            Some(secure) => secure.manner().title(),
            None if self.has_tokens => "roomful, HS256 tokens",
            None => "roomful",
        }
    }

    fn abilities(&self) -> &'static [Ability] {
        &[Ability::Offsets, Ability::Resume, Ability::Presence]
    }

    fn launch(&self, args: &LaunchArgs, workers: Option<usize>) -> Result<Launch> {
        let program = program(args)?;
        let config = args.config.to_str();
        let config = config.context("the configuration's path is not UTF-8")?;
        if !args.config.is_file() {
            bail!("there is no configuration {config}; name one with --config");
        }
        // The address is told at the level info.
        let fixed = "--listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --log info";
        let arguments: Vec<&str> = ["serve", "--config", config]
            .into_iter()
            .chain(fixed.split(' '))
            .collect();
        let mut launch = Launch {
            data_dir_flag: Some("--data-dir"),
            config: Some(args.config.clone()),
            ..Launch::new(program, &arguments)
        };
        if self.has_tokens {
            launch.environment.push(token::server_key());
        }
        if self.secure.is_some() {
            launch.files = tls::server_files();
        }
        if let Some(workers) = workers {
            let shards = ["--shards".to_owned(), workers.to_string()];
            launch.arguments.extend(shards);
        }
        for setting in &args.set {
            let setting = ["--set".to_owned(), setting.clone()];
            launch.arguments.extend(setting);
        }
        Ok(launch)
    }

    fn secure(&self) -> Option<&Secure> {
        self.secure.as_ref()
    }

    /// The room's placement key is in the URL, as the clients have it.
    fn upgrade(&self, seat: &Seat) -> Result<Upgrade> {
        let room = &seat.room;
        let name =
            RoomName::parse(room.as_bytes()).with_context(|| format!("the room name {room:?}"))?;
        Ok(Upgrade {
            path: format!("/v1/ws?k={}", name.placement_key()),
            subprotocol: Some(Encoding::MessagePack.subprotocol()),
            code: OpCode::Binary,
        })
    }

    /// `hello` and `join`.
    fn greeting(&self, seat: &Seat) -> Result<Vec<Vec<u8>>> {
        let token = self.has_tokens.then(|| token::mint(seat.connection));
        let hello = Hello {
            request: RequestId(HELLO_REQUEST),
            token: token.transpose()?,
            resume: None,
            agent: Text::new("roomful-loadtest").ok(),
        };
        let join = Join {
            request: RequestId(JOIN_REQUEST),
            room: RoomText::from(seat.room.as_str()),
            since: None,
            producer: Some(JoinProducer {
                producer: self.producer(seat.connection),
                next: Sequence(1),
            }),
            echo: true,
            watch: Watch::None,
            presence: None,
            state: None,
            locks: false,
        };
        Ok(vec![encoded(&hello.into()), encoded(&join.into())])
    }

    fn publish(&self, seat: &Seat, sequence: u32, payload: &[u8], out: &mut Vec<u8>) {
        let publish = Publish {
            request: RequestId(JOIN_REQUEST + u64::from(sequence)),
            room: RoomAlias(seat.alias),
            op: Some(OpId {
                producer: self.producer(seat.connection),
                sequence: Sequence(sequence.into()),
            }),
            payload: Payload::binary(payload.to_vec()),
        };
        Encoding::MessagePack.encode(&ClientFrame::from(publish), out);
    }

    /// One frame, or a batch of them.
    fn read(
        &self,
        seat: &mut Seat,
        message: &[u8],
        listener: Listener<'_>,
        _: Answer<'_>,
    ) -> Result<()> {
        each_frame(message, &mut |frame| match frame {
            Frame::Event {
                offset, payload, ..
            } => listener(Heard::Delivery {
                offset: Some(offset),
                payload,
            }),
            Frame::Other(frame) => other(*frame, seat, listener),
        })
    }
}

/// The one that was named, or the one beside this program.
fn program(args: &LaunchArgs) -> Result<PathBuf> {
    let beside = || Ok::<_, anyhow::Error>(env::current_exe()?.with_file_name("roomful"));
    let program = args.server.clone().map_or_else(beside, Ok)?;
    if !program.is_file() {
        bail!(
            "there is no server at {}; build it with cargo build --release, or name one with --server",
            program.display()
        );
    }
    Ok(program)
}

fn other(frame: ServerFrame, seat: &mut Seat, listener: Listener<'_>) -> Result<()> {
    match frame {
        ServerFrame::Joined(joined) => {
            seat.alias = joined.room.0;
            listener(Heard::Joined {
                head: Some(joined.position.offset.0),
            })
        }
        ServerFrame::Ok(ok) => match ok.reply {
            Reply::Published(published) if published.duplicate => {
                bail!("doubled: a first publish was called a duplicate")
            }
            Reply::Published(_) => {
                let sequence = ok
                    .request
                    .0
                    .checked_sub(JOIN_REQUEST)
                    .context("an ok to no publish")?;
                listener(Heard::Acknowledged {
                    sequence: u32::try_from(sequence)?,
                })
            }
            reply => bail!("an unexpected reply: {reply:?}"),
        },
        // Nothing of these is counted, and nothing is wrong with them.
        ServerFrame::Welcome(_)
        | ServerFrame::Signalled(_)
        | ServerFrame::PresenceDelta(_)
        | ServerFrame::CaughtUp(_)
        | ServerFrame::TokenExpiring(_)
        | ServerFrame::Pong(_) => Ok(()),
        unwelcome @ (ServerFrame::Error(_)
        | ServerFrame::Left(_)
        | ServerFrame::Goaway(_)
        | ServerFrame::Advance(_)
        | ServerFrame::Event(_)
        | ServerFrame::ServerBatch(_)
        | ServerFrame::StateChanged(_)
        | ServerFrame::LockChanged(_)
        | ServerFrame::TimerChanged(_)) => Err(frames::fault(&unwelcome)),
    }
}

#[cfg(test)]
mod tests {
    use roomful_protocol::error::{ErrorCode, Retry};
    use roomful_protocol::frame::{
        Advance, Entry, EntryKind, Error as ErrorFrame, Event, Ok as OkFrame, Published,
    };
    use roomful_protocol::id::{Epoch, Offset, UserId};
    use roomful_protocol::position::Position;

    use super::*;

    fn event_of(offset: u64) -> ServerFrame {
        let entry = Entry {
            offset: Offset(offset),
            time_ms: 1_700_000_000_000,
            kind: EntryKind::Publish,
            user: UserId::parse("anon-1f3a").unwrap(),
            op: Some(OpId {
                producer: ProducerId(INTEGER_MAX),
                sequence: Sequence(300),
            }),
            payload: Payload::binary(vec![7; 64]),
        };
        Event {
            room: RoomAlias(70_000),
            entry,
        }
        .into()
    }

    fn ok_of(sequence: u64) -> ServerFrame {
        let position = Position::new(Epoch(1), Offset(9));
        let reply = Reply::Published(Published {
            position,
            time_ms: 1,
            duplicate: false,
        });
        OkFrame {
            request: RequestId(JOIN_REQUEST + sequence),
            reply,
        }
        .into()
    }

    fn message(frame: &ServerFrame) -> Vec<u8> {
        let mut message = Vec::new();
        Encoding::MessagePack.encode(frame, &mut message);
        message
    }

    fn heard(message: &[u8]) -> Result<Vec<String>> {
        let mut heard = Vec::new();
        let mut listener = |what: Heard<'_>| {
            heard.push(match what {
                Heard::Joined { head } => format!("joined {head:?}"),
                Heard::Delivery { offset, payload } => {
                    format!("delivery {offset:?} {}", payload.len())
                }
                Heard::Acknowledged { sequence } => format!("acknowledged {sequence}"),
            });
            Ok(())
        };
        let mut seat = Seat::new(0, "chat:lobby".to_owned());
        let mut silent = |_: &[u8]| panic!("nothing is answered");
        Roomful::new().read(&mut seat, message, &mut listener, &mut silent)?;
        Ok(heard)
    }

    #[test]
    fn events_and_replies_are_heard_alone_and_in_batches() {
        assert_eq!(
            heard(&message(&event_of(9))).unwrap(),
            ["delivery Some(9) 64"]
        );
        let parts = [
            message(&ok_of(4)),
            message(&event_of(9)),
            message(&event_of(10)),
        ];
        let mut batch = Vec::new();
        Encoding::MessagePack.encode_batch(parts.iter().map(Vec::as_slice), &mut batch);
        let expected = [
            "acknowledged 4",
            "delivery Some(9) 64",
            "delivery Some(10) 64",
        ];
        assert_eq!(heard(&batch).unwrap(), expected);
    }

    /// Later versions may append fields everywhere.
    #[test]
    fn an_event_with_later_fields_is_read() {
        let mut longer = vec![
            0x94, 34, 7, 0x97, 9, 1, 0, 0xa1, b'u', 0xc0, 0x93, 0, 0xc4, 1, 5, 0xc0,
        ];
        longer.extend([0xc0, 0x91, 0xc3]);
        assert_eq!(heard(&longer).unwrap(), ["delivery Some(9) 1"]);
    }

    #[test]
    fn what_goes_wrong_is_an_error_with_its_reason() {
        let refused = ErrorFrame {
            request: None,
            code: ErrorCode::RateLimited.into(),
            text: "too many publishes".to_owned(),
            retry: Retry::After,
            after_ms: None,
            current: Vec::new(),
        };
        let skipped = Advance {
            room: RoomAlias(1),
            offset: Offset(3),
        };
        for (frame, reason) in [
            (refused.into(), "too many publishes"),
            (skipped.into(), "lost"),
        ] {
            let text = format!("{:#}", heard(&message(&frame)).unwrap_err());
            assert!(text.contains(reason), "{text}");
        }
        let whole = message(&event_of(9));
        assert!(heard(&whole[..whole.len() - 1]).is_err());
        assert!(heard(&[whole, vec![0xc0]].concat()).is_err());
    }

    #[test]
    fn the_url_carries_the_placement_key() {
        let path = |room: &str| {
            let upgrade = Roomful::new().upgrade(&Seat::new(0, room.to_owned()));
            upgrade.map(|upgrade| upgrade.path)
        };
        assert_eq!(path("chat:lobby").unwrap(), "/v1/ws?k=1bc5c3481e8d9d9c");
        assert!(path("lobby").is_err());
    }
}
