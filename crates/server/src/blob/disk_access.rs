//! Disks and snapshots as page blobs, for those who hold a URL that `beginGetAccess` handed out.
//!
//! ```text
//!  https://host:port/md-{disk}/{access}/abcd?sv=…&sr=b&si={access id}&sp=r|rw&se=…&sig=…
//!      │ si → row of the disk (a setting leads there)
//!      └ sig covers path, times, permission and the row's generation: ending an access ends every URL before it
//! ```
//!
//! The dash keeps these paths apart from those of storage accounts, whose names have none.

mod exports;
mod sas;

use std::io;
use std::panic::AssertUnwindSafe;

use axum::extract::Request;
use axum::http::{HeaderName, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use content::ManifestId;
use futures::FutureExt;
use model::managed_disk::{AccessMode, DiskAccess, DiskBytes, ManagedDisk};
use store::{Document, Tx};
use uuid::Uuid;

pub use exports::ExportsError;
pub(crate) use exports::{DiskExports, image};
pub(crate) use sas::SasKey;

use super::body::WHOLE_TIME_MAX;
use super::page::{PageBlob, PageImage, serve};
use super::{About, BlobError, BlobQuery};
use crate::AppState;
use crate::http::error::chain;
use crate::http::front::panic_text;

/// First segments of paths that belong here.
const PREFIX: &str = "md-";
/// The version of the protocol that a client speaks; given back.
const VERSION: HeaderName = HeaderName::from_static("x-ms-version");
/// Longest that is given back.
const VERSION_BYTES_MAX: usize = 32;
/// Whether a request's path is one of these.
pub(crate) fn is_ours(path: &crate::http::path::ArmPath) -> bool {
    path.len() == 3
        && path.segment(0).get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// Whether a URL's path is one of these.
pub(crate) fn is_path(path: &str) -> bool {
    crate::http::path::ArmPath::parse(path).is_ok_and(|path| is_ours(&path))
}

/// Where the disk of an access is found: a setting, because the URL must not say the disk's id.
pub(crate) fn setting_key(access: Uuid) -> String {
    format!("disk-access/{access}")
}

/// Records an access that was granted.
pub(crate) async fn remember(tx: &mut Tx<'_>, access: Uuid, disk_key: &str) -> Result<(), store::StoreError> {
    tx.set_setting(&setting_key(access), disk_key.as_bytes()).await
}

/// Forgets an access.
pub(crate) async fn forget(tx: &mut Tx<'_>, access: Option<&DiskAccess>) -> Result<(), store::StoreError> {
    match access {
        Some(access) => tx.delete_setting(&setting_key(access.id)).await,
        None => Ok(()),
    }
}

/// Serves Get Blob, Get Blob Properties, Put Page, Clear Pages and Get Page Ranges.
pub(crate) async fn answer(
    state: &AppState,
    path: &crate::http::path::ArmPath,
    request: Request,
) -> Response {
    let version =
        request.headers().get(VERSION).filter(|version| version.len() <= VERSION_BYTES_MAX).cloned();
    // A body has its own bound; what remains is our own work.
    let limit = state.config.limits.request_timeout + WHOLE_TIME_MAX;
    let answer = AssertUnwindSafe(try_answer(state, path, request)).catch_unwind();
    let mut response = match tokio::time::timeout(limit, answer).await {
        Ok(Ok(Ok(response))) => response,
        Ok(Ok(Err(error))) => error.into_response(),
        Ok(Err(panic)) => BlobError::internal(format!("panic: {}", panic_text(&*panic))).into_response(),
        Err(_) => {
            let text = "The service did not answer in time; send the request again.";
            BlobError::timed_out(text).into_response()
        }
    };
    if let Some(version) = version {
        response.headers_mut().insert(VERSION, version);
    }
    response
}

async fn try_answer(
    state: &AppState,
    path: &crate::http::path::ArmPath,
    request: Request,
) -> Result<Response, BlobError> {
    let query = BlobQuery::parse(request.uri().query().unwrap_or_default())?;
    let (parts, body) = request.into_parts();
    let wanted = operation(&parts.method, &query)?;
    let mode = if wanted == Operation::PutPage { AccessMode::Write } else { AccessMode::Read };
    let (document, access) = authorize(state, &path.text(), &query, mode).await?;
    let (blob, about) = bytes(state, &document.data, &access).await?;
    match wanted {
        Operation::Get => serve::get(&blob, &about, &parts.headers, true).await,
        Operation::Head => serve::get(&blob, &about, &parts.headers, false).await,
        Operation::PageRanges => serve::page_ranges(&blob, &about, &parts.headers, &query).await,
        Operation::PutPage => serve::put_page(&blob, &about, &parts.headers, body).await,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Get,
    Head,
    PageRanges,
    PutPage,
}

fn operation(method: &Method, query: &BlobQuery) -> Result<Operation, BlobError> {
    match (method.as_str(), query.get("comp")) {
        ("GET", None) => Ok(Operation::Get),
        ("HEAD", None) => Ok(Operation::Head),
        ("GET", Some("pagelist")) => Ok(Operation::PageRanges),
        ("PUT", Some("page")) => Ok(Operation::PutPage),
        // A disk is neither made, deleted nor described by this way.
        _ => Err(BlobError::new(
            StatusCode::FORBIDDEN,
            "OperationNotAllowedOnDisk",
            "Through a disk's access URL, pages are read, written, cleared and listed, and nothing else is done. The disk itself is \
             managed through Microsoft.Compute.",
        )),
    }
}

/// The disk behind a URL, and the access that the URL is of.
///
/// # Errors
/// 403 when the URL does not hold (any more) or does not permit `mode`.
pub(crate) async fn authorize(
    state: &AppState,
    path: &str,
    query: &BlobQuery,
    mode: AccessMode,
) -> Result<(Document<ManagedDisk>, DiskAccess), BlobError> {
    let id = query.get("si").and_then(|id| Uuid::parse_str(id).ok());
    let id = id.ok_or_else(|| BlobError::authentication("The URL has no 'si': it is no disk access URL."))?;
    let found = state.store.read(|tx| Box::pin(async { find(tx, id).await })).await?;
    let ended = "The access was ended or never granted; request a new one with beginGetAccess.";
    let document = found.ok_or_else(|| BlobError::authentication(ended))?;
    let access = document.data.access.as_ref().filter(|access| access.id == id);
    let access = access.ok_or_else(|| BlobError::authentication(ended))?;
    state.disk_exports.key.verify(path, query, &document.data, access).map_err(BlobError::authentication)?;
    if state.now() >= access.expires {
        let until = access.expires.format("%a, %d %b %Y %H:%M:%S GMT");
        return Err(BlobError::authentication(format!(
            "Signature not valid in the specified time frame: it expired at {until}. Request a new access."
        )));
    }
    if mode == AccessMode::Write && access.mode != AccessMode::Write {
        return Err(BlobError::permission("The access was granted for reading."));
    }
    let access = access.clone();
    Ok((document, access))
}

async fn find(tx: &mut Tx<'_>, access: Uuid) -> Result<Option<Document<ManagedDisk>>, store::StoreError> {
    let Some(disk) = tx.setting(&setting_key(access)).await? else { return Ok(None) };
    let Ok(disk) = String::from_utf8(disk) else { return Ok(None) };
    tx.get::<ManagedDisk>(&disk).await
}

async fn bytes(
    state: &AppState,
    managed: &ManagedDisk,
    access: &DiskAccess,
) -> Result<(PageBlob, About), BlobError> {
    match &managed.bytes {
        DiskBytes::Stored(content) => {
            let id = content.manifest.as_str().parse();
            let id: ManifestId = id.map_err(|_| BlobError::internal("a manifest's name cannot be read"))?;
            let image = image(state, &managed.spec.location, id).await.map_err(BlobError::internal)?;
            let image = PageImage::new(image, *managed.unique_id.as_bytes())?;
            Ok((PageBlob::Image(image), About::page(access.granted)))
        }
        DiskBytes::Upload { .. } => {
            let io = |error: io::Error| match error.kind() {
                io::ErrorKind::ResourceBusy => BlobError::busy(),
                _ => BlobError::io("open an upload", &error),
            };
            let keys = state.fabric.blob_keys(&managed.spec.location).await;
            let keys = keys.map_err(|error| BlobError::internal(chain(&error)))?;
            let file = state.disk_exports.upload(managed.unique_id, access, keys).await.map_err(io)?;
            let file = file.ok_or_else(BlobError::blob_not_found)?;
            let modified = file.modified().await.map_err(io)?;
            Ok((PageBlob::File(file), About::page(modified)))
        }
        DiskBytes::Pending | DiskBytes::Committing { .. } => Err(BlobError::blob_not_found()),
    }
}
