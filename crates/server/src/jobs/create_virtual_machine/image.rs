//! What a VM's disk is made from, as its region sees it.

use arm::ResourceId;
use arm::resource_type::IMAGES;
use content::ManifestId;
use model::Violation;
use model::content::{DiskContent, GIB};
use model::image_definition::{HyperVGeneration, OsState, OsType};
use model::virtual_machine::{ImageReference, ResolvedImage, VmSpec};
use store::Tx;
use vmhost::identity;

use crate::AppState;
use crate::api::image_versions::resolve_gallery_image;
use crate::api::images::{self, UsableImage};
use crate::http::error::ApiError;
use crate::jobs::context::JobFailure;
use crate::jobs::make_platform_image::{check_available, ensure_platform_image};

/// An image that can be started from.
pub(super) struct Source {
    pub(super) image: ResolvedImage,
    pub(super) manifest: ManifestId,
    /// As the guest is told.
    pub(super) reference: identity::ImageReference,
    /// It is on premium storage: this host's cache has its blocks, as its first zone stores them.
    pub(super) read_ahead: bool,
}

/// Refuses an image that there is not, as far as a request may wait for the answer.
///
/// # Errors
/// As Compute refuses; 501 for what this service does not do.
pub(crate) async fn check(tx: &mut Tx<'_>, state: &AppState, spec: &VmSpec) -> Result<(), ApiError> {
    match &spec.image {
        Some(ImageReference::Platform { publisher, offer, sku, version }) => {
            check_available(state, publisher, offer, sku, version)
                .await
                .map_err(|message| not_found("PlatformImageNotFound", message))?;
            spec.check_for_image(OsState::Generalized)?;
            Ok(())
        }
        Some(ImageReference::Gallery { version, .. }) => {
            let found = resolve_gallery_image(tx, version, &spec.location).await?;
            let definition = &found.definition.spec;
            spec.check_for_image(definition.os_state)?;
            check_supported(definition.os_type, !found.content.data_disks.is_empty())?;
            check_disk_size(spec, found.content.os_disk.size_gib())
        }
        Some(ImageReference::SharedGallery(id) | ImageReference::CommunityGallery(id)) => {
            let message = format!("The gallery image {id} is not available in {} region.", spec.location);
            Err(not_found("GalleryImageNotFound", message))
        }
        Some(ImageReference::Resource(id)) => {
            let found = managed_image(tx, id.as_str(), spec).await?;
            spec.check_for_image(found.storage.os_disk.os_state)?;
            check_supported(found.storage.os_disk.os_type, !found.content.data_disks.is_empty())?;
            check_disk_size(spec, found.content.os_disk.size_gib())
        }
        None => Err(not_implemented(
            "osDisk.createOption",
            "Creating a virtual machine from an existing disk is not implemented: use createOption FromImage with an imageReference",
        )),
    }
}

/// A managed image in the VM's region.
async fn managed_image(tx: &mut Tx<'_>, id: &str, spec: &VmSpec) -> Result<UsableImage, ApiError> {
    if ResourceId::parse(id)?.resource_type() != IMAGES {
        let message = format!(
            "Creating a virtual machine from '{id}' is not possible: use a managed image, an image version of a gallery, or a platform \
             image."
        );
        return Err(arm::ArmError::invalid_parameter("imageReference.id", message).into());
    }
    images::usable(tx, id, &spec.location, "imageReference").await
}

fn not_found(code: &str, message: String) -> ApiError {
    arm::ArmError::new(404, code, message).with_target("imageReference").into()
}

fn not_implemented(target: &str, message: &str) -> ApiError {
    arm::ArmError::new(501, "NotImplemented", format!("{message}.")).with_target(target).into()
}

fn check_supported(os_type: OsType, has_data_disks: bool) -> Result<(), ApiError> {
    match os_type {
        OsType::Windows => {
            Err(not_implemented("imageReference", "Starting Windows images is not implemented"))
        }
        OsType::Linux if has_data_disks => {
            Err(not_implemented("imageReference", "Starting images with data disks is not implemented"))
        }
        OsType::Linux => Ok(()),
    }
}

