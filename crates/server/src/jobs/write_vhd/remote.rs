//! Put Blob and Put Page to a storage account elsewhere, with the SAS that its address carries, through the network
//! policy. Every request may be sent again: each says where its bytes go.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use md5::{Digest, Md5};
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, StatusCode, Url};
use vmhost::Outbound;

use super::READ_TIMEOUT;
use crate::http::error::chain;
use crate::jobs::fetch::{allowed_client, shown};

/// How often a request is sent that fails for a reason that may pass.
const ATTEMPTS: u32 = 6;
/// Before the second attempt; doubles. All attempts together wait 15 s.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Longest time of one request: 4 MiB at 35 KB/s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// Spoken by Azure, Azurite and this service.
const VERSION: &str = "2021-12-02";
/// Longest `x-ms-error-code` that is shown.
const CODE_BYTES_MAX: usize = 64;

/// A page blob elsewhere that is being written.
pub(super) struct RemotePages {
    outbound: Outbound,
    /// With its SAS.
    blob: Url,
    /// The same for Put Page.
    pages: Url,
    client: Mutex<Client>,
}

/// Why one request did not work.
enum Failure {
    Final(String),
    Passing(String),
}

impl RemotePages {
    /// Makes a blob of `bytes` zeros in the place of what is there.
    ///
    /// # Errors
    /// Cause and remedy, without the SAS.
    pub(super) async fn create(outbound: &Outbound, url: &Url, bytes: u64) -> Result<Self, String> {
        let client =
            allowed_client(outbound, url, READ_TIMEOUT).await.map_err(|reason| refused(url, &reason))?;
        let mut pages = url.clone();
        // Appended as text: parsing and writing the pairs anew could change what was signed.
        pages.set_query(Some(&format!("{}&comp=page", url.query().unwrap_or_default())));
        let created =
            Self { outbound: outbound.clone(), blob: url.clone(), pages, client: Mutex::new(client) };
        let headers = headers([
            ("x-ms-blob-type", "PageBlob".to_owned()),
            ("x-ms-blob-content-length", bytes.to_string()),
        ])?;
        created.send(&created.blob, headers, Bytes::new()).await?;
        Ok(created)
    }

    /// Writes whole pages, at most 4 MiB. They are durable when this returns.
    ///
    /// # Errors
    /// As [`RemotePages::create`].
    pub(super) async fn write(&self, at: u64, bytes: Bytes) -> Result<(), String> {
        let last = at + bytes.len() as u64 - 1;
        let headers = headers([
            ("x-ms-page-write", "update".to_owned()),
            ("x-ms-range", format!("bytes={at}-{last}")),
            ("content-md5", STANDARD.encode(Md5::digest(&bytes))),
        ])?;
        self.send(&self.pages, headers, bytes).await
    }

    async fn send(&self, url: &Url, headers: HeaderMap, body: Bytes) -> Result<(), String> {
        let mut pause = RETRY_PAUSE;
        for attempt in 1..=ATTEMPTS {
            let reason = match self.once(url, &headers, &body, attempt).await {
                Ok(()) => return Ok(()),
                Err(Failure::Final(reason)) => return Err(refused(url, &reason)),
                Err(Failure::Passing(reason)) if attempt == ATTEMPTS => {
                    return Err(format!(
                        "'{}' could not be written in {ATTEMPTS} attempts: {reason}; check that this server can reach it, and run \
                         the template again",
                        shown(url.as_str())
                    ));
                }
                Err(Failure::Passing(reason)) => reason,
            };
            tracing::debug!(
                attempt,
                reason,
                url = shown(url.as_str()),
                "a page blob's request is sent again"
            );
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(refused(url, "no attempt was made"))
    }

    async fn once(&self, url: &Url, headers: &HeaderMap, body: &Bytes, attempt: u32) -> Result<(), Failure> {
        if attempt > 1 {
            // The host may have moved; what it resolves to now is judged again.
            let client = allowed_client(&self.outbound, url, READ_TIMEOUT).await.map_err(Failure::Passing)?;
            *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
        }
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let request = client
            .put(url.clone())
            .timeout(REQUEST_TIMEOUT)
            .header("x-ms-version", VERSION)
            .header(CONTENT_LENGTH, body.len())
            .headers(headers.clone())
            .body(body.clone());
        let answer = request.send().await.map_err(|error| Failure::Passing(chain(&error.without_url())))?;
        let status = answer.status();
        if status == StatusCode::CREATED {
            return Ok(());
        }
        let code = answer.headers().get("x-ms-error-code").and_then(|code| code.to_str().ok());
        let code = code.filter(|code| code.len() <= CODE_BYTES_MAX);
        let reason = refusal(status, code);
        let passing = matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504);
        Err(if passing { Failure::Passing(reason) } else { Failure::Final(reason) })
    }
}

fn refused(url: &Url, reason: &str) -> String {
    format!("'{}' cannot be written: {reason}", shown(url.as_str()))
}

fn headers<const N: usize>(pairs: [(&'static str, String); N]) -> Result<HeaderMap, String> {
    let pairs = pairs.into_iter().map(|(name, value)| {
        let value = HeaderValue::try_from(value).map_err(|error| error.to_string())?;
        Ok((HeaderName::from_static(name), value))
    });
    pairs.collect()
}

/// What the service said, and what would help.
fn refusal(status: StatusCode, code: Option<&str>) -> String {
    let Some(code) = code else {
        return format!("the server answered {status}, and not as a storage account does");
    };
    let remedy = match (status.as_u16(), code) {
        (401 | 403, _) => {
            "; check that its SAS is whole, has not expired, and allows creating and writing (sp=cw) from here"
        }
        (404, "ContainerNotFound") => "; create the container first",
        (_, "LeaseIdMissing") => "; break the blob's lease, or choose another blob",
        (409, "InvalidBlobType") => "; a blob of another type has that name: delete it, or choose another",
        _ => "",
    };
    format!("the server answered {status} ({code}){remedy}")
}
