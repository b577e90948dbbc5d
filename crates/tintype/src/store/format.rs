//! The formats of disk files that go in and out. A format is declared; a file's first bytes are looked at only to catch a
//! disk that was taken for raw because nobody said what it is.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use disk::{BlockSource, Chain, RawFile};

/// A disk file's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    Raw,
    Qcow2,
}

/// Beginnings of files that are hardly ever raw disks: bytes, and the format's name.
const MAGICS: [(&[u8], &str); 5] = [
    (QCOW2_MAGIC, "qcow2"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vhd"),
    (b"KDMV", "vmdk"),
    (b"# Disk DescriptorFile", "vmdk"),
];
const QCOW2_MAGIC: &[u8] = b"QFI\xfb";
/// Where a qcow2 header says that it has a backing file: 8 bytes, big endian.
const QCOW2_BACKING_AT: usize = 8;

/// Opens a disk file. `declared` is what the user said; nothing is raw.
pub(super) fn open(path: &Path, declared: Option<Format>) -> anyhow::Result<Arc<dyn BlockSource>> {
    let format = resolve(path, declared)?;
    match format {
        Format::Raw => Ok(Arc::new(RawFile::open(path)?)),
        Format::Qcow2 => {
            if has_backing(&head(path)?) {
                bail!(
                    "{} is an overlay: it names a backing file, and holds only what differs from it; give the image that \
                     it lies on with --base MANIFEST, or flatten it with qemu-img convert",
                    path.display()
                );
            }
            Ok(Arc::new(Chain::open(&[path])?))
        }
    }
}

/// The format to read a file by.
pub(super) fn resolve(path: &Path, declared: Option<Format>) -> anyhow::Result<Format> {
    if let Some(format) = declared {
        return Ok(format);
    }
    let head = head(path)?;
    for (magic, name) in MAGICS {
        if head.starts_with(magic) {
            bail!(
                "{} looks like a disk of format {name}: say --format {name}, or --format raw if these bytes are the disk",
                path.display()
            );
        }
    }
    Ok(Format::Raw)
}

fn has_backing(head: &[u8]) -> bool {
    if !head.starts_with(QCOW2_MAGIC) {
        return false;
    }
    let offset = head.get(QCOW2_BACKING_AT..QCOW2_BACKING_AT + 8);
    offset.is_some_and(|offset| offset.iter().any(|byte| *byte != 0))
}

/// The first bytes of a file, fewer if it is shorter. Only a regular file is read: a pipe would be emptied.
fn head(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let is_file = std::fs::metadata(path).map(|metadata| metadata.is_file());
    // What is missing or of another kind is for the opening to explain.
    if let Ok(true) = is_file {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        file.take(32).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(bytes)
}
