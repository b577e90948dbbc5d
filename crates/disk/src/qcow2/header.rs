//! The qcow2 header: which files we read, and where their first table is.
//!
//! Source: QEMU's docs/interop/qcow2.txt. All fields are big endian.

use crate::Result;
use crate::input::Input;

const MAGIC: &[u8; 4] = b"QFI\xfb";
/// The whole header of version 2.
const V2_BYTES: u64 = 72;
/// The part of the header that version 3 always has.
const V3_BYTES: u64 = 104;
/// The last field that is read, the compression type, ends here.
const READ_BYTES: usize = 112;
const CLUSTER_BITS_MIN: u32 = 9;
const CLUSTER_BITS_MAX: u32 = 21;
/// With extended L2 entries a cluster has 32 subclusters, of a sector at least.
const CLUSTER_BITS_MIN_EXTENDED: u32 = 14;
/// QEMU's own limit on the L1 table (QCOW_MAX_L1_SIZE), in entries of 8 bytes.
const MAX_L1_ENTRIES: u64 = (32 << 20) / 8;
/// The longest backing file name, by the specification.
const MAX_BACKING_NAME: usize = 1023;

/// Incompatible features (bit numbers of the header's field).
mod incompatible {
    /// Reference counts may be wrong. We do not use them.
    pub(super) const DIRTY: u64 = 1 << 0;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const EXTERNAL_DATA: u64 = 1 << 2;
    pub(super) const COMPRESSION_TYPE: u64 = 1 << 3;
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
    pub(super) const KNOWN: u64 = DIRTY | COMPRESSION_TYPE | EXTENDED_L2;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// QEMU before 1.7: no zero clusters.
    V2,
    V3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Zlib,
    Zstd,
}

/// What is needed to find clusters.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) version: Version,
    pub(super) cluster_bits: u32,
    pub(super) virtual_size: u64,
    pub(super) l1_offset: u64,
    /// Entries needed for `virtual_size`; the table in the file is at least as long.
    pub(super) l1_entries: u64,
    pub(super) compression: Compression,
    /// Entries of two words: 32 subclusters in each cluster.
    pub(super) extended_l2: bool,
    /// The name of the file below this one, as the header has it.
    pub(super) backing: Option<String>,
}

impl Header {
    pub(super) fn read(input: &Input) -> Result<Self> {
        let mut bytes = [0; READ_BYTES];
        input.read_padded(0, &mut bytes)?;
        if &bytes[..4] != MAGIC {
            return Err(input.damaged("it does not begin with the qcow2 magic".to_owned()));
        }
        let version = match be32(&bytes, 4) {
            2 => Version::V2,
            3 => Version::V3,
            other => return Err(input.unsupported(format!("qcow2 version {other}; 2 and 3 are read"))),
        };
        let needed = if version == Version::V2 { V2_BYTES } else { V3_BYTES };
        if input.file_len() < needed {
            let len = input.file_len();
            return Err(input.damaged(format!("{len} bytes are too few for a qcow2 header")));
        }
        let cluster_bits = be32(&bytes, 20);
        let virtual_size = be64(&bytes, 24);
        let crypt_method = be32(&bytes, 32);
        let l1_stored = u64::from(be32(&bytes, 36));
        let l1_offset = be64(&bytes, 40);
        let features = if version == Version::V3 { be64(&bytes, 72) } else { 0 };
        let extended_l2 = features & incompatible::EXTENDED_L2 != 0;

        let bits_min = if extended_l2 { CLUSTER_BITS_MIN_EXTENDED } else { CLUSTER_BITS_MIN };
        if !(bits_min..=CLUSTER_BITS_MAX).contains(&cluster_bits) {
            return Err(input.damaged(format!(
                "clusters of 2^{cluster_bits} bytes; 2^{bits_min} to 2^{CLUSTER_BITS_MAX} are possible"
            )));
        }
        if crypt_method != 0 {
            return Err(input.unsupported(format!(
                "it is encrypted (method {crypt_method}); decrypt it with qemu-img first"
            )));
        }
        if features & incompatible::CORRUPT != 0 {
            return Err(input.damaged("QEMU marked it as corrupt; see `qemu-img check`".to_owned()));
        }
        if features & incompatible::EXTERNAL_DATA != 0 {
            let reason = "its data is in an external file; `qemu-img convert -O qcow2` puts it into one";
            return Err(input.unsupported(reason.to_owned()));
        }
        if features & !incompatible::KNOWN != 0 {
            return Err(input.unsupported(format!("unknown incompatible features {features:#x}")));
        }
        input.check_size(virtual_size)?;

        let covered_by_l1_entry = 1_u64 << (cluster_bits + cluster_bits - if extended_l2 { 4 } else { 3 });
        let l1_entries = virtual_size.div_ceil(covered_by_l1_entry);
        if l1_entries > MAX_L1_ENTRIES {
            return Err(input.unsupported(format!(
                "{virtual_size} bytes in clusters of 2^{cluster_bits} need {l1_entries} L1 entries; at most \
                 {MAX_L1_ENTRIES} are read"
            )));
        }
        if l1_stored < l1_entries {
            return Err(input.damaged(format!("its L1 table has {l1_stored} entries and needs {l1_entries}")));
        }
        let l1_fits = l1_offset.checked_add(l1_entries * 8).is_some_and(|end| end <= input.file_len());
        if !l1_fits || (l1_entries > 0 && l1_offset < needed) {
            return Err(input.damaged(format!("its L1 table at {l1_offset} is outside of the file")));
        }
        Ok(Self {
            version,
            cluster_bits,
            virtual_size,
            l1_offset,
            l1_entries,
            compression: compression(input, &bytes, version, features)?,
            extended_l2,
            backing: backing(input, &bytes)?,
        })
    }
}

fn compression(
    input: &Input,
    bytes: &[u8; READ_BYTES],
    version: Version,
    features: u64,
) -> Result<Compression> {
    // The field exists when the header is long enough, and says zlib otherwise.
    let long = version == Version::V3 && u64::from(be32(bytes, 100)) > V3_BYTES;
    match if long { bytes[104] } else { 0 } {
        0 if features & incompatible::COMPRESSION_TYPE == 0 => Ok(Compression::Zlib),
        1 if features & incompatible::COMPRESSION_TYPE != 0 => Ok(Compression::Zstd),
        0 | 1 => Err(input.damaged("its compression type and its feature bits disagree".to_owned())),
        other => Err(input.unsupported(format!("compression type {other}; zlib and zstd are read"))),
    }
}

fn backing(input: &Input, bytes: &[u8; READ_BYTES]) -> Result<Option<String>> {
    let (offset, len) = (be64(bytes, 8), be32(bytes, 16) as usize);
    if offset == 0 {
        return Ok(None);
    }
    if len > MAX_BACKING_NAME {
        return Err(
            input.damaged(format!("a backing file name of {len} bytes; {MAX_BACKING_NAME} are possible"))
        );
    }
    let mut name = vec![0; len];
    input.read_exact(offset, &mut name)?;
    Ok(Some(String::from_utf8_lossy(&name).into_owned()))
}

fn be32(bytes: &[u8; READ_BYTES], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn be64(bytes: &[u8; READ_BYTES], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}
