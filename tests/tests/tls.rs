//! Rooms over TLS: the same promises, and certificates that change while everybody stays.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::sync::Arc;
use std::time::Duration;

use roomful_client::Options;
use roomful_protocol::codec::Encoding;
use roomful_protocol::frame::OpId;
use roomful_protocol::id::{Offset, ProducerId, Sequence};
use roomful_protocol::payload::Payload;
use roomful_tests::process::Process;
use roomful_tests::server::{Directory, UNLIMITED};
use roomful_tests::tls::{self, Authority, CERTIFICATE, KEY};
use roomful_tests::wait::{PATIENCE, until, within};
use roomful_tests::{Connect, Follower, Healthy, RawClient, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// A server with a certificate, and who issued it.
struct Secure {
    authority: Authority,
    dir: Directory,
    server: Server,
    client: Arc<ClientConfig>,
}

impl Secure {
    async fn start(more: &str) -> Self {
        let (authority, dir) = (Authority::new(), Directory::new());
        authority.issue().write(&dir.0);
        let config = tls::config(&dir.0, "") + more;
        let client = Arc::new(authority.client());
        Self {
            server: Server::with_config(&config).await,
            authority,
            dir,
            client,
        }
    }

    fn connect(&self) -> Connect {
        Connect::to(&self.server).tls(&self.client)
    }

    async fn handshakes(&self, outcome: &str) -> f64 {
        let metrics = self.server.metrics().await;
        metrics.labelled("roomful_tls_handshakes_total", "outcome", outcome)
    }

    /// The certificate that a handshake shows now.
    async fn shown(&self) -> Vec<u8> {
        let stream = tls::connect(self.server.address(), &self.client).await;
        let stream = stream.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }
}

/// Thirty members of a room, in both encodings and both versions of TLS, get every event whole and in order, also those that
/// take four records each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_over_tls_has_messages_longer_than_a_record() {
    let secure = Secure::start(UNLIMITED).await;
    let old = Arc::new(secure.authority.client_of_tls12());
    let mut readers = Vec::new();
    for number in 0..30 {
        let mut connect = secure.connect();
        if number % 2 == 0 {
            connect = connect.encoding(Encoding::Json);
        }
        if number % 3 == 0 {
            connect = connect.tls(&old);
        }
        let mut reader = connect.ready().await;
        reader.join("chat:tls").await;
        readers.push(reader);
    }
    let mut publisher = secure.connect().ready().await;
    let room = publisher.join("chat:tls").await.room;
    let texts: Vec<String> = (0..8)
        .map(|number| number.to_string().repeat([10, 60_000][number % 2]))
        .collect();
    for text in &texts {
        publisher.publish(room, Payload::text(text)).await;
    }
    for reader in &mut readers {
        for text in &texts {
            let payload = reader.event().await.entry.payload;
            assert!(payload.bytes == text.as_bytes(), "an event is not whole");
        }
    }
    let done = secure.handshakes("full").await + secure.handshakes("resumed").await;
    assert_eq!(done, 31.0);
}

/// A reader over TLS that stops reading is switched to its position, and gets everything, once and in order, when it reads again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_over_tls_catches_up() {
    let secure = Secure::start(
        "[connection]\noutbox_bytes_max = 65536\nkernel_unsent_bytes_max = 16384\nmessage_bytes_max = 16384\n\
         payload_bytes_max = 8192\nmessages_per_s = 1000000\nmessages_burst = 1000000\n\
         [namespaces.chat]\nhistory_entries_max = 2000\nhistory_bytes_max = 67108864\n",
    )
    .await;
    let mut slow = Follower::new(secure.connect().receive_buffer(4_096), "chat:slow");
    slow.attach().await;
    let mut publisher = secure.connect().ready().await;
    let room = publisher.join_as("chat:slow", PRODUCER, Sequence(1)).await;
    let mut head = Offset(0);
    for sequence in 1..=500 {
        let op = OpId {
            producer: PRODUCER,
            sequence: Sequence(sequence),
        };
        let payload = Payload::text("x".repeat(4_000));
        let published = publisher.publish_with(room, Some(op), payload).await;
        head = published.unwrap().position.offset;
    }
    assert!(
        secure
            .server
            .metrics()
            .await
            .value("roomful_catch_ups_total")
            > 0.0
    );
    slow.until_at(head).await;
    assert_eq!((slow.resets(), slow.operations().len()), (0, 500));
}

/// What the server says last arrives: the close frame, and then the end of TLS, so that the peer knows that nothing was cut off.
#[tokio::test]
async fn a_goodbye_ends_with_close_and_close_notify() {
    let secure = Secure::start("").await;
    let mut stream = tls::connect(secure.server.address(), &secure.client)
        .await
        .unwrap();
    let request = format!(
        "GET /v1/ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: roomful.v1.json\r\n\r\n",
        secure.server.address()
    );
    // The frame stands right behind the request, and has no mask.
    let request = [request.as_bytes(), &[0x82, 0x01, 0x00]].concat();
    stream.write_all(&request).await.unwrap();
    let mut answer = Vec::new();
    // It fails where the socket ends before TLS does.
    within("the end", stream.read_to_end(&mut answer))
        .await
        .unwrap();
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let frames = &answer[head.unwrap() + 4..];
    assert_eq!(
        (frames[0], &frames[2..4]),
        (0x88, &1002_u16.to_be_bytes()[..])
    );
}

