//! Brings a VHD at an address into a region's store: a disk or snapshot of this service through its access URL, a blob of its
//! storage accounts, a file of this host if the configuration allows its folder, or anything that http(s) gives and the
//! network policy lets through.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arm::ArmError;
use disk::{BlockSource, RawFile};
use model::content::DiskContent;
use model::managed_disk::{AccessMode, ManagedDisk, UPLOAD_BYTES_MAX};
use model::placement::CopyPlan;
use model::{ManifestRef, Region};
use reqwest::Url;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::context::{JobContext, JobFailure};
use super::fetch::{FetchError, FetchLimits, fetch_sparse_to_file, shown};
use super::replicate_image_version::manifest_id;
use crate::AppState;
use crate::blob::disk_access;
use crate::blob::{BlobError, BlobQuery, local};
use crate::copies::{Bring, CopyError};
use crate::fabric::FabricError;
use crate::http::error::{ApiError, chain};
use crate::vhd::{VhdError, open_fixed};

/// A disk is large, and a server may be slow.
const LIMITS: FetchLimits =
    FetchLimits { bytes_max: UPLOAD_BYTES_MAX, attempt_timeout: Duration::from_secs(6 * 60 * 60) };
/// The property that errors name.
const TARGET: &str = "sourceUri";

/// Where a VHD is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    /// On this host, in a folder that the configuration allows; resolved.
    File(PathBuf),
    /// Behind an access URL of this service.
    Disk(Url),
    /// A blob of a storage account of this service.
    Blob(Url),
    /// Anywhere else.
    Remote(Url),
}

/// Refuses an address that cannot be imported, as far as that is known without asking anybody.
///
/// # Errors
/// 400 with cause and remedy.
pub(crate) fn check_address(state: &AppState, uri: &str) -> Result<(), ApiError> {
    address(state, uri).map(|_| ()).map_err(|message| ArmError::invalid_parameter(TARGET, message).into())
}

fn address(state: &AppState, uri: &str) -> Result<Address, String> {
    if let Some(path) = uri.strip_prefix("file://").or(uri.starts_with('/').then_some(uri)) {
        return allowed_path(&state.config.import_paths, Path::new(path)).map(Address::File);
    }
    let url = Url::parse(uri).map_err(|error| format!("The address of the VHD is no URL: {error}."))?;
    if !matches!(url.scheme(), "http" | "https") {
        let scheme = url.scheme();
        return Err(format!(
            "A VHD cannot be read from a '{scheme}' address: use http, https, or the path of a file that the service may import."
        ));
    }
    let origin = url.origin().ascii_serialization();
    Ok(match state.endpoint.origins().contains(&origin) {
        true if disk_access::is_path(url.path()) => Address::Disk(url),
        true => Address::Blob(url),
        false => Address::Remote(url),
    })
}

/// The file's real path, if it lies below an allowed folder. One message for all that is wrong, so that nobody learns
/// what files there are.
fn allowed_path(folders: &[PathBuf], path: &Path) -> Result<PathBuf, String> {
    let real = path.canonicalize().ok();
    let below = |folder: &PathBuf| {
        let folder = folder.canonicalize().ok()?;
        real.as_ref().filter(|real| real.starts_with(&folder) && real.is_file()).cloned()
    };
    folders.iter().find_map(below).ok_or_else(|| {
        format!(
            "'{}' is no file below a folder that the configuration key 'import_paths' names.",
            path.display().to_string().chars().filter(|c| !c.is_control()).take(200).collect::<String>()
        )
    })
}

/// The VHD's disk in the store of `region`, under the reference `owner`. Doing it again stores nothing new.
pub(crate) async fn import(
    context: &JobContext,
    region: &Region,
    uri: &str,
    owner: &str,
) -> Result<DiskContent, JobFailure> {
    let state = &context.state;
    match address(state, uri).map_err(|message| JobFailure::permanent("InvalidParameter", message))? {
        Address::File(path) => {
            let name = path.display().to_string();
            put_file(context, region, &path, &name, owner).await
        }
        Address::Disk(url) => from_disk(state, region, &url, owner).await,
        Address::Blob(url) => {
            let refused = |error: BlobError| {
                JobFailure::permanent("BlobNotAccessible", format!("'{}': {}", shown(uri), error.message))
            };
            let source = local::open(state, url.path()).await.map_err(refused)?;
            put(context, region, source, &shown(uri), owner).await
        }
        Address::Remote(url) => {
            let path = scratch_file(state, uri, owner).await?;
            let done = fetch_and_put(context, region, &url, &path, owner).await;
            remove(&path).await;
            done
        }
    }
}

