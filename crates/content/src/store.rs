//! A store: its description, its images' visibility, and how its objects are named.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::format::{BLOCK_BYTES, Frame, Location, MAX_PACK_BYTES, Manifest, Page};
use crate::id::{BlockHash, ManifestId, PackId, PageId};
use crate::index::{Index, Mirror};
use crate::objects::{READ_ATTEMPTS, check_create_if_absent, connect, create, may_pass};
use crate::seal::{KeyId, KeyRing, NotOpened, open_frame};
use crate::{Error, Result, StoreLocation, StoreOptions};

const FORMAT: &str = "tintype-store";
const VERSION: u32 = 2;
/// The longest owner of a store or a reference. An ARM resource id is shorter.
pub const MAX_OWNER_BYTES: usize = 1024;
/// The largest JSON object that is read.
pub(crate) const MAX_JSON_BYTES: u64 = 16 << 10;

/// An open store. Cloning is cheap; clones share the index.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    objects: Arc<dyn ObjectStore>,
    location: StoreLocation,
    description: Description,
    index: Arc<Index>,
    /// Of an encrypted store.
    keys: Option<Arc<KeyRing>>,
    writable: bool,
    pack_bytes: u32,
    damaged_reads: AtomicU64,
}

/// `store.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Description {
    format: String,
    version: u32,
    id: Uuid,
    owner: String,
    created_unix_s: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encryption: Option<Encryption>,
}

/// What is encrypted with which key is said by each pack and object; this is the key that was current when the store was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Encryption {
    key_id: KeyId,
}

/// What a manifest says about its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ManifestInfo {
    /// The disk's size in bytes.
    pub logical_bytes: u64,
    /// Blocks of 64 KiB that are not zeros.
    pub data_blocks: u64,
}

/// What a store holds. Sizes are of objects, as `stat` gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StoreStats {
    /// Visible images.
    pub manifests: u64,
    /// Sum of the sizes of the visible images' disks.
    pub logical_bytes: u64,
    /// Packs, including those that nothing refers to.
    pub packs: u64,
    /// Index segments.
    pub segments: u64,
    /// Entries of all segments: blocks and pages.
    pub indexed: u64,
    /// Bytes of all objects: packs, indexes, manifests, references, description.
    pub stored_bytes: u64,
}

impl Store {
    /// Opens a store for reading and writing; creates it if there is none. `owner` says whose store it is (a server's id,
    /// a user): another owner's is refused, so that two servers do not take the same folder for theirs.
    pub async fn open_or_create(location: &StoreLocation, owner: &str) -> Result<Self> {
        Self::open_or_create_with(location, owner, &StoreOptions::default()).await
    }

    /// As [`Self::open_or_create`]. A remote one's bucket or container must exist.
    pub async fn open_or_create_with(
        location: &StoreLocation,
        owner: &str,
        options: &StoreOptions,
    ) -> Result<Self> {
        check_owner(owner)?;
        Self::open_with(connect(location, options, true)?, location, Some(owner), options).await
    }

    /// Opens a store for reading, whoever owns it. Every change is refused with [`Error::ReadOnly`].
    pub async fn open_read_only(location: &StoreLocation) -> Result<Self> {
        Self::open_read_only_with(location, &StoreOptions::default()).await
    }

    /// As [`Self::open_read_only`].
    pub async fn open_read_only_with(location: &StoreLocation, options: &StoreOptions) -> Result<Self> {
        Self::open_with(connect(location, options, false)?, location, None, options).await
    }

