//! What the targets share: bytes of the fuzzer as disk files in memory, opened and read as the sandboxed reader would.
//!
//! A disk file is mostly zeros, in some formats megabytes of them, which a fuzzer would waste its time on. So its input is
//! a length in sectors, and then records of a sector's number and its 512 bytes. `cargo xtask fuzz` writes seeds so.

use std::fs::File;
use std::os::unix::fs::FileExt;

use disk::{BlockSource, ExtentKind, Format, Input, Packing};
use rustix::fs::{MemfdFlags, memfd_create};

const SECTOR: usize = 512;
/// The longest file, so that one input costs little.
const MAX_SECTORS: u32 = 64 << 11;
/// Extents that are looked at.
const MAX_EXTENTS: usize = 500;
/// Bytes that are read of each, and of all together.
const READ_EACH: u64 = 70_000;
const READ_ALL: u64 = 1 << 20;

/// Reads a disk of a format.
pub fn sectors(format: Format, data: &[u8]) {
    let Some((len, records)) = data.split_first_chunk::<4>() else { return };
    let len = u32::from_le_bytes(*len) % (MAX_SECTORS + 1);
    let file = memory();
    file.set_len(u64::from(len) * SECTOR as u64).expect("memory");
    for record in records.chunks_exact(4 + SECTOR) {
        let (number, bytes) = record.split_first_chunk::<4>().expect("a number");
        let number = u32::from_le_bytes(*number);
        if number < len {
            file.write_all_at(bytes, u64::from(number) * SECTOR as u64).expect("memory");
        }
    }
    read(disk::image::open(format, vec![input(file)]));
}

/// Reads a VMDK's descriptor. Its extents are another file, as often as the descriptor wants it.
pub fn descriptor(data: &[u8]) {
    let whole = |extents: usize| {
        let mut inputs = vec![input(holding(data))];
        inputs.extend((0..extents).map(|_| input(holding(&[7; 4096]))));
        disk::image::open(Format::Vmdk, inputs)
    };
    for extents in 0..3 {
        read(whole(extents));
    }
}

/// Unpacks a raw disk.
pub fn packed(data: &[u8]) {
    let Some((packing, data)) = data.split_first() else { return };
    let packing = [Packing::Gzip, Packing::Xz, Packing::Zstd][usize::from(*packing) % 3];
    let packed = input(holding(data));
    // Long runs of zeros are no defect, but cost time.
    let mut report = |bytes| match bytes {
        0..=0x0400_0000 => Ok(()),
        _ => Err(disk::Error::Chain { reason: "enough".to_owned() }),
    };
    read(disk::image::open_packed(Format::Raw, packing, &packed, memory(), &mut report));
}

fn read(opened: disk::Result<Box<dyn BlockSource>>) {
    let Ok(source) = opened else { return };
    let size = source.logical_size();
    assert!(size <= disk::MAX_DISK_BYTES);
    let (mut end, mut left) = (0, READ_ALL);
    let mut buf = vec![0; READ_EACH as usize];
    for extent in source.extents().take(MAX_EXTENTS) {
        let Ok(extent) = extent else { return };
        assert!(extent.start >= end && extent.len > 0 && extent.end() <= size);
        end = extent.end();
        let len = extent.len.min(READ_EACH).min(left);
        left -= len;
        if extent.kind == ExtentKind::Data && len > 0 {
            let part = &mut buf[..len as usize];
            // Both ends. An error is an answer.
            let _: disk::Result<usize> = source.read_onto(extent.start, part);
            let _: disk::Result<usize> = source.read_onto(extent.end() - len, part);
        }
    }
    assert!(source.read_onto(size, &mut [0]).is_err());
}

fn memory() -> File {
    File::from(memfd_create("disk-fuzz", MemfdFlags::CLOEXEC).expect("memory"))
}

fn holding(bytes: &[u8]) -> File {
    let file = memory();
    file.write_all_at(bytes, 0).expect("memory");
    file
}

fn input(file: File) -> Input {
    Input::from_file("input".into(), file).expect("a regular file")
}
