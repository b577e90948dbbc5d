//! `POST …/oauth2/v2.0/token` (and the v1 and ADFS spellings): client credentials for a token.
//! Errors have the shape and codes of Entra, which clients show verbatim (CLIENTS.md 2).

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use store::StoreError;

use super::clients::Client;
use super::keys::Claims;
use crate::AppState;
use crate::http::path::ArmPath;
use crate::http::query;
use crate::http::routes::Routes;

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(Method::POST, "/{tenant}/oauth2/v2.0/token", token).on(
        Method::POST,
        "/{tenant}/oauth2/token",
        token,
    )
}

/// A refusal in OAuth's shape.
enum Refusal {
    Request(&'static str, String),
    Client,
    Internal(StoreError),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Refusal::Internal(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, error, description) = match self {
            Refusal::Request(error, description) => (StatusCode::BAD_REQUEST, error, description),
            Refusal::Client => (
                StatusCode::UNAUTHORIZED,
                "invalid_client",
                "AADSTS7000215: Invalid client secret provided. Ensure the secret being sent in the request is the \
                 client secret value, not the client secret ID, for an app this service knows."
                    .to_owned(),
            ),
            Refusal::Internal(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "token request failed");
                let text = "AADSTS90033: A transient error has occurred. Please try again.".to_owned();
                (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", text)
            }
        };
        let body = json!({ "error": error, "error_description": description });
        no_store((status, Json(body)).into_response())
    }
}

async fn token(
    State(state): State<AppState>,
    Extension(path): Extension<ArmPath>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let tenant = path.segment(0);
    if tenant != "adfs" && !tenant.eq_ignore_ascii_case(&state.config.tenant_id.to_string()) {
        let shown: String = tenant.chars().take(64).collect();
        return Err(Refusal::Request("invalid_request", format!("AADSTS90002: Tenant '{shown}' not found.")));
    }
    let malformed =
        || Refusal::Request("invalid_request", "AADSTS900144: The request body is no form.".to_owned());
    let text = std::str::from_utf8(&body).map_err(|_| malformed())?;
    let form = query::pairs(text).map_err(|_| malformed())?;
    let field = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    match field("grant_type") {
        Some("client_credentials") => {}
        Some(other) => {
            let shown: String = other.chars().take(64).collect();
            let text = format!("AADSTS70003: The app requested an unsupported grant type '{shown}'.");
            return Err(Refusal::Request("unsupported_grant_type", text));
        }
        None => {
            let text = "AADSTS900144: The request body must contain the following parameter: 'grant_type'."
                .to_owned();
            return Err(Refusal::Request("invalid_request", text));
        }
    }
    let client = client(&state, &headers, field("client_id"), field("client_secret")).await?;
    let audience = audience(&state, field("scope"), field("resource"))?;
    let answer = answer(&state, &client, audience)
        .map_err(|e| Refusal::Request("server_error", format!("AADSTS90033: cannot sign a token: {e}")))?;
    Ok(no_store(Json(answer).into_response()))
}

/// RFC 6749 2.3.1: the secret is in the body or in HTTP Basic.
async fn client(
    state: &AppState,
    headers: &HeaderMap,
    id: Option<&str>,
    secret: Option<&str>,
) -> Result<Client, Refusal> {
    let basic = headers.get(header::AUTHORIZATION).and_then(basic_credentials);
    let (id, secret) = match (id, secret, &basic) {
        (Some(id), Some(secret), _) => (id, secret),
        (_, _, Some((id, secret))) => (id.as_str(), secret.as_str()),
        _ => {
            let text =
                "AADSTS7000218: The request body must contain the following parameter: 'client_assertion' \
                        or 'client_secret'."
                    .to_owned();
            return Err(Refusal::Request("invalid_request", text));
        }
    };
    state.clients.check(id, secret).await?.ok_or(Refusal::Client)
}

fn basic_credentials(value: &HeaderValue) -> Option<(String, String)> {
    let encoded = value.to_str().ok()?.strip_prefix("Basic ")?;
    let text = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    Some((query::decode(id, true)?, query::decode(secret, true)?))
}

/// v2 asks for `{audience}/.default`, v1 for `resource`. Neither: the service itself.
fn audience(state: &AppState, scope: Option<&str>, resource: Option<&str>) -> Result<String, Refusal> {
    let asked = match (scope, resource) {
        (Some(scopes), _) => {
            let scope = scopes.split_whitespace().find(|s| s.ends_with("/.default")).unwrap_or(scopes);
            scope.strip_suffix("/.default").unwrap_or(scope)
        }
        (None, Some(resource)) => resource,
        (None, None) => return Ok(state.endpoint.audience()),
    };
    if state.endpoint.audiences().iter().any(|known| known == asked) {
        return Ok(asked.to_owned());
    }
    let shown: String = asked.chars().take(200).collect();
    let text = format!(
        "AADSTS500011: The resource principal named {shown} was not found in the tenant; ask for {}.default",
        state.endpoint.audience()
    );
    Err(Refusal::Request("invalid_resource", text))
}

fn answer(state: &AppState, client: &Client, audience: String) -> Result<Value, jsonwebtoken::errors::Error> {
    let now = state.now().timestamp();
    let lifetime = i64::try_from(state.config.limits.token_lifetime.as_secs()).unwrap_or(i64::MAX);
    let claims = Claims {
        aud: audience,
        iss: state.endpoint.issuer(),
        iat: now,
        nbf: now,
        exp: now.saturating_add(lifetime),
        tid: state.config.tenant_id,
        oid: client.object_id,
        sub: client.object_id,
        appid: client.app_id,
        ver: "2.0".to_owned(),
        idtyp: "app".to_owned(),
    };
    let token = state.keys.sign(&claims)?;
    // v1 clients (go-autorest) need expires_on, not_before and resource, as strings.
    Ok(json!({
        "token_type": "Bearer",
        "expires_in": lifetime - 1,
        "ext_expires_in": lifetime - 1,
        "expires_on": claims.exp.to_string(),
        "not_before": claims.nbf.to_string(),
        "resource": claims.aud,
        "access_token": token,
    }))
}

fn no_store(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
