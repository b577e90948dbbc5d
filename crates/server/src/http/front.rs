//! The outermost layer, and what lies between it and the handlers of ARM routes.

use std::panic::AssertUnwindSafe;

use arm::{ArmError, ResourceId};
use axum::extract::{Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use futures::FutureExt;
use uuid::Uuid;

use super::error::ApiError;
use super::extract::{Version, version};
use super::path::ArmPath;
use super::query::Query;
use super::routes::{Route, Routes};
use crate::blob::disk_access;
use crate::{AppState, api, auth, blob};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");
const CORRELATION_ID: HeaderName = HeaderName::from_static("x-ms-correlation-request-id");
const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");
const RETURN_CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-return-client-request-id");
/// Longest `x-ms-client-request-id` that is given back.
const MAX_CLIENT_REQUEST_ID_BYTES: usize = 128;

/// Every route of the service, and whether it needs a token.
pub(crate) fn routes() -> (Routes, Routes) {
    (auth::public_routes(Routes::default()), api::routes(Routes::default()))
}

/// The whole service.
pub(crate) fn app(state: &AppState) -> Router {
    let (public, arm) = routes();
    let (public, _) = public.into_parts();
    let (arm, _) = arm.into_parts();
    // Layers also cover the fallbacks, so that nobody without a token learns what exists.
    let arm = arm
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(state.clone(), check_scope))
        .layer(from_fn_with_state(state.clone(), auth::require_token));
    let inner = public.method_not_allowed_fallback(method_not_allowed).merge(arm).with_state(state.clone());
    // A layer on the inner router would run after routing; the path must be made canonical before.
    Router::new().fallback_service(inner).layer(from_fn_with_state(state.clone(), front))
}

/// The list for the test that every route refuses requests without a token: (public, behind a token).
pub(crate) fn route_lists() -> (Vec<Route>, Vec<Route>) {
    let (public, arm) = routes();
    (public.into_parts().1, arm.into_parts().1)
}

/// Blobs alone, for the plain listener: tokens and secrets of ARM are not for the clear.
pub(crate) fn blob_app(state: &AppState) -> Router {
    let serve = |State(state): State<AppState>, request: Request| blob::service::serve(state, request);
    Router::new().fallback(serve).with_state(state.clone())
}

async fn front(State(state): State<AppState>, request: Request, next: Next) -> Response {
    // Before paths are made canonical: names of blobs are anything, and signatures cover what was sent.
    let (parts, body) = request.into_parts();
    let is_blob = blob::route::is_blob(&state, &parts).await;
    let mut request = Request::from_parts(parts, body);
    if is_blob {
        return blob::service::serve(state, request).await;
    }
    let ids = Ids::of(request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = match canonical(&mut request) {
        Err(error) => error.into_response(),
        Ok(()) => match request.extensions().get::<ArmPath>().cloned() {
            // Disk access URLs carry their own permission, and have the time that their bodies need.
            Some(path) if disk_access::is_ours(&path) => disk_access::answer(&state, &path, request).await,
            _ => in_time(&state, next.run(request)).await,
        },
    };
    tracing::info!(request.id = %ids.request, %method, path, status = response.status().as_u16(), "request");
    ids.write(response.headers_mut());
    response
}

/// An answer of ARM, whatever becomes of the handler.
async fn in_time(state: &AppState, answer: impl Future<Output = Response>) -> Response {
    let answer = AssertUnwindSafe(answer).catch_unwind();
    match tokio::time::timeout(state.config.limits.request_timeout, answer).await {
        Ok(Ok(response)) => response,
        Ok(Err(panic)) => ApiError::internal(format!("panic: {}", panic_text(&*panic))).into_response(),
        Err(_) => {
            let text = "The service did not answer in time; send the request again.";
            ApiError::new(504, "GatewayTimeout", text).into_response()
        }
    }
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

/// Parses path and query once, and gives the router the canonical path.
fn canonical(request: &mut Request) -> Result<(), ApiError> {
    let refuse = |reason| {
        let message = format!("The request URI is not valid: {reason}.");
        ApiError::new(400, "InvalidRequestUri", message)
    };
    let path = ArmPath::parse(request.uri().path()).map_err(refuse)?;
    let query =
        Query::parse(request.uri().query().unwrap_or("")).map_err(|_| refuse("its query is malformed"))?;
    let route = match request.uri().query() {
        Some(query) => format!("{}?{query}", path.route()),
        None => path.route(),
    };
    let route: PathAndQuery = route.parse().map_err(|_| refuse("it cannot be routed"))?;
    *request.uri_mut() = Uri::from(route);
    request.extensions_mut().insert(path);
    request.extensions_mut().insert(query);
    Ok(())
}

/// What ARM checks before any resource provider sees the request: api-version, then the subscription.
pub(crate) async fn check_scope(
    State(state): State<AppState>,
    Extension(path): Extension<ArmPath>,
    Extension(query): Extension<Query>,
    request: Request,
    next: Next,
) -> Response {
    if let Err(error) = version(&query) {
        return error.into_response();
    }
    if let Some(subscription) =
        path.find("subscriptions").filter(|_| path.segment(0).eq_ignore_ascii_case("subscriptions"))
        && !subscription.eq_ignore_ascii_case(state.config.subscription_id.as_str())
    {
        return ApiError::from(ArmError::subscription_not_found(subscription)).into_response();
    }
    next.run(request).await
}

/// Azure's 404 for what no provider serves.
async fn not_found(path: ArmPath, Version(version): Version) -> ApiError {
    let text = path.text();
    match path.find("providers") {
        Some(namespace) if !api::providers::is_known(namespace) => {
            ArmError::invalid_resource_namespace(namespace).into()
        }
        Some(_) => match ResourceId::parse(&text) {
            Ok(id) => ArmError::invalid_resource_type(&id.resource_type(), &version).into(),
            Err(_) => ArmError::not_found(format!("The resource '{text}' could not be found.")).into(),
        },
        None => ArmError::not_found(format!("The resource '{text}' could not be found.")).into(),
    }
}

async fn method_not_allowed(method: Method) -> ApiError {
    ArmError::method_not_allowed(method.as_str()).into()
}

/// The ids that join a client's request with our log.
struct Ids {
    request: Uuid,
    correlation: Uuid,
    client: Option<HeaderValue>,
}

impl Ids {
    fn of(headers: &HeaderMap) -> Ids {
        let uuid =
            |name| headers.get(name).and_then(|v: &HeaderValue| Uuid::parse_str(v.to_str().ok()?).ok());
        let wanted = headers
            .get(&RETURN_CLIENT_REQUEST_ID)
            .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"true"));
        let client =
            headers.get(&CLIENT_REQUEST_ID).filter(|id| wanted && id.len() <= MAX_CLIENT_REQUEST_ID_BYTES);
        let request = Uuid::new_v4();
        Ids { request, correlation: uuid(&CORRELATION_ID).unwrap_or(request), client: client.cloned() }
    }

    fn write(self, headers: &mut HeaderMap) {
        let value = |id: Uuid| HeaderValue::try_from(id.to_string());
        if let (Ok(request), Ok(correlation)) = (value(self.request), value(self.correlation)) {
            headers.insert(REQUEST_ID, request);
            headers.insert(CORRELATION_ID, correlation);
        }
        if let Some(client) = self.client {
            headers.insert(CLIENT_REQUEST_ID, client);
        }
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
}
