//! The keys that tokens are verified with, each pinned to one algorithm.
//!
//! Keys come from the configuration, from the files that it names and from its one address, and from nowhere
//! else: what a token's header says about keys (`jku`, `jwk`, `x5u`, `x5c`) is not even read. A key that could
//! never verify a token is refused when it is loaded, and a shared secret that is a public key or too short is
//! refused as well. The keys of each source stay among themselves, so that none can take the place of another
//! source's with the same id.

use std::fmt;
use std::path::Path;

use jsonwebtoken::crypto::{self, aws_lc};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm as JwtAlgorithm, DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use serde_json::Value;

use super::error::AuthError;
use crate::config::{Algorithm, AuthConfig, KeyConfig, KeySource, Place, Problem};

/// The keys of one source, in its order. No two have the same id.
#[derive(Debug, Default)]
pub(super) struct Keys(Vec<Key>);

/// A key and the one algorithm that it verifies.
pub(super) struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Keys {
    /// Reads every configured key. What can't be used is a problem and left out.
    pub(super) fn load(config: &AuthConfig) -> (Self, Vec<Problem>) {
        let mut keys = Self::default();
        let mut problems = Vec::new();
        for written in &config.keys {
            let added = load_key(written).and_then(|key| keys.add(key));
            problems.extend(
                added
                    .err()
                    .map(|text| problem(&written.place, &format!("auth.keys: a key {text}"))),
            );
        }
        if let Some(path) = &config.jwks_file {
            let added = read_file(path)
                .and_then(|text| Self::read_set(&text, Secrets::Taken))
                .and_then(|set| set.0.into_iter().try_for_each(|key| keys.add(key)));
            let label = format!("auth.jwks_file: {}", path.display());
            problems.extend(
                added
                    .err()
                    .map(|text| problem(&Place::Default, &format!("{label} {text}"))),
            );
        }
        (keys, problems)
    }

    /// Reads a JWK Set. Keys of a kind that isn't supported are skipped (RFC 7517 §5); at least one has to be left.
    pub(super) fn read_set(text: &[u8], secrets: Secrets) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(text).map_err(|error| {
            format!(
                "is no JWK Set (RFC 7517): line {}, column {}",
                error.line(),
                error.column()
            )
        })?;
        if set.keys.len() > SET_KEYS_MAX {
            return Err(format!(
                "has {} keys; allowed are {SET_KEYS_MAX}",
                set.keys.len()
            ));
        }
        let mut keys = Self::default();
        let usable = set.keys.into_iter().filter_map(set_key);
        usable
            .filter(|key| secrets == Secrets::Taken || key.algorithm != Algorithm::Hs256)
            .try_for_each(|key| keys.add(key))?;
        if keys.0.is_empty() {
            return Err(format!(
                "has no key that can be used; supported are {}RS256, ES256 and EdDSA",
                if secrets == Secrets::Taken {
                    "HS256, "
                } else {
                    ""
                }
            ));
        }
        Ok(keys)
    }

    /// Whether a key has this id.
    pub(super) fn has(&self, id: &str) -> bool {
        self.0.iter().any(|key| key.id.as_deref() == Some(id))
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    fn add(&mut self, key: Key) -> Result<(), String> {
        if key.id.is_some() && self.0.iter().any(|other| other.id == key.id) {
            return Err("has the id of another key".to_owned());
        }
        self.0.push(key);
        Ok(())
    }
}

