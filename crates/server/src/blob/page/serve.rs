//! Page blobs over HTTP: Get Blob, Get Blob Properties, Put Page, Get Page Ranges.

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::super::about::About;
use super::super::body::{self, answer, check_md5, content_length, empty, md5};
use super::super::conditions::{self, For};
use super::super::error::BlobError;
use super::super::query::BlobQuery;
use super::super::range;
use super::super::xml::Xml;
use super::PageBlob;

/// Most bytes that one Put Page writes: Azure's limit.
pub const MAX_PUT_PAGE_BYTES: u64 = 4 << 20;
/// Most ranges in one answer to a client that reads page by page.
const MAX_PAGE_RANGES: usize = 10_000;
/// Most ranges for one that did not ask for pages and may not know `NextMarker`. Beyond them everything counts as data,
/// which is true enough: zeros may be read.
const MAX_UNPAGED_RANGES: usize = 100_000;

/// Get Blob (`with_body`), and Get Blob Properties.
///
/// # Errors
/// 304, 412, 416.
pub async fn get(
    blob: &PageBlob,
    about: &About,
    headers: &HeaderMap,
    with_body: bool,
) -> Result<Response, BlobError> {
    answer(headers, about, blob.size(), with_body, |range| blob.stream(range)).await
}

/// Put Page: writes the body, or clears pages. `about` is what the blob was before; the answer has what it is now.
///
/// # Errors
/// 400, 409, 411, 412, 413, 416; 507 when the disk is full.
pub async fn put_page(
    blob: &PageBlob,
    about: &About,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, BlobError> {
    let mut unread = Some(body);
    let put = put_unread(blob, about, headers, &mut unread).await;
    if put.is_err() {
        body::drain(unread).await;
    }
    put
}

async fn put_unread(
    blob: &PageBlob,
    about: &About,
    headers: &HeaderMap,
    unread: &mut body::Unread,
) -> Result<Response, BlobError> {
    conditions::check(headers, For::Writing, Some(about.modified))?;
    check_sequence_number(headers, about.sequence_number)?;
    let range = range::pages(headers, blob.size())?;
    let length = content_length(headers)?;
    let action =
        headers.get("x-ms-page-write").ok_or_else(|| BlobError::missing_header("x-ms-page-write"))?;
    let mut digest = None;
    match action.as_bytes().to_ascii_lowercase().as_slice() {
        b"update" => {
            if length > MAX_PUT_PAGE_BYTES {
                return Err(BlobError::too_large(MAX_PUT_PAGE_BYTES));
            }
            if length != range.end - range.start {
                return Err(BlobError::header("Content-Length", "is not the length of the range"));
            }
            // Whole before it is written, so that a client that goes away leaves no torn pages.
            let whole = body::read(body::take(unread), MAX_PUT_PAGE_BYTES).await?;
            let found = md5(&whole.bytes);
            check_md5(headers, &found)?;
            digest = Some(found);
            blob.write(range.start, whole.bytes.clone()).await?;
        }
        b"clear" => {
            if length != 0 {
                return Err(BlobError::header("Content-Length", "must be 0 to clear pages"));
            }
            blob.clear(range).await?;
        }
        _ => return Err(BlobError::header("x-ms-page-write", "is neither 'update' nor 'clear'")),
    }
    let mut about = about.clone();
    let mut encrypted = false;
    if let PageBlob::File(file) = blob {
        encrypted = file.is_encrypted();
        let written = file.modified().await.map_err(|error| BlobError::io("look at a page blob", &error))?;
        about.modified = written.max(about.modified);
    }
    let mut response = empty(StatusCode::CREATED, Some(&about));
    let answer = response.headers_mut();
    answer.insert("x-ms-blob-sequence-number", about.sequence_number.into());
    answer.insert("x-ms-request-server-encrypted", body::encrypted(encrypted));
    if let Some(digest) = digest {
        body::set_md5(answer, &digest);
    }
    Ok(response)
}

/// Get Page Ranges.
///
/// # Errors
/// 304, 400, 412, 416, 501.
pub async fn page_ranges(
    blob: &PageBlob,
    about: &About,
    headers: &HeaderMap,
    query: &BlobQuery,
) -> Result<Response, BlobError> {
    if query.get("prevsnapshot").is_some() || headers.contains_key("x-ms-previous-snapshot-url") {
        return Err(BlobError::unsupported("differences between snapshots of page blobs"));
    }
    conditions::check(headers, For::Reading, Some(about.modified))?;
    let size = blob.size();
    let mut bounds = match range::wanted(headers) {
        Some(wanted) => {
            let range = wanted.within(size)?;
            range.start / range::PAGE_BYTES * range::PAGE_BYTES..range.end.next_multiple_of(range::PAGE_BYTES)
        }
        None => 0..size,
    };
    if let Some(marker) = query.get("marker").filter(|marker| !marker.is_empty()) {
        let at = marker.parse::<u64>().ok().filter(|at| at % range::PAGE_BYTES == 0 && *at <= size);
        bounds.start = at.ok_or_else(|| BlobError::query("marker", "was not given out by this service"))?;
    }
    let most = match query.get("maxresults") {
        None => None,
        Some(text) => {
            let most = text.parse::<usize>().ok().filter(|most| *most > 0);
            let most = most.ok_or_else(|| BlobError::query("maxresults", "is no positive number"))?;
            Some(most.min(MAX_PAGE_RANGES))
        }
    };
    let end = bounds.end;
    let (mut ranges, mut next) = blob.data(bounds, most.unwrap_or(MAX_UNPAGED_RANGES)).await?;
    if most.is_none()
        && next.take().is_some()
        && let Some(last) = ranges.last_mut()
    {
        last.end = end;
    }
    let mut xml = Xml::document("PageList");
    for range in &ranges {
        xml.nest("PageRange", |xml| {
            xml.text("Start", &range.start.to_string()).text("End", &(range.end - 1).to_string());
        });
    }
    if most.is_some() {
        xml.text("NextMarker", &next.map(|next| next.to_string()).unwrap_or_default());
    }
    let mut response = xml.into_response();
    let answer = response.headers_mut();
    about.write_version(answer);
    answer.insert("x-ms-blob-content-length", size.into());
    answer.remove(header::CONTENT_LENGTH);
    Ok(response)
}

/// `x-ms-if-sequence-number-{le,lt,eq}`.
fn check_sequence_number(headers: &HeaderMap, current: u64) -> Result<(), BlobError> {
    use std::cmp::Ordering::{Equal, Less};
    let conditions = [
        ("x-ms-if-sequence-number-le", [Less, Equal].as_slice()),
        ("x-ms-if-sequence-number-lt", &[Less]),
        ("x-ms-if-sequence-number-eq", &[Equal]),
    ];
    for (name, holding) in conditions {
        let Some(value) = headers.get(name) else { continue };
        let limit = value.to_str().ok().and_then(|text| text.parse().ok());
        let limit: u64 = limit.ok_or_else(|| BlobError::header(name, "is no number"))?;
        if !holding.contains(&current.cmp(&limit)) {
            let message = "The sequence number condition specified was not met.";
            let status = StatusCode::PRECONDITION_FAILED;
            return Err(BlobError::new(status, "SequenceNumberConditionNotMet", message));
        }
    }
    Ok(())
}
