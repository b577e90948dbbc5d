//! Managed images as sources and as targets, as far as a template's creation looks at them.

use super::*;

const API: &str = "api-version=2024-07-01";

fn compute(below: &str) -> String {
    format!("{SUBSCRIPTION}/resourceGroups/rg/providers/Microsoft.Compute/{below}")
}

impl Lab {
    /// A managed image of zeros.
    async fn image(&self, name: &str, os_state: &str) {
        let disk = json!({"location": self.region(), "properties": {"diskSizeGB": 1, "creationData": {"createOption": "Empty"}}});
        self.made(&compute("disks/zeros"), "api-version=2023-10-02", disk).await;
        let os =
            json!({"osType": "Linux", "osState": os_state, "managedDisk": {"id": compute("disks/zeros")}});
        let image = json!({"location": self.region(), "properties": {"storageProfile": {"osDisk": os}}});
        self.made(&compute(&format!("images/{name}")), API, image).await;
    }

    async fn made(&self, path: &str, api: &str, body: Value) {
        let response = self.bed.call("PUT", &format!("{path}?{api}"), Some(body)).await;
        let ended = self.ended(&header(&response, "azure-asyncoperation")).await;
        assert_eq!(ended["status"], "Succeeded", "{ended}");
    }

    fn for_image(&self, id: &str, location: &str) -> Value {
        let mut body = self.template();
        body["properties"]["distribute"] =
            json!([{"type": "ManagedImage", "runOutputName": "o", "imageId": id, "location": location}]);
        body
    }

    fn of_image(&self, name: &str, definition: &str) -> Value {
        let mut body = self.template();
        body["properties"]["source"] =
            json!({"type": "ManagedImage", "imageId": compute(&format!("images/{name}"))});
        body["properties"]["distribute"][0]["galleryImageId"] =
            json!(format!("{}/images/{definition}", self.gallery()));
        body
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_sources() {
    let lab = Lab::start(Some("#!/bin/sh\nexit 3\n")).await;
    lab.image("i", "Generalized").await;
    lab.image("special", "Specialized").await;
    for (name, body, code, text) in [
        ("none", lab.of_image("none", "gen1"), "BadManagedImageSource", "cannot be found in"),
        ("special", lab.of_image("special", "gen1"), "BadManagedImageSource", "is Specialized"),
        ("gen2", lab.of_image("i", "gen2"), "BadSharedImageDistribute", "hyperVGeneration 'V2'"),
    ] {
        let ended = lab.create(name, body).await;
        assert_eq!(ended["error"]["code"], code, "{ended}");
        assert!(ended.to_string().contains(text), "{ended}");
    }
    assert_eq!(lab.create("t", lab.of_image("i", "gen1")).await["status"], "Succeeded");
    // A run gets as far as its VM, whose process is a program that fails.
    let accepted = lab.bed.call("POST", &format!("{}/run?{BUILDER}", lab.id("t")), None).await;
    let ended = lab.ended(&header(&accepted, "azure-asyncoperation")).await;
    assert!(ended.to_string().contains("the build VM failed"), "{ended}");
    lab.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_targets() {
    let lab = Lab::start(None).await;
    let region = lab.region();
    let elsewhere = compute("images/i").replace("/rg/", "/none/");
    for (name, id, location, property, text) in [
        ("type", compute("disks/d"), region.as_str(), "imageId", "is not the id of an image"),
        ("name", compute("images/-"), region.as_str(), "imageId", "is not the id of an image"),
        ("group", elsewhere, region.as_str(), "imageId", "Create it before the template"),
        ("region", compute("images/i"), "atlantis", "location", "Available regions are"),
    ] {
        let ended = lab.create(name, lab.for_image(&id, location)).await;
        assert_eq!(ended["error"]["code"], "BadDistributeType", "{ended}");
        let said = ended.to_string();
        assert!(
            said.contains(text) && said.contains(&format!("distribute[0].{property}")),
            "{name}: {ended}"
        );
    }
    let ended = lab.create("new", lab.for_image(&compute("images/i"), &region)).await;
    assert_eq!(ended["status"], "Succeeded", "{ended}");
    lab.image("i", "Generalized").await;
    let ended = lab.create("renew", lab.for_image(&compute("images/I"), &region)).await;
    assert_eq!(ended["status"], "Succeeded", "{ended}");
    lab.bed.stop().await;
}
