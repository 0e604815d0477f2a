//! What strangers send: each slip gets its own typed answer, and the others in the room notice nothing.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use rand::RngExt as _;
use roomful_protocol::codec::Encoding;
use roomful_protocol::error::{CloseCode, ErrorCode};
use roomful_protocol::frame::{Hello, Ping, ServerFrame};
use roomful_protocol::id::{Offset, RequestId, RoomAlias, RoomName};
use roomful_protocol::payload::Payload;
use roomful_tests::raw::{Incoming, assert_error, join, reply_to};
use roomful_tests::seed::seeded;
use roomful_tests::{Connect, RawClient, Server};
use tokio_tungstenite::tungstenite::Message;

/// Messages that are no frames, in MessagePack: what they are, their bytes, the error, and the request it answers.
const BAD_MSGPACK: &[(&str, &[u8], ErrorCode, Option<u64>)] = &[
    ("nothing", b"", ErrorCode::BadFrame, None),
    ("nil", b"\xc0", ErrorCode::BadFrame, None),
    ("a map", b"\x81\x09\x05", ErrorCode::BadFrame, None),
    ("an empty array", b"\x90", ErrorCode::BadFrame, None),
    (
        "an array cut short",
        b"\x93\x09\x05",
        ErrorCode::BadFrame,
        Some(5),
    ),
    (
        "a type that nobody has",
        b"\x92\x63\x05",
        ErrorCode::UnknownType,
        Some(5),
    ),
    (
        "a type of the server's",
        b"\x92\x20\x05",
        ErrorCode::UnknownType,
        Some(5),
    ),
    (
        "a type that is a text",
        b"\x92\xa4ping\x05",
        ErrorCode::BadFrame,
        Some(5),
    ),
    (
        "a join without a room",
        b"\x92\x02\x05",
        ErrorCode::BadFrame,
        Some(5),
    ),
    (
        "a room that is a number",
        b"\x93\x02\x05\x07",
        ErrorCode::BadFrame,
        Some(5),
    ),
    (
        "a negative request id",
        b"\x92\x09\xff",
        ErrorCode::BadFrame,
        None,
    ),
    (
        "a request id of 2^53",
        b"\x92\x09\xcf\x00\x20\x00\x00\x00\x00\x00\x00",
        ErrorCode::BadFrame,
        None,
    ),
    (
        "a byte behind the frame",
        b"\x92\x09\x05\xc0",
        ErrorCode::BadFrame,
        Some(5),
    ),
    (
        "a text that claims 4 GiB",
        b"\x93\x02\x05\xdb\xff\xff\xff\xff",
        ErrorCode::BadFrame,
        Some(5),
    ),
    (
        "an array that claims 4 G elements",
        b"\xdd\xff\xff\xff\xff\x09\x05",
        ErrorCode::BadFrame,
        Some(5),
    ),
    (
        "a batch inside a batch",
        b"\x92\x0a\x91\x92\x0a\x90",
        ErrorCode::BadFrame,
        None,
    ),
    (
        "a payload of format 9",
        b"\x95\x04\x05\x01\xc0\x92\x09\xc4\x00",
        ErrorCode::BadFrame,
        Some(5),
    ),
];

/// The same in JSON.
const BAD_JSON: &[(&str, &[u8], ErrorCode, Option<u64>)] = &[
    ("nothing", b"", ErrorCode::BadFrame, None),
    ("null", b"null", ErrorCode::BadFrame, None),
    ("an object", b"{\"ping\":5}", ErrorCode::BadFrame, None),
    ("an empty array", b"[]", ErrorCode::BadFrame, None),
    (
        "an array cut short",
        b"[\"ping\",5",
        ErrorCode::BadFrame,
        Some(5),
    ),
    (
        "a type that nobody has",
        b"[\"pong!\",5]",
        ErrorCode::UnknownType,
        Some(5),
    ),
    (
        "a type of the server's",
        b"[\"welcome\",5]",
        ErrorCode::UnknownType,
        Some(5),
    ),
    (
        "a type that is a number",
        b"[9,5]",
        ErrorCode::BadFrame,
        Some(5),
    ),
    (
        "a join without a room",
        b"[\"join\",5]",
        ErrorCode::BadFrame,
        Some(5),
    ),
    (
        "a room that is a number",
        b"[\"join\",5,7]",
        ErrorCode::BadFrame,
        Some(5),
    ),
    (
        "a negative request id",
        b"[\"ping\",-1]",
        ErrorCode::BadFrame,
        None,
    ),
    (
        "a request id of 2^53",
        b"[\"ping\",9007199254740992]",
        ErrorCode::BadFrame,
        None,
    ),
    (
        "something behind the frame",
        b"[\"ping\",5] 1",
        ErrorCode::BadFrame,
        Some(5),
    ),
    (
        "a payload that is not base64",
        b"[\"publish\",5,1,null,[\"binary\",\"*\"]]",
        ErrorCode::BadFrame,
        Some(5),
    ),
    (
        "a batch inside a batch",
        b"[\"batch\",[[\"batch\",[]]]]",
        ErrorCode::BadFrame,
        None,
    ),
];

