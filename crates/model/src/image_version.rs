//! Image versions: what is published, and where.

mod state;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use state::{AggregateReplication, RegionReplication, VersionContent, VersionState};

use crate::Timestamp;
use crate::gallery::check_location;
use crate::image_definition::check_end_of_life;
use crate::reference::ResourceRef;
use crate::region::Region;
use crate::tags::Tags;
use crate::version_name::VersionName;
use crate::violation::{Rule, Violation};

/// Most replicas in one region (RULES.md 2B).
pub const REPLICAS_MAX: i64 = 100;
/// Most target regions of one version.
pub const TARGET_REGIONS_MAX: usize = 100;
/// Most data disks of one version.
pub const DATA_DISKS_MAX: usize = 64;
/// Highest LUN.
pub const LUN_MAX: i64 = 63;

/// Redundancy of the stored bytes within a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageAccountType {
    /// One zone.
    StandardLrs,
    /// Three zones.
    StandardZrs,
    /// One zone, fast.
    PremiumLrs,
    /// One zone, second generation.
    PremiumV2Lrs,
}

/// How a version is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicationMode {
    /// All bytes to all regions.
    Full,
    /// Test only: one region, bytes stay with the source.
    Shallow,
}

/// How the host caches a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostCaching {
    /// Not at all.
    None,
    /// Reads.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// Where one disk of a version comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSource {
    /// A managed disk or snapshot; with `uri` an older spelling of `storage_account`.
    pub id: Option<ResourceRef>,
    /// A VHD.
    pub uri: Option<String>,
    /// The storage account of that VHD.
    pub storage_account: Option<ResourceRef>,
}

/// A disk of a version, as the user wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskImage {
    /// `None`: the disk comes from the version's source.
    pub source: Option<DiskSource>,
    /// `None`: `ReadWrite` for the OS disk, `ReadOnly` for data disks.
    pub host_caching: Option<HostCaching>,
}

/// A data disk of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataDiskImage {
    /// Logical unit, distinct among the data disks.
    pub lun: u8,
    /// The disk.
    pub disk: DiskImage,
}

/// Where a version comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionSource {
    /// A managed image, a VM or another version (`source.id`).
    Resource(ResourceRef),
    /// A VM (`source.virtualMachineId`).
    VirtualMachine(ResourceRef),
    /// A community gallery's image (`source.communityGalleryImageId`).
    Community(String),
    /// Disk by disk.
    Disks {
        /// OS disk.
        os: DiskImage,
        /// Data disks.
        data: Vec<DataDiskImage>,
    },
    /// A run of this image template: `source` is empty on the wire.
    ImageTemplate(ResourceRef),
}

/// One region of the publishing profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRegion {
    /// The region.
    pub region: Region,
    /// `None`: the profile's `replica_count`.
    pub replica_count: Option<u32>,
    /// `None`: the profile's.
    pub storage_account_type: Option<StorageAccountType>,
    /// `None`: the profile's. A value here wins (RULES.md 2B).
    pub exclude_from_latest: Option<bool>,
}

/// Where a version is published and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishingProfile {
    /// Never empty: without any in the request it is the home region.
    pub target_regions: Vec<TargetRegion>,
    /// Replicas in a region that does not say; 1 by default.
    pub replica_count: u32,
    /// Whether `latest` skips this version.
    pub exclude_from_latest: bool,
    /// Redundancy in a region that does not say.
    pub storage_account_type: StorageAccountType,
    /// `None`: `Full`, and not echoed.
    pub replication_mode: Option<ReplicationMode>,
    /// Informational, unless deletion is blocked until then.
    pub end_of_life: Option<Timestamp>,
}

/// Guards against accidents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SafetyProfile {
    /// Whether regions may be taken out of the profile. Echoed; Azure's clients take regions out without it.
    pub allow_deletion_of_replicated_locations: bool,
    /// `None`: never asked for, and not echoed.
    pub block_deletion_before_end_of_life: Option<bool>,
}

