//! A store says which server uses it, so that people leave it to the server. Nothing depends on it: what is in a store is
//! safe whoever writes, and who wants to may ignore it.

use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::store::{MAX_JSON_BYTES, Store, read_object, to_json, unix_seconds};
use crate::{Error, Result};

/// A server that uses a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Of the running server.
    pub id: Uuid,
    /// The region that the store is for it.
    pub region: String,
    /// Where it is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// When it last said so, by its clock: seconds since 1970.
    pub renewed_unix_s: u64,
}

impl Served {
    /// How long ago that was, in seconds; of clocks that differ, the difference.
    pub fn age_s(&self) -> u64 {
        unix_seconds().abs_diff(self.renewed_unix_s)
    }
}

impl Store {
    /// Says that a server uses this store now, in the place of what was said before.
    pub async fn mark_served(&self, id: Uuid, region: &str, url: Option<&str>) -> Result<()> {
        self.check_writable()?;
        let (region, url) = (region.to_owned(), url.map(str::to_owned));
        let bytes = to_json(&Served { id, region, url, renewed_unix_s: unix_seconds() });
        let path = Path::from("server");
        self.objects().put(&path, bytes.into()).await.map_err(Error::objects("write", &path))?;
        Ok(())
    }

    /// The server that last said that it uses this store. What cannot be understood says nothing.
    pub async fn served(&self) -> Result<Option<Served>> {
        let bytes = read_object(&**self.objects(), &Path::from("server"), MAX_JSON_BYTES).await?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }
}
