//! The local cache of decompressed, verified frames, shared by every image on this host.
//!
//! One file for each frame, made under another name and renamed, so that any number of processes may share the folder
//! without talking to each other: a file is either absent or complete, and never written again. Each process verifies a
//! file once, when it opens it, and then reads from the open file, straight from the page cache: warm means verified, also
//! after a restart, a crash, or another process's defect. What the kernel caches is shared by all and is nobody's
//! anonymous memory.
//!
//! The files of an encrypted store are sealed with a key of their own, from the store's keys: whoever reads the folder learns
//! which packs are used, and nothing else. A file that none of the keys opens is a miss, and written again.
//!
//! When a cache file cannot be written (the disk is full), frames are served from memory, a few at a time.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::process::{Resource, getrlimit};
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::frame_file::{CachedFrame, Seal, encode};
use super::lru::Lru;
use crate::format::{Frame, Location};
use crate::framed::FramedError;
use crate::id::PackId;
use crate::seal::KeyRing;
use crate::store::Store;
use crate::{Error, Result};

/// Verified frames that one process keeps open, each a file descriptor: 4 GiB of disk. Half of the process's limit of
/// descriptors, if that is less.
const MAX_OPEN_FRAMES: u64 = 4096;
/// So many in any case: the usual soft limit of 1024 leaves room for them.
const MIN_OPEN_FRAMES: u64 = 64;
/// Frames that one process keeps in memory when there is no folder or its disk is full: up to 32 MiB.
const MAX_MEMORY_FRAMES: usize = 32;
/// Bytes that a process adds before it looks whether the folder is over its limit.
const MAX_SLACK_BYTES: u64 = 64 << 20;
/// Age from which an unfinished file is taken for left over by a process that died.
const STALE_AFTER: Duration = Duration::from_secs(3600);

/// A cache of frames, by pack and place. Packs are immutable and their ids are never used again, so nothing in it is ever
/// out of date, and images of several stores may share it.
#[derive(Debug)]
pub struct BlockCache {
    folder: Option<Folder>,
    open: Mutex<Lru<Key, Cell>>,
    memory: Mutex<Lru<Key, Arc<CachedFrame>>>,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    limit_bytes: u64,
    /// Written since the folder's size was last looked at.
    added_bytes: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    pack: PackId,
    offset: u32,
}

impl Key {
    /// With the keys of its store, if that is encrypted.
    fn seal<'a>(&self, keys: Option<&'a KeyRing>) -> Option<Seal<'a>> {
        let name = [b"block cache\0", self.pack.as_bytes().as_slice(), &self.offset.to_le_bytes()];
        keys.map(|keys| Seal { keys, name: name.concat() })
    }
}

/// Filled by the first who asks; the others wait for it.
type Cell = Arc<OnceCell<Arc<CachedFrame>>>;

impl BlockCache {
    /// Opens a folder, which is created if need be and may be in use by other processes. `limit_bytes` bounds the files in
    /// it, the longest unused going first; every process that writes may exceed it by 64 MiB or a sixteenth of it, and keeps
    /// up to 4096 frames of 1 MiB open, deleted or not. Blocks for as long as listing the folder takes.
    pub fn open(folder: &Path, limit_bytes: u64) -> Result<Self> {
        let tmp = folder.join("tmp");
        std::fs::create_dir_all(&tmp).map_err(Error::io("create", &tmp))?;
        let folder = Folder { path: folder.to_owned(), limit_bytes, added_bytes: AtomicU64::new(0) };
        folder.trim()?;
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Ok(Self::new(Some(folder), (descriptors / 2).clamp(MIN_OPEN_FRAMES, MAX_OPEN_FRAMES) as usize))
    }

    /// A cache of the last 32 frames in memory, for a single pass over an image.
    pub fn in_memory() -> Self {
        Self::new(None, MAX_MEMORY_FRAMES)
    }

    fn new(folder: Option<Folder>, open: usize) -> Self {
        Self { folder, open: Mutex::new(Lru::new(open)), memory: Mutex::new(Lru::new(MAX_MEMORY_FRAMES)) }
    }

    /// A frame, from here or from its store. Several who ask for the same one at once wait for one read of it.
    pub(super) async fn frame(
        self: &Arc<Self>,
        store: &Store,
        location: &Location,
    ) -> Result<Arc<CachedFrame>> {
        let key = Key { pack: location.pack, offset: location.offset };
        if let Some(frame) = lock(&self.memory).get(&key) {
            return Ok(frame);
        }
        let cell = {
            let mut open = lock(&self.open);
            open.get(&key).unwrap_or_else(|| {
                let cell = Cell::default();
                open.insert(key, Arc::clone(&cell));
                cell
            })
        };
        let frame = cell.get_or_try_init(|| self.load(store, location, key)).await?;
        if frame.is_in_memory() {
            lock(&self.open).remove(&key);
        }
        Ok(Arc::clone(frame))
    }

    /// A frame that this process has in memory or open already.
    pub(super) fn open_frame(&self, location: &Location) -> Option<Arc<CachedFrame>> {
        let key = Key { pack: location.pack, offset: location.offset };
        let kept = lock(&self.memory).get(&key);
        kept.or_else(|| lock(&self.open).get(&key)?.get().cloned())
    }

    /// Forgets a frame that could not be read, or is not what was expected; the next to ask gets it from the store.
    pub(super) fn forget(&self, location: &Location) {
        let key = Key { pack: location.pack, offset: location.offset };
        lock(&self.open).remove(&key);
        lock(&self.memory).remove(&key);
        if let Some(folder) = &self.folder {
            remove_if_there(&folder.file(&key));
        }
    }

