//! Provisioning media: the CD that an Azure guest finds `ovf-env.xml` on.
//!
//! A hand-made ISO 9660 image with one file, no Joliet, Rock Ridge or UDF: a few sectors that cloud-init and waagent
//! both read (PROTOCOL.md 3). The identifier is `OVF-ENV.XML;1`, with a hyphen that strict ISO 9660 does not allow:
//! the conforming name `OVF_ENV.XML` is not found by any agent.
//!
//! ```text
//! sector 0–15  system area, zero       18  path table, little-endian     20  root directory
//!        16    primary descriptor      19  path table, big-endian        21… the file
//!        17    terminator
//! ```

use crate::identity::VmIdentity;
use crate::ovf;

/// Bytes in a sector.
pub const SECTOR: usize = 2048;

const FILE_NAME: &[u8] = b"OVF-ENV.XML;1";
const VOLUME: &[u8] = b"CDROM";
const PRIMARY_DESCRIPTOR: usize = 16;
const TERMINATOR: usize = 17;
const PATH_TABLE_LE: u32 = 18;
const PATH_TABLE_BE: u32 = 19;
const ROOT_DIRECTORY: u32 = 20;
const FILE: u32 = 21;
/// 2026-11-22 00:00 UTC for every image: the bytes depend on nothing but the identity.
const TIMESTAMP: [u8; 7] = [126, 11, 22, 0, 0, 0, 0];
const PATH_TABLE_LEN: u32 = 10;
const FLAG_DIRECTORY: u8 = 2;
const FLAG_FILE: u8 = 0;

/// The ISO 9660 image for `vm`, to be attached as a CD-ROM. Holds the VM's secrets.
///
/// The same identity gives the same bytes. The length is a multiple of [`SECTOR`].
pub fn provisioning_media(vm: &VmIdentity) -> Vec<u8> {
    iso9660(ovf::environment(vm).as_bytes())
}

fn iso9660(file: &[u8]) -> Vec<u8> {
    let file_sectors = file.len().div_ceil(SECTOR);
    let sectors = FILE as usize + file_sectors;
    let mut image = vec![0; sectors * SECTOR];
    let mut put = |sector: usize, bytes: &[u8]| {
        image[sector * SECTOR..sector * SECTOR + bytes.len()].copy_from_slice(bytes);
    };
    put(PRIMARY_DESCRIPTOR, &primary_descriptor(sectors as u32));
    put(TERMINATOR, b"\xffCD001\x01");
    put(PATH_TABLE_LE as usize, &path_table(ROOT_DIRECTORY.to_le_bytes(), 1u16.to_le_bytes()));
    put(PATH_TABLE_BE as usize, &path_table(ROOT_DIRECTORY.to_be_bytes(), 1u16.to_be_bytes()));
    let mut directory = record(b"\0", ROOT_DIRECTORY, SECTOR as u32, FLAG_DIRECTORY);
    directory.extend(record(b"\x01", ROOT_DIRECTORY, SECTOR as u32, FLAG_DIRECTORY));
    directory.extend(record(FILE_NAME, FILE, file.len() as u32, FLAG_FILE));
    put(ROOT_DIRECTORY as usize, &directory);
    put(FILE as usize, file);
    image
}

