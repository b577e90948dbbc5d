//! The storage account of a staging group, in which a VHD lies whose distributor names no address. It is an account like
//! any other: its keys are listed, and a SAS made, as for the user's own. It goes with the template.
//!
//! Azure calls such accounts by 24 random characters. Here they come from the group's id, so that making one twice
//! gives one.

use model::Violation;
use model::image_template::ImageTemplate;
use model::storage_account::{StorageAccountName, StorageAccountSpec, StorageKind, StorageSku};
use serde_json::Value;
use sha2::{Digest, Sha256};
use store::{Document, StoreError, Tx};

use super::staging::tags;
use crate::AppState;
use crate::api::storage_accounts;
use crate::blob::own_pages::{OwnBlob, ensure_container};
use crate::http::error::ApiError;

/// The container of VHDs.
const CONTAINER: &str = "vhds";
/// Length of the name, the longest that an account may have.
const NAME_CHARS: usize = 24;

fn name_of(group: &str) -> Result<StorageAccountName, Violation> {
    let hash = hex::encode(Sha256::digest(group.to_ascii_lowercase().as_bytes()));
    StorageAccountName::parse(&hash[..NAME_CHARS])
}

/// Makes the account and its container, where they are not there, in the staging group of a template.
///
/// # Errors
/// When the template or its group are gone, or another account has the name.
pub(crate) async fn ensure(state: &AppState, template: &str) -> Result<OwnBlobs, ApiError> {
    let found = state.store.read(|tx| Box::pin(async { tx.get::<ImageTemplate>(template).await })).await?;
    let gone = || ApiError::new(404, "ResourceNotFound", "The image template is gone.");
    let document: Document<ImageTemplate> = found.ok_or_else(gone)?;
    let group = document.data.resolved.staging_resource_group.as_deref();
    let group = group.ok_or_else(|| ApiError::internal("a template without a staging group"))?.to_owned();
    let name = name_of(&group)?;
    let keys = storage_accounts::new_keys(state, &name)?;
    let spec = StorageAccountSpec {
        location: document.data.spec.location.clone(),
        tags: tags(&document, None, false)?,
        // RULES.md 2A: VHDs in the staging account are zone-redundant.
        sku: StorageSku::StandardZrs,
        kind: StorageKind::StorageV2,
        https_only: true,
        shared_key_access: true,
    };
    state
        .store
        .write(|tx| {
            Box::pin(async {
                if !tx.exists(template).await? {
                    return Err(gone());
                }
                let account = storage_accounts::ensure(tx, &group, &name, spec.clone(), keys.clone()).await?;
                ensure_container(tx, &account, CONTAINER).await?;
                Ok(())
            })
        })
        .await?;
    Ok(OwnBlobs { account: name })
}

/// The VHDs of a staging account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnBlobs {
    account: StorageAccountName,
}

impl OwnBlobs {
    /// The blob of one distributor of one run. Runs leave each other's VHDs alone, as on Azure.
    pub(crate) fn vhd(&self, run_output: &str, run_id: &str) -> OwnBlob {
        OwnBlob {
            account: self.account.to_string(),
            container: CONTAINER.to_owned(),
            name: format!("{run_output}_{run_id}.vhd"),
        }
    }
}

/// Deletes the account of a staging group, and what is in it.
///
/// # Errors
/// The database's own.
pub(crate) async fn remove(tx: &mut Tx<'_>, group: &str) -> Result<(), StoreError> {
    let Ok(name) = name_of(group) else { return Ok(()) };
    let id = storage_accounts::id_in(group, &name);
    match tx.get::<Value>(&id).await? {
        Some(document) => storage_accounts::begin_delete(tx, &document).await,
        None => Ok(()),
    }
}
