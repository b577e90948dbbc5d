//! Fetches what templates name by URL, on a user's behalf: only from addresses that the network policy allows,
//! asked at every connection and redirect, without a proxy, and with bounds on size, time and redirects. Blobs of this
//! service itself are read without the network, and need a SAS as everywhere.

mod sparse;

use std::io::SeekFrom;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use model::image_template::Sha256;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use sha2::Digest;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use vmhost::{AllowEntry, NetPolicy, Outbound, host_addresses, resolve_allowed};

use crate::http::error::chain;
use crate::{AppState, blob};

pub(crate) use sparse::fetch_sparse_to_file;

/// Most redirects that are followed.
const REDIRECTS_MAX: usize = 5;
/// How often a fetch is tried that fails for a reason that may pass.
const ATTEMPTS: u32 = 3;
/// Before the second attempt; doubles.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Until the server is connected to.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence of the server.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest `x-ms-error-code` that is shown.
const STORAGE_CODE_BYTES_MAX: usize = 64;

/// Bounds of one fetch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FetchLimits {
    /// Largest file in bytes.
    pub(crate) bytes_max: u64,
    /// One attempt as a whole, redirects included.
    pub(crate) attempt_timeout: Duration,
}

impl FetchLimits {
    fn check(self, bytes: u64) -> Result<(), Attempt> {
        let Self { bytes_max, .. } = self;
        match bytes > bytes_max {
            false => Ok(()),
            true => {
                Err(Attempt::Refused(format!("it has more than {bytes_max} bytes, the most that is fetched")))
            }
        }
    }
}

/// Why something could not be fetched. Addresses are shown without their query, which may hold a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// Asking again gives the same answer.
    #[error("'{shown}' cannot be fetched: {reason}")]
    Refused {
        /// The address without secrets.
        shown: String,
        /// Cause and remedy.
        reason: String,
    },
    /// The network or the other side.
    #[error(
        "'{shown}' could not be fetched in {ATTEMPTS} attempts: {reason}; check that this server can reach the address"
    )]
    Unreachable {
        /// The address without secrets.
        shown: String,
        /// Cause.
        reason: String,
    },
    /// The file cannot be written here.
    #[error("the fetched file cannot be stored: {0}")]
    Io(#[from] std::io::Error),
}

/// What was fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fetched {
    /// Length in bytes.
    pub(crate) bytes: u64,
    /// Digest of the content.
    pub(crate) sha256: Sha256,
}

/// One attempt's failure.
enum Attempt {
    Refused(String),
    Passing(String),
    Io(std::io::Error),
}

impl From<std::io::Error> for Attempt {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// Fetches `url` (http or https) into the file `path`, which is replaced. `progress` hears how many bytes have
/// come, of how many if the server says so.
///
/// # Errors
/// [`FetchError`]; the file may then be there in part.
pub(crate) async fn fetch_to_file(
    state: &AppState,
    url: &str,
    path: &Path,
    limits: FetchLimits,
    progress: impl Fn(u64, Option<u64>),
) -> Result<Fetched, FetchError> {
    let source = Source { outbound: state.fabric.outbound(), own: Some(state) };
    fetch(source, url, path, limits, progress).await
}

/// From where a fetch may read.
#[derive(Clone, Copy)]
struct Source<'a> {
    outbound: &'a Outbound,
    /// The service whose own blobs are read without the network.
    own: Option<&'a AppState>,
}

async fn fetch(
    source: Source<'_>,
    url: &str,
    path: &Path,
    limits: FetchLimits,
    progress: impl Fn(u64, Option<u64>),
) -> Result<Fetched, FetchError> {
    let progress = &progress;
    let once = move || async move {
        let answer = request(source, url, &HeaderMap::new()).await?;
        store_whole(answer, path, limits, progress).await
    };
    attempts(url, limits, once).await
}