    async fn load(
        self: &Arc<Self>,
        store: &Store,
        location: &Location,
        key: Key,
    ) -> Result<Arc<CachedFrame>> {
        if self.folder.is_some() {
            let (cache, keys) = (Arc::clone(self), store.keys().cloned());
            let find = move || cache.folder.as_ref()?.find(&key, key.seal(keys.as_deref()).as_ref());
            let found = tokio::task::spawn_blocking(find).await?;
            if let Some(frame) = found {
                return Ok(Arc::new(frame));
            }
        }
        let frame = store.load_frame(location).await?;
        let (cache, keys) = (Arc::clone(self), store.keys().cloned());
        let keep = move || cache.keep(&key, frame, key.seal(keys.as_deref()).as_ref());
        let frame = tokio::task::spawn_blocking(keep).await?;
        Ok(Arc::new(frame)).inspect(|frame: &Arc<CachedFrame>| {
            if frame.is_in_memory() {
                lock(&self.memory).insert(key, Arc::clone(frame));
            }
        })
    }

    fn keep(&self, key: &Key, frame: Frame, seal: Option<&Seal<'_>>) -> CachedFrame {
        let Some(folder) = &self.folder else { return CachedFrame::in_memory(frame.hashes, frame.plain) };
        let failed = |error| Error::io("write", &folder.file(key))(error);
        let kept = encode(&frame.hashes, &frame.plain, seal).map_err(failed).and_then(|bytes| {
            let file = folder.write(key, &bytes)?;
            CachedFrame::in_file(frame.hashes.clone(), file, seal).map_err(failed)
        });
        match kept {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(%error, "the block cache cannot be written; serving from memory");
                CachedFrame::in_memory(frame.hashes, frame.plain)
            }
        }
    }
}

impl Folder {
    fn file(&self, key: &Key) -> PathBuf {
        let pack = key.pack.to_string();
        self.path.join(&pack[..2]).join(format!("{pack}-{:08x}", key.offset))
    }

    /// Opens and verifies a file of the cache. One that is damaged is removed.
    fn find(&self, key: &Key, seal: Option<&Seal<'_>>) -> Option<CachedFrame> {
        let path = self.file(key);
        let file = File::open(&path).ok()?;
        // Its age says when it was last used. A file that cannot be touched is only evicted earlier.
        if let Err(error) = file.set_modified(SystemTime::now()) {
            tracing::debug!(%error, path = %path.display(), "cannot touch a cache file");
        }
        match CachedFrame::verify(file, seal) {
            Ok(frame) => Some(frame),
            // Sealed with a key that was retired since, or that another process has already: what is written next takes its
            // place.
            Err(FramedError::KeyMissing(_)) => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "removed a damaged file of the block cache");
                remove_if_there(&path);
                None
            }
        }
    }

    fn write(&self, key: &Key, bytes: &[u8]) -> Result<File> {
        let path = self.file(key);
        let tmp = self.path.join("tmp").join(Uuid::new_v4().simple().to_string());
        let written = write_new(&tmp, bytes).and_then(|file| {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::rename(&tmp, &path)?;
            Ok(file)
        });
        if written.is_err() {
            remove_if_there(&tmp);
        }
        let added = self.added_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
        if added > (self.limit_bytes / 16).min(MAX_SLACK_BYTES)
            && let Err(error) = self.trim()
        {
            tracing::warn!(%error, "the block cache cannot be trimmed");
        }
        written.map_err(Error::io("write", &path))
    }

    /// Removes the longest unused files until the folder is a tenth below its limit, if it is above it.
    fn trim(&self) -> Result<()> {
        self.added_bytes.store(0, Ordering::Relaxed);
        let mut files = Vec::new();
        let mut total = 0;
        let listed = Error::io("list", &self.path);
        for entry in walk(&self.path).map_err(listed)? {
            let Entry { path, len, modified } = entry;
            let age = modified.elapsed().unwrap_or_default();
            if path.parent().is_some_and(|parent| parent.ends_with("tmp")) {
                if age > STALE_AFTER {
                    remove_if_there(&path);
                }
                continue;
            }
            total += len;
            files.push((age, len, path));
        }
        if total <= self.limit_bytes {
            return Ok(());
        }
        files.sort_unstable_by_key(|(age, ..)| std::cmp::Reverse(*age));
        let goal = self.limit_bytes - self.limit_bytes / 10;
        for (_, len, path) in files {
            if total <= goal {
                break;
            }
            remove_if_there(&path);
            total -= len;
        }
        Ok(())
    }
}

struct Entry {
    path: PathBuf,
    len: u64,
    modified: SystemTime,
}

/// The files two levels down. What another process removes meanwhile is left out.
fn walk(folder: &Path) -> std::io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for sub in std::fs::read_dir(folder)? {
        let Ok(files) = std::fs::read_dir(sub?.path()) else { continue };
        for file in files {
            let file = file?;
            let Ok(metadata) = file.metadata() else { continue };
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            entries.push(Entry { path: file.path(), len: metadata.len(), modified });
        }
    }
    Ok(entries)
}

fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<File> {
    let mut file = File::options().read(true).write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

fn remove_if_there(path: &Path) {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, path = %path.display(), "cannot remove a cache file"),
    }
}

/// A panic while one of these was locked cannot leave it half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
