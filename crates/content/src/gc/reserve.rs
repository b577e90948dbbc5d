//! Room for a collection on a full disk: it has to write a few small objects before it can free anything.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use crate::Error;
use crate::store::Store;

/// What a collection writes before it frees the first pack: its record, and a list of condemned packs.
const RESERVE_BYTES: usize = 256 << 10;

impl Store {
    /// Makes sure that a folder store has its reserve. One that cannot be made now is made later.
    pub(crate) fn keep_reserve(&self) {
        let Some(path) = self.reserve_path() else { return };
        if path.metadata().is_ok_and(|file| file.len() == RESERVE_BYTES as u64) {
            return;
        }
        // Bytes that a file system which compresses cannot make smaller than they are.
        let mut bytes = vec![0; RESERVE_BYTES];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        let written = File::create(&path).and_then(|mut file| file.write_all(&bytes));
        if let Err(error) = written {
            tracing::debug!(%error, path = %path.display(), "there is no room for a reserve");
        }
    }

    /// Gives the reserve up; `false` if there is none.
    pub(super) fn spend_reserve(&self) -> bool {
        self.reserve_path().is_some_and(|path| std::fs::remove_file(path).is_ok())
    }

    fn reserve_path(&self) -> Option<PathBuf> {
        Some(self.location().as_folder()?.join("reserve"))
    }
}

impl Error {
    /// Whether the disk is full.
    pub(super) fn is_no_space(&self) -> bool {
        let causes = std::iter::successors(Some(self as &dyn std::error::Error), |error| error.source());
        let mut system = causes.filter_map(|error| error.downcast_ref::<std::io::Error>());
        system.any(|error| error.kind() == std::io::ErrorKind::StorageFull)
    }
}
