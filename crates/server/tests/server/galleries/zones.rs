//! Regions of several zones: copies where they shall be, zones that are away, damaged or lost, and what is left over.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use content::{BlockCache, Image, Store};
use model::Region;
use model::image_version::StorageAccountType;
use model::placement::CopyPlan;
use server::Config;

use super::*;
use crate::support::VERSION;

const DEFINITION: &str = "/images/Debian";

/// `eastus` with so many zones (its first is that of `Gallery::region`) and `westus` with one.
fn zoned(folder: &Path, zones: usize) -> Config {
    let mut config = config(folder);
    let location = |name: &str| StoreLocation::Folder(folder.join("regions").join(name));
    config.regions[0].zones =
        ["eastus", "zone-2", "zone-3"][..zones].iter().map(|name| location(name)).collect();
    config
        .regions
        .push(RegionConfig::of_one_zone(Region::parse("westus").expect("a name"), location("westus")));
    config.limits.reconcile_interval = Duration::from_secs(1);
    config
}

async fn start(zones: usize, change: impl FnOnce(&mut Config)) -> Gallery {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut config = zoned(folder.path(), zones);
    change(&mut config);
    let gallery = Gallery::start_with(config, folder).await;
    gallery.define("Debian").await;
    gallery
}

/// Bytes that do not compress, the same for the same seed.
fn noise(mut seed: u64, len: usize) -> Vec<u8> {
    let mut word = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    };
    (0..len / 8).flat_map(|_| word()).collect()
}

impl Gallery {
    fn folder(&self, zone: usize) -> PathBuf {
        self.bed.folder.path().join("regions").join(["eastus", "zone-2", "zone-3"][zone])
    }

    async fn zone(&self, zone: usize) -> Store {
        let location = StoreLocation::Folder(self.folder(zone));
        Store::open_or_create(&location, "tintype").await.expect("opens")
    }

    /// Takes a zone away, as when its file system is not mounted.
    fn take_away(&self, zone: usize) {
        std::fs::rename(self.folder(zone), self.bed.folder.path().join("away")).expect("renames");
    }

    fn bring_back(&self, zone: usize) {
        std::fs::rename(self.bed.folder.path().join("away"), self.folder(zone)).expect("renames");
    }

    /// A disk of noise that a version `1.0.0` was made of. The reference `seed` holds it in zone 1.
    async fn seeded(&self, seed: u64, mib: usize) -> (ManifestId, Vec<u8>) {
        let bytes = noise(seed, mib << 20);
        let path = self.bed.folder.path().join("seed.raw");
        std::fs::write(&path, &bytes).expect("writes");
        let report = self.zone(0).await.put_raw(&path, "seed", |_| {}).await.expect("puts");
        self.publish("1.0.0", &report.manifest, &["eastus"]).await;
        (report.manifest, bytes)
    }

    /// The body of a version from 1.0.0 in one region.
    fn version(&self, region: Value) -> Value {
        let source = format!("{}{DEFINITION}/versions/1.0.0", self.path);
        json!({"location": "eastus", "properties": {
            "publishingProfile": {"targetRegions": [region]},
            "storageProfile": {"source": {"id": source}}
        }})
    }

    async fn put_version(&self, name: &str, storage: &str, replicas: u32) {
        let region =
            json!({"name": "eastus", "regionalReplicaCount": replicas, "storageAccountType": storage});
        let below = format!("{DEFINITION}/versions/{name}");
        self.done("PUT", &below, Some(self.version(region)), 201).await;
    }

