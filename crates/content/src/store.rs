//! A store: its description, its images' visibility, and how its objects are named.

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::format::{BLOCK_BYTES, Frame, FrameKind, Location, MAX_MANIFEST_BYTES, Manifest, Page};
use crate::id::{BlockHash, ManifestId, PackId, PageId};
use crate::index::Index;
use crate::{Error, Result, StoreLocation};

const FORMAT: &str = "tintype-store";
const VERSION: u32 = 1;
/// The longest owner of a store or a reference. An ARM resource id is shorter.
pub const MAX_OWNER_BYTES: usize = 1024;
/// The largest JSON object that is read.
const MAX_JSON_BYTES: u64 = 16 << 10;
/// References that are listed for one image.
const MAX_REFS: usize = 100_000;

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
    index: Index,
    writable: bool,
}

/// `store.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Description {
    format: String,
    version: u32,
    id: Uuid,
    owner: String,
    created_unix_s: u64,
}

/// `refs/<manifest>/<owner>`.
#[derive(Debug, Serialize, Deserialize)]
struct Reference {
    owner: String,
    created_unix_s: u64,
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
        check_owner(owner)?;
        let folder = location.as_folder().to_owned();
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&folder).map_err(Error::io("create", &folder))?;
        let objects = open_folder(location)?;
        let path = Path::from("store.json");
        let description = Description {
            format: FORMAT.to_owned(),
            version: VERSION,
            id: Uuid::new_v4(),
            owner: owner.to_owned(),
            created_unix_s: unix_seconds(),
        };
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match objects.put_opts(&path, to_json(&description).into(), create).await {
            // Two that create at once: one wins, the other opens what is there.
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(Error::objects("create", &path)(error)),
        }
        let store = Self::open(location, objects, true).await?;
        if store.inner.description.owner != owner {
            let owner = store.inner.description.owner.clone();
            return Err(Error::OwnedByAnother { location: location.to_string(), owner });
        }
        Ok(store)
    }

    /// Opens a store for reading, whoever owns it. Every change is refused with [`Error::ReadOnly`].
    pub async fn open_read_only(location: &StoreLocation) -> Result<Self> {
        if !location.as_folder().is_dir() {
            return Err(Error::NotAStore { location: location.to_string() });
        }
        Self::open(location, open_folder(location)?, false).await
    }

    /// Opens a store that exists for reading and writing, whoever owns it: for people who look after it by hand. The caller
    /// has made sure that its owner does not use it now.
    pub async fn open_writable(location: &StoreLocation) -> Result<Self> {
        if !location.as_folder().is_dir() {
            return Err(Error::NotAStore { location: location.to_string() });
        }
        Self::open(location, open_folder(location)?, true).await
    }

    async fn open(location: &StoreLocation, objects: Arc<dyn ObjectStore>, writable: bool) -> Result<Self> {
        let path = Path::from("store.json");
        let bytes = match read_object(&*objects, &path, MAX_JSON_BYTES).await? {
            Some(bytes) => bytes,
            None => return Err(Error::NotAStore { location: location.to_string() }),
        };
        let refused = |reason| Error::Format { location: location.to_string(), reason };
        let description: Description = serde_json::from_slice(&bytes)
            .map_err(|error| refused(format!("store.json cannot be read ({error})")))?;
        if description.format != FORMAT || description.version != VERSION {
            let Description { format, version, .. } = description;
            return Err(refused(format!(
                "it is `{format}` of version {version}; this program knows `{FORMAT}` of version {VERSION}"
            )));
        }
        let dir = location.as_folder().join("index");
        let index = tokio::task::spawn_blocking(|| Index::open(dir)).await??;
        let inner = Inner { objects, location: location.clone(), description, index, writable };
        Ok(Self { inner: Arc::new(inner) })
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

    /// Whether the image is here and visible: its manifest is complete, and someone refers to it.
    pub async fn has_manifest(&self, manifest: &ManifestId) -> Result<bool> {
        let path = manifest_path(manifest);
        match self.inner.objects.head(&path).await {
            Ok(_) => {}
            Err(object_store::Error::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(Error::objects("look for", &path)(error)),
        }
        self.is_referenced(manifest).await
    }

    /// The size of an image's disk and of its data.
    pub async fn manifest_info(&self, manifest: &ManifestId) -> Result<ManifestInfo> {
        let root = self.load_manifest(manifest).await?;
        Ok(ManifestInfo { logical_bytes: root.logical_bytes, data_blocks: root.data_blocks() })
    }

    /// Lets `owner` refer to a visible image: it stays until its last reference is removed. Doing it again changes nothing.
    pub async fn add_ref(&self, manifest: &ManifestId, owner: &str) -> Result<()> {
        if !self.has_manifest(manifest).await? {
            return Err(self.not_found(manifest));
        }
        self.write_ref(manifest, owner).await
    }

    /// Removes `owner`'s reference; one that is not there is no error.
    pub async fn remove_ref(&self, manifest: &ManifestId, owner: &str) -> Result<()> {
        self.check_writable()?;
        check_owner(owner)?;
        let path = ref_path(manifest, owner);
        match self.inner.objects.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(Error::objects("remove", &path)(error)),
        }
    }

    /// The owners who refer to an image, sorted.
    pub async fn refs(&self, manifest: &ManifestId) -> Result<Vec<String>> {
        let folder = refs_folder(manifest);
        let mut owners = Vec::new();
        let mut listing = self.inner.objects.list(Some(&folder));
        while let Some(object) = listing.try_next().await.map_err(Error::objects("list", &folder))? {
            // A reference that was removed since the listing is none.
            let Some(bytes) = self.read(&object.location, MAX_JSON_BYTES).await? else { continue };
            let reference: Reference = serde_json::from_slice(&bytes).map_err(|error| {
                Error::DamagedObject { object: object.location.to_string(), reason: error.to_string() }
            })?;
            owners.push(reference.owner);
            if owners.len() > MAX_REFS {
                let reason = format!("image {manifest} has more than {MAX_REFS} references");
                return Err(Error::Refused { reason });
            }
        }
        owners.sort();
        Ok(owners)
    }

    /// Counts what is there: lists every object and reads every manifest, so its time grows with the store.
    pub async fn stats(&self) -> Result<StoreStats> {
        self.refresh().await?;
        let mut stats = StoreStats::default();
        let mut manifests = Vec::new();
        let root = Path::default();
        let mut listing = self.inner.objects.list(None);
        while let Some(object) = listing.try_next().await.map_err(Error::objects("list", &root))? {
            stats.stored_bytes += object.size;
            let name = object.location.as_ref();
            match name.split_once('/') {
                Some(("packs", _)) => stats.packs += 1,
                Some(("index", _)) => stats.segments += 1,
                Some(("manifests", id)) => manifests.extend(id.parse::<ManifestId>()),
                _ => {}
            }
        }
        for manifest in manifests {
            if self.is_referenced(&manifest).await? {
                stats.manifests += 1;
                stats.logical_bytes += self.load_manifest(&manifest).await?.logical_bytes;
            }
        }
        stats.indexed = self.inner.index.segments().iter().map(|segment| segment.entries()).sum();
        Ok(stats)
    }

    // What follows is for the other modules of this crate.

    pub(crate) fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.inner.objects
    }

    pub(crate) fn index(&self) -> &Index {
        &self.inner.index
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
        let store = self.clone();
        tokio::task::spawn_blocking(move || store.index().refresh()).await?
    }

    /// The manifest of a visible image.
    pub(crate) async fn load_manifest(&self, manifest: &ManifestId) -> Result<Manifest> {
        if !self.is_referenced(manifest).await? {
            return Err(self.not_found(manifest));
        }
        let path = manifest_path(manifest);
        let bytes = self.read(&path, MAX_MANIFEST_BYTES).await?.ok_or_else(|| self.not_found(manifest))?;
        Manifest::decode(manifest, &bytes)
            .map_err(|reason| Error::DamagedObject { object: path.to_string(), reason })
    }

    /// Writes the manifest and then the reference: what makes an image visible. Returns the bytes that this added.
    pub(crate) async fn publish(&self, manifest: &Manifest, owner: &str) -> Result<(ManifestId, u64)> {
        self.check_writable()?;
        let (id, bytes) = manifest.encode();
        let path = manifest_path(&id);
        let mut added = bytes.len() as u64;
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.inner.objects.put_opts(&path, bytes.into(), create).await {
            Ok(_) => {}
            Err(object_store::Error::AlreadyExists { .. }) => added = 0,
            Err(error) => return Err(Error::objects("write", &path)(error)),
        }
        self.write_ref(&id, owner).await?;
        Ok((id, added))
    }

    /// A page by its id, verified.
    pub(crate) async fn load_page(&self, id: &PageId) -> Result<Page> {
        let hash = *id.as_bytes();
        let store = self.clone();
        let location = tokio::task::spawn_blocking(move || store.index().find(&hash)).await??;
        let location = location
            .filter(|location| location.kind == FrameKind::Page)
            .ok_or(Error::NotIndexed { hash: BlockHash::from_bytes(hash) })?;
        let frame = self.load_frame(&location).await?;
        let damaged = |reason| Error::DamagedFrame { pack: location.pack, offset: location.offset, reason };
        if frame.kind != FrameKind::Page || frame.hashes != [hash] {
            return Err(damaged(format!("it does not hold page {id}")));
        }
        Page::decode(&frame.plain).map_err(damaged)
    }

    /// A frame, every byte of it verified against the hashes in it. The caller checks that the hash in its slot is the one
    /// it wants.
    pub(crate) async fn load_frame(&self, location: &Location) -> Result<Frame> {
        Ok(self.load_frame_bytes(location).await?.0)
    }

    /// As [`Self::load_frame`], with the bytes that it was decoded from.
    pub(crate) async fn load_frame_bytes(&self, location: &Location) -> Result<(Frame, Bytes)> {
        let Location { pack, offset, len, .. } = *location;
        let path = pack_path(&pack);
        let range = u64::from(offset)..u64::from(offset) + u64::from(len);
        let bytes =
            self.inner.objects.get_range(&path, range).await.map_err(Error::objects("read", &path))?;
        let damaged = move |reason| Error::DamagedFrame { pack, offset, reason };
        if bytes.len() != len as usize {
            return Err(damaged(format!("the pack ends after {} of its {len} bytes", bytes.len())));
        }
        let decode = move || Frame::decode(&bytes).map(|frame| (frame, bytes)).map_err(damaged);
        tokio::task::spawn_blocking(decode).await?
    }

    async fn read(&self, path: &Path, max_bytes: u64) -> Result<Option<Bytes>> {
        read_object(&*self.inner.objects, path, max_bytes).await
    }

    async fn is_referenced(&self, manifest: &ManifestId) -> Result<bool> {
        let folder = refs_folder(manifest);
        let first = self.inner.objects.list(Some(&folder)).try_next().await;
        Ok(first.map_err(Error::objects("list", &folder))?.is_some())
    }

    async fn write_ref(&self, manifest: &ManifestId, owner: &str) -> Result<()> {
        self.check_writable()?;
        check_owner(owner)?;
        let path = ref_path(manifest, owner);
        let reference = Reference { owner: owner.to_owned(), created_unix_s: unix_seconds() };
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.inner.objects.put_opts(&path, to_json(&reference).into(), create).await {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(Error::objects("write", &path)(error)),
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

fn manifest_path(manifest: &ManifestId) -> Path {
    Path::from(format!("manifests/{manifest}"))
}

/// Where all references are; see `list.rs`.
pub(crate) const REFS: &str = "refs";

fn refs_folder(manifest: &ManifestId) -> Path {
    Path::from(format!("refs/{manifest}"))
}

fn ref_path(manifest: &ManifestId, owner: &str) -> Path {
    let name = blake3::hash(owner.as_bytes()).to_hex();
    Path::from(format!("refs/{manifest}/{}", &name[..32]))
}

/// Checks a name that ends up in `store.json` or in a reference.
pub(crate) fn check_owner(owner: &str) -> Result<()> {
    if owner.is_empty() || owner.len() > MAX_OWNER_BYTES {
        let reason = format!("an owner has 1 to {MAX_OWNER_BYTES} bytes; this one has {}", owner.len());
        return Err(Error::Refused { reason });
    }
    Ok(())
}

fn open_folder(location: &StoreLocation) -> Result<Arc<dyn ObjectStore>> {
    let folder: PathBuf = location.as_folder().to_owned();
    let objects = LocalFileSystem::new_with_prefix(&folder)
        .map_err(Error::objects("open", &Path::from(folder.display().to_string())))?;
    // A write that was reported is on the disk.
    Ok(Arc::new(objects.with_fsync(true)))
}

/// The bytes of an object, or `None` if there is none.
async fn read_object(objects: &dyn ObjectStore, path: &Path, max_bytes: u64) -> Result<Option<Bytes>> {
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

fn to_json(value: &impl Serialize) -> Vec<u8> {
    // Structs of texts and numbers: this cannot fail.
    serde_json::to_vec(value).unwrap_or_default()
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
