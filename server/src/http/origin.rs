//! Which pages may open a WebSocket.
//!
//! A browser lets every page connect anywhere and only says where the page is from, so the server has to ask.
//! A client that is no browser says nothing, and is let through: it could say anything.

use std::fmt;

use axum::http::{HeaderMap, header};

/// Where a page is from (RFC 6454 §4): scheme, host and port, compared exactly.
///
/// Shape: `scheme://host[:port]` as browsers write it: lower case, no path, no trailing slash, brackets
/// around an IPv6 address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    scheme: Box<str>,
    /// Where a scheme has a default port, the text may leave it out and it is still there.
    authority: Authority,
}

/// A text is not an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an origin is scheme://host or scheme://host:port, in lower case, without a path or a trailing slash"
)]
pub struct OriginError;

/// Who may open a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginRule {
    /// The listener is on loopback and asks nobody for a token. `Host` must be `localhost`, `127.0.0.1` or
    /// `[::1]` at the bound port, or a page whose own name was made to point here could connect (DNS
    /// rebinding). `Origin`, where there is one, must be the same over the listener's scheme, or be listed.
    Loopback {
        /// Other origins that may connect, such as a development server at another port.
        listed: Vec<Origin>,
    },
    /// `Origin`, where there is one, must name the host and port that `Host` names; with `https` where the listener
    /// speaks TLS, since a page without it may be anybody's.
    SameHost,
    /// `Origin`, where there is one, must be one of these.
    Listed(Vec<Origin>),
}

/// Where the pages of a listener are from, but for the host, for which there may be many names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Own {
    /// `https` where the listener speaks TLS. Where it doesn't, a proxy before it may.
    pub(super) scheme: &'static str,
    /// The port that the listener is bound to.
    pub(super) port: u16,
}

/// Host and port, as `Host` and the end of an origin name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Authority {
    /// In lower case; an IPv6 address in its brackets.
    host: Box<str>,
    port: Option<u16>,
}

impl Origin {
    /// Parses an origin.
    ///
    /// # Errors
    /// [`OriginError`] for anything else than the shape above; `null` is not an origin.
    pub fn parse(text: &str) -> Result<Self, OriginError> {
        let (scheme, authority) = text.split_once("://").ok_or(OriginError)?;
        let mut letters = scheme.bytes();
        let starts = letters
            .next()
            .is_some_and(|first| first.is_ascii_lowercase());
        let follows =
            letters.all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'+' | b'-' | b'.'));
        if !starts || !follows || authority.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(OriginError);
        }
        let mut authority = Authority::parse(authority).ok_or(OriginError)?;
        authority.port = authority.port.or(default_port(scheme));
        Ok(Self {
            scheme: scheme.into(),
            authority,
        })
    }

    /// Whether a page from here was served by the one that `Host` names. `Host` leaves a default port out,
    /// and the scheme that decides which one that is may have ended at a proxy.
    fn is_at(&self, host: &Authority) -> bool {
        self.authority.host == host.host
            && self.authority.port == host.port.or(default_port(&self.scheme))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority.host)?;
        match self.authority.port {
            Some(port) if default_port(&self.scheme) != Some(port) => write!(f, ":{port}"),
            _ => Ok(()),
        }
    }
}

impl OriginRule {
    /// Whether a request with these headers may open a WebSocket at a listener.
    pub(super) fn allows(&self, headers: &HeaderMap, own: Own) -> bool {
        let Some(host) = Authority::of_host(headers) else {
            return false;
        };
        let own_name = !matches!(self, Self::Loopback { .. }) || host.is_loopback_at(own);
        own_name && self.allows_origin(headers, &host, own)
    }

    fn allows_origin(&self, headers: &HeaderMap, host: &Authority, own: Own) -> bool {
        let mut lines = headers.get_all(header::ORIGIN).iter();
        let (first, second) = (lines.next(), lines.next());
        let Some(line) = first else { return true };
        let Some(Ok(origin)) = line.to_str().ok().map(Origin::parse) else {
            return false;
        };
        let allowed = match self {
            Self::Loopback { listed } => {
                origin.is_loopback_page_at(own) || listed.contains(&origin)
            }
            Self::SameHost => {
                origin.is_at(host) && (own.scheme == "http" || origin.scheme.as_ref() == own.scheme)
            }
            Self::Listed(listed) => listed.contains(&origin),
        };
        allowed && second.is_none()
    }
}

