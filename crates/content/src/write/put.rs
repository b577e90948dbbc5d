//! Putting disks into a store: whole ones, and what changed of one.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use disk::{BlockSource, Chain, ExtentKind, RawFile};
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;

use super::attempt::{Attempt, MAX_ATTEMPTS, Outcome, contended, pause};
use super::buffers::{Buffer, Buffers};
use super::pages::PageBuilder;
use super::runs::{Run, Runs};
use super::writer::{BlockWriter, Written};
use super::{Progress, PutReport, workers};
use crate::format::{BLOCK_BYTES, EncodedFrame, MAX_FRAME_BLOCKS, Manifest, ZERO_BLOCK, compress};
use crate::id::{BlockHash, ManifestId, PackId};
use crate::read::{BlockCache, Image};
use crate::store::{Store, block_bytes, check_owner};
use crate::{Error, Result};

/// Runs that the thread which walks the source's tables may be ahead of the reading.
const MAX_QUEUED_RUNS: usize = 256;
/// Blocks that are read and hashed as one job: a frame's worth.
const CHUNK_BLOCKS: u64 = MAX_FRAME_BLOCKS as u64;

impl Store {
    /// Puts a raw disk file, and lets `owner_ref` refer to the image. Holes are not read. The file must not change
    /// meanwhile.
    pub async fn put_raw(
        &self,
        path: &Path,
        owner_ref: &str,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<PutReport> {
        let path = path.to_owned();
        let source = tokio::task::spawn_blocking(move || RawFile::open(&path)).await??;
        self.put(Arc::new(source), None, owner_ref, &progress).await
    }

    /// Puts the disk that qcow2 files show without a base, from bottom to top.
    pub async fn put_layers(
        &self,
        layers: &[PathBuf],
        owner_ref: &str,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<PutReport> {
        let source = open_chain(layers).await?;
        self.put(source, None, owner_ref, &progress).await
    }

    /// Puts the disk that overlays show on top of an image of this store, from bottom to top; takes time and space by what
    /// the overlays hold. The chain is as given: names inside the files are ignored. A disk may have grown; one that is
    /// smaller than its base is refused.
    ///
    /// The overlays are parsed in this process: for those of our own QEMU. What people give goes through
    /// [`disk::sandbox::open_overlay`] and [`Self::commit_source`].
    pub async fn commit_overlay(
        &self,
        base: &ManifestId,
        layers: &[PathBuf],
        owner_ref: &str,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<PutReport> {
        self.commit_source(base, open_chain(layers).await?, owner_ref, progress).await
    }

    /// As [`Self::commit_overlay`], for changes that are held in any other way. With changes that hold nothing on a larger
    /// disk, the disk has grown, and no data was read.
    pub async fn commit_source(
        &self,
        base: &ManifestId,
        changes: Arc<dyn BlockSource>,
        owner_ref: &str,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<PutReport> {
        self.put(changes, Some(base), owner_ref, &progress).await
    }

    /// Puts any disk that can be read sparsely: what its extents do not cover is zeros.
    pub async fn put_source(
        &self,
        source: Arc<dyn BlockSource>,
        owner_ref: &str,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<PutReport> {
        self.put(source, None, owner_ref, &progress).await
    }

    async fn put(
        &self,
        source: Arc<dyn BlockSource>,
        base: Option<&ManifestId>,
        owner_ref: &str,
        progress: &(impl Fn(Progress) + Send + Sync),
    ) -> Result<PutReport> {
        let started = Instant::now();
        self.check_writable()?;
        check_owner(owner_ref)?;
        let mut written_before = (0, 0);
        for number in 0..MAX_ATTEMPTS {
            let attempt = Attempt::begin(self, base).await?;
            match self.put_once(&attempt, &source, base, progress).await {
                Err(error) => {
                    attempt.end().await?;
                    return Err(error);
                }
                Ok((manifest, written)) => {
                    let (id, _) = manifest.encode();
                    let new_blocks = written_before.0 + written.new_blocks;
                    let stored_bytes = written_before.1 + written.stored_bytes;
                    if attempt.publish(id, owner_ref, &written.packs).await? == Outcome::Visible {
                        let logical_bytes = manifest.logical_bytes;
                        progress(Progress { done_bytes: logical_bytes, total_bytes: logical_bytes });
                        return Ok(PutReport {
                            manifest: id,
                            logical_bytes,
                            data_bytes: block_bytes(manifest.data_blocks()),
                            new_blocks,
                            new_blocks_bytes: block_bytes(new_blocks),
                            stored_bytes,
                            seconds: started.elapsed().as_secs_f64(),
                        });
                    }
                    written_before = (new_blocks, stored_bytes);
                }
            }
            pause(number).await;
        }
        Err(contended())
    }

    /// Makes everything of a disk durable and found, its manifest included, but not visible.
    async fn put_once(
        &self,
        attempt: &Attempt,
        source: &Arc<dyn BlockSource>,
        base: Option<&ManifestId>,
        progress: &(impl Fn(Progress) + Send + Sync),
    ) -> Result<(Manifest, Written)> {
        let logical_bytes = source.logical_size();
        let base = match base {
            Some(id) => Some(self.open_image(id, Arc::new(BlockCache::in_memory())).await?),
            None => None,
        };
        if let Some(base) = base.as_ref().filter(|base| base.size() > logical_bytes) {
            let reason = format!(
                "the overlay's disk of {logical_bytes} bytes is smaller than its base of {}: what it cut off would be \
                 lost; shrink the file system inside instead",
                base.size()
            );
            return Err(Error::Refused { reason });
        }
        let pages = base.as_ref().map(|base| base.manifest().pages.clone()).unwrap_or_default();
        let writer = BlockWriter::new(attempt);
        let input = Arc::new(Input {
            source: Arc::clone(source),
            base,
            store: self.clone(),
            avoid: Arc::clone(attempt.avoid()),
            buffers: writer.buffers().clone(),
        });

        let mut put =
            Put { writer, pages: PageBuilder::new(self.clone(), pages), steps: FuturesOrdered::new() };
        let report = |end: u64| {
            let done_bytes = block_bytes(end).min(logical_bytes);
            progress(Progress { done_bytes, total_bytes: logical_bytes });
        };
        let mut runs = walk(Arc::clone(&input));
        while let Some(run) = runs.recv().await {
            for step in steps(&input, run?) {
                put.steps.push_back(step);
                if put.steps.len() > 2 * workers() {
                    report(put.take_step().await?);
                }
            }
        }
        while !put.steps.is_empty() {
            report(put.take_step().await?);
        }

        let Put { mut writer, pages, .. } = put;
        let pages = pages.finish(&mut writer).await?;
        let manifest = Manifest { logical_bytes, pages };
        let (id, bytes) = manifest.encode();
        writer.manifest(id, bytes).await?;
        Ok((manifest, writer.finish().await?))
    }
}

async fn open_chain(layers: &[PathBuf]) -> Result<Arc<dyn BlockSource>> {
    let layers = layers.to_vec();
    Ok(Arc::new(tokio::task::spawn_blocking(move || Chain::open(&layers)).await??))
}

/// What is read: changes over a base, or over nothing.
struct Input {
    source: Arc<dyn BlockSource>,
    base: Option<Image>,
    store: Store,
    /// Condemned packs: what only they hold is new.
    avoid: Arc<HashSet<PackId>>,
    buffers: Buffers,
}

/// A part of the disk that is ready to be written, in order.
enum Step {
    Chunk(Chunk),
    Zeros { start: u64, end: u64 },
}

/// Consecutive blocks, read and hashed.
struct Chunk {
    first: u64,
    plain: Buffer,
    blocks: Vec<Hashed>,
    /// All of them, if the index has none and they fill a frame: compressed where they were read, while they are in the
    /// processor's cache.
    frame: Option<EncodedFrame>,
}

/// What a block turned out to be.
enum Hashed {
    Zeros,
    Known(BlockHash, PackId),
    New(BlockHash),
}

impl Hashed {
    fn new_hash(&self) -> Option<[u8; 32]> {
        match self {
            Self::New(hash) => Some(*hash.as_bytes()),
            Self::Zeros | Self::Known(..) => None,
        }
    }
}

/// A put under way.
struct Put<'a> {
    writer: BlockWriter<'a>,
    pages: PageBuilder,
    steps: FuturesOrdered<BoxFuture<'static, Result<Step>>>,
}

impl Put<'_> {
    /// Writes the next step and returns the number of the block after it.
    async fn take_step(&mut self) -> Result<u64> {
        let Self { writer, pages, steps } = self;
        match steps.next().await.transpose()? {
            None => Ok(0),
            Some(Step::Zeros { start, end }) => {
                pages.zeros(writer, start, end).await?;
                Ok(end)
            }
            Some(Step::Chunk(Chunk { first, plain, blocks, frame })) => {
                match frame.filter(|frame| !writer.is_any_fresh(&frame.hashes)) {
                    Some(frame) => writer.frame(frame).await?,
                    None => {
                        for (block, plain) in blocks.iter().zip(plain.chunks_exact(BLOCK_BYTES)) {
                            if let Hashed::New(hash) = block {
                                writer.block(*hash, plain).await?;
                            }
                        }
                    }
                }
                let mut number = first;
                for block in blocks {
                    let hash = match block {
                        Hashed::Zeros => None,
                        Hashed::Known(hash, pack) => {
                            writer.count_on(pack);
                            Some(hash)
                        }
                        Hashed::New(hash) => Some(hash),
                    };
                    pages.set(writer, number, hash).await?;
                    number += 1;
                }
                Ok(number)
            }
        }
    }
}

/// Walks the source's tables on a thread of its own: they are read from the disk.
fn walk(input: Arc<Input>) -> mpsc::Receiver<Result<Run>> {
    let (sender, receiver) = mpsc::channel(MAX_QUEUED_RUNS);
    tokio::task::spawn_blocking(move || {
        let mut runs = Runs::new(input.source.logical_size());
        for extent in input.source.extents() {
            let sent = match extent {
                Ok(extent) => runs.push(&extent).try_for_each(|run| sender.blocking_send(Ok(run))),
                Err(error) => sender.blocking_send(Err(error.into())),
            };
            // The put has failed and nobody listens.
            if sent.is_err() {
                return;
            }
        }
    });
    receiver
}

/// Cuts a run into steps, each of which begins when it is made.
fn steps(input: &Arc<Input>, run: Run) -> impl Iterator<Item = BoxFuture<'static, Result<Step>>> {
    let mut next = run.start;
    std::iter::from_fn(move || {
        if next >= run.end {
            return None;
        }
        let start = next;
        if run.kind == ExtentKind::Zero {
            next = run.end;
            return Some(std::future::ready(Ok(Step::Zeros { start, end: run.end })).boxed());
        }
        next = run.end.min((start / CHUNK_BLOCKS + 1) * CHUNK_BLOCKS);
        let (input, count) = (Arc::clone(input), (next - start) as usize);
        let reader = Arc::clone(&input);
        let reading = tokio::task::spawn_blocking(move || read_chunk(&reader, start, count));
        Some(
            async move {
                match reading.await?? {
                    Read::Whole(chunk) => Ok(Step::Chunk(chunk)),
                    Read::Part(plain) => Ok(Step::Chunk(complete_chunk(input, start, plain).await?)),
                }
            }
            .boxed(),
        )
    })
}

/// What the source gave of a chunk.
enum Read {
    Whole(Chunk),
    /// Not all of it: the source's clusters are smaller than a block.
    Part(Buffer),
}

fn read_chunk(input: &Input, first: u64, count: usize) -> Result<Read> {
    let offset = block_bytes(first);
    let mut plain = input.buffers.take(count * BLOCK_BYTES);
    let len = (input.source.logical_size() - offset).min(plain.len() as u64) as usize;
    // The last block of the disk is padded.
    plain[len..].fill(0);
    match input.source.read_onto(offset, &mut plain[..len])? == len {
        true => hash_chunk(input, first, plain).map(Read::Whole),
        false => Ok(Read::Part(plain)),
    }
}

/// Reads a chunk again over what the base has there, or over zeros.
async fn complete_chunk(input: Arc<Input>, first: u64, mut plain: Buffer) -> Result<Chunk> {
    let offset = block_bytes(first);
    let len = (input.source.logical_size() - offset).min(plain.len() as u64) as usize;
    plain.fill(0);
    if let Some(base) = input.base.as_ref().filter(|base| offset < base.size()) {
        let len = (base.size() - offset).min(len as u64) as usize;
        base.read_at(offset, &mut plain[..len]).await?;
    }
    tokio::task::spawn_blocking(move || {
        input.source.read_onto(offset, &mut plain[..len])?;
        hash_chunk(&input, first, plain)
    })
    .await?
}

/// Finds out what each block is.
fn hash_chunk(input: &Input, first: u64, plain: Buffer) -> Result<Chunk> {
    let blocks = plain.chunks_exact(BLOCK_BYTES).map(|block| {
        if block == ZERO_BLOCK {
            return Ok(Hashed::Zeros);
        }
        let hash = BlockHash::of(block);
        let found = input.store.index().find_where(hash.as_bytes(), |pack| !input.avoid.contains(pack))?;
        Ok(match found {
            Some(location) => Hashed::Known(hash, location.pack),
            None => Hashed::New(hash),
        })
    });
    let blocks = blocks.collect::<Result<Vec<_>>>()?;
    let new: HashSet<_> = blocks.iter().filter_map(Hashed::new_hash).collect();
    let frame = (new.len() == MAX_FRAME_BLOCKS)
        .then(|| compress(blocks.iter().filter_map(Hashed::new_hash).collect(), &plain));
    Ok(Chunk { first, plain, blocks, frame })
}
