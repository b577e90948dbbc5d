//! A local copy of the index segments of a remote or encrypted store, which lookups read in place.
//!
//! Segments are immutable and their names never used again, so a copy is never out of date: it is either wanted or not. A
//! copy is checked against its checksum before it gets its name. Copies of an encrypted store's are sealed with its keys. Any number of processes may share the folder without
//! talking to each other: at worst one removes what another still wants and fetches again, since each says itself which
//! segments it needs, and an open file outlives its name.

use std::collections::{BTreeSet, HashSet};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::segment_file::write_copy;
use super::{MAX_SEGMENTS, is_segment_name};
use crate::format::MAX_SEGMENT_BYTES;
use crate::seal::{KeyId, KeyRing, NotOpened, OBJECT_OVERHEAD_BYTES, open_object};
use crate::store::segment_path;
use crate::{Error, Result, StoreLocation};

/// Segments that are fetched at a time.
const FETCHES: usize = 4;
/// MiB of segments in memory at a time while they are fetched. The largest segment is smaller.
const MAX_FETCH_MIB: u32 = 128;
/// The largest segment as the store has it.
const MAX_OBJECT_BYTES: u64 = MAX_SEGMENT_BYTES + OBJECT_OVERHEAD_BYTES as u64;
/// Times that a segment is fetched whose bytes do not have its checksum.
const MAX_ATTEMPTS: u32 = 3;
/// What an unfinished copy's name begins with.
const UNFINISHED: &str = "tmp-";
/// Age from which an unfinished copy is taken for left over by a process that died.
const STALE_AFTER: Duration = Duration::from_secs(3600);

/// The folder, and where its files come from.
#[derive(Debug)]
pub(crate) struct Mirror {
    objects: Arc<dyn ObjectStore>,
    /// Where they are, for messages.
    location: StoreLocation,
    dir: PathBuf,
    /// Of a store whose segments are sealed.
    keys: Option<Arc<KeyRing>>,
    memory: Arc<Semaphore>,
}

