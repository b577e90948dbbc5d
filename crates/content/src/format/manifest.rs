//! Manifests: the root of one disk.

use std::collections::BTreeMap;

use super::{BLOCK_BYTES, BLOCKS_PER_PAGE, hash_at, le32, le64};
use crate::MAX_DISK_BYTES;
use crate::id::{ManifestId, PageId};

const MAGIC: &[u8; 8] = b"TTMANIF\0";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 40;
const ENTRY_BYTES: usize = 40;
const PAGE_BYTES: u64 = (BLOCKS_PER_PAGE * BLOCK_BYTES) as u64;

/// The root of a disk: its size, and its pages that are not all zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) logical_bytes: u64,
    pub(crate) pages: BTreeMap<u32, PageEntry>,
}

/// One page of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageEntry {
    pub(crate) id: PageId,
    /// Blocks of it that are not zeros, 1 to 1024.
    pub(crate) blocks: u32,
}

impl Manifest {
    pub(crate) fn data_blocks(&self) -> u64 {
        self.pages.values().map(|page| u64::from(page.blocks)).sum()
    }

    pub(crate) fn encode(&self) -> (ManifestId, Vec<u8>) {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + ENTRY_BYTES * self.pages.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
        bytes.extend_from_slice(&self.logical_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.data_blocks().to_le_bytes());
        bytes.extend_from_slice(&(self.pages.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&0_u32.to_le_bytes());
        for (number, page) in &self.pages {
            bytes.extend_from_slice(&number.to_le_bytes());
            bytes.extend_from_slice(&page.blocks.to_le_bytes());
            bytes.extend_from_slice(page.id.as_bytes());
        }
        (ManifestId::of(&bytes), bytes)
    }

    /// Decodes the bytes that should have this id; the error says what is wrong with them.
    pub(crate) fn decode(id: &ManifestId, bytes: &[u8]) -> Result<Self, String> {
        if ManifestId::of(bytes) != *id {
            return Err("its bytes have another hash than its id".to_owned());
        }
        if bytes.len() < HEADER_BYTES || &bytes[..8] != MAGIC {
            return Err("it does not begin as a manifest does".to_owned());
        }
        let (version, block_bytes) = (le32(bytes, 8), le32(bytes, 12));
        if version != VERSION || block_bytes as usize != BLOCK_BYTES {
            return Err(format!("version {version} with blocks of {block_bytes} bytes is not known"));
        }
        let logical_bytes = le64(bytes, 16);
        let count = le32(bytes, 32) as usize;
        if logical_bytes > MAX_DISK_BYTES || bytes.len() != HEADER_BYTES + count * ENTRY_BYTES {
            return Err(format!("{logical_bytes} bytes in {count} pages do not fit it"));
        }
        let mut pages = BTreeMap::new();
        for entry in bytes[HEADER_BYTES..].chunks_exact(ENTRY_BYTES) {
            let (number, blocks) = (le32(entry, 0), le32(entry, 4));
            let ordered = pages.last_key_value().is_none_or(|(last, _)| *last < number);
            let inside = u64::from(number) * PAGE_BYTES < logical_bytes;
            if !ordered || !inside || blocks == 0 || blocks as usize > BLOCKS_PER_PAGE {
                return Err(format!("its page {number} is out of order or range"));
            }
            pages.insert(number, PageEntry { id: PageId::from_bytes(hash_at(entry, 8)), blocks });
        }
        let manifest = Self { logical_bytes, pages };
        if manifest.data_blocks() != le64(bytes, 24) {
            return Err("its count of blocks is not the sum of its pages".to_owned());
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_round_trip_and_are_checked() {
        let page = |blocks| PageEntry { id: PageId::of(b"p"), blocks };
        let good = Manifest { logical_bytes: 200 << 20, pages: [(0, page(3)), (3, page(1024))].into() };
        let (id, bytes) = good.encode();
        assert_eq!(Manifest::decode(&id, &bytes).expect("decodes"), good);
        assert!(Manifest::decode(&ManifestId::of(b"other"), &bytes).is_err());

        let outside = Manifest { logical_bytes: 64 << 20, pages: [(1, page(1))].into() };
        let too_full = Manifest { logical_bytes: 64 << 20, pages: [(0, page(1025))].into() };
        let too_large = Manifest { logical_bytes: MAX_DISK_BYTES + 1, pages: [].into() };
        for wrong in [outside, too_full, too_large] {
            let (id, bytes) = wrong.encode();
            assert!(Manifest::decode(&id, &bytes).is_err(), "{wrong:?}");
        }
    }
}
