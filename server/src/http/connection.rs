//! One HTTP connection, from its acceptance to its end or its hand-over.
//!
//! A first request that has arrived whole and is a good handshake is answered at once, without the HTTP engine.
//! Any other connection is driven by the engine, but never closed by it: whoever the socket goes to afterwards gets
//! it whole, be it the WebSocket side or the lingering close that lets a refusal reach the peer.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tower::ServiceExt;

use super::guard::{self, Bodies};
use super::rewound::Rewound;
use super::upgrade::{Accepted, Door, Upgraded};
use crate::metrics::{HandshakeRejection, Metrics};
use crate::shutdown::Shutdown;

/// What a peer may do before it has a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// HTTP connections of one listener at a time; one more is dropped at once. Default 8,192: a flood of
    /// slow ones holds them for [`Self::header_timeout`], and their memory stays under 100 MiB.
    pub connections_max: usize,
    /// Longest head of a request in bytes, at least 8,192; a longer one gets 431. Default 16 KiB.
    pub header_bytes_max: usize,
    /// Most header lines of a request; more get 431. Default 64.
    pub header_lines_max: usize,
    /// Time for a request's head to arrive, from the connection's start or the answer before it; then 408. Default 5 s.
    pub header_timeout: Duration,
    /// Longest life of a connection that stays HTTP; a client that does not read cannot hold it longer. Default 60 s.
    pub lifetime: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 8 * 1024,
            header_bytes_max: 16 * 1024,
            header_lines_max: 64,
            header_timeout: Duration::from_secs(5),
            lifetime: Duration::from_mins(1),
        }
    }
}

/// What the connections of one listener share.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) router: Router,
    /// Where handshakes are decided, on a listener that has them.
    pub(super) door: Option<Arc<Door>>,
    pub(super) bodies: Bodies,
    pub(super) metrics: Metrics,
    pub(super) limits: Limits,
    pub(super) shutdown: Shutdown,
}

/// What the routes and the connection that they answer on tell each other.
#[derive(Debug)]
pub struct PeerContext {
    /// Who is at the other end.
    peer: SocketAddr,
    /// The handshake that was accepted: written by its route, taken when the answer is out. The lock is there
    /// because routes are shared between threads; nobody ever waits for it.
    accepted: Mutex<Option<Accepted>>,
    /// Whether a request has come: silence is a mistake before the first one, and a browser's habit after it.
    asked: AtomicBool,
}

