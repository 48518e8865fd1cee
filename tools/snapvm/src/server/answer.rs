//! Answers: a value with its status code, or an error as JSON.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::api::ApiError;

/// What a handler returns: the answer, or why not.
pub type Answer<T> = Result<(StatusCode, Json<T>), Refusal>;

/// A request that cannot be met.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    body: ApiError,
}

impl Refusal {
    /// Refuses with a reason that has no deeper cause.
    pub fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self {
            status,
            body: ApiError {
                error: reason.into(),
                causes: Vec::new(),
            },
        }
    }

    /// Refuses because of an error, with all its causes.
    pub fn because(status: StatusCode, error: &(dyn std::error::Error + 'static)) -> Self {
        Self {
            status,
            body: ApiError::from_error(error),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

/// A good answer.
pub fn ok<T>(value: T) -> Answer<T> {
    Ok((StatusCode::OK, Json(value)))
}

/// An answer that tells what was made.
pub fn created<T>(value: T) -> Answer<T> {
    Ok((StatusCode::CREATED, Json(value)))
}

/// An answer to something that was begun and goes on.
pub fn accepted<T>(value: T) -> Answer<T> {
    Ok((StatusCode::ACCEPTED, Json(value)))
}