/// A server that ends tells those on TLS too.
#[tokio::test]
async fn a_drain_reaches_those_on_tls() {
    let mut secure = Secure::start("[shutdown]\ndrain_accept_ms = 0\n").await;
    let mut client = secure.connect().ready().await;
    client.join("chat:drain").await;
    let closed = {
        secure.server.process().signal("TERM").await;
        client.closed().await
    };
    assert_eq!(closed.code, Some(1012));
    drop(client);
    assert!(secure.server.ended().await.status.success());
}

/// The certificate's files are replaced while a room is busy: new handshakes show the new one, and no connection is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_shown_and_nobody_is_dropped() {
    let secure = Secure::start("").await;
    let healthy = Healthy::start_with(&secure.connect(), None).await;
    let before = secure.server.metrics().await;
    let issued = secure.authority.issue();
    assert_ne!(secure.shown().await, issued.der.to_vec());
    issued.write(&secure.dir.0);
    until("the new certificate is shown", PATIENCE, async || {
        secure.shown().await == issued.der.to_vec()
    })
    .await;
    healthy.check().await;
    let after = secure.server.metrics().await;
    let reloads = |outcome| after.labelled("roomful_tls_reloads_total", "outcome", outcome);
    assert_eq!((reloads("loaded"), reloads("failed")), (1.0, 0.0));
    let opened = "roomful_connections_opened_total";
    assert_eq!(before.value(opened), after.value(opened));
}

/// New files that are no pair leave the old certificate in use, and are counted once.
#[tokio::test]
async fn broken_new_files_keep_the_old_certificate() {
    let secure = Secure::start("").await;
    let shown = secure.shown().await;
    let other = secure.authority.issue();
    std::fs::write(secure.dir.0.join(CERTIFICATE), other.certificate).unwrap();
    until("the reload fails", PATIENCE, async || {
        let metrics = secure.server.metrics().await;
        metrics.labelled("roomful_tls_reloads_total", "outcome", "failed") == 1.0
    })
    .await;
    assert_eq!(secure.shown().await, shown);
    let log = secure.server.log().join("\n");
    assert!(log.contains("the old certificate stays in use"), "{log}");
    // The other half arrives late.
    std::fs::write(secure.dir.0.join(KEY), other.key).unwrap();
    until("the pair is whole", PATIENCE, async || {
        secure.shown().await == other.der.to_vec()
    })
    .await;
}

/// SIGHUP has the certificate read too: files that are no pair refuse the whole reload, and the old one stays.
#[tokio::test]
async fn a_reload_reads_the_certificate() {
    let secure = Secure::start("").await;
    let (shown, other) = (secure.shown().await, secure.authority.issue());
    std::fs::write(secure.dir.0.join(CERTIFICATE), &other.certificate).unwrap();
    secure.server.reload("refused").await;
    assert_eq!(secure.shown().await, shown);
    std::fs::write(secure.dir.0.join(KEY), &other.key).unwrap();
    secure.server.reload("applied").await;
    assert_eq!(secure.shown().await, other.der.to_vec());
}

/// What TLS keeps is in the memory budget: so much for each connection, what has come of a record that is not whole, and what a reader
/// that has stopped leaves of the last one. All of it is gone with the connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_tls_keeps_is_in_the_memory_budget() {
    let secure = Secure::start(&format!("{UNLIMITED}kernel_unsent_bytes_max = 16384\n")).await;
    let held = async |kind| {
        let metrics = secure.server.metrics().await;
        metrics.labelled("roomful_memory_bytes", "kind", kind)
    };
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(secure.connect().ready().await);
    }
    until("all are counted", PATIENCE, async || {
        held("tls").await == 20.0 * KEPT
    })
    .await;
    let metrics = secure.server.metrics().await;
    assert_eq!(metrics.value("roomful_tls_connections"), 20.0);

    // The head of a record of 16 KiB, and most of what it announces.
    let unfinished = clients.pop().unwrap();
    let mut record = vec![0x17, 3, 3, 0x40, 0x11];
    record.resize(12_000, 0);
    let sent = unfinished.stream().try_write(&record).unwrap();
    assert_eq!(sent, record.len());
    until("the record is counted", PATIENCE, async || {
        held("input").await >= 12_000.0
    })
    .await;

    let mut stopped = secure.connect().receive_buffer(4_096).ready().await;
    stopped.join("chat:stopped").await;
    let mut publisher = clients.pop().unwrap();
    let room = publisher.join("chat:stopped").await.room;
    let counted = async {
        while held("tls").await <= 21.0 * KEPT {
            let payload = Payload::text("x".repeat(8_000));
            publisher.publish(room, payload).await;
        }
    };
    within("the last record is counted", counted).await;
    drop((clients, unfinished, stopped, publisher));
    until("nothing is held", PATIENCE, async || {
        held("tls").await + held("input").await == 0.0
    })
    .await;
}

