//! Managed disks and snapshots: their lives over HTTPS with the unmodified Python client, and what is refused.

mod azurite_source;
mod clients;
mod images;
mod lifecycle;
mod refusals;
mod remote_zones;
mod sources;
mod transfers;

use std::path::{Path, PathBuf};
use std::time::Duration;

use content::StoreLocation;
use serde_json::{Value, json};
use server::{Config, RegionConfig};
use sha2::{Digest, Sha256};

use crate::support::{Bed, SUBSCRIPTION, config, header, read};

const API: &str = "api-version=2023-10-02";
const GALLERY_API: &str = "api-version=2024-03-03";
const IMAGE_API: &str = "api-version=2024-07-01";
const LIMIT: Duration = Duration::from_secs(50);
const MIB: u64 = 1 << 20;
/// A disk of the smallest size that Azure takes.
const DISK: u64 = 20 * MIB;
const FOOTER: u64 = 512;

struct Disks {
    bed: Bed,
    /// Path of the resource group's Compute resources.
    path: String,
}

impl Disks {
    async fn start() -> Disks {
        Disks::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Disks {
        Disks::start_in(tempfile::tempdir().expect("a temporary folder"), change).await
    }

    /// A service in a folder, in which another may have been.
    async fn start_in(folder: tempfile::TempDir, change: impl FnOnce(&mut Config)) -> Disks {
        let mut config = config(folder.path());
        config.regions = ["eastus", "westus"]
            .map(|name| {
                let store = content::StoreLocation::Folder(folder.path().join("regions").join(name));
                RegionConfig::of_one_zone(model::Region::parse(name).expect("a name"), store)
            })
            .into();
        change(&mut config);
        let bed = Bed::start_with(config, folder).await;
        let group = format!("{SUBSCRIPTION}/resourceGroups/Rg?api-version=2024-11-01");
        assert!(bed.json("PUT", &group, Some(json!({"location": "eastus"}))).await.0 <= 201);
        let path = format!("{SUBSCRIPTION}/resourceGroups/Rg/providers/Microsoft.Compute");
        Disks { bed, path }
    }

    fn url(&self, below: &str) -> String {
        let api = match below.split('/').next() {
            Some("galleries") => GALLERY_API,
            Some("images" | "virtualMachines") => IMAGE_API,
            _ => API,
        };
        format!("{}/{below}?{api}", self.path)
    }

    fn id(&self, below: &str) -> String {
        format!("{}/{below}", self.path)
    }

    async fn json(&self, method: &str, below: &str, body: Option<Value>) -> (u16, Value) {
        self.bed.json(method, &self.url(below), body).await
    }

    /// A change and the end of its operation, by the `Azure-AsyncOperation` form.
    async fn end(&self, method: &str, below: &str, body: Option<Value>) -> Value {
        let response = self.bed.call(method, &self.url(below), body).await;
        let status = response.status().as_u16();
        if !response.headers().contains_key("azure-asyncoperation") {
            panic!("{method} {below}: {status} {}", read(response).await.1);
        }
        let poll = header(&response, "azure-asyncoperation");
        let kind = match below.split('/').next() {
            Some("galleries") => "/capsOperations/",
            Some("images" | "virtualMachines") => "/operations/",
            _ => "/DiskOperations/",
        };
        assert!(poll.contains(kind), "{poll}");
        let wait = async {
            loop {
                let (status, body) = self.bed.json("GET", &poll, None).await;
                assert_eq!(status, 200, "{body}");
                if body["status"] != "InProgress" {
                    return body;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("the operation ends")
    }

    /// A change that works out; what its operation gave.
    async fn done(&self, method: &str, below: &str, body: Option<Value>) -> Value {
        let end = self.end(method, below, body).await;
        assert_eq!(end["status"], "Succeeded", "{method} {below}: {end}");
        end["properties"]["output"].clone()
    }

    /// Something that is refused at once: status, code, part of the message, target.
    async fn refused(
        &self,
        method: &str,
        below: &str,
        body: Option<Value>,
        expected: (u16, &str, &str, &str),
    ) {
        let (status, answer) = self.json(method, below, body).await;
        let error = &answer["error"];
        let (wanted, code, part, target) = expected;
        assert_eq!((status, error["code"].as_str()), (wanted, Some(code)), "{method} {below}: {answer}");
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.contains(part), "{method} {below}: {answer}");
        assert_eq!(error["target"].as_str().unwrap_or_default(), target, "{method} {below}: {answer}");
    }

    /// The URL of a new access.
    async fn grant(&self, below: &str, access: &str, seconds: u64) -> String {
        let body = json!({"access": access, "durationInSeconds": seconds});
        let output = self.done("POST", &format!("{below}/beginGetAccess"), Some(body)).await;
        output["accessSAS"].as_str().expect("a URL").to_owned()
    }

    async fn revoke(&self, below: &str) {
        self.done("POST", &format!("{below}/endGetAccess"), None).await;
    }

    /// Makes a disk by uploading a VHD with the Python client.
    async fn uploaded(&self, name: &str, vhd: &Path) {
        let size = std::fs::metadata(vhd).expect("a file").len();
        let below = format!("disks/{name}");
        self.done("PUT", &below, Some(upload_disk(size))).await;
        let url = self.grant(&below, "Write", 600).await;
        assert_eq!(self.python("upload", &url, vhd).await, "");
        self.revoke(&below).await;
    }

    /// Runs the Python client; what it printed.
    async fn python(&self, what: &str, url: &str, file: &Path) -> String {
        let python = crate::python::environment("azure-storage-blob", "12.31.1").join("python");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server/disks/page_blob.py");
        let mut command = crate::python::command(&python, &self.bed.server.ca_pem);
        command.arg(script).args([what, url]).arg(file);
        let output = command.output().await.expect("Python starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{what}: {said} {error}");
        said.trim().to_owned()
    }

    async fn state(&self, below: &str) -> String {
        let (status, body) = self.json("GET", below, None).await;
        assert_eq!(status, 200, "{body}");
        body["properties"]["diskState"].as_str().expect("a state").to_owned()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.bed.folder.path().join(name)
    }

    async fn region(&self, name: &str) -> content::Store {
        let folder = self.bed.folder.path().join("regions").join(name);
        let location: StoreLocation = folder.to_str().expect("text").parse().expect("a location");
        content::Store::open_or_create(&location, "tintype").await.expect("opens")
    }

    /// A gallery with the definition `d`.
    async fn definition(&self) {
        self.done("PUT", "galleries/G", Some(json!({"location": "eastus"}))).await;
        let body = json!({"location": "eastus", "properties": {"osType": "Linux", "osState": "Generalized",
            "hyperVGeneration": "V1", "identifier": {"publisher": "p", "offer": "o", "sku": "s"}}});
        self.done("PUT", "galleries/G/images/d", Some(body)).await;
    }
}

fn upload_disk(size: u64) -> Value {
    json!({"location": "eastus", "sku": {"name": "Standard_LRS"}, "properties": {"osType": "Linux",
        "hyperVGeneration": "V1", "creationData": {"createOption": "Upload", "uploadSizeBytes": size}}})
}

fn copy_of(id: &str) -> Value {
    json!({"location": "eastus", "properties": {"creationData": {"createOption": "Copy", "sourceResourceId": id}}})
}

/// A version whose OS disk comes from `source`.
fn version_of(source: Value) -> Value {
    json!({"location": "eastus", "properties": {
        "publishingProfile": {"targetRegions": [{"name": "eastus"}]},
        "storageProfile": {"osDiskImage": {"source": source}}}})
}

/// A raw disk with a few bytes in it, and the same as a fixed VHD by qemu-img.
fn vhd(folder: &Path, name: &str, seed: u8) -> (PathBuf, PathBuf) {
    let (raw, vhd) = (folder.join(format!("{name}.raw")), folder.join(format!("{name}.vhd")));
    let mut bytes = vec![0; DISK as usize];
    for (index, byte) in bytes[300_000..900_000].iter_mut().enumerate() {
        *byte = (index % 251) as u8 ^ seed;
    }
    bytes[DISK as usize - 1] = seed | 1;
    std::fs::write(&raw, &bytes).expect("writes");
    qemu_img(&["convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size"], &[&raw, &vhd]);
    assert_eq!(std::fs::metadata(&vhd).expect("a file").len(), DISK + FOOTER);
    (raw, vhd)
}

fn qemu_img(arguments: &[&str], files: &[&Path]) -> String {
    let output = std::process::Command::new("qemu-img").args(arguments).args(files).output();
    let output = output.expect("qemu-img starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// SHA-256 of a file without its last bytes.
fn sum(path: &Path, without: u64) -> [u8; 32] {
    let bytes = std::fs::read(path).expect("reads");
    Sha256::digest(&bytes[..bytes.len() - without as usize]).into()
}
