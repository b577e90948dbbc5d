//! Requests that are refused, each with its reason.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_precisely() {
    let disks = Disks::start().await;
    let empty = |properties: Value| {
        let mut body = json!({"location": "eastus", "properties": {"diskSizeGB": 1, "creationData": {"createOption": "Empty"}}});
        for (name, value) in properties.as_object().expect("an object") {
            body["properties"][name] = value.clone();
        }
        body
    };
    disks.done("PUT", "disks/there", Some(empty(json!({})))).await;
    disks.done("PUT", "disks/denied", Some(empty(json!({"networkAccessPolicy": "DenyAll"})))).await;
    let from = |data: Value| json!({"location": "eastus", "properties": {"creationData": data}});
    let copy = |id: String| from(json!({"createOption": "Copy", "sourceResourceId": id}));
    let import = |uri: &str| from(json!({"createOption": "Import", "sourceUri": uri}));
    let west = json!({"location": "westus", "properties": {"creationData":
        {"createOption": "Copy", "sourceResourceId": disks.id("disks/there")}}});
    let grant = |access: &str, seconds: i64| json!({"access": access, "durationInSeconds": seconds});
    let table = [
        ("PUT", "disks/-x", Some(empty(json!({}))), (400, "InvalidParameter", "validation rule", "diskName")),
        (
            "PUT",
            "disks/x",
            Some(from(json!({"createOption": "Empty"}))),
            (400, "InvalidParameter", "diskSizeGB' is missing", "diskSizeGB"),
        ),
        (
            "PUT",
            "disks/x",
            Some(upload_disk(DISK)),
            (400, "InvalidParameter", "out of range", "creationData.uploadSizeBytes"),
        ),
        (
            "PUT",
            "disks/x",
            Some(upload_disk(DISK + 1024)),
            (
                400,
                "BadRequest",
                "- 512 bytes for the VHD footer (20972032 in this case)",
                "creationData.uploadSizeBytes",
            ),
        ),
        (
            "PUT",
            "disks/x",
            Some(from(json!({"createOption": "Restore"}))),
            (400, "InvalidParameter", "'Restore' is not supported for a disk", "creationData.createOption"),
        ),
        (
            "PUT",
            "snapshots/x",
            Some(upload_disk(DISK + FOOTER)),
            (400, "InvalidParameter", "not supported for a snapshot", "creationData.createOption"),
        ),
        (
            "PUT",
            "disks/x",
            Some(copy(disks.id("disks/none"))),
            (404, "NotFound", "Resource none is not found", "creationData.sourceResourceId"),
        ),
        (
            "PUT",
            "disks/x",
            Some(copy(disks.id("galleries/g"))),
            (
                400,
                "InvalidParameter",
                "must be a managed disk or a snapshot",
                "creationData.sourceResourceId",
            ),
        ),
        (
            "PUT",
            "disks/x",
            Some(west),
            (
                400,
                "InvalidParameter",
                "copy a snapshot with createOption 'CopyStart'",
                "creationData.sourceResourceId",
            ),
        ),
        (
            "PUT",
            "disks/x",
            Some(import("ftp://h/x.vhd")),
            (400, "InvalidParameter", "'ftp' address", "sourceUri"),
        ),
        (
            "PUT",
            "disks/x",
            Some(import("/etc/passwd")),
            (400, "InvalidParameter", "'import_paths'", "sourceUri"),
        ),
        ("PUT", "disks/x", Some(import("not a url")), (400, "InvalidParameter", "is no URL", "sourceUri")),
        (
            "PUT",
            "disks/there",
            Some(copy(disks.id("disks/denied"))),
            (409, "PropertyChangeNotAllowed", "'creationData' is not allowed", "creationData"),
        ),
        (
            "PATCH",
            "disks/none",
            Some(json!({"tags": {}})),
            (404, "ResourceNotFound", "Microsoft.Compute/disks/none", ""),
        ),
        (
            "POST",
            "disks/none/beginGetAccess",
            Some(grant("Read", 9)),
            (404, "ResourceNotFound", "Microsoft.Compute/disks/none", ""),
        ),
        (
            "POST",
            "disks/there/beginGetAccess",
            Some(grant("Read", 0)),
            (400, "InvalidParameter", "between 1 and 4294967295", "durationInSeconds"),
        ),
        (
            "POST",
            "disks/there/beginGetAccess",
            Some(grant("Write", 9)),
            (409, "OperationNotAllowed", "createOption 'Upload'", ""),
        ),
        (
            "POST",
            "disks/denied/beginGetAccess",
            Some(grant("Read", 9)),
            (409, "OperationNotAllowed", "'DenyAll'", "networkAccessPolicy"),
        ),
        (
            "POST",
            "disks/there/beginGetAccess",
            Some(json!({"access": "Read", "durationInSeconds": 9, "getSecureVMGuestStateSAS": true})),
            (400, "InvalidParameter", "no VM guest state", "getSecureVMGuestStateSAS"),
        ),
    ];
    for (method, below, body, expected) in table {
        disks.refused(method, below, body, expected).await;
    }
    assert_eq!(disks.bed.call("DELETE", &disks.url("disks/none"), None).await.status(), 204);
    disks.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fetching_keeps_to_the_network_policy() {
    let disks = Disks::start().await;
    // Link-local, private, and this very host: refused when the job looks, and the disk says why.
    for (index, uri) in
        ["http://169.254.169.254/x.vhd", "http://10.0.0.1/x.vhd?sig=secret", "http://127.0.0.1:9/x.vhd"]
            .into_iter()
            .enumerate()
    {
        let below = format!("disks/d{index}");
        let body = json!({"location": "eastus", "properties": {"creationData": {"createOption": "Import", "sourceUri": uri}}});
        let end = disks.end("PUT", &below, Some(body)).await;
        assert_eq!(end["status"], "Failed", "{uri}: {end}");
        assert_eq!(end["error"]["code"], "BadRequest", "{end}");
        let message = end["error"]["message"].as_str().expect("a message");
        assert!(message.contains("cannot be fetched") && !message.contains("secret"), "{message}");
        let (_, disk) = disks.json("GET", &below, None).await;
        assert_eq!(disk["properties"]["provisioningState"], "Failed", "{disk}");
        assert!(!disk.to_string().contains("secret"), "{disk}");
        // The next PUT may say better where the bytes are.
        let empty = json!({"location": "eastus", "properties": {"diskSizeGB": 1, "creationData": {"createOption": "Empty"}}});
        disks.done("PUT", &below, Some(empty)).await;
    }
    disks.bed.stop().await;
}
