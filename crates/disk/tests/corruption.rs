//! Damaged disk files: 1,000 seeded corruptions of each format and of each packing. Each gives an error or bytes; never a
//! panic, a hang, or more than 256 MiB of memory. Where both we and qemu-img read a damaged file, the bytes are the same.
//!
//! Most run in this process, which limits its own memory as the reader limits its; some through the real reader.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use common::vhdx_log::{Log, crc32c};
use common::{MIB, Random, convert, folder, join, program};
use disk::{BlockSource, ExtentKind, Format, Input, Packing};
use rustix::process::{Resource, Rlimit, setrlimit};

/// Corruptions of each format, shared among its variants.
const CASES: u64 = 1000;
/// Each of so many is also given to the real reader and to qemu-img.
const FULL_EVERY: u64 = 25;
/// What the reader may use.
const MEMORY_BYTES: u64 = 256 << 20;
/// The longest that one corruption may take, in milliseconds.
const CASE_MILLIS: u64 = 5000;
/// Disks up to this size are read whole and compared.
const COMPARED_BYTES: u64 = 64 << 20;

/// When the case that runs now began, in milliseconds since the first.
static BEGAN: AtomicU64 = AtomicU64::new(0);
/// One format at a time, so that the memory is one's own.
static TURN: Mutex<()> = Mutex::new(());

/// Limits this process, and ends it when a case hangs.
fn limit_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let limit = Rlimit { current: Some(MEMORY_BYTES), maximum: Some(MEMORY_BYTES) };
        setrlimit(Resource::Data, limit).expect("limit");
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_millis(200));
                let began = BEGAN.load(Ordering::Relaxed);
                if began != 0 && now() > began + 4 * CASE_MILLIS {
                    eprintln!("a corruption hangs");
                    std::process::abort();
                }
            }
        });
    });
}

fn now() -> u64 {
    static FIRST: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    FIRST.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}

/// A small disk, so that what is damaged is mostly what describes it.
fn source(folder: &tempfile::TempDir) -> String {
    let path = join(folder, "source.raw");
    let file = File::create(&path).expect("create");
    file.set_len(9 * MIB).expect("size");
    let mut random = Random(77);
    for at in [0, 3 * MIB + 70_000, 9 * MIB - 2048] {
        file.write_all_at(&random.mixed(2048), at).expect("write");
    }
    path
}

/// Bytes that were changed, to change them back.
struct Damage {
    len: u64,
    changes: Vec<(u64, Vec<u8>)>,
}

/// Where a file is not zero.
fn used_sectors(path: &str) -> Vec<u64> {
    let bytes = std::fs::read(path).expect("read");
    let used = bytes.chunks(512).enumerate().filter(|(_, sector)| sector.iter().any(|byte| *byte != 0));
    used.map(|(number, _)| number as u64 * 512).collect()
}

/// Damages a file in a few places, most of them where it is not zero.
fn damage(file: &File, sectors: &[u64], format: Format, random: &mut Random) -> Damage {
    let len = file.metadata().expect("metadata").len();
    let mut done = Damage { len, changes: Vec::new() };
    let change = |done: &mut Damage, at: u64, bytes: &[u8]| {
        let bytes = &bytes[..bytes.len().min(len.saturating_sub(at) as usize)];
        let mut old = vec![0; bytes.len()];
        file.read_exact_at(&mut old, at).expect("read");
        file.write_all_at(bytes, at).expect("write");
        done.changes.push((at, old));
    };
    for _ in 0..1 + random.below(3) {
        let place = match random.below(8) {
            0 => random.below(len),
            // The first sectors hold the headers.
            1..=3 => random.below(len.min(160)),
            _ if sectors.is_empty() => 0,
            _ => sectors[random.below(sectors.len() as u64) as usize] + random.below(512),
        };
        let value: u64 = match random.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << random.below(64),
            3 => random.below(1 << 16),
            4 => len.wrapping_add(random.below(1024)).wrapping_sub(512),
            _ => random.next(),
        };
        match random.below(8) {
            0..=2 => {
                let mut byte = [0];
                file.read_at(&mut byte, place).expect("read");
                change(&mut done, place, &[byte[0] ^ 1 << random.below(8)]);
            }
            3 => change(&mut done, place / 4 * 4, &(value as u32).to_le_bytes()),
            4 => change(&mut done, place / 4 * 4, &(value as u32).to_be_bytes()),
            5 => change(&mut done, place / 4 * 4, &value.to_le_bytes()),
            6 => change(&mut done, place / 4 * 4, &value.to_be_bytes()),
            _ => {
                let other = random.below(len);
                let mut bytes = vec![0; 1 + random.below(600) as usize];
                let have = file.read_at(&mut bytes, other).expect("read");
                change(&mut done, place, &bytes[..have]);
            }
        }
    }
    // Checksums hide what is behind them: half of the time they are made right again.
    if random.below(2) == 0 {
        for (at, bytes) in resealed(file, len, format) {
            change(&mut done, at, &bytes);
        }
    }
    if random.below(12) == 0 {
        let keep = random.below(len);
        let mut tail = vec![0; (len - keep) as usize];
        file.read_exact_at(&mut tail, keep).expect("read");
        done.changes.push((keep, tail));
        file.set_len(keep).expect("cut");
    }
    done
}

