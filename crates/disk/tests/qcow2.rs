//! Raw files and qcow2 chains against what qemu-img and qemu-io write and read.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use disk::{BlockSource, Chain, Error, Extent, ExtentKind, Qcow2, RawFile};
use proptest::prelude::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("the program is installed");
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn path(dir: &tempfile::TempDir, name: &str) -> String {
    dir.path().join(name).display().to_string()
}

/// Makes an overlay and runs qemu-io commands on it.
fn overlay(file: &str, backing: Option<&str>, size: &str, options: &str, commands: &[String]) {
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", options];
    if let Some(backing) = backing {
        args.extend(["-b", backing, "-F", if backing.ends_with(".raw") { "raw" } else { "qcow2" }]);
    }
    args.extend([file, size]);
    run("qemu-img", &args);
    let mut args = vec!["-f", "qcow2"];
    for command in commands {
        args.extend(["-c", command.as_str()]);
    }
    args.push(file);
    run("qemu-io", &args);
}

/// The disk that a chain shows over a base, as QEMU computes it.
fn flatten(top: &str, raw: &str) -> Vec<u8> {
    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", top, raw]);
    std::fs::read(raw).expect("raw file")
}

/// The same, as this crate computes it: the base's bytes, and the extents read onto them.
fn apply(source: &dyn BlockSource, base: &[u8]) -> Vec<u8> {
    let mut disk = base.to_vec();
    disk.resize(source.logical_size() as usize, 0);
    for extent in source.extents() {
        let extent = extent.expect("extent");
        let part = &mut disk[extent.start as usize..extent.end() as usize];
        match extent.kind {
            ExtentKind::Zero => part.fill(0),
            ExtentKind::Data => {
                part.fill(0xee);
                assert_eq!(source.read_onto(extent.start, part).expect("read"), part.len());
            }
        }
    }
    disk
}

#[test]
fn raw_extents_skip_holes() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let name = path(&dir, "disk.raw");
    let file = File::create(&name).expect("create");
    file.set_len(64 * MIB + 100).expect("size");
    file.write_all_at(&[7; 4096], 16 * MIB).expect("write");
    file.write_all_at(&[9; 100], 64 * MIB).expect("write");

    let raw = RawFile::open(Path::new(&name)).expect("open");
    assert_eq!(raw.logical_size(), 64 * MIB + 100);
    let extents: Vec<Extent> = raw.extents().collect::<Result<_, _>>().expect("extents");
    let bytes: u64 = extents.iter().map(|e| e.len).sum();
    assert!(bytes < 2 * MIB, "{extents:?}");
    assert_eq!(apply(&raw, &[]), std::fs::read(&name).expect("read"));
    assert!(matches!(raw.read_onto(64 * MIB, &mut [0; 101]), Err(Error::OutOfRange { .. })));
    assert!(matches!(RawFile::open(dir.path()), Err(Error::Unsupported { .. })));
}

#[test]
fn kinds_of_clusters() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let base = path(&dir, "base.raw");
    std::fs::write(&base, vec![0x11; MIB as usize]).expect("write");
    let top = path(&dir, "top.qcow2");
    let commands =
        ["write -P 0x22 64k 64k", "write -P 0x33 200k 4k", "write -z 512k 128k"].map(str::to_owned);
    overlay(&top, Some(&base), "1M", "cluster_size=64k", &commands);

    let qcow2 = Qcow2::open(Path::new(&top)).expect("open");
    let extents: Vec<Extent> = qcow2.extents().collect::<Result<_, _>>().expect("extents");
    let extent = |start: u64, len: u64, kind| Extent { start: start * KIB, len: len * KIB, kind };
    assert_eq!(
        extents,
        [
            extent(64, 64, ExtentKind::Data),
            extent(192, 64, ExtentKind::Data),
            extent(512, 128, ExtentKind::Zero),
        ]
    );
    // A read over held and other bytes touches only those that are held.
    let mut buf = [0x77; 128 << 10];
    assert_eq!(qcow2.read_onto(0, &mut buf).expect("read"), 64 << 10);
    assert!(buf[..64 << 10].iter().all(|b| *b == 0x77) && buf[64 << 10..].iter().all(|b| *b == 0x22));
    let chain = Chain::open(&[&top]).expect("chain");
    assert_eq!(apply(&chain, &[0x11; MIB as usize]), flatten(&top, &path(&dir, "flat.raw")));
}