/// What a user writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVersionSpec {
    /// Home region.
    pub location: Region,
    /// Tags.
    pub tags: Tags,
    /// Where and how.
    pub publishing: PublishingProfile,
    /// `None` only in an update, which may leave it out: the version keeps its source.
    pub source: Option<VersionSource>,
    /// Guards.
    pub safety: SafetyProfile,
}

/// An image version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVersion {
    /// Its name.
    pub name: VersionName,
    /// What was asked for. `source` is always present.
    pub spec: ImageVersionSpec,
    /// When it was accepted; Azure calls it the published date from the first answer on.
    pub published: Timestamp,
    /// Where it stands.
    pub state: VersionState,
    /// How many physical copies there are, in the regions of which that is known.
    #[serde(default)]
    pub copies: BTreeMap<Region, PhysicalCopies>,
}

/// Copies of a version in the zones of one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhysicalCopies {
    /// Zones that held it when somebody last looked.
    pub held: usize,
    /// Zones that shall hold it: as many as replicas, if the region has so many.
    pub wanted: usize,
}

impl std::fmt::Display for PhysicalCopies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { held, wanted } = *self;
        match (held, wanted) {
            (1, 1) => f.write_str("1 physical copy"),
            _ if held >= wanted => write!(f, "{held} physical copies"),
            _ => write!(
                f,
                "{held} of {wanted} physical copies; the rest is made when its zones can be reached"
            ),
        }
    }
}

impl ImageVersion {
    /// A version that was just accepted.
    pub fn create(name: VersionName, spec: ImageVersionSpec, now: Timestamp) -> Self {
        Self { name, spec, published: now, state: VersionState::Creating, copies: BTreeMap::new() }
    }

    /// Checks a PUT over this version and returns the spec to keep: what an update may leave out stays
    /// (RULES.md 2B "Updatable", 2D 20, 39).
    ///
    /// # Errors
    /// The first property that may not change.
    pub fn updated_spec(&self, new: ImageVersionSpec) -> Result<ImageVersionSpec, Violation> {
        let old = &self.spec;
        if matches!(self.state, VersionState::Deleting { .. }) {
            return Err(Violation::of(
                Rule::NotAllowed,
                format!(
                    "Operation 'Update Gallery Image Version' is not on allowed on {}; since it is marked for deletion. You can \
                     only retry the Delete operation (or wait for an ongoing one to complete)",
                    self.name
                ),
            ));
        }
        check_location("galleryImageVersion", &self.name.to_string(), &old.location, &new.location)?;
        if old.publishing.storage_account_type != new.publishing.storage_account_type {
            return Err(immutable("publishingProfile.storageAccountType"));
        }
        for region in &new.publishing.target_regions {
            let before = old.publishing.target_regions.iter().find(|known| known.region == region.region);
            if before.is_some_and(|before| {
                old.publishing.storage_account_type_in(before)
                    != new.publishing.storage_account_type_in(region)
            }) {
                return Err(immutable("publishingProfile.targetRegions.storageAccountType"));
            }
        }
        let mode = |profile: &PublishingProfile| profile.replication_mode.unwrap_or(ReplicationMode::Full);
        if mode(&old.publishing) != mode(&new.publishing) {
            return Err(immutable("publishingProfile.replicationMode"));
        }
        let source = match (&old.source, new.source) {
            (old, None) => old.clone(),
            (Some(old), Some(new)) => Some(old.check_update(new)?),
            (None, new) => new,
        };
        Ok(ImageVersionSpec { source, ..new })
    }

