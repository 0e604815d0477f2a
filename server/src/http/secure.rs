//! The TLS handshake of a new connection, on the control runtime.
//!
//! It has a deadline, and every way in which one can end is counted. How many are under way at a time is bounded like
//! all that is no WebSocket yet, by `admission`: the oldest has to go, and `connection` counts that. What follows a
//! handshake is left to `connection` too.

use std::io;
use std::time::Duration;

use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::connection::linger;
use super::rewound::Rewound;
use crate::metrics::{Metrics, TlsHandshake as Outcome};
use crate::shutdown::Shutdown;
use crate::tls::Certificates;

/// What makes a listener speak TLS.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The certificate.
    pub certificates: Certificates,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
}

/// Where the connections of one listener begin to speak TLS.
#[derive(Debug)]
pub(super) struct Secure {
    tls: Tls,
    metrics: Metrics,
    shutdown: Shutdown,
}

/// A handshake that was not done.
struct Refused {
    outcome: Outcome,
    /// The socket, for an answer without TLS, or to let the alert arrive.
    socket: Option<(Rewound, &'static [u8])>,
}

impl Secure {
    pub(super) fn new(tls: Tls, metrics: Metrics, shutdown: Shutdown) -> Self {
        Self {
            tls,
            metrics,
            shutdown,
        }
    }

    /// Does the handshake. Where there is none, the peer has been told why as far as it listens.
    pub(super) async fn begin(&self, socket: Rewound) -> Option<Box<TlsStream<Rewound>>> {
        match self.shake(socket).await {
            Ok(stream) => {
                let resumed = rustls::HandshakeKind::Resumed;
                let outcome = match stream.get_ref().1.handshake_kind() {
                    Some(kind) if kind == resumed => Outcome::Resumed,
                    _ => Outcome::Full,
                };
                self.metrics.tls_handshake(outcome);
                Some(Box::new(stream))
            }
            Err(Refused { outcome, socket }) => {
                self.metrics.tls_handshake(outcome);
                if let Some((socket, answer)) = socket {
                    linger(socket, answer).await;
                }
                None
            }
        }
    }

    /// The handshake within its time.
    async fn shake(&self, socket: Rewound) -> Result<TlsStream<Rewound>, Refused> {
        let shaken = timeout(self.tls.handshake_timeout, self.negotiate(socket));
        tokio::select! {
            shaken = shaken => shaken.unwrap_or_else(|_late| Err(Refused::silently(Outcome::Timeout))),
            // Nothing has been promised to it, and it will find another server.
            () = self.shutdown.wait() => Err(Refused::silently(Outcome::Gone)),
        }
    }

    async fn negotiate(&self, socket: Rewound) -> Result<TlsStream<Rewound>, Refused> {
        let first = socket.first_byte().await;
        match first.map_err(|_gone| Refused::silently(Outcome::Gone))? {
            // A handshake begins with a byte that is no letter; every HTTP method begins with one.
            b'A'..=b'Z' => Err(Refused {
                outcome: Outcome::PlainHttp,
                socket: Some((socket, NOT_TLS)),
            }),
            _ => {
                let acceptor = TlsAcceptor::from(self.tls.certificates.current());
                let accepted = acceptor.accept(socket).into_fallible().await;
                accepted.map_err(|(error, socket)| {
                    tracing::debug!(%error, "no TLS handshake");
                    Refused {
                        outcome: outcome(&error),
                        socket: Some((socket, b"")),
                    }
                })
            }
        }
    }
}

impl Refused {
    fn silently(outcome: Outcome) -> Self {
        Self {
            outcome,
            socket: None,
        }
    }
}

/// Why a handshake failed.
fn outcome(error: &io::Error) -> Outcome {
    use rustls::Error;

    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    match cause {
        Some(Error::NoApplicationProtocol) => Outcome::Alpn,
        Some(Error::PeerIncompatible(_)) => Outcome::Incompatible,
        Some(Error::AlertReceived(_)) => Outcome::Alert,
        Some(_) => Outcome::Malformed,
        None => Outcome::Gone,
    }
}

const NOT_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 52\r\n\r\nthis port speaks TLS: use https:// or wss:// for it\n";
