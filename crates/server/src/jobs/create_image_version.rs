//! Gives an image version its bytes: finds them where its source has them, takes references of its own in the
//! home region, and then does all that [`replicate_image_version`] does, in the same job.

use std::collections::BTreeMap;

use model::image_version::{ImageVersion, VersionContent, VersionState};
use serde::{Deserialize, Serialize};
use store::{Document, Job, StoreError, Tx};

use super::context::{JobContext, JobFailure};
use super::import_vhd;
use super::replicate_image_version::{self, bring_everywhere, manifest_id, version_reference};
use crate::api::image_versions::{
    SourceDisk, SourceDisks, check_size, column_state, source_disks, wanted_placements,
};
use crate::copies;
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
                let source = source_disks(tx, &context.state, &document).await?;
                Ok::<_, ApiError>(Some((document, Some(source))))
            })
        })
        .await;
    let Some((document, source)) = found? else { return Ok(()) };
    let home = document.data.spec.location.clone();
    if let Some(source) = source {
        let content = hold(&context, &document, source).await?;
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

/// Gives the version references of its own to all its disks; a VHD is brought into the store for it.
async fn hold(
    context: &JobContext,
    document: &Document<ImageVersion>,
    source: SourceDisks,
) -> Result<VersionContent, JobFailure> {
    let reference = version_reference(&document.id);
    let mut os_disk = None;
    let mut data_disks = BTreeMap::new();
    for (lun, disk) in source.disks {
        let content = match disk {
            SourceDisk::Stored(content) => {
                let (fabric, home) = (&context.state.fabric, &document.data.spec.location);
                let manifest = manifest_id(&content.manifest)?;
                copies::hold(fabric, home, &manifest, &reference).await.map_err(|error| {
                    let message = format!("The source's content cannot be read: {}", chain(&error));
                    match error.is_not_found() {
                        true => JobFailure::permanent("NotFound", message),
                        false => JobFailure::transient("GalleryImageReplicationFailed", message),
                    }
                })?;
                content
            }
            SourceDisk::Vhd(uri) => {
                let content =
                    import_vhd::import(context, &document.data.spec.location, &uri, &reference).await?;
                check_size(&document.data.spec, &content)?;
                content
            }
        };
        match lun {
            None => os_disk = Some(content),
            Some(lun) => {
                data_disks.insert(lun, content);
            }
        }
    }
    let os_disk =
        os_disk.ok_or_else(|| JobFailure::permanent("InternalServerError", "the source has no OS disk"))?;
    Ok(VersionContent { os_disk, data_disks })
}

pub(super) async fn failed(tx: &mut Tx<'_>, job: &Job, failure: &JobFailure) -> Result<(), StoreError> {
    replicate_image_version::failed(tx, job, failure).await
}
