//! What a file's own log says that stretches of it hold by now, laid over the file while it is read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of the unit in which a file is patched.
pub(crate) const SECTOR_BYTES: u64 = 4096;
const FIRST_BYTES: usize = 8;
const LAST_BYTES: usize = 4;

/// What a stretch holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Zeros,
    /// One sector, as a VHDX's log keeps it: the bytes at `at` of the same file, but for the first and the last few, whose
    /// places are taken by marks of the log.
    Sector {
        at: u64,
        first: [u8; FIRST_BYTES],
        last: [u8; LAST_BYTES],
    },
}

/// Stretches of whole sectors that do not overlap. Contents stay in the file; what is here is a few dozen bytes for each.
#[derive(Debug, Default)]
pub(crate) struct Patches(BTreeMap<u64, Patch>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Patch {
    end: u64,
    content: Content,
}

impl Patches {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Stretches, which the caller bounds: each [`Self::put`] adds two at most.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.len()
    }

    /// Lays `content` over what was there before. `start` and `end` are whole sectors, and [`Content::Sector`] is one.
    pub(crate) fn put(&mut self, start: u64, end: u64, content: Content) {
        if let Some((_, before)) = self.0.range_mut(..start).next_back()
            && before.end > start
        {
            let rest = Patch { ..*before };
            before.end = start;
            if rest.end > end {
                self.0.insert(end, rest);
            }
        }
        while let Some((&at, &covered)) = self.0.range(start..end).next() {
            self.0.remove(&at);
            if covered.end > end {
                self.0.insert(end, covered);
            }
        }
        self.0.insert(start, Patch { end, content });
    }

    /// Puts what is known of `offset ..` over the bytes in `buf`, which were read there.
    pub(crate) fn apply(&self, file: &File, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        let first = self.0.range(..=offset).next_back().map_or(offset, |(start, _)| *start);
        for (&start, patch) in self.0.range(first..end) {
            let (from, to) = (start.max(offset), patch.end.min(end));
            if from >= to {
                continue;
            }
            let part = &mut buf[(from - offset) as usize..(to - offset) as usize];
            match patch.content {
                Content::Zeros => part.fill(0),
                Content::Sector { at, first, last } => {
                    let mut sector = [0; SECTOR_BYTES as usize];
                    file.read_exact_at(&mut sector, at)?;
                    sector[..FIRST_BYTES].copy_from_slice(&first);
                    sector[SECTOR_BYTES as usize - LAST_BYTES..].copy_from_slice(&last);
                    part.copy_from_slice(&sector[(from - start) as usize..(to - start) as usize]);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against an array that is simply written to.
    #[test]
    fn later_ones_hide_earlier_ones() {
        let file = tempfile::tempfile().expect("file");
        let sectors = 24;
        for number in 0..sectors {
            file.write_all_at(&[100 + number as u8; SECTOR_BYTES as usize], number * SECTOR_BYTES)
                .expect("write");
        }
        let mut state = 7_u64;
        let mut below = |limit: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % limit
        };
        for _ in 0..300 {
            let mut patches = Patches::default();
            let mut expected = vec![9; (sectors * SECTOR_BYTES) as usize];
            for _ in 0..below(20) {
                let start = below(sectors);
                let (len, content) = if below(2) == 0 {
                    (1 + below(sectors - start), Content::Zeros)
                } else {
                    let at = below(sectors) * SECTOR_BYTES;
                    (1, Content::Sector { at, first: [1; FIRST_BYTES], last: [2; LAST_BYTES] })
                };
                let range = start * SECTOR_BYTES..(start + len) * SECTOR_BYTES;
                let bytes = &mut expected[range.start as usize..range.end as usize];
                match content {
                    Content::Zeros => bytes.fill(0),
                    Content::Sector { at, .. } => {
                        bytes.fill(100 + (at / SECTOR_BYTES) as u8);
                        bytes[..FIRST_BYTES].fill(1);
                        bytes[SECTOR_BYTES as usize - LAST_BYTES..].fill(2);
                    }
                }
                patches.put(range.start, range.end, content);
            }
            let offset = below(3 * SECTOR_BYTES);
            let len = below(sectors * SECTOR_BYTES - offset);
            let mut buf = vec![9; len as usize];
            patches.apply(&file, offset, &mut buf).expect("apply");
            assert!(buf == expected[offset as usize..(offset + len) as usize], "{patches:?}");
            assert!(patches.len() <= 40);
        }
    }
}
