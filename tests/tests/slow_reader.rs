//! One member that stops reading, in a room of many: what it gets later, what it costs, and that nobody else notices.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use roomful_protocol::error::CloseCode;
use roomful_protocol::frame::{OpId, Signal};
use roomful_protocol::id::{Offset, ProducerId, RoomAlias, Sequence, SignalKey};
use roomful_protocol::payload::Payload;
use roomful_tests::follower::Step;
use roomful_tests::raw::placements;
use roomful_tests::wait::{PATIENCE, until};
use roomful_tests::{Connect, Follower, Metrics, RawClient, Server};
use tokio::sync::watch;
use tokio::task::JoinSet;

const ROOM: &str = "game:thousand";
const OUTBOX_BYTES_MAX: f64 = 65_536.0;

/// Small bounds, so that a stall of a second meets each of them, but the one of time.
const CONFIG: &str = "
[connection]
heartbeat_ms = 600000
message_bytes_max = 8192
payload_bytes_max = 4096
outbox_bytes_max = 65536
kernel_unsent_bytes_max = 16384
messages_per_s = 1000000
messages_burst = 1000000
write_stall_ms = {stall}
[namespaces.game]
history_entries_max = 200
catch_up_bytes_max = 32768
";

/// Longer than any machine takes for the test.
const NO_STALL_MS: u64 = 600_000;

/// The history holds 200 entries and the stalled member's socket and outbox about 50. Behind by 100, it gets every event and no reset; behind by 350,
/// exactly one reset. Metrics show that signals were conflated and that the log switched to catch-up; the outboxes never held more than their bound;
/// the 998 others have every event, once, in one order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_reader_in_a_room_of_a_thousand() {
    let server = Server::with_config(&config(NO_STALL_MS)).await;
    let mut room = Room::start(&server, 998).await;
    let mut slow = Follower::new(Connect::to(&server).receive_buffer(4_096), ROOM);
    slow.attach().await;

    room.publish(60).await;
    room.signal(50).await;
    room.publish(40).await;
    let metrics = server.metrics().await;
    assert!(metrics.value("roomful_signals_conflated_total") > 0.0);
    assert!(metrics.value("roomful_catch_ups_total") > 0.0);
    slow.until_at(room.head).await;
    assert_eq!((slow.resets(), closes(&metrics)), (0, 0.0));

    room.publish(350).await;
    slow.until_at(room.head).await;
    assert_eq!((slow.resets(), closes(&server.metrics().await)), (1, 0.0));
    room.nobody_noticed(450).await;
}

/// A reader that is silent for longer than `write_stall_ms` is closed, comes back, and gets every event; the others have them all the while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_reader_is_given_up_and_misses_nothing() {
    let server = Server::with_config(&config(2_000)).await;
    let mut room = Room::start(&server, 48).await;
    let mut slow = Follower::new(Connect::to(&server).receive_buffer(4_096), ROOM);
    slow.attach().await;
    room.publish(150).await;
    until(
        "the server gives the silent reader up",
        PATIENCE,
        async || closes(&server.metrics().await) > 0.0,
    )
    .await;
    let closed = loop {
        if let Step::Closed(closed) = slow.step().await {
            break closed;
        }
    };
    // The close frame stands behind what the socket held; a reset may have overtaken it.
    assert!(
        [None, Some(CloseCode::SlowConsumer.code())].contains(&closed.code),
        "{closed:?}"
    );
    slow.until_at(room.head).await;
    assert_eq!((slow.resets(), slow.recoveries()), (0, 1));
    assert_eq!(closes(&server.metrics().await), 1.0);
    room.nobody_noticed(150).await;
}

fn config(stall_ms: u64) -> String {
    CONFIG.replace("{stall}", &stall_ms.to_string())
}

/// The healthy members, and the one who publishes.
struct Room<'a> {
    server: &'a Server,
    publisher: RawClient,
    alias: RoomAlias,
    head: Offset,
    goal: watch::Sender<Option<Offset>>,
    followers: JoinSet<Follower>,
    progress: Vec<Arc<AtomicU64>>,
}