/// Each gets its error, with the request id where one could be read, and the connection lives on. The watcher sees none of it.
#[tokio::test]
async fn a_message_that_is_no_frame_gets_a_typed_error() {
    let server = Server::start().await;
    let mut watcher = Watcher::start(&server).await;
    for (encoding, cases) in [
        (Encoding::MessagePack, BAD_MSGPACK),
        (Encoding::Json, BAD_JSON),
    ] {
        for (what, message, code, request) in cases {
            let mut client = Connect::to(&server).encoding(encoding).ready().await;
            client.send_bytes(message.to_vec()).await;
            let error = client.error().await;
            assert_error(&error, *code);
            assert_eq!(
                error.request,
                request.map(RequestId),
                "{encoding:?}: {what}: {error:?}"
            );
            assert_eq!(client.until_pong().await, [], "{encoding:?}: {what}");
        }
    }
    watcher.has_seen_nothing().await;
}

/// Nesting is refused before anything recurses, in both encodings and at any depth.
#[tokio::test]
async fn deep_nesting_is_refused() {
    let server = Server::start().await;
    for levels in [40, 1_000, 15_000] {
        for (encoding, open, close) in [
            (
                Encoding::MessagePack,
                b"\x91".as_slice(),
                b"\xc0".as_slice(),
            ),
            (Encoding::Json, b"[", b"]"),
        ] {
            let mut message = open.repeat(levels);
            message.extend(if encoding == Encoding::Json {
                close.repeat(levels)
            } else {
                close.to_vec()
            });
            let mut client = Connect::to(&server).encoding(encoding).ready().await;
            client.send_bytes(message).await;
            assert_error(&client.error().await, ErrorCode::BadFrame);
            assert_eq!(client.until_pong().await, []);
        }
    }
}

/// A connection may err sixteen times a minute; the next error is its last, and the close has the code that says so.
#[tokio::test]
async fn the_error_budget_ends_a_connection_that_sends_nothing_else() {
    let server = Server::start().await;
    let mut watcher = Watcher::start(&server).await;
    for encoding in Encoding::ALL {
        let mut client = Connect::to(&server).encoding(encoding).ready().await;
        let mut errors = 0;
        for _ in 0..40 {
            if client.try_send(not_a_frame(encoding)).await.is_err() {
                break;
            }
        }
        let closed = loop {
            match client.incoming().await {
                Incoming::Frame(ServerFrame::Error(error)) => {
                    assert_error(&error, ErrorCode::BadFrame);
                    errors += 1;
                }
                Incoming::Frame(other) => panic!("{other:?}"),
                Incoming::Closed(closed) => break closed,
            }
        };
        assert_eq!(
            (closed.code, errors),
            (Some(CloseCode::PolicyViolation.code()), 17),
            "{closed:?}"
        );
    }
    assert_eq!(closes(&server, CloseCode::PolicyViolation).await, 2.0);
    watcher.has_seen_nothing().await;
}