/// A client that comes back resumes its TLS session by a ticket, without the certificate.
#[tokio::test]
async fn tls_sessions_are_resumed() {
    let secure = Secure::start("").await;
    for _ in 0..2 {
        let mut client = secure.connect().ready().await;
        client.join("chat:resumed").await;
        client.close().await;
    }
    assert_eq!(secure.handshakes("full").await, 1.0);
    assert_eq!(secure.handshakes("resumed").await, 1.0);
}

/// A page of the server itself may connect, by `https`; the same page without TLS may not.
#[tokio::test]
async fn a_page_is_the_servers_own_by_https() {
    let secure = Secure::start("").await;
    let with_origin = |scheme: &str| {
        let mut connect = secure.connect();
        let origin = format!("{scheme}://{}", secure.server.address());
        connect.headers.push(("origin", origin));
        connect
    };
    with_origin("https").ready().await;
    assert!(with_origin("http").open().await.is_err());
    let metrics = secure.server.metrics().await;
    let refused = metrics.labelled("roomful_handshakes_rejected_total", "reason", "origin");
    assert_eq!(refused, 1.0);
}

/// The client library reaches a `wss://` address over sockets that it is given.
#[tokio::test]
async fn the_rust_client_speaks_tls() {
    let secure = Secure::start("").await;
    let mut follower = secure.connect().ready().await;
    follower.join("chat:client").await;
    let options = Options {
        connector: Some(roomful_client::Connector::tls(Arc::clone(&secure.client))),
        ..Options::default()
    };
    let url = format!("wss://localhost:{}/v1/ws", secure.server.address().port());
    let client = roomful_client::Client::connect(&url, options)
        .await
        .unwrap();
    let (room, _events) = client
        .join("chat:client", roomful_client::JoinOptions::default())
        .await
        .unwrap();
    room.publish(Payload::text("over tls")).await.unwrap();
    assert_eq!(
        follower.event().await.entry.payload,
        Payload::text("over tls")
    );
}

/// What is wrong with the files is said with the file's name, before anybody is let in; an expired certificate is a warning.
#[tokio::test]
async fn bad_files_are_named() {
    let (authority, dir) = (Authority::new(), Directory::new());
    let run = async |config: String| {
        std::fs::write(dir.0.join("roomful.toml"), config).unwrap();
        let ended = Process::run(
            &dir.0,
            &["serve"],
            &[("ROOMFUL_LISTEN__PUBLIC", "127.0.0.1:0")],
        );
        let ended = ended.await;
        assert!(!ended.status.success());
        ended.output
    };
    let both = tls::config(&dir.0, "");
    let output = run(both.clone()).await;
    assert!(
        output.contains(CERTIFICATE) && output.contains("can't be read"),
        "{output}"
    );
    authority.issue().write(&dir.0);
    std::fs::write(dir.0.join(KEY), "no key").unwrap();
    let output = run(both.clone()).await;
    assert!(
        output.contains(KEY) && output.contains("no private key in PEM"),
        "{output}"
    );
    std::fs::write(dir.0.join(KEY), authority.issue().key).unwrap();
    let output = run(both.clone()).await;
    assert!(
        output.contains("no pair of certificate and key"),
        "{output}"
    );
    let output = run(format!("[listen]\ntls_key_file = \"{KEY}\"\n")).await;
    assert!(output.contains("needed together"), "{output}");

    authority.issue_expired().write(&dir.0);
    let server = Server::with_config(&both).await;
    until("the warning", PATIENCE, async || {
        server.log().iter().any(|line| line.contains("has expired"))
    })
    .await;
    let client = Arc::new(authority.client());
    assert!(tls::connect(server.address(), &client).await.is_err());
}

/// Names that the certificate doesn't have are answered with it all the same: there is only one, and whether it will do is the
/// client's affair.
#[tokio::test]
async fn an_unknown_name_gets_the_one_certificate() {
    let secure = Secure::start("").await;
    let name = ServerName::try_from("elsewhere.example").unwrap();
    let refused = tls::connect_as(secure.server.address(), &secure.client, name).await;
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("not valid for name"), "{text}");
    until("the client's refusal is counted", PATIENCE, async || {
        secure.handshakes("alert").await == 1.0
    })
    .await;
    let healthy: RawClient = secure.connect().ready().await;
    tokio::time::timeout(Duration::from_secs(20), healthy.close())
        .await
        .unwrap();
}

/// What TLS keeps for a connection.
const KEPT: f64 = 10_240.0;

const PRODUCER: ProducerId = ProducerId(7);