impl Mirror {
    /// Opens the folder, which is made if need be.
    pub(crate) fn open(
        objects: Arc<dyn ObjectStore>,
        location: &StoreLocation,
        dir: PathBuf,
        keys: Option<Arc<KeyRing>>,
    ) -> Result<Self> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&dir).map_err(Error::io("create", &dir))?;
        Ok(Self {
            objects,
            location: location.clone(),
            dir,
            keys,
            memory: Arc::new(Semaphore::new(MAX_FETCH_MIB as usize)),
        })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the copies are sealed with.
    pub(super) fn keys(&self) -> Option<&KeyRing> {
        self.keys.as_deref()
    }

    /// Lists the store's segments and sees that there is a copy of each that is not known to be damaged; costs the listing
    /// alone if nothing is new. `None` when one of them was gone when it was fetched, merged by another process: list again.
    pub(super) async fn sync(&self, known_damaged: &BTreeSet<String>) -> Result<Option<Synced>> {
        let names = self.list().await?;
        let dir = self.dir.clone();
        let here = tokio::task::spawn_blocking(move || local_files(&dir)).await??;
        let missing: Vec<_> = names
            .iter()
            .filter(|name| !here.contains(*name) && !known_damaged.contains(*name))
            .map(|name| async move { (name.clone(), self.fetch(name).await) }.boxed())
            .collect();
        let mut fetches = futures::stream::iter(missing).buffer_unordered(FETCHES);
        let (mut complete, mut damaged) = (true, Vec::new());
        while let Some((name, fetched)) = fetches.next().await {
            match fetched {
                Ok(there) => complete &= there,
                Err(Error::DamagedObject { reason, .. }) => damaged.push((name, reason)),
                Err(error) => return Err(error),
            }
        }
        drop(fetches);
        if !complete {
            return Ok(None);
        }
        for name in here.difference(&names.iter().cloned().collect()) {
            self.forget(name);
        }
        Ok(Some(Synced { names, damaged }))
    }

    /// Keeps a segment that this process wrote, so that it need not be fetched.
    pub(super) async fn keep(&self, name: &str, bytes: Bytes) -> Result<()> {
        let (dir, name, keys) = (self.dir.clone(), name.to_owned(), self.keys.clone());
        tokio::task::spawn_blocking(move || write_new(&dir, &name, &bytes, keys.as_deref())).await?
    }

    /// Removes a copy that is not wanted, or not what it should be.
    pub(super) fn forget(&self, name: &str) {
        remove_if_there(&self.dir.join(name));
    }

    async fn list(&self) -> Result<Vec<String>> {
        let folder = object_store::path::Path::from("index");
        let mut names = Vec::new();
        let mut listing = self.objects.list(Some(&folder));
        while let Some(object) = listing.try_next().await.map_err(Error::objects("list", &folder))? {
            let name = object.location.filename().filter(|name| is_segment_name(name));
            names.extend(name.map(str::to_owned));
            if names.len() > MAX_SEGMENTS {
                let reason = format!("more than {MAX_SEGMENTS} segments");
                return Err(Error::DamagedObject { object: "index".to_owned(), reason });
            }
        }
        Ok(names)
    }

    /// Copies a segment; `false` if it is gone.
    async fn fetch(&self, name: &str) -> Result<bool> {
        let path = segment_path(name);
        let mut reason = String::new();
        for _ in 0..MAX_ATTEMPTS {
            let object = match self.objects.get(&path).await {
                Ok(object) => object,
                Err(object_store::Error::NotFound { .. }) => return Ok(false),
                Err(error) => return Err(Error::objects("read", &path)(error)),
            };
            let size = object.meta.size;
            if size > MAX_OBJECT_BYTES {
                reason = format!("{size} bytes; at most {MAX_OBJECT_BYTES} are possible");
                break;
            }
            // At most 98, and as much again while it is opened.
            let mib = (size >> 20) as u32 + 1;
            // The semaphore is never closed: there is a permit in the end.
            let _held = self.memory.acquire_many(mib).await;
            let bytes = object.bytes().await.map_err(Error::objects("read", &path))?;
            let (dir, name) = (self.dir.clone(), name.to_owned());
            let (keys, object) = (self.keys.clone(), path.to_string());
            let kept = tokio::task::spawn_blocking(move || {
                if bytes.len() as u64 != size {
                    return Err(Wrong::Damaged(format!("{} of its {size} bytes came", bytes.len())));
                }
                let bytes = open_object(keys.as_deref(), &object, bytes)?;
                check(&bytes).map_err(Wrong::Damaged)?;
                Ok(write_new(&dir, &name, &bytes, keys.as_deref()))
            });
            match kept.await? {
                Ok(kept) => return kept.map(|()| true),
                Err(Wrong::KeyMissing(key_id)) => {
                    return Err(Error::KeyNeeded { location: self.location.to_string(), key_id });
                }
                Err(Wrong::Damaged(wrong)) => reason = wrong,
            }
        }
        Err(Error::DamagedObject { object: path.to_string(), reason })
    }
}

/// What the store lists.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Synced {
    /// Its segments.
    pub(super) names: Vec<String>,
    /// Those of them that were fetched and are damaged, and why.
    pub(super) damaged: Vec<(String, String)>,
}

/// Why a segment that was fetched is not kept.
enum Wrong {
    Damaged(String),
    KeyMissing(KeyId),
}

impl From<NotOpened> for Wrong {
    fn from(why: NotOpened) -> Self {
        match why {
            NotOpened::KeyMissing(key_id) => Self::KeyMissing(key_id),
            other => Self::Damaged(other.reason()),
        }
    }
}

