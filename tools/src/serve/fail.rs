//! Every answer that is not 2xx: a status, a code for programs, a sentence for people.

use super::queue::{Failure, Refused};
use super::swap::NotSwapped;
use super::wire::{ErrorBody, Problem};
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// An answer that is not 2xx.
#[derive(Debug, Clone)]
pub(super) struct Fail {
    /// The status.
    pub(super) status: StatusCode,
    /// What is wrong.
    pub(super) problem: Problem,
    /// Seconds until another try is worth it.
    pub(super) retry_after: Option<u64>,
}

impl Fail {
    /// An answer with `status`.
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let problem = Problem { code: code.into(), message: message.into(), limit: None, request_id: None };
        Self { status, problem, retry_after: None }
    }

    /// Names the limit that was passed.
    #[must_use]
    pub(super) fn limit(mut self, limit: u64) -> Self {
        self.problem.limit = Some(limit);
        self
    }

    /// The JSON is not what the route takes.
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", message)
    }

    /// There is no such thing.
    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// The server cannot answer now.
    pub(super) fn unavailable(message: &str) -> Self {
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message) }
    }
}

impl From<Refused> for Fail {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full(wait) => Self {
                retry_after: Some(wait.as_secs().max(1)),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", "more is asked than can be answered in time")
            },
            Refused::Closed => Self::unavailable("the server is stopping"),
        }
    }
}

impl From<Failure> for Fail {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Late => Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline", "the deadline passed"),
            Failure::Engine(reason) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "engine", reason),
            Failure::Gone => Self::unavailable("the device is lost or the server is stopping"),
        }
    }
}

impl From<NotSwapped> for Fail {
    fn from(not: NotSwapped) -> Self {
        match not {
            NotSwapped::Busy => Self::new(StatusCode::CONFLICT, "busy", "another change is under way"),
            NotSwapped::Refused(error) => Self::new(StatusCode::CONFLICT, "refused", format!("{error:#}")),
        }
    }
}

impl IntoResponse for Fail {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(ErrorBody { error: self.problem })).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
