//! Writes index segments as docs/format.md describes them: indexes of sizes that nobody wants to wait for.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// The most entries of one segment.
pub(super) const MAX_ENTRIES: usize = 2 << 20;
const ENTRY_BYTES: usize = 48;
pub(super) const KIND_BLOCKS: u8 = 1;

/// One line of an index, encoded; they sort by hash.
pub(super) type Entry = [u8; ENTRY_BYTES];

/// Where something is.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Number in the segment's table of packs.
    pub(super) pack: u32,
    /// Of the frame.
    pub(super) offset: u32,
    pub(super) len: u32,
    /// Which of the frame's `count`.
    pub(super) slot: u8,
    pub(super) count: u8,
    pub(super) kind: u8,
}

pub(super) fn entry(hash: &[u8; 32], place: Place) -> Entry {
    let mut entry = [0; ENTRY_BYTES];
    entry[..32].copy_from_slice(hash);
    entry[32..36].copy_from_slice(&place.pack.to_le_bytes());
    entry[36..40].copy_from_slice(&place.offset.to_le_bytes());
    entry[40..44].copy_from_slice(&place.len.to_le_bytes());
    entry[44..47].copy_from_slice(&[place.slot, place.count, place.kind]);
    entry
}

/// Writes a segment of these entries, which are sorted and at most [`MAX_ENTRIES`].
pub(super) fn write(path: &Path, packs: &[[u8; 16]], entries: &[Entry]) -> std::io::Result<()> {
    let mut bytes = b"TTINDEX\0".to_vec();
    bytes.extend_from_slice(&1_u32.to_le_bytes());
    bytes.extend_from_slice(&(packs.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&0_u64.to_le_bytes());
    bytes.extend_from_slice(packs.as_flattened());
    bytes.extend_from_slice(entries.as_flattened());
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    File::create(path)?.write_all(&bytes)
}
