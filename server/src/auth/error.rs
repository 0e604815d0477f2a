//! Why a token is refused.

use roomful_protocol::error::ErrorCode;

/// Why a token is refused. Nothing of the token is in it, so it is safe to log and to send.
///
/// The connection stays as it was: before `welcome` it is closed with 4401, in a `refresh` it keeps the
/// grants that it had. The client's next step is another token; [`AuthError::code`] says so on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AuthError {
    /// There is none.
    #[error("this server needs a token; bring one in hello")]
    Missing,
    /// Too many tokens wait for their check already.
    #[error("too many tokens are being checked; try again")]
    Busy,
    /// Its key is not known, and the address that would know it gives no answer, so nobody can tell whether it is good.
    #[error("the keys can't be fetched now; try again")]
    KeysUnavailable,
    /// The code that checks it panicked, so nobody can tell whether it is good.
    #[error("the token could not be checked; try again")]
    Internal,
    /// It is longer than a token may be.
    #[error("the token is too long")]
    TooLong,
    /// It is no JWT in compact form (RFC 7519 §3): three parts of base64url, a JSON object in the first two.
    #[error("the token is not a JWT")]
    Malformed,
    /// Its header has `crit`: something must be understood that isn't (RFC 7515 §4.1.11).
    #[error("the token's header demands an extension")]
    CriticalHeader,
    /// Its header's `typ` is that of a token for another use (RFC 8725 §3.11).
    #[error("the token is of another type")]
    WrongType,
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
    /// What the peer is told.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::Expired => ErrorCode::TokenExpired,
            Self::Busy | Self::KeysUnavailable => ErrorCode::Overloaded,
            Self::Internal => ErrorCode::Internal,
            Self::Missing
            | Self::TooLong
            | Self::Malformed
            | Self::CriticalHeader
            | Self::WrongType
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
