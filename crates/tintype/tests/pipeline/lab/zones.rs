//! What the test asks of stores and disks: copies in zones, their damage and repair, an image's way through a VHD.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{HOME, Lab, OTHER};
use crate::arm::{COMPUTE, GALLERY};

/// Api-version of disks.
const DISKS: &str = "2024-03-02";
/// Api-version of storage accounts.
const STORAGE: &str = "2024-01-01";
/// One byte of so many is damaged: every block and every table is hit.
const DAMAGE_EVERY: usize = 512;

impl Lab {
    /// A disk from a VHD in a storage account of the service.
    pub(crate) async fn import_disk(&self, name: &str, uri: &str) -> Value {
        let subscription = self.group.split("/resourceGroups/").next().unwrap();
        let accounts = format!("{subscription}/providers/Microsoft.Storage/storageAccounts");
        let accounts = self.arm.get(&accounts, STORAGE).await.unwrap();
        let holds = |account: &&Value| uri.contains(&format!("/{}/", account["name"].as_str().unwrap()));
        let account = accounts["value"].as_array().unwrap().iter().find(holds).unwrap();
        let body = json!({"location": HOME, "properties": {"osType": "Linux", "hyperVGeneration": "V2",
            "creationData": {"createOption": "Import", "sourceUri": uri, "storageAccountId": account["id"]}}});
        self.arm.put(&self.disk_id(name), DISKS, body).await.unwrap()
    }

    /// An image version from a disk, in both regions.
    pub(crate) async fn publish_disk(&self, name: &str, version: &str) {
        let body = json!({"location": HOME, "properties": {
            "storageProfile": {"osDiskImage": {"source": {"id": self.disk_id(name)}}},
            "publishingProfile": {"targetRegions": [
                {"name": HOME}, {"name": OTHER, "regionalReplicaCount": 2}]}}});
        self.arm.put(&format!("{}/versions/{version}", self.definition), GALLERY, body).await.unwrap();
    }

    fn disk_id(&self, name: &str) -> String {
        format!("{}/providers/Microsoft.Compute/disks/{name}", self.group)
    }

    /// What a region's store holds, zone by zone.
    pub(crate) async fn stats(&self, region: &str) -> Value {
        self.arm.get(&format!("/tintype/stores/{region}/stats"), COMPUTE).await.unwrap()
    }

    /// Checks a region's store, repairing what it can; gives the report.
    pub(crate) async fn repair(&self, region: &str) -> Value {
        let path = format!("/tintype/stores/{region}/verify?repair=true");
        self.arm.post(&path, COMPUTE).await.unwrap()["properties"]["output"].clone()
    }

    /// Damages every object of the second zone of [`OTHER`], and forgets what this host has read of any store. Gives the
    /// object without which a store is none, as it was.
    pub(crate) fn damage_second_zone(&self) -> Vec<u8> {
        let identity = std::fs::read(self.identity_of_second_zone()).unwrap();
        let objects = files(&self.second_zone());
        assert!(objects.len() > 10, "{objects:?}");
        objects.iter().for_each(|object| damage(object));
        std::fs::remove_dir_all(self.dir.path().join("data/block-cache")).unwrap();
        identity
    }

    /// Puts back the object that [`Lab::damage_second_zone`] gave.
    pub(crate) fn restore_identity_of_second_zone(&self, identity: &[u8]) {
        std::fs::write(self.identity_of_second_zone(), identity).unwrap();
    }

    fn second_zone(&self) -> PathBuf {
        self.dir.path().join("regions").join(format!("{OTHER}-2"))
    }

    fn identity_of_second_zone(&self) -> PathBuf {
        self.second_zone().join("store.json")
    }
}

fn damage(object: &Path) {
    let mut bytes = std::fs::read(object).unwrap();
    bytes.iter_mut().step_by(DAMAGE_EVERY).for_each(|byte| *byte ^= 0xff);
    std::fs::write(object, bytes).unwrap();
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => found.extend(files(&entry)),
            false => found.push(entry),
        }
    }
    found
}
