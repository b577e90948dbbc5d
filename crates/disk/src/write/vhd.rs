//! Fixed and dynamic VHDs as Azure takes them (RULES.md section 2): a whole number of MiB, and a footer whose current size
//! says so. qemu-img's own rounds the size to cylinders, which Azure refuses.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{Target, copy};
use crate::vhd::{
    DiskType, DynamicHeader, FOOTER_BYTES, FREE, Footer, MAX_PUBLISHED_BYTES, SECTOR, published_size,
};
use crate::{BlockSource, Result};

/// Data of one block of a dynamic VHD: the size that every writer uses.
const BLOCK_BYTES: u32 = 2 << 20;
/// 2000-01-01 UTC, from which VHD counts seconds, in those of Unix.
const VHD_EPOCH: u64 = 946_684_800;
const HEADER_AT: u64 = FOOTER_BYTES as u64;
const BAT_AT: u64 = HEADER_AT + DynamicHeader::BYTES as u64;

pub(super) fn fixed(
    source: &dyn BlockSource,
    target: &Target<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let size = size(source, target)?;
    target.set_len(size + FOOTER_BYTES as u64)?;
    copy(source, progress, &mut |offset, bytes| target.write_at(bytes, offset))?;
    target.write_at(&footer(size, DiskType::Fixed, u64::MAX).encode(), size)
}

pub(super) fn dynamic(
    source: &dyn BlockSource,
    target: &Target<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let size = size(source, target)?;
    let header = DynamicHeader {
        bat_offset: BAT_AT,
        // At most 16,383.5 thousand, by the largest size.
        bat_entries: size.div_ceil(u64::from(BLOCK_BYTES)) as u32,
        block_bytes: BLOCK_BYTES,
    };
    let mut bat = vec![FREE; header.bat_entries as usize];
    let bat_bytes = (bat.len() as u64 * 4).next_multiple_of(SECTOR);
    let block_sectors = (header.bitmap_bytes() + u64::from(BLOCK_BYTES)) / SECTOR;
    let bitmap = vec![0xff; header.bitmap_bytes() as usize];
    let mut next = (BAT_AT + bat_bytes) / SECTOR;

    // Pieces do not cross a block, as a block is a multiple of a piece.
    copy(source, progress, &mut |offset, bytes| {
        let (number, within) = (offset / u64::from(BLOCK_BYTES), offset % u64::from(BLOCK_BYTES));
        let entry = &mut bat[number as usize];
        if *entry == FREE {
            *entry = u32::try_from(next).ok().filter(|entry| *entry != FREE).ok_or_else(|| {
                target.refused("a dynamic VHD holds at most 2 TiB of data; write a fixed one".to_owned())
            })?;
            target.write_at(&bitmap, next * SECTOR)?;
            next += block_sectors;
        }
        target.write_at(bytes, u64::from(*entry) * SECTOR + header.bitmap_bytes() + within)
    })?;

    let footer = footer(size, DiskType::Dynamic, HEADER_AT).encode();
    target.set_len(next * SECTOR + FOOTER_BYTES as u64)?;
    target.write_at(&footer, next * SECTOR)?;
    target.write_at(&header.encode(), HEADER_AT)?;
    let mut table: Vec<u8> = bat.iter().flat_map(|entry| entry.to_be_bytes()).collect();
    table.resize(bat_bytes as usize, 0xff);
    target.write_at(&table, BAT_AT)?;
    target.write_at(&footer, 0)
}

fn size(source: &dyn BlockSource, target: &Target<'_>) -> Result<u64> {
    published_size(source.logical_size()).ok_or_else(|| {
        target.refused(format!(
            "a VHD for Azure has at most {MAX_PUBLISHED_BYTES} bytes (32,767 GiB), and the disk has {}",
            source.logical_size()
        ))
    })
}

fn footer(size: u64, disk_type: DiskType, data_offset: u64) -> Footer {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Footer {
        size,
        disk_type,
        data_offset,
        time_stamp: now.saturating_sub(VHD_EPOCH) as u32,
        unique_id: uuid::Uuid::new_v4().into_bytes(),
    }
}
