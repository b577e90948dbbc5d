//! Disks and snapshots as page blobs, for those who hold a URL that `beginGetAccess` handed out.
//!
//! ```text
//!  https://host:port/md-{disk}/{access}/abcd?sv=…&sr=b&si={access id}&sp=r|rw&se=…&sig=…
//!      │ si → row of the disk (a setting leads there)
//!      └ sig covers path, times, permission and the row's generation: ending an access ends every URL before it
//! ```
//!
//! The dash keeps these paths apart from those of storage accounts, whose names have none.

mod sas;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderName, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use content::{BlockCache, Image, KeyRing, ManifestId};
use model::managed_disk::{AccessMode, DiskAccess, DiskBytes, ManagedDisk};
use store::{Document, Tx};
use tokio::sync::Mutex;
use uuid::Uuid;

pub(crate) use sas::SasKey;

use super::page::{PageBlob, PageFile, PageImage, PageName, serve};
use super::{About, BlobError, BlobQuery};
use crate::AppState;
use crate::http::error::chain;

/// First segments of paths that belong here.
const PREFIX: &str = "md-";
/// The version of the protocol that a client speaks; given back.
const VERSION: HeaderName = HeaderName::from_static("x-ms-version");
/// Longest that is given back.
const VERSION_BYTES_MAX: usize = 32;
/// Images that are kept open between requests.
const OPEN_IMAGES_MAX: usize = 64;

/// What serving disks needs between requests.
pub(crate) struct DiskExports {
    pub(crate) key: SasKey,
    uploads_dir: PathBuf,
    /// By access, so that sealing one ends all that use it.
    uploads: Mutex<HashMap<Uuid, PageFile>>,
    images: Mutex<HashMap<ManifestId, Image>>,
    cache: Arc<BlockCache>,
}

/// Why exports cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ExportsError {
    /// The key or the folder of uploads.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The key's file holds something else.
    #[error(
        "{path} holds no key of 32 bytes in hexadecimal; restore it, or remove it to have a new one made (all disk access URLs \
             end)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The block cache.
    #[error(transparent)]
    Cache(#[from] content::Error),
}

impl DiskExports {
    /// Loads or makes the key, and opens the block cache in `cache_dir`.
    pub(crate) fn open(
        data_dir: &Path,
        cache_dir: &Path,
        cache_bytes_max: u64,
    ) -> Result<Self, ExportsError> {
        let uploads_dir = data_dir.join("uploads");
        crate::secret_file::create_folder(&uploads_dir)
            .map_err(|source| ExportsError::File { path: uploads_dir.clone(), source })?;
        Ok(Self {
            key: SasKey::load(data_dir)?,
            uploads_dir,
            uploads: Mutex::default(),
            images: Mutex::default(),
            cache: Arc::new(BlockCache::open(cache_dir, cache_bytes_max)?),
        })
    }

    /// The file of a disk's upload.
    pub(crate) fn upload_path(&self, disk: Uuid) -> PathBuf {
        self.uploads_dir.join(format!("{disk}.vhd"))
    }

    /// Makes the file of an upload, unless an earlier access left it.
    pub(crate) async fn begin_upload(
        &self,
        disk: Uuid,
        bytes: u64,
        keys: Option<Arc<KeyRing>>,
    ) -> std::io::Result<()> {
        let (path, name) = (self.upload_path(disk), upload_name(disk, keys));
        match PageFile::create(&path, &name, bytes).await {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => return other.map(|_| ()),
        }
        if tokio::fs::metadata(&path).await?.len() >= bytes {
            return Ok(());
        }
        // It was being made when this process's predecessor was killed: nobody was told about it.
        tokio::fs::remove_file(&path).await?;
        PageFile::create(&path, &name, bytes).await.map(|_| ())
    }

    /// The file of an upload as an access writes it; `None` when there is none.
    pub(crate) async fn upload(
        &self,
        disk: Uuid,
        access: Uuid,
        keys: Option<Arc<KeyRing>>,
    ) -> std::io::Result<Option<PageFile>> {
        let mut uploads = self.uploads.lock().await;
        if let Some(file) = uploads.get(&access) {
            return Ok(Some(file.clone()));
        }
        let file = match PageFile::open(&self.upload_path(disk), &upload_name(disk, keys)).await {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        uploads.insert(access, file.clone());
        Ok(Some(file))
    }

    /// Removes an upload's file. Writes that are under way go to a file that nobody sees any more.
    pub(crate) async fn remove_upload(&self, disk: Uuid, access: Option<Uuid>) -> std::io::Result<()> {
        let mut uploads = self.uploads.lock().await;
        if let Some(access) = access {
            uploads.remove(&access);
        }
        match tokio::fs::remove_file(self.upload_path(disk)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// An image that was opened before.
    pub(crate) async fn opened(&self, id: &ManifestId) -> Option<Image> {
        self.images.lock().await.get(id).cloned()
    }

    /// An image, opened once.
    pub(crate) async fn image(&self, stores: &[content::Store], id: ManifestId) -> content::Result<Image> {
        let mut images = self.images.lock().await;
        if let Some(image) = images.get(&id) {
            return Ok(image.clone());
        }
        let image = Image::open(stores, &id, Arc::clone(&self.cache)).await?;
        if images.len() >= OPEN_IMAGES_MAX {
            images.clear();
        }
        images.insert(id, image.clone());
        Ok(image)
    }
}

/// `keys`: of the disk's region.
fn upload_name(disk: Uuid, keys: Option<Arc<KeyRing>>) -> PageName {
    PageName { name: [b"disk upload\0", disk.as_bytes().as_slice()].concat(), keys }
}

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
    let mut response = match try_answer(state, path, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
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
    let failed = |error: &dyn std::error::Error| BlobError::internal(chain(error));
    match &managed.bytes {
        DiskBytes::Stored(content) => {
            let id = content.manifest.as_str().parse();
            let id: ManifestId = id.map_err(|_| BlobError::internal("a manifest's name cannot be read"))?;
            let image = match state.disk_exports.opened(&id).await {
                Some(image) => image,
                None => {
                    let holding = state.fabric.holding(&managed.spec.location, &id).await;
                    let stores = holding.map_err(|error| failed(&error))?;
                    if stores.is_empty() {
                        let reason = "no zone that can be reached has the disk's content";
                        return Err(BlobError::internal(reason));
                    }
                    state.disk_exports.image(&stores, id).await.map_err(|error| failed(&error))?
                }
            };
            let footer = disk::vhd::fixed_footer(image.size(), *managed.unique_id.as_bytes());
            Ok((PageBlob::Image(PageImage::new(image, footer)), About::page(access.granted)))
        }
        DiskBytes::Upload { .. } => {
            let io = |error| BlobError::io("open an upload", &error);
            let keys =
                state.fabric.blob_keys(&managed.spec.location).await.map_err(|error| failed(&error))?;
            let file = state.disk_exports.upload(managed.unique_id, access.id, keys).await.map_err(io)?;
            let file = file.ok_or_else(BlobError::blob_not_found)?;
            let modified = file.modified().await.map_err(io)?;
            Ok((PageBlob::File(file), About::page(modified)))
        }
        DiskBytes::Pending | DiskBytes::Committing { .. } => Err(BlobError::blob_not_found()),
    }
}
