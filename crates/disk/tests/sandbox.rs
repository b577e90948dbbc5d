//! What the reader cannot do, and what happens to a source whose reader dies.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Content, MIB, bytes, convert, folder, join, make_raw, program, run};
use disk::sandbox::{Landlock, Options, Reader};
use disk::{BlockSource, Error, Format, Packing};

/// A program that is not our reader.
fn script(folder: &tempfile::TempDir, text: &str) -> PathBuf {
    let path = folder.path().join("reader.sh");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("write");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
    path
}

/// Processes whose parent we are, by command line.
fn children(of: &str) -> Vec<u32> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("list").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let status = read("status");
        let ours = status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|p| p.trim() == own));
        if ours && read("cmdline").contains(of) {
            found.push(pid);
        }
    }
    found
}

#[test]
fn the_reader_is_confined_and_ends_with_its_source() {
    let folder = folder();
    let raw = join(&folder, "disk.raw");
    make_raw(&raw, 4 * MIB, Content::Full, 1);
    // A name of its own, to tell its process from those of the other tests.
    let own = folder.path().join("confined-reader");
    std::fs::copy(program(), &own).expect("copy");
    let source =
        Reader::open(&own, Path::new(&raw), Format::Raw, Packing::None, &Options::default()).expect("opens");
    // This kernel may lack Landlock; then the source says so.
    println!("Landlock: {:?}", source.landlock());
    assert!(matches!(source.landlock(), Landlock::Full | Landlock::Partial | Landlock::Absent));
    let pids = children("confined-reader");
    assert_eq!(pids.len(), 1);
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", pids[0])).expect("proc");
    let status = read("status");
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "Threads:\t1"] {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }
    let limits = read("limits");
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).expect("a limit");
        line[name.len()..].split_whitespace().next().expect("a number").to_owned()
    };
    assert_eq!(limit("Max data size"), (256 * MIB).to_string());
    assert_eq!(limit("Max address space"), (1024 * MIB).to_string());
    assert_eq!(limit("Max cpu time"), "1804");
    assert_eq!(limit("Max core file size"), "0");
    assert_eq!(limit("Max file size"), MIB.to_string());
    assert_eq!(limit("Max open files"), "6");
    assert!(read("environ").is_empty());
    drop(source);
    assert!(children("confined-reader").is_empty());
    assert!(!Path::new(&format!("/proc/{}", pids[0])).exists());
}

