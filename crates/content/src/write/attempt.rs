//! One write that is under way, so that a garbage collection beside it takes nothing that it needs.
//!
//! Nobody waits for anybody, and no clock decides about safety (`docs/format.md`, Writers, has the argument). A writer says
//! what it holds in `writers/<id>`, and only then looks at what is condemned; a collection condemns, and only then looks at
//! what writers hold. Whichever came second sees the other: the collection saves what is held, or the writer finds that a
//! pack it counted on is condemned, and writes those blocks again. A collection may give a writer up that seems dead; it
//! says so first and then looks at which reference the writer intends, so that again one of the two notices. A writer may
//! be paused anywhere, for any time.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::copy::copy_readable;
use super::process::Process;
use super::writer::BlockWriter;
use crate::id::{ManifestId, PackId, WriterId};
use crate::refs::{Intent, OwnerKey};
use crate::store::{Store, check_owner, pack_path, to_json, unix_seconds};
use crate::{Error, Result};

/// How often a writer says that it lives. A collection gives it up after many of these (`GcOptions::writer_timeout`).
const HEARTBEAT: Duration = Duration::from_secs(60);
/// Packs that are asked for at a time whether they are still there.
const MAX_HEADS: usize = 16;
/// Times that a write begins anew because a collection condemned what it counted on.
pub(super) const MAX_ATTEMPTS: u32 = 8;
/// Pause before the second attempt; doubled for each further one, at most 32 times.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// `writers/<id>`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) started_unix_s: u64,
    pub(crate) renewed_unix_s: u64,
    /// Images that must stay whole, visible or not.
    pub(crate) holds: BTreeSet<ManifestId>,
    /// The reference that this writer is about to create.
    pub(crate) intent: Option<Intent>,
    /// To notice early that the writer is dead.
    pub(crate) process: Option<Process>,
}

/// What became of the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The image is visible.
    Visible,
    /// A collection took something that it needs, or gave the writer up: begin anew.
    Again,
}

/// A write that is under way.
#[derive(Debug)]
pub(crate) struct Attempt {
    store: Store,
    id: WriterId,
    record: Arc<Mutex<Record>>,
    avoid: Arc<HashSet<PackId>>,
    /// The reference whose creation was begun and may still come to pass.
    creating: Option<Intent>,
    heartbeat: Option<AbortOnDropHandle<()>>,
}

impl Attempt {
    /// Begins a write, on top of a visible image or of nothing.
    pub(crate) async fn begin(store: &Store, base: Option<&ManifestId>) -> Result<Self> {
        let attempt = Self::announce(store, base, None).await?;
        // From here on, a pack that the index names without being condemned is safe, or we will hear of it.
        store.refresh().await?;
        if let Some(base) = base
            && let Err(error) = attempt.secure(base).await
        {
            attempt.end().await?;
            return Err(error);
        }
        Ok(attempt)
    }

    async fn announce(store: &Store, base: Option<&ManifestId>, intent: Option<Intent>) -> Result<Self> {
        store.check_writable()?;
        let now = unix_seconds();
        let record = Record {
            started_unix_s: now,
            renewed_unix_s: now,
            holds: base.copied().into_iter().collect(),
            intent,
            process: Process::current(),
        };
        let id = WriterId::random();
        write_record(store, &id, &record).await?;
        let record = Arc::new(Mutex::new(record));
        let beating = beat(store.clone(), id, Arc::clone(&record));
        let heartbeat = Some(AbortOnDropHandle::new(tokio::spawn(beating)));
        let avoid = Arc::default();
        let mut attempt = Self { store: store.clone(), id, record, avoid, creating: None, heartbeat };
        attempt.avoid = Arc::new(store.condemned().await?);
        Ok(attempt)
    }

    /// Packs that were condemned when the write began: it writes their blocks again.
    pub(crate) fn avoid(&self) -> &Arc<HashSet<PackId>> {
        &self.avoid
    }

