//! Virtual machines as far as they need no guest: refusals, states, secrets, deletion. Their process is a
//! program that ends at once.

use serde_json::{Value, json};

use crate::platform_images::{disk, ended, entry, serve, sha256};
use crate::support::{Bed, SUBSCRIPTION, VERSION, config, header};

const PASSWORD: &str = "Correct-Horse-9";
/// `#cloud-config secret` in base64.
const CUSTOM_DATA: &str = "I2Nsb3VkLWNvbmZpZyBzZWNyZXQ=";

fn body() -> Value {
    json!({"location": "eastus", "tags": {"team": "a"}, "properties": {
        "hardwareProfile": {"vmSize": "Standard_B1s"},
        "storageProfile": {
            "imageReference": {"publisher": "Test", "offer": "disks", "sku": "raw", "version": "latest"},
            "osDisk": {"createOption": "FromImage"},
        },
        "osProfile": {
            "computerName": "vm1", "adminUsername": "azureuser", "adminPassword": PASSWORD, "customData": CUSTOM_DATA,
            "linuxConfiguration": {"disablePasswordAuthentication": false},
        },
        "userData": "dXNlcg==",
    }})
}

fn path(group: &str, rest: &str) -> String {
    let separator = if rest.contains('?') { '&' } else { '?' };
    let base = format!("{SUBSCRIPTION}/resourceGroups/{group}/providers/Microsoft.Compute/virtualMachines");
    format!("{base}{rest}{separator}api-version=2024-07-01")
}

