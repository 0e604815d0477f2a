//! Rooms as their members see them: one order, positions without a gap, recovery, signals, presence, history, op ids.

use roomful_protocol::codec::Encoding;
use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{
    Direction, Event, Join, JoinProducer, Leave, OpId, Recovery, ServerFrame,
};
use roomful_protocol::id::{Epoch, Offset, ProducerId, Sequence};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_tests::raw::{assert_error, join, placements};
use roomful_tests::server::UNLIMITED;
use roomful_tests::{Connect, RawClient, Server};

const PRODUCER: ProducerId = ProducerId(4_711);

/// Members on both shards and in both encodings publish at once; each sees the same entries at the same offsets, without a gap.
#[tokio::test]
async fn all_members_see_one_order_whatever_their_shard_and_encoding() {
    let server = Server::start().await;
    let mut clients = Vec::new();
    for (placement, encoding) in placements().zip(Encoding::ALL.into_iter().cycle()).take(12) {
        let mut client = Connect::to(&server)
            .encoding(encoding)
            .placement(placement)
            .ready()
            .await;
        let joined = client.join("chat:order").await;
        clients.push((client, joined.room));
    }
    for round in 0..20 {
        for (index, (client, room)) in clients.iter_mut().enumerate() {
            let payload = Payload::text(format!("{index}/{round}"));
            let room = *room;
            let request = client.new_request();
            client
                .send(
                    &roomful_protocol::frame::Publish {
                        request,
                        room,
                        op: None,
                        payload,
                    }
                    .into(),
                )
                .await;
        }
    }
    let mut orders = Vec::new();
    for (client, _) in &mut clients {
        let mut order = Vec::new();
        for offset in 1..=240 {
            let entry = client.event().await.entry;
            assert_eq!(entry.offset, Offset(offset));
            order.push(entry.payload.bytes);
        }
        orders.push(order);
    }
    assert!(orders.iter().all(|order| *order == orders[0]));
    // Members on one shard would prove nothing about crossing.
    assert!(
        server
            .metrics()
            .await
            .value("roomful_mailbox_messages_total")
            > 0.0
    );
}

/// The reply to a publish names the position at which everybody, the publisher included, gets the event.
#[tokio::test]
async fn an_ack_names_the_position_of_the_event() {
    let server = Server::start().await;
    let mut client = RawClient::connect(&server).await;
    let joined = client.join("chat:ack").await;
    assert_eq!(
        (joined.position.offset, joined.recovery, joined.occupancy),
        (Offset(0), Recovery::Live, 1)
    );
    let published = client.publish(joined.room, Payload::text("hi")).await;
    let entry = client.event().await.entry;
    assert_eq!(
        published.position,
        Position::new(joined.position.epoch, entry.offset)
    );
    assert_eq!(
        (published.time_ms, published.duplicate),
        (entry.time_ms, false)
    );
    assert_eq!(entry.payload, Payload::text("hi"));
}

/// Every payload format arrives byte for byte in both encodings, whichever encoding it was sent in.
#[tokio::test]
async fn a_payload_arrives_as_it_was_sent_in_either_encoding() {
    let server = Server::start().await;
    let mut readers = [
        ready(&server, Encoding::MessagePack).await,
        ready(&server, Encoding::Json).await,
    ];
    for reader in &mut readers {
        reader.join("chat:formats").await;
    }
    for encoding in Encoding::ALL {
        let mut writer = ready(&server, encoding).await;
        let room = writer.join("chat:formats").await.room;
        for payload in [
            Payload::binary(vec![0, 255, 128]),
            Payload::json("{\"a\": [1, 2.50, \"\\u00e9\"]}"),
            Payload::text("grüezi \u{1f44b}"),
            Payload {
                format: roomful_protocol::payload::PayloadFormat::MessagePack,
                bytes: vec![0x81, 0xa1, b'a', 1].into(),
            },
            Payload::binary(Vec::new()),
        ] {
            writer.publish(room, payload.clone()).await;
            for reader in &mut readers {
                assert_eq!(
                    reader.event().await.entry.payload,
                    payload,
                    "from {encoding:?} to {:?}",
                    reader.encoding()
                );
            }
        }
    }
}

