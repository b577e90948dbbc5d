//! Where the disks of an image are, as far as a request may wait for the answer.

use arm::resource_type::{DISKS, ResourceType, SNAPSHOTS};
use arm::{ArmError, ResourceId};
use model::managed_disk::{ManagedDisk, SourceFacts};
use model::managed_image::{ImageDiskOrigin, ManagedImage};
use store::Tx;

use crate::AppState;
use crate::api::image_versions::SourceDisk;
use crate::http::error::ApiError;
use crate::jobs::import_vhd;

/// What a request or job finds out.
pub(crate) struct Sources {
    /// By LUN; `None` is the OS disk, which comes first.
    pub(crate) disks: Vec<(Option<u8>, SourceDisk)>,
    /// What the OS disk's source tells.
    pub(crate) facts: SourceFacts,
}

/// Finds where the bytes of an image come from, and whether they are there.
///
/// # Errors
/// 400, 404, 409: no such source, or one that cannot be used; 501 for a VM.
pub(crate) async fn find(
    tx: &mut Tx<'_>,
    state: &AppState,
    image: &ManagedImage,
) -> Result<Sources, ApiError> {
    if let Some(vm) = &image.spec.source_vm {
        return Err(capture(tx, vm.as_str()).await?);
    }
    let mut sources = Sources { disks: Vec::new(), facts: SourceFacts::default() };
    for (lun, origin) in image.spec.check()? {
        let source = match origin {
            ImageDiskOrigin::Vhd(uri) => {
                import_vhd::check_address(state, &uri)?;
                SourceDisk::Vhd(uri)
            }
            ImageDiskOrigin::Disk(id) => {
                stored(tx, image, lun, id.as_str(), &DISKS, &mut sources.facts).await?
            }
            ImageDiskOrigin::Snapshot(id) => {
                stored(tx, image, lun, id.as_str(), &SNAPSHOTS, &mut sources.facts).await?
            }
        };
        sources.disks.push((lun, source));
    }
    Ok(sources)
}

async fn capture(tx: &mut Tx<'_>, vm: &str) -> Result<ApiError, ApiError> {
    let target = "sourceVirtualMachine";
    let error = match tx.exists(vm).await? {
        true => ArmError::new(
            501,
            "NotImplemented",
            format!(
                "Creating an image from the virtual machine '{vm}' is not implemented: build it with an image template, or give a \
                 VHD, a managed disk or a snapshot."
            ),
        ),
        false => ArmError::not_found(format!("The virtual machine '{vm}' was not found.")),
    };
    Ok(error.with_target(target).into())
}

/// A disk or snapshot of this service, in the image's region.
async fn stored(
    tx: &mut Tx<'_>,
    image: &ManagedImage,
    lun: Option<u8>,
    id: &str,
    ty: &ResourceType,
    facts: &mut SourceFacts,
) -> Result<SourceDisk, ApiError> {
    let target = "storageProfile";
    let source_id = ResourceId::parse(id)?;
    if source_id.resource_type() != *ty {
        let message = format!("The source {id} is not of type {ty}.");
        return Err(ArmError::invalid_parameter(target, message).into());
    }
    let found = tx.get::<ManagedDisk>(id).await?.ok_or_else(|| {
        ArmError::not_found(format!("Resource {} is not found.", source_id.name())).with_target(target)
    })?;
    let (disk, region) = (found.data, &image.spec.location);
    if disk.spec.location != *region {
        let message = format!(
            "The source {id} is in region {}, and an image is made in its source's region. Create the image there, or copy a snapshot \
             to {region} with createOption 'CopyStart'.",
            disk.spec.location
        );
        return Err(ArmError::invalid_parameter(target, message).into());
    }
    let Some(content) = disk.content().cloned() else {
        let message = format!(
            "The source {id} has no content yet: its creation or upload has not ended. Wait until it has."
        );
        return Err(ArmError::operation_not_allowed(message).with_target(target).into());
    };
    image.spec.check_size(lun, &content)?;
    if lun.is_none() {
        *facts = SourceFacts {
            os_type: disk.os_type(),
            hyper_v_generation: disk.hyper_v_generation(),
            architecture: disk.architecture(),
            unique_id: Some(disk.unique_id),
        };
        check_facts(image, id, facts)?;
    }
    Ok(SourceDisk::Stored(content))
}

/// An image that says something else than its source would give VMs that do not start.
fn check_facts(image: &ManagedImage, id: &str, facts: &SourceFacts) -> Result<(), ApiError> {
    let differs = |what: &str, source: String, asked: String| {
        let message = format!(
            "The source {id} has {what} '{source}', but '{asked}' was asked for. Give the source's, or correct the source's own."
        );
        Err(ArmError::invalid_parameter(what, message).into())
    };
    let asked = image.spec.storage.as_ref().map(|storage| storage.os_disk.os_type);
    if let (Some(source), Some(asked)) = (facts.os_type, asked)
        && source != asked
    {
        return differs("osType", format!("{source:?}"), format!("{asked:?}"));
    }
    if let (Some(source), Some(asked)) = (facts.hyper_v_generation, image.spec.hyper_v_generation)
        && source != asked
    {
        return differs("hyperVGeneration", format!("{source:?}"), format!("{asked:?}"));
    }
    Ok(())
}
