//! Limits at their bound: so much and no more, each with the metric that says so. Those of messages and users are in `threats/messages.rs`,
//! those of addresses in `threats/admission.rs`, those of bytes that wait in `slow_reader.rs` and `memory.rs`.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::{
    CursorRequest, Direction, Error, Join, Leave, Reply, StateRequest, TimerRequest,
};
use roomful_protocol::id::{Offset, RoomAlias};
use roomful_protocol::payload::Payload;
use roomful_tests::keyed::{key, put};
use roomful_tests::raw::{assert_error, join};
use roomful_tests::server::each_namespace;
use roomful_tests::wait::{PATIENCE, until};
use roomful_tests::{RawClient, Server};

/// As many rooms as a node may have; one that has closed makes room for another.
#[tokio::test]
async fn a_node_has_so_many_rooms() {
    // No window is longer than a session's, which decides how long an empty room stays.
    let windows = each_namespace(|_| "presence_grace_ms = 1000, history_age_max_ms = 1000".into());
    let server = Server::with_config(&format!(
        "rooms_max = 3\n[session]\nretention_ms = 1000\n{windows}"
    ))
    .await;
    let mut client = RawClient::connect(&server).await;
    for number in 0..3 {
        client.join(&format!("game:{number}")).await;
    }
    let refused = client.join_with(join("game:3")).await.unwrap_err();
    assert_error(&refused, ErrorCode::Overloaded);
    assert!(refused.after_ms.is_some(), "{refused:?}");
    // One that is open costs none.
    RawClient::connect(&server).await.join("game:2").await;
    let metrics = server.metrics().await;
    assert_eq!(metrics.value("roomful_rooms"), 3.0);
    assert_eq!(errors(&server, "overloaded").await, 1.0);
    client.close().await;
    until("a room has closed", PATIENCE, async || {
        server.metrics().await.value("roomful_rooms") < 3.0
    })
    .await;
    RawClient::connect(&server).await.join("game:3").await;
}

/// As many members as a room may have; one who leaves makes room for another.
#[tokio::test]
async fn a_room_has_so_many_members() {
    let server = Server::with_config("[namespaces.game]\nmembers_max = 2\n").await;
    let mut members = Vec::new();
    for _ in 0..2 {
        let mut member = RawClient::connect(&server).await;
        let joined = member.join("game:small").await;
        members.push((member, joined));
    }
    let mut third = RawClient::connect(&server).await;
    let refused = third.join_with(join("game:small")).await.unwrap_err();
    assert_error(&refused, ErrorCode::RoomFull);
    assert_eq!(errors(&server, "room_full").await, 1.0);
    assert_eq!(server.metrics().await.value("roomful_members"), 2.0);
    let (mut first, joined) = members.remove(0);
    let room = joined.room;
    let left = first.ask(|request| Leave { request, room }).await;
    assert!(matches!(left, Ok(Reply::Done)), "{left:?}");
    assert_eq!(third.join("game:small").await.occupancy, 2);
}

/// A presence value of the longest length, and one byte more.
#[tokio::test]
async fn a_presence_value_is_so_long() {
    let server = Server::with_config("[namespaces.game]\npresence_value_bytes_max = 100\n").await;
    let mut client = RawClient::connect(&server).await;
    let with = |bytes| Join {
        presence: Some(Payload::binary(vec![7; bytes])),
        ..join("game:lobby")
    };
    let refused = client.join_with(with(101)).await.unwrap_err();
    assert_error(&refused, ErrorCode::PayloadTooLarge);
    assert_eq!(errors(&server, "payload_too_large").await, 1.0);
    assert_eq!(server.metrics().await.value("roomful_members"), 0.0);
    client.join_with(with(100)).await.unwrap();
}

/// A room keeps as many entries as it may, and as many bytes; the newest stay, in order.
#[tokio::test]
async fn a_log_holds_so_many_entries_and_bytes() {
    for (bounds, bytes, kept) in [
        ("history_entries_max = 20", 10, 20),
        ("history_bytes_max = 65536", 10_000, 6),
    ] {
        let server = Server::with_config(&format!("[namespaces.game]\n{bounds}\n")).await;
        let mut client = RawClient::connect(&server).await;
        let room = client.join("game:log").await.room;
        for _ in 0..50 {
            let payload = Payload::binary(vec![7; bytes]);
            client.publish(room, payload).await;
        }
        let offsets = offsets(&mut client, room).await;
        let newest: Vec<_> = (51 - kept..=50).map(Offset).collect();
        assert_eq!(offsets, newest, "{bounds}");
        let held = server.metrics().await.value("roomful_log_bytes");
        assert!(held < 131_072.0, "{bounds}: {held}");
    }
}