/// A place for what is fetched, the same each time for the same work.
async fn scratch_file(state: &AppState, uri: &str, owner: &str) -> Result<PathBuf, JobFailure> {
    let folder = state.fabric.scratch_dir();
    tokio::fs::create_dir_all(&folder).await.map_err(|error| internal("make the scratch folder", &error))?;
    let hash = Sha256::digest(format!("{owner}\n{uri}").as_bytes());
    Ok(folder.join(format!("import-{}.vhd", hex::encode(&hash[..16]))))
}

async fn remove(path: &Path) {
    if let Err(error) = tokio::fs::remove_file(path).await
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a fetched VHD");
    }
}

async fn fetch_and_put(
    context: &JobContext,
    region: &Region,
    url: &Url,
    path: &Path,
    owner: &str,
) -> Result<DiskContent, JobFailure> {
    let progress = |bytes: u64, total: Option<u64>| context.report(json!({ "fetched": bytes, "of": total }));
    let fetching = fetch_sparse_to_file(&context.state, url.as_str(), path, LIMITS, progress);
    let fetched = tokio::select! {
        fetched = fetching => fetched,
        () = context.cancel.cancelled() => return Err(JobFailure::canceled()),
    };
    fetched.map_err(|error| match error {
        FetchError::Refused { .. } => JobFailure::permanent("BadRequest", chain(&error)),
        FetchError::Unreachable { .. } => JobFailure::permanent("BlobNotAccessible", chain(&error)),
        FetchError::Io(error) => internal("store the fetched VHD", &error),
    })?;
    put_file(context, region, path, &shown(url.as_str()), owner).await
}

/// Puts the disk of a fixed VHD on this host into a store.
async fn put_file(
    context: &JobContext,
    region: &Region,
    path: &Path,
    name: &str,
    owner: &str,
) -> Result<DiskContent, JobFailure> {
    let path = path.to_owned();
    let opened = tokio::task::spawn_blocking(move || RawFile::open(&path)).await;
    let file = opened.map_err(|error| internal("open a VHD", &error))?;
    let file = file.map_err(|error| vhd_failure(error.into()))?;
    put(context, region, Arc::new(file), name, owner).await
}

/// Puts the disk of a fixed VHD into a store.
async fn put(
    context: &JobContext,
    region: &Region,
    source: Arc<dyn BlockSource>,
    name: &str,
    owner: &str,
) -> Result<DiskContent, JobFailure> {
    let name = name.to_owned();
    let opened = tokio::task::spawn_blocking(move || open_fixed(source, &name)).await;
    let source = opened.map_err(|error| internal("open a VHD", &error))?.map_err(import_failure)?;
    put_source(context, region, source, owner).await
}

/// Puts a disk into the first zone of a region that takes it, beginning with the one that falls to `owner`.
pub(super) async fn put_source(
    context: &JobContext,
    region: &Region,
    source: Arc<dyn BlockSource>,
    owner: &str,
) -> Result<DiskContent, JobFailure> {
    let fabric = &context.state.fabric;
    let opened = |error: FabricError| internal("open the store", &error);
    let order = CopyPlan::everywhere(fabric.offers(region).map_err(opened)?, owner).order;
    let progress = |progress: content::Progress| {
        context.report(json!({ "stored": progress.done_bytes, "of": progress.total_bytes }));
    };
    let mut failed = None;
    for zone in order {
        let store = match fabric.zone(region, zone).await {
            Ok(store) => store,
            Err(error) => {
                failed.get_or_insert(opened(error));
                continue;
            }
        };
        let put = tokio::select! {
            put = store.put_source(Arc::clone(&source), owner, progress) => put,
            () = context.cancel.cancelled() => return Err(JobFailure::canceled()),
        };
        match put {
            Ok(report) => return disk_content(&report.manifest, report.logical_bytes),
            Err(error) => failed = Some(internal("store the disk", &error)),
        }
    }
    Err(failed.unwrap_or_else(|| JobFailure::transient("InternalServerError", "the region has no zones")))
}

