//! Deletes an image version: waits until nothing else works on it, lets go of its bytes in every region, then
//! removes the row. The row is last: as long as it is there, somebody knows where the bytes are.

use std::collections::BTreeSet;
use std::time::Duration;

use model::Region;
use model::image_version::ImageVersion;
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::{Document, Job, OperationEnd, ProvisioningState, StoreError, Tx};

use super::context::{JobContext, JobFailure};
use super::replicate_image_version::{manifests, release};
use crate::http::error::chain;
use crate::reconcile::gc::want_gc;

/// Between two looks while another job of this version comes to its end.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    /// Id of the version.
    pub(crate) version: String,
}

pub(super) async fn run(context: JobContext) -> Result<(), JobFailure> {
    let Payload { version } = context.payload()?;
    let Some(document) = alone(&context, &version).await? else { return Ok(()) };
    let manifests = match document.data.state.content() {
        Some(content) => manifests(content)?,
        None => Vec::new(),
    };
    let regions = context
        .state
        .store
        .read(|tx| {
            Box::pin(async {
                let placed = tx.placements(&version).await?.into_iter().map(|placement| placement.region);
                Ok::<BTreeSet<String>, StoreError>(placed.collect())
            })
        })
        .await?;
    let spec = &document.data.spec;
    let targets = spec.publishing.target_regions.iter().map(|target| &target.region).chain([&spec.location]);
    let regions: BTreeSet<String> = regions.into_iter().chain(targets.map(ToString::to_string)).collect();
    for (index, region) in regions.iter().enumerate() {
        context.report(json!({ "regionsLeft": regions.len() - index }));
        release(&context.state, region, &manifests, &version).await.map_err(|error| {
            let message = format!("The content cannot be released in region '{region}': {}", chain(&error));
            JobFailure::transient("GalleryImageDeletionFailed", message)
        })?;
    }
    context
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                match tx.delete(&version).await {
                    Ok(()) | Err(StoreError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
                for region in regions.iter().filter_map(|region| Region::parse(region).ok()) {
                    want_gc(tx, &region).await?;
                }
                context.finish_in(tx, &OperationEnd::Succeeded(None)).await
            })
        })
        .await?;
    Ok(())
}

/// The document, once no other job works on the version; `None` if it is gone. A create or an update that was under
/// way was asked to stop when the deletion was accepted; while it runs it may still add a reference.
async fn alone(context: &JobContext, version: &str) -> Result<Option<Document<ImageVersion>>, JobFailure> {
    loop {
        let (others, document) = context
            .state
            .store
            .read(|tx| {
                Box::pin(async {
                    let jobs = tx.unfinished_jobs(version).await?;
                    let others = jobs.iter().filter(|job| job.kind != context.job.kind).count();
                    Ok::<_, StoreError>((others, tx.get::<ImageVersion>(version).await?))
                })
            })
            .await?;
        if others == 0 || document.is_none() {
            return Ok(document);
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = context.stopping.cancelled() => {
                return Err(JobFailure::transient("InternalServerError", "the service stops"));
            }
        }
    }
}

/// The version stays "being deleted", which only another DELETE can change (RULES.md 2D, 41); the column says that
/// nobody is at it, so that deleting its resource group tries again.
pub(super) async fn failed(tx: &mut Tx<'_>, job: &Job, _: &JobFailure) -> Result<(), StoreError> {
    let Some(key) = &job.resource_key else { return Ok(()) };
    let Some(mut document) = tx.get::<ImageVersion>(key).await? else { return Ok(()) };
    document.state = ProvisioningState::Failed;
    tx.update(&mut document).await
}
