//! Makes tokens, for development: what `roomful token` prints.

use jsonwebtoken::{Algorithm as JwtAlgorithm, EncodingKey, Header};
use roomful_protocol::id::{IdError, TenantId, UserId};
use serde_json::json;

use super::grants::{RoomPattern, Verb};
use super::keys::{check_secret, read_secret};
use crate::config::{Algorithm, AuthConfig, Secret};

/// What a token is to say.
#[derive(Debug, Clone)]
pub struct Minted {
    /// Its user.
    pub user: String,
    /// Its tenant; the default one is left out.
    pub tenant: String,
    /// Its room patterns.
    pub rooms: Vec<String>,
    /// Its verbs, or `*`.
    pub verbs: Vec<String>,
    /// Its lifetime, in seconds.
    pub lifetime_s: u64,
    /// A secret to sign it with instead of the first configured HS256 key.
    pub secret: Option<Secret>,
}

/// Why no token was made. The caller asked for what can't be; nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// There is no key to sign with.
    #[error("no HS256 key is configured: add one to auth.keys, or give one with --secret")]
    NoKey,
    /// The key can't be used.
    #[error("the key {0}")]
    Key(String),
    /// The user's name can't be one.
    #[error("--user {0}")]
    User(#[source] IdError),
    /// The tenant's name can't be one.
    #[error("--tenant {0}")]
    Tenant(#[source] IdError),
    /// A room pattern breaks the grammar.
    #[error(
        "--rooms {0:?} is no room pattern; write room names, with * for any characters and {{user}} for the user"
    )]
    Rooms(String),
    /// A verb that there isn't.
    #[error(
        "--verbs {0:?} is no verb; allowed are join, publish, signal, presence, history, state, lock, timer, or *"
    )]
    Verbs(String),
    /// The server would refuse so long a lifetime.
    #[error("--expires-in is {got} seconds; auth.lifetime_max_s allows {max}")]
    Lifetime {
        /// Seconds asked for.
        got: u64,
        /// Seconds allowed.
        max: u64,
    },
    /// The library failed to sign.
    #[error("the token could not be signed")]
    Sign(#[source] jsonwebtoken::errors::Error),
}

/// Makes a token that this configuration's [`super::Authenticator`] accepts.
///
/// # Errors
/// What the token is to say can't be, or there is no key to sign with.
pub fn mint(config: &AuthConfig, wanted: &Minted, now_unix_ms: u64) -> Result<String, MintError> {
    let user = UserId::parse(&wanted.user).map_err(MintError::User)?;
    let tenant = TenantId::parse(&wanted.tenant).map_err(MintError::Tenant)?;
    check(config, wanted, &user)?;
    let (id, secret) = signing_key(config, wanted)?;
    let now = now_unix_ms / 1_000;
    let mut claims = json!({
        "sub": user.as_str(),
        "iat": now,
        "exp": now + wanted.lifetime_s,
        "grants": [{ "rooms": wanted.rooms, "verbs": wanted.verbs }],
    });
    let tenant = (tenant != TenantId::default_tenant()).then(|| tenant.as_str());
    for (name, value) in [
        ("tenant", tenant),
        ("aud", config.audience.as_deref()),
        ("iss", config.issuer.as_deref()),
    ] {
        if let (Some(value), Some(claims)) = (value, claims.as_object_mut()) {
            claims.insert(name.to_owned(), value.into());
        }
    }
    let header = Header {
        kid: id,
        ..Header::new(JwtAlgorithm::HS256)
    };
    jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(&secret))
        .map_err(MintError::Sign)
}

fn check(config: &AuthConfig, wanted: &Minted, user: &UserId) -> Result<(), MintError> {
    let (got, max) = (wanted.lifetime_s, config.lifetime_max_s);
    if got > max {
        return Err(MintError::Lifetime { got, max });
    }
    if let Some(pattern) = wanted
        .rooms
        .iter()
        .find(|pattern| RoomPattern::parse(pattern, user).is_none())
    {
        return Err(MintError::Rooms(pattern.clone()));
    }
    match wanted
        .verbs
        .iter()
        .find(|verb| *verb != "*" && Verb::parse(verb).is_none())
    {
        Some(verb) => Err(MintError::Verbs(verb.clone())),
        None => Ok(()),
    }
}

fn signing_key(
    config: &AuthConfig,
    wanted: &Minted,
) -> Result<(Option<String>, Vec<u8>), MintError> {
    if let Some(secret) = &wanted.secret {
        let secret = check_secret(secret.expose().as_bytes()).map_err(MintError::Key)?;
        return Ok((None, secret));
    }
    let key = config
        .keys
        .iter()
        .find(|key| key.algorithm == Algorithm::Hs256)
        .ok_or(MintError::NoKey)?;
    let secret = read_secret(&key.source)
        .ok_or(MintError::NoKey)?
        .map_err(MintError::Key)?;
    Ok((key.id.clone(), secret))
}
