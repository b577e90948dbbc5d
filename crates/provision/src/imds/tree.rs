//! The tree under `/metadata/instance`.

use serde_json::{Value, json};

use super::NetworkFacts;
use crate::identity::VmIdentity;

/// The version from which a field of `compute` is shown, from Azure's documentation; fields not named were there
/// from the start.
const COMPUTE_SINCE: [(&str, &str); 30] = [
    ("azEnvironment", "2018-10-01"),
    ("additionalCapabilities", "2021-11-01"),
    ("customData", "2019-02-01"),
    ("evictionPolicy", "2020-12-01"),
    ("extendedLocation", "2021-03-01"),
    ("host", "2021-11-15"),
    ("hostGroup", "2021-11-15"),
    ("isHostCompatibilityLayerVm", "2020-06-01"),
    ("licenseType", "2020-09-01"),
    ("osProfile", "2020-07-15"),
    ("placementGroupId", "2017-08-01"),
    ("plan", "2018-04-02"),
    ("platformSubFaultDomain", "2021-10-01"),
    ("priority", "2020-12-01"),
    ("provider", "2018-10-01"),
    ("publicKeys", "2018-04-02"),
    ("resourceGroupName", "2017-08-01"),
    ("resourceId", "2019-03-11"),
    ("securityProfile", "2020-06-01"),
    ("storageProfile", "2019-06-01"),
    ("subscriptionId", "2017-08-01"),
    ("tags", "2017-08-01"),
    ("tagsList", "2019-06-04"),
    ("userData", "2021-01-01"),
    ("virtualMachineScaleSet", "2021-03-01"),
    ("vmScaleSetName", "2017-12-01"),
    ("zone", "2017-12-01"),
    ("vmId", "2017-04-02"),
    ("vmSize", "2017-04-02"),
    ("version", "2017-04-02"),
];

/// The whole tree as `version` (one of the known ones) shows it. Every leaf is text except `hasCustomData`.
///
/// `publicKeys` is the one way by which cloud-init takes keys without a certificate: it is there even when empty only
/// if the VM has no keys, because an empty list makes cloud-init ignore the media's keys (PROTOCOL.md 3).
pub(super) fn instance(vm: &VmIdentity, network: &NetworkFacts, version: &str, extended: bool) -> Value {
    let mut compute = compute(vm);
    if let Value::Object(fields) = &mut compute {
        // Dates of this form order as text.
        fields
            .retain(|name, _| COMPUTE_SINCE.iter().all(|(field, since)| field != name || version >= *since));
    }
    let mut tree = json!({ "compute": compute, "network": interfaces(vm, network) });
    if extended {
        tree["extended"] =
            json!({ "compute": { "hasCustomData": vm.custom_data.is_some(), "ppsType": "None" } });
    }
    tree
}

fn compute(vm: &VmIdentity) -> Value {
    let image = &vm.image_reference;
    let keys: Vec<Value> =
        vm.ssh_keys.iter().map(|key| json!({ "keyData": key.key_data.trim(), "path": key.path })).collect();
    let tags: Vec<String> = vm.tags.iter().map(|(name, value)| format!("{name}:{value}")).collect();
    let tags_list: Vec<Value> =
        vm.tags.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    let bool_text = |b: bool| if b { "true" } else { "false" };
    json!({
        "azEnvironment": "AzurePublicCloud",
        "additionalCapabilities": { "hibernationEnabled": "false" },
        "customData": "",
        "evictionPolicy": "",
        "extendedLocation": { "name": "", "type": "" },
        "host": { "id": "" },
        "hostGroup": { "id": "" },
        "isHostCompatibilityLayerVm": "false",
        "licenseType": "",
        "location": vm.location,
        "name": vm.name,
        "offer": image.offer,
        "osProfile": {
            "adminUsername": vm.admin_username,
            "computerName": vm.hostname,
            "disablePasswordAuthentication": bool_text(vm.disable_password_authentication),
        },
        "osType": "Linux",
        "placementGroupId": "",
        "plan": { "name": "", "product": "", "publisher": "" },
        "platformFaultDomain": "0",
        "platformSubFaultDomain": "",
        "platformUpdateDomain": "0",
        "priority": "",
        "provider": "Microsoft.Compute",
        "publicKeys": keys,
        "publisher": image.publisher,
        "resourceGroupName": vm.resource_group,
        "resourceId": vm.resource_id,
        "securityProfile": {
            "encryptionAtHost": "false",
            "secureBootEnabled": "false",
            "securityType": "",
            "virtualTpmEnabled": "false",
        },
        "sku": image.sku,
        "storageProfile": storage_profile(vm),
        "subscriptionId": vm.subscription_id,
        "tags": tags.join(";"),
        "tagsList": tags_list,
        "userData": vm.user_data.as_deref().unwrap_or(""),
        "version": image.version,
        "virtualMachineScaleSet": { "id": "" },
        "vmId": vm.vm_id,
        "vmScaleSetName": "",
        "vmSize": vm.vm_size,
        "zone": "",
    })
}

