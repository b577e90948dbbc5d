//! What the blob service refuses with: Azure Storage's XML envelope, its codes, and `x-ms-error-code`.

use std::io;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rustix::io::Errno;
use store::StoreError;

use super::stored::Unreadable;
use super::xml::Xml;
use crate::http::error::chain;

/// A refusal. Codes are those of Azure's "Blob service error codes"; the message says cause and remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobError {
    /// HTTP status.
    pub status: StatusCode,
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// `AuthenticationErrorDetail`: what about the credentials was wrong.
    pub detail: Option<String>,
    /// `Content-Range: bytes */{size}`, which 416 carries.
    pub size: Option<u64>,
}

impl BlobError {
    /// Any refusal.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), detail: None, size: None }
    }

    /// 400: a header does not fit. `name` and `reason` say which and why.
    #[must_use]
    pub fn header(name: &str, reason: &str) -> Self {
        let message =
            format!("The value for one of the HTTP headers is not in the correct format: '{name}' {reason}.");
        Self::new(StatusCode::BAD_REQUEST, "InvalidHeaderValue", message)
    }

    /// 400: a header that this operation needs is absent.
    #[must_use]
    pub fn missing_header(name: &str) -> Self {
        let message = format!("An HTTP header that's mandatory for this request is not specified: '{name}'.");
        Self::new(StatusCode::BAD_REQUEST, "MissingRequiredHeader", message)
    }

    /// 400: a query parameter does not fit.
    #[must_use]
    pub fn query(name: &str, reason: &str) -> Self {
        let message = format!(
            "Value for one of the query parameters specified in the request URI is invalid: '{name}' {reason}."
        );
        Self::new(StatusCode::BAD_REQUEST, "InvalidQueryParameterValue", message)
    }

    /// 400: a body that is not what the operation wants.
    #[must_use]
    pub fn xml(reason: &str) -> Self {
        let message = format!("XML specified is not syntactically valid or not what was expected: {reason}.");
        Self::new(StatusCode::BAD_REQUEST, "InvalidXmlDocument", message)
    }

    /// 501: Azure has it and this service does not.
    #[must_use]
    pub fn unsupported(what: &str) -> Self {
        let message = format!("This service does not have {what}.");
        Self::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", message)
    }

    /// 403: who asks is not proven. `detail` is the cause.
    #[must_use]
    pub fn authentication(detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let message = format!(
            "Server failed to authenticate the request. Make sure the value of Authorization header is formed \
             correctly including the signature. {detail}"
        );
        Self { detail: Some(detail), ..Self::new(StatusCode::FORBIDDEN, "AuthenticationFailed", message) }
    }

    /// 403: who asks is known and may not do this.
    #[must_use]
    pub fn permission(cause: &str) -> Self {
        let message = format!(
            "This request is not authorized to perform this operation using this permission. {cause}"
        );
        Self::new(StatusCode::FORBIDDEN, "AuthorizationPermissionMismatch", message)
    }

    /// 404.
    #[must_use]
    pub fn container_not_found() -> Self {
        let message = "The specified container does not exist.";
        Self::new(StatusCode::NOT_FOUND, "ContainerNotFound", message)
    }

    /// 404.
    #[must_use]
    pub fn blob_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "BlobNotFound", "The specified blob does not exist.")
    }

    /// 409: the operation is for blobs of another type.
    #[must_use]
    pub fn blob_type() -> Self {
        let message = "The blob type is invalid for this operation.";
        Self::new(StatusCode::CONFLICT, "InvalidBlobType", message)
    }

    /// 416.
    #[must_use]
    pub fn range(size: u64) -> Self {
        let message = "The range specified is invalid for the current size of the resource.";
        Self { size: Some(size), ..Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange", message) }
    }

    /// 416: pages are 512 bytes.
    #[must_use]
    pub fn page_range(reason: &str) -> Self {
        let message = format!("The page range specified is invalid: {reason}.");
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidPageRange", message)
    }

    /// 413.
    #[must_use]
    pub fn too_large(bytes_max: u64) -> Self {
        let message = format!(
            "The request body is too large and exceeds the maximum permissible limit of {bytes_max} bytes."
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestBodyTooLarge", message)
    }

    /// 412.
    #[must_use]
    pub fn condition() -> Self {
        let message = "The condition specified using HTTP conditional header(s) is not met.";
        Self::new(StatusCode::PRECONDITION_FAILED, "ConditionNotMet", message)
    }

    /// 400: the bytes are not those that `Content-MD5` promised.
    #[must_use]
    pub fn md5_mismatch() -> Self {
        let message = "The MD5 value specified in the request did not match with the MD5 value calculated by the server.";
        Self::new(StatusCode::BAD_REQUEST, "Md5Mismatch", message)
    }

    /// 500: something took too long. `message` says what, and the remedy.
    #[must_use]
    pub fn timed_out(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "OperationTimedOut", message)
    }

    /// 503: it may work in a moment.
    #[must_use]
    pub fn busy() -> Self {
        let message = "The server is busy; retry the request.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServerBusy", message)
    }

    /// 500: our own failure; logged in full, told in brief.
    #[must_use]
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "the blob service failed");
        let message = "The server encountered an internal error. Its log has the cause; retry the request.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    /// The file system's error while `action`: a full disk and damage are told, anything else is ours.
    #[must_use]
    pub fn io(action: &str, error: &io::Error) -> Self {
        let full = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG].map(Errno::raw_os_error);
        if error.raw_os_error().is_some_and(|code| full.contains(&code)) {
            tracing::error!(%error, action, "the region's store is full");
            let message = "The region's store is full, and nothing of this request was kept. Free space (delete blobs or \
                           image versions) and retry.";
            return Self::new(StatusCode::INSUFFICIENT_STORAGE, "InsufficientStorage", message);
        }
        if let Some(unreadable) = error.get_ref().and_then(|inner| inner.downcast_ref::<Unreadable>()) {
            let cause = chain(unreadable);
            tracing::error!(%cause, "a blob is damaged");
            let message = format!(
                "The blob's bytes are damaged on the server, and nothing of them was sent: {cause}. Upload the blob again, or \
                 restore the object's file in 'blobs/' of the region's folder from a backup."
            );
            return Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message);
        }
        Self::internal(format!("cannot {action}: {error}"))
    }
}

impl From<StoreError> for BlobError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Contention { .. } => Self::busy(),
            other => Self::internal(chain(&other)),
        }
    }
}

impl IntoResponse for BlobError {
    fn into_response(self) -> Response {
        let mut xml = Xml::document("Error");
        xml.text("Code", self.code).text("Message", &self.message);
        if let Some(detail) = &self.detail {
            xml.text("AuthenticationErrorDetail", detail);
        }
        let mut response = xml.into_response();
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert("x-ms-error-code", HeaderValue::from_static(self.code));
        if let Some(size) = self.size
            && let Ok(value) = HeaderValue::try_from(format!("bytes */{size}"))
        {
            headers.insert(header::CONTENT_RANGE, value);
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
