//! Garbage collection: frees what no image needs, beside writers and other collections, whatever they do meanwhile.
//!
//! ```text
//!   give up writers that seem dead      writers.rs
//!   mark what images and writers need   mark.rs
//!   choose packs to free                tally.rs
//!   condemn them, for good              condemned/<id>
//!   mark again: who came in between?
//!   copy what lives out of them         write/copy.rs   (what is damaged stays, and its pack with it)
//!   rewrite the index, remove packs     sweep.rs
//! ```
//!
//! Nothing is locked. What was condemned stays condemned: a collection that was killed is finished by the next one, and
//! several at once only do work twice. `docs/format.md` (Garbage collection) has the argument.

pub(crate) mod mark;
mod reserve;
mod sweep;
pub(crate) mod tally;
mod writers;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::Serialize;
use uuid::Uuid;

use crate::id::{BlockHash, PackId};
use crate::store::{Store, read_object};
use crate::write::{Attempt, BlockWriter, Unreadable, copy_readable};
use crate::{Error, Result};

use mark::{Marked, Roots};
use tally::{Home, Tally};

/// The largest list of condemned packs, in bytes: four million packs.
const MAX_LIST_BYTES: u64 = 64 << 20;

/// Times that a collection looks again when something that is needed is nowhere.
const MAX_LOOKS: u32 = 8;

/// What a collection may do.
#[derive(Clone, Debug)]
pub struct GcOptions {
    /// Only say what would be freed.
    pub dry_run: bool,
    /// A writer that has not renewed its record for so long is taken for dead, and begins anew if it is not. A writer of
    /// this host whose process is gone is given up at once.
    pub writer_timeout: Duration,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self { dry_run: false, writer_timeout: Duration::from_secs(3600) }
    }
}

/// What a collection did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct GcReport {
    /// Nothing was changed.
    pub dry_run: bool,
    /// Visible images.
    pub images: u64,
    /// Blocks, pages and manifests that are needed.
    pub live: u64,
    /// Packs before.
    pub packs: u64,
    /// Packs that were (or would be) removed.
    pub packs_removed: u64,
    /// Their bytes.
    pub bytes_removed: u64,
    /// Bytes of them that are needed, and were (or would be) copied into new packs first; an estimate in a dry run.
    pub bytes_moved: u64,
    /// Packs that should go and stay: something that is needed is damaged in them, and nowhere whole. Verifying the store
    /// names the images. Always 0 in a dry run, which reads no pack.
    pub packs_damaged: u64,
    /// Uploads that nobody will finish.
    pub uploads_removed: u64,
    /// Writers that were given up.
    pub writers_given_up: u64,
    /// Wall time.
    pub seconds: f64,
}

/// Whether there is room for what lives in packs that should go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Enough,
    /// Only packs in which nothing lives are freed; others that were condemned stay until there is room.
    None,
}

/// What a collection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GcStage {
    /// Reading the tables of every image.
    Marking,
    /// Copying what is needed out of packs that go.
    Moving,
    /// Removing packs.
    Removing,
}

impl Store {
    /// Frees what nothing needs. Safe beside everything else that uses the store, and to be killed at any point.
    pub async fn gc(
        &self,
        options: &GcOptions,
        progress: impl Fn(GcStage, u64, u64) + Send + Sync,
    ) -> Result<GcReport> {
        self.check_writable()?;
        let done = match self.collect(options, Room::Enough, &progress).await {
            Err(error) if error.is_no_space() && self.spend_reserve() => {
                tracing::warn!(%error, "the disk is full: freeing only what needs no room");
                self.collect(options, Room::None, &progress).await
            }
            done => done,
        };
        self.keep_reserve();
        done
    }

    async fn collect(
        &self,
        options: &GcOptions,
        room: Room,
        progress: &(impl Fn(GcStage, u64, u64) + Send + Sync),
    ) -> Result<GcReport> {
        let started = Instant::now();
        let mut report = GcReport { dry_run: options.dry_run, ..GcReport::default() };
        if !options.dry_run {
            report.writers_given_up = self.give_up_writers(options.writer_timeout).await?;
        }
        let mut marked = Marked::default();
        let (packs, tally, victims, adopted) = self.survey(room, &mut marked, &mut report, progress).await?;
        if options.dry_run {
            let gone: HashSet<_> = victims.union(&adopted).copied().collect();
            (report.packs_removed, report.bytes_removed) = sizes(&packs, &gone);
            report.bytes_moved = gone.iter().map(|pack| tally.live_bytes(pack)).sum();
            report.seconds = started.elapsed().as_secs_f64();
            return Ok(report);
        }
        self.replace(&victims, &[], room, &mut marked, &mut report, progress).await?;
        report.uploads_removed = self.remove_dead_uploads(options.writer_timeout).await?;
        report.seconds = started.elapsed().as_secs_f64();
        Ok(report)
    }