    /// Makes an image visible whose every block is durable and found. `used`: the packs that the write counted on or made.
    pub(super) async fn publish(
        mut self,
        manifest: ManifestId,
        owner: &str,
        used: &HashSet<PackId>,
    ) -> Result<Outcome> {
        check_owner(owner)?;
        let intent = Intent { manifest, owner: OwnerKey::of(owner) };
        {
            let mut record = self.record.lock().await;
            record.holds.insert(manifest);
            record.intent = Some(intent.clone());
            record.renewed_unix_s = unix_seconds();
            write_record(&self.store, &self.id, &record).await?;
        }
        // Condemned first, then whether the packs are there: a pack that is neither condemned nor gone now can only be
        // condemned by a collection that will see our record.
        let condemned = self.store.condemned().await?;
        let whole = used.is_disjoint(&condemned) && self.store.packs_exist(used).await?;
        let visible = whole && self.create_ref(&intent, owner).await?;
        self.end().await?;
        Ok(if visible { Outcome::Visible } else { Outcome::Again })
    }

    /// Creates the reference, unless a collection has given this writer up. The record names the reference already.
    async fn create_ref(&mut self, intent: &Intent, owner: &str) -> Result<bool> {
        if self.store.is_given_up(&self.id).await? {
            return Ok(false);
        }
        self.creating = Some(intent.clone());
        let created = match self.store.create_ref(intent, owner, &self.id).await {
            Ok(created) => created,
            // Whether it was created is not known, and the request may yet arrive: it is forbidden before this writer
            // lets go of anything.
            Err(error) => match self.store.forbid_ref(intent, &self.id).await {
                Ok(true) => {
                    self.creating = None;
                    return Err(error);
                }
                Ok(false) => true,
                Err(_) => return Err(error),
            },
        };
        self.creating = None;
        Ok(created)
    }

    /// Ends the write: what it held may go. One whose reference may yet come to pass is left to a collection.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.heartbeat = None;
        match &self.creating {
            Some(_) => Ok(()),
            None => self.store.remove_writer(&self.id).await,
        }
    }

    /// Makes a visible image safe that this writer holds: what of it is in packs that were condemned before is copied out
    /// of them. What is damaged there stays: collections leave packs alone out of which they cannot copy everything, and
    /// who refers to an image that is damaged makes it no worse.
    async fn secure(&self, manifest: &ManifestId) -> Result<()> {
        if !self.store.has_manifest(manifest).await? {
            return Err(self.store.not_found(manifest));
        }
        if self.avoid.is_empty() {
            return Ok(());
        }
        let stranded = self.store.hashes_only_in(manifest, &self.avoid).await?;
        let mut writer = BlockWriter::new(self);
        let unreadable = copy_readable(std::slice::from_ref(&self.store), stranded, &mut writer)
            .await
            .map_err(|failed| *failed.error)?;
        if let Some(error) = unreadable.first {
            let parts = unreadable.hashes.len();
            tracing::warn!(%error, %manifest, parts, "an image that is written upon, or shared, is damaged");
        }
        writer.finish().await?;
        Ok(())
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Part of the names of the packs that it writes: a collection leaves those of living writers alone.
    pub(super) fn id(&self) -> WriterId {
        self.id
    }
}

impl Drop for Attempt {
    /// A write that failed or was cut off leaves its record to the next collection, if it cannot remove it now.
    fn drop(&mut self) {
        if self.heartbeat.take().is_none() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (store, id, creating) = (self.store.clone(), self.id, self.creating.take());
            runtime.spawn(async move {
                let forbidden = match &creating {
                    Some(intent) => store.forbid_ref(intent, &id).await.map(drop),
                    None => Ok(()),
                };
                let removed = match forbidden {
                    Ok(()) => store.remove_writer(&id).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = removed {
                    tracing::debug!(%error, %id, "the record of a failed write stays until a collection");
                }
            });
        }
    }
}

impl Store {
    /// Lets `owner` refer to a visible image: it stays until its last reference is removed. Doing it again changes nothing.
    pub async fn add_ref(&self, manifest: &ManifestId, owner: &str) -> Result<()> {
        self.check_writable()?;
        check_owner(owner)?;
        let intent = Intent { manifest: *manifest, owner: OwnerKey::of(owner) };
        for number in 0..MAX_ATTEMPTS {
            if self.has_ref(manifest, &intent.owner).await? {
                return Ok(());
            }
            // The usual refusal costs no record; what counts is the look after the record was written.
            if !self.has_manifest(manifest).await? {
                return Err(self.not_found(manifest));
            }
            let mut attempt = Attempt::announce(self, Some(manifest), Some(intent.clone())).await?;
            self.refresh().await?;
            let added = match attempt.secure(manifest).await {
                Ok(()) => attempt.create_ref(&intent, owner).await,
                Err(error) => Err(error),
            };
            attempt.end().await?;
            if added? {
                return Ok(());
            }
            pause(number).await;
        }
        Err(contended())
    }

