//! Attacks on TLS, and on the time before it.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use roomful_tests::http::{connect_from, handshake};
use roomful_tests::server::Directory;
use roomful_tests::tls::{self, Authority};
use roomful_tests::wait::within;
use roomful_tests::{Connect, Healthy, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

use crate::attack::{Attack, Series};

/// A server that speaks TLS, its certificate, and somebody who trusts it.
struct Secure {
    server: Server,
    client: Arc<ClientConfig>,
    _dir: Directory,
}

impl Secure {
    async fn start(listen: &str, more: &str) -> Self {
        let (authority, dir) = (Authority::new(), Directory::new());
        authority.issue().write(&dir.0);
        Self {
            server: Server::with_config(&(tls::config(&dir.0, listen) + more)).await,
            client: Arc::new(authority.client()),
            _dir: dir,
        }
    }

    fn connect(&self) -> Connect {
        Connect::to(&self.server).tls(&self.client)
    }

    async fn attack(&self) -> Attack<'_> {
        let healthy = Healthy::start_with(&self.connect(), None).await;
        Attack::beside(&self.server, healthy).await
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.server.address()).await.unwrap()
    }

    /// Does a handshake of TLS and one of WebSocket over a socket.
    async fn enter(&self, stream: BufStream<TcpStream>) -> io::Result<impl fmt::Debug + use<>> {
        let address = self.server.address();
        let connector = TlsConnector::from(Arc::clone(&self.client));
        let mut stream = connector.connect(address.ip().into(), stream).await?;
        stream.write_all(handshake(address).as_bytes()).await?;
        stream.flush().await?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        assert_eq!(&answer, b"HTTP/1.1 101");
        Ok(stream)
    }

    /// Sends bytes in place of a handshake, and reads to the end.
    async fn answer(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.tcp().await;
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        within(
            "the end of a refused socket",
            stream.read_to_end(&mut answer),
        )
        .await
        .unwrap();
        answer
    }
}

const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 4);

/// Of 192.0.2.1, in version 1 of the PROXY protocol.
const TEXT: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\r\n";

/// The same in version 2.
const BINARY: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x01\x12\x67\x01\xbb";

const fn handshakes(outcome: &str) -> Series<'_> {
    ("roomful_tls_handshakes_total", Some(("outcome", outcome)))
}

/// A thousand sockets, half of them silent and half of them stopped in the middle of their first message, are dropped at the deadline; somebody who
/// comes meanwhile gets in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_done_handshakes_are_dropped_at_the_deadline() {
    let secure = Secure::start("tls_handshake_timeout_ms = 3000", "").await;
    let attack = secure.attack().await;
    let mut silent = Vec::new();
    for number in 0..1_000 {
        let mut stream = secure.tcp().await;
        if number % 2 == 0 {
            stream.write_all(&client_hello(0x0303)[..40]).await.unwrap();
        }
        silent.push(stream);
    }
    let client = within("somebody who comes meanwhile", secure.connect().ready()).await;
    client.close().await;
    for stream in &mut silent {
        let read = within("the deadline", stream.read(&mut [0; 16])).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
    attack.moved(handshakes("timeout"), 1_000.0).await;
}

/// Beyond the most handshakes at a time sockets are dropped at once.
#[tokio::test]
async fn more_handshakes_than_there_may_be_are_dropped() {
    let listen = "tls_handshakes_max = 8\ntls_handshake_timeout_ms = 60000";
    let secure = Secure::start(listen, "").await;
    let attack = secure.attack().await;
    let mut silent = Vec::new();
    for _ in 0..18 {
        silent.push(secure.tcp().await);
    }
    attack.moved(handshakes("busy"), 10.0).await;
}

/// HTTP without TLS is told that it lacks it.
#[tokio::test]
async fn plain_http_is_told_about_tls() {
    let secure = Secure::start("", "").await;
    let attack = secure.attack().await;
    for _ in 0..10 {
        let answer = secure
            .answer(b"GET /v1/ws HTTP/1.1\r\nHost: a\r\n\r\n")
            .await;
        let text = String::from_utf8(answer).unwrap();
        assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
        assert!(text.contains("this port speaks TLS"), "{text}");
    }
    attack.moved(handshakes("plain_http"), 10.0).await;
}

/// A trusted proxy's header stands before TLS, in both versions, in one segment with the first message or by itself: the limit is that of
/// the client that it names.
#[tokio::test]
async fn clients_behind_a_proxy_have_their_own_limits_before_tls() {
    let listen = format!("trusted_proxies = [\"{PROXY}\"]\nproxy_protocol = true");
    let limit = "[admission]\nconnections_per_address_max = 4\n";
    let secure = Secure::start(&listen, limit).await;
    let attack = secure.attack().await;
    let mut held = Vec::new();
    for number in 0..12 {
        let mut stream = BufStream::new(connect_from(PROXY, secure.server.address()).await);
        let header = if number % 2 == 0 { TEXT } else { BINARY };
        stream.write_all(header).await.unwrap();
        if number % 4 < 2 {
            stream.flush().await.unwrap();
            sleep(Duration::from_millis(20)).await;
        }
        let entered = within("an answer", secure.enter(stream)).await;
        assert_eq!(entered.is_ok(), number < 4, "{number}: {entered:?}");
        held.extend(entered);
    }
    let mut stream = BufStream::new(connect_from(PROXY, secure.server.address()).await);
    let other = b"PROXY TCP4 192.0.2.2 198.51.100.1 4711 443\r\n";
    stream.write_all(other).await.unwrap();
    secure.enter(stream).await.unwrap();
    let refused = ("reason", "address_connections");
    let refused = ("roomful_handshakes_rejected_total", Some(refused));
    attack.moved(refused, 8.0).await;
}

