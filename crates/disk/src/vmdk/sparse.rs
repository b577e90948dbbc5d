//! VMware's hosted sparse extent: a grain directory names grain tables, a table names grains of usually 64 KiB. In a
//! stream-optimized file each grain is zlib data behind a marker. All fields are little endian.

use std::sync::{Mutex, PoisonError};

use super::SECTOR;
use super::descriptor::{self, MAX_DESCRIPTOR_BYTES};
use crate::blocks::{self, Block, BlockMap};
use crate::inflate::{Wrapping, inflate};
use crate::input::Input;
use crate::table::{Pages, Table, Word, run};
use crate::{BlockSource, Error, Extents, Result};

const MAGIC: &[u8; 4] = b"KDMV";
const HEADER_BYTES: usize = 512;
/// The directory is named by a copy of the header at the file's end.
const DIRECTORY_AT_END: u64 = u64::MAX;
/// The last kilobyte of such a file and the marker before it: marker, header, end-of-stream marker.
const FOOTER_SECTORS: u64 = 3;
const FOOTER_MARKER: u32 = 3;
const MARKER_BYTES: usize = 12;
/// Grains that are read: 4 KiB (the specification's smallest) to 4 MiB.
const GRAIN_SECTORS_MIN: u64 = 8;
const GRAIN_SECTORS_MAX: u64 = 8192;
/// Entries of the grain directory: 32 TiB in grains of 4 KiB.
const MAX_DIRECTORY_ENTRIES: u64 = 16 << 20;
/// Entries of a grain table; every writer that we know of makes tables of 512.
const MAX_TABLE_ENTRIES: u64 = 512;

/// Bits of the header's flags.
mod flags {
    /// An entry of 1 means zeros.
    pub(super) const ZERO_GRAINS: u32 = 1 << 2;
    pub(super) const COMPRESSED: u32 = 1 << 16;
    pub(super) const MARKERS: u32 = 1 << 17;
    /// Newline detection and redundant tables change nothing for a reader.
    pub(super) const KNOWN: u32 = 1 | 1 << 1 | ZERO_GRAINS | COMPRESSED | MARKERS;
}

#[derive(Debug)]
struct Header {
    flags: u32,
    capacity: u64,
    grain_sectors: u64,
    descriptor_at: u64,
    descriptor_len: u64,
    table_entries: u64,
    directory_at: u64,
}

/// An open sparse extent.
#[derive(Debug)]
pub(super) struct SparseExtent {
    input: Input,
    header: Header,
    directory: Table,
    tables: Pages,
    /// The last unpacked grain and its number.
    unpacked: Mutex<Option<(u64, Vec<u8>)>>,
}

/// Whether the file is a sparse extent rather than a text.
pub(super) fn is_sparse(input: &Input) -> Result<bool> {
    let mut magic = [0; 4];
    input.read_padded(0, &mut magic)?;
    Ok(&magic == MAGIC)
}

impl SparseExtent {
    /// A disk that is this one file.
    pub(super) fn open_whole(input: Input) -> Result<Self> {
        let this = Self::open(input)?;
        let Header { descriptor_at, descriptor_len, .. } = this.header;
        let bytes = descriptor_len.checked_mul(SECTOR).filter(|bytes| *bytes <= MAX_DESCRIPTOR_BYTES);
        let (Some(at), Some(bytes)) = (descriptor_at.checked_mul(SECTOR), bytes) else {
            return Err(this.input.damaged("its descriptor is said to be outside of the file".to_owned()));
        };
        let mut text = vec![0; bytes as usize];
        if at != 0 {
            this.input.read_exact(at, &mut text)?;
        }
        // An extent of several has no descriptor, or room for one.
        if at == 0 || text.first().is_none_or(|byte| *byte == 0) {
            let reason = "it is one extent of a larger disk; open the small descriptor file that names it";
            return Err(this.input.unsupported(reason.to_owned()));
        }
        descriptor::check(&text).map_err(|refusal| refusal.about(&this.input))?;
        Ok(this)
    }

    /// A part of a disk, which the descriptor says to have `len` bytes.
    pub(super) fn open_part(input: Input, len: u64) -> Result<Self> {
        let this = Self::open(input)?;
        if this.size() != len {
            return Err(this
                .input
                .damaged(format!("it has {} bytes, and the descriptor says {len}", this.size())));
        }
        Ok(this)
    }