#[test]
fn disks_of_32_tib_are_quick() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let top = path(&dir, "top.qcow2");
    let commands = ["write -P 5 0 64k", "write -P 6 35184372023296 65536"].map(str::to_owned);
    overlay(&top, None, "32T", "cluster_size=64k", &commands);
    let chain = Chain::open(&[&top]).expect("chain");
    assert_eq!(chain.logical_size(), 32 << 40);
    let starts: Vec<u64> = chain.extents().map(|e| e.expect("extent").start).collect();
    assert_eq!(starts, [0, (32 << 40) - 64 * KIB]);

    run("qemu-img", &["create", "-q", "-f", "qcow2", &top, "33T"]);
    assert!(matches!(Qcow2::open(Path::new(&top)), Err(Error::Unsupported { .. })));
}

#[test]
fn what_is_refused_says_why() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let raw = path(&dir, "disk.raw");
    std::fs::write(&raw, vec![0x41; 256 << 10]).expect("write");
    let refused = |file: &str| match Qcow2::open(Path::new(file)) {
        Ok(_) => panic!("{file} was opened"),
        Err(error) => error.to_string(),
    };
    let make = |name: &str, options: &str| {
        let file = path(&dir, name);
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, &file, "1M"]);
        file
    };
    // The magic is there, and a version that is none.
    let version = make("version", "compat=1.1");
    File::options()
        .write(true)
        .open(&version)
        .and_then(|file| file.write_all_at(&4u32.to_be_bytes(), 4))
        .expect("writes");
    assert!(refused(&version).contains("version 4"));
    let data_file = format!("data_file={}", path(&dir, "external"));
    assert!(refused(&make("external.qcow2", &data_file)).contains("external file"));
    assert!(refused(&raw).contains("magic"));
    // The header's crypt_method says LUKS. Making a real one measures the processor, and fails on some.
    let encrypted = make("luks", "compat=1.1");
    File::options()
        .write(true)
        .open(&encrypted)
        .and_then(|file| file.write_all_at(&2u32.to_be_bytes(), 32))
        .expect("writes");
    assert!(refused(&encrypted).contains("encrypted"));

    // A compressed cluster whose data is something else.
    let compressed = path(&dir, "compressed");
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", &raw, &compressed]);
    let qcow2 = Qcow2::open(Path::new(&compressed)).expect("opens");
    assert_eq!(qcow2.read_onto(0, &mut [0; 100]).expect("reads"), 100);
    let file = File::options().write(true).open(&compressed).expect("open");
    let len = file.metadata().expect("metadata").len();
    file.write_all_at(&vec![0xff; (len - 0x5_0000) as usize], 0x5_0000).expect("writes");
    let qcow2 = Qcow2::open(Path::new(&compressed)).expect("opens");
    let error = qcow2.read_onto(0, &mut [0; 100]).expect_err("damage").to_string();
    assert!(error.contains("does not unpack"), "{error}");

    let small = make("small", "cluster_size=64k");
    let large = path(&dir, "large");
    run("qemu-img", &["create", "-q", "-f", "qcow2", &large, "2M"]);
    assert!(matches!(Chain::open(&[&large, &small]), Err(Error::Chain { .. })));
    assert!(matches!(Chain::open::<PathBuf>(&[]), Err(Error::Chain { .. })));
}

#[test]
fn a_table_named_twice_is_damage() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let top = path(&dir, "top.qcow2");
    overlay(&top, None, "4G", "cluster_size=64k", &["write -P 5 0 64k".to_owned()]);
    let file = File::options().read(true).write(true).open(&top).expect("open");
    let mut word = [0; 8];
    file.read_exact_at(&mut word, 40).expect("L1 offset");
    let l1 = u64::from_be_bytes(word);
    file.read_exact_at(&mut word, l1).expect("first L1 entry");
    file.write_all_at(&word, l1 + 8).expect("second L1 entry");
    let error = Qcow2::open(Path::new(&top)).expect_err("damage");
    assert!(error.to_string().contains("same L2 table"), "{error}");
}

