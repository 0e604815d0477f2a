//! One HTTP connection, from its acceptance to its end or its hand-over.
//!
//! Whoever is not answered at once (see `welcome`) is driven by the HTTP engine, but never closed by it: whoever the
//! socket goes to afterwards gets it whole, be it the WebSocket side or the lingering close that lets an answer reach
//! the peer. It is counted, and may be told to make room, for as long as the socket is open.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tower::ServiceExt;

use super::guard::{self, Bodies, Rejected};
use super::link::Link;
use super::rewound::Rewound;
use super::secure::Secure;
use super::upgrade::{Accepted, Checked, Door, Upgraded};
use super::welcome::{Newcomer, no_header};
use crate::admission::proxy::{self, Header};
use crate::admission::{Admission, Reason, Refusal, Ticket};
use crate::metrics::{HandshakeRejection, Metrics, TlsHandshake};
use crate::shutdown::Shutdown;
use crate::tls::Records;

/// What a peer may do before it has a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
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
    /// Who may come in.
    pub(super) admission: Admission,
    /// What makes it speak TLS.
    pub(super) secure: Option<Secure>,
    pub(super) metrics: Metrics,
    pub(super) limits: Limits,
    pub(super) shutdown: Shutdown,
}

/// What the routes and the connection that they answer on tell each other.
#[derive(Debug)]
pub struct PeerContext {
    /// Who asks; a request that comes through a proxy may say more.
    pub(crate) client: IpAddr,
    /// What the connection came in with, and the handshake that was accepted: written by its route, taken when the
    /// answer is out. The lock is there because routes are shared between threads; nobody ever waits for it.
    guest: Mutex<Guest>,
    /// Whether a request has come: silence is a mistake before the first one, and a browser's habit after it.
    asked: AtomicBool,
    /// Whether an answer is on its way that takes as long as it takes.
    is_long: AtomicBool,
}

/// An answer that may take longer than a connection lives. Whoever makes it sees to it that a client that doesn't read ends it.
#[derive(Debug)]
pub(crate) struct LongAnswer(Arc<PeerContext>);

impl LongAnswer {
    /// Begins on a connection.
    pub(crate) fn begin(context: Arc<PeerContext>) -> Self {
        context.is_long.store(true, Ordering::Relaxed);
        Self(context)
    }
}

impl Drop for LongAnswer {
    fn drop(&mut self) {
        self.0.is_long.store(false, Ordering::Relaxed);
    }
}

/// What the socket is handed over with.
#[derive(Debug)]
struct Guest {
    /// None once it is taken.
    ticket: Option<Ticket>,
    accepted: Option<Accepted>,
}

impl PeerContext {
    fn new(client: IpAddr, ticket: Ticket) -> Self {
        Self {
            client,
            guest: Mutex::new(Guest {
                ticket: Some(ticket),
                accepted: None,
            }),
            asked: AtomicBool::new(false),
            is_long: AtomicBool::new(false),
        }
    }

    /// Admits a good handshake, and notes that the socket is to be handed over once the answer is out.
    ///
    /// # Errors
    /// There is no room, or the connection is over.
    pub(super) fn admit(&self, door: &Door, checked: Checked) -> Result<Response<Body>, Rejected> {
        let mut guest = self.guest();
        let ticket = guest.ticket.as_mut().ok_or_else(|| {
            let text = "this connection is over\n";
            Rejected::new(HandshakeRejection::Upgrade, StatusCode::BAD_REQUEST, text)
        })?;
        let accepted = door.admit(checked, ticket)?;
        let response = accepted.response();
        guest.accepted = Some(accepted);
        Ok(response)
    }

    /// The handshake that was accepted, if one was, and what the connection came in with. Without one that stays
    /// here, so that the socket is counted for as long as it is open.
    fn take(&self) -> Option<(Accepted, Ticket)> {
        let mut guest = self.guest();
        let accepted = guest.accepted.take()?;
        Some((accepted, guest.ticket.take()?))
    }

    fn guest(&self) -> MutexGuard<'_, Guest> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// Hands new WebSockets over.
    pub(super) fn hand_over(&self, upgraded: Vec<Upgraded>) {
        if let Some(door) = self.door.as_ref().filter(|_| !upgraded.is_empty()) {
            door.upgrades.hand_over(upgraded);
        }
    }

