//! Image templates there and back, in both dialects.

use chrono::DateTime;
use model::image_template::{ImageTemplate, ImageTemplateSpec, RunOutcome};
use model::{ImageTemplateName, ProvisioningState};
use serde_json::{Map, Value, json};

use super::{parse, parse_patch, render};
use crate::api_version::ApiVersion;
use crate::common::{Context, Parsed};
use crate::error::ArmError;
use crate::resource_id::ResourceId;

const STRICT: &str = "2024-02-01";
const LENIENT: &str = "2023-07-01";

fn body() -> Value {
    let rg = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers";
    json!({
        "location": "eastus", "tags": {},
        "identity": {"type": "UserAssigned", "userAssignedIdentities": {
            (format!("{rg}/Microsoft.ManagedIdentity/userAssignedIdentities/i")): {}
        }},
        "properties": {
            "source": {"type": "PlatformImage", "publisher": "Debian", "offer": "debian-12", "sku": "12-gen2", "version": "latest"},
            "customize": [
                {"type": "File", "name": "motd", "sourceUri": "https://x/motd", "destination": "/tmp/motd"},
                {"type": "Shell", "name": "nginx", "inline": ["sudo apt-get install -y nginx"]},
                {"type": "Shell", "scriptUri": "https://x/s.sh", "sha256Checksum": "2c6ff6902a4a52deee69e8db26d0036a53388651008aaf31795bb20dabd21fd8"}
            ],
            "validate": {"inVMValidations": [{"type": "Shell", "inline": ["nginx -v"]}]},
            "distribute": [{
                "type": "SharedImage", "runOutputName": "out",
                "galleryImageId": format!("{rg}/Microsoft.Compute/galleries/g/images/d"),
                "targetRegions": [{"name": "eastus"}, {"name": "West US", "replicaCount": 2}],
                "versioning": {"scheme": "Latest", "major": 1}
            }],
            "additionalDataDisks": [{"sizeGB": 4}]
        }
    })
}

fn parsed(body: Value, version: &str) -> Result<Parsed<ImageTemplateSpec>, ArmError> {
    parse(body, &ApiVersion::parse(version).unwrap())
}

fn id() -> ResourceId {
    ResourceId::parse(
        "/subscriptions/s/resourceGroups/rg/providers/Microsoft.VirtualMachineImages/imageTemplates/t",
    )
    .unwrap()
}

