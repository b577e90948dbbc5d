//! Regions whose zones are in real object stores, Azurite's and moto's, alone or beside a folder.

use std::time::Instant;

use super::*;
use crate::azurite::Azurite;
use crate::moto::Moto;
use crate::support::VERSION;

/// Says that this process has the stores' credentials.
const CHILD: &str = "TINTYPE_TEST_OF_REMOTE_ZONES";

/// Runs a test of this module in a process of its own with the credentials of the emulators, which a server takes from its
/// environment. True in that process.
async fn has_credentials(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let mut command = tokio::process::Command::new(std::env::current_exe().expect("this program"));
    command.args([&format!("disks::remote_zones::{test}"), "--exact", "--nocapture"]).env(CHILD, "1");
    command.env("AZURE_STORAGE_ACCOUNT_KEY", crate::azurite::KEY);
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    let output = command.output().await.expect("this program starts");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

fn quickly(config: &mut Config) {
    config.limits.reconcile_interval = Duration::from_secs(1);
    config.limits.reference_grace = Duration::ZERO;
    config.limits.gc_delay = Duration::from_secs(1);
}

impl Disks {
    async fn stats(&self) -> Value {
        let (status, stats) =
            self.bed.json("GET", &format!("/tintype/stores/eastus/stats?{VERSION}"), None).await;
        assert_eq!(status, 200, "{stats}");
        stats
    }

    /// Waits for something that the service does by itself.
    async fn until(&self, what: &str, holds: impl AsyncFn(&Value) -> bool) {
        let began = Instant::now();
        loop {
            let stats = self.stats().await;
            if holds(&stats).await {
                return;
            }
            assert!(began.elapsed() < LIMIT, "{what} does not happen: {stats:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn has_copies(&self, below: &str, wanted: &str) -> bool {
        let url = format!("{}&$expand=ReplicationStatus", self.url(below));
        let (_, version) = self.bed.json("GET", &url, None).await;
        version["properties"]["replicationStatus"]["summary"][0]["details"] == wanted
    }

    /// Downloads what is behind an access URL; it is this disk.
    async fn downloads(&self, below: &str, raw: &Path) {
        let url = self.grant(below, "Read", 600).await;
        let back = self.file("back.vhd");
        self.python("download", &url, &back).await;
        assert_eq!(sum(&back, FOOTER), sum(raw, 0), "{below}");
        self.revoke(below).await;
    }
}

fn stored(stats: &Value, zone: usize) -> u64 {
    stats["zones"][zone]["stored_bytes"].as_u64().unwrap_or_default()
}

/// As [`vhd`], with bytes that do not compress.
fn noisy_vhd(folder: &Path) -> (PathBuf, PathBuf) {
    let (raw, vhd) = (folder.join("noise.raw"), folder.join("noise.vhd"));
    let mut bytes = vec![0; DISK as usize];
    let mut word = 0x2545_f491_4f6c_dd1d_u64;
    for chunk in bytes[300_000..2_300_000].chunks_exact_mut(8) {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    std::fs::write(&raw, &bytes).expect("writes");
    qemu_img(&["convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size"], &[&raw, &vhd]);
    (raw, vhd)
}

/// Damages every byte of every file below a folder. Returns their number.
fn damage(folder: &Path) -> usize {
    let mut damaged = 0;
    for entry in std::fs::read_dir(folder).expect("lists").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            damaged += damage(&entry);
            continue;
        }
        let mut bytes = std::fs::read(&entry).expect("reads");
        bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
        std::fs::write(&entry, bytes).expect("writes");
        damaged += 1;
    }
    damaged
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_and_a_bucket_hold_two_copies() {
    if !has_credentials("a_folder_and_a_bucket_hold_two_copies").await {
        return;
    }
    let azurite = Azurite::start().await;
    let bucket = format!("az://devstoreaccount1/images/east?endpoint=http://{}", azurite.address);
    let bucket: StoreLocation = bucket.parse().expect("a location");
    let sources = tempfile::tempdir().expect("a folder");
    let change = |config: &mut Config| {
        quickly(config);
        config.regions[0].zones.push(bucket.clone());
        config.import_paths = vec![sources.path().to_owned()];
    };
    let disks = Disks::start_with(change).await;
    let (raw, vhd) = noisy_vhd(sources.path());
    disks.definition().await;
    let mut version = version_of(json!({"uri": vhd, "storageAccountId": disks.id("x/y")}));
    version["properties"]["publishingProfile"]["targetRegions"] = json!([
        {"name": "eastus", "regionalReplicaCount": 2, "storageAccountType": "Standard_LRS"}]);
    let below = "galleries/G/images/d/versions/1.0.0";
    disks.done("PUT", below, Some(version)).await;
    let two_copies = async |disks: &Disks| disks.has_copies(below, "2 physical copies").await;
    disks.until("a second copy", async |_| two_copies(&disks).await).await;
    let stats = disks.stats().await;
    let (near, far) = (stored(&stats, 0), stored(&stats, 1));
    assert!(near > 2_000_000 && near.abs_diff(far) < 16 << 10, "twice the bytes: {stats:#}");
    assert_eq!(stats["stored_bytes"].as_u64(), Some(near + far), "{stats:#}");
    assert!(!azurite.names("east/packs/").await.is_empty());

    // The folder's packs are damaged under the service; a download is right, and has them repaired.
    let from = json!({"location": "eastus", "properties": {"creationData":
        {"createOption": "FromImage", "galleryImageReference": {"id": disks.id(below)}}}});
    disks.done("PUT", "disks/from", Some(from)).await;
    let zone = disks.file("regions").join("eastus");
    assert!(damage(&zone.join("packs")) > 0);
    disks.downloads("disks/from", &raw).await;
    let repaired =
        async |stats: &Value| stats["zones"][0]["last_verify"]["report"]["repaired"].as_u64() > Some(0);
    disks.until("a repair", repaired).await;
    let options = content::VerifyOptions::default();
    let report = disks.region("eastus").await.verify_all(&options, |_, _| {}).await.expect("verifies");
    assert_eq!((report.images, report.damaged), (1, 0));

    // Everything in the folder, and this host remembers nothing of it.
    disks.bed.server.shutdown().await;
    let folder = disks.bed.folder;
    for cache in ["block-cache", "index"] {
        std::fs::remove_dir_all(folder.path().join(cache)).expect("removes");
    }
    damage(&zone);
    let disks = Disks::start_in(folder, change).await;
    disks.downloads("disks/from", &raw).await;
    let stats = disks.stats().await;
    assert!(stats["zones"][0]["error"].as_str().is_some_and(|text| text.contains("store.json")), "{stats:#}");
    // An empty folder in its place is filled from the bucket.
    std::fs::remove_dir_all(&zone).expect("removes");
    std::fs::create_dir(&zone).expect("makes");
    disks.until("a copy in the folder", async |stats| stored(stats, 0).abs_diff(far) < 16 << 10).await;
    assert!(two_copies(&disks).await);

    // What is deleted is freed there as here.
    disks.done("DELETE", below, None).await;
    disks.done("DELETE", "disks/from", None).await;
    let freed = async |stats: &Value| {
        stored(stats, 0) < 64 << 10
            && stored(stats, 1) < 64 << 10
            && azurite.names("east/packs/").await.is_empty()
    };
    disks.until("a garbage collection", freed).await;
    disks.bed.stop().await;
}

/// Everything that a region keeps, where its only zone is a bucket.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_is_a_whole_region() {
    if !has_credentials("a_bucket_is_a_whole_region").await {
        return;
    }
    let moto = Moto::start().await;
    let bucket = format!("s3://bucket/east?endpoint=http://{}&region=us-east-1", moto.address);
    let bucket: StoreLocation = bucket.parse().expect("a location");
    let disks = Disks::start_with(|config| {
        quickly(config);
        config.regions[0].zones = vec![bucket];
    })
    .await;
    let (raw, vhd) = vhd(disks.bed.folder.path(), "d", 0x24);
    // Disks and snapshots: uploaded, read, copied, grown.
    disks.uploaded("os", &vhd).await;
    assert!(!moto.names("east/packs/").await.is_empty());
    disks.downloads("disks/os", &raw).await;
    disks.done("PUT", "snapshots/s", Some(copy_of(&disks.id("disks/os")))).await;
    disks.done("PUT", "disks/copy", Some(copy_of(&disks.id("snapshots/s")))).await;
    disks.downloads("disks/copy", &raw).await;
    disks.done("PATCH", "disks/copy", Some(json!({"properties": {"diskSizeGB": 2}}))).await;
    // Storage accounts: block and page blobs, and a version from one.
    let account =
        format!("{SUBSCRIPTION}/resourceGroups/Rg/providers/Microsoft.Storage/storageAccounts/remote1");
    let body = json!({"location": "eastus", "sku": {"name": "Standard_LRS"}, "kind": "StorageV2"});
    let made = disks.bed.json("PUT", &format!("{account}?api-version=2025-08-01"), Some(body)).await;
    assert_eq!(made.0, 200, "{}", made.1);
    let send = async |method: &str, below: &str, headers: &[(&'static str, String)], bytes: Vec<u8>| {
        let mut request =
            disks.bed.request(method, &format!("/remote1{below}")).header("x-ms-version", "2024-05-04");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.header("content-length", bytes.len()).bearer_auth(&disks.bed.token);
        let answer = request.body(bytes).send().await.expect("answers");
        (answer.status().as_u16(), answer.bytes().await.expect("a body").to_vec())
    };
    let bytes = std::fs::read(&vhd).expect("reads");
    let kind = |kind: &str| ("x-ms-blob-type", kind.to_owned());
    assert_eq!(send("PUT", "/con?restype=container", &[], Vec::new()).await.0, 201);
    assert_eq!(send("PUT", "/con/d.vhd", &[kind("BlockBlob")], bytes.clone()).await.0, 201);
    assert!(send("GET", "/con/d.vhd", &[], Vec::new()).await == (200, bytes.clone()));
    let length = ("x-ms-blob-content-length", "1048576".to_owned());
    assert_eq!(send("PUT", "/con/pages", &[kind("PageBlob"), length], Vec::new()).await.0, 201);
    let pages = [("x-ms-page-write", "update".to_owned()), ("x-ms-range", "bytes=512-1023".to_owned())];
    assert_eq!(send("PUT", "/con/pages?comp=page", &pages, vec![7; 512]).await.0, 201);
    let (_, read) = send("GET", "/con/pages", &[], Vec::new()).await;
    assert!(read.len() == 1 << 20 && read[512..1024] == [7; 512] && read[1024] == 0);
    disks.definition().await;
    let below = "galleries/G/images/d/versions/1.0.0";
    let uri = format!("{}/remote1/con/d.vhd", disks.bed.server.url);
    disks.done("PUT", below, Some(version_of(json!({"uri": uri, "storageAccountId": account})))).await;
    // And to a region of a folder.
    let far = json!({"location": "westus", "properties": {"incremental": true, "creationData":
        {"createOption": "CopyStart", "sourceResourceId": disks.id("snapshots/s")}}});
    disks.done("PUT", "snapshots/far", Some(far)).await;
    disks.downloads("snapshots/far", &raw).await;
    // More copies than zones: the one that there is.
    let more = json!({"properties": {"publishingProfile": {"targetRegions": [{"name": "eastus", "regionalReplicaCount": 3}]}}});
    disks.done("PATCH", below, Some(more)).await;
    assert!(disks.has_copies(below, "1 physical copy").await);
    let zrs = json!({"location": "eastus", "properties": {
        "publishingProfile": {"targetRegions": [{"name": "eastus", "storageAccountType": "Standard_ZRS"}]},
        "storageProfile": {"source": {"id": disks.id(below)}}}});
    let (status, refused) = disks.json("PUT", "galleries/G/images/d/versions/2.0.0", Some(zrs)).await;
    assert_eq!(status, 400, "{refused}");

    for below in [below, "disks/os", "disks/copy", "snapshots/s"] {
        disks.done("DELETE", below, None).await;
    }
    disks.until("a garbage collection", async |_| moto.names("east/packs/").await.is_empty()).await;
    assert_eq!(std::fs::read_dir(disks.file("scratch")).map_or(0, Iterator::count), 0);
    disks.bed.stop().await;
}
