//! The WebSocket handshake (RFC 6455 §4.2), and the hand-over of the socket.
//!
//! The checks go from the outside in: is it a handshake at all, is it a good one, is it from where it may be,
//! do we speak the same protocol, is there room. No extension is ever accepted, so an offer of one is simply
//! not answered.

use std::fmt;
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;

use axum::body::Bytes;
use axum::http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header,
};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use roomful_protocol::codec::Encoding;
use roomful_protocol::id::PlacementKey;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::guard::Rejected;
use super::origin::{OriginRule, Own};
use crate::admission::{Admission, Counted, Refusal, Ticket};
use crate::current::Current;
use crate::metrics::{HandshakeRejection as Reason, Metrics};
use crate::tls::Records;

/// Takes the sockets whose handshake is done. Called from the acceptor's thread and from many tasks at once.
pub trait Upgrades: Send + Sync {
    /// Asks for a place, before the client is told "yes". It travels in [`Upgraded::place`], or is dropped where the
    /// client goes away in between; it is taken for as long as it lives.
    ///
    /// # Errors
    /// There is no place; the client is told when to come back.
    fn admit(&self) -> Result<Counted, Refusal>;

    /// Takes sockets over, those of one moment together. Their "101" has been written. Must not block.
    fn hand_over(&self, upgraded: Vec<Upgraded>);
}

/// A socket on which WebSocket frames follow, and what its handshake said.
#[derive(Debug)]
pub struct Upgraded {
    /// The socket: non-blocking, without Nagle's delay, and registered with no runtime.
    pub stream: TcpStream,
    /// The state of TLS over it, where there is any.
    pub tls: Option<Box<Records>>,
    /// What was read past the handshake: the client need not wait for the "101" before it sends.
    pub read_ahead: Bytes,
    /// How messages are written.
    pub encoding: Encoding,
    /// Who it is, which is not the other end of the socket where a proxy is in between.
    pub client: IpAddr,
    /// Where the client would like to be: `k` of the URL, if it is one.
    pub placement: Option<PlacementKey>,
    /// The place that [`Upgrades::admit`] gave.
    pub place: Counted,
    /// What counts it where it came in.
    pub ticket: Ticket,
}

/// A good handshake.
#[derive(Debug)]
pub(super) struct Checked {
    /// What proves that the key was read.
    pub(super) accept: String,
    encoding: Encoding,
    /// What the answer says that was chosen.
    pub(super) subprotocol: Option<&'static str>,
    placement: Option<PlacementKey>,
    client: IpAddr,
}

/// A handshake that was accepted, until the socket is free to be handed over.
#[derive(Debug)]
pub(super) struct Accepted {
    handshake: Checked,
    place: Counted,
}

impl Accepted {
    /// The "101", as a route answers it.
    pub(super) fn response(&self) -> Response {
        let headers = [
            (header::CONNECTION, "Upgrade"),
            (header::UPGRADE, "websocket"),
            (header::SEC_WEBSOCKET_ACCEPT, self.handshake.accept.as_str()),
        ];
        let subprotocol = self
            .handshake
            .subprotocol
            .map(|name| [(header::SEC_WEBSOCKET_PROTOCOL, name)]);
        (StatusCode::SWITCHING_PROTOCOLS, subprotocol, headers).into_response()
    }

    /// The same as bytes, without what pages are protected by.
    pub(super) fn head(&self) -> String {
        let (line, name) = self
            .handshake
            .subprotocol
            .map_or(("", ""), |name| ("\r\nSec-WebSocket-Protocol: ", name));
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {}{line}{name}\r\n\r\n",
            self.handshake.accept,
        )
    }

    /// The socket with what its handshake said. What was read ahead is copied, since it lies in a buffer for many.
    pub(super) fn upgraded(self, stream: TcpStream, read_ahead: &[u8], ticket: Ticket) -> Upgraded {
        Upgraded {
            stream,
            tls: None,
            read_ahead: Bytes::copy_from_slice(read_ahead),
            encoding: self.handshake.encoding,
            client: self.handshake.client,
            placement: self.handshake.placement,
            place: self.place,
            ticket,
        }
    }
}