async fn start() -> Bed {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = disk();
    let address = serve(vec![("/disk", disk.clone())]).await;
    let catalog = folder.path().join("catalog");
    std::fs::create_dir(&catalog).expect("makes");
    let entry = entry("raw", &format!("http://{address}/disk"), &sha256(&disk), "raw");
    std::fs::write(catalog.join("test.toml"), entry).expect("writes");
    let mut config = config(folder.path());
    config.catalog = vec![catalog];
    config.network.allow = vec![address.to_string()];
    config.program = "/bin/false".into();
    let bed = Bed::start_with(config, folder).await;
    let group = format!("{SUBSCRIPTION}/resourceGroups/Rg1?{VERSION}");
    assert_eq!(bed.json("PUT", &group, Some(json!({"location": "eastus"}))).await.0, 201);
    bed
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_with_the_reason() {
    let bed = start().await;
    type Change = fn(&mut Value);
    let cases: &[(Change, u16, &str, &str)] = &[
        (|b| b["location"] = json!("atlantis"), 400, "LocationNotAvailableForResourceType", "atlantis"),
        (
            |b| b["properties"]["hardwareProfile"]["vmSize"] = json!("Huge"),
            400,
            "InvalidParameter",
            "The value Huge",
        ),
        (
            |b| b["properties"]["storageProfile"]["imageReference"] = Value::Null,
            400,
            "InvalidParameter",
            "imageReference",
        ),
        (
            |b| b["properties"]["storageProfile"]["imageReference"]["sku"] = json!("nope"),
            404,
            "PlatformImageNotFound",
            "Test:disks:nope:latest",
        ),
        (
            |b| b["properties"]["storageProfile"]["imageReference"]["version"] = json!("9.9.9"),
            404,
            "PlatformImageNotFound",
            "there is 1.0.",
        ),
        (
            |b| b["properties"]["osProfile"]["adminUsername"] = json!("root"),
            400,
            "InvalidParameter",
            "Admin Username",
        ),
        (|b| b["properties"]["osProfile"]["customData"] = json!("%"), 400, "InvalidParameter", "Base64"),
        (
            |b| b["properties"]["osProfile"]["adminPassword"] = Value::Null,
            400,
            "InvalidParameter",
            "adminPassword",
        ),
        (|b| b["properties"]["osProfile"] = Value::Null, 400, "InvalidParameter", "osProfile"),
        (
            |b| {
                b["properties"]["storageProfile"]["dataDisks"] =
                    json!([{"lun": 0, "createOption": "Empty", "diskSizeGB": 1}])
            },
            501,
            "NotImplemented",
            "Data disks",
        ),
        (
            |b| {
                b["properties"]["storageProfile"]["imageReference"] = json!({"id": format!("{SUBSCRIPTION}/resourceGroups/Rg1/providers/Microsoft.Compute/images/i")});
            },
            404,
            "NotFound",
            "cannot be found in 'eastus' region",
        ),
        (
            |b| {
                let image =
                    "resourceGroups/Rg1/providers/Microsoft.Compute/galleries/g/images/d/versions/1.0.0";
                b["properties"]["storageProfile"]["imageReference"] =
                    json!({"id": format!("{SUBSCRIPTION}/{image}")});
            },
            404,
            "ResourceNotFound",
            "galleries/images/g/d",
        ),
    ];
    for (change, status, code, text) in cases {
        let mut body = body();
        change(&mut body);
        let (found, answer) = bed.json("PUT", &path("Rg1", "/vm1"), Some(body.clone())).await;
        assert_eq!((found, answer["error"]["code"].as_str()), (*status, Some(*code)), "{text}: {answer}");
        assert!(
            answer["error"]["message"].as_str().is_some_and(|message| message.contains(text)),
            "{answer}"
        );
    }
    let (status, answer) = bed.json("PUT", &path("nowhere", "/vm1"), Some(body())).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (404, Some("ResourceGroupNotFound")));
    let (status, answer) = bed.json("PUT", &path("Rg1", "/_vm"), Some(body())).await;
    assert_eq!(status, 400, "{answer}");
    for (method, rest, status) in [
        ("GET", "/vm1", 404),
        ("GET", "/vm1/instanceView", 404),
        ("DELETE", "/vm1", 204),
        ("POST", "/vm1/start", 404),
        ("POST", "/vm1/generalize", 501),
        ("GET", "", 200),
    ] {
        assert_eq!(bed.json(method, &path("Rg1", rest), None).await.0, status, "{method} {rest}");
    }
    let ssh = format!("/tintype/virtualMachines/ssh?{VERSION}&id={SUBSCRIPTION}/resourceGroups/Rg1");
    assert_eq!(bed.json("GET", &ssh, None).await.0, 404);
    let left = std::fs::read_dir(bed.folder.path().join("vms")).expect("the folder").count();
    assert_eq!(left, 0, "refused requests leave no secrets behind");
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_cannot_start_fails_with_the_reason_and_can_be_deleted() {
    let bed = start().await;
    let response = bed.call("PUT", &path("rg1", "/Vm1"), Some(body())).await;
    assert_eq!(response.status(), 201);
    let operation = header(&response, "azure-asyncoperation");
    let end = ended(&bed, &operation).await;
    assert_eq!(end["error"]["code"], "InternalExecutionError", "{end}");
    let (_, vm) = bed.json("GET", &path("RG1", "/vm1?$expand=instanceView"), None).await;
    assert_eq!(vm["id"].as_str().map(|id| id.contains("/resourceGroups/Rg1/")), Some(true), "{vm}");
    assert_eq!(vm["properties"]["provisioningState"], "Failed");
    let exact = vm["properties"]["storageProfile"]["imageReference"]["exactVersion"].as_str();
    assert!(exact.is_some_and(|exact| exact.starts_with("1.0.20")), "{vm}");
    let codes: Vec<_> = vm["properties"]["instanceView"]["statuses"].as_array().expect("a list").to_vec();
    assert_eq!(codes[0]["code"], "ProvisioningState/failed/InternalExecutionError");
    assert!(codes[0]["message"].as_str().is_some_and(|text| text.contains("vmhost exited at once")), "{vm}");

    let vm_id = vm["properties"]["vmId"].as_str().expect("an id").to_owned();
    let dir = bed.folder.path().join("vms").join(&vm_id);
    let spec: Value =
        serde_json::from_slice(&std::fs::read(dir.join("spec.json")).expect("a file")).expect("JSON");
    let identity = &spec["identity"];
    assert_eq!(identity["hostname"], "vm1");
    assert_eq!(
        (&identity["admin_password"], &identity["custom_data"]),
        (&json!(PASSWORD), &json!(CUSTOM_DATA))
    );
    assert_eq!((&identity["user_data"], &identity["tags"]["team"]), (&json!("dXNlcg=="), &json!("a")));
    assert!(identity["mac"].as_str().is_some_and(|mac| mac.starts_with("00:22:48:")), "{identity}");
    assert_eq!(identity["image_reference"]["version"].as_str(), exact);
    assert_eq!((&spec["vcpus"], &spec["memory_mib"]), (&json!(1), &json!(1024)));
    secrets_stay_in_the_directory(&bed, &vm, &dir).await;

    let (status, tagged) =
        bed.json("PATCH", &path("Rg1", "/vm1"), Some(json!({"tags": {"team": "b"}}))).await;
    assert_eq!((status, &tagged["tags"]), (200, &json!({"team": "b"})));
    // What was shown, with our defaults and without the password, is no change.
    let (status, answer) = bed.json("PUT", &path("Rg1", "/vm1"), Some(tagged)).await;
    assert_eq!(status, 200, "{answer}");
    settled(&bed).await;
    let mut other = body();
    other["properties"]["osProfile"]["computerName"] = json!("vm2");
    let (status, answer) = bed.json("PUT", &path("Rg1", "/vm1"), Some(other)).await;
    assert_eq!(
        (status, answer["error"]["code"].as_str()),
        (409, Some("PropertyChangeNotAllowed")),
        "{answer}"
    );
    assert_eq!(answer["error"]["target"], "osProfile");
    let again = bed.call("PUT", &path("Rg1", "/vm1"), Some(body())).await;
    assert_eq!(again.status(), 200, "a failed creation is tried again");
    assert_eq!(ended(&bed, &header(&again, "azure-asyncoperation")).await["status"], "Failed");
    let spec: Value =
        serde_json::from_slice(&std::fs::read(dir.join("spec.json")).expect("a file")).expect("JSON");
    assert_eq!(spec["identity"]["custom_data"], CUSTOM_DATA, "what was not sent again is kept");
    let ssh = format!("/tintype/virtualMachines/ssh?{VERSION}&id={}", vm["id"].as_str().expect("an id"));
    let (status, answer) = bed.json("GET", &ssh, None).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (409, Some("OperationNotAllowed")), "{answer}");

    let manifest = spec["base"]["manifest"].as_str().expect("an id").parse().expect("an id");
    let region = model::Region::parse("eastus").expect("a region");
    let store = bed.server.state.fabric.store(&region).await.expect("a store");
    let refs = store.refs(&manifest).await.expect("answers");
    assert!(refs.contains(&format!("vm-{vm_id}")), "{refs:?}");
    let deleted = bed.call("DELETE", &path("Rg1", "/vm1"), None).await;
    assert_eq!(deleted.status(), 202);
    let end = ended(&bed, &header(&deleted, "azure-asyncoperation")).await;
    assert_eq!(end["status"], "Succeeded", "{end}");
    assert_eq!(bed.json("GET", &path("Rg1", "/vm1"), None).await.0, 404);
    assert!(!dir.exists());
    let refs = store.refs(&manifest).await.expect("answers");
    assert!(!refs.contains(&format!("vm-{vm_id}")), "{refs:?}");
    bed.stop().await;
}

