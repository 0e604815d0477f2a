//! The accept loop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::connection::Server;
use super::site::{Shared, Site};
use crate::metrics::HandshakeRejection;
use crate::shutdown::Shutdown;
use crate::tasks::Tasks;

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
    let mut acceptor = Acceptor::new(site, address, shutdown.clone());
    loop {
        tokio::select! {
            accepted = listener.accept() => acceptor.on_accept(accepted).await,
            () = shutdown.wait() => return Ok(()),
        }
    }
}

struct Acceptor {
    server: Arc<Server>,
    tasks: Tasks,
    /// One permit for each connection that may be open.
    places: Arc<Semaphore>,
    /// Whether the last accept failed: a row of failures is logged once, since it may be as long as an attack.
    failing: bool,
    shutdown: Shutdown,
}

impl Acceptor {
    fn new(site: Site, address: SocketAddr, shutdown: Shutdown) -> Self {
        let Shared {
            metrics,
            tasks,
            limits,
            ..
        } = site.shared.clone();
        let router = site.router(address);
        let server = Server {
            router,
            metrics,
            limits,
            shutdown: shutdown.clone(),
        };
        let places = Arc::new(Semaphore::new(limits.connections_max));
        Self {
            server: Arc::new(server),
            tasks,
            places,
            failing: false,
            shutdown,
        }
    }

    async fn on_accept(&mut self, accepted: io::Result<(TcpStream, SocketAddr)>) {
        match accepted {
            Ok((stream, peer)) => {
                self.failing = false;
                self.on_connection(stream, peer);
            }
            Err(error) if is_the_connections_own(&error) => {}
            Err(error) => self.on_failure(&error).await,
        }
    }

    fn on_connection(&self, stream: TcpStream, peer: SocketAddr) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            // To answer would take what there is none of.
            self.server
                .metrics
                .handshake_rejected(HandshakeRejection::Full);
            return;
        };
        forbid_delay(&stream);
        let connection = Arc::clone(&self.server).serve(stream, peer);
        self.tasks.spawn(
            "http_connection",
            tracing::debug_span!("http", %peer),
            async move {
                connection.await;
                drop(place);
            },
        );
    }

    /// The process is out of descriptors or memory: only time helps, and to ask again at once would burn it.
    async fn on_failure(&mut self, error: &io::Error) {
        self.server.metrics.accept_failed();
        if !self.failing {
            tracing::error!(%error, "connections cannot be accepted; trying again");
        }
        self.failing = true;
        tokio::select! {
            () = sleep(BACK_OFF) => {}
            () = self.shutdown.wait() => {}
        }
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

/// A message is written as a whole, so there is never a reason to wait for more of it.
fn forbid_delay(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        // The peer is gone already; the connection will find that out.
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
}

/// Long enough to be no spin, short enough that nobody notices once a descriptor is free.
const BACK_OFF: Duration = Duration::from_millis(100);
