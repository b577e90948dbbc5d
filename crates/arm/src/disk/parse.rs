//! Request → model.

use model::managed_disk::{CreationData, DiskImageReference, DiskKind, DiskSpec};
use serde::Deserialize;
use serde_json::Value;

use super::shape::{DISK, KNOWN_UNTIL, SNAPSHOT};
use crate::api_version::ApiVersion;
use crate::common::{self, Parsed, WireTags, non_empty};
use crate::error::ArmError;
use crate::names::{
    ARCHITECTURES, CREATE_OPTIONS, DIRECTORY_TOKENS, DISK_SKUS, ENABLED, GENERATIONS,
    NETWORK_ACCESS_POLICIES, OS_TYPES, SNAPSHOT_SKUS,
};
use crate::shape::{self, Strictness};

#[derive(Deserialize)]
struct Wire {
    location: Option<String>,
    tags: Option<WireTags>,
    #[serde(default)]
    sku: WireSku,
    #[serde(default)]
    properties: WireProperties,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireSku {
    name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireProperties {
    os_type: Option<String>,
    #[serde(rename = "hyperVGeneration")]
    hyper_v_generation: Option<String>,
    supported_capabilities: WireCapabilities,
    creation_data: Option<WireCreationData>,
    #[serde(rename = "diskSizeGB")]
    disk_size_gb: Option<u64>,
    #[serde(rename = "diskIOPSReadWrite")]
    iops: Option<u64>,
    #[serde(rename = "diskMBpsReadWrite")]
    mbps: Option<u64>,
    tier: Option<String>,
    incremental: Option<bool>,
    network_access_policy: Option<String>,
    public_network_access: Option<String>,
    data_access_auth_mode: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireCapabilities {
    architecture: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireCreationData {
    create_option: Option<String>,
    storage_account_id: Option<String>,
    image_reference: Option<WireImage>,
    gallery_image_reference: Option<WireImage>,
    source_uri: Option<String>,
    source_resource_id: Option<String>,
    upload_size_bytes: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireImage {
    id: Option<String>,
    shared_gallery_image_id: Option<String>,
    community_gallery_image_id: Option<String>,
    lun: Option<u8>,
}

/// Reads a PUT of a disk or snapshot. What the request means is checked by [`DiskSpec::check`].
///
/// # Errors
/// What is wrong with the body.
pub fn parse(kind: DiskKind, body: Value, version: &ApiVersion) -> Result<Parsed<DiskSpec>, ArmError> {
    let strictness = Strictness::compute(version, KNOWN_UNTIL);
    let (shape, skus) = match kind {
        DiskKind::Disk => (&DISK, &DISK_SKUS),
        DiskKind::Snapshot => (&SNAPSHOT, &SNAPSHOT_SKUS),
    };
    let mut read = shape::read(body, shape, &strictness)?;
    let wire: Wire = shape::typed(read.typed, &strictness)?;
    let properties = wire.properties;
    let option = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let public = option(&properties.public_network_access);
    let tokens = option(&properties.data_access_auth_mode);
    let policy = option(&properties.network_access_policy);
    let data = DiskSpec {
        location: common::location(wire.location.as_deref())?,
        tags: common::resource_tags(wire.tags, &mut read.extra)?,
        sku: skus.parse_option(wire.sku.name.as_deref(), "sku.name")?,
        os_type: OS_TYPES.parse_option(option(&properties.os_type).as_deref(), "osType")?,
        hyper_v_generation: GENERATIONS
            .parse_option(option(&properties.hyper_v_generation).as_deref(), "hyperVGeneration")?,
        architecture: ARCHITECTURES.parse_option(
            option(&properties.supported_capabilities.architecture).as_deref(),
            "supportedCapabilities.architecture",
        )?,
        creation: creation(
            properties.creation_data.ok_or_else(|| ArmError::missing_parameter("creationData"))?,
        )?,
        size_gib: properties.disk_size_gb,
        iops: properties.iops,
        mbps: properties.mbps,
        tier: non_empty(properties.tier),
        incremental: properties.incremental,
        network_access: NETWORK_ACCESS_POLICIES.parse_option(policy.as_deref(), "networkAccessPolicy")?,
        public_network_access: ENABLED.parse_option(public.as_deref(), "publicNetworkAccess")?,
        directory_tokens: DIRECTORY_TOKENS.parse_option(tokens.as_deref(), "dataAccessAuthMode")?,
    };
    Ok(Parsed { data, extra: read.extra })
}

fn creation(wire: WireCreationData) -> Result<CreationData, ArmError> {
    let target = "creationData.createOption";
    let option = wire.create_option.ok_or_else(|| ArmError::missing_parameter(target))?;
    Ok(CreationData {
        option: CREATE_OPTIONS.parse(&option, target)?,
        image: wire.image_reference.map(image),
        gallery_image: wire.gallery_image_reference.map(image),
        source_uri: non_empty(wire.source_uri),
        source_resource: non_empty(wire.source_resource_id),
        storage_account: non_empty(wire.storage_account_id),
        upload_bytes: wire.upload_size_bytes,
    })
}

fn image(wire: WireImage) -> DiskImageReference {
    DiskImageReference {
        id: non_empty(wire.id),
        shared_gallery_id: non_empty(wire.shared_gallery_image_id),
        community_gallery_id: non_empty(wire.community_gallery_image_id),
        lun: wire.lun,
    }
}