/// A peer that broke the protocol, with more behind it, and then neither reads nor closes: its socket waits for it, and
/// the thread does not. Once the rest that nobody would handle was kept, and looked at in every turn.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_peer_that_breaks_the_protocol_and_stays_costs_no_time() {
    let server = Server::start().await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let client = Connect::to(&server).ready().await;
        // Not masked, as a client's frames have to be.
        client.send_below(&[0x82, 0x02, b'h', b'i', 0x82, 0x02, b'h', b'i']);
        clients.push(client);
    }
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let before = processor_ticks(server.process().id());
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let ticks = processor_ticks(server.process().id()) - before;
    assert!(ticks < 50, "{ticks} ticks of 10 ms in a second");
}

/// User and system time of a process (proc(5): fields 14 and 15 of `stat`), in ticks.
#[cfg(target_os = "linux")]
fn processor_ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, behind_name) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = behind_name.split_whitespace().collect();
    [11, 12]
        .map(|field: usize| fields[field].parse::<u64>().unwrap())
        .iter()
        .sum()
}

/// Any bytes stand where a room's name should: it is a name by the grammar, or `bad_room_name`.
#[tokio::test]
async fn a_room_name_is_valid_or_refused_by_name() {
    let server = Server::start().await;
    for encoding in Encoding::ALL {
        let mut client = Connect::to(&server).encoding(encoding).ready().await;
        let too_long = format!("chat:{}", "a".repeat(251));
        for name in [
            "",
            "lobby",
            ":lobby",
            "chat:",
            "Chat:lobby",
            "chat:lob by",
            "chat:lob*",
            "chat:\u{0}",
            "chat:löbby",
            &too_long,
        ] {
            let error = client.join_with(join(name)).await.unwrap_err();
            assert_error(&error, ErrorCode::BadRoomName);
        }
        client.join(&format!("chat:{}", "a".repeat(250))).await;
    }
    let mut random = seeded("a_room_name_is_valid_or_refused_by_name");
    for _ in 0..100 {
        let name: Vec<u8> = (0..random.random_range(0..40))
            .map(|_| random.random())
            .collect();
        let mut client = RawClient::connect(&server).await;
        let mut message = vec![0x93, 0x02, 0x05, 0xc4, u8::try_from(name.len()).unwrap()];
        message.extend(&name);
        client.send_bytes(message).await;
        let reply = client.next().await;
        assert_eq!(reply_to(&reply), Some(RequestId(5)), "{name:?}: {reply:?}");
        match (RoomName::parse(&name), reply) {
            (Ok(_), ServerFrame::Joined(_)) => {}
            (Err(_), ServerFrame::Error(error)) => assert_error(&error, ErrorCode::BadRoomName),
            (parsed, reply) => panic!("{name:?}: {parsed:?} and {reply:?}"),
        }
    }
}

/// A payload must be what its tag says, and no longer than the limit; the publisher is told, the room is not.
#[tokio::test]
async fn a_bad_payload_is_refused_by_its_own_error() {
    let server = Server::start().await;
    let mut watcher = Watcher::start(&server).await;
    let mut client = Connect::to(&server).open().await.unwrap();
    let limit = client.hello().await.limits.payload_bytes_max;
    let room = client.join(WATCHED).await.room;
    let text = |bytes: &'static [u8]| Payload {
        format: roomful_protocol::payload::PayloadFormat::Text,
        bytes: bytes.into(),
    };
    let limit = usize::try_from(limit).unwrap();
    for (payload, code) in [
        (Payload::json("{"), ErrorCode::BadPayload),
        (Payload::json("1 2"), ErrorCode::BadPayload),
        (
            Payload::json("[".repeat(33) + &"]".repeat(33)),
            ErrorCode::BadPayload,
        ),
        (text(b"\xff"), ErrorCode::BadPayload),
        (
            Payload::binary(vec![0; limit + 1]),
            ErrorCode::PayloadTooLarge,
        ),
    ] {
        let error = client.publish_with(room, None, payload).await.unwrap_err();
        assert_error(&error, code);
    }
    watcher.has_seen_nothing().await;
}

/// A message of the limit's length is read, one byte more closes the connection before it is.
#[tokio::test]
async fn a_message_over_the_limit_closes_with_1009() {
    let server = Server::start().await;
    let mut watcher = Watcher::start(&server).await;
    for encoding in Encoding::ALL {
        let mut client = Connect::to(&server)
            .encoding(encoding)
            .open()
            .await
            .unwrap();
        let limit = usize::try_from(client.hello().await.limits.message_bytes_max).unwrap();
        client.send_bytes(ping_of(encoding, limit)).await;
        let pong = client.next().await;
        assert!(matches!(pong, ServerFrame::Pong(_)), "{pong:?}");
        client.send_bytes(ping_of(encoding, limit + 1)).await;
        assert_eq!(
            client.closed().await.code,
            Some(CloseCode::MessageTooBig.code())
        );
    }
    watcher.has_seen_nothing().await;
}