/// A proxy that begins with TLS at once says of nobody who it is, and is dropped.
#[tokio::test]
async fn a_proxy_without_its_header_before_tls_is_dropped() {
    let listen = format!("trusted_proxies = [\"{PROXY}\"]\nproxy_protocol = true");
    let secure = Secure::start(&listen, "").await;
    let attack = secure.attack().await;
    for _ in 0..5 {
        let stream = connect_from(PROXY, secure.server.address()).await;
        let entered = within("the end", secure.enter(BufStream::new(stream))).await;
        assert!(entered.is_err());
    }
    let refused = ("reason", "proxy_header");
    let refused = ("roomful_handshakes_rejected_total", Some(refused));
    attack.moved(refused, 5.0).await;
}

/// A stranger's header is no TLS: nobody believes it.
#[tokio::test]
async fn a_strangers_proxy_header_before_tls_is_refused() {
    let listen = format!("trusted_proxies = [\"{PROXY}\"]\nproxy_protocol = true");
    let secure = Secure::start(&listen, "").await;
    for (header, outcome) in [(TEXT, "plain_http"), (BINARY, "malformed")] {
        let attack = secure.attack().await;
        for _ in 0..5 {
            let mut stream = BufStream::new(secure.tcp().await);
            stream.write_all(header).await.unwrap();
            let entered = within("the end", secure.enter(stream)).await;
            assert!(entered.is_err());
        }
        attack.moved(handshakes(outcome), 5.0).await;
    }
}

/// TLS 1.0 and 1.1 get an alert that says so.
#[tokio::test]
async fn old_versions_are_refused() {
    let secure = Secure::start("", "").await;
    let attack = secure.attack().await;
    for version in [0x0301, 0x0302].repeat(5) {
        let answer = secure.answer(&client_hello(version)).await;
        // A fatal alert.
        assert_eq!((answer[0], answer[5]), (0x15, 2), "{answer:?}");
    }
    attack.moved(handshakes("incompatible"), 10.0).await;
}

/// A client that wants HTTP/2 and nothing else gets the alert for it.
#[tokio::test]
async fn http_2_alone_is_refused() {
    let secure = Secure::start("", "").await;
    let attack = secure.attack().await;
    let mut client = (*secure.client).clone();
    client.alpn_protocols = vec![b"h2".to_vec()];
    let client = Arc::new(client);
    for _ in 0..10 {
        let refused = tls::connect(secure.server.address(), &client).await;
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("NoApplicationProtocol"), "{text}");
    }
    attack.moved(handshakes("alpn"), 10.0).await;
}

/// What is neither HTTP nor TLS ends at once.
#[tokio::test]
async fn garbage_is_refused() {
    let secure = Secure::start("", "").await;
    let attack = secure.attack().await;
    for number in 0..10 {
        let mut bytes = [0xa5; 64];
        bytes[0] = number;
        secure.answer(&bytes).await;
    }
    attack.moved(handshakes("malformed"), 10.0).await;
}

/// After the handshake, a record that doesn't decrypt or a new handshake in the clear ends the connection; a renegotiation in
/// the old way is such a handshake.
#[tokio::test]
async fn broken_records_end_the_connection() {
    let secure = Secure::start("", "").await;
    let attack = secure.attack().await;
    for number in 0..10 {
        let mut client = secure.connect().ready().await;
        let hello = client_hello(0x0303);
        let record = [0x17, 3, 3, 0, 32].into_iter().chain([0; 32]);
        let bytes = if number % 2 == 0 {
            hello
        } else {
            record.collect()
        };
        client.send_below(&bytes);
        assert_eq!(client.closed().await.code, None);
    }
    attack
        .moved(("roomful_tls_violations_total", None), 10.0)
        .await;
}

/// The first message of a handshake, by somebody who knows this version and none after it.
fn client_hello(version: u16) -> Vec<u8> {
    let [major, minor] = version.to_be_bytes();
    let ciphers = [0x00, 0x04, 0xc0, 0x13, 0x00, 0x2f];
    let body = [&[major, minor][..], &[7; 32], &[0], &ciphers, &[1, 0]].concat();
    let length = |bytes: usize| u16::try_from(bytes).unwrap().to_be_bytes();
    let message = [&[1, 0][..], &length(body.len()), &body].concat();
    [&[0x16, 3, 1][..], &length(message.len()), &message].concat()
}
