//! Managed disks and snapshots: where their bytes come from, where they stand, and who outside may reach them.
//!
//! A snapshot is a disk that cannot be attached; everything else is shared, so there is one type with a [`DiskKind`].
//!
//! ```text
//!  Pending ──▶ Stored                    (Empty, Copy, Import, FromImage)
//!     └──────▶ Upload ──end of access──▶ Committing ──▶ Stored
//!                 ▲───── not a VHD ──────────┘
//! ```

mod creation;
mod performance;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use creation::{
    CreateOption, CreationData, DiskImageReference, DiskOrigin, FOOTER_BYTES, ImageId, UPLOAD_BYTES_MAX,
    UPLOAD_BYTES_MIN, URI_BYTES_MAX,
};
pub use performance::Performance;

use crate::Timestamp;
use crate::content::{DiskContent, GIB};
use crate::gallery::check_location;
use crate::image_definition::{Architecture, HyperVGeneration, OsType};
use crate::names::DiskName;
use crate::provisioning::ProvisioningState;
use crate::reference::{ManifestRef, ResourceRef};
use crate::region::Region;
use crate::tags::Tags;
use crate::violation::{Rule, Violation};

/// Largest disk in GiB (RULES.md section 2: 32,767 GiB).
pub const DISK_GIB_MAX: u64 = 32_767;
/// Longest access in seconds: what the wire's unsigned 32 bits hold.
pub const ACCESS_SECONDS_MAX: u64 = u32::MAX as u64;

/// Which of the two resource types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskKind {
    /// `Microsoft.Compute/disks`.
    Disk,
    /// `Microsoft.Compute/snapshots`.
    Snapshot,
}

/// What the bytes are kept on. Here it decides redundancy and the figures that answers show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskSku {
    /// Hard disks, one zone.
    StandardLrs,
    /// Hard disks, three zones (snapshots).
    StandardZrs,
    /// SSD, one zone.
    PremiumLrs,
    /// SSD, three zones.
    PremiumZrs,
    /// Slower SSD, one zone.
    StandardSsdLrs,
    /// Slower SSD, three zones.
    StandardSsdZrs,
    /// Ultra disks.
    UltraSsdLrs,
    /// Premium SSD, second generation.
    PremiumV2Lrs,
}

/// From where a disk may be exported or imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkAccessPolicy {
    /// From everywhere.
    AllowAll,
    /// Through private endpoints only.
    AllowPrivate,
    /// Not at all.
    DenyAll,
}

/// What a user writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Home region.
    pub location: Region,
    /// Tags.
    pub tags: Tags,
    /// `None`: `Standard_LRS`.
    pub sku: Option<DiskSku>,
    /// `None`: the source's, if it is known.
    pub os_type: Option<OsType>,
    /// `None`: the source's, if it is known.
    pub hyper_v_generation: Option<HyperVGeneration>,
    /// `None`: the source's, if it is known.
    pub architecture: Option<Architecture>,
    /// Where the bytes come from.
    pub creation: CreationData,
    /// `None`: the source's size.
    pub size_gib: Option<u64>,
    /// Operations a second; only disks whose SKU is sold by them have a say.
    pub iops: Option<u64>,
    /// Megabytes a second; likewise.
    pub mbps: Option<u64>,
    /// Performance tier such as `P30`; at least that of the size.
    pub tier: Option<String>,
    /// Snapshots: echoed. The store keeps every snapshot by what differs, so there is nothing to choose.
    pub incremental: Option<bool>,
    /// `None`: from everywhere.
    pub network_access: Option<NetworkAccessPolicy>,
    /// `None`: enabled.
    pub public_network_access: Option<bool>,
    /// Whether exports also want a directory token (`dataAccessAuthMode`).
    pub directory_tokens: Option<bool>,
}

/// What the source told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFacts {
    /// Operating system family.
    pub os_type: Option<OsType>,
    /// Firmware.
    pub hyper_v_generation: Option<HyperVGeneration>,
    /// Processor.
    pub architecture: Option<Architecture>,
    /// `uniqueId` of the disk or snapshot that was copied.
    pub unique_id: Option<Uuid>,
}

