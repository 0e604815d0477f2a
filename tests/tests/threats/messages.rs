//! Attacks with messages: nonsense, floods, and what one user may do on all connections.

use roomful_protocol::codec::Encoding;
use roomful_protocol::error::{CloseCode, ErrorCode};
use roomful_protocol::frame::{
    Cursor, CursorRequest, Direction, History, Join, JoinProducer, Leave, OpId, Publish, Recovery,
    ServerFrame, Watch,
};
use roomful_protocol::id::{Epoch, Offset, ProducerId, RoomName, Sequence};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_tests::raw::{Incoming, assert_error, join};
use roomful_tests::server::UNLIMITED;
use roomful_tests::tokens::{self, AUDIENCE, KEY};
use roomful_tests::{Connect, Healthy, RawClient, Server};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use crate::attack::Attack;

const MESSAGES_LIMITED: &str = "[connection]\nmessages_per_s = 60\nmessages_burst = 100\n";

/// What JSON allows and nobody means, or doesn't allow and parsers take: an error each, and the session lives.
#[tokio::test]
async fn odd_json_gets_a_typed_error() {
    let server = Server::start().await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let bad = [
        "[\"ping\",NaN]",
        "[\"ping\",1e999]",
        "[\"ping\",123456789012345678901234567890]",
        "[\"join\",5,\"\\ud800\"]",
        "[\"ping\",5",
        "[\"ping\",5]]",
    ];
    let mut client = Connect::to(&server).encoding(Encoding::Json).ready().await;
    for message in bad {
        client.send_message(Message::text(message)).await;
        assert_error(&client.error().await, ErrorCode::BadFrame);
    }
    client
        .send_message(Message::text("[\"ping\",5,{\"a\":1,\"a\":2}]"))
        .await;
    let pong = client.next().await;
    assert!(matches!(pong, ServerFrame::Pong(_)), "{pong:?}");
    attack
        .moved(("roomful_errors_total", Some(("code", "bad_frame"))), 6.0)
        .await;
}

/// A thousand rooms of which the placement keys fall into one bucket of 256: all live on one of two shards, each is entered, and
/// a healthy room notices nothing.
#[tokio::test]
async fn rooms_that_are_named_to_collide_hold_nobody_up() {
    let config = format!("shards = 2\n{UNLIMITED}");
    let server = Server::with_config(&config).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let names = (0..).map(|number| format!("chat:{number}"));
    let colliding = |name: &String| {
        let key = RoomName::parse(name.as_bytes()).unwrap().placement_key();
        key.0 % 256 == 7
    };
    let mut names = names.filter(colliding);
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = RawClient::connect(&server).await;
        for name in names.by_ref().take(50) {
            let joined = client.join(&name).await;
            client.publish(joined.room, Payload::text("x")).await;
        }
        clients.push(client);
    }
    attack.moved(("roomful_rooms", None), 1_000.0).await;
}

/// Positions that the room never had: of another epoch, above the head, at the end of the numbers. Each join starts anew and says so.
#[tokio::test]
async fn a_position_that_cannot_be_is_reset() {
    let server = Server::start().await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let mut client = RawClient::connect(&server).await;
    let room = client.join("chat:positions").await;
    client.publish(room.room, Payload::text("one")).await;
    let epoch = room.head.epoch;
    let last = Offset((1 << 53) - 1);
    let positions = [
        Position::new(Epoch(epoch.0 + 1), Offset(0)),
        Position::new(Epoch(epoch.0 - 1), Offset(1)),
        Position::new(epoch, Offset(2)),
        Position::new(epoch, last),
        Position::new(Epoch((1 << 53) - 1), last),
    ];
    for since in positions {
        let mut client = RawClient::connect(&server).await;
        let since = Some(since);
        let joined = client
            .join_with(Join {
                since,
                ..join("chat:positions")
            })
            .await
            .unwrap();
        assert_eq!(joined.recovery, Recovery::Reset, "{since:?}");
        assert_eq!(joined.position, joined.head);
    }
    attack.moved(("roomful_resets_total", None), 5.0).await;
}

/// Fifty connections send one operation at once: it takes effect once, and each is told where.
#[tokio::test]
async fn fifty_senders_of_one_operation_have_one_effect() {
    let server = Server::start().await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let producer = ProducerId(77);
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = RawClient::connect(&server).await;
        let producer = Some(JoinProducer {
            producer,
            next: Sequence(1),
        });
        let joined = client
            .join_with(Join {
                producer,
                echo: false,
                ..join("chat:race")
            })
            .await
            .unwrap();
        clients.push((client, joined.room));
    }
    let op = Some(OpId {
        producer,
        sequence: Sequence(1),
    });
    for (client, room) in &mut clients {
        let request = client.new_request();
        let publish = Publish {
            request,
            room: *room,
            op,
            payload: Payload::text("once"),
        };
        client.send(&publish.into()).await;
    }
    for (client, _) in &mut clients {
        let offset = client
            .next_that(|frame| match frame {
                ServerFrame::Ok(ok) => match ok.reply {
                    roomful_protocol::frame::Reply::Published(published) => {
                        Some(published.position.offset)
                    }
                    _ => None,
                },
                _ => None,
            })
            .await;
        assert_eq!(offset, Offset(1));
    }
    attack
        .moved(("roomful_publish_duplicates_total", None), 49.0)
        .await;
}

