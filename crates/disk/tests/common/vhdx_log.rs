//! Logs of VHDX files, as a writer leaves them that did not come to an end.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use super::MIB;

pub(crate) const SECTOR: u64 = 4096;

/// One change that an entry holds.
pub(crate) enum Change {
    Data(u64, Vec<u8>),
    Zeros(u64, u64),
}

impl Change {
    /// Makes the change in a file.
    pub(crate) fn make(&self, file: &File) {
        match self {
            Self::Data(at, bytes) => file.write_all_at(bytes, *at).expect("write"),
            Self::Zeros(at, len) => file.write_all_at(&vec![0; *len as usize], *at).expect("write"),
        }
    }
}

/// Writes entries into the log of a closed VHDX.
pub(crate) struct Log {
    pub(crate) file: File,
    pub(crate) at: u64,
    pub(crate) len: u64,
    pub(crate) id: [u8; 16],
    /// Where the current header is.
    header_at: u64,
}

impl Log {
    /// Opens the log: the current header names an id from now on.
    pub(crate) fn open(path: &str) -> Self {
        let file = File::options().read(true).write(true).open(path).expect("open");
        let sequence = |at: u64| u64::from_le_bytes(read(&file, at + 8));
        let header_at = if sequence(64 << 10) > sequence(128 << 10) { 64 << 10 } else { 128 << 10 };
        let len = u64::from(u32::from_le_bytes(read(&file, header_at + 68)));
        let at = u64::from_le_bytes(read(&file, header_at + 72));
        let mut log = Self { file, at, len, id: *b"an open log's id", header_at };
        // What a log held before is no longer of interest.
        log.file.write_all_at(&vec![0; len as usize], at).expect("write");
        log.set(48, &log.id.clone());
        log
    }

    /// Changes the current header.
    pub(crate) fn set(&mut self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, self.header_at + at).expect("write");
        let mut header: [u8; 4096] = read(&self.file, self.header_at);
        header[4..8].fill(0);
        self.file.write_all_at(&crc32c(&header).to_le_bytes(), self.header_at + 4).expect("write");
    }

    /// Writes an entry at `at` of the ring, and says where the next belongs.
    pub(crate) fn write(&self, at: u64, tail: u64, sequence: u64, changes: &[Change]) -> u64 {
        let entry = self.entry(tail, sequence, changes);
        self.put(at, &entry)
    }

    /// Writes bytes at `at` of the ring.
    pub(crate) fn put(&self, at: u64, entry: &[u8]) -> u64 {
        for (number, sector) in entry.chunks(SECTOR as usize).enumerate() {
            let at = (at + number as u64 * SECTOR) % self.len;
            self.file.write_all_at(sector, self.at + at).expect("write");
        }
        (at + entry.len() as u64) % self.len
    }

    pub(crate) fn entry(&self, tail: u64, sequence: u64, changes: &[Change]) -> Vec<u8> {
        let file_len = self.file.metadata().expect("metadata").len() / MIB * MIB;
        let mut entry = b"loge\0\0\0\0\0\0\0\0".to_vec();
        entry.extend((tail as u32).to_le_bytes());
        entry.extend(sequence.to_le_bytes());
        entry.extend((changes.len() as u64).to_le_bytes());
        entry.extend(self.id);
        entry.extend(file_len.to_le_bytes());
        entry.extend(file_len.to_le_bytes());
        for change in changes {
            match change {
                Change::Data(at, bytes) => {
                    entry.extend(b"desc");
                    entry.extend(&bytes[4092..]);
                    entry.extend(&bytes[..8]);
                    entry.extend(at.to_le_bytes());
                }
                Change::Zeros(at, len) => {
                    entry.extend(b"zero\0\0\0\0");
                    entry.extend(len.to_le_bytes());
                    entry.extend(at.to_le_bytes());
                }
            }
            entry.extend(sequence.to_le_bytes());
        }
        entry.resize(entry.len().next_multiple_of(SECTOR as usize), 0);
        for change in changes {
            if let Change::Data(_, bytes) = change {
                entry.extend(b"data");
                entry.extend(((sequence >> 32) as u32).to_le_bytes());
                entry.extend(&bytes[8..4092]);
                entry.extend((sequence as u32).to_le_bytes());
            }
        }
        let len = entry.len() as u32;
        entry[8..12].copy_from_slice(&len.to_le_bytes());
        seal(&mut entry);
        entry
    }

    /// Moves sectors into one entry, so that the file is right only with its log.
    pub(crate) fn postpone(&self, at: u64, sequence: u64, sectors: &[u64]) -> u64 {
        self.postpone_more(at, at, sequence, sectors)
    }

    /// The same behind the entries from `tail` on.
    pub(crate) fn postpone_more(&self, at: u64, tail: u64, sequence: u64, sectors: &[u64]) -> u64 {
        let changes: Vec<Change> = sectors
            .iter()
            .map(|&place| {
                let bytes: [u8; SECTOR as usize] = read(&self.file, place);
                self.file.write_all_at(&[0xee; SECTOR as usize], place).expect("write");
                Change::Data(place, bytes.to_vec())
            })
            .collect();
        self.write(at, tail, sequence, &changes)
    }
}

/// Puts the right checksum into an entry.
pub(crate) fn seal(entry: &mut [u8]) {
    entry[4..8].fill(0);
    let sum = crc32c(entry).to_le_bytes();
    entry[4..8].copy_from_slice(&sum);
}

fn read<const N: usize>(file: &File, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).expect("read");
    bytes
}

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

/// Has QEMU write to a VHDX whose block allocation table cannot be written: the log has the entry, the table has not, as
/// when the machine loses power between the two.
pub(crate) fn interrupted_write(path: &str, bat_sectors: &[u64], commands: &[&str]) {
    let mut options =
        format!("driver=vhdx,file.driver=blkdebug,file.image.driver=file,file.image.filename={path}");
    for (number, sector) in bat_sectors.iter().enumerate() {
        for (key, value) in [("event", "none"), ("iotype", "write"), ("once", "off"), ("errno", "5")] {
            options += &format!(",file.inject-error.{number}.{key}={value}");
        }
        options += &format!(",file.inject-error.{number}.sector={sector}");
    }
    let mut qemu = Command::new("qemu-io");
    qemu.args(["--image-opts", &options]).args(commands.iter().flat_map(|command| ["-c", command]));
    let output = qemu.output().expect("qemu-io runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("Input/output error"), "{text}");
}