    /// Checks that this version may be deleted (RULES.md 2D, 43).
    ///
    /// # Errors
    /// While its safety profile blocks it.
    pub fn check_delete(&self, now: Timestamp) -> Result<(), Violation> {
        let blocked = self.spec.safety.block_deletion_before_end_of_life == Some(true);
        if blocked && self.spec.publishing.end_of_life.is_some_and(|end| now < end) {
            return Err(Violation::of(
                Rule::BlockedBeforeEndOfLife,
                "Deletion of Gallery image version is not allowed because the image is enabled for \
                 blockDeletionBeforeEndOfLife and its endOfLifeDate has not reached yet",
            ));
        }
        Ok(())
    }
}

impl VersionSource {
    /// The source after a PUT over it: properties that clients drop from what they read are kept
    /// (CLIENTS.md 5.4), others may not change.
    fn check_update(&self, new: Self) -> Result<Self, Violation> {
        match (self, new) {
            (Self::Disks { os, data }, Self::Disks { os: new_os, data: new_data }) => {
                if new_os.source.is_some() && new_os.source != os.source {
                    return Err(immutable("storageProfile.osDiskImage.source.id"));
                }
                let luns = |disks: &[DataDiskImage]| disks.iter().map(|disk| disk.lun).collect::<Vec<_>>();
                if !new_data.is_empty() && luns(data) != luns(&new_data) {
                    return Err(Violation::at(
                        Rule::Immutable,
                        "galleryImageVersion.properties.storageProfile.dataDiskImages",
                        "Adding new Data Disks or changing the LUN of a Data Disk in an existing Image is not allowed",
                    ));
                }
                for (old, new) in data.iter().zip(&new_data) {
                    if new.disk.source.is_some() && new.disk.source != old.disk.source {
                        return Err(immutable("storageProfile.dataDiskImages.source.id"));
                    }
                }
                Ok(self.clone())
            }
            (old, new) if *old == new => Ok(new),
            _ => Err(immutable("storageProfile.source.id")),
        }
    }
}

impl PublishingProfile {
    /// Replicas that a region shall have.
    pub fn replicas_in(&self, region: &TargetRegion) -> u32 {
        region.replica_count.unwrap_or(self.replica_count)
    }

    /// Redundancy that a region shall have.
    pub fn storage_account_type_in(&self, region: &TargetRegion) -> StorageAccountType {
        region.storage_account_type.unwrap_or(self.storage_account_type)
    }

    /// Whether `latest` skips the version when asked in `region`.
    pub fn excluded_from_latest_in(&self, region: &Region) -> bool {
        let own = self.target_regions.iter().find(|target| target.region == *region);
        own.and_then(|target| target.exclude_from_latest).unwrap_or(self.exclude_from_latest)
    }
}

impl ImageVersionSpec {
    /// Checks the rules that this version alone can break (RULES.md 2D, 12, 17, 18, 21, 22, 34, 38).
    ///
    /// # Errors
    /// The first rule broken.
    pub fn check(&self, now: Timestamp) -> Result<(), Violation> {
        self.publishing.check(&self.location)?;
        check_end_of_life(self.publishing.end_of_life, now, "properties.publishingProfile.endOfLifeDate")?;
        match &self.source {
            Some(VersionSource::Disks { os, data }) => check_disks(os, data),
            Some(_) => Ok(()),
            None => Err(Violation::at(
                Rule::Parameter,
                "properties.storageProfile",
                "The gallery artifact version source can only be specified either directly under storageProfile or within \
                 individual OS or data disks. One and only one source type (user image, snapshot, disk, virtual machine) can \
                 be provided",
            )),
        }
    }
}

