//! Who somebody is and what they may do: tokens (JWT, RFC 7519) in, identities out.
//!
//! A connection gives its token to the [`Authenticator`], on its own shard or, if its check is costly, on the
//! pool; the [`Identity`] that comes back is asked before each request that takes a grant. A
//! token is only believed after its signature has been verified by a configured key under that key's own
//! algorithm. Keys are fetched from the one address of the configuration ([`Remote`]), never from one that a
//! token names. Closing a connection whose identity has expired is left to the connection.

mod claims;
mod error;
mod fetch;
mod grants;
mod keys;
mod mint;
mod remote;

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use roomful_protocol::id::{TenantId, UserId};
use roomful_protocol::limits::TOKEN_BYTES_MAX;
use serde::Deserialize;
use serde::de::IgnoredAny;

pub use error::AuthError;
pub use grants::{Grant, Grants, RoomPattern, Verb, Verbs};
pub use mint::{MintError, Minted, mint};
pub use remote::{Remote, Waiter};

use claims::Rules;
use keys::{Key, Keys};

use crate::clock::Clock;
use crate::config::{AuthConfig, Problem, Problems};
use crate::current::Current;

/// Verifies tokens. Any thread may use it at any time; clones share it.
#[derive(Debug, Clone)]
pub struct Authenticator {
    checker: Current<Checker>,
    clock: Clock,
}

/// What tokens are checked with, from one reading of the configuration to the next.
#[derive(Debug)]
struct Checker {
    /// Those of `auth.keys` and `auth.jwks_file`.
    keys: Keys,
    rules: Rules,
    /// Those of `auth.jwks_url`.
    remote: Option<Arc<Remote>>,
}

/// What the check of a token takes.
#[derive(Debug)]
pub enum Assessed {
    /// Nothing more: it was cheap.
    Done(Result<Identity, AuthError>),
    /// More time than a shard's thread has.
    Costly,
    /// A key that may have come to the configured address by now.
    UnknownKey(Arc<Remote>),
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
    /// The token's `jti`, by which it can be revoked.
    pub token_id: Option<TokenId>,
}

/// A token's `jti` (RFC 7519 §4.1.7), at most 256 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId(Arc<str>);

impl TokenId {
    /// Longest one, in bytes.
    pub const BYTES_MAX: usize = 256;

    /// Takes any text that is neither empty nor too long.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (1..=Self::BYTES_MAX)
            .contains(&text.len())
            .then(|| Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Authenticator {
    /// Reads the keys. Those of an address come when its [`Remote`] runs.
    ///
    /// # Errors
    /// Every key that can't be read or used.
    pub fn new(config: &AuthConfig, clock: &Clock) -> Result<Self, Problems> {
        Ok(Self {
            checker: Current::new(Checker::new(config, clock, None)?),
            clock: clock.clone(),
        })
    }

    /// What is wrong with the keys that a configuration names.
    #[must_use]
    pub fn problems(config: &AuthConfig) -> Vec<Problem> {
        let checker = Checker::new(config, &Clock::system(), None);
        checker.map_or_else(|problems| problems.as_slice().to_vec(), |_| Vec::new())
    }

    /// Takes a newer configuration for every check from now on. Keys that were fetched from the same address stay;
    /// the former [`Remote`] ends, and the new one has to be run.
    ///
    /// # Errors
    /// Every key that can't be read or used; nothing has changed then.
    pub fn reload(&self, config: &AuthConfig) -> Result<(), Problems> {
        let former = self.remote();
        self.checker
            .set(Checker::new(config, &self.clock, former.as_deref())?);
        if let Some(former) = former {
            former.end(self.remote().as_deref());
        }
        Ok(())
    }

    /// The source of the keys that are fetched.
    #[must_use]
    pub fn remote(&self) -> Option<Arc<Remote>> {
        self.checker.get().remote.clone()
    }

    /// Who a token is of.
    ///
    /// # Errors
    /// The first reason not to believe it. Its signature is checked before anything that it claims.
    pub fn verify(&self, token: &str, now_unix_ms: u64) -> Result<Identity, AuthError> {
        self.checker.get().verify(token, now_unix_ms)
    }

    /// Checks a token if that is cheap, judged by the key that would verify it. One that no key would verify is
    /// refused at once.
    #[must_use]
    pub fn assess(&self, token: &str, now_unix_ms: u64) -> Assessed {
        self.checker.get().assess(token, now_unix_ms)
    }
}

impl Checker {
    fn new(config: &AuthConfig, clock: &Clock, former: Option<&Remote>) -> Result<Self, Problems> {
        let (keys, mut problems) = Keys::load(config);
        let remote = config.jwks_url.as_ref().and_then(|url| {
            Remote::new(config, url, clock, former)
                .map_err(|problem| problems.push(problem))
                .ok()
        });
        Problems::check(problems)?;
        Ok(Self {
            keys,
            rules: Rules::new(config),
            remote: remote.map(Arc::new),
        })
    }

    fn verify(&self, token: &str, now_unix_ms: u64) -> Result<Identity, AuthError> {
        let token = Token::split(token)?;
        let header = token.read_header()?;
        let fetched = self.fetched();
        let keys = self.candidates(&header, &fetched)?;
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

    fn assess(&self, token: &str, now_unix_ms: u64) -> Assessed {
        let header = match Token::split(token).and_then(|token| token.read_header()) {
            Ok(header) => header,
            Err(error) => return Assessed::Done(Err(error)),
        };
        let fetched = self.fetched();
        match self.candidates(&header, &fetched) {
            Ok(keys) if keys.iter().any(|key| key.is_costly()) => Assessed::Costly,
            Ok(_) => Assessed::Done(self.verify(token, now_unix_ms)),
            Err(error) => match &self.remote {
                Some(remote) if remote.may_get(&header.alg, header.kid.as_deref(), &fetched) => {
                    Assessed::UnknownKey(Arc::clone(remote))
                }
                _ => Assessed::Done(Err(error)),
            },
        }
    }

    fn fetched(&self) -> Arc<Keys> {
        self.remote
            .as_ref()
            .map_or_else(Arc::default, |remote| remote.keys())
    }

    fn candidates<'a>(
        &'a self,
        header: &Header,
        fetched: &'a Keys,
    ) -> Result<Vec<&'a Key>, AuthError> {
        let kid = header.kid.as_deref();
        keys::candidates([&self.keys, fetched], kid, &header.alg).map_err(|error| {
            match &self.remote {
                Some(remote)
                    if remote.is_failing() && remote.may_get(&header.alg, kid, fetched) =>
                {
                    AuthError::KeysUnavailable
                }
                _ => error,
            }
        })
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
            token_id: None,
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
    typ: Option<String>,
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
        let header: Header = serde_json::from_slice(&header).map_err(|_| AuthError::Malformed)?;
        if header.crit.is_some() {
            return Err(AuthError::CriticalHeader);
        }
        if header.typ.as_deref().is_some_and(|typ| !is_access(typ)) {
            return Err(AuthError::WrongType);
        }
        Ok(header)
    }
}

/// Whether a token says that it is one for access: an issuer signs others with the same key, such as for logging out.
fn is_access(typ: &str) -> bool {
    let media_type = typ.to_ascii_lowercase();
    let typ = media_type.strip_prefix("application/");
    matches!(typ.unwrap_or(&media_type), "jwt" | "at+jwt")
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
