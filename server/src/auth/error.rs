//! Why a token is refused.

use roomful_protocol::error::ErrorCode;

/// Why a token is refused. Nothing of the token is in it, so it is safe to log and to send.
///
/// The connection stays as it was: before `welcome` it is closed with 4401, in a `refresh` it keeps the grants that it had.
/// The client's next step is another token; [`AuthError::code`] says so on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AuthError {
    /// It is longer than a token may be.
    #[error("the token is too long")]
    TooLong,
    /// It is no JWT in compact form (RFC 7519 §3): three parts of base64url, a JSON object in the first two.
    #[error("the token is not a JWT")]
    Malformed,
    /// Its header has `crit`: something must be understood that isn't (RFC 7515 §4.1.11).
    #[error("the token's header demands an extension")]
    CriticalHeader,
    /// Its `kid` names no configured key.
    #[error("the token names a key that is not configured")]
    UnknownKey,
    /// Its `alg` is `none`, unknown, or not the key's.
    #[error("the token's algorithm is not its key's")]
    WrongAlgorithm,
    /// Its signature is none of a configured key's.
    #[error("the token's signature is wrong")]
    BadSignature,
    /// A claim that has to be there isn't.
    #[error("the token has no {0}")]
    MissingClaim(&'static str),
    /// A claim has the wrong type, or a value outside its grammar or bound.
    #[error("the token's {0} is malformed")]
    BadClaim(&'static str),
    /// Its `exp` is past.
    #[error("the token has expired")]
    Expired,
    /// Its `nbf` or `iat` is yet to come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// Its `exp` is further from its `iat` than the configuration allows.
    #[error("the token's lifetime is longer than allowed")]
    LifetimeTooLong,
    /// It is for somebody else, or for somebody while no audience is configured (RFC 7519 §4.1.3).
    #[error("the token is for another audience")]
    WrongAudience,
    /// It is of another issuer.
    #[error("the token is of another issuer")]
    WrongIssuer,
}

impl AuthError {
    /// A fixed label, for a metric.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::CriticalHeader => "critical_header",
            Self::UnknownKey => "unknown_key",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::BadSignature => "bad_signature",
            Self::MissingClaim(_) => "missing_claim",
            Self::BadClaim(_) => "bad_claim",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::LifetimeTooLong => "lifetime_too_long",
            Self::WrongAudience => "wrong_audience",
            Self::WrongIssuer => "wrong_issuer",
        }
    }

    /// Every label, so that a metric can begin each at 0.
    pub const KINDS: [&str; 13] = [
        "too_long",
        "malformed",
        "critical_header",
        "unknown_key",
        "wrong_algorithm",
        "bad_signature",
        "missing_claim",
        "bad_claim",
        "expired",
        "not_yet_valid",
        "lifetime_too_long",
        "wrong_audience",
        "wrong_issuer",
    ];

    /// What the peer is told.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::Expired => ErrorCode::TokenExpired,
            Self::TooLong
            | Self::Malformed
            | Self::CriticalHeader
            | Self::UnknownKey
            | Self::WrongAlgorithm
            | Self::BadSignature
            | Self::MissingClaim(_)
            | Self::BadClaim(_)
            | Self::NotYetValid
            | Self::LifetimeTooLong
            | Self::WrongAudience
            | Self::WrongIssuer => ErrorCode::InvalidToken,
        }
    }
}
