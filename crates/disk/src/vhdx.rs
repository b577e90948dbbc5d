//! VHDX, Hyper-V's format. Source: \[MS-VHDX\]. All fields are little endian.
//!
//! `vhdx-core` was looked at instead (DEPENDENCIES.md): it gives no extents, so that an empty disk of 32 TiB would be
//! read byte by byte.
//!
//! ```text
//! 0        64K      128K     192K          256K          1M …
//! identifier header   header   region table  region table  log, metadata, BAT, blocks: anywhere, aligned to 1 MiB
//! ```
//!
//! What a file shows whose log is not empty is wrong without a replay. The file is not ours to change, so the log's
//! changes are laid over it in memory, under everything that is read afterwards.

mod crc;
mod header;
mod log;
mod metadata;

use crate::blocks::{self, Block, BlockMap};
use crate::input::Input;
use crate::table::{Table, Word};
use crate::{BlockSource, Error, Extents, Result};
use crc::crc32c;
use header::Header;
use metadata::Metadata;

const IDENTIFIER: &[u8; 8] = b"vhdxfile";
const REGION_TABLES_AT: [u64; 2] = [192 << 10, 256 << 10];
const REGION_TABLE_BYTES: usize = 64 << 10;
const MAX_REGIONS: u32 = 2047;
const BAT_REGION: Guid =
    Guid::new(0x2dc2_7766, 0xf623, 0x4200, [0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08]);
const METADATA_REGION: Guid =
    Guid::new(0x8b7c_a206, 0x4790, 0x4b9a, [0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e]);
/// Payload blocks covered by one sector bitmap block, times the block's size, in logical sectors.
const SECTORS_PER_BITMAP: u64 = 1 << 23;
const MIB: u64 = 1 << 20;

/// A GUID as it is stored: the first three parts little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Guid([u8; 16]);

impl Guid {
    const ZERO: Self = Self([0; 16]);

    const fn new(a: u32, b: u16, c: u16, d: [u8; 8]) -> Self {
        let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
        Self([a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]])
    }

    fn at(bytes: &[u8], at: usize) -> Self {
        let mut guid = [0; 16];
        guid.copy_from_slice(&bytes[at..at + 16]);
        Self(guid)
    }
}

/// An open VHDX.
#[derive(Debug)]
pub(crate) struct Vhdx {
    input: Input,
    metadata: Metadata,
    bat: Table,
    /// Payload entries between two entries of the BAT that are for sector bitmaps.
    chunk_ratio: u64,
}

impl Vhdx {
    pub(crate) fn open(mut input: Input) -> Result<Self> {
        let mut identifier = [0; 8];
        input.read_padded(0, &mut identifier)?;
        if &identifier != IDENTIFIER {
            return Err(input.damaged("it does not begin with `vhdxfile`".to_owned()));
        }
        if let Some(log) = Header::read(&input)?.open_log(&input)? {
            let replayed = log::replay(&input, log)?;
            input.patch(replayed.patches, replayed.file_len);
        }
        let regions = regions(&input)?;
        let metadata = Metadata::read(&input, regions.metadata.offset, regions.metadata.len)?;
        input.check_size(metadata.disk_bytes)?;

        let chunk_ratio = SECTORS_PER_BITMAP * metadata.sector_bytes / metadata.block_bytes;
        let blocks = metadata.disk_bytes.div_ceil(metadata.block_bytes);
        let entries = blocks + blocks.saturating_sub(1) / chunk_ratio;
        if entries * 8 > regions.bat.len {
            return Err(input.damaged(format!(
                "its block allocation table has {} bytes, and {} bytes in blocks of {} need {}",
                regions.bat.len,
                metadata.disk_bytes,
                metadata.block_bytes,
                entries * 8
            )));
        }
        let bat = Table::new(&input, regions.bat.offset, entries, Word::Le64, "block allocation table")?;
        Ok(Self { input, metadata, bat, chunk_ratio })
    }
}

/// A stretch of the file.
#[derive(Clone, Copy, Debug)]
struct Region {
    offset: u64,
    len: u64,
}

/// The regions that are read.
struct Regions {
    bat: Region,
    metadata: Region,
}