/// The keys that a token may be signed with, by its header: those that it names (one a source), or, if it names
/// none, those that have no name (or the only one of its algorithm). Most often one; never more than there are.
///
/// # Errors
/// There is none, or it is for another algorithm than the token's.
pub(super) fn candidates<'a>(
    sources: [&'a Keys; 2],
    id: Option<&str>,
    algorithm: &str,
) -> Result<Vec<&'a Key>, AuthError> {
    let all = || sources.into_iter().flat_map(|keys| &keys.0);
    if let Some(id) = id {
        let mut named = all().filter(|key| key.id.as_deref() == Some(id)).peekable();
        if named.peek().is_none() {
            return Err(AuthError::UnknownKey);
        }
        let fitting: Vec<&Key> = named
            .filter(|key| key.algorithm.name() == algorithm)
            .collect();
        return if fitting.is_empty() {
            Err(AuthError::WrongAlgorithm)
        } else {
            Ok(fitting)
        };
    }
    let fitting: Vec<&Key> = all()
        .filter(|key| key.algorithm.name() == algorithm)
        .collect();
    match fitting.len() {
        0 => Err(AuthError::WrongAlgorithm),
        1 => Ok(fitting),
        _ => {
            let nameless: Vec<&Key> = fitting.into_iter().filter(|key| key.id.is_none()).collect();
            if nameless.is_empty() {
                Err(AuthError::UnknownKey)
            } else {
                Ok(nameless)
            }
        }
    }
}

/// Whether a set's shared secrets are taken or passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrets {
    Taken,
    PassedOver,
}

impl Key {
    /// Whether a signature (in base64url) over a message is this key's.
    pub(super) fn verifies(&self, message: &str, signature: &str) -> bool {
        crypto::verify(
            signature,
            message.as_bytes(),
            &self.key,
            jwt_algorithm(self.algorithm),
        )
        .unwrap_or(false)
    }

