//! Writers, as a collection sees them: what they hold, and which of them are given up.

use std::time::Duration;

use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::mark::Roots;
use crate::id::WriterId;
use crate::store::{MAX_JSON_BYTES, Store, read_object, unix_seconds};
use crate::write::{Record, given_up_path, writer_path};
use crate::{Error, Result};

impl Store {
    /// What has to stay. Writers first, then references: a writer removes its record after it made its image visible, so
    /// one of the two is seen.
    pub(crate) async fn roots(&self) -> Result<Roots> {
        let mut roots = Roots::default();
        for (id, record) in self.writers().await? {
            roots.held.extend(record.holds);
            roots.writers.insert(id);
        }
        roots.visible = self.visible_images().await?;
        Ok(roots)
    }

    /// Gives up writers that are dead, or have not been heard of for `timeout`.
    pub(super) async fn give_up_writers(&self, timeout: Duration) -> Result<u64> {
        let now = unix_seconds();
        let mut given_up = 0;
        for (id, record) in self.writers().await? {
            let dead = record.process.as_ref().is_some_and(|process| process.is_dead());
            if dead || now.saturating_sub(record.renewed_unix_s) >= timeout.as_secs() {
                tracing::info!(%id, dead, started_unix_s = record.started_unix_s, "giving a writer up");
                // Of a dead process nothing comes any more, unless a request of its is still under way in a network.
                match dead && self.location().as_folder().is_some() {
                    true => self.remove_writer(&id).await?,
                    false => self.give_up(&id).await?,
                }
                given_up += 1;
            }
        }
        Ok(given_up)
    }

    /// In this order: say so, look which reference it intends, forbid that, forget what it holds. A writer that names its
    /// reference after we looked sees that it was given up.
    async fn give_up(&self, id: &WriterId) -> Result<()> {
        let said = given_up_path(id);
        let empty = Vec::new();
        self.objects().put(&said, empty.into()).await.map_err(Error::objects("write", &said))?;
        if let Some(intent) = self.read_writer(id).await?.and_then(|record| record.intent) {
            // One that is there already made its image visible: then it is a reference like any other.
            self.forbid_ref(&intent, id).await?;
        }
        self.remove_writer(id).await
    }

    async fn writers(&self) -> Result<Vec<(WriterId, Record)>> {
        let folder = Path::from("writers");
        let listing = self.objects().list(Some(&folder));
        let objects: Vec<_> = listing.try_collect().await.map_err(Error::objects("list", &folder))?;
        let mut writers = Vec::new();
        for object in objects {
            let Some(id) = object.location.filename().and_then(|name| name.parse().ok()) else { continue };
            if let Some(record) = self.read_writer(&id).await? {
                writers.push((id, record));
            }
        }
        Ok(writers)
    }

    async fn read_writer(&self, id: &WriterId) -> Result<Option<Record>> {
        let path = writer_path(id);
        let Some(bytes) = read_object(&**self.objects(), &path, MAX_JSON_BYTES).await? else {
            return Ok(None);
        };
        let record = serde_json::from_slice(&bytes)
            .map_err(|error| Error::DamagedObject { object: path.to_string(), reason: error.to_string() })?;
        Ok(Some(record))
    }
}
