//! VHDX files whose writer did not come to an end: their logs are replayed in memory. QEMU replays copies, and is right.

mod common;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use common::vhdx_log::{Change, Log, SECTOR, interrupted_write, seal};
use common::{Content, MIB, Random, assert_same, bytes, convert, folder, join, make_raw, program, run};
use disk::{BlockSource, Error, Format, Packing};

const SMALL: &[&str] = &["-o", "block_size=1M,log_size=1M"];

fn open(path: &str) -> disk::Result<Arc<dyn BlockSource>> {
    disk::sandbox::open(program(), Path::new(path), Format::Vhdx, Packing::None)
}

/// What QEMU reads after it replayed the log of a copy.
fn replayed_by_qemu(path: &str) -> Vec<u8> {
    let (copy, raw) = (format!("{path}.copy"), format!("{path}.raw"));
    std::fs::copy(path, &copy).expect("copy");
    run("qemu-img", &["check", "-q", "-f", "vhdx", "-r", "all", &copy]);
    convert(("vhdx", &copy), ("raw", &raw), &[]);
    std::fs::read(&raw).expect("raw")
}

fn assert_as_qemu(path: &str, what: &str) -> Vec<u8> {
    let before = std::fs::read(path).expect("read");
    let source = open(path).unwrap_or_else(|error| panic!("{what}: {error}"));
    let ours = bytes(&*source).expect("bytes");
    assert!(before == std::fs::read(path).expect("read"), "{what}: the file was changed");
    assert_same(&ours, &replayed_by_qemu(path), what);
    ours
}

/// Where the file has its block allocation table and its blocks, as qemu-img lays it out with a log of 1 MiB.
const BAT: u64 = 2 * MIB;
const FIRST_BLOCK: u64 = 8 * MIB;

#[test]
fn a_write_of_qemu_that_was_interrupted() {
    let folder = folder();
    for (number, (size, at)) in [("9M", 0), ("4G", 700 * MIB), ("4G", 4095 * MIB)].into_iter().enumerate() {
        let path = join(&folder, &format!("disk-{number}"));
        run("qemu-img", &[&["create", "-q", "-f", "vhdx"], SMALL, &[&path, size]].concat());
        // What was there before stays.
        run("qemu-io", &["-f", "vhdx", "-c", "write -P 0x77 2M 4k", &path]);
        let sector = (BAT + at / MIB * 8) / SECTOR * SECTOR / 512;
        interrupted_write(&path, &[sector], &[&format!("write -P 0x11 {at} 64k")]);
        let convert = ["convert", "-f", "vhdx", "-O", "raw", &path, "/dev/null"];
        let refused = std::process::Command::new("qemu-img").args(convert).output().expect("qemu-img runs");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("log that needs to be replayed"));

        let source = open(&path).expect("opens");
        let mut buf = vec![0; 65_536];
        source.read_onto(at, &mut buf).expect("read");
        assert!(buf.iter().all(|byte| *byte == 0x11), "the write that was logged");
        source.read_onto(2 * MIB, &mut buf[..4096]).expect("read");
        assert!(buf[..4096].iter().all(|byte| *byte == 0x77), "the one before");
        if size == "9M" {
            assert_as_qemu(&path, "interrupted");
        }
    }
}