/// Frames that were recorded on one connection mean nothing on another: the number of a room is good for those who joined it.
#[tokio::test]
async fn a_recorded_frame_has_no_effect_on_another_connection() {
    let server = Server::start().await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let mut victim = RawClient::connect(&server).await;
    let room = victim.join("chat:recorded").await.room;
    victim.publish(room, Payload::text("mine")).await;
    for _ in 0..10 {
        let mut thief = RawClient::connect(&server).await;
        let error = thief
            .publish_with(room, None, Payload::text("mine"))
            .await
            .unwrap_err();
        assert_error(&error, ErrorCode::NotJoined);
    }
    attack
        .moved(("roomful_errors_total", Some(("code", "not_joined"))), 10.0)
        .await;
}

/// Pings without end, and pongs that nobody asked for: closed at the fifty-first, and counted once each.
#[tokio::test]
async fn a_flood_of_control_frames_closes_with_4429() {
    let server = Server::start().await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    for opcode in [0x89, 0x8a] {
        for _ in 0..5 {
            let mut client = RawClient::connect(&server).await;
            client.send_below(&[opcode, 0x80, 0, 0, 0, 0].repeat(200));
            assert_eq!(
                client.closed().await.code,
                Some(CloseCode::RateLimited.code())
            );
        }
    }
    attack
        .moved(
            ("roomful_rate_limited_total", Some(("limit", "control"))),
            10.0,
        )
        .await;
}

/// As many as the limit allows are answered.
#[tokio::test]
async fn control_frames_at_the_bound_are_answered() {
    let server = Server::start().await;
    let mut client = RawClient::connect(&server).await;
    client.send_below(&[0x89, 0x80, 0, 0, 0, 0].repeat(50));
    assert_eq!(client.until_pong().await, []);
    let metrics = server.metrics().await;
    assert_eq!(
        metrics.labelled("roomful_rate_limited_total", "limit", "control"),
        0.0
    );
}

/// A sender that is told to slow down and does not is closed, after the grace that a sender gets who has much on its way.
#[tokio::test]
async fn a_sender_that_ignores_rate_limited_is_closed() {
    let config = format!("{MESSAGES_LIMITED}refusals_per_s = 1\nrefusals_burst = 20\n");
    let server = Server::with_config(&config).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    for _ in 0..3 {
        let mut client = RawClient::connect(&server).await;
        let mut sent = 0;
        while sent < 2_000 && client.try_send(ping()).await.is_ok() {
            sent += 1;
        }
        let (refused, code) = refused_until_closed(&mut client).await;
        assert_eq!(code, Some(CloseCode::RateLimited.code()));
        assert!((20..=25).contains(&refused), "{refused} refusals");
    }
    attack
        .moved(
            ("roomful_connections_closed_total", Some(("code", "4429"))),
            3.0,
        )
        .await;
}

/// Messages, bytes and pages of one connection: each beyond its limit is refused and counted, and says when to come again.
#[tokio::test]
async fn what_a_connection_sends_too_much_of_is_refused_and_counted() {
    let bytes = "[connection]\nbytes_per_s = 20000\nbytes_burst = 50000\n";
    let pages = "[connection]\npages_per_s = 1\npages_burst = 5\n";
    for (config, what, at_least) in [
        (MESSAGES_LIMITED, "messages", 50),
        (bytes, "bytes", 5),
        (pages, "pages", 5),
        (pages, "cursors", 5),
    ] {
        let server = Server::with_config(config).await;
        let attack = Attack::beside(&server, Healthy::start(&server).await).await;
        let mut client = RawClient::connect(&server).await;
        let room = client.join("chat:much").await.room;
        let (count, long) = match what {
            "messages" => (300, 0),
            "bytes" => (20, 10_000),
            _ => (20, 0),
        };
        for _ in 0..count {
            match what {
                "cursors" => {
                    let (request, what) = (client.new_request(), CursorRequest::Get);
                    let cursor = Cursor {
                        request,
                        room,
                        what,
                    };
                    client.send(&cursor.into()).await;
                }
                "pages" => {
                    let (request, direction) = (client.new_request(), Direction::Forward);
                    let history = History {
                        request,
                        room,
                        from: None,
                        direction,
                        limit: 10,
                    };
                    client.send(&history.into()).await;
                }
                _ => client.send_message(padded_ping(long)).await,
            }
        }
        let refused = refused_of(&mut client, count).await;
        assert!(
            refused >= at_least && refused < count,
            "{what}: {refused} of {count}"
        );
        let limit = if what == "cursors" { "pages" } else { what };
        attack
            .moved(
                ("roomful_rate_limited_total", Some(("limit", limit))),
                count_of(refused),
            )
            .await;
    }
}

