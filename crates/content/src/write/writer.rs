//! From new blocks to frames: gathers neighbours, compresses beside the reading, keeps the order.

use std::collections::HashSet;

use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};

use super::merge::merge_segments;
use super::pack::PackWriter;
use super::workers;
use crate::Result;
use crate::format::{BLOCK_BYTES, EncodedFrame, FrameKind, MAX_FRAME_BLOCKS, compress};
use crate::id::{BlockHash, PageId};
use crate::store::Store;

/// Writes blocks and pages that the store does not have. Callers ask the index first; what this writer itself wrote, it
/// knows.
pub(super) struct BlockWriter {
    store: Store,
    packs: PackWriter,
    hashes: Vec<[u8; 32]>,
    plain: Vec<u8>,
    /// Pages that wait for the gathered blocks before them.
    held_pages: Vec<EncodedFrame>,
    frames: FuturesOrdered<BoxFuture<'static, Result<EncodedFrame>>>,
    /// What was given to this writer and the index does not know yet: about two packs' worth.
    fresh: HashSet<[u8; 32]>,
    new_blocks: u64,
    payload_bytes: u64,
}

/// What a writer wrote.
pub(super) struct Written {
    pub(super) new_blocks: u64,
    /// Compressed bytes of the new blocks.
    pub(super) payload_bytes: u64,
    /// Bytes of all objects.
    pub(super) stored_bytes: u64,
}

impl BlockWriter {
    pub(super) fn new(store: Store) -> Self {
        Self {
            packs: PackWriter::new(store.clone()),
            store,
            hashes: Vec::new(),
            plain: Vec::new(),
            held_pages: Vec::new(),
            frames: FuturesOrdered::new(),
            fresh: HashSet::new(),
            new_blocks: 0,
            payload_bytes: 0,
        }
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
        self.hashes.push(*hash.as_bytes());
        self.plain.extend_from_slice(plain);
        if self.hashes.len() == MAX_FRAME_BLOCKS { self.close_frame().await } else { Ok(()) }
    }

    /// Adds a frame of blocks as another store has it, none of which the index has.
    pub(super) async fn frame(&mut self, frame: EncodedFrame) -> Result<()> {
        self.fresh.extend(&frame.hashes);
        self.new_blocks += frame.hashes.len() as u64;
        self.frames.push_back(std::future::ready(Ok(frame)).boxed());
        self.drain(2 * workers()).await
    }

    /// Adds a page unless the store has it; its blocks were added before.
    pub(super) async fn page(&mut self, id: PageId, bytes: Vec<u8>) -> Result<()> {
        let hash = *id.as_bytes();
        let store = self.store.clone();
        let known = tokio::task::spawn_blocking(move || store.index().find(&hash)).await??;
        if known.is_some() || !self.fresh.insert(hash) {
            return Ok(());
        }
        let page = EncodedFrame::page(hash, bytes);
        if self.hashes.is_empty() {
            self.frames.push_back(std::future::ready(Ok(page)).boxed());
            return self.drain(2 * workers()).await;
        }
        self.held_pages.push(page);
        Ok(())
    }

    /// Makes everything durable and found.
    pub(super) async fn finish(mut self) -> Result<Written> {
        self.close_frame().await?;
        self.drain(0).await?;
        let stored_bytes = self.packs.finish().await?;
        // What was asked for is done; an index of many segments is only slower.
        if let Err(error) = merge_segments(&self.store).await {
            tracing::warn!(%error, store = %self.store.location(), "index segments could not be merged");
        }
        Ok(Written { new_blocks: self.new_blocks, payload_bytes: self.payload_bytes, stored_bytes })
    }

    /// Sends the gathered blocks to be compressed, and the pages that waited for them.
    async fn close_frame(&mut self) -> Result<()> {
        if !self.hashes.is_empty() {
            let hashes = std::mem::take(&mut self.hashes);
            let capacity = MAX_FRAME_BLOCKS * BLOCK_BYTES;
            let plain = std::mem::replace(&mut self.plain, Vec::with_capacity(capacity));
            let task = tokio::task::spawn_blocking(move || compress(hashes, plain));
            self.frames.push_back(async move { Ok(task.await?) }.boxed());
        }
        for page in self.held_pages.drain(..) {
            self.frames.push_back(std::future::ready(Ok(page)).boxed());
        }
        self.drain(2 * workers()).await
    }

    /// Appends frames to packs, in order, until at most `left` are still on their way.
    async fn drain(&mut self, left: usize) -> Result<()> {
        while self.frames.len() > left {
            let Some(frame) = self.frames.next().await else { return Ok(()) };
            let frame = frame?;
            if frame.kind == FrameKind::Blocks {
                self.payload_bytes += frame.payload.len() as u64;
            }
            for hash in self.packs.append(&frame).await? {
                self.fresh.remove(&hash);
            }
        }
        Ok(())
    }
}
