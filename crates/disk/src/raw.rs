//! Raw bytes in a file: a whole raw disk, a fixed VHD before its footer, a flat extent of a VMDK.

use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::input::{Input, check_range};
use crate::{BlockSource, Error, Extent, ExtentKind, Extents, Result};

/// A stretch of a regular file whose bytes are the disk's, and whose holes are zeros.
#[derive(Debug)]
pub struct RawFile {
    input: Input,
    /// Where the disk's first byte is in the file.
    start: u64,
    size: u64,
}

impl RawFile {
    /// Opens a raw disk: all of a regular file.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_input(Input::open(path)?)
    }

    /// A raw disk in a file that is open already.
    pub fn from_input(input: Input) -> Result<Self> {
        let size = input.file_len();
        input.check_size(size)?;
        Ok(Self { input, start: 0, size })
    }

    /// `size` bytes of the file from `start` on. The file must have them.
    pub(crate) fn window(input: Input, start: u64, size: u64) -> Result<Self> {
        input.check_size(size)?;
        if start.checked_add(size).is_none_or(|end| end > input.file_len()) {
            return Err(input.damaged(format!(
                "it has {} bytes, and {size} from {start} on are needed: was it cut off?",
                input.file_len()
            )));
        }
        Ok(Self { input, start, size })
    }

    /// Where the next data begins and ends at or after `from`, or `None` if only holes follow.
    fn next_data(&self, from: u64) -> Result<Option<(u64, u64)>> {
        let failed = |errno: Errno| Error::Io {
            action: "find the data of",
            path: self.input.path().to_owned(),
            source: errno.into(),
        };
        if from >= self.size {
            return Ok(None);
        }
        let start = match rustix::fs::seek(self.input.file(), SeekFrom::Data(self.start + from)) {
            Ok(start) => start.saturating_sub(self.start).max(from),
            Err(Errno::NXIO) => return Ok(None),
            // A file system that knows no holes: all of it is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((from, self.size))),
            Err(errno) => return Err(failed(errno)),
        };
        if start >= self.size {
            return Ok(None);
        }
        let end = match rustix::fs::seek(self.input.file(), SeekFrom::Hole(self.start + start)) {
            Ok(end) => end.saturating_sub(self.start),
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
        self.input.read_exact(self.start + offset, buf)?;
        Ok(buf.len())
    }
}
