//! How a client behaves: bounds, delays, where tokens come from and how sockets are opened.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use roomful_protocol::codec::Encoding;
use roomful_protocol::id::RoomName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// How a client behaves. The defaults suit an application; each field says its own.
#[derive(Debug, Clone)]
pub struct Options {
    /// How frames are written. Default: MessagePack; JSON is for debugging.
    pub encoding: Encoding,
    /// Name and version for the server's log, at most 128 bytes; a longer one isn't sent. Default: this crate's.
    pub agent: String,
    /// The room near which the server shall put the connection: a hint, worth giving when one room is most of the traffic. Default: none.
    pub placement: Option<RoomName>,
    /// Where tokens come from. Default: nowhere, for an anonymous server.
    pub token_source: Option<TokenSource>,
    /// How sockets are opened. Default: plain TCP.
    pub connector: Option<Connector>,
    /// After the first failure the delay before connecting again is random between nothing and this; the ceiling doubles with each failure in a row.
    /// Default: 500 ms.
    pub reconnect_base: Duration,
    /// Where that ceiling stops growing. Default: 30 s.
    pub reconnect_max: Duration,
    /// Patience with the token source, and with opening the socket, each. Default: 10 s.
    pub connect_timeout: Duration,
    /// Patience with every request but publishes, whose outcome is waited for as long as it takes. Default: 10 s.
    pub request_timeout: Duration,
    /// Most publishes without acknowledgement, in all rooms, offline or not. Default: 1,000.
    pub publishes_max: usize,
    /// Most bytes of their payloads. Default: 4 MiB.
    pub publish_bytes_max: usize,
    /// Most events that wait for the application in each room. When they are as many, the client stops reading its socket. At least 1. Default: 256.
    pub events_max: usize,
    /// Longest message taken from the server, in bytes. Default: 16 MiB.
    pub message_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            encoding: Encoding::MessagePack,
            agent: concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")).to_owned(),
            placement: None,
            token_source: None,
            connector: None,
            reconnect_base: Duration::from_millis(500),
            reconnect_max: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            publishes_max: 1_000,
            publish_bytes_max: 4 * 1024 * 1024,
            events_max: 256,
            message_bytes_max: 16 * 1024 * 1024,
        }
    }
}

/// Fetches tokens: before the first connection, when the server says that the token expires soon, and after it was refused.
#[derive(Clone)]
pub struct TokenSource(Arc<FetchToken>);

type FetchToken = dyn Fn() -> BoxFuture<'static, Result<String, String>> + Send + Sync;

impl TokenSource {
    /// A source from an async function. An error means "not now": the client asks again after its reconnect delay.
    pub fn new<F, R, E>(fetch: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        Self(Arc::new(move || {
            let token = fetch();
            Box::pin(async move { token.await.map_err(|error| error.into().to_string()) })
        }))
    }

    pub(crate) fn fetch(&self) -> BoxFuture<'static, Result<String, String>> {
        (self.0)()
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSource")
    }
}

/// Opens sockets: TLS, a proxy, or a pipe in a test. Given a connector, addresses may begin with `wss://` too; encrypting is then its duty.
#[derive(Clone)]
pub struct Connector(Arc<OpenSocket>);

type OpenSocket = dyn Fn(String, u16) -> BoxFuture<'static, io::Result<BoxedSocket>> + Send + Sync;

impl Connector {
    /// A connector from an async function of host and port.
    pub fn new<F, R, S>(open: F) -> Self
    where
        F: Fn(String, u16) -> R + Send + Sync + 'static,
        R: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self(Arc::new(move |host, port| {
            let socket = open(host, port);
            Box::pin(async move { socket.await.map(|socket| Box::new(socket) as BoxedSocket) })
        }))
    }

    pub(crate) fn tcp() -> Self {
        Self::new(|host: String, port| async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            // Frames are small and batched here; waiting for more would only delay them.
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }

    /// Sockets with TLS. The configuration says whom to trust, and its application protocols should be none or `http/1.1`.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(config: Arc<tokio_rustls::rustls::ClientConfig>) -> Self {
        use tokio_rustls::rustls::pki_types::ServerName;

        let connector = tokio_rustls::TlsConnector::from(config);
        Self::new(move |host: String, port| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect((host.as_str(), port)).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::try_from(host).map_err(io::Error::other)?;
                connector.connect(name, stream).await
            }
        })
    }

    pub(crate) fn open(
        &self,
        host: &str,
        port: u16,
    ) -> BoxFuture<'static, io::Result<BoxedSocket>> {
        (self.0)(host.to_owned(), port)
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

pub(crate) type BoxedSocket = Box<dyn Socket>;

/// What a WebSocket runs over.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}
