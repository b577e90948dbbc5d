//! Blobs of this service as sources for its own work, without HTTP: whoever may manage Microsoft.Compute here may manage the
//! accounts as well, so no SAS is asked for.

use std::path::PathBuf;

use axum::http::StatusCode;
use model::storage_account::StorageAccount;
use store::{BlobKey, Document};

use super::error::BlobError;
use super::objects;
use super::route::Place;
use super::rows::{BlobData, Kept};
use crate::AppState;
use crate::api::storage_accounts;

/// The files that hold a blob's bytes, in order. `path` is the URL's: `/{account}/{container}/{blob}`.
///
/// # Errors
/// 404, in the blob service's words.
pub(crate) async fn files(state: &AppState, path: &str) -> Result<Vec<PathBuf>, BlobError> {
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
    let (row, parts) = state
        .store
        .read(|tx| {
            Box::pin(async {
                let row = tx.blob::<BlobData>(&key).await?.ok_or_else(BlobError::blob_not_found)?;
                let parts = match row.data.kept {
                    Kept::Parts { .. } => tx.parts(&row.object).await?,
                    Kept::Whole | Kept::Pages => Vec::new(),
                };
                Ok::<_, BlobError>((row, parts))
            })
        })
        .await?;
    match row.data.kept {
        Kept::Whole | Kept::Pages => Ok(vec![objects::path(state, &region, &row.object)?]),
        Kept::Parts { .. } => parts.iter().map(|part| objects::path(state, &region, &part.object)).collect(),
    }
}
