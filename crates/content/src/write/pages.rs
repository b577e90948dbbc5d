//! The pages of a disk that is being written, in order; those of the base stay where nothing changed.

use std::collections::BTreeMap;

use super::writer::BlockWriter;
use crate::Result;
use crate::format::{BLOCKS_PER_PAGE, Page, PageEntry};
use crate::id::BlockHash;
use crate::store::Store;

const PER_PAGE: u64 = BLOCKS_PER_PAGE as u64;

/// Collects blocks, one page in memory at a time. Blocks come in ascending order.
pub(super) struct PageBuilder {
    store: Store,
    pages: BTreeMap<u32, PageEntry>,
    current: Option<(u32, Page)>,
}

impl PageBuilder {
    /// Starts from the pages of the base, or from none.
    pub(super) fn new(store: Store, pages: BTreeMap<u32, PageEntry>) -> Self {
        Self { store, pages, current: None }
    }

    /// Says what a block is now; `None` is zeros. The block was given to the writer before.
    pub(super) async fn set(
        &mut self,
        writer: &mut BlockWriter<'_>,
        block: u64,
        hash: Option<BlockHash>,
    ) -> Result<()> {
        let (number, index) = place(block);
        if self.current.as_ref().is_none_or(|(current, _)| *current != number) {
            self.flush(writer).await?;
            let page = match self.pages.get(&number) {
                Some(entry) => self.store.load_page(&entry.id).await?,
                None => Page::zeros(),
            };
            self.current = Some((number, page));
        }
        if let Some((_, page)) = &mut self.current {
            page.set(index, hash);
        }
        Ok(())
    }

    /// Says that the blocks `start .. end` are zeros. Takes time by pages that exist, not by blocks.
    pub(super) async fn zeros(&mut self, writer: &mut BlockWriter<'_>, start: u64, end: u64) -> Result<()> {
        let mut block = start;
        while block < end {
            let (number, _) = place(block);
            let page_end = (u64::from(number) + 1) * PER_PAGE;
            if block.is_multiple_of(PER_PAGE) && page_end <= end {
                let after_whole = place(end).0;
                let whole: Vec<u32> = self.pages.range(number..after_whole).map(|(n, _)| *n).collect();
                for number in whole {
                    self.pages.remove(&number);
                }
                block = u64::from(after_whole) * PER_PAGE;
                continue;
            }
            let exists = self.pages.contains_key(&number)
                || self.current.as_ref().is_some_and(|(current, _)| *current == number);
            let until = page_end.min(end);
            if exists {
                for block in block..until {
                    self.set(writer, block, None).await?;
                }
            }
            block = until;
        }
        Ok(())
    }

    /// The pages of the finished disk.
    pub(super) async fn finish(mut self, writer: &mut BlockWriter<'_>) -> Result<BTreeMap<u32, PageEntry>> {
        self.flush(writer).await?;
        Ok(self.pages)
    }

    async fn flush(&mut self, writer: &mut BlockWriter<'_>) -> Result<()> {
        let Some((number, page)) = self.current.take() else { return Ok(()) };
        let blocks = page.count();
        if blocks == 0 {
            self.pages.remove(&number);
            return Ok(());
        }
        let (id, bytes) = page.encode();
        let entry = PageEntry { id, blocks };
        if self.pages.insert(number, entry) != Some(entry) {
            writer.page(id, bytes).await?;
        }
        Ok(())
    }
}

/// A block's page, and its index in it. A disk of 32 TiB has 524,288 pages.
fn place(block: u64) -> (u32, usize) {
    ((block / PER_PAGE) as u32, (block % PER_PAGE) as usize)
}
