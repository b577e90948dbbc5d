//! Model → answer.

use model::image_definition::OsType;
use model::image_version::HostCaching;
use model::virtual_machine::{
    DiskCreateOption, DiskDeleteOption, ImageReference, LinuxConfiguration, OsConfiguration, OsProfile,
    VirtualMachine, VmDisk, VmSecrets, VmSpec,
};
use serde_json::{Map, Value, json};

use super::instance_view::instance_view;
use crate::common::{self, Context, Object};
use crate::error::ArmError;
use crate::names::{CACHINGS, DISK_CREATE_OPTIONS, DISK_DELETE_OPTIONS, OS_TYPES};
use crate::time;

/// What `$expand` asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expand {
    /// `instanceView`.
    pub instance_view: bool,
    /// `userData`.
    pub user_data: bool,
}

impl Expand {
    /// Reads the query parameter: a list with commas.
    ///
    /// # Errors
    /// For any other word.
    pub fn parse(text: Option<&str>) -> Result<Self, ArmError> {
        let mut expand = Self::default();
        for word in text.unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word.to_ascii_lowercase().as_str() {
                "instanceview" => expand.instance_view = true,
                "userdata" => expand.user_data = true,
                _ => {
                    let message = "The value of parameter '$expand' is not allowed. Allowed values are: instanceView, userData.";
                    return Err(ArmError::invalid_parameter("$expand", message));
                }
            }
        }
        Ok(expand)
    }
}

/// A virtual machine as Compute answers it. `secrets` is asked for user data alone, and only when expanded.
/// The ETag is also the answer's header.
pub fn render(
    vm: &VirtualMachine,
    secrets: Option<&VmSecrets>,
    expand: Expand,
    context: &Context<'_>,
) -> Value {
    let spec = &vm.spec;
    let user_data = secrets.filter(|_| expand.user_data).and_then(|secrets| secrets.user_data.as_ref());
    let uefi = Object::new().maybe("secureBootEnabled", spec.secure_boot).maybe("vTpmEnabled", spec.vtpm);
    let has_uefi = spec.secure_boot.is_some() || spec.vtpm.is_some();
    let properties = Object::new()
        .set("hardwareProfile", json!({ "vmSize": spec.vm_size }))
        .set("provisioningState", vm.provisioning.name())
        .set("vmId", vm.vm_id.to_string())
        .set("storageProfile", storage_profile(vm))
        .maybe("osProfile", spec.os_profile.as_ref().map(|profile| os_profile(profile, vm.os_type())))
        .maybe("securityProfile", has_uefi.then(|| json!({ "uefiSettings": Value::from(uefi) })))
        .maybe("userData", user_data.map(|data| data.expose()))
        .maybe("instanceView", expand.instance_view.then(|| instance_view(vm)))
        .set("timeCreated", time::compute(vm.created));
    common::compute_resource(context, &spec.location, &spec.tags, properties)
        .with_extra(&defaults(spec, vm.os_type()))
        .set("etag", etag(vm))
        .into()
}

/// What Compute fills in where the request was silent (recorded), in properties that we only keep: added after
/// what was kept, so that the user's words win.
fn defaults(spec: &VmSpec, os: Option<OsType>) -> Map<String, Value> {
    let mut defaults = Map::new();
    if spec.os_profile.is_some() {
        let patching =
            json!({ "patchSettings": { "patchMode": "ImageDefault", "assessmentMode": "ImageDefault" } });
        let profile = Object::new()
            .set("secrets", json!([]))
            .maybe("linuxConfiguration", (os == Some(OsType::Linux)).then_some(patching));
        defaults.insert("properties".into(), json!({ "osProfile": Value::from(profile) }));
    }
    defaults
}

/// `"3"` with its quotes: body and header agree.
fn etag(vm: &VirtualMachine) -> String {
    format!("\"{}\"", vm.etag)
}

