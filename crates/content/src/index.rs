//! Finding blocks: the index segments of a store, read in place.
//!
//! A segment's hashes are uniform, so that an entry is within a few dozen places of where its hash says: one read of 4 KiB
//! from the page cache finds it. No entry is kept in this process's memory, whatever the store's size; a process holds an
//! open file and a list of pack ids for each segment, and merging keeps segments few (`write/merge.rs`).
//!
//! The segments of a folder store are read where they are. Those of a remote or encrypted one are read from local copies
//! (`mirror.rs`); those of an encrypted one are sealed here as well, in frames of 4 KiB, and a lookup opens one or two.

mod mirror;
mod segment_file;

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;

pub(crate) use self::mirror::Mirror;
use self::segment_file::SegmentFile;
use crate::format::{ENTRY_BYTES, Entry, Location, SegmentHeader, decode_entry};
use crate::id::PackId;
use crate::seal::KeyRing;
use crate::{Error, Result};

/// Entries of one read: what fits 4 KiB.
const WINDOW_ENTRIES: u64 = 85;
/// Entries that are read at a time when all are wanted.
const VISIT_ENTRIES: usize = 4096;
/// Listings that find a segment gone (merged by another process) before we give up.
const MAX_LISTINGS: u32 = 10;
/// Segments that one process opens; each is an open file. Merging keeps a store of 16 million blocks under a hundred, and
/// fills segments at least by half: this many are over 128 TiB of different blocks.
const MAX_SEGMENTS: usize = 4096;

/// The segments of one store.
#[derive(Debug)]
pub(crate) struct Index {
    source: Source,
    /// Held while segments are listed and opened, so that an older listing never replaces a newer one.
    refreshing: tokio::sync::Mutex<()>,
    segments: RwLock<Arc<Vec<Arc<Segment>>>>,
    /// Segments whose bytes are not what was written. They are as if they were not there, until the store is repaired.
    damaged: RwLock<BTreeSet<String>>,
    /// Packs that were found gone: a garbage collection elsewhere moved what lives in them. Entries may outlive them.
    gone: RwLock<HashSet<PackId>>,
}

/// Where segments are read from.
#[derive(Debug)]
enum Source {
    /// The store's own folder, which need not exist yet.
    Folder(PathBuf),
    Mirror(Mirror),
}

impl Index {
    /// The index of a store in a folder of this host; empty until it is refreshed.
    pub(crate) fn in_folder(dir: PathBuf) -> Self {
        Self::of(Source::Folder(dir))
    }

    /// The index of a store whose segments are copied; empty until it is refreshed.
    pub(crate) fn mirrored(mirror: Mirror) -> Self {
        Self::of(Source::Mirror(mirror))
    }

    fn of(source: Source) -> Self {
        Self {
            source,
            refreshing: Default::default(),
            segments: RwLock::default(),
            damaged: RwLock::default(),
            gone: RwLock::default(),
        }
    }

    /// Takes note of segments that came or went since.
    pub(crate) async fn refresh(self: &Arc<Self>) -> Result<()> {
        let _alone = self.refreshing.lock().await;
        if let Source::Mirror(mirror) = &self.source {
            // Copies that turned out to be damaged are fetched again.
            self.segments()
                .iter()
                .filter(|segment| segment.is_damaged())
                .for_each(|segment| mirror.forget(&segment.name));
        }
        for _ in 0..MAX_LISTINGS {
            let names = match &self.source {
                Source::Folder(_) => None,
                Source::Mirror(mirror) => match mirror.sync(&self.damaged()).await? {
                    None => continue,
                    Some(synced) => {
                        synced.damaged.into_iter().for_each(|(name, reason)| self.set_aside(name, &reason));
                        Some(synced.names)
                    }
                },
            };
            let index = Arc::clone(self);
            if let Some(segments) = tokio::task::spawn_blocking(move || index.open_segments(names)).await?? {
                *self.segments.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(segments);
                return Ok(());
            }
        }
        let reason = format!("its segments changed during each of {MAX_LISTINGS} listings; try again");
        Err(Error::DamagedObject { object: "index".to_owned(), reason })
    }

    /// Keeps a copy of a segment that this process wrote to the store, if copies are kept.
    pub(crate) async fn keep(&self, name: &str, bytes: Bytes) {
        let Source::Mirror(mirror) = &self.source else { return };
        if let Err(error) = mirror.keep(name, bytes).await {
            // The next refresh fetches it, and says it if it cannot.
            tracing::warn!(%error, "an index segment could not be kept");
        }
    }

