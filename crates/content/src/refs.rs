//! References: who needs which image. A reference makes an image visible, and keeps it.
//!
//! A reference is `refs/<manifest>/<owner key>-<writer id>`. The name is the writer's alone, so that creating it is the one
//! step that decides: either the writer creates it with content and the image is visible, or a garbage collection that
//! gave the writer up creates it empty, and the writer finds out (`docs/format.md`, Writers).

use std::collections::{BTreeMap, BTreeSet};

use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::id::{ManifestId, WriterId};
use crate::objects::create;
use crate::store::{MAX_JSON_BYTES, Store, check_owner, read_object, to_json, unix_seconds};
use crate::{Error, Result};

/// References of one store that are read at a time: for each a line of text.
const MAX_REFS: usize = 1_000_000;

/// The content of a reference.
#[derive(Debug, Serialize, Deserialize)]
struct Reference {
    owner: String,
    created_unix_s: u64,
}

/// A reference as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredReference {
    /// The image.
    pub manifest: ManifestId,
    /// Who needs it.
    pub owner: String,
    /// When it was made, by the clock of the host that made it: seconds since 1970.
    pub created_unix_s: u64,
}

/// What a reference's name says of its owner: the first 32 hex digits of the BLAKE3 of the owner's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OwnerKey(String);

impl OwnerKey {
    pub(crate) fn of(owner: &str) -> Self {
        Self(blake3::hash(owner.as_bytes()).to_hex()[..32].to_owned())
    }
}

/// The one object by which a writer makes its image visible.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Intent {
    pub(crate) manifest: ManifestId,
    pub(crate) owner: OwnerKey,
}

impl Intent {
    pub(crate) fn path(&self, writer: &WriterId) -> Path {
        Path::from(format!("refs/{}/{}-{writer}", self.manifest, self.owner.0))
    }
}