    /// Whether verifying costs tens of microseconds or more, instead of one or two.
    pub(super) const fn is_costly(&self) -> bool {
        !matches!(self.algorithm, Algorithm::Hs256)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// The library's name for an algorithm.
pub(super) const fn jwt_algorithm(algorithm: Algorithm) -> JwtAlgorithm {
    match algorithm {
        Algorithm::Hs256 => JwtAlgorithm::HS256,
        Algorithm::Rs256 => JwtAlgorithm::RS256,
        Algorithm::Es256 => JwtAlgorithm::ES256,
        Algorithm::EdDsa => JwtAlgorithm::EdDSA,
    }
}

/// The shared secret of a key, or what is wrong with it; `None` if it has none.
pub(super) fn read_secret(source: &KeySource) -> Option<Result<Vec<u8>, String>> {
    match source {
        KeySource::Secret(secret) => Some(check_secret(secret.expose().as_bytes())),
        KeySource::SecretFile(path) => Some(read_file(path).and_then(|bytes| {
            let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
            check_secret(line.strip_suffix(b"\r").unwrap_or(line))
        })),
        KeySource::PublicKeyFile(_) => None,
    }
}

/// A secret that an attacker can neither guess nor look up.
pub(super) fn check_secret(secret: &[u8]) -> Result<Vec<u8>, String> {
    if secret.len() < SECRET_BYTES_MIN {
        let got = secret.len();
        return Err(format!(
            "has a secret of {got} bytes; HS256 needs at least {SECRET_BYTES_MIN} (RFC 7518 §3.2)"
        ));
    }
    if secret.trim_ascii_start().starts_with(b"-----BEGIN ") {
        return Err(
            "has a PEM text as its secret; a public key is no secret, so say RS256, ES256 or EdDSA"
                .to_owned(),
        );
    }
    Ok(secret.to_vec())
}

fn load_key(written: &KeyConfig) -> Result<Key, String> {
    let key = match &written.source {
        KeySource::PublicKeyFile(path) => read_public_key(path, written.algorithm)?,
        shared => DecodingKey::from_secret(&read_secret(shared).unwrap_or(Ok(Vec::new()))?),
    };
    Ok(Key {
        id: written.id.clone(),
        algorithm: written.algorithm,
        key,
    })
}

fn read_public_key(path: &Path, algorithm: Algorithm) -> Result<DecodingKey, String> {
    let pem = read_file(path)?;
    let shown = path.display();
    if pem
        .windows(PRIVATE_KEY.len())
        .any(|window| window == PRIVATE_KEY)
    {
        return Err(format!(
            "has a private key in {shown}; the server needs the public key alone"
        ));
    }
    let key = match algorithm {
        Algorithm::Rs256 => DecodingKey::from_rsa_pem(&pem),
        Algorithm::Es256 => DecodingKey::from_ec_pem(&pem),
        Algorithm::EdDsa | Algorithm::Hs256 => DecodingKey::from_ed_pem(&pem),
    };
    key.ok().filter(|key| fits(key, algorithm)).ok_or_else(|| {
        let needed = needed(algorithm);
        format!("needs {needed} in PEM (BEGIN PUBLIC KEY); {shown} has none")
    })
}

/// Whether a key has the size that its algorithm needs; a wrong one would refuse every token without saying why.
fn fits(key: &DecodingKey, algorithm: Algorithm) -> bool {
    match (key.kind(), algorithm) {
        (DecodingKeyKind::RsaModulusExponent { n, .. }, Algorithm::Rs256) => fits_modulus(n),
        (DecodingKeyKind::SecretOrDer(der), Algorithm::Rs256) => {
            let components = (aws_lc::DEFAULT_PROVIDER
                .key_utils
                .rsa_pub_components_from_public_key)(der);
            components.is_ok_and(|(modulus, _)| fits_modulus(&modulus))
        }
        (DecodingKeyKind::SecretOrDer(point), Algorithm::Es256) => {
            point.len() == 65 && point.first() == Some(&4)
        }
        (DecodingKeyKind::SecretOrDer(point), Algorithm::EdDsa) => point.len() == 32,
        (DecodingKeyKind::SecretOrDer(secret), Algorithm::Hs256) => check_secret(secret).is_ok(),
        (DecodingKeyKind::RsaModulusExponent { .. }, _) => false,
    }
}

/// 2048 to 8192 bits (RFC 7518 §3.3 wants the least, the library can do no more than the most).
fn fits_modulus(modulus: &[u8]) -> bool {
    let leading_zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    (256..=1_024).contains(&(modulus.len() - leading_zeros))
}

const fn needed(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Hs256 => "a secret of at least 32 bytes",
        Algorithm::Rs256 => "an RSA public key of 2048 to 8192 bits",
        Algorithm::Es256 => "a P-256 public key",
        Algorithm::EdDsa => "an Ed25519 public key",
    }
}

fn set_key(value: Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(value).ok()?;
    let for_signatures = matches!(
        jwk.common.public_key_use,
        None | Some(PublicKeyUse::Signature)
    );
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::OctetKey(_) => Algorithm::Hs256,
        AlgorithmParameters::RSA(_) => Algorithm::Rs256,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            Algorithm::Es256
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDsa
        }
        _ => return None,
    };
    let stated = jwk.common.key_algorithm;
    let as_stated = stated.is_none_or(|stated| stated == key_algorithm(algorithm));
    let key = DecodingKey::from_jwk(&jwk)
        .ok()
        .filter(|key| fits(key, algorithm))?;
    (for_signatures && as_stated).then_some(Key {
        id: jwk.common.key_id,
        algorithm,
        key,
    })
}

const fn key_algorithm(algorithm: Algorithm) -> KeyAlgorithm {
    match algorithm {
        Algorithm::Hs256 => KeyAlgorithm::HS256,
        Algorithm::Rs256 => KeyAlgorithm::RS256,
        Algorithm::Es256 => KeyAlgorithm::ES256,
        Algorithm::EdDsa => KeyAlgorithm::EdDSA,
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("can't be read from {}: {error}", path.display()))
}

fn problem(place: &Place, text: &str) -> Problem {
    Problem {
        place: place.clone(),
        text: text.to_owned(),
    }
}

/// As long as the hash, below which the secret is the weakest part.
const SECRET_BYTES_MIN: usize = 32;

/// Keys in a set; issuers publish two or three.
const SET_KEYS_MAX: usize = 64;

/// What every PEM label of a private key ends with.
const PRIVATE_KEY: &[u8] = b"PRIVATE KEY-----";
