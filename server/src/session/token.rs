//! Resume tokens: a session's statement of who it is, signed by this server.
//!
//! `welcome` hands one out, a later `hello` brings it back. It is a signed statement and not a look-up, so
//! that it outlives the connection, the process and, where the nodes share `auth.resume_key`, the node. It
//! says whose session it is; whether the session is still kept, and whether somebody else holds it now, is
//! left to the session index.
//!
//! The form is base64url (RFC 4648 §5, no padding) of: version `1` · session, 16 bytes · issued,
//! milliseconds, 8 bytes · tenant, length-prefixed by one byte · user, likewise · HMAC-SHA256 (RFC 2104) over
//! all of that, 32 bytes. Integers are big-endian.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use hmac::{Hmac, KeyInit as _, Mac as _};
use roomful_protocol::id::{SessionId, TenantId, UserId};
use sha2::Sha256;

use super::kept_key::{self, KeptKeyError};
use crate::config::{AuthConfig, SecretKey};

/// The key that resume tokens are signed with, ready to use. Any thread may use it at any time.
#[derive(Clone)]
pub struct ResumeKey(Hmac<Sha256>);

/// What a resume token states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumeClaims {
    /// The session.
    pub session: SessionId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its user.
    pub user: UserId,
    /// When the token was made, in milliseconds since 1970.
    pub issued_ms: u64,
}

/// There is no key for resume tokens.
#[derive(Debug, thiserror::Error)]
#[error("there is no key for resume tokens")]
pub struct ResumeKeyError(#[from] KeptKeyError);

impl ResumeKey {
    /// The configured key; else the one in `<data_dir>/resume.key`, which is made at the first start and
    /// readable by its owner alone.
    ///
    /// # Errors
    /// The data directory can't be made, read or written, or the file holds no key.
    pub fn open(config: &AuthConfig, data_dir: &Path) -> Result<Self, ResumeKeyError> {
        if let Some(key) = &config.resume_key {
            return Ok(Self::new(key));
        }
        let key = kept_key::open(data_dir, FILE)?;
        Ok(Self::new(&key))
    }

    /// Takes a key.
    ///
    /// # Panics
    /// Never: HMAC takes a key of any length.
    #[must_use]
    pub fn new(key: &SecretKey) -> Self {
        Self(Hmac::new_from_slice(key.expose()).expect("HMAC takes a key of any length"))
    }

    /// The token of a session, at most 336 characters.
    #[must_use]
    pub fn sign(&self, claims: &ResumeClaims) -> String {
        let mut body = Vec::with_capacity(BODY_BYTES_MAX + MAC_BYTES);
        body.push(VERSION);
        body.extend_from_slice(&claims.session.0.to_be_bytes());
        body.extend_from_slice(&claims.issued_ms.to_be_bytes());
        push_text(&mut body, claims.tenant.as_str());
        push_text(&mut body, claims.user.as_str());
        let mac = self.0.clone().chain_update(&body).finalize().into_bytes();
        body.extend_from_slice(&mac);
        BASE64URL.encode(body)
    }

    /// What a token states; `None` if this key didn't sign it. An expected condition, not an error: the
    /// client then gets a new session.
    #[must_use]
    pub fn verify(&self, token: &str) -> Option<ResumeClaims> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let bytes = BASE64URL.decode(token).ok()?;
        let (body, mac) = bytes.split_last_chunk::<MAC_BYTES>()?;
        // In constant time, so that nobody finds a signature byte by byte.
        self.0.clone().chain_update(body).verify_slice(mac).ok()?;
        read_body(body)
    }
}

impl std::fmt::Debug for ResumeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResumeKey(redacted)")
    }
}

fn push_text(body: &mut Vec<u8>, text: &str) {
    let length = u8::try_from(text.len()).expect("ids are at most 128 bytes");
    body.push(length);
    body.extend_from_slice(text.as_bytes());
}

fn read_body(body: &[u8]) -> Option<ResumeClaims> {
    let (&[VERSION], rest) = body.split_first_chunk()? else {
        return None;
    };
    let (session, rest) = rest.split_first_chunk()?;
    let (issued, rest) = rest.split_first_chunk()?;
    let (tenant, rest) = take_text(rest)?;
    let (user, rest) = take_text(rest)?;
    let claims = ResumeClaims {
        session: SessionId(u128::from_be_bytes(*session)),
        tenant: TenantId::parse(tenant).ok()?,
        user: UserId::parse(user).ok()?,
        issued_ms: u64::from_be_bytes(*issued),
    };
    rest.is_empty().then_some(claims)
}

fn take_text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (text, rest) = rest.split_at_checked(usize::from(*length))?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

/// Changes with the form, so that an old process refuses a new token instead of misreading it.
const VERSION: u8 = 1;

const MAC_BYTES: usize = 32;
const BODY_BYTES_MAX: usize = 1 + 16 + 8 + 1 + TenantId::BYTES_MAX + 1 + UserId::BYTES_MAX;
const TOKEN_BYTES_MAX: usize = (BODY_BYTES_MAX + MAC_BYTES).div_ceil(3) * 4;

