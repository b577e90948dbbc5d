//! Deletes a managed image: waits until nothing else works on it, lets go of its bytes, then removes the row. The row is
//! last: as long as it is there, somebody knows where the bytes are.

use model::managed_image::ManagedImage;
use serde::{Deserialize, Serialize};
use store::{Job, OperationEnd, ProvisioningState, StoreError, Tx};

use super::context::{JobContext, JobFailure};
use super::create_managed_image::release;
use super::delete_disk::wait_for_others;
use crate::reconcile::gc::want_gc;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    /// Id of the image.
    pub(crate) image: String,
}

pub(super) async fn run(context: JobContext) -> Result<(), JobFailure> {
    let Payload { image: id } = context.payload()?;
    wait_for_others(&context, &id).await?;
    let found = context.state.store.read(|tx| Box::pin(async { tx.get::<ManagedImage>(&id).await })).await?;
    let image = found.map(|document| document.data);
    if let Some(image) = &image {
        let named: Vec<_> = image.manifests().into_iter().chain(&image.retired).cloned().collect();
        release(&context, image, &named).await?;
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
                if let Some(image) = &image {
                    want_gc(tx, &image.spec.location).await?;
                }
                context.finish_in(tx, &OperationEnd::Succeeded(None)).await
            })
        })
        .await?;
    Ok(())
}

/// The image stays "being deleted"; the column says that nobody is at it, so that deleting it or its resource group tries
/// again.
pub(super) async fn failed(tx: &mut Tx<'_>, job: &Job, _: &JobFailure) -> Result<(), StoreError> {
    let Some(key) = &job.resource_key else { return Ok(()) };
    let Some(mut document) = tx.get::<ManagedImage>(key).await? else { return Ok(()) };
    document.state = ProvisioningState::Failed;
    tx.update(&mut document).await
}
