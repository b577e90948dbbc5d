//! An object's file: framed (`docs/format.md`), so that nothing of it is given out unchecked, and sealed where the region has a
//! key. A file that cannot be read says which blob needs it.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use content::{FramedError, FramedFile, FramedWriter};

use super::page::PageName;
use crate::fabric::BlobFolder;

/// Bytes of a frame: what is read for the smallest range.
const FRAME_BYTES: usize = 64 << 10;
/// Between an object's own id and that of the object whose file it shares.
const SHARED: char = '-';

/// An object that a row names, where it lies.
#[derive(Debug, Clone)]
pub(crate) struct StoredObject {
    folder: BlobFolder,
    id: String,
    /// Length of its content as the row says it.
    pub(super) bytes: u64,
    /// The blob, for messages.
    blob: Arc<str>,
}

/// Bytes of a blob that cannot be read. Nothing of them was given out.
#[derive(Debug, thiserror::Error)]
#[error("object {object} of blob '{blob}' cannot be read: {source}")]
pub(super) struct Unreadable {
    blob: Arc<str>,
    object: String,
    #[source]
    source: FramedError,
}

impl StoredObject {
    /// One of the blob `blob`, as messages call it.
    pub(super) fn new(folder: BlobFolder, id: &str, bytes: u64, blob: Arc<str>) -> Self {
        Self { folder, id: id.to_owned(), bytes, blob }
    }

    /// Its file.
    pub(super) fn path(&self) -> PathBuf {
        file_of(&self.folder, &self.id)
    }

    /// Its id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Opens it for reading. Blocking.
    ///
    /// # Errors
    /// The file system's own; [`Unreadable`] inside for a file that is gone or not what it was.
    pub(super) fn open(&self) -> io::Result<FramedFile> {
        let file = File::open(self.path()).map_err(|error| self.failed(error.into()))?;
        let keys = self.folder.keys.as_deref();
        let file = FramedFile::open(file, keys, &name_of(&self.id)).map_err(|error| self.failed(error))?;
        if file.size() != self.bytes {
            let reason = format!("it has {} bytes, and had {}", file.size(), self.bytes);
            return Err(self.failed(FramedError::Damaged(reason)));
        }
        Ok(file)
    }

    /// What is told of a failure to read it.
    pub(super) fn failed(&self, source: FramedError) -> io::Error {
        failed(&self.blob, &self.id, source)
    }
}

/// What is told of a failure to read an object of a blob: the system's own error, or [`Unreadable`].
pub(super) fn failed(blob: &Arc<str>, object: &str, source: FramedError) -> io::Error {
    match source {
        FramedError::Io(error) if error.kind() != io::ErrorKind::NotFound => error,
        source => {
            let (blob, object) = (Arc::clone(blob), object.to_owned());
            io::Error::new(io::ErrorKind::InvalidData, Unreadable { blob, object, source })
        }
    }
}

/// The cause inside an error of the standard library, as it was when it was put there.
pub(super) fn cause(error: io::Error) -> FramedError {
    match error.downcast::<FramedError>() {
        Ok(cause) => cause,
        Err(error) => error.into(),
    }
}

/// The file of an object.
pub(super) fn file_of(folder: &BlobFolder, id: &str) -> PathBuf {
    folder.path.join(&id[..id.len().min(2)]).join(id)
}

/// Begins the content of an object in its new file.
pub(super) fn begin(file: File, folder: &BlobFolder, id: &str) -> io::Result<FramedWriter<File>> {
    FramedWriter::new(file, folder.keys.as_deref(), &name_of(id), FRAME_BYTES)
}

/// The id of a new object that is to share the file of another one in the same region: the file is sealed for the object that
/// it was made for, which its name must go on saying.
pub(super) fn sharing(new: &str, other: &str) -> String {
    format!("{new}{SHARED}{}", made_for(other))
}

/// The object that a file was made for.
fn made_for(id: &str) -> &str {
    id.rsplit_once(SHARED).map_or(id, |(_, first)| first)
}

fn name_of(id: &str) -> Vec<u8> {
    [b"blob object\0", made_for(id).as_bytes()].concat()
}

/// What the file of a page blob is called.
pub(super) fn page_name(folder: &BlobFolder, id: &str) -> PageName {
    PageName { name: [b"page blob\0", id.as_bytes()].concat(), keys: folder.keys.clone() }
}
