//! The HTTP faces of the public listener: page, health, metrics, and who may open a WebSocket.

use roomful_protocol::codec::Encoding;
use roomful_tests::http::{self, get, upgrade_headers};
use roomful_tests::{RawClient, Server};

/// The page is there, is HTML, and everything it names is served too.
#[tokio::test]
async fn the_page_and_all_it_needs_is_served() {
    let server = Server::start().await;
    let page = get(server.address(), "/", &[]).await;
    assert_eq!(page.status, 200);
    assert!(
        page.header("content-type")
            .unwrap()
            .starts_with("text/html"),
        "{:?}",
        page.headers
    );
    let html = page.text();
    let values = ["href=\"", "src=\""]
        .into_iter()
        .flat_map(|name| html.split(name).skip(1));
    let values = values.filter_map(|rest| rest.split('"').next());
    let named: Vec<&str> = values.filter(|value| !value.starts_with('#')).collect();
    assert!(!named.is_empty(), "{html}");
    for path in named {
        let path = format!("/{}", path.trim_start_matches(['.', '/']));
        let part = get(server.address(), &path, &[]).await;
        assert_eq!(part.status, 200, "{path}");
        assert!(!part.body.is_empty(), "{path}");
    }
    assert_eq!(
        get(server.address(), "/nothing-here", &[]).await.status,
        404
    );
}

/// A server that listens is alive and ready.
#[tokio::test]
async fn health_and_readiness_answer() {
    let server = Server::start().await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(server.address(), path, &[]).await.status, 200, "{path}");
    }
}

/// Metrics have what a dashboard needs, move with what happens, and name no room and no user.
#[tokio::test]
async fn metrics_count_what_happens_and_name_nobody() {
    let server = Server::start().await;
    let before = server.metrics().await;
    let mut client = RawClient::connect(&server).await;
    let room = client.join("chat:metrics-must-not-name-me").await.room;
    client
        .publish(room, roomful_protocol::payload::Payload::text("x"))
        .await;
    let after = server.metrics().await;
    for (name, by) in [
        ("roomful_connections", 1.0),
        ("roomful_members", 1.0),
        ("roomful_rooms", 1.0),
        ("roomful_publishes_total", 1.0),
    ] {
        assert_eq!(after.value(name) - before.value(name), by, "{name}");
    }
    let text = get(server.address(), "/metrics", &[]).await.text();
    assert!(
        !text.contains("must-not-name-me") && !text.contains("anon-"),
        "{text}"
    );
}

/// Without keys a browser may connect from this very server's page, and from nowhere else; a name that merely resolves to it is nobody.
#[tokio::test]
async fn a_foreign_page_cannot_open_a_websocket() {
    let server = Server::start().await;
    let port = server.address().port();
    let here = server.address().to_string();
    let local = format!("localhost:{port}");
    for (host, origin, status) in [
        (here.clone(), None, 101),
        (here.clone(), Some(format!("http://127.0.0.1:{port}")), 101),
        (local.clone(), Some(format!("http://localhost:{port}")), 101),
        (here.clone(), Some("https://evil.example".to_owned()), 403),
        (
            here.clone(),
            Some(format!("http://127.0.0.1:{}", port ^ 1)),
            403,
        ),
        (
            here.clone(),
            Some(format!("https://127.0.0.1:{port}.evil.example")),
            403,
        ),
        (here.clone(), Some("null".to_owned()), 403),
        // DNS rebinding: the page's own name now resolves to this address.
        (
            format!("evil.example:{port}"),
            Some(format!("http://evil.example:{port}")),
            403,
        ),
        (format!("evil.example:{port}"), None, 403),
    ] {
        let mut headers = upgrade_headers(Encoding::MessagePack.subprotocol());
        headers.push(("host", &host));
        if let Some(origin) = &origin {
            headers.push(("origin", origin));
        }
        let response = get(server.address(), "/v1/ws", &headers).await;
        assert_eq!(
            response.status,
            status,
            "host {host}, origin {origin:?}: {}",
            response.text()
        );
    }
}

/// A configured origin may connect, and it alone.
#[tokio::test]
async fn a_configured_origin_may_connect() {
    let config = "[listen]\norigins = [\"https://app.example.com\"]\n[auth]\nkeys = [{ algorithm = \"HS256\", secret = \"0123456789abcdef0123456789abcdef\" }]\n";
    let server = Server::with_config(config).await;
    for (origin, status) in [
        ("https://app.example.com", 101),
        ("https://app.example.com.evil.example", 403),
        ("http://app.example.com", 403),
    ] {
        let mut headers = upgrade_headers(Encoding::MessagePack.subprotocol());
        headers.push(("origin", origin));
        assert_eq!(
            get(server.address(), "/v1/ws", &headers).await.status,
            status,
            "{origin}"
        );
    }
}

/// A handshake that is none is answered in HTTP, so that the person who wrote it can read why.
#[tokio::test]
async fn a_broken_handshake_is_answered_in_http() {
    let server = Server::start().await;
    let host = format!("host: {}\r\n", server.address());
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\n";
    let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let version = "sec-websocket-version: 13\r\n";
    let protocol = "sec-websocket-protocol: roomful.v1.json\r\n";
    for (what, method, headers, status) in [
        ("a plain GET", "GET", String::new(), 426),
        (
            "an old version",
            "GET",
            format!("{upgrade}{key}{protocol}sec-websocket-version: 8\r\n"),
            426,
        ),
        (
            "no key",
            "GET",
            format!("{upgrade}{version}{protocol}"),
            400,
        ),
        (
            "a short key",
            "GET",
            format!("{upgrade}{version}{protocol}sec-websocket-key: abc\r\n"),
            400,
        ),
        (
            "a POST",
            "POST",
            format!("{upgrade}{key}{version}{protocol}content-length: 0\r\n"),
            405,
        ),
        (
            "a subprotocol of others",
            "GET",
            format!("{upgrade}{key}{version}sec-websocket-protocol: mqtt\r\n"),
            400,
        ),
    ] {
        let request = format!("{method} /v1/ws HTTP/1.1\r\n{host}{headers}\r\n");
        let response = http::raw(server.address(), &request).await;
        assert_eq!(response.status, status, "{what}: {}", response.text());
        assert!(!response.text().is_empty(), "{what}");
    }
}

/// A head without end is cut off at its bound, and others are served meanwhile.
#[tokio::test]
async fn an_endless_head_is_cut_off() {
    let server = Server::start().await;
    let request = format!(
        "GET / HTTP/1.1\r\nhost: {}\r\nx: {}\r\n\r\n",
        server.address(),
        "a".repeat(60_000)
    );
    assert_eq!(http::raw(server.address(), &request).await.status, 431);
    assert_eq!(get(server.address(), "/healthz", &[]).await.status, 200);
}
