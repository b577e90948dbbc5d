//! Copying an image to another store: only the blocks that it lacks.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use serde::Serialize;

use super::writer::BlockWriter;
use super::{Progress, workers};
use crate::format::{BLOCK_BYTES, BLOCKS_PER_PAGE, EncodedFrame, Location, Page, PageEntry};
use crate::id::{BlockHash, ManifestId};
use crate::store::{Store, block_bytes, check_owner};
use crate::{Error, Result};

/// Pages whose missing blocks are copied together. A frame that belongs to two windows is framed anew; more pages would
/// need more memory (6 MiB for each 64 of a full disk).
const WINDOW_PAGES: usize = 64;

/// What a replication did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ReplicateReport {
    /// Blocks that the target lacked.
    pub blocks_moved: u64,
    /// Their compressed bytes as the target stores them.
    pub bytes_moved: u64,
    /// Blocks of the image that were there, or moved once and used more often.
    pub blocks_present: u64,
    /// Wall time.
    pub seconds: f64,
}

/// Copies an image from one store to another, and lets `owner_ref` refer to it there. Every block is verified on the way.
/// The image is visible in `to` only when all of it is there. Doing it again after it was cut off moves what is still
/// missing, up to a pack of 64 MiB more.
pub async fn replicate(
    from: &Store,
    to: &Store,
    manifest: &ManifestId,
    owner_ref: &str,
    progress: impl Fn(Progress) + Send + Sync,
) -> Result<ReplicateReport> {
    let started = Instant::now();
    to.check_writable()?;
    check_owner(owner_ref)?;
    if to.has_manifest(manifest).await? {
        to.add_ref(manifest, owner_ref).await?;
        let info = to.manifest_info(manifest).await?;
        progress(Progress { done_bytes: info.logical_bytes, total_bytes: info.logical_bytes });
        return Ok(ReplicateReport {
            blocks_moved: 0,
            bytes_moved: 0,
            blocks_present: info.data_blocks,
            seconds: started.elapsed().as_secs_f64(),
        });
    }
    from.refresh().await?;
    to.refresh().await?;
    let root = from.load_manifest(manifest).await?;
    let total_bytes = root.logical_bytes;
    let mut writer = BlockWriter::new(to.clone());
    let entries: Vec<_> = root.pages.iter().collect();
    for window in entries.chunks(WINDOW_PAGES) {
        let mut pages = Vec::with_capacity(window.len());
        for (_, entry) in window {
            pages.push(from.load_page(&entry.id).await?);
        }
        copy_blocks(from, to, &pages, &mut writer).await.map_err(|failed| failed.of(manifest, window))?;
        for page in &pages {
            let (id, bytes) = page.encode();
            writer.page(id, bytes).await?;
        }
        if let Some((last, _)) = window.last() {
            let end = block_bytes((u64::from(**last) + 1) * BLOCKS_PER_PAGE as u64);
            progress(Progress { done_bytes: end.min(total_bytes), total_bytes });
        }
    }
    let written = writer.finish().await?;
    to.publish(&root, owner_ref).await?;
    progress(Progress { done_bytes: total_bytes, total_bytes });
    Ok(ReplicateReport {
        blocks_moved: written.new_blocks,
        bytes_moved: written.payload_bytes,
        blocks_present: root.data_blocks().saturating_sub(written.new_blocks),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// A frame of the source, and those of its blocks that are missing in the target.
struct Wanted {
    location: Location,
    /// With the block's place in the window, for messages.
    blocks: Vec<(BlockHash, Place)>,
}

/// Page of a window and index in it.
type Place = (usize, usize);

/// What a frame became on its way.
enum Fetched {
    /// All of it is wanted: it goes over as it is.
    Whole(EncodedFrame),
    /// Some of it: those blocks are framed anew.
    Blocks(Vec<(BlockHash, Vec<u8>)>),
}

/// A failure, and the block that it was for if it was for one.
struct Failed {
    error: Box<Error>,
    block: Option<(BlockHash, Place)>,
}

impl Failed {
    /// Adds where on the disk the block is.
    fn of(self, manifest: &ManifestId, window: &[(&u32, &PageEntry)]) -> Error {
        let Some((block, (page, index))) = self.block else { return *self.error };
        let page = window.get(page).map_or(0, |(number, _)| u64::from(**number));
        let disk_offset = block_bytes(page * BLOCKS_PER_PAGE as u64 + index as u64);
        Error::Block { block, disk_offset, manifest: *manifest, source: self.error }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error: Box::new(error), block: None }
    }
}

impl From<tokio::task::JoinError> for Failed {
    fn from(error: tokio::task::JoinError) -> Self {
        Error::from(error).into()
    }
}

async fn copy_blocks(
    from: &Store,
    to: &Store,
    pages: &[Page],
    writer: &mut BlockWriter,
) -> Result<(), Failed> {
    let mut missing = Vec::new();
    let mut seen = HashSet::new();
    for (number, page) in pages.iter().enumerate() {
        for (index, hash) in page.present() {
            if !writer.is_fresh(hash.as_bytes()) && seen.insert(hash) {
                missing.push((hash, (number, index)));
            }
        }
    }
    let (source, target) = (from.clone(), to.clone());
    let frames = tokio::task::spawn_blocking(move || locate(&source, &target, missing)).await??;

    let mut fetches: FuturesOrdered<BoxFuture<'static, Result<Fetched, Failed>>> = FuturesOrdered::new();
    for wanted in frames {
        let task = tokio::spawn(fetch(from.clone(), wanted));
        fetches.push_back(async move { task.await? }.boxed());
        if fetches.len() > 2 * workers() {
            take(&mut fetches, writer).await?;
        }
    }
    while !fetches.is_empty() {
        take(&mut fetches, writer).await?;
    }
    Ok(())
}

async fn take(
    fetches: &mut FuturesOrdered<BoxFuture<'static, Result<Fetched, Failed>>>,
    writer: &mut BlockWriter,
) -> Result<(), Failed> {
    match fetches.next().await.transpose()? {
        Some(Fetched::Whole(frame)) => writer.frame(frame).await?,
        Some(Fetched::Blocks(blocks)) => {
            for (hash, plain) in blocks {
                writer.block(hash, &plain).await?;
            }
        }
        None => {}
    }
    Ok(())
}

/// Groups the blocks that the target lacks by the source's frames, in the order of the disk.
fn locate(from: &Store, to: &Store, blocks: Vec<(BlockHash, Place)>) -> Result<Vec<Wanted>, Failed> {
    let mut frames: Vec<Wanted> = Vec::new();
    let mut numbers = HashMap::new();
    for block in blocks {
        let hash = block.0;
        if to.index().find(hash.as_bytes())?.is_some() {
            continue;
        }
        let Some(location) = from.index().find(hash.as_bytes())? else {
            return Err(Failed { error: Box::new(Error::NotIndexed { hash }), block: Some(block) });
        };
        let number = *numbers.entry((location.pack, location.offset)).or_insert_with(|| {
            frames.push(Wanted { location, blocks: Vec::new() });
            frames.len() - 1
        });
        frames[number].blocks.push(block);
    }
    Ok(frames)
}

async fn fetch(from: Store, wanted: Wanted) -> Result<Fetched, Failed> {
    let first = wanted.blocks.first().copied();
    let located = |error| Failed { error: Box::new(error), block: first };
    let (frame, bytes) = from.load_frame_bytes(&wanted.location).await.map_err(located)?;
    if wanted.blocks.len() == frame.hashes.len()
        && wanted.blocks.iter().all(|(hash, _)| frame.hashes.contains(hash.as_bytes()))
    {
        return Ok(Fetched::Whole(EncodedFrame::as_stored(frame, &bytes)));
    }
    let mut blocks = Vec::with_capacity(wanted.blocks.len());
    for block in wanted.blocks {
        let Some(slot) = frame.hashes.iter().position(|hash| hash == block.0.as_bytes()) else {
            let Location { pack, offset, .. } = wanted.location;
            let reason = "it does not hold the block that the index says".to_owned();
            return Err(Failed {
                error: Box::new(Error::DamagedFrame { pack, offset, reason }),
                block: Some(block),
            });
        };
        blocks.push((block.0, frame.plain[slot * BLOCK_BYTES..(slot + 1) * BLOCK_BYTES].to_vec()));
    }
    Ok(Fetched::Blocks(blocks))
}
