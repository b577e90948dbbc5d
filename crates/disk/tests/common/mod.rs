//! What the tests of formats share: qemu-img, test disks, and comparing.
#![expect(dead_code, reason = "each test binary uses a part")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use disk::{BlockSource, ExtentKind};

pub(crate) mod vhdx_log;

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;
pub(crate) const TIB: u64 = 1 << 40;

/// The program that reads disks in a sandbox.
pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_disk-reader"))
}

pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("the program is installed");
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A folder for test files, in memory where there is such a place: sparse files there may be larger than ext4's.
pub(crate) fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("tintype-disk-").tempdir_in(parent).expect("temporary folder")
}

pub(crate) fn join(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).to_str().expect("text").to_owned()
}

/// Numbers that look random, the same every time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        bytes
    }

    /// Bytes that compress about as file systems do: some text, some noise.
    pub(crate) fn mixed(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = self.bytes(len);
        for chunk in bytes.chunks_mut(3000).step_by(2) {
            for (n, byte) in chunk.iter_mut().enumerate() {
                *byte = b"package: image; version "[n % 24];
            }
        }
        bytes
    }
}

/// What a test disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A few stretches at odd places, and the last bytes.
    Sparse,
    /// Every byte.
    Full,
}

/// Makes a raw disk.
pub(crate) fn make_raw(path: &str, size: u64, content: Content, seed: u64) {
    let mut random = Random(seed);
    let file = File::create(path).expect("create");
    file.set_len(size).expect("size");
    let mut put = |at: u64, len: u64| {
        let len = len.min(size.saturating_sub(at));
        if len > 0 {
            file.write_all_at(&random.mixed(len as usize), at).expect("write");
        }
    };
    match content {
        Content::Full => put(0, size),
        Content::Sparse => {
            put(0, 512);
            put(size / 3, 70_000);
            put(size / 2 / 4096 * 4096, 4096);
            put(size.saturating_sub(1000), 1000);
        }
    }
}

/// All bytes of a disk, through its extents; what no extent covers is zeros, and the source must agree.
pub(crate) fn bytes(source: &dyn BlockSource) -> disk::Result<Vec<u8>> {
    let size = source.logical_size() as usize;
    let mut disk = vec![0; size];
    let mut end = 0;
    for extent in source.extents() {
        let extent = extent?;
        assert!(extent.start >= end && extent.len > 0 && extent.end() <= size as u64, "{extent:?}");
        // The hole before it reads as zeros too.
        assert_zeros(source, end, extent.start)?;
        end = extent.end();
        if extent.kind == ExtentKind::Data {
            source.read_onto(extent.start, &mut disk[extent.start as usize..extent.end() as usize])?;
        }
    }
    assert_zeros(source, end, size as u64)?;
    Ok(disk)
}

fn assert_zeros(source: &dyn BlockSource, start: u64, end: u64) -> disk::Result<()> {
    let mut buf = vec![1; (end - start).min(100_000) as usize];
    source.read_onto(start, &mut buf)?;
    assert!(buf.iter().all(|byte| *byte == 0), "{start}..{end} is no extent and holds data");
    Ok(())
}

/// Fails at the first difference; one disk may have zeros behind the other's end.
pub(crate) fn assert_same(ours: &[u8], theirs: &[u8], what: &str) {
    let common = ours.len().min(theirs.len());
    if ours[..common] != theirs[..common] {
        let at = ours.iter().zip(theirs).position(|(a, b)| a != b);
        panic!("{what}: different at byte {at:?}");
    }
    assert!(ours[common..].iter().chain(&theirs[common..]).all(|byte| *byte == 0), "{what}: one goes on");
}

/// Converts with qemu-img; `options` may be empty.
pub(crate) fn convert(from: (&str, &str), to: (&str, &str), options: &[&str]) {
    let mut args = vec!["convert", "-f", from.0, "-O", to.0];
    args.extend(options);
    args.extend([from.1, to.1]);
    run("qemu-img", &args);
}

/// Opens a disk in this process.
pub(crate) fn open_here(format: disk::Format, paths: &[PathBuf]) -> disk::Result<Box<dyn BlockSource>> {
    let inputs = paths.iter().map(|path| disk::Input::open(path)).collect::<disk::Result<Vec<_>>>()?;
    disk::image::open(format, inputs)
}
