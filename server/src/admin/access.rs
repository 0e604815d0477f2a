//! Who may call: whoever shows the key, from where a page of a foreign site can't.
//!
//! Wrong keys are counted by address, and beyond a rate nothing that the address shows is looked at, so that a key
//! that somebody chose badly can't be found by trying. The table of addresses is bounded: where it is full, the one
//! that has shown least is forgotten for a new one, so that nobody is kept out by others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use roomful_protocol::error::ErrorCode;

use super::failure::Failure;
use super::{AUDIT, Admin};
use crate::admission::address::Address;
use crate::connection::{Bucket, Rate};
use crate::http::{PeerContext, names_loopback};
use crate::metrics::AdminDenial;
use crate::shard::message::Refusal;

/// Lets a request through that shows the key.
pub(super) async fn check(
    State(admin): State<Admin>,
    Extension(peer): Extension<Arc<PeerContext>>,
    request: Request,
    next: Next,
) -> Response {
    let client = peer.client;
    let denied = match admin.judge(&request, client) {
        Ok(()) => return next.run(request).await,
        Err(denied) => denied,
    };
    admin.parts().metrics.admin_denied(denied.reason());
    // A flood of these is as long as an attack, and all its lines say the same.
    if let Denied::Limited { .. } = denied {
        tracing::debug!(target: AUDIT, %client, outcome = ?denied);
    } else {
        tracing::warn!(target: AUDIT, %client, outcome = ?denied);
    }
    denied.answer()
}

/// Why a request is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Denied {
    /// It calls the listener by a name that is not this machine's own.
    Host,
    /// It shows no key.
    Missing,
    /// It shows another key.
    Wrong,
    /// Its address has shown too many.
    Limited {
        /// When it may show another one.
        after_ms: u64,
    },
}

impl Admin {
    fn judge(&self, request: &Request, address: IpAddr) -> Result<(), Denied> {
        let parts = self.parts();
        // A page of a foreign site that made its own name point here has no business with the key.
        if parts.settings.loopback && !names_loopback(request) {
            return Err(Denied::Host);
        }
        let shown = shown_key(request.headers()).ok_or(Denied::Missing)?;
        let now_ms = parts.clock.monotonic_ms();
        self.inner
            .guesses
            .judge(address, now_ms, || parts.key.is(shown))
    }
}

impl Denied {
    fn reason(self) -> AdminDenial {
        match self {
            Self::Host => AdminDenial::Host,
            Self::Missing => AdminDenial::Missing,
            Self::Wrong => AdminDenial::Wrong,
            Self::Limited { .. } => AdminDenial::Limited,
        }
    }

    fn answer(self) -> Response {
        let (code, text, after_ms) = match self {
            Self::Host => (
                ErrorCode::Forbidden,
                "ask for it as localhost, 127.0.0.1 or [::1]",
                None,
            ),
            Self::Missing => (
                ErrorCode::InvalidToken,
                "show the admin key: Authorization: Bearer <key>",
                None,
            ),
            Self::Wrong => (ErrorCode::InvalidToken, "this is not the admin key", None),
            Self::Limited { after_ms } => (
                ErrorCode::RateLimited,
                "too many wrong keys came from this address",
                Some(after_ms),
            ),
        };
        let failure = Failure::from(Refusal {
            after_ms,
            ..Refusal::new(code, text)
        });
        let mut response = failure.into_response();
        if response.status() == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer realm=\"roomful admin\"");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

/// The key in the one `Authorization: Bearer` (RFC 6750 §2.1).
fn shown_key(headers: &HeaderMap) -> Option<&[u8]> {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    let (line, None) = (lines.next()?, lines.next()) else {
        return None;
    };
    let (scheme, key) = line.as_bytes().split_at_checked(SCHEME.len())?;
    scheme
        .eq_ignore_ascii_case(SCHEME)
        .then_some(key.trim_ascii())
}

/// How often who has shown a wrong key lately.
#[derive(Debug)]
pub(super) struct Guesses {
    rate: Rate,
    /// Held for one comparison.
    buckets: Mutex<HashMap<Address, Bucket>>,
}

impl Guesses {
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            rate,
            buckets: Mutex::default(),
        }
    }

    /// Looks at what an address shows, unless it has shown too much that was wrong.
    fn judge(
        &self,
        address: IpAddr,
        now_ms: u64,
        is_right: impl FnOnce() -> bool,
    ) -> Result<(), Denied> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let address = Address::of(address);
        let full = Bucket::full(self.rate, now_ms);
        let mut bucket = buckets.get(&address).copied().unwrap_or(full);
        bucket
            .take(self.rate, now_ms)
            .map_err(|after_ms| Denied::Limited { after_ms })?;
        if is_right() {
            return Ok(());
        }
        if buckets.len() >= ADDRESSES_MAX && !buckets.contains_key(&address) {
            let left = |bucket: &Bucket| bucket.left(self.rate, now_ms);
            let by_left = buckets
                .iter()
                .map(|(address, bucket)| (*address, left(bucket)));
            let least = by_left.max_by(|(_, one), (_, other)| one.total_cmp(other));
            least.and_then(|(least, _)| buckets.remove(&least));
        }
        buckets.insert(address, bucket);
        Err(Denied::Wrong)
    }
}

