//! Brings a disk or snapshot its bytes, or lets it grow: by reference where the region has them, else by moving or fetching
//! them. The row names the bytes before the operation ends; references that it no longer needs go in between.

use std::sync::Arc;

use arm::disk::Form;
use model::content::DiskContent;
use model::image_definition::{Architecture, OsType};
use model::managed_disk::{DiskBytes, ManagedDisk, SourceFacts};
use model::{Failure, ProvisioningState};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::{Document, Job, OperationEnd, StoreError, Tx};
use uuid::Uuid;

use super::context::{JobContext, JobFailure};
use super::import_vhd::{bring, disk_content, import, internal, put_source};
use super::make_platform_image::ensure_platform_image;
use super::replicate_image_version::manifest_id;
use crate::api::column_state;
use crate::api::disks::origin::{self, Origin};
use crate::api::disks::render;
use crate::copies::let_go;
use crate::http::error::ApiError;
use crate::vhd::Nothing;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    /// Id of the disk or snapshot.
    pub(crate) disk: String,
}

/// The owner of a disk's reference in its region's store.
pub(crate) fn disk_reference(disk: Uuid) -> String {
    format!("disk-{}", disk.simple())
}

/// What the job brought.
struct Made {
    bytes: DiskBytes,
    facts: SourceFacts,
}

pub(super) async fn run(context: JobContext) -> Result<(), JobFailure> {
    let Payload { disk: id } = context.payload()?;
    let found = context
        .state
        .store
        .read(|tx| {
            Box::pin(async {
                let Some(document) = tx.get::<ManagedDisk>(&id).await? else { return Ok(None) };
                let pending =
                    document.data.provisioning.is_busy() && document.data.bytes == DiskBytes::Pending;
                let origin = match pending {
                    true => Some(origin::find(tx, &context.state, &document).await?),
                    false => None,
                };
                Ok::<_, ApiError>(Some((document, origin)))
            })
        })
        .await?;
    let Some((document, origin)) = found else { return Ok(()) };
    if !document.data.provisioning.is_busy() {
        return match document.data.provisioning {
            ProvisioningState::Deleting => Err(JobFailure::canceled()),
            _ => Ok(()),
        };
    }
    let made = match (origin, document.data.grows_to()) {
        (Some(origin), _) => Some(make(&context, &document.data, origin).await?),
        (None, Some(bytes)) => Some(grow(&context, &document.data, bytes).await?),
        (None, None) => None,
    };
    if let Some(made) = made {
        record(&context, &id, made).await?;
    }
    finish(&context, &id).await
}

async fn make(context: &JobContext, disk: &ManagedDisk, origin: Origin) -> Result<Made, JobFailure> {
    let owner = disk_reference(disk.unique_id);
    let region = &disk.spec.location;
    let (content, facts) = match origin {
        Origin::Upload { bytes } => {
            return Ok(Made { bytes: DiskBytes::Upload { bytes }, facts: SourceFacts::default() });
        }
        Origin::Empty { bytes } => {
            let nothing = Arc::new(Nothing { size: bytes });
            (put_source(context, region, nothing, &owner).await?, SourceFacts::default())
        }
        Origin::Import { uri } => (import(context, region, &uri, &owner).await?, SourceFacts::default()),
        Origin::Stored { content, region: from, facts } => {
            bring(&context.state, &content, &from, region, &owner).await?;
            (content, facts)
        }
        Origin::Platform { publisher, offer, sku, version } => {
            let found = ensure_platform_image(&context.state, &publisher, &offer, &sku, &version, region);
            let found = tokio::select! {
                found = found => found,
                () = context.cancel.cancelled() => return Err(JobFailure::canceled()),
            };
            let found =
                found.map_err(|message| JobFailure::permanent("PlatformImageNotAvailable", message))?;
            let content = disk_content(&found.manifest, found.logical_bytes)?;
            bring(&context.state, &content, region, region, &owner).await?;
            let facts = SourceFacts {
                os_type: Some(OsType::Linux),
                hyper_v_generation: Some(found.generation),
                architecture: Some(Architecture::X64),
                unique_id: None,
            };
            (content, facts)
        }
    };
    if let Some(asked) = disk.spec.size_gib {
        origin::check_size(disk, content.size_gib(), asked)?;
    }
    Ok(Made { bytes: DiskBytes::Stored(content), facts })
}

