//! A new socket's first moment, on the acceptor's thread: may it come in, who is it, and what has it sent already.
//!
//! Nothing here waits: one read and one write. Whoever needs more time than that goes to the control runtime.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};

use axum::body::Bytes;
use axum::http::{HeaderName, HeaderValue, Request, StatusCode, Version};

use super::connection::Server;
use super::guard::{self, Rejected};
use super::upgrade::{Checked, Door, Upgraded};
use crate::admission::proxy::{self, NotAHeader};
use crate::admission::{Reason, Refusal, Ticket};
use crate::metrics::HandshakeRejection;

/// What became of a new socket.
pub(super) enum Welcomed {
    /// It is a WebSocket.
    WebSocket(Upgraded),
    /// It is not, or not yet.
    Http(Newcomer),
    /// It may not come in; it has been told, and may still have to read it.
    Refused(TcpStream),
    /// It is gone.
    Gone,
}

/// A socket that goes the longer way.
pub(super) struct Newcomer {
    pub(super) stream: TcpStream,
    /// What was read of it.
    pub(super) seen: Bytes,
    /// Who it is, as far as that is known.
    pub(super) client: IpAddr,
    pub(super) ticket: Ticket,
    /// Whether it is a proxy's, and the header that says whose has not arrived yet.
    pub(super) header_due: bool,
}

impl Server {
    /// Lets a new socket in, or not. One whose whole request is there and is a good handshake is answered without the
    /// engine and its buffers; any other goes the longer way, on which the engine has the answers to whatever is wrong
    /// with it.
    pub(super) fn welcome(
        &self,
        mut stream: TcpStream,
        peer: SocketAddr,
        buffer: &mut [u8],
    ) -> Welcomed {
        let client = peer.ip().to_canonical();
        let arrived = self.admission.arrive(client, descriptor(&stream));
        // What is wrong with the socket, the engine will find out too.
        let seen = stream.read(buffer).unwrap_or(0);
        let seen = buffer.get(..seen).unwrap_or_default();
        let ticket = match arrived {
            Ok(ticket) => ticket,
            Err(refusal) => return self.turn_away(stream, refusal),
        };
        let mut newcomer = Newcomer {
            stream,
            seen: Bytes::new(),
            client,
            ticket,
            header_due: false,
        };
        let seen = if self.admission.trust().expects_header(client) {
            match proxy::decode(seen) {
                Ok(None) => {
                    newcomer.header_due = true;
                    newcomer.seen = Bytes::copy_from_slice(seen);
                    return Welcomed::Http(newcomer);
                }
                Ok(Some(header)) => {
                    newcomer.client = header.client.unwrap_or(client);
                    if let Err(refusal) = newcomer.ticket.identify(newcomer.client) {
                        return self.turn_away(newcomer.stream, refusal);
                    }
                    seen.get(header.length..).unwrap_or_default()
                }
                Err(NotAHeader) => return self.refuse(newcomer.stream, no_header()),
            }
        } else {
            seen
        };
        self.greet(newcomer, seen)
    }

    /// Answers a good handshake.
    fn greet(&self, mut newcomer: Newcomer, seen: &[u8]) -> Welcomed {
        // Under TLS nothing is said in the clear.
        let door = self.door.as_deref().filter(|_| self.secure.is_none());
        let good = door.and_then(|door| Some((door, handshake(door, seen, newcomer.client)?)));
        let Some((door, (length, checked))) = good else {
            newcomer.seen = Bytes::copy_from_slice(seen);
            return Welcomed::Http(newcomer);
        };
        let Newcomer {
            mut stream,
            mut ticket,
            ..
        } = newcomer;
        let accepted = match door.admit(checked, &mut ticket) {
            Ok(accepted) => accepted,
            Err(refusal) => return self.turn_away(stream, refusal),
        };
        let answer = accepted.head();
        // A fresh socket takes a few hundred bytes, unless the peer is gone.
        match stream.write(answer.as_bytes()) {
            Ok(written) if written == answer.len() => {
                let read_ahead = seen.get(length..).unwrap_or_default();
                Welcomed::WebSocket(accepted.upgraded(stream, read_ahead, ticket))
            }
            _ => Welcomed::Gone,
        }
    }

    /// Tells a socket that it may not come in now. It costs one write, so there is an answer also where there is room
    /// for nothing else.
    pub(super) fn turn_away(&self, stream: TcpStream, refusal: Refusal) -> Welcomed {
        let keeps_descriptor = refusal.reason != Reason::Descriptors;
        match self.refuse(stream, refusal.into()) {
            Welcomed::Refused(stream) if keeps_descriptor => Welcomed::Refused(stream),
            _ => Welcomed::Gone,
        }
    }

    fn refuse(&self, mut stream: TcpStream, rejected: Rejected) -> Welcomed {
        let answer = rejected.bytes(&self.metrics);
        // Under TLS nothing is said in the clear, and a refusal is worth no TLS handshake.
        if self.secure.is_some() {
            return Welcomed::Gone;
        }
        // A fresh socket takes a few hundred bytes, unless the peer is gone.
        match stream.write_all(&answer) {
            Ok(()) => Welcomed::Refused(stream),
            Err(_) => Welcomed::Gone,
        }
    }
}

/// The good handshake that these bytes begin with, and how long it is.
pub(super) fn handshake(door: &Door, bytes: &[u8], client: IpAddr) -> Option<(usize, Checked)> {
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
    guard::check(&request, guard::Bodies::None).ok()?;
    if !door.is_at(request.uri().path()) {
        return None;
    }
    Some((length, door.check(&request, client).ok()?))
}

/// A proxy has to say whom it speaks for.
pub(super) fn no_header() -> Rejected {
    Rejected::new(
        HandshakeRejection::ProxyHeader,
        StatusCode::BAD_REQUEST,
        "a connection from a proxy begins with a PROXY protocol header here\n",
    )
}

/// The number of the socket's descriptor.
#[cfg(unix)]
fn descriptor(stream: &TcpStream) -> Option<u64> {
    use std::os::fd::AsRawFd as _;

    u64::try_from(stream.as_raw_fd()).ok()
}

#[cfg(not(unix))]
fn descriptor(_: &TcpStream) -> Option<u64> {
    None
}

/// More header lines than any client sends for a handshake; what has more takes the longer way.
const HANDSHAKE_LINES_MAX: usize = 32;
