//! How an operation ends that does not work: an error of the protocol's catalogue with a fitting HTTP status.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use roomful_protocol::error::{ErrorCode, Retry};
use serde_json::json;

use super::JSON;
use crate::shard::message::Refusal;

/// Why an operation did not work.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    refusal: Refusal,
}

impl Failure {
    pub(super) fn new(status: StatusCode, refusal: Refusal) -> Self {
        Self { status, refusal }
    }

    /// The name in the catalogue.
    pub(super) fn name(&self) -> &'static str {
        self.refusal.code.name()
    }

    pub(super) fn text(&self) -> &str {
        &self.refusal.text
    }

    /// Nobody has answered in time: what was asked may still be done.
    pub(super) fn no_answer() -> Self {
        let text = "no answer came in time, so the outcome is unknown";
        Refusal::new(ErrorCode::OutcomeUnknown, text).into()
    }

    pub(super) fn too_many(max: usize) -> Self {
        let text = format!("{max} requests are worked on already, as many as may be");
        Refusal::later(ErrorCode::Overloaded, text, BUSY_RETRY_MS).into()
    }

    pub(super) fn too_many_copies(max: usize) -> Self {
        let text = format!("{max} copies are made already, as many as may be");
        Refusal::later(ErrorCode::Overloaded, text, BUSY_RETRY_MS).into()
    }

    pub(super) fn no_thread() -> Self {
        let text = "the system has no thread left";
        Refusal::later(ErrorCode::Overloaded, text, BUSY_RETRY_MS).into()
    }

    pub(super) fn slow_body() -> Self {
        let text = "the body did not arrive in time";
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            Refusal::new(ErrorCode::BadFrame, text),
        )
    }

    pub(super) fn broken_body() -> Self {
        Refusal::new(ErrorCode::BadFrame, "the body did not arrive as a whole").into()
    }

    pub(super) fn no_such_operation() -> Self {
        let text = "there is no such operation; docs/admin.md lists them";
        Self::new(
            StatusCode::NOT_FOUND,
            Refusal::new(ErrorCode::UnknownType, text),
        )
    }

    pub(super) fn wrong_method() -> Self {
        let text = "the operation has another method; docs/admin.md lists them";
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            Refusal::new(ErrorCode::UnknownType, text),
        )
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::new(status(refusal.code), refusal)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self { status, refusal } = self;
        let retry = if refusal.after_ms.is_some() {
            Retry::After
        } else {
            refusal.code.retry()
        };
        let body = json!({ "error": {
            "code": refusal.code.code(),
            "name": refusal.code.name(),
            "text": refusal.text,
            "retry": retry,
            "after_ms": refusal.after_ms,
        }});
        let mut response =
            (status, [(header::CONTENT_TYPE, JSON)], format!("{body}\n")).into_response();
        if let Some(after_ms) = refusal.after_ms {
            let seconds = HeaderValue::from(after_ms.div_ceil(1_000));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

/// The status that says the same to whoever looks at that alone.
fn status(code: ErrorCode) -> StatusCode {
    use ErrorCode as Code;

    match code {
        Code::BadFrame
        | Code::UnknownType
        | Code::BadState
        | Code::BadPayload
        | Code::BadValue
        | Code::BadRoomName => StatusCode::BAD_REQUEST,
        Code::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::InvalidToken | Code::TokenExpired | Code::TokenMismatch => StatusCode::UNAUTHORIZED,
        Code::Forbidden | Code::Revoked => StatusCode::FORBIDDEN,
        Code::UnknownNamespace | Code::NotJoined | Code::NoSuchMember => StatusCode::NOT_FOUND,
        Code::AlreadyJoined
        | Code::RoomReopened
        | Code::FellBehind
        | Code::MembershipTaken
        | Code::OpIdExpired
        | Code::OpIdConflict
        | Code::StaleFence
        | Code::LockTaken
        | Code::LockNotHeld => StatusCode::CONFLICT,
        Code::Conflict => StatusCode::PRECONDITION_FAILED,
        Code::FenceRequired => StatusCode::PRECONDITION_REQUIRED,
        Code::QuotaExceeded | Code::StorageFull => StatusCode::INSUFFICIENT_STORAGE,
        Code::Rejected => StatusCode::UNPROCESSABLE_ENTITY,
        Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Code::TooManyRooms | Code::RoomFull | Code::Overloaded | Code::StorageFailed => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Code::OutcomeUnknown => StatusCode::GATEWAY_TIMEOUT,
        Code::Internal | Code::StorageDamaged => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// When to come again at a listener that is busy.
const BUSY_RETRY_MS: u64 = 1_000;