    /// Serves a connection to its end.
    pub(super) async fn serve(
        self: Arc<Self>,
        newcomer: Newcomer,
        mut evicted: oneshot::Receiver<()>,
    ) {
        let Newcomer {
            stream,
            mut seen,
            mut client,
            mut ticket,
            header_due,
        } = newcomer;
        let stream = match enter(stream).await {
            Ok(stream) => stream,
            Err(error) => {
                return tracing::warn!(%error, "the socket could not enter the runtime");
            }
        };
        if header_due {
            let read = tokio::select! {
                read = self.read_header(&stream, seen) => read,
                Ok(()) = &mut evicted => Err(room_made()),
            };
            let identified = read.and_then(|(header, rest)| {
                client = header.client.unwrap_or(client);
                ticket.identify(client)?;
                Ok(rest)
            });
            seen = match identified {
                Ok(rest) => rest,
                Err(rejected) => return self.refuse_late(stream, rejected, evicted).await,
            };
        }
        tracing::Span::current().record("client", tracing::field::display(client));
        let socket = Rewound { stream, seen };
        let link = match &self.secure {
            None => Link::Plain(socket),
            Some(secure) => {
                let begun = tokio::select! {
                    begun = secure.begin(socket) => begun,
                    Ok(()) = &mut evicted, if !evicted.is_terminated() => {
                        self.metrics.handshake_rejected(HandshakeRejection::HttpConnections);
                        self.metrics.tls_handshake(TlsHandshake::Busy);
                        None
                    }
                };
                match begun {
                    Some(stream) => Link::Tls(stream),
                    None => return,
                }
            }
        };
        let context = Arc::new(PeerContext::new(client, ticket));
        let routes = Routes {
            server: Arc::clone(&self),
            context: Arc::clone(&context),
        };
        let mut connection = self.builder().serve_connection(TokioIo::new(link), routes);
        let end = self.drive(&mut connection, &context, &mut evicted).await;
        // Takes the engine apart: its buffers, timers and routes end here, only the socket and what was read
        // ahead remain.
        let parts = connection.into_parts();
        let (link, unread) = (parts.io.into_inner(), parts.read_buf);
        let idle = unread.is_empty() && context.asked.load(Ordering::Relaxed);
        match (end, context.take()) {
            (End::Finished, Some((accepted, ticket))) => {
                self.let_go(link, |stream| accepted.upgraded(stream, &unread, ticket));
            }
            (End::Finished, None) => part(link, b"", evicted).await,
            (End::Failed(error), _) if error.is_timeout() && idle => part(link, b"", evicted).await,
            (End::Failed(error), _) => {
                if let Some(answer) = self.last_words(&error, &unread) {
                    part(link, answer, evicted).await;
                }
            }
            (End::TimedOut, _) => {}
            (End::Evicted, _) => {
                let mut link = link;
                let answer = room_made().bytes(&self.metrics);
                // At once or not at all: it has had its time, and its place is somebody else's.
                timeout(EVICTION_MAX, link.write_all(&answer)).await.ok();
            }
        }
    }

    /// Hands the socket over, out of the runtime.
    fn let_go(&self, link: Link, upgraded: impl FnOnce(std::net::TcpStream) -> Upgraded) {
        let (stream, tls) = link.into_parts();
        match stream.into_std() {
            Ok(stream) => {
                let mut upgraded = upgraded(stream);
                upgraded.tls = tls.map(|tls| Box::new(Records::new(tls, self.metrics.clone())));
                self.hand_over(vec![upgraded]);
            }
            Err(error) => tracing::warn!(%error, "the socket could not leave the runtime"),
        }
    }

