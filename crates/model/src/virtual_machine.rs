//! Virtual machines.
//!
//! What the guest must be told and nobody else may read ([`VmSecrets`]) is apart from the spec, so that the
//! spec can be stored and shown as it is; the server seals the secrets.

mod check;
mod secret;

use serde::{Deserialize, Serialize};

pub use check::{CUSTOM_DATA_BASE64_BYTES_MAX, DATA_DISKS_MAX, SSH_KEYS_MAX};
pub use secret::{Secret, VmSecrets};

use crate::Timestamp;
use crate::content::DiskContent;
use crate::image_definition::{HyperVGeneration, OsType};
use crate::image_version::HostCaching;
use crate::names::VmName;
use crate::provisioning::{Failure, InvalidTransition, ProvisioningState};
use crate::reference::{ImageVersionRef, ResourceRef};
use crate::region::Region;
use crate::tags::Tags;

/// What a machine's OS disk is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageReference {
    /// An image of the catalogue.
    Platform {
        /// Publisher.
        publisher: String,
        /// Offer.
        offer: String,
        /// SKU.
        sku: String,
        /// A version's number or `latest`.
        version: String,
    },
    /// An image version, or a definition, which means its latest.
    Gallery {
        /// The version.
        version: ImageVersionRef,
        /// The id as it was written; a definition's id is echoed as such.
        written: ResourceRef,
    },
    /// A managed image or anything else with an id.
    Resource(ResourceRef),
    /// A directly shared gallery's image.
    SharedGallery(String),
    /// A community gallery's image.
    CommunityGallery(String),
}

/// How a disk comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskCreateOption {
    /// From the image.
    FromImage,
    /// Blank.
    Empty,
    /// It exists.
    Attach,
    /// From a disk or snapshot.
    Copy,
    /// From a restore point.
    Restore,
}

/// What becomes of a disk when the machine is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskDeleteOption {
    /// It goes.
    Delete,
    /// It stays.
    Detach,
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmDisk {
    /// `None`: named by the server.
    pub name: Option<String>,
    /// How it comes to be.
    pub create_option: DiskCreateOption,
    /// `None`: `ReadWrite` for OS disks from images, else `None`.
    pub caching: Option<HostCaching>,
    /// `None`: the image's size.
    pub size_gib: Option<u32>,
    /// Kind of storage; echoed.
    pub storage_account_type: Option<String>,
    /// `None`: [`DiskDeleteOption::Detach`].
    pub delete_option: Option<DiskDeleteOption>,
}

/// A data disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmDataDisk {
    /// Logical unit, distinct among the data disks.
    pub lun: u8,
    /// The disk.
    pub disk: VmDisk,
}

/// An SSH public key for the administrator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshPublicKey {
    /// File in the guest; by default the administrator's `authorized_keys`.
    pub path: Option<String>,
    /// `ssh-ed25519 AAAA…`
    pub key_data: String,
}

/// What Linux is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinuxConfiguration {
    /// Whether passwords are refused by sshd.
    pub disable_password_authentication: bool,
    /// Keys.
    pub ssh_public_keys: Vec<SshPublicKey>,
    /// Whether an agent is expected in the guest.
    pub provision_vm_agent: bool,
}

/// What Windows is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowsConfiguration {
    /// Whether an agent is expected in the guest.
    pub provision_vm_agent: bool,
    /// Whether Windows updates itself.
    pub enable_automatic_updates: bool,
}

/// Per system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OsConfiguration {
    /// Linux.
    Linux(LinuxConfiguration),
    /// Windows.
    Windows(WindowsConfiguration),
    /// Not written: it follows from the image.
    Unspecified,
}

/// What the guest is told on its first start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsProfile {
    /// Host name.
    pub computer_name: String,
    /// Administrator.
    pub admin_username: String,
    /// Whether there is a password; the password itself is in [`VmSecrets`].
    pub has_password: bool,
    /// Per system.
    pub configuration: OsConfiguration,
    /// Echoed.
    pub allow_extension_operations: bool,
    /// Whether creation waits for the guest's report; true unless said otherwise.
    pub require_guest_provision_signal: bool,
}

