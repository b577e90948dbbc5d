//! What dynamic VHD, VHDX and sparse VMDK have in common: a disk of equal blocks, each somewhere in the file or nowhere.

use crate::input::check_range;
use crate::{Extent, ExtentKind, Result};

/// Blocks that one extent covers at most, so that finding the next extent takes bounded time.
const MERGED_BLOCKS: u64 = 1 << 16;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// Nowhere: zeros, as are all blocks before number `until`.
    Hole { until: u64 },
    /// At this place of the file; what it means is the format's business.
    Data(u64),
}

/// A disk of equal blocks. Implemented by the readers of dynamic VHD, VHDX and VMDK's sparse extents.
pub(crate) trait BlockMap: Send + Sync {
    /// The disk's size in bytes.
    fn size(&self) -> u64;

    /// Bytes of a block, a power of two.
    fn block_bytes(&self) -> u64;

    /// Blocks that the file has room for. A map that names more is damaged: it would make a small file a huge disk.
    fn room(&self) -> u64;

    /// Where block `number` is.
    fn block(&self, number: u64) -> Result<Block>;

    /// Reads from a block that [`Self::block`] found, `within` bytes into it.
    fn read_block(&self, number: u64, place: u64, within: u64, buf: &mut [u8]) -> Result<()>;

    /// What to say when the map names more blocks than there is room for.
    fn too_many(&self) -> crate::Error;
}

/// The stretches of the disk that are in the file, in order.
pub(crate) fn extents<M: BlockMap + ?Sized>(map: &M) -> impl Iterator<Item = Result<Extent>> + Send + '_ {
    let mut next = Some(0);
    let mut found = 0;
    std::iter::from_fn(move || {
        let from = next.take()?;
        match next_extent(map, from, &mut found) {
            Ok(None) => None,
            Ok(Some((extent, end))) => {
                next = Some(end);
                Some(Ok(extent))
            }
            Err(error) => Some(Err(error)),
        }
    })
}

fn next_extent<M: BlockMap + ?Sized>(
    map: &M,
    mut number: u64,
    found: &mut u64,
) -> Result<Option<(Extent, u64)>> {
    let blocks = map.size().div_ceil(map.block_bytes());
    while number < blocks {
        match map.block(number)? {
            Block::Hole { until } => number = until.max(number + 1),
            Block::Data(_) => {
                let first = number;
                let end = blocks.min(first + MERGED_BLOCKS);
                number += 1;
                while number < end && matches!(map.block(number)?, Block::Data(_)) {
                    number += 1;
                }
                *found += number - first;
                if *found > map.room() {
                    return Err(map.too_many());
                }
                let start = first * map.block_bytes();
                let len = (number * map.block_bytes()).min(map.size()) - start;
                return Ok(Some((Extent { start, len, kind: ExtentKind::Data }, number)));
            }
        }
    }
    Ok(None)
}

/// Fills `buf` from `offset` of the disk on.
pub(crate) fn read<M: BlockMap + ?Sized>(map: &M, offset: u64, buf: &mut [u8]) -> Result<usize> {
    check_range(offset, buf.len() as u64, map.size())?;
    let mut done = 0;
    while done < buf.len() {
        let at = offset + done as u64;
        let (number, within) = (at / map.block_bytes(), at % map.block_bytes());
        let len = (map.block_bytes() - within).min((buf.len() - done) as u64) as usize;
        let part = &mut buf[done..done + len];
        match map.block(number)? {
            Block::Hole { .. } => part.fill(0),
            Block::Data(place) => map.read_block(number, place, within, part)?,
        }
        done += len;
    }
    Ok(buf.len())
}