impl<'a> Room<'a> {
    async fn start(server: &'a Server, healthy: usize) -> Self {
        let (goal, _) = watch::channel(None);
        let mut followers = JoinSet::new();
        let mut progress = Vec::new();
        for placement in placements().take(healthy) {
            let mut follower = Follower::new(Connect::to(server).placement(placement), ROOM);
            follower.attach().await;
            progress.push(follower.progress());
            followers.spawn(follower.follow(goal.subscribe()));
        }
        let mut publisher = RawClient::connect(server).await;
        let alias = publisher.join_as(ROOM, PRODUCER, Sequence(1)).await;
        Self {
            server,
            publisher,
            alias,
            head: Offset(0),
            goal,
            followers,
            progress,
        }
    }

    /// Publishes some events of 2 KiB, and waits until every healthy member has them. Then what the outboxes hold is the stalled member's alone.
    async fn publish(&mut self, count: usize) {
        for _ in 0..count {
            let op = OpId {
                producer: PRODUCER,
                sequence: Sequence(self.head.0 + 1),
            };
            let payload = Payload::binary(vec![7; 2_048]);
            let published = self
                .publisher
                .publish_with(self.alias, Some(op), payload)
                .await
                .unwrap();
            self.head = published.position.offset;
            if self.head.0.is_multiple_of(25) {
                self.all_have_it().await;
            }
        }
        self.all_have_it().await;
    }

    async fn all_have_it(&self) {
        let head = self.head.0;
        until(
            "all healthy members have the events",
            PATIENCE,
            async || {
                self.progress
                    .iter()
                    .all(|at| at.load(Ordering::Relaxed) >= head)
            },
        )
        .await;
        let held = self.server.metrics().await.value("roomful_outbox_bytes");
        assert!(held <= OUTBOX_BYTES_MAX, "the outboxes hold {held} bytes");
    }

    /// Sends signals that each make the one before worthless.
    async fn signal(&mut self, count: usize) {
        let room = self.alias;
        for number in 0..count {
            let payload = Payload::text(format!("{number:0>1000}"));
            let key = SignalKey::parse("cursor").ok();
            self.publisher
                .ask(|request| Signal {
                    request: Some(request),
                    room,
                    to: None,
                    key,
                    payload,
                })
                .await
                .unwrap();
        }
    }

    /// Each healthy member has had so many events, every one of them live, in one order.
    async fn nobody_noticed(self, events: usize) {
        let healthy = self.progress.len();
        self.goal.send_replace(Some(self.head));
        let others = self.followers.join_all().await;
        assert_eq!(others.len(), healthy);
        for other in &others {
            assert_eq!(
                (other.resets(), other.recoveries(), other.catch_ups()),
                (0, 0, 0)
            );
            assert_eq!(other.digest(), others[0].digest());
        }
        assert_eq!(others[0].operations().len(), events);
    }
}

const PRODUCER: ProducerId = ProducerId(1);

fn closes(metrics: &Metrics) -> f64 {
    metrics.labelled(
        "roomful_connections_closed_total",
        "code",
        &CloseCode::SlowConsumer.code().to_string(),
    )
}

/// A member that pauses longer than `write_stall_ms`, while its socket takes what comes, is not slow: no byte waits for it. The pause is the subject here.
#[tokio::test]
async fn a_pause_that_the_socket_covers_is_not_noticed() {
    let server = Server::with_config("[connection]\nwrite_stall_ms = 500\n").await;
    let mut reader = Follower::new(Connect::to(&server), "game:two");
    reader.attach().await;
    let mut writer = RawClient::connect(&server).await;
    let room = writer.join("game:two").await.room;
    for _ in 0..10 {
        writer.publish(room, Payload::text("small")).await;
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    reader.until_at(Offset(10)).await;
    assert_eq!(
        (
            reader.resets(),
            reader.recoveries(),
            closes(&server.metrics().await)
        ),
        (0, 0, 0.0)
    );
}
