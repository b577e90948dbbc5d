//! The step cache: snapshots of disk and machine state, one directory each.
//!
//! An entry is `<key>/{entry.json, state, 0.qcow2 … n.qcow2}`. Its layers are hard links, so an entry is
//! complete by itself, shares its bytes with its ancestors, and may be evicted while a VM still reads the
//! same files. Entries appear by a rename, so a half-written one is never found. They hold a guest's memory
//! and the builder's key: the directory belongs to the server alone (mode 0700).

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use vmhost::{StateKey, VmIdentity};

use crate::error::BuildError;
use crate::key::StepKey;
use crate::ssh::SshKey;

const ENTRY_FILE: &str = "entry.json";
const STATE_FILE: &str = "state";
const LAST_FILE: &str = "last-plan.json";

/// Bounds of the cache.
#[derive(Debug, Clone, Copy)]
pub struct CacheLimits {
    /// Bytes on disk, shared layers counted once.
    pub bytes_max: u64,
    /// Age after which an entry is not used any more.
    pub age_max: Duration,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self { bytes_max: 20 << 30, age_max: Duration::from_secs(24 * 3600) }
    }
}

/// A directory of snapshots.
#[derive(Debug, Clone)]
pub struct StepCache {
    dir: PathBuf,
    limits: CacheLimits,
}

/// A usable snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) entry: Entry,
    /// Frozen layers from the bottom to the top.
    pub(crate) layers: Vec<PathBuf>,
    /// The saved machine.
    pub(crate) state: PathBuf,
}

/// What must be known beside the files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) layer_count: usize,
    pub(crate) state_key: StateKey,
    pub(crate) builder_key: SshKey,
    pub(crate) identity: VmIdentity,
}

impl StepCache {
    /// Opens the cache in `dir`, making it if absent.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(dir: &Path, limits: CacheLimits) -> std::io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        Ok(Self { dir: dir.to_owned(), limits })
    }

    /// The entry of `key`, if it is there, complete and young enough.
    pub(crate) fn find(&self, key: &StepKey) -> Option<Snapshot> {
        let dir = self.dir.join(key.as_str());
        let made = std::fs::metadata(dir.join(ENTRY_FILE)).ok()?.modified().ok()?;
        if SystemTime::now().duration_since(made).unwrap_or_default() > self.limits.age_max {
            return None;
        }
        let entry: Entry = serde_json::from_slice(&std::fs::read(dir.join(ENTRY_FILE)).ok()?).ok()?;
        let layers: Vec<_> = (0..entry.layer_count).map(|n| layer(&dir, n)).collect();
        let state = dir.join(STATE_FILE);
        let complete = layers.iter().chain([&state]).all(|path| path.exists());
        complete.then_some(Snapshot { entry, layers, state })
    }

    /// Links a snapshot's layers into a run's directory, so that eviction cannot take them away.
    pub(crate) fn pin(&self, snapshot: &Snapshot, dir: &Path) -> Result<Snapshot, BuildError> {
        let link = |from: &Path, to: PathBuf| -> Result<PathBuf, BuildError> {
            std::fs::hard_link(from, &to).map_err(BuildError::io("take a layer from the step cache"))?;
            Ok(to)
        };
        let layers = snapshot
            .layers
            .iter()
            .enumerate()
            .map(|(n, path)| link(path, dir.join(format!("cached-{n}.qcow2"))))
            .collect::<Result<_, _>>()?;
        let state = link(&snapshot.state, dir.join("cached-state"))?;
        Ok(Snapshot { entry: snapshot.entry.clone(), layers, state })
    }

    /// Where a new entry's state is written before [`StepCache::insert`] takes it: the same file system.
    pub(crate) fn state_for_insert(&self, run_dir: &Path) -> PathBuf {
        run_dir.join("new-state")
    }

    /// Adds an entry from a run's files; the run keeps its own links. An older entry is replaced.
    pub(crate) fn insert(
        &self,
        key: &StepKey,
        entry: &Entry,
        layers: &[PathBuf],
        state: &Path,
    ) -> Result<(), BuildError> {
        let io = |what: &'static str| BuildError::io(what);
        let temporary = self.dir.join(format!("new-{}-{}", std::process::id(), key.as_str()));
        remove(&temporary).map_err(io("clear the step cache"))?;
        std::fs::DirBuilder::new().mode(0o700).create(&temporary).map_err(io("add to the step cache"))?;
        for (n, path) in layers.iter().enumerate() {
            std::fs::hard_link(path, layer(&temporary, n)).map_err(io("link a layer into the step cache"))?;
        }
        std::fs::rename(state, temporary.join(STATE_FILE)).map_err(io("move a state into the step cache"))?;
        let text = serde_json::to_vec(entry).map_err(|error| io("write a cache entry")(error.into()))?;
        std::fs::write(temporary.join(ENTRY_FILE), text).map_err(io("write a cache entry"))?;
        let place = self.dir.join(key.as_str());
        remove(&place).map_err(io("replace a cache entry"))?;
        std::fs::rename(&temporary, &place).map_err(io("add to the step cache"))?;
        self.evict();
        Ok(())
    }

    /// Removes expired entries, then the oldest, until the bound holds. What cannot be removed now is tried
    /// again next time.
    fn evict(&self) {
        let now = SystemTime::now();
        let mut entries: Vec<_> = std::fs::read_dir(&self.dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().join(ENTRY_FILE).exists())
            .filter_map(|entry| {
                let made = std::fs::metadata(entry.path().join(ENTRY_FILE)).ok()?.modified().ok()?;
                Some((made, entry.path()))
            })
            .collect();
        entries.sort();
        let mut kept = Vec::new();
        for (made, path) in entries {
            if now.duration_since(made).unwrap_or_default() > self.limits.age_max {
                drop(remove(&path));
            } else {
                kept.push(path);
            }
        }
        let mut kept = kept.as_slice();
        while let [oldest, rest @ ..] = kept
            && bytes_on_disk(kept) > self.limits.bytes_max
        {
            drop(remove(oldest));
            kept = rest;
        }
    }

    /// The plan of the last run with these rights, for explaining misses.
    pub(crate) fn last_plan(&self, rights_digest: &str) -> Option<crate::explain::Plan> {
        let bytes = std::fs::read(self.dir.join(format!("{rights_digest}.{LAST_FILE}"))).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Remembers a run's plan. It only serves explanations, so failing to write it fails nothing.
    pub(crate) fn remember_plan(&self, rights_digest: &str, plan: &crate::explain::Plan) {
        let path = self.dir.join(format!("{rights_digest}.{LAST_FILE}"));
        if let Ok(text) = serde_json::to_vec(plan)
            && let Err(error) = std::fs::write(&path, text)
        {
            tracing::warn!(%error, "cannot remember the plan of this run");
        }
    }
}