/// The kind of message is the subprotocol's: the other kind closes.
#[tokio::test]
async fn a_message_of_the_wrong_kind_closes_with_1003() {
    let server = Server::start().await;
    for (encoding, message) in [
        (Encoding::MessagePack, Message::text("[\"ping\",1]")),
        (Encoding::Json, Message::binary(b"\x92\x09\x01".to_vec())),
    ] {
        let mut client = Connect::to(&server).encoding(encoding).ready().await;
        client.send_message(message).await;
        assert_eq!(
            client.closed().await.code,
            Some(CloseCode::UnsupportedData.code())
        );
    }
}

/// What breaks RFC 6455 is closed with the code that the RFC has for it.
#[tokio::test]
async fn broken_websocket_frames_close_with_their_code() {
    let server = Server::start().await;
    let mut watcher = Watcher::start(&server).await;
    for (what, encoding, bytes, code) in [
        (
            "not masked",
            Encoding::MessagePack,
            b"\x82\x03\x92\x09\x01".as_slice(),
            CloseCode::ProtocolError,
        ),
        (
            "a reserved bit",
            Encoding::MessagePack,
            b"\xc2\x80\0\0\0\0",
            CloseCode::ProtocolError,
        ),
        (
            "a reserved opcode",
            Encoding::MessagePack,
            b"\x83\x80\0\0\0\0",
            CloseCode::ProtocolError,
        ),
        (
            "a fragmented ping",
            Encoding::MessagePack,
            b"\x09\x80\0\0\0\0",
            CloseCode::ProtocolError,
        ),
        (
            "a continuation of nothing",
            Encoding::MessagePack,
            b"\x80\x80\0\0\0\0",
            CloseCode::ProtocolError,
        ),
        (
            "a text that is not UTF-8",
            Encoding::Json,
            b"\x81\x81\0\0\0\0\xff",
            CloseCode::InvalidUtf8,
        ),
        (
            "a length of 2^62",
            Encoding::MessagePack,
            b"\x82\xff\x40\0\0\0\0\0\0\0\0\0\0\0",
            CloseCode::MessageTooBig,
        ),
    ] {
        let mut client = Connect::to(&server).encoding(encoding).ready().await;
        client.send_below(bytes);
        assert_eq!(client.closed().await.code, Some(code.code()), "{what}");
    }
    watcher.has_seen_nothing().await;
}

/// `hello` comes first, and once.
#[tokio::test]
async fn hello_comes_first_and_once() {
    let server = Server::start().await;
    let mut early = Connect::to(&server).open().await.unwrap();
    let refused = early.join_with(join("chat:early")).await.unwrap_err();
    assert_error(&refused, ErrorCode::BadState);
    let mut twice = RawClient::connect(&server).await;
    let refused = twice
        .request(|request| Hello {
            request,
            token: None,
            resume: None,
            agent: None,
        })
        .await
        .unwrap_err();
    assert_error(&refused, ErrorCode::BadState);
    assert_eq!(twice.until_pong().await, []);
}

/// A room's alias is good only for those who joined it.
#[tokio::test]
async fn publishing_into_a_room_not_joined_is_refused() {
    let server = Server::start().await;
    let mut watcher = Watcher::start(&server).await;
    let mut client = RawClient::connect(&server).await;
    for room in [watcher.room, RoomAlias(0), RoomAlias((1 << 53) - 1)] {
        let error = client
            .publish_with(room, None, Payload::text("in"))
            .await
            .unwrap_err();
        assert_error(&error, ErrorCode::NotJoined);
    }
    watcher.has_seen_nothing().await;
}

