//! The VHDs that Azure takes for disks: fixed ones, raw bytes and a footer of 512 bytes (RULES.md of the doctor, 2.1 and 2.2).
//! Uploads and imports are checked with the reasons that Azure does not give. Other formats, which take a parser in a child
//! process to read (`disk::sandbox`), are refused here as Azure refuses them.

use std::sync::Arc;

use disk::{BlockSource, Extent, Extents};
use model::managed_disk::{FOOTER_BYTES, UPLOAD_BYTES_MAX, UPLOAD_BYTES_MIN};

const FOOTER: usize = FOOTER_BYTES as usize;
const COOKIE: &[u8; 8] = b"conectix";
const MIB: u64 = 1 << 20;
/// Disk types.
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;

/// Why a file is no VHD that Azure takes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VhdError {
    #[error(
        "The specified cookie value in VHD footer indicates that disk '{name}' is not a supported VHD. Disk is expected to have \
         cookie value 'conectix'.{found}"
    )]
    Cookie { name: String, found: &'static str },
    #[error(
        "The VHD footer of '{name}' has {field} {found:#x}, and a fixed VHD has {expected:#x}. Convert the disk with \
             'qemu-img convert -O vpc -o subformat=fixed,force_size'."
    )]
    Field { name: String, field: &'static str, found: u64, expected: u64 },
    #[error(
        "'{name}' is a {kind} VHD, and only fixed ones are taken. Convert it with 'qemu-img convert -f vpc -O vpc -o \
             subformat=fixed,force_size'."
    )]
    Kind { name: String, kind: &'static str },
    #[error(
        "The VHD footer of '{name}' says that the disk has {said} bytes, and the file has {disk} before the footer. Upload \
             the whole file, and give its length as the upload size."
    )]
    Size { name: String, said: u64, disk: u64 },
    #[error(
        "The VHD '{name}' has an unsupported virtual size of {disk} bytes. The size must be a whole number (in MBs): pad the \
             raw disk to a multiple of 1 MiB before converting it with force_size."
    )]
    Alignment { name: String, disk: u64 },
    #[error(
        "The VHD '{name}' has {bytes} bytes with its footer, and must have {UPLOAD_BYTES_MIN} to {UPLOAD_BYTES_MAX}."
    )]
    Length { name: String, bytes: u64 },
    #[error(
        "The checksum of the VHD footer of '{name}' is {found:#010x}, and its bytes come to {expected:#010x}: the footer is \
             damaged. Write the VHD again."
    )]
    Checksum { name: String, found: u32, expected: u32 },
    #[error(transparent)]
    Disk(#[from] disk::Error),
}

impl VhdError {
    /// Whether the file is at fault, and not this host.
    pub(crate) fn is_the_files(&self) -> bool {
        !matches!(self, VhdError::Disk(_))
    }
}

/// One's complement of the sum of all bytes but the checksum's own.
fn checksum(footer: &[u8; FOOTER]) -> u32 {
    let bytes = footer[..64].iter().chain(&footer[68..]);
    !bytes.fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}

/// The disk in a fixed VHD, read without its footer. `name` is what messages call it. Blocking.
pub(crate) fn open_fixed(source: Arc<dyn BlockSource>, name: &str) -> Result<Arc<dyn BlockSource>, VhdError> {
    let bytes = source.logical_size();
    let (mut start, mut footer) = ([0; 8], [0; FOOTER]);
    if bytes < UPLOAD_BYTES_MIN.min(MIB) {
        return Err(VhdError::Length { name: name.to_owned(), bytes });
    }
    source.read_onto(0, &mut start)?;
    source.read_onto(bytes - FOOTER_BYTES, &mut footer)?;
    check_fixed(name, bytes, &start, &footer)?;
    Ok(Arc::new(Window { source, size: bytes - FOOTER_BYTES }))
}

/// Checks a footer at the end of a file of `bytes` that begins with `start`.
fn check_fixed(name: &str, bytes: u64, start: &[u8; 8], footer: &[u8; FOOTER]) -> Result<(), VhdError> {
    let name = || name.to_owned();
    let u32_at = |at: usize| footer[at..at + 4].iter().fold(0u32, |n, byte| n << 8 | u32::from(*byte));
    let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
    if &footer[..8] != COOKIE {
        return Err(VhdError::Cookie { name: name(), found: what_it_is(start) });
    }
    match u32_at(60) {
        FIXED => {}
        DYNAMIC => return Err(VhdError::Kind { name: name(), kind: "dynamic" }),
        DIFFERENCING => return Err(VhdError::Kind { name: name(), kind: "differencing" }),
        other => {
            let (found, expected) = (other.into(), FIXED.into());
            return Err(VhdError::Field { name: name(), field: "disk type", found, expected });
        }
    }
    for (field, found, expected) in [
        ("format version", u64::from(u32_at(12)), 0x0001_0000),
        ("data offset", u64_at(16), u64::MAX),
        ("saved state", u64::from(footer[84]), 0),
    ] {
        if found != expected {
            return Err(VhdError::Field { name: name(), field, found, expected });
        }
    }
    let (found, expected) = (u32_at(64), checksum(footer));
    if found != expected {
        return Err(VhdError::Checksum { name: name(), found, expected });
    }
    let (said, disk) = (u64_at(48), bytes - FOOTER_BYTES);
    if said != disk {
        return Err(VhdError::Size { name: name(), said, disk });
    }
    if !disk.is_multiple_of(MIB) {
        return Err(VhdError::Alignment { name: name(), disk });
    }
    if !(UPLOAD_BYTES_MIN..=UPLOAD_BYTES_MAX).contains(&bytes) {
        return Err(VhdError::Length { name: name(), bytes });
    }
    Ok(())
}

