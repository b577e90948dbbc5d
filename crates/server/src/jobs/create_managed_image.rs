//! Brings a managed image its bytes, disk by disk: by reference where the region has them, else by moving or fetching them.
//! The row names the bytes before the operation ends; references that it no longer needs go in between.

use std::collections::BTreeMap;

use model::content::DiskContent;
use model::image_version::VersionContent;
use model::managed_image::{ImageBytes, ManagedImage};
use model::{Failure, ManifestRef, ProvisioningState, Region};
use serde::{Deserialize, Serialize};
use store::{Job, OperationEnd, StoreError, Tx};
use uuid::Uuid;

use super::context::{JobContext, JobFailure};
use super::import_vhd::{bring, import, internal};
use super::replicate_image_version::manifest_id;
use crate::api::column_state;
use crate::api::image_versions::SourceDisk;
use crate::api::images::source::{self, Sources};
use crate::copies::let_go;
use crate::http::error::ApiError;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    /// Id of the image.
    pub(crate) image: String,
}

/// The owner of an image's references in its region's store.
pub(crate) fn managed_image_reference(image: Uuid) -> String {
    format!("image-{}", image.simple())
}

pub(super) async fn run(context: JobContext) -> Result<(), JobFailure> {
    let Payload { image: id } = context.payload()?;
    let found = context
        .state
        .store
        .read(|tx| {
            Box::pin(async {
                let Some(document) = tx.get::<ManagedImage>(&id).await? else { return Ok(None) };
                let pending =
                    document.data.provisioning.is_busy() && document.data.bytes == ImageBytes::Pending;
                let sources = match pending {
                    true => Some(source::find(tx, &context.state, &document.data).await?),
                    false => None,
                };
                Ok::<_, ApiError>(Some((document.data, sources)))
            })
        })
        .await?;
    let Some((image, sources)) = found else { return Ok(()) };
    if !image.provisioning.is_busy() {
        return match image.provisioning {
            ProvisioningState::Deleting => Err(JobFailure::canceled()),
            _ => Ok(()),
        };
    }
    let brought = match (&image.bytes, sources) {
        (ImageBytes::Built { content, from }, _) => {
            bring_built(&context, &image, content, from).await?;
            Some(content.clone())
        }
        (_, Some(sources)) => Some(bring_sources(&context, &image, sources).await?),
        _ => None,
    };
    if let Some(content) = brought {
        record(&context, &id, &image, content).await?;
    }
    finish(&context, &id).await
}

async fn bring_built(
    context: &JobContext,
    image: &ManagedImage,
    content: &VersionContent,
    from: &Region,
) -> Result<(), JobFailure> {
    let owner = managed_image_reference(image.unique_id);
    let disks: Vec<_> = std::iter::once(&content.os_disk).chain(content.data_disks.values()).collect();
    for disk in disks {
        bring_disk(context, disk, from, &image.spec.location, &owner).await?;
    }
    Ok(())
}

async fn bring_sources(
    context: &JobContext,
    image: &ManagedImage,
    sources: Sources,
) -> Result<VersionContent, JobFailure> {
    let owner = managed_image_reference(image.unique_id);
    let region = &image.spec.location;
    let mut os_disk = None;
    let mut data_disks = BTreeMap::new();
    for (lun, disk) in sources.disks {
        let content = match disk {
            SourceDisk::Stored(content) => {
                bring_disk(context, &content, region, region, &owner).await?;
                content
            }
            SourceDisk::Vhd(uri) => {
                let content = import(context, region, &uri, &owner).await?;
                image.spec.check_size(lun, &content).map_err(ApiError::from)?;
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
        os_disk.ok_or_else(|| JobFailure::permanent("InternalServerError", "the image has no OS disk"))?;
    Ok(VersionContent { os_disk, data_disks })
}

async fn bring_disk(
    context: &JobContext,
    content: &DiskContent,
    from: &Region,
    to: &Region,
    owner: &str,
) -> Result<(), JobFailure> {
    tokio::select! {
        brought = bring(&context.state, content, from, to, owner) => brought,
        () = context.cancel.cancelled() => Err(JobFailure::canceled()),
    }
}

/// Writes the bytes into the row: also into that of an image that is going away meanwhile, so that its deletion knows what
/// to release.
async fn record(
    context: &JobContext,
    id: &str,
    image: &ManagedImage,
    content: VersionContent,
) -> Result<(), JobFailure> {
    let stored: Result<(), StoreError> = context
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                let found = tx.get::<ManagedImage>(id).await?;
                let Some(mut document) = found.filter(|found| found.data.unique_id == image.unique_id) else {
                    return Ok(());
                };
                document.data.bytes = ImageBytes::Stored(content.clone());
                if let Some(storage) = &mut document.data.spec.storage {
                    storage.forget_secrets();
                }
                tx.update(&mut document).await
            })
        })
        .await;
    Ok(stored?)
}

/// Releases what a run has put something else in the place of, and ends the operation.
async fn finish(context: &JobContext, id: &str) -> Result<(), JobFailure> {
    let found = context.state.store.read(|tx| Box::pin(async { tx.get::<ManagedImage>(id).await })).await?;
    let Some(document) = found else { return Ok(()) };
    if document.data.provisioning == ProvisioningState::Deleting {
        return Err(JobFailure::canceled());
    }
    release(context, &document.data, &document.data.retired).await?;
    context
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                let Some(mut document) = tx.get::<ManagedImage>(id).await? else { return Ok(()) };
                if !document.data.provisioning.is_busy() {
                    // It began to be deleted; that job ends what is left.
                    let end = OperationEnd::Canceled(JobFailure::canceled().error_object());
                    return context.finish_in(tx, &end).await;
                }
                document.data.retired.clear();
                document.data.provisioning = ProvisioningState::Succeeded;
                document.state = column_state(&document.data.provisioning);
                tx.update(&mut document).await?;
                context.finish_in(tx, &OperationEnd::Succeeded(None)).await
            })
        })
        .await?;
    Ok(())
}

/// Removes an image's references to content.
pub(super) async fn release(
    context: &JobContext,
    image: &ManagedImage,
    manifests: &[ManifestRef],
) -> Result<(), JobFailure> {
    let owner = managed_image_reference(image.unique_id);
    for manifest in manifests {
        let manifest = manifest_id(manifest)?;
        let released = let_go(&context.state.fabric, &image.spec.location, &manifest, &owner).await;
        released.map_err(|error| internal("release the image's content", &error))?;
    }
    Ok(())
}

pub(super) async fn failed(tx: &mut Tx<'_>, job: &Job, failure: &JobFailure) -> Result<(), StoreError> {
    let Some(key) = &job.resource_key else { return Ok(()) };
    let Some(mut document) = tx.get::<ManagedImage>(key).await? else { return Ok(()) };
    if !document.data.provisioning.is_busy() {
        return Ok(());
    }
    document.data.provisioning =
        ProvisioningState::Failed(Failure::new(failure.code.clone(), failure.message.clone()));
    document.state = column_state(&document.data.provisioning);
    tx.update(&mut document).await
}