#[test]
fn a_reader_that_dies_is_named() {
    let folder = folder();
    let raw = join(&folder, "disk.raw");
    make_raw(&raw, 4 * MIB, Content::Full, 1);
    let open = |program: &Path| {
        let options = Options { request_timeout: Duration::from_millis(300), ..Options::default() };
        Reader::open(program, Path::new(&raw), Format::Raw, Packing::None, &options)
    };
    let refused = |text: &str| open(&script(&folder, text)).expect_err("fails").to_string();
    let error = refused("echo what happened >&2; exit 3");
    assert!(error.contains("exit status: 3") && error.contains("what happened"), "{error}");
    let error = refused("kill -XCPU $$");
    assert!(error.contains("processor time"), "{error}");
    let error = refused("kill -SYS $$");
    assert!(error.contains("may not do"), "{error}");
    // It stays, or its end may be seen before its words.
    let error = refused("echo nonsense >&0; exec sleep 60");
    assert!(error.contains("makes no sense"), "{error}");
    let started = Instant::now();
    let error = refused("exec sleep 60");
    assert!(error.contains("did not answer"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(children("sleep").is_empty());
    assert!(matches!(open(Path::new("/no/such/program")), Err(Error::Io { .. })));

    // One that dies later: every later call says so, none hangs.
    let own = folder.path().join("dying-reader");
    std::fs::copy(program(), &own).expect("copy");
    let source = open(&own).expect("opens");
    run("kill", &["-KILL", &children("dying-reader")[0].to_string()]);
    for _ in 0..2 {
        let error = source.read_onto(0, &mut [0; 10]).expect_err("fails").to_string();
        assert!(error.contains("killed") && error.contains("disk.raw"), "{error}");
        assert!(source.extents().next().expect("an answer").is_err());
    }
}

/// Files that want more memory or space than a reader may use end it, or are refused before.
#[test]
fn bombs_are_refused() {
    let folder = folder();
    let packed = join(&folder, "bomb");
    let open = |packing| disk::sandbox::open(program(), Path::new(&packed), Format::Raw, packing);
    // A dictionary of 512 MiB, a window of 2 GiB.
    run("sh", &["-c", &format!("head -c 100000 /dev/zero | xz -1 --lzma2=dict=512MiB -c > '{packed}'")]);
    let error = open(Packing::Xz).err().expect("refused").to_string();
    assert!(error.contains("mem"), "{error}");
    run(
        "sh",
        &["-c", &format!("head -c 100000 /dev/zero | zstd -q --long=31 --single-thread -c > '{packed}'")],
    );
    match open(Packing::Zstd) {
        Err(error) => assert!(error.to_string().contains("cannot be unpacked"), "{error}"),
        // zstd makes the window as small as what it knows of the input.
        Ok(source) => assert_eq!(source.logical_size(), 100_000),
    }
    // Text that packs 10,000 to 1 is no disk.
    run(
        "sh",
        &[
            "-c",
            &format!("yes aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa | head -c 200000000 | zstd -q -19 -c > '{packed}'"),
        ],
    );
    let error = open(Packing::Zstd).err().expect("refused").to_string();
    assert!(error.contains("times as much"), "{error}");
    // Zeros are no data: 4 GiB of them in a few kilobytes are a sparse disk.
    run("sh", &["-c", &format!("head -c 4294967296 /dev/zero | zstd -q -1 -c > '{packed}'")]);
    let source = open(Packing::Zstd).expect("opens");
    assert_eq!(source.logical_size(), 4 << 30);
    assert_eq!(source.extents().count(), 0);
}

#[test]
fn several_threads_share_a_reader() {
    let folder = folder();
    let (raw, qcow2) = (join(&folder, "disk.raw"), join(&folder, "disk.qcow2"));
    make_raw(&raw, 16 * MIB, Content::Full, 9);
    let expected = std::fs::read(&raw).expect("raw");
    convert(("raw", &raw), ("qcow2", &qcow2), &["-c"]);
    let source =
        disk::sandbox::open(program(), Path::new(&qcow2), Format::Qcow2, Packing::None).expect("opens");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (source, expected) = (&*source, &expected);
            scope.spawn(move || {
                let mut random = common::Random(thread);
                for _ in 0..40 {
                    let at = random.below(15 * MIB);
                    let mut buf = vec![0; random.below(MIB) as usize + 1];
                    source.read_onto(at, &mut buf).expect("read");
                    assert!(buf == expected[at as usize..at as usize + buf.len()]);
                }
                assert!(bytes(source).expect("bytes") == *expected);
            });
        }
    });
}

/// Reading through the sandbox costs little more than reading.
#[test]
fn reading_is_fast() {
    let folder = folder();
    let raw = join(&folder, "disk.raw");
    make_raw(&raw, 256 * MIB, Content::Full, 9);
    let source = disk::sandbox::open(program(), Path::new(&raw), Format::Raw, Packing::None).expect("opens");
    let mut buf = vec![0; MIB as usize];
    let mut best = f64::MAX;
    for _ in 0..3 {
        let started = Instant::now();
        for at in (0..256 * MIB).step_by(MIB as usize) {
            source.read_onto(at, &mut buf).expect("read");
        }
        best = best.min(started.elapsed().as_secs_f64());
    }
    let rate = 0.25 / best;
    println!("sandboxed reads: {rate:.2} GiB/s");
    // Far below what an idle machine does (see the line above), as tests share theirs.
    assert!(rate > 0.2, "{rate} GiB/s");
}
