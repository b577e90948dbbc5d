//! What handlers take as arguments, beside [`ArmPath`](super::path::ArmPath), [`Query`]
//! and [`Principal`](crate::auth::Principal).

use arm::{ApiVersion, ArmError};
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

use super::error::ApiError;
use super::query::Query;
use crate::AppState;

/// The `api-version` of the request; [`check_scope`](super::front::check_scope) has seen to it that there is one.
#[derive(Debug, Clone)]
pub struct Version(pub ApiVersion);

impl FromRequestParts<AppState> for Version {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, ApiError> {
        let query = parts.extensions.get::<Query>().cloned().unwrap_or_default();
        version(&query).map(Version)
    }
}

/// The `api-version` in a query.
pub(crate) fn version(query: &Query) -> Result<ApiVersion, ApiError> {
    match query.get("api-version").filter(|text| !text.is_empty()) {
        None => Err(ArmError::missing_api_version().into()),
        Some(text) => Ok(ApiVersion::parse(text)?),
    }
}

/// A request's JSON body, which must be there.
#[derive(Debug, Clone)]
pub struct JsonBody(pub Value);

impl FromRequest<AppState> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let bytes = read(request.into_body(), state.config.limits.body_bytes).await?;
        parse(&bytes).map(JsonBody)
    }
}

/// A request's JSON body, if it has one: POST actions may have none.
#[derive(Debug, Clone)]
pub struct OptionalJson(pub Option<Value>);

impl FromRequest<AppState> for OptionalJson {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let bytes = read(request.into_body(), state.config.limits.body_bytes).await?;
        if bytes.is_empty() {
            return Ok(OptionalJson(None));
        }
        parse(&bytes).map(|value| OptionalJson(Some(value)))
    }
}

async fn read(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ArmError::request_too_large(limit).into()),
        Err(error) => {
            Err(ArmError::invalid_request_content(&format!("the content could not be read: {error}")).into())
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    // serde_json refuses nesting beyond 128 levels.
    serde_json::from_slice(bytes)
        .map_err(|error| ArmError::invalid_request_content(&error.to_string()).into())
}
