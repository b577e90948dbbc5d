//! VHD, the format of Azure's page blobs: fixed (the disk's bytes and a footer) and dynamic (blocks where they were
//! written). Rules: RULES.md section 2; layout: Microsoft's "Virtual Hard Disk Image Format Specification".
//!
//! The size is the footer's *current size*. The geometry beside it rounds to cylinders and is not used, neither by Azure
//! nor here.

mod dynamic;
mod footer;

use dynamic::DynamicVhd;
pub(crate) use dynamic::{DynamicHeader, FREE, SECTOR};
pub(crate) use footer::{DiskType, FOOTER_BYTES, Footer};

use crate::input::Input;
use crate::raw::RawFile;
use crate::{BlockSource, Result};

/// The sizes that Azure takes are multiples of this (RULES.md 2.1).
pub const ALIGNMENT: u64 = 1 << 20;
/// The smallest disk that Azure takes (RULES.md 2.1).
pub const MIN_PUBLISHED_BYTES: u64 = 20 << 20;
/// The largest disk that Azure takes, 32,767 GiB: 35,183,298,347,520 bytes with the footer (RULES.md 2.2).
pub const MAX_PUBLISHED_BYTES: u64 = 32_767 << 30;

/// The size that a disk has as a published VHD: a whole number of MiB, at least 20 of them. `None` if it is larger than
/// Azure's largest disk.
pub fn published_size(logical_bytes: u64) -> Option<u64> {
    let size = logical_bytes.max(MIN_PUBLISHED_BYTES).checked_next_multiple_of(ALIGNMENT)?;
    (size <= MAX_PUBLISHED_BYTES).then_some(size)
}

/// The last 512 bytes of a fixed VHD whose data has `logical_bytes` bytes; pass what [`published_size`] gives. The same
/// arguments give the same bytes (its time stamp says 2000-01-01), so that a page blob that shows an image reads the same
/// every time.
pub fn fixed_footer(logical_bytes: u64, unique_id: [u8; 16]) -> [u8; FOOTER_BYTES] {
    Footer {
        size: logical_bytes,
        disk_type: DiskType::Fixed,
        data_offset: u64::MAX,
        time_stamp: 0,
        unique_id,
    }
    .encode()
}

/// Opens a VHD, fixed or dynamic. A differencing one is refused: it holds only what differs from another file.
pub(crate) fn open(input: Input) -> Result<Box<dyn BlockSource>> {
    let footer = Footer::find(&input)?;
    input.check_size(footer.size)?;
    match footer.disk_type {
        DiskType::Fixed => {
            // A footer at the start is a dynamic disk's copy, so a fixed one's data ends before its footer.
            if footer.size > input.file_len() - FOOTER_BYTES as u64 {
                return Err(input.damaged(format!(
                    "its footer says {} bytes, and the file has {} before the footer: was it cut off?",
                    footer.size,
                    input.file_len() - FOOTER_BYTES as u64
                )));
            }
            Ok(Box::new(RawFile::window(input, 0, footer.size)?))
        }
        DiskType::Dynamic => Ok(Box::new(DynamicVhd::open(input, &footer)?)),
        DiskType::Differencing => Err(input.unsupported(
            "it is a differencing VHD, which holds only what differs from its parent; merge it into the parent (Merge-VHD) \
             or convert the whole chain, and use the result"
                .to_owned(),
        )),
    }
}