/// With `echo: false` the own producer's entries come as `advance`, so that offsets still have no gap.
#[tokio::test]
async fn without_echo_the_own_events_are_stepped_over() {
    let server = Server::start().await;
    let mut own = RawClient::connect(&server).await;
    let mut other = RawClient::connect(&server).await;
    let joined = own
        .join_with(Join {
            echo: false,
            producer: producer(1),
            ..join("chat:echo")
        })
        .await
        .unwrap();
    let other_room = other.join("chat:echo").await.room;
    own.publish_with(joined.room, op(1), Payload::text("mine"))
        .await
        .unwrap();
    other.publish(other_room, Payload::text("theirs")).await;
    let mut at = Offset(0);
    loop {
        match own.next().await {
            ServerFrame::Advance(advance) => {
                assert!(advance.offset > at);
                at = advance.offset;
            }
            ServerFrame::Event(event) => {
                assert_eq!(
                    (event.entry.offset, event.entry.payload),
                    (at.next(), Payload::text("theirs"))
                );
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(at, Offset(1));
}

/// A resend inside the window gets the first result and changes nothing; another payload under the id is a conflict; below what is known
/// the answer is that the outcome is unknown for good.
#[tokio::test]
async fn an_op_id_takes_effect_once() {
    let server = Server::start().await;
    let mut client = RawClient::connect(&server).await;
    let room = client
        .join_with(Join {
            producer: producer(1),
            ..join("chat:op")
        })
        .await
        .unwrap()
        .room;
    let first = client
        .publish_with(room, op(1), Payload::text("a"))
        .await
        .unwrap();
    let again = client
        .publish_with(room, op(1), Payload::text("a"))
        .await
        .unwrap();
    assert_eq!((again.position, again.duplicate), (first.position, true));
    let conflict = client
        .publish_with(room, op(1), Payload::text("b"))
        .await
        .unwrap_err();
    assert_error(&conflict, ErrorCode::OpIdConflict);
    let next = client
        .publish_with(room, op(2), Payload::text("c"))
        .await
        .unwrap();
    assert_eq!(next.position.offset, first.position.offset.next());
    assert_eq!(
        server
            .metrics()
            .await
            .value("roomful_publish_duplicates_total"),
        1.0
    );
}

/// A producer that says it has sent sequences which a room in memory doesn't know gets `op_id_expired` for them, and may go on above.
#[tokio::test]
async fn an_op_id_below_the_window_is_refused_clearly() {
    let server = Server::start().await;
    let since = Some(
        RawClient::connect(&server)
            .await
            .join("game:expired")
            .await
            .position,
    );
    let mut client = RawClient::connect(&server).await;
    let wanted = Join {
        since,
        producer: producer(10),
        ..join("game:expired")
    };
    let room = client.join_with(wanted).await.unwrap().room;
    let expired = client
        .publish_with(room, op(9), Payload::text("old"))
        .await
        .unwrap_err();
    assert_error(&expired, ErrorCode::OpIdExpired);
    client
        .publish_with(room, op(10), Payload::text("new"))
        .await
        .unwrap();
}

/// Every position that a client may come back with: the head, one before it, one beyond it, one of another epoch.
#[tokio::test]
async fn a_join_since_a_position_recovers_all_after_it_or_says_reset() {
    let server = Server::start().await;
    let mut writer = RawClient::connect(&server).await;
    let joined = writer.join("chat:since").await;
    let epoch = joined.position.epoch;
    for number in 1..=10 {
        writer
            .publish(joined.room, Payload::text(number.to_string()))
            .await;
    }
    let other_epoch = Epoch(epoch.0 + 1);
    for (since, recovery) in [
        (Position::new(epoch, Offset(10)), Recovery::Live),
        (Position::new(epoch, Offset(4)), Recovery::Recovering),
        (Position::new(epoch, Offset(0)), Recovery::Recovering),
        (Position::new(epoch, Offset(11)), Recovery::Reset),
        (Position::new(other_epoch, Offset(4)), Recovery::Reset),
    ] {
        let mut reader = RawClient::connect(&server).await;
        let joined = reader
            .join_with(Join {
                since: Some(since),
                ..join("chat:since")
            })
            .await
            .unwrap();
        assert_eq!(joined.recovery, recovery, "since {since}");
        assert_eq!(joined.head, Position::new(epoch, Offset(10)));
        let from = if recovery == Recovery::Reset {
            Offset(10)
        } else {
            since.offset
        };
        assert_eq!(joined.position, Position::new(epoch, from));
        for offset in from.0 + 1..=10 {
            assert_eq!(reader.event().await.entry.offset, Offset(offset));
        }
        if recovery == Recovery::Recovering {
            let end = reader.next().await;
            assert!(
                matches!(&end, ServerFrame::CaughtUp(frame) if frame.offset == Offset(10)),
                "{end:?}"
            );
        }
        assert_eq!(reader.until_pong().await, []);
    }
}

/// A long recovery arrives in bounded chunks, while the room goes on; live events wait behind it.
#[tokio::test]
async fn live_events_wait_behind_recovery() {
    let server = Server::with_config(UNLIMITED).await;
    let mut writer = RawClient::connect(&server).await;
    let joined = writer.join("chat:behind").await;
    for number in 0..400 {
        writer
            .publish(joined.room, Payload::text(format!("{number:0>1000}")))
            .await;
    }
    let mut reader = RawClient::connect(&server).await;
    let start = Position::new(joined.position.epoch, Offset(0));
    let reader_room = reader
        .join_with(Join {
            since: Some(start),
            ..join("chat:behind")
        })
        .await
        .unwrap()
        .room;
    let (mut at, mut caught_up) = (0, None);
    while at < 450 {
        // One live event for every chunk read, as long as recovery goes on.
        if at % 8 == 0 {
            writer.publish(joined.room, Payload::text("live")).await;
        }
        match reader.next().await {
            ServerFrame::Event(Event { room, entry }) => {
                assert_eq!((room, entry.offset), (reader_room, Offset(at + 1)));
                at += 1;
            }
            ServerFrame::CaughtUp(frame) => {
                assert_eq!((frame.offset, caught_up.replace(at)), (Offset(at), None));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(caught_up.is_some_and(|at| at >= 400), "{caught_up:?}");
}

/// Pages of history go both ways, ascending, end at both ends, and say where they go on.
#[tokio::test]
async fn history_is_paged_both_ways() {
    let server = Server::start().await;
    let mut client = RawClient::connect(&server).await;
    let joined = client.join("chat:history").await;
    for number in 1..=10 {
        client
            .publish(joined.room, Payload::text(number.to_string()))
            .await;
    }
    let at = |offset| Some(Position::new(joined.position.epoch, Offset(offset)));
    for (from, direction, limit, offsets, more) in [
        (None, Direction::Backward, 4, 7..11, true),
        (at(7), Direction::Backward, 100, 1..7, false),
        (None, Direction::Forward, 3, 1..4, true),
        (at(3), Direction::Forward, 100, 4..11, false),
        (at(10), Direction::Forward, 5, 11..11, false),
    ] {
        let page = client.history(joined.room, from, direction, limit).await;
        let found: Vec<u64> = page.entries.iter().map(|entry| entry.offset.0).collect();
        assert_eq!(
            found,
            offsets.collect::<Vec<_>>(),
            "{from:?} {direction:?} {limit}"
        );
        assert_eq!(page.next.is_some(), more, "{from:?} {direction:?} {limit}");
    }
}

/// After `leave` nothing of the room follows, and its alias is not the connection's any more.
#[tokio::test]
async fn after_leave_nothing_of_the_room_follows() {
    let server = Server::start().await;
    let mut leaver = RawClient::connect(&server).await;
    let mut stayer = RawClient::connect(&server).await;
    let room = leaver.join("chat:leave").await.room;
    let twice = leaver.join_with(join("chat:leave")).await.unwrap_err();
    assert_error(&twice, ErrorCode::AlreadyJoined);
    stayer.join("chat:leave").await;
    leaver.ask(|request| Leave { request, room }).await.unwrap();
    stayer.publish(room, Payload::text("later")).await;
    let refused = leaver
        .publish_with(room, None, Payload::text("no"))
        .await
        .unwrap_err();
    assert_error(&refused, ErrorCode::NotJoined);
    assert_eq!(leaver.until_pong().await, []);
    assert_eq!(stayer.event().await.entry.offset, Offset(1));
}

async fn ready(server: &Server, encoding: Encoding) -> RawClient {
    Connect::to(server).encoding(encoding).ready().await
}

fn producer(next: u64) -> Option<JoinProducer> {
    Some(JoinProducer {
        producer: PRODUCER,
        next: Sequence(next),
    })
}

fn op(sequence: u64) -> Option<OpId> {
    Some(OpId {
        producer: PRODUCER,
        sequence: Sequence(sequence),
    })
}