    /// Waits until the replication status of a version says this of its first region.
    async fn until_copies(&self, name: &str, wanted: &str) {
        let below = format!("{DEFINITION}/versions/{name}?$expand=ReplicationStatus");
        let mut said = Value::Null;
        let wait = async {
            loop {
                let (_, version) = self.json("GET", &below, None).await;
                said = version["properties"]["replicationStatus"]["summary"][0]["details"].clone();
                if said == wanted {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let ended = tokio::time::timeout(LIMIT, wait).await;
        assert!(ended.is_ok(), "{name} does not come to '{wanted}': {said}");
    }

    /// Has the region's stores looked after; the output.
    async fn look_after(&self, task: &str) -> Value {
        let path = format!("/tintype/stores/eastus/{task}{VERSION}");
        let response = self.bed.call("POST", &path, None).await;
        assert_eq!(response.status(), 202);
        let end = self.until_ended(&header(&response, "azure-asyncoperation")).await;
        assert_eq!(end["status"], "Succeeded", "{end}");
        end["properties"]["output"].clone()
    }

    async fn stats(&self) -> Value {
        let (status, stats) =
            self.bed.json("GET", &format!("/tintype/stores/eastus/stats?{VERSION}"), None).await;
        assert_eq!(status, 200, "{stats}");
        stats
    }

    /// Reads an image as the service does: from the zones that it finds.
    async fn read(&self, manifest: &ManifestId) -> (Image, Vec<u8>) {
        let region = Region::parse("eastus").expect("a name");
        let stores = self.bed.server.state.fabric.holding(&region, manifest).await.expect("zones");
        read_from(&stores, manifest).await
    }

    /// The zones that hold an image for somebody.
    async fn owners(&self, zone: usize, manifest: &ManifestId) -> Vec<String> {
        self.zone(zone).await.refs(manifest).await.expect("refs")
    }
}

async fn read_from(stores: &[Store], manifest: &ManifestId) -> (Image, Vec<u8>) {
    let image = Image::open(stores, manifest, Arc::new(BlockCache::in_memory())).await.expect("opens");
    let mut bytes = vec![0; image.size() as usize];
    image.read_at(0, &mut bytes).await.expect("reads");
    (image, bytes)
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("makes");
    for entry in std::fs::read_dir(from).expect("lists").map(|entry| entry.expect("an entry")) {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_folder(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).expect("copies")),
        }
    }
}

/// Overwrites every file below a folder, keeping their sizes. Returns their number.
fn overwrite(folder: &Path) -> usize {
    let mut overwritten = 0;
    for entry in std::fs::read_dir(folder).expect("lists").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            overwritten += overwrite(&entry);
        } else {
            let len = entry.metadata().expect("a file").len() as usize;
            std::fs::write(&entry, vec![0xa5; len]).expect("writes");
            overwritten += 1;
        }
    }
    overwritten
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_are_two_copies_and_one_heals_the_other() {
    let gallery = start(2, |_| {}).await;
    let (manifest, bytes) = gallery.seeded(1, 4).await;
    gallery.put_version("1.1.0", "Standard_LRS", 2).await;
    gallery.until_copies("1.1.0", "2 physical copies").await;
    let stats = gallery.stats().await;
    let stored = |zone: usize| stats["zones"][zone]["stored_bytes"].as_u64().expect("a number");
    assert!(stored(0) > 4 << 20 && stored(0).abs_diff(stored(1)) < 16 << 10, "twice the bytes: {stats}");
    assert_eq!((&stats["images"], stats["stored_bytes"].as_u64()), (&json!(1), Some(stored(0) + stored(1))));

    // All that one zone has is damaged: reads are right, and tell of it.
    assert!(overwrite(&gallery.folder(0).join("packs")) > 0);
    let zones = [gallery.zone(0).await, gallery.zone(1).await];
    let (image, read) = read_from(&zones, &manifest).await;
    assert!(read == bytes && image.damaged_reads() > 0);
    let found = gallery.look_after("verify?").await;
    assert_ne!(found["damaged"], 0);
    assert_eq!(
        (&found["repaired"], &found["zones"][1]["report"]["damaged"]),
        (&json!(0), &json!(0)),
        "{found}"
    );
    let repaired = gallery.look_after("verify?repair=true&").await;
    assert_eq!(repaired["repaired"], repaired["damaged"], "{repaired}");
    assert_eq!(gallery.look_after("verify?").await["damaged"], 0);
    let (_, read) = read_from(&[gallery.zone(0).await], &manifest).await;
    assert!(read == bytes, "from the zone that was damaged");
    let stats = gallery.stats().await;
    assert_eq!(stats["zones"][0]["last_verify"]["report"]["damaged"], 0, "{stats}");

    // Not only its packs: everything, under an image that is open, and for those who come later.
    let stores = [gallery.zone(0).await, gallery.zone(1).await];
    let open = Image::open(&stores, &manifest, Arc::new(BlockCache::in_memory())).await.expect("opens");
    let copy = gallery.bed.folder.path().join("whole");
    copy_folder(&gallery.folder(0), &copy);
    overwrite(&gallery.folder(0));
    let mut read = vec![0; bytes.len()];
    open.read_at(0, &mut read).await.expect("reads");
    assert!(read == bytes);
    assert!(gallery.read(&manifest).await.1 == bytes);
    assert!(
        gallery.stats().await["zones"][0]["error"].as_str().is_some_and(|text| text.contains("store.json"))
    );
    // The service has noticed, and tries to repair the zone meanwhile.
    let mut tries = 0;
    let removed = || match std::fs::remove_dir_all(gallery.folder(0)) {
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        Ok(()) => true,
    };
    while !removed() || std::fs::rename(&copy, gallery.folder(0)).is_err() {
        tries += 1;
        assert!(tries < 1000, "the folder does not stay empty");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }

    // A replica less is a copy less, without anybody asking for it.
    let fewer = json!({"name": "eastus", "regionalReplicaCount": 1});
    let below = format!("{DEFINITION}/versions/1.1.0");
    gallery.done("PUT", &below, Some(gallery.version(fewer)), 200).await;
    gallery.until_copies("1.1.0", "1 physical copy").await;
    // And one more is there when the update is done.
    let more = json!({"properties": {"publishingProfile": {"targetRegions": [{"name": "eastus", "regionalReplicaCount": 9}]}}});
    gallery.done("PATCH", &below, Some(more), 200).await;
    for zone in [0, 1] {
        let versions = gallery.owners(zone, &manifest).await;
        assert!(versions.iter().any(|owner| owner.starts_with("version-")), "zone {zone}: {versions:?}");
    }
    gallery.until_copies("1.1.0", "2 physical copies").await;
    gallery.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn zone_redundancy_needs_zones() {
    let gallery = start(1, |config| config.regions[1].zrs_fallback = true).await;
    gallery.seeded(2, 1).await;
    let below = format!("{DEFINITION}/versions/1.1.0");
    let mut body = gallery.version(json!({"name": "eastus", "storageAccountType": "Standard_ZRS"}));
    let target = "properties.publishingProfile.targetRegions.storageAccountType";
    let reason = "ZRS storage account type is not supported in this region. 'Standard_ZRS' is not available in region East US: it needs 3 zones, and the region has 1";
    gallery.refused("PUT", &below, Some(body.clone()), (400, "InvalidParameter", reason, target)).await;
    body["properties"]["publishingProfile"]["targetRegions"] = json!([{"name": "eastus", "storageAccountType": "Premium_LRS"}, {"name": "westus", "storageAccountType": "Standard_ZRS"}]);
    gallery.done("PUT", &below, Some(body), 201).await;
    let version = gallery.until("1.1.0", "Succeeded").await;
    let summary = &version["properties"]["replicationStatus"]["summary"];
    assert_eq!(
        (&summary[0]["details"], &summary[1]["details"]),
        (&json!("1 physical copy"), &json!("1 physical copy"))
    );
    // Premium: the blocks are in this host's cache.
    let cache = gallery.bed.folder.path().join("block-cache");
    let cached = std::fs::read_dir(cache)
        .expect("a cache")
        .filter(|entry| entry.as_ref().is_ok_and(|e| e.file_name() != "tmp"));
    assert!(cached.count() > 0);
    gallery.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_zones_will_do_and_the_third_is_filled() {
    let gallery = start(3, |_| {}).await;
    let (manifest, bytes) = gallery.seeded(3, 2).await;
    gallery.take_away(2);
    gallery.put_version("1.1.0", "Standard_ZRS", 1).await;
    let behind = "2 of 3 physical copies; the rest is made when its zones can be reached";
    gallery.until_copies("1.1.0", behind).await;
    assert!(gallery.read(&manifest).await.1 == bytes);
    assert!(gallery.stats().await["zones"][2]["error"].as_str().is_some_and(|text| text.contains("is away")));
    gallery.bring_back(2);
    gallery.until_copies("1.1.0", "3 physical copies").await;
    assert!(read_from(&[gallery.zone(2).await], &manifest).await.1 == bytes);

    // Another is lost for good, and a file is where its folder was: nothing can be written there.
    std::fs::remove_dir_all(gallery.folder(0)).expect("removes");
    std::fs::write(gallery.folder(0), "no folder").expect("writes");
    assert!(gallery.read(&manifest).await.1 == bytes);
    gallery.put_version("1.2.0", "Standard_ZRS", 1).await;
    // An empty one takes its place.
    std::fs::remove_file(gallery.folder(0)).expect("removes");
    std::fs::create_dir(gallery.folder(0)).expect("makes");
    for name in ["1.1.0", "1.2.0"] {
        gallery.until_copies(name, "3 physical copies").await;
    }
    gallery.look_after("reconcile?").await;
    assert!(read_from(&[gallery.zone(0).await], &manifest).await.1 == bytes);
    assert_eq!(gallery.look_after("verify?").await["damaged"], 0);
    gallery.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_is_stood_in_for_until_it_is_back() {
    let gallery = start(3, |_| {}).await;
    let (manifest, _) = gallery.seeded(4, 1).await;
    let offers = gallery.bed.server.state.config.regions[0].offers();
    let definition = format!("{}{DEFINITION}", gallery.path);
    let plan = CopyPlan::of_version(offers, "", &definition, StorageAccountType::StandardLrs, 1, None);
    let order = plan.expect("a plan").order;
    // 1.0.0 was put where its definition belongs.
    gallery.look_after("reconcile?").await;
    let has_version = async |zone| {
        gallery.owners(zone, &manifest).await.iter().filter(|owner| owner.starts_with("version-")).count()
    };
    assert_eq!(has_version(order[0]).await, 1);
    // Somebody else holds the bytes where they will be needed.
    for zone in 1..3 {
        let zone = gallery.zone(zone).await;
        content::replicate(&gallery.zone(0).await, &zone, &manifest, "seed", |_| {})
            .await
            .expect("replicates");
    }
    gallery.take_away(order[0]);
    gallery.put_version("1.1.0", "Standard_LRS", 1).await;
    assert_eq!(has_version(order[1]).await, 1, "the next in order");
    gallery.bring_back(order[0]);
    gallery.look_after("reconcile?").await;
    gallery.look_after("reconcile?").await;
    let counts = [has_version(order[0]).await, has_version(order[1]).await, has_version(order[2]).await];
    assert_eq!(counts, [2, 0, 0]);
    gallery.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_while_a_zone_was_away_goes_when_it_is_back() {
    let gallery = start(3, |config| {
        config.limits.reference_grace = Duration::ZERO;
        config.limits.gc_delay = Duration::from_secs(1);
    })
    .await;
    let (manifest, _) = gallery.seeded(5, 2).await;
    gallery.put_version("1.1.0", "Standard_ZRS", 1).await;
    gallery.until_copies("1.1.0", "3 physical copies").await;
    gallery.take_away(1);
    for name in ["1.0.0", "1.1.0"] {
        gallery.done("DELETE", &format!("{DEFINITION}/versions/{name}"), None, 202).await;
    }
    gallery.zone(0).await.remove_ref(&manifest, "seed").await.expect("removes");
    gallery.bring_back(1);
    assert_eq!(gallery.owners(1, &manifest).await.len(), 1, "the deletion could not reach it");
    let wait = async {
        while !gallery.owners(1, &manifest).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The deletions have every zone collected some time later.
        loop {
            let stats = gallery.stats().await;
            let zones = stats["zones"].as_array().expect("zones");
            let freed =
                |zone: &Value| zone["last_gc"].is_object() && zone["stored_bytes"].as_u64() < Some(64 << 10);
            if zones.iter().all(freed) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    if tokio::time::timeout(LIMIT, wait).await.is_err() {
        panic!("bytes stay: {:#}", gallery.stats().await);
    }
    gallery.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn references_without_an_owner_go_when_they_are_old() {
    for (grace, left) in [(Duration::from_secs(3600), true), (Duration::ZERO, false)] {
        let gallery = start(1, |config| config.limits.reference_grace = grace).await;
        let (manifest, _) = gallery.seeded(6, 1).await;
        let zone = gallery.zone(0).await;
        let database = &gallery.bed.server.state.store;
        let run = store::NewOperation {
            resource_id: format!("{}/images/t", gallery.path),
            kind: "run".to_owned(),
            family: store::OperationFamily::ImageBuilder,
            location: "eastus".to_owned(),
        };
        let run = database.write(|tx| Box::pin(async { tx.begin_operation(run.clone()).await })).await;
        let run: store::Operation = run.map_err(|error: StoreError| error).expect("begins");
        let running = format!("run-{}", run.id);
        let gone = "run-0e8e9b5a-6c9f-4d0e-9f5e-3b8f5f0c7a11";
        let vm = "vm-0e8e9b5a-6c9f-4d0e-9f5e-3b8f5f0c7a11";
        for owner in [&running, gone, vm, "cli", "version-of-mine"] {
            zone.add_ref(&manifest, owner).await.expect("refers");
        }
        let report = gallery.look_after("reconcile?").await;
        let owners = gallery.owners(0, &manifest).await;
        let there = |owner: &str| owners.iter().any(|known| known == owner);
        assert_eq!((there(gone), there(vm)), (left, left), "{owners:?}");
        assert!(there(&running) && there("cli") && there("version-of-mine") && there("seed"), "{owners:?}");
        assert!(owners.iter().any(|owner| owner.len() == "version-".len() + 32), "{owners:?}");
        assert_eq!(report["references_young"], if left { 2 } else { 0 }, "{report}");

        let end = store::OperationEnd::Succeeded(None);
        let ended = database.write(|tx| Box::pin(async { tx.end_operation(&run.id, &end).await })).await;
        ended.map_err(|error: StoreError| error).expect("ends");
        gallery.look_after("reconcile?").await;
        let owners = gallery.owners(0, &manifest).await;
        assert_eq!(owners.contains(&running), left, "{owners:?}");
        gallery.bed.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn references_of_another_installation_are_left_alone() {
    let gallery = start(1, |config| config.limits.reference_grace = Duration::ZERO).await;
    let (manifest, _) = gallery.seeded(7, 1).await;
    let zone = gallery.zone(0).await;
    assert_eq!(zone.claim("the other one").await.expect("claims"), "the other one");
    let theirs = "version-00112233445566778899aabbccddeeff";
    zone.add_ref(&manifest, theirs).await.expect("refers");
    let report = gallery.look_after("reconcile?").await;
    assert!(gallery.owners(0, &manifest).await.iter().any(|owner| owner == theirs));
    assert!(report["failures"][0].as_str().is_some_and(|text| text.contains("(the other one)")), "{report}");
    gallery.bed.stop().await;
}

/// A service that is gone from one moment to the next, half way through a slow replication.
#[test]
fn a_replication_that_was_cut_off_goes_on() {
    let runtime = || tokio::runtime::Runtime::new().expect("a runtime");
    let first = runtime();
    let (folder, manifest, bytes) = first.block_on(async {
        let gallery = start(1, |config| config.limits.replication_mbps = Some(4)).await;
        let (manifest, bytes) = gallery.seeded(8, 4).await;
        let body = gallery.version(json!({"name": "eastus"}));
        let mut body = body;
        body["properties"]["publishingProfile"]["targetRegions"] =
            json!([{"name": "eastus"}, {"name": "westus"}]);
        let below = format!("{DEFINITION}/versions/1.1.0");
        let status = gallery.json("PUT", &below, Some(body)).await.0;
        assert_eq!(status, 201);
        // Eight seconds are needed.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let version = gallery.until("1.1.0", "Creating").await;
        let summary = &version["properties"]["replicationStatus"]["summary"];
        assert_eq!(
            (&summary[0]["state"], &summary[1]["state"]),
            (&json!("Completed"), &json!("Replicating"))
        );
        let west = gallery.region("westus").await;
        assert!(!west.has_manifest(&manifest).await.expect("looks"), "not visible before it is complete");
        let Bed { folder, .. } = gallery.bed;
        (folder, manifest, bytes)
    });
    first.shutdown_timeout(Duration::from_secs(5));
    runtime().block_on(async {
        let config = zoned(folder.path(), 1);
        let gallery = Gallery::start_with(config, folder).await;
        // The job is claimed again when the lease of the first is over.
        gallery.until("1.1.0", "Succeeded").await;
        let west = gallery.region("westus").await;
        assert!(read_from(&[west], &manifest).await.1 == bytes);
        gallery.bed.stop().await;
    });
}
