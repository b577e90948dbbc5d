//! Whose the references in stores are: a store knows owners such as `version-{hash}`, and people know resources.

use std::collections::HashMap;

use model::image_version::ImageVersion;
use model::managed_disk::ManagedDisk;
use model::virtual_machine::VirtualMachine;
use store::StoreError;

use super::desired::all;
use crate::AppState;
use crate::api::disks::TYPE as DISKS;
use crate::api::image_versions::TYPE as VERSIONS;
use crate::api::snapshots::TYPE as SNAPSHOTS;
use crate::api::virtual_machines::TYPE as VIRTUAL_MACHINES;
use crate::jobs::create_disk::disk_reference;
use crate::jobs::create_virtual_machine::image_reference;
use crate::jobs::replicate_image_version::version_reference;

/// The ids of all image versions, virtual machines, disks and snapshots, by the owner of their references.
///
/// # Errors
/// The database's own.
pub(crate) async fn resources(state: &AppState) -> Result<HashMap<String, String>, StoreError> {
    let mut found = HashMap::new();
    for document in all::<ImageVersion>(state, VERSIONS).await? {
        found.insert(version_reference(&document.id), document.id);
    }
    for document in all::<VirtualMachine>(state, VIRTUAL_MACHINES).await? {
        found.insert(image_reference(&document.data), document.id);
    }
    for ty in [DISKS, SNAPSHOTS] {
        for document in all::<ManagedDisk>(state, ty).await? {
            found.insert(disk_reference(document.data.unique_id), document.id);
        }
    }
    Ok(found)
}
