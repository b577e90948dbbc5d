//! Virtual machines there and back.

use chrono::DateTime;
use model::content::DiskContent;
use model::image_definition::{HyperVGeneration, OsType};
use model::virtual_machine::{AgentReport, PowerState, ResolvedImage, VirtualMachine};
use model::{Failure, ManifestRef, Timestamp, VmName};
use serde_json::{Value, json};

use super::{Expand, ParsedVm, instance_view, parse, render};
use crate::api_version::ApiVersion;
use crate::common::Context;
use crate::error::ArmError;
use crate::resource_id::ResourceId;

fn body() -> Value {
    json!({"location": "westus", "zones": ["1"], "properties": {
        "hardwareProfile": {"vmSize": "Standard_B1s"},
        "storageProfile": {
            "imageReference": {"id": "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.Compute/galleries/g/images/d"},
            "osDisk": {"createOption": "fromImage", "name": null, "caching": "ReadWrite", "managedDisk": {"storageAccountType": null}},
            "dataDisks": [{"lun": 0, "createOption": "empty", "diskSizeGB": 10, "managedDisk": {"id": "/x"}}]
        },
        "osProfile": {
            "computerName": "vm1", "adminUsername": "azureuser", "adminPassword": "Secret-Passw0rd", "customData": "I2Nsb3VkLWNvbmZpZwo=",
            "linuxConfiguration": {"ssh": {"publicKeys": [{"path": "/home/azureuser/.ssh/authorized_keys", "keyData": "ssh-ed25519 AAAA"}]}}
        },
        "userData": "dXNlcg==",
        "networkProfile": {"networkInterfaces": [{"id": "/nic", "properties": {"primary": true}}]}
    }})
}

fn parsed(body: Value, version: &str) -> Result<ParsedVm, ArmError> {
    parse(&VmName::parse("vm1").unwrap(), body, &ApiVersion::parse(version).unwrap())
}

fn vm(parsed: &ParsedVm) -> VirtualMachine {
    VirtualMachine::create(
        VmName::parse("vm1").unwrap(),
        parsed.data.clone(),
        uuid::Uuid::nil(),
        Timestamp::UNIX_EPOCH,
    )
}

fn id() -> ResourceId {
    ResourceId::parse("/subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/virtualMachines/vm1")
        .unwrap()
}

