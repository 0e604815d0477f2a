//! A small budget of memory, filled from one side after the other: what the process holds stays under its mark, and a healthy room goes on.
#![expect(clippy::print_stdout, reason = "what was held is worth reading")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use roomful_protocol::error::{CloseCode, ErrorCode};
use roomful_protocol::frame::{ClientFrame, Direction, History, Join, Publish};
use roomful_protocol::payload::Payload;
use roomful_tests::http::exchange;
use roomful_tests::raw::{assert_error, fill, join};
use roomful_tests::server::{UNLIMITED, each_namespace};
use roomful_tests::wait::{PATIENCE, until};
use roomful_tests::{Connect, Healthy, Metrics, RawClient, Server};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite;

/// Idle connections are let in up to the soft mark, and then no more until some have gone.
#[tokio::test]
async fn idle_connections_stop_at_the_soft_mark() {
    let server = server(24).await;
    let pressure = Pressure::on(&server).await;
    let mut idle = Vec::new();
    let refusal = loop {
        match Connect::to(&server).open().await {
            Ok(mut client) => {
                client.hello().await;
                idle.push(client);
            }
            Err(tungstenite::Error::Http(response)) => break response,
            Err(error) => panic!("after {}: {error}", idle.len()),
        }
        assert!(idle.len() < 15_000, "nobody is turned away");
    };
    assert_eq!(refusal.status(), 503);
    assert!(refusal.headers().contains_key("retry-after"));
    let metrics = server.metrics().await;
    assert!(metrics.labelled("roomful_handshakes_rejected_total", "reason", "memory") >= 1.0);
    assert!(metrics.value("roomful_memory_level") >= 1.0);
    pressure.check(&server).await;
    drop(idle);
    recovers(&server).await;
}

/// A room that nobody is in keeps its history for an hour; above the soft mark, for as long as a session is kept.
#[tokio::test]
async fn empty_rooms_close_early_above_the_soft_mark() {
    let graces = each_namespace(|_| "presence_grace_ms = 0".into());
    let server = Server::with_config(&format!(
        "{UNLIMITED}[memory]\nbudget_bytes = 20971520\n[session]\nretention_ms = 0\n{graces}"
    ))
    .await;
    let rooms = async || server.metrics().await.value("roomful_rooms");
    let mut publisher = RawClient::connect(&server).await;
    for number in 0..20 {
        let room = publisher.join(&format!("game:{number}")).await.room;
        publisher
            .publish(room, Payload::binary(vec![7; 50_000]))
            .await;
    }
    publisher.close().await;
    // Longer than a room waits before it looks for the first time.
    sleep(Duration::from_secs(3)).await;
    assert_eq!(rooms().await, 20.0);
    let mut idle = Vec::new();
    while let Ok(mut client) = Connect::to(&server).open().await {
        client.hello().await;
        idle.push(client);
        assert!(idle.len() < 15_000, "nobody is turned away");
    }
    until("the empty rooms close", PATIENCE, async || {
        rooms().await == 0.0
    })
    .await;
    drop(idle);
    recovers(&server).await;
}

/// Requests whose head never ends hold a bounded part of the budget.
#[tokio::test]
async fn half_open_requests_hold_a_bounded_part() {
    let server = server(64).await;
    let pressure = Pressure::on(&server).await;
    let head = format!(
        "GET /v1/ws HTTP/1.1\r\nhost: {}\r\nx: {}",
        server.address(),
        "x".repeat(14_000)
    );
    let (mut held, mut most) = (Vec::new(), 0.0_f64);
    for number in 0..2_000 {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        // Whoever has to make room is dropped, maybe before it has written.
        drop(stream.write_all(head.as_bytes()).await);
        held.push(stream);
        if number % 50 == 0 {
            most = most.max(http_bytes(&server).await);
        }
    }
    assert_eighth(&server, most).await;
    drop(held);
    recovers(&server).await;
    pressure.check(&server).await;
    let metrics = server.metrics().await;
    assert!(
        metrics.labelled(
            "roomful_handshakes_rejected_total",
            "reason",
            "http_connections"
        ) > 1_000.0
    );
}

