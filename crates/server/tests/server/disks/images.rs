//! Managed images: what they are made from, what is made from them, and what is refused.

use model::content::DiskContent;
use model::image_version::VersionContent;
use model::managed_image::{ImageBytes, ManagedImage};
use store::{Document, NewJob, ProvisioningState, StoreError};

use super::*;

/// An image whose OS disk is `source`.
fn image_of(source: Value) -> Value {
    let mut os = json!({"osType": "Linux", "osState": "Generalized"});
    for (name, value) in source.as_object().expect("an object") {
        os[name] = value.clone();
    }
    json!({"location": "eastus", "properties": {"storageProfile": {"osDisk": os}}})
}

impl Disks {
    /// A storage account with the file as the block blob `name`; its URI with a query as a SAS has one.
    async fn blob(&self, name: &str, file: &Path) -> String {
        let account =
            format!("{SUBSCRIPTION}/resourceGroups/Rg/providers/Microsoft.Storage/storageAccounts/vhds1");
        let body = json!({"location": "eastus", "sku": {"name": "Standard_LRS"}, "kind": "StorageV2"});
        let made = self.bed.json("PUT", &format!("{account}?api-version=2025-08-01"), Some(body)).await;
        assert_eq!(made.0, 200, "{}", made.1);
        for (below, bytes) in [
            ("/con?restype=container".to_owned(), Vec::new()),
            (format!("/con/{name}"), std::fs::read(file).expect("reads")),
        ] {
            let request =
                self.bed.request("PUT", &format!("/vhds1{below}")).header("x-ms-version", "2024-05-04");
            let request = request.header("x-ms-blob-type", "BlockBlob").header("content-length", bytes.len());
            let sent = request.bearer_auth(&self.bed.token).body(bytes).send().await.expect("answers");
            assert_eq!(sent.status(), 201);
        }
        format!("{}/vhds1/con/{name}?sig=secret", self.bed.server.url)
    }

    async fn manifests(&self, region: &str) -> u64 {
        self.region(region).await.stats().await.expect("stats").manifests
    }

