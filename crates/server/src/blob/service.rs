//! The blob service: what a request means, who may ask it, and the headers that every answer has.

use std::panic::AssertUnwindSafe;

use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use model::Region;
use store::{BlobKey, Document};
use uuid::Uuid;

use super::about::set;
use super::auth::{self, Action, Asked, Grant};
use super::body::{self, Unread};
use super::error::BlobError;
use super::query::BlobQuery;
use super::route::{self, Place};
use super::{blobs, blocks, containers, copy, list};
use crate::AppState;
use crate::api::storage_accounts;
use crate::http::front::panic_text;
use crate::http::serve::Peer;
use model::storage_account::StorageAccount;

/// Version that answers say when the request named none.
pub(super) const DEFAULT_VERSION: &str = "2021-12-02";
/// Longest header of a request that is given back.
const MAX_ECHO_BYTES: usize = 1024;

/// A request that was understood and let in.
pub(super) struct Call {
    pub(super) state: AppState,
    pub(super) account: Document<StorageAccount>,
    pub(super) region: Region,
    pub(super) place: Place,
    pub(super) query: BlobQuery,
    pub(super) parts: Parts,
    pub(super) grant: Grant,
}

impl Call {
    /// The container in question.
    pub(super) fn container(&self) -> Result<&str, BlobError> {
        self.place.container.as_deref().ok_or_else(not_supported)
    }

    /// The blob in question.
    pub(super) fn key(&self) -> Result<BlobKey, BlobError> {
        let name = self.place.blob.clone().ok_or_else(not_supported)?;
        Ok(BlobKey { account: self.account.key.clone(), container: self.container()?.to_owned(), name })
    }
}

/// Serves a request that [`route::is_blob`] found to be for blobs, or that came on the plain listener.
pub(crate) async fn serve(state: AppState, request: Request) -> Response {
    let id = Uuid::new_v4();
    let (parts, body) = request.into_parts();
    let echo =
        |name: &'static str| parts.headers.get(name).filter(|value| value.len() <= MAX_ECHO_BYTES).cloned();
    let (version, client) = (echo("x-ms-version"), echo("x-ms-client-request-id"));
    // The path alone: a query may hold a signature.
    let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
    let is_head = method == Method::HEAD;
    let mut unread = Some(body);
    let answered = AssertUnwindSafe(answer(state, parts, &mut unread)).catch_unwind().await;
    body::drain(unread).await;
    let mut response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => error.into_response(),
        Err(panic) => BlobError::internal(format!("panic: {}", panic_text(&*panic))).into_response(),
    };
    if response.status() == StatusCode::NOT_MODIFIED || (is_head && !response.status().is_success()) {
        *response.body_mut() = Body::empty();
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    tracing::info!(request.id = %id, %method, path, status = response.status().as_u16(), "blob request");
    let headers = response.headers_mut();
    set(headers, HeaderName::from_static("x-ms-request-id"), &id.to_string());
    headers.insert("x-ms-version", version.unwrap_or(HeaderValue::from_static(DEFAULT_VERSION)));
    if let Some(client) = client {
        headers.insert("x-ms-client-request-id", client);
    }
    response
}

async fn answer(state: AppState, parts: Parts, unread: &mut Unread) -> Result<Response, BlobError> {
    let place = Place::parse(parts.uri.path())?;
    let query = route::query(&parts)?;
    let account = storage_accounts::account(&state, &place.account).await?.ok_or_else(|| {
        let message = "The specified account does not exist.";
        BlobError::new(StatusCode::NOT_FOUND, "ResourceNotFound", message)
    })?;
    let peer = parts.extensions.get::<Peer>().copied();
    let peer = peer.ok_or_else(|| BlobError::internal("a connection without its peer's address"))?;
    let asked = Asked {
        method: &parts.method,
        path: parts.uri.path(),
        query: &query,
        headers: &parts.headers,
        place: &place,
        peer,
        now: state.now(),
    };
    let grant = match auth::authorize(&state, &account.key, &account.data, &asked).await {
        Ok(grant) => grant,
        Err(error) => return Ok(challenge(&state, error)),
    };
    let region = account.data.spec.location.clone();
    let call = Call { state, account, region, place, query, parts, grant };
    operation(call, unread).await
}

/// A refusal that says where tokens come from.
fn challenge(state: &AppState, error: BlobError) -> Response {
    let unauthorized = error.status == StatusCode::UNAUTHORIZED;
    let mut response = error.into_response();
    if unauthorized {
        let text = format!(
            "Bearer authorization_uri={}/{}/oauth2/authorize resource_id=https://storage.azure.com",
            state.endpoint.url(),
            state.config.tenant_id
        );
        set(response.headers_mut(), header::WWW_AUTHENTICATE, &text);
    }
    response
}

fn not_supported() -> BlobError {
    let message = "The resource doesn't support the specified HTTP verb or operation.";
    BlobError::new(StatusCode::METHOD_NOT_ALLOWED, "UnsupportedHttpVerb", message)
}

