//! One disk of a store, read lazily.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::Semaphore;

use super::cache::BlockCache;
use super::lru::Lru;
use super::readahead::Readahead;
use crate::format::{BLOCK_BYTES, BLOCKS_PER_PAGE, FrameKind, Location, Manifest, Page};
use crate::gc::mark::{load_page, load_root};
use crate::id::{BlockHash, ManifestId, PackId};
use crate::store::Store;
use crate::{Error, Result};

const BLOCK: u64 = BLOCK_BYTES as u64;
const PAGE: u64 = BLOCK * BLOCKS_PER_PAGE as u64;
/// Pages in memory, about 80 KiB each: 15 MiB, which cover 12 GiB of disk at a time.
const MAX_PAGES: usize = 192;
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
    /// At least one.
    copies: Vec<Store>,
    id: ManifestId,
    manifest: Manifest,
    cache: Arc<BlockCache>,
    pages: Mutex<Lru<u32, Arc<LocatedPage>>>,
    readahead: Readahead,
    prefetches: Semaphore,
    damaged: AtomicU64,
}

/// A page, and where its blocks are as far as anyone asked.
#[derive(Debug)]
struct LocatedPage {
    page: Page,
    number: u32,
    places: Vec<OnceLock<Place>>,
}

/// Where a block is: which copy, and where in it.
#[derive(Clone, Copy, Debug)]
struct Place {
    copy: usize,
    location: Location,
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
        Image::open(std::slice::from_ref(self), manifest, cache).await
    }
}

impl Image {
    /// Opens an image of which several stores hold a copy: reads are spread over those which can be reached and where it is
    /// visible, and what one of them cannot give comes from another.
    pub async fn open(stores: &[Store], manifest: &ManifestId, cache: Arc<BlockCache>) -> Result<Self> {
        let mut copies = Vec::new();
        let mut first = None;
        for store in stores {
            match store.is_readable(manifest).await {
                Ok(()) => copies.push(store.clone()),
                Err(error) => {
                    if stores.len() > 1 {
                        tracing::warn!(%error, store = %store.location(), "a copy of an image is not used");
                    }
                    first.get_or_insert(error);
                }
            }
        }
        if let (true, Some(error)) = (copies.is_empty(), first) {
            return Err(error);
        }
        let inner = Inner {
            manifest: load_root(copies.clone(), *manifest).await?,
            copies,
            id: *manifest,
            cache,
            pages: Mutex::new(Lru::new(MAX_PAGES)),
            readahead: Readahead::default(),
            prefetches: Semaphore::new(MAX_PREFETCHES),
            damaged: AtomicU64::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Blocks that one copy could not give since this was opened, and another gave. Somebody should repair that copy.
    pub fn damaged_reads(&self) -> u64 {
        self.inner.damaged.load(Ordering::Relaxed)
    }

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
                let Ok(Place { copy, location }) = inner.locate(&page, index, &hash).await else { return };
                let frame = (location.pack, location.offset);
                if last.replace(frame) != Some(frame)
                    && inner.cache.frame(&inner.copies[copy], &location).await.is_err()
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
        let mut sources = self.copies.clone();
        sources.rotate_left(self.first_copy(number));
        let page = load_page(sources, entry.id).await?;
        let page = Arc::new(LocatedPage { page, number, places: vec![OnceLock::new(); BLOCKS_PER_PAGE] });
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.insert(number, Arc::clone(&page));
        Ok(Some(page))
    }

    /// The copy that is read first: neighbours from the same, so that frames and read-ahead serve.
    fn first_copy(&self, page: u32) -> usize {
        page as usize % self.copies.len()
    }

    async fn locate(&self, page: &LocatedPage, index: usize, hash: &BlockHash) -> Result<Place> {
        if let Some(place) = page.places[index].get() {
            return Ok(*place);
        }
        let copy = self.first_copy(page.number);
        let location = self.find(copy, hash, &[]).await?.ok_or(Error::NotIndexed { hash: *hash })?;
        Ok(*page.places[index].get_or_init(|| Place { copy, location }))
    }

    /// Where a copy has a block, in none of these packs.
    async fn find(&self, copy: usize, hash: &BlockHash, not_in: &[PackId]) -> Result<Option<Location>> {
        let (store, wanted, not_in) = (self.copies[copy].clone(), *hash, not_in.to_vec());
        let find = move || store.index().find_to_read(wanted.as_bytes(), |pack| !not_in.contains(pack));
        let found = tokio::task::spawn_blocking(find).await??;
        Ok(found.filter(|location| location.kind == FrameKind::Blocks))
    }

    async fn read_block(
        &self,
        page: &LocatedPage,
        index: usize,
        hash: &BlockHash,
        within: usize,
        buf: &mut [u8],
    ) -> Result<()> {
        let failed = match self.locate(page, index, hash).await {
            Ok(place) => match self.read_place(&place, hash, within, buf).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            },
            Err(error) => error,
        };
        self.read_elsewhere(page, hash, within, buf, failed).await
    }

    /// Reads a block wherever any copy has it whole. A pack may be gone because a garbage collection moved what lives in
    /// it; it may be damaged; its zone may be out of reach.
    async fn read_elsewhere(
        &self,
        page: &LocatedPage,
        hash: &BlockHash,
        within: usize,
        buf: &mut [u8],
        mut failed: Error,
    ) -> Result<()> {
        let mut at_fault = self.first_copy(page.number);
        for turn in 0..self.copies.len() {
            let copy = (self.first_copy(page.number) + turn) % self.copies.len();
            let mut tried = Vec::new();
            if let Err(error) = self.copies[copy].refresh().await {
                tracing::warn!(%error, "the index of a copy cannot be read");
                continue;
            }
            loop {
                let location = match self.find(copy, hash, &tried).await {
                    Ok(Some(location)) => location,
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(%error, "the index of a copy cannot be read");
                        break;
                    }
                };
                match self.read_place(&Place { copy, location }, hash, within, buf).await {
                    Ok(()) => {
                        if !failed.is_gone() {
                            self.damaged.fetch_add(1, Ordering::Relaxed);
                            self.copies[at_fault].note_damaged_read();
                            tracing::warn!(error = %failed, block = %hash, "a block was read from another place");
                        }
                        return Ok(());
                    }
                    Err(error) => {
                        self.copies[copy].note_gone(&error, location.pack);
                        if failed.is_gone() {
                            (failed, at_fault) = (error, copy);
                        }
                        tried.push(location.pack);
                    }
                }
            }
        }
        Err(failed)
    }

    async fn read_place(&self, place: &Place, hash: &BlockHash, within: usize, buf: &mut [u8]) -> Result<()> {
        let Place { copy, location } = place;
        // Twice: what the local cache got wrong (a file cut off by hand, a disk error) the store can still give.
        let mut reason = String::new();
        for _ in 0..2 {
            let frame = self.cache.frame(&self.copies[*copy], location).await?;
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
