//! Dynamic VHD: after the footer's copy a header, the block allocation table (BAT), then each written block: a bitmap of
//! its sectors, and its data.

use super::footer::{Footer, be32, be64, checksum};
use crate::blocks::{self, Block, BlockMap};
use crate::input::Input;
use crate::table::{Table, Word};
use crate::{BlockSource, Error, Extents, Result};

pub(crate) const SECTOR: u64 = 512;
/// Of the BAT: not in the file.
pub(crate) const FREE: u32 = u32::MAX;
const COOKIE: &[u8; 8] = b"cxsparse";
const VERSION: u32 = 0x0001_0000;
const CHECKSUM_AT: usize = 36;
/// Entries of the largest BAT that is read: 32 TiB in blocks of 512 KiB.
const MAX_BAT_ENTRIES: u64 = 64 << 20;
/// The largest block that is read; the usual one has 2 MiB.
const MAX_BLOCK_BYTES: u32 = 256 << 20;

/// The 1,024 bytes that say where the table is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DynamicHeader {
    pub(crate) bat_offset: u64,
    pub(crate) bat_entries: u32,
    pub(crate) block_bytes: u32,
}

impl DynamicHeader {
    pub(crate) const BYTES: usize = 1024;

    fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, String> {
        if &bytes[..8] != COOKIE {
            return Err("no `cxsparse` cookie".to_owned());
        }
        if be32(bytes, CHECKSUM_AT) != checksum(bytes, CHECKSUM_AT) && !cfg!(fuzzing) {
            return Err("its checksum is wrong".to_owned());
        }
        if be32(bytes, 24) != VERSION {
            return Err(format!("version {:#x}; {VERSION:#x} is read", be32(bytes, 24)));
        }
        let block_bytes = be32(bytes, 32);
        if !block_bytes.is_power_of_two() || !(512..=MAX_BLOCK_BYTES).contains(&block_bytes) {
            return Err(format!("blocks of {block_bytes} bytes"));
        }
        Ok(Self { bat_offset: be64(bytes, 16), bat_entries: be32(bytes, 28), block_bytes })
    }

    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(COOKIE);
        bytes[8..16].fill(0xff);
        bytes[16..24].copy_from_slice(&self.bat_offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&VERSION.to_be_bytes());
        bytes[28..32].copy_from_slice(&self.bat_entries.to_be_bytes());
        bytes[32..36].copy_from_slice(&self.block_bytes.to_be_bytes());
        let sum = checksum(&bytes, CHECKSUM_AT);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Bytes of the sector bitmap in front of a block's data. What it says is not looked at: a sector that was never
    /// written is zeros in the block as well, and QEMU reads so too.
    pub(crate) fn bitmap_bytes(&self) -> u64 {
        (u64::from(self.block_bytes) / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
    }
}

/// An open dynamic VHD.
#[derive(Debug)]
pub(crate) struct DynamicVhd {
    input: Input,
    size: u64,
    header: DynamicHeader,
    bat: Table,
}

impl DynamicVhd {
    pub(super) fn open(input: Input, footer: &Footer) -> Result<Self> {
        let mut bytes = [0; DynamicHeader::BYTES];
        input.read_exact(footer.data_offset, &mut bytes)?;
        let header = DynamicHeader::decode(&bytes)
            .map_err(|reason| input.damaged(format!("its dynamic header cannot be read: {reason}")))?;
        let needed = footer.size.div_ceil(u64::from(header.block_bytes));
        if needed > u64::from(header.bat_entries) {
            return Err(input.damaged(format!(
                "its table has {} entries, and {} bytes in blocks of {} need {needed}",
                header.bat_entries, footer.size, header.block_bytes
            )));
        }
        if needed > MAX_BAT_ENTRIES {
            return Err(
                input.unsupported(format!("a table of {needed} entries; at most {MAX_BAT_ENTRIES} are read"))
            );
        }
        let bat = Table::new(&input, header.bat_offset, needed, Word::Be32, "block allocation table")?;
        Ok(Self { input, size: footer.size, header, bat })
    }
}

impl BlockMap for DynamicVhd {
    fn size(&self) -> u64 {
        self.size
    }

    fn block_bytes(&self) -> u64 {
        u64::from(self.header.block_bytes)
    }

    fn room(&self) -> u64 {
        self.input.file_len() / self.block_bytes()
    }

    fn block(&self, number: u64) -> Result<Block> {
        let sector = self.bat.get(&self.input, number)?;
        if sector == u64::from(FREE) {
            let until = self.bat.skip(&self.input, number, |sector| sector == u64::from(FREE))?;
            return Ok(Block::Hole { until });
        }
        let place = sector * SECTOR + self.header.bitmap_bytes();
        if place + self.block_bytes() > self.input.file_len() {
            return Err(self
                .input
                .damaged(format!("block {number} is said to be at {place}, outside of the file")));
        }
        Ok(Block::Data(place))
    }

    fn read_block(&self, _: u64, place: u64, within: u64, buf: &mut [u8]) -> Result<()> {
        self.input.read_exact(place + within, buf)
    }

    fn too_many(&self) -> Error {
        self.input.damaged("its table names more blocks than the file has".to_owned())
    }
}

impl BlockSource for DynamicVhd {
    fn logical_size(&self) -> u64 {
        self.size
    }

    fn extents(&self) -> Extents<'_> {
        Box::new(blocks::extents(self))
    }

    fn read_onto(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        blocks::read(self, offset, buf)
    }
}
