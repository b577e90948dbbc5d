//! Which references the database wants in the regions' stores, and which of those that are there have lost their owner.

use std::collections::{BTreeMap, BTreeSet};

use content::ManifestId;
use model::image_version::{ImageVersion, RegionReplication, VersionContent, VersionState};
use model::managed_disk::{DiskSku, ManagedDisk};
use model::managed_image::ManagedImage;
use model::placement::CopyPlan;
use model::virtual_machine::VirtualMachine;
use model::{ManifestRef, Region};
use serde::de::DeserializeOwned;
use store::{Document, Filter, StoreError};
use uuid::Uuid;

use crate::AppState;
use crate::api::disks::TYPE as DISKS;
use crate::api::image_versions::{TYPE as VERSIONS, copy_plan};
use crate::api::images::TYPE as IMAGES;
use crate::api::snapshots::TYPE as SNAPSHOTS;
use crate::api::virtual_machines::TYPE as VIRTUAL_MACHINES;
use crate::http::error::chain;
use crate::jobs::create_disk::disk_reference;
use crate::jobs::create_managed_image::managed_image_reference;
use crate::jobs::create_virtual_machine::image_reference;
use crate::jobs::make_platform_image::{operation_resource, read_record, run_id};
use crate::jobs::replicate_image_version::{manifest_id, version_reference};

/// An image that shall be in a region for somebody.
pub(super) struct Want {
    pub(super) region: Region,
    pub(super) manifest: ManifestId,
    pub(super) owner: String,
    pub(super) plan: CopyPlan,
    /// Id of the version that it is, if it is one's.
    pub(super) version: Option<String>,
}

/// What the database says.
pub(super) struct Desired {
    pub(super) wants: Vec<Want>,
    /// By owner: where each may have references.
    owners: BTreeMap<String, Allowed>,
    /// Images of versions and managed images that somebody is at work on: a run may hold them still.
    in_flight: BTreeSet<ManifestId>,
}

enum Allowed {
    /// A job is at work on the owner: it knows.
    Anything,
    /// These alone.
    Only(BTreeSet<(Region, ManifestId)>),
}

/// What is to be said of a reference that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its owner needs it, or may.
    Kept,
    /// Its owner is gone, or does not need it any more.
    Stray,
    /// It is none of ours: the command line's, or a later version's of this program.
    Foreign,
}

impl Desired {
    /// Reads it. What was not finished in the database when this began is left to whoever is at it.
    pub(super) async fn read(state: &AppState) -> Result<Self, StoreError> {
        let mut desired = Self { wants: Vec::new(), owners: BTreeMap::new(), in_flight: BTreeSet::new() };
        for document in all::<ImageVersion>(state, VERSIONS).await? {
            desired.add_version(state, &document);
        }
        for document in all::<VirtualMachine>(state, VIRTUAL_MACHINES).await? {
            desired.add_vm(state, &document);
        }
        for ty in [DISKS, SNAPSHOTS] {
            for document in all::<ManagedDisk>(state, ty).await? {
                desired.add_disk(state, &document);
            }
        }
        for document in all::<ManagedImage>(state, IMAGES).await? {
            desired.add_image(state, &document);
        }
        for image in state.fabric.catalog().images() {
            let digest = image.recipe_digest();
            let Some(record) = read_record(state, &digest).await? else { continue };
            for region in record.regions {
                let Ok(offers) = state.fabric.offers(&region) else { continue };
                let plan = CopyPlan::everywhere(offers, &digest);
                desired.want(region, record.manifest, run_id(&digest), plan, None);
            }
        }
        Ok(desired)
    }

    fn want(
        &mut self,
        region: Region,
        manifest: ManifestId,
        owner: String,
        plan: CopyPlan,
        version: Option<&str>,
    ) {
        // Images of equal recipes are one.
        let known = |want: &Want| want.region == region && want.manifest == manifest && want.owner == owner;
        if version.is_some() || !self.wants.iter().any(known) {
            self.wants.push(Want { region, manifest, owner, plan, version: version.map(str::to_owned) });
        }
    }