impl PublishingProfile {
    fn check(&self, home: &Region) -> Result<(), Violation> {
        let target = "properties.publishingProfile.targetRegions";
        let names: Vec<&str> = self.target_regions.iter().map(|region| region.region.as_str()).collect();
        if names.len() > TARGET_REGIONS_MAX {
            return Err(Violation::out_of_range(target, names.len() as i64, 1, TARGET_REGIONS_MAX as i64));
        }
        let mut distinct = names.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if distinct.len() < names.len() {
            return Err(Violation::at(
                Rule::Parameter,
                target,
                "Duplicate regions are not allowed in target publishing regions",
            ));
        }
        if !names.contains(&home.as_str()) {
            return Err(Violation::at(
                Rule::Parameter,
                target,
                format!(
                    "Gallery image version publishing profile regions {} must contain the location of image version {home}",
                    names.join(",")
                ),
            ));
        }
        let count = i64::from(self.replica_count);
        if !(1..=REPLICAS_MAX).contains(&count) {
            return Err(Violation::out_of_range(
                "properties.publishingProfile.replicaCount",
                count,
                1,
                REPLICAS_MAX,
            ));
        }
        for region in &self.target_regions {
            let count = i64::from(self.replicas_in(region));
            if !(1..=REPLICAS_MAX).contains(&count) {
                let target = format!("{target}.regionalReplicaCount");
                return Err(Violation::out_of_range(&target, count, 1, REPLICAS_MAX));
            }
        }
        if self.replication_mode == Some(ReplicationMode::Shallow) && names.len() > 1 {
            return Err(Violation::at(
                Rule::Parameter,
                target,
                "Replication mode 'Shallow' supports one target region, the location of the image version.",
            ));
        }
        Ok(())
    }
}

fn check_disks(os: &DiskImage, data: &[DataDiskImage]) -> Result<(), Violation> {
    if os.source.is_none() {
        return Err(Violation::at(
            Rule::Parameter,
            "properties.storageProfile.osDiskImage.source",
            "Required parameter 'osDiskImage.source' is missing (null): data disks alone do not make an image version.",
        ));
    }
    if data.len() > DATA_DISKS_MAX {
        let target = "properties.storageProfile.dataDiskImages";
        return Err(Violation::out_of_range(target, data.len() as i64, 0, DATA_DISKS_MAX as i64));
    }
    let mut luns: Vec<u8> = data.iter().map(|disk| disk.lun).collect();
    luns.sort_unstable();
    if luns.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Violation::at(
            Rule::Parameter,
            "properties.storageProfile.dataDiskImages.lun",
            "Duplicated lun numbers have been detected in the input data disks. Lun number must be unique for each data disk",
        ));
    }
    let all = || std::iter::once(&os.source).chain(data.iter().map(|disk| &disk.disk.source)).flatten();
    for (index, source) in all().enumerate() {
        let earlier = all().take(index);
        // A VHD source names its storage account in `id`, which two disks may share.
        if source.uri.is_none() && source.id.is_some() && earlier.clone().any(|other| other.id == source.id) {
            return Err(Violation::at(
                Rule::Parameter,
                "properties.storageProfile",
                "Duplicated source ids are found in the input disks. Source id should be unique for each disk",
            ));
        }
        if let Some(uri) = &source.uri
            && earlier.into_iter().any(|other| other.uri.as_ref() == Some(uri))
        {
            return Err(Violation::at(
                Rule::Parameter,
                "properties.storageProfile",
                format!("OSDiskImage and DataDiskImage cannot point to same blob {uri}"),
            ));
        }
    }
    Ok(())
}

