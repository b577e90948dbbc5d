//! Index segments: where blocks and pages are.

use std::collections::HashMap;

use super::{FrameKind, MAX_FRAME_BLOCKS, MAX_PACK_BYTES, hash_at, le32, le64};
use crate::id::PackId;

const MAGIC: &[u8; 8] = b"TTINDEX\0";
const VERSION: u32 = 1;
pub(crate) const ENTRY_BYTES: usize = 48;
const CHECKSUM_BYTES: u64 = 32;
/// Packs that one segment may name.
const MAX_PACKS: u32 = 65_536;

/// Entries that one segment may have.
pub(crate) const MAX_SEGMENT_ENTRIES: u64 = 2 << 20;
/// The largest segment, 97 MiB.
pub(crate) const MAX_SEGMENT_BYTES: u64 = SegmentHeader::BYTES as u64
    + 16 * MAX_PACKS as u64
    + ENTRY_BYTES as u64 * MAX_SEGMENT_ENTRIES
    + CHECKSUM_BYTES;

/// Where a block or page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) pack: PackId,
    /// Of the frame in the pack.
    pub(crate) offset: u32,
    /// Of the frame, its header included.
    pub(crate) len: u32,
    /// Which block of the frame.
    pub(crate) slot: u8,
    pub(crate) count: u8,
    pub(crate) kind: FrameKind,
}

/// A line of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) hash: [u8; 32],
    pub(crate) location: Location,
}

/// Encodes a segment of these entries, which it sorts; of several for one hash, one is kept.
pub(crate) fn encode_segment(mut entries: Vec<Entry>) -> Vec<u8> {
    entries.sort_unstable_by_key(|entry| entry.hash);
    entries.dedup_by_key(|entry| entry.hash);
    let mut numbers = HashMap::new();
    let mut packs = Vec::new();
    for entry in &entries {
        numbers.entry(entry.location.pack).or_insert_with(|| {
            packs.push(entry.location.pack);
            packs.len() as u32 - 1
        });
    }
    let mut bytes = Vec::with_capacity(64 + 16 * packs.len() + ENTRY_BYTES * entries.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(packs.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&0_u64.to_le_bytes());
    for pack in &packs {
        bytes.extend_from_slice(pack.as_bytes());
    }
    for Entry { hash, location } in &entries {
        bytes.extend_from_slice(hash);
        bytes.extend_from_slice(&numbers[&location.pack].to_le_bytes());
        bytes.extend_from_slice(&location.offset.to_le_bytes());
        bytes.extend_from_slice(&location.len.to_le_bytes());
        bytes.extend_from_slice(&[location.slot, location.count, location.kind.to_byte(), 0]);
    }
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    bytes
}

/// The header of a segment.
#[derive(Debug)]
pub(crate) struct SegmentHeader {
    pub(crate) packs: u32,
    pub(crate) entries: u64,
}

impl SegmentHeader {
    pub(crate) const BYTES: usize = 32;

    /// Decodes the header of a segment of `len` bytes.
    pub(crate) fn decode(bytes: &[u8; Self::BYTES], len: u64) -> Result<Self, String> {
        if &bytes[..8] != MAGIC {
            return Err("it does not begin as an index segment does".to_owned());
        }
        let (version, packs, entries) = (le32(bytes, 8), le32(bytes, 12), le64(bytes, 16));
        if version != VERSION {
            return Err(format!("version {version} is not known"));
        }
        let header = Self { packs, entries };
        let expected = entries
            .checked_mul(ENTRY_BYTES as u64)
            .and_then(|bytes| bytes.checked_add(header.entries_at() + CHECKSUM_BYTES));
        if packs > MAX_PACKS || expected != Some(len) {
            return Err(format!("{entries} entries of {packs} packs do not fit its {len} bytes"));
        }
        Ok(header)
    }

    /// Where the entries begin.
    pub(crate) fn entries_at(&self) -> u64 {
        Self::BYTES as u64 + 16 * u64::from(self.packs)
    }
}

/// Decodes one entry of [`ENTRY_BYTES`]; `None` if its fields are out of range.
pub(crate) fn decode_entry(bytes: &[u8], packs: &[PackId]) -> Option<Entry> {
    let [slot, count, kind] = [bytes[44], bytes[45], bytes[46]];
    let location = Location {
        pack: *packs.get(le32(bytes, 32) as usize)?,
        offset: le32(bytes, 36),
        len: le32(bytes, 40),
        slot,
        count,
        kind: FrameKind::from_byte(kind)?,
    };
    let inside = location.offset.checked_add(location.len).is_some_and(|end| end <= MAX_PACK_BYTES);
    let slots = slot < count && usize::from(count) <= MAX_FRAME_BLOCKS;
    (inside && slots).then_some(Entry { hash: hash_at(bytes, 0), location })
}