/// One change to an overlay, in units of 4 KiB.
#[derive(Clone, Debug)]
enum Change {
    Write { at: u64, len: u64, byte: u8 },
    Zero { at: u64, len: u64 },
}

impl Change {
    fn command(&self) -> String {
        match self {
            Self::Write { at, len, byte } => format!("write -P {byte} {}k {}k", at * 4, len * 4),
            Self::Zero { at, len } => format!("write -z -u {}k {}k", at * 4, len * 4),
        }
    }
}

/// Changes inside a disk of 1 MiB.
fn changes() -> impl Strategy<Value = Vec<Change>> {
    let place = (0_u64..256, 1_u64..80).prop_map(|(at, len)| (at, len.min(256 - at)));
    let change = (place, 0_u8..4, prop::bool::weighted(0.3)).prop_map(|((at, len), byte, zero)| match zero {
        true => Change::Zero { at, len },
        false => Change::Write { at, len, byte },
    });
    prop::collection::vec(change, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 20, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any chain of three overlays over a base shows what QEMU shows, whatever the clusters' size.
    #[test]
    fn chains_read_as_qemu_reads_them(
        layers in prop::collection::vec(changes(), 3),
        cluster in prop::sample::select(vec!["4k", "64k", "256k"]),
    ) {
        let dir = tempfile::tempdir().expect("temporary folder");
        let base = path(&dir, "base.raw");
        let content: Vec<u8> = (0..MIB).map(|i| (i / 512 % 251) as u8 | 1).collect();
        std::fs::write(&base, &content).expect("write");
        let mut backing = base;
        let mut files = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            let file = path(&dir, &format!("{number}.qcow2"));
            // Each layer a little larger: disks grow, also to sizes that are no multiple of a cluster.
            let size = format!("{}", MIB + number as u64 * 70 * KIB);
            let commands: Vec<String> = layer.iter().map(Change::command).collect();
            overlay(&file, Some(&backing), &size, &format!("cluster_size={cluster}"), &commands);
            backing = file.clone();
            files.push(file);
        }
        let chain = Chain::open(&files).expect("chain");
        let expected = flatten(&backing, &path(&dir, "flat.raw"));
        prop_assert!(apply(&chain, &content) == expected);

        let extents: Vec<Extent> = chain.extents().collect::<Result<_, _>>().expect("extents");
        prop_assert!(extents.windows(2).all(|pair| pair[0].end() <= pair[1].start), "{:?}", extents);

        // Reads at odd places agree too, with the base filled in.
        for (offset, len) in [(1_u64, 300_000_usize), (65_000, 2000), (MIB - 10, 20)] {
            let mut buf = vec![0; len];
            for (i, byte) in buf.iter_mut().enumerate() {
                *byte = content.get(offset as usize + i).copied().unwrap_or(0);
            }
            chain.read_onto(offset, &mut buf).expect("read");
            prop_assert!(buf == expected[offset as usize..offset as usize + len]);
        }
    }

    /// Any bytes anywhere in the tables give an error or an answer: no panic, no read outside of the file's size.
    #[test]
    fn damaged_tables_do_no_harm(edits in prop::collection::vec((0_u64..0x60_000, any::<u64>()), 1..60)) {
        let dir = tempfile::tempdir().expect("temporary folder");
        let top = path(&dir, "top.qcow2");
        overlay(&top, None, "64M", "cluster_size=64k", &["write -P 5 0 256k".to_owned()]);
        let file = File::options().write(true).open(&top).expect("open");
        for (at, value) in edits {
            // Half of them in the header and the L1 table, where they matter most.
            let at = if at % 2 == 0 { at % 104 } else { at / 8 * 8 };
            file.write_all_at(&value.to_be_bytes(), at).expect("write");
        }
        if let Ok(qcow2) = Qcow2::open(Path::new(&top)) {
            for extent in qcow2.extents().take(100_000) {
                let Ok(extent) = extent else { break };
                let mut buf = vec![0; extent.len.min(MIB) as usize];
                let _: disk::Result<usize> = qcow2.read_onto(extent.start, &mut buf);
            }
        }
    }
}
