//! Model → answer.

use model::content::DiskContent;
use model::image_version::HostCaching;
use model::managed_disk::DiskSku;
use model::managed_image::{ImageDisk, ImageStorage, ManagedImage, disk_of};
use serde_json::{Value, json};

use crate::common::{self, Context, Object};
use crate::names::{CACHINGS, DISK_SKUS, GENERATIONS, OS_STATES, OS_TYPES};

/// A managed image as Compute answers it.
pub fn render(image: &ManagedImage, context: &Context<'_>) -> Value {
    let spec = &image.spec;
    let properties = Object::new()
        .maybe("sourceVirtualMachine", spec.source_vm.as_ref().map(|id| json!({ "id": id.as_str() })))
        .maybe("storageProfile", spec.storage.as_ref().map(|storage| profile(image, storage)))
        .set("provisioningState", image.provisioning.name())
        .set("hyperVGeneration", GENERATIONS.name(image.hyper_v_generation()));
    common::compute_resource(context, &spec.location, &spec.tags, properties).into()
}

fn profile(image: &ManagedImage, storage: &ImageStorage) -> Value {
    let size = |lun, disk: &ImageDisk| {
        let stored = image.content().and_then(|content| disk_of(content, lun)).map(DiskContent::size_gib);
        stored.or(disk.size_gib)
    };
    let os = &storage.os_disk;
    let os_disk = Object::new()
        .set("osType", OS_TYPES.name(os.os_type))
        .set("osState", OS_STATES.name(os.os_state))
        .maybe("diskSizeGB", size(None, &os.disk));
    let data_disks = storage.data_disks.iter().map(|(lun, disk)| {
        let data_disk = Object::new().set("lun", *lun).maybe("diskSizeGB", size(Some(*lun), disk));
        Value::from(with_disk(data_disk, disk))
    });
    Object::new()
        .set("osDisk", with_disk(os_disk, &os.disk))
        .set("dataDisks", data_disks.collect::<Vec<_>>())
        .maybe("zoneResilient", storage.zone_resilient)
        .into()
}

/// What both kinds of disks have. The defaults are recorded.
fn with_disk(object: Object, disk: &ImageDisk) -> Object {
    let source = &disk.source;
    let reference = |id: &Option<String>| id.as_ref().map(|id| json!({ "id": id }));
    object
        .maybe("snapshot", reference(&source.snapshot))
        .maybe("managedDisk", reference(&source.managed_disk))
        .maybe("blobUri", source.shown_uri())
        .set("caching", CACHINGS.name(disk.caching.unwrap_or(HostCaching::None)))
        .set("storageAccountType", DISK_SKUS.name(disk.storage.unwrap_or(DiskSku::StandardLrs)))
}