impl Origin {
    fn is_loopback_page_at(&self, own: Own) -> bool {
        &*self.scheme == own.scheme && self.authority.is_loopback_at(own)
    }
}

impl Authority {
    /// What `Host` names; `None` where it is missing, doubled or malformed.
    pub(super) fn of_host(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(header::HOST).iter();
        let (line, second) = (lines.next()?, lines.next());
        if second.is_some() {
            return None;
        }
        Self::parse(line.to_str().ok()?)
    }

    /// Whether it names this machine.
    pub(super) fn is_loopback(&self) -> bool {
        matches!(&*self.host, "localhost" | "127.0.0.1" | "[::1]")
    }

    /// Whether it names this machine at a listener's port. `Host` may leave out the scheme's own.
    fn is_loopback_at(&self, own: Own) -> bool {
        self.is_loopback() && self.port.or(default_port(own.scheme)) == Some(own.port)
    }

    fn parse(text: &str) -> Option<Self> {
        // An IPv6 address has colons of its own, inside its brackets.
        let end = text.find(']').map_or(0, |bracket| bracket + 1);
        let (host, port) = match text.get(end..)?.find(':') {
            Some(colon) => (text.get(..end + colon)?, Some(text.get(end + colon + 1..)?)),
            None => (text, None),
        };
        let port = match port {
            Some(digits) => Some(parse_port(digits)?),
            None => None,
        };
        is_host(host).then(|| Self {
            host: host.to_ascii_lowercase().into(),
            port,
        })
    }
}

fn is_host(text: &str) -> bool {
    if let Some(inner) = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        return inner.parse::<std::net::Ipv6Addr>().is_ok();
    }
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

fn parse_port(digits: &str) -> Option<u16> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain
        .then(|| digits.parse().ok())
        .flatten()
        .filter(|port| *port != 0)
}