/// What is spoken behind a door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    /// The protocol, so a handshake at [`PATH`] offers one of its subprotocols.
    Roomful,
    /// Whatever the taker of the sockets makes of messages: every path is a door, and no subprotocol is chosen.
    Plain,
}

/// Where handshakes are decided.
pub(super) struct Door {
    pub(super) upgrades: Arc<dyn Upgrades>,
    pub(super) admission: Admission,
    pub(super) origins: Current<OriginRule>,
    pub(super) speech: Speech,
    pub(super) metrics: Metrics,
    /// Where pages of this listener are from.
    pub(super) own: Own,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door")
            .field("origins", &self.origins)
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl Door {
    /// Whether handshakes are made at this path.
    pub(super) fn is_at(&self, path: &str) -> bool {
        self.speech == Speech::Plain || path == PATH
    }

    /// Checks a handshake that comes from this address, as far as it is nobody's matter but the request's own.
    ///
    /// # Errors
    /// The first check that fails, with its answer.
    pub(super) fn check<B>(&self, request: &Request<B>, peer: IpAddr) -> Result<Checked, Rejected> {
        is_handshake(request)?;
        let headers = request.headers();
        let key = sole_key(headers)?;
        if !self.origins.get().allows(headers, self.own) {
            return Err(Rejected::new(
                Reason::Origin,
                StatusCode::FORBIDDEN,
                ORIGIN_TEXT,
            ));
        }
        let (encoding, subprotocol) = match self.speech {
            Speech::Roomful => {
                let encoding = offered_encoding(headers)?;
                (encoding, Some(encoding.subprotocol()))
            }
            // Who speaks something else has no use for an encoding.
            Speech::Plain => (Encoding::MessagePack, None),
        };
        Ok(Checked {
            accept: derive_accept_key(key.as_bytes()),
            encoding,
            subprotocol,
            placement: placement(request.uri()),
            client: self.admission.trust().client(peer, headers),
        })
    }

    /// Takes the places that a good handshake needs.
    ///
    /// # Errors
    /// There is one of which there is none.
    pub(super) fn admit(
        &self,
        handshake: Checked,
        ticket: &mut Ticket,
    ) -> Result<Accepted, Refusal> {
        ticket.identify(handshake.client)?;
        let place = self.upgrades.admit()?;
        // Last, since what it takes from the budget doesn't come back.
        ticket.upgrade(Instant::now())?;
        Ok(Accepted { handshake, place })
    }
}

/// Whether it asks for a WebSocket of the version that there is.
fn is_handshake<B>(request: &Request<B>) -> Result<(), Rejected> {
    if request.method() != Method::GET {
        let rejected = Rejected::new(
            Reason::Method,
            StatusCode::METHOD_NOT_ALLOWED,
            "a WebSocket begins with GET\n",
        );
        return Err(rejected.header(header::ALLOW, HeaderValue::from_static("GET")));
    }
    if request.version() != Version::HTTP_11 {
        let status = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
        return Err(Rejected::new(
            Reason::HttpVersion,
            status,
            "a WebSocket begins with HTTP/1.1\n",
        ));
    }
    let headers = request.headers();
    if !lists(headers, &header::UPGRADE, "websocket") {
        return Err(upgrade_required(
            Reason::Upgrade,
            "this is a WebSocket: connect with a WebSocket client\n",
        ));
    }
    if !lists(headers, &header::CONNECTION, "upgrade") {
        return Err(Rejected::new(
            Reason::Upgrade,
            StatusCode::BAD_REQUEST,
            "Connection: Upgrade is missing\n",
        ));
    }
    if sole(headers, &header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != VERSION) {
        return Err(upgrade_required(
            Reason::Version,
            "Sec-WebSocket-Version must be 13\n",
        ));
    }
    Ok(())
}

/// RFC 9110 §15.5.22 asks for `Upgrade`, which is itself a header of this hop and so named by `Connection`.
fn upgrade_required(reason: Reason, text: &'static str) -> Rejected {
    Rejected::new(reason, StatusCode::UPGRADE_REQUIRED, text)
        .header(header::CONNECTION, HeaderValue::from_static("Upgrade"))
        .header(header::UPGRADE, HeaderValue::from_static("websocket"))
        .header(
            header::SEC_WEBSOCKET_VERSION,
            HeaderValue::from_static(VERSION),
        )
}

/// The key: exactly one, and sixteen bytes in base64.
fn sole_key(headers: &HeaderMap) -> Result<&HeaderValue, Rejected> {
    let mut bytes = [0; 18];
    let key = sole(headers, &header::SEC_WEBSOCKET_KEY);
    let good =
        key.filter(|key| key.len() == 24 && STANDARD.decode_slice(key, &mut bytes) == Ok(16));
    good.ok_or_else(|| {
        let text = "exactly one Sec-WebSocket-Key of 16 bytes in base64 is needed\n";
        Rejected::new(Reason::Key, StatusCode::BAD_REQUEST, text)
    })
}

/// The first of the client's offers that we know: the client's order is its preference.
fn offered_encoding(headers: &HeaderMap) -> Result<Encoding, Rejected> {
    let lines = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    // One odd byte spoils the offer as a whole: whoever sends it is not a WebSocket client.
    let lines = lines
        .iter()
        .map(HeaderValue::to_str)
        .collect::<Result<Vec<_>, _>>();
    let offers = lines.iter().flatten().flat_map(|line| line.split(','));
    let known = offers.map(str::trim).find_map(Encoding::from_subprotocol);
    known.ok_or_else(|| {
        Rejected::new(
            Reason::Subprotocol,
            StatusCode::BAD_REQUEST,
            SUBPROTOCOL_TEXT,
        )
    })
}

/// The hint of the URL; one that is malformed is no hint.
fn placement(uri: &Uri) -> Option<PlacementKey> {
    let pairs = uri.query()?.split('&');
    pairs
        .filter_map(|pair| pair.strip_prefix("k="))
        .find_map(PlacementKey::parse)
}

/// The value of a header that stands there exactly once.
fn sole<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let (value, second) = (values.next(), values.next());
    value.filter(|_value| second.is_none())
}

