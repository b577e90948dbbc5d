//! Request → model.

use model::image_version::LUN_MAX;
use model::virtual_machine::{
    ImageReference, LinuxConfiguration, OsConfiguration, OsProfile, Secret, SshPublicKey, VmDataDisk, VmDisk,
    VmSecrets, VmSpec, WindowsConfiguration,
};
use model::{Violation, VmName};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::shape::SHAPE;
use crate::api_version::ApiVersion;
use crate::common::{self, WireTags, non_empty, reference};
use crate::error::ArmError;
use crate::names::{CACHINGS, DISK_CREATE_OPTIONS, DISK_DELETE_OPTIONS, OS_TYPES};
use crate::resource_id::ResourceId;
use crate::shape::{self, Strictness};

/// The newest version whose properties the shape has.
const KNOWN_UNTIL: (u16, u8, u8) = (2024, 7, 1);

/// A request that was read, with its secrets apart.
#[derive(Debug, Clone, PartialEq)]
pub struct ParsedVm {
    /// What may be stored and shown.
    pub data: VmSpec,
    /// What must be sealed.
    pub secrets: VmSecrets,
    /// What Azure has and we only give back.
    pub extra: Map<String, Value>,
}

#[derive(Deserialize)]
struct Wire {
    location: Option<String>,
    tags: Option<WireTags>,
    properties: Option<WireProperties>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireProperties {
    hardware_profile: WireHardware,
    storage_profile: Option<WireStorage>,
    os_profile: Option<WireOsProfile>,
    security_profile: WireSecurity,
    user_data: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireHardware {
    vm_size: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireStorage {
    image_reference: Option<WireImage>,
    os_disk: Option<WireDisk>,
    data_disks: Vec<WireDisk>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireImage {
    id: Option<String>,
    publisher: Option<String>,
    offer: Option<String>,
    sku: Option<String>,
    version: Option<String>,
    shared_gallery_image_id: Option<String>,
    community_gallery_image_id: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireDisk {
    os_type: Option<String>,
    lun: Option<i64>,
    name: Option<String>,
    caching: Option<String>,
    create_option: Option<String>,
    #[serde(rename = "diskSizeGB")]
    disk_size_gb: Option<u32>,
    managed_disk: WireManagedDisk,
    delete_option: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireManagedDisk {
    storage_account_type: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireOsProfile {
    computer_name: Option<String>,
    admin_username: Option<String>,
    admin_password: Option<String>,
    custom_data: Option<String>,
    windows_configuration: Option<WireWindows>,
    linux_configuration: Option<WireLinux>,
    allow_extension_operations: Option<bool>,
    require_guest_provision_signal: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireWindows {
    #[serde(rename = "provisionVMAgent")]
    provision_vm_agent: Option<bool>,
    enable_automatic_updates: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireLinux {
    disable_password_authentication: Option<bool>,
    ssh: WireSsh,
    #[serde(rename = "provisionVMAgent")]
    provision_vm_agent: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireSsh {
    public_keys: Vec<WireSshKey>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireSshKey {
    path: Option<String>,
    key_data: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireSecurity {
    uefi_settings: WireUefi,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireUefi {
    secure_boot_enabled: Option<bool>,
    v_tpm_enabled: Option<bool>,
}

/// Reads a PUT. Rules are not checked: the caller runs `VmSpec::check` and, once the image is known,
/// `VmSpec::check_for_image`.
///
/// # Errors
/// What is wrong with the body.
pub fn parse(name: &VmName, body: Value, version: &ApiVersion) -> Result<ParsedVm, ArmError> {
    let strictness = Strictness::compute(version, KNOWN_UNTIL);
    let mut read = shape::read(body, &SHAPE, &strictness)?;
    let wire: Wire = shape::typed(read.typed, &strictness)?;
    let location = common::location(wire.location.as_deref())?;
    let properties = wire.properties.ok_or_else(|| ArmError::missing_parameter("properties"))?;
    let storage = properties.storage_profile.ok_or_else(|| ArmError::missing_parameter("storageProfile"))?;
    let wire_os_disk = storage.os_disk.ok_or_else(|| ArmError::missing_parameter("osDisk"))?;
    let mut secrets =
        VmSecrets { user_data: non_empty(properties.user_data).map(Secret::new), ..VmSecrets::default() };
    let os_profile = properties.os_profile.map(|profile| os_profile(profile, name, &mut secrets));
    let vm_size = non_empty(properties.hardware_profile.vm_size);
    let data = VmSpec {
        location,
        tags: common::resource_tags(wire.tags, &mut read.extra)?,
        vm_size: vm_size.unwrap_or_else(|| VM_SIZE_DEFAULT.to_owned()),
        image: storage.image_reference.map(image).transpose()?,
        os_type: OS_TYPES.parse_option(wire_os_disk.os_type.as_deref(), "osDisk.osType")?,
        os_disk: disk(&wire_os_disk, "osDisk")?,
        data_disks: storage.data_disks.iter().map(data_disk).collect::<Result<_, _>>()?,
        os_profile,
        secure_boot: properties.security_profile.uefi_settings.secure_boot_enabled,
        vtpm: properties.security_profile.uefi_settings.v_tpm_enabled,
    };
    Ok(ParsedVm { data, secrets, extra: read.extra })
}

/// Azure's size when none is written.
const VM_SIZE_DEFAULT: &str = "Standard_A1_v2";

fn image(wire: WireImage) -> Result<ImageReference, ArmError> {
    let invalid =
        || ArmError::invalid_parameter("imageReference", "The value of parameter imageReference is invalid.");
    let id = non_empty(wire.id);
    let platform =
        (non_empty(wire.publisher), non_empty(wire.offer), non_empty(wire.sku), non_empty(wire.version));
    match (id, platform, non_empty(wire.shared_gallery_image_id), non_empty(wire.community_gallery_image_id))
    {
        // az sends a plan's publisher beside an id; the id decides.
        (Some(id), _, None, None) => {
            let written = reference(&id, "imageReference.id")?;
            let version = ResourceId::parse(&id)?.to_image_version();
            Ok(match version {
                Some(version) => ImageReference::Gallery { version, written },
                None => ImageReference::Resource(written),
            })
        }
        (None, (Some(publisher), Some(offer), Some(sku), Some(version)), None, None) => {
            Ok(ImageReference::Platform { publisher, offer, sku, version })
        }
        (None, _, Some(id), None) => Ok(ImageReference::SharedGallery(id)),
        (None, _, None, Some(id)) => Ok(ImageReference::CommunityGallery(id)),
        _ => Err(invalid()),
    }
}

fn disk(wire: &WireDisk, what: &str) -> Result<VmDisk, ArmError> {
    let target = format!("{what}.createOption");
    let create_option = wire.create_option.as_deref().ok_or_else(|| ArmError::missing_parameter(&target))?;
    Ok(VmDisk {
        name: wire.name.clone().filter(|name| !name.is_empty()),
        create_option: DISK_CREATE_OPTIONS.parse(create_option, &target)?,
        caching: CACHINGS.parse_option(wire.caching.as_deref(), &format!("{what}.caching"))?,
        size_gib: wire.disk_size_gb,
        storage_account_type: wire.managed_disk.storage_account_type.clone(),
        delete_option: DISK_DELETE_OPTIONS
            .parse_option(wire.delete_option.as_deref(), &format!("{what}.deleteOption"))?,
    })
}

fn data_disk(wire: &WireDisk) -> Result<VmDataDisk, ArmError> {
    let lun = wire.lun.ok_or_else(|| ArmError::missing_parameter("dataDisk.lun"))?;
    let fits = u8::try_from(lun).ok().filter(|fits| i64::from(*fits) <= LUN_MAX);
    let lun = fits.ok_or_else(|| Violation::out_of_range("dataDisk.lun", lun, 0, LUN_MAX))?;
    Ok(VmDataDisk { lun, disk: disk(wire, "dataDisk")? })
}

fn os_profile(wire: WireOsProfile, name: &VmName, secrets: &mut VmSecrets) -> OsProfile {
    secrets.admin_password = non_empty(wire.admin_password).map(Secret::new);
    secrets.custom_data = non_empty(wire.custom_data).map(Secret::new);
    let configuration = match (wire.linux_configuration, wire.windows_configuration) {
        (Some(linux), _) => OsConfiguration::Linux(LinuxConfiguration {
            disable_password_authentication: linux.disable_password_authentication.unwrap_or(false),
            ssh_public_keys: linux
                .ssh
                .public_keys
                .into_iter()
                .map(|key| SshPublicKey {
                    path: non_empty(key.path),
                    key_data: key.key_data.unwrap_or_default(),
                })
                .collect(),
            provision_vm_agent: linux.provision_vm_agent.unwrap_or(true),
        }),
        (None, Some(windows)) => OsConfiguration::Windows(WindowsConfiguration {
            provision_vm_agent: windows.provision_vm_agent.unwrap_or(true),
            enable_automatic_updates: windows.enable_automatic_updates.unwrap_or(true),
        }),
        (None, None) => OsConfiguration::Unspecified,
    };
    OsProfile {
        computer_name: non_empty(wire.computer_name).unwrap_or_else(|| name.as_str().to_owned()),
        admin_username: wire.admin_username.unwrap_or_default(),
        has_password: secrets.admin_password.is_some(),
        configuration,
        allow_extension_operations: wire.allow_extension_operations.unwrap_or(true),
        require_guest_provision_signal: wire.require_guest_provision_signal.unwrap_or(true),
    }
}
