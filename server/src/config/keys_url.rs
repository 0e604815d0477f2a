//! `auth.jwks_url`: an address that keys may be fetched from.

use std::net::IpAddr;

use axum::http::Uri;

use super::setting::{Range, Scalar, quoted, text_of, text_scalar};
use super::value::Value;

/// The address of a JWK Set: https, or http to this machine itself, where nobody is in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysUrl(Uri);

impl KeysUrl {
    /// Reads an address: `None` if keys must not be fetched from it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let host = uri.host()?;
        let allowed = match uri.scheme_str()? {
            "https" => true,
            "http" => is_loopback(host),
            _ => false,
        };
        // What stands before an `@` would be a password in every log of this address.
        let plain = !uri.authority()?.as_str().contains('@') && !text.contains('#');
        (allowed && plain && !host.is_empty()).then_some(Self(uri))
    }

    /// The address.
    #[must_use]
    pub const fn uri(&self) -> &Uri {
        &self.0
    }

    /// Whether it is reached over TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || bare
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

text_scalar!(
    KeysUrl,
    "an address that begins with https://, or with http:// and localhost, 127.0.0.1 or [::1]; without a user, a password or a #",
    |text| Self::parse(text),
    |value| value.0.to_string()
);

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys come over TLS or from this machine, and the address holds no password.
    #[test]
    fn keys_are_fetched_safely_or_not_at_all() {
        for (text, allowed) in [
            ("https://id.example/.well-known/jwks.json", true),
            ("https://id.example:8443/keys?version=2", true),
            ("http://localhost:8080/keys", true),
            ("http://127.0.0.1:8080/keys", true),
            ("http://[::1]:8080/keys", true),
            ("http://id.example/keys", false),
            ("http://localhost.evil.example/keys", false),
            ("http://10.0.0.1/keys", false),
            ("http://169.254.169.254/latest/meta-data", false),
            ("https://user:password@id.example/keys", false),
            ("https://id.example/keys#one", false),
            ("ftp://id.example/keys", false),
            ("file:///etc/passwd", false),
            ("/etc/passwd", false),
            ("https://", false),
            ("id.example", false),
            ("", false),
        ] {
            assert_eq!(KeysUrl::parse(text).is_some(), allowed, "{text}");
        }
    }
}