    /// Opens a store in these objects, for its owner or for reading; `location` is what messages call it, and whose index is
    /// read in place if it is a folder. For tests, which put faults between.
    #[doc(hidden)]
    pub async fn open_with(
        objects: Arc<dyn ObjectStore>,
        location: &StoreLocation,
        owner: Option<&str>,
        options: &StoreOptions,
    ) -> Result<Self> {
        let keys = options.find_keys()?;
        let path = Path::from("store.json");
        let mut bytes = read_object(&*objects, &path, MAX_JSON_BYTES).await?;
        if let (None, Some(owner)) = (&bytes, owner) {
            check_owner(owner)?;
            let description = Description {
                format: FORMAT.to_owned(),
                version: VERSION,
                id: Uuid::new_v4(),
                owner: owner.to_owned(),
                created_unix_s: unix_seconds(),
                encryption: keys.as_ref().map(|keys| Encryption { key_id: keys.current().id() }),
            };
            // Two that create at once: one wins, the other opens what is there.
            create(&*objects, &path, to_json(&description).into()).await?;
            bytes = read_object(&*objects, &path, MAX_JSON_BYTES).await?;
        }
        let bytes = bytes.ok_or_else(|| Error::NotAStore { location: location.to_string() })?;
        let refused = |reason| Error::Format { location: location.to_string(), reason };
        let description: Description = serde_json::from_slice(&bytes)
            .map_err(|error| refused(format!("store.json cannot be read ({error})")))?;
        if description.format != FORMAT || description.version != VERSION {
            let Description { format, version, .. } = description;
            return Err(refused(format!(
                "it is `{format}` of version {version}; this program knows `{FORMAT}` of version {VERSION}"
            )));
        }
        if let Some(owner) = owner {
            if description.owner != owner {
                let owner = description.owner;
                return Err(Error::OwnedByAnother { location: location.to_string(), owner });
            }
            if location.as_folder().is_none() {
                check_create_if_absent(&*objects, location, &path, bytes).await?;
            }
        }
        let used = description.encryption.as_ref().map(|encryption| encryption.key_id);
        let keys = options.check_keys(location, keys, used)?;
        let index = Arc::new(match (location.as_folder(), &keys) {
            (Some(folder), None) => Index::in_folder(folder.join("index")),
            _ => {
                let dir = options.index_dir_of(description.id)?;
                Index::mirrored(Mirror::open(objects.clone(), location, dir, keys.clone())?)
            }
        });
        index.refresh().await?;
        let writable = owner.is_some();
        let inner = Inner {
            objects,
            location: location.clone(),
            description,
            index,
            keys,
            writable,
            pack_bytes: options.pack_bytes.unwrap_or(MAX_PACK_BYTES),
            damaged_reads: AtomicU64::new(0),
        };
        let store = Self { inner: Arc::new(inner) };
        if writable {
            store.keep_reserve();
        }
        Ok(store)
    }

    /// The store's own id, made when it was created.
    pub fn id(&self) -> Uuid {
        self.inner.description.id
    }

    /// Where it is.
    pub fn location(&self) -> &StoreLocation {
        &self.inner.location
    }

    /// Whose it is.
    pub fn owner(&self) -> &str {
        &self.inner.description.owner
    }

    /// What it is encrypted with, if it is.
    pub fn keys(&self) -> Option<&Arc<KeyRing>> {
        self.inner.keys.as_ref()
    }

    /// Checks that the store is still where it was opened, and is the same: a folder may be unmounted or replaced, and what
    /// is not there looks like what is empty.
    pub async fn check_present(&self) -> Result<()> {
        let location = || self.inner.location.to_string();
        let bytes = read_object(&*self.inner.objects, &Path::from("store.json"), MAX_JSON_BYTES).await?;
        let bytes = bytes.ok_or_else(|| Error::NotAStore { location: location() })?;
        match serde_json::from_slice::<Description>(&bytes) {
            Ok(found) if found.id == self.inner.description.id => Ok(()),
            Ok(found) => {
                let reason = format!("store {} was replaced by {}", self.inner.description.id, found.id);
                Err(Error::Format { location: location(), reason })
            }
            Err(error) => {
                let reason = format!("store.json cannot be read ({error})");
                Err(Error::Format { location: location(), reason })
            }
        }
    }