    /// Waits until an image has got its bytes.
    async fn ready(&self, name: &str) {
        let below = format!("images/{name}");
        let wait = async {
            loop {
                let (_, found) = self.json("GET", &below, None).await;
                match found["properties"]["provisioningState"].as_str() {
                    Some("Succeeded") => return,
                    Some("Creating" | "Updating") => tokio::time::sleep(Duration::from_millis(50)).await,
                    _ => panic!("{found}"),
                }
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("the image comes");
    }

    async fn reconcile(&self) {
        let path = "/tintype/stores/eastus/reconcile?api-version=2024-11-01";
        let response = self.bed.call("POST", path, None).await;
        assert_eq!(response.status(), 202);
        let poll = header(&response, "azure-asyncoperation");
        let wait = async {
            while self.bed.json("GET", &poll, None).await.1["status"] == "InProgress" {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("ends");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_come_from_vhds_disks_and_snapshots_and_go_to_versions() {
    let disks = Disks::start_with(|config| config.program = "/bin/false".into()).await;
    let (raw, vhd) = vhd(disks.bed.folder.path(), "d", 0x51);
    let uri = disks.blob("os.vhd", &vhd).await;
    let (status, made) = disks.json("PUT", "images/vhd", Some(image_of(json!({"blobUri": uri})))).await;
    assert_eq!((status, &made["properties"]["provisioningState"]), (201, &json!("Creating")), "{made}");
    assert!(!made.to_string().contains("secret"), "{made}");
    disks.ready("vhd").await;
    disks.uploaded("os", &vhd).await;
    disks.done("PUT", "snapshots/s", Some(copy_of(&disks.id("disks/os")))).await;
    let before = disks.region("eastus").await.stats().await.expect("stats");
    let mut body = image_of(json!({"managedDisk": {"id": disks.id("disks/os")}, "caching": "ReadWrite"}));
    body["properties"]["storageProfile"]["dataDisks"] =
        json!([{"lun": 2, "snapshot": {"id": disks.id("snapshots/s")}}]);
    disks.done("PUT", "images/disk", Some(body)).await;
    disks
        .done("PUT", "images/snap", Some(image_of(json!({"snapshot": {"id": disks.id("snapshots/s")}}))))
        .await;
    let after = disks.region("eastus").await.stats().await.expect("stats");
    assert_eq!((after.packs, after.manifests), (before.packs, before.manifests), "references, no bytes");

    let (_, found) = disks.json("GET", "images/vhd", None).await;
    let os_disk = &found["properties"]["storageProfile"]["osDisk"];
    let shown = uri.split('?').next().expect("an address");
    assert_eq!((&os_disk["blobUri"], &os_disk["diskSizeGB"]), (&json!(shown), &json!(1)), "{found}");
    let (_, found) = disks.json("GET", "images/disk", None).await;
    assert_eq!(found["properties"]["storageProfile"]["dataDisks"][0]["diskSizeGB"], 1, "{found}");
    assert_eq!(found["properties"]["hyperVGeneration"], "V1", "{found}");

    disks.definition().await;
    for (version, name) in [("1.0.0", "vhd"), ("1.0.1", "disk"), ("1.0.2", "snap")] {
        let body = json!({"location": "eastus", "properties": {
            "publishingProfile": {"targetRegions": [{"name": "eastus"}]},
            "storageProfile": {"source": {"id": disks.id(&format!("images/{name}"))}}}});
        let below = format!("galleries/G/images/d/versions/{version}");
        disks.done("PUT", &below, Some(body)).await;
        let (_, found) = disks.json("GET", &below, None).await;
        assert_eq!(found["properties"]["storageProfile"]["osDiskImage"]["sizeInGB"], 1, "{found}");
        let data = found["properties"]["storageProfile"]["dataDiskImages"][0]["lun"].as_u64();
        assert_eq!(data, (name == "disk").then_some(2), "{found}");
    }

    // The content outlives everything that it came through, and nothing else.
    for below in ["images/vhd", "images/disk", "images/snap", "disks/os", "snapshots/s"] {
        disks.done("DELETE", below, None).await;
        assert_eq!(disks.json("GET", below, None).await.0, 404);
    }
    assert_eq!(disks.bed.call("DELETE", &disks.url("images/vhd"), None).await.status(), 204);
    let body = json!({"location": "eastus", "properties": {"creationData": {"createOption": "FromImage",
        "galleryImageReference": {"id": disks.id("galleries/G/images/d/versions/1.0.1"), "lun": 2}}}});
    disks.done("PUT", "disks/from", Some(body)).await;
    let url = disks.grant("disks/from", "Read", 600).await;
    let back = disks.file("back.vhd");
    disks.python("download", &url, &back).await;
    assert_eq!(sum(&back, FOOTER), sum(&raw, 0));
    disks.revoke("disks/from").await;
    disks.done("DELETE", "disks/from", None).await;
    for version in ["1.0.0", "1.0.1", "1.0.2"] {
        assert_eq!(disks.manifests("eastus").await, 1, "{version} still refers");
        disks.done("DELETE", &format!("galleries/G/images/d/versions/{version}"), None).await;
    }
    assert_eq!(disks.manifests("eastus").await, 0, "nothing refers to the content any more");
    disks.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_starts_from_an_image_of_its_region() {
    let disks = Disks::start_with(|config| config.program = "/bin/false".into()).await;
    let (_, vhd) = vhd(disks.bed.folder.path(), "d", 0x52);
    disks.uploaded("os", &vhd).await;
    let source = json!({"managedDisk": {"id": disks.id("disks/os")}});
    disks.done("PUT", "images/i", Some(image_of(source.clone()))).await;
    let mut with_data = image_of(source);
    with_data["properties"]["storageProfile"]["dataDisks"] =
        json!([{"lun": 0, "managedDisk": {"id": disks.id("disks/os")}}]);
    disks.done("PUT", "images/data", Some(with_data)).await;
    let vm = |image: &str, location: &str| {
        json!({"location": location, "properties": {
            "hardwareProfile": {"vmSize": "Standard_B1s"},
            "storageProfile": {"imageReference": {"id": disks.id(image)}, "osDisk": {"createOption": "FromImage"}},
            "osProfile": {"computerName": "vm1", "adminUsername": "azureuser", "adminPassword": "Correct-Horse-9"}}})
    };
    // Its process is a program that ends at once: the image was found and is held.
    let end = disks.end("PUT", "virtualMachines/vm1", Some(vm("images/I", "eastus"))).await;
    assert_eq!(end["error"]["code"], "InternalExecutionError", "{end}");
    let (_, found) = disks.json("GET", "virtualMachines/vm1", None).await;
    let id = found["properties"]["vmId"].as_str().expect("an id");
    let spec = std::fs::read(disks.file("vms").join(id).join("spec.json")).expect("a file");
    let spec: Value = serde_json::from_slice(&spec).expect("JSON");
    assert_eq!(spec["identity"]["image_reference"]["id"], disks.id("images/i"), "{spec}");
    disks.done("DELETE", "images/i", None).await;
    disks.done("DELETE", "images/data", None).await;
    disks.done("DELETE", "disks/os", None).await;
    assert_eq!(disks.manifests("eastus").await, 1, "the VM still refers");
    disks.end("DELETE", "virtualMachines/vm1", None).await;
    assert_eq!(disks.manifests("eastus").await, 0);
    disks.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_can_be_put_right_and_leaves_nothing() {
    let disks = Disks::start_with(|config| config.limits.reference_grace = Duration::ZERO).await;
    let (_, vhd) = vhd(disks.bed.folder.path(), "d", 0x53);
    let uri = disks.blob("os.vhd", &vhd).await;
    let mut body = image_of(json!({"blobUri": uri}));
    let missing = uri.replace("os.vhd", "none.vhd");
    body["properties"]["storageProfile"]["dataDisks"] = json!([{"lun": 0, "blobUri": missing}]);
    let end = disks.end("PUT", "images/i", Some(body.clone())).await;
    assert_eq!(
        (&end["status"], &end["error"]["code"]),
        (&json!("Failed"), &json!("BlobNotAccessible")),
        "{end}"
    );
    let (_, found) = disks.json("GET", "images/i", None).await;
    assert_eq!(found["properties"]["provisioningState"], "Failed", "{found}");
    let body = json!({"location": "eastus", "properties": {
        "publishingProfile": {"targetRegions": [{"name": "eastus"}]},
        "storageProfile": {"source": {"id": disks.id("images/i")}}}});
    disks.definition().await;
    let unready = (409, "OperationNotAllowed", "has no content", "properties.storageProfile.source.id");
    disks.refused("PUT", "galleries/G/images/d/versions/1.0.0", Some(body), unready).await;
    // The OS disk was brought before the data disk failed.
    assert_eq!(disks.manifests("eastus").await, 1);
    disks.reconcile().await;
    assert_eq!(disks.manifests("eastus").await, 0, "nobody needs it");

    let again = disks.bed.call("PUT", &disks.url("images/i"), Some(image_of(json!({"blobUri": uri})))).await;
    assert_eq!(again.status(), 200);
    disks.ready("i").await;
    disks.reconcile().await;
    assert_eq!(disks.manifests("eastus").await, 1, "it is needed");
    let patch = Some(json!({"tags": {"a": "b"}}));
    disks.done("PATCH", "images/i", patch).await;
    let (_, found) = disks.json("GET", "images/i", None).await;
    assert_eq!(found["tags"], json!({"a": "b"}), "{found}");
    // What was shown is no change; another source is.
    disks.done("PUT", "images/i", Some(found)).await;
    let other = Some(image_of(json!({"blobUri": missing})));
    let immutable =
        (409, "PropertyChangeNotAllowed", "storageProfile.osDisk.blobUri", "storageProfile.osDisk.blobUri");
    disks.refused("PUT", "images/i", other, immutable).await;
    let (_, list) = disks.json("GET", "images", None).await;
    assert_eq!(list["value"].as_array().map(Vec::len), Some(1), "{list}");
    let all = format!("{SUBSCRIPTION}/providers/Microsoft.Compute/images?{IMAGE_API}");
    assert_eq!(disks.bed.json("GET", &all, None).await.1["value"][0]["name"], "i");

    let group = format!("{SUBSCRIPTION}/resourceGroups/Rg?api-version=2024-11-01");
    assert_eq!(disks.bed.call("DELETE", &group, None).await.status(), 202);
    let gone = async {
        while disks.bed.json("GET", &group, None).await.0 != 404 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.expect("the group goes");
    assert_eq!(disks.manifests("eastus").await, 0);
    disks.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_resilient_image_is_in_every_zone() {
    let disks = Disks::start_with(|config| {
        let folder = config.data_dir.join("regions");
        let zone = |name: &str| StoreLocation::Folder(folder.join(name));
        config.regions[0].zones = ["eastus", "zone-2", "zone-3"].map(zone).into();
    })
    .await;
    let (_, vhd) = vhd(disks.bed.folder.path(), "d", 0x54);
    disks.uploaded("os", &vhd).await;
    let source = json!({"managedDisk": {"id": disks.id("disks/os")}});
    disks.done("PUT", "images/one", Some(image_of(source.clone()))).await;
    let copies = async || {
        let mut held = 0;
        for zone in ["eastus", "zone-2", "zone-3"] {
            held += disks.manifests(zone).await;
        }
        held
    };
    disks.reconcile().await;
    assert_eq!(copies().await, 1);
    let mut resilient = image_of(source);
    resilient["properties"]["storageProfile"]["zoneResilient"] = json!(true);
    disks.done("PUT", "images/all", Some(resilient)).await;
    disks.reconcile().await;
    assert_eq!(copies().await, 3);
    disks.done("DELETE", "images/all", None).await;
    assert_eq!(copies().await, 1);
    disks.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_images_are_refused_precisely() {
    let disks = Disks::start().await;
    let (_, vhd) = vhd(disks.bed.folder.path(), "d", 0x55);
    disks.uploaded("os", &vhd).await;
    disks.done("PUT", "disks/waiting", Some(upload_disk(DISK + FOOTER))).await;
    let disk = |name: &str| json!({"managedDisk": {"id": disks.id(&format!("disks/{name}"))}});
    let with = |name: &str, value: Value| {
        let mut body = image_of(disk("os"));
        body["properties"][name] = value;
        body
    };
    let mut far = image_of(disk("os"));
    far["location"] = json!("westus");
    let mut sized = disk("os");
    sized["diskSizeGB"] = json!(9);
    let mut windows = disk("os");
    windows["osType"] = json!("Windows");
    let vm = json!({"id": disks.id("virtualMachines/vm")});
    let two = json!({"managedDisk": {"id": disks.id("disks/os")}, "blobUri": "https://x/y.vhd"});
    let parameter = |part, target| (400, "InvalidParameter", part, target);
    for (body, expected) in [
        (image_of(json!({})), parameter("Exactly one of", "storageProfile.osDisk")),
        (image_of(two), parameter("Exactly one of", "storageProfile.osDisk")),
        (image_of(disk("none")), (404, "NotFound", "Resource none is not found", "storageProfile")),
        (image_of(disk("waiting")), (409, "OperationNotAllowed", "has no content yet", "storageProfile")),
        (
            image_of(json!({"snapshot": {"id": disks.id("disks/os")}})),
            parameter("not of type Microsoft.Compute/snapshots", "storageProfile"),
        ),
        (image_of(json!({"blobUri": "ftp://x/y.vhd"})), parameter("use http, https", "sourceUri")),
        (image_of(json!({"blobUri": "/etc/passwd"})), parameter("import_paths", "sourceUri")),
        (image_of(sized), parameter("is 9 GB, but its source has 1 GB", "storageProfile.osDisk.diskSizeGB")),
        (image_of(windows), parameter("has osType 'Linux', but 'Windows'", "osType")),
        (with("hyperVGeneration", json!("V2")), parameter("has hyperVGeneration 'V1'", "hyperVGeneration")),
        (far, parameter("is in region eastus", "storageProfile")),
        (with("sourceVirtualMachine", vm), (404, "NotFound", "was not found", "sourceVirtualMachine")),
    ] {
        disks.refused("PUT", "images/x", Some(body), expected).await;
    }
    assert_eq!(disks.json("GET", "images/x", None).await.0, 404, "nothing was made");
    let patch = Some(json!({"tags": {}}));
    disks.refused("PATCH", "images/x", patch, (404, "ResourceNotFound", "images/x", "")).await;
    // An image of another region is none.
    disks.done("PUT", "images/i", Some(image_of(disk("os")))).await;
    let vm = json!({"location": "westus", "properties": {
        "hardwareProfile": {"vmSize": "Standard_B1s"},
        "storageProfile": {"imageReference": {"id": disks.id("images/i")}, "osDisk": {"createOption": "FromImage"}},
        "osProfile": {"computerName": "vm1", "adminUsername": "azureuser", "adminPassword": "Correct-Horse-9"}}});
    let elsewhere = (404, "NotFound", "cannot be found in 'westus' region", "imageReference");
    disks.refused("PUT", "virtualMachines/vm", Some(vm), elsewhere).await;
    // One that something else needs stays.
    let (user, image) = (disks.id("availabilitySets/user"), disks.id("images/i"));
    let store = &disks.bed.server.state.store;
    let linked: Result<(), StoreError> = store
        .write(|tx| {
            Box::pin(async {
                let ready = ProvisioningState::Succeeded;
                tx.insert(&mut Document::new(&user, "eastus", ready, json!({}))?).await?;
                tx.link(&user, &image, "image").await
            })
        })
        .await;
    linked.expect("links");
    let (status, answer) = disks.json("DELETE", "images/i", None).await;
    assert_eq!(status, 409, "{answer}");
    assert!(answer.to_string().contains("availabilitysets/user"), "{answer}");
    disks.bed.stop().await;
}

/// A run of a template has put its result into the row; the job brings it from the run's region.
#[tokio::test(flavor = "multi_thread")]
async fn a_runs_result_comes_to_the_images_region_and_takes_the_place_of_what_was_there() {
    let disks = Disks::start().await;
    let east = disks.region("eastus").await;
    let mut former = None;
    for seed in [1, 2] {
        let (raw, _) = vhd(disks.bed.folder.path(), "d", seed);
        let report = east.put_raw(&raw, "run-of-a-test", |_| {}).await.expect("puts");
        disks.built("I", &report).await;
        disks.ready("I").await;
        let west = disks.region("westus").await;
        let owners = west.refs(&report.manifest).await.expect("refs");
        assert!(owners.len() == 1 && owners[0].starts_with("image-"), "{owners:?}");
        assert_eq!(disks.manifests("westus").await, 1, "what was there before is let go");
        assert_ne!(former.replace(report.manifest), Some(report.manifest));
    }
    let (_, found) = disks.json("GET", "images/I", None).await;
    assert_eq!(found["properties"]["storageProfile"]["osDisk"]["diskSizeGB"], 1, "{found}");
    assert_eq!(found["properties"]["hyperVGeneration"], "V2", "{found}");
    disks.done("PUT", "images/I", Some(found)).await;
    disks.done("DELETE", "images/I", None).await;
    assert_eq!(disks.manifests("westus").await, 0);
    disks.bed.stop().await;
}

impl Disks {
    /// What a run writes, in `westus`. The job is enqueued twice: doing it again changes nothing.
    async fn built(&self, name: &str, report: &content::PutReport) {
        let region = |name: &str| model::Region::parse(name).expect("a name");
        let body = json!({"location": "westus", "properties": {"hyperVGeneration": "V2", "storageProfile": {
            "osDisk": {"osType": "Linux", "osState": "Generalized"}}}});
        let version = arm::ApiVersion::parse("2024-07-01").expect("a version");
        let spec = arm::managed_image::parse(body, &version).expect("parses").data;
        let os_disk = DiskContent {
            manifest: model::ManifestRef::parse(&report.manifest.to_string()).expect("a reference"),
            size_bytes: report.logical_bytes,
        };
        let content = VersionContent { os_disk, data_disks: Default::default() };
        let bytes = ImageBytes::Built { content, from: region("eastus") };
        let id = self.id(&format!("images/{name}"));
        let job = NewJob {
            kind: "createManagedImage".to_owned(),
            payload: json!({"image": id}),
            operation_id: None,
            resource_id: Some(id.clone()),
            delay: Duration::ZERO,
            max_attempts: 5,
        };
        let written: Result<(), StoreError> = self
            .bed
            .server
            .state
            .store
            .write(|tx| {
                Box::pin(async {
                    match tx.get::<ManagedImage>(&id).await? {
                        Some(mut found) => {
                            found.data.provisioning = model::ProvisioningState::Updating;
                            found.state = ProvisioningState::Updating;
                            let facts = found.data.facts.clone();
                            found.data.renew(spec.clone(), facts, bytes.clone()).expect("renews");
                            tx.update(&mut found).await?;
                        }
                        None => {
                            let name = model::DiskName::parse(name).expect("a name");
                            let id_of_image = uuid::Uuid::from_u128(7);
                            let now = tx.now().await?;
                            let image = ManagedImage {
                                bytes: bytes.clone(),
                                ..ManagedImage::create(name, spec.clone(), id_of_image, now)
                            };
                            let state = ProvisioningState::Creating;
                            tx.insert(&mut Document::new(&id, "westus", state, image)?).await?;
                        }
                    }
                    tx.enqueue(job.clone()).await?;
                    tx.enqueue(job.clone()).await?;
                    Ok(())
                })
            })
            .await;
        written.expect("writes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn az_makes_images() {
    let disks = Disks::start().await;
    let (_, vhd) = vhd(disks.bed.folder.path(), "d", 0x56);
    disks.uploaded("disk1", &vhd).await;
    disks.done("PUT", "snapshots/snap1", Some(copy_of(&disks.id("disks/disk1")))).await;
    let uri = disks.blob("os.vhd", &vhd).await;
    let uri = uri.split('?').next().expect("an address");
    let cli = tokio::task::spawn_blocking(|| crate::python::environment("azure-cli", "2.91.0"));
    let cli = cli.await.expect("installs");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server/disks/az_images.py");
    let mut command = crate::python::command(&cli.join("python"), &disks.bed.server.ca_pem);
    command
        .arg(script)
        .env("FOLDER", disks.bed.folder.path())
        .env("VHD_URI", uri)
        .env("SNAPSHOT", disks.id("snapshots/snap1"))
        .env("SERVER_URL", &disks.bed.server.url)
        .env("CLIENT_ID", disks.bed.text("clientId"))
        .env("CLIENT_SECRET", disks.bed.text("clientSecret"))
        .env("TENANT", crate::support::TENANT);
    let output = tokio::time::timeout(3 * LIMIT, command.output()).await.expect("in time").expect("runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.ends_with("az is content\n"), "{out}\n{err}");
    disks.bed.stop().await;
}