    /// Condemns packs, copies out of them what is needed (from `replicas` where this store's bytes are damaged), and
    /// removes them; finishes what other collections began.
    pub(crate) async fn replace(
        &self,
        victims: &HashSet<PackId>,
        replicas: &[Store],
        room: Room,
        marked: &mut Marked,
        report: &mut GcReport,
        progress: &(impl Fn(GcStage, u64, u64) + Send + Sync),
    ) -> Result<()> {
        if !victims.is_empty() {
            self.condemn(victims).await?;
        }
        // Our record comes before we look who needs what, as any writer's does: other collections leave our packs alone.
        let attempt = Attempt::begin(self, None).await?;
        let done = self.replace_as(&attempt, replicas, room, marked, report, progress).await;
        attempt.end().await?;
        done
    }

    /// What is needed, what is there, and what should go.
    async fn survey(
        &self,
        room: Room,
        marked: &mut Marked,
        report: &mut GcReport,
        progress: &(impl Fn(GcStage, u64, u64) + Send + Sync),
    ) -> Result<(BTreeMap<PackId, u64>, Tally, HashSet<PackId>, HashSet<PackId>)> {
        let mut tried = 0;
        loop {
            // Before we look who writes: whoever wrote a pack of this list is seen, or has made it visible.
            let packs = self.list_packs().await?;
            let roots = self.roots().await?;
            mark::mark(std::slice::from_ref(self), &roots, marked, progress).await?;
            let adopted = self.condemned().await?;
            self.refresh().await?;
            let tally = match tally::tally(self, marked, &packs).await {
                Err(Error::NotIndexed { hash }) => {
                    self.look_again(&roots, &mut tried, hash).await?;
                    marked.forget();
                    continue;
                }
                tally => tally?,
            };
            report.packs = packs.len() as u64;
            report.images = roots.visible.len() as u64;
            report.live = marked.len() as u64;
            let victims = tally.choose(&packs, &roots.writers, &adopted, room);
            return Ok((packs, tally, victims, adopted));
        }
    }

    async fn replace_as(
        &self,
        attempt: &Attempt,
        replicas: &[Store],
        room: Room,
        marked: &mut Marked,
        report: &mut GcReport,
        progress: &(impl Fn(GcStage, u64, u64) + Send + Sync),
    ) -> Result<()> {
        let mut sources = vec![self.clone()];
        sources.extend_from_slice(replicas);
        let mut tried = 0;
        let (lists, condemned, packs, dead, left) = loop {
            // In this order: what is condemned, what is needed, what is there. Whoever comes later sees what we condemned.
            let lists = self.condemned_lists().await?;
            let condemned: HashSet<PackId> = lists.iter().flat_map(|(_, packs)| packs).copied().collect();
            let roots = self.roots().await?;
            mark::mark(&sources, &roots, marked, progress).await?;
            self.refresh().await?;
            let named: HashSet<PackId> =
                self.index().segments().iter().flat_map(|segment| segment.packs().to_vec()).collect();
            let packs = self.list_packs().await?;
            let dead: HashSet<PackId> = named.into_iter().filter(|pack| !packs.contains_key(pack)).collect();
            if condemned.is_empty() && dead.is_empty() {
                return Ok(());
            }
            let (there, going) = (packs.clone(), condemned.clone());
            let home = move |pack: &PackId| match (there.contains_key(pack), going.contains(pack)) {
                (false, _) => Home::None,
                (true, true) => Home::Condemned,
                (true, false) => Home::Safe,
            };
            let moved = match (tally::stranded(self, marked, home).await, room) {
                (Ok(stranded), Room::Enough) => self.move_out(attempt, &sources, stranded, progress).await,
                (Ok(hashes), Room::None) => Ok((0, Unreadable { hashes, first: None })),
                (Err(error), _) => Err(error),
            };
            match moved {
                Ok((bytes, left)) => {
                    report.bytes_moved += bytes;
                    break (lists, condemned, packs, dead, left);
                }
                // Another collection may have freed what was needed when we marked, and no longer is.
                Err(Error::NotIndexed { hash }) => {
                    self.look_again(&roots, &mut tried, hash).await?;
                    marked.forget();
                }
                Err(error) => return Err(error),
            }
        };

        let staying = self.homes_of(left.hashes, &condemned).await?;
        if let Some(error) = left.first {
            let (packs, store) = (staying.len(), self.location());
            tracing::warn!(%error, packs, %store, "packs stay for damage; verifying the store names the images");
            report.packs_damaged += staying.len() as u64;
        }
        let gone: HashSet<PackId> =
            condemned.union(&dead).filter(|pack| !staying.contains(pack)).copied().collect();
        if room == Room::Enough {
            self.rewrite_segments(&gone).await?;
        }
        let removable: HashSet<PackId> =
            condemned.intersection(&gone).filter(|pack| packs.contains_key(*pack)).copied().collect();
        self.remove_packs(&removable, progress).await?;
        let (count, bytes) = sizes(&packs, &removable);
        report.packs_removed += count;
        report.bytes_removed += bytes;
        if room == Room::None {
            // Now there is some; until here, entries of packs that are gone do no harm.
            self.rewrite_segments(&gone).await?;
        }
        // A list goes with the last of its packs, and is not written anew with those that stay: who lists `condemned/`
        // while one list takes another's place may see neither, and count on a pack that another collection removes.
        for (path, packs) in lists {
            if !packs.iter().any(|pack| staying.contains(pack)) {
                self.remove_object(&path).await?;
            }
        }
        Ok(())
    }

