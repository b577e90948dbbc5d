//! Deletes a disk or snapshot: waits until nothing else works on it, lets go of its bytes and of an upload's file, then
//! removes the row. The row is last: as long as it is there, somebody knows where the bytes are.

use std::time::Duration;

use model::managed_disk::ManagedDisk;
use serde::{Deserialize, Serialize};
use store::{Job, OperationEnd, ProvisioningState, StoreError, Tx};

use super::context::{JobContext, JobFailure};
use super::create_disk::disk_reference;
use super::import_vhd::internal;
use super::replicate_image_version::manifest_id;
use crate::copies::let_go;
use crate::reconcile::gc::want_gc;

/// How long it waits for a job that brings the bytes, which was asked to stop. It then lets go of its worker and comes
/// again: the other job may need a worker to end.
const OTHERS_END: Duration = Duration::from_secs(10);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    /// Id of the disk or snapshot.
    pub(crate) disk: String,
}

pub(super) async fn run(context: JobContext) -> Result<(), JobFailure> {
    let Payload { disk: id } = context.payload()?;
    wait_for_others(&context, &id).await?;
    let found = context.state.store.read(|tx| Box::pin(async { tx.get::<ManagedDisk>(&id).await })).await?;
    let region = found.as_ref().map(|document| document.data.spec.location.clone());
    if let Some(document) = found {
        release(&context, &document.data).await?;
    }
    context
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                match tx.delete(&id).await {
                    Ok(()) | Err(StoreError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
                if let Some(region) = &region {
                    want_gc(tx, region).await?;
                }
                context.finish_in(tx, &OperationEnd::Succeeded(None)).await
            })
        })
        .await?;
    Ok(())
}

/// Waits until no other job works on the resource.
///
/// # Errors
/// When it takes longer: the job then comes again.
pub(super) async fn wait_for_others(context: &JobContext, id: &str) -> Result<(), JobFailure> {
    let until = tokio::time::Instant::now() + OTHERS_END;
    loop {
        let jobs = context.state.store.read(|tx| Box::pin(async { tx.unfinished_jobs(id).await })).await?;
        if jobs.iter().all(|job| job.id == context.job.id) {
            return Ok(());
        }
        if tokio::time::Instant::now() >= until || context.stopping.is_cancelled() {
            let message = "What works on the resource is still being stopped.";
            return Err(JobFailure::transient("InternalServerError", message));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn release(context: &JobContext, disk: &ManagedDisk) -> Result<(), JobFailure> {
    let removed = context.state.disk_exports.remove_upload(disk.unique_id, None).await;
    removed.map_err(|error| internal("remove the upload's file", &error))?;
    let content = disk.content().map(|content| &content.manifest);
    for manifest in content.into_iter().chain(&disk.retired) {
        let manifest = manifest_id(manifest)?;
        let owner = disk_reference(disk.unique_id);
        let released = let_go(&context.state.fabric, &disk.spec.location, &manifest, &owner).await;
        released.map_err(|error| internal("release the disk's content", &error))?;
    }
    Ok(())
}

/// The disk stays "being deleted"; the column says that nobody is at it, so that deleting it or its resource group tries
/// again.
pub(super) async fn failed(tx: &mut Tx<'_>, job: &Job, _: &JobFailure) -> Result<(), StoreError> {
    let Some(key) = &job.resource_key else { return Ok(()) };
    let Some(mut document) = tx.get::<ManagedDisk>(key).await? else { return Ok(()) };
    document.state = ProvisioningState::Failed;
    tx.update(&mut document).await
}
