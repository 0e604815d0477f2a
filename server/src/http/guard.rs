//! What every request has to be before a route sees it, and what every answer says to a browser.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};

use super::origin::Authority;
use crate::admission::{Reason, Refusal};
use crate::metrics::{HandshakeRejection, Metrics};

/// A request that is refused. The connection ends with the answer: what follows on it cannot be trusted to be
/// a request.
#[derive(Debug)]
pub(super) struct Rejected {
    reason: HandshakeRejection,
    status: StatusCode,
    /// One line, for the person who reads it.
    text: &'static str,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl From<Refusal> for Rejected {
    fn from(
        Refusal {
            reason,
            retry_after,
        }: Refusal,
    ) -> Self {
        use HandshakeRejection as Counted;

        let (status, counted, text) = match reason {
            Reason::Full => (UNAVAILABLE, Counted::Full, "the server is full\n"),
            Reason::Memory => (
                UNAVAILABLE,
                Counted::Memory,
                "the server is short of memory\n",
            ),
            Reason::Draining => (
                UNAVAILABLE,
                Counted::Draining,
                "the server is about to end\n",
            ),
            Reason::AddressConnections => (
                StatusCode::TOO_MANY_REQUESTS,
                Counted::AddressConnections,
                "too many connections from this address\n",
            ),
            Reason::AddressUnauthenticated => (
                StatusCode::TOO_MANY_REQUESTS,
                Counted::AddressUnauthenticated,
                "too many connections without a session from this address\n",
            ),
            Reason::HttpConnections => (
                UNAVAILABLE,
                Counted::HttpConnections,
                "too many connections without a WebSocket\n",
            ),
            Reason::Unauthenticated => (
                UNAVAILABLE,
                Counted::Unauthenticated,
                "too many connections without a session\n",
            ),
            Reason::Connects => (
                UNAVAILABLE,
                Counted::Connects,
                "too many connections at once\n",
            ),
            Reason::AddressConnects => (
                StatusCode::TOO_MANY_REQUESTS,
                Counted::AddressConnects,
                "too many connections at once from this address\n",
            ),
            Reason::Descriptors => (
                UNAVAILABLE,
                Counted::Descriptors,
                "the server has no file descriptors left\n",
            ),
        };
        let seconds = retry_after.as_millis().div_ceil(1_000);
        let seconds = HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX));
        Self::new(counted, status, text).header(header::RETRY_AFTER, seconds)
    }
}

impl Rejected {
    pub(super) fn new(reason: HandshakeRejection, status: StatusCode, text: &'static str) -> Self {
        let close = (header::CONNECTION, HeaderValue::from_static("close"));
        Self {
            reason,
            status,
            text,
            headers: vec![close],
        }
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Counts it and answers, without the HTTP engine.
    pub(super) fn bytes(self, metrics: &Metrics) -> Vec<u8> {
        metrics.handshake_rejected(self.reason);
        let mut bytes = format!("HTTP/1.1 {}\r\n", self.status).into_bytes();
        let length = (header::CONTENT_LENGTH, HeaderValue::from(self.text.len()));
        for (name, value) in self.headers.iter().chain([&length]) {
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(self.text.as_bytes());
        bytes
    }

    /// Counts it and answers.
    pub(super) fn answer(self, metrics: &Metrics) -> Response {
        metrics.handshake_rejected(self.reason);
        let mut response = (self.status, self.text).into_response();
        for (name, value) in self.headers {
            response.headers_mut().append(name, value);
        }
        response
    }
}

/// Checks what no route here leaves open.
///
/// # Errors
/// The target is no plain path, `Host` is not exactly one good name, or there is a body that may not be.
pub(super) fn check<B>(request: &Request<B>, bodies: Bodies) -> Result<(), Rejected> {
    let uri = request.uri();
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    // Nothing is ever forwarded, so a target that names a host, in either form, is an attempt at something else.
    if uri.scheme().is_some()
        || uri.authority().is_some()
        || !target.starts_with('/')
        || target.starts_with("//")
    {
        return Err(Rejected::new(
            HandshakeRejection::Target,
            StatusCode::BAD_REQUEST,
            "the request target must be a path\n",
        ));
    }
    if target.len() > TARGET_BYTES_MAX {
        return Err(Rejected::new(
            HandshakeRejection::Target,
            StatusCode::URI_TOO_LONG,
            "the request target is too long\n",
        ));
    }
    let headers = request.headers();
    let may_lack_host =
        request.version() == Version::HTTP_10 && !headers.contains_key(header::HOST);
    if !may_lack_host && Authority::of_host(headers).is_none() {
        return Err(Rejected::new(
            HandshakeRejection::Host,
            StatusCode::BAD_REQUEST,
            "exactly one good Host is needed\n",
        ));
    }
    bodies.check(headers)
}

/// Which bodies requests may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bodies {
    /// None at all: where none is accepted, none can hide a second request.
    None,
    /// Of at most so many bytes, and of a length that is told at once.
    UpTo(usize),
}

impl Bodies {
    fn check(self, headers: &HeaderMap) -> Result<(), Rejected> {
        let refuse = |status, text| Err(Rejected::new(HandshakeRejection::Body, status, text));
        let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
        // With both headers at once the parser has dropped the length, so the encoding alone tells.
        let encoded = headers.contains_key(header::TRANSFER_ENCODING);
        match self {
            Self::None if encoded || lengths.any(|length| length != "0") => {
                refuse(StatusCode::BAD_REQUEST, "a request here has no body\n")
            }
            Self::UpTo(_) if encoded => refuse(
                StatusCode::LENGTH_REQUIRED,
                "a body needs a Content-Length\n",
            ),
            Self::UpTo(max) if !lengths.all(|length| is_at_most(length, max)) => {
                refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is too long\n")
            }
            Self::None | Self::UpTo(_) => Ok(()),
        }
    }
}

fn is_at_most(length: &HeaderValue, max: usize) -> bool {
    let length = length.to_str().ok().and_then(|text| text.parse().ok());
    length.is_some_and(|length: usize| length <= max)
}

/// Whether the request calls this machine by a name that only this machine has.
pub(crate) fn names_loopback<B>(request: &Request<B>) -> bool {
    Authority::of_host(request.headers()).is_some_and(|host| host.is_loopback())
}

/// Tells a browser what our pages never need, so that an injected one cannot have it either.
pub(super) fn protect(response: &mut Response<Body>) {
    for (name, value) in PROTECTION {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
}

const PROTECTION: [(HeaderName, &str); 5] = [
    // `'self'` covers `ws:` and `wss:` to the same host and port.
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
         manifest-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;

/// Ten times what our longest URL takes.
const TARGET_BYTES_MAX: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// `Retry-After` is whole seconds, never sooner than asked for, on both ways to answer.
    #[test]
    fn a_wait_is_rounded_up_to_seconds() {
        for (millis, seconds) in [(0, "0"), (1, "1"), (1_000, "1"), (1_001, "2")] {
            let metrics = Metrics::new(crate::tasks::Tasks::new(), 0);
            let refusal = Refusal {
                reason: Reason::Full,
                retry_after: Duration::from_millis(millis),
            };
            let response = Rejected::from(refusal).answer(&metrics);
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers()[header::RETRY_AFTER], seconds);
            let bytes = String::from_utf8(Rejected::from(refusal).bytes(&metrics)).unwrap();
            assert_eq!(
                bytes,
                format!(
                    "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: {seconds}\r\n\
                     content-length: 19\r\n\r\nthe server is full\n"
                )
            );
            assert_eq!(metrics.handshakes_rejected(HandshakeRejection::Full), 2);
        }
    }
}