/// Tries again what fails for a reason that may pass.
async fn attempts<T, F: Future<Output = Result<T, Attempt>>>(
    url: &str,
    limits: FetchLimits,
    once: impl Fn() -> F,
) -> Result<T, FetchError> {
    let shown = shown(url);
    let mut pause = RETRY_PAUSE;
    let mut attempt = 1;
    loop {
        let tried = tokio::time::timeout(limits.attempt_timeout, once()).await;
        let tried = tried.unwrap_or_else(|_| {
            Err(Attempt::Passing(format!("it took more than {} s", limits.attempt_timeout.as_secs())))
        });
        match tried {
            Ok(fetched) => return Ok(fetched),
            Err(Attempt::Io(error)) => return Err(error.into()),
            Err(Attempt::Refused(reason)) => return Err(FetchError::Refused { shown, reason }),
            Err(Attempt::Passing(reason)) if attempt == ATTEMPTS => {
                return Err(FetchError::Unreachable { shown, reason });
            }
            Err(Attempt::Passing(_)) => {
                tokio::time::sleep(pause).await;
                pause *= 2;
                attempt += 1;
            }
        }
    }
}

/// Stores all of an answer.
async fn store_whole(
    answer: Answer,
    path: &Path,
    limits: FetchLimits,
    progress: impl Fn(u64, Option<u64>),
) -> Result<Fetched, Attempt> {
    let total = answer.length;
    limits.check(total.unwrap_or_default())?;
    let mut file = tokio::fs::File::create(path).await?;
    let (mut hash, mut bytes) = (sha2::Sha256::new(), 0u64);
    // Zeros become holes: a fixed VHD is mostly zeros.
    let mut written = 0u64;
    let mut body = answer.body;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(Attempt::Passing)?;
        bytes += chunk.len() as u64;
        limits.check(bytes)?;
        hash.update(&chunk);
        if chunk.iter().any(|byte| *byte != 0) {
            file.seek(SeekFrom::Start(bytes - chunk.len() as u64)).await?;
            file.write_all(&chunk).await?;
            written = bytes;
        }
        progress(bytes, total);
    }
    if written < bytes {
        file.flush().await?;
        file.set_len(bytes).await?;
    }
    file.sync_all().await?;
    Ok(Fetched { bytes, sha256: Sha256::new(hash.finalize().into()) })
}

/// Sends GET, and follows redirects itself: each goes to a host that the policy must allow.
async fn request(source: Source<'_>, url: &str, headers: &HeaderMap) -> Result<Answer, Attempt> {
    let policy = policy(source.outbound).map_err(Attempt::Refused)?;
    let own = host_addresses()?;
    let mut url = Url::parse(url).map_err(|error| Attempt::Refused(format!("it is no URL: {error}")))?;
    for _ in 0..=REDIRECTS_MAX {
        let answer = match source.own {
            Some(state) => blob::own::get(state, &url).await.map(Answer::of_own),
            None => None,
        };
        let answer = match answer {
            Some(answer) => answer,
            None => Answer::of_other(hop(&policy, &own, &url, headers).await?),
        };
        let status = answer.status;
        if status.is_success() {
            return Ok(answer);
        }
        if !status.is_redirection() {
            let reason = answer.refusal(&url);
            // A file that was replaced between two parts of it is fetched anew.
            let passing = status.is_server_error() || matches!(status.as_u16(), 412 | 429);
            return Err(if passing { Attempt::Passing(reason) } else { Attempt::Refused(reason) });
        }
        let next = answer.location.as_deref().and_then(|location| url.join(location).ok());
        let next = next.ok_or_else(|| {
            Attempt::Refused(format!("the server answered {status} without a usable Location"))
        })?;
        if url.scheme() == "https" && next.scheme() != "https" {
            return Err(Attempt::Refused(
                "it redirects from https to an address that is not encrypted".to_owned(),
            ));
        }
        url = next;
    }
    Err(Attempt::Refused(format!("it redirects more than {REDIRECTS_MAX} times")))
}

/// What a server answered, this one or another.
struct Answer {
    status: StatusCode,
    /// Where a redirect leads.
    location: Option<String>,
    /// What a storage service says is wrong.
    storage_code: Option<String>,
    length: Option<u64>,
    headers: HeaderMap,
    body: BoxStream<'static, Result<Bytes, String>>,
}

impl Answer {
    fn of_other(response: Response) -> Self {
        let length = response.content_length();
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes_stream().map_err(|error| chain(&error.without_url()));
        Self::new(status, headers, length, body.boxed())
    }

