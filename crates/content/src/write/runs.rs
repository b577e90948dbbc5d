//! From extents of bytes to runs of whole blocks.

use disk::{Extent, ExtentKind};

use crate::format::BLOCK_BYTES;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Consecutive blocks, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Number of the first block of the disk.
    pub(super) start: u64,
    /// Number after the last one.
    pub(super) end: u64,
    /// Data must be read; zeros need not be.
    pub(super) kind: ExtentKind,
}

/// Turns sorted, disjoint extents into sorted, disjoint runs. A block that an extent covers in part is data: it must be
/// read to know what it is. So is one that several extents of zeros cover together; reading it finds the zeros.
#[derive(Debug)]
pub(super) struct Runs {
    disk_bytes: u64,
    /// Blocks before this one are done.
    next: u64,
}

impl Runs {
    pub(super) fn new(disk_bytes: u64) -> Self {
        Self { disk_bytes, next: 0 }
    }

    /// The runs of the next extent: at most a partial first block, whole blocks, a partial last block.
    pub(super) fn push(&mut self, extent: &Extent) -> impl Iterator<Item = Run> + use<> {
        let outer = (extent.start / BLOCK, extent.end().div_ceil(BLOCK));
        let inner = match extent.kind {
            ExtentKind::Data => outer,
            ExtentKind::Zero => {
                let at_end = extent.end() >= self.disk_bytes;
                let last = if at_end { outer.1 } else { extent.end() / BLOCK };
                let first = extent.start.div_ceil(BLOCK);
                if first < last { (first, last) } else { (outer.0, outer.0) }
            }
        };
        let next = self.next;
        self.next = next.max(outer.1);
        let runs = [
            Run { start: outer.0, end: inner.0, kind: ExtentKind::Data },
            Run { start: inner.0, end: inner.1, kind: extent.kind },
            Run { start: inner.1, end: outer.1, kind: ExtentKind::Data },
        ];
        let trim = move |run: Run| Run { start: run.start.max(next), ..run };
        runs.into_iter().map(trim).filter(|run| run.start < run.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ExtentKind::{Data, Zero};

    fn runs(extents: &[(u64, u64, ExtentKind)]) -> Vec<(u64, u64, ExtentKind)> {
        let mut runs = Runs::new(10 * BLOCK + 100);
        let push = |(start, end, kind): &(u64, u64, ExtentKind)| {
            runs.push(&Extent { start: *start, len: end - start, kind: *kind })
                .map(|run| (run.start, run.end, run.kind))
                .collect::<Vec<_>>()
        };
        extents.iter().flat_map(push).collect()
    }

    #[test]
    fn extents_become_whole_blocks() {
        assert_eq!(runs(&[(0, 1, Data), (10, 3 * BLOCK, Data)]), [(0, 1, Data), (1, 3, Data)]);
        assert_eq!(runs(&[(BLOCK, 3 * BLOCK, Zero)]), [(1, 3, Zero)]);
        assert_eq!(runs(&[(10, 20, Zero)]), [(0, 1, Data)]);
        assert_eq!(runs(&[(10, BLOCK + 20, Zero)]), [(0, 2, Data)]);
        assert_eq!(runs(&[(10, 3 * BLOCK + 1, Zero)]), [(0, 1, Data), (1, 3, Zero), (3, 4, Data)]);
        assert_eq!(runs(&[(9 * BLOCK, 10 * BLOCK + 100, Zero)]), [(9, 11, Zero)]);
        assert_eq!(runs(&[(0, 10, Data), (10, 2 * BLOCK, Zero)]), [(0, 1, Data), (1, 2, Zero)]);
        assert_eq!(runs(&[(0, 10, Zero), (10, 20, Data), (20, BLOCK, Zero)]), [(0, 1, Data)]);
    }
}
