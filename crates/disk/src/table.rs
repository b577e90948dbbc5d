//! Tables of numbers in a disk file, read a page at a time: the largest have millions of entries, and only a few of them
//! matter for one read.

use std::sync::{Arc, Mutex, PoisonError};

use crate::Result;
use crate::input::Input;

/// Entries read at once.
const PAGE_ENTRIES: u64 = 4096;

/// How an entry is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Be32,
    Le32,
    Le64,
}

impl Word {
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::Be32 | Self::Le32 => 4,
            Self::Le64 => 8,
        }
    }
}

/// The pages of one table or of several, of which the last used one is kept: readers go through a disk in order.
#[derive(Debug)]
pub(crate) struct Pages {
    word: Word,
    last: Mutex<Option<(u64, Arc<[u64]>)>>,
}

impl Pages {
    pub(crate) fn new(word: Word) -> Self {
        Self { word, last: Mutex::new(None) }
    }

    /// The `entries` numbers at `offset` of the file. The caller bounds `entries`.
    pub(crate) fn read(&self, input: &Input, offset: u64, entries: u64) -> Result<Arc<[u64]>> {
        // A panic while the slot was locked cannot leave it half-changed, so a poisoned lock is as good as any.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, page)) = &*last
            && *at == offset
            && page.len() as u64 == entries
        {
            return Ok(Arc::clone(page));
        }
        let mut bytes = vec![0; (entries * self.word.bytes()) as usize];
        input.read_exact(offset, &mut bytes)?;
        let page: Arc<[u64]> = match self.word {
            Word::Be32 => {
                bytes.as_chunks::<4>().0.iter().map(|w| u64::from(u32::from_be_bytes(*w))).collect()
            }
            Word::Le32 => {
                bytes.as_chunks::<4>().0.iter().map(|w| u64::from(u32::from_le_bytes(*w))).collect()
            }
            Word::Le64 => bytes.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect(),
        };
        *last = Some((offset, Arc::clone(&page)));
        Ok(page)
    }
}

/// One table.
#[derive(Debug)]
pub(crate) struct Table {
    offset: u64,
    entries: u64,
    pages: Pages,
}

impl Table {
    /// A table of `entries` entries at `offset`, all of which must be inside the file.
    pub(crate) fn new(input: &Input, offset: u64, entries: u64, word: Word, what: &str) -> Result<Self> {
        let end = entries.checked_mul(word.bytes()).and_then(|len| offset.checked_add(len));
        if end.is_none_or(|end| end > input.file_len()) {
            return Err(input.damaged(format!(
                "its {what} of {entries} entries at {offset} is not inside the file's {} bytes",
                input.file_len()
            )));
        }
        Ok(Self { offset, entries, pages: Pages::new(word) })
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// Entry `index`, which must be smaller than [`Self::entries`].
    pub(crate) fn get(&self, input: &Input, index: u64) -> Result<u64> {
        let (page, first) = self.page(input, index)?;
        Ok(page[(index - first) as usize])
    }

    /// The first entry after `index` that is no hole, or an earlier one: as far as is known without reading more.
    pub(crate) fn skip(&self, input: &Input, index: u64, hole: impl Fn(u64) -> bool) -> Result<u64> {
        let (page, first) = self.page(input, index)?;
        Ok(index + run(&page[(index - first) as usize..], hole))
    }

    fn page(&self, input: &Input, index: u64) -> Result<(Arc<[u64]>, u64)> {
        let first = index / PAGE_ENTRIES * PAGE_ENTRIES;
        let entries = PAGE_ENTRIES.min(self.entries - first);
        let page = self.pages.read(input, self.offset + first * self.pages.word.bytes(), entries)?;
        Ok((page, first))
    }
}

/// How many entries at the front are holes.
pub(crate) fn run(entries: &[u64], hole: impl Fn(u64) -> bool) -> u64 {
    entries.iter().position(|entry| !hole(*entry)).unwrap_or(entries.len()) as u64
}
