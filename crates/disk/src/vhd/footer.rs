//! The 512 bytes at a VHD's end, of which a dynamic one has a copy at its start. All fields are big endian.

use crate::Result;
use crate::input::Input;

/// Bytes of a footer.
pub(crate) const FOOTER_BYTES: usize = 512;
const COOKIE: &[u8; 8] = b"conectix";
const VERSION: u32 = 0x0001_0000;
/// "Reserved", which the specification wants set.
const FEATURES: u32 = 2;
/// Readers take the current size, not the geometry, from files of this creator (RULES.md 2.1): Hyper-V's own name.
const CREATOR: &[u8; 4] = b"win ";
const CREATOR_VERSION: u32 = 0x000a_0000;
const CREATOR_HOST: &[u8; 4] = b"Wi2k";
const CHECKSUM_AT: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskType {
    Fixed,
    Dynamic,
    Differencing,
}

/// What a footer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    /// The disk's size in bytes ("current size").
    pub(crate) size: u64,
    pub(crate) disk_type: DiskType,
    /// Where a dynamic disk's header is; all bits set for a fixed one.
    pub(crate) data_offset: u64,
    /// Seconds since 2000-01-01 UTC.
    pub(crate) time_stamp: u32,
    pub(crate) unique_id: [u8; 16],
}

impl Footer {
    /// The footer at the end, or the copy at the start where the end has none: a dynamic disk whose writer was stopped.
    pub(super) fn find(input: &Input) -> Result<Self> {
        if input.file_len() < FOOTER_BYTES as u64 {
            return Err(input.damaged(format!("{} bytes are too few for a VHD footer", input.file_len())));
        }
        let mut bytes = [0; FOOTER_BYTES];
        input.read_exact(input.file_len() - FOOTER_BYTES as u64, &mut bytes)?;
        let at_end = Self::decode(&bytes);
        let reason = match at_end {
            Ok(footer) => return Ok(footer),
            Err(reason) => reason,
        };
        input.read_exact(0, &mut bytes)?;
        match Self::decode(&bytes) {
            Ok(copy) if copy.disk_type != DiskType::Fixed => Ok(copy),
            _ => Err(input.damaged(format!(
                "its last 512 bytes are no VHD footer ({reason}), and there is no copy at its start: is it a VHD, and \
                 complete?"
            ))),
        }
    }

    fn decode(bytes: &[u8; FOOTER_BYTES]) -> Result<Self, String> {
        if &bytes[..8] != COOKIE {
            return Err("no `conectix` cookie".to_owned());
        }
        let stored = be32(bytes, CHECKSUM_AT);
        // A fuzzer does not find checksums.
        if stored != checksum(bytes, CHECKSUM_AT) && !cfg!(fuzzing) {
            return Err("its checksum is wrong".to_owned());
        }
        if be32(bytes, 12) != VERSION {
            return Err(format!("format version {:#x}; {VERSION:#x} is read", be32(bytes, 12)));
        }
        let disk_type = match be32(bytes, 60) {
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            other => return Err(format!("disk type {other}")),
        };
        let size = be64(bytes, 48);
        if !size.is_multiple_of(512) {
            return Err(format!("a size of {size} bytes, which is no number of sectors"));
        }
        let mut unique_id = [0; 16];
        unique_id.copy_from_slice(&bytes[68..84]);
        Ok(Self { size, disk_type, data_offset: be64(bytes, 16), time_stamp: be32(bytes, 24), unique_id })
    }

    pub(crate) fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut bytes = [0; FOOTER_BYTES];
        bytes[..8].copy_from_slice(COOKIE);
        bytes[8..12].copy_from_slice(&FEATURES.to_be_bytes());
        bytes[12..16].copy_from_slice(&VERSION.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.data_offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.time_stamp.to_be_bytes());
        bytes[28..32].copy_from_slice(CREATOR);
        bytes[32..36].copy_from_slice(&CREATOR_VERSION.to_be_bytes());
        bytes[36..40].copy_from_slice(CREATOR_HOST);
        bytes[40..48].copy_from_slice(&self.size.to_be_bytes());
        bytes[48..56].copy_from_slice(&self.size.to_be_bytes());
        bytes[56..60].copy_from_slice(&geometry(self.size / 512));
        let disk_type: u32 = match self.disk_type {
            DiskType::Fixed => 2,
            DiskType::Dynamic => 3,
            DiskType::Differencing => 4,
        };
        bytes[60..64].copy_from_slice(&disk_type.to_be_bytes());
        bytes[68..84].copy_from_slice(&self.unique_id);
        let sum = checksum(&bytes, CHECKSUM_AT);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

/// One's complement of the sum of all bytes but the checksum's own four.
pub(super) fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |part: &[u8]| part.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    !sum(&bytes[..at]).wrapping_add(sum(&bytes[at + 4..]))
}

/// Cylinders (2 bytes), heads and sectors of a track, by the specification's appendix. Nothing that we know of needs them
/// to be exact; they are at most the disk's size.
fn geometry(sectors: u64) -> [u8; 4] {
    let sectors = sectors.min(65_535 * 16 * 255);
    let (mut per_track, mut heads, mut tracks);
    if sectors >= 65_535 * 16 * 63 {
        (per_track, heads, tracks) = (255, 16, sectors / 255);
    } else {
        per_track = 17;
        tracks = sectors / per_track;
        heads = tracks.div_ceil(1024).max(4);
        if tracks >= heads * 1024 || heads > 16 {
            (per_track, heads) = (31, 16);
            tracks = sectors / per_track;
        }
        if tracks >= heads * 1024 {
            (per_track, heads) = (63, 16);
            tracks = sectors / per_track;
        }
    }
    let cylinders = (tracks / heads).min(65_535) as u16;
    [cylinders.to_be_bytes()[0], cylinders.to_be_bytes()[1], heads as u8, per_track as u8]
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_by_the_appendix() {
        // Sizes in MiB and what RULES.md 2.3 measured of qemu-img, which rounds up where the appendix rounds down.
        let of = |mib: u64| geometry(mib * 2048);
        assert_eq!(of(100), [(1003_u16 >> 8) as u8, (1003_u16 & 255) as u8, 12, 17]);
        assert_eq!(of(32_767 << 10), [255, 255, 16, 255]);
        assert_eq!(geometry(0)[..2], [0, 0]);
    }

    #[test]
    fn a_footer_reads_as_it_was_written() {
        let footer = Footer {
            size: 20 << 20,
            disk_type: DiskType::Dynamic,
            data_offset: 512,
            time_stamp: 7,
            unique_id: [9; 16],
        };
        let bytes = footer.encode();
        assert_eq!(Footer::decode(&bytes), Ok(footer));
        for at in [0, 13, 48, 60, 65, 70, 500] {
            let mut damaged = bytes;
            damaged[at] ^= 1;
            assert!(Footer::decode(&damaged).is_err(), "byte {at}");
        }
    }
}