    fn open(input: Input) -> Result<Self> {
        let mut bytes = [0; HEADER_BYTES];
        input.read_exact(0, &mut bytes)?;
        let mut header = Header::decode(&bytes).map_err(|reason| input.damaged(reason))?;
        if header.directory_at == DIRECTORY_AT_END {
            header = footer(&input)?;
        }
        if header.flags & !flags::KNOWN & 0xffff_0000 != 0 {
            return Err(input.unsupported(format!("unknown flags {:#x}", header.flags)));
        }
        let size = header.capacity.saturating_mul(SECTOR);
        input.check_size(size)?;
        let covered = header.grain_sectors * header.table_entries;
        let entries = header.capacity.div_ceil(covered);
        if entries > MAX_DIRECTORY_ENTRIES {
            return Err(input.unsupported(format!(
                "a grain directory of {entries} entries; at most {MAX_DIRECTORY_ENTRIES} are read"
            )));
        }
        let at = header.directory_at.saturating_mul(SECTOR);
        let directory = Table::new(&input, at, entries, Word::Le32, "grain directory")?;
        let this =
            Self { input, header, directory, tables: Pages::new(Word::Le32), unpacked: Mutex::new(None) };
        this.check_directory()?;
        Ok(this)
    }

    /// The directory names no more tables than the file has room for: one table named often would describe a huge disk.
    fn check_directory(&self) -> Result<()> {
        let room = self.input.file_len() / (self.header.table_entries * Word::Le32.bytes());
        let mut named = 0;
        for index in 0..self.directory.entries() {
            if self.directory.get(&self.input, index)? != 0 {
                named += 1;
                if named > room {
                    let reason = "its grain directory names more tables than the file has";
                    return Err(self.input.damaged(reason.to_owned()));
                }
            }
        }
        Ok(())
    }

    fn grain_bytes(&self) -> u64 {
        self.header.grain_sectors * SECTOR
    }

    fn compressed(&self) -> bool {
        self.header.flags & flags::COMPRESSED != 0
    }

    fn unpack(&self, number: u64, place: u64, grain: &mut Vec<u8>) -> Result<()> {
        let damaged = |why: &str| self.input.damaged(format!("the grain {number} at {place} {why}"));
        let grain_bytes = self.grain_bytes() as usize;
        grain.resize(grain_bytes, 0);
        let (data_at, len) = if self.header.flags & flags::MARKERS != 0 {
            let mut marker = [0; MARKER_BYTES];
            self.input.read_exact(place, &mut marker)?;
            if le64(&marker, 0) != number * self.header.grain_sectors {
                return Err(damaged("has another grain's marker"));
            }
            (place + MARKER_BYTES as u64, le32(&marker, 8) as usize)
        } else {
            (place, grain_bytes)
        };
        // Deflate grows by a few bytes a block at most.
        if len > grain_bytes * 2 {
            return Err(damaged(&format!("has {len} compressed bytes")));
        }
        let mut data = vec![0; len];
        self.input.read_padded(data_at, &mut data)?;
        let size = inflate(&data, grain, Wrapping::Zlib).ok_or_else(|| damaged("does not unpack"))?;
        let needed = self.grain_bytes().min(self.size() - number * self.grain_bytes()) as usize;
        if size < needed {
            return Err(damaged(&format!("unpacks to {size} bytes, and {needed} are needed")));
        }
        Ok(())
    }
}

impl Header {
    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, String> {
        if &bytes[..4] != MAGIC {
            return Err("it does not begin with `KDMV`".to_owned());
        }
        let version = le32(bytes, 4);
        if !(1..=3).contains(&version) {
            return Err(format!("version {version} of a sparse extent; 1 to 3 are read"));
        }
        let this = Self {
            flags: le32(bytes, 8),
            capacity: le64(bytes, 12),
            grain_sectors: le64(bytes, 20),
            descriptor_at: le64(bytes, 28),
            descriptor_len: le64(bytes, 36),
            table_entries: u64::from(le32(bytes, 44)),
            directory_at: le64(bytes, 56),
        };
        let grain_fits = this.grain_sectors.is_power_of_two()
            && (GRAIN_SECTORS_MIN..=GRAIN_SECTORS_MAX).contains(&this.grain_sectors);
        if !grain_fits {
            return Err(format!("grains of {} sectors", this.grain_sectors));
        }
        if !(1..=MAX_TABLE_ENTRIES).contains(&this.table_entries) {
            return Err(format!("grain tables of {} entries", this.table_entries));
        }
        let algorithm = u16::from_le_bytes([bytes[77], bytes[78]]);
        if this.flags & flags::COMPRESSED != 0 && algorithm != 1 {
            return Err(format!("compression algorithm {algorithm}; deflate (1) is read"));
        }
        Ok(this)
    }
}

