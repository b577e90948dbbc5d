//! A cached frame: its verified blocks in an open file, or in memory.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::io::ReadWriteFlags;

use crate::format::{BLOCK_BYTES, MAX_FRAME_BLOCKS, verify_blocks};

/// What one block takes in a cache file: the block, and its hash after all blocks.
const STORED_BLOCK_BYTES: usize = BLOCK_BYTES + 32;

/// A frame whose blocks were verified by this process.
#[derive(Debug)]
pub(super) struct CachedFrame {
    hashes: Vec<[u8; 32]>,
    blocks: Blocks,
}

#[derive(Debug)]
enum Blocks {
    /// The open file is the one that was verified: files of the cache are replaced, never written again.
    File(Arc<File>),
    Memory(Vec<u8>),
}

impl CachedFrame {
    pub(super) fn in_memory(hashes: Vec<[u8; 32]>, plain: Vec<u8>) -> Self {
        Self { hashes, blocks: Blocks::Memory(plain) }
    }

    /// Takes a file just written by [`encode`] of these hashes.
    pub(super) fn in_file(hashes: Vec<[u8; 32]>, file: File) -> Self {
        Self { hashes, blocks: Blocks::File(Arc::new(file)) }
    }

    /// Reads a file of the cache and verifies all of it. The error says what is wrong with it.
    pub(super) fn verify(file: File) -> Result<Self, String> {
        let len = file.metadata().map_err(|error| error.to_string())?.len() as usize;
        let count = len / STORED_BLOCK_BYTES;
        if count == 0 || count > MAX_FRAME_BLOCKS || !len.is_multiple_of(STORED_BLOCK_BYTES) {
            return Err(format!("{len} bytes cannot be a frame"));
        }
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0).map_err(|error| error.to_string())?;
        let (plain, table) = bytes.split_at(count * BLOCK_BYTES);
        let hashes = table.as_chunks::<32>().0.to_vec();
        verify_blocks(&hashes, plain)?;
        Ok(Self::in_file(hashes, file))
    }

    /// Whether the block in this slot is the one with this hash.
    pub(super) fn holds(&self, slot: u8, hash: &[u8; 32]) -> bool {
        self.hashes.get(usize::from(slot)) == Some(hash)
    }

    pub(super) fn is_in_memory(&self) -> bool {
        matches!(self.blocks, Blocks::Memory(_))
    }

    /// Copies bytes of the block in `slot`, which must exist; `within + buf.len()` is at most [`BLOCK_BYTES`].
    pub(super) async fn read(&self, slot: u8, within: usize, buf: &mut [u8]) -> io::Result<()> {
        let at = usize::from(slot) * BLOCK_BYTES + within;
        let file = match &self.blocks {
            Blocks::Memory(plain) => {
                buf.copy_from_slice(&plain[at..at + buf.len()]);
                return Ok(());
            }
            Blocks::File(file) => file,
        };
        // From the page cache without leaving this thread; only a read that would wait for the disk goes elsewhere.
        let whole = buf.len();
        let quick = rustix::io::preadv2(file, &mut [IoSliceMut::new(buf)], at as u64, ReadWriteFlags::NOWAIT);
        if quick == Ok(whole) {
            return Ok(());
        }
        let file = Arc::clone(file);
        let read = move || {
            let mut bytes = vec![0; whole];
            file.read_exact_at(&mut bytes, at as u64).map(|()| bytes)
        };
        buf.copy_from_slice(&tokio::task::spawn_blocking(read).await??);
        Ok(())
    }
}

/// The bytes of a cache file: the blocks, page-aligned, then their hashes.
pub(super) fn encode(hashes: &[[u8; 32]], plain: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(hashes.len() * STORED_BLOCK_BYTES);
    bytes.extend_from_slice(plain);
    for hash in hashes {
        bytes.extend_from_slice(hash);
    }
    bytes
}
