//! One open file of a disk, and the two ways to read it.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::patches::Patches;
use crate::{Error, MAX_DISK_BYTES, Result};

/// A regular file that holds a disk, or a part of one. Its length is taken when it is opened; a file that shrinks later
/// gives read errors.
#[derive(Debug)]
pub struct Input {
    path: PathBuf,
    file: File,
    len: u64,
    /// What is read differs from the file there.
    patches: Patches,
}

impl Input {
    /// Opens a regular file. Devices, sockets and pipes are refused: what a size or a seek means differs there.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, OFlags::empty())
    }

    /// As [`Self::open`], and refuses a symbolic link: for names that come from inside a file.
    pub(crate) fn open_no_link(path: &Path) -> Result<Self> {
        Self::open_with(path, OFlags::NOFOLLOW)
    }

    fn open_with(path: &Path, flags: OFlags) -> Result<Self> {
        // Opening a pipe would otherwise wait for its other end.
        let flags = (OFlags::NONBLOCK | flags).bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(path);
        let file = file.map_err(|source| Error::Io { action: "open", path: path.to_owned(), source })?;
        Self::from_file(path.to_owned(), file)
    }

    /// A file that is open already; `path` is what messages call it.
    pub fn from_file(path: PathBuf, file: File) -> Result<Self> {
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(source) => return Err(Error::Io { action: "read the size of", path, source }),
        };
        if !metadata.is_file() {
            let reason = "it is not a regular file; copy the disk into one first".to_owned();
            return Err(Error::Unsupported { path, reason });
        }
        Ok(Self::of_known_len(path, file, metadata.len()))
    }

    /// A file whose length is known: the sandboxed reader's, which may no longer ask.
    pub(crate) fn of_known_len(path: PathBuf, file: File, len: u64) -> Self {
        Self { path, file, len, patches: Patches::default() }
    }

    /// Lays what the file's own log says over it, for [`Self::read_exact`] and [`Self::read_padded`]. The file is `len` bytes
    /// long from now on, as the log says; those that it lacks are zeros.
    pub(crate) fn patch(&mut self, patches: Patches, len: u64) {
        self.patches = patches;
        self.len = len;
    }

    /// The name in messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's length when it was opened, in bytes.
    pub fn file_len(&self) -> u64 {
        self.len
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Fills `buf`; a file that ends before is damaged.
    pub(crate) fn read_exact(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let inside = offset.checked_add(buf.len() as u64).is_some_and(|end| end <= self.len);
        if inside && !self.patches.is_empty() {
            return self.read_padded(offset, buf);
        }
        match self.file.read_exact_at(buf, offset) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(self.damaged(format!(
                "it has {} bytes, and those from {offset} to {} are needed: was it cut off?",
                self.len,
                offset.saturating_add(buf.len() as u64)
            ))),
            Err(source) => Err(Error::Io { action: "read", path: self.path.clone(), source }),
        }
    }

    /// Fills `buf`; what lies behind the end of the file is zeros. Some programs do not write the unused tail of the
    /// last block.
    pub(crate) fn read_padded(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_file_padded(offset, buf)?;
        let patched = self.patches.apply(&self.file, offset, buf);
        patched.map_err(|source| Error::Io { action: "read", path: self.path.clone(), source })
    }

    fn read_file_padded(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            match self.file.read_at(buf, offset) {
                Ok(0) => {
                    buf.fill(0);
                    return Ok(());
                }
                Ok(n) => {
                    buf = &mut buf[n..];
                    offset += n as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Io { action: "read", path: self.path.clone(), source }),
            }
        }
        Ok(())
    }

    /// Refuses a disk that is larger than any which is read.
    pub(crate) fn check_size(&self, size: u64) -> Result<()> {
        if size > MAX_DISK_BYTES {
            return Err(self.unsupported(format!(
                "a disk of {size} bytes, and one has at most {MAX_DISK_BYTES} (32 TiB)"
            )));
        }
        Ok(())
    }

    pub(crate) fn damaged(&self, reason: String) -> Error {
        Error::Damaged { path: self.path.clone(), reason }
    }

    pub(crate) fn unsupported(&self, reason: String) -> Error {
        Error::Unsupported { path: self.path.clone(), reason }
    }
}

/// Refuses a read that leaves the disk.
pub(crate) fn check_range(offset: u64, len: u64, size: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::OutOfRange { offset, len, size }),
    }
}
