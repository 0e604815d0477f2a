//! The accept loop, on a thread of its own for each listener.
//!
//! It looks at what a new connection has sent already. A good handshake leaves for its shard from here, those of
//! one moment together; whatever else becomes a task of the control runtime. Trouble with accepting is counted and
//! waited out. What a good handshake is, and what anything else is answered, is left to `connection`.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token, Waker};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::connection::Server;
use super::secure::Secure;
use super::site::{Shared, Site};
use super::upgrade::Upgraded;
use super::welcome::{Newcomer, Welcomed};
use crate::shutdown::Shutdown;
use crate::survive::survive;
use crate::tasks::Tasks;

/// Listens. What is set here, connections inherit: a message is written as a whole, so there is never a reason to
/// wait for more of it, and the kernel holds at most `unsent_bytes_max` unsent (on Linux; elsewhere it decides).
///
/// # Errors
/// The address is taken, or not to be had.
pub fn listen(address: SocketAddr, unsent_bytes_max: u32) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(&socket).set_tcp_notsent_lowat(unsent_bytes_max)?;
    #[cfg(not(target_os = "linux"))]
    let _unused = unsent_bytes_max;
    // A port is free again as soon as its listener has ended, whatever connections it has left behind.
    socket.set_reuseaddr(cfg!(unix))?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts and serves connections until the shutdown, then closes the listener and returns.
///
/// The connections end by themselves soon after; [`Tasks::wait`] waits for them. Trouble with accepting is
/// counted and waited out, it never ends the loop.
///
/// # Errors
/// The listener has no address, which is to say that it is not a socket.
pub async fn serve(listener: TcpListener, site: Site, shutdown: Shutdown) -> io::Result<()> {
    let address = listener.local_addr()?;
    tracing::info!(listener = site.name(), %address, "listening");
    let name = format!("accept-{}", site.name());
    let (acceptor, stop) = Acceptor::new(listener, site, shutdown.clone())?;
    let (tell, mut ended) = oneshot::channel();
    let runtime = Handle::current();
    thread::Builder::new().name(name).spawn(move || {
        let _context = runtime.enter();
        // Nobody waits for it only where the process is about to end.
        tell.send(acceptor.run()).ok();
    })?;
    tokio::select! {
        outcome = &mut ended => outcome.map_err(io::Error::other)?,
        () = shutdown.wait() => {
            stop.wake()?;
            ended.await.map_err(io::Error::other)?
        }
    }
}

/// Runs on a thread of its own, not as a task: the runtime would register each socket with its own event queue,
/// and most of them leave at once for that of a shard.
struct Acceptor {
    listener: mio::net::TcpListener,
    poll: Poll,
    server: Arc<Server>,
    tasks: Tasks,
    /// One permit for each socket that is turned away and may take its time to read so.
    partings: Arc<Semaphore>,
    /// What tells each connection that is no WebSocket that it has to make room, the oldest first. Some have ended.
    waiting: VecDeque<oneshot::Sender<()>>,
    /// What heads are looked at in.
    buffer: Vec<u8>,
    /// When to try again, after accepting has failed: nobody will tell when it is worth it.
    retry_at: Option<Instant>,
}