fn primary_descriptor(sectors: u32) -> [u8; SECTOR] {
    let mut pvd = [0; SECTOR];
    let mut put = |at: usize, bytes: &[u8]| pvd[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x01CD001\x01");
    put(8, &[b' '; 64]); // system and volume identifier
    put(40, VOLUME);
    put(80, &both32(sectors));
    put(120, &both16(1)); // volumes in the set
    put(124, &both16(1)); // this volume's number
    put(128, &both16(SECTOR as u16));
    put(132, &both32(PATH_TABLE_LEN));
    put(140, &PATH_TABLE_LE.to_le_bytes());
    put(148, &PATH_TABLE_BE.to_be_bytes());
    put(156, &record(b"\0", ROOT_DIRECTORY, SECTOR as u32, FLAG_DIRECTORY));
    put(190, &[b' '; 623]); // publisher, preparer, application, … : blank
    for at in [813, 830, 847, 864] {
        put(at, b"0000000000000000\0"); // dates: not specified
    }
    put(881, &[1]); // file structure version
    pvd
}

fn path_table(location: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    [&[1, 0][..], &location, &parent, &[0, 0]].concat()
}

/// A directory record; records have even length.
fn record(name: &[u8], location: u32, len: u32, flags: u8) -> Vec<u8> {
    let pad = usize::from(name.len().is_multiple_of(2));
    let size = 33 + name.len() + pad;
    let mut out = vec![size as u8, 0];
    out.extend(both32(location));
    out.extend(both32(len));
    out.extend(TIMESTAMP);
    out.extend([flags, 0, 0]);
    out.extend(both16(1));
    out.push(name.len() as u8);
    out.extend(name);
    out.resize(size, 0);
    out
}

/// ISO 9660 writes numbers in both byte orders, one after the other.
fn both32(n: u32) -> Vec<u8> {
    [n.to_le_bytes(), n.to_be_bytes()].concat()
}

fn both16(n: u16) -> Vec<u8> {
    [n.to_le_bytes(), n.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::testing::identity;

    fn le32(bytes: &[u8]) -> usize {
        u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize
    }

    /// Name and content of every file in the root directory, read the way a driver does.
    fn read_back(image: &[u8]) -> Vec<(String, Vec<u8>)> {
        let pvd = &image[16 * SECTOR..17 * SECTOR];
        assert_eq!(&pvd[..7], b"\x01CD001\x01");
        assert_eq!(le32(&pvd[80..]) * SECTOR, image.len());
        assert_eq!(&image[17 * SECTOR..17 * SECTOR + 7], b"\xffCD001\x01");
        let root = &pvd[156..190];
        let at = le32(&root[2..]) * SECTOR;
        let directory = &image[at..at + le32(&root[10..])];
        let mut files = vec![];
        let mut at = 0;
        while directory[at] != 0 {
            let record = &directory[at..at + directory[at] as usize];
            let name = &record[33..33 + record[32] as usize];
            if record[25] & 2 == 0 {
                let start = le32(&record[2..]) * SECTOR;
                let content = image[start..start + le32(&record[10..])].to_vec();
                files.push((String::from_utf8(name.to_vec()).unwrap(), content));
            }
            at += record.len();
        }
        files
    }

    #[test]
    fn a_driver_finds_the_file() {
        let mut vm = identity();
        // Larger than a sector.
        vm.custom_data = Some(vec![b'x'; 60_000]);
        let image = provisioning_media(&vm);
        assert_eq!(read_back(&image), [("OVF-ENV.XML;1".to_owned(), ovf::environment(&vm).into_bytes())]);
        assert_eq!(image, provisioning_media(&vm));
    }

    #[test]
    fn a_file_that_fills_its_sector() {
        let file = vec![7; SECTOR];
        let image = iso9660(&file);
        assert_eq!(image.len(), 22 * SECTOR);
        assert_eq!(read_back(&image)[0].1, file);
    }

    /// genisoimage's own reader, where the distribution has it.
    #[test]
    fn isoinfo_agrees() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("media.iso");
        std::fs::write(&path, provisioning_media(&identity())).unwrap();
        let isoinfo = |args: &[&str]| Command::new("isoinfo").arg("-i").arg(&path).args(args).output();
        match isoinfo(&["-f"]) {
            Ok(out) => assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "/OVF-ENV.XML;1"),
            // The structure is asserted above; this is a second opinion where there is one to ask.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
            Err(e) => panic!("isoinfo: {e}"),
        }
        let out = isoinfo(&["-x", "/OVF-ENV.XML;1"]).unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap(), ovf::environment(&identity()));
    }
}