    fn of_own(response: axum::response::Response) -> Self {
        let (parts, body) = response.into_parts();
        let length = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let body = body.into_data_stream().map_err(|error| chain(&error));
        Self::new(parts.status, parts.headers, length, body.boxed())
    }

    fn new(
        status: StatusCode,
        headers: HeaderMap,
        length: Option<u64>,
        body: BoxStream<'static, Result<Bytes, String>>,
    ) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let storage_code = text("x-ms-error-code").filter(|code| code.len() <= STORAGE_CODE_BYTES_MAX);
        Self { status, location: text("location"), storage_code, length, headers, body }
    }

    /// Where the part of a file begins that this is, and how long the file is.
    fn part(&self) -> Option<(u64, u64)> {
        let text = self.headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
        let (range, total) = text.split_once('/')?;
        let (start, _) = range.split_once('-')?;
        let part = (start.parse().ok()?, total.parse().ok()?);
        (self.status == StatusCode::PARTIAL_CONTENT).then_some(part)
    }

    /// Why nothing is fetched; for a storage service also what would help.
    fn refusal(&self, url: &Url) -> String {
        let Some(code) = &self.storage_code else { return format!("the server answered {}", self.status) };
        let remedy = match (self.status.as_u16(), url.query_pairs().any(|(name, _)| name == "sig")) {
            (401 | 403 | 404 | 409, false) => "; a private blob needs a SAS in its address",
            (401 | 403, true) => {
                "; check that its SAS is whole, has not expired, and allows reading (sp=r) from here"
            }
            _ => "",
        };
        format!("the server answered {} ({code}){remedy}", self.status)
    }
}

async fn hop(
    policy: &NetPolicy,
    own: &[IpAddr],
    url: &Url,
    headers: &HeaderMap,
) -> Result<Response, Attempt> {
    let client = client(policy, own, url, READ_TIMEOUT).await.map_err(Attempt::Refused)?;
    let sent = client.get(url.clone()).headers(headers.clone()).send().await;
    sent.map_err(|error| Attempt::Passing(chain(&error.without_url())))
}

/// A client for the host of `url` alone: connects to the addresses that the network policy allows now, uses no proxy,
/// follows no redirect, and gives up after `read_timeout` of silence.
///
/// # Errors
/// Why the address may not be used, without secrets.
pub(crate) async fn allowed_client(
    outbound: &Outbound,
    url: &Url,
    read_timeout: Duration,
) -> Result<Client, String> {
    let policy = policy(outbound)?;
    let own = host_addresses().map_err(|error| chain(&error))?;
    client(&policy, &own, url, read_timeout).await
}

async fn client(
    policy: &NetPolicy,
    own: &[IpAddr],
    url: &Url,
    read_timeout: Duration,
) -> Result<Client, String> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("'{}' is not http or https", url.scheme()));
    }
    let host = url.host_str().ok_or_else(|| "it has no host".to_owned())?;
    let port = url.port_or_known_default().ok_or_else(|| "it has no port".to_owned())?;
    let allowed = resolve_allowed(policy, own, host, port).await.map_err(|error| chain(&error))?;
    Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .resolve_to_addrs(host, &allowed)
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(read_timeout)
        .build()
        .map_err(|error| chain(&error))
}

fn policy(outbound: &Outbound) -> Result<NetPolicy, String> {
    let entries = outbound.allow.iter().map(|entry| entry.parse::<AllowEntry>());
    let allow = entries
        .collect::<Result<_, _>>()
        .map_err(|error| format!("the configuration key 'network.allow' is wrong: {error}"))?;
    Ok(NetPolicy { allow, deny_all_outbound: false })
}

/// An address as messages show it: without user, password, query and fragment.
pub(crate) fn shown(url: &str) -> String {
    let Ok(mut url) = Url::parse(url) else { return "(no URL)".to_owned() };
    url.set_query(None);
    url.set_fragment(None);
    // Both fail only for addresses that cannot have them.
    let _none: (Result<(), ()>, Result<(), ()>) = (url.set_username(""), url.set_password(None));
    url.to_string()
}

#[cfg(test)]
mod tests;
