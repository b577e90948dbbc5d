//! Request → model.

use std::collections::BTreeMap;

use model::image_template::{
    Distributor, DistributorKind, ErrorHandling, ImageSource, ImageTarget, ImageTemplatePatch,
    ImageTemplateSpec, Placement, TemplateIdentity, TemplateNetwork, TemplatePlan, TemplateTargetRegion,
    TemplateVmProfile, Validation,
};
use model::latest::VersionScheme;
use model::{Region, RunOutputName, VersionSelector};
use serde::Deserialize;
use serde_json::Value;

use super::shape::{PATCH, TEMPLATE};
use super::steps::{self, WireStep, unknown_type};
use crate::api_version::ApiVersion;
use crate::common::{self, Parsed, WireTags, non_empty, reference};
use crate::error::ArmError;
use crate::names::{ENABLED, ON_ERRORS, STORAGE_ACCOUNT_TYPES};
use crate::resource_id::ResourceId;
use crate::shape::{self, Strictness};

#[derive(Deserialize)]
struct Wire {
    location: Option<String>,
    tags: Option<WireTags>,
    identity: Option<WireIdentity>,
    properties: Option<WireProperties>,
}

#[derive(Deserialize)]
struct WirePatch {
    tags: Option<WireTags>,
    identity: Option<WireIdentity>,
    #[serde(default)]
    properties: WirePatchProperties,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WirePatchProperties {
    distribute: Option<Vec<WireDistributor>>,
    vm_profile: Option<WireVmProfile>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireIdentity {
    r#type: Option<String>,
    user_assigned_identities: BTreeMap<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireProperties {
    source: Option<WireSource>,
    customize: Vec<WireStep>,
    optimize: WireOptimize,
    validate: Option<WireValidate>,
    distribute: Option<Vec<WireDistributor>>,
    error_handling: Option<WireErrorHandling>,
    build_timeout_in_minutes: u32,
    vm_profile: WireVmProfile,
    staging_resource_group: Option<String>,
    auto_run: WireState,
    managed_resource_tags: Option<WireTags>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireSource {
    r#type: Option<String>,
    publisher: Option<String>,
    offer: Option<String>,
    sku: Option<String>,
    version: Option<String>,
    plan_info: Option<WirePlan>,
    image_id: Option<String>,
    image_version_id: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WirePlan {
    plan_name: Option<String>,
    plan_product: Option<String>,
    plan_publisher: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireOptimize {
    vm_boot: WireState,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireState {
    state: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireValidate {
    continue_distribute_on_failure: bool,
    source_validation_only: bool,
    #[serde(rename = "inVMValidations")]
    in_vm_validations: Vec<WireStep>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireErrorHandling {
    on_customizer_error: Option<String>,
    on_validation_error: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireVmProfile {
    vm_size: Option<String>,
    #[serde(rename = "osDiskSizeGB")]
    os_disk_size_gb: u32,
    user_assigned_identities: Vec<String>,
    vnet_config: Option<WireNetwork>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireNetwork {
    subnet_id: Option<String>,
    container_instance_subnet_id: Option<String>,
    proxy_vm_size: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireDistributor {
    r#type: Option<String>,
    run_output_name: Option<String>,
    artifact_tags: Option<WireTags>,
    image_id: Option<String>,
    location: Option<String>,
    gallery_image_id: Option<String>,
    replication_regions: Option<Vec<String>>,
    exclude_from_latest: bool,
    storage_account_type: Option<String>,
    target_regions: Option<Vec<WireTargetRegion>>,
    versioning: Option<WireVersioner>,
    uri: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireTargetRegion {
    name: Option<String>,
    replica_count: Option<u32>,
    storage_account_type: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireVersioner {
    scheme: Option<String>,
    major: Option<i64>,
}

/// Reads a PUT and checks what the template alone can break.
///
/// # Errors
/// What is wrong with the body, mostly `ValidationFailed` with the property's path as target.
pub fn parse(body: Value, version: &ApiVersion) -> Result<Parsed<ImageTemplateSpec>, ArmError> {
    let strictness = Strictness::image_builder(version);
    let mut read = shape::read(body, &TEMPLATE, &strictness)?;
    let wire: Wire = shape::typed(read.typed, &strictness)?;
    let location = common::location(wire.location.as_deref())?;
    let properties = wire.properties.ok_or_else(|| missing("properties"))?;
    let customize = properties.customize.into_iter().enumerate();
    let data = ImageTemplateSpec {
        location,
        tags: common::resource_tags(wire.tags, &mut read.extra)?,
        identity: identity(wire.identity.ok_or_else(|| missing("identity"))?)?,
        source: source(properties.source.ok_or_else(|| missing("properties.source"))?)?,
        customize: customize
            .map(|(index, step)| steps::customizer(step, &format!("properties.customize[{index}]")))
            .collect::<Result<_, _>>()?,
        validate: properties.validate.map(validation).transpose()?,
        distribute: distributors(properties.distribute.ok_or_else(|| missing("properties.distribute"))?)?,
        error_handling: properties.error_handling.map(error_handling).transpose()?,
        build_timeout_minutes: properties.build_timeout_in_minutes,
        vm_profile: vm_profile(properties.vm_profile)?,
        staging_resource_group: non_empty(properties.staging_resource_group),
        optimize_vm_boot: ENABLED
            .parse_option(properties.optimize.vm_boot.state.as_deref(), "properties.optimize.vmBoot.state")?,
        auto_run: ENABLED.parse_option(properties.auto_run.state.as_deref(), "properties.autoRun.state")?,
        managed_resource_tags: properties
            .managed_resource_tags
            .map(|tags| common::tags(Some(tags)))
            .transpose()?,
    };
    data.check()?;
    Ok(Parsed { data, extra: read.extra })
}

/// Reads a PATCH. Properties that may not change are unknown to it, whatever the version (RULES.md 2A).
///
/// # Errors
/// What is wrong with the body.
pub fn parse_patch(body: Value, version: &ApiVersion) -> Result<ImageTemplatePatch, ArmError> {
    let strictness = Strictness::image_builder(version);
    let read = shape::read(body, &PATCH, &strictness)?;
    let wire: WirePatch = shape::typed(read.typed, &strictness)?;
    Ok(ImageTemplatePatch {
        identity: wire.identity.map(identity).transpose()?,
        tags: wire.tags.map(|tags| common::tags(Some(tags))).transpose()?,
        distribute: wire.properties.distribute.map(distributors).transpose()?,
        vm_profile: wire.properties.vm_profile.map(vm_profile).transpose()?,
    })
}

/// Image builder's answer to a template that is not right.
pub(super) fn invalid(target: &str, message: String) -> ArmError {
    ArmError::new(400, "ValidationFailed", message).with_target(target)
}

fn missing(path: &str) -> ArmError {
    invalid(path, format!("Missing field: the template needs {path}."))
}

fn required(text: Option<String>, path: &str) -> Result<String, ArmError> {
    non_empty(text).ok_or_else(|| missing(path))
}

fn identity(wire: WireIdentity) -> Result<TemplateIdentity, ArmError> {
    let path = "identity";
    let mut ids = wire.user_assigned_identities.into_keys();
    match (wire.r#type.as_deref(), ids.next(), ids.next()) {
        (Some(word), Some(id), None) if word.eq_ignore_ascii_case("UserAssigned") => {
            Ok(TemplateIdentity::UserAssigned(reference(&id, "identity.userAssignedIdentities")?))
        }
        (Some(word), None, None) if word.eq_ignore_ascii_case("None") => Ok(TemplateIdentity::None),
        _ => Err(invalid(
            path,
            "identity must be of type 'UserAssigned' with exactly one entry in userAssignedIdentities, or of type 'None' without any.".into(),
        )),
    }
}

fn source(wire: WireSource) -> Result<ImageSource, ArmError> {
    let path = "properties.source";
    match wire.r#type.as_deref() {
        Some("PlatformImage") => Ok(ImageSource::PlatformImage {
            publisher: required(wire.publisher, &format!("{path}.publisher"))?,
            offer: required(wire.offer, &format!("{path}.offer"))?,
            sku: required(wire.sku, &format!("{path}.sku"))?,
            version: required(wire.version, &format!("{path}.version"))?,
            plan: wire.plan_info.map(plan).transpose()?,
        }),
        Some("ManagedImage") => {
            let id = required(wire.image_id, &format!("{path}.imageId"))?;
            Ok(ImageSource::ManagedImage(reference(&id, &format!("{path}.imageId"))?))
        }
        Some("SharedImageVersion") => {
            let path = format!("{path}.imageVersionId");
            let id = required(wire.image_version_id, &path)?;
            let parsed = ResourceId::parse(&id).ok().filter(|id| id.to_image_definition().is_none());
            parsed.and_then(|id| id.to_image_version()).map(ImageSource::SharedImageVersion).ok_or_else(|| {
                invalid(
                    &path,
                    format!(
                        "{path} must be the id of an image version: /subscriptions/{{id}}/resourceGroups/{{name}}/providers/\
                         Microsoft.Compute/galleries/{{name}}/images/{{name}}/versions/{{Major.Minor.Patch or latest}}."
                    ),
                )
            })
        }
        other => Err(unknown_type("source", other, path, "PlatformImage, ManagedImage, SharedImageVersion")),
    }
}

fn plan(wire: WirePlan) -> Result<TemplatePlan, ArmError> {
    let path = "properties.source.planInfo";
    Ok(TemplatePlan {
        name: required(wire.plan_name, &format!("{path}.planName"))?,
        product: required(wire.plan_product, &format!("{path}.planProduct"))?,
        publisher: required(wire.plan_publisher, &format!("{path}.planPublisher"))?,
    })
}

fn validation(wire: WireValidate) -> Result<Validation, ArmError> {
    let validators = wire.in_vm_validations.into_iter().enumerate();
    Ok(Validation {
        continue_distribute_on_failure: wire.continue_distribute_on_failure,
        source_validation_only: wire.source_validation_only,
        validators: validators
            .map(|(index, step)| {
                steps::validator(step, &format!("properties.validate.inVMValidations[{index}]"))
            })
            .collect::<Result<_, _>>()?,
    })
}

fn error_handling(wire: WireErrorHandling) -> Result<ErrorHandling, ArmError> {
    let path = "properties.errorHandling";
    Ok(ErrorHandling {
        on_customizer_error: ON_ERRORS
            .parse_option(wire.on_customizer_error.as_deref(), &format!("{path}.onCustomizerError"))?,
        on_validation_error: ON_ERRORS
            .parse_option(wire.on_validation_error.as_deref(), &format!("{path}.onValidationError"))?,
    })
}

fn vm_profile(wire: WireVmProfile) -> Result<TemplateVmProfile, ArmError> {
    let path = "properties.vmProfile.userAssignedIdentities";
    Ok(TemplateVmProfile {
        vm_size: non_empty(wire.vm_size),
        os_disk_size_gib: wire.os_disk_size_gb,
        user_assigned_identities: wire
            .user_assigned_identities
            .iter()
            .map(|id| reference(id, path))
            .collect::<Result<_, _>>()?,
        network: wire.vnet_config.map(|network| TemplateNetwork {
            subnet_id: non_empty(network.subnet_id),
            container_instance_subnet_id: non_empty(network.container_instance_subnet_id),
            proxy_vm_size: non_empty(network.proxy_vm_size),
        }),
    })
}

fn distributors(wire: Vec<WireDistributor>) -> Result<Vec<Distributor>, ArmError> {
    let wire = wire.into_iter().enumerate();
    wire.map(|(index, wire)| distributor(wire, &format!("properties.distribute[{index}]"))).collect()
}

fn distributor(wire: WireDistributor, path: &str) -> Result<Distributor, ArmError> {
    let kind = match wire.r#type.as_deref() {
        Some("ManagedImage") => {
            let target = format!("{path}.imageId");
            let image = reference(&required(wire.image_id, &target)?, &target)?;
            let target = format!("{path}.location");
            let location = Region::parse(&required(wire.location, &target)?);
            let location = location.map_err(|error| invalid(&target, error.message))?;
            DistributorKind::ManagedImage { image, location }
        }
        Some("SharedImage") => DistributorKind::SharedImage {
            target: image_target(&required(wire.gallery_image_id, &format!("{path}.galleryImageId"))?, path)?,
            placement: placement(
                wire.replication_regions,
                wire.storage_account_type.as_deref(),
                wire.target_regions,
                path,
            )?,
            exclude_from_latest: wire.exclude_from_latest,
            versioning: wire.versioning.map(|wire| versioning(wire, path)).transpose()?,
        },
        Some("VHD") => DistributorKind::Vhd { uri: non_empty(wire.uri), sealed_query: None },
        other => return Err(unknown_type("distributor", other, path, "ManagedImage, SharedImage, VHD")),
    };
    let name = required(wire.run_output_name, &format!("{path}.runOutputName"))?;
    Ok(Distributor {
        run_output_name: RunOutputName::parse(&name)
            .map_err(|error| invalid(&format!("{path}.runOutputName"), error.message))?,
        artifact_tags: common::tags(wire.artifact_tags)?,
        kind,
    })
}

/// A definition, or a version of it with its number fixed.
fn image_target(id: &str, path: &str) -> Result<ImageTarget, ArmError> {
    let parsed = ResourceId::parse(id).ok();
    let definition = parsed.as_ref().and_then(ResourceId::to_image_definition);
    let version = parsed.as_ref().and_then(ResourceId::to_image_version);
    match (definition, version) {
        (Some(definition), _) => Ok(ImageTarget { definition, version: None }),
        (None, Some(model::ImageVersionRef { definition, version: VersionSelector::Exact(version) })) => {
            Ok(ImageTarget { definition, version: Some(version) })
        }
        _ => Err(invalid(
            &format!("{path}.galleryImageId"),
            format!(
                "{path}.galleryImageId must be the id of an image definition, /subscriptions/{{id}}/resourceGroups/{{name}}/providers/\
                 Microsoft.Compute/galleries/{{name}}/images/{{name}}, and may end in /versions/{{Major.Minor.Patch}}."
            ),
        )),
    }
}

fn placement(
    replication_regions: Option<Vec<String>>,
    storage_account_type: Option<&str>,
    target_regions: Option<Vec<WireTargetRegion>>,
    path: &str,
) -> Result<Placement, ArmError> {
    let storage =
        STORAGE_ACCOUNT_TYPES.parse_option(storage_account_type, &format!("{path}.storageAccountType"))?;
    let older = replication_regions.as_ref().is_some_and(|regions| !regions.is_empty()) || storage.is_some();
    let target = format!("{path}.targetRegions");
    let region =
        |name: &str, target: &str| Region::parse(name).map_err(|error| invalid(target, error.message));
    match target_regions {
        Some(_) if older => Err(invalid(
            &target,
            format!(
                "targetRegions at {path} can not be used together with replicationRegions or storageAccountType."
            ),
        )),
        Some(regions) => {
            let wire = regions.into_iter().enumerate().map(|(index, wire)| {
                let target = format!("{target}[{index}]");
                Ok(TemplateTargetRegion {
                    region: region(
                        &required(wire.name, &format!("{target}.name"))?,
                        &format!("{target}.name"),
                    )?,
                    replica_count: wire.replica_count.unwrap_or(1),
                    storage_account_type: STORAGE_ACCOUNT_TYPES.parse_option(
                        wire.storage_account_type.as_deref(),
                        &format!("{target}.storageAccountType"),
                    )?,
                })
            });
            Ok(Placement::TargetRegions(wire.collect::<Result<_, ArmError>>()?))
        }
        None => {
            let names = replication_regions.unwrap_or_default();
            let target = format!("{path}.replicationRegions");
            let regions = names.iter().map(|name| region(name, &target)).collect::<Result<_, _>>()?;
            Ok(Placement::ReplicationRegions { regions, storage_account_type: storage })
        }
    }
}

fn versioning(wire: WireVersioner, path: &str) -> Result<VersionScheme, ArmError> {
    match (wire.scheme.as_deref(), wire.major) {
        (Some("Latest"), None | Some(-1)) => Ok(VersionScheme::Latest { major: None }),
        (Some("Latest"), Some(major)) => {
            let fits =
                u32::try_from(major).ok().filter(|major| *major <= model::version_name::VERSION_PART_MAX);
            let major = fits.ok_or_else(|| {
                let target = format!("{path}.versioning.major");
                let message = format!(
                    "{target} is {major}. It must be -1, which leaves it open, or a major version number."
                );
                invalid(&target, message)
            })?;
            Ok(VersionScheme::Latest { major: Some(major) })
        }
        (Some("Source"), _) => Ok(VersionScheme::Source),
        (other, _) => {
            Err(unknown_type("versioning scheme", other, &format!("{path}.versioning"), "Latest, Source"))
        }
    }
}
