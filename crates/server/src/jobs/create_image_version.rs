//! Gives an image version its bytes: finds them where its source has them, takes references of its own in the
//! home region, and then does all that [`replicate_image_version`] does, in the same job.

use model::image_version::{ImageVersion, VersionState};
use serde::{Deserialize, Serialize};
use store::{Job, StoreError, Tx};

use super::context::{JobContext, JobFailure};
use super::replicate_image_version::{self, bring_everywhere, manifests, version_reference};
use crate::api::image_versions::{column_state, source_content, wanted_placements};
use crate::copies::{CopyError, hold};
use crate::http::error::{ApiError, chain};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    /// Id of the version.
    pub(crate) version: String,
}

pub(super) async fn run(context: JobContext) -> Result<(), JobFailure> {
    let Payload { version } = context.payload()?;
    let store = &context.state.store;
    let found = store
        .read(|tx| {
            Box::pin(async {
                let Some(document) = tx.get::<ImageVersion>(&version).await? else { return Ok(None) };
                if document.data.state != VersionState::Creating {
                    return Ok(Some((document, None)));
                }
                let content = source_content(tx, &document).await?;
                Ok::<_, ApiError>(Some((document, Some(content))))
            })
        })
        .await;
    let Some((document, content)) = found.map_err(refusal)? else { return Ok(()) };
    let home = document.data.spec.location.clone();
    if let Some(content) = content {
        let fabric = &context.state.fabric;
        for manifest in manifests(&content)? {
            hold(fabric, &home, &manifest, &version_reference(&version)).await.map_err(|error| {
                let message = format!("The source's content cannot be read: {}", chain(&error));
                match error {
                    CopyError::Content(content::Error::ManifestNotFound { .. }) => {
                        JobFailure::permanent("NotFound", message)
                    }
                    _ => JobFailure::transient("GalleryImageReplicationFailed", message),
                }
            })?;
        }
        let targets: Vec<_> =
            document.data.spec.publishing.target_regions.iter().map(|t| t.region.clone()).collect();
        // The home region is Replicating until `bring_everywhere` has seen to its reference, like any other: then a
        // version of one region ends in the same transaction as its operation.
        let regions = targets
            .into_iter()
            .map(|region| {
                (region, model::image_version::RegionReplication::Replicating { progress_percent: 0 })
            })
            .collect();
        let next = VersionState::Replicating { content, regions, updating: false };
        let stored: Result<(), StoreError> = store
            .write(|tx| {
                Box::pin(async {
                    context.hold(tx).await?;
                    let Some(mut document) = tx.get::<ImageVersion>(&version).await? else { return Ok(()) };
                    if document.data.state == VersionState::Creating {
                        document.data.state = next.clone();
                        document.state = column_state(&document.data.state);
                        tx.update(&mut document).await?;
                        wanted_placements(tx, &document).await?;
                    }
                    Ok(())
                })
            })
            .await;
        stored?;
    }
    bring_everywhere(&context, &version, Some(home)).await
}

/// What the API says about a source is what the operation says.
fn refusal(error: ApiError) -> JobFailure {
    let object = error.error_object();
    let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
    match error.status().is_server_error() {
        true => JobFailure::transient(text("code"), text("message")),
        false => JobFailure::permanent(text("code"), text("message")),
    }
}

pub(super) async fn failed(tx: &mut Tx<'_>, job: &Job, failure: &JobFailure) -> Result<(), StoreError> {
    replicate_image_version::failed(tx, job, failure).await
}
