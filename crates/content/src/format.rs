//! The byte layouts of `docs/format.md`, without IO: encode what we know, decode what may be damaged.

mod frame;
mod manifest;
mod page;
mod segment;

pub(crate) use frame::{
    EncodedFrame, FRAME_HEADER_BYTES, FRAME_MAGIC, Frame, FrameKind, MAX_FRAME_BLOCKS, PACK_HEADER_BYTES,
    compress, frame_len, pack_frames_at, pack_header, pack_key, verify_blocks,
};
pub(crate) use manifest::{Manifest, PageEntry};
pub(crate) use page::Page;
pub(crate) use segment::{
    ENTRY_BYTES, Entry, Location, MAX_SEGMENT_BYTES, MAX_SEGMENT_ENTRIES, SegmentHeader, decode_entry,
    encode_segment,
};

/// Bytes of a block, the unit of deduplication.
pub const BLOCK_BYTES: usize = 64 << 10;
/// Blocks that one page describes: 64 MiB of disk.
pub const BLOCKS_PER_PAGE: usize = 1024;
/// The most bytes of one pack.
pub const MAX_PACK_BYTES: u32 = 64 << 20;
/// The most blocks and pages of one pack: bounds a writer's memory where blocks compress to nearly nothing.
pub(crate) const MAX_PACK_ENTRIES: usize = 65_536;

/// What no store holds.
pub(crate) static ZERO_BLOCK: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// Reads little-endian fields of a header whose length the caller has checked.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// As [`le32`], for 64 bits.
pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// As [`le32`], for a hash.
pub(crate) fn hash_at(bytes: &[u8], at: usize) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(&bytes[at..at + 32]);
    hash
}
