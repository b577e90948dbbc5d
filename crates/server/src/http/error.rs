//! Errors as ARM's envelope `{"error":{"code","message","target","details"}}`.

use std::error::Error;

use arm::ArmError;
use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use model::{InvalidTransition, Violation};
use serde_json::Value;
use store::StoreError;

const FAILURE_CAUSE: HeaderName = HeaderName::from_static("x-ms-failure-cause");

/// What a handler refuses with: an [`ArmError`], or what becomes one by `?` ([`StoreError`], [`Violation`],
/// [`InvalidTransition`]).
#[derive(Debug)]
pub struct ApiError(ArmError);

impl ApiError {
    /// An error without target or details.
    #[must_use]
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> ApiError {
        ApiError(ArmError::new(status, code, message))
    }

    /// Our own mistake: logged in full, told in brief.
    #[must_use]
    pub fn internal(cause: impl std::fmt::Display) -> ApiError {
        tracing::error!(%cause, "internal error");
        ApiError::new(500, "InternalServerError", "The service has failed internally; its log has the cause.")
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// ARM's error object `{code, message, …}`, without the envelope: what a failed operation keeps.
    #[must_use]
    pub fn error_object(&self) -> Value {
        self.0.body()
    }
}

impl From<ArmError> for ApiError {
    fn from(error: ArmError) -> Self {
        ApiError(error)
    }
}

impl From<Violation> for ApiError {
    fn from(violation: Violation) -> Self {
        ApiError(violation.into())
    }
}

impl From<InvalidTransition> for ApiError {
    fn from(refusal: InvalidTransition) -> Self {
        ApiError(refusal.into())
    }
}

impl From<arm::resource_id::InvalidResourceId> for ApiError {
    fn from(error: arm::resource_id::InvalidResourceId) -> Self {
        ApiError(error.into())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::NotFound { .. } => ApiError::new(404, "NotFound", message),
            StoreError::AlreadyExists { .. } | StoreError::StaleDocument { .. } => {
                ApiError::new(409, "Conflict", message)
            }
            StoreError::ParentMissing { parent, .. } => ArmError::parent_resource_not_found(&parent).into(),
            StoreError::HasChildren { .. } => ArmError::cannot_delete_nested().into(),
            StoreError::Referenced { .. } => ApiError::new(409, "OperationNotAllowed", message),
            StoreError::BadId { .. } => ApiError::new(400, "InvalidResourceName", message),
            StoreError::Limit { .. } => ApiError::new(409, "QuotaExceeded", message),
            StoreError::Contention { .. } => ApiError::new(503, "ServerBusy", message),
            // The rest is for operators: StaleFence and OperationEnded belong to jobs and never reach a client.
            _ => ApiError::internal(chain(&error)),
        }
    }
}

/// An error with its sources, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (status, Json(self.0.to_json())).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        // ARM marks what its gateway refused before a provider was asked; clients tell the two 404s apart by it.
        if matches!(
            self.0.code.as_str(),
            "ResourceNotFound" | "InvalidResourceType" | "InvalidResourceNamespace"
        ) {
            headers.insert(FAILURE_CAUSE, HeaderValue::from_static("gateway"));
        }
        response
    }
}
