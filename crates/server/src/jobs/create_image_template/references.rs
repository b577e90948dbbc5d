//! What a template refers to: does it exist, and do source and destinations fit each other (RULES.md 2A)?

use arm::ResourceId;
use arm::resource_id::{image_definition_id, image_version_id};
use arm::resource_type::IMAGES;
use model::image_definition::{
    Architecture, HyperVGeneration, ImageDefinition, OsState, OsType, SourceTraits,
};
use model::image_template::{
    Distributor, DistributorKind, ImageSource, ImageTarget, ImageTemplateSpec, Placement,
    ProvisioningErrorCode,
};
use model::managed_image::ManagedImage;
use model::{DiskName, ImageVersionRef, Region, ResourceRef, VersionSelector};

use super::{Stop, refuse, staging_account};
use crate::api::image_versions::{check_template_region, resolve_gallery_image};
use crate::api::images;
use crate::jobs::context::JobContext;
use crate::jobs::{make_platform_image, vhd_target};

/// What is known of a source before the build.
pub(super) struct Source {
    pub(super) traits: SourceTraits,
    /// `None`: known once the platform image was made.
    pub(super) exact_version: Option<String>,
}

pub(super) async fn check_source(context: &JobContext, spec: &ImageTemplateSpec) -> Result<Source, Stop> {
    match &spec.source {
        ImageSource::PlatformImage { publisher, offer, sku, version, .. } => {
            platform(context, publisher, offer, sku, version).await
        }
        ImageSource::ManagedImage(id) => managed_image(context, id, &spec.location).await,
        ImageSource::SharedImageVersion(reference) => shared(context, reference, &spec.location).await,
    }
}

async fn platform(
    context: &JobContext,
    publisher: &str,
    offer: &str,
    sku: &str,
    version: &str,
) -> Result<Source, Stop> {
    let bad = |message: String| refuse(ProvisioningErrorCode::BadPirSource, message);
    let named = format!("{publisher}:{offer}:{sku}:{version}");
    let Some(image) = context.state.fabric.catalog().find(publisher, offer, sku) else {
        return Err(bad(format!(
            "The platform image '{named}' is not available. Verify that publisher, offer and sku are those of an image in the catalogue."
        )));
    };
    let record = make_platform_image::read_record(&context.state, &image.recipe_digest()).await?;
    let made = record.map(|record| record.version_of(image));
    let latest = version.eq_ignore_ascii_case("latest");
    if !latest && made.as_deref() != Some(version) {
        let there = made.as_deref().unwrap_or("none that was made yet; use 'latest', which makes it");
        return Err(bad(format!("The platform image '{named}' is not available: there is {there}.")));
    }
    Ok(Source {
        traits: SourceTraits {
            // The catalogue's recipes make Linux systems and nothing else.
            os_type: OsType::Linux,
            os_state: OsState::Generalized,
            hyper_v_generation: make_platform_image::generation(image),
            architecture: Architecture::X64,
        },
        exact_version: made,
    })
}

async fn shared(context: &JobContext, reference: &ImageVersionRef, region: &Region) -> Result<Source, Stop> {
    let bad = |message: String| refuse(ProvisioningErrorCode::BadSharedImageVersionSource, message);
    let resolved = context
        .state
        .store
        .read(|tx| Box::pin(async { resolve_gallery_image(tx, reference, region).await }))
        .await;
    let image = resolved.map_err(|error| {
        if error.status().is_server_error() {
            return Stop::Job(crate::jobs::context::JobFailure::transient(
                "InternalServerError",
                "the database is not available",
            ));
        }
        bad(error.error_object()["message"].as_str().unwrap_or_default().to_owned())
    })?;
    let definition = &image.definition.spec;
    if definition.os_state != OsState::Generalized {
        return Err(bad(format!(
            "The source '{}' is Specialized. Only Generalized images can be customized.",
            image_version_id(reference)
        )));
    }
    Ok(Source {
        traits: SourceTraits {
            os_type: definition.os_type,
            os_state: definition.os_state,
            hyper_v_generation: definition.hyper_v_generation,
            architecture: definition.architecture,
        },
        exact_version: Some(image.exact.to_string()),
    })
}

