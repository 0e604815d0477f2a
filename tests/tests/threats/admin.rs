//! Attacks on the admin listener.

use roomful_tests::back_end::read;
use roomful_tests::wait::within;
use roomful_tests::{BackEnd, Healthy, Server, http};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::attack::Attack;

const DENIED: &str = "roomful_admin_denied_total";

/// Every operation, known or not, without a key: 401, and nothing is told of what there is. What monitoring needs stays open.
#[tokio::test]
async fn without_the_key_nothing_is_done() {
    let server = Server::start().await;
    let address = server.admin_address().await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let lines = [
        "GET /v1/rooms",
        "GET /v1/rooms/chat:healthy",
        "GET /v1/rooms/chat:healthy/members",
        "POST /v1/rooms/chat:healthy/publish",
        "DELETE /v1/rooms/chat:healthy",
        "GET /v1/nothing",
    ];
    let body = json!({ "payload": ["text", "forged"] }).to_string();
    let headers: [&[(&str, &str)]; 3] = [
        &[],
        &[("authorization", "Basic dXNlcjpwYXNz")],
        &[("authorization", "Bearer"), ("authorization", "Bearer")],
    ];
    for line in lines {
        for headers in headers {
            let response = http::send(address, line, headers, &body).await;
            assert_eq!(response.status, 401, "{line}: {}", response.text());
            let bearer = response.header("www-authenticate");
            assert_eq!(bearer, Some("Bearer realm=\"roomful admin\""));
            assert_eq!(read(&response)["error"]["name"], "invalid_token");
        }
    }
    for open in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(http::get(address, open, &[]).await.status, 200, "{open}");
    }
    let count = lines.len() * headers.len();
    attack
        .moved((DENIED, Some(("reason", "missing"))), count as f64)
        .await;
}

/// A few wrong keys are told so; then the address is not looked at any more for a while, whatever it shows. None of them
/// reaches the log.
#[tokio::test]
async fn keys_cannot_be_guessed() {
    let server = Server::with_config("[admin]\nwrong_keys_per_minute_max = 3\n").await;
    let back_end = BackEnd::of(&server).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let guess = async |key: &str| {
        let guess = BackEnd {
            key: key.to_owned(),
            ..back_end.clone()
        };
        guess.call("GET /v1/rooms", &[], None).await
    };
    let close = [&back_end.key[1..], "a-guess", "x"];
    for key in close {
        let response = guess(key).await;
        assert_eq!(response.status, 401, "{}", response.text());
    }
    for _ in 0..20 {
        let response = guess("another-guess").await;
        assert_eq!(response.status, 429, "{}", response.text());
        assert_eq!(read(&response)["error"]["name"], "rate_limited");
        let seconds: u64 = response.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=20).contains(&seconds), "{seconds}");
    }
    let limited = server.metrics().await.labelled(DENIED, "reason", "limited");
    assert_eq!(limited, 20.0);
    let log = server.log().join("\n");
    assert!(!log.contains("guess\"") && !log.contains(&back_end.key[1..]));
    attack
        .moved((DENIED, Some(("reason", "wrong"))), close.len() as f64)
        .await;
}

/// A page whose own name was made to point to this machine is refused, with the key as without.
#[tokio::test]
async fn a_foreign_host_is_refused() {
    let server = Server::start().await;
    let back_end = BackEnd::of(&server).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let bearer = format!("Bearer {}", back_end.key);
    let hosts = [
        "evil.example",
        "evil.example:7401",
        "127.0.0.1.evil.example",
        "192.0.2.1",
    ];
    for host in hosts {
        let headers = [("host", host), ("authorization", &*bearer)];
        let response = http::get(back_end.address, "/v1/rooms", &headers).await;
        assert_eq!(response.status, 403, "{host}: {}", response.text());
    }
    for host in ["localhost", "LOCALHOST:1", "[::1]:7401"] {
        let headers = [("host", host), ("authorization", &*bearer)];
        let response = http::get(back_end.address, "/v1/rooms", &headers).await;
        assert_eq!(response.status, 200, "{host}: {}", response.text());
    }
    attack
        .moved((DENIED, Some(("reason", "host"))), hosts.len() as f64)
        .await;
}

