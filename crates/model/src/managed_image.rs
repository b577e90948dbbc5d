//! Managed images: an OS disk, and perhaps data disks, of one region, which VMs and image versions are made from.
//!
//! ```text
//!  Pending ──▶ Stored                        (VHDs, disks and snapshots, by a PUT)
//!                │ ▲
//!   a run's ─▶ Built                         (an image template's distributor)
//! ```

mod source;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use source::{ImageDiskOrigin, ImageDiskSource};

use crate::Timestamp;
use crate::content::DiskContent;
use crate::gallery::check_location;
use crate::image_definition::{Architecture, HyperVGeneration, OsState, OsType};
use crate::image_version::{DATA_DISKS_MAX, HostCaching, VersionContent};
use crate::managed_disk::{DISK_GIB_MAX, DiskSku, SourceFacts};
use crate::names::DiskName;
use crate::provisioning::ProvisioningState;
use crate::reference::{ManifestRef, ResourceRef};
use crate::region::Region;
use crate::tags::Tags;
use crate::violation::{Rule, Violation};

/// One disk of an image, as a user writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDisk {
    /// Where its bytes come from; empty for the result of a template's run.
    pub source: ImageDiskSource,
    /// `None`: not written, which is `None`.
    pub caching: Option<HostCaching>,
    /// `None`: the source's size. A size that is written must be the source's.
    pub size_gib: Option<u64>,
    /// `None`: `Standard_LRS`.
    pub storage: Option<DiskSku>,
}

/// The OS disk of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOsDisk {
    /// Operating system family.
    pub os_type: OsType,
    /// Whether VMs provision it anew.
    pub os_state: OsState,
    /// The disk.
    pub disk: ImageDisk,
}

/// `storageProfile`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStorage {
    /// The OS disk.
    pub os_disk: ImageOsDisk,
    /// Data disks with their LUNs, in the order in which they were written.
    pub data_disks: Vec<(u8, ImageDisk)>,
    /// Whether every zone has a copy; `None`: not written, which is no.
    pub zone_resilient: Option<bool>,
}

/// What a user writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// Home region, where the bytes are.
    pub location: Region,
    /// Tags.
    pub tags: Tags,
    /// `None`: the source's if it is known, else V1.
    pub hyper_v_generation: Option<HyperVGeneration>,
    /// A VM to capture. Read, and refused by the service.
    pub source_vm: Option<ResourceRef>,
    /// The disks; `None` only beside `source_vm`.
    pub storage: Option<ImageStorage>,
}

/// Where an image's bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageBytes {
    /// Nowhere yet: a job brings them from the sources.
    Pending,
    /// A template's run made them, in the store of its region; a job brings them to the image's.
    Built {
        /// The bytes.
        content: VersionContent,
        /// The run's region.
        from: Region,
    },
    /// In the store of the image's region.
    Stored(VersionContent),
}

/// A managed image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagedImage {
    /// Its name.
    pub name: DiskName,
    /// Names its references in the store, so that an image made anew under the same name is another.
    pub unique_id: Uuid,
    /// When it was accepted.
    pub created: Timestamp,
    /// What was asked for.
    pub spec: ImageSpec,
    /// What the OS disk's source told.
    pub facts: SourceFacts,
    /// Its bytes.
    pub bytes: ImageBytes,
    /// Content that it had before a run renewed it, whose references are yet to be removed.
    pub retired: Vec<ManifestRef>,
    /// Where it stands.
    pub provisioning: ProvisioningState,
}

impl ManagedImage {
    /// An image that was just accepted.
    pub fn create(name: DiskName, spec: ImageSpec, unique_id: Uuid, now: Timestamp) -> Self {
        Self {
            name,
            unique_id,
            created: now,
            spec,
            facts: SourceFacts::default(),
            bytes: ImageBytes::Pending,
            retired: Vec::new(),
            provisioning: ProvisioningState::Creating,
        }
    }

    /// The stored bytes, if they are in the image's region.
    pub fn content(&self) -> Option<&VersionContent> {
        match &self.bytes {
            ImageBytes::Stored(content) => Some(content),
            ImageBytes::Pending | ImageBytes::Built { .. } => None,
        }
    }

    /// The manifests of its disks, those included that are yet to be brought to its region.
    pub fn manifests(&self) -> Vec<&ManifestRef> {
        match &self.bytes {
            ImageBytes::Stored(content) | ImageBytes::Built { content, .. } => {
                disks(content).map(|disk| &disk.manifest).collect()
            }
            ImageBytes::Pending => Vec::new(),
        }
    }

    /// Firmware: as written, else the source's, else V1.
    pub fn hyper_v_generation(&self) -> HyperVGeneration {
        self.spec.hyper_v_generation.or(self.facts.hyper_v_generation).unwrap_or(HyperVGeneration::V1)
    }