async fn managed_image(context: &JobContext, id: &ResourceRef, region: &Region) -> Result<Source, Stop> {
    let bad = |message: String| refuse(ProvisioningErrorCode::BadManagedImageSource, message);
    let target = "properties.source.imageId";
    let found = context
        .state
        .store
        .read(|tx| Box::pin(async { images::usable(tx, id.as_str(), region, target).await }))
        .await;
    let found = found.map_err(|error| match error.status().is_server_error() {
        true => Stop::Job(error.into()),
        false => bad(error.error_object()["message"].as_str().unwrap_or_default().to_owned()),
    })?;
    let os_disk = &found.storage.os_disk;
    if os_disk.os_state != OsState::Generalized {
        return Err(bad(format!(
            "The source '{id}' is Specialized. Only Generalized images can be customized."
        )));
    }
    Ok(Source {
        traits: SourceTraits {
            os_type: os_disk.os_type,
            os_state: os_disk.os_state,
            hyper_v_generation: found.image.hyper_v_generation(),
            architecture: found.image.architecture(),
        },
        exact_version: None,
    })
}

/// What Azure has and this server does not: said at once, not after an hour of building.
pub(super) fn check_unsupported(spec: &ImageTemplateSpec) -> Result<(), Stop> {
    if spec.validate.as_ref().is_some_and(|validate| validate.source_validation_only) {
        return Err(refuse(
            ProvisioningErrorCode::Other,
            "validate.sourceValidationOnly is not supported by this server. Leave it out: a build without customizers validates an image that differs from the source only by its deprovisioning.",
        ));
    }
    Ok(())
}

pub(super) async fn check_distributors(
    context: &JobContext,
    spec: &ImageTemplateSpec,
    source: &SourceTraits,
) -> Result<(), Stop> {
    for (index, distributor) in spec.distribute.iter().enumerate() {
        check_distributor(context, distributor, index, source).await?;
    }
    Ok(())
}

async fn check_distributor(
    context: &JobContext,
    distributor: &Distributor,
    index: usize,
    source: &SourceTraits,
) -> Result<(), Stop> {
    let (target, placement) = match &distributor.kind {
        DistributorKind::SharedImage { target, placement, .. } => (target, placement),
        DistributorKind::Vhd { uri, sealed_query } => {
            return check_vhd(context, index, uri.as_deref(), sealed_query.as_deref()).await;
        }
        DistributorKind::ManagedImage { image, location } => {
            return check_image(context, index, image, location).await;
        }
    };
    let bad = |message: String| {
        refuse(
            ProvisioningErrorCode::BadSharedImageDistribute,
            format!("properties.distribute[{index}].galleryImageId: {message}"),
        )
    };
    let id = image_definition_id(&target.definition).to_string();
    let version_id = explicit_version(target);
    let (definition, taken) = context
        .state
        .store
        .read(|tx| {
            Box::pin(async {
                let definition = tx.get::<ImageDefinition>(&id).await?;
                let taken = match &version_id {
                    Some(id) => tx.exists(id).await?,
                    None => false,
                };
                Ok::<_, store::StoreError>((definition, taken))
            })
        })
        .await?;
    let Some(definition) = definition else {
        return Err(bad(format!(
            "The image definition '{id}' was not found. Create it before the template."
        )));
    };
    if definition.data.provisioning != model::ProvisioningState::Succeeded {
        let state = definition.data.provisioning.name();
        return Err(bad(format!(
            "The image definition '{id}' is in state '{state}'. It must be 'Succeeded'."
        )));
    }
    if taken {
        return Err(bad(format!("The image version '{}' exists already.", version_id.unwrap_or_default())));
    }
    let home = &definition.data.spec.location;
    fits(&definition.data, source)
        .map_err(|message| bad(format!("The image definition '{id}' {message}")))?;
    check_regions(context, placement, home).map_err(bad)
}

/// A VHD's address, as far as it changes with time; without one, the staging account is made.
async fn check_vhd(
    context: &JobContext,
    index: usize,
    uri: Option<&str>,
    sealed_query: Option<&str>,
) -> Result<(), Stop> {
    let state = &context.state;
    let bad = |message: String| refuse(ProvisioningErrorCode::BadDistributeType, message);
    let Some(uri) = uri else {
        let template = &context.payload::<super::Payload>().map_err(Stop::Job)?.template;
        let made = staging_account::ensure(state, template).await;
        return made.map(|_| ()).map_err(|error| match error.status().is_server_error() {
            true => Stop::Job(error.into()),
            false => {
                let message = error.error_object()["message"].as_str().unwrap_or_default().to_owned();
                refuse(ProvisioningErrorCode::BadStagingResourceGroup, message)
            }
        });
    };
    let target = vhd_target::open(state, uri, sealed_query);
    let checked = match &target {
        Ok(target) => vhd_target::check(state, target).await,
        Err(reason) => Err(reason.clone()),
    };
    checked.map_err(|reason| {
        bad(format!(
            "properties.distribute[{index}].uri: The VHD can not be distributed to '{uri}': {reason}"
        ))
    })
}

