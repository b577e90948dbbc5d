//! The product's own binary as the sandboxed reader: its size and its libraries fit the reader's limits too.

use std::path::Path;
use std::process::Command;

use disk::{Format, Packing};

#[test]
fn tintype_reads_disks_in_a_sandbox() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (raw, qcow2) = (folder.path().join("raw"), folder.path().join("qcow2"));
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
    std::fs::write(&raw, &bytes).expect("write");
    let converted = Command::new("qemu-img")
        .args(["convert", "-c", "-f", "raw", "-O", "qcow2"])
        .args([&raw, &qcow2])
        .status()
        .expect("qemu-img is installed");
    assert!(converted.success());
    let program = Path::new(env!("CARGO_BIN_EXE_tintype"));
    let source = disk::sandbox::open(program, &qcow2, Format::Qcow2, Packing::None).expect("opens");
    let mut read = vec![0; bytes.len()];
    assert_eq!(source.read_onto(0, &mut read).expect("reads"), bytes.len());
    assert!(read == bytes);
    // What it says of a damaged disk comes from the reader, not from its death.
    let error = disk::sandbox::open(program, &raw, Format::Vhdx, Packing::None).err().expect("refused");
    assert!(matches!(error, disk::Error::Damaged { .. }), "{error}");
}
