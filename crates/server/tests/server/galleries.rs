//! Galleries, definitions and versions: their lives, what is refused, and bytes that move between two regions.

mod replication;
mod zones;

use content::{ManifestId, StoreLocation};
use serde_json::{Value, json};
use server::RegionConfig;
use server::jobs::{self, JobKind};
use store::{Document, ProvisioningState, StoreError};

use crate::support::{Bed, SUBSCRIPTION, config, header, read};

const API: &str = "api-version=2024-03-03";
const LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

struct Gallery {
    bed: Bed,
    /// Path of the gallery `Images`.
    path: String,
}

impl Gallery {
    async fn start() -> Gallery {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config = config(folder.path());
        config.regions = ["eastus", "westus"]
            .map(|name| {
                let store = StoreLocation::Folder(folder.path().join("regions").join(name));
                RegionConfig::of_one_zone(model::Region::parse(name).expect("a name"), store)
            })
            .into();
        Gallery::start_with(config, folder).await
    }

    /// A new service with a group and a gallery; its first region is `eastus`.
    async fn start_with(config: server::Config, folder: tempfile::TempDir) -> Gallery {
        let bed = Bed::start_with(config, folder).await;
        let group = format!("{SUBSCRIPTION}/resourceGroups/Rg?api-version=2024-11-01");
        assert!(bed.json("PUT", &group, Some(json!({"location": "eastus"}))).await.0 < 300);
        let path = format!("{SUBSCRIPTION}/resourceGroups/Rg/providers/Microsoft.Compute/galleries/Images");
        let gallery = Gallery { bed, path };
        // There already, if the service was started again.
        if gallery.json("GET", "", None).await.0 == 200 {
            return gallery;
        }
        gallery.done("PUT", "", Some(json!({"location": "eastus"})), 201).await;
        gallery
    }

    fn url(&self, below: &str) -> String {
        let separator = if below.contains('?') { '&' } else { '?' };
        format!("{}{below}{separator}{API}", self.path)
    }

    async fn json(&self, method: &str, below: &str, body: Option<Value>) -> (u16, Value) {
        self.bed.json(method, &self.url(below), body).await
    }

    /// A change that is accepted and works out; returns its first answer.
    async fn done(&self, method: &str, below: &str, body: Option<Value>, status: u16) -> Value {
        let (answer, end) = self.ended(method, below, body, status).await;
        assert_eq!(end["status"], "Succeeded", "{method} {below}: {end}");
        answer
    }

    /// A change that is accepted; its first answer and the end of its operation.
    async fn ended(&self, method: &str, below: &str, body: Option<Value>, status: u16) -> (Value, Value) {
        let response = self.bed.call(method, &self.url(below), body).await;
        let found = response.status().as_u16();
        let poll =
            response.headers().get("azure-asyncoperation").map(|_| header(&response, "azure-asyncoperation"));
        assert_eq!(response.headers().contains_key("location"), method == "DELETE" && found == 202);
        let (_, answer) = read(response).await;
        assert_eq!(found, status, "{method} {below}: {answer}");
        let poll = poll.expect("a URL to poll");
        assert!(poll.contains("/capsOperations/"), "{poll}");
        (answer, self.until_ended(&poll).await)
    }

