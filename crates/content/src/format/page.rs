//! Pages: which blocks 64 MiB of disk consist of.

use super::{BLOCKS_PER_PAGE, hash_at};
use crate::id::{BlockHash, PageId};

const MAGIC: &[u8; 8] = b"TTPAGE\0\x01";
const BITMAP_BYTES: usize = BLOCKS_PER_PAGE / 8;
const HASHES_AT: usize = MAGIC.len() + BITMAP_BYTES;

/// The blocks of 64 MiB of disk; `None` is a block of zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    blocks: Vec<Option<BlockHash>>,
}

impl Page {
    pub(crate) fn zeros() -> Self {
        Self { blocks: vec![None; BLOCKS_PER_PAGE] }
    }

    /// The block at `index`, below [`BLOCKS_PER_PAGE`].
    pub(crate) fn get(&self, index: usize) -> Option<BlockHash> {
        self.blocks[index]
    }

    pub(crate) fn set(&mut self, index: usize, block: Option<BlockHash>) {
        self.blocks[index] = block;
    }

    /// The blocks that are not zeros, with their index.
    pub(crate) fn present(&self) -> impl Iterator<Item = (usize, BlockHash)> {
        self.blocks.iter().enumerate().filter_map(|(index, block)| Some((index, (*block)?)))
    }

    pub(crate) fn count(&self) -> u32 {
        self.blocks.iter().flatten().count() as u32
    }

    /// The page's id and bytes.
    pub(crate) fn encode(&self) -> (PageId, Vec<u8>) {
        let mut bytes = Vec::with_capacity(HASHES_AT + 32 * BLOCKS_PER_PAGE);
        bytes.extend_from_slice(MAGIC);
        bytes.resize(HASHES_AT, 0);
        for (index, block) in self.present() {
            bytes[MAGIC.len() + index / 8] |= 1 << (index % 8);
            bytes.extend_from_slice(block.as_bytes());
        }
        (PageId::of(&bytes), bytes)
    }

    /// Decodes a page whose hash was checked: an error means that it was written wrongly.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < HASHES_AT || &bytes[..MAGIC.len()] != MAGIC {
            return Err("it does not begin as a page does".to_owned());
        }
        let bitmap = &bytes[MAGIC.len()..HASHES_AT];
        let count: usize = bitmap.iter().map(|byte| byte.count_ones() as usize).sum();
        if bytes.len() != HASHES_AT + 32 * count {
            return Err(format!("{} bytes cannot be a page of {count} blocks", bytes.len()));
        }
        let mut page = Self::zeros();
        let mut at = HASHES_AT;
        for index in 0..BLOCKS_PER_PAGE {
            if bitmap[index / 8] & (1 << (index % 8)) != 0 {
                page.blocks[index] = Some(BlockHash::from_bytes(hash_at(bytes, at)));
                at += 32;
            }
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_round_trip() {
        let mut page = Page::zeros();
        for index in [0, 7, 8, 512, 1023] {
            page.set(index, Some(BlockHash::of(&[index as u8])));
        }
        let (_, bytes) = page.encode();
        assert_eq!(Page::decode(&bytes).expect("decodes"), page);
        assert_eq!(page.count(), 5);
        assert!(Page::decode(&bytes[..bytes.len() - 1]).is_err());
        assert!(Page::decode(&[]).is_err());
    }
}