const FILE: &str = "resume.key";

#[cfg(test)]
mod tests {
    use super::super::data_file::tests::TestDirectory;
    use super::*;

    fn claims(tenant: &str, user: &str) -> ResumeClaims {
        ResumeClaims {
            session: SessionId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
            tenant: TenantId::parse(tenant).unwrap(),
            user: UserId::parse(user).unwrap(),
            issued_ms: 1_800_000_000_000,
        }
    }

    fn key(byte: u8) -> ResumeKey {
        ResumeKey::new(&SecretKey::new([byte; 32]))
    }

    /// What was signed comes back, the longest ids included, in no more than the promised length.
    #[test]
    fn a_token_gives_its_claims_back() {
        for claims in [
            claims("default", "anon-1f3a"),
            claims("t", "Zoë"),
            claims(&"t".repeat(64), &"u".repeat(128)),
        ] {
            let token = key(1).sign(&claims);
            assert!(token.len() <= 336, "{}", token.len());
            assert_eq!(key(1).verify(&token), Some(claims));
        }
    }

    /// A vector made by another implementation (Python's hmac), so that a change of the form is seen: it
    /// would end every session over an update.
    #[test]
    fn the_form_is_stable() {
        let token = key(7).sign(&claims("default", "ann"));
        assert_eq!(token, VECTOR);
        assert_eq!(key(7).verify(VECTOR), Some(claims("default", "ann")));
    }

    /// Every other character, every cut, another key and other texts: none passes.
    #[test]
    fn nothing_else_is_a_token() {
        let token = key(1).sign(&claims("default", "ann"));
        assert_eq!(key(2).verify(&token), None);
        for index in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
            assert_eq!(
                key(1).verify(std::str::from_utf8(&bytes).unwrap()),
                None,
                "changed at {index}"
            );
            assert_eq!(key(1).verify(&token[..index]), None, "cut at {index}");
        }
        for text in [
            "",
            "a",
            "====",
            &format!("{token}="),
            &format!("{token}A"),
            &"A".repeat(10_000),
            "\u{0}",
        ] {
            assert_eq!(key(1).verify(text), None, "{text:?}");
        }
    }

    /// A body of another version, or with more behind it, isn't read, however well it is signed.
    #[test]
    fn only_this_version_is_read() {
        let sign = |body: &[u8]| {
            let mac = key(1).0.chain_update(body).finalize().into_bytes();
            BASE64URL.encode([body, &mac].concat())
        };
        let bytes = BASE64URL
            .decode(key(1).sign(&claims("default", "ann")))
            .unwrap();
        let body = &bytes[..bytes.len() - MAC_BYTES];
        assert!(key(1).verify(&sign(body)).is_some());
        let mut newer = body.to_vec();
        newer[0] = 2;
        assert_eq!(key(1).verify(&sign(&newer)), None);
        assert_eq!(key(1).verify(&sign(&[body, b"x"].concat())), None);
        assert_eq!(key(1).verify(&sign(&body[..body.len() - 1])), None);
    }

    /// The first start makes a key that its owner alone can read; later ones use it, so tokens outlive a
    /// restart. A configured key needs no directory.
    #[test]
    fn the_key_outlives_the_process() {
        let directory = TestDirectory::new();
        let data_dir = directory.path().join("new/data");
        let config = AuthConfig::default();
        let token = ResumeKey::open(&config, &data_dir)
            .unwrap()
            .sign(&claims("default", "ann"));
        assert!(
            ResumeKey::open(&config, &data_dir)
                .unwrap()
                .verify(&token)
                .is_some()
        );
        let names: Vec<_> = std::fs::read_dir(&data_dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, [FILE], "nothing is left beside it");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(data_dir.join(FILE))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let configured = AuthConfig {
            resume_key: Some(SecretKey::new([1; 32])),
            ..config
        };
        let missing = directory.path().join("none");
        assert!(
            ResumeKey::open(&configured, &missing)
                .unwrap()
                .verify(&key(1).sign(&claims("t", "u")))
                .is_some()
        );
        assert!(!missing.exists());
    }

    /// A damaged key is named and left alone: a new one would end every session without a word.
    #[test]
    fn a_damaged_key_is_an_error_that_names_it() {
        let directory = TestDirectory::new();
        std::fs::write(directory.path().join(FILE), "short\n").unwrap();
        let error = ResumeKey::open(&AuthConfig::default(), directory.path()).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(FILE) && !cause.contains("short"), "{cause}");
    }

    /// The key is not in its `Debug`.
    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", key(1)), "ResumeKey(redacted)");
    }

    const VECTOR: &str = "AQARIjNEVWZ3iJmqu8zd7v8AAAGjGFxQAAdkZWZhdWx0A2Fubi90KyuR_Dyr_ihBB50sbyc2lkwvNTjPrqGzIE0Oj1tt";
}