fn regions(input: &Input) -> Result<Regions> {
    let mut reason = "neither of its region tables has a valid checksum".to_owned();
    for at in REGION_TABLES_AT {
        let mut bytes = vec![0; REGION_TABLE_BYTES];
        input.read_padded(at, &mut bytes)?;
        if &bytes[..4] != b"regi" || !checksum_holds(&mut bytes) {
            continue;
        }
        match parse_regions(&bytes, input.file_len()) {
            Ok(regions) => return Ok(regions),
            Err(why) => reason = why,
        }
    }
    Err(input.damaged(reason))
}

fn parse_regions(bytes: &[u8], file_len: u64) -> Result<Regions, String> {
    let entries = le32(bytes, 8);
    if entries > MAX_REGIONS {
        return Err(format!("its region table has {entries} entries; at most {MAX_REGIONS} are possible"));
    }
    let (mut bat, mut metadata) = (None, None);
    for entry in bytes[16..].chunks_exact(32).take(entries as usize) {
        let guid = Guid::at(entry, 0);
        let (offset, len) = (le64(entry, 16), u64::from(le32(entry, 24)));
        let slot = match guid {
            BAT_REGION => &mut bat,
            METADATA_REGION => &mut metadata,
            _ if le32(entry, 28) & 1 != 0 => {
                return Err("it has a required region that is not known".to_owned());
            }
            _ => continue,
        };
        if !offset.is_multiple_of(MIB)
            || offset < MIB
            || offset.checked_add(len).is_none_or(|end| end > file_len)
        {
            return Err(format!("a region of {len} bytes is said to be at {offset}, outside of the file"));
        }
        if slot.replace(Region { offset, len }).is_some() {
            return Err("its region table names a region twice".to_owned());
        }
    }
    match (bat, metadata) {
        (Some(bat), Some(metadata)) => Ok(Regions { bat, metadata }),
        _ => Err("its region table lacks the BAT or the metadata".to_owned()),
    }
}

/// Whether the CRC-32C at byte 4 is that of the bytes with the checksum as zero; leaves it zero.
fn checksum_holds(bytes: &mut [u8]) -> bool {
    let stored = le32(bytes, 4);
    bytes[4..8].fill(0);
    // A fuzzer does not find checksums.
    cfg!(fuzzing) || crc32c(bytes) == stored
}

impl BlockMap for Vhdx {
    fn size(&self) -> u64 {
        self.metadata.disk_bytes
    }

    fn block_bytes(&self) -> u64 {
        self.metadata.block_bytes
    }

    fn room(&self) -> u64 {
        // The last block of a fixed disk may be cut off.
        self.input.file_len() / self.block_bytes() + 1
    }

    fn block(&self, number: u64) -> Result<Block> {
        let entry = self.bat.get(&self.input, number + number / self.chunk_ratio)?;
        let place = entry >> 20 << 20;
        match entry & 7 {
            // Not present, undefined, zero, unmapped: a disk without a parent reads zeros.
            0..=3 => Ok(Block::Hole { until: number + 1 }),
            6 => {
                let len = self.block_bytes().min(self.size() - number * self.block_bytes());
                if place < MIB || place.checked_add(len).is_none_or(|end| end > self.input.file_len()) {
                    return Err(self
                        .input
                        .damaged(format!("block {number} is said to be at {place}, outside of the file")));
                }
                Ok(Block::Data(place))
            }
            state => Err(self.input.damaged(format!("block {number} is in state {state}"))),
        }
    }

    fn read_block(&self, _: u64, place: u64, within: u64, buf: &mut [u8]) -> Result<()> {
        self.input.read_exact(place + within, buf)
    }

    fn too_many(&self) -> Error {
        self.input.damaged("its table names more blocks than the file has".to_owned())
    }
}

impl BlockSource for Vhdx {
    fn logical_size(&self) -> u64 {
        self.metadata.disk_bytes
    }

    fn extents(&self) -> Extents<'_> {
        Box::new(blocks::extents(self))
    }

    fn read_onto(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        blocks::read(self, offset, buf)
    }
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}
