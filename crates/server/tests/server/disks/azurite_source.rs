//! A page blob of a storage account that is not ours, behind a SAS, as the source of a disk and of an image version.

use super::*;
use crate::azurite::Azurite;

#[tokio::test(flavor = "multi_thread")]
async fn disks_and_versions_come_from_page_blobs_of_azurite() {
    let azurite = Azurite::start().await;
    let address = azurite.address.to_string();
    let disks = Disks::start_with(|config| config.network.allow = vec![address]).await;
    let (raw, vhd) = vhd(disks.bed.folder.path(), "d", 0x51);
    azurite.put_pages("d.vhd", &std::fs::read(&vhd).expect("reads")).await;
    disks.definition().await;
    let import = |uri: &str| {
        json!({"location": "eastus", "properties": {"osType": "Linux", "creationData":
            {"createOption": "Import", "sourceUri": uri}}})
    };
    let signed = azurite.signed("d.vhd", "r");
    let disk = disks.done("PUT", "disks/a", Some(import(&signed))).await;
    assert_eq!(disk["properties"]["creationData"]["sourceUri"], azurite.url("images/d.vhd"), "{disk}");
    let version = "galleries/G/images/d/versions/1.0.0";
    let source = json!({"uri": signed, "storageAccountId": disks.id("x/y")});
    disks.done("PUT", version, Some(version_of(source))).await;
    let (_, found) = disks.json("GET", version, None).await;
    assert_eq!(found["properties"]["provisioningState"], "Succeeded", "{found}");
    assert_eq!(disks.region("eastus").await.stats().await.expect("stats").manifests, 1, "one image for both");

    let body = json!({"location": "eastus", "properties": {"creationData":
        {"createOption": "FromImage", "galleryImageReference": {"id": disks.id(version)}}}});
    disks.done("PUT", "disks/from", Some(body)).await;
    for name in ["disks/a", "disks/from"] {
        let url = disks.grant(name, "Read", 600).await;
        let back = disks.file("back.vhd");
        disks.python("download", &url, &back).await;
        assert_eq!(sum(&back, FOOTER), sum(&raw, 0), "{name}");
    }

    for (name, uri, expected) in [
        ("unsigned", azurite.url("images/d.vhd"), "a private blob needs a SAS"),
        ("blind", azurite.signed("d.vhd", "w"), "allows reading (sp=r)"),
    ] {
        let end = disks.end("PUT", &format!("disks/{name}"), Some(import(&uri))).await;
        let text = end.to_string();
        assert_eq!(end["status"], "Failed", "{end}");
        assert!(text.contains(expected) && !text.contains("sig="), "{name}: {text}");
    }
    disks.bed.stop().await;
}
