//! The mark of a store that a live server uses, so that the command line leaves it to the server.
//!
//! A file in the store's folder with a shared lock on it. The lock goes with the process, however it ends, so nobody has to
//! clean up; the file's content only says who to ask. Any number of servers may use one store: what is in it does not need
//! this mark to be safe, people do.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use model::Region;
use serde::{Deserialize, Serialize};

const LOCK_FILE: &str = ".tintype-server.lock";
/// The longest content that is read.
const MAX_LOCK_BYTES: u64 = 4096;
/// Looks before a lock is taken for a server's: looking takes the lock for a moment, and two may look at once.
const LOOKS: u32 = 4;
/// Pause between two of them.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// Held by a server for as long as it has the store open.
#[derive(Debug)]
pub(crate) struct ServerLock {
    _file: File,
}

/// The server that uses a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// The region that the store is for it.
    pub region: String,
}

/// Why nothing can be said about a store.
#[derive(Debug, thiserror::Error)]
#[error("cannot tell whether a server uses the store: {path}: {source}", path = path.display())]
pub struct LockError {
    path: std::path::PathBuf,
    #[source]
    source: io::Error,
}

impl ServerLock {
    /// Marks the store in `folder` as used by this process. Waits for as long as someone looks at the mark.
    pub(crate) fn hold(folder: &Path, region: &Region) -> io::Result<Self> {
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(folder.join(LOCK_FILE))?;
        file.lock_shared()?;
        let holder = Holder { pid: std::process::id(), region: region.to_string() };
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&serde_json::to_vec(&holder)?)?;
        Ok(Self { _file: file })
    }
}

/// The live server that uses the store in `folder`; the last one to open it, if there are several.
///
/// # Errors
/// When the lock file is there and cannot be looked at.
pub fn holder(folder: &Path) -> Result<Option<Holder>, LockError> {
    let path = folder.join(LOCK_FILE);
    look(&path).map_err(|source| LockError { path, source })
}

fn look(path: &Path) -> io::Result<Option<Holder>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    for _ in 0..LOOKS {
        match file.try_lock() {
            // Nobody has it. Ours ends here.
            Ok(()) => return Ok(None),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    let mut text = Vec::new();
    file.take(MAX_LOCK_BYTES).read_to_end(&mut text)?;
    Ok(Some(serde_json::from_slice(&text)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_marked_for_as_long_as_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let region = Region::parse("westeurope").unwrap();
        assert_eq!(holder(dir.path()).unwrap(), None);
        let first = ServerLock::hold(dir.path(), &region).unwrap();
        let second = ServerLock::hold(dir.path(), &region).unwrap();
        let expected = Holder { pid: std::process::id(), region: "westeurope".to_owned() };
        assert_eq!(holder(dir.path()).unwrap(), Some(expected.clone()));
        drop(first);
        assert_eq!(holder(dir.path()).unwrap(), Some(expected));
        drop(second);
        assert_eq!(holder(dir.path()).unwrap(), None);
    }
}
