//! What disks are made from, and what is made from disks: image versions, VHDs by address, other regions.

use std::io::{Read, Write};
use std::net::TcpListener;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn versions_come_from_disks_and_go_to_disks_without_new_bytes() {
    let disks = Disks::start().await;
    let (raw, vhd) = vhd(disks.bed.folder.path(), "d", 0x11);
    disks.uploaded("os", &vhd).await;
    disks.done("PUT", "snapshots/s", Some(copy_of(&disks.id("disks/os")))).await;
    disks.definition().await;
    let before = disks.region("eastus").await.stats().await.expect("stats");
    for (version, source) in [("1.0.0", "disks/os"), ("1.0.1", "snapshots/s")] {
        let below = format!("galleries/G/images/d/versions/{version}");
        disks.done("PUT", &below, Some(version_of(json!({"id": disks.id(source)})))).await;
        let (_, found) = disks.json("GET", &below, None).await;
        assert_eq!(found["properties"]["provisioningState"], "Succeeded", "{found}");
        assert_eq!(found["properties"]["storageProfile"]["osDiskImage"]["sizeInGB"], 1, "{found}");
    }
    let after = disks.region("eastus").await.stats().await.expect("stats");
    assert_eq!((after.packs, after.manifests), (before.packs, before.manifests), "no new bytes");

    let image = disks.id("galleries/G/images/d/versions/1.0.1");
    let body = json!({"location": "eastus", "properties": {"creationData":
        {"createOption": "FromImage", "galleryImageReference": {"id": image}}}});
    let disk = disks.done("PUT", "disks/from", Some(body)).await;
    let properties = &disk["properties"];
    assert_eq!(
        (&properties["osType"], &properties["hyperVGeneration"]),
        (&json!("Linux"), &json!("V1")),
        "{disk}"
    );
    assert_eq!(properties["supportedCapabilities"]["architecture"], "x64", "{disk}");
    let lun = json!({"location": "eastus", "properties": {"creationData":
        {"createOption": "FromImage", "galleryImageReference": {"id": image, "lun": 3}}}});
    let expected = (
        400,
        "InvalidParameter",
        "The value of parameter imageReference is invalid.",
        "creationData.imageReference",
    );
    disks.refused("PUT", "disks/lun", Some(lun), expected).await;

    // The content outlives everything that it came through.
    for below in [
        "galleries/G/images/d/versions/1.0.0",
        "galleries/G/images/d/versions/1.0.1",
        "disks/os",
        "snapshots/s",
    ] {
        disks.done("DELETE", below, None).await;
    }
    let url = disks.grant("disks/from", "Read", 600).await;
    let back = disks.file("back.vhd");
    disks.python("download", &url, &back).await;
    assert_eq!(sum(&back, FOOTER), sum(&raw, 0));

    // A definition for another system refuses the disk.
    let windows = json!({"location": "eastus", "properties": {"osType": "Windows", "osState": "Generalized",
        "hyperVGeneration": "V1", "identifier": {"publisher": "p", "offer": "o", "sku": "w"}}});
    disks.done("PUT", "galleries/G/images/w", Some(windows)).await;
    let version = Some(version_of(json!({"id": disks.id("disks/from")})));
    let (status, answer) = disks.json("PUT", "galleries/G/images/w/versions/1.0.0", version).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer.to_string().contains("has a different OS type ['Linux']"), "{answer}");
    disks.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vhds_come_from_files_servers_and_disks() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = listener.local_addr().expect("an address");
    let folder = tempfile::tempdir().expect("a folder");
    let (raw, vhd_path) = vhd(folder.path(), "d", 0x77);
    let served = std::fs::read(&vhd_path).expect("reads");
    std::thread::spawn(move || serve(&listener, &served));
    let imports = folder.path().to_owned();
    let disks = Disks::start_with(|config| {
        config.import_paths = vec![imports];
        config.network.allow = vec![address.to_string()];
    })
    .await;
    disks.definition().await;

    let import = |uri: &str, location: &str| {
        json!({"location": location, "properties": {"osType": "Linux", "creationData":
            {"createOption": "Import", "sourceUri": uri}}})
    };
    let path = vhd_path.to_str().expect("text");
    disks.done("PUT", "disks/file", Some(import(path, "eastus"))).await;
    let http = format!("http://{address}/d.vhd?sig=secret");
    let fetched = disks.done("PUT", "disks/http", Some(import(&http, "eastus"))).await;
    assert_eq!(
        fetched["properties"]["creationData"]["sourceUri"],
        format!("http://{address}/d.vhd"),
        "{fetched}"
    );
    let one = disks.region("eastus").await.stats().await.expect("stats");
    assert_eq!(one.manifests, 1, "the same bytes are the same image");
    // Through the access URL of a disk of this service, into another region.
    let url = disks.grant("disks/file", "Read", 600).await;
    disks.done("PUT", "disks/west", Some(import(&url, "westus"))).await;
    disks.revoke("disks/file").await;
    let late = disks.end("PUT", "disks/late", Some(import(&url, "eastus"))).await;
    assert_eq!(
        (&late["status"], &late["error"]["code"]),
        (&json!("Failed"), &json!("BlobNotAccessible")),
        "{late}"
    );
    let far = json!({"location": "westus", "properties": {"incremental": true, "creationData":
        {"createOption": "CopyStart", "sourceResourceId": disks.id("disks/http")}}});
    disks.done("PUT", "snapshots/far", Some(far)).await;

    for name in ["disks/file", "disks/http", "disks/west", "snapshots/far"] {
        let url = disks.grant(name, "Read", 600).await;
        let back = disks.file("back.vhd");
        disks.python("download", &url, &back).await;
        assert_eq!(sum(&back, FOOTER), sum(&raw, 0), "{name}");
    }
    // Raw bytes are no VHD.
    let raw_path = raw.to_str().expect("text");
    let bad = disks.end("PUT", "disks/raw", Some(import(raw_path, "eastus"))).await;
    assert_eq!((&bad["status"], &bad["error"]["code"]), (&json!("Failed"), &json!("BadRequest")), "{bad}");
    let message = bad["error"]["message"].as_str().expect("a message");
    assert!(
        message.starts_with("Only blobs formatted as VHDs can be imported. The specified cookie"),
        "{message}"
    );
    // The same three ways lead to versions.
    for (version, uri) in [("1.0.0", path), ("1.0.1", http.as_str())] {
        let below = format!("galleries/G/images/d/versions/{version}");
        let source = json!({"uri": uri, "storageAccountId": disks.id("x/y")});
        disks.done("PUT", &below, Some(version_of(source))).await;
        let (_, found) = disks.json("GET", &below, None).await;
        assert_eq!(found["properties"]["storageProfile"]["osDiskImage"]["sizeInGB"], 1, "{found}");
    }
    let end = disks.region("eastus").await.stats().await.expect("stats");
    assert_eq!((end.manifests, end.packs), (1, one.packs), "still one image");
    assert_eq!(
        std::fs::read_dir(disks.file("scratch")).expect("a folder").count(),
        0,
        "nothing fetched is left"
    );
    // A size that was asked for is the disk's, also if it is what the VHD's own is rounded up to.
    let mut sized = import(path, "eastus");
    sized["properties"]["diskSizeGB"] = json!(1);
    let sized = disks.done("PUT", "disks/sized", Some(sized)).await;
    assert_eq!(sized["properties"]["diskSizeBytes"], 1u64 << 30, "{sized}");
    let tagged = disks.done("PATCH", "disks/file", Some(json!({"tags": {"a": "b"}}))).await;
    assert_eq!(tagged["properties"]["diskSizeBytes"], DISK, "{tagged}");
    disks.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vhds_come_from_storage_accounts() {
    let plain = Some("127.0.0.1:0".parse().expect("an address"));
    let disks = Disks::start_with(|config| config.blob_listen = plain).await;
    let (raw, vhd) = vhd(disks.bed.folder.path(), "d", 0x33);
    let account =
        format!("{SUBSCRIPTION}/resourceGroups/Rg/providers/Microsoft.Storage/storageAccounts/vhds1");
    let body = json!({"location": "eastus", "sku": {"name": "Standard_LRS"}, "kind": "StorageV2"});
    let (status, made) =
        disks.bed.json("PUT", &format!("{account}?api-version=2025-08-01"), Some(body)).await;
    assert_eq!(status, 200, "{made}");
    let put = |below: &str, kind: &'static str, bytes: Vec<u8>| {
        let request =
            disks.bed.request("PUT", &format!("/vhds1{below}")).header("x-ms-version", "2024-05-04");
        let request = request.header("x-ms-blob-type", kind).header("content-length", bytes.len());
        let sent = request.bearer_auth(&disks.bed.token).body(bytes).send();
        async move { assert_eq!(sent.await.expect("answers").status(), 201) }
    };
    put("/con?restype=container", "BlockBlob", Vec::new()).await;
    let bytes = std::fs::read(&vhd).expect("reads");
    put("/con/whole.vhd", "BlockBlob", bytes.clone()).await;
    let half = bytes.len() / 2;
    put("/con/parts.vhd?comp=block&blockid=MQ==", "BlockBlob", bytes[..half].to_vec()).await;
    put("/con/parts.vhd?comp=block&blockid=Mg==", "BlockBlob", bytes[half..].to_vec()).await;
    let list = "<BlockList><Latest>MQ==</Latest><Latest>Mg==</Latest></BlockList>";
    put("/con/parts.vhd?comp=blocklist", "BlockBlob", list.into()).await;
    disks.definition().await;
    for (version, name) in [("1.0.0", "whole"), ("1.0.1", "parts")] {
        let uri = format!("{}/vhds1/con/{name}.vhd", disks.bed.server.url);
        let below = format!("galleries/G/images/d/versions/{version}");
        let source = json!({"uri": uri, "storageAccountId": account});
        disks.done("PUT", &below, Some(version_of(source))).await;
        let import = json!({"location": "eastus", "properties": {"creationData":
            {"createOption": "Import", "sourceUri": uri, "storageAccountId": account}}});
        disks.done("PUT", &format!("disks/{name}"), Some(import)).await;
        let url = disks.grant(&format!("disks/{name}"), "Read", 600).await;
        let back = disks.file("back.vhd");
        disks.python("download", &url, &back).await;
        assert_eq!(sum(&back, FOOTER), sum(&raw, 0), "{name}");
    }
    // By the address of the plain listener as well, which is ours and no stranger on the loopback.
    let address = disks.bed.server.blob_addr.expect("it listens");
    for host in ["127.0.0.1", "localhost"] {
        let uri = format!("http://{host}:{}/vhds1/con/whole.vhd", address.port());
        let import = json!({"location": "eastus", "properties": {"creationData":
            {"createOption": "Import", "sourceUri": uri, "storageAccountId": account}}});
        disks.done("PUT", &format!("disks/{host}"), Some(import)).await;
    }
    assert_eq!(disks.region("eastus").await.stats().await.expect("stats").manifests, 1);
    let missing = json!({"location": "eastus", "properties": {"creationData":
        {"createOption": "Import", "sourceUri": format!("{}/vhds1/con/none.vhd", disks.bed.server.url)}}});
    let end = disks.end("PUT", "disks/none", Some(missing)).await;
    assert_eq!(
        (&end["status"], &end["error"]["code"]),
        (&json!("Failed"), &json!("BlobNotAccessible")),
        "{end}"
    );
    disks.bed.stop().await;
}

/// Answers each request with the file. Ends with the test's process.
fn serve(listener: &TcpListener, file: &[u8]) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        let mut request = [0; 4096];
        // Which request it is does not matter, and a client that has gone is no failure of the test.
        let _read = stream.read(&mut request);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", file.len());
        let _sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(file));
    }
}
