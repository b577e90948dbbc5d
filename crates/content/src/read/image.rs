//! One disk of a store, read lazily.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use super::cache::BlockCache;
use super::copies::Copies;
use super::frame_file::CachedFrame;
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
    copies: Copies,
    id: ManifestId,
    manifest: Manifest,
    cache: Arc<BlockCache>,
    pages: Mutex<Lru<u32, Arc<LocatedPage>>>,
    readahead: Readahead,
    prefetches: Semaphore,
}

/// A page, and where its blocks were read last.
#[derive(Debug)]
struct LocatedPage {
    page: Page,
    number: u32,
    places: Mutex<Vec<Option<Place>>>,
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
    /// visible, and what one of them cannot give, or not in time, comes from another.
    pub async fn open(stores: &[Store], manifest: &ManifestId, cache: Arc<BlockCache>) -> Result<Self> {
        let copies = Copies::open(stores, *manifest).await?;
        let root = |copy| load_root(vec![copies.store(copy).clone()], *manifest);
        let inner = Inner {
            manifest: copies.first_of(0, root).await?,
            copies,
            id: *manifest,
            cache,
            pages: Mutex::new(Lru::new(MAX_PAGES)),
            readahead: Readahead::default(),
            prefetches: Semaphore::new(MAX_PREFETCHES),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Blocks and tables that were damaged in one place since this was opened, and were read from another. Somebody should
    /// repair that copy. A copy that is out of reach is not damaged.
    pub fn damaged_reads(&self) -> u64 {
        self.inner.copies.damaged_reads()
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
            for number in range.start / BLOCK..range.end.div_ceil(BLOCK) {
                let Ok(page) = inner.page((number * BLOCK / PAGE) as u32).await else { return };
                let index = (number % BLOCKS_PER_PAGE as u64) as usize;
                let Some((page, hash)) = page.and_then(|page| Some((page.clone(), page.page.get(index)?)))
                else {
                    continue;
                };
                if inner.frame(&page, index, &hash).await.is_err() {
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
        let load = |copy| load_page(vec![self.copies.store(copy).clone()], entry.id);
        let page = self.copies.first_of(number, load).await?;
        let page = Arc::new(LocatedPage { page, number, places: Mutex::new(vec![None; BLOCKS_PER_PAGE]) });
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.insert(number, Arc::clone(&page));
        Ok(Some(page))
    }

    async fn read_block(
        &self,
        page: &LocatedPage,
        index: usize,
        hash: &BlockHash,
        within: usize,
        buf: &mut [u8],
    ) -> Result<()> {
        let (frame, location) = self.frame(page, index, hash).await?;
        if frame.read(location.slot, within, buf).await.is_ok() {
            return Ok(());
        }
        // What the local cache got wrong (a file cut off by hand, a disk error) the store can still give.
        self.cache.forget(&location);
        let (frame, location) = self.frame(page, index, hash).await?;
        frame.read(location.slot, within, buf).await.map_err(|error| {
            self.cache.forget(&location);
            let reason = format!("its copy in the local cache cannot be read ({error})");
            Error::DamagedFrame { pack: location.pack, offset: location.offset, reason }
        })
    }

    /// The verified frame that a block is in, and where in which: what this process has open, or what a copy gives.
    async fn frame(
        &self,
        page: &LocatedPage,
        index: usize,
        hash: &BlockHash,
    ) -> Result<(Arc<CachedFrame>, Location)> {
        let known = page.lock()[index];
        if let Some(Place { location, .. }) = known
            && let Some(frame) = self.cache.open_frame(&location)
            && frame.holds(location.slot, hash.as_bytes())
        {
            return Ok((frame, location));
        }
        let ask = |copy| self.frame_of(copy, known.filter(|place| place.copy == copy), hash);
        let (frame, place) = self.copies.first_of(page.number, ask).await?;
        page.lock()[index] = Some(place);
        Ok((frame, place.location))
    }

    /// The same from one copy, wherever it has the block whole: a pack may be damaged, or gone because a garbage collection
    /// moved what lives in it.
    async fn frame_of(
        &self,
        copy: usize,
        mut known: Option<Place>,
        hash: &BlockHash,
    ) -> Result<(Arc<CachedFrame>, Place)> {
        let store = self.copies.store(copy);
        let mut failed: Option<Error> = None;
        let mut tried = Vec::new();
        let mut refreshed = false;
        loop {
            let location = match known.take() {
                Some(place) => Some(place.location),
                None => self.find(store, hash, &tried).await?,
            };
            let Some(location) = location else {
                if refreshed {
                    return Err(failed.unwrap_or(Error::NotIndexed { hash: *hash }));
                }
                store.refresh().await?;
                refreshed = true;
                continue;
            };
            match self.load(store, &location, hash).await {
                Ok(frame) => {
                    if let Some(error) = failed.filter(|error| !error.is_gone()) {
                        self.copies.note_damage(copy, &error);
                    }
                    return Ok((frame, Place { copy, location }));
                }
                Err(error) => {
                    store.note_gone(&error, location.pack).await;
                    if failed.as_ref().is_none_or(Error::is_gone) {
                        failed = Some(error);
                    }
                    tried.push(location.pack);
                }
            }
        }
    }

    /// Where a copy has a block, in none of these packs.
    async fn find(&self, store: &Store, hash: &BlockHash, not_in: &[PackId]) -> Result<Option<Location>> {
        let (store, wanted, not_in) = (store.clone(), *hash, not_in.to_vec());
        let find = move || store.index().find_where(wanted.as_bytes(), |pack| !not_in.contains(pack));
        let found = tokio::task::spawn_blocking(find).await??;
        Ok(found.filter(|location| location.kind == FrameKind::Blocks))
    }

    async fn load(&self, store: &Store, location: &Location, hash: &BlockHash) -> Result<Arc<CachedFrame>> {
        // Twice: the local cache may have another frame under this name.
        for _ in 0..2 {
            let frame = self.cache.frame(store, location).await?;
            if frame.holds(location.slot, hash.as_bytes()) {
                return Ok(frame);
            }
            self.cache.forget(location);
        }
        let reason = format!("slot {} of it does not hold the block that the index says", location.slot);
        Err(Error::DamagedFrame { pack: location.pack, offset: location.offset, reason })
    }
}

impl LocatedPage {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<Place>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