    /// Reads all segments whole, and returns the names of those that are damaged, which are not used from now on.
    pub(crate) async fn check(self: &Arc<Self>) -> Result<BTreeSet<String>> {
        let index = Arc::clone(self);
        let check = move || {
            for segment in index.segments().iter() {
                match segment.visit(|_| {}) {
                    Err(Error::DamagedObject { reason, .. }) => index.distrust(segment, &reason),
                    checked => checked?,
                }
            }
            Ok::<_, Error>(())
        };
        tokio::task::spawn_blocking(check).await??;
        self.refresh().await?;
        Ok(self.damaged())
    }

    /// Segments that were found to be damaged and are still there.
    pub(crate) fn damaged(&self) -> BTreeSet<String> {
        self.damaged.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes note of a segment that turned out to be damaged. A copy of one is fetched again when the index is refreshed.
    pub(crate) fn distrust(&self, segment: &Segment, reason: &str) {
        match self.source {
            Source::Folder(_) => self.set_aside(segment.name.clone(), reason),
            Source::Mirror(_) => segment.damaged.store(true, Ordering::Relaxed),
        }
    }

    /// Does without a segment.
    fn set_aside(&self, name: String, reason: &str) {
        tracing::warn!(
            name,
            reason,
            "an index segment is damaged and not used; repairing the store makes it anew"
        );
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        *segments = Arc::new(segments.iter().filter(|segment| segment.name != name).cloned().collect());
        self.changing_damaged(|damaged| damaged.insert(name));
    }

    fn changing_damaged(&self, change: impl FnOnce(&mut BTreeSet<String>) -> bool) {
        change(&mut self.damaged.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Where a block or page is. A damaged entry is treated as absent. Blocks on local files.
    pub(crate) fn find(&self, hash: &[u8; 32]) -> Result<Option<Location>> {
        self.find_where(hash, |_| true)
    }

    /// Where a block or page is, in a pack that will do and was not found gone.
    pub(crate) fn find_where(
        &self,
        hash: &[u8; 32],
        will_do: impl Fn(&PackId) -> bool,
    ) -> Result<Option<Location>> {
        let gone = self.gone.read().unwrap_or_else(PoisonError::into_inner);
        for segment in self.segments().iter() {
            if let Some(location) = segment.find(hash)?
                && !gone.contains(&location.pack)
                && will_do(&location.pack)
            {
                return Ok(Some(location));
            }
        }
        Ok(None)
    }

    /// Takes note of a pack that is no longer there.
    pub(crate) fn forget_pack(&self, pack: PackId) {
        self.gone.write().unwrap_or_else(PoisonError::into_inner).insert(pack);
    }

    pub(crate) fn segments(&self) -> Arc<Vec<Arc<Segment>>> {
        Arc::clone(&self.segments.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens the segments of these names, or those in the folder. `None` when one was gone when it was opened.
    fn open_segments(&self, names: Option<Vec<String>>) -> Result<Option<Vec<Arc<Segment>>>> {
        let (dir, mirror) = match &self.source {
            Source::Folder(dir) => (dir.as_path(), None),
            Source::Mirror(mirror) => (mirror.dir(), Some(mirror)),
        };
        let names = match names {
            Some(names) => names,
            None => list_folder(dir)?,
        };
        let known = self.segments();
        let mut segments = Vec::new();
        self.changing_damaged(|damaged| {
            damaged.retain(|name| names.contains(name));
            true
        });
        let damaged = self.damaged();
        for name in names.into_iter().filter(|name| !damaged.contains(name)) {
            let known = known.iter().find(|segment| segment.name == name && !segment.is_damaged());
            if let Some(segment) = known {
                segments.push(Arc::clone(segment));
                continue;
            }
            match (Segment::open(dir, &name, mirror.and_then(Mirror::keys)), mirror) {
                (Ok(Some(segment)), _) => segments.push(Arc::new(segment)),
                (Ok(None), _) => return Ok(None),
                (Err(error @ Error::DamagedObject { .. }), Some(mirror)) => {
                    tracing::warn!(%error, "a local copy is fetched again");
                    mirror.forget(&name);
                    return Ok(None);
                }
                (Err(Error::DamagedObject { reason, .. }), None) => self.set_aside(name, &reason),
                (Err(error), _) => return Err(error),
            }
        }
        if segments.len() > MAX_SEGMENTS {
            let reason = format!("{} segments; at most {MAX_SEGMENTS} are read", segments.len());
            return Err(Error::DamagedObject { object: "index".to_owned(), reason });
        }
        // The largest first: most blocks are there.
        segments.sort_by_key(|segment| std::cmp::Reverse(segment.header.entries));
        Ok(Some(segments))
    }
}

fn list_folder(dir: &Path) -> Result<Vec<String>> {
    let listing = match std::fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", dir)(error)),
    };
    let mut names = Vec::new();
    for file in listing {
        let name = file.map_err(Error::io("list", dir))?.file_name();
        // Anything else is an upload which did not finish.
        names.extend(name.into_string().ok().filter(|name| is_segment_name(name)));
    }
    Ok(names)
}

fn is_segment_name(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// One open segment.
#[derive(Debug)]
pub(crate) struct Segment {
    name: String,
    file: SegmentFile,
    header: SegmentHeader,
    packs: Vec<PackId>,
    /// Found to be, since it was opened.
    damaged: AtomicBool,
}

impl Segment {
    /// `None` if it is gone.
    fn open(dir: &Path, name: &str, keys: Option<&KeyRing>) -> Result<Option<Self>> {
        let Some(file) = SegmentFile::open(dir, name, keys)? else { return Ok(None) };
        let damaged = |reason| Error::DamagedObject { object: format!("index/{name}"), reason };
        let len = file.size();
        let mut bytes = [0; SegmentHeader::BYTES];
        if len < bytes.len() as u64 {
            return Err(damaged(format!("{len} bytes are too few")));
        }
        file.read_exact_at(&mut bytes, 0)?;
        let header = SegmentHeader::decode(&bytes, len).map_err(damaged)?;
        let mut table = vec![0; 16 * header.packs as usize];
        file.read_exact_at(&mut table, bytes.len() as u64)?;
        let (ids, _) = table.as_chunks::<16>();
        let packs = ids.iter().map(|id| PackId::from_bytes(*id)).collect();
        Ok(Some(Self { name: name.to_owned(), file, header, packs, damaged: AtomicBool::new(false) }))
    }

    fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Remembers damage, so that a copy is fetched again when the index is refreshed.
    fn note<T>(&self, result: Result<T>) -> Result<T> {
        if matches!(result, Err(Error::DamagedObject { .. })) {
            self.damaged.store(true, Ordering::Relaxed);
        }
        result
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn entries(&self) -> u64 {
        self.header.entries
    }

    pub(crate) fn packs(&self) -> &[PackId] {
        &self.packs
    }

    /// Reads the whole segment and checks its checksum.
    pub(crate) fn read_all(&self) -> Result<Vec<Entry>> {
        self.note(self.try_read_all())
    }

    fn try_read_all(&self) -> Result<Vec<Entry>> {
        let damaged = |reason| Error::DamagedObject { object: format!("index/{}", self.name), reason };
        let at = self.header.entries_at() as usize;
        let end = at + self.header.entries as usize * ENTRY_BYTES;
        let mut bytes = vec![0; end + 32];
        self.file.read_exact_at(&mut bytes, 0)?;
        if blake3::hash(&bytes[..end]).as_bytes() != &bytes[end..] {
            return Err(damaged("its bytes do not have its checksum".to_owned()));
        }
        let entries = bytes[at..end].chunks_exact(ENTRY_BYTES);
        let entries: Option<Vec<Entry>> = entries.map(|entry| decode_entry(entry, &self.packs)).collect();
        entries.ok_or_else(|| damaged("an entry is out of range".to_owned()))
    }

    /// Visits every entry in order, a few at a time in memory; an error where the bytes do not have their checksum.
    pub(crate) fn visit(&self, visit: impl FnMut(&Entry)) -> Result<()> {
        self.note(self.try_visit(visit))
    }

    fn try_visit(&self, mut visit: impl FnMut(&Entry)) -> Result<()> {
        let damaged = |reason| Error::DamagedObject { object: format!("index/{}", self.name), reason };
        let mut hasher = blake3::Hasher::new();
        let mut head = vec![0; self.header.entries_at() as usize];
        self.file.read_exact_at(&mut head, 0)?;
        hasher.update(&head);
        let mut at = self.header.entries_at();
        let mut left = self.header.entries;
        let mut bytes = vec![0; VISIT_ENTRIES * ENTRY_BYTES];
        while left > 0 {
            let count = left.min(VISIT_ENTRIES as u64);
            let part = &mut bytes[..count as usize * ENTRY_BYTES];
            self.file.read_exact_at(part, at)?;
            hasher.update(part);
            for entry in part.chunks_exact(ENTRY_BYTES) {
                let entry = decode_entry(entry, &self.packs);
                visit(&entry.ok_or_else(|| damaged("an entry is out of range".to_owned()))?);
            }
            at += part.len() as u64;
            left -= count;
        }
        let mut checksum = [0; 32];
        self.file.read_exact_at(&mut checksum, at)?;
        match hasher.finalize() == checksum {
            true => Ok(()),
            false => Err(damaged("its bytes do not have its checksum".to_owned())),
        }
    }

    fn find(&self, hash: &[u8; 32]) -> Result<Option<Location>> {
        match self.note(self.try_find(hash)) {
            Err(error @ Error::DamagedObject { .. }) => {
                tracing::warn!(%error, "an index segment is left out until it was fetched again");
                Ok(None)
            }
            found => found,
        }
    }

    fn try_find(&self, hash: &[u8; 32]) -> Result<Option<Location>> {
        let mut bytes = [0; WINDOW_ENTRIES as usize * ENTRY_BYTES];
        let (mut low, mut high) = (0, self.header.entries);
        let mut prefix = [0; 8];
        prefix.copy_from_slice(&hash[..8]);
        let share = u128::from(u64::from_be_bytes(prefix)) * u128::from(high);
        let mut guess = (share >> 64) as u64;
        // The first guess nearly always hits; after it, halving ends whatever the bytes are.
        while low < high {
            let start = guess.saturating_sub(WINDOW_ENTRIES / 2).clamp(low, high - 1);
            let count = WINDOW_ENTRIES.min(high - start);
            let window = &mut bytes[..count as usize * ENTRY_BYTES];
            let at = self.header.entries_at() + start * ENTRY_BYTES as u64;
            self.file.read_exact_at(window, at)?;
            let entries = window.as_chunks::<ENTRY_BYTES>().0;
            if entries[0][..32] > hash[..] {
                high = start;
            } else if entries[count as usize - 1][..32] < hash[..] {
                low = start + count;
            } else {
                let place = entries.binary_search_by(|entry| entry[..32].cmp(&hash[..]));
                let entry = place.ok().and_then(|i| decode_entry(&entries[i], &self.packs));
                return Ok(entry.map(|entry| entry.location));
            }
            guess = low + (high - low) / 2;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{FrameKind, encode_segment};

    fn entry(number: u32) -> Entry {
        let location = Location {
            pack: PackId::from_bytes([(number % 3) as u8; 16]),
            offset: number,
            len: 100,
            slot: (number % 16) as u8,
            count: 16,
            kind: FrameKind::Blocks,
        };
        Entry { hash: *blake3::hash(&number.to_le_bytes()).as_bytes(), location }
    }

    async fn open(dir: &Path) -> Result<Arc<Index>> {
        let index = Arc::new(Index::in_folder(dir.to_owned()));
        index.refresh().await?;
        Ok(index)
    }

    #[tokio::test]
    async fn every_entry_is_found_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temporary folder");
        for (name, range) in [("a", 0..5000), ("b", 5000..5001), ("c", 0..0)] {
            let bytes = encode_segment(range.map(entry).collect());
            std::fs::write(dir.path().join(name.repeat(32)), bytes).expect("write");
        }
        std::fs::write(dir.path().join(format!("{}#1", "d".repeat(32))), b"torn").expect("write");
        let index = open(dir.path()).await.expect("open");
        for number in 0..5001 {
            let entry = entry(number);
            assert_eq!(index.find(&entry.hash).expect("find"), Some(entry.location), "{number}");
        }
        for number in 5001..6000 {
            assert_eq!(index.find(&entry(number).hash).expect("find"), None);
        }
        for edge in [[0; 32], [255; 32]] {
            assert_eq!(index.find(&edge).expect("find"), None);
        }
    }

    /// Hashes that are not uniform (an adversary's, or all in one corner) are found too, only slower.
    #[tokio::test]
    async fn skewed_hashes_are_found() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let skewed = |number: u32| {
            let mut entry = entry(number);
            entry.hash = [0; 32];
            entry.hash[28..].copy_from_slice(&number.to_be_bytes());
            entry
        };
        let bytes = encode_segment((0..3000).map(skewed).collect());
        std::fs::write(dir.path().join("a".repeat(32)), bytes).expect("write");
        let index = open(dir.path()).await.expect("open");
        for number in 0..3000 {
            assert!(index.find(&skewed(number).hash).expect("find").is_some(), "{number}");
        }
    }

    #[tokio::test]
    async fn damaged_segments_are_set_aside_and_named() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let [short, flipped, whole] = ["a", "b", "c"].map(|name| name.repeat(32));
        let good = encode_segment((0..10).map(entry).collect());
        std::fs::write(dir.path().join(&short), &good[..good.len() - 1]).expect("write");
        let mut bad = good.clone();
        bad[100] ^= 1;
        std::fs::write(dir.path().join(&flipped), bad).expect("write");
        std::fs::write(dir.path().join(&whole), good).expect("write");

        let index = open(dir.path()).await.expect("open");
        assert_eq!(index.damaged(), BTreeSet::from([short.clone()]));
        assert_eq!(index.check().await.expect("check"), BTreeSet::from([short.clone(), flipped.clone()]));
        let used: Vec<_> = index.segments().iter().map(|segment| segment.name().to_owned()).collect();
        assert_eq!(used, [whole]);
        // Gone, they are forgotten.
        std::fs::remove_file(dir.path().join(&flipped)).expect("remove");
        index.refresh().await.expect("refresh");
        assert_eq!(index.damaged(), BTreeSet::from([short]));
    }
}
