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

/// Memory for bodies that are held whole, in KiB: a quarter of a gigabyte. A body has room for what came of it, so that
/// slow ones keep nobody waiting.
const ROOM_KIB: usize = 256 << 10;
/// The room that is left.
static ROOM: Semaphore = Semaphore::const_new(ROOM_KIB);
/// Longest wait for room. Bodies that wait for each other end with it.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(20);
/// Longest time that a whole body may take: 4 MiB at 14 KiB a second.
pub(super) const WHOLE_TIME_MAX: Duration = Duration::from_secs(300);
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

/// A body in memory, and its room there.
#[derive(Debug)]
pub(super) struct Whole {
    /// The bytes.
    pub(super) bytes: Bytes,
    _room: Option<SemaphorePermit<'static>>,
}

/// A whole body of at most `max` bytes.
///
/// # Errors
/// 413, 500 when it takes too long, 503 when there is no room, and those of [`next`].
pub(super) async fn read(body: Body, max: u64) -> Result<Whole, BlobError> {
    let reading = async {
        let mut stream = body.into_data_stream();
        let (mut whole, mut room) = (BytesMut::new(), None);
        while let Some(piece) = next(&mut stream).await? {
            let length = whole.len() + piece.len();
            if length as u64 > max {
                return Err(BlobError::too_large(max));
            }
            make_room(&mut room, length).await?;
            whole.extend_from_slice(&piece);
        }
        Ok(Whole { bytes: whole.freeze(), _room: room })
    };
    tokio::time::timeout(WHOLE_TIME_MAX, reading).await.unwrap_or_else(|_| {
        let seconds = WHOLE_TIME_MAX.as_secs();
        Err(BlobError::timed_out(format!("The body did not come within {seconds} s; send less at once.")))
    })
}

/// Takes room until there is some for `length` bytes.
async fn make_room(room: &mut Option<SemaphorePermit<'static>>, length: usize) -> Result<(), BlobError> {
    let held = room.as_ref().map_or(0, SemaphorePermit::num_permits);
    let lacking = length.div_ceil(1024).saturating_sub(held);
    let Some(lacking) = u32::try_from(lacking).ok().filter(|lacking| *lacking > 0) else { return Ok(()) };
    let more = tokio::time::timeout(ROOM_WAIT_MAX, ROOM.acquire_many(lacking)).await;
    let more = more.map_err(|_| BlobError::busy())?.map_err(BlobError::internal)?;
    match room {
        Some(room) => room.merge(more),
        None => *room = Some(more),
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    /// A byte now and then, for ever.
    fn slow(pause: Duration) -> Body {
        Body::from_stream(stream::unfold((), move |()| async move {
            tokio::time::sleep(pause).await;
            Some((Ok::<_, io::Error>(Bytes::from_static(b"x")), ()))
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn slow_bodies_hold_up_nobody_and_end() {
        let pause = Duration::from_secs(50);
        let slow: Vec<_> = (0..100).map(|_| tokio::spawn(read(slow(pause), 1 << 20))).collect();
        tokio::time::sleep(2 * pause).await;
        let started = tokio::time::Instant::now();
        let whole = read(Body::from(vec![7; 4 << 20]), 4 << 20).await.unwrap();
        assert_eq!((whole.bytes.len(), started.elapsed()), (4 << 20, Duration::ZERO));
        for read in slow {
            let error = read.await.unwrap().unwrap_err();
            assert_eq!((error.status.as_u16(), error.code), (500, "OperationTimedOut"));
        }
        // 4 MiB at 70 KB a second are not too slow.
        let pieces = stream::unfold(0, |at| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            (at < 60).then(|| (Ok::<_, io::Error>(Bytes::from(vec![1; 70_000])), at + 1))
        });
        assert_eq!(read(Body::from_stream(pieces), 8 << 20).await.unwrap().bytes.len(), 60 * 70_000);
        // As many as there is room for, which other tests may use a little of; one more is told to come again.
        let mut held = Vec::new();
        let busy = loop {
            match read(Body::from(vec![0; 8 << 20]), 8 << 20).await {
                Ok(whole) => held.push(whole),
                Err(busy) => break busy,
            }
        };
        assert!((28..=ROOM_KIB / (8 << 10)).contains(&held.len()), "{}", held.len());
        assert_eq!((busy.status.as_u16(), busy.code), (503, "ServerBusy"));
    }
}
