//! Where a version's bytes come from when a client makes it: another version.

use arm::resource_type::{DISKS, GALLERY_IMAGE_VERSIONS, IMAGES, SNAPSHOTS, VIRTUAL_MACHINES};
use arm::{ArmError, ResourceId};
use model::image_definition::{ImageDefinition, SourceTraits};
use model::image_version::{
    DataDiskImage, DiskImage, DiskSource, ImageVersion, VersionContent, VersionSource,
};
use store::{Document, Tx};

use crate::http::error::ApiError;

/// The path that errors name.
const SOURCE_ID: &str = "properties.storageProfile.source.id";

/// The bytes that a version's source has in the version's home region, checked against the version's definition.
///
/// # Errors
/// RULES.md 2D, 19 and 24 to 27.
pub(crate) async fn source_content(
    tx: &mut Tx<'_>,
    document: &Document<ImageVersion>,
) -> Result<VersionContent, ApiError> {
    let spec = &document.data.spec;
    let id = match &spec.source {
        Some(VersionSource::Resource(id) | VersionSource::VirtualMachine(id)) => id.as_str(),
        Some(VersionSource::Community(id)) => return Err(not_found(id)),
        Some(VersionSource::Disks { os, data }) => return Err(disks(tx, os, data).await?),
        Some(VersionSource::ImageTemplate(id)) => return Err(not_found(id.as_str())),
        None => return Err(ArmError::missing_parameter(SOURCE_ID).into()),
    };
    let source_id = ResourceId::parse(id)?;
    let source_type = source_id.resource_type();
    if source_type == IMAGES || source_type == VIRTUAL_MACHINES {
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
    Ok(content)
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

/// Why disks are no source here.
async fn disks(tx: &mut Tx<'_>, os: &DiskImage, data: &[DataDiskImage]) -> Result<ApiError, ApiError> {
    let mut ids = Vec::new();
    for disk in std::iter::once(os).chain(data.iter().map(|data| &data.disk)) {
        // Beside a URI the id is that of a storage account.
        if let Some(DiskSource { id: Some(id), uri: None, .. }) = &disk.source {
            ids.push(id.as_str());
        }
    }
    for id in ids {
        let source_type = ResourceId::parse(id)?.resource_type();
        if source_type != DISKS && source_type != SNAPSHOTS {
            return Ok(refuse(format!("The source id: {id} must be a managed disk or snapshot")));
        }
        if !tx.exists(id).await? {
            return Ok(not_found(id));
        }
    }
    Ok(refuse(
        "Disks, snapshots and VHDs cannot be made into image versions by this service yet. Build the image with an image \
         template, or use another gallery image version"
            .to_owned(),
    ))
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
