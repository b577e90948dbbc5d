//! Long-running operations: the headers of the first answer, and the answers to polls.
//!
//! Azure's families differ in poll URL and body (REFERENCE.md 5.1). Clients wait 30 s between polls unless
//! told otherwise, so every answer carries `Retry-After` (CLIENTS.md 3: 0 counts as absent, hence 1).

use arm::ApiVersion;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use store::{Operation, OperationEnd, OperationFamily, OperationState};

use super::error::ApiError;
use super::extract::Version;
use super::path::ArmPath;
use super::query::Query;
use super::routes::Routes;
use crate::api::disks;
use crate::{AppState, Endpoint};

const AZURE_ASYNC_OPERATION: HeaderName = HeaderName::from_static("azure-asyncoperation");
/// Seconds between polls.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

/// Which headers an operation's first answer carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollHeaders {
    /// `Azure-AsyncOperation`: PUTs.
    Async,
    /// `Azure-AsyncOperation` and `Location`: DELETEs and POST actions.
    AsyncAndLocation,
    /// `Location`: resource groups.
    Location,
}

/// The headers that tell a client where to poll `operation`.
#[must_use]
pub fn headers(
    endpoint: &Endpoint,
    operation: &Operation,
    version: &ApiVersion,
    kind: PollHeaders,
) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let url = poll_url(endpoint, operation, version);
    let mut put = |name: HeaderName, text: String| {
        // The parts of the URL are a location, a UUID and a version: always a valid header value.
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    };
    if kind != PollHeaders::Location {
        put(AZURE_ASYNC_OPERATION, url.clone());
    }
    match (kind, operation.family) {
        (PollHeaders::Async, _) => {}
        // These two families use the same URL for both.
        (_, OperationFamily::ImageBuilder | OperationFamily::ResourceGroup) => put(header::LOCATION, url),
        (_, OperationFamily::Gallery | OperationFamily::Compute | OperationFamily::Disk) => {
            put(header::LOCATION, format!("{url}&monitor=true"));
        }
    }
    headers.insert(header::RETRY_AFTER, RETRY_AFTER_S);
    headers
}

/// 202 with the headers and no body: DELETEs and POST actions.
#[must_use]
pub fn accepted(
    endpoint: &Endpoint,
    operation: &Operation,
    version: &ApiVersion,
    kind: PollHeaders,
) -> Response {
    (StatusCode::ACCEPTED, headers(endpoint, operation, version, kind)).into_response()
}

fn poll_url(endpoint: &Endpoint, operation: &Operation, version: &ApiVersion) -> String {
    let Operation { id, subscription, location, .. } = operation;
    let base = format!("{}/subscriptions/{subscription}", endpoint.url());
    let path = match operation.family {
        OperationFamily::Gallery => {
            format!("providers/Microsoft.Compute/locations/{location}/capsOperations/{id}")
        }
        OperationFamily::Compute => {
            format!("providers/Microsoft.Compute/locations/{location}/operations/{id}")
        }
        OperationFamily::Disk => {
            format!("providers/Microsoft.Compute/locations/{location}/DiskOperations/{id}")
        }
        OperationFamily::ImageBuilder => {
            format!("providers/Microsoft.VirtualMachineImages/locations/{location}/operations/{id}")
        }
        OperationFamily::ResourceGroup => format!("operationresults/{id}"),
    };
    format!("{base}/{path}?api-version={version}")
}

pub(crate) fn routes(routes: Routes) -> Routes {
    const COMPUTE: [&str; 3] = [
        "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/capsoperations/{operation}",
        "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/operations/{operation}",
        "/subscriptions/{subscription}/providers/microsoft.compute/locations/{location}/diskoperations/{operation}",
    ];
    let routes = COMPUTE.into_iter().fold(routes, |routes, path| routes.on(Method::GET, path, poll));
    routes
        .on(
            Method::GET,
            "/subscriptions/{subscription}/providers/microsoft.virtualmachineimages/locations/{location}/operations/{operation}",
            poll,
        )
        .on(Method::GET, "/subscriptions/{subscription}/operationresults/{operation}", poll)
}