    /// Says that `name` looks after the references of this store, unless somebody else does; returns who does. Nothing in
    /// here depends on it: it is for those who remove references of others, who must be the only ones to do so.
    pub async fn claim(&self, name: &str) -> Result<String> {
        self.check_writable()?;
        check_owner(name)?;
        let path = Path::from("keeper");
        create(&*self.inner.objects, &path, Bytes::copy_from_slice(name.as_bytes())).await?;
        let found = read_object(&*self.inner.objects, &path, MAX_JSON_BYTES).await?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&found).into_owned())
    }

    /// The size of an image's disk and of its data.
    pub async fn manifest_info(&self, manifest: &ManifestId) -> Result<ManifestInfo> {
        let root = self.load_manifest(manifest).await?;
        Ok(ManifestInfo { logical_bytes: root.logical_bytes, data_blocks: root.data_blocks() })
    }

    /// Counts what is there: lists every object and reads every manifest, so its time grows with the store.
    pub async fn stats(&self) -> Result<StoreStats> {
        self.refresh().await?;
        let mut stats = StoreStats::default();
        let root = Path::default();
        let mut listing = self.inner.objects.list(None);
        while let Some(object) = listing.try_next().await.map_err(Error::objects("list", &root))? {
            let name = object.location.as_ref();
            match name.split_once('/').map_or(name, |(folder, _)| folder) {
                "packs" => stats.packs += 1,
                "index" => stats.segments += 1,
                "refs" | "writers" | "given-up" | "condemned" | "store.json" => {}
                // The folder may hold what is not the store's, such as blobs.
                _ => continue,
            }
            stats.stored_bytes += object.size;
        }
        for manifest in self.visible_images().await? {
            stats.manifests += 1;
            stats.logical_bytes += self.load_manifest(&manifest).await?.logical_bytes;
        }
        stats.indexed = self.inner.index.segments().iter().map(|segment| segment.entries()).sum();
        Ok(stats)
    }

    // What follows is for the other modules of this crate.

    pub(crate) fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.inner.objects
    }

    pub(crate) fn index(&self) -> &Arc<Index> {
        &self.inner.index
    }

    /// Bytes of a pack at which another one is begun.
    pub(crate) fn pack_bytes(&self) -> u32 {
        self.inner.pack_bytes
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        match self.inner.writable {
            true => Ok(()),
            false => Err(Error::ReadOnly { location: self.inner.location.to_string() }),
        }
    }

    pub(crate) fn not_found(&self, manifest: &ManifestId) -> Error {
        Error::ManifestNotFound { manifest: *manifest, location: self.inner.location.to_string() }
    }

    /// Takes note of index segments that other processes wrote.
    pub(crate) async fn refresh(&self) -> Result<()> {
        self.inner.index.refresh().await
    }

    /// The manifest of a visible image.
    pub(crate) async fn load_manifest(&self, manifest: &ManifestId) -> Result<Manifest> {
        if !self.has_manifest(manifest).await? {
            return Err(self.not_found(manifest));
        }
        let frame = self.load_by_hash(manifest.as_bytes()).await?;
        Manifest::decode(manifest, &frame.plain)
            .map_err(|reason| Error::DamagedObject { object: format!("manifest {manifest}"), reason })
    }

    /// A page by its id, verified.
    pub(crate) async fn load_page(&self, id: &PageId) -> Result<Page> {
        let frame = self.load_by_hash(id.as_bytes()).await?;
        Page::decode(&frame.plain)
            .map_err(|reason| Error::DamagedObject { object: format!("page {id}"), reason })
    }

    /// Checks that the image is visible, and takes note of what other processes wrote since.
    pub(crate) async fn is_readable(&self, manifest: &ManifestId) -> Result<()> {
        self.refresh().await?;
        match self.has_manifest(manifest).await? {
            true => Ok(()),
            false => Err(self.not_found(manifest)),
        }
    }

    /// A frame that holds this, from whichever pack has it whole: one may be damaged, or gone since the index was read.
    pub(crate) async fn load_by_hash(&self, hash: &[u8; 32]) -> Result<Frame> {
        let hash = *hash;
        let mut first = None;
        let mut tried = Vec::new();
        let mut refreshed = false;
        loop {
            let (store, skip) = (self.clone(), tried.clone());
            let find = move || store.index().find_where(&hash, |pack| !skip.contains(pack));
            let Some(location) = tokio::task::spawn_blocking(find).await?? else {
                if refreshed {
                    return Err(first.unwrap_or(Error::NotIndexed { hash: BlockHash::from_bytes(hash) }));
                }
                // Another process may have written or moved it since this one looked.
                self.refresh().await?;
                refreshed = true;
                continue;
            };
            let (pack, offset) = (location.pack, location.offset);
            let error = match self.load_frame(&location).await {
                Ok(frame) if frame.hashes.contains(&hash) && frame.kind == location.kind => return Ok(frame),
                Ok(_) => {
                    let reason = "it does not hold what the index says".to_owned();
                    Error::DamagedFrame { pack, offset, reason }
                }
                Err(error) => {
                    self.note_gone(&error, pack).await;
                    error
                }
            };
            tried.push(pack);
            if !error.is_gone() {
                first.get_or_insert(error);
            }
        }
    }

    /// Blocks that this store could not give since it was opened, and another gave. Somebody should repair it.
    pub fn damaged_reads(&self) -> u64 {
        self.inner.damaged_reads.load(Ordering::Relaxed)
    }

    pub(crate) fn note_damaged_read(&self) {
        self.inner.damaged_reads.fetch_add(1, Ordering::Relaxed);
    }

    /// Remembers that a pack is gone, if that is what the error says, and not that the whole store is: that may come back.
    pub(crate) async fn note_gone(&self, error: &Error, pack: PackId) {
        if error.is_gone() && self.check_present().await.is_ok() {
            self.index().forget_pack(pack);
        }
    }

    /// A frame, every byte of it verified against the hashes in it. The caller checks that the hash in its slot is the one
    /// it wants.
    pub(crate) async fn load_frame(&self, location: &Location) -> Result<Frame> {
        Ok(self.load_frame_bytes(location).await?.0)
    }

    /// As [`Self::load_frame`], with the bytes that it was decoded from. What came over a network is asked for again when it
    /// is not what it should be, since it may have been damaged on its way.
    pub(crate) async fn load_frame_bytes(&self, location: &Location) -> Result<(Frame, Bytes)> {
        let remote = self.inner.location.as_folder().is_none();
        let mut attempts = if remote { READ_ATTEMPTS } else { 1 };
        loop {
            attempts -= 1;
            match self.load_frame_once(location).await {
                Err(error) if attempts > 0 && may_pass(&error) => {
                    tracing::warn!(%error, store = %self.inner.location, "a frame is read again");
                }
                result => return result,
            }
        }
    }

    async fn load_frame_once(&self, location: &Location) -> Result<(Frame, Bytes)> {
        let Location { pack, offset, len, .. } = *location;
        let path = pack_path(&pack);
        let range = u64::from(offset)..u64::from(offset) + u64::from(len);
        let bytes =
            self.inner.objects.get_range(&path, range).await.map_err(Error::objects("read", &path))?;
        let damaged = move |reason| Error::DamagedFrame { pack, offset, reason };
        if bytes.len() != len as usize {
            return Err(damaged(format!("the pack ends after {} of its {len} bytes", bytes.len())));
        }
        let keys = self.inner.keys.clone();
        let decode = move || {
            let bytes = open_frame(keys.as_deref(), &pack, bytes)?;
            Ok::<_, NotOpened>(Frame::decode(&bytes).map(|frame| (frame, bytes)).map_err(damaged))
        };
        match tokio::task::spawn_blocking(decode).await? {
            Ok(result) => result,
            Err(why) => Err(self.not_opened(why, location).await),
        }
    }
}

