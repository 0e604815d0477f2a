//! JWTs for tests: good ones, and those that must be refused.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

/// The HS256 key that test servers are configured with.
pub const KEY: &str = "a-test-key-of-at-least-thirty-two-bytes!";

/// The audience that test servers expect.
pub const AUDIENCE: &str = "roomful-tests";

/// Seconds since 1970.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "a token's times are of the real clock, which the server under test reads too"
)]
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// Claims that a test server accepts for five minutes: everything is allowed in `chat:*`.
#[must_use]
pub fn claims(user: &str) -> Value {
    json!({
        "sub": user,
        "aud": AUDIENCE,
        "iat": now(),
        "exp": now() + 300,
        "grants": [{ "rooms": "chat:*", "verbs": "*" }],
    })
}

/// A token of these claims under [`KEY`].
#[must_use]
pub fn sign(claims: &Value) -> String {
    sign_with(Algorithm::HS256, KEY, claims)
}

/// A token of these claims, of an HMAC algorithm and key.
#[must_use]
pub fn sign_with(algorithm: Algorithm, key: &str, claims: &Value) -> String {
    encode(
        &Header::new(algorithm),
        claims,
        &EncodingKey::from_secret(key.as_bytes()),
    )
    .unwrap()
}

/// A token of these claims under [`PRIVATE_KEY`].
#[must_use]
pub fn sign_eddsa(claims: &Value) -> String {
    let key = EncodingKey::from_ed_pem(PRIVATE_KEY.as_bytes()).unwrap();
    encode(&Header::new(Algorithm::EdDSA), claims, &key).unwrap()
}

/// An Ed25519 key, for these tests alone.
pub const PRIVATE_KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJyo8LRs72X6NNAFq1HuNCA0hElDh3frDM2OPxUvHrLi
-----END PRIVATE KEY-----
";

/// The public half of [`PRIVATE_KEY`].
pub const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEALXiKDrXuWR+n8+pSgLRVAuqi4nDhuZ7gnHWE0Y6pbnc=
-----END PUBLIC KEY-----
";