#[test]
fn a_template_comes_back_with_defaults() {
    let Parsed { data, extra } = parsed(body(), STRICT).unwrap();
    let template = ImageTemplate::create(ImageTemplateName::parse("t").unwrap(), data);
    insta::assert_json_snapshot!(render(&template, &Context { id: &id(), extra: &extra }), @r#"
    {
      "properties": {
        "source": {
          "exactVersion": "latest",
          "offer": "debian-12",
          "publisher": "Debian",
          "sku": "12-gen2",
          "type": "PlatformImage",
          "version": "latest"
        },
        "customize": [
          {
            "name": "motd",
            "sourceUri": "https://x/motd",
            "destination": "/tmp/motd",
            "type": "File"
          },
          {
            "name": "nginx",
            "inline": [
              "sudo apt-get install -y nginx"
            ],
            "type": "Shell"
          },
          {
            "scriptUri": "https://x/s.sh",
            "sha256Checksum": "2c6ff6902a4a52deee69e8db26d0036a53388651008aaf31795bb20dabd21fd8",
            "type": "Shell"
          }
        ],
        "validate": {
          "continueDistributeOnFailure": false,
          "inVMValidations": [
            {
              "inline": [
                "nginx -v"
              ],
              "type": "Shell"
            }
          ],
          "sourceValidationOnly": false
        },
        "distribute": [
          {
            "artifactTags": {},
            "excludeFromLatest": false,
            "galleryImageId": "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.Compute/galleries/g/images/d",
            "targetRegions": [
              {
                "name": "eastus",
                "replicaCount": 1
              },
              {
                "name": "westus",
                "replicaCount": 2
              }
            ],
            "runOutputName": "out",
            "type": "SharedImage",
            "versioning": {
              "scheme": "Latest",
              "major": 1
            }
          }
        ],
        "provisioningState": "Creating",
        "buildTimeoutInMinutes": 0,
        "vmProfile": {
          "vmSize": "",
          "osDiskSizeGB": 0
        },
        "stagingResourceGroup": "",
        "exactStagingResourceGroup": "",
        "additionalDataDisks": [
          {
            "sizeGB": 4
          }
        ]
      },
      "identity": {
        "type": "UserAssigned",
        "userAssignedIdentities": {
          "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i": {}
        }
      },
      "location": "eastus",
      "id": "/subscriptions/s/resourcegroups/rg/providers/Microsoft.VirtualMachineImages/imageTemplates/t",
      "name": "t",
      "type": "Microsoft.VirtualMachineImages/imageTemplates",
      "tags": {}
    }
    "#);
    // What was answered reads back as what was meant.
    let answer = render(&template, &Context { id: &id(), extra: &extra });
    assert_eq!(parsed(answer, STRICT).unwrap(), Parsed { data: template.spec, extra });
}

#[test]
fn strictness_follows_the_version() {
    let mut odd = body();
    odd["properties"]["optimize"] = json!({"vmboot": {"state": "Enabled"}});
    odd["properties"]["colour"] = json!(1);
    let error = parsed(odd.clone(), STRICT).unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (400, "ValidationFailed"));
    assert_eq!(
        error.message,
        "Unmarshalling entity encountered error: unmarshalling type *v2024_02_01.ImageTemplate: struct field Properties: \
         unmarshalling type *v2024_02_01.ImageTemplateProperties: struct field Optimize: unmarshalling type \
         *v2024_02_01.ImageTemplatePropertiesOptimize: unmarshalling type *v2024_02_01.ImageTemplatePropertiesOptimize, unknown \
         field \"vmboot\". There is an issue with the syntax with the JSON template you are submitting. Please check the JSON \
         template for syntax and grammar. For more information on the syntax and grammar of the JSON template, visit \
         http://aka.ms/azvmimagebuildertmplref."
    );
    let lenient = parsed(odd, LENIENT).unwrap();
    assert_eq!(lenient.data.optimize_vm_boot, Some(true));
    assert!(!lenient.extra.contains_key("colour"));
}

#[test]
fn refusals_name_the_property() {
    let refusal = |change: fn(&mut Value)| {
        let mut body = body();
        change(&mut body);
        let error = parsed(body, STRICT).unwrap_err();
        assert_eq!(error.status, 400);
        error.target.unwrap_or_default()
    };
    assert_eq!(
        refusal(|b| b["properties"]["customize"][1]["type"] = json!("shell")),
        "properties.customize[1].type"
    );
    assert_eq!(
        refusal(|b| b["properties"]["customize"][1]["type"] = json!(7)),
        "properties.customize[1].type"
    );
    assert_eq!(
        refusal(|b| b["properties"]["customize"][1]["inlin"] = json!([])),
        "properties.customize[1].inlin"
    );
    assert_eq!(
        refusal(|b| b["properties"]["customize"][1]["scriptUri"] = json!("https://x")),
        "properties.customize[1]"
    );
    assert_eq!(refusal(|b| b["properties"]["customize"][1]["inline"] = json!([])), "properties.customize[1]");
    assert_eq!(
        refusal(|b| b["properties"]["customize"][1]["inline"] = json!("x")),
        "properties.customize[1].inline"
    );
    assert_eq!(
        refusal(|b| b["properties"]["customize"][2]["sha256Checksum"] = json!("abc")),
        "properties.customize[2].sha256Checksum"
    );
    assert_eq!(refusal(|b| b["properties"]["source"]["type"] = json!("ISO")), "properties.source.type");
    assert_eq!(refusal(|b| b["properties"]["source"]["sku"] = json!(null)), "properties.source.sku");
    assert_eq!(refusal(|b| b["identity"] = json!({"type": "UserAssigned"})), "identity");
    assert_eq!(refusal(|b| b["identity"] = json!(null)), "identity");
    assert_eq!(refusal(|b| b["properties"]["distribute"] = json!(null)), "properties.distribute");
    assert_eq!(refusal(|b| b["properties"]["distribute"] = json!([])), "properties.distribute");
    assert_eq!(
        refusal(|b| b["properties"]["distribute"][0]["galleryImageId"] = json!("/subscriptions/s/x")),
        "properties.distribute[0].galleryImageId"
    );
    assert_eq!(
        refusal(|b| b["properties"]["distribute"][0]["replicationRegions"] = json!(["eastus"])),
        "properties.distribute[0].targetRegions"
    );
    assert_eq!(
        refusal(|b| b["properties"]["distribute"][0]["runOutputName"] = json!("a b")),
        "properties.distribute[0].runOutputName"
    );
    assert_eq!(
        refusal(|b| b["properties"]["distribute"][0]["targetRegions"] =
            json!([{"name": "eastus", "replicaCount": -1}])),
        "properties.distribute[0].targetRegions[0].replicaCount"
    );
    assert_eq!(
        refusal(|b| b["properties"]["buildTimeoutInMinutes"] = json!(5)),
        "properties.buildTimeoutInMinutes"
    );
}

