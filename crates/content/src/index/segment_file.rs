//! The bytes of a segment: as they are, or the sealed copy that is kept of an encrypted store's.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::framed::{FramedError, FramedFile, FramedWriter};
use crate::seal::KeyRing;
use crate::{Error, Result};

/// What is decrypted for a lookup, which reads less than this.
const SEALED_BYTES: usize = 4096;

/// An open segment's bytes.
#[derive(Debug)]
pub(super) struct SegmentFile {
    path: PathBuf,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Plain(File, u64),
    Sealed(FramedFile),
}

impl SegmentFile {
    /// Opens the segment of this name; `None` if it is gone. Blocking.
    ///
    /// # Errors
    /// [`Error::DamagedObject`] for a copy that is of no use, which one is also that is sealed with a key that is not there.
    pub(super) fn open(dir: &Path, name: &str, keys: Option<&KeyRing>) -> Result<Option<Self>> {
        let path = dir.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", &path)(error)),
        };
        let bytes = match keys {
            None => {
                let len = file.metadata().map_err(Error::io("read the size of", &path))?.len();
                Bytes::Plain(file, len)
            }
            Some(keys) => Bytes::Sealed(
                FramedFile::open(file, Some(keys), &copy_name(name)).map_err(|error| failed(&path, error))?,
            ),
        };
        Ok(Some(Self { path, bytes }))
    }

    /// How many they are.
    pub(super) fn size(&self) -> u64 {
        match &self.bytes {
            Bytes::Plain(_, size) => *size,
            Bytes::Sealed(file) => file.size(),
        }
    }

    /// Fills `buf` with those from `at`. Blocking.
    ///
    /// # Errors
    /// The file system's own, and [`Error::DamagedObject`].
    pub(super) fn read_exact_at(&self, buf: &mut [u8], at: u64) -> Result<()> {
        match &self.bytes {
            Bytes::Plain(file, _) => file.read_exact_at(buf, at).map_err(Error::io("read", &self.path)),
            Bytes::Sealed(file) => file.read_exact_at(buf, at).map_err(|error| failed(&self.path, error)),
        }
    }
}

/// Writes a copy of a segment into a new file, sealed if there are keys.
pub(super) fn write_copy(
    mut file: File,
    name: &str,
    bytes: &[u8],
    keys: Option<&KeyRing>,
) -> io::Result<File> {
    let Some(keys) = keys else {
        file.write_all(bytes)?;
        return Ok(file);
    };
    let mut writer = FramedWriter::new(BufWriter::new(file), Some(keys), &copy_name(name), SEALED_BYTES)?;
    writer.write(bytes)?;
    Ok(writer.finish()?.into_inner()?)
}

fn copy_name(name: &str) -> Vec<u8> {
    [b"index segment\0", name.as_bytes()].concat()
}

fn failed(path: &Path, error: FramedError) -> Error {
    match error {
        FramedError::Io(error) => Error::io("read", path)(error),
        other => Error::DamagedObject { object: path.display().to_string(), reason: other.to_string() },
    }
}