/// Sockets that have had their answer and don't close hold no more than that part either, and keep nobody out.
#[tokio::test]
async fn sockets_that_linger_hold_a_bounded_part() {
    let server = server(64).await;
    let pressure = Pressure::on(&server).await;
    let request = format!(
        "GET /nope HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        server.address()
    );
    let (mut held, mut most) = (Vec::new(), 0.0_f64);
    for number in 0..2_000 {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let answer = exchange(&mut stream, request.as_bytes()).await;
        assert_eq!(answer.status, 404);
        held.push(stream);
        if number % 50 == 0 {
            most = most.max(http_bytes(&server).await);
            RawClient::connect(&server).await.close().await;
        }
    }
    assert_eighth(&server, most).await;
    drop(held);
    recovers(&server).await;
    pressure.check(&server).await;
}

/// What HTTP connections were charged at the last sum.
async fn http_bytes(server: &Server) -> f64 {
    let metrics = server.metrics().await;
    metrics.labelled("roomful_memory_bytes", "kind", "http")
}

/// HTTP connections were never charged much more than an eighth of the budget, and then no more than that. Whoever had to make room may
/// still be on its way out when the next one comes.
async fn assert_eighth(server: &Server, most: f64) {
    let eighth = 64.0 * MIB / 8.0;
    println!("HTTP at most {:.1} MiB of {:.1}", most / MIB, eighth / MIB);
    assert!(most <= eighth * 1.25, "{most} of {eighth}");
    until("an eighth at most", PATIENCE, async || {
        http_bytes(server).await <= eighth
    })
    .await;
}

/// Readers that ask for pages and never read them are closed before they hold too much; they may resume.
#[tokio::test]
async fn stopped_readers_are_closed_heaviest_first() {
    let server = server(64).await;
    let _publisher = fill(&server, "game:pages").await;
    let pressure = Pressure::on(&server).await;
    // All are in before the first of them is owed anything: above the soft mark nobody else would be.
    let mut readers = Vec::new();
    for _ in 0..300 {
        let mut reader = Connect::to(&server).receive_buffer(4_096).ready().await;
        let room = reader.join("game:pages").await.room;
        readers.push((reader, room));
    }
    for (reader, room) in &mut readers {
        for _ in 0..14 {
            let history = History {
                request: reader.new_request(),
                room: *room,
                from: None,
                direction: Direction::Backward,
                limit: 1,
            };
            let mut bytes = Vec::new();
            let frame = ClientFrame::from(history);
            reader.encoding().encode(&frame, &mut bytes);
            drop(reader.try_send(tungstenite::Message::binary(bytes)).await);
        }
        // What 64 MiB leave between two sums of what is held is a few MiB: a burst of hundreds in one would be more.
        sleep(Duration::from_millis(2)).await;
    }
    until("the heaviest are closed", PATIENCE, async || {
        shed(&server.metrics().await, "outbox") > 0.0
    })
    .await;
    pressure.check(&server).await;
    let metrics = server.metrics().await;
    let closed = metrics.labelled(
        "roomful_connections_closed_total",
        "code",
        &code(CloseCode::SlowConsumer),
    );
    assert_eq!(closed, shed(&metrics, "outbox"));
    drop(readers);
    recovers(&server).await;
}

/// Messages that are begun and never ended are given up before they hold too much.
#[tokio::test]
async fn unfinished_messages_are_given_up() {
    let server = server(64).await;
    let pressure = Pressure::on(&server).await;
    let mut begun = Vec::new();
    for _ in 0..1_500 {
        begun.push(RawClient::connect(&server).await);
    }
    for client in &begun {
        // A masked binary fragment of 60,000 bytes, with nothing behind it.
        let mut fragment = vec![0x02, 0xfe, 0xea, 0x60, 0, 0, 0, 0];
        fragment.resize(60_000 + 8, 7);
        drop(client.stream().try_write(&fragment));
    }
    until("some are given up", PATIENCE, async || {
        shed(&server.metrics().await, "input") > 0.0
    })
    .await;
    pressure.check(&server).await;
    drop(begun);
    recovers(&server).await;
}

