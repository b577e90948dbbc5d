//! Writes disks: raw and VHD by ourselves, the others through qemu-img.
//!
//! A file appears under its name when it is complete and on disk, and not before: it is written under another name in the
//! same folder, and an error removes it. What exists is not overwritten unless [`Existing::Replace`] asks for it.

mod qemu;
mod vhd;

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::{BlockSource, Error, ExtentKind, Format, Result};

/// Bytes read at once.
const CHUNK: u64 = 1 << 20;
/// Zeros are left out in pieces of this size.
const PIECE: usize = 64 << 10;

/// What a disk is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The disk's bytes, sparse where it is zero.
    Raw,
    /// As Azure publishes disks: see [`crate::vhd::published_size`].
    VhdFixed,
    /// Of the same size as the fixed one, without the blocks that are zero.
    VhdDynamic,
    /// Dynamic.
    Vhdx,
    /// Version 3, not compressed.
    Qcow2,
    /// `monolithicSparse`.
    Vmdk,
}

/// What to do with a file that is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// Leave it, and give [`Error::Exists`].
    #[default]
    Refuse,
    /// Replace it, once the new one is complete.
    Replace,
}

/// Writes a disk. `progress` gets the bytes of the disk that are done, now and then, and its size at the end.
pub fn write(
    source: &dyn BlockSource,
    path: &Path,
    layout: Layout,
    existing: Existing,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    if existing == Existing::Refuse && path.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: path.to_owned() });
    }
    let target = Target::create(path)?;
    match layout {
        Layout::Raw => write_raw(source, &target, progress)?,
        Layout::VhdFixed => vhd::fixed(source, &target, progress)?,
        Layout::VhdDynamic => vhd::dynamic(source, &target, progress)?,
        Layout::Vhdx => qemu::convert(source, &target, Format::Vhdx, progress)?,
        Layout::Qcow2 => qemu::convert(source, &target, Format::Qcow2, progress)?,
        Layout::Vmdk => qemu::convert(source, &target, Format::Vmdk, progress)?,
    }
    target.finish(existing)
}

/// Writes a raw disk; fails where there is a file already.
pub fn raw(source: &dyn BlockSource, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<()> {
    write(source, path, Layout::Raw, Existing::Refuse, progress)
}

/// Writes a fixed VHD of the size of [`crate::vhd::published_size`]; fails where there is a file already.
pub fn vhd_fixed(source: &dyn BlockSource, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<()> {
    write(source, path, Layout::VhdFixed, Existing::Refuse, progress)
}

/// Writes a dynamic VHD of the same size; fails where there is a file already, and where the data is more than the 2 TiB
/// that its table can address.
pub fn vhd_dynamic(source: &dyn BlockSource, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<()> {
    write(source, path, Layout::VhdDynamic, Existing::Refuse, progress)
}

/// Writes a disk in the usual layout of a format (VHD: fixed); fails where there is a file already. VHDX, qcow2 and VMDK
/// need qemu-img, and room for a raw copy in the same folder meanwhile.
pub fn convert(
    source: &dyn BlockSource,
    path: &Path,
    format: Format,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let layout = match format {
        Format::Raw => Layout::Raw,
        Format::Vhd => Layout::VhdFixed,
        Format::Vhdx => Layout::Vhdx,
        Format::Qcow2 => Layout::Qcow2,
        Format::Vmdk => Layout::Vmdk,
    };
    write(source, path, layout, Existing::Refuse, progress)
}

/// A file that is being written under another name.
struct Target<'a> {
    /// The name that it is to have.
    path: &'a Path,
    partial: NamedTempFile,
}

impl<'a> Target<'a> {
    fn create(path: &'a Path) -> Result<Self> {
        Ok(Self { path, partial: temporary_beside(path)? })
    }

    fn file(&self) -> &File {
        self.partial.as_file()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.file().set_len(len).map_err(|source| {
            // ext4's largest file has a little less than 16 TiB.
            if source.kind() == ErrorKind::FileTooLarge {
                self.refused(format!(
                    "its file system has no files of {len} bytes; use another one (XFS, btrfs)"
                ))
            } else {
                self.io("set the size of", source)
            }
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file().write_all_at(bytes, offset).map_err(|source| self.io("write", source))
    }

    /// Puts the file on disk, and then under its name.
    fn finish(self, existing: Existing) -> Result<()> {
        self.file().sync_all().map_err(|source| self.io("write", source))?;
        let path = self.path;
        let persisted = match existing {
            Existing::Refuse => self.partial.persist_noclobber(path),
            Existing::Replace => self.partial.persist(path),
        };
        persisted.map_err(|error| match error.error.kind() {
            ErrorKind::AlreadyExists => Error::Exists { path: path.to_owned() },
            _ => Error::Io { action: "name", path: path.to_owned(), source: error.error },
        })?;
        let folder = folder_of(path);
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|source| Error::Io { action: "write the folder of", path: path.to_owned(), source })
    }

    fn io(&self, action: &'static str, source: std::io::Error) -> Error {
        Error::Io { action, path: self.path.to_owned(), source }
    }

    fn refused(&self, reason: String) -> Error {
        Error::Write { path: self.path.to_owned(), reason }
    }
}

fn temporary_beside(path: &Path) -> Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    // What `open` would give: the caller's umask decides.
    let permissions = std::fs::Permissions::from_mode(0o666);
    tempfile::Builder::new()
        .prefix(".tintype-")
        .suffix(".partial")
        .permissions(permissions)
        .tempfile_in(folder_of(path))
        .map_err(|source| Error::Io { action: "create", path: path.to_owned(), source })
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn write_raw(source: &dyn BlockSource, target: &Target<'_>, progress: &mut dyn FnMut(u64)) -> Result<()> {
    target.set_len(source.logical_size())?;
    copy(source, progress, &mut |offset, bytes| target.write_at(bytes, offset))
}

/// Hands out what of a disk is not zero, in order, in pieces that do not cross a multiple of 64 KiB.
fn copy(
    source: &dyn BlockSource,
    progress: &mut dyn FnMut(u64),
    put: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let zeros = vec![0; PIECE];
    let mut buf = vec![0; CHUNK as usize];
    for extent in source.extents() {
        let extent = extent?;
        if extent.kind == ExtentKind::Zero {
            continue;
        }
        let mut at = extent.start;
        while at < extent.end() {
            let len = (CHUNK - at % CHUNK).min(extent.end() - at) as usize;
            let chunk = &mut buf[..len];
            // A source that holds less than all leaves the rest as it is.
            chunk.fill(0);
            source.read_onto(at, chunk)?;
            let mut rest = &chunk[..];
            while !rest.is_empty() {
                let len = (PIECE - (at % PIECE as u64) as usize).min(rest.len());
                let (piece, behind) = rest.split_at(len);
                if piece != &zeros[..len] {
                    put(at, piece)?;
                }
                at += len as u64;
                rest = behind;
            }
            progress(at);
        }
    }
    progress(source.logical_size());
    Ok(())
}
