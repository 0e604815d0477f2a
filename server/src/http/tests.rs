//! The doors as a peer on a plain socket sees them.

use std::io::{BufRead, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use roomful_protocol::codec::Encoding;
use roomful_protocol::id::PlacementKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tower::ServiceExt;
use tracing::Span;

use super::*;
use crate::admission::client::Trust;
use crate::admission::{self, Admission, Counted, Refusal};
use crate::current::Current;
use crate::metrics::{HandshakeRejection as Reason, Metrics};
use crate::shutdown::Shutdown;
use crate::tasks::Tasks;

/// A public listener on loopback whose upgraded sockets come out at [`Self::upgraded`].
struct Running {
    address: SocketAddr,
    shared: Shared,
    shutdown: Shutdown,
    taken: Arc<AtomicUsize>,
    upgraded: mpsc::Receiver<Upgraded>,
}

/// Places that there are.
const PLACES: usize = 2;

/// Gives them.
struct Taker {
    taken: Arc<AtomicUsize>,
    upgraded: mpsc::Sender<Upgraded>,
}

impl Upgrades for Taker {
    fn admit(&self) -> Result<Counted, Refusal> {
        Counted::below(&self.taken, PLACES).ok_or(Refusal {
            reason: admission::Reason::Full,
            retry_after: Duration::from_secs(7),
        })
    }

    fn hand_over(&self, upgraded: Vec<Upgraded>) {
        for socket in upgraded {
            self.upgraded
                .try_send(socket)
                .expect("a test takes its sockets");
        }
    }
}

impl Running {
    async fn start(limits: Limits) -> Self {
        Self::with_admission(limits, UNLIMITED).await
    }

    async fn with_admission(limits: Limits, admission: admission::Limits) -> Self {
        let shared = shared(limits);
        let (sender, upgraded) = mpsc::channel(8);
        let taken = Arc::default();
        let taker = Arc::new(Taker {
            taken: Arc::clone(&taken),
            upgraded: sender,
        });
        let admission = Admission::new(admission, Trust::none());
        let site = Site::public(
            shared.clone(),
            admission,
            taker,
            Current::new(OriginRule::Loopback { listed: Vec::new() }),
        );
        let listener = listen("127.0.0.1:0".parse().unwrap(), 65_536).unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::new();
        shared.tasks.spawn(
            "accept",
            Span::none(),
            serve(listener, site, shutdown.clone()),
        );
        Self {
            address,
            shared,
            shutdown,
            taken,
            upgraded,
        }
    }

    fn rejected(&self, reason: Reason) -> u64 {
        self.shared.metrics.handshakes_rejected(reason)
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes and returns all that comes back until the server closes.
    async fn exchange(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_ref()).await.unwrap();
        read_to_end(&mut stream).await
    }

    async fn get(&self, path: &str) -> String {
        self.exchange(format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.address
        ))
        .await
    }

    /// A handshake that is accepted.
    fn handshake(&self) -> String {
        let address = self.address;
        format!(
            "GET /v1/ws?k=1bc5c3481e8d9d9c HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: roomful.v1.msgpack\r\nOrigin: http://{address}\r\n\r\n"
        )
    }

    /// Opens a WebSocket with a request that may be followed by more; returns what the client and the taker then hold.
    async fn upgrade(&mut self, request: impl AsRef<[u8]>) -> (String, TcpStream, Upgraded) {
        let mut stream = self.connect().await;
        stream.write_all(request.as_ref()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let upgraded = timeout(PATIENCE, self.upgraded.recv())
            .await
            .unwrap()
            .unwrap();
        (head, stream, upgraded)
    }

    /// Places that are taken.
    fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

fn shared(limits: Limits) -> Shared {
    let tasks = Tasks::new();
    Shared {
        metrics: Metrics::new(tasks.clone(), 2),
        readiness: Readiness::new(None),
        tasks,
        limits,
    }
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("the server closes")
        .unwrap();
    String::from_utf8(answer).unwrap()
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(
            timeout(PATIENCE, stream.read_u8())
                .await
                .expect("the server answers")
                .unwrap(),
        );
    }
    String::from_utf8(head).unwrap()
}

/// The value of a header, however its name is written.
fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let lines = answer
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(':'));
    let mut found = lines
        .filter(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim());
    found.next()
}

