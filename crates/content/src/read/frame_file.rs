//! A cached frame: its verified blocks in an open file, or in memory.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::io::ReadWriteFlags;

use crate::format::{BLOCK_BYTES, MAX_FRAME_BLOCKS, verify_blocks};
use crate::framed::{FramedError, FramedFile, FramedWriter};
use crate::seal::KeyRing;

/// What one block takes in a cache file: the block, and its hash after all blocks.
const STORED_BLOCK_BYTES: usize = BLOCK_BYTES + 32;
/// What is decrypted for the smallest read from the cache of an encrypted store: guests mostly read pages of 4 KiB.
const SEALED_BYTES: usize = 4096;

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
    /// Of an encrypted store. What is read is decrypted, and checked by that, each time.
    Sealed(Arc<FramedFile>),
    Memory(Vec<u8>),
}

impl CachedFrame {
    pub(super) fn in_memory(hashes: Vec<[u8; 32]>, plain: Vec<u8>) -> Self {
        Self { hashes, blocks: Blocks::Memory(plain) }
    }

    /// Takes a file just written by [`encode`] of these hashes.
    pub(super) fn in_file(hashes: Vec<[u8; 32]>, file: File, seal: Option<&Seal<'_>>) -> io::Result<Self> {
        let blocks = match seal {
            None => Blocks::File(Arc::new(file)),
            Some(seal) => Blocks::Sealed(Arc::new(FramedFile::open(file, Some(seal.keys), &seal.name)?)),
        };
        Ok(Self { hashes, blocks })
    }

    /// Reads a file of the cache and verifies all of it.
    pub(super) fn verify(file: File, seal: Option<&Seal<'_>>) -> Result<Self, FramedError> {
        let found = Self::in_file(Vec::new(), file, seal)?;
        let len = match &found.blocks {
            Blocks::File(file) => file.metadata()?.len(),
            Blocks::Sealed(file) => file.size(),
            Blocks::Memory(plain) => plain.len() as u64,
        } as usize;
        let count = len / STORED_BLOCK_BYTES;
        if count == 0 || count > MAX_FRAME_BLOCKS || !len.is_multiple_of(STORED_BLOCK_BYTES) {
            return Err(FramedError::Damaged(format!("{len} bytes cannot be a frame")));
        }
        let mut bytes = vec![0; len];
        found.blocks.read_exact_at(&mut bytes, 0)?;
        let (plain, table) = bytes.split_at(count * BLOCK_BYTES);
        let hashes = table.as_chunks::<32>().0.to_vec();
        verify_blocks(&hashes, plain).map_err(FramedError::Damaged)?;
        Ok(Self { hashes, ..found })
    }

    /// Whether the block in this slot is the one with this hash.
    pub(super) fn holds(&self, slot: u8, hash: &[u8; 32]) -> bool {
        self.hashes.get(usize::from(slot)) == Some(hash)
    }

    pub(super) fn is_in_memory(&self) -> bool {
        matches!(self.blocks, Blocks::Memory(_))
    }

    /// Copies bytes of the block in `slot`, which must exist, at least one; `within + buf.len()` is at most [`BLOCK_BYTES`].
    pub(super) async fn read(&self, slot: u8, within: usize, buf: &mut [u8]) -> io::Result<()> {
        let at = usize::from(slot) * BLOCK_BYTES + within;
        // From the page cache without leaving this thread; only a read that would wait for the disk goes elsewhere.
        let quick = |file: &File, bytes: &mut [u8], at: u64| {
            let whole = bytes.len();
            rustix::io::preadv2(file, &mut [IoSliceMut::new(bytes)], at, ReadWriteFlags::NOWAIT) == Ok(whole)
        };
        let slow = match &self.blocks {
            Blocks::Memory(plain) => {
                buf.copy_from_slice(&plain[at..at + buf.len()]);
                return Ok(());
            }
            Blocks::File(file) => {
                if quick(file, buf, at as u64) {
                    return Ok(());
                }
                Blocks::File(Arc::clone(file))
            }
            Blocks::Sealed(file) => {
                let stored = file.stored(at as u64..(at + buf.len()) as u64)?;
                let mut bytes = vec![0; (stored.end - stored.start) as usize];
                if quick(file.file(), &mut bytes, stored.start) {
                    return Ok(file.decode(at as u64, &bytes, buf)?);
                }
                Blocks::Sealed(Arc::clone(file))
            }
        };
        let mut bytes = vec![0; buf.len()];
        let read = move || slow.read_exact_at(&mut bytes, at as u64).map(|()| bytes);
        buf.copy_from_slice(&tokio::task::spawn_blocking(read).await??);
        Ok(())
    }
}

impl Blocks {
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> Result<(), FramedError> {
        match self {
            Self::File(file) => Ok(file.read_exact_at(buf, at)?),
            Self::Sealed(file) => file.read_exact_at(buf, at),
            Self::Memory(plain) => {
                buf.copy_from_slice(&plain[at as usize..][..buf.len()]);
                Ok(())
            }
        }
    }
}

/// What the cache files of an encrypted store are sealed with: the store's keys, and the frame that a file is for.
#[derive(Debug)]
pub(super) struct Seal<'a> {
    pub(super) keys: &'a KeyRing,
    pub(super) name: Vec<u8>,
}

/// The bytes of a cache file: the blocks, page-aligned, then their hashes; sealed as a framed file for an encrypted store.
pub(super) fn encode(hashes: &[[u8; 32]], plain: &[u8], seal: Option<&Seal<'_>>) -> io::Result<Vec<u8>> {
    let table = hashes.as_flattened();
    let Some(seal) = seal else { return Ok([plain, table].concat()) };
    let room = hashes.len() * STORED_BLOCK_BYTES / SEALED_BYTES * (SEALED_BYTES + 32);
    let mut writer = FramedWriter::new(Vec::with_capacity(room), Some(seal.keys), &seal.name, SEALED_BYTES)?;
    writer.write(plain)?;
    writer.write(table)?;
    writer.finish()
}