/// Waits until nothing works on the VM.
async fn settled(bed: &Bed) {
    for _ in 0..300 {
        let (_, vm) = bed.json("GET", &path("Rg1", "/vm1"), None).await;
        if vm["properties"]["provisioningState"] == "Failed" {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("the VM does not settle");
}

/// Neither the API nor the database has them; user data comes on request.
async fn secrets_stay_in_the_directory(bed: &Bed, vm: &Value, dir: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    for secret in [PASSWORD, CUSTOM_DATA, "dXNlcg=="] {
        assert!(!vm.to_string().contains(secret), "{secret}");
        for file in ["tintype.db", "tintype.db-wal"] {
            let bytes = std::fs::read(bed.folder.path().join(file)).unwrap_or_default();
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} in {file}");
        }
    }
    for (path, mode) in
        [(dir.to_owned(), 0o700), (dir.join("secrets.json"), 0o600), (dir.join("spec.json"), 0o600)]
    {
        let found = std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777;
        assert_eq!(found, mode, "{}", path.display());
    }
    let (_, expanded) = bed.json("GET", &path("Rg1", "/vm1?$expand=userData"), None).await;
    assert_eq!(expanded["properties"]["userData"], "dXNlcg==");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_deleted_with_its_vms_and_a_restart_removes_strays() {
    let bed = start().await;
    let response = bed.call("PUT", &path("Rg1", "/vm1"), Some(body())).await;
    assert_eq!(response.status(), 201);
    // While the VM is being created.
    let group = format!("{SUBSCRIPTION}/resourceGroups/Rg1?{VERSION}");
    let response = bed.call("DELETE", &group, None).await;
    assert_eq!(response.status(), 202);
    let location = header(&response, "location");
    for _ in 0..600 {
        let status = bed.call("GET", &location, None).await.status().as_u16();
        if status != 202 {
            assert_eq!(status, 200);
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(bed.json("GET", &group, None).await.0, 404);
    let vms = bed.folder.path().join("vms");
    assert_eq!(std::fs::read_dir(&vms).expect("the folder").count(), 0);

    let stray = vms.join("0b8f2c1e-0000-4000-8000-000000000001");
    std::fs::create_dir(&stray).expect("makes");
    let kept = vms.join("not-a-vm");
    std::fs::create_dir(&kept).expect("makes");
    let Bed { server, folder, .. } = bed;
    server.shutdown().await;
    let again = Bed::start_with(config(folder.path()), folder).await;
    assert!(!stray.exists() && kept.exists());
    again.stop().await;
}