/// Where a disk's bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskBytes {
    /// Nowhere yet: a job brings them.
    Pending,
    /// The disk waits for an upload, or one is under way.
    Upload {
        /// Length of the VHD in bytes, footer included.
        bytes: u64,
    },
    /// An upload has ended; a job checks and stores it.
    Committing {
        /// Length of the VHD in bytes, footer included.
        bytes: u64,
    },
    /// In the region's store.
    Stored(DiskContent),
}

/// What an access may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessMode {
    /// Download.
    Read,
    /// Upload.
    Write,
}

/// A URL that was handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskAccess {
    /// Its id, in the URL.
    pub id: Uuid,
    /// What it may do.
    pub mode: AccessMode,
    /// Since when.
    pub granted: Timestamp,
    /// Until when.
    pub expires: Timestamp,
}

/// A disk or snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagedDisk {
    /// Its name.
    pub name: DiskName,
    /// Which type.
    pub kind: DiskKind,
    /// `uniqueId`: also names its reference in the store, so that a disk made anew under the same name is another.
    pub unique_id: Uuid,
    /// When it was accepted.
    pub created: Timestamp,
    /// What was asked for.
    pub spec: DiskSpec,
    /// What the source told.
    pub facts: SourceFacts,
    /// Its bytes.
    pub bytes: DiskBytes,
    /// Content that the disk had before it grew, whose reference is yet to be removed.
    pub retired: Vec<ManifestRef>,
    /// The access that is open; an expired one stays until it is ended or another is granted.
    pub access: Option<DiskAccess>,
    /// Counts ended and granted accesses. It is part of what a URL's signature covers, so that each ends all before.
    pub access_generation: u64,
    /// Where it stands.
    pub provisioning: ProvisioningState,
}

impl ManagedDisk {
    /// A disk that was just accepted.
    pub fn create(name: DiskName, kind: DiskKind, spec: DiskSpec, unique_id: Uuid, now: Timestamp) -> Self {
        Self {
            name,
            kind,
            unique_id,
            created: now,
            spec,
            facts: SourceFacts::default(),
            bytes: DiskBytes::Pending,
            retired: Vec::new(),
            access: None,
            access_generation: 0,
            provisioning: ProvisioningState::Creating,
        }
    }

    /// The stored bytes, if they are there.
    pub fn content(&self) -> Option<&DiskContent> {
        match &self.bytes {
            DiskBytes::Stored(content) => Some(content),
            DiskBytes::Pending | DiskBytes::Upload { .. } | DiskBytes::Committing { .. } => None,
        }
    }

    /// Size in GiB, rounded up: the bytes' own, else what was asked for.
    pub fn size_gib(&self) -> Option<u64> {
        self.content().map(DiskContent::size_gib).or(self.spec.size_gib)
    }

    /// Operating system family: as written, else the source's.
    pub fn os_type(&self) -> Option<OsType> {
        self.spec.os_type.or(self.facts.os_type)
    }

    /// Firmware: as written, else the source's.
    pub fn hyper_v_generation(&self) -> Option<HyperVGeneration> {
        self.spec.hyper_v_generation.or(self.facts.hyper_v_generation)
    }

    /// Processor: as written, else the source's.
    pub fn architecture(&self) -> Option<Architecture> {
        self.spec.architecture.or(self.facts.architecture)
    }

    /// What its size and SKU are good for; `None` for snapshots and while the size is not known.
    pub fn performance(&self) -> Option<Performance> {
        let upload = match self.bytes {
            DiskBytes::Upload { bytes } | DiskBytes::Committing { bytes } => Some(bytes / GIB),
            DiskBytes::Pending | DiskBytes::Stored(_) => None,
        };
        let gib = upload.or(self.size_gib())?;
        (self.kind == DiskKind::Disk).then(|| Performance::of(&self.spec, gib))
    }

    /// The access that is open at `now`.
    pub fn open_access(&self, now: Timestamp) -> Option<&DiskAccess> {
        self.access.as_ref().filter(|access| now < access.expires)
    }

    /// The size in bytes that the disk has yet to grow to: a VHD of 20 MiB that was asked for as 1 GB becomes 1 GiB.
    pub fn grows_to(&self) -> Option<u64> {
        let content = self.content()?;
        self.spec.size_gib.map(|gib| gib * GIB).filter(|asked| *asked > content.size_bytes)
    }