/// A body that is longer than may be is refused by its length alone, one without a length too, before the key is looked at.
#[tokio::test]
async fn a_huge_body_is_refused_unread() {
    let server = Server::start().await;
    let back_end = BackEnd::of(&server).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let bearer = format!("authorization: Bearer {}\r\n", back_end.key);
    let lengths = [
        ("content-length: 131073\r\n", 413),
        ("content-length: 99999999999\r\n", 413),
        ("transfer-encoding: chunked\r\n", 411),
    ];
    for (length, status) in lengths {
        for key in ["", &bearer] {
            let request = format!(
                "POST /v1/rooms/chat:a/publish HTTP/1.1\r\nhost: {}\r\n{key}{length}\r\n",
                back_end.address
            );
            let response = http::raw(back_end.address, &request).await;
            assert_eq!(response.status, status, "{length}: {}", response.text());
        }
    }
    attack
        .moved(
            (
                "roomful_handshakes_rejected_total",
                Some(("reason", "body")),
            ),
            2.0 * lengths.len() as f64,
        )
        .await;
}

/// A body that trickles in is given up after its time, and meanwhile others are served; one without the key is not waited
/// for at all.
#[tokio::test]
async fn a_slow_body_is_given_up() {
    let server = Server::with_config("[admin]\nrequest_timeout_ms = 300\nrequests_max = 4\n").await;
    let back_end = BackEnd::of(&server).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let head = |key: &str| {
        format!(
            "POST /v1/rooms/chat:a/publish HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {key}\r\ncontent-length: 1000\r\n\r\n{{",
            back_end.address
        )
    };
    let mut slow = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(back_end.address).await.unwrap();
        stream
            .write_all(head(&back_end.key).as_bytes())
            .await
            .unwrap();
        slow.push(stream);
    }
    back_end.ok("GET /v1/rooms", None).await;
    for mut stream in slow {
        let answer = within("the answer to a slow body", async {
            let mut answer = vec![0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            answer
        });
        assert_eq!(answer.await, b"HTTP/1.1 408");
    }
    let response = http::raw(back_end.address, &head("wrong")).await;
    assert_eq!(response.status, 401);
    // All places are free again.
    for _ in 0..4 {
        back_end.ok("GET /v1/rooms", None).await;
    }
    attack.moved((DENIED, Some(("reason", "wrong"))), 1.0).await;
}

/// The operations are on the admin listener alone, and the WebSocket is not.
#[tokio::test]
async fn the_public_listener_has_no_operations() {
    let server = Server::start().await;
    let back_end = BackEnd::of(&server).await;
    let attack = Attack::beside(&server, Healthy::start(&server).await).await;
    let public = BackEnd {
        address: server.address(),
        ..back_end.clone()
    };
    let body = json!({ "payload": ["text", "forged"] });
    for line in [
        "GET /v1/rooms",
        "GET /v1/rooms/chat:healthy",
        "DELETE /v1/revocations",
    ] {
        assert_eq!(public.call(line, &[], None).await.status, 404, "{line}");
    }
    for line in ["POST /v1/rooms/chat:healthy/publish", "POST /v1/disconnect"] {
        let response = public.call(line, &[], Some(&body)).await;
        assert_eq!(
            response.status, 400,
            "{line}: a body is refused before anything is looked at"
        );
    }
    let upgrade = back_end.call("GET /v1/ws", &[], None).await;
    assert_eq!(upgrade.status, 404);
    attack
        .moved(
            (
                "roomful_handshakes_rejected_total",
                Some(("reason", "body")),
            ),
            2.0,
        )
        .await;
}