    fn add_version(&mut self, state: &AppState, document: &Document<ImageVersion>) {
        let owner = version_reference(&document.id);
        let manifests = document.data.state.content().map(manifests).unwrap_or_default();
        let regions = match &document.data.state {
            VersionState::Ready { regions, .. } | VersionState::Failed { regions, .. } => regions,
            VersionState::Creating | VersionState::Replicating { .. } | VersionState::Deleting { .. } => {
                self.in_flight.extend(manifests);
                self.owners.insert(owner, Allowed::Anything);
                return;
            }
        };
        let allowed = regions.keys().chain([&document.data.spec.location]);
        let allowed =
            allowed.flat_map(|region| manifests.iter().map(|manifest| (region.clone(), *manifest))).collect();
        self.owners.insert(owner.clone(), Allowed::Only(allowed));
        for (region, _) in regions.iter().filter(|(_, state)| **state == RegionReplication::Completed) {
            let plan = copy_plan(&state.config, &document.data, document.parent.as_deref(), region);
            let plan = match plan {
                Ok(plan) => plan,
                Err(violation) => {
                    tracing::warn!(
                        version = document.id,
                        reason = violation.message,
                        "no plan for its copies"
                    );
                    continue;
                }
            };
            for manifest in &manifests {
                let id = Some(document.id.as_str());
                self.want(region.clone(), *manifest, owner.clone(), plan.clone(), id);
            }
        }
    }

    fn add_vm(&mut self, state: &AppState, document: &Document<VirtualMachine>) {
        let vm = &document.data;
        let owner = image_reference(vm);
        let manifest = vm.image.as_ref().and_then(|image| manifest_id(&image.os_disk.manifest).ok());
        if document.state.is_busy() {
            self.owners.insert(owner, Allowed::Anything);
            return;
        }
        let region = &vm.spec.location;
        let allowed = manifest.map(|manifest| (region.clone(), manifest)).into_iter().collect();
        self.owners.insert(owner.clone(), Allowed::Only(allowed));
        if let (Some(manifest), Ok(offers)) = (manifest, state.fabric.offers(region)) {
            self.want(region.clone(), manifest, owner, CopyPlan::in_place(offers), None);
        }
    }

    fn add_disk(&mut self, state: &AppState, document: &Document<ManagedDisk>) {
        let disk = &document.data;
        let owner = disk_reference(disk.unique_id);
        // An upload is brought by a job that the disk's state does not show.
        let content = disk.content().filter(|_| !document.state.is_busy());
        let Some(content) = content else {
            self.owners.insert(owner, Allowed::Anything);
            return;
        };
        let region = &disk.spec.location;
        let named = std::iter::once(&content.manifest).chain(&disk.retired);
        let named = named.filter_map(|manifest| manifest_id(manifest).ok());
        let allowed = named.map(|manifest| (region.clone(), manifest)).collect();
        self.owners.insert(owner.clone(), Allowed::Only(allowed));
        if let (Ok(manifest), Ok(offers)) = (manifest_id(&content.manifest), state.fabric.offers(region)) {
            let plan = CopyPlan::of_disk(offers, &owner, disk.spec.sku.unwrap_or(DiskSku::StandardLrs));
            self.want(region.clone(), manifest, owner, plan, None);
        }
    }

    fn add_image(&mut self, state: &AppState, document: &Document<ManagedImage>) {
        let image = &document.data;
        let owner = managed_image_reference(image.unique_id);
        let known = |manifest: &ManifestRef| manifest_id(manifest).ok();
        if document.state.is_busy() {
            self.in_flight.extend(image.manifests().into_iter().filter_map(known));
            self.owners.insert(owner, Allowed::Anything);
            return;
        }
        let region = &image.spec.location;
        let named = image.manifests().into_iter().chain(&image.retired).filter_map(known);
        let allowed = named.map(|manifest| (region.clone(), manifest)).collect();
        self.owners.insert(owner.clone(), Allowed::Only(allowed));
        let (Some(content), Ok(offers)) = (image.content(), state.fabric.offers(region)) else { return };
        let data = content.data_disks.iter().map(|(lun, disk)| (Some(*lun), disk));
        for (lun, disk) in std::iter::once((None, &content.os_disk)).chain(data) {
            let Some(manifest) = known(&disk.manifest) else { continue };
            let plan = CopyPlan::of_disk(offers, &owner, image.sku_of(lun));
            self.want(region.clone(), manifest, owner.clone(), plan, None);
        }
    }

