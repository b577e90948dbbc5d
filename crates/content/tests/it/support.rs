//! What the tests of this crate share: disks with known bytes, stores in temporary folders, QEMU's tools.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use content::{BlockCache, Image, ManifestId, Store, StoreLocation};

pub(crate) const BLOCK: usize = content::BLOCK_BYTES;
pub(crate) const MIB: u64 = 1 << 20;

/// A folder that goes away with the test.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("temporary folder") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(crate) async fn store(&self, name: &str) -> Store {
        Store::open_or_create(&self.location(name), "test").await.expect("store")
    }

    pub(crate) fn location(&self, name: &str) -> StoreLocation {
        StoreLocation::folder(&self.path(name)).expect("location")
    }

    /// Writes a raw disk, with holes where blocks of 4 KiB are zeros.
    pub(crate) fn raw(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        let file = File::create(&path).expect("create");
        file.set_len(bytes.len() as u64).expect("size");
        for (number, part) in bytes.chunks(4096).enumerate() {
            if part != &[0; 4096][..part.len()] {
                file.write_all_at(part, number as u64 * 4096).expect("write");
            }
        }
        path
    }

    /// Every object of a store below a folder of it.
    pub(crate) fn objects(&self, folder: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.path(folder)];
        while let Some(folder) = folders.pop() {
            let Ok(listing) = std::fs::read_dir(folder) else { continue };
            for entry in listing {
                let path = entry.expect("entry").path();
                if path.is_dir() { folders.push(path) } else { found.push(path) }
            }
        }
        found.sort();
        found
    }
}

/// Bytes that do not compress, different for each seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    reader.fill(&mut bytes);
    bytes
}

/// A block of text that compresses, different for each seed.
pub(crate) fn text(seed: u64) -> Vec<u8> {
    let line = format!("line of block {seed}: all work and no play makes a dull block\n");
    let mut bytes = line.repeat(BLOCK / line.len() + 1).into_bytes();
    bytes.truncate(BLOCK);
    bytes
}

pub(crate) async fn put(store: &Store, path: &Path) -> content::PutReport {
    store.put_raw(path, "test", |_| {}).await.expect("put")
}

pub(crate) async fn open(store: &Store, manifest: &ManifestId) -> Image {
    store.open_image(manifest, Arc::new(BlockCache::in_memory())).await.expect("open")
}

/// All bytes of an image.
pub(crate) async fn read_all(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0xee; image.size() as usize];
    for (number, part) in bytes.chunks_mut(3 << 20).enumerate() {
        image.read_at(number as u64 * (3 << 20), part).await.expect("read");
    }
    bytes
}

/// Runs a program that must succeed, and returns what it printed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("the program is installed");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

/// Makes a qcow2 file and runs qemu-io commands on it.
pub(crate) fn qcow2(file: &str, backing: Option<&str>, size: &str, cluster: &str, commands: &[String]) {
    let options = format!("cluster_size={cluster}");
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
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