    async fn until_ended(&self, poll: &str) -> Value {
        let wait = async {
            loop {
                let (status, body) = self.bed.json("GET", poll, None).await;
                assert_eq!(status, 200, "{body}");
                if body["status"] != "InProgress" {
                    return body;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("the operation ends")
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
        assert!(
            error["message"].as_str().is_some_and(|text| text.contains(part)),
            "{method} {below}: {answer}"
        );
        assert_eq!(error["target"].as_str().unwrap_or_default(), target, "{method} {below}: {answer}");
    }

    async fn region(&self, name: &str) -> content::Store {
        let folder = self.bed.folder.path().join("regions").join(name);
        let location: StoreLocation = folder.to_str().expect("text").parse().expect("a location");
        content::Store::open_or_create(&location, "tintype").await.expect("opens")
    }

    /// A small disk in a region's store, under the reference `seed`; its manifest and the file's bytes.
    async fn seed(&self, region: &str, byte: u8) -> (ManifestId, Vec<u8>) {
        let path = self.bed.folder.path().join("seed.raw");
        let mut bytes = vec![0; 3 << 20];
        bytes[1 << 20..(1 << 20) + 70_000].fill(byte);
        bytes[100] = byte;
        std::fs::write(&path, &bytes).expect("writes");
        let report = self.region(region).await.put_raw(&path, "seed", |_| {}).await.expect("puts");
        (report.manifest, bytes)
    }

    /// A version as a run publishes it: its bytes are in `eastus` under the run's reference.
    async fn publish(&self, name: &str, manifest: &ManifestId, regions: &[&str]) {
        let id = format!("{}/images/Debian/versions/{name}", self.path);
        let replicating = json!({"replicating": {"progress_percent": 0}});
        let states: serde_json::Map<String, Value> =
            regions.iter().map(|region| ((*region).to_owned(), replicating.clone())).collect();
        let targets: Vec<Value> = regions
            .iter()
            .map(|region| json!({"region": region, "replica_count": 1, "storage_account_type": null, "exclude_from_latest": null}))
            .collect();
        let data = json!({
            "name": name, "published": "2026-11-22T00:00:00Z",
            "spec": {
                "location": "eastus", "tags": {},
                "publishing": {
                    "target_regions": targets, "replica_count": 1, "exclude_from_latest": false,
                    "storage_account_type": "standard_lrs", "replication_mode": null, "end_of_life": null
                },
                "source": {"image_template": format!("{SUBSCRIPTION}/resourceGroups/Rg/providers/Microsoft.VirtualMachineImages/imageTemplates/t")},
                "safety": {"allow_deletion_of_replicated_locations": false, "block_deletion_before_end_of_life": null}
            },
            "state": {"replicating": {
                "content": {"os_disk": {"manifest": manifest.to_string(), "size_bytes": 3 << 20}, "data_disks": {}},
                "regions": states, "updating": false
            }}
        });
        let written: Result<(), StoreError> = self
            .bed
            .server
            .state
            .store
            .write(|tx| {
                Box::pin(async {
                    tx.insert(&mut Document::new(&id, "eastus", ProvisioningState::Creating, data.clone())?)
                        .await?;
                    let payload = json!({"version": id, "from": "eastus"});
                    jobs::enqueue(tx, JobKind::ReplicateImageVersion, &payload, &id, None).await?;
                    Ok(())
                })
            })
            .await;
        written.expect("inserts");
        self.until(name, "Succeeded").await;
    }

    /// Waits for a version's state; returns the version with its replication status.
    async fn until(&self, name: &str, wanted: &str) -> Value {
        let below = format!("/images/Debian/versions/{name}?$expand=ReplicationStatus");
        let wait = async {
            loop {
                let (status, body) = self.json("GET", &below, None).await;
                assert_eq!(status, 200, "{body}");
                if body["properties"]["provisioningState"] == wanted {
                    return body;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("{name} does not become {wanted}"))
    }

    async fn define(&self, name: &str) {
        self.done("PUT", &format!("/images/{name}"), Some(definition(name)), 201).await;
    }
}

fn definition(sku: &str) -> Value {
    json!({"location": "eastus", "properties": {
        "osType": "Linux", "osState": "Generalized", "hyperVGeneration": "V2",
        "identifier": {"publisher": "us", "offer": "debian", "sku": sku}
    }})
}

/// A version from another version, in these regions.
fn copy_of(source: &str, regions: &[&str]) -> Value {
    let regions: Vec<Value> = regions.iter().map(|region| json!({"name": region})).collect();
    json!({"location": "eastus", "properties": {
        "publishingProfile": {"targetRegions": regions},
        "storageProfile": {"source": {"id": source}}
    }})
}

#[tokio::test(flavor = "multi_thread")]
async fn galleries_and_definitions_live_and_die() {
    let gallery = Gallery::start().await;
    let (status, body) = gallery.json("GET", "", None).await;
    assert_eq!((status, &body["id"], &body["location"]), (200, &json!(gallery.path), &json!("eastus")));
    assert_eq!(body["properties"]["provisioningState"], "Succeeded");
    assert_eq!(
        body["properties"]["identifier"]["uniqueName"],
        format!("{}-IMAGES", &SUBSCRIPTION["/subscriptions/".len()..])
    );

    let body = json!({"location": "East US", "tags": {"a": "b"}, "properties": {"description": "ours"}});
    let answer = gallery.done("PUT", "", Some(body), 200).await;
    assert_eq!(answer["properties"]["provisioningState"], "Updating");
    let patch = json!({"tags": {"c": "d"}});
    gallery.done("PATCH", "", Some(patch), 200).await;
    let (_, body) = gallery.json("GET", "", None).await;
    assert_eq!((&body["tags"], &body["properties"]["description"]), (&json!({"c": "d"}), &json!("ours")));

    let answer = gallery.done("PUT", "/images/Debian", Some(definition("12")), 201).await;
    assert_eq!(answer["properties"]["provisioningState"], "Creating");
    assert_eq!(answer["id"], format!("{}/images/Debian", gallery.path));
    let patch = json!({"properties": {"description": "twelve"}});
    gallery.done("PATCH", "/images/DEBIAN", Some(patch), 200).await;
    let (status, body) = gallery.json("GET", "/IMAGES/debian", None).await;
    assert_eq!((status, &body["name"]), (200, &json!("Debian")));
    assert_eq!(body["properties"]["description"], "twelve");
    assert_eq!(body["properties"]["identifier"]["sku"], "12");

    let lists = [
        format!("{SUBSCRIPTION}/providers/Microsoft.Compute/galleries?{API}"),
        format!("{SUBSCRIPTION}/resourceGroups/RG/providers/Microsoft.Compute/galleries?{API}"),
        gallery.url("/images"),
    ];
    for list in &lists {
        let (status, body) = gallery.bed.json("GET", list, None).await;
        assert_eq!((status, body["value"].as_array().map(Vec::len)), (200, Some(1)), "{list}: {body}");
    }

    let nested =
        (409, "CannotDeleteResource", "Can not delete resource before nested resources are deleted", "");
    gallery.refused("DELETE", "", None, nested).await;
    gallery.done("DELETE", "/images/debian", None, 202).await;
    gallery.done("DELETE", "", None, 202).await;
    for (below, code) in [("", "ResourceNotFound"), ("/images/Debian", "ParentResourceNotFound")] {
        let (status, body) = gallery.json("GET", below, None).await;
        assert_eq!((status, body["error"]["code"].as_str()), (404, Some(code)), "{body}");
    }
    assert_eq!(gallery.bed.call("DELETE", &gallery.url(""), None).await.status(), 204);
    gallery.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_a_rule_is_refused_at_once() {
    let gallery = Gallery::start().await;
    gallery.define("Debian").await;
    let elsewhere = |location: &str| Some(json!({"location": location}));
    let sibling =
        |name: &str| format!("{SUBSCRIPTION}/resourceGroups/{name}/providers/Microsoft.Compute/galleries");

    // Galleries, in the order of RULES.md 2D.
    for (path, body, status, code, part) in [
        (
            format!("{}/my-gallery", sibling("Rg")),
            elsewhere("eastus"),
            400,
            "InvalidParameter",
            "including dashes, are disallowed",
        ),
        (
            format!("{}/g.", sibling("Rg")),
            elsewhere("eastus"),
            400,
            "InvalidParameter",
            "invalid trailing characters: .",
        ),
        (
            format!("{}/g2", sibling("Rg")),
            elsewhere("mars"),
            400,
            "LocationNotAvailableForResourceType",
            "'mars' is not available for resource type 'Microsoft.Compute/galleries'",
        ),
        (
            format!("{}/Images", sibling("Rg")),
            elsewhere("westus"),
            409,
            "Conflict",
            "already exists in location eastus",
        ),
        (
            format!("{}/g2", sibling("none")),
            elsewhere("eastus"),
            404,
            "ResourceGroupNotFound",
            "'none' could not be found",
        ),
        (format!("{}/g2", sibling("Rg")), Some(json!({})), 400, "LocationRequired", "location"),
        (
            format!("{}/g2", sibling("Rg")),
            Some(json!({"location": "eastus", "properties": {"colour": 1}})),
            400,
            "BadRequest",
            "Could not find member 'colour'",
        ),
    ] {
        let (found, answer) = gallery.bed.json("PUT", &format!("{path}?{API}"), body).await;
        let error = &answer["error"];
        assert_eq!(found, status, "{path}: {answer}");
        assert!(error["message"].as_str().is_some_and(|text| text.contains(part)), "{path}: {answer}");
        if code != "BadRequest" {
            assert_eq!(error["code"], code, "{path}: {answer}");
        }
    }
    let group = format!("{SUBSCRIPTION}/resourceGroups/Other?api-version=2024-11-01");
    assert_eq!(gallery.bed.json("PUT", &group, elsewhere("eastus")).await.0, 201);
    let (status, answer) =
        gallery.bed.json("PUT", &format!("{}/IMAGES?{API}", sibling("Other")), elsewhere("eastus")).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (409, Some("Conflict")), "{answer}");
    assert!(
        answer["error"]["message"]
            .as_str()
            .is_some_and(|text| text.contains("is not unique within the subscription"))
    );

    let changed = |at: &str, value: Value| {
        let mut body = definition("other");
        *body.pointer_mut(at).expect("a property") = value;
        Some(body)
    };
    let with_end = |end: &str| {
        let mut body = definition("other");
        body["properties"]["endOfLifeDate"] = json!(end);
        Some(body)
    };
    let taken = "Gallery image: Debian identified by (publisher:us, offer:debian, sku:Debian) already exists. Choose a different publisher, offer, sku combination.";
    let identifier = "Asset name galleryImage.properties.identifier.publisher is not valid";
    for (below, body, expected) in [
        (
            "/images/_x",
            Some(definition("x")),
            (400, "InvalidParameter", "The entity name _x is invalid", "galleryImageName"),
        ),
        (
            "/images/x",
            Some(definition("Debian")),
            (409, "Conflict", taken, "galleryImage.properties.identifier"),
        ),
        (
            "/images/x",
            changed("/properties/identifier/publisher", json!("")),
            (400, "InvalidParameter", identifier, "galleryImage.properties.identifier.publisher"),
        ),
        (
            "/images/x",
            changed("/properties/osType", json!("BeOS")),
            (400, "InvalidParameter", "Windows, Linux", "properties.osType"),
        ),
        (
            "/images/x",
            with_end("2001-01-01T00:00:00Z"),
            (
                400,
                "InvalidParameter",
                "EndOfLifeDate must be set to a future date.",
                "properties.endOfLifeDate",
            ),
        ),
        (
            "/images/Debian",
            changed("/properties/osState", json!("Specialized")),
            (
                409,
                "PropertyChangeNotAllowed",
                "Changing property 'galleryImage.properties.osState' is not allowed",
                "galleryImage.properties.osState",
            ),
        ),
    ] {
        gallery.refused("PUT", below, body, expected).await;
    }
    let (status, answer) = gallery
        .bed
        .json("PUT", &format!("{}/none/images/x?{API}", sibling("Rg")), Some(definition("x")))
        .await;
    assert_eq!((status, answer["error"]["code"].as_str()), (404, Some("ParentResourceNotFound")), "{answer}");

    let id = |version: &str| format!("{}/images/Debian/versions/{version}", gallery.path);
    let regions = "properties.publishingProfile.targetRegions";
    let source = "properties.storageProfile.source.id";
    let mut nothing = copy_of(&id("1.0.0"), &[]);
    nothing["properties"]["storageProfile"] = json!({});
    let mut replicas = copy_of(&id("1.0.0"), &["eastus"]);
    replicas["properties"]["publishingProfile"]["replicaCount"] = json!(101);
    let machine = format!("{SUBSCRIPTION}/resourceGroups/Rg/providers/Microsoft.Compute/virtualMachines/vm");
    for (name, body, expected) in [
        (
            "v1",
            copy_of(&id("1.0.0"), &[]),
            (400, "InvalidParameter", "Major(int).Minor(int).Patch(int)", "galleryImageVersionName"),
        ),
        (
            "1.0.0",
            nothing,
            (400, "InvalidParameter", "One and only one source type", "properties.storageProfile"),
        ),
        (
            "1.0.0",
            copy_of(&id("9.9.9"), &["westus"]),
            (400, "InvalidParameter", "must contain the location of image version eastus", regions),
        ),
        (
            "1.0.0",
            copy_of(&id("9.9.9"), &["eastus", "East US"]),
            (400, "InvalidParameter", "Duplicate regions", regions),
        ),
        (
            "1.0.0",
            copy_of(&id("9.9.9"), &["eastus", "mars"]),
            (400, "LocationNotAvailableForResourceType", "'mars'", regions),
        ),
        (
            "1.0.0",
            replicas,
            (400, "InvalidParameter", "between 1 and 100", "properties.publishingProfile.replicaCount"),
        ),
        (
            "1.0.0",
            copy_of(&id("9.9.9"), &["eastus"]),
            (404, "NotFound", "versions/9.9.9 is not found. Please check source exists", source),
        ),
        (
            "1.0.0",
            copy_of(&machine, &["eastus"]),
            (404, "NotFound", "virtualMachines/vm is not found", source),
        ),
        (
            "1.0.0",
            copy_of(&gallery.path, &["eastus"]),
            (
                400,
                "InvalidParameter",
                "must either be a managed image, virtual machine or another gallery image version",
                source,
            ),
        ),
        (
            "1.0.0",
            copy_of("nonsense", &["eastus"]),
            (400, "InvalidParameter", "Property id nonsense at path", source),
        ),
    ] {
        gallery.refused("PUT", &format!("/images/Debian/versions/{name}"), Some(body), expected).await;
    }
    gallery
        .refused(
            "PUT",
            "/images/none/versions/1.0.0",
            Some(copy_of(&id("9.9.9"), &["eastus"])),
            (404, "ParentResourceNotFound", "Parent resource none not found", ""),
        )
        .await;
    gallery
        .refused(
            "GET",
            "/images/Debian/versions/1.0.0?$expand=Everything",
            None,
            (400, "InvalidParameter", "ReplicationStatus", "$expand"),
        )
        .await;
    gallery
        .refused(
            "GET",
            "/images/Debian/versions/1.0.0",
            None,
            (404, "ResourceNotFound", "Images/Debian/1.0.0", ""),
        )
        .await;
    gallery
        .refused(
            "PATCH",
            "/images/Debian/versions/1.0.0",
            Some(json!({})),
            (404, "ResourceNotFound", "1.0.0", ""),
        )
        .await;
    let (_, versions) = gallery.json("GET", "/images/Debian/versions", None).await;
    assert_eq!(versions, json!({"value": []}), "nothing was made");
    let old = format!("{}?api-version=2014-01-01", gallery.path);
    let (status, answer) = gallery.bed.json("GET", &old, None).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("NoRegisteredProviderFound")));
    gallery.bed.stop().await;
}