fn restore(file: &File, damage: &Damage) {
    file.set_len(damage.len).expect("size");
    for (at, bytes) in damage.changes.iter().rev() {
        file.write_all_at(bytes, *at).expect("restore");
    }
}

/// The right checksums of a VHD's footers and header, and of a VHDX's headers and region tables.
fn resealed(file: &File, len: u64, format: Format) -> Vec<(u64, Vec<u8>)> {
    let read = |at: u64, size: usize, sum_at: usize| {
        let mut bytes = vec![0; size];
        file.read_at(&mut bytes, at).expect("read");
        bytes[sum_at..sum_at + 4].fill(0);
        bytes
    };
    match format {
        Format::Vhd => [(0, 512, 64), (512, 1024, 36), (len.saturating_sub(512), 512, 64)]
            .into_iter()
            .filter_map(|(at, size, sum_at)| {
                let bytes = read(at, size, sum_at);
                let cookie = bytes.starts_with(b"conectix") || bytes.starts_with(b"cxsparse");
                let sum = !bytes.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
                cookie.then(|| (at + sum_at as u64, sum.to_be_bytes().to_vec()))
            })
            .collect(),
        Format::Vhdx => [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 64 << 10), (256 << 10, 64 << 10)]
            .into_iter()
            .chain(log_entries(file))
            .map(|(at, size)| (at + 4, crc32c(&read(at, size, 4)).to_le_bytes().to_vec()))
            .collect(),
        _ => Vec::new(),
    }
}

/// The entries of a VHDX's log as [`leave_open`] lays it out, as far as they say how long they are.
fn log_entries(file: &File) -> Vec<(u64, usize)> {
    let mut entries = Vec::new();
    let mut at = MIB;
    let mut header = [0; 12];
    while file.read_at(&mut header, at).is_ok_and(|read| read == 12) && header.starts_with(b"loge") {
        let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        if len == 0 || !len.is_multiple_of(4096) || u64::from(len) > MIB {
            break;
        }
        entries.push((at, len as usize));
        at += u64::from(len);
    }
    entries
}

/// Leaves a VHDX as a writer does that was killed: the allocation table, the metadata and two blocks' sectors are in the log
/// alone.
fn leave_open(path: &str) {
    let log = Log::open(path);
    let at = log.postpone(0, 1, &[2 * MIB, 3 * MIB + (64 << 10)]);
    let at = log.postpone_more(at, 0, 2, &[8 * MIB]);
    log.postpone_more(at, 0, 3, &[192 << 10, 9 * MIB + 4096]);
}

/// What a damaged disk gave.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Refused,
    /// It has a size, and reading failed somewhere.
    Broken(u64),
    /// It can be read; all of its bytes if they are few.
    Read(u64, Option<Vec<u8>>),
}

fn exercise(opened: disk::Result<Box<dyn BlockSource>>) -> Outcome {
    match opened {
        Ok(source) => walk(&*source),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            Outcome::Refused
        }
    }
}

/// Goes through a disk as a reader of all of it would, but reads only a few MiB of a large one.
fn walk(source: &dyn BlockSource) -> Outcome {
    let size = source.logical_size();
    assert!(size <= disk::MAX_DISK_BYTES);
    let whole = size <= COMPARED_BYTES;
    let mut disk = vec![0; if whole { size as usize } else { MIB as usize }];
    let mut left = 16 * MIB;
    let mut end = 0;
    for extent in source.extents().take(20_000) {
        let Ok(extent) = extent else { return Outcome::Broken(size) };
        assert!(extent.start >= end && extent.len > 0 && extent.end() <= size, "{extent:?}");
        end = extent.end();
        if extent.kind == ExtentKind::Zero {
            continue;
        }
        let read = if whole {
            source.read_onto(extent.start, &mut disk[extent.start as usize..extent.end() as usize])
        } else {
            let len = extent.len.min(MIB).min(left);
            left -= len;
            source.read_onto(extent.end() - len, &mut disk[..len as usize])
        };
        if read.is_err() {
            return Outcome::Broken(size);
        }
    }
    Outcome::Read(size, whole.then_some(disk))
}

