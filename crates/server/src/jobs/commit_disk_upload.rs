//! An upload has ended: the file is sealed, checked, and put into the region's store; then it goes. A file that is no fixed
//! VHD stays, and the disk waits for another access that puts it right.

use std::sync::Arc;

use model::managed_disk::{DiskBytes, ManagedDisk};
use serde::{Deserialize, Serialize};
use store::{Job, StoreError, Tx};
use uuid::Uuid;

use super::context::{JobContext, JobFailure};
use super::create_disk::disk_reference;
use super::import_vhd::{internal, put_source, vhd_failure};
use crate::vhd::{VhdError, open_fixed};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    /// Id of the disk.
    pub(crate) disk: String,
    /// The access that wrote it.
    pub(crate) access: Uuid,
}

pub(super) async fn run(context: JobContext) -> Result<(), JobFailure> {
    let Payload { disk: id, .. } = context.payload()?;
    let found = context.state.store.read(|tx| Box::pin(async { tx.get::<ManagedDisk>(&id).await })).await?;
    let Some(document) = found else { return Ok(()) };
    let disk = &document.data;
    if let DiskBytes::Committing { .. } = disk.bytes {
        let stored = store(&context, disk).await;
        if stored.is_err() {
            context.state.disk_exports.close_upload(disk.unique_id).await;
        }
        let stored = stored?;
        let written: Result<(), StoreError> = context
            .state
            .store
            .write(|tx| {
                Box::pin(async {
                    context.hold(tx).await?;
                    let Some(mut document) = tx.get::<ManagedDisk>(&id).await? else { return Ok(()) };
                    // Also if it is being deleted meanwhile: that job releases what the row names.
                    document.data.bytes = stored.clone();
                    tx.update(&mut document).await
                })
            })
            .await;
        written?;
    }
    let removed = context.state.disk_exports.remove_upload(disk.unique_id).await;
    removed.map_err(|error| internal("remove the upload's file", &error))?;
    context.finish(None).await?;
    Ok(())
}

async fn store(context: &JobContext, disk: &ManagedDisk) -> Result<DiskBytes, JobFailure> {
    let exports = &context.state.disk_exports;
    let keys = context.state.fabric.blob_keys(&disk.spec.location).await;
    let keys = keys.map_err(|error| internal("find the region's key", &error))?;
    // Waits for writes under way; those that come later are refused as long as somebody has the file.
    let file = exports.seal_upload(disk.unique_id, keys).await;
    let file = file.map_err(|error| internal("seal the upload's file", &error))?;
    let name = disk.name.to_string();
    let Some(file) = file else {
        let found = " Nothing was uploaded.";
        return Err(vhd_failure(VhdError::Cookie { name, found }));
    };
    let opened = tokio::task::spawn_blocking(move || open_fixed(Arc::new(file), &name)).await;
    let source = opened.map_err(|error| internal("open the upload's file", &error))?.map_err(vhd_failure)?;
    let owner = disk_reference(disk.unique_id);
    Ok(DiskBytes::Stored(put_source(context, &disk.spec.location, source, &owner).await?))
}

pub(super) async fn failed(tx: &mut Tx<'_>, job: &Job, _: &JobFailure) -> Result<(), StoreError> {
    let Some(key) = &job.resource_key else { return Ok(()) };
    let Some(mut document) = tx.get::<ManagedDisk>(key).await? else { return Ok(()) };
    let DiskBytes::Committing { bytes } = document.data.bytes else { return Ok(()) };
    document.data.bytes = DiskBytes::Upload { bytes };
    tx.update(&mut document).await
}
