//! JWTs for tests: good ones, and those that must be refused.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::Jwk;
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
    sign_under(&Header::new(algorithm), key, claims)
}

/// A token of these claims under a header and key.
///
/// # Panics
/// The header is of no HMAC algorithm.
#[must_use]
pub fn sign_under(header: &Header, key: &str, claims: &Value) -> String {
    encode(header, claims, &EncodingKey::from_secret(key.as_bytes())).unwrap()
}

/// A token of these claims under [`PRIVATE_KEY`].
#[must_use]
pub fn sign_eddsa(claims: &Value) -> String {
    sign_eddsa_under(&Header::new(Algorithm::EdDSA), claims)
}

/// A token of these claims under a header and [`PRIVATE_KEY`].
///
/// # Panics
/// The header is of another algorithm.
#[must_use]
pub fn sign_eddsa_under(header: &Header, claims: &Value) -> String {
    let key = EncodingKey::from_ed_pem(PRIVATE_KEY.as_bytes()).unwrap();
    encode(header, claims, &key).unwrap()
}

/// A key that signs tokens which name it, and whose public half stands in a JWK Set.
#[derive(Clone)]
pub struct Signer {
    /// The `kid`.
    pub id: String,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Signer {
    /// An Ed25519 key; each seed gives another one.
    #[must_use]
    pub fn ed25519(id: &str, seed: u8) -> Self {
        // PKCS #8 (RFC 8410 §7) around a private key of 32 equal bytes.
        let mut der = vec![48, 46, 2, 1, 0, 48, 5, 6, 3, 43, 101, 112, 4, 34, 4, 32];
        der.extend([seed; 32]);
        let key = EncodingKey::from_ed_der(&der);
        Self {
            id: id.to_owned(),
            algorithm: Algorithm::EdDSA,
            key,
        }
    }

    /// The RSA key of the server's own tests.
    ///
    /// # Panics
    /// Never: the key is one.
    #[must_use]
    pub fn rsa(id: &str) -> Self {
        let key = EncodingKey::from_rsa_pem(RSA_PRIVATE_KEY.as_bytes()).unwrap();
        Self {
            id: id.to_owned(),
            algorithm: Algorithm::RS256,
            key,
        }
    }

    /// The P-256 key of the server's own tests.
    ///
    /// # Panics
    /// Never: the key is one.
    #[must_use]
    pub fn p256(id: &str) -> Self {
        let key = EncodingKey::from_ec_pem(P256_PRIVATE_KEY.as_bytes()).unwrap();
        Self {
            id: id.to_owned(),
            algorithm: Algorithm::ES256,
            key,
        }
    }

    /// A token of these claims.
    #[must_use]
    pub fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.clone());
        self.sign_under(&header, claims)
    }

    /// A token of these claims under another header.
    ///
    /// # Panics
    /// The header is of another algorithm.
    #[must_use]
    pub fn sign_under(&self, header: &Header, claims: &Value) -> String {
        encode(header, claims, &self.key).unwrap()
    }

    /// The public half, as it stands in a JWK Set.
    ///
    /// # Panics
    /// Never: the key is one.
    #[must_use]
    pub fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.id.clone());
        serde_json::to_value(jwk).unwrap()
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// A JWK Set with the public halves of these.
#[must_use]
pub fn key_set(signers: &[&Signer]) -> String {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    json!({ "keys": keys }).to_string()
}

const RSA_PRIVATE_KEY: &str = include_str!("../../server/src/auth/fixtures/rsa.private.pem");
const P256_PRIVATE_KEY: &str = include_str!("../../server/src/auth/fixtures/p256.private.pem");

/// The public half of [`Signer::rsa`].
pub const RSA_PUBLIC_KEY: &str = include_str!("../../server/src/auth/fixtures/rsa.public.pem");

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
