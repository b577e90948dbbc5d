//! One disk of a store, read lazily.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::Semaphore;

use super::cache::BlockCache;
use super::lru::Lru;
use super::readahead::Readahead;
use crate::format::{BLOCK_BYTES, BLOCKS_PER_PAGE, FrameKind, Location, Manifest, Page};
use crate::id::{BlockHash, ManifestId};
use crate::store::Store;
use crate::{Error, Result};

const BLOCK: u64 = BLOCK_BYTES as u64;
const PAGE: u64 = BLOCK * BLOCKS_PER_PAGE as u64;
/// Pages in memory, about 80 KiB each: 15 MiB, which cover 12 GiB of disk at a time.
const MAX_PAGES: usize = 192;
/// Times that a block is sought anew because the pack that it was in is gone.
const MAX_MOVES: u32 = 4;
/// Fetches ahead at a time; more would take the disk from the reads that a guest waits for.
const MAX_PREFETCHES: usize = 2;

/// A visible image of a store, opened for reading. Every byte was verified before it is given out. Cloning is cheap; clones
/// share everything.
#[derive(Clone, Debug)]
pub struct Image {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    id: ManifestId,
    manifest: Manifest,
    cache: Arc<BlockCache>,
    pages: Mutex<Lru<u32, Arc<LocatedPage>>>,
    readahead: Readahead,
    prefetches: Semaphore,
}

/// A page, and where its blocks are as far as anyone asked.
#[derive(Debug)]
struct LocatedPage {
    page: Page,
    locations: Vec<OnceLock<Location>>,
}

/// A stretch of an image's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStatus {
    /// Length in bytes, never 0.
    pub len: u64,
    /// Known to be zeros, without being read.
    pub zero: bool,
}

impl Store {
    /// Opens a visible image. Reads its manifest; pages and blocks are read when they are asked for, through `cache`.
    pub async fn open_image(&self, manifest: &ManifestId, cache: Arc<BlockCache>) -> Result<Image> {
        // Another process may have written the image since this one looked.
        self.refresh().await?;
        let inner = Inner {
            store: self.clone(),
            id: *manifest,
            manifest: self.load_manifest(manifest).await?,
            cache,
            pages: Mutex::new(Lru::new(MAX_PAGES)),
            readahead: Readahead::default(),
            prefetches: Semaphore::new(MAX_PREFETCHES),
        };
        Ok(Image { inner: Arc::new(inner) })
    }
}

impl Image {
    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.inner.manifest.logical_bytes
    }

    /// The image's id.
    pub fn id(&self) -> ManifestId {
        self.inner.id
    }

    /// Fills `buf` with the disk's bytes from `offset`. When a block of it is missing or damaged, the error names the block,
    /// its place, the image and the pack, and `buf` is not to be used.
    pub async fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let inner = &self.inner;
        inner.check_range(offset, buf.len() as u64)?;
        if let Some(range) = inner.readahead.note(offset, buf.len() as u64) {
            self.prefetch(range.start..range.end.min(self.size()));
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let rest = &mut buf[done..];
            let Some(page) = inner.page((at / PAGE) as u32).await? else {
                let len = rest.len().min((PAGE - at % PAGE) as usize);
                rest[..len].fill(0);
                done += len;
                continue;
            };
            let within = (at % BLOCK) as usize;
            let len = rest.len().min(BLOCK_BYTES - within);
            let index = (at % PAGE / BLOCK) as usize;
            match page.page.get(index) {
                None => rest[..len].fill(0),
                Some(hash) => {
                    let read = inner.read_block(&page, index, &hash, within, &mut rest[..len]).await;
                    read.map_err(|error| inner.name_block(error, hash, at - within as u64))?;
                }
            }
            done += len;
        }
        Ok(())
    }

    /// Says which parts of `offset .. offset + len` are zeros, at most `max` parts, neighbours of one kind merged: the sum of
    /// the lengths is less than `len` if there are more.
    pub async fn block_status(&self, offset: u64, len: u64, max: usize) -> Result<Vec<BlockStatus>> {
        self.inner.check_range(offset, len)?;
        let mut parts: Vec<BlockStatus> = Vec::new();
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let page = self.inner.page((at / PAGE) as u32).await?;
            let (zero, until) = match &page {
                None => (true, (at / PAGE + 1) * PAGE),
                Some(page) => {
                    let index = (at % PAGE / BLOCK) as usize;
                    (page.page.get(index).is_none(), (at / BLOCK + 1) * BLOCK)
                }
            };
            let len = until.min(end) - at;
            match parts.last_mut() {
                Some(last) if last.zero == zero => last.len += len,
                _ => {
                    if parts.len() == max {
                        break;
                    }
                    parts.push(BlockStatus { len, zero });
                }
            }
            at += len;
        }
        Ok(parts)
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.inner.manifest
    }

    /// Fetches frames into the cache, beside what else happens. Failures are left to the read that needs the bytes.
    fn prefetch(&self, range: std::ops::Range<u64>) {
        let image = self.clone();
        tokio::spawn(async move {
            let inner = &image.inner;
            // When two are under way already, the reader is faster than the store and waits anyhow.
            let Ok(_permit) = inner.prefetches.try_acquire() else { return };
            let mut last = None;
            for number in range.start / BLOCK..range.end.div_ceil(BLOCK) {
                let Ok(page) = inner.page((number * BLOCK / PAGE) as u32).await else { return };
                let index = (number % BLOCKS_PER_PAGE as u64) as usize;
                let Some((page, hash)) = page.and_then(|page| Some((page.clone(), page.page.get(index)?)))
                else {
                    continue;
                };
                let Ok(location) = inner.locate(&page, index, &hash).await else { return };
                let frame = (location.pack, location.offset);
                if last.replace(frame) != Some(frame)
                    && inner.cache.frame(&inner.store, &location).await.is_err()
                {
                    return;
                }
            }
        });
    }
}