fn immutable(property: &str) -> Violation {
    Violation::at(
        Rule::Immutable,
        format!("galleryImageVersion.properties.{property}"),
        format!("Changing property 'galleryImageVersion.properties.{property}' is not allowed"),
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn spec(regions: &[&str]) -> ImageVersionSpec {
        let target = |name: &&str| TargetRegion {
            region: Region::parse(name).unwrap(),
            replica_count: None,
            storage_account_type: None,
            exclude_from_latest: None,
        };
        ImageVersionSpec {
            location: Region::parse("eastus").unwrap(),
            tags: Tags::default(),
            publishing: PublishingProfile {
                target_regions: regions.iter().map(target).collect(),
                replica_count: 1,
                exclude_from_latest: false,
                storage_account_type: StorageAccountType::StandardLrs,
                replication_mode: None,
                end_of_life: None,
            },
            source: Some(VersionSource::Resource(ResourceRef::parse("/images/a", "id").unwrap())),
            safety: SafetyProfile::default(),
        }
    }

    fn version(regions: &[&str]) -> ImageVersion {
        ImageVersion::create(VersionName::parse("1.0.0").unwrap(), spec(regions), Timestamp::UNIX_EPOCH)
    }

    fn refusal(spec: &ImageVersionSpec) -> String {
        spec.check(Timestamp::UNIX_EPOCH).unwrap_err().message
    }

    #[test]
    fn regions_are_checked() {
        assert_eq!(spec(&["eastus", "westus"]).check(Timestamp::UNIX_EPOCH), Ok(()));
        assert_eq!(
            refusal(&spec(&["westus", "westus2"])),
            "Gallery image version publishing profile regions westus,westus2 must contain the location of image version eastus"
        );
        assert_eq!(
            refusal(&spec(&["eastus", "East US"])),
            "Duplicate regions are not allowed in target publishing regions"
        );
        let mut many = spec(&["eastus"]);
        many.publishing.target_regions[0].replica_count = Some(101);
        assert_eq!(
            refusal(&many),
            "The value 101 of parameter properties.publishingProfile.targetRegions.regionalReplicaCount is out of range. The value must be between 1 and 100, inclusive"
        );
    }

    #[test]
    fn disks_are_checked() {
        let disk = |id: &str| DiskImage {
            source: Some(DiskSource {
                id: Some(ResourceRef::parse(id, "id").unwrap()),
                uri: None,
                storage_account: None,
            }),
            host_caching: None,
        };
        let mut same = spec(&["eastus"]);
        same.source = Some(VersionSource::Disks {
            os: disk("/a"),
            data: vec![DataDiskImage { lun: 0, disk: disk("/A") }],
        });
        assert!(refusal(&same).starts_with("Duplicated source ids"));
        same.source = Some(VersionSource::Disks {
            os: disk("/a"),
            data: vec![
                DataDiskImage { lun: 1, disk: disk("/b") },
                DataDiskImage { lun: 1, disk: disk("/c") },
            ],
        });
        assert!(refusal(&same).starts_with("Duplicated lun numbers"));
    }

    #[test]
    fn an_update_keeps_the_source_and_may_change_regions() {
        let old = version(&["eastus"]);
        let new = ImageVersionSpec { source: None, ..spec(&["westus2", "eastus"]) };
        let kept = old.updated_spec(new).unwrap();
        assert_eq!(kept.source, old.spec.source);
        assert_eq!(kept.publishing.target_regions.len(), 2);
    }

    #[test]
    fn an_update_may_not_change_source_or_storage() {
        let old = version(&["eastus"]);
        let mut new = spec(&["eastus"]);
        new.source = Some(VersionSource::Resource(ResourceRef::parse("/images/b", "id").unwrap()));
        assert_eq!(
            old.updated_spec(new).unwrap_err().message,
            "Changing property 'galleryImageVersion.properties.storageProfile.source.id' is not allowed"
        );
        let mut new = spec(&["eastus"]);
        new.publishing.target_regions[0].storage_account_type = Some(StorageAccountType::StandardZrs);
        assert_eq!(old.updated_spec(new).unwrap_err().rule, Rule::Immutable);
    }

    #[test]
    fn end_of_life_can_block_deletion() {
        let mut blocked = version(&["eastus"]);
        blocked.spec.safety.block_deletion_before_end_of_life = Some(true);
        blocked.spec.publishing.end_of_life = Some(Timestamp::from_timestamp(100, 0).unwrap());
        assert!(blocked.check_delete(Timestamp::from_timestamp(99, 0).unwrap()).is_err());
        assert!(blocked.check_delete(Timestamp::from_timestamp(100, 0).unwrap()).is_ok());
    }
}
