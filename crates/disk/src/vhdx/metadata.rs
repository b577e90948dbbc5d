//! VHDX's metadata region: sizes, and whether there is a parent.

use super::{Guid, le32, le64};
use crate::Result;
use crate::input::Input;

const TABLE_BYTES: usize = 64 << 10;
const MAX_ITEMS: u16 = 2047;
/// The items that are read have at most this many bytes.
const ITEM_BYTES: usize = 8;
const FILE_PARAMETERS: Guid =
    Guid::new(0xcaa1_6737, 0xfa36, 0x4d43, [0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b]);
const DISK_SIZE: Guid =
    Guid::new(0x2fa5_4224, 0xcd1b, 0x4876, [0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8]);
const LOGICAL_SECTOR: Guid =
    Guid::new(0x8141_bf1d, 0xa96f, 0x4709, [0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f]);
const PHYSICAL_SECTOR: Guid =
    Guid::new(0xcda3_48c7, 0x445d, 0x4471, [0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56]);
const DISK_ID: Guid =
    Guid::new(0xbeca_12ab, 0xb2e6, 0x4523, [0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46]);
const PARENT_LOCATOR: Guid =
    Guid::new(0xa8d3_5f2d, 0xb30b, 0x454d, [0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c]);
/// Of an item's flags: a reader that does not know the item must refuse the file.
const REQUIRED: u32 = 1 << 2;
/// Of the file parameters' flags.
const HAS_PARENT: u32 = 1 << 1;
const BLOCK_BYTES_MIN: u64 = 1 << 20;
const BLOCK_BYTES_MAX: u64 = 256 << 20;

#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) block_bytes: u64,
    pub(super) disk_bytes: u64,
    pub(super) sector_bytes: u64,
}

impl Metadata {
    /// Reads the region of `len` bytes at `at`, which is inside the file.
    pub(super) fn read(input: &Input, at: u64, len: u64) -> Result<Self> {
        if len < TABLE_BYTES as u64 {
            return Err(input.damaged(format!("its metadata region has only {len} bytes")));
        }
        let mut table = vec![0; TABLE_BYTES];
        input.read_exact(at, &mut table)?;
        let items = u16::from_le_bytes([table[10], table[11]]);
        if &table[..8] != b"metadata" || items > MAX_ITEMS {
            return Err(input.damaged("its metadata region has no valid table".to_owned()));
        }
        let (mut parameters, mut disk, mut sector) = (None, None, None);
        for entry in table[32..].chunks_exact(32).take(usize::from(items)) {
            let (slot, bytes) = match Guid::at(entry, 0) {
                FILE_PARAMETERS => (&mut parameters, 8),
                DISK_SIZE => (&mut disk, 8),
                LOGICAL_SECTOR => (&mut sector, 4),
                PHYSICAL_SECTOR | DISK_ID => continue,
                PARENT_LOCATOR => return Err(differencing(input)),
                _ if le32(entry, 24) & REQUIRED != 0 => {
                    return Err(input.unsupported("it has required metadata that is not known".to_owned()));
                }
                _ => continue,
            };
            let (item_at, item_len) = (u64::from(le32(entry, 16)), u64::from(le32(entry, 20)));
            if item_len != bytes || item_at < TABLE_BYTES as u64 || item_at + item_len > len {
                return Err(input.damaged(format!("a metadata item of {item_len} bytes at {item_at}")));
            }
            let mut value = [0; ITEM_BYTES];
            input.read_exact(at + item_at, &mut value[..bytes as usize])?;
            if slot.replace(value).is_some() {
                return Err(input.damaged("its metadata has an item twice".to_owned()));
            }
        }
        let (Some(parameters), Some(disk), Some(sector)) = (parameters, disk, sector) else {
            return Err(input.damaged("its metadata lacks the block, disk or sector size".to_owned()));
        };
        if le32(&parameters, 4) & HAS_PARENT != 0 {
            return Err(differencing(input));
        }
        let this = Self {
            block_bytes: u64::from(le32(&parameters, 0)),
            disk_bytes: le64(&disk, 0),
            sector_bytes: u64::from(le32(&sector, 0)),
        };
        let block_fits = this.block_bytes.is_power_of_two()
            && (BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&this.block_bytes);
        if !block_fits || ![512, 4096].contains(&this.sector_bytes) {
            return Err(input.damaged(format!(
                "blocks of {} bytes and sectors of {}",
                this.block_bytes, this.sector_bytes
            )));
        }
        if !this.disk_bytes.is_multiple_of(this.sector_bytes) {
            return Err(input.damaged(format!(
                "a disk of {} bytes, which is no number of sectors of {}",
                this.disk_bytes, this.sector_bytes
            )));
        }
        Ok(this)
    }
}

fn differencing(input: &Input) -> crate::Error {
    input.unsupported(
        "it is a differencing VHDX, which holds only what differs from its parent; merge it into the parent \
         (Merge-VHD), and use the result"
            .to_owned(),
    )
}
