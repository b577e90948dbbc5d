//! Copying an image to another store: only the blocks that it lacks.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::Progress;
use super::attempt::{Attempt, MAX_ATTEMPTS, Outcome, contended, pause};
use super::bandwidth::Bandwidth;
use super::copy::{Failed, Wanted, copy};
use super::writer::{BlockWriter, Written};
use crate::format::{BLOCKS_PER_PAGE, Manifest, Page, PageEntry};
use crate::id::ManifestId;
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
    replicate_paced(from, to, manifest, owner_ref, None, progress).await
}

/// As [`replicate`], no faster than a limit that may be shared with others.
pub async fn replicate_paced(
    from: &Store,
    to: &Store,
    manifest: &ManifestId,
    owner_ref: &str,
    pace: Option<&Bandwidth>,
    progress: impl Fn(Progress) + Send + Sync,
) -> Result<ReplicateReport> {
    let started = Instant::now();
    to.check_writable()?;
    check_owner(owner_ref)?;
    match to.add_ref(manifest, owner_ref).await {
        Err(Error::ManifestNotFound { .. }) => {}
        Err(error) => return Err(error),
        Ok(()) => {
            let info = to.manifest_info(manifest).await?;
            progress(Progress { done_bytes: info.logical_bytes, total_bytes: info.logical_bytes });
            return Ok(ReplicateReport {
                blocks_moved: 0,
                bytes_moved: 0,
                blocks_present: info.data_blocks,
                seconds: started.elapsed().as_secs_f64(),
            });
        }
    }
    from.refresh().await?;
    let root = from.load_manifest(manifest).await?;
    let mut moved = (0, 0);
    for number in 0..MAX_ATTEMPTS {
        let attempt = Attempt::begin(to, None).await?;
        let written = match replicate_once(from, &attempt, manifest, &root, pace, &progress).await {
            Ok(written) => written,
            Err(error) => {
                attempt.end().await?;
                return Err(error);
            }
        };
        moved = (moved.0 + written.new_blocks, moved.1 + written.payload_bytes);
        if attempt.publish(*manifest, owner_ref, &written.packs).await? == Outcome::Visible {
            progress(Progress { done_bytes: root.logical_bytes, total_bytes: root.logical_bytes });
            return Ok(ReplicateReport {
                blocks_moved: moved.0,
                bytes_moved: moved.1,
                blocks_present: root.data_blocks().saturating_sub(moved.0),
                seconds: started.elapsed().as_secs_f64(),
            });
        }
        pause(number).await;
    }
    Err(contended())
}

/// Page of a window and index in it.
type Place = (usize, usize);

async fn replicate_once(
    from: &Store,
    attempt: &Attempt,
    manifest: &ManifestId,
    root: &Manifest,
    pace: Option<&Bandwidth>,
    progress: &(impl Fn(Progress) + Send + Sync),
) -> Result<Written> {
    let total_bytes = root.logical_bytes;
    let mut writer = BlockWriter::new(attempt).paced(pace);
    let entries: Vec<_> = root.pages.iter().collect();
    for window in entries.chunks(WINDOW_PAGES) {
        let mut pages = Vec::with_capacity(window.len());
        for (_, entry) in window {
            pages.push(from.load_page(&entry.id).await?);
        }
        let missing = missing(attempt, &pages, &mut writer).await?;
        copy(std::slice::from_ref(from), missing, &mut writer)
            .await
            .map_err(|failed| name_block(failed, manifest, window))?;
        for page in &pages {
            let (id, bytes) = page.encode();
            writer.page(id, bytes).await?;
        }
        if let Some((last, _)) = window.last() {
            let end = block_bytes((u64::from(**last) + 1) * BLOCKS_PER_PAGE as u64);
            progress(Progress { done_bytes: end.min(total_bytes), total_bytes });
        }
    }
    let (id, bytes) = root.encode();
    writer.manifest(id, bytes).await?;
    writer.finish().await
}

/// The blocks that the target lacks, in the order of the disk.
async fn missing(
    attempt: &Attempt,
    pages: &[Page],
    writer: &mut BlockWriter<'_>,
) -> Result<Vec<Wanted<Place>>> {
    let mut asked = Vec::new();
    let mut seen = HashSet::new();
    for (number, page) in pages.iter().enumerate() {
        for (index, hash) in page.present() {
            if !writer.is_fresh(hash.as_bytes()) && seen.insert(hash) {
                asked.push((*hash.as_bytes(), (number, index)));
            }
        }
    }
    let (store, avoid) = (attempt.store().clone(), Arc::clone(attempt.avoid()));
    let found = tokio::task::spawn_blocking(move || {
        let find = |(hash, place)| {
            let location = store.index().find_where(&hash, |pack| !avoid.contains(pack))?;
            Ok((hash, place, location.map(|location| location.pack)))
        };
        asked.into_iter().map(find).collect::<Result<Vec<_>>>()
    });
    let mut missing = Vec::new();
    for (hash, place, pack) in found.await?? {
        match pack {
            Some(pack) => writer.count_on(pack),
            None => missing.push((hash, place)),
        }
    }
    Ok(missing)
}

/// Adds where on the disk the block is that a failure was for.
fn name_block(failed: Failed<Place>, manifest: &ManifestId, window: &[(&u32, &PageEntry)]) -> Error {
    let Some((block, (page, index))) = failed.what else { return *failed.error };
    let page = window.get(page).map_or(0, |(number, _)| u64::from(**number));
    let disk_offset = block_bytes(page * BLOCKS_PER_PAGE as u64 + index as u64);
    Error::Block { block, disk_offset, manifest: *manifest, source: failed.error }
}
