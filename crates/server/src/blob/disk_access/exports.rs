//! What serving disks keeps between requests: the files of uploads, and images that are open.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use content::{BlockCache, Image, KeyRing, ManifestId};
use model::Region;
use model::managed_disk::DiskAccess;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use uuid::Uuid;

use super::SasKey;
use crate::AppState;
use crate::blob::page::{PageFile, PageName};
use crate::http::error::chain;

/// Images that are kept open between requests.
const OPEN_IMAGES_MAX: usize = 64;
/// How long an open image is read before its region is asked again which of its zones have it.
const HOLDING_FRESH: Duration = Duration::from_secs(60);
/// Files of uploads that are kept open between requests.
const OPEN_UPLOADS_MAX: usize = 256;

/// What serving disks needs between requests.
pub(crate) struct DiskExports {
    pub(crate) key: SasKey,
    uploads_dir: PathBuf,
    /// By disk, so that sealing one ends all that write it, and nothing of a disk stays open longer than the disk.
    uploads: tokio::sync::Mutex<HashMap<Uuid, Upload>>,
    /// Locked for moments only; opening goes on in the cells, so that a slow region keeps nobody else waiting.
    images: Mutex<HashMap<(Region, ManifestId), OpenImage>>,
    cache: Arc<BlockCache>,
}

/// An upload's file, as the newest of the disk's accesses writes it.
struct Upload {
    /// When that access was granted. An upload that is being stored has the end of all times: no access is newer.
    granted: DateTime<Utc>,
    file: PageFile,
    used: Instant,
}

/// An image that is open, or about to be.
struct OpenImage {
    /// Ids of the stores that it reads.
    stores: BTreeSet<Uuid>,
    /// When the region said that these have it.
    checked: Instant,
    used: Instant,
    cell: Arc<OnceCell<Image>>,
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
        source: io::Error,
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

/// Why the file of an upload cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("A file of {bytes} bytes for the upload cannot be made in {}: {source}. {} Then request the access again.",
    folder.display(), self.remedy())]
pub(crate) struct UploadRefusal {
    bytes: u64,
    folder: PathBuf,
    source: io::Error,
}

