//! Bodies of requests and answers: bounded in memory, and in how long they may be silent.

use std::io;
use std::ops::Range;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use md5::{Digest, Md5};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::about::{About, set};
use super::conditions::{self, For};
use super::error::BlobError;
use super::range;

/// How long a client may be silent inside a body.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Largest range whose MD5 is computed for `x-ms-range-get-content-md5`: Azure's limit.
const MAX_RANGE_MD5_BYTES: u64 = 4 << 20;

/// Bytes on their way to a client.
pub(super) type Bytestream = BoxStream<'static, io::Result<Bytes>>;

/// Most bodies that are held whole in memory at a time: with the largest, 8 MiB each, a quarter of a gigabyte.
const WHOLE_BODIES_MAX: usize = 32;
/// Places for bodies that are held whole.
static WHOLE_BODIES: Semaphore = Semaphore::const_new(WHOLE_BODIES_MAX);
/// Most of a refused body that is read and thrown away: what clients put at once.
const DRAIN_BYTES_MAX: u64 = 64 << 20;
/// Longest time for that.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(30);

/// Longest silence in that.
const DRAIN_SILENCE_MAX: Duration = Duration::from_millis(500);

/// A request's body until somebody reads it.
pub(super) type Unread = Option<Body>;

/// Reads a body that nobody read and throws it away, within bounds. Clients that send all before they listen would
/// otherwise find the connection closed instead of the refusal.
pub(super) async fn drain(unread: Unread) {
    let Some(body) = unread else { return };
    let mut stream = body.into_data_stream();
    let reading = async {
        let mut bytes = 0;
        // A client that sends nothing waits for the answer already.
        while bytes < DRAIN_BYTES_MAX
            && let Ok(Some(Ok(piece))) = tokio::time::timeout(DRAIN_SILENCE_MAX, stream.next()).await
        {
            bytes += piece.len() as u64;
        }
    };
    // Whether it came to its end or to a bound, the answer is the same.
    let _ended: Result<(), tokio::time::error::Elapsed> = tokio::time::timeout(DRAIN_TIME_MAX, reading).await;
}

/// Takes the body to read it.
pub(super) fn take(unread: &mut Unread) -> Body {
    unread.take().unwrap_or_default()
}

/// The next piece of a request's body; `None` at its end.
///
/// # Errors
/// 408 after a silence, 400 when the connection ends before the body does.
pub(super) async fn next(body: &mut axum::body::BodyDataStream) -> Result<Option<Bytes>, BlobError> {
    match tokio::time::timeout(SILENCE_MAX, body.next()).await {
        Ok(None) => Ok(None),
        Ok(Some(Ok(bytes))) => Ok(Some(bytes)),
        Ok(Some(Err(error))) => {
            let message = format!("The request's body could not be read: {error}.");
            Err(BlobError::new(StatusCode::BAD_REQUEST, "IncompleteBody", message))
        }
        Err(_) => {
            let message = format!("The client was silent for {} s inside the body.", SILENCE_MAX.as_secs());
            Err(BlobError::new(StatusCode::REQUEST_TIMEOUT, "RequestTimeout", message))
        }
    }
}

/// A body in memory, and its place among those that may be.
#[derive(Debug)]
pub(super) struct Whole {
    /// The bytes.
    pub(super) bytes: Bytes,
    _place: SemaphorePermit<'static>,
}

