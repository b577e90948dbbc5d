//! Raw disk files.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;

use crate::{BlockSource, Error, Extent, ExtentKind, Extents, MAX_DISK_BYTES, Result};

/// A raw disk: a regular file whose bytes are the disk's, and whose holes are zeros.
#[derive(Debug)]
pub struct RawFile {
    path: PathBuf,
    file: File,
    size: u64,
}

impl RawFile {
    /// Opens a regular file for reading. Its size is taken now: a file that shrinks later gives a read error.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, size) = open_regular(path)?;
        if size > MAX_DISK_BYTES {
            let reason = format!("{size} bytes, and a disk has at most {MAX_DISK_BYTES} (32 TiB)");
            return Err(Error::Unsupported { path: path.to_owned(), reason });
        }
        Ok(Self { path: path.to_owned(), file, size })
    }

    /// Where the next data begins and ends at or after `from`, or `None` if only holes follow.
    fn next_data(&self, from: u64) -> Result<Option<(u64, u64)>> {
        let failed = |errno: Errno| Error::Io {
            action: "find the data of",
            path: self.path.clone(),
            source: errno.into(),
        };
        if from >= self.size {
            return Ok(None);
        }
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // A file system that knows no holes: all of it is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((from, self.size))),
            Err(errno) => return Err(failed(errno)),
        };
        if start >= self.size {
            return Ok(None);
        }
        let end = match rustix::fs::seek(&self.file, SeekFrom::Hole(start)) {
            Ok(end) => end,
            // The file shrank or lost this stretch since the first seek; reading it will tell.
            Err(Errno::NXIO) => self.size,
            Err(errno) => return Err(failed(errno)),
        };
        Ok(Some((start, end.clamp(start + 1, self.size))))
    }
}

impl BlockSource for RawFile {
    fn logical_size(&self) -> u64 {
        self.size
    }

    fn extents(&self) -> Extents<'_> {
        let mut next = Some(0);
        Box::new(std::iter::from_fn(move || {
            let from = next.take()?;
            match self.next_data(from) {
                Ok(None) => None,
                Ok(Some((start, end))) => {
                    next = Some(end);
                    Some(Ok(Extent { start, len: end - start, kind: ExtentKind::Data }))
                }
                Err(error) => Some(Err(error)),
            }
        }))
    }

    fn read_onto(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        check_range(offset, buf.len() as u64, self.size)?;
        self.file.read_exact_at(buf, offset).map_err(|source| Error::Io {
            action: "read",
            path: self.path.clone(),
            source,
        })?;
        Ok(buf.len())
    }
}

/// Opens a regular file and returns its length. Devices, sockets and pipes are refused: what a size or a seek means
/// differs there.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let io = |action| move |source| Error::Io { action, path: path.to_owned(), source };
    // Opening a pipe would otherwise wait for its other end.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(io("open"))?;
    let metadata = file.metadata().map_err(io("read the size of"))?;
    if !metadata.is_file() {
        let reason = "it is not a regular file; copy the disk into one first".to_owned();
        return Err(Error::Unsupported { path: path.to_owned(), reason });
    }
    Ok((file, metadata.len()))
}

/// Refuses a read that leaves the disk.
pub(crate) fn check_range(offset: u64, len: u64, size: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::OutOfRange { offset, len, size }),
    }
}