/// A session that enters and leaves without end is slowed, and whoever watches is told a few times, not each time.
#[tokio::test]
async fn a_storm_of_joins_is_slowed_and_presence_is_gathered() {
    let server = Server::with_config("[connection]\njoins_per_s = 20\njoins_burst = 40\n").await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let mut watcher = RawClient::connect(&server).await;
    watcher
        .join_with(Join {
            watch: Watch::Members,
            ..join("chat:storm")
        })
        .await
        .unwrap();
    let mut stormer = RawClient::connect(&server).await;
    let (mut joined, mut refused) = (0, 0);
    let start = Instant::now();
    for _ in 0..90 {
        match stormer.join_with(join("chat:storm")).await {
            Ok(membership) => {
                let room = membership.room;
                stormer
                    .ask(|request| Leave { request, room })
                    .await
                    .unwrap();
                joined += 1;
            }
            Err(error) => {
                assert_eq!(
                    error.code.known(),
                    Some(ErrorCode::RateLimited),
                    "{error:?}"
                );
                refused += 1;
            }
        }
    }
    let windows = 2 + start.elapsed().as_millis() / 100;
    assert!(
        joined >= 40 && refused > 0,
        "{joined} joined, {refused} were refused"
    );
    let seen = watcher.until_pong().await;
    let deltas = seen
        .iter()
        .filter(|frame| matches!(frame, ServerFrame::PresenceDelta(_)));
    assert!(
        deltas.count() as u128 <= windows,
        "more than one delta in 100 ms"
    );
    attack
        .moved(
            ("roomful_rate_limited_total", Some(("limit", "joins"))),
            count_of(refused),
        )
        .await;
}

/// All connections of a user together are held to the user's limits, also where one goes before the next one comes; another
/// user has a share of its own.
#[tokio::test]
async fn a_user_is_one_on_all_connections() {
    let cases: [(&str, &str, usize); 3] = [
        (
            "messages_per_s = 100\nmessages_burst = 300\n",
            "user_messages",
            0,
        ),
        (
            "bytes_per_s = 20000\nbytes_burst = 100000\n",
            "user_bytes",
            2_000,
        ),
        ("joins_per_s = 10\njoins_burst = 20\n", "user_joins", 0),
    ];
    for (limits, limit, long) in cases {
        let server = Server::with_config(&keyed(limits)).await;
        let attack = Attack::beside(&server, healthy(&server).await).await;
        let mut refused = 0;
        for number in 0..4 {
            let mut client = user(&server, "mallory").await.unwrap();
            for index in 0..150 {
                if limit == "user_joins" {
                    let request = client.new_request();
                    let room = format!("chat:{number}-{index}").as_str().into();
                    client
                        .send(
                            &Join {
                                request,
                                room,
                                ..join("")
                            }
                            .into(),
                        )
                        .await;
                } else {
                    client.send_message(padded_ping(long)).await;
                }
                if limit == "user_joins" && index == 40 {
                    break;
                }
            }
            let count = if limit == "user_joins" { 41 } else { 150 };
            refused += refused_of(&mut client, count).await;
            client.close().await;
        }
        assert!(refused > 50, "{limit}: {refused}");
        attack
            .moved(
                ("roomful_rate_limited_total", Some(("limit", limit))),
                count_of(refused),
            )
            .await;
    }
}

/// At the bound of a user's connections: so many, no more, and one more when one has gone.
#[tokio::test]
async fn a_user_has_so_many_connections() {
    let server = Server::with_config(&keyed("connections_max = 8\n")).await;
    let attack = Attack::beside(&server, healthy(&server).await).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(user(&server, "mallory").await.unwrap());
    }
    for _ in 0..3 {
        let closed = user(&server, "mallory").await.unwrap_err();
        assert_eq!(closed, Some(CloseCode::RateLimited.code()));
    }
    held.pop().unwrap().close().await;
    roomful_tests::until(
        "a place is free",
        roomful_tests::wait::PATIENCE,
        async || server.metrics().await.value("roomful_connections") <= 12.0,
    )
    .await;
    user(&server, "mallory").await.unwrap();
    attack
        .moved(
            (
                "roomful_rate_limited_total",
                Some(("limit", "user_connections")),
            ),
            3.0,
        )
        .await;
}