impl PeerContext {
    fn of(peer: SocketAddr) -> Self {
        Self {
            peer,
            accepted: Mutex::new(None),
            asked: AtomicBool::new(false),
        }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Notes that the socket is to be handed over once the answer is out.
    pub(super) fn accept(&self, accepted: Accepted) {
        *self.accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some(accepted);
    }

    fn take_accepted(&self) -> Option<Accepted> {
        self.accepted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl Server {
    /// Looks at a new socket's first bytes. One whose whole request is there and is a good handshake is answered
    /// without the engine and its buffers; any other goes the longer way, on which the engine has the answers to
    /// whatever is wrong with it.
    pub(super) fn greet(
        &self,
        mut stream: std::net::TcpStream,
        peer: SocketAddr,
        buffer: &mut [u8],
    ) -> Greeted {
        // What is wrong with the socket, the engine will find out too.
        let seen = stream.read(buffer).unwrap_or(0);
        let seen = buffer.get(..seen).unwrap_or_default();
        let Some((length, accepted)) = self.handshake(seen) else {
            return Greeted::Http(stream, Bytes::copy_from_slice(seen));
        };
        let answer = accepted.head();
        // A fresh socket takes a few hundred bytes, unless the peer is gone.
        match stream.write(answer.as_bytes()) {
            Ok(written) if written == answer.len() => {
                let read_ahead = seen.get(length..).unwrap_or_default();
                Greeted::WebSocket(accepted.upgraded(stream, read_ahead, peer))
            }
            _ => Greeted::Gone,
        }
    }

    /// Hands new WebSockets over.
    pub(super) fn hand_over(&self, upgraded: Vec<Upgraded>) {
        if let Some(door) = self.door.as_ref().filter(|_| !upgraded.is_empty()) {
            door.upgrades.hand_over(upgraded);
        }
    }

    /// The handshake that these bytes begin with, and how long it is.
    fn handshake(&self, bytes: &[u8]) -> Option<(usize, Accepted)> {
        let door = self.door.as_ref()?;
        let mut lines = [httparse::EMPTY_HEADER; HANDSHAKE_LINES_MAX];
        let mut parsed = httparse::Request::new(&mut lines);
        let Ok(httparse::Status::Complete(length)) = parsed.parse(bytes) else {
            return None;
        };
        let mut request = Request::new(());
        *request.method_mut() = parsed.method?.parse().ok()?;
        *request.uri_mut() = parsed.path?.parse().ok()?;
        *request.version_mut() = match parsed.version? {
            1 => Version::HTTP_11,
            _ => return None,
        };
        for line in parsed.headers {
            let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
            let value = HeaderValue::from_bytes(line.value).ok()?;
            request.headers_mut().append(name, value);
        }
        guard::check(&request, self.bodies).ok()?;
        if !door.is_at(request.uri().path()) {
            return None;
        }
        Some((length, door.open(&request).ok()?))
    }

    /// Serves a connection to its end.
    pub(super) async fn serve(
        self: Arc<Self>,
        stream: std::net::TcpStream,
        seen: Bytes,
        peer: SocketAddr,
    ) {
        let stream = match enter(stream).await {
            Ok(stream) => stream,
            Err(error) => {
                return tracing::warn!(%error, "the socket could not enter the runtime");
            }
        };
        let context = Arc::new(PeerContext::of(peer));
        let routes = Routes {
            server: Arc::clone(&self),
            context: Arc::clone(&context),
        };
        let mut connection = self
            .builder()
            .serve_connection(TokioIo::new(Rewound { stream, seen }), routes);
        let end = self.drive(&mut connection).await;
        // Takes the engine apart: its buffers, timers and routes end here, only the socket and what was read
        // ahead remain.
        let parts = connection.into_parts();
        let (stream, unread) = (parts.io.into_inner().stream, parts.read_buf);
        let idle = unread.is_empty() && context.asked.load(Ordering::Relaxed);
        match (end, context.take_accepted()) {
            (End::Finished, Some(accepted)) => match stream.into_std() {
                Ok(stream) => self.hand_over(vec![accepted.upgraded(stream, &unread, peer)]),
                Err(error) => tracing::warn!(%error, "the socket could not leave the runtime"),
            },
            (End::Finished, None) => linger(stream).await,
            (End::Failed(error), _) if error.is_timeout() && idle => linger(stream).await,
            (End::Failed(error), _) => self.refuse(stream, &error).await,
            (End::TimedOut, _) => {}
        }
    }

    fn builder(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout)
            .max_buf_size(self.limits.header_bytes_max)
            .max_headers(self.limits.header_lines_max);
        builder
    }

    /// Runs a connection until it ends, is told to end and does so, or is out of time.
    async fn drive(&self, connection: &mut Connection) -> End {
        let mut deadline = pin!(sleep(self.limits.lifetime));
        let mut ending = false;
        loop {
            let event = tokio::select! {
                result = poll_fn(|context| connection.poll_without_shutdown(context)) => Event::Ended(result),
                () = self.shutdown.wait(), if !ending => Event::Shutdown,
                () = &mut deadline => Event::Deadline,
            };
            match event {
                Event::Ended(Ok(())) => return End::Finished,
                Event::Ended(Err(error)) => return End::Failed(error),
                Event::Deadline if ending => return End::TimedOut,
                Event::Shutdown | Event::Deadline => {
                    ending = true;
                    Pin::new(&mut *connection).graceful_shutdown();
                    deadline.as_mut().reset(Instant::now() + END_MAX);
                }
            }
        }
    }

    /// Counts what the engine refused, and sees to it that the peer gets to read why.
    async fn refuse(&self, mut stream: TcpStream, error: &hyper::Error) {
        let Some(reason) = rejection(error) else {
            // The peer went away, or its socket broke: nothing was refused.
            tracing::debug!(%error, "the connection ended");
            return;
        };
        self.metrics.handshake_rejected(reason);
        // The other refusals were answered by the engine.
        let answer = if error.is_timeout() {
            REQUEST_TIMEOUT
        } else {
            b""
        };
        if stream.write_all(answer).await.is_ok() {
            linger(stream).await;
        }
    }
}

/// What became of a new socket.
pub(super) enum Greeted {
    /// It is a WebSocket.
    WebSocket(Upgraded),
    /// It is not, or not yet; with what was read of it.
    Http(std::net::TcpStream, Bytes),
    /// The peer is gone.
    Gone,
}

type Connection = http1::Connection<TokioIo<Rewound>, Routes>;

/// What can wake a connection.
enum Event {
    Ended(hyper::Result<()>),
    Shutdown,
    Deadline,
}

/// How a connection ended.
enum End {
    /// The last answer is out.
    Finished,
    /// The peer broke a rule, or off.
    Failed(hyper::Error),
    /// It did not end when it should have.
    TimedOut,
}

/// The routes, as the engine calls them.
struct Routes {
    server: Arc<Server>,
    context: Arc<PeerContext>,
}

impl hyper::service::Service<Request<Incoming>> for Routes {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.context.asked.store(true, Ordering::Relaxed);
        let refused = guard::check(&request, self.server.bodies)
            .err()
            .map(|rejected| rejected.answer(&self.server.metrics));
        request.extensions_mut().insert(Arc::clone(&self.context));
        let router = self.server.router.clone();
        Box::pin(async move {
            let mut response = match refused {
                Some(response) => response,
                None => router.oneshot(request.map(Body::new)).await?,
            };
            guard::protect(&mut response);
            Ok(response)
        })
    }
}

/// Waits until the runtime knows that the socket takes bytes: the engine doesn't wait for it with a refusal that it
/// has ready at once.
async fn enter(stream: std::net::TcpStream) -> std::io::Result<TcpStream> {
    let stream = TcpStream::from_std(stream)?;
    stream.writable().await?;
    Ok(stream)
}

/// What the engine refused, if it was the engine that ended the connection.
fn rejection(error: &hyper::Error) -> Option<HandshakeRejection> {
    if error.is_timeout() {
        Some(HandshakeRejection::HeaderTimeout)
    } else if error.is_parse_too_large() {
        Some(HandshakeRejection::HeaderLimit)
    } else if error.is_parse() {
        Some(HandshakeRejection::Malformed)
    } else {
        None
    }
}

/// Closes so that the last answer arrives. A socket that is closed with bytes unread is reset, and a reset
/// may overtake the answer; so the peer's bytes are read until it closes too, within a limit.
async fn linger(mut stream: TcpStream) {
    let closing = async {
        stream.shutdown().await?;
        loop {
            stream.readable().await?;
            match stream.try_read(&mut [0; 4 * 1024]) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    };
    if let Ok(Err(error)) = timeout(LINGER_MAX, closing).await {
        tracing::trace!(%error, "the peer closed first");
    }
}

const REQUEST_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// More header lines than any client sends for a handshake; what has more takes the longer way.
const HANDSHAKE_LINES_MAX: usize = 32;

/// Time to finish the answer under way, once a connection has to end.
const END_MAX: Duration = Duration::from_secs(2);

/// Time for a peer to read its answer and close: a round trip around the world and back.
const LINGER_MAX: Duration = Duration::from_secs(1);
