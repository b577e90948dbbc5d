//! Model → answer.

use model::image_template::{
    Distributor, DistributorKind, ImageSource, ImageTemplate, LastRun, Placement, ProvisioningErrorCode,
    RunStage, TemplateIdentity, TemplateVmProfile, Validation,
};
use model::latest::VersionScheme;
use model::{ImageVersionRef, ProvisioningState, VersionSelector};
use serde_json::{Value, json};

use super::steps::{customizer_json, validator_json};
use crate::common::{Context, Object, resource_tags_json, tags_json};
use crate::names::{ENABLED, ON_ERRORS, STORAGE_ACCOUNT_TYPES};
use crate::resource_id::{image_definition_id, image_version_id};
use crate::time;

/// The end of a run that has none yet, as image builder writes it (recorded).
const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// An image template as image builder answers it.
pub fn render(template: &ImageTemplate, context: &Context<'_>) -> Value {
    let (spec, resolved) = (&template.spec, &template.resolved);
    let customize: Vec<Value> = spec.customize.iter().map(|step| customizer_json(step, resolved)).collect();
    let distribute: Vec<Value> = spec.distribute.iter().map(distributor).collect();
    let error = match &template.provisioning {
        ProvisioningState::Failed(error) => {
            Some(json!({ "provisioningErrorCode": error_code(error.code), "message": error.message }))
        }
        _ => None,
    };
    let handling = spec.error_handling.map(|handling| {
        Object::new()
            .maybe("onCustomizerError", handling.on_customizer_error.map(|word| ON_ERRORS.name(word)))
            .maybe("onValidationError", handling.on_validation_error.map(|word| ON_ERRORS.name(word)))
    });
    let staging = resolved.staging_resource_group.as_deref().unwrap_or_default();
    let properties = Object::new()
        .set("source", source(&spec.source, resolved.exact_version.as_deref()))
        .maybe("customize", (!customize.is_empty()).then_some(customize))
        .maybe("optimize", spec.optimize_vm_boot.map(|on| json!({ "vmBoot": { "state": ENABLED.name(on) } })))
        .maybe("validate", spec.validate.as_ref().map(|validate| validation(validate, template)))
        .set("distribute", distribute)
        .maybe("errorHandling", handling)
        .set("provisioningState", template.provisioning.name())
        .maybe("provisioningError", error)
        .maybe("lastRunStatus", template.last_run.as_ref().map(last_run))
        .set("buildTimeoutInMinutes", spec.build_timeout_minutes)
        .set("vmProfile", vm_profile(&spec.vm_profile))
        .set("stagingResourceGroup", spec.staging_resource_group.as_deref().unwrap_or_default())
        .set("exactStagingResourceGroup", staging)
        .maybe("autoRun", spec.auto_run.map(|on| json!({ "state": ENABLED.name(on) })))
        .maybe("managedResourceTags", spec.managed_resource_tags.as_ref().map(tags_json));
    Object::new()
        .set("properties", properties)
        .set("identity", identity(template))
        .maybe("tags", resource_tags_json(&spec.tags))
        .set("location", spec.location.as_str())
        .set("id", context.id.to_image_builder_string())
        .set("name", context.id.name())
        .set("type", context.id.resource_type().as_str())
        .with_extra(context.extra)
        .into()
}

/// Before it is resolved, the exact version of `latest` is `latest` (REFERENCE.md 5.3).
fn source(source: &ImageSource, exact: Option<&str>) -> Value {
    match source {
        ImageSource::PlatformImage { publisher, offer, sku, version, plan } => {
            let plan = plan.as_ref().map(|plan| {
                json!({ "planName": plan.name, "planProduct": plan.product, "planPublisher": plan.publisher })
            });
            Object::new()
                .set("exactVersion", exact.unwrap_or(version))
                .set("offer", offer.as_str())
                .maybe("planInfo", plan)
                .set("publisher", publisher.as_str())
                .set("sku", sku.as_str())
                .set("type", "PlatformImage")
                .set("version", version.as_str())
                .into()
        }
        ImageSource::ManagedImage(id) => json!({ "imageId": id.as_str(), "type": "ManagedImage" }),
        ImageSource::SharedImageVersion(version) => {
            let exact = exact.map_or_else(|| version.version.to_string(), str::to_owned);
            let id = image_version_id(version).to_string();
            json!({ "exactVersion": exact, "imageVersionId": id, "type": "SharedImageVersion" })
        }
    }
}

fn validation(validate: &Validation, template: &ImageTemplate) -> Value {
    let validators: Vec<Value> =
        validate.validators.iter().map(|step| validator_json(step, &template.resolved)).collect();
    json!({
        "continueDistributeOnFailure": validate.continue_distribute_on_failure,
        "inVMValidations": validators,
        "sourceValidationOnly": validate.source_validation_only,
    })
}

fn vm_profile(profile: &TemplateVmProfile) -> Value {
    let identities: Vec<&str> = profile.user_assigned_identities.iter().map(|id| id.as_str()).collect();
    let network = profile.network.as_ref().map(|network| {
        Object::new()
            .set("subnetId", network.subnet_id.as_deref().unwrap_or_default())
            .maybe("containerInstanceSubnetId", network.container_instance_subnet_id.as_deref())
            .set("proxyVmSize", network.proxy_vm_size.as_deref().unwrap_or_default())
    });
    Object::new()
        .set("vmSize", profile.vm_size.as_deref().unwrap_or_default())
        .set("osDiskSizeGB", profile.os_disk_size_gib)
        .maybe("userAssignedIdentities", (!identities.is_empty()).then_some(identities))
        .maybe("vnetConfig", network)
        .into()
}

