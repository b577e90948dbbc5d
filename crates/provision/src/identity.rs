//! Who a VM is: everything that its guest may learn about itself.
//!
//! This is a message between processes (the server gives it to `tintype vmhost`), so it is serialisable, and it holds
//! secrets, so `Debug` leaves them out.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::mac::MacAddress;

/// The goal state's number. Ours never changes while a VM lives: nothing that agents fetch changes either.
pub(crate) const INCARNATION: u32 = 1;

/// What one VM's guest is told about itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmIdentity {
    /// Azure's `vmId`.
    pub vm_id: Uuid,
    /// The VM resource's name.
    pub name: String,
    /// The VM's full ARM id.
    pub resource_id: String,
    /// Subscription (text: ids are compared without case but shown as written).
    pub subscription_id: String,
    /// Resource group.
    pub resource_group: String,
    /// Region, such as `westeurope`.
    pub location: String,
    /// Size, such as `Standard_B2s`.
    pub vm_size: String,
    /// `osProfile.computerName`.
    pub hostname: String,
    /// `osProfile.adminUsername`.
    pub admin_username: String,
    /// `osProfile.adminPassword`. Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_password: Option<String>,
    /// `osProfile.linuxConfiguration.disablePasswordAuthentication`.
    pub disable_password_authentication: bool,
    /// `osProfile.linuxConfiguration.ssh.publicKeys`.
    #[serde(default)]
    pub ssh_keys: Vec<SshKey>,
    /// Custom data, decoded; base64 on the wire. Secret.
    #[serde(default, with = "optional_base64", skip_serializing_if = "Option::is_none")]
    pub custom_data: Option<Vec<u8>>,
    /// User data as given to the API: base64 text. Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// The VM's tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// What the VM was made from.
    #[serde(default)]
    pub image_reference: ImageReference,
    /// The operating system's disk.
    pub os_disk: OsDisk,
    /// The one network card's address.
    pub mac: MacAddress,
    /// The wireserver's name for this VM on its host. New for every VM.
    pub container_id: Uuid,
    /// The wireserver's name for this instance, such as `{uuid}._{name}`.
    pub instance_id: String,
    /// The deployment that agents see in the hosting environment.
    pub deployment_id: Uuid,
    /// Firmware.
    pub generation: Generation,
    /// `osProfile.linuxConfiguration.provisionVMAgent`.
    pub provision_guest_agent: bool,
}

/// Firmware generation of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Generation {
    /// BIOS.
    V1,
    /// UEFI.
    V2,
}

/// An SSH public key and the file it belongs in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SshKey {
    /// Such as `/home/azureuser/.ssh/authorized_keys`.
    pub path: String,
    /// One line in OpenSSH's format.
    pub key_data: String,
}

/// `storageProfile.imageReference`; parts that do not apply are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageReference {
    /// Platform image: publisher.
    #[serde(default)]
    pub publisher: String,
    /// Platform image: offer.
    #[serde(default)]
    pub offer: String,
    /// Platform image: sku.
    #[serde(default)]
    pub sku: String,
    /// Platform image: exact version.
    #[serde(default)]
    pub version: String,
    /// Gallery version or managed image: ARM id.
    #[serde(default)]
    pub id: String,
}

/// The operating system's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OsDisk {
    /// The disk resource's name.
    pub name: String,
    /// Size in GiB.
    pub size_gb: u32,
}

impl VmIdentity {
    /// What QEMU's `-uuid` must be for the guest to find [`vm_id`](Self::vm_id).
    ///
    /// Under BIOS, agents read the first three fields of the SMBIOS UUID byte-swapped, as on Azure's generation 1; a
    /// changed id makes cloud-init provision again (PROTOCOL.md 5).
    pub fn smbios_uuid(&self) -> Uuid {
        match self.generation {
            Generation::V1 => Uuid::from_bytes(self.vm_id.to_bytes_le()),
            Generation::V2 => self.vm_id,
        }
    }
}

impl fmt::Debug for VmIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = |present: bool| if present { "[secret]" } else { "none" };
        f.debug_struct("VmIdentity")
            .field("vm_id", &self.vm_id)
            .field("resource_id", &self.resource_id)
            .field("hostname", &self.hostname)
            .field("admin_username", &self.admin_username)
            .field("admin_password", &secret(self.admin_password.is_some()))
            .field("ssh_keys", &self.ssh_keys.len())
            .field("custom_data", &secret(self.custom_data.is_some()))
            .field("user_data", &secret(self.user_data.is_some()))
            .field("image_reference", &self.image_reference)
            .field("mac", &self.mac)
            .field("container_id", &self.container_id)
            .field("instance_id", &self.instance_id)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// `Option<Vec<u8>>` as base64 text.
mod optional_base64 {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(data: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
        match data {
            Some(bytes) => to.serialize_some(&STANDARD.encode(bytes)),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| {
            STANDARD.decode(text).map_err(|e| D::Error::custom(format!("custom_data is not base64: {e}")))
        })
        .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::identity;

    #[test]
    fn debug_keeps_secrets() {
        let mut vm = identity();
        vm.admin_password = Some("hunter2".into());
        vm.custom_data = Some(b"#cloud-config secret".to_vec());
        vm.user_data = Some("c2VjcmV0".into());
        let shown = format!("{vm:?}");
        for secret in ["hunter2", "cloud-config", "c2VjcmV0", "35, 99"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert!(shown.contains("[secret]"));
    }

    #[test]
    fn json_and_back() {
        let mut vm = identity();
        vm.custom_data = Some(vec![0, 255, 10]);
        let json = serde_json::to_value(&vm).unwrap();
        assert_eq!(json["custom_data"], "AP8K");
        assert_eq!(json["mac"], "00:22:48:f8:d6:04");
        assert_eq!(serde_json::from_value::<VmIdentity>(json.clone()).unwrap(), vm);
        let mut unknown = json.clone();
        unknown["surprise"] = 1.into();
        assert!(serde_json::from_value::<VmIdentity>(unknown).unwrap_err().to_string().contains("surprise"));
        let mut bad = json;
        bad["custom_data"] = "%".into();
        assert!(serde_json::from_value::<VmIdentity>(bad).unwrap_err().to_string().contains("custom_data"));
    }

    #[test]
    fn bios_uuid_is_swapped() {
        // The pair that was seen with a real azure-init under BIOS (PROTOCOL.md 5).
        let mut vm = identity();
        vm.vm_id = "bb223c0a-ce0e-b04c-8000-000000000001".parse().unwrap();
        vm.generation = Generation::V1;
        assert_eq!(vm.smbios_uuid().to_string(), "0a3c22bb-0ece-4cb0-8000-000000000001");
        vm.generation = Generation::V2;
        assert_eq!(vm.smbios_uuid(), vm.vm_id);
    }
}
