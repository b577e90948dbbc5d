//! Where a version's bytes come from when a client makes it: another version, a managed image, disks and snapshots, VHDs.

use arm::resource_type::{DISKS, GALLERY_IMAGE_VERSIONS, IMAGES, SNAPSHOTS, VIRTUAL_MACHINES};
use arm::{ArmError, ResourceId};
use model::content::DiskContent;
use model::image_definition::{ImageDefinition, SourceTraits};
use model::image_version::{
    DataDiskImage, DiskImage, ImageVersion, ImageVersionSpec, ReplicationMode, VersionContent, VersionSource,
};
use model::managed_disk::ManagedDisk;
use model::managed_image::ManagedImage;
use store::{Document, Tx};

use crate::AppState;
use crate::api::images;
use crate::http::error::ApiError;
use crate::jobs::import_vhd;

/// Largest disk of a version that is copied (RULES.md 2B).
const FULL_GIB_MAX: u64 = 2048;
/// Largest disk of a shallow version (RULES.md 2B).
const SHALLOW_GIB_MAX: u64 = 32 * 1024;

/// Where the disks of a version are.
pub(crate) struct SourceDisks {
    /// By LUN; `None` is the OS disk, which comes first.
    pub(crate) disks: Vec<(Option<u8>, SourceDisk)>,
}

/// Where one disk of a version is.
pub(crate) enum SourceDisk {
    /// In the store of the version's home region.
    Stored(DiskContent),
    /// A VHD at this address.
    Vhd(String),
}

impl From<VersionContent> for SourceDisks {
    fn from(content: VersionContent) -> Self {
        let data = content.data_disks.into_iter().map(|(lun, disk)| (Some(lun), SourceDisk::Stored(disk)));
        let os = (None, SourceDisk::Stored(content.os_disk));
        Self { disks: std::iter::once(os).chain(data).collect() }
    }
}

/// The path that errors name.
const SOURCE_ID: &str = "properties.storageProfile.source.id";

/// The bytes that a version's source has in the version's home region, checked against the version's definition.
///
/// # Errors
/// RULES.md 2D, 19 and 24 to 27.
pub(crate) async fn source_disks(
    tx: &mut Tx<'_>,
    state: &AppState,
    document: &Document<ImageVersion>,
) -> Result<SourceDisks, ApiError> {
    let spec = &document.data.spec;
    let id = match &spec.source {
        Some(VersionSource::Resource(id) | VersionSource::VirtualMachine(id)) => id.as_str(),
        Some(VersionSource::Community(id)) => return Err(not_found(id)),
        Some(VersionSource::Disks { os, data }) => return disks(tx, state, document, os, data).await,
        Some(VersionSource::ImageTemplate(id)) => return Err(not_found(id.as_str())),
        None => return Err(ArmError::missing_parameter(SOURCE_ID).into()),
    };
    let source_id = ResourceId::parse(id)?;
    let source_type = source_id.resource_type();
    if source_type == IMAGES {
        return managed_image(tx, document, id).await;
    }
    if source_type == VIRTUAL_MACHINES {
        return Err(match tx.exists(id).await? {
            true => refuse(format!(
                "The source id: {id} cannot be captured by this service yet. Build the image with an image template, or use \
                 another gallery image version"
            )),
            false => not_found(id),
        });
    }
    if source_type != GALLERY_IMAGE_VERSIONS {
        return Err(refuse(format!(
            "The source id: {id} must either be a managed image, virtual machine or another gallery image version"
        )));
    }
    let source = tx.get::<ImageVersion>(id).await?.ok_or_else(|| not_found(id))?;
    let available = source.data.state.is_available_in(&spec.location);
    let content = source.data.state.content().filter(|_| available).ok_or_else(|| not_found(id))?.clone();
    let definition = definition_of(tx, document).await?;
    let of_source = definition_of(tx, &source).await?.spec;
    let traits = SourceTraits {
        os_type: of_source.os_type,
        os_state: of_source.os_state,
        hyper_v_generation: of_source.hyper_v_generation,
        architecture: of_source.architecture,
    };
    definition.spec.check_source(id, &traits)?;
    Ok(SourceDisks::from(content))
}