    /// What is to be said of a reference.
    ///
    /// # Errors
    /// The database's own.
    pub(super) async fn judge(
        &self,
        state: &AppState,
        region: &Region,
        manifest: &ManifestId,
        owner: &str,
    ) -> Result<Verdict, StoreError> {
        let kept = |kept: bool| if kept { Verdict::Kept } else { Verdict::Stray };
        if is_version(owner) || is_vm(owner) || is_disk(owner) || is_image(owner) {
            return Ok(match self.owners.get(owner) {
                None => Verdict::Stray,
                Some(Allowed::Anything) => Verdict::Kept,
                Some(Allowed::Only(allowed)) => kept(allowed.contains(&(region.clone(), *manifest))),
            });
        }
        if let Some(digest) = digest_of(owner) {
            let making = operation_resource(state, digest);
            let making = state.store.read(|tx| Box::pin(async { tx.operations_in_progress(&making).await }));
            if !making.await?.is_empty() {
                return Ok(Verdict::Kept);
            }
            let record = read_record(state, digest).await?;
            return Ok(kept(
                record.is_some_and(|record| record.manifest == *manifest && record.regions.contains(region)),
            ));
        }
        if let Some(run) = run_of(owner) {
            let found = state.store.read(|tx| Box::pin(async { tx.operation(run).await })).await?;
            let running =
                found.is_some_and(|operation| matches!(operation.state, store::OperationState::InProgress));
            return Ok(kept(running || self.in_flight.contains(manifest)));
        }
        Ok(Verdict::Foreign)
    }
}

fn is_version(owner: &str) -> bool {
    owner.strip_prefix("version-").is_some_and(|hash| hash.len() == 32 && is_hex(hash))
}

fn is_vm(owner: &str) -> bool {
    owner.strip_prefix("vm-").is_some_and(|id| Uuid::parse_str(id).is_ok())
}

fn is_disk(owner: &str) -> bool {
    owner.strip_prefix("disk-").is_some_and(|id| id.len() == 32 && is_hex(id))
}

fn is_image(owner: &str) -> bool {
    owner.strip_prefix("image-").is_some_and(|id| id.len() == 32 && is_hex(id))
}

fn digest_of(owner: &str) -> Option<&str> {
    owner.strip_prefix("platform-").filter(|digest| is_hex(digest))
}

fn run_of(owner: &str) -> Option<&str> {
    owner.strip_prefix("run-").filter(|id| Uuid::parse_str(id).is_ok())
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn manifests(content: &VersionContent) -> Vec<ManifestId> {
    let disks = std::iter::once(&content.os_disk).chain(content.data_disks.values());
    let parsed = disks.map(|disk| manifest_id(&disk.manifest));
    parsed
        .filter_map(|manifest| {
            manifest.inspect_err(|failure| tracing::error!(cause = failure.message, "a version's disk")).ok()
        })
        .collect()
}

/// Every document of a type; one that cannot be read stops it, because what it needs must not be taken for stray.
async fn all<T: DeserializeOwned + Send + Sync + 'static>(
    state: &AppState,
    ty: &str,
) -> Result<Vec<Document<T>>, StoreError> {
    let mut filter = Filter { ty: Some(ty.to_owned()), ..Filter::default() };
    let mut found = Vec::new();
    loop {
        let page = state.store.read(|tx| Box::pin(async { tx.list::<T>(&filter).await })).await;
        let page =
            page.inspect_err(|error| tracing::error!(error = chain(error), ty, "cannot read documents"))?;
        found.extend(page.items);
        match page.next {
            Some(next) => filter.after = Some(next),
            None => return Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_told_apart() {
        let id = "0e8e9b5a-6c9f-4d0e-9f5e-3b8f5f0c7a11";
        let hash = version_reference("/subscriptions/x");
        assert!(is_version(&hash) && !is_version("version-of-mine") && !is_version("cli"));
        assert!(is_vm(&format!("vm-{id}")) && !is_vm("vm-1"));
        assert!(is_disk(&disk_reference(Uuid::nil())) && !is_disk("disk-of-mine"));
        assert!(is_image(&managed_image_reference(Uuid::nil())) && !is_image("image-of-mine"));
        assert_eq!(run_of(&format!("run-{id}")), Some(id));
        assert_eq!(run_of("run-away"), None);
        assert_eq!((digest_of("platform-00ff"), digest_of("platform-x")), (Some("00ff"), None));
    }
}