fn layer(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("{n}.qcow2"))
}

fn remove(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Allocated bytes below some directories, each inode once.
fn bytes_on_disk(dirs: &[PathBuf]) -> u64 {
    let mut seen = std::collections::HashSet::new();
    dirs.iter()
        .flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten())
        .filter_map(|file| file.metadata().ok())
        .filter(|meta| seen.insert((meta.dev(), meta.ino())))
        .map(|meta| meta.blocks() * 512)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::identity;

    fn add(cache: &StepCache, run: &Path, name: &str, bytes: usize) -> StepKey {
        let key: StepKey = serde_json::from_value(name.repeat(32).into()).unwrap();
        let path = run.join(format!("{name}.qcow2"));
        std::fs::write(&path, vec![1; bytes]).unwrap();
        let state = cache.state_for_insert(run);
        std::fs::write(&state, b"state").unwrap();
        let entry = Entry {
            layer_count: 1,
            state_key: StateKey::generate().unwrap(),
            builder_key: SshKey::generate().unwrap(),
            identity: identity(),
        };
        cache.insert(&key, &entry, &[path], &state).unwrap();
        key
    }

    #[test]
    fn entries_are_found_pinned_and_survive_eviction_in_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        std::fs::create_dir(&run).unwrap();
        let limits = CacheLimits { bytes_max: 300_000, age_max: Duration::from_secs(60) };
        let cache = StepCache::open(&dir.path().join("cache"), limits).unwrap();
        let old = add(&cache, &run, "aa", 200_000);
        let found = cache.find(&old).unwrap();
        let pinned = cache.pin(&found, &run).unwrap();
        let new = add(&cache, &run, "bb", 200_000);
        assert!(cache.find(&old).is_none(), "the older entry had to go");
        assert!(cache.find(&new).is_some());
        assert_eq!(std::fs::read(&pinned.layers[0]).unwrap().len(), 200_000);
    }

    #[test]
    fn an_expired_or_incomplete_entry_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let limits = CacheLimits { bytes_max: 1 << 30, age_max: Duration::from_secs(60) };
        let cache = StepCache::open(&dir.path().join("cache"), limits).unwrap();
        let key = add(&cache, dir.path(), "aa", 10);
        let old = SystemTime::now() - Duration::from_secs(61);
        let entry = dir.path().join("cache").join(key.as_str()).join(ENTRY_FILE);
        std::fs::File::options().write(true).open(&entry).unwrap().set_modified(old).unwrap();
        assert!(cache.find(&key).is_none());
        let key = add(&cache, dir.path(), "bb", 10);
        std::fs::remove_file(dir.path().join("cache").join(key.as_str()).join("0.qcow2")).unwrap();
        assert!(cache.find(&key).is_none());
    }
}
