//! Which images a store has. References alone tell: an image without one is not visible.

use std::collections::BTreeSet;

use futures::TryStreamExt;
use object_store::path::Path;

use crate::id::ManifestId;
use crate::store::{REFS, Store};
use crate::{Error, Result};

/// Images that one listing names; bounds its memory to about 100 MB.
const MAX_IMAGES: usize = 1_000_000;

impl Store {
    /// The images that someone refers to, sorted by id. Takes time by the number of references.
    pub async fn images(&self) -> Result<Vec<ManifestId>> {
        let folder = Path::from(REFS);
        let mut images = BTreeSet::new();
        let mut listing = self.objects().list(Some(&folder));
        while let Some(object) = listing.try_next().await.map_err(Error::objects("list", &folder))? {
            // Anything else in there is an upload that did not finish.
            if let Some(image) = referenced(object.location.as_ref()) {
                images.insert(image);
            }
            if images.len() > MAX_IMAGES {
                let reason =
                    format!("the store has more than {MAX_IMAGES} images; at most as many are listed");
                return Err(Error::Refused { reason });
            }
        }
        Ok(images.into_iter().collect())
    }
}

/// The image of `refs/<manifest>/<owner>`.
fn referenced(name: &str) -> Option<ManifestId> {
    let (manifest, owner) = name.strip_prefix("refs/")?.split_once('/')?;
    if owner.contains('#') { None } else { manifest.parse().ok() }
}