/// What a store put, as documents name it.
pub(super) fn disk_content(
    manifest: &content::ManifestId,
    size_bytes: u64,
) -> Result<DiskContent, JobFailure> {
    let manifest = ManifestRef::parse(&manifest.to_string());
    let manifest = manifest
        .ok_or_else(|| JobFailure::permanent("InternalServerError", "a manifest's name cannot be kept"))?;
    Ok(DiskContent { manifest, size_bytes })
}

/// A disk or snapshot of this service: by reference, or block by block from its region.
async fn from_disk(
    state: &AppState,
    region: &Region,
    url: &Url,
    owner: &str,
) -> Result<DiskContent, JobFailure> {
    let refused = |error: BlobError| {
        JobFailure::permanent("BlobNotAccessible", format!("'{}': {}", shown(url.as_str()), error.message))
    };
    let query = BlobQuery::parse(url.query().unwrap_or_default()).map_err(refused)?;
    let (document, _) =
        disk_access::authorize(state, url.path(), &query, AccessMode::Read).await.map_err(refused)?;
    let disk: ManagedDisk = document.data;
    let content = disk.content().ok_or_else(|| {
        let message = format!("The {} {} has no content yet.", disk.kind_name(), disk.name);
        JobFailure::permanent("BadRequest", message)
    })?;
    bring(state, content, &disk.spec.location, region, owner).await?;
    Ok(content.clone())
}

/// Gives `owner` a reference to content in `to`, moving what that region lacks.
pub(super) async fn bring(
    state: &AppState,
    content: &DiskContent,
    from: &Region,
    to: &Region,
    owner: &str,
) -> Result<(), JobFailure> {
    let manifest = manifest_id(&content.manifest)?;
    let fabric = &state.fabric;
    let brought = async {
        let plan = CopyPlan::in_place(fabric.offers(to)?);
        let sources = if from == to { Vec::new() } else { fabric.holding(from, &manifest).await? };
        let bring = Bring { fabric, region: to, plan: &plan, manifest: &manifest, owner, sources: &sources };
        bring.run(|_| {}).await
    };
    brought.await.map(drop).map_err(|error: CopyError| {
        let message = format!("The source's content cannot be read: {}", chain(&error));
        match error.is_not_found() {
            true => JobFailure::permanent("NotFound", message),
            false => JobFailure::transient("InternalServerError", message),
        }
    })
}

/// What Azure says of imports, and then why (RULES.md of the doctor, 2.5).
fn not_a_vhd(cause: &dyn std::error::Error) -> JobFailure {
    JobFailure::permanent("BadRequest", format!("Only blobs formatted as VHDs can be imported. {cause}"))
}

/// As [`vhd_failure`], in the words of imports.
fn import_failure(error: VhdError) -> JobFailure {
    match error.is_the_files() {
        true => not_a_vhd(&error),
        false => vhd_failure(error),
    }
}

/// A bad VHD is the client's; anything else may pass.
pub(super) fn vhd_failure(error: VhdError) -> JobFailure {
    match error.is_the_files() {
        true => JobFailure::permanent("InvalidVhd", error.to_string()),
        false => internal("read a VHD", &error),
    }
}

pub(super) fn internal(action: &str, error: &dyn std::error::Error) -> JobFailure {
    JobFailure::transient("InternalServerError", format!("The service could not {action}: {}", chain(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_below_allowed_folders_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
        for folder in [&inside, &outside] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("d.vhd"), "x").unwrap();
        }
        std::os::unix::fs::symlink(outside.join("d.vhd"), inside.join("link.vhd")).unwrap();
        let allowed = [inside.clone()];
        let ask = |path: PathBuf| allowed_path(&allowed, &path);
        assert_eq!(ask(inside.join("d.vhd")).unwrap(), inside.canonicalize().unwrap().join("d.vhd"));
        for bad in ["link.vhd", "../out/d.vhd", "missing.vhd", ".", ".."].map(|name| inside.join(name)) {
            assert!(ask(bad.clone()).unwrap_err().contains("import_paths"), "{}", bad.display());
        }
        assert!(allowed_path(&[], &inside.join("d.vhd")).is_err());
    }
}