impl Store {
    /// Whether the image is here and visible: someone refers to it, hence it is complete.
    pub async fn has_manifest(&self, manifest: &ManifestId) -> Result<bool> {
        let folder = refs_folder(manifest);
        let mut listing = self.objects().list(Some(&folder));
        while let Some(object) = listing.try_next().await.map_err(Error::objects("list", &folder))? {
            if object.size > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes `owner`'s reference; one that is not there is no error.
    pub async fn remove_ref(&self, manifest: &ManifestId, owner: &str) -> Result<()> {
        self.check_writable()?;
        check_owner(owner)?;
        for path in self.refs_of(manifest, &OwnerKey::of(owner)).await? {
            match self.objects().delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(Error::objects("remove", &path)(error)),
            }
        }
        Ok(())
    }

    /// The owners who refer to an image, sorted.
    /// Leaves out those of damaged references.
    pub async fn refs(&self, manifest: &ManifestId) -> Result<Vec<String>> {
        let read = self.read_refs(Some(manifest)).await?;
        let owners: BTreeSet<_> = read.whole.into_iter().map(|reference| reference.owner).collect();
        Ok(owners.into_iter().collect())
    }

    /// Every visible image, and who refers to it. Reads each reference; whose one is that is damaged is not known.
    pub async fn images(&self) -> Result<BTreeMap<ManifestId, BTreeSet<String>>> {
        let mut images: BTreeMap<ManifestId, BTreeSet<String>> = BTreeMap::new();
        let read = self.read_refs(None).await?;
        for StoredReference { manifest, owner, .. } in read.whole {
            images.entry(manifest).or_default().insert(owner);
        }
        for path in read.damaged {
            images.entry(path.manifest).or_default();
        }
        Ok(images)
    }

    /// Every reference, in no order; an owner may have several to one image. Reads each, and leaves out those that are
    /// damaged: they keep their images, and nobody can tell whose they are.
    pub async fn references(&self) -> Result<Vec<StoredReference>> {
        Ok(self.read_refs(None).await?.whole)
    }

    /// Every visible image, by names alone.
    pub(crate) async fn visible_images(&self) -> Result<BTreeSet<ManifestId>> {
        let folder = Path::from("refs");
        let mut images = BTreeSet::new();
        let mut listing = self.objects().list(Some(&folder));
        while let Some(object) = listing.try_next().await.map_err(Error::objects("list", &folder))? {
            if object.size > 0 {
                images.extend(manifest_of(&object.location));
            }
        }
        Ok(images)
    }

    /// Whether `owner` refers to the image.
    pub(crate) async fn has_ref(&self, manifest: &ManifestId, owner: &OwnerKey) -> Result<bool> {
        Ok(!self.refs_of(manifest, owner).await?.is_empty())
    }

    /// Creates the reference: the moment in which an image becomes visible. `false` when a garbage collection had given the
    /// writer up before.
    pub(crate) async fn create_ref(&self, intent: &Intent, owner: &str, writer: &WriterId) -> Result<bool> {
        let reference = Reference { owner: owner.to_owned(), created_unix_s: unix_seconds() };
        let path = intent.path(writer);
        if create(&**self.objects(), &path, to_json(&reference).into()).await? {
            return Ok(true);
        }
        // Our own request, sent twice after its answer was lost; or a collection's empty object.
        let bytes = read_object(&**self.objects(), &path, MAX_JSON_BYTES).await?;
        Ok(bytes.is_none_or(|bytes| !bytes.is_empty()))
    }

    /// Keeps a writer from making its image visible. `false` when it already has.
    pub(crate) async fn forbid_ref(&self, intent: &Intent, writer: &WriterId) -> Result<bool> {
        let path = intent.path(writer);
        if create(&**self.objects(), &path, Vec::new().into()).await? {
            return Ok(true);
        }
        let bytes = read_object(&**self.objects(), &path, MAX_JSON_BYTES).await?;
        Ok(bytes.is_some_and(|bytes| bytes.is_empty()))
    }

    async fn refs_of(&self, manifest: &ManifestId, owner: &OwnerKey) -> Result<Vec<Path>> {
        let folder = refs_folder(manifest);
        let mut paths = Vec::new();
        let mut listing = self.objects().list(Some(&folder));
        while let Some(object) = listing.try_next().await.map_err(Error::objects("list", &folder))? {
            let of_owner = object.location.filename().is_some_and(|name| name.starts_with(&owner.0));
            if of_owner && object.size > 0 {
                paths.push(object.location);
            }
        }
        Ok(paths)
    }

    /// Reads the references to all images or one. One that is damaged is said in the log.
    pub(crate) async fn read_refs(&self, only: Option<&ManifestId>) -> Result<References> {
        let folder = only.map_or_else(|| Path::from("refs"), refs_folder);
        let mut read = References::default();
        let mut listing = self.objects().list(Some(&folder));
        while let Some(object) = listing.try_next().await.map_err(Error::objects("list", &folder))? {
            let Some(manifest) = manifest_of(&object.location).filter(|_| object.size > 0) else { continue };
            let path = object.location;
            let content = match read_object(&**self.objects(), &path, MAX_JSON_BYTES).await {
                // A reference that was removed since the listing is none.
                Ok(None) => continue,
                Ok(Some(bytes)) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
                Err(Error::DamagedObject { reason, .. }) => Err(reason),
                Err(error) => return Err(error),
            };
            match content {
                Ok(Reference { owner, created_unix_s }) => {
                    read.whole.push(StoredReference { manifest, owner, created_unix_s });
                }
                Err(reason) => {
                    tracing::warn!(%path, reason, store = %self.location(), "a reference is damaged");
                    read.damaged.push(DamagedReference { manifest, path });
                }
            }
            if read.whole.len() + read.damaged.len() > MAX_REFS {
                let reason = format!("the store has more than {MAX_REFS} references");
                return Err(Error::Refused { reason });
            }
        }
        Ok(read)
    }

    /// Writes a reference again that is damaged, if it is still there.
    pub(crate) async fn rewrite_ref(&self, path: &Path, owner: &str) -> Result<()> {
        let reference = Reference { owner: owner.to_owned(), created_unix_s: unix_seconds() };
        if read_object(&**self.objects(), path, MAX_JSON_BYTES).await.is_ok_and(|bytes| bytes.is_none()) {
            return Ok(());
        }
        self.objects().put(path, to_json(&reference).into()).await.map_err(Error::objects("write", path))?;
        Ok(())
    }
}

/// References as they were read.
#[derive(Debug, Default)]
pub(crate) struct References {
    pub(crate) whole: Vec<StoredReference>,
    pub(crate) damaged: Vec<DamagedReference>,
}

/// A reference whose content is not one.
#[derive(Debug)]
pub(crate) struct DamagedReference {
    pub(crate) manifest: ManifestId,
    pub(crate) path: Path,
}

impl DamagedReference {
    /// Whether its name says that it is this owner's.
    pub(crate) fn is_of(&self, owner: &str) -> bool {
        self.path.filename().is_some_and(|name| name.starts_with(&OwnerKey::of(owner).0))
    }
}

fn refs_folder(manifest: &ManifestId) -> Path {
    Path::from(format!("refs/{manifest}"))
}

/// The image that a reference's name names.
fn manifest_of(path: &Path) -> Option<ManifestId> {
    path.as_ref().split('/').nth(1)?.parse().ok()
}