    /// The packs that collections have condemned, for good.
    pub(crate) async fn condemned(&self) -> Result<HashSet<PackId>> {
        let lists = self.condemned_lists().await?;
        Ok(lists.into_iter().flat_map(|(_, packs)| packs).collect())
    }

    async fn packs_exist(&self, packs: &HashSet<PackId>) -> Result<bool> {
        let heads = packs.iter().map(|pack| self.clone().pack_exists(*pack));
        let mut heads = stream::iter(heads.collect::<Vec<_>>()).buffer_unordered(MAX_HEADS);
        let mut all = true;
        while let Some(exists) = heads.try_next().await? {
            all &= exists;
        }
        Ok(all)
    }

    async fn pack_exists(self, pack: PackId) -> Result<bool> {
        let path = pack_path(&pack);
        match self.objects().head(&path).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => {
                self.index().forget_pack(pack);
                Ok(false)
            }
            Err(error) => Err(Error::objects("look for", &path)(error)),
        }
    }

    /// What of an image is in none but these packs.
    async fn hashes_only_in(
        &self,
        manifest: &ManifestId,
        packs: &HashSet<PackId>,
    ) -> Result<Vec<([u8; 32], ())>> {
        let root = self.load_manifest(manifest).await?;
        let mut hashes = vec![*manifest.as_bytes()];
        let mut stranded = Vec::new();
        for entry in root.pages.values() {
            let page = self.load_page(&entry.id).await?;
            hashes.push(*entry.id.as_bytes());
            hashes.extend(page.present().map(|(_, hash)| *hash.as_bytes()));
            let (store, packs) = (self.clone(), packs.clone());
            let of_page = std::mem::take(&mut hashes);
            let missing = tokio::task::spawn_blocking(move || {
                let mut missing = Vec::new();
                for hash in of_page {
                    if store.index().find_where(&hash, |pack| !packs.contains(pack))?.is_none() {
                        missing.push((hash, ()));
                    }
                }
                Ok::<_, Error>(missing)
            });
            stranded.extend(missing.await??);
        }
        Ok(stranded)
    }

    pub(crate) async fn remove_writer(&self, id: &WriterId) -> Result<()> {
        let path = writer_path(id);
        match self.objects().delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(Error::objects("remove", &path)(error)),
        }
    }

    async fn is_given_up(&self, id: &WriterId) -> Result<bool> {
        let path = given_up_path(id);
        match self.objects().head(&path).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(Error::objects("look for", &path)(error)),
        }
    }
}

/// Waits before the attempt after `number`: the collection that is in the way gets on with its work.
pub(super) async fn pause(number: u32) {
    tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(number.min(5))).await;
}

/// What is said when garbage collections were in the way each time.
pub(super) fn contended() -> Error {
    let reason = format!(
        "garbage collections took what this write needed, {MAX_ATTEMPTS} times; let the collection end, or run fewer of \
         them, and try again"
    );
    Error::Contended { reason }
}

/// Says that the writer lives, until dropped.
async fn beat(store: Store, id: WriterId, record: Arc<Mutex<Record>>) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        let mut record = record.lock().await;
        record.renewed_unix_s = unix_seconds();
        if let Err(error) = write_record(&store, &id, &record).await {
            tracing::warn!(%error, "a writer could not renew its record; it goes on");
        }
    }
}

async fn write_record(store: &Store, id: &WriterId, record: &Record) -> Result<()> {
    let path = writer_path(id);
    store.objects().put(&path, to_json(record).into()).await.map_err(Error::objects("write", &path))?;
    Ok(())
}

pub(crate) fn writer_path(id: &WriterId) -> Path {
    Path::from(format!("writers/{id}"))
}

/// An empty object which says that a collection no longer heeds this writer. It stays for good: the writer may be paused.
pub(crate) fn given_up_path(id: &WriterId) -> Path {
    Path::from(format!("given-up/{id}"))
}