    /// The header in which a proxy says whose the connection is, and what was read behind it.
    ///
    /// # Errors
    /// Something else comes, or not all of it in time.
    async fn read_header(
        &self,
        stream: &TcpStream,
        seen: Bytes,
    ) -> Result<(Header, Bytes), Rejected> {
        let mut bytes = Vec::from(seen);
        let reading = async {
            loop {
                if let Some(header) = proxy::decode(&bytes).ok()? {
                    return Some(header);
                }
                stream.readable().await.ok()?;
                match stream.try_read_buf(&mut bytes) {
                    Ok(0) => return None,
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) => return None,
                }
            }
        };
        let header = timeout(self.limits.header_timeout, reading).await;
        let header = header.ok().flatten().ok_or_else(no_header)?;
        Ok((header, Bytes::from(bytes).slice(header.length..)))
    }

    /// Tells a socket that it may not come in, and sees to it that it gets to read so.
    async fn refuse_late(
        &self,
        stream: TcpStream,
        rejected: Rejected,
        evicted: oneshot::Receiver<()>,
    ) {
        let answer = rejected.bytes(&self.metrics);
        // Under TLS nothing is said in the clear.
        if self.secure.is_none() {
            part(stream, &answer, evicted).await;
        }
    }

    /// Waits until a socket that was turned away has read so, within a limit.
    pub(super) async fn see_off(self: Arc<Self>, stream: std::net::TcpStream) {
        if let Ok(stream) = enter(stream).await {
            linger(stream, b"").await;
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
    async fn drive(
        &self,
        connection: &mut Connection,
        context: &PeerContext,
        evicted: &mut oneshot::Receiver<()>,
    ) -> End {
        let mut deadline = pin!(sleep(self.limits.lifetime));
        let mut ending = false;
        loop {
            let event = tokio::select! {
                result = poll_fn(|context| connection.poll_without_shutdown(context)) => Event::Ended(result),
                () = self.shutdown.wait(), if !ending => Event::Shutdown,
                () = &mut deadline => Event::Deadline,
                Ok(()) = &mut *evicted, if !evicted.is_terminated() => Event::Evicted,
            };
            match event {
                Event::Ended(Ok(())) => return End::Finished,
                Event::Ended(Err(error)) => return End::Failed(error),
                Event::Deadline if ending => return End::TimedOut,
                Event::Evicted => return End::Evicted,
                Event::Deadline if context.is_long.load(Ordering::Relaxed) => {
                    deadline
                        .as_mut()
                        .reset(Instant::now() + self.limits.lifetime);
                }
                Event::Shutdown | Event::Deadline => {
                    ending = true;
                    Pin::new(&mut *connection).graceful_shutdown();
                    deadline.as_mut().reset(Instant::now() + END_MAX);
                }
            }
        }
    }

    /// Counts what the engine refused; what is still to be said of it. None where the peer has gone.
    fn last_words(&self, error: &hyper::Error, unread: &[u8]) -> Option<&'static [u8]> {
        let is_http_2 = unread.starts_with(HTTP_2);
        let reason = rejection(error).map(|reason| match reason {
            HandshakeRejection::Malformed if is_http_2 => HandshakeRejection::HttpVersion,
            reason => reason,
        });
        let Some(reason) = reason else {
            // Its socket broke: nothing was refused.
            tracing::debug!(%error, "the connection ended");
            return None;
        };
        self.metrics.handshake_rejected(reason);
        // The other refusals were answered by the engine.
        Some(if error.is_timeout() {
            REQUEST_TIMEOUT
        } else if is_http_2 {
            VERSION_NOT_SUPPORTED
        } else {
            b""
        })
    }
}

type Connection = http1::Connection<TokioIo<Link>, Routes>;

/// What can wake a connection.
enum Event {
    Ended(hyper::Result<()>),
    Shutdown,
    Deadline,
    Evicted,
}

/// How a connection ended.
enum End {
    /// The last answer is out.
    Finished,
    /// The peer broke a rule, or off.
    Failed(hyper::Error),
    /// It did not end when it should have.
    TimedOut,
    /// It had to make room for another.
    Evicted,
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

/// There are too many connections that are no WebSocket.
fn room_made() -> Rejected {
    Refusal::soon(Reason::HttpConnections).into()
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

/// Lingers, unless the place is needed for somebody else: whoever has had its answer has nothing to lose.
async fn part(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: &[u8],
    mut evicted: oneshot::Receiver<()>,
) {
    tokio::select! {
        () = linger(stream, answer) => {}
        Ok(()) = &mut evicted, if !evicted.is_terminated() => {}
    }
}

/// Writes the last answer and closes so that it arrives. A socket that is closed with bytes unread is reset, and a
/// reset may overtake the answer; so the peer's bytes are read until it closes too, within a limit.
pub(super) async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) {
    let closing = async {
        stream.write_all(answer).await?;
        stream.shutdown().await?;
        while poll_fn(|context| drop_some(&mut stream, context)).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    if let Ok(Err(error)) = timeout(LINGER_MAX, closing).await {
        tracing::trace!(%error, "the peer closed first");
    }
}

/// Reads once into nowhere; how many bytes that were. The buffer lives for this call alone.
fn drop_some(
    stream: &mut (impl AsyncRead + Unpin),
    context: &mut Context<'_>,
) -> Poll<std::io::Result<usize>> {
    let mut bytes = [0; 4 * 1024];
    let mut buffer = ReadBuf::new(&mut bytes);
    Pin::new(stream)
        .poll_read(context, &mut buffer)
        .map_ok(|()| buffer.filled().len())
}

const REQUEST_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// What a client sends first that knows the server to speak HTTP/2 (RFC 9113 §3.4); the engine has no answer to it.
const HTTP_2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const VERSION_NOT_SUPPORTED: &[u8] =
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// Time to finish the answer under way, once a connection has to end.
const END_MAX: Duration = Duration::from_secs(2);

/// Time to write an answer to a connection that has to make room.
const EVICTION_MAX: Duration = Duration::from_millis(100);

/// Time for a peer to read its answer and close: a round trip around the world and back.
const LINGER_MAX: Duration = Duration::from_secs(1);
