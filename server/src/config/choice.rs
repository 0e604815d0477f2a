//! Types of single settings: closed choices, and texts with a grammar of their own.

use std::fmt;

use roomful_protocol::id::KeyPrefix;
use tracing_subscriber::EnvFilter;

use super::setting::{Range, Scalar, quoted, text_of, text_scalar};
use super::value::Value;

/// Declares a choice between words.
macro_rules! choice {
    (
        $(#[doc = $about:literal])+
        $name:ident { $( $(#[doc = $doc:literal])+ $variant:ident = $word:literal, )+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $( $(#[doc = $doc])+ $variant, )+ }

        impl $name {
            /// The word in the configuration.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $word, )+ }
            }
        }

        text_scalar!(
            $name,
            [$( concat!("\"", $word, "\""), )+].join(", "),
            |text| match text { $( $word => Some(Self::$variant), )+ _ => None },
            |value| value.name()
        );
    };
}

choice! {
    /// What a room does with what is published.
    RoomKind {
        /// Orders it, keeps it for a while, and hands it to the members; never looks into it.
        Relay = "relay",
    }
}

choice! {
    /// How a log line looks.
    LogFormat {
        /// For people on a terminal, JSON elsewhere.
        Auto = "auto",
        /// For people.
        Pretty = "pretty",
        /// One JSON object a line.
        Json = "json",
    }
}

choice! {
    /// How a token is signed (RFC 7518 §3.1, RFC 8037). A key has one, and verifies nothing else.
    Algorithm {
        /// HMAC with SHA-256: one shared secret.
        Hs256 = "HS256",
        /// RSASSA-PKCS1-v1_5 with SHA-256.
        Rs256 = "RS256",
        /// ECDSA on P-256 with SHA-256.
        Es256 = "ES256",
        /// Ed25519.
        EdDsa = "EdDSA",
    }
}

choice! {
    /// The header in which a proxy names its client.
    ForwardedHeader {
        /// A list of addresses.
        XForwardedFor = "X-Forwarded-For",
        /// RFC 7239.
        Forwarded = "Forwarded",
    }
}

/// Which log lines are written. Always one that `tracing_subscriber` accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// Level `info`.
    #[must_use]
    pub fn info() -> Self {
        Self("info".to_owned())
    }

    /// Reads a filter: `None` if it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        EnvFilter::try_new(text)
            .is_ok()
            .then(|| Self(text.to_owned()))
    }

    /// The filter's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

text_scalar!(
    LogFilter,
    "a level (error, warn, info, debug, trace, off), or levels per module such as \"info,roomful_server=debug\"",
    |text| Self::parse(text),
    |value| value.as_str()
);

text_scalar!(
    KeyPrefix,
    "a text of at most 256 bytes without control characters",
    |text| Self::parse(text).ok(),
    |value| value.as_str()
);

/// A web origin (RFC 6454): scheme, host and port, as browsers send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebOrigin(String);

impl WebOrigin {
    /// Reads an origin in the one spelling that browsers use: lower case, no path, no default port.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let default_port = match scheme {
            "http" => ":80",
            "https" => ":443",
            _ => return None,
        };
        let allowed =
            |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b':' | b'[' | b']');
        let well_formed = !authority.is_empty()
            && authority.bytes().all(allowed)
            && !authority.ends_with(default_port);
        well_formed.then(|| Self(text.to_owned()))
    }

    /// The origin's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WebOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_scalar!(
    WebOrigin,
    "an origin as browsers send it, such as \"https://app.example.com\": lower case, no path, no default port",
    |text| Self::parse(text),
    |value| value.as_str()
);

#[cfg(test)]
mod tests {
    use super::*;

    /// What a browser never sends can never match, so it is refused while somebody is looking.
    #[test]
    fn origins_are_spelled_as_browsers_do() {
        for (text, valid) in [
            ("https://app.example.com", true),
            ("http://localhost:5173", true),
            ("http://[::1]:7400", true),
            ("https://app.example.com/", false),
            ("https://App.example.com", false),
            ("https://app.example.com:443", false),
            ("http://app.example.com:80", false),
            ("https://*.example.com", false),
            ("app.example.com", false),
            ("ftp://app.example.com", false),
            ("https://", false),
            ("null", false),
            ("*", false),
        ] {
            assert_eq!(WebOrigin::parse(text).is_some(), valid, "{text}");
        }
    }
}