/// What qemu-img makes of the file, if it makes anything of it.
fn qemu(format: Format, path: &str, out: &str) -> Option<Vec<u8>> {
    if format == Format::Vhdx {
        // It replays a log only where it may write.
        let copy = format!("{out}.vhdx");
        std::fs::copy(path, &copy).expect("copy");
        let args = ["5", "qemu-img", "check", "-q", "-f", "vhdx", "-r", "all", &copy];
        Command::new("timeout").args(args).output().expect("qemu-img runs");
        return converted_by_qemu(format, &copy, out);
    }
    converted_by_qemu(format, path, out)
}

fn converted_by_qemu(format: Format, path: &str, out: &str) -> Option<Vec<u8>> {
    let info =
        Command::new("timeout").args(["5", "qemu-img", "info", "-f", format.qemu_name(), path]).output();
    let info = String::from_utf8(info.expect("qemu-img runs").stdout).expect("text");
    // A huge disk is not worth the time.
    let size: u64 = info.split("virtual size: ").nth(1)?.split(['(', ' ']).nth(3)?.parse().ok()?;
    if size > COMPARED_BYTES {
        return None;
    }
    let args = ["5", "qemu-img", "convert", "-f", format.qemu_name(), "-O", "raw", path, out];
    let converted = Command::new("timeout").args(args).output().expect("qemu-img runs");
    converted.status.success().then(|| std::fs::read(out).expect("raw"))
}

/// Runs the corruptions of one format, and returns how many were refused, broken, and read.
fn corrupt(format: Format, variants: &[&[&str]]) -> [u64; 3] {
    corrupt_prepared(format, variants, |_| {})
}

/// The same with files that qemu-img does not make.
fn corrupt_prepared(format: Format, variants: &[&[&str]], prepare: fn(&str)) -> [u64; 3] {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    limit_once();
    let folder = folder();
    let raw = source(&folder);
    let out = join(&folder, "out.raw");
    let mut counts = [0; 3];
    let mut compared = 0;
    let started = Instant::now();
    for (number, options) in variants.iter().enumerate() {
        let path = join(&folder, &format!("disk-{number}"));
        convert(("raw", &raw), (format.qemu_name(), &path), options);
        prepare(&path);
        let file = File::options().read(true).write(true).open(&path).expect("open");
        let sectors = used_sectors(&path);
        // A descriptor's extents; none for the others.
        let others: Vec<PathBuf> = std::fs::read_dir(folder.path())
            .expect("list")
            .map(|entry| entry.expect("entry").path())
            .filter(|other| other.to_string_lossy().starts_with(&format!("{path}-")))
            .collect();
        let cases = CASES.div_ceil(variants.len() as u64);
        for case in 0..cases {
            let mut random = Random(case << 8 | number as u64);
            let undo = damage(&file, &sectors, format, &mut random);
            BEGAN.store(now(), Ordering::Relaxed);
            let inputs = [Path::new(&path)].into_iter().chain(others.iter().map(PathBuf::as_path));
            let inputs = inputs.map(|path| Input::open(path).expect("open")).collect();
            let outcome = exercise(disk::image::open(format, inputs));
            let took = now() - BEGAN.swap(0, Ordering::Relaxed);
            assert!(took < CASE_MILLIS, "{format} {number}, case {case} took {took} ms");
            counts[match outcome {
                Outcome::Refused => 0,
                Outcome::Broken(_) => 1,
                Outcome::Read(..) => 2,
            }] += 1;
            if case % FULL_EVERY == 0 {
                // The real reader agrees, but for names that lead nowhere, which its parent refuses.
                let theirs = disk::sandbox::open(program(), Path::new(&path), format, Packing::None);
                let theirs = theirs.map_or(Outcome::Refused, |source| walk(&*source));
                assert!(theirs == outcome || theirs == Outcome::Refused, "{format} {number}, case {case}");
            }
            if let Outcome::Read(_, Some(ours)) = &outcome
                && (case % FULL_EVERY == 0 || case < 20)
                && let Some(theirs) = qemu(format, &path, &out)
            {
                compared += 1;
                let common = ours.len().min(theirs.len());
                assert!(
                    ours[..common] == theirs[..common],
                    "{format} {number}, case {case}: other bytes than qemu's"
                );
                // QEMU takes the geometry for the size of some VHDs, which RULES.md 2.1 does not.
                assert!(
                    format == Format::Vhd || theirs.len() == ours.len().next_multiple_of(512),
                    "case {case}"
                );
            }
            restore(&file, &undo);
        }
        // Restored, it is sound: the damage was in the file, and is gone.
        let inputs = [Path::new(&path)].into_iter().chain(others.iter().map(PathBuf::as_path));
        let inputs = inputs.map(|path| Input::open(path).expect("open")).collect();
        let Outcome::Read(_, Some(bytes)) = exercise(disk::image::open(format, inputs)) else {
            panic!("not restored")
        };
        common::assert_same(&bytes, &std::fs::read(&raw).expect("raw"), "restored");
    }
    let [refused, broken, read] = counts;
    println!(
        "{format}: {refused} refused, {broken} broken, {read} read, {compared} compared with qemu-img, {:?}",
        started.elapsed()
    );
    assert!(compared > 0, "qemu-img read none of them");
    counts
}

