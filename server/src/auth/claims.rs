//! What a token says, once its signature is known to be right (RFC 7519 §4).
//!
//! A claim is taken in the type that the RFC gives it and in no other: a number in quotes is refused, and so
//! is a claim that is there twice, since two readers could take different ones.

use serde::Deserialize;
use serde_json::Value;

use roomful_protocol::id::{TenantId, UserId};

use super::error::AuthError;
use super::grants::{Grant, Grants, RoomPattern, Verb, Verbs};
use super::{Identity, TokenId};
use crate::config::AuthConfig;

/// What is asked of every token's claims.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    audience: Option<String>,
    issuer: Option<String>,
    leeway_ms: u64,
    lifetime_max_ms: u64,
}

/// The claims as they were written. Others are left alone.
#[derive(Deserialize)]
struct Claims {
    sub: Option<Value>,
    exp: Option<Value>,
    nbf: Option<Value>,
    iat: Option<Value>,
    aud: Option<Value>,
    iss: Option<Value>,
    jti: Option<Value>,
    tenant: Option<Value>,
    grants: Option<Value>,
}

impl Rules {
    pub(super) fn new(config: &AuthConfig) -> Self {
        Self {
            audience: config.audience.clone(),
            issuer: config.issuer.clone(),
            leeway_ms: config.leeway_s.saturating_mul(1_000),
            lifetime_max_ms: config.lifetime_max_s.saturating_mul(1_000),
        }
    }

    /// Reads and checks the claims of a verified token.
    pub(super) fn identity(&self, claims: &[u8], now_unix_ms: u64) -> Result<Identity, AuthError> {
        let claims: Claims = serde_json::from_slice(claims).map_err(|_| AuthError::Malformed)?;
        let expires_ms = self.check_times(&claims, now_unix_ms)?;
        self.check_audience(claims.aud.as_ref())?;
        self.check_issuer(claims.iss.as_ref())?;
        let user =
            UserId::parse(text("sub", claims.sub.as_ref())?.ok_or(AuthError::MissingClaim("sub"))?)
                .map_err(|_| AuthError::BadClaim("sub"))?;
        let tenant = match text("tenant", claims.tenant.as_ref())? {
            Some(tenant) => TenantId::parse(tenant).map_err(|_| AuthError::BadClaim("tenant"))?,
            None => TenantId::default_tenant(),
        };
        let grants =
            read_grants(claims.grants.as_ref(), &user).ok_or(AuthError::BadClaim("grants"))?;
        let token_id = match text("jti", claims.jti.as_ref())? {
            Some(id) => Some(TokenId::parse(id).ok_or(AuthError::BadClaim("jti"))?),
            None => None,
        };
        Ok(Identity {
            tenant,
            user,
            grants,
            expires_ms: Some(expires_ms),
            token_id,
        })
    }

    /// When the token ends, the leeway included, so that a connection is not closed before the token would be refused.
    fn check_times(&self, claims: &Claims, now: u64) -> Result<u64, AuthError> {
        let expires = time("exp", claims.exp.as_ref())?.ok_or(AuthError::MissingClaim("exp"))?;
        let ends = expires.saturating_add(self.leeway_ms);
        if now >= ends {
            return Err(AuthError::Expired);
        }
        let issued = time("iat", claims.iat.as_ref())?;
        let begins = time("nbf", claims.nbf.as_ref())?.max(issued).unwrap_or(0);
        if begins > now.saturating_add(self.leeway_ms) {
            return Err(AuthError::NotYetValid);
        }
        let lifetime = expires.saturating_sub(issued.unwrap_or(now));
        if lifetime > self.lifetime_max_ms.saturating_add(self.leeway_ms) {
            return Err(AuthError::LifetimeTooLong);
        }
        Ok(ends)
    }

    fn check_audience(&self, claim: Option<&Value>) -> Result<(), AuthError> {
        let audiences = match claim {
            None | Some(Value::Null) => Vec::new(),
            Some(one_or_many) => texts(one_or_many).ok_or(AuthError::BadClaim("aud"))?,
        };
        match &self.audience {
            Some(_) if audiences.is_empty() => Err(AuthError::MissingClaim("aud")),
            Some(audience) if audiences.contains(&audience.as_str()) => Ok(()),
            None if audiences.is_empty() => Ok(()),
            Some(_) | None => Err(AuthError::WrongAudience),
        }
    }

    fn check_issuer(&self, claim: Option<&Value>) -> Result<(), AuthError> {
        let Some(issuer) = &self.issuer else {
            return Ok(());
        };
        match text("iss", claim)? {
            None => Err(AuthError::MissingClaim("iss")),
            Some(claim) if claim == issuer => Ok(()),
            Some(_) => Err(AuthError::WrongIssuer),
        }
    }
}

/// `grants: [{"rooms": pattern or [pattern…], "verbs": "*" or verb or [verb…]}]`. Without the claim nothing is allowed.
///
/// A verb that isn't known refuses the token: skipping it would leave somebody to wonder why a grant does nothing.
fn read_grants(claim: Option<&Value>, user: &UserId) -> Option<Grants> {
    let grants = match claim {
        None => return Some(Grants::new(Vec::new())),
        Some(claim) => claim
            .as_array()
            .filter(|grants| grants.len() <= Grants::MAX)?,
    };
    grants
        .iter()
        .map(|grant| read_grant(grant, user))
        .collect::<Option<_>>()
        .map(Grants::new)
}

fn read_grant(grant: &Value, user: &UserId) -> Option<Grant> {
    let rooms = texts(grant.get("rooms")?).filter(|rooms| rooms.len() <= Grants::PATTERNS_MAX)?;
    let rooms = rooms
        .iter()
        .map(|pattern| RoomPattern::parse(pattern, user))
        .collect::<Option<_>>()?;
    let verbs = texts(grant.get("verbs")?)?;
    let verbs = verbs
        .iter()
        .try_fold(Verbs::default(), |verbs, word| match *word {
            "*" => Some(Verbs::ALL),
            word => Some(verbs.with(Verb::parse(word)?)),
        })?;
    Some(Grant { rooms, verbs })
}

fn text<'a>(name: &'static str, claim: Option<&'a Value>) -> Result<Option<&'a str>, AuthError> {
    match claim {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(AuthError::BadClaim(name)),
    }
}

/// One text or a list of texts.
fn texts(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(text) => Some(vec![text]),
        Value::Array(values) => values.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

/// A NumericDate (RFC 7519 §2) in milliseconds. It may have a fraction.
fn time(name: &'static str, claim: Option<&Value>) -> Result<Option<u64>, AuthError> {
    let Some(claim) = claim.filter(|claim| !claim.is_null()) else {
        return Ok(None);
    };
    if let Some(seconds) = claim.as_u64().filter(|seconds| *seconds <= SECONDS_MAX) {
        return Ok(Some(seconds * 1_000));
    }
    match claim.as_f64() {
        Some(seconds) if claim.is_f64() && (0.0..=SECONDS_MAX_FRACTION).contains(&seconds) =>
        {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 0 and 2^32 thousand; the fraction of a millisecond is not needed"
            )]
            Ok(Some((seconds * 1_000.0) as u64))
        }
        _ => Err(AuthError::BadClaim(name)),
    }
}

/// The year 2106. A later time is a mistake, most often milliseconds.
const SECONDS_MAX: u64 = u32::MAX as u64;
const SECONDS_MAX_FRACTION: f64 = u32::MAX as f64;