const SCHEME: &[u8] = b"bearer ";

/// Addresses that are told apart: a minute of an attack from many.
const ADDRESSES_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_s: 1.0,
        burst: 3,
    };

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A few wrong keys, then nothing is looked at, also not the right one; others of the network share it, and
    /// time heals. Right keys cost nothing.
    #[test]
    fn wrong_keys_are_limited_by_network() {
        let guesses = Guesses::new(RATE);
        let (one, other) = (address("2001:db8::1"), address("2001:db8::2"));
        for _ in 0..10 {
            assert_eq!(guesses.judge(one, 0, || true), Ok(()));
        }
        for _ in 0..3 {
            assert_eq!(guesses.judge(one, 0, || false), Err(Denied::Wrong));
        }
        let limited = Err(Denied::Limited { after_ms: 1_000 });
        assert_eq!(guesses.judge(other, 0, || true), limited);
        assert_eq!(
            guesses.judge(address("2001:db8:0:1::1"), 0, || true),
            Ok(())
        );
        assert_eq!(guesses.judge(address("192.0.2.1"), 0, || true), Ok(()));
        assert_eq!(guesses.judge(one, 1_000, || true), Ok(()));
    }

    /// However many show wrong keys, nobody else is kept out, and those who have shown most stay kept out.
    #[test]
    fn the_table_of_addresses_is_bounded() {
        let guesses = Guesses::new(RATE);
        let worst = address("192.0.2.1");
        for _ in 0..3 {
            assert_eq!(guesses.judge(worst, 0, || false), Err(Denied::Wrong));
        }
        for number in 0..3 * 1_024_u32 {
            let address = IpAddr::from((0x0a00_0000 + number).to_be_bytes());
            assert_eq!(guesses.judge(address, 0, || false), Err(Denied::Wrong));
        }
        assert_eq!(guesses.buckets.lock().unwrap().len(), ADDRESSES_MAX);
        assert_eq!(guesses.judge(address("192.0.2.2"), 0, || true), Ok(()));
        let limited = Err(Denied::Limited { after_ms: 1_000 });
        assert_eq!(guesses.judge(worst, 0, || true), limited);
    }

    /// One line with one scheme, in any case; anything else shows nothing.
    #[test]
    fn the_key_stands_in_one_line() {
        let headers = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                let value = HeaderValue::from_str(line).unwrap();
                headers.append(header::AUTHORIZATION, value);
            }
            headers
        };
        let key = b"key".as_slice();
        assert_eq!(shown_key(&headers(&["Bearer key"])), Some(key));
        assert_eq!(shown_key(&headers(&["bEARER  key "])), Some(key));
        for lines in [
            &[][..],
            &["Bearer key", "Bearer key"],
            &["Basic key"],
            &["key"],
            &["Bearer"],
        ] {
            assert_eq!(shown_key(&headers(lines)), None, "{lines:?}");
        }
    }
}
