//! From new blocks to frames: gathers neighbours, compresses beside the reading, keeps the order.

use std::collections::HashSet;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};

use super::attempt::Attempt;
use super::bandwidth::Bandwidth;
use super::buffers::{BUFFER_BYTES, Buffer, Buffers};
use super::pack::{PackWriter, Packed};
use super::workers;
use crate::Result;
use crate::format::{BLOCK_BYTES, EncodedFrame, FrameKind, MAX_FRAME_BLOCKS, compress};
use crate::id::{BlockHash, ManifestId, PackId, PageId};

/// Writes blocks and pages that the store does not have. Callers ask the index first; what this writer itself wrote, it
/// knows.
pub(crate) struct BlockWriter<'a> {
    attempt: &'a Attempt,
    packs: PackWriter,
    /// Blocks that wait to be a frame.
    hashes: Vec<[u8; 32]>,
    plain: Option<Buffer>,
    buffers: Buffers,
    /// Pages and manifests that wait for the gathered blocks before them.
    held_tables: Vec<EncodedFrame>,
    frames: FuturesOrdered<BoxFuture<'static, Result<EncodedFrame>>>,
    /// What was given to this writer and the index does not know yet: about two packs' worth.
    fresh: HashSet<[u8; 32]>,
    new_blocks: u64,
    payload_bytes: u64,
    /// Packs that hold what was not written because it was there.
    used: HashSet<PackId>,
    pace: Option<&'a Bandwidth>,
}

/// What a writer wrote.
pub(crate) struct Written {
    /// Packs that were written, and those that were counted on.
    pub(super) packs: HashSet<PackId>,
    pub(super) new_blocks: u64,
    /// Compressed bytes of the new blocks.
    pub(super) payload_bytes: u64,
    /// Bytes of all objects.
    pub(crate) stored_bytes: u64,
}

impl<'a> BlockWriter<'a> {
    pub(crate) fn new(attempt: &'a Attempt) -> Self {
        Self {
            packs: PackWriter::new(attempt.store().clone(), attempt.id()),
            attempt,
            hashes: Vec::new(),
            plain: None,
            buffers: Buffers::default(),
            held_tables: Vec::new(),
            frames: FuturesOrdered::new(),
            fresh: HashSet::new(),
            new_blocks: 0,
            payload_bytes: 0,
            used: HashSet::new(),
            pace: None,
        }
    }

    /// Writes no faster than a limit.
    pub(super) fn paced(self, pace: Option<&'a Bandwidth>) -> Self {
        Self { pace, ..self }
    }

    /// Whether this writer was given it and the index may not know it yet.
    pub(super) fn is_fresh(&self, hash: &[u8; 32]) -> bool {
        self.fresh.contains(hash)
    }

    /// Adds a block of [`BLOCK_BYTES`] that the index does not have.
    pub(super) async fn block(&mut self, hash: BlockHash, plain: &[u8]) -> Result<()> {
        if !self.fresh.insert(*hash.as_bytes()) {
            return Ok(());
        }
        self.new_blocks += 1;
        let at = self.hashes.len() * BLOCK_BYTES;
        let gathered = self.plain.get_or_insert_with(|| self.buffers.take(BUFFER_BYTES));
        gathered[at..at + BLOCK_BYTES].copy_from_slice(plain);
        self.hashes.push(*hash.as_bytes());
        if self.hashes.len() == MAX_FRAME_BLOCKS { self.close_frame().await } else { Ok(()) }
    }

    /// Whether this writer was given any of these and the index may not know it yet.
    pub(super) fn is_any_fresh(&self, hashes: &[[u8; 32]]) -> bool {
        hashes.iter().any(|hash| self.fresh.contains(hash))
    }

    /// The buffers that this writer takes, for those who feed it.
    pub(super) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// Takes note that a block was found in a pack, and is counted on to stay there.
    pub(super) fn count_on(&mut self, pack: PackId) {
        self.used.insert(pack);
    }

    /// Adds a frame that the index has nothing of.
    pub(super) async fn frame(&mut self, frame: EncodedFrame) -> Result<()> {
        self.fresh.extend(&frame.hashes);
        if frame.kind == FrameKind::Blocks {
            self.new_blocks += frame.hashes.len() as u64;
        }
        self.frames.push_back(std::future::ready(Ok(frame)).boxed());
        self.drain(2 * workers()).await
    }

    /// Adds a page unless the store has it; its blocks were added before.
    pub(super) async fn page(&mut self, id: PageId, bytes: Vec<u8>) -> Result<()> {
        self.table(EncodedFrame::page(*id.as_bytes(), bytes)).await
    }

    /// Adds a manifest unless the store has it; its pages were added before.
    pub(super) async fn manifest(&mut self, id: ManifestId, bytes: Vec<u8>) -> Result<()> {
        self.table(EncodedFrame::manifest(*id.as_bytes(), bytes)).await
    }

    async fn table(&mut self, table: EncodedFrame) -> Result<()> {
        let hash = table.hashes[0];
        let (store, avoid) = (self.attempt.store().clone(), Arc::clone(self.attempt.avoid()));
        let known = tokio::task::spawn_blocking(move || {
            store.index().find_where(&hash, |pack| !avoid.contains(pack))
        });
        if let Some(location) = known.await?? {
            self.count_on(location.pack);
            return Ok(());
        }
        if !self.fresh.insert(hash) {
            return Ok(());
        }
        if self.hashes.is_empty() {
            self.frames.push_back(std::future::ready(Ok(table)).boxed());
            return self.drain(2 * workers()).await;
        }
        self.held_tables.push(table);
        Ok(())
    }

    /// Makes everything durable and found.
    pub(crate) async fn finish(mut self) -> Result<Written> {
        self.close_frame().await?;
        self.drain(0).await?;
        let Packed { ids, stored_bytes } = self.packs.finish().await?;
        let mut packs = self.used;
        packs.extend(ids);
        Ok(Written { packs, new_blocks: self.new_blocks, payload_bytes: self.payload_bytes, stored_bytes })
    }

    /// Sends the gathered blocks to be compressed, and the pages that waited for them.
    async fn close_frame(&mut self) -> Result<()> {
        if let Some(plain) = self.plain.take() {
            let hashes = std::mem::take(&mut self.hashes);
            let bytes = hashes.len() * BLOCK_BYTES;
            let task = tokio::task::spawn_blocking(move || compress(hashes, &plain[..bytes]));
            self.frames.push_back(async move { Ok(task.await?) }.boxed());
        }
        for page in self.held_tables.drain(..) {
            self.frames.push_back(std::future::ready(Ok(page)).boxed());
        }
        self.drain(2 * workers()).await
    }

    /// Appends frames to packs, in order, until at most `left` are still on their way.
    async fn drain(&mut self, left: usize) -> Result<()> {
        while self.frames.len() > left {
            let Some(frame) = self.frames.next().await else { return Ok(()) };
            let frame = frame?;
            if let Some(pace) = self.pace {
                pace.take(frame.payload.len() as u64).await;
            }
            if frame.kind == FrameKind::Blocks {
                self.payload_bytes += frame.payload.len() as u64;
            }
            for hash in self.packs.append(frame).await? {
                self.fresh.remove(&hash);
            }
        }
        Ok(())
    }
}