/// Whether these are all of a segment's bytes.
fn check(bytes: &[u8]) -> Result<(), String> {
    let Some((content, checksum)) = bytes.split_last_chunk::<32>() else {
        return Err(format!("{} bytes are too few", bytes.len()));
    };
    if blake3::hash(content).as_bytes() != checksum {
        return Err("its bytes do not have its checksum".to_owned());
    }
    Ok(())
}

/// The names of the copies. Removes what a process that died left.
fn local_files(dir: &Path) -> Result<HashSet<String>> {
    let mut names = HashSet::new();
    for file in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let file = file.map_err(Error::io("list", dir))?;
        let Ok(name) = file.file_name().into_string() else { continue };
        if is_segment_name(&name) {
            names.insert(name);
        } else if name.starts_with(UNFINISHED) {
            let modified = file.metadata().and_then(|metadata| metadata.modified());
            if modified.is_ok_and(|time| time.elapsed().unwrap_or_default() > STALE_AFTER) {
                remove_if_there(&file.path());
            }
        }
    }
    Ok(names)
}

/// Writes a file that is there completely or not at all, also after the host's power was cut.
fn write_new(dir: &Path, name: &str, bytes: &[u8], keys: Option<&KeyRing>) -> Result<()> {
    let path = dir.join(name);
    let unfinished = dir.join(format!("{UNFINISHED}{}", Uuid::new_v4().simple()));
    let mut options = std::fs::File::options();
    let written = options.write(true).create_new(true).mode(0o600).open(&unfinished).and_then(|file| {
        write_copy(file, name, bytes, keys)?.sync_data()?;
        std::fs::rename(&unfinished, &path)
    });
    if written.is_err() {
        remove_if_there(&unfinished);
    }
    written.map_err(Error::io("write", &path))
}

fn remove_if_there(path: &Path) {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "cannot remove a copy of an index segment")
        }
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::format::encode_segment;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = local_files(dir).expect("list").into_iter().collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn copies_follow_the_store() {
        let objects = Arc::new(InMemory::new());
        let dir = tempfile::tempdir().expect("temporary folder");
        let location: StoreLocation = "s3://bucket".parse().expect("location");
        let [a, b] = ["a".repeat(32), "b".repeat(32)];
        let segment = encode_segment(Vec::new());
        objects.put(&segment_path(&a), segment.clone().into()).await.expect("put");
        objects.put(&segment_path("unfinished#1"), "torn".into()).await.expect("put");

        let mirror = Mirror::open(objects.clone(), &location, dir.path().join("m"), None).expect("open");
        let none = BTreeSet::new();
        let synced = async |mirror: &Mirror| mirror.sync(&none).await.expect("sync").expect("settled");
        assert_eq!(synced(&mirror).await.names, std::slice::from_ref(&a));
        assert_eq!(std::fs::read(dir.path().join("m").join(&a)).expect("copy"), segment);

        // Merged: one comes, one goes. A process which is there already does the same beside it.
        objects.put(&segment_path(&b), segment.clone().into()).await.expect("put");
        objects.delete(&segment_path(&a)).await.expect("delete");
        let other = Mirror::open(objects.clone(), &location, dir.path().join("m"), None).expect("open");
        assert_eq!(synced(&other).await.names, std::slice::from_ref(&b));
        assert_eq!(synced(&mirror).await.names, std::slice::from_ref(&b));
        assert_eq!(names(mirror.dir()), std::slice::from_ref(&b));

        let mut damaged = segment;
        damaged[20] ^= 1;
        objects.put(&segment_path(&a), damaged.into()).await.expect("put");
        let [(name, reason)] = <[_; 1]>::try_from(synced(&mirror).await.damaged).expect("one");
        assert!(name == a && reason.contains("checksum"), "{reason}");
        assert_eq!(mirror.sync(&BTreeSet::from([a])).await.expect("sync").expect("settled").damaged, []);
        assert_eq!(names(mirror.dir()), [b]);
        assert!(!mirror.fetch(&"c".repeat(32)).await.expect("gone"));
    }
}