impl Inner {
    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        let size = self.manifest.logical_bytes;
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::OutOfRange { offset, len, size }),
        }
    }

    fn name_block(&self, error: Error, block: BlockHash, disk_offset: u64) -> Error {
        Error::Block { block, disk_offset, manifest: self.id, source: Box::new(error) }
    }

    /// A page, or `None` if it is all zeros.
    async fn page(&self, number: u32) -> Result<Option<Arc<LocatedPage>>> {
        let Some(entry) = self.manifest.pages.get(&number) else { return Ok(None) };
        let cached = self.pages.lock().unwrap_or_else(PoisonError::into_inner).get(&number);
        if cached.is_some() {
            return Ok(cached);
        }
        // Two who miss at once read it twice; that is rarer than a lock is costly.
        let page = self.store.load_page(&entry.id).await?;
        let page = Arc::new(LocatedPage { page, locations: vec![OnceLock::new(); BLOCKS_PER_PAGE] });
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.insert(number, Arc::clone(&page));
        Ok(Some(page))
    }

    async fn locate(&self, page: &LocatedPage, index: usize, hash: &BlockHash) -> Result<Location> {
        if let Some(location) = page.locations[index].get() {
            return Ok(*location);
        }
        let location = self.find(hash).await?;
        Ok(*page.locations[index].get_or_init(|| location))
    }

    async fn find(&self, hash: &BlockHash) -> Result<Location> {
        let (store, wanted) = (self.store.clone(), *hash);
        let found = tokio::task::spawn_blocking(move || store.index().find(wanted.as_bytes())).await??;
        found.filter(|location| location.kind == FrameKind::Blocks).ok_or(Error::NotIndexed { hash: *hash })
    }

    /// Reads part of a block. A pack that is gone was freed by a garbage collection, which moved what lives in it: then the
    /// block is sought anew.
    async fn read_block(
        &self,
        page: &LocatedPage,
        index: usize,
        hash: &BlockHash,
        within: usize,
        buf: &mut [u8],
    ) -> Result<()> {
        let mut location = self.locate(page, index, hash).await?;
        for _ in 0..MAX_MOVES {
            match self.read_located(&location, hash, within, buf).await {
                Err(error) if self.store.note_gone(&error, location.pack) => {
                    self.store.refresh().await?;
                    location = self.find(hash).await?;
                }
                done => return done,
            }
        }
        self.read_located(&location, hash, within, buf).await
    }

    async fn read_located(
        &self,
        location: &Location,
        hash: &BlockHash,
        within: usize,
        buf: &mut [u8],
    ) -> Result<()> {
        // Twice: what the local cache got wrong (a file cut off by hand, a disk error) the store can still give.
        let mut reason = String::new();
        for _ in 0..2 {
            let frame = self.cache.frame(&self.store, location).await?;
            if !frame.holds(location.slot, hash.as_bytes()) {
                reason = format!("slot {} of it does not hold the block that the index says", location.slot);
            } else {
                match frame.read(location.slot, within, buf).await {
                    Ok(()) => return Ok(()),
                    Err(error) => reason = format!("its copy in the local cache cannot be read ({error})"),
                }
            }
            self.cache.forget(location);
        }
        Err(Error::DamagedFrame { pack: location.pack, offset: location.offset, reason })
    }
}