/// What a request means: method, `restype` and `comp` say it.
async fn operation(call: Call, unread: &mut Unread) -> Result<Response, BlobError> {
    let comp = call.query.get("comp").unwrap_or_default().to_ascii_lowercase();
    for (name, what) in [("snapshot", "snapshots of blobs"), ("versionid", "versions of blobs")] {
        if call.query.get(name).is_some() {
            return Err(BlobError::unsupported(what));
        }
    }
    if call.parts.headers.contains_key("x-ms-lease-id") {
        let message = "There is currently no lease on the resource: this service has none.";
        let code = "LeaseNotPresentWithBlobOperation";
        return Err(BlobError::new(StatusCode::PRECONDITION_FAILED, code, message));
    }
    let method = call.parts.method.clone();
    match (call.place.container.is_some(), call.place.blob.is_some()) {
        (_, true) => blob_operation(&call, &method, &comp, unread).await,
        (true, false) => container_operation(&call, &method, &comp, unread).await,
        (false, false) => service_operation(&call, &method, &comp).await,
    }
}

async fn service_operation(call: &Call, method: &Method, comp: &str) -> Result<Response, BlobError> {
    let restype = call.query.get("restype").unwrap_or_default();
    match (method.as_str(), comp, restype) {
        ("GET", "list", _) => {
            call.grant.check(Action::ListContainers)?;
            list::containers(call).await
        }
        ("GET" | "HEAD", "properties", "account") => {
            call.grant.check(Action::ReadService)?;
            containers::account_information(call)
        }
        ("GET", "properties", "service") => {
            call.grant.check(Action::ReadService)?;
            Ok(containers::service_properties())
        }
        (_, "", "") => Err(not_supported()),
        _ => Err(BlobError::unsupported(&format!("the operation '{comp}' on accounts"))),
    }
}

async fn container_operation(
    call: &Call,
    method: &Method,
    comp: &str,
    unread: &mut Unread,
) -> Result<Response, BlobError> {
    let allow = |action| call.grant.check(action);
    if comp == "list" && method == Method::GET {
        allow(Action::ListBlobs)?;
        return list::blobs(call).await;
    }
    match call.query.get("restype") {
        Some("container") => {}
        Some("account") if comp == "properties" => {
            allow(Action::ReadService)?;
            return containers::account_information(call);
        }
        _ => return Err(not_supported()),
    }
    match (method.as_str(), comp) {
        ("PUT", "") => {
            allow(Action::CreateContainer)?;
            containers::create(call).await
        }
        ("GET" | "HEAD", "" | "metadata") => {
            allow(Action::ReadContainer)?;
            containers::properties(call).await
        }
        ("PUT", "metadata") => {
            allow(Action::WriteContainer)?;
            containers::set_metadata(call).await
        }
        ("DELETE", "") => {
            allow(Action::DeleteContainer)?;
            containers::delete(call).await
        }
        ("GET" | "HEAD", "acl") => {
            allow(Action::Policies)?;
            containers::policies(call).await
        }
        ("PUT", "acl") => {
            allow(Action::Policies)?;
            containers::set_policies(call, unread).await
        }
        _ => Err(BlobError::unsupported(&format!("the operation '{comp}' on containers"))),
    }
}

async fn blob_operation(
    call: &Call,
    method: &Method,
    comp: &str,
    unread: &mut Unread,
) -> Result<Response, BlobError> {
    let allow = |action| call.grant.check(action);
    match (method.as_str(), comp) {
        ("GET", "") => {
            allow(Action::Read)?;
            blobs::get(call, true).await
        }
        ("HEAD", "") => {
            allow(Action::Read)?;
            blobs::get(call, false).await
        }
        ("GET" | "HEAD", "metadata") => {
            allow(Action::Read)?;
            blobs::get(call, false).await
        }
        ("GET", "pagelist") => {
            allow(Action::Read)?;
            blobs::page_ranges(call).await
        }
        ("GET", "blocklist") => {
            allow(Action::Read)?;
            blocks::list(call).await
        }
        ("GET" | "HEAD", "properties") if call.query.get("restype") == Some("account") => {
            allow(Action::ReadService)?;
            containers::account_information(call)
        }
        ("PUT", "") if call.parts.headers.contains_key("x-ms-copy-source") => {
            allow(Action::Create)?;
            copy::copy(call).await
        }
        ("PUT", "") => {
            allow(Action::Create)?;
            blobs::put(call, unread).await
        }
        ("PUT", "block" | "page" | "appendblock") if call.parts.headers.contains_key("x-ms-copy-source") => {
            Err(BlobError::unsupported("blocks and pages from a URL"))
        }
        ("PUT", "block") => {
            // Azure lets whoever may make the blob put its blocks.
            allow(Action::Create)?;
            blocks::put(call, unread).await
        }
        ("PUT", "blocklist") => {
            allow(Action::Create)?;
            blocks::commit(call, unread).await
        }
        ("PUT", "page") => {
            allow(Action::Write)?;
            blobs::put_page(call, unread).await
        }
        ("PUT", "appendblock") => {
            allow(Action::Append)?;
            blocks::append(call, unread).await
        }
        ("PUT", "metadata") => {
            allow(Action::Write)?;
            blobs::set_metadata(call).await
        }
        ("PUT", "properties") => {
            allow(Action::Write)?;
            blobs::set_properties(call).await
        }
        ("DELETE", "") => {
            allow(Action::Delete)?;
            blobs::delete(call).await
        }
        (_, "") => Err(not_supported()),
        _ => Err(BlobError::unsupported(&format!("the operation '{comp}' on blobs"))),
    }
}
