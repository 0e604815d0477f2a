//! Keyed state as its users see it: versions and conditions, who is sent which changes, and what a late or slow watcher gets.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use roomful_protocol::codec::Encoding;
use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{
    CaughtUp, Change, Direction, EntryKind, Error, Join, JoinProducer, OpId, Recovery, Reply,
    ServerFrame, StateItem, StateRequest,
};
use roomful_protocol::id::{MemberId, Offset, ProducerId, RoomAlias, Sequence};
use roomful_protocol::payload::Payload;
use roomful_protocol::position::Position;
use roomful_tests::keyed::{Replica, delete, key, patch, prefixes, put};
use roomful_tests::raw::{assert_error, join, placements};
use roomful_tests::{Connect, RawClient, Server};

const ROOM: &str = "game:board";
const PRODUCER: ProducerId = ProducerId(4_711);

/// A put gives a key its value, a patch merges into it, a delete takes it away; each is a new version, and watchers get the whole value.
#[tokio::test]
async fn a_key_is_put_patched_and_deleted() {
    let server = Server::start().await;
    let (mut ann, room) = member(&server).await;
    let (mut bob, mut board) = watcher(&server, &[""]).await;
    let json = Change {
        value: Some(Payload::json(r#"{"x":1,"y":{"a":1,"b":2}}"#)),
        ..put("card", "")
    };
    let first = ann.change(room, json).await;
    let second = ann
        .change(room, patch("card", r#"{"y":{"a":null,"c":3},"z":[]}"#))
        .await;
    assert_eq!((first.offset, second.offset), (Offset(1), Offset(2)));
    board.follow(&mut bob, Offset(2)).await;
    let merged: serde_json::Value = serde_json::from_str(board.text("card").unwrap()).unwrap();
    let expected = serde_json::json!({ "x": 1, "y": { "b": 2, "c": 3 }, "z": [] });
    assert_eq!(merged, expected);
    assert_eq!(Replica::of(&ann.page(room, "", None, 10).await), board);

    let third = ann.change(room, delete("card")).await;
    let told = board.follow(&mut bob, third.offset).await;
    assert_eq!(told[0].changes[0].value, None);
    assert_eq!(board.text("card"), None);
    assert_eq!(ann.page(room, "", None, 10).await.items, []);
}

/// A write whose condition does not hold is refused with what there is, and has changed nothing; with that it succeeds.
#[tokio::test]
async fn a_stale_version_is_refused_with_the_current_one() {
    let server = Server::start().await;
    let (mut ann, room) = member(&server).await;
    let version = ann.change(room, put("card", "a")).await;
    let on = |if_version, text| Change {
        if_version,
        ..put("card", text)
    };
    let absent = |name| Change {
        if_absent: true,
        ..put(name, "new")
    };
    let newer = ann.change(room, on(Some(version), "b")).await;
    let earlier_epoch = Position::new(roomful_protocol::id::Epoch(0), newer.offset);
    let item = StateItem {
        key: key("card"),
        version: newer,
        value: Some(Payload::text("b")),
    };
    for stale in [
        on(Some(version), "c"),
        on(Some(earlier_epoch), "c"),
        absent("card"),
    ] {
        let error = ann.write(room, None, vec![stale]).await.unwrap_err();
        assert_error(&error, ErrorCode::Conflict);
        assert_eq!(error.current, std::slice::from_ref(&item));
    }
    ann.change(room, absent("other")).await;
    ann.change(room, on(Some(item.version), "c")).await;
    let board = Replica::of(&ann.page(room, "", None, 10).await);
    assert_eq!(board.text("card"), Some("c"));
    // Refusals took no place in the log.
    assert_eq!(board.at, Offset(4));
}

/// Several keys change together or not at all, in one entry, and the refusal names each key that was not as expected.
#[tokio::test]
async fn several_keys_change_together_or_not_at_all() {
    let server = Server::start().await;
    let (mut ann, room) = member(&server).await;
    let (mut bob, mut board) = watcher(&server, &[""]).await;
    let first = ann
        .write(
            room,
            None,
            vec![put("a", "1"), put("b", "1"), put("c", "1")],
        )
        .await
        .unwrap();
    let stale = |name| Change {
        if_absent: true,
        ..put(name, "2")
    };
    let changes = vec![stale("a"), put("b", "2"), stale("c"), stale("d")];
    let error = ann.write(room, None, changes).await.unwrap_err();
    assert_error(&error, ErrorCode::Conflict);
    let named: Vec<_> = error.current.iter().map(|item| item.key.as_str()).collect();
    assert_eq!(named, ["a", "c"]);
    let second = ann
        .write(room, None, vec![put("a", "2"), delete("b")])
        .await
        .unwrap();
    let told = board.follow(&mut bob, second.position.offset).await;
    assert_eq!(told.len(), 2);
    assert_eq!(
        (told[0].offset, told[0].changes.len()),
        (first.position.offset, 3)
    );
    assert_eq!(
        (board.text("a"), board.text("b"), board.text("c")),
        (Some("2"), None, Some("1"))
    );
}

/// Who watches some prefixes is sent the keys below them, also out of writes of several keys; the rest is passed over by `advance`, neighbours by one.
/// Who watches nothing gets `advance` alone. Members on both shards and in both encodings are told alike.
#[tokio::test]
async fn watchers_get_the_keys_of_their_prefixes_and_advance() {
    let server = Server::start().await;
    let (mut ann, room) = member(&server).await;
    let mut watchers = Vec::new();
    for (placement, encoding) in placements().zip(Encoding::ALL.into_iter().cycle()).take(8) {
        for (watched, seen) in [
            (None, vec![]),
            (prefixes(&["b/", "a"]), vec![(1, 1), (4, 1), (6, 2)]),
            (
                prefixes(&["", "a"]),
                vec![(1, 1), (2, 1), (3, 2), (4, 1), (6, 3)],
            ),
        ] {
            let connect = Connect::to(&server).encoding(encoding).placement(placement);
            let mut client = connect.ready().await;
            let join = Join {
                state: watched,
                ..join(ROOM)
            };
            client.join_with(join).await.unwrap();
            watchers.push((client, seen));
        }
    }
    ann.change(room, put("a", "1")).await;
    ann.change(room, put("c", "1")).await;
    ann.write(room, None, vec![put("b", "1"), put("d", "1")])
        .await
        .unwrap();
    ann.change(room, put("a/1", "1")).await;
    ann.publish(room, Payload::text("said")).await;
    let last = vec![put("b/1", "1"), put("c", "2"), put("aé", "1")];
    ann.write(room, None, last).await.unwrap();
    for (client, seen) in &mut watchers {
        let mut replica = Replica::default();
        let told = replica.follow(client, Offset(6)).await;
        let told: Vec<_> = told
            .iter()
            .map(|state| (state.offset.0, state.changes.len()))
            .collect();
        assert_eq!(told, *seen);
    }
    // Members on one shard would prove nothing about crossing.
    let metrics = server.metrics().await;
    assert!(metrics.value("roomful_mailbox_messages_total") > 0.0);
}

/// Somebody who comes later gets the state with `joined`, as of its position, and every change behind it. Who comes back with a position is told by entries.
#[tokio::test]
async fn a_late_watcher_begins_with_a_page() {
    let server = Server::start().await;
    let (mut ann, room) = member(&server).await;
    ann.write(
        room,
        None,
        vec![put("a", "1"), put("b", "1"), put("x", "1")],
    )
    .await
    .unwrap();
    let deleted = ann.change(room, delete("a")).await;
    let (mut bob, mut board) = watcher(&server, &["a", "b"]).await;
    assert_eq!((board.at, board.values.len()), (deleted.offset, 1));
    let last = ann
        .write(room, None, vec![put("a", "2"), put("x", "2")])
        .await
        .unwrap();
    board.follow(&mut bob, last.position.offset).await;
    assert_eq!(
        (board.text("a"), board.text("b"), board.text("x")),
        (Some("2"), Some("1"), None)
    );

    let back = Join {
        since: Some(deleted),
        state: prefixes(&["a"]),
        ..join(ROOM)
    };
    let mut late = RawClient::connect(&server).await;
    let joined = late.join_with(back).await.unwrap();
    assert_eq!(
        (joined.recovery, joined.state),
        (Recovery::Recovering, None)
    );
    let mut replica = Replica {
        at: deleted.offset,
        ..Replica::default()
    };
    replica.follow(&mut late, last.position.offset).await;
    assert_eq!(replica.text("a"), Some("2"));
}

/// A state that is larger than a page is read page by page, while it changes: each page is as of its position, and later changes come by frames.
#[tokio::test]
async fn pages_and_changes_make_one_state() {
    let server = Server::start().await;
    let (mut ann, room) = member(&server).await;
    for number in 0..25 {
        ann.change(room, put(&format!("k{number:02}"), "old")).await;
    }
    let mut bob = RawClient::connect(&server).await;
    let bobs = bob.join(ROOM).await.room;
    watch(&mut bob, bobs, &["k"]).await;
    let (mut pages, mut after) = (Vec::new(), None);
    loop {
        let page = bob.page(bobs, "k", after.take(), 10).await;
        after.clone_from(&page.next);
        pages.push(page);
        let turn = pages.len();
        ann.change(room, put(&format!("k{turn:02}"), "new")).await;
        ann.change(room, delete(&format!("k{:02}", 10 + turn)))
            .await;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(pages.len(), 3);
    let mut replica = Replica::default();
    for page in &pages {
        for item in &page.items {
            let value = (item.version.offset, item.value.clone().unwrap());
            replica.values.insert(item.key.clone(), value);
        }
    }
    // What was watched from the first page on is newer than the pages, or in them already.
    let asked_at = pages[0].position.offset;
    replica.at = asked_at;
    let end = bob.page(bobs, "k", None, 100).await;
    replica.follow(&mut bob, end.position.offset).await;
    assert_eq!(replica, Replica::of(&end));
}

/// What is watched changes while one is in the room: from its `ok` on, changes are sent or are not.
#[tokio::test]
async fn what_is_watched_can_be_changed() {
    let server = Server::start().await;
    let (mut ann, room) = member(&server).await;
    let (mut bob, mut board) = watcher(&server, &["a"]).await;
    ann.write(room, None, vec![put("a", "1"), put("b", "1")])
        .await
        .unwrap();
    board.follow(&mut bob, Offset(1)).await;
    watch(&mut bob, room, &["b"]).await;
    ann.write(room, None, vec![put("a", "2"), put("b", "2")])
        .await
        .unwrap();
    board.follow(&mut bob, Offset(2)).await;
    assert_eq!((board.text("a"), board.text("b")), (Some("1"), Some("2")));
    bob.state(room, StateRequest::Watch { prefixes: None })
        .await
        .unwrap();
    ann.change(room, put("b", "3")).await;
    assert_eq!(board.follow(&mut bob, Offset(3)).await, []);
}

/// A watcher that stops reading while one key changes hundreds of times gets few of its values, the last one among them, and no gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_watcher_gets_the_newest_value() {
    const CHANGES: u64 = 600;
    let server = Server::with_config(
        "[connection]\noutbox_bytes_max = 65536\nkernel_unsent_bytes_max = 16384\nmessages_per_s = 1000000\nmessages_burst = 1000000\nbytes_per_s = 1000000000\nbytes_burst = 1000000000\n[namespaces.game]\nhistory_entries_max = 5000\ncatch_up_bytes_max = 32768\n",
    )
    .await;
    let (mut ann, room) = member(&server).await;
    let mut slow = Connect::to(&server).receive_buffer(4_096).ready().await;
    let watched = Join {
        state: prefixes(&[""]),
        ..join(ROOM)
    };
    slow.join_with(watched).await.unwrap();
    let filler = "x".repeat(1_000);
    for number in 1..=CHANGES {
        ann.change(room, put("hot", &format!("{number} {filler}")))
            .await;
    }
    let last = ann.change(room, put("cold", "1")).await;
    let mut replica = Replica::default();
    let told = replica.follow(&mut slow, last.offset).await;
    let hot: Vec<_> = told
        .iter()
        .filter(|state| state.changes[0].key == key("hot"))
        .collect();
    assert!(hot.len() < 200, "{} of {CHANGES} were told", hot.len());
    assert_eq!(hot.last().unwrap().offset, Offset(CHANGES));
    assert_eq!(replica, Replica::of(&ann.page(room, "", None, 10).await));
    let metrics = server.metrics().await;
    assert!(metrics.value("roomful_catch_ups_total") > 0.0);
}

/// Who comes back from far behind gets of each key the newest value alone, then `caught_up`; history has them all.
#[tokio::test]
async fn a_recovery_leaves_out_what_has_a_newer_version() {
    let server = Server::start().await;
    let (mut ann, room) = member(&server).await;
    let since = ann.publish(room, Payload::text("before")).await.position;
    for number in 0..40 {
        ann.write(
            room,
            None,
            vec![
                put("hot", &number.to_string()),
                put(&format!("k{}", number % 4), "1"),
            ],
        )
        .await
        .unwrap();
    }
    let back = Join {
        since: Some(since),
        state: prefixes(&[""]),
        ..join(ROOM)
    };
    let mut bob = RawClient::connect(&server).await;
    let joined = bob.join_with(back).await.unwrap();
    let mut replica = Replica {
        at: since.offset,
        ..Replica::default()
    };
    let told = replica.follow(&mut bob, joined.head.offset).await;
    let offsets: Vec<_> = told.iter().map(|state| state.offset.0).collect();
    assert_eq!(offsets, [38, 39, 40, 41]);
    assert_eq!(replica, Replica::of(&bob.page(room, "", None, 10).await));
    let caught_up = bob.next_that(|frame| match frame {
        ServerFrame::CaughtUp(CaughtUp { offset, .. }) => Some(offset),
        _ => None,
    });
    assert_eq!(caught_up.await, joined.head.offset);
    let history = ann.history(room, None, Direction::Forward, 100).await;
    let kinds = |kind| {
        history
            .entries
            .iter()
            .filter(|entry| entry.kind == kind)
            .count()
    };
    assert_eq!(
        (kinds(EntryKind::State), kinds(EntryKind::Publish)),
        (40, 1)
    );
}

/// A write with an op id takes effect once; whoever watches is told of it, its own producer too, with `echo` false as well.
#[tokio::test]
async fn a_write_with_an_op_id_takes_effect_once() {
    let server = Server::start().await;
    let (mut bob, mut board) = watcher(&server, &[""]).await;
    let mut ann = RawClient::connect(&server).await;
    let own = Join {
        producer: Some(JoinProducer {
            producer: PRODUCER,
            next: Sequence(1),
        }),
        echo: false,
        state: prefixes(&[""]),
        ..join(ROOM)
    };
    let joined = ann.join_with(own).await.unwrap();
    let op = |producer, sequence| {
        let (producer, sequence) = (ProducerId(producer), Sequence(sequence));
        Some(OpId { producer, sequence })
    };
    let room = joined.room;
    let first = ann
        .write(room, op(PRODUCER.0, 1), vec![put("a", "1")])
        .await
        .unwrap();
    let again = ann
        .write(room, op(PRODUCER.0, 1), vec![put("a", "1")])
        .await
        .unwrap();
    assert_eq!((again.position, again.duplicate), (first.position, true));
    let other = ann
        .write(room, op(PRODUCER.0, 1), vec![put("a", "2")])
        .await
        .unwrap_err();
    assert_error(&other, ErrorCode::OpIdConflict);
    let foreign = ann
        .write(room, op(1, 1), vec![put("a", "2")])
        .await
        .unwrap_err();
    assert_error(&foreign, ErrorCode::BadValue);
    let others = bob.change(room, put("a", "3")).await;
    let told = board.follow(&mut bob, others.offset).await;
    assert_eq!(told[0].op, op(PRODUCER.0, 1));
    let mut own = Replica::default();
    let told = own.follow(&mut ann, others.offset).await;
    assert_eq!(told[0].op, op(PRODUCER.0, 1));
    assert_eq!(told.len(), 2);
    assert_eq!(own.text("a"), Some("3"));
}

/// What a member has left is written when it is gone for good: after its grace, or at once when it leaves; not when it comes back, or has taken it back.
#[tokio::test]
async fn what_a_member_leaves_is_written_when_it_is_gone() {
    let server = Server::with_config("[namespaces.game]\npresence_grace_ms = 300\n").await;
    let (mut bob, mut board) = watcher(&server, &[""]).await;
    let leave = async |name: &str, changes: Vec<Change>| {
        let (mut client, room) = member(&server).await;
        let first = vec![put(name, "early")];
        for changes in [first, changes] {
            let what = StateRequest::OnDisconnect { changes };
            assert_eq!(client.state(room, what).await.unwrap(), Reply::Done);
        }
        (client, room)
    };
    let (lost, _) = leave("lost", vec![put("lost", "gone")]).await;
    let (mut left, room) = leave("left", vec![put("left", "gone")]).await;
    let (silent, _) = leave("silent", vec![]).await;
    silent.cut();
    lost.cut();
    let request = left.new_request();
    left.send(&roomful_protocol::frame::Leave { request, room }.into())
        .await;
    while board.values.len() < 2 {
        board.take_in(bob.next().await);
    }
    assert_eq!(
        (board.text("lost"), board.text("left")),
        (Some("gone"), Some("gone"))
    );
    let end = bob.change(room, put("end", "1")).await;
    board.follow(&mut bob, end.offset).await;
    assert_eq!(board.values.len(), 3);
}

/// Requests that make no sense are refused with their own code, and leave the room as it is.
#[tokio::test]
async fn bad_writes_are_refused_and_change_nothing() {
    let config = "[connection]\npayload_bytes_max = 4096\n[namespaces.game]\nstate_keys_max = 2\nstate_value_bytes_max = 1024\nfence_prefixes = [\"locked/\"]\n";
    let server = Server::with_config(config).await;
    let (mut ann, room) = member(&server).await;
    let valueless = Change {
        value: None,
        ..put("a", "")
    };
    let broken = Change {
        value: Some(Payload::json("{")),
        ..put("a", "")
    };
    let three = vec![put("a", "1"), put("b", "1"), put("c", "1")];
    for (changes, code) in [
        (vec![put("a", "1"), delete("a")], ErrorCode::BadValue),
        (vec![valueless], ErrorCode::BadValue),
        (vec![broken], ErrorCode::BadPayload),
        (
            vec![put("a", &"x".repeat(4_097))],
            ErrorCode::PayloadTooLarge,
        ),
        (vec![put("a", &"x".repeat(1_025))], ErrorCode::QuotaExceeded),
        (three, ErrorCode::QuotaExceeded),
        (vec![put("locked/a", "1")], ErrorCode::FenceRequired),
    ] {
        let error = ann.write(room, None, changes).await.unwrap_err();
        assert_error(&error, code);
    }
    let page = ann.page(room, "", None, 10).await;
    assert_eq!((page.position.offset, page.items), (Offset(0), vec![]));
    let none = StateRequest::Get {
        prefix: roomful_protocol::id::KeyPrefix::parse("").unwrap(),
        after: None,
        limit: 0,
    };
    assert_error(
        &ann.state(room, none).await.unwrap_err(),
        ErrorCode::BadValue,
    );
    let elsewhere = RoomAlias(room.0 + 1);
    let error: Error = ann
        .write(elsewhere, None, vec![put("a", "1")])
        .await
        .unwrap_err();
    assert_error(&error, ErrorCode::NotJoined);
}

/// A member of the room without a wish, to write with.
async fn member(server: &Server) -> (RawClient, RoomAlias) {
    let mut client = RawClient::connect(server).await;
    let joined = client.join(ROOM).await;
    assert!(joined.member > MemberId(0) && joined.state.is_none());
    (client, joined.room)
}

/// Somebody who watches keys that begin so, with what `joined` brought.
async fn watcher(server: &Server, watched: &[&str]) -> (RawClient, Replica) {
    let mut client = RawClient::connect(server).await;
    let join = Join {
        state: prefixes(watched),
        ..join(ROOM)
    };
    let joined = client.join_with(join).await.unwrap();
    let page = joined.state.unwrap();
    assert_eq!(page.position, joined.position);
    (client, Replica::of(&page))
}

async fn watch(client: &mut RawClient, room: RoomAlias, watched: &[&str]) {
    let what = StateRequest::Watch {
        prefixes: prefixes(watched),
    };
    assert_eq!(client.state(room, what).await.unwrap(), Reply::Done);
}