    /// The condemned packs that hold what was not copied out of them.
    async fn homes_of(&self, hashes: Vec<[u8; 32]>, condemned: &HashSet<PackId>) -> Result<HashSet<PackId>> {
        let (index, condemned) = (Arc::clone(self.index()), condemned.clone());
        let find = move || {
            let mut homes = HashSet::new();
            for hash in hashes {
                // All of them: where it is damaged, the disk of each may yet give it.
                while let Some(location) =
                    index.find_where(&hash, |pack| condemned.contains(pack) && !homes.contains(pack))?
                {
                    homes.insert(location.pack);
                }
            }
            Ok(homes)
        };
        tokio::task::spawn_blocking(find).await?
    }

    /// Copies what lives in condemned packs alone into new ones. Returns the bytes that this added, and what cannot be
    /// copied because it is damaged.
    async fn move_out(
        &self,
        attempt: &Attempt,
        sources: &[Store],
        stranded: Vec<[u8; 32]>,
        progress: &(impl Fn(GcStage, u64, u64) + Send + Sync),
    ) -> Result<(u64, Unreadable)> {
        let total = stranded.len() as u64;
        progress(GcStage::Moving, 0, total);
        let mut writer = BlockWriter::new(attempt);
        let wanted = stranded.into_iter().map(|hash| (hash, ())).collect();
        let copied = copy_readable(sources, wanted, &mut writer).await;
        let unreadable = copied.map_err(|failed| *failed.error)?;
        let moved = writer.finish().await?.stored_bytes;
        progress(GcStage::Moving, total, total);
        Ok((moved, unreadable))
    }

    /// Decides what it means that something needed is nowhere: an image that went meanwhile, or a loss.
    async fn look_again(&self, roots: &Roots, tried: &mut u32, hash: BlockHash) -> Result<()> {
        *tried += 1;
        let unchanged = roots.visible == self.visible_images().await?;
        if unchanged && *tried >= mark::MAX_UNCHANGED || *tried >= MAX_LOOKS {
            return Err(Error::NotIndexed { hash });
        }
        Ok(())
    }

    async fn condemn(&self, packs: &HashSet<PackId>) -> Result<()> {
        let path = Path::from(format!("condemned/{}", Uuid::new_v4().simple()));
        let bytes: Vec<u8> = packs.iter().flat_map(|pack| *pack.as_bytes()).collect();
        self.objects().put(&path, bytes.into()).await.map_err(Error::objects("write", &path))?;
        Ok(())
    }

    /// What collections have condemned and not yet removed.
    pub(crate) async fn condemned_lists(&self) -> Result<Vec<(Path, Vec<PackId>)>> {
        let folder = Path::from("condemned");
        let listing = self.objects().list(Some(&folder));
        let objects: Vec<_> = listing.try_collect().await.map_err(Error::objects("list", &folder))?;
        let mut lists = Vec::new();
        for object in objects {
            let path = object.location;
            // One that is gone since was finished: its packs are gone as well.
            let Some(bytes) = read_object(&**self.objects(), &path, MAX_LIST_BYTES).await? else { continue };
            let (packs, rest) = bytes.as_chunks::<16>();
            if !rest.is_empty() {
                let reason = format!("{} bytes are no list of packs", bytes.len());
                return Err(Error::DamagedObject { object: path.to_string(), reason });
            }
            lists.push((path, packs.iter().map(|id| PackId::from_bytes(*id)).collect()));
        }
        Ok(lists)
    }

    /// The packs that are there, with their sizes.
    pub(crate) async fn list_packs(&self) -> Result<BTreeMap<PackId, u64>> {
        let folder = Path::from("packs");
        let mut packs = BTreeMap::new();
        let mut listing = self.objects().list(Some(&folder));
        while let Some(object) = listing.try_next().await.map_err(Error::objects("list", &folder))? {
            if let Some(id) = object.location.filename().and_then(|name| name.parse().ok()) {
                packs.insert(id, object.size);
            }
        }
        Ok(packs)
    }

    pub(crate) async fn remove_object(&self, path: &Path) -> Result<()> {
        match self.objects().delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(Error::objects("remove", path)(error)),
        }
    }
}

fn sizes(packs: &BTreeMap<PackId, u64>, of: &HashSet<PackId>) -> (u64, u64) {
    let bytes: Vec<u64> = of.iter().filter_map(|pack| packs.get(pack)).copied().collect();
    (bytes.len() as u64, bytes.iter().sum())
}
