//! A page blob in a sparse file. Holes are cleared pages.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use axum::http::StatusCode;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use rustix::fs::{FallocateFlags, SeekFrom, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use tokio::sync::RwLock;

use super::super::error::BlobError;
use super::super::range::PAGE_BYTES;
use super::add;

/// Zeros are written in pieces of this size where the file system cannot punch holes.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// A sparse file of whole pages. Clones are the same file.
#[derive(Debug, Clone)]
pub struct PageFile {
    file: Arc<File>,
    size: u64,
    /// Whether writing has ended. Each write holds it for reading until its bytes are durable.
    sealed: Arc<RwLock<bool>>,
}

/// The answer to a write that comes too late.
pub(super) fn sealed() -> BlobError {
    let message = "The blob cannot be changed: it shows a disk or snapshot, or its upload has ended.";
    BlobError::new(StatusCode::CONFLICT, "BlobImmutableDueToPolicy", message)
}

impl PageFile {
    /// Makes a file of `size` zeros (a multiple of 512), which only its owner may read. It must not exist.
    ///
    /// # Errors
    /// The file system's own.
    pub async fn create(path: &Path, size: u64) -> io::Result<Self> {
        let path = path.to_owned();
        blocking(move || {
            let mut options = File::options();
            let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            file.set_len(size)?;
            file.sync_all()?;
            File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
            Ok(Self::new(file, size))
        })
        .await
    }

    /// Opens a file that [`PageFile::create`] made, for reading and writing.
    ///
    /// # Errors
    /// The file system's own; a length that is no number of pages.
    pub async fn open(path: &Path) -> io::Result<Self> {
        let path = path.to_owned();
        blocking(move || {
            let file = File::options().read(true).write(true).open(path)?;
            let size = file.metadata()?.len();
            if size % PAGE_BYTES != 0 {
                let reason = format!("a page blob of {size} bytes, which is no multiple of 512");
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
            Ok(Self::new(file, size))
        })
        .await
    }

    fn new(file: File, size: u64) -> Self {
        Self { file: Arc::new(file), size, sealed: Arc::default() }
    }

    /// Length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether somebody else has a clone, or a write is under way.
    pub(in crate::blob) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.file) > 1 || Arc::strong_count(&self.sealed) > 1
    }

    /// Ends writing: waits for writes under way, and refuses later ones through this `PageFile` and its clones. What
    /// was written is durable when this returns.
    ///
    /// # Errors
    /// The file system's own.
    pub async fn seal(&self) -> io::Result<()> {
        *self.sealed.write().await = true;
        let file = Arc::clone(&self.file);
        blocking(move || file.sync_all()).await
    }

    /// When bytes were last written: differs between any two writes.
    ///
    /// # Errors
    /// The file system's own.
    pub async fn modified(&self) -> io::Result<DateTime<Utc>> {
        let file = Arc::clone(&self.file);
        blocking(move || Ok(file.metadata()?.modified()?.into())).await
    }

    pub(super) async fn write(&self, at: u64, bytes: Bytes) -> Result<(), BlobError> {
        self.change("write pages", move |file| file.write_all_at(&bytes, at)).await
    }

    /// Writes pages that become durable with [`PageFile::seal`]: for a blob that nobody sees before that.
    ///
    /// # Errors
    /// The file system's own.
    pub(in crate::blob) async fn fill(&self, at: u64, bytes: Bytes) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        blocking(move || file.write_all_at(&bytes, at)).await
    }

    pub(super) async fn clear(&self, range: Range<u64>) -> Result<(), BlobError> {
        self.change("clear pages", move |file| {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(file, flags, range.start, range.end - range.start) {
                Ok(()) => Ok(()),
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    let mut at = range.start;
                    while at < range.end {
                        let len = (range.end - at).min(ZEROS.len() as u64);
                        file.write_all_at(&ZEROS[..len as usize], at)?;
                        at += len;
                    }
                    Ok(())
                }
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Runs a change to its end, even when the client has gone meanwhile, so that sealing never overtakes it.
    async fn change(
        &self,
        action: &str,
        change: impl FnOnce(&File) -> io::Result<()> + Send + 'static,
    ) -> Result<(), BlobError> {
        let unsealed = Arc::clone(&self.sealed).read_owned().await;
        if *unsealed {
            return Err(sealed());
        }
        let file = Arc::clone(&self.file);
        let changed = blocking(move || {
            let changed = change(&file).and_then(|()| touch(&file)).and_then(|()| file.sync_data());
            drop(unsealed);
            changed
        });
        changed.await.map_err(|error| BlobError::io(action, &error))
    }

    pub(super) async fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let file = Arc::clone(&self.file);
        blocking(move || {
            let mut piece = vec![0; (range.end - range.start) as usize];
            file.read_exact_at(&mut piece, range.start)?;
            Ok(piece.into())
        })
        .await
    }

    pub(super) async fn data(
        &self,
        range: Range<u64>,
        max: usize,
    ) -> Result<(Vec<Range<u64>>, Option<u64>), BlobError> {
        let file = Arc::clone(&self.file);
        let found = blocking(move || {
            let mut found = Vec::new();
            let mut at = range.start;
            while let Some(data) = next_data(&file, at, range.end)? {
                at = data.end;
                let start = data.start;
                if !add(&mut found, data, max) {
                    return Ok((found, Some(start)));
                }
            }
            Ok((found, None))
        });
        found.await.map_err(|error| BlobError::io("find the pages of a blob", &error))
    }
}

/// The next data in `from .. end`, in whole pages.
fn next_data(file: &File, from: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    if from >= end {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // A file system that knows no holes: all of it is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(from..end)),
        Err(error) => return Err(error.into()),
    };
    if start >= end {
        return Ok(None);
    }
    let start = (start / PAGE_BYTES * PAGE_BYTES).max(from);
    let hole = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(hole) => hole,
        // Cleared since the first seek.
        Err(Errno::NXIO) => end,
        Err(error) => return Err(error.into()),
    };
    Ok(Some(start..hole.next_multiple_of(PAGE_BYTES).clamp(start + PAGE_BYTES, end)))
}

/// Sets the time of the last change to now, in nanoseconds: the kernel's own stamps are a clock tick apart, and an
/// ETag made of them would not tell two writes apart.
fn touch(file: &File) -> io::Result<()> {
    let now = Utc::now();
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let modified =
        Timespec { tv_sec: now.timestamp(), tv_nsec: now.timestamp_subsec_nanos().min(999_999_999).into() };
    rustix::fs::futimens(file, &Timestamps { last_access: omit, last_modification: modified })?;
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