/// Both happen, or the corruptions are too weak or too strong to say anything.
fn assert_telling(counts: [u64; 3]) {
    let [refused, broken, read] = counts;
    assert!(refused + broken + read >= CASES);
    assert!(refused + broken > CASES / 10 && read > CASES / 50, "{counts:?}");
}

#[test]
fn raw() {
    // Any bytes are a raw disk.
    assert_eq!(corrupt(Format::Raw, &[&[]])[2], CASES);
}

#[test]
fn vhd() {
    let fixed: &[&str] = &["-o", "subformat=fixed,force_size=on"];
    assert_telling(corrupt(Format::Vhd, &[&["-o", "subformat=dynamic,force_size=on"], fixed]));
}

#[test]
fn vhdx() {
    assert_telling(corrupt(Format::Vhdx, &[&["-o", "block_size=1M,log_size=1M"]]));
}

#[test]
fn vhdx_with_an_open_log() {
    assert_telling(corrupt_prepared(Format::Vhdx, &[&["-o", "block_size=1M,log_size=1M"]], leave_open));
}

#[test]
fn qcow2() {
    assert_telling(corrupt(
        Format::Qcow2,
        &[
            &["-o", "cluster_size=4k"],
            &["-c", "-o", "compat=0.10"],
            &["-c", "-o", "compression_type=zstd"],
            &["-o", "extended_l2=on,cluster_size=16k"],
        ],
    ));
}

#[test]
fn vmdk() {
    let pieces: &[&str] = &["-o", "subformat=twoGbMaxExtentSparse"];
    assert_telling(corrupt(
        Format::Vmdk,
        &[
            &["-o", "zeroed_grain=on"],
            &["-o", "subformat=streamOptimized"],
            &["-o", "subformat=monolithicFlat"],
            pieces,
        ],
    ));
}

#[test]
fn packings() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    limit_once();
    let folder = folder();
    let raw = source(&folder);
    let small = join(&folder, "small.raw");
    std::fs::write(&small, &std::fs::read(&raw).expect("raw")[..200_000]).expect("write");
    for (packing, command) in [(Packing::Gzip, "gzip"), (Packing::Xz, "xz"), (Packing::Zstd, "zstd -q")] {
        let path = join(&folder, packing.name());
        common::run("sh", &["-c", &format!("{command} -c < '{small}' > '{path}'")]);
        let file = File::options().read(true).write(true).open(&path).expect("open");
        let sectors = used_sectors(&path);
        let mut read = 0;
        for case in 0..CASES {
            let undo = damage(&file, &sectors, Format::Raw, &mut Random(case));
            BEGAN.store(now(), Ordering::Relaxed);
            let packed = Input::open(Path::new(&path)).expect("open");
            let temporary = tempfile::tempfile_in(folder.path()).expect("temporary file");
            let opened = disk::image::open_packed(Format::Raw, packing, &packed, temporary, &mut |_| Ok(()));
            read += u64::from(matches!(exercise(opened), Outcome::Read(..)));
            let took = now() - BEGAN.swap(0, Ordering::Relaxed);
            assert!(took < CASE_MILLIS, "{packing}, case {case} took {took} ms");
            if case % FULL_EVERY == 0 {
                // Whatever it is, the reader answers it.
                match disk::sandbox::open(program(), Path::new(&path), Format::Raw, packing) {
                    Ok(source) => assert!(matches!(walk(&*source), Outcome::Read(..))),
                    Err(disk::Error::Reader { reason, .. }) => panic!("{packing}, case {case}: {reason}"),
                    Err(_) => {}
                }
            }
            restore(&file, &undo);
        }
        println!("{packing}: {read} of {CASES} read");
        assert!(read < CASES / 2, "{packing} finds damage by its checksums");
    }
}