/// What a file without a footer seems to be, by its first bytes: for the message alone.
fn what_it_is(start: &[u8; 8]) -> &'static str {
    match start {
        b"vhdxfile" => " The file is a VHDX: convert it to a fixed VHD.",
        b"conectix" | b"cxsparse" => " The file begins as a dynamic VHD and was cut off.",
        [b'Q', b'F', b'I', 0xfb, ..] => " The file is a qcow2 image: convert it to a fixed VHD.",
        [b'K', b'D', b'M', b'V', ..] => " The file is a VMDK: convert it to a fixed VHD.",
        [0x1f, 0x8b, ..] => " The file is compressed by gzip: unpack it.",
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => " The file is compressed by xz: unpack it.",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => " The file is compressed by zstd: unpack it.",
        _ => " The upload may be incomplete, or the file is a raw disk.",
    }
}

/// The first `size` bytes of a file.
struct Window {
    source: Arc<dyn BlockSource>,
    size: u64,
}

impl BlockSource for Window {
    fn logical_size(&self) -> u64 {
        self.size
    }

    fn extents(&self) -> Extents<'_> {
        let size = self.size;
        let cut = move |extent: Extent| Extent { len: extent.end().min(size) - extent.start, ..extent };
        let inside =
            move |extent: &disk::Result<Extent>| extent.as_ref().map_or(true, |extent| extent.start < size);
        Box::new(self.source.extents().take_while(inside).map(move |extent| extent.map(cut)))
    }

    fn read_onto(&self, offset: u64, buf: &mut [u8]) -> disk::Result<usize> {
        let len = buf.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(disk::Error::OutOfRange { offset, len, size: self.size });
        }
        self.source.read_onto(offset, buf)
    }
}

/// A disk that holds nothing: zeros, or, on top of another, that one grown.
pub(crate) struct Nothing {
    /// Size in bytes.
    pub(crate) size: u64,
}

impl BlockSource for Nothing {
    fn logical_size(&self) -> u64 {
        self.size
    }

    fn extents(&self) -> Extents<'_> {
        Box::new(std::iter::empty())
    }

    fn read_onto(&self, _: u64, _: &mut [u8]) -> disk::Result<usize> {
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use disk::RawFile;
    use disk::vhd::fixed_footer;

    use super::*;

    const DISK: u64 = 20 * MIB;

    fn write(change: impl FnOnce(&mut Vec<u8>)) -> Result<(), VhdError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.vhd");
        let mut bytes = vec![0; DISK as usize];
        bytes[70_000..70_100].fill(3);
        bytes.extend(fixed_footer(DISK, [1; 16]));
        change(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        let disk = open_fixed(Arc::new(RawFile::open(&path)?), "d")?;
        assert_eq!(disk.logical_size(), DISK);
        let mut part = [0; 100];
        assert_eq!(disk.read_onto(70_000, &mut part).unwrap(), 100);
        assert_eq!(part, [3; 100]);
        assert!(disk.extents().all(|extent| extent.unwrap().end() <= DISK));
        assert!(disk.read_onto(DISK - 1, &mut [0; 2]).is_err(), "the footer is no part of the disk");
        Ok(())
    }

    /// Changes footer bytes and makes the checksum right again.
    fn patch(at: usize, bytes: &'static [u8]) -> impl FnOnce(&mut Vec<u8>) {
        move |file| {
            let start = file.len() - FOOTER;
            file[start + at..start + at + bytes.len()].copy_from_slice(bytes);
            let mut footer = [0; FOOTER];
            footer.copy_from_slice(&file[start..]);
            file[start + 64..start + 68].copy_from_slice(&checksum(&footer).to_be_bytes());
        }
    }

    #[test]
    fn every_fault_has_its_reason() {
        write(|_| {}).unwrap();
        let check = |result: Result<(), VhdError>, part: &str| {
            let error = result.unwrap_err();
            assert!(error.is_the_files() && error.to_string().contains(part), "{part}: {error}");
        };
        check(
            write(|file| file.truncate(DISK as usize)),
            "cookie value 'conectix'. The upload may be incomplete",
        );
        check(
            write(|file| {
                file[..8].copy_from_slice(b"vhdxfile");
                file.truncate(DISK as usize)
            }),
            "is a VHDX",
        );
        check(
            write(|file| {
                file[..4].copy_from_slice(b"QFI\xfb");
                file.truncate(DISK as usize)
            }),
            "a qcow2 image",
        );
        check(write(patch(60, &[0, 0, 0, 3])), "a dynamic VHD");
        check(write(patch(60, &[0, 0, 0, 4])), "a differencing VHD");
        check(write(patch(60, &[0, 0, 0, 9])), "disk type 0x9");
        check(write(patch(12, &[0, 2, 0, 0])), "format version 0x20000");
        check(write(patch(16, &[0, 0, 0, 0, 0, 0, 2, 0])), "data offset 0x200");
        check(write(patch(84, &[1])), "saved state 0x1");
        check(write(patch(48, &[0, 0, 0, 0, 1, 0, 0, 0])), "16777216 bytes, and the file has 20971520");
        check(
            write(|file| {
                let last = file.len() - 1;
                file[last] = 1
            }),
            "checksum of the VHD footer",
        );
        let sized = |bytes: u64| {
            move |file: &mut Vec<u8>| {
                file.resize(bytes as usize, 0);
                file.extend(fixed_footer(bytes, [0; 16]));
            }
        };
        check(write(sized(DISK + 512)), "unsupported virtual size of 20972032 bytes");
        check(write(sized(19 * MIB)), "must have 20972032 to");
        check(write(|file| file.truncate(100)), "has 100 bytes");
    }
}
