//! What an L2 entry says of a cluster, or of a subcluster.

use super::header::{Header, Version};
use crate::ExtentKind;

pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
pub(super) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Subclusters of a cluster with extended entries.
pub(super) const SUBCLUSTERS: u64 = 32;
const SECTOR: u64 = 512;

/// What one unit of the disk is: a cluster, or with extended L2 entries a subcluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Unallocated,
    Zero,
    /// At this offset of the file.
    Data(u64),
    /// Its cluster is compressed: at most `len` bytes at `at`.
    Compressed {
        at: u64,
        len: u64,
    },
}

impl Unit {
    pub(super) fn kind(self) -> Option<ExtentKind> {
        match self {
            Self::Unallocated => None,
            Self::Zero => Some(ExtentKind::Zero),
            Self::Data(_) | Self::Compressed { .. } => Some(ExtentKind::Data),
        }
    }
}

/// Unit `number` of what a table covers, or why its entry cannot be.
pub(super) fn decode(header: &Header, table: &[u64], number: u64, file_len: u64) -> Result<Unit, String> {
    if !header.extended_l2 {
        let entry = table[number as usize];
        if entry & COMPRESSED != 0 {
            return compressed(header, entry, file_len);
        }
        if entry & !(OFFSET_MASK | COPIED | ZERO) != 0 {
            return Err(format!("the L2 entry {entry:#x} has reserved bits set"));
        }
        if entry & ZERO != 0 {
            return match header.version {
                Version::V3 => Ok(Unit::Zero),
                Version::V2 => Err(format!("the L2 entry {entry:#x} is of version 3")),
            };
        }
        return match host(header, entry, file_len)? {
            0 => Ok(Unit::Unallocated),
            host => Ok(Unit::Data(host)),
        };
    }

    let (cluster, sub) = ((number / SUBCLUSTERS) as usize, number % SUBCLUSTERS);
    let (entry, bitmap) = (table[cluster * 2], table[cluster * 2 + 1]);
    if entry & COMPRESSED != 0 {
        return match bitmap {
            0 => compressed(header, entry, file_len),
            _ => Err(format!("the compressed cluster {entry:#x} has subclusters")),
        };
    }
    if entry & !(OFFSET_MASK | COPIED) != 0 {
        return Err(format!("the L2 entry {entry:#x} has reserved bits set"));
    }
    let host = host(header, entry, file_len)?;
    match (bitmap >> sub & 1, bitmap >> (SUBCLUSTERS + sub) & 1) {
        (0, 0) => Ok(Unit::Unallocated),
        (0, _) => Ok(Unit::Zero),
        (_, 0) if host != 0 => Ok(Unit::Data(host + sub * ((1 << header.cluster_bits) / SUBCLUSTERS))),
        _ => Err(format!("the entry {entry:#x} with the bitmap {bitmap:#x} contradicts itself")),
    }
}

fn host(header: &Header, entry: u64, file_len: u64) -> Result<u64, String> {
    let host = entry & OFFSET_MASK;
    if !host.is_multiple_of(1 << header.cluster_bits) || host >= file_len {
        return Err(format!("a cluster is said to be at {host}, outside of the file"));
    }
    Ok(host)
}

/// The descriptor of a compressed cluster: an offset in bytes, and how many more sectors than its own the data touches.
fn compressed(header: &Header, entry: u64, file_len: u64) -> Result<Unit, String> {
    let offset_bits = 62 - (header.cluster_bits - 8);
    let at = entry & ((1 << offset_bits) - 1);
    let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
    if at < SECTOR || at >= file_len {
        return Err(format!("a compressed cluster is said to be at {at}, outside of the file"));
    }
    Ok(Unit::Compressed { at, len: (sectors + 1) * SECTOR - at % SECTOR })
}