/// The header at the end of a file that was written as a stream.
fn footer(input: &Input) -> Result<Header> {
    let lost =
        |why: String| input.damaged(format!("its footer cannot be used: {why}; was the file cut off?"));
    let at =
        input.file_len().checked_sub(FOOTER_SECTORS * SECTOR).ok_or_else(|| lost("no room".to_owned()))?;
    let mut bytes = [0; FOOTER_SECTORS as usize * SECTOR as usize];
    input.read_exact(at, &mut bytes)?;
    let (marker, end) = (&bytes[..512], &bytes[1024..]);
    let marker_holds = le32(marker, 8) == 0 && le32(marker, 12) == FOOTER_MARKER;
    let end_holds = le64(end, 0) == 0 && le32(end, 8) == 0 && le32(end, 12) == 0;
    if !marker_holds || !end_holds {
        return Err(lost("its markers are missing".to_owned()));
    }
    let mut copy = [0; HEADER_BYTES];
    copy.copy_from_slice(&bytes[512..1024]);
    let header = Header::decode(&copy).map_err(lost)?;
    if header.directory_at == DIRECTORY_AT_END {
        return Err(lost("it names no grain directory".to_owned()));
    }
    Ok(header)
}

impl BlockMap for SparseExtent {
    fn size(&self) -> u64 {
        self.header.capacity * SECTOR
    }

    fn block_bytes(&self) -> u64 {
        self.grain_bytes()
    }

    fn room(&self) -> u64 {
        // Compressed grains begin on sectors of their own. The last grain may be cut off.
        self.input.file_len() / if self.compressed() { SECTOR } else { self.grain_bytes() } + 1
    }

    fn block(&self, number: u64) -> Result<Block> {
        let per_table = self.header.table_entries;
        let table_at = self.directory.get(&self.input, number / per_table)? * SECTOR;
        if table_at == 0 {
            return Ok(Block::Hole { until: (number / per_table + 1) * per_table });
        }
        let table = self.tables.read(&self.input, table_at, per_table)?;
        let entries = &table[(number % per_table) as usize..];
        let sector = entries[0];
        let zero_grains = self.header.flags & flags::ZERO_GRAINS != 0;
        let hole = |sector| sector == 0 || (sector == 1 && zero_grains);
        if hole(sector) {
            return Ok(Block::Hole { until: number + run(entries, hole) });
        }
        let place = sector * SECTOR;
        let len = self.grain_bytes().min(self.size() - number * self.grain_bytes());
        let end = if self.compressed() { place + SECTOR } else { place + len };
        // The last sector of a compressed grain need not be whole.
        if end > self.input.file_len().next_multiple_of(SECTOR) {
            return Err(self
                .input
                .damaged(format!("grain {number} is said to be at {place}, outside of the file")));
        }
        Ok(Block::Data(place))
    }

    fn read_block(&self, number: u64, place: u64, within: u64, buf: &mut [u8]) -> Result<()> {
        if !self.compressed() {
            return self.input.read_exact(place + within, buf);
        }
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        let grain = match unpacked.take() {
            Some((known, grain)) if known == number => grain,
            other => {
                let mut grain = other.map(|(_, grain)| grain).unwrap_or_default();
                self.unpack(number, place, &mut grain)?;
                grain
            }
        };
        buf.copy_from_slice(&grain[within as usize..within as usize + buf.len()]);
        *unpacked = Some((number, grain));
        Ok(())
    }

    fn too_many(&self) -> Error {
        self.input.damaged("its tables name more grains than the file has".to_owned())
    }
}

impl BlockSource for SparseExtent {
    fn logical_size(&self) -> u64 {
        self.size()
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