/// The same disk, larger: its pages are named again, and nothing is read.
async fn grow(context: &JobContext, disk: &ManagedDisk, bytes: u64) -> Result<Made, JobFailure> {
    let Some(content) = disk.content() else {
        return Err(JobFailure::permanent("InternalServerError", "a disk without content cannot grow"));
    };
    let base = manifest_id(&content.manifest)?;
    let owner = disk_reference(disk.unique_id);
    let holding = context.state.fabric.holding(&disk.spec.location, &base).await;
    let mut grown =
        Err(JobFailure::transient("InternalServerError", "no zone that can be reached has the disk"));
    for store in holding.map_err(|error| internal("open the store", &error))? {
        let report = store.commit_source(&base, Arc::new(Nothing { size: bytes }), &owner, |_| {}).await;
        grown = report.map_err(|error| internal("let the disk grow", &error));
        if grown.is_ok() {
            break;
        }
    }
    let report = grown?;
    let content = disk_content(&report.manifest, report.logical_bytes)?;
    Ok(Made { bytes: DiskBytes::Stored(content), facts: disk.facts.clone() })
}

/// Writes the bytes into the row: also into that of a disk that is going away meanwhile, so that its deletion knows what
/// to release.
async fn record(context: &JobContext, id: &str, made: Made) -> Result<(), JobFailure> {
    let stored: Result<(), StoreError> = context
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                let Some(mut document) = tx.get::<ManagedDisk>(id).await? else { return Ok(()) };
                let disk = &mut document.data;
                let before = disk.content().map(|content: &DiskContent| content.manifest.clone());
                let now = match &made.bytes {
                    DiskBytes::Stored(content) => Some(&content.manifest),
                    _ => None,
                };
                disk.retired.extend(before.filter(|before| Some(before) != now));
                disk.bytes = made.bytes.clone();
                disk.facts = made.facts.clone();
                disk.spec.creation.forget_secret();
                tx.update(&mut document).await
            })
        })
        .await;
    Ok(stored?)
}

/// Releases what the disk no longer needs, grows what was copied into a larger disk, and ends the operation.
async fn finish(context: &JobContext, id: &str) -> Result<(), JobFailure> {
    let found = context.state.store.read(|tx| Box::pin(async { tx.get::<ManagedDisk>(id).await })).await?;
    let Some(document) = found else { return Ok(()) };
    if document.data.provisioning == ProvisioningState::Deleting {
        return Err(JobFailure::canceled());
    }
    if let Some(bytes) = document.data.grows_to() {
        record(context, id, grow(context, &document.data, bytes).await?).await?;
        return Box::pin(finish(context, id)).await;
    }
    release(context, &document.data).await?;
    context
        .state
        .store
        .write(|tx| {
            Box::pin(async {
                context.hold(tx).await?;
                let Some(mut document) = tx.get::<ManagedDisk>(id).await? else { return Ok(()) };
                if !document.data.provisioning.is_busy() {
                    // It began to be deleted; that job ends what is left.
                    let end = OperationEnd::Canceled(JobFailure::canceled().error_object());
                    return context.finish_in(tx, &end).await.map_err(ApiError::from);
                }
                document.data.retired.clear();
                document.data.provisioning = ProvisioningState::Succeeded;
                document.state = column_state(&document.data.provisioning);
                tx.update(&mut document).await?;
                let result = result(&document)?;
                Ok(context.finish_in(tx, &OperationEnd::Succeeded(Some(result))).await?)
            })
        })
        .await?;
    Ok(())
}

fn result(document: &Document<ManagedDisk>) -> Result<Value, ApiError> {
    render(document, Form::Whole)
}

/// Removes the references of content that the disk has outgrown.
async fn release(context: &JobContext, disk: &ManagedDisk) -> Result<(), JobFailure> {
    if disk.retired.is_empty() {
        return Ok(());
    }
    for manifest in &disk.retired {
        let manifest = manifest_id(manifest)?;
        let owner = disk_reference(disk.unique_id);
        let_go(&context.state.fabric, &disk.spec.location, &manifest, &owner)
            .await
            .map_err(|error| internal("release the disk's former content", &error))?;
    }
    Ok(())
}

pub(super) async fn failed(tx: &mut Tx<'_>, job: &Job, failure: &JobFailure) -> Result<(), StoreError> {
    let Some(key) = &job.resource_key else { return Ok(()) };
    let Some(mut document) = tx.get::<ManagedDisk>(key).await? else { return Ok(()) };
    if !document.data.provisioning.is_busy() {
        return Ok(());
    }
    document.data.provisioning =
        ProvisioningState::Failed(Failure::new(failure.code.clone(), failure.message.clone()));
    document.state = column_state(&document.data.provisioning);
    tx.update(&mut document).await
}