fn distributor(distributor: &Distributor) -> Value {
    let object = Object::new().set("artifactTags", tags_json(&distributor.artifact_tags));
    match &distributor.kind {
        DistributorKind::ManagedImage { image, location } => object
            .set("imageId", image.as_str())
            .set("location", location.as_str())
            .set("runOutputName", distributor.run_output_name.as_str())
            .set("type", "ManagedImage"),
        DistributorKind::SharedImage { target, placement, exclude_from_latest, versioning } => {
            let id = match target.version {
                None => image_definition_id(&target.definition),
                Some(version) => image_version_id(&ImageVersionRef {
                    definition: target.definition.clone(),
                    version: VersionSelector::Exact(version),
                }),
            };
            let object =
                object.set("excludeFromLatest", *exclude_from_latest).set("galleryImageId", id.to_string());
            placed(object, placement)
                .set("runOutputName", distributor.run_output_name.as_str())
                .set("type", "SharedImage")
                .set("versioning", versioning.map_or(Value::Null, scheme))
        }
        DistributorKind::Vhd { uri, .. } => object
            .set("runOutputName", distributor.run_output_name.as_str())
            .set("type", "VHD")
            .maybe("uri", uri.as_deref()),
    }
    .into()
}

fn placed(object: Object, placement: &Placement) -> Object {
    match placement {
        Placement::ReplicationRegions { regions, storage_account_type } => {
            let names: Vec<&str> = regions.iter().map(|region| region.as_str()).collect();
            object.maybe("replicationRegions", (!names.is_empty()).then_some(names)).maybe(
                "storageAccountType",
                storage_account_type.map(|word| STORAGE_ACCOUNT_TYPES.name(word)),
            )
        }
        Placement::TargetRegions(regions) => {
            let region = |region: &model::image_template::TemplateTargetRegion| {
                Object::new()
                    .set("name", region.region.as_str())
                    .set("replicaCount", region.replica_count)
                    .maybe(
                        "storageAccountType",
                        region.storage_account_type.map(|word| STORAGE_ACCOUNT_TYPES.name(word)),
                    )
                    .into()
            };
            object.set("targetRegions", regions.iter().map(region).collect::<Vec<Value>>())
        }
    }
}

fn scheme(scheme: VersionScheme) -> Value {
    match scheme {
        VersionScheme::Latest { major } => {
            json!({ "scheme": "Latest", "major": major.map_or(-1, i64::from) })
        }
        VersionScheme::Source => json!({ "scheme": "Source" }),
    }
}

fn identity(template: &ImageTemplate) -> Value {
    match (&template.spec.identity, &template.resolved.identity) {
        (TemplateIdentity::None, _) => json!({ "type": "None" }),
        (TemplateIdentity::UserAssigned(id), resolved) => {
            let known = resolved.as_ref().map_or_else(
                || json!({}),
                |known| json!({ "principalId": known.principal_id, "clientId": known.client_id }),
            );
            json!({ "type": "UserAssigned", "userAssignedIdentities": { (id.as_str()): known } })
        }
    }
}

fn last_run(run: &LastRun) -> Value {
    let (stage, ended, message) = match run {
        LastRun::Running { stage, .. } => (Some(*stage), NO_TIME.to_owned(), ""),
        LastRun::Canceling { stage, .. } => (Some(*stage), NO_TIME.to_owned(), "Canceling image build"),
        LastRun::Ended(run) => (None, time::image_builder(run.ended), run.message.as_str()),
    };
    let stage = stage.map(|stage| match stage {
        RunStage::Queued => "Queued",
        RunStage::Building => "Building",
        RunStage::Customizing => "Customizing",
        RunStage::Optimizing => "Optimizing",
        RunStage::Validating => "Validating",
        RunStage::Distributing => "Distributing",
    });
    Object::new()
        .set("startTime", time::image_builder(run.started()))
        .set("endTime", ended)
        .set("runState", run.name())
        .maybe("runSubState", stage)
        .set("message", message)
        .into()
}

fn error_code(code: ProvisioningErrorCode) -> &'static str {
    match code {
        ProvisioningErrorCode::BadSourceType => "BadSourceType",
        ProvisioningErrorCode::BadPirSource => "BadPIRSource",
        ProvisioningErrorCode::BadManagedImageSource => "BadManagedImageSource",
        ProvisioningErrorCode::BadSharedImageVersionSource => "BadSharedImageVersionSource",
        ProvisioningErrorCode::BadCustomizerType => "BadCustomizerType",
        ProvisioningErrorCode::UnsupportedCustomizerType => "UnsupportedCustomizerType",
        ProvisioningErrorCode::NoCustomizerScript => "NoCustomizerScript",
        ProvisioningErrorCode::BadValidatorType => "BadValidatorType",
        ProvisioningErrorCode::UnsupportedValidatorType => "UnsupportedValidatorType",
        ProvisioningErrorCode::NoValidatorScript => "NoValidatorScript",
        ProvisioningErrorCode::BadDistributeType => "BadDistributeType",
        ProvisioningErrorCode::BadSharedImageDistribute => "BadSharedImageDistribute",
        ProvisioningErrorCode::BadStagingResourceGroup => "BadStagingResourceGroup",
        ProvisioningErrorCode::ServerError => "ServerError",
        ProvisioningErrorCode::Other => "Other",
    }
}
