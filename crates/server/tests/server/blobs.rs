//! Storage accounts and their blobs: ARM's side, who is let in, and Azure's own clients.

mod at_rest;
mod clients;
mod kill;
mod refused;

use std::path::Path;

use axum::http::StatusCode;
use reqwest::Response;
use serde_json::{Value, json};
use server::{Config, RegionConfig};

use crate::azurite::service_sas;
use crate::support::{Bed, SUBSCRIPTION, config, read};

const API: &str = "api-version=2025-08-01";

/// A server with an account.
struct Lab {
    bed: Bed,
    /// Path of the account.
    path: String,
    /// `https://localhost:port/acct1`.
    url: String,
    key: String,
}

fn account(name: &str) -> String {
    format!("{SUBSCRIPTION}/resourceGroups/Rg/providers/Microsoft.Storage/storageAccounts/{name}")
}

fn body() -> Value {
    json!({"location": "eastus", "sku": {"name": "Standard_LRS"}, "kind": "StorageV2"})
}

impl Lab {
    async fn start() -> Lab {
        Lab::start_with(|_| {}).await
    }

    fn config(folder: &Path, change: impl FnOnce(&mut Config)) -> Config {
        let mut config = config(folder);
        config.blob_listen = Some("127.0.0.1:0".parse().expect("an address"));
        config.regions = ["eastus", "westus"]
            .map(|name| {
                let store = content::StoreLocation::Folder(folder.join("regions").join(name));
                RegionConfig::of_one_zone(model::Region::parse(name).expect("a name"), store)
            })
            .into();
        change(&mut config);
        config
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Lab {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = Lab::config(folder.path(), change);
        let bed = Bed::start_with(config, folder).await;
        let group = format!("{SUBSCRIPTION}/resourceGroups/Rg?api-version=2024-11-01");
        assert_eq!(bed.json("PUT", &group, Some(json!({"location": "eastus"}))).await.0, 201);
        let path = account("acct1");
        let (status, made) = bed.json("PUT", &format!("{path}?{API}"), Some(body())).await;
        assert_eq!(status, 200, "{made}");
        let url = made["properties"]["primaryEndpoints"]["blob"].as_str().expect("an endpoint");
        assert_eq!(url, format!("{}/acct1/", bed.server.url));
        let mut lab = Lab { path, url: url.trim_end_matches('/').to_owned(), key: String::new(), bed };
        lab.key = lab.keys().await[0].clone();
        lab
    }

    async fn keys(&self) -> [String; 2] {
        let (status, keys) = self.bed.json("POST", &format!("{}/listKeys?{API}", self.path), None).await;
        assert_eq!(status, 200, "{keys}");
        ["key1", "key2"].map(|name| {
            let all = keys["keys"].as_array().expect("keys");
            let key = all.iter().find(|key| key["keyName"] == name).expect(name);
            key["value"].as_str().expect("a key").to_owned()
        })
    }

    /// A request about blobs with the service's own token, as `az --auth-mode login` sends it.
    async fn blob(&self, method: &str, below: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Response {
        let mut request = self.bed.request(method, &format!("{}{below}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request = request.header("x-ms-version", "2024-05-04").header("content-length", body.len());
        request.bearer_auth(&self.bed.token).body(body).send().await.expect("answers")
    }

    async fn put_blob(&self, below: &str, bytes: &[u8]) {
        let put = self.blob("PUT", below, &[("x-ms-blob-type", "BlockBlob")], bytes.to_vec()).await;
        assert_eq!(put.status(), StatusCode::CREATED, "{}", put.text().await.expect("text"));
    }

    async fn container(&self, name: &str) {
        let made = self.blob("PUT", &format!("/{name}?restype=container"), &[], Vec::new()).await;
        assert_eq!(made.status(), StatusCode::CREATED, "{}", made.text().await.expect("text"));
    }

    /// Files with blobs' bytes in a region.
    fn objects(&self, region: &str) -> usize {
        let folder = self.bed.folder.path().join("regions").join(region).join("blobs");
        let Ok(folders) = std::fs::read_dir(folder) else { return 0 };
        let count = |entry: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_dir(entry.expect("an entry").path()).expect("a folder").count()
        };
        folders.map(count).sum()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_live_and_die() {
    let lab = Lab::start().await;
    let bed = &lab.bed;
    let url = |name: &str| format!("{}?{API}", account(name));
    let (status, shown) = bed.json("GET", &url("ACCT1").replace("ACCT1", "acct1"), None).await;
    assert_eq!((status, shown["name"].as_str()), (200, Some("acct1")), "{shown}");
    assert_eq!(shown["type"], "Microsoft.Storage/storageAccounts");
    assert_eq!(shown["properties"]["provisioningState"], "Succeeded");
    assert!(!shown.to_string().contains(&lab.key), "no key in what everybody may read");

    // Again with other tags, by PUT and by PATCH; the keys stay.
    let mut tagged = body();
    tagged["tags"] = json!({"a": "b"});
    assert_eq!(bed.json("PUT", &url("acct1"), Some(tagged)).await.1["tags"], json!({"a": "b"}));
    let patch = json!({"tags": {"c": "d"}, "properties": {"supportsHttpsTrafficOnly": false}});
    let (status, patched) = bed.json("PATCH", &url("acct1"), Some(patch)).await;
    assert_eq!((status, &patched["tags"]), (200, &json!({"c": "d"})), "{patched}");
    assert_eq!(patched["properties"]["supportsHttpsTrafficOnly"], false);
    assert_eq!(lab.keys().await[0], lab.key);

    // One key anew, the other as it was.
    let before = lab.keys().await;
    let regenerate = format!("{}/regenerateKey?{API}", lab.path);
    let (status, keys) = bed.json("POST", &regenerate, Some(json!({"keyName": "key2"}))).await;
    assert_eq!(status, 200, "{keys}");
    let after = lab.keys().await;
    assert!(after[0] == before[0] && after[1] != before[1]);
    assert_eq!(keys["keys"][1]["value"].as_str(), Some(after[1].as_str()));

    // Names: free, taken, impossible, reserved.
    let check = format!("{SUBSCRIPTION}/providers/Microsoft.Storage/checkNameAvailability?{API}");
    for (name, reason) in [
        ("free1", Value::Null),
        ("acct1", json!("AlreadyExists")),
        ("Not-A-Name", json!("AccountNameInvalid")),
        ("portal", json!("AlreadyExists")),
    ] {
        let body = json!({"name": name, "type": "Microsoft.Storage/storageAccounts"});
        let (status, answer) = bed.json("POST", &check, Some(body)).await;
        assert_eq!((status, &answer["reason"]), (200, &reason), "{name}: {answer}");
        assert_eq!(answer["nameAvailable"], reason.is_null());
    }
    let other = url("acct1").replace("/Rg/", "/Other/");
    let group = format!("{SUBSCRIPTION}/resourceGroups/Other?api-version=2024-11-01");
    assert_eq!(bed.json("PUT", &group, Some(json!({"location": "eastus"}))).await.0, 201);
    for (path, code, status) in [
        (other.as_str(), "StorageAccountAlreadyTaken", 409),
        (&url("Not-A-Name"), "AccountNameInvalid", 400),
        (&url("portal"), "StorageAccountAlreadyTaken", 409),
    ] {
        let (found, answer) = bed.json("PUT", path, Some(body())).await;
        assert_eq!((found, answer["error"]["code"].as_str()), (status, Some(code)), "{path}: {answer}");
    }
    let mut moved = body();
    moved["location"] = json!("westus");
    assert_eq!(bed.json("PUT", &url("acct1"), Some(moved)).await.0, 409);

    let all = format!("{SUBSCRIPTION}/providers/Microsoft.Storage/storageAccounts?{API}");
    let of_group =
        format!("{SUBSCRIPTION}/resourceGroups/Other/providers/Microsoft.Storage/storageAccounts?{API}");
    assert_eq!(bed.json("GET", &all, None).await.1["value"].as_array().map(Vec::len), Some(1));
    assert_eq!(bed.json("GET", &of_group, None).await.1["value"], json!([]));

    // Deleting takes what is in it; the name is free again, with other keys and nothing inside.
    lab.container("con").await;
    lab.put_blob("/con/b", b"bytes").await;
    assert_eq!(bed.call("DELETE", &url("acct1"), None).await.status(), 200);
    assert_eq!(bed.call("DELETE", &url("acct1"), None).await.status(), 204);
    assert_eq!(bed.json("PUT", &url("acct1"), Some(body())).await.0, 200);
    assert_ne!(lab.keys().await[0], lab.key);
    let gone = lab.blob("GET", "/con/b", &[], Vec::new()).await;
    assert_eq!(gone.headers()["x-ms-error-code"], "ContainerNotFound");

    // With its group, too.
    lab.container("con").await;
    let group = format!("{SUBSCRIPTION}/resourceGroups/Rg?api-version=2024-11-01");
    assert_eq!(bed.call("DELETE", &group, None).await.status(), 202);
    let wait = async {
        while bed.call("GET", &group, None).await.status() == 200 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), wait).await.expect("the group goes");
    lab.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_restart_finds_is_what_was_answered() {
    let lab = Lab::start().await;
    lab.container("con").await;
    lab.put_blob("/con/a/b", b"first").await;
    lab.put_blob("/con/a/b", b"second").await;
    let (key, folder) = (lab.key.clone(), lab.bed.folder.path().to_owned());
    let Lab { bed, .. } = lab;
    let Bed { server, folder: keep, .. } = bed;
    server.shutdown().await;
    let mut config = config(&folder);
    let store = content::StoreLocation::Folder(folder.join("regions/eastus"));
    config.regions = vec![RegionConfig::of_one_zone(model::Region::parse("eastus").expect("a name"), store)];
    let bed = Bed::start_with(config, keep).await;
    let url = format!("{}/acct1", bed.server.url);
    let lab = Lab { bed, path: account("acct1"), url, key };
    assert_eq!(lab.keys().await[0], lab.key, "sealed keys open again");
    let got = lab.blob("GET", "/con/a/b", &[], Vec::new()).await;
    assert_eq!(got.text().await.expect("text"), "second");
    assert_eq!(lab.objects("eastus"), 2, "what was overwritten stays for readers under way");
    let database = std::fs::read(folder.join("tintype.db")).expect("reads");
    let wal = std::fs::read(folder.join("tintype.db-wal")).unwrap_or_default();
    let shown = [database, wal].concat();
    assert!(!shown.windows(key_part(&lab.key).len()).any(|window| window == key_part(&lab.key)));
    lab.bed.stop().await;
}

/// Enough of a key to know it by.
fn key_part(key: &str) -> &[u8] {
    &key.as_bytes()[..24]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_lives_in_its_region() {
    let lab = Lab::start().await;
    let mut west = body();
    west["location"] = json!("westus");
    let path = account("west1");
    assert_eq!(lab.bed.json("PUT", &format!("{path}?{API}"), Some(west)).await.0, 200);
    let url = format!("{}/west1", lab.bed.server.url);
    let west = Lab { url, path, ..lab };
    west.container("con").await;
    west.put_blob("/con/b", b"bytes").await;
    assert_eq!((west.objects("westus"), west.objects("eastus")), (1, 0));
    west.bed.stop().await;
}

async fn error(response: Response) -> (u16, String, String) {
    let status = response.status().as_u16();
    let code = response.headers().get("x-ms-error-code").and_then(|code| code.to_str().ok());
    let code = code.unwrap_or_default().to_owned();
    (status, code, response.text().await.expect("text"))
}

/// Puts a blob into a new account of the group `rg`; its address, and a SAS to read it.
pub(crate) async fn script(bed: &Bed, location: &str, bytes: &str) -> (String, String) {
    let path = account("scripts1").replace("/Rg/", "/rg/");
    let mut body = body();
    body["location"] = json!(location);
    let (status, made) = bed.json("PUT", &format!("{path}?{API}"), Some(body)).await;
    assert_eq!(status, 200, "{made}");
    let keys = bed.json("POST", &format!("{path}/listKeys?{API}"), None).await.1;
    let url = format!("{}/scripts1", bed.server.url);
    let send = async |url: String, body: String| {
        let request = bed.request("PUT", &url).bearer_auth(&bed.token).header("x-ms-version", "2024-05-04");
        let request = request.header("content-length", body.len()).header("x-ms-blob-type", "BlockBlob");
        assert_eq!(request.body(body).send().await.expect("answers").status(), 201, "{url}");
    };
    send(format!("{url}/con?restype=container"), String::new()).await;
    send(format!("{url}/con/dir/a.sh"), bytes.to_owned()).await;
    let key = keys["keys"][0]["value"].as_str().expect("a key");
    let sas = service_sas(key, "/blob/scripts1/con/dir/a.sh", "b", "r");
    (format!("{url}/con/dir/a.sh"), sas)
}