impl Acceptor {
    /// An acceptor, and what ends it.
    fn new(listener: TcpListener, site: Site, shutdown: Shutdown) -> io::Result<(Self, Waker)> {
        let Shared {
            metrics,
            tasks,
            limits,
            ..
        } = site.shared.clone();
        let bodies = site.bodies();
        let secure = site.tls.clone();
        let secure = secure.map(|tls| Secure::new(tls, metrics.clone(), shutdown.clone()));
        let admission = site.admission.clone();
        let (router, door) = site.routes(listener.local_addr()?);
        let server = Server {
            router,
            door,
            bodies,
            secure,
            admission,
            metrics,
            limits,
            shutdown,
        };
        let mut listener = mio::net::TcpListener::from_std(listener.into_std()?);
        let poll = Poll::new()?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        let stop = Waker::new(poll.registry(), STOP)?;
        let acceptor = Self {
            listener,
            poll,
            server: Arc::new(server),
            tasks,
            partings: Arc::new(Semaphore::new(PARTINGS_MAX)),
            waiting: VecDeque::new(),
            buffer: vec![0; HEAD_BYTES],
            retry_at: None,
        };
        Ok((acceptor, stop))
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(2);
        // Whether others may be waiting of whom the kernel tells no more.
        let mut more = false;
        loop {
            let wait = if more {
                Some(Duration::ZERO)
            } else {
                self.wait()
            };
            match self.poll.poll(&mut events, wait) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => outcome?,
            }
            if events.iter().any(|event| event.token() == STOP) {
                return Ok(());
            }
            if self.wait().is_none_or(|left| left.is_zero()) {
                more = self.accept() == ACCEPTS_MAX;
            }
        }
    }

    fn wait(&self) -> Option<Duration> {
        let at = self.retry_at?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// Takes those who are waiting, and how many they were. All are accepted before the first is looked at, which
    /// gives their requests the time to arrive.
    fn accept(&mut self) -> usize {
        let mut accepted = Vec::new();
        while accepted.len() < ACCEPTS_MAX {
            match self.listener.accept() {
                Ok((stream, peer)) => accepted.push((std::net::TcpStream::from(stream), peer)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.retry_at = None;
                    break;
                }
                Err(error) if is_the_connections_own(&error) => {}
                Err(error) => {
                    self.on_failure(&error);
                    break;
                }
            }
        }
        let count = accepted.len();
        let mut upgraded = Vec::new();
        for (stream, peer) in accepted {
            // What one socket does to its own handling is no reason to stop listening.
            let socket = self.guarded(|this| this.welcome(stream, peer));
            upgraded.extend(socket.flatten());
        }
        self.guarded(|this| this.server.hand_over(upgraded));
        count
    }

    fn guarded<T>(&mut self, act: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let outcome = survive(|| act(self));
        if outcome.is_none() {
            self.server.metrics.acceptor_panicked();
        }
        outcome
    }

    /// Deals with a new socket: a WebSocket comes back.
    fn welcome(&mut self, stream: std::net::TcpStream, peer: SocketAddr) -> Option<Upgraded> {
        match self.server.welcome(stream, peer, &mut self.buffer) {
            Welcomed::WebSocket(socket) => return Some(socket),
            Welcomed::Http(newcomer) => self.serve(newcomer),
            Welcomed::Refused(stream) => self.see_off(stream),
            Welcomed::Gone => {}
        }
        None
    }

    /// Serves a connection that is no WebSocket yet, as a task.
    fn serve(&mut self, mut newcomer: Newcomer) {
        if newcomer.ticket.wait() {
            // Whoever has ended already can't be told.
            while let Some(oldest) = self.waiting.pop_front() {
                if oldest.send(()).is_ok() {
                    break;
                }
            }
        }
        if self.waiting.len() == self.waiting.capacity() {
            self.waiting.retain(|waiting| !waiting.is_closed());
        }
        let (evict, evicted) = oneshot::channel();
        self.waiting.push_back(evict);
        let span = tracing::debug_span!("http", client = %newcomer.client);
        let connection = Arc::clone(&self.server).serve(newcomer, evicted);
        self.tasks.spawn("http_connection", span, connection);
    }

    /// Lets a socket that was turned away read so. Where too many are at it already it is closed at once, which may
    /// overtake the answer.
    fn see_off(&self, stream: std::net::TcpStream) {
        let Ok(place) = Arc::clone(&self.partings).try_acquire_owned() else {
            return;
        };
        let parting = Arc::clone(&self.server).see_off(stream);
        self.tasks
            .spawn("http_parting", tracing::Span::none(), async move {
                parting.await;
                drop(place);
            });
    }

    /// The process is out of descriptors or memory: only time helps, and to ask again at once would burn it.
    fn on_failure(&mut self, error: &io::Error) {
        self.server.metrics.accept_failed();
        // A row of failures is logged once, since it may be as long as an attack.
        if self.retry_at.is_none() {
            tracing::error!(%error, "connections cannot be accepted; trying again");
        }
        self.retry_at = Some(Instant::now() + BACK_OFF);
    }
}

/// Whether the peer of the one connection is to blame, so that the next one may be fine.
fn is_the_connections_own(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;

    matches!(
        error.kind(),
        Kind::ConnectionAborted
            | Kind::ConnectionReset
            | Kind::ConnectionRefused
            | Kind::Interrupted
    )
}

/// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: u32 = 4_096;

const LISTENER: Token = Token(0);
const STOP: Token = Token(1);

/// Accepted in one go: few enough that nobody's request is looked at late.
const ACCEPTS_MAX: usize = 64;

/// Few enough that a flood of refusals holds no descriptors that matter, and enough for who refuses rarely.
const PARTINGS_MAX: usize = 256;

/// Longer than any upgrade request of our clients with a token in it; what is longer takes the longer way.
const HEAD_BYTES: usize = 4 * 1024;

/// Long enough to be no spin, short enough that nobody notices once a descriptor is free.
const BACK_OFF: Duration = Duration::from_millis(100);
