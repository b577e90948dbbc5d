//! Image templates: their life, what is refused at once, what fails while it is created, and runs that need no VM.

mod images;
mod runs;
mod vhds;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use axum::Router;
use axum::routing::get;
use model::image_template::{ImageTemplate, LastRun, RunOutcome};
use model::image_version::{
    ImageVersion, ImageVersionSpec, PublishingProfile, RegionReplication, SafetyProfile, StorageAccountType,
    TargetRegion, VersionContent, VersionSource, VersionState,
};
use model::{ManifestRef, Region, ResourceRef, VersionName};
use serde_json::{Value, json};
use store::{Document, ProvisioningState, StoreError};

use crate::support::{Bed, SUBSCRIPTION, VERSION, config, header, read};

const BUILDER: &str = "api-version=2024-02-01";
const COMPUTE: &str = "api-version=2024-03-03";
/// What the web server has.
const SCRIPT: &str = "echo customized\n";
/// Its digest, by sha256sum.
const SCRIPT_SHA256: &str = "14e6819a674bf84ab8cdfa362c0871252743b519b52ab0e79bbebea59bb1eb29";

/// A server with a group, a gallery and definitions, and a web server with scripts that it may fetch from.
struct Lab {
    bed: Bed,
    files: String,
}

impl Lab {
    async fn start(program: Option<&str>) -> Lab {
        Lab::start_with(program, |_| {}).await
    }

