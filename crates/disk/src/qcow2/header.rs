//! The qcow2 header: which files we read, and where their first table is.
//!
//! Source: QEMU's docs/interop/qcow2.txt. All fields are big endian.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::{Error, MAX_DISK_BYTES, Result};

const MAGIC: &[u8; 4] = b"QFI\xfb";
/// The part of the header that version 3 always has.
const HEADER_BYTES: usize = 104;
const CLUSTER_BITS_MIN: u32 = 9;
const CLUSTER_BITS_MAX: u32 = 21;
/// QEMU's own limit on the L1 table (QCOW_MAX_L1_SIZE), in entries of 8 bytes.
const MAX_L1_ENTRIES: u64 = (32 << 20) / 8;

/// Incompatible features (bit numbers of the header's field).
mod incompatible {
    /// Reference counts may be wrong. We do not use them.
    pub(super) const DIRTY: u64 = 1 << 0;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const EXTERNAL_DATA: u64 = 1 << 2;
    /// Says how compressed clusters are compressed; those are refused one by one.
    pub(super) const COMPRESSION_TYPE: u64 = 1 << 3;
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
    pub(super) const HARMLESS: u64 = DIRTY | COMPRESSION_TYPE;
}

/// What is needed to find clusters.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) cluster_bits: u32,
    pub(super) virtual_size: u64,
    pub(super) l1_offset: u64,
    /// Entries needed for `virtual_size`; the table in the file is at least as long.
    pub(super) l1_entries: u64,
}

impl Header {
    pub(super) fn read(file: &File, file_len: u64, path: &Path) -> Result<Self> {
        let damaged = |reason: String| Err(Error::Damaged { path: path.to_owned(), reason });
        let unsupported = |reason: String| Err(Error::Unsupported { path: path.to_owned(), reason });

        if file_len < HEADER_BYTES as u64 {
            return damaged(format!("{file_len} bytes are too few for a qcow2 header of version 3"));
        }
        let mut bytes = [0; HEADER_BYTES];
        file.read_exact_at(&mut bytes, 0).map_err(|source| Error::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        if &bytes[..4] != MAGIC {
            return damaged("it does not begin with the qcow2 magic".to_owned());
        }
        let version = be32(&bytes, 4);
        if version != 3 {
            return unsupported(format!("qcow2 version {version}; only version 3 (compat=1.1) is read"));
        }
        let cluster_bits = be32(&bytes, 20);
        let virtual_size = be64(&bytes, 24);
        let crypt_method = be32(&bytes, 32);
        let l1_stored = u64::from(be32(&bytes, 36));
        let l1_offset = be64(&bytes, 40);
        let features = be64(&bytes, 72);

        if !(CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX).contains(&cluster_bits) {
            return damaged(format!("clusters of 2^{cluster_bits} bytes; 2^9 to 2^21 are possible"));
        }
        if crypt_method != 0 {
            return unsupported(format!("it is encrypted (method {crypt_method})"));
        }
        if features & incompatible::CORRUPT != 0 {
            return damaged("QEMU marked it as corrupt; see `qemu-img check`".to_owned());
        }
        if features & incompatible::EXTERNAL_DATA != 0 {
            return unsupported("its data is in an external file".to_owned());
        }
        if features & incompatible::EXTENDED_L2 != 0 {
            return unsupported("it has extended L2 entries (subclusters)".to_owned());
        }
        if features & !incompatible::HARMLESS != 0 {
            return unsupported(format!("unknown incompatible features {features:#x}"));
        }
        if virtual_size > MAX_DISK_BYTES {
            return unsupported(format!(
                "a virtual size of {virtual_size} bytes; a disk has at most {MAX_DISK_BYTES} (32 TiB)"
            ));
        }

        let covered_by_l1_entry = 1_u64 << (cluster_bits + cluster_bits - 3);
        let l1_entries = virtual_size.div_ceil(covered_by_l1_entry);
        if l1_entries > MAX_L1_ENTRIES {
            return unsupported(format!(
                "{virtual_size} bytes in clusters of 2^{cluster_bits} need {l1_entries} L1 entries; at most \
                 {MAX_L1_ENTRIES} are read"
            ));
        }
        if l1_stored < l1_entries {
            return damaged(format!("its L1 table has {l1_stored} entries and needs {l1_entries}"));
        }
        let l1_fits = l1_offset.checked_add(l1_entries * 8).is_some_and(|end| end <= file_len);
        if !l1_fits || (l1_entries > 0 && l1_offset < HEADER_BYTES as u64) {
            return damaged(format!("its L1 table at {l1_offset} is outside of the file"));
        }
        Ok(Self { cluster_bits, virtual_size, l1_offset, l1_entries })
    }
}

fn be32(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn be64(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}
