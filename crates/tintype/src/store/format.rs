//! The formats of disk files that go in and out. What a file is, the user says or its name does; its first bytes are looked
//! at only to catch a disk that was taken for raw because nobody said what it is.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, bail};
use disk::write::Layout;
use disk::{BlockSource, Extents, Format, Packing, RawFile};
use tokio_util::sync::CancellationToken;

/// Beginnings of files that are hardly ever raw disks: bytes, and the format's or packing's option.
const MAGICS: [(&[u8], &str); 8] = [
    (b"QFI\xfb", "--format qcow2"),
    (b"vhdxfile", "--format vhdx"),
    (b"conectix", "--format vhd"),
    (b"KDMV", "--format vmdk"),
    (b"# Disk DescriptorFile", "--format vmdk"),
    (b"\x1f\x8b\x08", "--packing gzip"),
    (b"\xfd7zXZ\0", "--packing xz"),
    (b"\x28\xb5\x2f\xfd", "--packing zstd"),
];
/// Bytes that the longest of them has.
const HEAD_BYTES: u64 = 32;

/// Opens a disk file. Anything but a raw one is parsed by a confined process of this program.
pub(super) fn open(
    path: &Path,
    format: Option<Format>,
    packing: Option<Packing>,
) -> anyhow::Result<Arc<dyn BlockSource>> {
    let (format, packing) = resolve(path, format, packing)?;
    if (format, packing) == (Format::Raw, Packing::None) {
        return Ok(Arc::new(RawFile::open(path)?));
    }
    Ok(disk::sandbox::open(&reader()?, path, format, packing)?)
}

/// Opens what a qcow2 overlay changed. It is parsed by such a process as well.
pub(super) fn open_overlay(path: &Path) -> anyhow::Result<Arc<dyn BlockSource>> {
    Ok(disk::sandbox::open_overlay(&reader()?, path)?)
}

/// Opens the disk that a qcow2 overlay shows on top of others, the nearest first. They are parsed by such a process as well.
pub(super) fn open_chain(top: &Path, backing: &[PathBuf]) -> anyhow::Result<Arc<dyn BlockSource>> {
    let layers: Vec<&Path> = backing.iter().rev().map(PathBuf::as_path).chain([top]).collect();
    Ok(disk::sandbox::Reader::open_chain(&reader()?, &layers, &disk::sandbox::Options::default())?)
}

/// The format that a file's name says.
pub(super) fn named(path: &Path) -> Option<Format> {
    Format::from_extension(path).map(|(format, _)| format)
}

/// The program that reads: this one.
fn reader() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}

/// How to read a file: as declared, else as its name says, else as raw.
fn resolve(
    path: &Path,
    format: Option<Format>,
    packing: Option<Packing>,
) -> anyhow::Result<(Format, Packing)> {
    let named = Format::from_extension(path);
    let chosen = (
        format.or(named.map(|(format, _)| format)).unwrap_or(Format::Raw),
        packing.or(named.map(|(_, packing)| packing)).unwrap_or_default(),
    );
    if chosen == (Format::Raw, Packing::None) && format.is_none() {
        let head = head(path)?;
        if let Some((_, option)) = MAGICS.iter().find(|(magic, _)| head.starts_with(magic)) {
            bail!(
                "{} does not look like a raw disk: say {option}, or --format raw if these bytes are the disk",
                path.display()
            );
        }
    }
    Ok(chosen)
}

/// The first bytes of a file, fewer if it is shorter. Only a regular file is read: a pipe would be emptied.
fn head(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let is_file = std::fs::metadata(path).map(|metadata| metadata.is_file());
    // What is missing or of another kind is for the opening to explain.
    if let Ok(true) = is_file {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let read = file.take(HEAD_BYTES).read_to_end(&mut bytes);
        read.with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(bytes)
}

/// What a disk is written as: a format, or the other kind of VHD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written(pub(super) Layout);

impl Written {
    /// As the file's name says.
    pub(super) fn from_extension(path: &Path) -> Option<Self> {
        match Format::from_extension(path)? {
            (format, Packing::None) => Some(Self::of(format)),
            // We do not pack.
            (_, Packing::Gzip | Packing::Xz | Packing::Zstd) => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self.0 {
            Layout::Raw => "raw",
            Layout::VhdFixed => "vhd",
            Layout::VhdDynamic => "vhd-dynamic",
            Layout::Vhdx => "vhdx",
            Layout::Qcow2 => "qcow2",
            Layout::Vmdk => "vmdk",
        }
    }

    fn of(format: Format) -> Self {
        Self(match format {
            Format::Raw => Layout::Raw,
            Format::Vhd => Layout::VhdFixed,
            Format::Vhdx => Layout::Vhdx,
            Format::Qcow2 => Layout::Qcow2,
            Format::Vmdk => Layout::Vmdk,
        })
    }
}

impl FromStr for Written {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match (name, name.parse()) {
            ("vhd-dynamic", _) => Ok(Self(Layout::VhdDynamic)),
            (_, Ok(format)) => Ok(Self::of(format)),
            (_, Err(_)) => {
                Err("possible are raw, vhd (fixed, as Azure takes it), vhd-dynamic, vhdx, qcow2, vmdk"
                    .to_owned())
            }
        }
    }
}

/// A disk that cannot be read any more once nobody waits for it: so the thread that writes it ends, and removes what it
/// wrote.
pub(super) struct Stoppable<S> {
    pub(super) source: S,
    pub(super) stop: CancellationToken,
}

impl<S: BlockSource> BlockSource for Stoppable<S> {
    fn logical_size(&self) -> u64 {
        self.source.logical_size()
    }

    fn extents(&self) -> Extents<'_> {
        self.source.extents()
    }

    fn read_onto(&self, offset: u64, buf: &mut [u8]) -> disk::Result<usize> {
        match self.stop.is_cancelled() {
            true => Err(disk::Error::Source { source: "nobody waits for it any more".into() }),
            false => self.source.read_onto(offset, buf),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_named() {
        for name in ["raw", "vhd", "vhd-dynamic", "vhdx", "qcow2", "vmdk"] {
            assert_eq!(name.parse::<Written>().unwrap().name(), name);
        }
        assert!("floppy".parse::<Written>().unwrap_err().contains("vhd-dynamic"));
        let named = |name: &str| Written::from_extension(Path::new(name)).map(Written::name);
        assert_eq!(named("disk.VHD"), Some("vhd"));
        assert_eq!(named("disk.img.xz"), None);
        assert_eq!(named("disk"), None);
    }
}