/// Whoever goes and comes again opens no more rooms than one who stays.
#[tokio::test]
async fn coming_again_opens_no_more_rooms() {
    let server = Server::with_config(&keyed("rooms_per_minute = 10\n")).await;
    let attack = Attack::beside(&server, healthy(&server).await).await;
    let mut opened = 0;
    for number in 0..14 {
        let mut client = user(&server, "mallory").await.unwrap();
        match client.join_with(join(&format!("chat:room-{number}"))).await {
            Ok(_) => opened += 1,
            Err(error) => assert_error(&error, ErrorCode::RateLimited),
        }
        client.close().await;
    }
    assert_eq!(opened, 10);
    let limit = Some(("limit", "user_rooms"));
    attack
        .moved(("roomful_rate_limited_total", limit), 4.0)
        .await;
}

/// At the bounds of a user's memberships, and of the rooms that it opens in a minute.
#[tokio::test]
async fn a_user_is_in_so_many_rooms_and_opens_so_many() {
    for (limits, limit, code) in [
        (
            "memberships_max = 10\n",
            "user_memberships",
            ErrorCode::TooManyRooms,
        ),
        (
            "rooms_per_minute = 10\n",
            "user_rooms",
            ErrorCode::RateLimited,
        ),
    ] {
        let server = Server::with_config(&keyed(limits)).await;
        let attack = Attack::beside(&server, healthy(&server).await).await;
        let mut clients = [
            user(&server, "mallory").await.unwrap(),
            user(&server, "mallory").await.unwrap(),
        ];
        for number in 0..14 {
            let client = &mut clients[number % 2];
            let outcome = client.join_with(join(&format!("chat:room-{number}"))).await;
            match outcome {
                Ok(_) => assert!(number < 10, "{limit}: room {number}"),
                Err(error) => {
                    assert!(number >= 10, "{limit}: {error:?}");
                    assert_eq!(error.code.known(), Some(code), "{error:?}");
                }
            }
        }
        attack
            .moved(("roomful_rate_limited_total", Some(("limit", limit))), 4.0)
            .await;
    }
}

fn keyed(limits: &str) -> String {
    format!(
        "[auth]\naudience = \"{AUDIENCE}\"\nkeys = [{{ id = \"main\", algorithm = \"HS256\", secret = \"{KEY}\" }}]\n[user]\n{limits}"
    )
}

async fn healthy(server: &Server) -> Healthy {
    let token = tokens::sign(&tokens::claims("healthy"));
    Healthy::start_with(&Connect::to(server), Some(&token)).await
}

/// A connection of a user, or the code with which it was closed.
async fn user(server: &Server, name: &str) -> Result<RawClient, Option<u16>> {
    let token = tokens::sign(&tokens::claims(name));
    let mut client = Connect::to(server).open().await.unwrap();
    match client.hello_with(Some(&token), None).await {
        Ok(_) => Ok(client),
        Err(error) => {
            assert_eq!(
                error.code.known(),
                Some(ErrorCode::RateLimited),
                "{error:?}"
            );
            Err(client.closed().await.code)
        }
    }
}

fn ping() -> Message {
    padded_ping(0)
}

/// A ping with some bytes that nobody reads, and a request id that no other request has.
fn padded_ping(bytes: usize) -> Message {
    let mut message = b"\x93\x09\xcd\xff\xff\xc6".to_vec();
    message.extend(u32::try_from(bytes).unwrap().to_be_bytes());
    message.resize(message.len() + bytes, 0);
    Message::binary(message)
}

/// How many of so many requests were refused as `rate_limited`; the others were answered.
async fn refused_of(client: &mut RawClient, requests: usize) -> usize {
    let (mut answered, mut refused) = (0, 0);
    while answered < requests {
        match client.next().await {
            ServerFrame::Error(error) => {
                assert_eq!(
                    error.code.known(),
                    Some(ErrorCode::RateLimited),
                    "{error:?}"
                );
                assert!(
                    error.after_ms.is_some_and(|after_ms| after_ms > 0),
                    "{error:?}"
                );
                (answered, refused) = (answered + 1, refused + 1);
            }
            ServerFrame::Pong(_) | ServerFrame::Ok(_) | ServerFrame::Joined(_) => answered += 1,
            _ => {}
        }
    }
    refused
}

async fn refused_until_closed(client: &mut RawClient) -> (usize, Option<u16>) {
    let mut refused = 0;
    loop {
        match client.incoming().await {
            Incoming::Frame(ServerFrame::Error(_)) => refused += 1,
            Incoming::Frame(_) => {}
            Incoming::Closed(closed) => return (refused, closed.code),
        }
    }
}

fn count_of(refused: usize) -> f64 {
    f64::from(u32::try_from(refused).unwrap())
}
