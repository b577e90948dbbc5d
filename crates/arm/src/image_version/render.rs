//! Model → answer.

use model::image_version::{
    AggregateReplication, DataDiskImage, DiskImage, HostCaching, ImageVersion, PublishingProfile,
    RegionReplication, TargetRegion, VersionContent, VersionSource,
};
use serde_json::{Value, json};

use crate::common::{self, Context, Object};
use crate::error::ArmError;
use crate::names::{CACHINGS, REPLICATION_MODES, STORAGE_ACCOUNT_TYPES};
use crate::time;

/// What `$expand` asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expand {
    /// `ReplicationStatus`.
    pub replication_status: bool,
}

impl Expand {
    /// Reads the query parameter: a list with commas. `UefiSettings` and `ValidationProfile` are accepted, and
    /// there is nothing to show for them.
    ///
    /// # Errors
    /// For any other word.
    pub fn parse(text: Option<&str>) -> Result<Self, ArmError> {
        let mut expand = Self::default();
        for word in text.unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word.to_ascii_lowercase().as_str() {
                "replicationstatus" => expand.replication_status = true,
                "uefisettings" | "validationprofile" => {}
                _ => {
                    let shown: String = word.chars().take(60).collect();
                    let message = format!(
                        "The value '{shown}' of parameter '$expand' is not allowed. Allowed values are: ReplicationStatus, UefiSettings, ValidationProfile."
                    );
                    return Err(ArmError::invalid_parameter("$expand", message));
                }
            }
        }
        Ok(expand)
    }
}

/// An image version as Compute answers it.
pub fn render(version: &ImageVersion, expand: Expand, context: &Context<'_>) -> Value {
    let spec = &version.spec;
    let safety = Object::new()
        .set("reportedForPolicyViolation", false)
        .set("allowDeletionOfReplicatedLocations", spec.safety.allow_deletion_of_replicated_locations)
        .maybe("blockDeletionBeforeEndOfLife", spec.safety.block_deletion_before_end_of_life);
    let properties = Object::new()
        .set("publishingProfile", publishing_profile(version))
        .set("storageProfile", storage_profile(spec.source.as_ref(), version.state.content()))
        .set("safetyProfile", safety)
        .maybe("replicationStatus", expand.replication_status.then(|| replication_status(version)))
        .set("provisioningState", version.state.name());
    common::compute_resource(context, &spec.location, &spec.tags, properties).into()
}

fn publishing_profile(version: &ImageVersion) -> Value {
    let profile = &version.spec.publishing;
    let regions: Vec<Value> =
        profile.target_regions.iter().map(|region| target_region(profile, region)).collect();
    Object::new()
        .set("targetRegions", regions)
        .set("replicaCount", profile.replica_count)
        .set("excludeFromLatest", profile.exclude_from_latest)
        .set("publishedDate", time::compute(version.published))
        .maybe("endOfLifeDate", profile.end_of_life.map(time::compute))
        .set("storageAccountType", STORAGE_ACCOUNT_TYPES.name(profile.storage_account_type))
        .maybe("replicationMode", profile.replication_mode.map(|mode| REPLICATION_MODES.name(mode)))
        .into()
}

fn target_region(profile: &PublishingProfile, region: &TargetRegion) -> Value {
    Object::new()
        .set("name", region.region.display_name())
        .set("regionalReplicaCount", profile.replicas_in(region))
        .set("storageAccountType", STORAGE_ACCOUNT_TYPES.name(profile.storage_account_type_in(region)))
        .maybe("excludeFromLatest", region.exclude_from_latest)
        .into()
}

/// Sizes appear once the bytes are stored; a disk whose bytes come from the version's source has an empty source
/// of its own (REFERENCE.md 5.3).
fn storage_profile(source: Option<&VersionSource>, content: Option<&VersionContent>) -> Value {
    let whole = match source {
        Some(VersionSource::Resource(id)) => Some(json!({ "id": id.as_str() })),
        Some(VersionSource::VirtualMachine(id)) => Some(json!({ "virtualMachineId": id.as_str() })),
        Some(VersionSource::Community(id)) => Some(json!({ "communityGalleryImageId": id })),
        Some(VersionSource::ImageTemplate(_)) => Some(json!({})),
        Some(VersionSource::Disks { .. }) | None => None,
    };
    let (os, data) = match source {
        Some(VersionSource::Disks { os, data }) => (Some(os), data.as_slice()),
        _ => (None, [].as_slice()),
    };
    let os_size = content.map(|content| content.os_disk.size_gib());
    let os_disk = (os.is_some() || os_size.is_some()).then(|| {
        let caching = os.and_then(|disk| disk.host_caching).unwrap_or(HostCaching::ReadWrite);
        Object::new()
            .maybe("sizeInGB", os_size)
            .set("hostCaching", CACHINGS.name(caching))
            .set("source", os.map_or_else(|| json!({}), disk_source))
    });
    let data_disks = data_disks(data, content);
    Object::new()
        .maybe("source", whole)
        .maybe("osDiskImage", os_disk)
        .maybe("dataDiskImages", (!data_disks.is_empty()).then_some(data_disks))
        .into()
}

fn data_disks(written: &[DataDiskImage], content: Option<&VersionContent>) -> Vec<Value> {
    let stored = content.map(|content| &content.data_disks);
    if written.is_empty() {
        let disk = |(lun, disk): (&u8, &model::content::DiskContent)| json!({ "lun": lun, "sizeInGB": disk.size_gib(), "hostCaching": "None" });
        return stored.into_iter().flatten().map(disk).collect();
    }
    let disk = |disk: &DataDiskImage| {
        let caching = disk.disk.host_caching.unwrap_or(HostCaching::ReadOnly);
        Object::new()
            .set("lun", disk.lun)
            .maybe(
                "sizeInGB",
                stored.and_then(|stored| stored.get(&disk.lun)).map(|stored| stored.size_gib()),
            )
            .set("hostCaching", CACHINGS.name(caching))
            .set("source", disk_source(&disk.disk))
            .into()
    };
    written.iter().map(disk).collect()
}

fn disk_source(disk: &DiskImage) -> Value {
    let Some(source) = &disk.source else { return json!({}) };
    Object::new()
        .maybe("uri", source.uri.as_deref())
        .maybe("storageAccountId", source.storage_account.as_ref().map(|id| id.as_str()))
        .maybe("id", source.id.as_ref().map(|id| id.as_str()))
        .into()
}

fn replication_status(version: &ImageVersion) -> Value {
    let summary: Vec<Value> = version
        .state
        .regions()
        .map(|(region, state)| {
            let (word, details, progress) = match state {
                RegionReplication::Replicating { progress_percent } => ("Replicating", "", (*progress_percent).min(100)),
                RegionReplication::Completed => ("Completed", "", 100),
                RegionReplication::Failed { details } => ("Failed", details.as_str(), 0),
            };
            // Azure has nothing to say of a region that is done; we say what its replicas are.
            let copies = version.copies.get(region).filter(|_| *state == RegionReplication::Completed);
            let details = copies.map_or_else(|| details.to_owned(), ToString::to_string);
            json!({ "region": region.display_name(), "state": word, "details": details, "progress": progress })
        })
        .collect();
    let aggregate = match version.state.aggregate() {
        AggregateReplication::Unknown => "Unknown",
        AggregateReplication::InProgress => "InProgress",
        AggregateReplication::Completed => "Completed",
        AggregateReplication::Failed => "Failed",
    };
    json!({ "aggregatedState": aggregate, "summary": summary })
}
