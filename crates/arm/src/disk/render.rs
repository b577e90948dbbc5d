//! Model → answer.

use model::ProvisioningState;
use model::managed_disk::{
    CreationData, DiskBytes, DiskImageReference, DiskKind, DiskSku, ManagedDisk, NetworkAccessPolicy,
};
use serde_json::{Map, Value, json};

use crate::common::{self, Context, Object};
use crate::names::{
    ARCHITECTURES, CREATE_OPTIONS, DIRECTORY_TOKENS, DISK_SKUS, ENABLED, GENERATIONS,
    NETWORK_ACCESS_POLICIES, OS_TYPES, SNAPSHOT_SKUS,
};
use crate::time;

/// Which answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// To a PUT or PATCH: what was asked for, and nothing that the work is yet to find out (recorded).
    Accepted,
    /// To everything else.
    Whole,
}

/// A disk or snapshot as Compute answers it.
pub fn render(disk: &ManagedDisk, form: Form, context: &Context<'_>) -> Value {
    let whole = form == Form::Whole;
    let spec = &disk.spec;
    let properties = Object::new()
        .maybe("osType", disk.os_type().map(|os| OS_TYPES.name(os)))
        .maybe("hyperVGeneration", disk.hyper_v_generation().map(|generation| GENERATIONS.name(generation)))
        .maybe("supportedCapabilities", capabilities(disk))
        .set("creationData", creation(disk, whole))
        .maybe("diskSizeGB", if whole { disk.size_gib() } else { spec.size_gib });
    let properties = figures(properties, disk, whole);
    let policy = spec.network_access.or(whole.then_some(NetworkAccessPolicy::AllowAll));
    let public = spec.public_network_access.or(whole.then_some(true));
    let incremental =
        (disk.kind == DiskKind::Snapshot).then_some(()).and(spec.incremental.or(whole.then_some(false)));
    let tokens = spec.directory_tokens.map(|tokens| DIRECTORY_TOKENS.name(tokens));
    let properties = properties
        .maybe("incremental", incremental)
        .maybe("networkAccessPolicy", policy.map(|policy| NETWORK_ACCESS_POLICIES.name(policy)))
        .maybe("publicNetworkAccess", public.map(|public| ENABLED.name(public)))
        .maybe("dataAccessAuthMode", tokens)
        .set("provisioningState", state(disk));
    let properties = if whole { server_side(properties, disk) } else { properties };
    let sku = spec.sku.or(whole.then_some(DiskSku::StandardLrs)).map(|sku| render_sku(disk.kind, sku, whole));
    let mut resource = common::compute_resource(context, &spec.location, &spec.tags, properties)
        .maybe("sku", sku)
        .with_extra(context.extra);
    if whole {
        resource = resource.with_extra(&encryption());
    }
    resource.into()
}

/// What only the server knows.
fn server_side(properties: Object, disk: &ManagedDisk) -> Object {
    let state = match (&disk.bytes, &disk.access) {
        (DiskBytes::Pending, _) | (DiskBytes::Stored(_), None) => "Unattached",
        (DiskBytes::Stored(_), Some(_)) => "ActiveSAS",
        (DiskBytes::Upload { .. }, None) => "ReadyToUpload",
        (DiskBytes::Upload { .. }, Some(_)) | (DiskBytes::Committing { .. }, _) => "ActiveUpload",
    };
    properties
        .set("timeCreated", time::compute(disk.created))
        .set("diskState", state)
        .maybe("diskSizeBytes", disk.content().map(|content| content.size_bytes))
        .set("uniqueId", disk.unique_id.to_string())
}

/// Operations, megabytes and tier. An answer to a PUT shows what the request may choose.
fn figures(properties: Object, disk: &ManagedDisk, whole: bool) -> Object {
    let spec = &disk.spec;
    if !whole {
        let chosen = matches!(spec.sku, Some(DiskSku::UltraSsdLrs | DiskSku::PremiumV2Lrs));
        return properties
            .maybe("diskIOPSReadWrite", spec.iops.filter(|_| chosen))
            .maybe("diskMBpsReadWrite", spec.mbps.filter(|_| chosen))
            .maybe("tier", spec.tier.as_deref());
    }
    let Some(performance) = disk.performance() else { return properties };
    properties
        .set("diskIOPSReadWrite", performance.iops)
        .set("diskMBpsReadWrite", performance.mbps)
        .maybe("tier", performance.tier)
}

fn encryption() -> Map<String, Value> {
    let encryption = json!({ "encryption": { "type": "EncryptionAtRestWithPlatformKey" } });
    Map::from_iter([("properties".to_owned(), encryption)])
}

/// Azure says `Updating` for what is new as well (recorded).
fn state(disk: &ManagedDisk) -> &'static str {
    match (&disk.provisioning, &disk.bytes) {
        (ProvisioningState::Creating, _) => "Updating",
        (state, _) => state.name(),
    }
}

fn render_sku(kind: DiskKind, sku: DiskSku, whole: bool) -> Value {
    let name = match kind {
        DiskKind::Disk => DISK_SKUS.name(sku),
        DiskKind::Snapshot => SNAPSHOT_SKUS.name(sku),
    };
    let tier = match sku {
        DiskSku::UltraSsdLrs => "Ultra",
        DiskSku::PremiumLrs | DiskSku::PremiumZrs | DiskSku::PremiumV2Lrs => "Premium",
        DiskSku::StandardLrs | DiskSku::StandardZrs | DiskSku::StandardSsdLrs | DiskSku::StandardSsdZrs => {
            "Standard"
        }
    };
    Object::new().set("name", name).maybe("tier", whole.then_some(tier)).into()
}

fn capabilities(disk: &ManagedDisk) -> Option<Value> {
    disk.architecture().map(|architecture| json!({ "architecture": ARCHITECTURES.name(architecture) }))
}

fn creation(disk: &ManagedDisk, whole: bool) -> Value {
    let CreationData { option, image, gallery_image, source_resource, storage_account, upload_bytes, .. } =
        &disk.spec.creation;
    let source = disk.facts.unique_id.filter(|_| whole).map(|id| id.to_string());
    Object::new()
        .set("createOption", CREATE_OPTIONS.name(*option))
        .maybe("storageAccountId", storage_account.as_deref())
        .maybe("imageReference", image.as_ref().map(reference))
        .maybe("galleryImageReference", gallery_image.as_ref().map(reference))
        .maybe("sourceUri", disk.spec.creation.shown_uri())
        .maybe("sourceResourceId", source_resource.as_deref())
        .maybe("sourceUniqueId", source)
        .maybe("uploadSizeBytes", *upload_bytes)
        .into()
}

fn reference(image: &DiskImageReference) -> Value {
    Object::new()
        .maybe("id", image.id.as_deref())
        .maybe("sharedGalleryImageId", image.shared_gallery_id.as_deref())
        .maybe("communityGalleryImageId", image.community_gallery_id.as_deref())
        .maybe("lun", image.lun)
        .into()
}