/// A managed image that is to be made, or renewed.
async fn check_image(
    context: &JobContext,
    index: usize,
    image: &ResourceRef,
    location: &Region,
) -> Result<(), Stop> {
    let bad = |property: &str, message: String| {
        let message = format!("properties.distribute[{index}].{property}: {message}");
        refuse(ProvisioningErrorCode::BadDistributeType, message)
    };
    let id = ResourceId::parse(image.as_str())
        .ok()
        .filter(|id| id.resource_type() == IMAGES && DiskName::parse(id.name()).is_ok());
    let Some(id) = id else { return Err(bad("imageId", format!("'{image}' is not the id of an image."))) };
    let regions = &context.state.config.regions;
    if context.state.config.region(location.as_str()).is_none() {
        let known: Vec<&str> = regions.iter().map(|region| region.name.as_str()).collect();
        let known = known.join(",");
        let message = format!("The region '{location}' is not available. Available regions are '{known}'.");
        return Err(bad("location", message));
    }
    let group = id.parent().map(|group| group.to_string()).unwrap_or_default();
    let (has_group, found) = context
        .state
        .store
        .read(|tx| {
            Box::pin(async {
                let has_group = tx.exists(&group).await?;
                Ok::<_, store::StoreError>((has_group, tx.get::<ManagedImage>(image.as_str()).await?))
            })
        })
        .await?;
    if !has_group {
        let message =
            format!("The resource group of '{image}' was not found. Create it before the template.");
        return Err(bad("imageId", message));
    }
    match found.filter(|found| found.data.spec.location != *location) {
        None => Ok(()),
        Some(found) => {
            let there = &found.data.spec.location;
            let message = format!(
                "The image '{image}' is in region '{there}' already. Delete it, or name that region."
            );
            Err(bad("location", message))
        }
    }
}

fn explicit_version(target: &ImageTarget) -> Option<String> {
    let version = VersionSelector::Exact(target.version?);
    Some(image_version_id(&ImageVersionRef { definition: target.definition.clone(), version }).to_string())
}

/// Output OS, state, generation and architecture are the source's.
fn fits(definition: &ImageDefinition, source: &SourceTraits) -> Result<(), String> {
    let spec = &definition.spec;
    let generation = |generation| match generation {
        HyperVGeneration::V1 => "V1",
        HyperVGeneration::V2 => "V2",
    };
    if spec.os_type != source.os_type {
        return Err(format!(
            "has osType '{:?}', but the source image is '{:?}'.",
            spec.os_type, source.os_type
        ));
    }
    if spec.os_state != OsState::Generalized {
        return Err("has osState 'Specialized', but the result of a build is 'Generalized'.".to_owned());
    }
    if spec.hyper_v_generation != source.hyper_v_generation {
        return Err(format!(
            "has hyperVGeneration '{}', but the source image is '{}'.",
            generation(spec.hyper_v_generation),
            generation(source.hyper_v_generation)
        ));
    }
    if spec.architecture != source.architecture {
        return Err(format!(
            "has architecture '{:?}', but the source image is '{:?}'.",
            spec.architecture, source.architecture
        ));
    }
    Ok(())
}

fn check_regions(context: &JobContext, placement: &Placement, home: &Region) -> Result<(), String> {
    let targets = placement.target_regions(home);
    for target in &targets {
        if context.state.config.region(target.region.as_str()).is_none() {
            let known: Vec<&str> =
                context.state.config.regions.iter().map(|region| region.name.as_str()).collect();
            return Err(format!(
                "The region '{}' is not available. Available regions are '{}'.",
                target.region,
                known.join(",")
            ));
        }
        check_template_region(&context.state.config, target).map_err(|violation| violation.message)?;
    }
    if targets.iter().any(|target| target.region == *home) {
        return Ok(());
    }
    let names: Vec<&str> = targets.iter().map(|target| target.region.as_str()).collect();
    // RULES.md 2D, 34.
    Err(format!(
        "Gallery image version publishing profile regions {} must contain the location of image version {home}",
        names.join(",")
    ))
}
