//! A disk from a URL: fetched to a file under the network policy, checked, and made raw.
//!
//! The format is declared by the recipe and never probed, and a qcow2 file that names another file is refused:
//! whoever made the file must not choose what is read on this host.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use build::platform::{Download, DownloadFormat};
use futures::StreamExt;
use reqwest::Url;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vmhost::{AllowEntry, NetPolicy, host_addresses, resolve_allowed};

use super::log::RunLog;
use crate::AppState;
use crate::http::error::chain;
use crate::jobs::context::JobFailure;

/// Largest file that is fetched.
const FILE_BYTES_MAX: u64 = 64 << 30;
/// Most redirects.
const REDIRECTS_MAX: usize = 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest silence of the server.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest download.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(3 * 60 * 60);
/// Longest conversion.
const CONVERT_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// Bytes between two lines of progress.
const PROGRESS_BYTES: u64 = 64 << 20;

/// Fetches the recipe's file into `dir` (made if absent); gives the path of the raw disk.
pub(super) async fn fetch_disk(
    state: &AppState,
    recipe: &Download,
    dir: &Path,
    log: &RunLog,
) -> Result<PathBuf, JobFailure> {
    tokio::fs::create_dir_all(dir).await.map_err(|error| internal("make the scratch folder", &error))?;
    let file = dir.join("fetched");
    let fetched = tokio::time::timeout(DOWNLOAD_TIMEOUT, fetch(state, recipe, &file, log)).await;
    fetched.unwrap_or_else(|_| {
        let hours = DOWNLOAD_TIMEOUT.as_secs() / 3600;
        Err(failed(recipe, &format!("it took more than {hours} hours"), true))
    })?;
    match recipe.format {
        DownloadFormat::Raw => Ok(file),
        DownloadFormat::Qcow2 => {
            check_self_contained(&file).await.map_err(|reason| failed(recipe, &reason, false))?;
            convert(recipe, &file, dir, log).await
        }
        DownloadFormat::Vhd => convert(recipe, &file, dir, log).await,
    }
}

async fn fetch(state: &AppState, recipe: &Download, file: &Path, log: &RunLog) -> Result<(), JobFailure> {
    let response = request(state, recipe, log).await?;
    let total = response.content_length();
    if total.is_some_and(|total| total > FILE_BYTES_MAX) {
        return Err(failed(recipe, &format!("the file has more than {FILE_BYTES_MAX} bytes"), false));
    }
    let write = |error: std::io::Error| internal("write the fetched file", &error);
    let mut out = tokio::fs::File::create(file).await.map_err(write)?;
    let (mut hash, mut length, mut said) = (Sha256::new(), 0, 0);
    let mut body = response.bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| failed(recipe, &chain(&error), true))?;
        length += chunk.len() as u64;
        if length > FILE_BYTES_MAX {
            return Err(failed(recipe, &format!("the file has more than {FILE_BYTES_MAX} bytes"), false));
        }
        hash.update(&chunk);
        out.write_all(&chunk).await.map_err(write)?;
        if length - said >= PROGRESS_BYTES {
            said = length;
            let of = total.map(|total| format!(" of {total}")).unwrap_or_default();
            log.line(&format!("fetched {length}{of} bytes"));
        }
    }
    out.sync_all().await.map_err(write)?;
    let found = hex::encode(hash.finalize());
    if !found.eq_ignore_ascii_case(&recipe.sha256) {
        let expected = recipe.sha256.to_ascii_lowercase();
        let reason = format!(
            "its SHA-256 is {found}, not {expected} as the catalogue says; correct the catalogue, or do not trust the file"
        );
        return Err(failed(recipe, &reason, false));
    }
    log.line(&format!("fetched {length} bytes, SHA-256 as the catalogue says"));
    Ok(())
}

