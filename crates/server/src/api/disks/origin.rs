//! Where a disk's bytes are, as far as a request may wait for the answer.

use arm::resource_type::{DISKS, SNAPSHOTS};
use arm::{ArmError, ResourceId};
use model::Region;
use model::content::DiskContent;
use model::managed_disk::{DiskOrigin, ImageId, ManagedDisk, SourceFacts};
use store::{Document, Tx};

use crate::AppState;
use crate::api::image_versions::resolve_gallery_image;
use crate::http::error::ApiError;
use crate::jobs::make_platform_image::check_available;

/// What a request or job finds out.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    /// Zeros.
    Empty {
        /// How many.
        bytes: u64,
    },
    /// The client's upload.
    Upload {
        /// Its length with the footer.
        bytes: u64,
    },
    /// A VHD to be fetched.
    Import {
        /// Its address.
        uri: String,
    },
    /// In the store of a region.
    Stored {
        /// The bytes.
        content: DiskContent,
        /// Which region.
        region: Region,
        /// What the source tells.
        facts: SourceFacts,
    },
    /// A platform image, which may have to be made.
    Platform {
        /// Publisher.
        publisher: String,
        /// Offer.
        offer: String,
        /// SKU.
        sku: String,
        /// Version.
        version: String,
    },
}

/// Finds where the bytes of a disk come from, and whether they are there.
///
/// # Errors
/// 400, 404, 409: no such source, or one that cannot be used.
pub(crate) async fn find(
    tx: &mut Tx<'_>,
    state: &AppState,
    document: &Document<ManagedDisk>,
) -> Result<Origin, ApiError> {
    let disk = &document.data;
    let origin = match disk.spec.check(disk.kind)? {
        DiskOrigin::Empty => Origin::Empty { bytes: disk.spec.size_bytes().unwrap_or_default() },
        DiskOrigin::Upload { bytes } => Origin::Upload { bytes },
        DiskOrigin::Import(uri) => {
            crate::jobs::import_vhd::check_address(state, &uri)?;
            Origin::Import { uri }
        }
        DiskOrigin::Copy { source, far } => copy(tx, disk, source.as_str(), far).await?,
        DiskOrigin::Image { id: ImageId::Platform { publisher, offer, sku, version }, lun } => {
            if lun.is_some() {
                return Err(no_such_lun());
            }
            check_available(state, &publisher, &offer, &sku, &version).await.map_err(|message| {
                ApiError::from(
                    ArmError::new(404, "PlatformImageNotFound", message).with_target("imageReference"),
                )
            })?;
            Origin::Platform { publisher, offer, sku, version }
        }
        DiskOrigin::Image { id: ImageId::Resource(id), lun } => image(tx, disk, id.as_str(), lun).await?,
    };
    if let (Origin::Stored { content, .. }, Some(asked)) = (&origin, disk.spec.size_gib) {
        check_size(disk, content.size_gib(), asked)?;
    }
    Ok(origin)
}

/// A disk is at least as large as what it is made from.
pub(crate) fn check_size(disk: &ManagedDisk, source_gib: u64, asked: u64) -> Result<(), ApiError> {
    if asked >= source_gib {
        return Ok(());
    }
    let message = format!(
        "The size of {} {} is {asked} GB, which is smaller than its source of {source_gib} GB. Give an equal or greater size, or \
         none.",
        disk.kind_name(),
        disk.name
    );
    Err(ArmError::invalid_parameter("diskSizeGB", message).into())
}

async fn copy(tx: &mut Tx<'_>, disk: &ManagedDisk, id: &str, far: bool) -> Result<Origin, ApiError> {
    let target = "creationData.sourceResourceId";
    let source_id = ResourceId::parse(id)?;
    let ty = source_id.resource_type();
    if ty != DISKS && ty != SNAPSHOTS {
        let message = format!("The source {id} must be a managed disk or a snapshot.");
        return Err(ArmError::invalid_parameter(target, message).into());
    }
    let source = tx.get::<ManagedDisk>(id).await?;
    // Recorded.
    let source = source.ok_or_else(|| {
        ArmError::not_found(format!("Resource {} is not found.", source_id.name())).with_target(target)
    })?;
    let region = &source.data.spec.location;
    if *region != disk.spec.location && !far {
        let message = format!(
            "The source {id} is in region {region}, and a copy is made in the source's region. To bring it to {}, copy a snapshot \
             with createOption 'CopyStart'.",
            disk.spec.location
        );
        return Err(ArmError::invalid_parameter(target, message).into());
    }
    let content = source.data.content().ok_or_else(|| {
        let message = format!(
            "The source {id} has no content yet: its creation or upload has not ended. Wait until it has."
        );
        ArmError::operation_not_allowed(message).with_target(target)
    })?;
    let facts = SourceFacts {
        os_type: source.data.os_type(),
        hyper_v_generation: source.data.hyper_v_generation(),
        architecture: source.data.architecture(),
        unique_id: Some(source.data.unique_id),
    };
    Ok(Origin::Stored { content: content.clone(), region: region.clone(), facts })
}

async fn image(tx: &mut Tx<'_>, disk: &ManagedDisk, id: &str, lun: Option<u8>) -> Result<Origin, ApiError> {
    let reference = ResourceId::parse(id)?.to_image_version().ok_or_else(|| {
        let message = format!(
            "The image '{id}' cannot be made into a disk: give the id of a gallery image version or of a platform image version."
        );
        ArmError::invalid_parameter("creationData.imageReference.id", message)
    })?;
    let found = resolve_gallery_image(tx, &reference, &disk.spec.location).await?;
    let content = match lun {
        None => Some(found.content.os_disk),
        Some(lun) => found.content.data_disks.get(&lun).cloned(),
    };
    let definition = &found.definition.spec;
    let facts = match lun {
        None => SourceFacts {
            os_type: Some(definition.os_type),
            hyper_v_generation: Some(definition.hyper_v_generation),
            architecture: Some(definition.architecture),
            unique_id: None,
        },
        Some(_) => SourceFacts::default(),
    };
    let region = disk.spec.location.clone();
    Ok(Origin::Stored { content: content.ok_or_else(no_such_lun)?, region, facts })
}

/// RULES.md 2D, 51.
fn no_such_lun() -> ApiError {
    ArmError::invalid_parameter(
        "creationData.imageReference",
        "The value of parameter imageReference is invalid. The image has no data disk with this LUN.",
    )
    .into()
}