/// Entries of all kinds at all places of the ring, with old ones before them and one behind that was not finished. What they
/// mean is a copy with the changes in their places. QEMU 7.2 itself replays those of which the log is that simple that it
/// does so right: from the ring's beginning, no other entries, no more than 126 descriptors.
#[test]
fn logs_of_many_entries() {
    let folder = folder();
    let (raw, path, plain) = (join(&folder, "raw"), join(&folder, "disk"), join(&folder, "plain"));
    make_raw(&raw, 24 * MIB, Content::Full, 5);
    let untouched = std::fs::read(&raw).expect("raw");
    for seed in 0..16 {
        let simple = seed < 4;
        let mut random = Random(seed);
        convert(("raw", &raw), ("vhdx", &path), SMALL);
        std::fs::copy(&path, &plain).expect("copy");
        let log = Log::open(&path);
        let replayed = File::options().write(true).open(&plain).expect("open");
        let file_len = log.file.metadata().expect("metadata").len();
        let sectors = (file_len - FIRST_BLOCK) / SECTOR;
        let mut change = || {
            let first = random.below(sectors);
            let place = FIRST_BLOCK + first * SECTOR;
            match random.below(3) {
                0 => Change::Zeros(place, (1 + random.below((sectors - first).min(700))) * SECTOR),
                _ => Change::Data(place, random.mixed(SECTOR as usize)),
            }
        };
        // Further in the ring for each seed, until it wraps.
        let begin = if simple { 0 } else { seed * 90 * SECTOR % log.len };
        let mut at = begin;
        let first_sequence = if seed % 2 == 0 { 1 } else { u64::from(u32::MAX) - 2 };
        // Old entries are nobody's business: their numbers end before.
        for old in 0..if simple { 0 } else { seed % 4 } {
            at = log.write(at, begin, first_sequence + old, &[change(), change()]);
        }
        let (mut tail, mut sequence) = (at, first_sequence + 100);
        for number in 0..6 + seed {
            let count = if number == 4 && !simple { 130 } else { 1 + number % 5 };
            let changes: Vec<Change> = (0..count).map(|_| change()).collect();
            // Those before are in their places already, say this one and those behind it.
            if number == 3 && !simple {
                tail = at;
            }
            at = log.write(at, tail, sequence, &changes);
            if number >= 3 || simple {
                changes.iter().for_each(|change| change.make(&replayed));
            }
            sequence += 1;
        }
        let mut torn = log.entry(tail, sequence, &[change()]);
        torn[90] ^= 1;
        if !simple {
            log.put(at, &torn);
        }

        let what = format!("seed {seed}");
        let before = std::fs::read(&path).expect("read");
        let ours = bytes(&*open(&path).unwrap_or_else(|error| panic!("{what}: {error}"))).expect("bytes");
        assert!(before == std::fs::read(&path).expect("read"), "{what}: the file was changed");
        let out = join(&folder, "out");
        convert(("vhdx", &plain), ("raw", &out), &[]);
        assert_same(&ours, &std::fs::read(&out).expect("out"), &what);
        assert!(ours != untouched, "{what} changes something");
        if simple {
            assert_as_qemu(&path, &what);
        }
    }
}

/// Everything that describes the disk may be in the log alone: region tables, metadata, allocation table, blocks.
#[test]
fn structures_are_read_through_the_log() {
    let folder = folder();
    let (raw, path) = (join(&folder, "raw"), join(&folder, "disk"));
    make_raw(&raw, 20 * MIB, Content::Sparse, 6);
    convert(("raw", &raw), ("vhdx", &path), SMALL);
    let log = Log::open(&path);
    let sectors: Vec<u64> =
        [192 << 10, 256 << 10, BAT, 3 * MIB, 3 * MIB + (64 << 10), FIRST_BLOCK, FIRST_BLOCK + SECTOR].into();
    log.postpone(0, 1, &sectors);
    let source = open(&path).expect("opens");
    assert_same(&bytes(&*source).expect("bytes"), &std::fs::read(&raw).expect("raw"), "postponed");
    // Without the log there is no disk.
    let mut log = log;
    log.set(48, &[0; 16]);
    assert!(matches!(open(&path), Err(Error::Damaged { .. })));
}

/// The block that was being added is behind the file's end, and the log says that the file goes so far. (QEMU 7.2 makes the
/// file longer only for lengths that are no number of MiB, which this is not, and calls it truncated then.)
#[test]
fn a_file_that_was_growing() {
    let folder = folder();
    let path = join(&folder, "disk");
    run("qemu-img", &[&["create", "-q", "-f", "vhdx"], SMALL, &[&path, "20M"]].concat());
    run("qemu-io", &["-f", "vhdx", "-c", "write -P 5 0 1M", &path]);
    let log = Log::open(&path);
    let len = log.file.metadata().expect("metadata").len();
    let mut bat = vec![0; SECTOR as usize];
    std::os::unix::fs::FileExt::read_exact_at(&log.file, &mut bat, BAT).expect("read");
    bat[8..16].copy_from_slice(&(len | 6).to_le_bytes());
    let mut entry = log.entry(0, 1, &[Change::Data(BAT, bat)]);
    entry[56..64].copy_from_slice(&(len + MIB).to_le_bytes());
    seal(&mut entry);
    log.put(0, &entry);
    let ours = bytes(&*open(&path).expect("opens")).expect("bytes");
    assert!(ours[..MIB as usize].iter().all(|byte| *byte == 5));
    assert!(ours[MIB as usize..].iter().all(|byte| *byte == 0));
}