/// A connection may be in so many rooms, and `welcome` says in how many.
#[tokio::test]
async fn one_room_too_many_is_refused() {
    let server = Server::with_config("[connection]\nrooms_max = 3\n").await;
    let mut client = Connect::to(&server).open().await.unwrap();
    assert_eq!(client.hello().await.limits.rooms_max, 3);
    for number in 0..3 {
        client.join(&format!("chat:{number}")).await;
    }
    let error = client.join_with(join("chat:3")).await.unwrap_err();
    assert_error(&error, ErrorCode::TooManyRooms);
    assert_eq!(client.until_pong().await, []);
}

/// A flood of joins is slowed by a typed error that says when to come again, and the others' room goes on.
#[tokio::test]
async fn a_flood_of_joins_is_rate_limited() {
    let server = Server::start().await;
    let mut watcher = Watcher::start(&server).await;
    let mut client = RawClient::connect(&server).await;
    let mut limited = None;
    for number in 0..2_000 {
        let Ok(joined) = client
            .join_with(join(&format!("chat:flood-{number}")))
            .await
            .map_err(|error| limited = Some(error))
        else {
            break;
        };
        let room = joined.room;
        if client
            .ask(|request| roomful_protocol::frame::Leave { request, room })
            .await
            .map_err(|error| limited = Some(error))
            .is_err()
        {
            break;
        }
    }
    let error = limited.unwrap();
    assert_error(&error, ErrorCode::RateLimited);
    assert!(error.after_ms.is_some_and(|after| after > 0), "{error:?}");
    watcher.has_seen_nothing().await;
}

/// Random bytes never do more harm than any other bad frame.
#[tokio::test]
async fn random_messages_are_answered_or_close() {
    let server = Server::start().await;
    let mut watcher = Watcher::start(&server).await;
    let mut random = seeded("random_messages_are_answered_or_close");
    for _ in 0..50 {
        let mut client = RawClient::connect(&server).await;
        for _ in 0..8 {
            let message: Vec<u8> = (0..random.random_range(0..64))
                .map(|_| random.random())
                .collect();
            client.send_bytes(message).await;
        }
        client
            .send(
                &Ping {
                    request: RequestId(77),
                }
                .into(),
            )
            .await;
        client
            .next_that(|frame| {
                matches!(frame, ServerFrame::Pong(pong) if pong.request == RequestId(77))
                    .then_some(())
            })
            .await;
    }
    assert_eq!(server.metrics().await.value("roomful_panics_total"), 0.0);
    watcher.has_seen_nothing().await;
}

/// The room of the one who must notice nothing.
const WATCHED: &str = "chat:watched";

/// Somebody well-behaved.
struct Watcher {
    client: RawClient,
    room: RoomAlias,
}

impl Watcher {
    async fn start(server: &Server) -> Self {
        let mut client = RawClient::connect(server).await;
        let room = client.join(WATCHED).await.room;
        Self { client, room }
    }

    /// The next thing that happens in the room is the first: this message.
    async fn has_seen_nothing(&mut self) {
        let published = self
            .client
            .publish(self.room, Payload::text("still here"))
            .await;
        assert_eq!(published.position.offset, Offset(1));
        let first = self.client.next().await;
        assert!(
            matches!(&first, ServerFrame::Event(event) if event.entry.offset == Offset(1)),
            "{first:?}"
        );
        assert_eq!(self.client.until_pong().await, []);
    }
}

/// A ping that is exactly so many bytes long: fields behind the known ones are read over.
fn ping_of(encoding: Encoding, bytes: usize) -> Vec<u8> {
    match encoding {
        Encoding::MessagePack => {
            let mut message = b"\x93\x09\x05\xc6".to_vec();
            message.extend(u32::try_from(bytes - 8).unwrap().to_be_bytes());
            message.resize(bytes, 0);
            message
        }
        Encoding::Json => format!("[\"ping\",5,\"{}\"]", "a".repeat(bytes - 13)).into_bytes(),
    }
}

async fn closes(server: &Server, code: CloseCode) -> f64 {
    server.metrics().await.labelled(
        "roomful_connections_closed_total",
        "code",
        &code.code().to_string(),
    )
}

fn not_a_frame(encoding: Encoding) -> Message {
    match encoding {
        Encoding::MessagePack => Message::binary(b"\xc0".to_vec()),
        Encoding::Json => Message::text("null"),
    }
}
