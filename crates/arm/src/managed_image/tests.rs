use model::managed_image::{ImageDiskOrigin, ImageSpec, ManagedImage};
use model::{DiskName, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::common::{Context, Parsed};
use crate::{ApiVersion, ArmError, ResourceId};

const ID: &str = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.Compute/images/i1";

fn read(body: Value) -> Result<Parsed<ImageSpec>, ArmError> {
    parse(body, &ApiVersion::parse("2024-07-01").unwrap())
}

fn shown(parsed: &Parsed<ImageSpec>) -> Value {
    let id = ResourceId::parse(ID).unwrap();
    let name = DiskName::parse("i1").unwrap();
    let image = ManagedImage::create(name, parsed.data.clone(), Uuid::nil(), Timestamp::UNIX_EPOCH);
    render(&image, &Context { id: &id, extra: &parsed.extra })
}

#[test]
fn what_is_shown_can_be_sent_back_and_has_no_secret() {
    let encryption =
        json!({"id": "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/diskEncryptionSets/e"});
    let body = json!({"location": "West US", "tags": {"a": null}, "properties": {"storageProfile": {
        "osDisk": {"osType": "linux", "osState": "generalized", "blobUri": "https://x/os.vhd?sig=secret", "caching": null},
        "dataDisks": [{"lun": 3, "blobUri": "https://x/data.vhd", "caching": "ReadOnly", "diskEncryptionSet": encryption}]}}});
    let parsed = read(body).unwrap();
    let origins = parsed.data.check().unwrap();
    assert_eq!(origins[0], (None, ImageDiskOrigin::Vhd("https://x/os.vhd?sig=secret".to_owned())));
    let answer = shown(&parsed);
    assert_eq!(
        answer["properties"],
        json!({"storageProfile": {
            "osDisk": {"osType": "Linux", "osState": "Generalized", "blobUri": "https://x/os.vhd", "caching": "None",
                "storageAccountType": "Standard_LRS"},
            "dataDisks": [{"lun": 3, "blobUri": "https://x/data.vhd", "caching": "ReadOnly", "storageAccountType": "Standard_LRS",
                "diskEncryptionSet": encryption}]},
            "provisioningState": "Creating", "hyperVGeneration": "V1"})
    );
    assert_eq!(shown(&read(answer.clone()).unwrap()), answer);
}

#[test]
fn words_and_shapes_are_checked() {
    let image = |os: Value, data: Value| json!({"location": "westus", "properties": {"storageProfile": {"osDisk": os, "dataDisks": data}}});
    let os = json!({"osType": "Linux", "osState": "Generalized", "blobUri": "https://x/os.vhd"});
    let with = |name: &str, value: Value| {
        let mut os = os.clone();
        os[name] = value;
        image(os, json!([]))
    };
    for (body, target) in [
        (json!({"location": "westus", "properties": {"storageProfile": {}}}), "storageProfile.osDisk"),
        (with("osType", json!(null)), "storageProfile.osDisk.osType"),
        (with("osType", json!("BeOS")), "storageProfile.osDisk.osType"),
        (with("osState", json!("")), "storageProfile.osDisk.osState"),
        (with("caching", json!("x")), "storageProfile.osDisk.caching"),
        (with("storageAccountType", json!("Standard_ZRS")), "storageProfile.osDisk.storageAccountType"),
        (with("lun", json!(1)), "properties.storageProfile.osDisk.lun"),
        (with("diskSizeGB", json!("x")), "properties.storageProfile.osDisk.diskSizeGB"),
        (image(os.clone(), json!([{"blobUri": "https://x/d.vhd"}])), "storageProfile.dataDisks[0].lun"),
        (
            image(os.clone(), json!([{"lun": 64, "blobUri": "https://x/d.vhd"}])),
            "storageProfile.dataDisks[0].lun",
        ),
    ] {
        let error = read(body.clone()).unwrap_err();
        assert_eq!((error.status, error.target.as_deref()), (400, Some(target)), "{body}: {error}");
    }
}

#[test]
fn a_virtual_machine_as_source_is_read_and_refused() {
    let vm = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm";
    let body = json!({"location": "westus", "properties": {"sourceVirtualMachine": {"id": vm}, "storageProfile": {"zoneResilient": true}}});
    let parsed = read(body).unwrap();
    assert_eq!(shown(&parsed)["properties"]["sourceVirtualMachine"]["id"], vm);
    assert_eq!(parsed.data.check().unwrap_err().target.as_deref(), Some("sourceVirtualMachine"));
}
