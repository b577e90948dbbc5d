//! Blobs of this service as sources for its own work, without HTTP: whoever may manage Microsoft.Compute here may manage the
//! accounts as well, so no SAS is asked for.

use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use content::FramedFile;
use disk::{BlockSource, Extent, ExtentKind, Extents};
use model::storage_account::StorageAccount;
use store::{BlobKey, Document};

use super::blobs::{objects_of, open_page_file};
use super::error::BlobError;
use super::route::Place;
use super::rows::{BlobData, Kept};
use super::stored::StoredObject;
use crate::AppState;
use crate::api::storage_accounts;

/// A blob's bytes, checked as they are read. `path` is the URL's: `/{account}/{container}/{blob}`.
///
/// # Errors
/// 404, in the blob service's words.
pub(crate) async fn open(state: &AppState, path: &str) -> Result<Arc<dyn BlockSource>, BlobError> {
    let place = Place::parse(path)?;
    let account: Option<Document<StorageAccount>> = storage_accounts::account(state, &place.account).await?;
    let account = account.ok_or_else(|| {
        let message = "The specified account does not exist.";
        BlobError::new(StatusCode::NOT_FOUND, "ResourceNotFound", message)
    })?;
    let (Some(container), Some(name)) = (place.container, place.blob) else {
        return Err(BlobError::blob_not_found());
    };
    let key = BlobKey { account: account.key, container, name };
    let region = account.data.spec.location;
    let row = state.store.read(|tx| Box::pin(async { tx.blob::<BlobData>(&key).await })).await?;
    let row = row.ok_or_else(BlobError::blob_not_found)?;
    Ok(match row.data.kept {
        Kept::Pages => Arc::new(open_page_file(state, &region, &key, &row).await?),
        Kept::Whole | Kept::Parts { .. } => {
            Arc::new(Objects::new(objects_of(state, &region, &key, &row).await?))
        }
    })
}

/// Objects one after the other. All of it is data.
struct Objects {
    /// With where each begins.
    parts: Vec<(u64, StoredObject)>,
    size: u64,
    /// The one that was read last, by its number.
    open: Mutex<Option<(usize, Arc<FramedFile>)>>,
}

impl Objects {
    fn new(objects: Vec<StoredObject>) -> Self {
        let mut size = 0;
        let mut place = |object: StoredObject| {
            let start = size;
            size += object.bytes;
            (start, object)
        };
        let parts = objects.into_iter().map(&mut place).collect();
        Self { parts, size, open: Mutex::default() }
    }

    fn file(&self, number: usize) -> std::io::Result<Arc<FramedFile>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((found, file)) = &*open
            && *found == number
        {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(self.parts[number].1.open()?);
        *open = Some((number, Arc::clone(&file)));
        Ok(file)
    }

    fn read(&self, mut at: u64, mut buf: &mut [u8]) -> std::io::Result<()> {
        let mut number = self.parts.partition_point(|(start, _)| *start <= at).saturating_sub(1);
        while !buf.is_empty() {
            let (start, object) = &self.parts[number];
            let len = (start + object.bytes).saturating_sub(at).min(buf.len() as u64);
            let (now, later) = buf.split_at_mut(len as usize);
            if !now.is_empty() {
                self.file(number)?.read_exact_at(now, at - start).map_err(|error| object.failed(error))?;
            }
            (at, buf, number) = (at + len, later, number + 1);
        }
        Ok(())
    }
}

impl BlockSource for Objects {
    fn logical_size(&self) -> u64 {
        self.size
    }

    fn extents(&self) -> Extents<'_> {
        let whole = Extent { start: 0, len: self.size, kind: ExtentKind::Data };
        Box::new((self.size > 0).then_some(Ok(whole)).into_iter())
    }

    fn read_onto(&self, offset: u64, buf: &mut [u8]) -> disk::Result<usize> {
        let (len, size) = (buf.len() as u64, self.size);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(disk::Error::OutOfRange { offset, len, size });
        }
        self.read(offset, buf).map_err(|error| disk::Error::Source { source: Box::new(error) })?;
        Ok(buf.len())
    }
}