fn storage_profile(vm: &VmIdentity) -> Value {
    let image = &vm.image_reference;
    json!({
        "dataDisks": [],
        "imageReference": {
            "id": image.id,
            "offer": image.offer,
            "publisher": image.publisher,
            "sku": image.sku,
            "version": image.version,
        },
        "osDisk": {
            "caching": "ReadWrite",
            "createOption": "FromImage",
            "diffDiskSettings": { "option": "" },
            "diskSizeGB": vm.os_disk.size_gb.to_string(),
            "encryptionSettings": { "enabled": "false" },
            "image": { "uri": "" },
            "managedDisk": { "id": "", "storageAccountType": "Premium_LRS" },
            "name": vm.os_disk.name,
            "osType": "Linux",
            "vhd": { "uri": "" },
            "writeAcceleratorEnabled": "false",
        },
        "resourceDisk": { "size": "0" },
    })
}

fn interfaces(vm: &VmIdentity, network: &NetworkFacts) -> Value {
    json!({ "interface": [{
        "ipv4": {
            "ipAddress": [{ "privateIpAddress": network.address, "publicIpAddress": "" }],
            "subnet": [{ "address": network.subnet, "prefix": network.prefix.to_string() }],
        },
        "ipv6": { "ipAddress": [] },
        "macAddress": vm.mac.to_imds(),
    }] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::identity;

    /// As a real cloud-init was answered, where the recordings are at hand; that VM had no tags.
    #[test]
    fn is_what_cloud_init_accepted() {
        let Some(protocol) = crate::testing::recordings() else { return };
        let recorded = protocol.split("## GET /metadata/instance?api-version=2021-08-01").nth(1).unwrap();
        let recorded = recorded.split("```json").nth(1).unwrap().split("```").next().unwrap();
        let recorded: Value = serde_json::from_str(recorded).unwrap();
        let mut vm = identity();
        vm.tags.clear();
        assert_eq!(instance(&vm, &NetworkFacts::for_tests(), "2023-11-15", true), recorded);
    }

    #[test]
    fn custom_data_is_announced_but_not_shown() {
        let mut vm = identity();
        let extended = |vm: &VmIdentity| instance(vm, &NetworkFacts::for_tests(), "2021-08-01", true);
        assert_eq!(extended(&vm)["extended"]["compute"]["hasCustomData"], false);
        vm.custom_data = Some(b"secret".to_vec());
        assert_eq!(extended(&vm)["extended"]["compute"]["hasCustomData"], true);
        assert_eq!(extended(&vm)["compute"]["customData"], "");
    }

    #[test]
    fn fields_appear_with_their_versions() {
        let at = |version: &str| instance(&identity(), &NetworkFacts::for_tests(), version, false);
        for (version, field, there) in [
            ("2017-04-02", "vmId", true),
            ("2017-04-02", "tags", false),
            ("2018-02-01", "publicKeys", false),
            ("2018-04-02", "publicKeys", true),
            ("2019-06-01", "osProfile", false),
            ("2019-06-01", "storageProfile", true),
            ("2020-12-01", "userData", false),
            ("2021-01-01", "userData", true),
        ] {
            assert_eq!(at(version)["compute"].get(field).is_some(), there, "{version} {field}");
        }
        assert!(at("2021-01-01").get("extended").is_none());
        // A name in the table that the tree does not have would hide a typing error.
        for (field, _) in COMPUTE_SINCE {
            assert!(at("2023-11-15")["compute"].get(field).is_some(), "{field}");
        }
    }
}