impl UploadRefusal {
    fn remedy(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::FileTooLarge => {
                "Its file system has no files of this size: give the service a data folder on one that has (XFS, ZFS), or make \
                 the disk anew with a smaller uploadSizeBytes."
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "Make room there.",
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied => {
                "Make the folder, and let the service's user write in it."
            }
            _ => "Put the folder right.",
        }
    }
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
            uploads: tokio::sync::Mutex::default(),
            images: Mutex::default(),
            cache: Arc::new(BlockCache::open(cache_dir, cache_bytes_max)?),
        })
    }

    /// The file of a disk's upload.
    pub(crate) fn upload_path(&self, disk: Uuid) -> PathBuf {
        self.uploads_dir.join(format!("{disk}.vhd"))
    }

    /// Makes the file of an upload, unless an earlier access left it. One that was not made whole is made anew.
    ///
    /// # Errors
    /// Cause and remedy; there is no file then.
    pub(crate) async fn begin_upload(
        &self,
        disk: Uuid,
        bytes: u64,
        keys: Option<Arc<KeyRing>>,
    ) -> Result<(), UploadRefusal> {
        let (path, name) = (self.upload_path(disk), upload_name(disk, keys));
        let make = async {
            match tokio::fs::metadata(&path).await {
                Ok(there) if there.len() == PageFile::bytes_of(bytes) => return Ok(()),
                Ok(_) => tokio::fs::remove_file(&path).await?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            PageFile::create(&path, &name, bytes).await.map(drop)
        };
        let Err(source) = make.await else { return Ok(()) };
        // As it was before; an error of this would hide the cause.
        let _removed: io::Result<()> = tokio::fs::remove_file(&path).await;
        Err(UploadRefusal { bytes, folder: self.uploads_dir.clone(), source })
    }

    /// The file of an upload as an access writes it; `None` when there is none, or a newer access or the end of the upload
    /// has taken it.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] when too many uploads are written at once; the file system's own.
    pub(crate) async fn upload(
        &self,
        disk: Uuid,
        access: &DiskAccess,
        keys: Option<Arc<KeyRing>>,
    ) -> io::Result<Option<PageFile>> {
        self.upload_since(disk, access.granted, keys).await
    }

    /// The file of an upload that has ended: later writes are refused, and those under way have come to their end.
    ///
    /// # Errors
    /// As [`DiskExports::upload`].
    pub(crate) async fn seal_upload(
        &self,
        disk: Uuid,
        keys: Option<Arc<KeyRing>>,
    ) -> io::Result<Option<PageFile>> {
        let file = self.upload_since(disk, DateTime::<Utc>::MAX_UTC, keys).await?;
        if let Some(file) = &file {
            file.seal().await?;
        }
        Ok(file)
    }

    async fn upload_since(
        &self,
        disk: Uuid,
        granted: DateTime<Utc>,
        keys: Option<Arc<KeyRing>>,
    ) -> io::Result<Option<PageFile>> {
        let mut uploads = self.uploads.lock().await;
        if let Some(upload) = uploads.get_mut(&disk) {
            if upload.granted > granted {
                return Ok(None);
            }
            if upload.granted == granted {
                upload.used = Instant::now();
                return Ok(Some(upload.file.clone()));
            }
            // The former access may still be writing.
            upload.file.seal().await?;
            uploads.remove(&disk);
        }
        if uploads.len() >= OPEN_UPLOADS_MAX {
            let idle = uploads.iter().filter(|(_, upload)| !upload.file.is_shared());
            let Some(oldest) = idle.min_by_key(|(_, upload)| upload.used).map(|(disk, _)| *disk) else {
                return Err(io::ErrorKind::ResourceBusy.into());
            };
            uploads.remove(&oldest);
        }
        let file = match PageFile::open(&self.upload_path(disk), &upload_name(disk, keys)).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        uploads.insert(disk, Upload { granted, file: file.clone(), used: Instant::now() });
        Ok(Some(file))
    }

    /// Closes an upload's file, which stays: storing it failed, and another access may put it right.
    pub(crate) async fn close_upload(&self, disk: Uuid) {
        self.uploads.lock().await.remove(&disk);
    }

    /// Removes an upload's file. Writes that are under way go to a file that nobody sees any more.
    ///
    /// # Errors
    /// The file system's own.
    pub(crate) async fn remove_upload(&self, disk: Uuid) -> io::Result<()> {
        let mut uploads = self.uploads.lock().await;
        uploads.remove(&disk);
        match tokio::fs::remove_file(self.upload_path(disk)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// An image of a region that is open, and whether its region need not be asked again.
    fn opened(&self, region: &Region, id: ManifestId) -> Option<(Image, bool)> {
        let mut images = self.images();
        let open = images.get_mut(&(region.clone(), id))?;
        open.used = Instant::now();
        Some((open.cell.get()?.clone(), open.checked.elapsed() < HOLDING_FRESH))
    }

    /// The cell of an image of a region, for these stores alone.
    fn cell(&self, region: &Region, id: ManifestId, stores: BTreeSet<Uuid>) -> Arc<OnceCell<Image>> {
        let mut images = self.images();
        let key = (region.clone(), id);
        let now = Instant::now();
        if let Some(open) = images.get_mut(&key).filter(|open| open.stores == stores) {
            (open.checked, open.used) = (now, now);
            return Arc::clone(&open.cell);
        }
        images.remove(&key);
        if images.len() >= OPEN_IMAGES_MAX {
            let oldest = images.iter().min_by_key(|(_, open)| open.used).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| images.remove(&oldest));
        }
        let cell = Arc::default();
        images.insert(key, OpenImage { stores, checked: now, used: now, cell: Arc::clone(&cell) });
        cell
    }

    /// An image, opened once for a region and the stores that have it there.
    async fn image(
        &self,
        region: &Region,
        stores: &[content::Store],
        id: ManifestId,
    ) -> content::Result<Image> {
        let cell = self.cell(region, id, stores.iter().map(content::Store::id).collect());
        cell.get_or_try_init(|| Image::open(stores, &id, Arc::clone(&self.cache))).await.cloned()
    }

    fn images(&self) -> MutexGuard<'_, HashMap<(Region, ManifestId), OpenImage>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `keys`: of the disk's region.
fn upload_name(disk: Uuid, keys: Option<Arc<KeyRing>>) -> PageName {
    PageName { name: [b"disk upload\0", disk.as_bytes().as_slice()].concat(), keys }
}

/// An image of a region, read from the zones that have it.
///
/// # Errors
/// Why none of them can be read.
pub(crate) async fn image(state: &AppState, region: &Region, id: ManifestId) -> Result<Image, String> {
    let open = match state.disk_exports.opened(region, id) {
        Some((image, true)) => return Ok(image),
        Some((image, false)) => Some(image),
        None => None,
    };
    let stores = state.fabric.holding(region, &id).await;
    match (stores, open) {
        (Ok(stores), _) if !stores.is_empty() => {
            state.disk_exports.image(region, &stores, id).await.map_err(|error| chain(&error))
        }
        // The zones may be away for a moment; what is open knows how to wait for them.
        (_, Some(image)) => Ok(image),
        (Ok(_), None) => Err("no zone that can be reached has the disk's content".to_owned()),
        (Err(error), None) => Err(chain(&error)),
    }
}

#[cfg(test)]
mod tests;
