//! Request → model.

use model::image_version::{
    DataDiskImage, DiskImage, DiskSource, ImageVersionSpec, LUN_MAX, PublishingProfile, SafetyProfile,
    StorageAccountType, TargetRegion, VersionSource,
};
use model::{Region, Violation};
use serde::Deserialize;
use serde_json::Value;

use super::shape::SHAPE;
use crate::api_version::ApiVersion;
use crate::common::{self, Parsed, WireTags, non_empty, reference};
use crate::error::ArmError;
use crate::names::{CACHINGS, REPLICATION_MODES, STORAGE_ACCOUNT_TYPES};
use crate::shape::{self, Strictness};
use crate::time;

/// The newest version whose properties the shape has (REFERENCE.md 7).
const KNOWN_UNTIL: (u16, u8, u8) = (2026, 3, 3);

#[derive(Deserialize)]
struct Wire {
    location: Option<String>,
    tags: Option<WireTags>,
    properties: Option<WireProperties>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireProperties {
    publishing_profile: WirePublishing,
    storage_profile: WireStorage,
    safety_profile: WireSafety,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WirePublishing {
    target_regions: Vec<WireTargetRegion>,
    replica_count: Option<i32>,
    exclude_from_latest: Option<bool>,
    end_of_life_date: Option<String>,
    storage_account_type: Option<String>,
    replication_mode: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireTargetRegion {
    name: Option<String>,
    regional_replica_count: Option<i32>,
    storage_account_type: Option<String>,
    exclude_from_latest: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireStorage {
    source: WireSource,
    os_disk_image: WireDisk,
    data_disk_images: Vec<WireDisk>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireSource {
    id: Option<String>,
    community_gallery_image_id: Option<String>,
    virtual_machine_id: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireDisk {
    host_caching: Option<String>,
    source: WireDiskSource,
    lun: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireDiskSource {
    id: Option<String>,
    uri: Option<String>,
    storage_account_id: Option<String>,
}

/// Reads a PUT. The result is not checked: an update may leave out what a new version must have, so the caller
/// runs `check` on what it will keep (`ImageVersion::updated_spec`, or this itself for a new version).
///
/// # Errors
/// What is wrong with the body.
pub fn parse(body: Value, version: &ApiVersion) -> Result<Parsed<ImageVersionSpec>, ArmError> {
    let strictness = Strictness::compute(version, KNOWN_UNTIL);
    let mut read = shape::read(body, &SHAPE, &strictness)?;
    let wire: Wire = shape::typed(read.typed, &strictness)?;
    let location = common::location(wire.location.as_deref())?;
    let properties = wire.properties.ok_or_else(|| ArmError::missing_parameter("properties"))?;
    let safety = SafetyProfile {
        allow_deletion_of_replicated_locations: properties
            .safety_profile
            .allow_deletion_of_replicated_locations
            .unwrap_or(false),
        block_deletion_before_end_of_life: properties.safety_profile.block_deletion_before_end_of_life,
    };
    let data = ImageVersionSpec {
        tags: common::resource_tags(wire.tags, &mut read.extra)?,
        publishing: publishing(properties.publishing_profile, &location)?,
        source: source(properties.storage_profile)?,
        safety,
        location,
    };
    Ok(Parsed { data, extra: read.extra })
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireSafety {
    allow_deletion_of_replicated_locations: Option<bool>,
    block_deletion_before_end_of_life: Option<bool>,
}

fn publishing(wire: WirePublishing, home: &Region) -> Result<PublishingProfile, ArmError> {
    let mut target_regions =
        wire.target_regions.into_iter().map(target_region).collect::<Result<Vec<_>, _>>()?;
    if target_regions.is_empty() {
        target_regions.push(TargetRegion {
            region: home.clone(),
            replica_count: None,
            storage_account_type: None,
            exclude_from_latest: None,
        });
    }
    let path = "properties.publishingProfile";
    let storage = STORAGE_ACCOUNT_TYPES
        .parse_option(wire.storage_account_type.as_deref(), &format!("{path}.storageAccountType"))?;
    Ok(PublishingProfile {
        target_regions,
        replica_count: replicas(wire.replica_count)?.unwrap_or(1),
        exclude_from_latest: wire.exclude_from_latest.unwrap_or(false),
        storage_account_type: storage.unwrap_or(StorageAccountType::StandardLrs),
        replication_mode: REPLICATION_MODES
            .parse_option(wire.replication_mode.as_deref(), &format!("{path}.replicationMode"))?,
        end_of_life: wire
            .end_of_life_date
            .map(|text| time::parse(&text, "publishingProfile.endOfLifeDate"))
            .transpose()?,
    })
}

fn target_region(wire: WireTargetRegion) -> Result<TargetRegion, ArmError> {
    let path = "properties.publishingProfile.targetRegions";
    let name = wire.name.ok_or_else(|| ArmError::missing_parameter("targetRegions.name"))?;
    Ok(TargetRegion {
        region: Region::parse(&name)
            .map_err(|error| ArmError::from(error).with_target(format!("{path}.name")))?,
        replica_count: replicas(wire.regional_replica_count)?,
        storage_account_type: STORAGE_ACCOUNT_TYPES
            .parse_option(wire.storage_account_type.as_deref(), &format!("{path}.storageAccountType"))?,
        exclude_from_latest: wire.exclude_from_latest,
    })
}

/// A negative count has no place in the model; its range is checked there (RULES.md 2D, 18).
fn replicas(count: Option<i32>) -> Result<Option<u32>, Violation> {
    let out_of_range = |count: i32| {
        Violation::out_of_range(
            "properties.publishingProfile.replicaCount",
            count.into(),
            1,
            model::image_version::REPLICAS_MAX,
        )
    };
    count.map(|count| u32::try_from(count).map_err(|_| out_of_range(count))).transpose()
}

/// One source, or disks with sources, or neither (RULES.md 2D, 34).
fn source(wire: WireStorage) -> Result<Option<VersionSource>, ArmError> {
    let path = "properties.storageProfile";
    let whole = [
        non_empty(wire.source.id)
            .map(|id| reference(&id, &format!("{path}.source.id")).map(VersionSource::Resource)),
        non_empty(wire.source.virtual_machine_id).map(|id| {
            reference(&id, &format!("{path}.source.virtualMachineId")).map(VersionSource::VirtualMachine)
        }),
        non_empty(wire.source.community_gallery_image_id).map(|id| Ok(VersionSource::Community(id))),
    ];
    let mut whole: Vec<VersionSource> = whole.into_iter().flatten().collect::<Result<_, _>>()?;
    let os = disk(wire.os_disk_image, &format!("{path}.osDiskImage"))?.1;
    let mut data = Vec::new();
    for (index, wire) in wire.data_disk_images.into_iter().enumerate() {
        let path = format!("{path}.dataDiskImages[{index}]");
        let (lun, disk) = disk(wire, &path)?;
        let lun = lun.ok_or_else(|| ArmError::missing_parameter("dataDiskImages.lun"))?;
        let fits = u8::try_from(lun).ok().filter(|fits| i64::from(*fits) <= LUN_MAX);
        let lun = fits.ok_or_else(|| Violation::out_of_range(&format!("{path}.lun"), lun, 0, LUN_MAX))?;
        data.push(DataDiskImage { lun, disk });
    }
    let by_disk = os.source.is_some() || data.iter().any(|disk| disk.disk.source.is_some());
    match (whole.pop(), by_disk) {
        (None, false) => Ok(None),
        (None, true) => Ok(Some(VersionSource::Disks { os, data })),
        (Some(source), false) if whole.is_empty() => Ok(Some(source)),
        _ => Err(ArmError::invalid_parameter(
            path,
            "The gallery artifact version source can only be specified either directly under storageProfile or within individual \
             OS or data disks. One and only one source type (user image, snapshot, disk, virtual machine) can be provided",
        )),
    }
}

fn disk(wire: WireDisk, path: &str) -> Result<(Option<i64>, DiskImage), ArmError> {
    let source = DiskSource {
        id: non_empty(wire.source.id).map(|id| reference(&id, &format!("{path}.source.id"))).transpose()?,
        uri: non_empty(wire.source.uri),
        storage_account: non_empty(wire.source.storage_account_id)
            .map(|id| reference(&id, &format!("{path}.source.storageAccountId")))
            .transpose()?,
    };
    let written = source.id.is_some() || source.uri.is_some();
    let host_caching = CACHINGS.parse_option(wire.host_caching.as_deref(), &format!("{path}.hostCaching"))?;
    Ok((wire.lun, DiskImage { source: written.then_some(source), host_caching }))
}