    /// Opens an access.
    ///
    /// # Errors
    /// Another is open, the disk is in no state for it, or its policy denies it.
    pub fn grant(&mut self, access: DiskAccess, now: Timestamp) -> Result<(), Violation> {
        self.check_settled("grant access to")?;
        self.check_policy()?;
        let (kind, name) = (self.kind_name(), &self.name);
        match (&self.bytes, access.mode) {
            (DiskBytes::Upload { .. }, AccessMode::Write) | (DiskBytes::Stored(_), AccessMode::Read) => {}
            (DiskBytes::Upload { .. }, AccessMode::Read) => {
                return Err(not_allowed(format!(
                    "Read access to {kind} {name} is not possible while it waits for its upload. Request access 'Write', upload \
                     the VHD and end the access first."
                )));
            }
            (DiskBytes::Stored(_), AccessMode::Write) => {
                return Err(not_allowed(format!(
                    "Write access to {kind} {name} is not possible: only a disk that was created with createOption 'Upload' can be \
                     written, until its upload has ended."
                )));
            }
            (DiskBytes::Pending | DiskBytes::Committing { .. }, _) => {
                return Err(not_allowed(format!(
                    "{kind} {name} has no content yet, so there is nothing to access."
                )));
            }
        }
        if self.open_access(now).is_some() {
            return Err(Violation::of(
                Rule::Conflict,
                format!(
                    "There is an active shared access signature outstanding for {kind} {name}. Call EndGetAccess before requesting \
                     another one."
                ),
            ));
        }
        self.access_generation += 1;
        self.access = Some(access);
        Ok(())
    }

    /// Ends the access. `true`: an upload has ended with it, which is now to be stored.
    ///
    /// # Errors
    /// While other work is in hand.
    pub fn end_access(&mut self) -> Result<bool, Violation> {
        self.check_settled("end access to")?;
        self.access_generation += 1;
        let Some(access) = self.access.take() else { return Ok(false) };
        match (access.mode, &self.bytes) {
            (AccessMode::Write, DiskBytes::Upload { bytes }) => {
                self.bytes = DiskBytes::Committing { bytes: *bytes };
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Checks that it may be deleted, attached or resized.
    ///
    /// # Errors
    /// While an access is open or an upload is being stored.
    pub fn check_no_access(&self, now: Timestamp) -> Result<(), Violation> {
        if self.open_access(now).is_some() {
            return Err(not_allowed(format!(
                "There is an active shared access signature outstanding for {} {}. Call EndGetAccess before attaching or deleting \
                 this disk. Learn more here: aka.ms/revokeaccessapi.",
                self.kind_name(),
                self.name
            )));
        }
        Ok(())
    }

    /// Takes a PUT over this disk.
    ///
    /// # Errors
    /// What may not change, or not now.
    pub fn update(&mut self, mut new: DiskSpec, now: Timestamp) -> Result<(), Violation> {
        self.check_settled("update")?;
        let again = self.bytes == DiskBytes::Pending;
        check_location(self.kind_name(), self.name.as_str(), &self.spec.location, &new.location)?;
        if again {
            // It never got its bytes: the next PUT may say better where they are.
            new.check(self.kind)?;
            self.spec = new;
            return Ok(());
        }
        new.check_size()?;
        if !self.spec.creation.is_same(&new.creation) {
            return Err(immutable("creationData"));
        }
        let generation = self.hyper_v_generation();
        if new.hyper_v_generation.is_some() && generation.is_some() && new.hyper_v_generation != generation {
            return Err(immutable("hyperVGeneration"));
        }
        new.creation = self.spec.creation.clone();
        if let (Some(asked), Some(present)) = (new.size_gib, self.size_gib()) {
            if asked < present {
                return Err(Violation::at(
                    Rule::NotAllowed,
                    "diskSizeGB",
                    format!(
                        "The {} {} of {present} GB cannot be resized down to {asked} GB. Reducing the size is not supported, to \
                         prevent data loss; create a new disk of the smaller size.",
                        self.kind_name(),
                        self.name
                    ),
                ));
            }
            if asked > present {
                self.check_no_access(now)?;
            }
            if asked == present {
                // Clients send back what they read, which is rounded up.
                new.size_gib = self.spec.size_gib;
            }
        }
        if new.size_gib.is_some() && self.content().is_none() {
            return Err(Violation::at(
                Rule::NotAllowed,
                "diskSizeGB",
                "The size can be changed when the upload has ended and was stored.",
            ));
        }
        self.spec = new;
        Ok(())
    }

    /// `disk` or `snapshot`, for messages.
    pub fn kind_name(&self) -> &'static str {
        self.kind.name()
    }

    fn check_settled(&self, what: &str) -> Result<(), Violation> {
        let state = match (&self.provisioning, &self.bytes) {
            (ProvisioningState::Creating | ProvisioningState::Updating, _) => {
                "is being changed by another operation"
            }
            (ProvisioningState::Deleting, _) => "is being deleted",
            (_, DiskBytes::Committing { .. }) => "is storing its upload",
            _ => return Ok(()),
        };
        Err(Violation::of(
            Rule::Conflict,
            format!(
                "Cannot {what} {} {} because it {state}. Wait until that has ended and try again.",
                self.kind_name(),
                self.name
            ),
        ))
    }

    fn check_policy(&self) -> Result<(), Violation> {
        let refuse = |property: &str, why: &str| {
            let message = format!("Access to {} {} is denied: {why}", self.kind_name(), self.name);
            Err(Violation::at(Rule::NotAllowed, property, message))
        };
        match self.spec.network_access.unwrap_or(NetworkAccessPolicy::AllowAll) {
            NetworkAccessPolicy::AllowAll => {}
            NetworkAccessPolicy::DenyAll => {
                return refuse(
                    "networkAccessPolicy",
                    "its networkAccessPolicy is 'DenyAll'. Set it to 'AllowAll'.",
                );
            }
            NetworkAccessPolicy::AllowPrivate => {
                return refuse(
                    "networkAccessPolicy",
                    "its networkAccessPolicy is 'AllowPrivate', and this service has no private endpoints. Set it to 'AllowAll'.",
                );
            }
        }
        if self.spec.public_network_access == Some(false) {
            return refuse(
                "publicNetworkAccess",
                "its publicNetworkAccess is 'Disabled', and this service has no private endpoints. Set it to 'Enabled'.",
            );
        }
        if self.spec.directory_tokens == Some(true) {
            return refuse(
                "dataAccessAuthMode",
                "its dataAccessAuthMode is 'AzureActiveDirectory', which this service does not check. Set it to 'None'.",
            );
        }
        Ok(())
    }
}

impl DiskKind {
    /// `disk` or `snapshot`, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Snapshot => "snapshot",
        }
    }
}