/// Azure's words.
fn check_disk_size(spec: &VmSpec, image_gib: u64) -> Result<(), ApiError> {
    match spec.os_disk.size_gib {
        Some(size) if u64::from(size) < image_gib => {
            let message = format!(
                "The specified disk size {size} GB is smaller than the size of the corresponding disk in the VM image: {image_gib} GB. \
                 This is not allowed. Please choose equal or greater size or do not specify an explicit size."
            );
            Err(arm::ArmError::new(409, "OperationNotAllowed", message)
                .with_target("osDisk.diskSizeGB")
                .into())
        }
        _ => Ok(()),
    }
}

/// A refusal as a job's end.
fn resolve_failure(error: &ApiError) -> JobFailure {
    let object = error.error_object();
    let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
    JobFailure::permanent(text("code"), text("message"))
}

/// The image, in the region's store.
pub(super) async fn resolve(state: &AppState, spec: &VmSpec) -> Result<Source, JobFailure> {
    let refused = |error: ApiError| resolve_failure(&error);
    let source = match &spec.image {
        Some(ImageReference::Platform { publisher, offer, sku, version }) => {
            let found = ensure_platform_image(state, publisher, offer, sku, version, &spec.location)
                .await
                .map_err(|message| JobFailure::permanent("PlatformImageNotAvailable", message))?;
            let reference = identity::ImageReference {
                publisher: publisher.clone(),
                offer: offer.clone(),
                sku: sku.clone(),
                version: found.exact_version.clone(),
                id: String::new(),
            };
            source(
                found.manifest,
                found.logical_bytes,
                found.generation,
                Some(found.exact_version),
                reference,
            )?
        }
        Some(ImageReference::Gallery { version, .. }) => {
            let found = state
                .store
                .read(|tx| Box::pin(async { resolve_gallery_image(tx, version, &spec.location).await }))
                .await
                .map_err(refused)?;
            check_supported(found.definition.spec.os_type, !found.content.data_disks.is_empty())
                .map_err(refused)?;
            let disk = &found.content.os_disk;
            let manifest = disk.manifest.as_str().parse().map_err(unreadable)?;
            let exact = found.exact.to_string();
            let reference = identity::ImageReference {
                id: found.version_id.clone(),
                ..identity::ImageReference::default()
            };
            let generation = found.definition.spec.hyper_v_generation;
            let source = source(manifest, disk.size_bytes, generation, Some(exact), reference)?;
            Source { read_ahead: found.premium, ..source }
        }
        Some(ImageReference::Resource(id)) => {
            let found = state
                .store
                .read(|tx| Box::pin(async { managed_image(tx, id.as_str(), spec).await }))
                .await
                .map_err(refused)?;
            check_supported(found.storage.os_disk.os_type, !found.content.data_disks.is_empty())
                .map_err(refused)?;
            let disk = &found.content.os_disk;
            let manifest = disk.manifest.as_str().parse().map_err(unreadable)?;
            let reference =
                identity::ImageReference { id: found.id.clone(), ..identity::ImageReference::default() };
            source(manifest, disk.size_bytes, found.image.hyper_v_generation(), None, reference)?
        }
        _ => {
            let violation =
                Violation::at(model::Rule::Parameter, "imageReference", "there is no image to start from");
            return Err(resolve_failure(&violation.into()));
        }
    };
    check_disk_size(spec, source.image.os_disk.size_gib()).map_err(refused)?;
    Ok(source)
}

fn source(
    manifest: ManifestId,
    size_bytes: u64,
    hyper_v_generation: HyperVGeneration,
    exact_version: Option<String>,
    reference: identity::ImageReference,
) -> Result<Source, JobFailure> {
    let named = model::ManifestRef::parse(&manifest.to_string())
        .ok_or_else(|| unreadable("its manifest has no name"))?;
    let os_disk = DiskContent { manifest: named, size_bytes };
    let image = ResolvedImage { exact_version, os_type: OsType::Linux, hyper_v_generation, os_disk };
    Ok(Source { image, manifest, reference, read_ahead: false })
}

fn unreadable(error: impl std::fmt::Display) -> JobFailure {
    JobFailure::permanent("InternalServerError", format!("the image's record cannot be read: {error}"))
}

/// Size of the VM's disk: the image's, or what was asked for.
pub(super) fn disk_bytes(spec: &VmSpec, source: &Source) -> u64 {
    let asked = spec.os_disk.size_gib.map_or(0, |gib| u64::from(gib) * GIB);
    asked.max(source.image.os_disk.size_bytes)
}
