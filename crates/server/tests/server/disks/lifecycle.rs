//! A disk's life: upload, snapshot, download, growth, deletion.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_vhd_goes_in_and_comes_out() {
    let disks = Disks::start().await;
    let (raw, vhd) = vhd(disks.bed.folder.path(), "d", 0x5a);
    disks.done("PUT", "disks/D1", Some(upload_disk(DISK + FOOTER))).await;
    assert_eq!(disks.state("disks/d1").await, "ReadyToUpload");
    let write = disks.grant("disks/D1", "Write", 600).await;
    assert!(write.contains("/md-") && write.contains("/abcd?sv=2018-03-28&sr=b&si="), "{write}");
    assert_eq!(disks.state("disks/D1").await, "ActiveUpload");
    assert_eq!(disks.python("upload", &write, &vhd).await, "");
    assert_eq!(disks.python("properties", &write, &vhd).await, format!("{} PageBlob", DISK + FOOTER));
    disks.revoke("disks/D1").await;
    let (_, disk) = disks.json("GET", "disks/D1", None).await;
    assert_eq!(disk["properties"]["diskState"], "Unattached", "{disk}");
    assert_eq!(disk["properties"]["diskSizeBytes"], DISK, "{disk}");
    assert_eq!(disk["properties"]["diskSizeGB"], 1, "{disk}");
    assert_eq!(std::fs::read_dir(disks.file("uploads")).expect("a folder").count(), 0, "the file went");
    assert!(disks.python("write", &write, &vhd).await.starts_with("403 AuthenticationFailed"), "revoked");

    let before = disks.region("eastus").await.stats().await.expect("stats");
    let body = json!({"location": "eastus", "properties": {"incremental": true,
        "creationData": {"createOption": "Copy", "sourceResourceId": disks.id("disks/d1")}}});
    let snapshot = disks.done("PUT", "snapshots/S1", Some(body)).await;
    assert_eq!(snapshot["properties"]["incremental"], true, "{snapshot}");
    assert_eq!(snapshot["properties"]["osType"], "Linux", "{snapshot}");
    assert_eq!(
        snapshot["properties"]["creationData"]["sourceUniqueId"], disk["properties"]["uniqueId"],
        "{snapshot}"
    );
    let after = disks.region("eastus").await.stats().await.expect("stats");
    assert_eq!((before.packs, before.manifests), (after.packs, after.manifests), "a reference, no bytes");

    // The snapshot outlives the disk.
    disks.done("DELETE", "disks/D1", None).await;
    assert_eq!(disks.json("GET", "disks/D1", None).await.0, 404);
    let url = disks.grant("snapshots/S1", "Read", 600).await;
    assert_eq!(disks.state("snapshots/S1").await, "ActiveSAS");
    let back = disks.file("back.vhd");
    let ranges = disks.python("download", &url, &back).await;
    assert!(ranges.ends_with(&format!("-{}", DISK + FOOTER - 1)), "the footer is data: {ranges}");
    assert_eq!(sum(&back, FOOTER), sum(&raw, 0));
    let info: Value =
        serde_json::from_str(&qemu_img(&["info", "-f", "vpc", "--output=json"], &[&back])).expect("JSON");
    assert_eq!(info["virtual-size"], DISK, "{info}");
    qemu_img(&["compare", "-f", "vpc", "-F", "raw"], &[&back, &raw]);
    assert!(disks.python("write", &url, &back).await.starts_with("403 AuthorizationPermissionMismatch"));
    assert!(disks.python("delete", &url, &back).await.starts_with("403 OperationNotAllowedOnDisk"));

    // One at a time; while it lasts the snapshot stays; afterwards the URL is dead.
    let body = json!({"access": "Read", "durationInSeconds": 60});
    let (status, second) = disks.json("POST", "snapshots/S1/beginGetAccess", Some(body)).await;
    assert_eq!((status, second["error"]["code"].as_str()), (409, Some("Conflict")), "{second}");
    let held = (409, "OperationNotAllowed", "Call EndGetAccess before attaching or deleting", "");
    disks.refused("DELETE", "snapshots/S1", None, held).await;
    disks.revoke("snapshots/S1").await;
    assert!(disks.python("properties", &url, &back).await.starts_with("403"), "ended");
    disks.done("DELETE", "snapshots/S1", None).await;
    let end = disks.region("eastus").await.stats().await.expect("stats");
    assert_eq!(end.manifests, 0, "nothing refers to the content any more");
    disks.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn urls_end_when_they_say_and_cannot_be_changed() {
    let disks = Disks::start().await;
    let empty = json!({"location": "eastus", "properties": {"diskSizeGB": 1, "creationData": {"createOption": "Empty"}}});
    for name in ["disks/a", "disks/b"] {
        disks.done("PUT", name, Some(empty.clone())).await;
    }
    let none = disks.file("none");
    let (a, b) = (disks.grant("disks/a", "Read", 600).await, disks.grant("disks/b", "Read", 600).await);
    assert_eq!(disks.python("properties", &a, &none).await, format!("{} PageBlob", (1u64 << 30) + FOOTER));
    let (path_a, query_a) = a.split_once('?').expect("a query");
    let (path_b, _) = b.split_once('?').expect("a query");
    let (_, signature) = query_a.rsplit_once("sig=").expect("a signature");
    let forged = [
        format!("{path_b}?{query_a}"),
        a.replace("sp=r", "sp=rw"),
        a.replace("se=20", "se=21"),
        a.replace("sr=b", "sr=c"),
        a.replace(signature, "AAAA"),
        path_a.to_owned(),
    ];
    for url in forged {
        assert_ne!(url, a);
        assert!(disks.python("properties", &url, &none).await.starts_with("403"), "{url}");
    }
    // Another access of the same disk does not bring the former URL back.
    disks.revoke("disks/a").await;
    let again = disks.grant("disks/a", "Read", 1).await;
    assert!(disks.python("properties", &a, &none).await.starts_with("403"));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let late = disks.bed.client.get(&again).send().await.expect("answers");
    assert_eq!(late.status(), 403);
    assert!(late.text().await.expect("XML").contains("not valid in the specified time frame"));
    // Expired ones stand in nobody's way.
    disks.grant("disks/a", "Read", 600).await;
    // The database has no signature, also not in the operation that answered with it.
    let database = std::fs::read(disks.file("tintype.db")).expect("the database");
    let wal = std::fs::read(disks.file("tintype.db-wal")).unwrap_or_default();
    for bytes in [database, wal] {
        assert!(!bytes.windows(5).any(|window| window == b"&sig="), "a signature was stored");
    }
    disks.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_no_vhd_can_be_put_right() {
    let disks = Disks::start().await;
    let (raw, vhd) = vhd(disks.bed.folder.path(), "d", 9);
    disks.done("PUT", "disks/d", Some(upload_disk(DISK + FOOTER))).await;
    let url = disks.grant("disks/d", "Write", 600).await;
    assert_eq!(disks.python("upload", &url, &raw).await, "", "without a footer");
    let end = disks.end("POST", "disks/d/endGetAccess", None).await;
    assert_eq!(end["status"], "Failed", "{end}");
    assert_eq!(end["error"]["code"], "InvalidVhd", "{end}");
    let message = end["error"]["message"].as_str().expect("a message");
    assert!(message.contains("Disk is expected to have cookie value 'conectix'"), "{message}");
    assert_eq!(disks.state("disks/d").await, "ReadyToUpload");
    let copy = Some(copy_of(&disks.id("disks/d")));
    let reason = (409, "OperationNotAllowed", "has no content yet", "creationData.sourceResourceId");
    disks.refused("PUT", "snapshots/s", copy.clone(), reason).await;
    let url = disks.grant("disks/d", "Write", 600).await;
    assert_eq!(disks.python("upload", &url, &vhd).await, "");
    disks.revoke("disks/d").await;
    assert_eq!(disks.state("disks/d").await, "Unattached");
    disks.done("PUT", "snapshots/s", copy).await;
    // Without a file there is no access either.
    disks.done("PUT", "disks/f", Some(upload_disk(DISK + FOOTER))).await;
    std::fs::remove_dir(disks.file("uploads")).expect("an empty folder");
    let grant = Some(json!({"access": "Write", "durationInSeconds": 600}));
    let reason =
        (507, "InsufficientStorage", "Make the folder, and let the service's user write in it. Then", "");
    disks.refused("POST", "disks/f/beginGetAccess", grant, reason).await;
    assert_eq!(disks.state("disks/f").await, "ReadyToUpload");
    std::fs::create_dir(disks.file("uploads")).expect("a folder");
    disks.grant("disks/f", "Write", 600).await;
    assert_eq!(
        disks.end("POST", "disks/f/endGetAccess", None).await["status"],
        "Failed",
        "nothing was uploaded"
    );
    disks.done("DELETE", "disks/f", None).await;
    // A disk that is deleted before its upload has ended leaves no file.
    disks.done("PUT", "disks/e", Some(upload_disk(DISK + FOOTER))).await;
    disks.grant("disks/e", "Write", 1).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    disks.done("DELETE", "disks/e", None).await;
    assert_eq!(std::fs::read_dir(disks.file("uploads")).expect("a folder").count(), 0);
    disks.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_by_the_resources_that_it_hurts() {
    let disks = Disks::start().await;
    let (_, vhd) = vhd(disks.bed.folder.path(), "d", 0x21);
    disks.uploaded("d", &vhd).await;
    disks.done("PUT", "snapshots/s", Some(copy_of(&disks.id("disks/d")))).await;
    disks.definition().await;
    let version = "galleries/G/images/d/versions/1.0.0";
    disks.done("PUT", version, Some(version_of(json!({"id": disks.id("snapshots/s")})))).await;
    let region = disks.region("eastus").await;
    let manifest = region.references().await.expect("references")[0].manifest;
    region.add_ref(&manifest, "somebody").await.expect("a reference");
    drop(region);
    let verify = async || {
        let begun = disks.bed.call("POST", &format!("/tintype/stores/eastus/verify?{API}"), None).await;
        assert_eq!(begun.status(), 202);
        let poll = header(&begun, "azure-asyncoperation");
        let end = async {
            loop {
                let (_, body) = disks.bed.json("GET", &poll, None).await;
                if body["status"] != "InProgress" {
                    return body;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let end = tokio::time::timeout(LIMIT, end).await.expect("it ends");
        assert_eq!(end["status"], "Succeeded", "{end}");
        end["properties"]["output"].clone()
    };
    assert_eq!(verify().await["affected"], json!([]));
    for pack in files(&disks.file("regions/eastus/packs")) {
        let mut bytes = std::fs::read(&pack).expect("reads");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&pack, bytes).expect("writes");
    }
    let found = verify().await;
    assert!(found["damaged"].as_u64() > Some(0), "{found}");
    let affected = found["affected"].as_array().expect("a list");
    let mut ids: Vec<Option<&str>> = affected.iter().map(|one| one["resourceId"].as_str()).collect();
    ids.sort_unstable();
    let mut expected = [version, "disks/d", "snapshots/s"].map(|below| Some(disks.id(below))).to_vec();
    expected.push(None);
    expected.sort_unstable();
    assert_eq!(ids, expected.iter().map(Option::as_deref).collect::<Vec<_>>(), "{found}");
    let foreign = affected.iter().find(|one| one["resourceId"].is_null()).expect("one of somebody's");
    assert_eq!((&foreign["owner"], &foreign["zone"]), (&json!("somebody"), &json!(1)), "{foreign}");
    disks.bed.stop().await;
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_upload_of_a_disk_has_its_time() {
    let disks = Disks::start_with(|config| config.limits.request_timeout = Duration::from_secs(1)).await;
    disks.done("PUT", "disks/d", Some(upload_disk(DISK + FOOTER))).await;
    let url = disks.grant("disks/d", "Write", 600).await;
    let pieces = futures::stream::unfold(0, |piece| async move {
        tokio::time::sleep(Duration::from_millis(if piece == 0 { 0 } else { 1000 })).await;
        (piece < 3).then(|| (Ok::<_, std::io::Error>(vec![1; 512]), piece + 1))
    });
    let put = disks.bed.client.put(format!("{url}&comp=page")).header("x-ms-range", "bytes=0-1535");
    let put = put.header("x-ms-page-write", "update").header("content-length", 1536);
    let put = put.body(reqwest::Body::wrap_stream(pieces)).send().await.expect("answers");
    assert_eq!(put.status(), 201, "{}", put.text().await.expect("text"));
    disks.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_change_grow_and_are_listed() {
    let disks = Disks::start().await;
    let (_, vhd) = vhd(disks.bed.folder.path(), "d", 3);
    disks.uploaded("d", &vhd).await;
    let patched = disks
        .done("PATCH", "disks/d", Some(json!({"tags": {"a": "b"}, "sku": {"name": "Premium_LRS"}})))
        .await;
    assert_eq!(
        (&patched["tags"], &patched["sku"]["tier"]),
        (&json!({"a": "b"}), &json!("Premium")),
        "{patched}"
    );
    assert_eq!(patched["properties"]["diskSizeBytes"], DISK, "rounding is no growth: {patched}");
    let before = disks.region("eastus").await.stats().await.expect("stats");
    let grown = disks.done("PATCH", "disks/d", Some(json!({"properties": {"diskSizeGB": 3}}))).await;
    assert_eq!(grown["properties"]["diskSizeBytes"], 3u64 << 30, "{grown}");
    let after = disks.region("eastus").await.stats().await.expect("stats");
    assert_eq!(after.manifests, before.manifests, "the former content was released");
    let url = disks.grant("disks/d", "Read", 600).await;
    let part = |range: &'static str| {
        let request = disks.bed.client.get(&url).header("range", range);
        async move { request.send().await.expect("answers").bytes().await.expect("bytes").to_vec() }
    };
    let expected = std::fs::read(&vhd).expect("reads");
    assert_eq!(part("bytes=299999-300100").await, expected[299_999..=300_100]);
    assert_eq!(part("bytes=20971518-20971522").await, [0, 3, 0, 0, 0]);
    assert_eq!(part("bytes=3221225472-3221225479").await, b"conectix");
    disks.revoke("disks/d").await;
    let small = Some(json!({"properties": {"diskSizeGB": 2}}));
    disks
        .refused(
            "PATCH",
            "disks/d",
            small,
            (409, "OperationNotAllowed", "cannot be resized down", "diskSizeGB"),
        )
        .await;
    let larger = json!({"location": "eastus", "properties": {"diskSizeGB": 5,
        "creationData": {"createOption": "Copy", "sourceResourceId": disks.id("disks/d")}}});
    let larger = disks.done("PUT", "disks/larger", Some(larger)).await;
    assert_eq!(larger["properties"]["diskSizeBytes"], 5u64 << 30, "{larger}");
    let smaller = json!({"location": "eastus", "properties": {"diskSizeGB": 1,
        "creationData": {"createOption": "Copy", "sourceResourceId": disks.id("disks/d")}}});
    disks
        .refused(
            "PUT",
            "disks/smaller",
            Some(smaller),
            (400, "InvalidParameter", "smaller than its source of 3 GB", "diskSizeGB"),
        )
        .await;

    let (_, list) = disks.json("GET", "disks", None).await;
    let names: Vec<&str> = list["value"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|disk| disk["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(names, ["d", "larger"]);
    let all = format!("{SUBSCRIPTION}/providers/Microsoft.Compute/snapshots?{API}");
    assert_eq!(disks.bed.json("GET", &all, None).await.1["value"], json!([]));
    // Deleting the group takes them along, with the access that is open.
    disks.grant("disks/d", "Read", 600).await;
    let group = format!("{SUBSCRIPTION}/resourceGroups/Rg?api-version=2024-11-01");
    assert_eq!(disks.bed.call("DELETE", &group, None).await.status(), 202);
    let gone = async {
        while disks.bed.json("GET", &group, None).await.0 != 404 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.expect("the group goes");
    assert_eq!(disks.region("eastus").await.stats().await.expect("stats").manifests, 0);
    disks.bed.stop().await;
}