    async fn start_with(program: Option<&str>, change: impl FnOnce(&mut server::Config)) -> Lab {
        let app = Router::new().route("/a.sh", get(|| async { SCRIPT }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, app).await });
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config = config(folder.path());
        config.network.allow = vec![address.to_string()];
        change(&mut config);
        if let Some(script) = program {
            config.program = folder.path().join("vmhost.sh");
            std::fs::write(&config.program, script).expect("a script");
            std::fs::set_permissions(&config.program, std::fs::Permissions::from_mode(0o755))
                .expect("its mode");
        }
        let bed = Bed::start_with(config, folder).await;
        let lab = Lab { bed, files: format!("http://{address}") };
        let region = lab.region();
        let group = format!("{SUBSCRIPTION}/resourceGroups/rg?{VERSION}");
        assert_eq!(lab.bed.json("PUT", &group, Some(json!({"location": region}))).await.0, 201);
        let gallery = format!("{}?{COMPUTE}", lab.gallery());
        let (status, body) = lab.bed.json("PUT", &gallery, Some(json!({"location": region}))).await;
        assert_eq!(status, 201, "{body}");
        for (name, os, generation) in
            [("gen2", "Linux", "V2"), ("gen1", "Linux", "V1"), ("windows", "Windows", "V2")]
        {
            let body = json!({"location": region, "properties": {
                "osType": os, "osState": "Generalized", "hyperVGeneration": generation,
                "identifier": {"publisher": "p", "offer": "o", "sku": name},
            }});
            let path = format!("{}/images/{name}?{COMPUTE}", lab.gallery());
            let (status, body) = lab.bed.json("PUT", &path, Some(body)).await;
            assert_eq!(status, 201, "{body}");
        }
        lab
    }

    fn region(&self) -> String {
        self.bed.server.state.config.regions[0].name.to_string()
    }

    fn gallery(&self) -> String {
        format!("{SUBSCRIPTION}/resourceGroups/rg/providers/Microsoft.Compute/galleries/g")
    }

    fn id(&self, name: &str) -> String {
        format!(
            "{SUBSCRIPTION}/resourceGroups/rg/providers/Microsoft.VirtualMachineImages/imageTemplates/{name}"
        )
    }

    fn template(&self) -> Value {
        json!({
            "location": self.region(), "tags": {"owner": "me"}, "identity": {"type": "None"},
            "properties": {
                "source": {"type": "PlatformImage", "publisher": "Debian", "offer": "debian-12", "sku": "12-gen2", "version": "latest"},
                "customize": [
                    {"type": "File", "name": "copy", "sourceUri": format!("{}/a.sh?sig=1", self.files), "destination": "/tmp/a.sh"},
                    {"type": "Shell", "name": "fetched", "scriptUri": format!("{}/a.sh", self.files), "sha256Checksum": SCRIPT_SHA256},
                    {"type": "Shell", "inline": ["true"]},
                ],
                "distribute": [{
                    "type": "SharedImage", "runOutputName": "out", "galleryImageId": format!("{}/images/gen2", self.gallery()),
                    "targetRegions": [{"name": self.region()}], "versioning": {"scheme": "Latest"},
                }],
            },
        })
    }

    /// PUTs, and polls until the operation has ended: its last body.
    async fn create(&self, name: &str, body: Value) -> Value {
        let response = self.bed.call("PUT", &format!("{}?{BUILDER}", self.id(name)), Some(body)).await;
        assert_eq!(response.status(), 201, "{name}: {}", response.text().await.expect("text"));
        let poll = header(&response, "azure-asyncoperation");
        let (_, body) = read(response).await;
        assert_eq!(body["properties"]["provisioningState"], "Creating");
        assert_eq!(body["properties"]["exactStagingResourceGroup"], "");
        self.ended(&poll).await
    }

    async fn ended(&self, poll: &str) -> Value {
        for _ in 0..600 {
            let (status, body) = self.bed.json("GET", poll, None).await;
            assert_eq!(status, 200, "{body}");
            if body["status"] != "InProgress" {
                return body;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{poll} did not end");
    }

    async fn get(&self, name: &str) -> Value {
        let (status, body) = self.bed.json("GET", &format!("{}?{BUILDER}", self.id(name)), None).await;
        assert_eq!(status, 200, "{body}");
        body
    }

    fn data_dir(&self) -> &Path {
        &self.bed.server.state.config.data_dir
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_lives_and_dies() {
    let lab = Lab::start(None).await;
    let ended = lab.create("T_1", lab.template()).await;
    assert_eq!(ended["status"], "Succeeded", "{ended}");
    let template = lab.get("t_1").await;
    let properties = &template["properties"];
    assert_eq!(properties["provisioningState"], "Succeeded");
    assert_eq!((&template["name"], &template["tags"]["owner"]), (&json!("T_1"), &json!("me")));
    // The checksum of what was fetched is filled in; the bytes are kept.
    let sums: Vec<&str> =
        (0..2).map(|n| properties["customize"][n]["sha256Checksum"].as_str().expect("a checksum")).collect();
    assert_eq!(sums[0], sums[1]);
    let staging = properties["exactStagingResourceGroup"].as_str().expect("a group").to_owned();
    let name = staging.rsplit('/').next().expect("a name").to_owned();
    assert!(name.starts_with("IT_rg_T_1_"), "{name}");
    let folder = lab.data_dir().join("staging").join(name.to_lowercase());
    assert_eq!(std::fs::read_to_string(folder.join("scripts").join(sums[0])).expect("the script"), SCRIPT);
    let (status, group) = lab.bed.json("GET", &format!("{staging}?{VERSION}"), None).await;
    assert_eq!(status, 200);
    let tags = json!({"createdBy": "AzureVMImageBuilder", "imageTemplateName": "T_1", "imageTemplateResourceGroupName": "rg"});
    assert_eq!((&group["tags"], &group["managedBy"]), (&tags, &json!(lab.id("T_1"))));

    let (status, body) =
        lab.bed.json("PUT", &format!("{}?{BUILDER}", lab.id("t_1")), Some(lab.template())).await;
    assert_eq!((status, body["error"]["code"].as_str()), (409, Some("Conflict")));
    assert_eq!(body["error"]["message"], "Update/Upgrade of image templates is currently not supported");

    let patch = json!({"tags": {"owner": "you"}, "properties": {"vmProfile": {"osDiskSizeGB": 40}}});
    let accepted = lab.bed.call("PATCH", &format!("{}?{BUILDER}", lab.id("T_1")), Some(patch)).await;
    assert_eq!(accepted.status(), 202);
    assert_eq!(header(&accepted, "azure-asyncoperation"), header(&accepted, "location"));
    assert_eq!(lab.ended(&header(&accepted, "location")).await["status"], "Succeeded");
    let template = lab.get("T_1").await;
    assert_eq!(
        (&template["tags"]["owner"], &template["properties"]["vmProfile"]["osDiskSizeGB"]),
        (&json!("you"), &json!(40))
    );
    assert_eq!(template["properties"]["exactStagingResourceGroup"], staging, "the group stays");

    for path in [
        format!("{SUBSCRIPTION}/providers/Microsoft.VirtualMachineImages/imageTemplates?{BUILDER}"),
        format!(
            "{SUBSCRIPTION}/resourceGroups/RG/providers/microsoft.virtualmachineimages/imagetemplates?{BUILDER}"
        ),
    ] {
        let (_, body) = lab.bed.json("GET", &path, None).await;
        assert_eq!(body["value"], json!([template]), "{path}");
    }
    let (status, body) = lab.bed.json("GET", &format!("{}/runOutputs?{BUILDER}", lab.id("T_1")), None).await;
    assert_eq!((status, body), (200, json!({"value": []})));
    let cancel = lab.bed.call("POST", &format!("{}/cancel?{BUILDER}", lab.id("T_1")), None).await;
    assert_eq!(cancel.status(), 204, "nothing is under way");

    let accepted = lab.bed.call("DELETE", &format!("{}?{BUILDER}", lab.id("T_1")), None).await;
    assert_eq!(accepted.status(), 202);
    assert_eq!(lab.ended(&header(&accepted, "location")).await["status"], "Succeeded");
    let (status, body) = lab.bed.json("GET", &format!("{}?{BUILDER}", lab.id("T_1")), None).await;
    assert_eq!((status, body["error"]["code"].as_str()), (404, Some("ResourceNotFound")));
    assert_eq!(lab.bed.json("GET", &format!("{staging}?{VERSION}"), None).await.0, 404);
    assert!(!folder.exists(), "scripts go with the template");
    assert_eq!(lab.bed.call("DELETE", &format!("{}?{BUILDER}", lab.id("T_1")), None).await.status(), 204);
    lab.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_template_is_refused_at_once() {
    let lab = Lab::start(None).await;
    let cases: [(&str, Value, u16, &str, &str, &str); 10] = [
        (
            "/properties/vmboot",
            json!(1),
            400,
            "ValidationFailed",
            "properties.vmboot",
            "unknown field \"vmboot\"",
        ),
        (
            "/properties/customize/0/nope",
            json!(1),
            400,
            "ValidationFailed",
            "properties.customize[0].nope",
            "unknown field",
        ),
        ("/identity", json!(null), 400, "ValidationFailed", "identity", "identity"),
        (
            "/properties/distribute",
            json!([]),
            400,
            "ValidationFailed",
            "properties.distribute",
            "At least one",
        ),
        (
            "/properties/buildTimeoutInMinutes",
            json!(5),
            400,
            "ValidationFailed",
            "properties.buildTimeoutInMinutes",
            "is 5",
        ),
        (
            "/properties/customize/2/type",
            json!("Bash"),
            400,
            "ValidationFailed",
            "properties.customize[2].type",
            "Bash",
        ),
        (
            "/properties/customize/1/sha256Checksum",
            json!("12"),
            400,
            "ValidationFailed",
            "properties.customize[1].sha256Checksum",
            "64",
        ),
        (
            "/properties/customize/1/scriptUri",
            json!("file:///etc/passwd"),
            400,
            "ValidationFailed",
            "properties.customize[1].scriptUri",
            "http",
        ),
        (
            "/properties/vmProfile",
            json!({"vmSize": "Standard_Nope"}),
            400,
            "ValidationFailed",
            "properties.vmProfile.vmSize",
            "Standard_Nope",
        ),
        ("/location", json!("atlantis"), 400, "LocationNotAvailableForResourceType", "", "atlantis"),
    ];
    for (pointer, value, status, code, target, text) in cases {
        let mut body = lab.template();
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        body.pointer_mut(parent).expect(pointer)[key] = value;
        let (found, answer) = lab.bed.json("PUT", &format!("{}?{BUILDER}", lab.id("bad")), Some(body)).await;
        let error = &answer["error"];
        assert_eq!((found, error["code"].as_str()), (status, Some(code)), "{pointer}: {answer}");
        assert_eq!(error["target"].as_str().unwrap_or_default(), target, "{pointer}: {answer}");
        assert!(
            error["message"].as_str().is_some_and(|message| message.contains(text)),
            "{pointer}: {answer}"
        );
    }
    // An older version's reader takes the unknown field; a group that is not there and a bad name are refused.
    let mut body = lab.template();
    body["properties"]["vmboot"] = json!(1);
    let old = format!("{}?api-version=2022-02-14", lab.id("old"));
    assert_eq!(lab.bed.json("PUT", &old, Some(body)).await.0, 201);
    let elsewhere = lab.id("t").replace("/rg/", "/none/");
    let (status, body) = lab.bed.json("PUT", &format!("{elsewhere}?{BUILDER}"), Some(lab.template())).await;
    assert_eq!((status, body["error"]["code"].as_str()), (404, Some("ResourceGroupNotFound")));
    let (status, body) =
        lab.bed.json("PUT", &format!("{}?{BUILDER}", lab.id("a%20b")), Some(lab.template())).await;
    assert_eq!((status, body["error"]["code"].as_str()), (400, Some("InvalidParameter")));
    for method in ["GET", "PATCH"] {
        let (status, body) =
            lab.bed.json(method, &format!("{}?{BUILDER}", lab.id("none")), Some(json!({}))).await;
        assert_eq!((status, body["error"]["code"].as_str()), (404, Some("ResourceNotFound")), "{method}");
    }
    lab.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_other_resources_fails_while_it_is_created() {
    let lab = Lab::start(None).await;
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address")
    };
    let image = |name: &str| json!(format!("{}/images/{name}", lab.gallery()));
    let cases: [(&str, Value, &str, &str); 14] = [
        (
            "/properties/customize/1/sha256Checksum",
            json!("0".repeat(64)),
            "NoCustomizerScript",
            "properties.customize[1]",
        ),
        (
            "/properties/customize/1/scriptUri",
            json!(format!("{}/none.sh", lab.files)),
            "NoCustomizerScript",
            "404",
        ),
        (
            "/properties/customize/0/sourceUri",
            json!(format!("http://{closed}/x?sig=secret")),
            "NoCustomizerScript",
            "denied",
        ),
        (
            "/properties/customize/0/sourceUri",
            json!("http://169.254.169.254/metadata"),
            "NoCustomizerScript",
            "169.254.169.254",
        ),
        (
            "/properties/customize/2",
            json!({"type": "PowerShell", "inline": ["dir"]}),
            "UnsupportedCustomizerType",
            "PowerShell",
        ),
        (
            "/properties/customize/2",
            json!({"type": "WindowsRestart"}),
            "UnsupportedCustomizerType",
            "WindowsRestart",
        ),
        ("/properties/source/sku", json!("13"), "BadPIRSource", "Debian:debian-12:13:latest"),
        ("/properties/source/version", json!("12.0.20200101"), "BadPIRSource", "12.0.20200101"),
        (
            "/properties/source",
            json!({"type": "SharedImageVersion", "imageVersionId": format!("{}/images/gen2/versions/1.0.0", lab.gallery())}),
            "BadSharedImageVersionSource",
            "1.0.0",
        ),
        (
            "/properties/distribute/0/galleryImageId",
            image("none"),
            "BadSharedImageDistribute",
            "was not found",
        ),
        (
            "/properties/distribute/0/galleryImageId",
            image("gen1"),
            "BadSharedImageDistribute",
            "hyperVGeneration 'V1'",
        ),
        (
            "/properties/distribute/0/galleryImageId",
            image("windows"),
            "BadSharedImageDistribute",
            "osType 'Windows'",
        ),
        (
            "/properties/distribute/0/targetRegions",
            json!([{"name": "atlantis"}]),
            "BadSharedImageDistribute",
            "atlantis",
        ),
        (
            "/properties/distribute/0",
            json!({"type": "VHD", "runOutputName": "vhd", "uri": "http://10.1.2.3/a/c/b.vhd?sv=1&sp=w&sig=x"}),
            "BadDistributeType",
            "10.1.2.3",
        ),
    ];
    for (n, (pointer, value, code, text)) in cases.into_iter().enumerate() {
        let name = format!("bad{n}");
        let mut body = lab.template();
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let parent = body.pointer_mut(parent).expect(pointer);
        match key.parse::<usize>() {
            Ok(index) => parent[index] = value,
            Err(_) => parent[key] = value,
        }
        let ended = lab.create(&name, body).await;
        let message = ended["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(
            (ended["status"].as_str(), ended["error"]["code"].as_str()),
            (Some("Failed"), Some(code)),
            "{pointer}: {ended}"
        );
        assert!(message.contains(text) && !message.contains("secret"), "{pointer}: {ended}");
        let properties = &lab.get(&name).await["properties"];
        assert_eq!(properties["provisioningState"], "Failed");
        assert_eq!(
            properties["provisioningError"],
            json!({"provisioningErrorCode": code, "message": message})
        );
        let (status, body) = lab.bed.json("POST", &format!("{}/run?{BUILDER}", lab.id(&name)), None).await;
        assert_eq!((status, body["error"]["code"].as_str()), (409, Some("OperationNotAllowed")), "{body}");
    }
    assert_eq!(
        std::fs::read_dir(lab.data_dir().join("runs")).expect("a folder").count(),
        0,
        "nothing was started"
    );
    let accepted = lab.bed.call("DELETE", &format!("{}?{BUILDER}", lab.id("bad0")), None).await;
    assert_eq!(
        lab.ended(&header(&accepted, "location")).await["status"],
        "Succeeded",
        "a failed one can be deleted"
    );
    lab.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staging_group_of_the_users_is_used_and_left() {
    let lab = Lab::start(None).await;
    let group = format!("{SUBSCRIPTION}/resourceGroups/staging");
    let made = json!({"location": lab.region(), "tags": {"mine": "1"}});
    assert_eq!(lab.bed.json("PUT", &format!("{group}?{VERSION}"), Some(made)).await.0, 201);
    let with = |id: &str| {
        let mut body = lab.template();
        body["properties"]["stagingResourceGroup"] = json!(id);
        body
    };
    assert_eq!(lab.create("one", with(&group)).await["status"], "Succeeded");
    let (_, found) = lab.bed.json("GET", &format!("{group}?{VERSION}"), None).await;
    assert_eq!((&found["tags"]["usedBy"], &found["tags"]["mine"]), (&json!(lab.id("one")), &json!("1")));
    for (name, id, text) in [
        ("two", group.clone(), "is used by"),
        ("three", format!("{SUBSCRIPTION}/resourceGroups/rg"), "is not empty"),
        ("four", "/subscriptions/x/resourceGroups/../../etc".to_owned(), "must be the id"),
    ] {
        let ended = lab.create(name, with(&id)).await;
        assert_eq!(ended["error"]["code"], "BadStagingResourceGroup", "{ended}");
        assert!(ended["error"]["message"].as_str().is_some_and(|message| message.contains(text)), "{ended}");
    }
    let accepted = lab.bed.call("DELETE", &format!("{}?{BUILDER}", lab.id("one")), None).await;
    assert_eq!(lab.ended(&header(&accepted, "location")).await["status"], "Succeeded");
    let (status, found) = lab.bed.json("GET", &format!("{group}?{VERSION}"), None).await;
    assert_eq!((status, &found["tags"]), (200, &json!({"mine": "1"})), "as it was before");
    assert!(!lab.data_dir().join("staging/staging").exists());
    lab.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_come_from_our_own_blobs_with_a_sas() {
    let lab = Lab::start(None).await;
    let (url, sas) = crate::blobs::script(&lab.bed, &lab.region(), "echo from a blob\n").await;
    // No entry of the network policy names this server: its own blobs need none.
    let mut body = lab.template();
    body["properties"]["customize"] = json!([{"type": "Shell", "scriptUri": format!("{url}?{sas}")}]);
    let end = lab.create("signed", body.clone()).await;
    assert_eq!(end["status"], "Succeeded", "{end}");
    for (name, uri, expected) in [
        ("unsigned", url.clone(), "(NoAuthenticationInformation); a private blob needs a SAS"),
        (
            "altered",
            format!("{url}?{}", sas.replace("sp=r", "sp=rw")),
            "(AuthenticationFailed); check that its SAS",
        ),
        ("missing", format!("{url}x?{sas}"), "(AuthenticationFailed)"),
    ] {
        body["properties"]["customize"][0]["scriptUri"] = json!(uri);
        let end = lab.create(name, body.clone()).await;
        let text = end.to_string();
        assert!(text.contains(expected) && !text.contains("sig="), "{name}: {text}");
    }
    lab.bed.stop().await;
}