#[test]
fn a_machine_comes_back_without_its_secrets() {
    let parsed = parsed(body(), "2024-07-01").unwrap();
    assert_eq!(parsed.data.check(&parsed.secrets), Ok(()));
    assert_eq!(parsed.secrets.admin_password.as_ref().unwrap().expose(), "Secret-Passw0rd");
    let context = Context { id: &id(), extra: &parsed.extra };
    let answer = render(&vm(&parsed), Some(&parsed.secrets), Expand::default(), &context);
    for secret in ["Secret-Passw0rd", "I2Nsb3", "dXNlcg"] {
        assert!(!answer.to_string().contains(secret), "{secret}");
        assert!(!format!("{parsed:?}").contains(secret), "{secret}");
        assert!(!serde_json::to_string(&parsed.data).unwrap().contains(secret), "{secret}");
    }
    insta::assert_json_snapshot!(answer, @r#"
    {
      "name": "vm1",
      "id": "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/virtualMachines/vm1",
      "type": "Microsoft.Compute/virtualMachines",
      "location": "westus",
      "properties": {
        "hardwareProfile": {
          "vmSize": "Standard_B1s"
        },
        "provisioningState": "Creating",
        "vmId": "00000000-0000-0000-0000-000000000000",
        "storageProfile": {
          "imageReference": {
            "id": "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.Compute/galleries/g/images/d"
          },
          "osDisk": {
            "osType": "Linux",
            "name": "vm1_OsDisk_1_00000000000000000000000000000000",
            "createOption": "FromImage",
            "caching": "ReadWrite",
            "deleteOption": "Detach"
          },
          "dataDisks": [
            {
              "lun": 0,
              "createOption": "Empty",
              "caching": "None",
              "deleteOption": "Detach",
              "diskSizeGB": 10,
              "toBeDetached": false,
              "managedDisk": {
                "id": "/x"
              }
            }
          ]
        },
        "osProfile": {
          "computerName": "vm1",
          "adminUsername": "azureuser",
          "linuxConfiguration": {
            "disablePasswordAuthentication": false,
            "ssh": {
              "publicKeys": [
                {
                  "path": "/home/azureuser/.ssh/authorized_keys",
                  "keyData": "ssh-ed25519 AAAA"
                }
              ]
            },
            "provisionVMAgent": true,
            "patchSettings": {
              "patchMode": "ImageDefault",
              "assessmentMode": "ImageDefault"
            }
          },
          "allowExtensionOperations": true,
          "requireGuestProvisionSignal": true,
          "secrets": []
        },
        "timeCreated": "1970-01-01T00:00:00.0000000+00:00",
        "networkProfile": {
          "networkInterfaces": [
            {
              "id": "/nic",
              "properties": {
                "primary": true
              }
            }
          ]
        }
      },
      "zones": [
        "1"
      ],
      "etag": "\"1\""
    }
    "#);
    let expand = Expand::parse(Some("userData")).unwrap();
    let answer = render(&vm(&parsed), Some(&parsed.secrets), expand, &context);
    assert_eq!(answer["properties"]["userData"], "dXNlcg==");
}

#[test]
fn the_instance_view_tells_a_life() {
    let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
    let parsed = parsed(body(), "2024-07-01").unwrap();
    let fresh = vm(&parsed);
    let codes = |vm: &VirtualMachine| {
        let view = instance_view(vm);
        let codes = view["statuses"]
            .as_array()
            .unwrap()
            .iter()
            .map(|status| status["code"].as_str().unwrap().to_owned());
        codes.collect::<Vec<_>>()
    };
    assert_eq!(codes(&fresh), ["ProvisioningState/creating"]);
    let mut running = fresh.clone().powered(PowerState::Running);
    let os_disk = DiskContent { manifest: ManifestRef::parse("m").unwrap(), size_bytes: 1 << 31 };
    running.image = Some(ResolvedImage {
        exact_version: Some("1.0.0".into()),
        os_type: OsType::Linux,
        hyper_v_generation: HyperVGeneration::V2,
        os_disk,
    });
    running.agent = Some(AgentReport {
        version: Some("2.12".into()),
        ready: true,
        message: "Guest Agent is running".into(),
        at: at(5),
    });
    let running = running.provisioned(at(6)).unwrap();
    insta::assert_json_snapshot!(instance_view(&running), @r#"
    {
      "computerName": "vm1",
      "osName": "linux",
      "vmAgent": {
        "vmAgentVersion": "2.12",
        "statuses": [
          {
            "code": "ProvisioningState/succeeded",
            "level": "Info",
            "displayStatus": "Ready",
            "message": "Guest Agent is running",
            "time": "1970-01-01T00:00:05.0000000+00:00"
          }
        ],
        "extensionHandlers": []
      },
      "disks": [
        {
          "name": "vm1_OsDisk_1_00000000000000000000000000000000",
          "statuses": [
            {
              "code": "ProvisioningState/succeeded",
              "level": "Info",
              "displayStatus": "Provisioning succeeded",
              "time": "1970-01-01T00:00:00.0000000+00:00"
            }
          ]
        }
      ],
      "hyperVGeneration": "V2",
      "statuses": [
        {
          "code": "ProvisioningState/succeeded",
          "level": "Info",
          "displayStatus": "Provisioning succeeded",
          "time": "1970-01-01T00:00:06.0000000+00:00"
        },
        {
          "code": "PowerState/running",
          "level": "Info",
          "displayStatus": "VM running"
        }
      ]
    }
    "#);
    let answer = render(
        &running,
        None,
        Expand::parse(Some("instanceView")).unwrap(),
        &Context { id: &id(), extra: &parsed.extra },
    );
    assert_eq!(answer["properties"]["storageProfile"]["imageReference"]["exactVersion"], "1.0.0");
    assert_eq!(answer["properties"]["storageProfile"]["osDisk"]["diskSizeGB"], 2);
    assert_eq!(answer["etag"], "\"3\"");
    let failed = fresh.failed(Failure::new("OSProvisioningTimedOut", "silence"), at(7)).unwrap();
    assert_eq!(codes(&failed), ["ProvisioningState/failed/OSProvisioningTimedOut"]);
}

#[test]
fn refusals_name_the_property() {
    let refusal = |change: fn(&mut Value)| {
        let mut body = body();
        change(&mut body["properties"]);
        let error = parsed(body, "2024-07-01").unwrap_err();
        (error.code, error.target.unwrap_or_default())
    };
    let parameter = |target: &str| ("InvalidParameter".to_owned(), target.to_owned());
    assert_eq!(refusal(|p| p["storageProfile"]["osDisk"] = json!(null)), parameter("osDisk"));
    assert_eq!(
        refusal(|p| p["storageProfile"]["osDisk"]["createOption"] = json!("Magic")),
        parameter("osDisk.createOption")
    );
    assert_eq!(
        refusal(|p| p["storageProfile"]["imageReference"] = json!({"publisher": "x"})),
        parameter("imageReference")
    );
    assert_eq!(
        refusal(|p| p["storageProfile"]["dataDisks"][0]["lun"] = json!(99)),
        parameter("dataDisk.lun")
    );
    assert_eq!(
        refusal(|p| p["osProfile"]["adminPasword"] = json!("x")),
        ("BadRequest".into(), "properties.osProfile.adminPasword".into())
    );
    assert_eq!(
        refusal(|p| p["osProfile"]["linuxConfiguration"]["ssh"]["publicKeys"] = json!({})),
        ("InvalidRequestContent".into(), "properties.osProfile.linuxConfiguration.ssh.publicKeys".into())
    );
}

#[test]
fn a_newer_version_keeps_what_we_do_not_know() {
    let mut body = body();
    body["properties"]["placement"] = json!({"zone": 1});
    assert!(parsed(body.clone(), "2024-07-01").is_err());
    let parsed = parsed(body, "2026-04-01").unwrap();
    let answer = render(&vm(&parsed), None, Expand::default(), &Context { id: &id(), extra: &parsed.extra });
    assert_eq!(answer["properties"]["placement"]["zone"], 1);
}