/// A whole body of at most `max` bytes. Waits for a place.
///
/// # Errors
/// 413, and those of [`next`].
pub(super) async fn read(body: Body, max: u64) -> Result<Whole, BlobError> {
    let place = WHOLE_BODIES.acquire().await.map_err(BlobError::internal)?;
    let mut stream = body.into_data_stream();
    let mut whole = BytesMut::new();
    while let Some(piece) = next(&mut stream).await? {
        if whole.len() as u64 + piece.len() as u64 > max {
            return Err(BlobError::too_large(max));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(Whole { bytes: whole.freeze(), _place: place })
}

/// `Content-Length`, which every request with a body for a blob has.
///
/// # Errors
/// 411 without one.
pub(super) fn content_length(headers: &HeaderMap) -> Result<u64, BlobError> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    length.ok_or_else(|| {
        let message = "The content length HTTP header was not specified.";
        BlobError::new(StatusCode::LENGTH_REQUIRED, "MissingContentLengthHeader", message)
    })
}

/// Checks `Content-MD5`, if there is one, against the digest of what came. CRC64 is refused, because a check that is
/// asked for and not made is worse than none.
///
/// # Errors
/// 400.
pub(super) fn check_md5(headers: &HeaderMap, found: &[u8; 16]) -> Result<(), BlobError> {
    if headers.contains_key("x-ms-content-crc64") {
        return Err(BlobError::unsupported("x-ms-content-crc64; use Content-MD5"));
    }
    let Some(expected) = headers.get("content-md5") else { return Ok(()) };
    let expected = STANDARD.decode(expected.as_bytes());
    match expected {
        Ok(expected) if expected == found => Ok(()),
        Ok(expected) if expected.len() == 16 => Err(BlobError::md5_mismatch()),
        _ => Err(BlobError::header("Content-MD5", "is not 16 bytes in base64")),
    }
}

/// The MD5 of bytes.
pub(super) fn md5(bytes: &[u8]) -> [u8; 16] {
    Md5::digest(bytes).into()
}

/// Says the MD5 of what came.
pub(super) fn set_md5(headers: &mut HeaderMap, digest: &[u8; 16]) {
    set(headers, header::HeaderName::from_static("content-md5"), &STANDARD.encode(digest));
}

/// `x-ms-request-server-encrypted`.
pub(super) fn encrypted(encrypted: bool) -> HeaderValue {
    HeaderValue::from_static(if encrypted { "true" } else { "false" })
}

/// Answers Get Blob (`with_body`) or Get Blob Properties: conditions, range, headers, and what `bytes` gives.
///
/// # Errors
/// 304, 412, 416; 500 when the first piece cannot be read. A later one that cannot ends the connection.
pub(super) async fn answer(
    headers: &HeaderMap,
    about: &About,
    size: u64,
    with_body: bool,
    bytes: impl FnOnce(Range<u64>) -> Bytestream,
) -> Result<Response, BlobError> {
    conditions::check(headers, For::Reading, Some(about.modified))?;
    // Get Blob Properties knows no ranges.
    let wanted = if with_body { range::wanted(headers) } else { None };
    // An empty blob has no byte that a range could begin at, and clients ask for the first megabytes of any blob.
    let bounds = match wanted {
        Some(wanted) => wanted.within(size)?,
        None => 0..size,
    };
    let length = bounds.end - bounds.start;
    let mut response = Response::new(Body::empty());
    let answer = response.headers_mut();
    about.write(answer, wanted.is_none());
    answer.insert(header::CONTENT_LENGTH, length.into());
    if wanted.is_some() {
        set(answer, header::CONTENT_RANGE, &format!("bytes {}-{}/{size}", bounds.start, bounds.end - 1));
    }
    if with_body {
        let md5_wanted = headers.get("x-ms-range-get-content-md5").is_some_and(|v| v == "true");
        let body = match md5_wanted && wanted.is_some() {
            false => {
                let mut pieces = bytes(bounds);
                // Before the status is sent, so that damage is an answer and not only a connection that ends.
                let first = pieces.try_next().await.map_err(|error| BlobError::io("read a blob", &error))?;
                Body::from_stream(stream::iter(first.map(Ok)).chain(pieces))
            }
            true => {
                if length > MAX_RANGE_MD5_BYTES {
                    let message = "The MD5 of a range is computed for at most 4 MiB.";
                    let error = BlobError::new(StatusCode::BAD_REQUEST, "OutOfRangeInput", message);
                    return Err(error);
                }
                let whole: Vec<Bytes> = bytes(bounds)
                    .try_collect()
                    .await
                    .map_err(|error| BlobError::io("read a blob", &error))?;
                let whole = whole.concat();
                set_md5(answer, &md5(&whole));
                Body::from(whole)
            }
        };
        *response.body_mut() = body;
    }
    if wanted.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode, about: Option<&About>) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    if let Some(about) = about {
        about.write_version(headers);
    }
    response
}
