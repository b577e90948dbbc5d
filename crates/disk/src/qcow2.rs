//! qcow2 files of versions 2 and 3, with zlib and zstd clusters and extended L2 entries. The backing name in the header
//! is never opened: a chain is what the caller says.
//!
//! The tables are a two-level tree: an L1 entry names an L2 table of one cluster, an L2 entry says where one cluster of
//! the disk is. Nothing else of the format matters for reading: reference counts, snapshots, bitmaps are not looked at.

mod compressed;
mod entry;
mod header;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::chain::Covered;
use crate::input::{Input, check_range};
use crate::{Error, Extent, Result};
use compressed::Unpacked;
use entry::{COPIED, OFFSET_MASK, SUBCLUSTERS, Unit, decode};
use header::Header;

/// L2 tables kept in memory by one open file, in bytes; a table is one cluster.
const L2_CACHE_BYTES: usize = 8 << 20;

/// One open qcow2 file.
#[derive(Debug)]
pub struct Qcow2 {
    input: Input,
    header: Header,
    l1: Vec<u64>,
    /// L2 tables by their number in the L1 table.
    l2: Mutex<HashMap<u64, Arc<Vec<u64>>>>,
    unpacked: Unpacked,
}

impl Qcow2 {
    /// Opens a qcow2 file. Refused, with the reason: encryption, an external data file, features that we do not know,
    /// tables which do not fit the file. The backing file is not opened; see [`Self::backing`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_input(Input::open(path)?)
    }

    /// A qcow2 file that is open already.
    pub fn from_input(input: Input) -> Result<Self> {
        let header = Header::read(&input)?;
        let l1 = read_table(&input, header.l1_offset, header.l1_entries)?;
        let unpacked = Unpacked::new(header.compression, 1 << header.cluster_bits);
        let this = Self { input, header, l1, l2: Mutex::new(HashMap::new()), unpacked };
        this.check_l1()?;
        Ok(this)
    }

    /// The disk's size in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.header.virtual_size
    }

    /// The file that was opened.
    pub fn path(&self) -> &Path {
        self.input.path()
    }

    /// The name of the file that this one is an overlay of, as its header has it. Whoever wrote the file chose it.
    pub fn backing(&self) -> Option<&str> {
        self.header.backing.as_deref()
    }

    /// The allocated stretches of the disk in order: sorted, disjoint, neighbours of one kind merged up to what one L2
    /// table covers. Ends after its first error.
    ///
    /// The work is bounded by the file's length: a file whose tables name more clusters than it has room for is damaged.
    pub fn extents(&self) -> impl Iterator<Item = Result<Extent>> + Send + '_ {
        let mut position = Some(0);
        let mut stored = 0;
        std::iter::from_fn(move || {
            let from = position.take()?;
            match self.next_allocated(from, &mut stored) {
                Ok(None) => None,
                Ok(Some(extent)) => {
                    position = Some(extent.end());
                    Some(Ok(extent))
                }
                Err(error) => Some(Err(error)),
            }
        })
    }

    /// Copies what is allocated of `offset ..` into `buf`, leaves the other bytes, and returns how many it wrote.
    pub fn read_onto(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let mut covered = Covered::default();
        self.read_covering(offset, buf, &mut covered)?;
        Ok(covered.bytes())
    }

    /// As [`Self::read_onto`], and notes which parts of `buf` were written.
    pub(crate) fn read_covering(&self, offset: u64, buf: &mut [u8], covered: &mut Covered) -> Result<()> {
        check_range(offset, buf.len() as u64, self.virtual_size())?;
        let unit_bytes = self.unit_bytes();
        let per_table = self.units_per_table();
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (number, within) = (at / unit_bytes, at % unit_bytes);
            let len = (unit_bytes - within).min((buf.len() - done) as u64) as usize;
            let part = &mut buf[done..done + len];
            let unit = match self.l2_table(number / per_table)? {
                None => Unit::Unallocated,
                Some(table) => self.unit(&table, number % per_table)?,
            };
            match unit {
                Unit::Unallocated => {}
                Unit::Zero => part.fill(0),
                // QEMU does not write the unused tail of a file's last cluster.
                Unit::Data(host) => self.input.read_padded(host + within, part)?,
                Unit::Compressed { at: place, len } => {
                    let in_cluster = at % (1 << self.header.cluster_bits);
                    self.unpacked.read(&self.input, place, len, in_cluster as usize, part)?;
                }
            }
            if unit != Unit::Unallocated {
                covered.add(done..done + len);
            }
            done += len;
        }
        Ok(())
    }

    fn next_allocated(&self, from: u64, stored: &mut u64) -> Result<Option<Extent>> {
        let unit_bytes = self.unit_bytes();
        let units = self.virtual_size().div_ceil(unit_bytes);
        let per_table = self.units_per_table();
        let mut number = from.div_ceil(unit_bytes);
        while number < units {
            let end = units.min((number / per_table + 1) * per_table);
            let Some(table) = self.l2_table(number / per_table)? else {
                number = end;
                continue;
            };
            let unit = |number: u64| self.unit(&table, number % per_table);
            while number < end && unit(number)? == Unit::Unallocated {
                number += 1;
            }
            let first = number;
            let mut kind = None;
            while number < end {
                let this = unit(number)?;
                if number > first && this.kind() != kind {
                    break;
                }
                kind = this.kind();
                if matches!(this, Unit::Data(_)) {
                    *stored += unit_bytes;
                }
                number += 1;
            }
            self.check_room(*stored)?;
            if let Some(kind) = kind {
                let start = first * unit_bytes;
                let len = (number * unit_bytes).min(self.virtual_size()) - start;
                return Ok(Some(Extent { start, len, kind }));
            }
        }
        Ok(None)
    }

    fn unit(&self, table: &[u64], number: u64) -> Result<Unit> {
        decode(&self.header, table, number, self.input.file_len())
            .map_err(|reason| self.input.damaged(reason))
    }

    /// The table of an L1 entry, or `None` where nothing that it covers is allocated.
    fn l2_table(&self, number: u64) -> Result<Option<Arc<Vec<u64>>>> {
        let offset = self.l1[number as usize] & OFFSET_MASK;
        if offset == 0 {
            return Ok(None);
        }
        // A panic while the map was locked cannot leave it half-changed, so a poisoned lock is as good as any.
        let mut tables = self.l2.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.get(&number) {
            return Ok(Some(Arc::clone(table)));
        }
        let table = Arc::new(read_table(&self.input, offset, self.cluster_bytes() / 8)?);
        let limit = (L2_CACHE_BYTES as u64 / self.cluster_bytes()).max(1) as usize;
        if tables.len() >= limit {
            // Readers go through a disk in order, so what is cached will not be needed again.
            tables.clear();
        }
        tables.insert(number, Arc::clone(&table));
        Ok(Some(table))
    }

    /// Every L2 table lies inside the file, on a cluster of its own: a table named twice would let a small file
    /// describe a full disk.
    fn check_l1(&self) -> Result<()> {
        let mut offsets = Vec::new();
        for &entry in &self.l1 {
            let offset = entry & OFFSET_MASK;
            if entry & !(OFFSET_MASK | COPIED) != 0 {
                return Err(self.input.damaged(format!("the L1 entry {entry:#x} has reserved bits set")));
            }
            if offset == 0 {
                continue;
            }
            let end = offset.checked_add(self.cluster_bytes());
            let inside = end.is_some_and(|end| end <= self.input.file_len());
            if !inside || !offset.is_multiple_of(self.cluster_bytes()) {
                let reason = format!("an L2 table is said to be at {offset}, outside of the file");
                return Err(self.input.damaged(reason));
            }
            offsets.push(offset);
        }
        offsets.sort_unstable();
        if offsets.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(self.input.damaged("two L1 entries name the same L2 table".to_owned()));
        }
        Ok(())
    }

    fn check_room(&self, stored: u64) -> Result<()> {
        if stored > self.input.file_len().next_multiple_of(self.cluster_bytes()) {
            return Err(self.input.damaged("its tables name more clusters than the file has".to_owned()));
        }
        Ok(())
    }

    fn cluster_bytes(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    fn unit_bytes(&self) -> u64 {
        if self.header.extended_l2 { self.cluster_bytes() / SUBCLUSTERS } else { self.cluster_bytes() }
    }

    fn units_per_table(&self) -> u64 {
        if self.header.extended_l2 {
            self.cluster_bytes() / 16 * SUBCLUSTERS
        } else {
            self.cluster_bytes() / 8
        }
    }
}

fn read_table(input: &Input, offset: u64, entries: u64) -> Result<Vec<u64>> {
    let mut bytes = vec![0; (entries * 8) as usize];
    input.read_exact(offset, &mut bytes).map_err(|error| match error {
        Error::Io { path, source, .. } => Error::Io { action: "read a table of", path, source },
        other => other,
    })?;
    let (words, _) = bytes.as_chunks::<8>();
    Ok(words.iter().map(|word| u64::from_be_bytes(*word)).collect())
}
