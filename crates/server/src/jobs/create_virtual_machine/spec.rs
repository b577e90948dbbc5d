//! From the resource to what the VM's process needs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::image_definition::HyperVGeneration;
use model::virtual_machine::{OsConfiguration, OsProfile, VirtualMachine, VmSecrets};
use model::vm_size::vm_size;
use uuid::Uuid;
use vmhost::identity::{Generation, OsDisk, SshKey};
use vmhost::{Accelerator, BaseDisk, Lifetime, MacAddress, VmIdentity, VmSpec};

use super::image::{Source, disk_bytes};
use crate::fabric::Fabric;

/// Memory that a VM gets at most, whatever its size says: several must fit beside each other on a small host,
/// and what guests see of their size (IMDS) is the size's name.
const MEMORY_MIB_MAX: u32 = 2048;
/// The writable layer in the VM's directory.
const OVERLAY: &str = "disk.qcow2";
/// Organisation of Azure's network cards.
const AZURE_OUI: [u8; 3] = [0x00, 0x22, 0x48];

/// The specification of a VM's process. Error: what is wrong with the request.
pub(super) fn vm_spec(
    fabric: &Fabric,
    id: &str,
    vm: &VirtualMachine,
    source: &Source,
    stores: Vec<String>,
    secrets: &VmSecrets,
    accelerator: Accelerator,
) -> Result<VmSpec, String> {
    let size = vm_size(&vm.spec.vm_size).ok_or_else(|| format!("there is no size {}", vm.spec.vm_size))?;
    let host_cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let disk_bytes = disk_bytes(&vm.spec, source);
    let key_file = fabric.store_key_file(&vm.spec.location).map_err(|error| error.to_string())?;
    Ok(VmSpec {
        lifetime: Lifetime::Virtual,
        identity: identity(id, vm, source, secrets, disk_bytes)?,
        base: BaseDisk {
            stores,
            key_file,
            manifest: source.manifest.to_string(),
            cache_dir: fabric.block_cache_dir(),
            cache_bytes_max: fabric.block_cache_bytes_max(),
        },
        frozen: Vec::new(),
        overlay: PathBuf::from(OVERLAY),
        disk_bytes,
        vcpus: size.vcpus.min(host_cores),
        memory_mib: size.memory_mib.min(MEMORY_MIB_MAX),
        accelerator,
        outbound: fabric.outbound().clone(),
        resume: None,
    })
}

fn identity(
    id: &str,
    vm: &VirtualMachine,
    source: &Source,
    secrets: &VmSecrets,
    disk_bytes: u64,
) -> Result<VmIdentity, String> {
    let spec = &vm.spec;
    let segments: Vec<&str> = id.split('/').collect();
    let segment = |at: usize| segments.get(at).copied().unwrap_or_default().to_owned();
    let custom_data = secrets.custom_data.as_ref().map(|data| STANDARD.decode(data.expose()));
    let custom_data =
        custom_data.transpose().map_err(|error| format!("customData is not base64: {error}"))?;
    let profile = spec.os_profile.as_ref();
    let linux = profile.and_then(|profile| match &profile.configuration {
        OsConfiguration::Linux(linux) => Some(linux),
        OsConfiguration::Windows(_) | OsConfiguration::Unspecified => None,
    });
    let tags: BTreeMap<String, String> =
        spec.tags.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Ok(VmIdentity {
        vm_id: vm.vm_id,
        name: vm.name.to_string(),
        resource_id: id.to_owned(),
        // /subscriptions/{2}/resourceGroups/{4}/…
        subscription_id: segment(2),
        resource_group: segment(4),
        location: spec.location.to_string(),
        vm_size: spec.vm_size.clone(),
        hostname: profile.map_or_else(|| vm.name.to_string(), |profile| profile.computer_name.clone()),
        admin_username: profile.map(|profile| profile.admin_username.clone()).unwrap_or_default(),
        admin_password: secrets.admin_password.as_ref().map(|password| password.expose().to_owned()),
        disable_password_authentication: linux.is_some_and(|linux| linux.disable_password_authentication),
        ssh_keys: profile.map(ssh_keys).unwrap_or_default(),
        custom_data,
        user_data: secrets.user_data.as_ref().map(|data| data.expose().to_owned()),
        tags,
        image_reference: source.reference.clone(),
        os_disk: OsDisk {
            name: os_disk_name(vm),
            size_gb: u32::try_from(disk_bytes.div_ceil(model::content::GIB)).unwrap_or(u32::MAX),
        },
        mac: mac(vm.vm_id),
        container_id: Uuid::new_v4(),
        instance_id: format!("{}._{}", Uuid::new_v4(), vm.name),
        deployment_id: Uuid::new_v4(),
        generation: match source.image.hyper_v_generation {
            HyperVGeneration::V1 => Generation::V1,
            HyperVGeneration::V2 => Generation::V2,
        },
        provision_guest_agent: linux.is_none_or(|linux| linux.provision_vm_agent),
    })
}

fn ssh_keys(profile: &OsProfile) -> Vec<SshKey> {
    let OsConfiguration::Linux(linux) = &profile.configuration else { return Vec::new() };
    let default = || format!("/home/{}/.ssh/authorized_keys", profile.admin_username);
    linux
        .ssh_public_keys
        .iter()
        .map(|key| SshKey {
            path: key.path.clone().unwrap_or_else(default),
            key_data: key.key_data.trim_end().to_owned(),
        })
        .collect()
}

/// As `arm` shows it.
fn os_disk_name(vm: &VirtualMachine) -> String {
    let made = || format!("{}_OsDisk_1_{}", vm.name, vm.vm_id.simple());
    vm.spec.os_disk.name.clone().unwrap_or_else(made)
}

/// The same at every start: the VM's id is random in its last bytes.
fn mac(vm_id: Uuid) -> MacAddress {
    let [.., a, b, c] = *vm_id.as_bytes();
    let [x, y, z] = AZURE_OUI;
    MacAddress([x, y, z, a, b, c])
}