/// Blocks as bytes, for reports.
pub(crate) fn block_bytes(blocks: u64) -> u64 {
    blocks * BLOCK_BYTES as u64
}

pub(crate) fn pack_path(pack: &PackId) -> Path {
    let name = pack.to_string();
    Path::from(format!("packs/{}/{name}", &name[..2]))
}

pub(crate) fn segment_path(name: &str) -> Path {
    Path::from(format!("index/{name}"))
}

/// Checks a name that ends up in `store.json` or in a reference.
pub(crate) fn check_owner(owner: &str) -> Result<()> {
    if owner.is_empty() || owner.len() > MAX_OWNER_BYTES {
        let reason = format!("an owner has 1 to {MAX_OWNER_BYTES} bytes; this one has {}", owner.len());
        return Err(Error::Refused { reason });
    }
    Ok(())
}

/// The bytes of an object, or `None` if there is none.
pub(crate) async fn read_object(
    objects: &dyn ObjectStore,
    path: &Path,
    max_bytes: u64,
) -> Result<Option<Bytes>> {
    let object = match objects.get(path).await {
        Ok(object) => object,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(Error::objects("read", path)(error)),
    };
    if object.meta.size > max_bytes {
        let reason = format!("{} bytes; at most {max_bytes} are possible", object.meta.size);
        return Err(Error::DamagedObject { object: path.to_string(), reason });
    }
    Ok(Some(object.bytes().await.map_err(Error::objects("read", path))?))
}

pub(crate) fn to_json(value: &impl Serialize) -> Vec<u8> {
    // Structs of texts and numbers: this cannot fail.
    serde_json::to_vec(value).unwrap_or_default()
}

pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