/// The ports that a browser leaves out.
fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    /// What is an origin, and how it is written back.
    #[test]
    fn origins_are_parsed_exactly() {
        for (text, written) in [
            ("http://localhost:7400", Some("http://localhost:7400")),
            ("https://app.example.com", Some("https://app.example.com")),
            (
                "https://app.example.com:443",
                Some("https://app.example.com"),
            ),
            ("http://[::1]:7400", Some("http://[::1]:7400")),
            ("tauri://localhost", Some("tauri://localhost")),
            ("null", None),
            ("", None),
            ("http://", None),
            ("http:/localhost", None),
            ("://localhost", None),
            ("HTTP://localhost", None),
            ("http://Localhost", None),
            ("http://localhost/", None),
            ("http://localhost:", None),
            ("http://localhost:0", None),
            ("http://localhost:+80", None),
            ("http://localhost:65536", None),
            ("http://user@localhost", None),
            ("http://a b", None),
            ("http://[::1", None),
            ("http://::1]", None),
            ("http://[localhost]", None),
        ] {
            let parsed = Origin::parse(text).ok().map(|origin| origin.to_string());
            assert_eq!(parsed.as_deref(), written, "{text:?}");
        }
    }

    const HTTP: Own = Own {
        scheme: "http",
        port: 7400,
    };

    fn check(rule: &OriginRule, cases: &[(&str, Option<&str>, bool)]) {
        check_at(HTTP, rule, cases);
    }

    fn check_at(own: Own, rule: &OriginRule, cases: &[(&str, Option<&str>, bool)]) {
        for (host, origin, allowed) in cases {
            let mut headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
            headers.extend(origin.map(|origin| (header::ORIGIN, origin.parse().unwrap())));
            assert_eq!(
                rule.allows(&headers, own),
                *allowed,
                "Host {host}, Origin {origin:?}, {rule:?}"
            );
        }
    }

    /// Under TLS a page is the listener's own if it came by `https`, also where the default port is left out.
    #[test]
    fn under_tls_a_page_without_it_is_foreign() {
        let (at_7400, at_443) = (
            Own {
                scheme: "https",
                port: 7400,
            },
            Own {
                scheme: "https",
                port: 443,
            },
        );
        let loopback = OriginRule::Loopback { listed: Vec::new() };
        check_at(
            at_7400,
            &loopback,
            &[
                ("localhost:7400", Some("https://localhost:7400"), true),
                ("localhost:7400", Some("http://localhost:7400"), false),
                ("localhost", None, false),
            ],
        );
        check_at(
            at_443,
            &loopback,
            &[
                ("localhost", Some("https://localhost"), true),
                ("localhost", Some("http://localhost"), false),
            ],
        );
        check_at(
            at_443,
            &OriginRule::SameHost,
            &[
                ("app.example.com", None, true),
                ("app.example.com", Some("https://app.example.com"), true),
                ("app.example.com", Some("http://app.example.com"), false),
                ("app.example.com", Some("http://app.example.com:443"), false),
                ("app.example.com", Some("https://evil.example.com"), false),
            ],
        );
    }

    /// Without keys only this machine's own names at the bound port may be used, in the address and by the page.
    #[test]
    fn on_loopback_both_names_must_be_this_machine() {
        let rule = OriginRule::Loopback {
            listed: vec![Origin::parse("http://localhost:5173").unwrap()],
        };
        check(
            &rule,
            &[
                ("localhost:7400", None, true),
                ("LocalHost:7400", None, true),
                ("127.0.0.1:7400", Some("http://127.0.0.1:7400"), true),
                ("127.0.0.1:7400", Some("http://localhost:7400"), true),
                ("[::1]:7400", Some("http://[::1]:7400"), true),
                ("localhost:7400", Some("http://localhost:5173"), true),
                ("localhost:7400", Some("http://localhost:5174"), false),
                ("localhost:7400", Some("https://localhost:7400"), false),
                ("localhost:7400", Some("http://localhost"), false),
                ("localhost:7400", Some("null"), false),
                ("localhost:7400", Some("http://LOCALHOST:7400"), false),
                ("localhost:7400", Some("http://localhost.:7400"), false),
                ("localhost:7400", Some("http://localhost.evil:7400"), false),
                ("evil.example:7400", None, false),
                ("evil.example:7400", Some("http://evil.example:7400"), false),
                ("localhost:7401", None, false),
                ("localhost", None, false),
            ],
        );
    }

    /// With keys and no list, a page may connect to the server that served it.
    #[test]
    fn without_a_list_a_page_may_connect_to_its_own_host() {
        check(
            &OriginRule::SameHost,
            &[
                ("app.example.com", None, true),
                ("app.example.com", Some("https://app.example.com"), true),
                ("app.example.com", Some("http://app.example.com"), true),
                (
                    "app.example.com:8443",
                    Some("https://app.example.com:8443"),
                    true,
                ),
                (
                    "app.example.com",
                    Some("https://app.example.com:8443"),
                    false,
                ),
                (
                    "app.example.com:8443",
                    Some("https://app.example.com"),
                    false,
                ),
                (
                    "app.example.com",
                    Some("https://app.example.com.evil"),
                    false,
                ),
                ("app.example.com", Some("https://example.com"), false),
                ("app.example.com", Some("null"), false),
            ],
        );
    }

    /// A list is exact: scheme, host and port.
    #[test]
    fn a_list_is_exact() {
        let rule = OriginRule::Listed(vec![Origin::parse("https://app.example.com").unwrap()]);
        check(
            &rule,
            &[
                ("rooms.example.com", None, true),
                ("rooms.example.com", Some("https://app.example.com"), true),
                ("rooms.example.com", Some("http://app.example.com"), false),
                (
                    "rooms.example.com",
                    Some("https://app.example.com:8443"),
                    false,
                ),
                (
                    "rooms.example.com",
                    Some("https://rooms.example.com"),
                    false,
                ),
                (
                    "rooms.example.com",
                    Some("https://app.example.com.evil"),
                    false,
                ),
                ("rooms.example.com", Some("https://APP.example.com"), false),
                ("rooms.example.com", Some("https://app.example.com."), false),
                ("rooms.example.com", Some("null"), false),
            ],
        );
    }

    /// Two `Origin` lines are nobody's, even if both are fine.
    #[test]
    fn a_doubled_origin_is_refused() {
        let origin: HeaderValue = "http://localhost:7400".parse().unwrap();
        let mut headers = HeaderMap::from_iter([(header::HOST, "localhost:7400".parse().unwrap())]);
        headers.append(header::ORIGIN, origin.clone());
        let rule = OriginRule::Loopback { listed: Vec::new() };
        assert!(rule.allows(&headers, HTTP));
        headers.append(header::ORIGIN, origin);
        assert!(!rule.allows(&headers, HTTP));
    }
}
