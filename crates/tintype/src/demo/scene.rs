//! What the demo makes: names, templates, bodies.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Asks;
use super::arm::Arm;
use super::guest::Guest;
use super::script_server::ScriptServer;

/// Where images are built.
pub(super) const HOME: &str = "westeurope";
/// Where they are replicated to.
pub(super) const OTHER: &str = "eastus";
/// Publisher, offer and sku of the source.
pub(super) const PLATFORM_IMAGE: [&str; 3] = ["Debian", "debian-12", "12-gen2"];

const MOTD: &str = "Built by Tintype.\n";

/// Everything that has a name in the demo.
pub(super) struct Scene {
    dir: PathBuf,
    pub(super) group: String,
    pub(super) gallery: String,
    pub(super) definition: String,
    pub(super) vm: String,
    /// Made when the demo began: an image that holds it was built now.
    pub(super) nonce: String,
    motd: Script,
    last: Mutex<Script>,
}

#[derive(Clone)]
struct Script {
    url: String,
    sha256: String,
}

impl Scene {
    pub(super) fn new(arm: &Arm, dir: &Path, scripts: &ScriptServer) -> Self {
        let group = arm.group("tintype-demo");
        let gallery = format!("{group}/providers/Microsoft.Compute/galleries/golden");
        let nonce = uuid::Uuid::new_v4().to_string();
        let last = script(scripts, "last-1.sh", &last_script(&nonce, "first edition"));
        Self {
            dir: dir.to_owned(),
            definition: format!("{gallery}/images/debian-web"),
            vm: format!("{group}/providers/Microsoft.Compute/virtualMachines/web1"),
            gallery,
            group,
            motd: script(scripts, "motd", MOTD),
            last: Mutex::new(last),
            nonce,
        }
    }

    pub(super) fn template(&self, name: &str) -> String {
        format!("{}/providers/Microsoft.VirtualMachineImages/imageTemplates/{name}", self.group)
    }

    pub(super) fn region_dir(&self, region: &str) -> PathBuf {
        self.dir.join("regions").join(region)
    }

    /// Bytes of all regions on disk.
    pub(super) fn stored_bytes(&self) -> anyhow::Result<u64> {
        super::leftovers::files(&self.dir.join("regions"))?
            .iter()
            .map(|path| {
                Ok(path.metadata().with_context(|| format!("cannot look at {}", path.display()))?.len())
            })
            .sum()
    }

    /// Serves another text for the last customizer from now on.
    pub(super) fn edit_last_script(&self, scripts: &ScriptServer) {
        let edited = script(scripts, "last-2.sh", &last_script(&self.nonce, "second edition"));
        *self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = edited;
    }

    pub(super) fn definition_body(&self) -> Value {
        json!({"location": HOME, "properties": {
            "osType": "Linux", "osState": "Generalized", "hyperVGeneration": "V2",
            "identifier": {"publisher": "Contoso", "offer": "web", "sku": "debian-12"}}})
    }

    pub(super) fn template_body(&self, asks: Asks) -> anyhow::Result<Value> {
        let [publisher, offer, sku] = PLATFORM_IMAGE;
        let last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let identity =
            format!("{}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/builder", self.group);
        let tags = match asks {
            Asks::Nothing => json!({}),
            Asks::UnchangedSteps => json!({"tintype-reuse": "unchanged-steps"}),
        };
        Ok(json!({
            "location": HOME,
            "tags": tags,
            "identity": {"type": "UserAssigned", "userAssignedIdentities": {identity: {}}},
            "properties": {
                "source": {"type": "PlatformImage", "publisher": publisher, "offer": offer, "sku": sku,
                           "version": "latest"},
                "customize": [
                    {"type": "File", "name": "message of the day", "sourceUri": self.motd.url,
                     "sha256Checksum": self.motd.sha256, "destination": "/tmp/motd"},
                    {"type": "Shell", "name": "install nginx", "inline": [
                        "set -e",
                        "sudo cp /tmp/motd /etc/motd",
                        "sudo apt-get update -q",
                        "sudo apt-get install -y -q --no-install-recommends nginx-light"]},
                    {"type": "Shell", "name": "web site", "scriptUri": last.url,
                     "sha256Checksum": last.sha256}],
                "validate": {"inVMValidations": [
                    {"type": "Shell", "name": "the site answers", "inline": [
                        "set -e",
                        "systemctl is-active nginx",
                        format!("grep {} /var/www/html/index.html", self.nonce)]}]},
                "distribute": [
                    {"type": "SharedImage", "runOutputName": "web", "galleryImageId": self.definition,
                     "versioning": {"scheme": "Latest"},
                     "targetRegions": [{"name": HOME}, {"name": OTHER}]}],
                "vmProfile": {"vmSize": "Standard_B2s"}}}))
    }

    pub(super) fn vm_body(&self, version: &str, guest: &Guest) -> anyhow::Result<Value> {
        Ok(json!({
            "location": OTHER,
            "properties": {
                "hardwareProfile": {"vmSize": "Standard_B2s"},
                "storageProfile": {
                    "imageReference": {"id": version},
                    "osDisk": {"createOption": "FromImage", "name": "web1-os", "deleteOption": "Delete"}},
                "osProfile": {
                    "computerName": "web1", "adminUsername": super::guest::USER,
                    "customData": guest.custom_data(),
                    "linuxConfiguration": {
                        "disablePasswordAuthentication": true,
                        "ssh": {"publicKeys": [{
                            "path": format!("/home/{}/.ssh/authorized_keys", super::guest::USER),
                            "keyData": guest.public_key()?}]}}}}}))
    }
}

fn last_script(nonce: &str, edition: &str) -> String {
    format!("#!/bin/sh\nset -e\necho '{nonce} {edition}' | sudo tee /var/www/html/index.html\n")
}

fn script(scripts: &ScriptServer, name: &str, text: &str) -> Script {
    let url = scripts.serve(name, text.as_bytes());
    let sha256 = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    Script { url, sha256 }
}