/// All disks of a managed image in the version's home region.
async fn managed_image(
    tx: &mut Tx<'_>,
    document: &Document<ImageVersion>,
    id: &str,
) -> Result<SourceDisks, ApiError> {
    let spec = &document.data.spec;
    let found = tx.get::<ManagedImage>(id).await?;
    if found.is_none_or(|found| found.data.spec.location != spec.location) {
        return Err(not_found(id));
    }
    let found = images::usable(tx, id, &spec.location, SOURCE_ID).await?;
    let os_disk = &found.storage.os_disk;
    let traits = SourceTraits {
        os_type: os_disk.os_type,
        os_state: os_disk.os_state,
        hyper_v_generation: found.image.hyper_v_generation(),
        architecture: found.image.architecture(),
    };
    definition_of(tx, document).await?.spec.check_source(id, &traits)?;
    check_size(spec, &found.content.os_disk)?;
    for disk in found.content.data_disks.values() {
        check_size(spec, disk)?;
    }
    Ok(SourceDisks::from(found.content))
}

async fn definition_of(
    tx: &mut Tx<'_>,
    version: &Document<ImageVersion>,
) -> Result<ImageDefinition, ApiError> {
    let parent = version.parent.as_deref().unwrap_or_default();
    let definition = tx.get::<ImageDefinition>(parent).await?;
    let name = || parent.rsplit('/').next().unwrap_or_default();
    Ok(definition.ok_or_else(|| ArmError::parent_resource_not_found(name()))?.data)
}

/// The disks that a version is made of, one by one.
async fn disks(
    tx: &mut Tx<'_>,
    state: &AppState,
    document: &Document<ImageVersion>,
    os: &DiskImage,
    data: &[DataDiskImage],
) -> Result<SourceDisks, ApiError> {
    let definition = definition_of(tx, document).await?.spec;
    let spec = &document.data.spec;
    let all = std::iter::once((None, os)).chain(data.iter().map(|data| (Some(data.lun), &data.disk)));
    let mut disks = Vec::new();
    for (lun, disk) in all {
        let Some(source) = &disk.source else {
            return Err(ArmError::missing_parameter("properties.storageProfile.dataDiskImages.source").into());
        };
        // Beside a URI the id is that of a storage account.
        if let Some(uri) = &source.uri {
            import_vhd::check_address(state, uri)?;
            disks.push((lun, SourceDisk::Vhd(uri.clone())));
            continue;
        }
        let Some(id) = &source.id else { return Err(ArmError::missing_parameter(SOURCE_ID).into()) };
        let id = id.as_str();
        let source_type = ResourceId::parse(id)?.resource_type();
        if source_type != DISKS && source_type != SNAPSHOTS {
            return Err(refuse(format!("The source id: {id} must be a managed disk or snapshot")));
        }
        let found =
            tx.get::<ManagedDisk>(id).await?.filter(|found| found.data.spec.location == spec.location);
        let found = found.ok_or_else(|| not_found(id))?.data;
        let Some(content) = found.content() else {
            let message = format!(
                "The source {id} has no content yet: its creation or upload has not ended. Wait until it has"
            );
            return Err(ArmError::operation_not_allowed(message).with_target(SOURCE_ID).into());
        };
        if lun.is_none() {
            // What a disk does not know of itself, the definition says.
            definition.check_source(
                id,
                &SourceTraits {
                    os_type: found.os_type().unwrap_or(definition.os_type),
                    os_state: definition.os_state,
                    hyper_v_generation: found.hyper_v_generation().unwrap_or(definition.hyper_v_generation),
                    architecture: found.architecture().unwrap_or(definition.architecture),
                },
            )?;
        }
        check_size(spec, content)?;
        disks.push((lun, SourceDisk::Stored(content.clone())));
    }
    Ok(SourceDisks { disks })
}

/// RULES.md 2B: 2 TiB, and 32 TiB for shallow versions.
pub(crate) fn check_size(spec: &ImageVersionSpec, content: &DiskContent) -> Result<(), ApiError> {
    let shallow = spec.publishing.replication_mode == Some(ReplicationMode::Shallow);
    let (size, max) = (content.size_gib(), if shallow { SHALLOW_GIB_MAX } else { FULL_GIB_MAX });
    match size > max {
        true => Err(refuse(format!("The source resource size {size} exceeds the max size {max} supported"))),
        false => Ok(()),
    }
}

/// RULES.md 2D, 19.
fn not_found(id: &str) -> ApiError {
    let message = format!(
        "Source {id} is not found. Please check source exists, and is in the same region as gallery image version being created"
    );
    ArmError::not_found(message).with_target(SOURCE_ID).into()
}

fn refuse(message: String) -> ApiError {
    ArmError::invalid_parameter(SOURCE_ID, message).into()
}