/// The logs of many rooms get half of the budget; then a room that holds much is refused more, and one that holds little goes on.
#[tokio::test]
async fn logs_stop_at_their_part() {
    let server = server(64).await;
    let pressure = Pressure::on(&server).await;
    let mut client = RawClient::connect(&server).await;
    let mut refused = None;
    for number in 0..100 {
        let room = client.join(&format!("game:log-{number}")).await.room;
        for _ in 0..12 {
            let payload = Payload::binary(vec![7; 60_000]);
            let published = client
                .ask(|request| Publish {
                    request,
                    room,
                    op: None,
                    payload,
                })
                .await;
            refused = published.err().or(refused);
        }
    }
    assert_error(&refused.unwrap(), ErrorCode::Overloaded);
    let metrics = server.metrics().await;
    assert!(shed(&metrics, "publish") > 0.0);
    let logs = metrics.labelled("roomful_memory_bytes", "kind", "logs");
    assert!(logs > 24.0 * MIB && logs < 41.0 * MIB, "{logs}");
    let little = client.join("game:little").await.room;
    client.publish(little, Payload::text("goes on")).await;
    pressure.check(&server).await;
}

/// Presence values are refused where there is no room for them, and the room goes on without.
#[tokio::test]
async fn presence_values_stop_at_the_hard_mark() {
    let server = server(48).await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(RawClient::connect(&server).await);
    }
    let pressure = Pressure::on(&server).await;
    let mut refused = None;
    for number in 0..120 {
        for client in &mut clients {
            let entered = client
                .join_with(Join {
                    presence: Some(Payload::binary(vec![7; 4_000])),
                    ..join(&format!("game:presence-{number}"))
                })
                .await;
            refused = entered.err().or(refused);
        }
        if refused.is_some() {
            break;
        }
    }
    assert_error(&refused.unwrap(), ErrorCode::Overloaded);
    assert!(shed(&server.metrics().await, "join") > 0.0);
    pressure.check(&server).await;
}

/// Somebody is let in again as soon as there is room.
async fn recovers(server: &Server) {
    until("the level falls", PATIENCE, async || {
        server.metrics().await.value("roomful_memory_level") == 0.0
    })
    .await;
    RawClient::connect(server).await.close().await;
}

/// A server with a budget of so many MiB, and no limits of rate.
async fn server(mebibytes: usize) -> Server {
    let budget = mebibytes * 1024 * 1024;
    Server::with_config(&format!("{UNLIMITED}[memory]\nbudget_bytes = {budget}\n")).await
}

/// A healthy room, and somebody who watches how much the process holds.
struct Pressure {
    healthy: Healthy,
    watch: JoinSet<()>,
    /// The most that it held so far, in bytes.
    highest: Arc<AtomicU64>,
}

impl Pressure {
    async fn on(server: &Server) -> Self {
        let highest = Arc::new(AtomicU64::new(0));
        let (seen, path) = (
            highest.clone(),
            format!("/proc/{}/status", server.process().id()),
        );
        let mut watch = JoinSet::new();
        watch.spawn(async move {
            while let Ok(status) = std::fs::read_to_string(&path) {
                let kibibytes = status
                    .lines()
                    .find_map(|line| line.strip_prefix("VmRSS:"))
                    .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
                seen.fetch_max(kibibytes.unwrap_or(0) * 1024, Ordering::Relaxed);
                sleep(Duration::from_millis(5)).await;
            }
        });
        Self {
            healthy: Healthy::start(server).await,
            watch,
            highest,
        }
    }

    /// The process never held more than the hard mark and a tenth, and the healthy room noticed nothing.
    async fn check(mut self, server: &Server) {
        self.watch.abort_all();
        let metrics = server.metrics().await;
        let mark = metrics.labelled("roomful_memory_mark_bytes", "mark", "hard");
        let highest = self.highest.load(Ordering::Relaxed) as f64;
        let kinds = [
            "process",
            "http",
            "connections",
            "sessions",
            "input",
            "outboxes",
            "rooms",
            "logs",
            "mailboxes",
        ];
        let held = kinds.map(|kind| {
            let bytes = metrics.labelled("roomful_memory_bytes", "kind", kind);
            format!("{kind} {:.1}", bytes / MIB)
        });
        println!(
            "at most {:.1} MiB of {:.1}; now {}",
            highest / MIB,
            mark / MIB,
            held.join(", ")
        );
        assert!(highest <= mark * 1.1, "{highest} of {mark}");
        self.healthy.check().await;
        assert_eq!(server.metrics().await.value("roomful_panics_total"), 0.0);
    }
}

fn shed(metrics: &Metrics, what: &str) -> f64 {
    metrics.labelled("roomful_memory_sheds_total", "what", what)
}

fn code(code: CloseCode) -> String {
    code.code().to_string()
}

const MIB: f64 = 1024.0 * 1024.0;