#[test]
fn a_shared_version_is_a_source_and_a_definition_is_not() {
    let mut body = body();
    let definition = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.Compute/galleries/g/images/d";
    body["properties"]["source"] =
        json!({"type": "SharedImageVersion", "imageVersionId": format!("{definition}/versions/latest")});
    let Parsed { data, .. } = parsed(body.clone(), STRICT).unwrap();
    let template = ImageTemplate::create(ImageTemplateName::parse("t").unwrap(), data);
    let answer = render(&template, &Context { id: &id(), extra: &Map::new() });
    assert_eq!(answer["properties"]["source"]["imageVersionId"], format!("{definition}/versions/latest"));
    assert_eq!(answer["properties"]["source"]["exactVersion"], "latest");
    body["properties"]["source"]["imageVersionId"] = json!(definition);
    assert_eq!(parsed(body, STRICT).unwrap_err().target.as_deref(), Some("properties.source.imageVersionId"));
}

#[test]
fn the_last_run_is_told_as_recorded() {
    let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
    let Parsed { data, extra } = parsed(body(), STRICT).unwrap();
    let mut template = ImageTemplate::create(ImageTemplateName::parse("t").unwrap(), data);
    template.provisioning = ProvisioningState::Succeeded;
    let template = template.start_run(at(0)).unwrap();
    let status = |template: &ImageTemplate| {
        render(template, &Context { id: &id(), extra: &extra })["properties"]["lastRunStatus"].to_string()
    };
    insta::assert_snapshot!(status(&template), @r#"{"startTime":"1970-01-01T00:00:00.0000000Z","endTime":"0001-01-01T00:00:00Z","runState":"Running","runSubState":"Queued","message":""}"#);
    let mut ended = template.clone();
    ended.last_run = ended.last_run.map(|run| run.finish(RunOutcome::Failed, "why", at(9)).unwrap());
    insta::assert_snapshot!(status(&ended), @r#"{"startTime":"1970-01-01T00:00:00.0000000Z","endTime":"1970-01-01T00:00:09.0000000Z","runState":"Failed","message":"why"}"#);
    let mut canceling = template;
    canceling.last_run = canceling.last_run.map(|run| run.cancel().unwrap());
    insta::assert_snapshot!(status(&canceling), @r#"{"startTime":"1970-01-01T00:00:00.0000000Z","endTime":"0001-01-01T00:00:00Z","runState":"Canceling","runSubState":"Queued","message":"Canceling image build"}"#);
}

#[test]
fn a_patch_changes_what_it_may() {
    let version = ApiVersion::parse(STRICT).unwrap();
    let patch = parse_patch(json!({"tags": {"a": "b"}, "identity": {"type": "None"}}), &version).unwrap();
    let Parsed { data, .. } = parsed(body(), STRICT).unwrap();
    let template = ImageTemplate::create(ImageTemplateName::parse("t").unwrap(), data);
    let spec = template.patched_spec(patch).unwrap();
    assert_eq!(spec.tags.get("a"), Some("b"));
    let error = parse_patch(json!({"properties": {"source": {}}}), &version).unwrap_err();
    assert_eq!(error.target.as_deref(), Some("properties.source"));
}
