//! Request → model.

use model::Violation;
use model::image_version::LUN_MAX;
use model::managed_image::{ImageDisk, ImageDiskSource, ImageOsDisk, ImageSpec, ImageStorage};
use serde::Deserialize;
use serde_json::Value;

use super::shape::{KNOWN_UNTIL, SHAPE};
use crate::api_version::ApiVersion;
use crate::common::{self, Parsed, WireTags, non_empty, reference};
use crate::error::ArmError;
use crate::names::{CACHINGS, DISK_SKUS, GENERATIONS, OS_STATES, OS_TYPES};
use crate::shape::{self, Strictness};

#[derive(Deserialize)]
struct Wire {
    location: Option<String>,
    tags: Option<WireTags>,
    #[serde(default)]
    properties: WireProperties,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireProperties {
    source_virtual_machine: WireReference,
    storage_profile: Option<WireStorage>,
    #[serde(rename = "hyperVGeneration")]
    hyper_v_generation: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireReference {
    id: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireStorage {
    os_disk: Option<WireDisk>,
    data_disks: Vec<WireDisk>,
    zone_resilient: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireDisk {
    snapshot: WireReference,
    managed_disk: WireReference,
    blob_uri: Option<String>,
    caching: Option<String>,
    #[serde(rename = "diskSizeGB")]
    disk_size_gb: Option<u64>,
    storage_account_type: Option<String>,
    os_type: Option<String>,
    os_state: Option<String>,
    lun: Option<i64>,
}

/// Reads a PUT. What the request means is checked by [`ImageSpec::check`].
///
/// # Errors
/// What is wrong with the body.
pub fn parse(body: Value, version: &ApiVersion) -> Result<Parsed<ImageSpec>, ArmError> {
    let strictness = Strictness::compute(version, KNOWN_UNTIL);
    let mut read = shape::read(body, &SHAPE, &strictness)?;
    let wire: Wire = shape::typed(read.typed, &strictness)?;
    let properties = wire.properties;
    let generation = non_empty(properties.hyper_v_generation);
    let source_vm = non_empty(properties.source_virtual_machine.id);
    let data = ImageSpec {
        location: common::location(wire.location.as_deref())?,
        tags: common::resource_tags(wire.tags, &mut read.extra)?,
        hyper_v_generation: GENERATIONS.parse_option(generation.as_deref(), "hyperVGeneration")?,
        storage: match properties.storage_profile {
            // az may say whether a captured image is zone-resilient; the VM says the rest.
            Some(storage) if storage.os_disk.is_some() || source_vm.is_none() => Some(read_storage(storage)?),
            _ => None,
        },
        source_vm: source_vm.map(|id| reference(&id, "sourceVirtualMachine.id")).transpose()?,
    };
    Ok(Parsed { data, extra: read.extra })
}

fn read_storage(wire: WireStorage) -> Result<ImageStorage, ArmError> {
    let path = "storageProfile.osDisk";
    let os = wire.os_disk.ok_or_else(|| ArmError::missing_parameter(path))?;
    let required = |text: &Option<String>, name: &str| {
        let target = format!("{path}.{name}");
        let text = non_empty(text.clone()).ok_or_else(|| ArmError::missing_parameter(&target))?;
        Ok::<_, ArmError>((text, target))
    };
    let (os_type, type_target) = required(&os.os_type, "osType")?;
    let (os_state, state_target) = required(&os.os_state, "osState")?;
    let os_disk = ImageOsDisk {
        os_type: OS_TYPES.parse(&os_type, &type_target)?,
        os_state: OS_STATES.parse(&os_state, &state_target)?,
        disk: read_disk(os, path)?,
    };
    let data_disks = wire.data_disks.into_iter().enumerate().map(|(index, wire)| {
        let path = format!("storageProfile.dataDisks[{index}]");
        let target = format!("{path}.lun");
        let lun = wire.lun.ok_or_else(|| ArmError::missing_parameter(&target))?;
        let fits = u8::try_from(lun).ok().filter(|fits| i64::from(*fits) <= LUN_MAX);
        let lun = fits.ok_or_else(|| Violation::out_of_range(&target, lun, 0, LUN_MAX))?;
        Ok::<_, ArmError>((lun, read_disk(wire, &path)?))
    });
    Ok(ImageStorage {
        os_disk,
        data_disks: data_disks.collect::<Result<_, _>>()?,
        zone_resilient: wire.zone_resilient,
    })
}

fn read_disk(wire: WireDisk, path: &str) -> Result<ImageDisk, ArmError> {
    let (caching, storage) = (non_empty(wire.caching), non_empty(wire.storage_account_type));
    Ok(ImageDisk {
        source: ImageDiskSource {
            blob_uri: non_empty(wire.blob_uri),
            managed_disk: non_empty(wire.managed_disk.id),
            snapshot: non_empty(wire.snapshot.id),
        },
        caching: CACHINGS.parse_option(caching.as_deref(), &format!("{path}.caching"))?,
        size_gib: wire.disk_size_gb,
        storage: DISK_SKUS.parse_option(storage.as_deref(), &format!("{path}.storageAccountType"))?,
    })
}
