//! A disk from a URL: fetched to a file under the network policy, checked, and made raw.
//!
//! The format is declared by the recipe and never probed, and a qcow2 file that names another file is refused:
//! whoever made the file must not choose what is read on this host.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use build::platform::{Download, DownloadFormat};
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::log::RunLog;
use crate::AppState;
use crate::jobs::context::JobFailure;
use crate::jobs::fetch::{FetchError, FetchLimits, fetch_to_file, shown};

/// A disk is large, and a mirror may be slow.
const LIMITS: FetchLimits =
    FetchLimits { bytes_max: 64 << 30, attempt_timeout: Duration::from_secs(3 * 60 * 60) };
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
    fetch(state, recipe, &file, log).await?;
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
    log.line(&format!("fetching {}", shown(&recipe.url)));
    let said = AtomicU64::new(0);
    let progress = |bytes: u64, total: Option<u64>| {
        if bytes.abs_diff(said.load(Relaxed)) >= PROGRESS_BYTES {
            said.store(bytes, Relaxed);
            let of = total.map(|total| format!(" of {total}")).unwrap_or_default();
            log.line(&format!("fetched {bytes}{of} bytes"));
        }
    };
    let fetched = fetch_to_file(state, &recipe.url, file, LIMITS, progress).await;
    let fetched = fetched.map_err(|error| match error {
        FetchError::Refused { reason, .. } => failed(recipe, &reason, false),
        FetchError::Unreachable { reason, .. } => failed(recipe, &reason, true),
        FetchError::Io(error) => internal("write the fetched file", &error),
    })?;
    let (found, expected) = (fetched.sha256.to_string(), recipe.sha256.to_ascii_lowercase());
    if found != expected {
        let reason = format!(
            "its SHA-256 is {found}, not {expected} as the catalogue says; correct the catalogue, or do not trust the file"
        );
        return Err(failed(recipe, &reason, false));
    }
    log.line(&format!("fetched {} bytes, SHA-256 as the catalogue says", fetched.bytes));
    Ok(())
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
    let message = format!("The image at {} cannot be used: {reason}.", shown(&recipe.url));
    let code = "PlatformImageFailed";
    if again { JobFailure::transient(code, message) } else { JobFailure::permanent(code, message) }
}

fn internal(what: &str, error: &std::io::Error) -> JobFailure {
    JobFailure::transient("InternalServerError", format!("cannot {what}: {error}"))
}
