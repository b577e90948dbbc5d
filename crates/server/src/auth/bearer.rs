//! The layer that every ARM route lies behind, including those that do not exist: no valid token, no answer.

use arm::ArmError;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use crate::AppState;
use crate::http::error::ApiError;

/// Who is asking, as the token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Tenant.
    pub tenant_id: Uuid,
    /// The principal's object id: what role assignments name.
    pub object_id: Uuid,
    /// The application that asked for the token.
    pub app_id: Uuid,
}

impl FromRequestParts<AppState> for Principal {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, ApiError> {
        // Absent only on a route outside this layer, which must not ask for it.
        parts
            .extensions
            .get::<Principal>()
            .cloned()
            .ok_or_else(|| ApiError::internal("route without authentication"))
    }
}

pub(crate) async fn require_token(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    let error = match principal(&state, request.headers()) {
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            return next.run(request).await;
        }
        Err(error) => error,
    };
    let message = error.message.clone();
    let mut response = ApiError::from(error).into_response();
    let challenge = format!(
        "Bearer authorization_uri=\"{}/{}\", error=\"invalid_token\", error_description=\"{message}\"",
        state.endpoint.url(),
        state.config.tenant_id
    );
    if let Ok(value) = HeaderValue::try_from(challenge) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
    response
}

/// The messages are Azure's; none quotes what the client sent.
fn principal(state: &AppState, headers: &HeaderMap) -> Result<Principal, ArmError> {
    use jsonwebtoken::errors::ErrorKind;
    let value = headers.get(header::AUTHORIZATION).ok_or_else(ArmError::authentication_failed)?;
    let token = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| {
            ArmError::invalid_authentication_token("The 'Authorization' header is not 'Bearer' and a token.")
        })?;
    let claims =
        state.keys.verify(token, &state.endpoint.issuer(), state.endpoint.audiences()).map_err(|error| {
            match error.kind() {
                ErrorKind::ExpiredSignature => ArmError::expired_authentication_token(),
                ErrorKind::InvalidAudience => {
                    ArmError::invalid_authentication_token("It is for another audience or resource.")
                }
                ErrorKind::InvalidIssuer => {
                    ArmError::invalid_authentication_token("It is from another issuer.")
                }
                ErrorKind::ImmatureSignature => {
                    ArmError::invalid_authentication_token("It is not valid yet.")
                }
                _ => ArmError::invalid_authentication_token("Its form or its signature is wrong."),
            }
        })?;
    if claims.tid != state.config.tenant_id {
        return Err(ArmError::invalid_authentication_token("It is from another tenant."));
    }
    Ok(Principal { tenant_id: claims.tid, object_id: claims.oid, app_id: claims.appid })
}
