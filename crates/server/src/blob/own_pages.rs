//! Page blobs that the service itself writes into an account, without HTTP. As with uploads, bytes come first and the row
//! after: until [`OwnPages::finish`], readers see what was there before.

use std::io;

use axum::http::StatusCode;
use bytes::Bytes;
use model::Region;
use model::storage_account::StorageAccount;
use store::{BlobKey, Document, StoreError, Tx};

use super::blobs::{New, Parts};
use super::error::BlobError;
use super::objects::Pending;
use super::page::PageFile;
use super::route::Place;
use super::rows::{BlobData, ContainerData};
use crate::AppState;
use crate::api::storage_accounts;

/// A blob of one of the service's accounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnBlob {
    pub(crate) account: String,
    pub(crate) container: String,
    pub(crate) name: String,
}

impl OwnBlob {
    /// Reads a URL's path, `/{account}/{container}/{blob}`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(path: &str) -> Result<Self, String> {
        let place = Place::parse(path).map_err(|error| error.message)?;
        match (place.container, place.blob) {
            (Some(container), Some(name)) if !name.ends_with('/') => {
                Ok(Self { account: place.account, container, name })
            }
            _ => Err("it names no blob; its path must be /{account}/{container}/{blob}".to_owned()),
        }
    }

    /// The account, and the blob's key in it.
    ///
    /// # Errors
    /// 404, in the blob service's words, also for a container that is not there.
    pub(crate) async fn find(
        &self,
        state: &AppState,
    ) -> Result<(Document<StorageAccount>, BlobKey), BlobError> {
        let account = storage_accounts::account(state, &self.account).await?;
        let account: Document<StorageAccount> = account.ok_or_else(|| {
            let message = "The specified account does not exist.";
            BlobError::new(StatusCode::NOT_FOUND, "ResourceNotFound", message)
        })?;
        let key = BlobKey {
            account: account.key.clone(),
            container: self.container.clone(),
            name: self.name.clone(),
        };
        let container = state
            .store
            .read(|tx| Box::pin(async { tx.container::<ContainerData>(&key.account, &key.container).await }))
            .await?;
        container.ok_or_else(BlobError::container_not_found)?;
        Ok((account, key))
    }
}

/// Makes a container if it is not there.
///
/// # Errors
/// The database's own.
pub(crate) async fn ensure_container(tx: &mut Tx<'_>, account: &str, name: &str) -> Result<(), StoreError> {
    let data =
        ContainerData { modified: tx.now().await?, metadata: Default::default(), policies: Vec::new() };
    tx.insert_container(account, name, &data).await.map(|_| ())
}

/// A page blob under construction. Dropped, it leaves nothing.
pub(crate) struct OwnPages {
    state: AppState,
    region: Region,
    key: BlobKey,
    object: Pending,
    file: PageFile,
}

impl OwnPages {
    /// Begins a blob of `bytes` zeros, a multiple of 512.
    ///
    /// # Errors
    /// As [`OwnBlob::find`]; 507 when the disk is full.
    pub(crate) async fn begin(state: &AppState, blob: &OwnBlob, bytes: u64) -> Result<Self, BlobError> {
        let (account, key) = blob.find(state).await?;
        let region = account.data.spec.location;
        let object = Pending::begin(state, &region).await?;
        let file = PageFile::create(&object.path, &object.page_name(), bytes)
            .await
            .map_err(|error| BlobError::io("make a page blob", &error))?;
        Ok(Self { state: state.clone(), region, key, object, file })
    }

    /// Writes whole pages.
    ///
    /// # Errors
    /// 507 when the disk is full.
    pub(crate) async fn write(&self, at: u64, bytes: Bytes) -> Result<(), BlobError> {
        self.file.fill(at, bytes).await.map_err(|error: io::Error| BlobError::io("write a page blob", &error))
    }

    /// Makes the pages durable, and puts the blob in the place of what was there.
    ///
    /// # Errors
    /// 404 when account or container are gone by now.
    pub(crate) async fn finish(self) -> Result<(), BlobError> {
        let io = |error: io::Error| BlobError::io("store a page blob", &error);
        self.file.seal().await.map_err(io)?;
        // After the file's own time, so that the ETag of the first answer holds.
        let new = New::of_pages(self.file.size(), self.state.now());
        let (key, object) = (&self.key, &self.object.id);
        let put = self.state.store.write(|tx| {
            Box::pin(async {
                if tx.container::<ContainerData>(&key.account, &key.container).await?.is_none() {
                    return Err(BlobError::container_not_found());
                }
                let found = tx.blob::<BlobData>(key).await?;
                new.take_place(tx, self.region.as_str(), key, found, object, &Parts::None).await
            })
        });
        put.await?;
        self.object.taken();
        Ok(())
    }
}