    /// Processor: the source's, else x86-64.
    pub fn architecture(&self) -> Architecture {
        self.facts.architecture.unwrap_or(Architecture::X64)
    }

    /// The storage that decides how many copies a disk of it has.
    pub fn sku_of(&self, lun: Option<u8>) -> DiskSku {
        let Some(storage) = &self.spec.storage else { return DiskSku::StandardLrs };
        if storage.zone_resilient == Some(true) {
            return DiskSku::StandardZrs;
        }
        storage.disk(lun).and_then(|disk| disk.storage).unwrap_or(DiskSku::StandardLrs)
    }

    /// Takes a PUT over this image. One that never got its bytes takes all of it: the next PUT may say better where
    /// they are.
    ///
    /// # Errors
    /// What may not change.
    pub fn update(&mut self, mut new: ImageSpec) -> Result<(), Violation> {
        check_location("image", self.name.as_str(), &self.spec.location, &new.location)?;
        if self.content().is_none() {
            new.check()?;
            self.spec = new;
            self.bytes = ImageBytes::Pending;
            return Ok(());
        }
        if new.source_vm != self.spec.source_vm {
            return Err(immutable("sourceVirtualMachine"));
        }
        let generation = self.hyper_v_generation();
        if new.hyper_v_generation.is_some_and(|asked| asked != generation) {
            return Err(immutable("hyperVGeneration"));
        }
        new.hyper_v_generation = self.spec.hyper_v_generation;
        new.storage = match (new.storage, &self.spec.storage) {
            (Some(new), Some(present)) => Some(self.same_storage(new, present)?),
            (_, present) => present.clone(),
        };
        self.spec = new;
        Ok(())
    }

    /// The new profile with the sources as they are kept; caching alone may differ.
    fn same_storage(&self, new: ImageStorage, present: &ImageStorage) -> Result<ImageStorage, Violation> {
        if (new.os_disk.os_type, new.os_disk.os_state) != (present.os_disk.os_type, present.os_disk.os_state)
        {
            return Err(immutable("storageProfile.osDisk.osType"));
        }
        let luns =
            |storage: &ImageStorage| storage.data_disks.iter().map(|(lun, _)| *lun).collect::<Vec<_>>();
        let zones = |storage: &ImageStorage| storage.zone_resilient.unwrap_or(false);
        if luns(&new) != luns(present) {
            return Err(immutable("storageProfile.dataDisks"));
        }
        if new.zone_resilient.is_some() && zones(&new) != zones(present) {
            return Err(immutable("storageProfile.zoneResilient"));
        }
        let mut kept = present.clone();
        kept.os_disk.disk = self.same_disk(None, new.os_disk.disk, &present.os_disk.disk)?;
        for ((lun, disk), (_, new)) in kept.data_disks.iter_mut().zip(new.data_disks) {
            *disk = self.same_disk(Some(*lun), new, disk)?;
        }
        Ok(kept)
    }

    fn same_disk(
        &self,
        lun: Option<u8>,
        new: ImageDisk,
        present: &ImageDisk,
    ) -> Result<ImageDisk, Violation> {
        let path = disk_path(lun);
        if !new.source.is_same(&present.source) {
            return Err(immutable(&format!("{path}.{}", present.source.property())));
        }
        let size = self.content().and_then(|content| disk_of(content, lun)).map(DiskContent::size_gib);
        if new.size_gib.is_some() && new.size_gib != size {
            return Err(immutable(&format!("{path}.diskSizeGB")));
        }
        let storage = |disk: &ImageDisk| disk.storage.unwrap_or(DiskSku::StandardLrs);
        if storage(&new) != storage(present) {
            return Err(immutable(&format!("{path}.storageAccountType")));
        }
        Ok(ImageDisk { caching: new.caching, ..present.clone() })
    }

    /// Takes the result of a template's run, which a job is to bring here.
    ///
    /// # Errors
    /// When the image is in another region.
    pub fn renew(&mut self, spec: ImageSpec, facts: SourceFacts, bytes: ImageBytes) -> Result<(), Violation> {
        check_location("image", self.name.as_str(), &self.spec.location, &spec.location)?;
        let before = self.manifests().into_iter().cloned().collect::<Vec<_>>();
        self.spec = spec;
        self.facts = facts;
        self.bytes = bytes;
        self.retired.extend(before);
        self.retire_unused();
        Ok(())
    }

    /// Content that it still has is not retired.
    fn retire_unused(&mut self) {
        let used: Vec<ManifestRef> = self.manifests().into_iter().cloned().collect();
        self.retired.retain(|manifest| !used.contains(manifest));
        self.retired.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        self.retired.dedup();
    }
}

