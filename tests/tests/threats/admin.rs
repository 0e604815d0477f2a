//! Attacks on the admin listener.

use std::time::Duration;

use roomful_protocol::error::ErrorCode;
use roomful_protocol::frame::Refresh;
use roomful_protocol::text::Text;
use roomful_tests::back_end::read;
use roomful_tests::raw::{assert_error, placements};
use roomful_tests::tokens::{self, AUDIENCE, KEY};
use roomful_tests::wait::{until, within};
use roomful_tests::{BackEnd, Connect, Healthy, RawClient, Server, http};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

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
        "GET /v1/storage/backup",
        "POST /v1/storage/export",
        "POST /v1/storage/inspect",
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

/// A user with connections on both shards: all of them end at once with 4403 and leave their rooms without the grace, and
/// neither a token nor a resume token lets the user in again until the revocation ends. Others of the same name elsewhere stay.
#[tokio::test]
async fn a_revoked_user_is_out_and_stays_out() {
    const CONNECTIONS: usize = 12;
    let server = Server::with_config(&keyed()).await;
    let back_end = BackEnd::of(&server).await;
    let attack = Attack::beside(&server, healthy(&server).await).await;
    let token = tokens::sign(&tokens::claims("mallory"));
    let mut watcher = member(&server, "watcher").await;
    let mut revoked = Vec::new();
    for key in placements().take(CONNECTIONS) {
        let mut client = Connect::to(&server).placement(key).open().await.unwrap();
        let welcome = client.hello_with(Some(&token), None).await.unwrap();
        client.join("chat:lobby").await;
        revoked.push((client, welcome.resume));
    }
    let mut claims = tokens::claims("mallory");
    claims["tenant"] = "acme".into();
    let mut elsewhere = Connect::to(&server).open().await.unwrap();
    let other = tokens::sign(&claims);
    elsewhere.hello_with(Some(&other), None).await.unwrap();
    let occupancy =
        async || back_end.ok("GET /v1/rooms/chat:lobby", None).await["occupancy"].clone();
    assert_eq!(occupancy().await, CONNECTIONS + 1);

    let begun = Instant::now();
    let body = json!({ "user": "mallory" });
    let done = back_end.ok("POST /v1/revocations", Some(&body)).await;
    assert_eq!(done["connections"], CONNECTIONS);
    for (client, _) in &mut revoked {
        let closed = client.closed().await;
        assert_eq!(
            (closed.code, closed.reason.as_str()),
            (Some(4403), "revoked")
        );
    }
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    until(
        "the members have left",
        Duration::from_secs(5),
        async || occupancy().await == 1,
    )
    .await;
    for (_, resume) in &revoked {
        refused(&server, &token, None).await;
        refused(&server, &token, Some(resume)).await;
    }
    watcher.join("chat:other").await;
    elsewhere.join("chat:other").await;
    assert_eq!(server.metrics().await.value("roomful_revocations"), 1.0);
    let lifted = back_end
        .ok("DELETE /v1/revocations?user=mallory", None)
        .await;
    assert_eq!(lifted, json!({ "lifted": true }));
    member(&server, "mallory").await;
    let refusals = server.metrics().await.labelled(REFUSED, "kind", "revoked");
    assert_eq!(refusals, 2.0 * CONNECTIONS as f64);
    attack
        .moved(
            ("roomful_connections_revoked_total", None),
            CONNECTIONS as f64,
        )
        .await;
}

/// A revoked session can't be resumed, while the user's other session goes on and a new one is welcome.
#[tokio::test]
async fn a_revoked_session_cannot_be_resumed() {
    let server = Server::with_config(&keyed()).await;
    let back_end = BackEnd::of(&server).await;
    let attack = Attack::beside(&server, healthy(&server).await).await;
    let token = tokens::sign(&tokens::claims("ada"));
    let mut stolen = Connect::to(&server).open().await.unwrap();
    let session = stolen.hello_with(Some(&token), None).await.unwrap();
    let mut other = member(&server, "ada").await;
    let body = json!({ "session": session.session.to_string() });
    let done = back_end.ok("POST /v1/revocations", Some(&body)).await;
    assert_eq!(done["connections"], 1);
    assert_eq!(stolen.closed().await.code, Some(4403));
    refused(&server, &token, Some(&session.resume)).await;
    other.join("chat:other").await;
    member(&server, "ada").await;
    attack
        .moved((REFUSED, Some(("kind", "revoked"))), 1.0)
        .await;
}

/// A revoked token id is refused at hello and at refresh, and its connection ends; the user's other tokens are good.
#[tokio::test]
async fn a_revoked_token_id_is_refused() {
    let server = Server::with_config(&keyed()).await;
    let back_end = BackEnd::of(&server).await;
    let attack = Attack::beside(&server, healthy(&server).await).await;
    let with_id = |id: &str| {
        let mut claims = tokens::claims("ada");
        claims["jti"] = id.into();
        tokens::sign(&claims)
    };
    let (leaked, good) = (with_id("leaked"), with_id("good"));
    let mut thief = Connect::to(&server).open().await.unwrap();
    thief.hello_with(Some(&leaked), None).await.unwrap();
    let mut ada = Connect::to(&server).open().await.unwrap();
    ada.hello_with(Some(&good), None).await.unwrap();
    let body = json!({ "token_id": "leaked" });
    let done = back_end.ok("POST /v1/revocations", Some(&body)).await;
    assert_eq!(done["connections"], 1);
    assert_eq!(thief.closed().await.code, Some(4403));
    refused(&server, &leaked, None).await;
    let refresh = ada.request(|request| Refresh {
        request,
        token: Text::new(leaked.as_str()).unwrap(),
    });
    assert_error(&refresh.await.unwrap_err(), ErrorCode::Revoked);
    ada.join("chat:other").await;
    attack
        .moved((REFUSED, Some(("kind", "revoked"))), 2.0)
        .await;
}

/// Hello with a revoked user, session or token: the error, then the close code.
async fn refused(server: &Server, token: &str, resume: Option<&str>) {
    let mut client = Connect::to(server).open().await.unwrap();
    let error = client.hello_with(Some(token), resume).await.unwrap_err();
    assert_error(&error, ErrorCode::Revoked);
    assert_eq!(client.closed().await.code, Some(4403));
}

/// Somebody in the lobby.
async fn member(server: &Server, user: &str) -> RawClient {
    let token = tokens::sign(&tokens::claims(user));
    let mut client = Connect::to(server).open().await.unwrap();
    client.hello_with(Some(&token), None).await.unwrap();
    client.join("chat:lobby").await;
    client
}

async fn healthy(server: &Server) -> Healthy {
    let token = tokens::sign(&tokens::claims("healthy"));
    Healthy::start_with(&Connect::to(server), Some(&token)).await
}

fn keyed() -> String {
    format!(
        "[auth]\nkeys = [{{ algorithm = \"HS256\", secret = \"{KEY}\" }}]\naudience = \"{AUDIENCE}\"\n"
    )
}

const REFUSED: &str = "roomful_auth_failures_total";
