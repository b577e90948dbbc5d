//! What a template's run does with its result: an image, new or in the place of the one that is there, and the wait until
//! its bytes are in its region.

use std::time::Duration;

use arm::ResourceId;
use arm::resource_type::IMAGES;
use model::content::DiskContent;
use model::image_definition::{Architecture, HyperVGeneration, OsState, OsType};
use model::image_version::VersionContent;
use model::managed_disk::SourceFacts;
use model::managed_image::{ImageBytes, ImageDisk, ImageOsDisk, ImageSpec, ImageStorage, ManagedImage};
use model::{DiskName, ProvisioningState, Region, Tags};
use store::{Document, Tx};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{column_state, group, start_creating};
use crate::AppState;
use crate::http::error::{ApiError, chain};

/// Between two looks at an image that is on its way.
const PAUSE: Duration = Duration::from_millis(250);

/// An image to publish. Its bytes are in the store of `from`, under a reference that the caller holds until the image is
/// ready.
#[derive(Debug, Clone)]
pub(crate) struct NewImage {
    /// Its id, in any case.
    pub(crate) id: String,
    /// Its region.
    pub(crate) location: Region,
    /// The distributor's `artifactTags`.
    pub(crate) tags: Tags,
    /// Firmware of the build's source.
    pub(crate) hyper_v_generation: HyperVGeneration,
    /// The bytes.
    pub(crate) content: DiskContent,
    /// Region whose store has them: where the run was.
    pub(crate) from: Region,
}

/// Inserts or renews the image and enqueues the job that brings its bytes, in the caller's transaction. Returns the
/// image's id as written. No operation goes with it: the run has its own.
///
/// # Errors
/// 404 when the resource group is gone, 409 while other work on the image is in hand or when it is in another region.
pub(crate) async fn publish_from_run(tx: &mut Tx<'_>, new: NewImage) -> Result<String, ApiError> {
    let id = ResourceId::parse(&new.id)?;
    let (group, name) = (group(tx, &id).await?, DiskName::parse(id.name())?);
    let os_disk =
        ImageOsDisk { os_type: OsType::Linux, os_state: OsState::Generalized, disk: ImageDisk::default() };
    let spec = ImageSpec {
        location: new.location,
        tags: new.tags,
        hyper_v_generation: Some(new.hyper_v_generation),
        source_vm: None,
        storage: Some(ImageStorage { os_disk, data_disks: Vec::new(), zone_resilient: None }),
    };
    let facts = SourceFacts {
        os_type: Some(OsType::Linux),
        hyper_v_generation: Some(new.hyper_v_generation),
        architecture: Some(Architecture::X64),
        unique_id: None,
    };
    let content = VersionContent { os_disk: new.content, data_disks: Default::default() };
    let bytes = ImageBytes::Built { content, from: new.from };
    let document = match tx.get::<ManagedImage>(&new.id).await? {
        Some(mut found) => {
            found.data.provisioning = found.data.provisioning.clone().update()?;
            found.data.renew(spec, facts, bytes)?;
            found.state = column_state(&found.data.provisioning);
            tx.update(&mut found).await?;
            found
        }
        None => {
            let image = ManagedImage {
                facts,
                bytes,
                ..ManagedImage::create(name.clone(), spec, Uuid::new_v4(), tx.now().await?)
            };
            let id = format!("{}/providers/{IMAGES}/{name}", group.id);
            let location = image.spec.location.to_string();
            let mut document = Document::new(&id, &location, column_state(&image.provisioning), image)?;
            tx.insert(&mut document).await?;
            document
        }
    };
    start_creating(tx, &document, None).await?;
    Ok(document.id)
}

/// Waits until an image is in its region. Until then the caller must keep its own reference to the bytes.
///
/// # Errors
/// Why it will not be: it failed, it was deleted, or `cancel` was cancelled.
pub(crate) async fn wait_ready(state: &AppState, id: &str, cancel: &CancellationToken) -> Result<(), String> {
    loop {
        let found = state.store.read(|tx| Box::pin(async { tx.get::<ManagedImage>(id).await })).await;
        match found.map_err(|error| chain(&error))?.map(|document| document.data.provisioning) {
            Some(ProvisioningState::Succeeded) => return Ok(()),
            Some(ProvisioningState::Failed(failure)) => return Err(failure.message),
            Some(ProvisioningState::Creating | ProvisioningState::Updating) => {}
            Some(ProvisioningState::Deleting | ProvisioningState::Canceled) | None => {
                return Err(format!("The image {id} was deleted while it was being published."));
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = cancel.cancelled() => return Err("The wait for the image was canceled.".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use model::ManifestRef;
    use model::resource_group::{ResourceGroup, ResourceGroupSpec};
    use serde_json::json;
    use store::{Store, StoreError};

    use super::*;

    const GROUP: &str = "/subscriptions/s/resourceGroups/Rg";

    fn new(manifest: &str, location: &str) -> NewImage {
        NewImage {
            id: format!("{}/providers/Microsoft.Compute/images/i", GROUP.to_lowercase()),
            location: Region::parse(location).unwrap(),
            tags: Tags::default(),
            hyper_v_generation: HyperVGeneration::V2,
            content: DiskContent { manifest: ManifestRef::parse(manifest).unwrap(), size_bytes: 1 },
            from: Region::parse("eastus").unwrap(),
        }
    }

    #[tokio::test]
    async fn a_run_makes_and_renews_an_image() {
        let folder = tempfile::tempdir().unwrap();
        let store =
            Store::connect(&format!("sqlite:{}", folder.path().join("t.db").display())).await.unwrap();
        let spec = ResourceGroupSpec {
            location: Region::parse("eastus").unwrap(),
            tags: Tags::default(),
            managed_by: None,
        };
        let group = ResourceGroup::create(model::ResourceGroupName::parse("Rg").unwrap(), spec);
        let ready = store::ProvisioningState::Succeeded;
        let inserted: Result<(), StoreError> = store
            .write(|tx| {
                Box::pin(async {
                    tx.insert(&mut Document::new(GROUP, "eastus", ready, group.clone())?).await
                })
            })
            .await;
        inserted.unwrap();
        let publish = async |new: NewImage| {
            store.write(|tx| Box::pin(async { publish_from_run(tx, new.clone()).await })).await
        };
        let id = publish(new("m", "eastus")).await.unwrap();
        assert_eq!(id, format!("{GROUP}/providers/Microsoft.Compute/images/i"));
        let busy = publish(new("n", "eastus")).await.unwrap_err();
        assert_eq!(busy.status(), 409, "{}", busy.error_object());
        let read: Result<(ManagedImage, usize), StoreError> = store
            .write(|tx| {
                Box::pin(async {
                    let mut found = tx.get::<ManagedImage>(&id).await?.unwrap();
                    found.data.provisioning = ProvisioningState::Succeeded;
                    found.state = ready;
                    tx.update(&mut found).await?;
                    Ok((found.data, tx.unfinished_jobs(&id).await?.len()))
                })
            })
            .await;
        let (image, jobs) = read.unwrap();
        assert_eq!((image.hyper_v_generation(), image.retired.len(), jobs), (HyperVGeneration::V2, 0, 1));
        let far = publish(new("n", "westus")).await.unwrap_err();
        assert!(far.error_object().to_string().contains("eastus"), "{}", far.error_object());
        publish(new("n", "eastus")).await.unwrap();
        let found: Result<_, StoreError> =
            store.read(|tx| Box::pin(async { tx.get::<ManagedImage>(&id).await })).await;
        let image = found.unwrap().unwrap().data;
        assert_eq!(json!(image.retired), json!(["m"]));
    }
}
