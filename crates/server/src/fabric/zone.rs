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
use uuid::Uuid;

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

/// Between two marks in a remote store.
const MARK_PAUSE: Duration = Duration::from_secs(60);

/// A zone.
pub(super) struct Zone {
    region: Region,
    server: RunningServer,
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

/// An open store, and the mark that keeps the command line from changing it meanwhile.
struct OpenStore {
    store: content::Store,
    /// Of a folder.
    _lock: Option<ServerLock>,
    /// Of any other store: says it again and again.
    _word: Option<AbortOnDropHandle<()>>,
}

/// Says in a remote store that this server uses it, until it is dropped.
fn keep_marked(store: content::Store, server: RunningServer, region: Region) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            let marked = store.mark_served(server.id, region.as_str(), server.url.as_deref()).await;
            if let Err(error) = marked {
                // Only people would have been warned by it.
                tracing::debug!(%error, store = %store.location(), "cannot mark a store as used");
            }
            tokio::time::sleep(MARK_PAUSE).await;
        }
    }))
}

/// This server, as the marks of its stores name it.
#[derive(Debug, Clone)]
pub(super) struct RunningServer {
    pub(super) id: Uuid,
    pub(super) url: Option<String>,
}

/// What a region's zones have in common.
pub(super) struct Common<'a> {
    pub(super) region: &'a Region,
    pub(super) server: &'a RunningServer,
    pub(super) count: usize,
    pub(super) index_dir: &'a Path,
    pub(super) key_file: Option<&'a Path>,
    pub(super) seen_dir: &'a Path,
}

impl Zone {
    pub(super) fn new(common: &Common<'_>, index: usize, location: &StoreLocation) -> Self {
        let Common { region, server, count, index_dir, key_file, seen_dir } = *common;
        let name = match count {
            1 => format!("the store of region '{region}'"),
            _ => format!("zone {} of region '{region}' ({location})", index + 1),
        };
        Self {
            region: region.clone(),
            server: server.clone(),
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
        let (seen, server) = (self.seen.clone(), self.server.clone());
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
            let word = lock.is_none().then(|| keep_marked(store.clone(), server, region.clone()));
            std::fs::write(&seen, location.to_string())
                .map_err(|source| FabricError::Folder { path: seen, source })?;
            Ok(OpenStore { store, _lock: lock, _word: word })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_says_which_server_uses_it() {
        let folder = tempfile::tempdir().unwrap();
        let location = StoreLocation::Folder(folder.path().to_owned());
        let store = content::Store::open_or_create(&location, STORE_OWNER).await.unwrap();
        assert_eq!(store.served().await.unwrap(), None);
        let server = RunningServer { id: Uuid::new_v4(), url: Some("https://h:1".to_owned()) };
        let mark = keep_marked(store.clone(), server.clone(), Region::parse("eastus").unwrap());
        let served = async {
            loop {
                if let Some(served) = store.served().await.unwrap() {
                    return served;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let served = tokio::time::timeout(Duration::from_secs(10), served).await.unwrap();
        assert_eq!(
            (served.id, served.url.as_deref(), served.region.as_str()),
            (server.id, Some("https://h:1"), "eastus")
        );
        assert!(served.age_s() < 60);
        drop(mark);
    }
}