fn storage_profile(vm: &VirtualMachine) -> Value {
    let spec = &vm.spec;
    let exact = vm.image.as_ref().and_then(|image| image.exact_version.as_deref());
    let image = spec.image.as_ref().map(|image| image_reference(image).maybe("exactVersion", exact));
    let size = spec
        .os_disk
        .size_gib
        .map(u64::from)
        .or_else(|| vm.image.as_ref().map(|image| image.os_disk.size_gib()));
    let os_disk = disk(
        Object::new().maybe("osType", vm.os_type().map(|os| OS_TYPES.name(os))),
        &spec.os_disk,
        Some(os_disk_name(vm)),
        HostCaching::ReadWrite,
    )
    .maybe("diskSizeGB", size);
    let data_disks: Vec<Value> = spec
        .data_disks
        .iter()
        .map(|data| {
            disk(Object::new().set("lun", data.lun), &data.disk, data.disk.name.clone(), HostCaching::None)
                .maybe("diskSizeGB", data.disk.size_gib)
                .set("toBeDetached", false)
                .into()
        })
        .collect();
    Object::new().maybe("imageReference", image).set("osDisk", os_disk).set("dataDisks", data_disks).into()
}

/// The name that was asked for, else one as Azure makes them.
pub(super) fn os_disk_name(vm: &VirtualMachine) -> String {
    let made = || format!("{}_OsDisk_1_{}", vm.name, vm.vm_id.simple());
    vm.spec.os_disk.name.clone().unwrap_or_else(made)
}

fn disk(object: Object, disk: &VmDisk, name: Option<String>, caching: HostCaching) -> Object {
    let caching = disk.caching.unwrap_or(match disk.create_option {
        DiskCreateOption::FromImage => caching,
        _ => HostCaching::None,
    });
    let managed = disk.storage_account_type.as_ref().map(|kind| json!({ "storageAccountType": kind }));
    object
        .maybe("name", name)
        .set("createOption", DISK_CREATE_OPTIONS.name(disk.create_option))
        .set("caching", CACHINGS.name(caching))
        .maybe("managedDisk", managed)
        .set("deleteOption", DISK_DELETE_OPTIONS.name(disk.delete_option.unwrap_or(DiskDeleteOption::Detach)))
}

fn image_reference(image: &ImageReference) -> Object {
    match image {
        ImageReference::Platform { publisher, offer, sku, version } => Object::new()
            .set("publisher", publisher.as_str())
            .set("offer", offer.as_str())
            .set("sku", sku.as_str())
            .set("version", version.as_str()),
        ImageReference::Gallery { written, .. } | ImageReference::Resource(written) => {
            Object::new().set("id", written.as_str())
        }
        ImageReference::SharedGallery(id) => Object::new().set("sharedGalleryImageId", id.as_str()),
        ImageReference::CommunityGallery(id) => Object::new().set("communityGalleryImageId", id.as_str()),
    }
}

/// Password and custom data are not in the model's profile, so that they cannot get here.
fn os_profile(profile: &OsProfile, os: Option<OsType>) -> Value {
    let object = Object::new()
        .set("computerName", profile.computer_name.as_str())
        .set("adminUsername", profile.admin_username.as_str());
    let windows = |agent, updates| json!({ "provisionVMAgent": agent, "enableAutomaticUpdates": updates });
    let object = match (&profile.configuration, os) {
        (OsConfiguration::Linux(linux), _) => object.set("linuxConfiguration", linux_json(linux)),
        (OsConfiguration::Windows(config), _) => object
            .set("windowsConfiguration", windows(config.provision_vm_agent, config.enable_automatic_updates)),
        (OsConfiguration::Unspecified, Some(OsType::Windows)) => {
            object.set("windowsConfiguration", windows(true, true))
        }
        (OsConfiguration::Unspecified, Some(OsType::Linux)) => object.set(
            "linuxConfiguration",
            linux_json(&LinuxConfiguration { provision_vm_agent: true, ..LinuxConfiguration::default() }),
        ),
        (OsConfiguration::Unspecified, None) => object,
    };
    object
        .set("allowExtensionOperations", profile.allow_extension_operations)
        .set("requireGuestProvisionSignal", profile.require_guest_provision_signal)
        .into()
}

fn linux_json(linux: &LinuxConfiguration) -> Value {
    let keys: Vec<Value> = linux
        .ssh_public_keys
        .iter()
        .map(|key| {
            Object::new().maybe("path", key.path.as_deref()).set("keyData", key.key_data.as_str()).into()
        })
        .collect();
    Object::new()
        .set("disablePasswordAuthentication", linux.disable_password_authentication)
        .maybe("ssh", (!keys.is_empty()).then(|| json!({ "publicKeys": keys })))
        .set("provisionVMAgent", linux.provision_vm_agent)
        .into()
}
