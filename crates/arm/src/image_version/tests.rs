//! Image versions there and back.

use std::collections::BTreeMap;

use model::content::DiskContent;
use model::image_version::{ImageVersion, RegionReplication, VersionContent};
use model::{ManifestRef, Region, Timestamp, VersionName};
use serde_json::{Value, json};

use super::{Expand, parse, render};
use crate::api_version::ApiVersion;
use crate::common::{Context, Parsed};
use crate::error::ArmError;
use crate::resource_id::ResourceId;

const ID: &str =
    "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/galleries/g/images/d/versions/1.0.0";

fn body() -> Value {
    json!({"location": "eastus2", "tags": {}, "properties": {
        "publishingProfile": {
            "targetRegions": [
                {"name": "eastus2"},
                {"name": "West US 2", "regionalReplicaCount": 2, "encryption": {"x": 1}}
            ],
        },
        "storageProfile": {"source": {"id": "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/images/i"}}
    }})
}

fn parsed(body: Value) -> Result<Parsed<model::image_version::ImageVersionSpec>, ArmError> {
    parse(body, &ApiVersion::parse("2023-07-03").unwrap())
}

#[test]
fn a_replicating_version_shows_where_it_is() {
    let Parsed { data, extra } = parsed(body()).unwrap();
    data.check(Timestamp::UNIX_EPOCH).unwrap();
    let mut version = ImageVersion::create(VersionName::parse("1.0.0").unwrap(), data, Timestamp::UNIX_EPOCH);
    let (east, west) = (Region::parse("eastus2").unwrap(), Region::parse("westus2").unwrap());
    let content = VersionContent {
        os_disk: DiskContent { manifest: ManifestRef::parse("m").unwrap(), size_bytes: 3 << 30 },
        data_disks: BTreeMap::new(),
    };
    version.state = version.state.stored(content, &east, &[east.clone(), west.clone()]).unwrap();
    version.state =
        version.state.region(&west, RegionReplication::Replicating { progress_percent: 40 }).unwrap();
    let expand = Expand::parse(Some("ReplicationStatus")).unwrap();
    let id = ResourceId::parse(ID).unwrap();
    insta::assert_json_snapshot!(render(&version, expand, &Context { id: &id, extra: &extra })["properties"], @r#"
    {
      "publishingProfile": {
        "targetRegions": [
          {
            "name": "East US 2",
            "regionalReplicaCount": 1,
            "storageAccountType": "Standard_LRS"
          },
          {
            "name": "West US 2",
            "regionalReplicaCount": 2,
            "storageAccountType": "Standard_LRS",
            "encryption": {
              "x": 1
            }
          }
        ],
        "replicaCount": 1,
        "excludeFromLatest": false,
        "publishedDate": "1970-01-01T00:00:00.0000000+00:00",
        "storageAccountType": "Standard_LRS"
      },
      "storageProfile": {
        "source": {
          "id": "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/images/i"
        },
        "osDiskImage": {
          "sizeInGB": 3,
          "hostCaching": "ReadWrite",
          "source": {}
        }
      },
      "safetyProfile": {
        "reportedForPolicyViolation": false,
        "allowDeletionOfReplicatedLocations": false
      },
      "replicationStatus": {
        "aggregatedState": "InProgress",
        "summary": [
          {
            "region": "East US 2",
            "state": "Completed",
            "details": "",
            "progress": 100
          },
          {
            "region": "West US 2",
            "state": "Replicating",
            "details": "",
            "progress": 40
          }
        ]
      },
      "provisioningState": "Creating"
    }
    "#);
}

#[test]
fn what_was_answered_can_be_sent_back() {
    let Parsed { data, extra } = parsed(body()).unwrap();
    let version = ImageVersion::create(VersionName::parse("1.0.0").unwrap(), data, Timestamp::UNIX_EPOCH);
    let id = ResourceId::parse(ID).unwrap();
    let answer = render(&version, Expand::default(), &Context { id: &id, extra: &extra });
    let again = parsed(answer).unwrap();
    let kept = version.updated_spec(again.data).unwrap();
    assert_eq!(kept.source, version.spec.source);
    assert_eq!(again.extra, extra);
}

#[test]
fn refusals_name_the_property() {
    let refusal = |change: fn(&mut Value)| {
        let mut body = body();
        change(&mut body["properties"]);
        let error = parsed(body).unwrap_err();
        (error.code, error.target.unwrap_or_default())
    };
    let storage = "properties.storageProfile";
    assert_eq!(
        refusal(|p| p["storageProfile"]["source"]["id"] = json!("images/i")),
        ("InvalidParameter".into(), format!("{storage}.source.id"))
    );
    assert_eq!(
        refusal(|p| p["storageProfile"]["source"]["id"] = json!("/images/i")),
        ("LinkedInvalidPropertyId".into(), format!("{storage}.source.id"))
    );
    assert_eq!(
        refusal(|p| p["storageProfile"]["source"]["virtualMachineId"] =
            json!("/subscriptions/s/resourceGroups/v"))
        .1,
        storage
    );
    assert_eq!(
        refusal(|p| p["publishingProfile"]["replicaCount"] = json!(-1)).1,
        "properties.publishingProfile.replicaCount"
    );
    assert_eq!(
        refusal(|p| p["storageProfile"]["dataDiskImages"] = json!([{"lun": 64}])).1,
        "properties.storageProfile.dataDiskImages[0].lun"
    );
    assert_eq!(Expand::parse(Some("Everything")).unwrap_err().target.as_deref(), Some("$expand"));
}