impl DiskSpec {
    /// Checks the rules that this disk alone can break, and returns where its bytes come from.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn check(&self, kind: DiskKind) -> Result<DiskOrigin, Violation> {
        self.check_size()?;
        let origin = self.creation.origin(kind)?;
        match origin {
            DiskOrigin::Empty if self.size_gib.is_none() => Err(Violation::at(
                Rule::Parameter,
                "diskSizeGB",
                "Required parameter 'diskSizeGB' is missing (null): an empty disk has no source to take its size from.",
            )),
            DiskOrigin::Upload { .. } if self.size_gib.is_some() => Err(Violation::at(
                Rule::Parameter,
                "diskSizeGB",
                "Parameter 'diskSizeGB' is not allowed with createOption 'Upload': creationData.uploadSizeBytes says the size. Resize \
                 the disk after the upload.",
            )),
            origin => Ok(origin),
        }
    }

    fn check_size(&self) -> Result<(), Violation> {
        match self.size_gib.filter(|gib| !(1..=DISK_GIB_MAX).contains(gib)) {
            None => Ok(()),
            Some(gib) => {
                let shown = i64::try_from(gib).unwrap_or(i64::MAX);
                Err(Violation::out_of_range("diskSizeGB", shown, 1, DISK_GIB_MAX as i64))
            }
        }
    }

    /// Size in bytes that was asked for.
    pub fn size_bytes(&self) -> Option<u64> {
        self.size_gib.map(|gib| gib * GIB)
    }
}

/// A reference as clients write them: with or without the slash in front (Microsoft's own examples have none).
pub(crate) fn resource(text: &str, target: &str) -> Result<ResourceRef, Violation> {
    let text = if text.starts_with('/') { text.to_owned() } else { format!("/{text}") };
    ResourceRef::parse(&text, target)
}

fn immutable(property: &str) -> Violation {
    Violation::at(Rule::Immutable, property, format!("Changing property '{property}' is not allowed."))
}

fn not_allowed(message: String) -> Violation {
    Violation::of(Rule::NotAllowed, message)
}

#[cfg(test)]
mod tests;