/// What a room keeps beside its log has a bound each: what goes beyond is refused, counted by that bound, and changes nothing.
/// Cursors of more users than may have some are forgotten.
#[tokio::test]
async fn a_room_keeps_so_much_beside_its_log() {
    let server = Server::with_config(
        "[namespaces.game]
state_keys_max = 2
state_value_bytes_max = 100
state_bytes_max = 150
on_disconnect_bytes_max = 64
locks_max = 1
lock_queue_max = 1
timers_max = 1
timer_payload_bytes_max = 8
cursor_users_max = 1
",
    )
    .await;
    let mut members = Vec::new();
    for _ in 0..3 {
        let mut member = RawClient::connect(&server).await;
        let room = member.join("game:kept").await.room;
        members.push((member, room));
    }
    let [(ann, room), (bob, _), (cid, _)] = &mut members[..] else {
        panic!("there are three");
    };
    let room = *room;
    let long = |bytes| "x".repeat(bytes);
    for (changes, bound) in [
        (
            vec![put("a", "1"), put("b", "1"), put("c", "1")],
            "state_keys",
        ),
        (vec![put("a", &long(101))], "state_value_bytes"),
        (
            vec![put("a", &long(90)), put("b", &long(90))],
            "state_bytes",
        ),
    ] {
        assert_over(&server, ann.write(room, None, changes).await, bound).await;
    }
    let what = StateRequest::OnDisconnect {
        changes: vec![put("left", &long(65))],
    };
    assert_over(&server, ann.state(room, what).await, "on_disconnect_bytes").await;
    assert_eq!(ann.page(room, "", None, 10).await.items, []);

    ann.acquire(room, "one", false).await.unwrap();
    assert_over(&server, ann.acquire(room, "two", false).await, "locks").await;
    bob.acquire(room, "one", true).await.unwrap();
    assert_over(&server, cid.acquire(room, "one", true).await, "lock_queue").await;

    let timer = |name, text: &str| TimerRequest::Set {
        name: key(name),
        due_ms: u64::MAX >> 11,
        payload: Payload::text(text),
    };
    ann.timer(room, timer("one", "short")).await.unwrap();
    let second = ann.timer(room, timer("two", "short")).await;
    assert_over(&server, second, "timers").await;
    let longer = ann.timer(room, timer("one", "too long for it")).await;
    assert_over(&server, longer, "timer_payload_bytes").await;

    let position = ann.publish(room, Payload::text("hi")).await.position;
    let read = || CursorRequest::Set {
        read: Some(position),
        delivered: None,
    };
    ann.cursor(room, read()).await.unwrap();
    bob.cursor(room, read()).await.unwrap();
    let theirs = ann.cursor(room, CursorRequest::Get).await.unwrap();
    assert_eq!(theirs.read, None, "it made room");
    let metrics = server.metrics().await;
    assert_eq!(metrics.value("roomful_cursors_forgotten_total"), 1.0);
}

/// Something was refused because of a bound, which has counted that.
async fn assert_over<T: std::fmt::Debug>(server: &Server, outcome: Result<T, Error>, bound: &str) {
    assert_error(&outcome.unwrap_err(), ErrorCode::QuotaExceeded);
    let metrics = server.metrics().await;
    let refusals = metrics.labelled("roomful_quota_refusals_total", "bound", bound);
    assert_eq!(refusals, 1.0, "{bound}");
}

/// All that history has.
async fn offsets(client: &mut RawClient, room: RoomAlias) -> Vec<Offset> {
    let mut offsets = Vec::new();
    let mut from = None;
    loop {
        let page = client.history(room, from, Direction::Forward, 1_000).await;
        offsets.extend(page.entries.iter().map(|entry| entry.offset));
        from = page.next;
        if from.is_none() {
            return offsets;
        }
    }
}

async fn errors(server: &Server, code: &str) -> f64 {
    let metrics = server.metrics().await;
    metrics.labelled("roomful_errors_total", "code", code)
}