impl ImageStorage {
    /// The OS disk, or the data disk at a LUN.
    pub fn disk(&self, lun: Option<u8>) -> Option<&ImageDisk> {
        match lun {
            None => Some(&self.os_disk.disk),
            Some(lun) => self.data_disks.iter().find(|(known, _)| *known == lun).map(|(_, disk)| disk),
        }
    }

    /// Every disk; `None` is the OS disk, which comes first.
    pub fn disks(&self) -> impl Iterator<Item = (Option<u8>, &ImageDisk)> {
        let data = self.data_disks.iter().map(|(lun, disk)| (Some(*lun), disk));
        std::iter::once((None, &self.os_disk.disk)).chain(data)
    }

    /// Forgets the queries of the sources' addresses: they were used.
    pub fn forget_secrets(&mut self) {
        self.os_disk.disk.source.forget_secret();
        for (_, disk) in &mut self.data_disks {
            disk.source.forget_secret();
        }
    }
}

impl ImageSpec {
    /// Checks the rules that this image alone can break, and returns where its disks' bytes come from: by LUN, the OS disk
    /// (`None`) first.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn check(&self) -> Result<Vec<(Option<u8>, ImageDiskOrigin)>, Violation> {
        if self.source_vm.is_some() {
            return Err(Violation::at(
                Rule::Parameter,
                "sourceVirtualMachine",
                "Capturing a virtual machine is not supported by this service: make a snapshot or disk, or build the image with an \
                 image template.",
            ));
        }
        let storage = self.storage.as_ref().ok_or_else(|| missing("storageProfile"))?;
        if storage.data_disks.len() > DATA_DISKS_MAX {
            return Err(Violation::at(
                Rule::Parameter,
                "storageProfile.dataDisks",
                format!("An image has at most {DATA_DISKS_MAX} data disks."),
            ));
        }
        let mut origins: BTreeMap<Option<u8>, ImageDiskOrigin> = BTreeMap::new();
        for (lun, disk) in storage.disks() {
            let path = disk_path(lun);
            if let Some(gib) = disk.size_gib.filter(|gib| !(1..=DISK_GIB_MAX).contains(gib)) {
                let shown = i64::try_from(gib).unwrap_or(i64::MAX);
                let target = format!("{path}.diskSizeGB");
                return Err(Violation::out_of_range(&target, shown, 1, DISK_GIB_MAX as i64));
            }
            if origins.insert(lun, disk.source.origin(&path)?).is_some() {
                return Err(Violation::at(
                    Rule::Parameter,
                    "storageProfile.dataDisks.lun",
                    format!("The LUN {} is used by more than one data disk.", lun.unwrap_or_default()),
                ));
            }
        }
        Ok(origins.into_iter().collect())
    }

    /// Checks a disk's content against what was asked for.
    ///
    /// # Errors
    /// When another size was asked for than the source has.
    pub fn check_size(&self, lun: Option<u8>, content: &DiskContent) -> Result<(), Violation> {
        let asked =
            self.storage.as_ref().and_then(|storage| storage.disk(lun)).and_then(|disk| disk.size_gib);
        let size = content.size_gib();
        match asked.filter(|asked| *asked != size) {
            None => Ok(()),
            Some(asked) => Err(Violation::at(
                Rule::Parameter,
                format!("{}.diskSizeGB", disk_path(lun)),
                format!(
                    "The size of the image's disk is {asked} GB, but its source has {size} GB. Another size than the source's is not \
                     supported: leave diskSizeGB out, and give the VM or disk that is made from the image its size."
                ),
            )),
        }
    }
}

/// All disks of an image, the OS disk first.
fn disks(content: &VersionContent) -> impl Iterator<Item = &DiskContent> {
    std::iter::once(&content.os_disk).chain(content.data_disks.values())
}

/// One disk of an image; `None` is the OS disk.
pub fn disk_of(content: &VersionContent, lun: Option<u8>) -> Option<&DiskContent> {
    match lun {
        None => Some(&content.os_disk),
        Some(lun) => content.data_disks.get(&lun),
    }
}

fn disk_path(lun: Option<u8>) -> String {
    match lun {
        None => "storageProfile.osDisk".to_owned(),
        Some(lun) => format!("storageProfile.dataDisks[lun={lun}]"),
    }
}

fn immutable(property: &str) -> Violation {
    Violation::at(Rule::Immutable, property, format!("Changing property '{property}' is not allowed."))
}

fn missing(target: &str) -> Violation {
    Violation::at(Rule::Parameter, target, format!("Required parameter '{target}' is missing (null)."))
}

#[cfg(test)]
mod tests;
