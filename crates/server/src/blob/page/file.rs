//! A page blob in a sparse file: a header, then the pages, encrypted where the region has a key. Holes are cleared pages.
//! The format is in `docs/format.md` (Page files).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use axum::http::StatusCode;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use content::{FramedError, KeyRing, PAGE_FILE_HEADER_BYTES, PageSeal};
use rustix::fs::{FallocateFlags, SeekFrom, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use tokio::sync::RwLock;

use super::super::error::BlobError;
use super::super::range::PAGE_BYTES;
use super::add;

/// Zeros are written in pieces of this size where the file system cannot punch holes.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Where the first page is in the file.
const PAGES_AT: u64 = PAGE_FILE_HEADER_BYTES as u64;

/// Which file it is to be, and what it is encrypted with.
#[derive(Debug, Clone)]
pub struct PageName {
    /// Unlike any other file's; one that has another is refused.
    pub name: Vec<u8>,
    /// Those of the region, if it has any.
    pub keys: Option<Arc<KeyRing>>,
}

/// A sparse file of whole pages. Clones are the same file.
#[derive(Debug, Clone)]
pub struct PageFile {
    pub(super) pages: Arc<Pages>,
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
    pub async fn create(path: &Path, name: &PageName, size: u64) -> io::Result<Self> {
        let (path, name) = (path.to_owned(), name.clone());
        blocking(move || {
            let mut options = File::options();
            let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            let (seal, header) = PageSeal::new(name.keys.as_deref(), &name.name);
            file.write_all_at(&header, 0)?;
            file.sync_all()?;
            // Who finds the length finds the header as well, whatever was killed in between.
            file.set_len(PAGES_AT + size)?;
            file.sync_all()?;
            File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
            Ok(Self::new(Pages { file, seal }, size))
        })
        .await
    }

    /// Opens a file that [`PageFile::create`] made, for reading and writing.
    ///
    /// # Errors
    /// The file system's own; a [`content::FramedError`] inside for what is not such a file.
    pub async fn open(path: &Path, name: &PageName) -> io::Result<Self> {
        let (path, name) = (path.to_owned(), name.clone());
        blocking(move || {
            let file = File::options().read(true).write(true).open(path)?;
            let len = file.metadata()?.len();
            let Some(size) = len.checked_sub(PAGES_AT).filter(|size| size.is_multiple_of(PAGE_BYTES)) else {
                let reason = format!("{len} bytes are no header and a number of pages");
                return Err(FramedError::Form(reason).into());
            };
            let mut header = [0; PAGE_FILE_HEADER_BYTES];
            file.read_exact_at(&mut header, 0)?;
            let seal = PageSeal::open(&header, name.keys.as_deref(), &name.name)?;
            Ok(Self::new(Pages { file, seal }, size))
        })
        .await
    }

    /// The length of a file that [`PageFile::create`] made whole.
    pub(in crate::blob) fn bytes_of(size: u64) -> u64 {
        PAGES_AT.saturating_add(size)
    }

    fn new(pages: Pages, size: u64) -> Self {
        Self { pages: Arc::new(pages), size, sealed: Arc::default() }
    }

    /// Whether its pages are encrypted on the disk.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.pages.seal.is_encrypted()
    }

    /// Length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether somebody else has a clone, or a write is under way.
    pub(in crate::blob) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.pages) > 1 || Arc::strong_count(&self.sealed) > 1
    }

    /// Ends writing: waits for writes under way, and refuses later ones through this `PageFile` and its clones. What
    /// was written is durable when this returns.
    ///
    /// # Errors
    /// The file system's own.
    pub async fn seal(&self) -> io::Result<()> {
        *self.sealed.write().await = true;
        let pages = Arc::clone(&self.pages);
        blocking(move || pages.file.sync_all()).await
    }

    /// When bytes were last written: differs between any two writes.
    ///
    /// # Errors
    /// The file system's own.
    pub async fn modified(&self) -> io::Result<DateTime<Utc>> {
        let pages = Arc::clone(&self.pages);
        blocking(move || Ok(pages.file.metadata()?.modified()?.into())).await
    }

    pub(super) async fn write(&self, at: u64, bytes: Bytes) -> Result<(), BlobError> {
        self.change("write pages", move |pages| pages.write(&bytes, at)).await
    }

    /// Writes pages that become durable with [`PageFile::seal`]: for a blob that nobody sees before that.
    ///
    /// # Errors
    /// The file system's own.
    pub(in crate::blob) async fn fill(&self, at: u64, bytes: Bytes) -> io::Result<()> {
        let pages = Arc::clone(&self.pages);
        blocking(move || pages.write(&bytes, at)).await
    }

    pub(super) async fn clear(&self, range: Range<u64>) -> Result<(), BlobError> {
        self.change("clear pages", move |pages| pages.clear(range)).await
    }

    /// Runs a change to its end, even when the client has gone meanwhile, so that sealing never overtakes it.
    async fn change(
        &self,
        action: &str,
        change: impl FnOnce(&Pages) -> io::Result<()> + Send + 'static,
    ) -> Result<(), BlobError> {
        let unsealed = Arc::clone(&self.sealed).read_owned().await;
        if *unsealed {
            return Err(sealed());
        }
        let pages = Arc::clone(&self.pages);
        let changed = blocking(move || {
            let file = &pages.file;
            let changed = change(&pages).and_then(|()| touch(file)).and_then(|()| file.sync_data());
            drop(unsealed);
            changed
        });
        changed.await.map_err(|error| BlobError::io(action, &error))
    }

    pub(super) async fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let pages = Arc::clone(&self.pages);
        blocking(move || pages.read(range)).await
    }

    pub(super) async fn data(
        &self,
        range: Range<u64>,
        max: usize,
    ) -> Result<(Vec<Range<u64>>, Option<u64>), BlobError> {
        let pages = Arc::clone(&self.pages);
        let found = blocking(move || {
            let mut found = Vec::new();
            let mut at = range.start;
            while let Some(data) = pages.next_data(at, range.end)? {
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

/// The pages in an open file. Everything blocks.
#[derive(Debug)]
pub(super) struct Pages {
    file: File,
    seal: PageSeal,
}

impl Pages {
    /// Writes whole pages.
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        if !self.seal.is_encrypted() {
            return self.file.write_all_at(bytes, PAGES_AT + at);
        }
        let mut pages = bytes.to_vec();
        self.seal.encrypt(at / PAGE_BYTES, &mut pages);
        self.file.write_all_at(&pages, PAGES_AT + at)
    }

    fn clear(&self, range: Range<u64>) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (start, len) = (PAGES_AT + range.start, range.end - range.start);
        match rustix::fs::fallocate(&self.file, flags, start, len) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                let mut at = start;
                while at < start + len {
                    let part = (start + len - at).min(ZEROS.len() as u64);
                    self.file.write_all_at(&ZEROS[..part as usize], at)?;
                    at += part;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Any bytes inside.
    pub(super) fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let start = match self.seal.is_encrypted() {
            true => range.start / PAGE_BYTES * PAGE_BYTES,
            false => range.start,
        };
        let end = match self.seal.is_encrypted() {
            true => range.end.next_multiple_of(PAGE_BYTES),
            false => range.end,
        };
        let mut bytes = vec![0; (end - start) as usize];
        self.file.read_exact_at(&mut bytes, PAGES_AT + start)?;
        self.seal.decrypt(start / PAGE_BYTES, &mut bytes);
        Ok(Bytes::from(bytes).slice((range.start - start) as usize..(range.end - start) as usize))
    }

    /// The next data in `from .. end`, in whole pages.
    pub(super) fn next_data(&self, from: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        if from >= end {
            return Ok(None);
        }
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(PAGES_AT + from)) {
            Ok(start) => start - PAGES_AT,
            Err(Errno::NXIO) => return Ok(None),
            // A file system that knows no holes: all of it is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(from..end)),
            Err(error) => return Err(error.into()),
        };
        if start >= end {
            return Ok(None);
        }
        let start = (start / PAGE_BYTES * PAGE_BYTES).max(from);
        let hole = match rustix::fs::seek(&self.file, SeekFrom::Hole(PAGES_AT + start)) {
            Ok(hole) => hole - PAGES_AT,
            // Cleared since the first seek.
            Err(Errno::NXIO) => end,
            Err(error) => return Err(error.into()),
        };
        Ok(Some(start..hole.next_multiple_of(PAGE_BYTES).clamp(start + PAGE_BYTES, end)))
    }
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