async fn poll(
    State(state): State<AppState>,
    path: ArmPath,
    query: Query,
    Version(version): Version,
) -> Result<Response, ApiError> {
    let id = path.segment(path.len().saturating_sub(1));
    let found = state.store.read(|tx| Box::pin(async { tx.operation(id).await })).await?;
    // The URL must be the operation's own: family and location are part of it.
    let operation = found.filter(|operation| {
        let own = poll_url(&state.endpoint, operation, &version);
        let own = own.strip_prefix(state.endpoint.url()).unwrap_or_default();
        let own = own.split('?').next().unwrap_or_default();
        own.eq_ignore_ascii_case(&path.text())
    });
    let Some(operation) = operation else {
        let message = format!("The operation '{}' could not be found.", path.text());
        return Err(ApiError::new(404, "NotFound", message));
    };
    let operation = signed(&state, operation);
    let monitor = query.get("monitor").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    if monitor || operation.family == OperationFamily::ResourceGroup {
        return Ok(monitored(&state.endpoint, &operation, &version));
    }
    let mut response = Json(body(&operation)).into_response();
    if operation.state == OperationState::InProgress {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_S);
    }
    Ok(response)
}

/// Disk access URLs are kept without their signature.
fn signed(state: &AppState, mut operation: Operation) -> Operation {
    // Of no other kind: a result that a client had a hand in must not be signed.
    if operation.kind == disks::BEGIN_ACCESS
        && let OperationState::Ended { end: OperationEnd::Succeeded(Some(result)), .. } = &mut operation.state
    {
        *result = state.disk_exports.key.sign_result(result.take());
    }
    operation
}

/// The `Location` form: 202 until the end, then the bare result or the error.
fn monitored(endpoint: &Endpoint, operation: &Operation, version: &ApiVersion) -> Response {
    match &operation.state {
        OperationState::InProgress => accepted(endpoint, operation, version, PollHeaders::Location),
        OperationState::Ended { end: OperationEnd::Succeeded(Some(result)), .. } => {
            Json(result).into_response()
        }
        OperationState::Ended { end: OperationEnd::Succeeded(None), .. } => StatusCode::OK.into_response(),
        OperationState::Ended {
            end: OperationEnd::Failed(error) | OperationEnd::Canceled(error), ..
        } => (StatusCode::CONFLICT, Json(json!({ "error": error }))).into_response(),
    }
}

/// The `Azure-AsyncOperation` form: always 200, with the status in the body.
fn body(operation: &Operation) -> Value {
    let family = match operation.family {
        OperationFamily::Gallery => arm::operation::OperationFamily::Gallery,
        OperationFamily::Compute => arm::operation::OperationFamily::Compute,
        OperationFamily::Disk => arm::operation::OperationFamily::Disk,
        OperationFamily::ImageBuilder => arm::operation::OperationFamily::ImageBuilder,
        OperationFamily::ResourceGroup => arm::operation::OperationFamily::Resources,
    };
    let state = match &operation.state {
        OperationState::InProgress => model::operation::OperationState::InProgress,
        OperationState::Ended { at, end } => match end.clone() {
            OperationEnd::Succeeded(output) => {
                model::operation::OperationState::Succeeded { ended: *at, output }
            }
            OperationEnd::Failed(error) => {
                model::operation::OperationState::Failed { ended: *at, failure: failure(&error) }
            }
            OperationEnd::Canceled(error) => {
                model::operation::OperationState::Canceled { ended: *at, failure: Some(failure(&error)) }
            }
        },
    };
    let operation_in_model = model::operation::Operation { started: operation.started_at, state };
    arm::operation::poll_body(family, &operation.id, &operation_in_model)
}

/// Code and message of an error object that [`ApiError::error_object`] or a job wrote.
fn failure(error: &Value) -> model::Failure {
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    model::Failure::new(text("code"), text("message"))
}
