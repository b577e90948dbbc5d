//! qcow2 overlays as our QEMU writes them: version 3, standard clusters, the backing name in the header ignored.
//!
//! The tables are a two-level tree: an L1 entry names an L2 table of one cluster, an L2 entry says where one cluster of
//! the disk is. Nothing else of the format matters for reading: reference counts, snapshots, bitmaps are not looked at.

mod header;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::chain::Covered;
use crate::raw::{check_range, open_regular};
use crate::{Error, Extent, ExtentKind, Result};
use header::Header;

/// L2 tables kept in memory by one open file, in bytes; a table is one cluster.
const L2_CACHE_BYTES: usize = 8 << 20;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// One open qcow2 file.
#[derive(Debug)]
pub struct Qcow2 {
    path: PathBuf,
    file: File,
    file_len: u64,
    header: Header,
    l1: Vec<u64>,
    /// L2 tables by their number in the L1 table.
    l2: Mutex<HashMap<u64, Arc<Vec<u64>>>>,
}

/// What one cluster of the disk is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cluster {
    Unallocated,
    Zero,
    /// At this offset of the file.
    Data(u64),
}

impl Qcow2 {
    /// Opens a qcow2 file of version 3. Refused, with the reason: encryption, an external data file, extended L2
    /// entries, features that we do not know, tables which do not fit the file. The backing file is not opened.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, file_len) = open_regular(path)?;
        let header = Header::read(&file, file_len, path)?;
        let mut this = Self {
            path: path.to_owned(),
            file,
            file_len,
            header,
            l1: Vec::new(),
            l2: Mutex::new(HashMap::new()),
        };
        this.l1 = this.read_table(this.header.l1_offset, this.header.l1_entries)?;
        this.check_l1()?;
        Ok(this)
    }

    /// The disk's size in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.header.virtual_size
    }

    /// The file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The allocated stretches of the disk in order: sorted, disjoint, neighbours of one kind merged up to what one L2
    /// table covers. Ends after its first error.
    ///
    /// The work is bounded by the file's length: a file whose tables name more clusters than it has room for is damaged.
    pub fn extents(&self) -> impl Iterator<Item = Result<Extent>> + Send + '_ {
        let mut position = Some(0);
        let mut data_clusters = 0;
        std::iter::from_fn(move || {
            let from = position.take()?;
            match self.next_allocated(from, &mut data_clusters) {
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
        let cluster_bytes = self.cluster_bytes();
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let within = at % cluster_bytes;
            let len = (cluster_bytes - within).min((buf.len() - done) as u64) as usize;
            let part = &mut buf[done..done + len];
            match self.cluster(at / cluster_bytes)? {
                Cluster::Unallocated => {}
                Cluster::Zero => {
                    part.fill(0);
                    covered.add(done..done + len);
                }
                Cluster::Data(host) => {
                    self.read_data(host + within, part)?;
                    covered.add(done..done + len);
                }
            }
            done += len;
        }
        Ok(())
    }

    fn next_allocated(&self, from: u64, data_clusters: &mut u64) -> Result<Option<Extent>> {
        let cluster_bytes = self.cluster_bytes();
        let clusters = self.virtual_size().div_ceil(cluster_bytes);
        let per_table = cluster_bytes / 8;
        let mut number = from.div_ceil(cluster_bytes);
        while number < clusters {
            let table_number = number / per_table;
            if self.l1[table_number as usize] & OFFSET_MASK == 0 {
                number = (table_number + 1) * per_table;
                continue;
            }
            let table_end = clusters.min((table_number + 1) * per_table);
            let Some(first) = self.find(number..table_end, |kind| kind.is_some())? else {
                number = table_end;
                continue;
            };
            let kind = self.cluster(first)?.kind();
            let end = self.find(first..table_end, |other| other != kind)?.unwrap_or(table_end);
            if kind == Some(ExtentKind::Data) {
                *data_clusters += end - first;
                self.check_room(*data_clusters)?;
            }
            let start = first * cluster_bytes;
            let len = (end * cluster_bytes).min(self.virtual_size()) - start;
            let kind = kind.unwrap_or(ExtentKind::Zero);
            return Ok(Some(Extent { start, len, kind }));
        }
        Ok(None)
    }

    /// The first cluster of a range inside one L2 table whose kind passes `test`.
    fn find(
        &self,
        range: std::ops::Range<u64>,
        test: impl Fn(Option<ExtentKind>) -> bool,
    ) -> Result<Option<u64>> {
        for number in range {
            if test(self.cluster(number)?.kind()) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    fn cluster(&self, number: u64) -> Result<Cluster> {
        let per_table = self.cluster_bytes() / 8;
        let l1_entry = self.l1[(number / per_table) as usize];
        if l1_entry & OFFSET_MASK == 0 {
            return Ok(Cluster::Unallocated);
        }
        let table = self.l2_table(number / per_table)?;
        let entry = table[(number % per_table) as usize];
        if entry & COMPRESSED != 0 {
            let reason = format!(
                "cluster {number} is compressed; rewrite it with `qemu-img convert -f qcow2 -O qcow2` first"
            );
            return Err(Error::Unsupported { path: self.path.clone(), reason });
        }
        if entry & !(OFFSET_MASK | COPIED | ZERO) != 0 {
            return Err(
                self.damaged(format!("the entry {entry:#x} of cluster {number} has reserved bits set"))
            );
        }
        if entry & ZERO != 0 {
            return Ok(Cluster::Zero);
        }
        let host = entry & OFFSET_MASK;
        if host == 0 {
            return Ok(Cluster::Unallocated);
        }
        if !host.is_multiple_of(self.cluster_bytes()) || host >= self.file_len {
            return Err(
                self.damaged(format!("cluster {number} is said to be at {host}, outside of the file"))
            );
        }
        Ok(Cluster::Data(host))
    }

    fn l2_table(&self, number: u64) -> Result<Arc<Vec<u64>>> {
        // A panic while the map was locked cannot leave it half-changed, so a poisoned lock is as good as any.
        let mut tables = self.l2.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.get(&number) {
            return Ok(Arc::clone(table));
        }
        let offset = self.l1[number as usize] & OFFSET_MASK;
        let table = Arc::new(self.read_table(offset, self.cluster_bytes() / 8)?);
        let limit = (L2_CACHE_BYTES as u64 / self.cluster_bytes()).max(1) as usize;
        if tables.len() >= limit {
            // Readers go through a disk in order, so what is cached will not be needed again.
            tables.clear();
        }
        tables.insert(number, Arc::clone(&table));
        Ok(table)
    }

    fn read_table(&self, offset: u64, entries: u64) -> Result<Vec<u64>> {
        let mut bytes = vec![0; (entries * 8) as usize];
        self.file.read_exact_at(&mut bytes, offset).map_err(|source| Error::Io {
            action: "read a table of",
            path: self.path.clone(),
            source,
        })?;
        let (words, _) = bytes.as_chunks::<8>();
        Ok(words.iter().map(|word| u64::from_be_bytes(*word)).collect())
    }

    /// Reads data of a cluster. QEMU does not write the unused tail of a file's last cluster, so what lies behind the
    /// end of the file is zeros.
    fn read_data(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            match self.file.read_at(buf, offset) {
                Ok(0) => {
                    buf.fill(0);
                    return Ok(());
                }
                Ok(n) => {
                    buf = &mut buf[n..];
                    offset += n as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Error::Io { action: "read", path: self.path.clone(), source });
                }
            }
        }
        Ok(())
    }

    /// Every L2 table lies inside the file, on a cluster of its own: a table named twice would let a small file
    /// describe a full disk.
    fn check_l1(&self) -> Result<()> {
        let cluster_bytes = self.cluster_bytes();
        let mut offsets = Vec::new();
        for &entry in &self.l1 {
            let offset = entry & OFFSET_MASK;
            if entry & !(OFFSET_MASK | COPIED) != 0 {
                return Err(self.damaged(format!("the L1 entry {entry:#x} has reserved bits set")));
            }
            if offset == 0 {
                continue;
            }
            let inside = offset.checked_add(cluster_bytes).is_some_and(|end| end <= self.file_len);
            if !inside || !offset.is_multiple_of(cluster_bytes) {
                return Err(
                    self.damaged(format!("an L2 table is said to be at {offset}, outside of the file"))
                );
            }
            offsets.push(offset);
        }
        offsets.sort_unstable();
        if offsets.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(self.damaged("two L1 entries name the same L2 table".to_owned()));
        }
        Ok(())
    }

    fn check_room(&self, data_clusters: u64) -> Result<()> {
        if data_clusters > self.file_len.div_ceil(self.cluster_bytes()) {
            return Err(self.damaged("its tables name more clusters than the file has".to_owned()));
        }
        Ok(())
    }

    fn cluster_bytes(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    fn damaged(&self, reason: String) -> Error {
        Error::Damaged { path: self.path.clone(), reason }
    }
}

impl Cluster {
    fn kind(self) -> Option<ExtentKind> {
        match self {
            Self::Unallocated => None,
            Self::Zero => Some(ExtentKind::Zero),
            Self::Data(_) => Some(ExtentKind::Data),
        }
    }
}