#[test]
fn what_cannot_be_replayed_says_why() {
    let folder = folder();
    let path = join(&folder, "disk");
    let refused = |unsupported: bool, why: &str, prepare: &dyn Fn(&mut Log)| {
        run("qemu-img", &[&["create", "-q", "-f", "vhdx"], SMALL, &[&path, "20M"]].concat());
        run("qemu-io", &["-f", "vhdx", "-c", "write -P 5 0 1M", &path]);
        let mut log = Log::open(&path);
        prepare(&mut log);
        let error = open(&path).err().unwrap_or_else(|| panic!("opened, and should say: {why}"));
        assert!(error.to_string().contains(why), "{why}: {error}");
        assert_eq!(matches!(error, Error::Unsupported { .. }), unsupported, "{error}");
        assert!(unsupported || matches!(error, Error::Damaged { .. }), "{error}");
    };
    let zeros = || vec![Change::Zeros(FIRST_BLOCK, SECTOR)];
    let changed = |log: &Log, changes: &[Change], at: usize, bytes: &[u8]| {
        let mut entry = log.entry(0, 1, changes);
        entry[at..at + bytes.len()].copy_from_slice(bytes);
        seal(&mut entry);
        log.put(0, &entry);
    };
    refused(true, "its log has version 7", &|log| log.set(64, &[7, 0]));
    refused(true, "at most 67108864 are replayed", &|log| {
        log.file.set_len(100 * MIB).expect("size");
        log.set(68, &(65_u32 << 20).to_le_bytes());
    });
    refused(false, "no place in a file of", &|log| log.set(72, &(1_u64 << 60).to_le_bytes()));
    refused(false, "no place in a file of", &|log| log.set(72, &(MIB + 4096).to_le_bytes()));
    refused(false, "no place in a file of", &|log| log.set(68, &[0; 4]));
    // Nothing, another's, one with a wrong checksum, and one whose tail is not there.
    refused(false, "no valid entry", &|_| {});
    refused(false, "no valid entry", &|log| changed(log, &zeros(), 32, b"another log's id"));
    refused(false, "no valid entry", &|log| {
        let mut entry = log.entry(0, 1, &zeros());
        entry[100] ^= 1;
        log.put(0, &entry);
    });
    refused(false, "no valid entry", &|log| {
        log.write(0, 8192, 1, &zeros());
    });
    refused(false, "was it cut off", &|log| changed(log, &zeros(), 48, &(1_u64 << 40).to_le_bytes()));
    refused(false, "of it are in use", &|log| changed(log, &zeros(), 56, &(1_u64 << 50).to_le_bytes()));
    // Places.
    for (place, len) in
        [(1 << 40, SECTOR), (FIRST_BLOCK + 512, SECTOR), (FIRST_BLOCK, u64::MAX - 4095), (FIRST_BLOCK, 0)]
    {
        refused(false, "which are not sectors of a file", &|log| {
            log.write(0, 0, 1, &[Change::Zeros(place, len)]);
        });
    }
    for (place, len) in [(64 << 10, SECTOR), (MIB, SECTOR), (MIB - SECTOR, 2 * SECTOR), (192 << 10, 4 * MIB)]
    {
        refused(false, "the headers or the log itself", &|log| {
            log.write(0, 0, 1, &[Change::Zeros(place, len)]);
        });
    }
    // Entries that are sealed, and make no sense.
    let data = || vec![Change::Data(FIRST_BLOCK, vec![9; SECTOR as usize])];
    refused(false, "no known kind", &|log| changed(log, &zeros(), 64, b"hero"));
    refused(false, "a descriptor of entry 9", &|log| changed(log, &zeros(), 88, &[9]));
    refused(false, "no data sector of its own", &|log| changed(log, &data(), 4096, b"dada"));
    refused(false, "no data sector of its own", &|log| changed(log, &data(), 8188, &[9]));
    refused(false, "fewer data sectors", &|log| {
        let mut entry = log.entry(0, 1, &data());
        entry.truncate(4096);
        entry[8..12].copy_from_slice(&4096_u32.to_le_bytes());
        seal(&mut entry);
        log.put(0, &entry);
    });
    // One entry that pretends to be many: each sector is a header whose entry is nearly the whole log.
    refused(false, "overlap", &|log| {
        let mut header = log.entry(0, 1, &zeros());
        header[8..12].copy_from_slice(&(MIB as u32).to_le_bytes());
        for at in (0..log.len).step_by(SECTOR as usize) {
            log.put(at, &header);
        }
    });
    // More changes than a log has any use for.
    refused(true, "changes; replay it", &|log| {
        (log.at, log.len) = (log.file.metadata().expect("metadata").len(), 4 * MIB);
        log.file.set_len(log.at + log.len).expect("size");
        log.set(68, &(log.len as u32).to_le_bytes());
        log.set(72, &log.at.to_le_bytes());
        let many: Vec<Change> =
            (0..33_000).map(|n| Change::Zeros(FIRST_BLOCK + n % 200 * SECTOR, SECTOR)).collect();
        let at = log.write(0, 0, 1, &many);
        log.write(at, 0, 2, &many);
    });
}
