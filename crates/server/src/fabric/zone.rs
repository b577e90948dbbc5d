//! One zone of a region: its store, opened on first use, and looked at again before every use.
//!
//! A zone may be away: unmounted, unreachable, slow. Others can then do its work, so nobody waits long for it; and what is
//! not there must not be taken for what is empty, or copies would be made where nobody looks for them later.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use content::{KeyRing, StoreLocation, StoreOptions};
use model::Region;
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::FabricError;
use crate::store_lock::ServerLock;

/// Whose stores a server's are.
const STORE_OWNER: &str = "tintype";
/// Longest that a look at an open store may take.
const LOOK_MAX: Duration = Duration::from_secs(10);
/// Longest wait for a store that is being opened, where there are other zones. The opening goes on.
const OPEN_MAX: Duration = Duration::from_secs(15);
/// The same for a region's only zone: fetching a large index takes its time.
const ONLY_OPEN_MAX: Duration = Duration::from_secs(600);
/// After it took too long, a zone is not looked at for this time.
const PAUSE: Duration = Duration::from_secs(30);

/// A zone.
pub(super) struct Zone {
    region: Region,
    /// As messages name it.
    name: String,
    location: StoreLocation,
    options: StoreOptions,
    key_file: Option<PathBuf>,
    open_max: Duration,
    /// A file that says that a store was opened here.
    seen: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: Option<OpenStore>,
    opening: Option<AbortOnDropHandle<Result<OpenStore, FabricError>>>,
    /// Not to be looked at before.
    pause: Option<Instant>,
}

/// An open store, and the mark that keeps the command line from changing it meanwhile (remote stores have none).
struct OpenStore {
    store: content::Store,
    _lock: Option<ServerLock>,
}

/// What a region's zones have in common.
pub(super) struct Common<'a> {
    pub(super) region: &'a Region,
    pub(super) count: usize,
    pub(super) index_dir: &'a Path,
    pub(super) key_file: Option<&'a Path>,
    pub(super) seen_dir: &'a Path,
}

impl Zone {
    pub(super) fn new(common: &Common<'_>, index: usize, location: &StoreLocation) -> Self {
        let Common { region, count, index_dir, key_file, seen_dir } = *common;
        let name = match count {
            1 => format!("the store of region '{region}'"),
            _ => format!("zone {} of region '{region}' ({location})", index + 1),
        };
        Self {
            region: region.clone(),
            name,
            location: location.clone(),
            options: StoreOptions { index_dir: Some(index_dir.to_owned()), ..StoreOptions::default() },
            key_file: key_file.map(Path::to_owned),
            open_max: if count == 1 { ONLY_OPEN_MAX } else { OPEN_MAX },
            seen: seen_dir.join(hex::encode(&sha256(location.to_string().as_bytes())[..16])),
            state: Mutex::default(),
        }
    }

    pub(super) fn location(&self) -> &StoreLocation {
        &self.location
    }

    /// Whether a store was ever opened here.
    pub(super) fn was_opened(&self) -> bool {
        self.seen.exists()
    }

    /// The store, which is there now.
    pub(super) async fn store(&self) -> Result<content::Store, FabricError> {
        let mut state = self.state.lock().await;
        if state.pause.is_some_and(|until| Instant::now() < until) {
            return Err(self.away("it took too long to answer; it is looked at again soon"));
        }
        state.pause = None;
        if let Some(open) = &state.open {
            match tokio::time::timeout(LOOK_MAX, open.store.check_present()).await {
                Ok(Ok(())) => return Ok(open.store.clone()),
                // It was replaced, or lost: whatever is there now is opened below.
                Ok(Err(content::Error::NotAStore { .. } | content::Error::Format { .. })) => {
                    state.open = None
                }
                Ok(Err(source)) => return Err(self.fail(source)),
                Err(_) => {
                    state.pause = Some(Instant::now() + PAUSE);
                    return Err(self.away(&format!("it did not answer within {} s", LOOK_MAX.as_secs())));
                }
            }
        }
        let opening = match state.opening.take() {
            Some(opening) => opening,
            None => self.begin_to_open()?,
        };
        let opening = state.opening.insert(opening);
        let Ok(opened) = tokio::time::timeout(self.open_max, opening).await else {
            state.pause = Some(Instant::now() + PAUSE);
            return Err(self.away("it is still being opened"));
        };
        state.opening = None;
        let opened = opened.map_err(|error| self.fail(error.into()))??;
        Ok(state.open.insert(opened).store.clone())
    }

    fn begin_to_open(&self) -> Result<AbortOnDropHandle<Result<OpenStore, FabricError>>, FabricError> {
        self.check_folder()?;
        let keys = self.key_file.as_deref().map(KeyRing::from_file).transpose();
        let keys = keys.map_err(|source| self.fail(source))?;
        let options = StoreOptions { keys, ..self.options.clone() };
        let (location, region, name) = (self.location.clone(), self.region.clone(), self.name.clone());
        let seen = self.seen.clone();
        Ok(AbortOnDropHandle::new(tokio::spawn(async move {
            let store = content::Store::open_or_create_with(&location, STORE_OWNER, &options).await;
            let store = store.map_err(|source| FabricError::Store {
                region: region.clone(),
                name,
                source: Box::new(source),
            })?;
            let mark = |folder: &Path| {
                ServerLock::hold(folder, &region)
                    .map_err(|source| FabricError::Folder { path: folder.to_owned(), source })
            };
            let lock = location.as_folder().map(mark).transpose()?;
            std::fs::write(&seen, location.to_string())
                .map_err(|source| FabricError::Folder { path: seen, source })?;
            Ok(OpenStore { store, _lock: lock })
        })))
    }

    /// Refuses a folder that is gone although there was a store: nothing is made anew in a place that may be a mount point.
    pub(super) fn check_folder(&self) -> Result<(), FabricError> {
        match self.location.as_folder() {
            Some(folder) if self.seen.exists() && !folder.exists() => Err(self.away(&format!(
                "its folder {} is not there, although it had a store. If that is lost, make the folder: its copies are made again",
                folder.display()
            ))),
            _ => Ok(()),
        }
    }

    fn fail(&self, source: content::Error) -> FabricError {
        FabricError::Store { region: self.region.clone(), name: self.name.clone(), source: Box::new(source) }
    }

    fn away(&self, reason: &str) -> FabricError {
        FabricError::Away { name: self.name.clone(), reason: reason.to_owned() }
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}
