//! Copy Blob within this service. The bytes of block and append blobs are never changed, so a copy in the same region shares
//! them: its objects are hard links. In another region, which may have another disk and another key, they are written anew.

use std::fs::File;
use std::io;
use std::path::Path;

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::Response;
use reqwest::Url;
use store::BlobPart;
use uuid::Uuid;

use super::about::{Copied, set};
use super::auth::{self, Action, Asked, Grant};
use super::blobs::{New, Parts, objects_of};
use super::body;
use super::error::BlobError;
use super::objects::{self, Pending};
use super::query::BlobQuery;
use super::route::Place;
use super::rows::{BlobData, Kept, Row};
use super::service::Call;
use super::stored::{self, StoredObject};
use crate::api::storage_accounts;
use crate::http::serve::Peer;

/// Longest address of a source in bytes (Azure's 2 KiB, and its SAS).
const MAX_SOURCE_BYTES: usize = 8 * 1024;

/// Copies at once: the answer is final.
pub(super) async fn copy(call: &Call) -> Result<Response, BlobError> {
    let headers = &call.parts.headers;
    if headers.contains_key("x-ms-blob-type") || headers.contains_key("x-ms-requires-sync") {
        return Err(BlobError::unsupported("Put Blob from URL; use Copy Blob without x-ms-requires-sync"));
    }
    let (url, row, objects, same_region) = source(call).await?;
    if row.data.kept == Kept::Pages {
        return Err(BlobError::unsupported("copies of page blobs; download and upload it"));
    }
    let mut new = New::of_request(call, row.data.kind)?;
    new.check_now(call).await?;
    new.content = row.data.content.clone();
    if new.metadata.is_empty() {
        new.metadata = row.data.metadata.clone();
    }
    new.bytes = row.data.bytes;
    let copied = Copied { id: Uuid::new_v4(), source: url, completed: call.state.now(), bytes: new.bytes };
    new.copied = Some(copied.clone());
    // For the parts, and, first, for what owns them; for a blob without parts both are one.
    let target = |object: &StoredObject| match same_region {
        true => stored::sharing(&objects::new_id(), object.id()),
        false => objects::new_id(),
    };
    let about = match row.data.kept {
        Kept::Whole => {
            let ids = objects.iter().map(target).collect();
            let mut made = Pending::begin_many(&call.state, &call.region, ids).await?;
            made = duplicate(objects, made, same_region).await?;
            let owner = made.pop().ok_or_else(changed)?;
            new.commit(call, owner, Parts::None).await?
        }
        Kept::Parts { .. } | Kept::Pages => {
            let ids = std::iter::once(objects::new_id()).chain(objects.iter().map(target)).collect();
            let mut made = Pending::begin_many(&call.state, &call.region, ids).await?;
            let owner = made.remove(0);
            let made = duplicate(objects, made, same_region).await?;
            let ids = call.state.store.read(|tx| Box::pin(async { tx.parts(&row.object).await })).await?;
            if ids.len() != made.len() {
                return Err(changed());
            }
            let parts: Vec<BlobPart> = ids
                .into_iter()
                .zip(&made)
                .map(|(part, object)| BlobPart { object: object.id.clone(), ..part })
                .collect();
            let about = new.commit(call, owner, Parts::Objects(&parts)).await?;
            made.into_iter().for_each(Pending::taken);
            about
        }
    };
    let mut response = body::empty(StatusCode::ACCEPTED, Some(&about));
    let answer = response.headers_mut();
    set(answer, axum::http::HeaderName::from_static("x-ms-copy-id"), &copied.id.to_string());
    answer.insert("x-ms-copy-status", HeaderValue::from_static(Copied::STATUS));
    Ok(response)
}

fn changed() -> BlobError {
    let message = "The source changed while it was copied; copy it again.";
    BlobError::new(StatusCode::CONFLICT, "CopySourceChanged", message)
}

/// The source that the request names and may read: its address without the query, its row, its objects, and whether they are
/// in the region that they are copied to.
async fn source(call: &Call) -> Result<(String, Row, Vec<StoredObject>, bool), BlobError> {
    let header = call.parts.headers.get("x-ms-copy-source").and_then(|value| value.to_str().ok());
    let url = header.filter(|text| text.len() <= MAX_SOURCE_BYTES).and_then(|text| Url::parse(text).ok());
    let url = url.ok_or_else(|| BlobError::header("x-ms-copy-source", "is no URL"))?;
    let ours = Url::parse(call.state.endpoint.url()).map_err(BlobError::internal)?;
    let asked_host = call.parts.headers.get("host").and_then(|host| host.to_str().ok());
    let named = url.host_str().map(|host| match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    });
    if url.origin() != ours.origin() && (named.as_deref() != asked_host || named.is_none()) {
        return Err(BlobError::unsupported("copies from other services; download and upload it"));
    }
    let place = Place::parse(url.path())?;
    let not_verified = |cause: &str| {
        let message = format!("The specified copy source could not be read: {cause}");
        BlobError::new(StatusCode::FORBIDDEN, "CannotVerifyCopySource", message)
    };
    let account = storage_accounts::account(&call.state, &place.account).await?;
    let account = account.ok_or_else(|| not_verified("its account does not exist."))?;
    let query = BlobQuery::parse(url.query().unwrap_or_default())?;
    let owner = call.grant == Grant::All && account.key == call.account.key;
    if !(owner && query.get("sig").is_none()) {
        let peer = call.parts.extensions.get::<Peer>().copied();
        let peer = peer.ok_or_else(|| BlobError::internal("a connection without its peer's address"))?;
        let asked = Asked {
            method: &Method::GET,
            path: url.path(),
            query: &query,
            headers: &HeaderMap::new(),
            place: &place,
            peer,
            now: call.state.now(),
        };
        let granted = auth::authorize(&call.state, &account.key, &account.data, &asked).await;
        granted.and_then(|grant| grant.check(Action::Read)).map_err(|error| not_verified(&error.message))?;
    }
    let key = store::BlobKey {
        account: account.key.clone(),
        container: place.container.ok_or_else(|| not_verified("it is no blob."))?,
        name: place.blob.ok_or_else(|| not_verified("it is no blob."))?,
    };
    let row = call.state.store.read(|tx| Box::pin(async { tx.blob::<BlobData>(&key).await })).await?;
    let row = row.ok_or_else(BlobError::blob_not_found)?;
    let region = &account.data.spec.location;
    let objects = objects_of(&call.state, region, &key, &row).await?;
    let mut shown = url;
    shown.set_query(None);
    Ok((shown.to_string(), row, objects, *region == call.region))
}

/// Makes the file of each object with the content of the other: as a link, or written anew. Durable when this returns.
async fn duplicate(
    objects: Vec<StoredObject>,
    made: Vec<Pending>,
    link: bool,
) -> Result<Vec<Pending>, BlobError> {
    let done = tokio::task::spawn_blocking(move || {
        for (object, new) in objects.iter().zip(&made) {
            if link {
                std::fs::hard_link(object.path(), &new.path)?;
                File::open(new.path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
            } else {
                new.fill_from(object)?;
            }
        }
        Ok(made)
    });
    match done.await.map_err(io::Error::other).and_then(|done| done) {
        Ok(made) => Ok(made),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(changed()),
        Err(error) => Err(BlobError::io("copy a blob", &error)),
    }
}