/// Follows redirects by hand: every hop's address is judged before it is connected to, and connected to as judged.
async fn request(state: &AppState, recipe: &Download, log: &RunLog) -> Result<reqwest::Response, JobFailure> {
    let refused = |reason: &str| failed(recipe, reason, false);
    let allow: Result<Vec<AllowEntry>, _> =
        state.config.network.allow.iter().map(|entry| entry.parse()).collect();
    let allow = allow.map_err(|error| refused(&format!("configuration key 'network.allow': {error}")))?;
    let policy = NetPolicy { allow, deny_all_outbound: false };
    let own: Vec<IpAddr> = host_addresses().map_err(|error| internal("list the host's addresses", &error))?;
    let mut url = Url::parse(&recipe.url).map_err(|error| refused(&error.to_string()))?;
    for _ in 0..=REDIRECTS_MAX {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refused(&format!("'{}' is neither http nor https", url.scheme())));
        }
        let (host, port) = match (url.host_str(), url.port_or_known_default()) {
            (Some(host), Some(port)) => (host.to_owned(), port),
            _ => return Err(refused("the URL has no host")),
        };
        // Neither a policy nor a name that is not known changes by trying again soon.
        let addresses =
            resolve_allowed(&policy, &own, &host, port).await.map_err(|error| refused(&error.to_string()))?;
        log.line(&format!("fetching {}", shown(&url)));
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .resolve_to_addrs(&host, &addresses)
            .build()
            .map_err(|error| failed(recipe, &chain(&error), false))?;
        let response =
            client.get(url.clone()).send().await.map_err(|error| failed(recipe, &chain(&error), true))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if !status.is_redirection() {
            return Err(failed(recipe, &format!("the server answered {status}"), status.is_server_error()));
        }
        let location =
            response.headers().get(reqwest::header::LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| refused("a redirect does not say where to"))?;
        url = url.join(location).map_err(|error| refused(&format!("a redirect leads nowhere: {error}")))?;
    }
    Err(refused(&format!("there are more than {REDIRECTS_MAX} redirects")))
}

/// A URL without what may be secret in it.
fn shown(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

/// Refuses a qcow2 file that gets bytes from another file (QEMU's docs/interop/qcow2.txt).
async fn check_self_contained(file: &Path) -> Result<(), String> {
    /// Incompatible features, bit 2: the data is in another file.
    const EXTERNAL_DATA: u64 = 1 << 2;
    let mut header = Vec::new();
    let open = tokio::fs::File::open(file).await.map_err(|error| error.to_string())?;
    open.take(80).read_to_end(&mut header).await.map_err(|error| error.to_string())?;
    let be64 = |at: usize| header.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
    let version = header.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let (Some(b"QFI\xfb"), Some(version), Some(backing), Some(features)) =
        (header.get(..4), version, be64(8), be64(72))
    else {
        return Err("it is no qcow2 file, although the catalogue says so".to_owned());
    };
    // Version 2 has no features; its header ends before the field.
    if backing != 0 || (version >= 3 && features & EXTERNAL_DATA != 0) {
        return Err(
            "it refers to another file; only a qcow2 file that is complete in itself is taken".to_owned()
        );
    }
    Ok(())
}

/// Makes a raw file of it, and removes the fetched one.
async fn convert(recipe: &Download, file: &Path, dir: &Path, log: &RunLog) -> Result<PathBuf, JobFailure> {
    log.line("converting to a raw disk");
    let disk = dir.join("disk.raw");
    let file_node = json!({ "driver": "file", "filename": file });
    let source = match recipe.format {
        DownloadFormat::Raw => json!({ "driver": "raw", "file": file_node }),
        DownloadFormat::Qcow2 => json!({ "driver": "qcow2", "backing": null, "file": file_node }),
        // The size in the footer, as Azure takes it, and not the one that its geometry gives.
        DownloadFormat::Vhd => {
            json!({ "driver": "vpc", "force_size_calc": "current_size", "file": file_node })
        }
    };
    let mut command = tokio::process::Command::new("qemu-img");
    command.args(["convert", "-O", "raw"]).arg(format!("json:{source}")).arg(&disk);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(CONVERT_TIMEOUT, command.output())
        .await
        .map_err(|_| failed(recipe, "converting it took too long", false))?
        .map_err(|error| internal("start qemu-img (is qemu-utils installed?)", &error))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let words: String = words.trim().chars().take(2000).collect();
        return Err(failed(recipe, &format!("qemu-img cannot convert it: {words}"), false));
    }
    tokio::fs::remove_file(file).await.map_err(|error| internal("remove the fetched file", &error))?;
    Ok(disk)
}

fn failed(recipe: &Download, reason: &str, again: bool) -> JobFailure {
    let url = Url::parse(&recipe.url).map_or_else(|_| recipe.url.clone(), |url| shown(&url));
    let message = format!("The image at {url} cannot be used: {reason}.");
    let code = "PlatformImageFailed";
    if again { JobFailure::transient(code, message) } else { JobFailure::permanent(code, message) }
}

fn internal(what: &str, error: &std::io::Error) -> JobFailure {
    JobFailure::transient("InternalServerError", format!("cannot {what}: {error}"))
}
