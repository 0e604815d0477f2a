//! Attacks before there is a WebSocket: requests that are wrong, too long, too slow, or from where they may not be.

use std::time::Duration;

use roomful_tests::http::{exchange, handshake};
use roomful_tests::raw::Connect;
use roomful_tests::tokens::{self, AUDIENCE};
use roomful_tests::wait::{PATIENCE, within};
use roomful_tests::{Healthy, RawClient, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::attack::{Attack, Series};

const fn rejected(reason: &'static str) -> Series<'static> {
    (
        "roomful_handshakes_rejected_total",
        Some(("reason", reason)),
    )
}

/// Each of these, put in place of a part of a good handshake, gets this status and ends its connection, so that nothing
/// behind it passes for a request; and each is counted once under the reason.
async fn refused(reason: &'static str, cases: &[(&str, &str, u16)]) {
    let server = Server::start().await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    for (part, instead, status) in cases {
        let good = handshake(server.address());
        let wrong = good.replacen(part, instead, 1);
        assert_ne!(wrong, good, "{part:?} is in a handshake");
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let response = exchange(&mut stream, (wrong + &good).as_bytes()).await;
        assert_eq!(response.status, *status, "{instead:?}: {}", response.text());
        assert!(
            !response.body.is_empty() || ["malformed", "http_version"].contains(&reason),
            "{instead:?}"
        );
        within("the end", stream.read_to_end(&mut Vec::new()))
            .await
            .unwrap();
    }
    attack.moved(rejected(reason), cases.len() as f64).await;
}

const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
const VERSION: &str = "Sec-WebSocket-Version: 13";
const END: &str = "\r\n\r\n";

/// Other versions of the protocol: 426, with the one that there is.
#[tokio::test]
async fn other_versions_are_refused() {
    let cases = [
        "0",
        "8",
        "12",
        "14",
        "13,8",
        "13\r\nSec-WebSocket-Version: 13",
    ];
    let lines = cases.map(|version| format!("Sec-WebSocket-Version: {version}"));
    let mut cases: Vec<_> = lines
        .iter()
        .map(|line| (VERSION, line.as_str(), 426))
        .collect();
    cases.push((VERSION, "X: y", 426));
    refused("version", &cases).await;
}

/// A key that is not sixteen bytes, or not one.
#[tokio::test]
async fn bad_keys_are_refused() {
    refused(
        "key",
        &[
            (KEY, "X: y", 400),
            (KEY, "Sec-WebSocket-Key: ", 400),
            (KEY, "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==", 400),
            (KEY, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZ!==", 400),
            (KEY, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", 400),
        ],
    )
    .await;
}

/// Other methods.
#[tokio::test]
async fn other_methods_are_refused() {
    refused(
        "method",
        &[
            ("GET ", "PUT ", 405),
            ("GET ", "DELETE ", 405),
            ("GET ", "OPTIONS ", 405),
        ],
    )
    .await;
}

/// HTTP/1.0 has no upgrade, and HTTP/2 is not served, so that nothing of it can be abused.
#[tokio::test]
async fn other_versions_of_http_are_refused() {
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let cases = [("HTTP/1.1", "HTTP/1.0", 505), ("GET ", preface, 505)];
    refused("http_version", &cases).await;
}

/// A request that asks for no upgrade, or for another.
#[tokio::test]
async fn requests_without_an_upgrade_are_refused() {
    refused(
        "upgrade",
        &[
            ("Upgrade: websocket", "X: y", 426),
            ("Upgrade: websocket", "Upgrade: h2c", 426),
            ("Connection: Upgrade", "X: y", 400),
            ("Connection: Upgrade", "Connection: keep-alive", 400),
        ],
    )
    .await;
}

/// A body, or two opinions on its length, could hide a second request.
#[tokio::test]
async fn bodies_are_refused() {
    refused(
        "body",
        &[
            (END, "\r\nContent-Length: 5\r\n\r\nhello", 400),
            (END, "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
            (
                END,
                "\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                400,
            ),
        ],
    )
    .await;
}

/// What is nearly HTTP: spaces before a colon, folded lines, and lengths that contradict each other.
#[tokio::test]
async fn what_is_no_http_1_is_refused() {
    refused(
        "malformed",
        &[
            ("Upgrade: websocket", "Upgrade : websocket", 400),
            ("Upgrade: websocket", "Upgrade: web\0socket", 400),
            ("Upgrade: websocket", "Upgrade", 400),
            (END, "\r\n folded\r\n\r\n", 400),
            (
                END,
                "\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                400,
            ),
            (END, "\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        ],
    )
    .await;
}

/// A target that names another host, or is no path: nothing is ever fetched from there.
#[tokio::test]
async fn odd_targets_are_refused() {
    let long = format!("GET /v1/ws?{}", "k".repeat(4_096));
    refused(
        "target",
        &[
            ("GET /v1/ws", "GET http://169.254.169.254/v1/ws", 400),
            ("GET /v1/ws", "GET //host/v1/ws", 400),
            ("GET /v1/ws", "OPTIONS *", 400),
            ("GET /v1/ws", &long, 414),
        ],
    )
    .await;
}

/// Pages of others can't connect, in whatever way they spell their name.
#[tokio::test]
async fn foreign_pages_are_refused() {
    let origins = [
        "https://evil.example",
        "null",
        "http://localhost",
        "http://localhost.evil.example",
        "https://127.0.0.1.evil.example",
        "HTTP://LOCALHOST",
        "http://localhost.",
        "",
    ];
    let lines = origins.map(|origin| format!("\r\nOrigin: {origin}{END}"));
    let cases: Vec<_> = lines.iter().map(|line| (END, line.as_str(), 403)).collect();
    refused("origin", &cases).await;
}

/// A subprotocol that nobody speaks here, with bytes that no client sends, and so long that a slow look would show.
#[tokio::test]
async fn odd_subprotocols_are_refused() {
    const OFFER: &str = "roomful.v1.json";
    let spaces = format!("{}x", " ".repeat(8_000));
    let commas = ",".repeat(8_000);
    let started = Instant::now();
    refused(
        "subprotocol",
        &[
            (OFFER, "mqtt", 400),
            (OFFER, "", 400),
            (OFFER, "ROOMFUL.V1.JSON", 400),
            (OFFER, "roomful.v1.json, \u{e9}", 400),
            (OFFER, &spaces, 400),
            (OFFER, &commas, 400),
        ],
    )
    .await;
    assert!(started.elapsed() < PATIENCE);
}

/// A head of a megabyte, of thousands of lines, or one byte at a time: 431 at the bound, and at the bound it still passes.
#[tokio::test]
async fn long_heads_are_cut_off() {
    let server =
        Server::with_config("[http]\nheader_lines_max = 64\nheader_bytes_max = 16384\n").await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let good = handshake(server.address());
    let lines = good.matches("\r\n").count() - 2;
    for (more, status) in [(64 - lines, 101), (65 - lines, 431), (2_000, 431)] {
        let request = good.replace(END, &format!("\r\n{}\r\n", "a: b\r\n".repeat(more)));
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        assert_eq!(
            exchange(&mut stream, request.as_bytes()).await.status,
            status,
            "{more}"
        );
    }
    // Without an end, in one piece and in many small ones.
    for piece in [1_000_000, 100] {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\na: ").await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let mut answer = [0; 12];
        let flood = async {
            // It ends with the answer: the server reads on for a moment only.
            while writer.write_all(&vec![b'a'; piece]).await.is_ok() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            () = flood => panic!("the flood ended before the answer"),
            read = within("the answer", reader.read_exact(&mut answer)) => drop(read.unwrap()),
        }
        assert_eq!(&answer, b"HTTP/1.1 431");
    }
    attack.moved(rejected("header_limit"), 4.0).await;
}

/// Heads that come a byte at a time, and sockets that say nothing: each gets 408 at the deadline, and meanwhile others connect
/// as ever.
#[tokio::test]
async fn slow_heads_end_at_the_deadline() {
    const SLOW: usize = 1_000;
    let server = Server::with_config("[http]\nheader_timeout_ms = 3000\n").await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let mut sockets = Vec::new();
    for _ in 0..SLOW {
        sockets.push(TcpStream::connect(server.address()).await.unwrap());
    }
    let connects = async {
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            let started = Instant::now();
            RawClient::connect(&server).await;
            longest = longest.max(started.elapsed());
            sleep(Duration::from_millis(50)).await;
        }
        longest
    };
    let trickle = async {
        for byte in b"GET /v1/ws" {
            for (index, socket) in sockets.iter().enumerate() {
                // Every second one says nothing at all. One that has been answered takes no more, which is fine.
                if index % 2 == 0 {
                    socket.try_write(&[*byte]).ok();
                }
            }
            sleep(Duration::from_millis(500)).await;
        }
    };
    let (longest, ()) = tokio::join!(connects, trickle);
    assert!(
        longest < Duration::from_secs(2),
        "a healthy client took {longest:?}"
    );
    for mut socket in sockets {
        let mut answer = Vec::new();
        // The rest of it may be a reset, where a byte came behind the answer.
        within("the end", socket.read_to_end(&mut answer))
            .await
            .ok();
        assert!(answer.starts_with(b"HTTP/1.1 408"), "{answer:?}");
    }
    attack.moved(rejected("header_timeout"), SLOW as f64).await;
}

/// Offers of compression, right or wrong, are not taken: 101 without an extension, and nothing is ever inflated.
#[tokio::test]
async fn compression_is_never_agreed_on() {
    let server = Server::start().await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let offers = [
        "permessage-deflate",
        "permessage-deflate; server_max_window_bits=0",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=7; client_max_window_bits=x",
        "permessage-deflate, permessage-deflate, permessage-bzip2",
    ];
    for offer in offers {
        let header = format!("\r\nSec-WebSocket-Extensions: {offer}{END}");
        let request = handshake(server.address()).replace(END, &header);
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let response = exchange(&mut stream, request.as_bytes()).await;
        assert_eq!(response.status, 101);
        assert_eq!(response.header("sec-websocket-extensions"), None);
    }
    let opened = ("roomful_connections_opened_total", None);
    attack.moved(opened, offers.len() as f64).await;
}

/// A token in the URL, which proxies and browsers write down, opens nothing, and this server doesn't write it down.
#[tokio::test]
async fn a_token_in_the_url_is_not_looked_at() {
    let config = format!(
        "[log]\nfilter = \"trace\"\n[auth]\naudience = \"{AUDIENCE}\"\nkeys = [{{ algorithm = \"HS256\", secret = \"{}\" }}]\n",
        tokens::KEY
    );
    let server = Server::with_config(&config).await;
    let token = tokens::sign(&tokens::claims("ada"));
    let healthy = Healthy::start_with(&Connect::to(&server), Some(&token)).await;
    let attack = Attack::beside(&server, healthy).await;
    let stolen = tokens::sign(&tokens::claims("eve"));
    for path in ["?token=", "?access_token=", "?k="] {
        let mut connect = Connect::to(&server);
        connect.query = Some(format!("{path}{stolen}"));
        let mut client = connect.open().await.unwrap();
        client.hello_with(None, None).await.unwrap_err();
        assert_eq!(client.closed().await.code, Some(4401));
    }
    attack
        .moved(
            ("roomful_auth_failures_total", Some(("kind", "missing"))),
            3.0,
        )
        .await;
    let (claims, _) = stolen.rsplit_once('.').unwrap();
    let log = server.log().join("\n");
    assert!(log.contains("listening") && !log.contains(claims));
}
