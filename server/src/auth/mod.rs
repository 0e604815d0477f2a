//! Who somebody is and what they may do: tokens (JWT, RFC 7519) in, identities out.
//!
//! A connection gives its token to the [`Authenticator`], on its own shard or, if
//! [`Authenticator::is_costly`], on the pool; the [`Identity`] that comes back is asked before every join,
//! publish, signal, presence and history. A token is only believed after its signature has been verified by a
//! configured key under that key's own algorithm; nothing is ever fetched. Closing a connection whose
//! identity has expired is left to the connection.

mod claims;
mod error;
mod grants;
mod keys;
mod mint;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use roomful_protocol::id::{TenantId, UserId};
use roomful_protocol::limits::TOKEN_BYTES_MAX;
use serde::Deserialize;
use serde::de::IgnoredAny;

pub use error::AuthError;
pub use grants::{Grant, Grants, RoomPattern, Verb, Verbs};
pub use mint::{MintError, Minted, mint};

use claims::Rules;
use keys::{Key, Keys};

use crate::config::{AuthConfig, Problems};

/// Verifies tokens. Immutable, so any thread may use it at any time.
#[derive(Debug)]
pub struct Authenticator {
    keys: Keys,
    rules: Rules,
}

/// Who somebody is, and what they may do until when. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The tenant whose rooms they see.
    pub tenant: TenantId,
    /// Who they are in it.
    pub user: UserId,
    /// What they may do.
    pub grants: Grants,
    /// Milliseconds since 1970 at which all this ends, the configured leeway included; `None` for an anonymous user.
    pub expires_ms: Option<u64>,
}

impl Authenticator {
    /// Reads the keys.
    ///
    /// # Errors
    /// Every key that can't be read or used.
    pub fn new(config: &AuthConfig) -> Result<Self, Problems> {
        let (keys, problems) = Keys::load(config);
        Problems::check(problems)?;
        Ok(Self {
            keys,
            rules: Rules::new(config),
        })
    }

    /// Who a token is of.
    ///
    /// # Errors
    /// The first reason not to believe it. Its signature is checked before anything that it claims.
    pub fn verify(&self, token: &str, now_unix_ms: u64) -> Result<Identity, AuthError> {
        let token = Token::split(token)?;
        let keys = self.candidates(&token)?;
        if !keys
            .iter()
            .any(|key| key.verifies(token.signed, token.signature))
        {
            return Err(AuthError::BadSignature);
        }
        let claims = BASE64URL
            .decode(token.claims)
            .map_err(|_| AuthError::Malformed)?;
        self.rules.identity(&claims, now_unix_ms)
    }

    /// Whether verifying this token is too costly for a shard's thread: judged by the key that would verify
    /// it. A token that no key would verify is refused at once, and so isn't.
    #[must_use]
    pub fn is_costly(&self, token: &str) -> bool {
        let keys = Token::split(token).and_then(|token| self.candidates(&token));
        keys.is_ok_and(|keys| keys.iter().any(|key| key.is_costly()))
    }

    fn candidates(&self, token: &Token<'_>) -> Result<Vec<&Key>, AuthError> {
        let header = token.read_header()?;
        if header.crit.is_some() {
            return Err(AuthError::CriticalHeader);
        }
        self.keys.candidates(header.kid.as_deref(), &header.alg)
    }
}

impl Identity {
    /// A user of an anonymous server, who may do everything in the default tenant.
    #[must_use]
    pub fn anonymous(user: UserId) -> Self {
        Self {
            tenant: TenantId::default_tenant(),
            user,
            grants: Grants::everything(),
            expires_ms: None,
        }
    }
}

/// A token's parts, none of them decoded.
struct Token<'a> {
    header: &'a str,
    claims: &'a str,
    /// Header and claims with the dot between them.
    signed: &'a str,
    signature: &'a str,
}

/// What is read of a token's header (RFC 7515 §4.1). It only picks a key, whose own algorithm then counts.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<IgnoredAny>,
}

impl<'a> Token<'a> {
    fn split(token: &'a str) -> Result<Self, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::TooLong);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(AuthError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(AuthError::Malformed)?;
        Ok(Self {
            header,
            claims,
            signed,
            signature,
        })
    }

    fn read_header(&self) -> Result<Header, AuthError> {
        let header = BASE64URL
            .decode(self.header)
            .map_err(|_| AuthError::Malformed)?;
        serde_json::from_slice(&header).map_err(|_| AuthError::Malformed)
    }
}

impl fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "token({} bytes)",
            self.signed.len() + 1 + self.signature.len()
        )
    }
}

#[cfg(test)]
mod tests;