fn status(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

/// Waits for something that becomes true soon.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Admission that is in nobody's way.
const UNLIMITED: admission::Limits = admission::Limits {
    connections_per_address_max: 1_000,
    unauthenticated_per_address_max: 1_000,
    limit_loopback: false,
    http_connections_max: 1_000,
    unauthenticated_max: 1_000,
    connects: admission::budget::Rate {
        per_s: 1_000,
        burst: 1_000,
    },
    connects_per_address: admission::budget::Rate {
        per_s: 1_000,
        burst: 1_000,
    },
    descriptors_reserved: 0,
};

/// Far beyond what anything here takes, for a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request that comes in pieces takes the way through the HTTP engine, of which nothing is left afterwards.
#[tokio::test]
async fn a_handshake_in_pieces_hands_the_socket_over_too() {
    let mut running = Running::start(Limits::default()).await;
    let request = running.handshake();
    let (first, second) = request.split_at(request.len() / 2);
    let mut client = running.connect().await;
    client.write_all(first.as_bytes()).await.unwrap();
    eventually("the HTTP task's start", || {
        running.shared.tasks.live().get("http_connection") == Some(&1)
    })
    .await;
    client.write_all(second.as_bytes()).await.unwrap();
    client.write_all(b"frame").await.unwrap();
    let head = read_head(&mut client).await;
    assert_eq!(
        header(&head, "Sec-WebSocket-Accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    let mut upgraded = timeout(PATIENCE, running.upgraded.recv())
        .await
        .unwrap()
        .unwrap();
    eventually("the HTTP task's end", || {
        running.shared.tasks.live()["http_connection"] == 0
    })
    .await;
    let mut behind = upgraded.read_ahead.to_vec();
    upgraded.stream.set_nonblocking(false).unwrap();
    let ahead = behind.len();
    behind.resize(b"frame".len(), 0);
    upgraded.stream.read_exact(&mut behind[ahead..]).unwrap();
    assert_eq!(behind, b"frame");
}

/// The answer is RFC 6455's, the taker gets what the handshake said, and the two ends of the socket talk;
/// extensions are not accepted, and what HTTP held for the connection is gone.
#[tokio::test]
async fn a_handshake_hands_the_socket_over() {
    let mut running = Running::start(Limits::default()).await;
    let offer =
        "\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=99\r\n\r\n";
    let request = running.handshake().replace("\r\n\r\n", offer);
    let (head, mut client, mut upgraded) = running.upgrade(request).await;
    assert_eq!(
        header(&head, "Sec-WebSocket-Accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    assert_eq!(
        header(&head, "Sec-WebSocket-Protocol"),
        Some("roomful.v1.msgpack")
    );
    assert_eq!(header(&head, "Sec-WebSocket-Extensions"), None);

    assert_eq!(upgraded.encoding, Encoding::MessagePack);
    assert_eq!(upgraded.placement, PlacementKey::parse("1bc5c3481e8d9d9c"));
    assert_eq!(upgraded.client, client.local_addr().unwrap().ip());
    assert!(upgraded.read_ahead.is_empty());
    assert!(upgraded.stream.nodelay().unwrap());
    let would_block = upgraded.stream.read(&mut [0]).unwrap_err();
    assert_eq!(would_block.kind(), std::io::ErrorKind::WouldBlock);

    upgraded.stream.write_all(b"down").unwrap();
    let mut down = [0; 4];
    client.read_exact(&mut down).await.unwrap();
    assert_eq!(&down, b"down");
    // There was one only if the request had not arrived when the socket was accepted.
    eventually("the HTTP task's end, if there was one", || {
        let live = running.shared.tasks.live();
        live.get("http_connection").is_none_or(|count| *count == 0)
    })
    .await;

    assert_eq!(running.taken(), 1);
    drop(upgraded);
    assert_eq!(running.taken(), 0, "the place goes with the socket");
}

/// What the client sends right behind its request is delivered, in order, whether it fitted into HTTP's buffer or not.
#[tokio::test]
async fn bytes_behind_the_request_are_delivered() {
    let mut running = Running::start(Limits::default()).await;
    for integers in [1, 50, 25_000_u32] {
        let frames: Vec<u8> = (0..integers).flat_map(u32::to_be_bytes).collect();
        let request = [running.handshake().as_bytes(), &frames].concat();
        let (_, _client, upgraded) = running.upgrade(request).await;
        let mut received = upgraded.read_ahead.to_vec();
        assert!(
            !received.is_empty(),
            "the request and the first frames came in one segment"
        );
        let mut stream = TcpStream::from_std(upgraded.stream).unwrap();
        while received.len() < frames.len() {
            assert_ne!(stream.read_buf(&mut received).await.unwrap(), 0);
        }
        assert_eq!(received, frames);
    }
}

/// Spellings that RFC 6455 allows, and which subprotocol is chosen: the first offer that is known.
#[tokio::test]
async fn lists_and_odd_case_are_accepted() {
    let mut running = Running::start(Limits::default()).await;
    let origin = format!("Origin: http://{}\r\n", running.address);
    for (line, instead, chosen) in [
        (&*origin, "", "roomful.v1.msgpack"),
        (
            "Connection: Upgrade",
            "connection: keep-alive, uPGRADE",
            "roomful.v1.msgpack",
        ),
        (
            "Connection: Upgrade",
            "Connection: keep-alive\r\nConnection: upgrade",
            "roomful.v1.msgpack",
        ),
        (
            "Upgrade: websocket",
            "UPGRADE: WebSocket",
            "roomful.v1.msgpack",
        ),
        (
            "\r\n\r\n",
            "\r\nContent-Length: 0\r\n\r\n",
            "roomful.v1.msgpack",
        ),
        (
            "Protocol: roomful.v1.msgpack",
            "Protocol: roomful.v1.json,roomful.v1.msgpack",
            "roomful.v1.json",
        ),
        (
            "Protocol: roomful.v1.msgpack",
            "Protocol: chat, roomful.v1.json",
            "roomful.v1.json",
        ),
        (
            "Sec-WebSocket-Protocol: roomful.v1.msgpack",
            "Sec-WebSocket-Protocol: roomful.v2\r\nSec-WebSocket-Protocol: , roomful.v1.json",
            "roomful.v1.json",
        ),
    ] {
        let request = running.handshake().replace(line, instead);
        assert_ne!(request, running.handshake(), "{line} is in the request");
        let (head, _client, upgraded) = running.upgrade(request).await;
        assert_eq!(
            header(&head, "Sec-WebSocket-Protocol"),
            Some(chosen),
            "{instead}"
        );
        assert_eq!(upgraded.encoding.subprotocol(), chosen);
    }
}

/// Every way to get a handshake wrong has its answer, ends the connection, and is counted once under its reason.
#[tokio::test]
async fn wrong_handshakes_are_answered_and_counted() {
    let running = Running::start(Limits::default()).await;
    let address = running.address;
    let host = format!("Host: {address}");
    let origin = format!("Origin: http://{address}");
    let cases: &[(&str, &str, u16, Reason)] = &[
        // Method, version of HTTP, target.
        ("GET ", "POST ", 405, Reason::Method),
        ("HTTP/1.1", "HTTP/1.0", 505, Reason::HttpVersion),
        (
            "GET /v1/ws",
            "GET http://169.254.169.254/v1/ws",
            400,
            Reason::Target,
        ),
        ("GET /v1/ws", "GET //host/v1/ws", 400, Reason::Target),
        (
            "GET /v1/ws?k=1bc5c3481e8d9d9c",
            "OPTIONS *",
            400,
            Reason::Target,
        ),
        ("GET /v1/ws", "GET ..%2fv1/ws", 400, Reason::Malformed),
        // Host.
        (&host, "X: y", 400, Reason::Host),
        (&host, "Host: a\r\nHost: b", 400, Reason::Host),
        (&host, "Host: a b", 400, Reason::Host),
        (&host, "Host: evil.example", 403, Reason::Origin),
        // Upgrade.
        ("Upgrade: websocket", "X: y", 426, Reason::Upgrade),
        ("Upgrade: websocket", "Upgrade: h2c", 426, Reason::Upgrade),
        ("Connection: Upgrade", "X: y", 400, Reason::Upgrade),
        (
            "Connection: Upgrade",
            "Connection: keep-alive",
            400,
            Reason::Upgrade,
        ),
        // Version.
        ("Sec-WebSocket-Version: 13", "X: y", 426, Reason::Version),
        ("Version: 13", "Version: 0", 426, Reason::Version),
        ("Version: 13", "Version: 8", 426, Reason::Version),
        ("Version: 13", "Version: 12", 426, Reason::Version),
        ("Version: 13", "Version: 14", 426, Reason::Version),
        ("Version: 13", "Version: 13,8", 426, Reason::Version),
        (
            "Version: 13",
            "Version: 13\r\nSec-WebSocket-Version: 8",
            426,
            Reason::Version,
        ),
        // Key.
        (
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "X: y",
            400,
            Reason::Key,
        ),
        ("Key: dGhlIHNhbXBsZSBub25jZQ==", "Key: ", 400, Reason::Key),
        (
            "Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Key: dGhlIHNhbXBsZQ==",
            400,
            Reason::Key,
        ),
        (
            "Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Key: dGhlIHNhbXBsZSBub25jZQAA",
            400,
            Reason::Key,
        ),
        (
            "Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Key: dGhlIHNhbXBsZSBub25jZ!==",
            400,
            Reason::Key,
        ),
        (
            "Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Key: dGhlIHNhbXBsZSBub25jZQ",
            400,
            Reason::Key,
        ),
        (
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            400,
            Reason::Key,
        ),
        // Origin.
        (&origin, "Origin: https://evil.example", 403, Reason::Origin),
        (&origin, "Origin: null", 403, Reason::Origin),
        (&origin, "Origin: http://localhost", 403, Reason::Origin),
        (&origin, "Origin: ", 403, Reason::Origin),
        // Subprotocol.
        (
            "Sec-WebSocket-Protocol: roomful.v1.msgpack",
            "X: y",
            400,
            Reason::Subprotocol,
        ),
        (
            "Protocol: roomful.v1.msgpack",
            "Protocol: ",
            400,
            Reason::Subprotocol,
        ),
        (
            "Protocol: roomful.v1.msgpack",
            "Protocol: roomful.v2.msgpack, chat",
            400,
            Reason::Subprotocol,
        ),
        (
            "Protocol: roomful.v1.msgpack",
            "Protocol: ROOMFUL.V1.MSGPACK",
            400,
            Reason::Subprotocol,
        ),
        (
            "Protocol: roomful.v1.msgpack",
            "Protocol: roomful.v1.msgpack, \u{e9}",
            400,
            Reason::Subprotocol,
        ),
        // A body, or two opinions on whether there is one.
        (
            "\r\n\r\n",
            "\r\nContent-Length: 5\r\n\r\nhello",
            400,
            Reason::Body,
        ),
        (
            "\r\n\r\n",
            "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            Reason::Body,
        ),
        (
            "\r\n\r\n",
            "\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            Reason::Body,
        ),
        (
            "\r\n\r\n",
            "\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
            400,
            Reason::Body,
        ),
        // No HTTP.
        (
            "Upgrade: websocket",
            "Upgrade : websocket",
            400,
            Reason::Malformed,
        ),
        (
            "Upgrade: websocket",
            "Upgrade: web\0socket",
            400,
            Reason::Malformed,
        ),
        ("Upgrade: websocket", "Upgrade", 400, Reason::Malformed),
        (
            "\r\n\r\n",
            "\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            400,
            Reason::Malformed,
        ),
        (
            "\r\n\r\n",
            "\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
            400,
            Reason::Malformed,
        ),
        (
            "\r\n\r\n",
            "\r\nTransfer-Encoding: gzip\r\n\r\n",
            400,
            Reason::Malformed,
        ),
        ("HTTP/1.1", "HTTP/9.1", 400, Reason::Malformed),
    ];
    for (line, instead, expected, reason) in cases {
        let request = running.handshake().replacen(line, instead, 1);
        assert_ne!(request, running.handshake(), "{line} is in the request");
        let before = running.rejected(*reason);
        // A second request behind the refused one must not be served.
        let answer = running.exchange(request + &running.handshake()).await;
        assert_eq!(status(&answer), *expected, "{instead:?}: {answer}");
        assert_eq!(
            answer.matches("HTTP/1.1").count(),
            1,
            "{instead:?}: {answer}"
        );
        assert_eq!(
            running.rejected(*reason),
            before + 1,
            "{instead:?} counts as {reason:?}"
        );
        if *expected == 426 {
            assert_eq!(header(&answer, "Upgrade"), Some("websocket"));
            assert_eq!(header(&answer, "Sec-WebSocket-Version"), Some("13"));
        }
    }
    assert_eq!(running.taken(), 0, "a refused handshake takes no place");
}

/// Every byte that HTTP lets into a header value is answered, not tripped over; long rubbish takes no long time.
#[tokio::test]
async fn any_subprotocol_bytes_are_answered() {
    let running = Running::start(Limits::default()).await;
    for byte in (0..=u8::MAX).filter(|byte| *byte != b'r') {
        let mut request = running.handshake().into_bytes();
        let at = request
            .windows(8)
            .position(|window| window == b"roomful.")
            .unwrap();
        request[at] = byte;
        assert_eq!(
            status(&running.exchange(request).await),
            400,
            "byte {byte:#x}"
        );
    }
    let spaces = " ".repeat(12_000);
    let commas = ",".repeat(12_000);
    for rubbish in [spaces, commas] {
        let request = running.handshake().replace("roomful.v1.msgpack", &rubbish);
        assert_eq!(status(&running.exchange(request).await), 400);
    }
}

/// A full server says so before the handshake is answered, and says when to come back.
#[tokio::test]
async fn a_full_server_refuses_with_a_wait() {
    let mut running = Running::start(Limits::default()).await;
    let first = running.upgrade(running.handshake()).await;
    let _second = running.upgrade(running.handshake()).await;
    let answer = running.exchange(running.handshake()).await;
    assert_eq!(status(&answer), 503);
    assert_eq!(header(&answer, "Retry-After"), Some("7"));
    assert_eq!(running.rejected(Reason::Full), 1);
    drop(first);
    running.upgrade(running.handshake()).await;
}

/// The page comes with its type, its tag and its protection; who has it already gets an empty 304.
#[tokio::test]
async fn the_page_is_served_once() {
    let running = Running::start(Limits::default()).await;
    let answer = running.get("/").await;
    assert_eq!(status(&answer), 200);
    assert_eq!(
        header(&answer, "Content-Type"),
        Some("text/html; charset=utf-8")
    );
    assert!(
        answer.to_ascii_lowercase().contains("<!doctype html>"),
        "{answer}"
    );
    let policy = header(&answer, "Content-Security-Policy").unwrap();
    assert!(
        policy.contains("connect-src 'self'") && policy.contains("frame-ancestors 'none'"),
        "{policy}"
    );
    assert_eq!(header(&answer, "X-Content-Type-Options"), Some("nosniff"));
    assert_eq!(header(&answer, "Referrer-Policy"), Some("no-referrer"));

    let tag = header(&answer, "ETag").unwrap();
    let address = running.address;
    let again = format!(
        "GET / HTTP/1.1\r\nHost: {address}\r\nIf-None-Match: {tag}\r\nConnection: close\r\n\r\n"
    );
    let again = running.exchange(again).await;
    assert_eq!(status(&again), 304);
    assert_eq!(header(&again, "ETag"), Some(tag));
    assert!(again.ends_with("\r\n\r\n"), "{again}");

    let head = format!("HEAD / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let head = running.exchange(head).await;
    assert_eq!(
        (status(&head), header(&head, "Content-Length")),
        (200, header(&answer, "Content-Length"))
    );
    assert!(head.ends_with("\r\n\r\n"), "{head}");
}

/// Other paths and methods have short answers.
#[tokio::test]
async fn other_requests_have_short_answers() {
    let running = Running::start(Limits::default()).await;
    let missing = running.get("/nothing").await;
    assert_eq!(status(&missing), 404);
    assert!(missing.ends_with("\r\n\r\nnot found\n"), "{missing}");
    assert_eq!(header(&missing, "X-Content-Type-Options"), Some("nosniff"));

    let plain = running.get("/v1/ws").await;
    assert_eq!(
        (status(&plain), header(&plain, "Upgrade")),
        (426, Some("websocket"))
    );

    let host = format!("Host: {}\r\nConnection: close", running.address);
    let posted = running
        .exchange(format!("POST / HTTP/1.1\r\n{host}\r\n\r\n"))
        .await;
    assert_eq!(
        (status(&posted), header(&posted, "Allow")),
        (405, Some("GET,HEAD"))
    );
    let long = running.get(&format!("/{}", "a".repeat(5_000))).await;
    assert_eq!(status(&long), 414);
}

/// Health is always 200; readiness follows the server's life.
#[tokio::test]
async fn readiness_follows_the_servers_life() {
    let running = Running::start(Limits::default()).await;
    let readiness = running.shared.readiness.clone();
    assert_eq!(status(&running.get("/readyz").await), 503);
    readiness.ready();
    assert_eq!(status(&running.get("/readyz").await), 200);
    readiness.draining();
    readiness.ready();
    let draining = running.get("/readyz").await;
    assert_eq!(status(&draining), 503);
    assert!(draining.ends_with("draining\n"), "{draining}");
    assert_eq!(status(&running.get("/healthz").await), 200);
}

/// Metrics are where only the operator is: on the admin listener, and on a public one that is bound to
/// loopback. There a foreign page that renamed itself to this address does not get them.
#[tokio::test]
async fn metrics_are_for_the_operator() {
    let taker = || {
        let (upgraded, _) = mpsc::channel(1);
        Arc::new(Taker {
            taken: Arc::default(),
            upgraded,
        })
    };
    for (site, address, host, expected) in [
        (None, "127.0.0.1:7401", "localhost:7401", StatusCode::OK),
        (None, "127.0.0.1:7401", "localhost:9999", StatusCode::OK),
        (
            None,
            "127.0.0.1:7401",
            "evil.example",
            StatusCode::FORBIDDEN,
        ),
        (None, "192.0.2.1:7401", "metrics.example", StatusCode::OK),
        (
            Some(taker()),
            "127.0.0.1:7400",
            "127.0.0.1:7400",
            StatusCode::OK,
        ),
        (
            Some(taker()),
            "127.0.0.1:7400",
            "evil.example",
            StatusCode::FORBIDDEN,
        ),
        (
            Some(taker()),
            "192.0.2.1:7400",
            "192.0.2.1:7400",
            StatusCode::NOT_FOUND,
        ),
        (
            Some(taker()),
            "[::]:7400",
            "[::1]:7400",
            StatusCode::NOT_FOUND,
        ),
    ] {
        let shared = shared(Limits::default());
        let admission = Admission::new(UNLIMITED, Trust::none());
        let site = match site {
            Some(taker) => {
                Site::public(shared, admission, taker, Current::new(OriginRule::SameHost))
            }
            None => Site::admin(
                shared,
                admission,
                Operations {
                    routes: Router::new(),
                    body_bytes_max: 0,
                },
            ),
        };
        let request = Request::get("/metrics")
            .header("Host", host)
            .body(Body::empty())
            .unwrap();
        let response = site
            .routes(address.parse().unwrap())
            .0
            .oneshot(request)
            .await
            .unwrap();
        assert_eq!(response.status(), expected, "{address}, Host {host}");
    }
}

/// What `/metrics` sends is the text format, with the numbers in it.
#[tokio::test]
async fn metrics_are_sent_as_text() {
    let running = Running::start(Limits::default()).await;
    running.shared.metrics.shards()[1].deliveries.add(5);
    let answer = running.get("/metrics").await;
    assert_eq!(
        header(&answer, "Content-Type"),
        Some("text/plain; version=0.0.4")
    );
    assert!(
        answer.contains("\nroomful_deliveries_total 5\n"),
        "{answer}"
    );
    assert!(
        answer.contains("\nroomful_tasks{task=\"http_connection\"} 1\n"),
        "{answer}"
    );
}

/// At the bound a head is served, beyond it 431 comes back, in lines and in bytes.
#[tokio::test]
async fn long_heads_are_refused() {
    let limits = Limits::default();
    let running = Running::start(limits).await;
    let head = format!(
        "GET /healthz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n",
        running.address
    );
    let lines = |count: usize| format!("{head}{}\r\n", "X: y\r\n".repeat(count - 2));
    let bytes = |count: usize| format!("{head}X: {}\r\n\r\n", "y".repeat(count - head.len() - 7));
    for (request, expected) in [
        (lines(limits.header_lines_max), 200),
        (lines(limits.header_lines_max + 1), 431),
        (lines(2_000), 431),
        (bytes(limits.header_bytes_max), 200),
        (bytes(limits.header_bytes_max + 1), 431),
        (bytes(10_000_000), 431),
    ] {
        let before = running.rejected(Reason::HeaderLimit);
        let mut stream = running.connect().await;
        let (mut reader, mut writer) = stream.split();
        let mut answer = String::new();
        // A refused peer may be cut off while it still sends.
        let (sent, read) = tokio::join!(
            writer.write_all(request.as_bytes()),
            reader.read_to_string(&mut answer)
        );
        assert!(read.is_ok(), "{} bytes: {read:?}", request.len());
        assert!(sent.is_ok() || expected == 431, "{sent:?}");
        assert_eq!(status(&answer), expected, "{} bytes", request.len());
        let counted = running.rejected(Reason::HeaderLimit) - before;
        assert_eq!(counted, u64::from(expected == 431));
    }
}

/// A head that does not arrive in time ends with 408, and so does silence; the silence of a browser between
/// its requests is no offence.
#[tokio::test]
async fn slow_heads_are_refused() {
    let limits = Limits {
        header_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let running = Running::start(limits).await;
    let mut slow = running.connect().await;
    let dripping = async {
        let (mut reader, mut writer) = slow.split();
        let mut answer = String::new();
        let drip = async {
            while writer.write_all(b"G").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            read = reader.read_to_string(&mut answer) => drop(read.unwrap()),
            () = drip => panic!("the answer comes before the end"),
        }
        answer
    };
    let healthy = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        running.get("/healthz").await
    };
    let (dripped, silent, healthy) = tokio::join!(dripping, running.exchange(""), healthy);
    assert_eq!(
        (status(&dripped), status(&silent), status(&healthy)),
        (408, 408, 200)
    );
    assert_eq!(running.rejected(Reason::HeaderTimeout), 2);

    let idle = running
        .exchange(format!(
            "GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n",
            running.address
        ))
        .await;
    assert_eq!((status(&idle), idle.matches("HTTP/1.1").count()), (200, 1));
    assert_eq!(running.rejected(Reason::HeaderTimeout), 2);
}

/// One connection more than there may be is served, and the oldest has to go, told and counted; one that ends makes place.
#[tokio::test]
async fn connections_are_bounded() {
    let limits = admission::Limits {
        http_connections_max: 2,
        ..UNLIMITED
    };
    let running = Running::with_admission(Limits::default(), limits).await;
    let live = |count| {
        let tasks = running.shared.tasks.clone();
        move || tasks.live().get("http_connection") == Some(&count)
    };
    let mut oldest = running.connect().await;
    eventually("the first is in", live(1)).await;
    let first = running.connect().await;
    eventually("both are in", live(2)).await;
    assert_eq!(running.rejected(Reason::HttpConnections), 0);
    assert_eq!(status(&running.get("/healthz").await), 200);
    let answer = read_to_end(&mut oldest).await;
    assert_eq!(status(&answer), 503);
    let wait: u64 = header(&answer, "retry-after").unwrap().parse().unwrap();
    assert!((5..=10).contains(&wait), "{answer}");
    assert_eq!(running.rejected(Reason::HttpConnections), 1);
    let _second = running.connect().await;
    eventually("there are two again", live(2)).await;

    drop(first);
    eventually("the first connection's end", || {
        running.shared.tasks.live()["http_connection"] == 1
    })
    .await;
    assert_eq!(status(&running.get("/healthz").await), 200);
}

/// Who has had its last answer and doesn't close is one of those that are bounded until it is closed, and goes without
/// a further word where its place is needed.
#[tokio::test]
async fn connections_that_linger_are_bounded_too() {
    let limits = admission::Limits {
        http_connections_max: 2,
        ..UNLIMITED
    };
    let running = Running::with_admission(Limits::default(), limits).await;
    let request = format!(
        "GET /nope HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        running.address
    );
    let (mut lingering, mut most) = (Vec::new(), 0);
    for _ in 0..100 {
        let mut stream = running.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        // To its end, so that nothing but lingering is left.
        assert_eq!(status(&read_to_end(&mut stream).await), 404);
        lingering.push(stream);
        most = most.max(running.shared.tasks.live()["http_connection"]);
    }
    // One more than there may be is on its way out; on a busy machine a few are.
    assert!(most <= 10, "{most} at a time");
    assert_eq!(running.rejected(Reason::HttpConnections), 0);
}

/// A panic while a socket is handed over is counted, and the listener goes on.
#[tokio::test]
async fn a_panic_at_the_hand_over_leaves_the_listener() {
    let mut running = Running::start(Limits::default()).await;
    let (_, closed) = mpsc::channel(1);
    running.upgraded = closed;
    let handshake = running.handshake();
    let answer = running.exchange(&handshake).await;
    assert_eq!(status(&answer), 101);
    assert_eq!(status(&running.get("/healthz").await), 200);
    // A handshake that comes later than its connection is handed over by a task of its own.
    let panics =
        ["acceptor", "task"].map(|place| format!("roomful_panics_total{{where=\"{place}\"}} 1"));
    eventually("the panic is counted", || {
        let rendered = running.shared.metrics.render();
        panics.iter().any(|panic| rendered.contains(panic))
    })
    .await;
}

/// A client that asks for much and reads nothing is dropped at the end of its time.
#[tokio::test]
async fn a_client_that_does_not_read_is_dropped() {
    let limits = Limits {
        lifetime: Duration::from_millis(100),
        ..Limits::default()
    };
    let running = Running::start(limits).await;
    let mut stream = running.connect().await;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n\r\n", running.address);
    // Writing stalls as soon as the answers fill the way back.
    let flood = async { while stream.write_all(request.as_bytes()).await.is_ok() {} };
    timeout(PATIENCE, flood)
        .await
        .expect("the server drops the connection");
    eventually("the connection's end", || {
        running.shared.tasks.live()["http_connection"] == 0
    })
    .await;
}

/// After the shutdown nobody gets in, an idle connection is closed at once, and no task is left.
#[tokio::test]
async fn shutdown_leaves_no_task() {
    let mut running = Running::start(Limits::default()).await;
    let mut idle = running.connect().await;
    idle.write_all(
        format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", running.address).as_bytes(),
    )
    .await
    .unwrap();
    assert!(read_head(&mut idle).await.starts_with("HTTP/1.1 200"));
    let _silent = running.connect().await;
    let (_, mut client, upgraded) = running.upgrade(running.handshake()).await;

    running.shutdown.trigger();
    assert_eq!(read_to_end(&mut idle).await, "ok\n");
    timeout(PATIENCE, running.shared.tasks.wait())
        .await
        .expect("every task ends");
    assert!(TcpStream::connect(running.address).await.is_err());

    (&upgraded.stream).write_all(b"still here").unwrap();
    drop(upgraded);
    assert_eq!(read_to_end(&mut client).await, "still here");
}

/// Out of file descriptors, the server neither ends nor spins, and serves again when there are some.
///
/// The server is this test program once more, in a process that may open few files.
#[cfg(unix)]
#[tokio::test]
async fn a_server_without_descriptors_recovers() {
    let program = std::env::current_exe().unwrap();
    let mut child = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 32 && exec \"$0\" http::tests::serve_until_killed --exact --ignored --nocapture"])
        .arg(program)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let address = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("address ").map(str::to_owned))
        .unwrap();

    let started = Instant::now();
    let mut crowd = Vec::new();
    for _ in 0..64 {
        crowd.push(TcpStream::connect(&address).await.unwrap());
    }
    let mut healthy = TcpStream::connect(&address).await.unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    healthy.write_all(request.as_bytes()).await.unwrap();
    let answer = read_to_end(&mut healthy).await;
    let attempts = started.elapsed().as_millis() / 100 + 2;
    child.kill().unwrap();
    child.wait().unwrap();

    assert_eq!(status(&answer), 200);
    let errors = answer
        .lines()
        .find_map(|line| line.strip_prefix("roomful_accept_errors_total "))
        .unwrap();
    let errors: u128 = errors.parse().unwrap();
    assert!(
        (1..=attempts).contains(&errors),
        "{errors} failures in {attempts} attempts"
    );
}

/// The server of the test above.
#[cfg(unix)]
#[tokio::test]
#[ignore = "a part of a_server_without_descriptors_recovers"]
async fn serve_until_killed() {
    let running = Running::start(Limits {
        header_timeout: Duration::from_millis(500),
        ..Limits::default()
    })
    .await;
    println!("address {}", running.address);
    tokio::time::sleep(PATIENCE * 3).await;
}