/// Whether a header's list has a token, in any case, on any of its lines.
fn lists(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let lines = headers
        .get_all(name)
        .iter()
        .filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .any(|listed| listed.trim().eq_ignore_ascii_case(token))
}

/// Where handshakes are made.
pub(super) const PATH: &str = "/v1/ws";

const VERSION: &str = "13";

const ORIGIN_TEXT: &str =
    "this origin or host name may not connect; the server's list of origins decides\n";

const SUBPROTOCOL_TEXT: &str = "offer the subprotocol roomful.v1.msgpack or roomful.v1.json\n";

#[cfg(test)]
mod tests {
    use super::*;

    /// The text that a refused client reads names exactly the subprotocols that there are.
    #[test]
    fn the_refusal_names_every_subprotocol() {
        let names: Vec<_> = SUBPROTOCOL_TEXT
            .split_whitespace()
            .filter(|word| word.starts_with("roomful."))
            .collect();
        assert_eq!(names, Encoding::ALL.map(Encoding::subprotocol));
    }

    /// Whatever stands in the query, a hint is sixteen digits under `k` or nothing.
    #[test]
    fn a_malformed_hint_is_no_hint() {
        let hint = PlacementKey(0x1bc5_c348_1e8d_9d9c);
        for (target, expected) in [
            ("/v1/ws?k=1bc5c3481e8d9d9c", Some(hint)),
            ("/v1/ws?a=b&k=1bc5c3481e8d9d9c&c", Some(hint)),
            ("/v1/ws", None),
            ("/v1/ws?", None),
            ("/v1/ws?k", None),
            ("/v1/ws?k=", None),
            ("/v1/ws?k=1BC5C3481E8D9D9C", None),
            ("/v1/ws?k=1bc5c3481e8d9d9c0", None),
            ("/v1/ws?kk=1bc5c3481e8d9d9c", None),
            ("/v1/ws?k=%31bc5c3481e8d9d9c", None),
        ] {
            assert_eq!(placement(&Uri::from_static(target)), expected, "{target}");
        }
    }
}