/// What a user writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Region.
    pub location: Region,
    /// Tags.
    pub tags: Tags,
    /// Name of a size of [`crate::vm_size`].
    pub vm_size: String,
    /// `None`: the disk is attached as it is.
    pub image: Option<ImageReference>,
    /// OS disk.
    pub os_disk: VmDisk,
    /// Said of the OS disk; `None`: the image says.
    pub os_type: Option<OsType>,
    /// Data disks.
    pub data_disks: Vec<VmDataDisk>,
    /// `None`: a specialized image, or an attached disk.
    pub os_profile: Option<OsProfile>,
    /// Whether UEFI checks signatures.
    pub secure_boot: Option<bool>,
    /// Whether there is a TPM.
    pub vtpm: Option<bool>,
}

/// Whether a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerState {
    /// Coming up.
    Starting,
    /// Runs.
    Running,
    /// Going down.
    Stopping,
    /// Down; keeps its place.
    Stopped,
    /// Giving up its place.
    Deallocating,
    /// Down; its disk waits in the store.
    Deallocated,
}

/// What the image turned out to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedImage {
    /// `exactVersion`; `None` for images without versions.
    pub exact_version: Option<String>,
    /// Its system.
    pub os_type: OsType,
    /// Its firmware.
    pub hyper_v_generation: HyperVGeneration,
    /// Its OS disk.
    pub os_disk: DiskContent,
}

/// What the guest's agent last said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentReport {
    /// Its version; `None` when something else than an agent reported (cloud-init).
    pub version: Option<String>,
    /// Whether it is ready.
    pub ready: bool,
    /// In its words.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualMachine {
    /// Its name.
    pub name: VmName,
    /// What was asked for.
    pub spec: VmSpec,
    /// Azure's own id of the machine, also its SMBIOS UUID.
    pub vm_id: uuid::Uuid,
    /// When it was accepted.
    pub created: Timestamp,
    /// Where it stands.
    pub provisioning: ProvisioningState,
    /// Since when.
    pub provisioning_changed: Timestamp,
    /// `None` until it was started for the first time.
    pub power: Option<PowerState>,
    /// `None` until it was resolved.
    pub image: Option<ResolvedImage>,
    /// `None` until the guest spoke.
    pub agent: Option<AgentReport>,
    /// Grows with each change; the ETag.
    pub etag: u64,
}

impl VirtualMachine {
    /// A machine that was just accepted.
    pub fn create(name: VmName, spec: VmSpec, vm_id: uuid::Uuid, now: Timestamp) -> Self {
        Self {
            name,
            spec,
            vm_id,
            created: now,
            provisioning: ProvisioningState::Creating,
            provisioning_changed: now,
            power: None,
            image: None,
            agent: None,
            etag: 1,
        }
    }

    /// The machine runs as asked for.
    ///
    /// # Errors
    /// Unless work was in hand.
    pub fn provisioned(self, now: Timestamp) -> Result<Self, InvalidTransition> {
        let provisioning = self.provisioning.succeed()?;
        Ok(Self { provisioning, provisioning_changed: now, etag: self.etag + 1, ..self })
    }

    /// The work in hand failed.
    ///
    /// # Errors
    /// Unless work was in hand.
    pub fn failed(self, failure: Failure, now: Timestamp) -> Result<Self, InvalidTransition> {
        let provisioning = self.provisioning.fail(failure)?;
        Ok(Self { provisioning, provisioning_changed: now, etag: self.etag + 1, ..self })
    }

    /// Another power state; every order can occur, because guests and hosts act on their own.
    #[must_use]
    pub fn powered(self, power: PowerState) -> Self {
        Self { power: Some(power), etag: self.etag + 1, ..self }
    }

    /// The system: what the image turned out to be, else what was asked for.
    pub fn os_type(&self) -> Option<OsType> {
        let configured = self.spec.os_profile.as_ref().and_then(|profile| match &profile.configuration {
            OsConfiguration::Linux(_) => Some(OsType::Linux),
            OsConfiguration::Windows(_) => Some(OsType::Windows),
            OsConfiguration::Unspecified => None,
        });
        self.image.as_ref().map(|image| image.os_type).or(self.spec.os_type).or(configured)
    }
}
