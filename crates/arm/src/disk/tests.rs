use model::managed_disk::{AccessMode, DiskAccess, DiskBytes, DiskKind, ManagedDisk};
use model::{DiskName, ManifestRef, ProvisioningState, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::common::{Context, Parsed};
use crate::{ApiVersion, ArmError, ResourceId};

const ID: &str = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.Compute/disks/d1";

fn version(text: &str) -> ApiVersion {
    ApiVersion::parse(text).unwrap()
}

fn read(kind: DiskKind, body: Value) -> Result<Parsed<model::managed_disk::DiskSpec>, ArmError> {
    parse(kind, body, &version("2023-04-02"))
}

#[test]
fn an_upload_disk_is_shown_as_recorded() {
    let body = json!({"location": "westus", "tags": {}, "sku": {"name": "Premium_LRS"},
        "properties": {"creationData": {"createOption": "Upload", "uploadSizeBytes": 21_474_836_992_u64}}});
    let parsed = read(DiskKind::Disk, body).unwrap();
    let id = ResourceId::parse(ID).unwrap();
    let context = Context { id: &id, extra: &parsed.extra };
    let name = DiskName::parse("d1").unwrap();
    let mut disk =
        ManagedDisk::create(name, DiskKind::Disk, parsed.data.clone(), Uuid::nil(), Timestamp::UNIX_EPOCH);
    assert_eq!(
        render(&disk, Form::Accepted, &context)["properties"],
        json!({"creationData": {"createOption": "Upload", "uploadSizeBytes": 21_474_836_992_u64}, "provisioningState": "Updating"})
    );
    disk.bytes = DiskBytes::Upload { bytes: 21_474_836_992 };
    disk.provisioning = ProvisioningState::Succeeded;
    let shown = render(&disk, Form::Whole, &context);
    assert_eq!(shown["sku"], json!({"name": "Premium_LRS", "tier": "Premium"}));
    assert_eq!(shown["tags"], json!({}));
    assert_eq!(
        shown["properties"],
        json!({"creationData": {"createOption": "Upload", "uploadSizeBytes": 21_474_836_992_u64}, "diskIOPSReadWrite": 120,
            "diskMBpsReadWrite": 25, "encryption": {"type": "EncryptionAtRestWithPlatformKey"},
            "networkAccessPolicy": "AllowAll", "publicNetworkAccess": "Enabled",
            "timeCreated": "1970-01-01T00:00:00.0000000+00:00", "provisioningState": "Succeeded",
            "diskState": "ReadyToUpload", "uniqueId": "00000000-0000-0000-0000-000000000000", "tier": "P4"})
    );
    let moment = Timestamp::UNIX_EPOCH;
    disk.access =
        Some(DiskAccess { id: Uuid::nil(), mode: AccessMode::Write, granted: moment, expires: moment });
    assert_eq!(render(&disk, Form::Whole, &context)["properties"]["diskState"], "ActiveUpload");
    disk.bytes = DiskBytes::Stored(model::content::DiskContent {
        manifest: ManifestRef::parse("m").unwrap(),
        size_bytes: 20 << 20,
    });
    let shown = render(&disk, Form::Whole, &context);
    assert_eq!(shown["properties"]["diskState"], "ActiveSAS");
    assert_eq!(
        (&shown["properties"]["diskSizeGB"], &shown["properties"]["diskSizeBytes"]),
        (&json!(1), &json!(20 << 20))
    );
}

#[test]
fn words_and_shapes_are_checked() {
    let disk = |properties: Value| json!({"location": "westus", "properties": properties});
    let table = [
        (json!({"location": "westus"}), "creationData"),
        (disk(json!({"creationData": {}})), "creationData.createOption"),
        (disk(json!({"creationData": {"createOption": "Nothing"}})), "creationData.createOption"),
        (disk(json!({"creationData": {"createOption": "Empty"}, "osType": "BeOS"})), "osType"),
        (
            disk(json!({"creationData": {"createOption": "Empty"}, "networkAccessPolicy": "x"})),
            "networkAccessPolicy",
        ),
        (disk(json!({"creationData": {"createOption": "Empty"}, "diskSizeGB": -1})), "properties.diskSizeGB"),
        (
            disk(json!({"creationData": {"createOption": "Upload", "uploadSizeBytes": "x"}})),
            "properties.creationData.uploadSizeBytes",
        ),
        (disk(json!({"creationData": {"createOption": "Empty", "lun": 1}})), "properties.creationData.lun"),
        (
            json!({"location": "westus", "sku": {"name": "Standard_ZRS"}, "properties": {"creationData": {"createOption": "Empty"}}}),
            "sku.name",
        ),
    ];
    for (body, target) in table {
        let error = read(DiskKind::Disk, body.clone()).unwrap_err();
        assert_eq!((error.status, error.target.as_deref()), (400, Some(target)), "{body}: {error}");
    }
    let zrs = json!({"location": "westus", "sku": {"name": "Standard_ZRS"}, "properties": {"creationData": {"createOption": "Empty"}}});
    assert!(read(DiskKind::Snapshot, zrs).is_ok());
    let incremental = disk(json!({"creationData": {"createOption": "Empty"}, "incremental": true}));
    assert_eq!(read(DiskKind::Snapshot, incremental.clone()).unwrap().data.incremental, Some(true));
    assert!(read(DiskKind::Disk, incremental).is_err(), "a property of snapshots");
}

#[test]
fn access_requests_are_checked() {
    let ask = |body: Value| parse_access(body, &version("2023-10-02"));
    assert_eq!(
        ask(json!({"access": "read", "durationInSeconds": 600, "fileFormat": "VHDX"})).unwrap(),
        AccessRequest { mode: AccessMode::Read, seconds: 600 }
    );
    for (body, target) in [
        (json!({"durationInSeconds": 1}), "access"),
        (json!({"access": "Read"}), "durationInSeconds"),
        (json!({"access": "None", "durationInSeconds": 1}), "access"),
        (json!({"access": "Read", "durationInSeconds": 0}), "durationInSeconds"),
        (json!({"access": "Read", "durationInSeconds": 4_294_967_296_u64}), "durationInSeconds"),
        (json!({"access": "Read", "durationInSeconds": 9, "fileFormat": "ISO"}), "fileFormat"),
        (
            json!({"access": "Read", "durationInSeconds": 9, "getSecureVMGuestStateSAS": true}),
            "getSecureVMGuestStateSAS",
        ),
    ] {
        let error = ask(body.clone()).unwrap_err();
        assert_eq!((error.status, error.target.as_deref()), (400, Some(target)), "{body}: {error}");
    }
}
