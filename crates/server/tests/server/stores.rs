//! Looking after a region's store through its server.

use serde_json::json;

use crate::platform_images::{disk, ended};
use crate::support::{Bed, VERSION, header};

const STORE: &str = "/tintype/stores/EastUS";

/// POSTs a task and polls it to its end.
async fn done(bed: &Bed, task: &str) -> serde_json::Value {
    let response = bed.call("POST", &format!("{STORE}/{task}{VERSION}"), None).await;
    assert_eq!(response.status(), 202);
    let ended = ended(bed, &header(&response, "azure-asyncoperation")).await;
    assert_eq!(ended["status"], "Succeeded", "{ended}");
    ended["properties"]["output"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_freed_and_checked() {
    let bed = Bed::start().await;
    let region = bed.server.state.config.regions[0].name.clone();
    let store = bed.server.state.fabric.store(&region).await.expect("a store");
    let path = bed.folder.path().join("disk.raw");
    std::fs::write(&path, disk()).expect("a disk");
    let put = store.put_raw(&path, "test", |_| {}).await.expect("put");

    let (status, stats) = bed.json("GET", &format!("{STORE}/stats?{VERSION}"), None).await;
    assert_eq!((status, &stats["images"], &stats["owner"]), (200, &json!(1), &json!("tintype")), "{stats}");
    let checked = done(&bed, "verify?").await;
    assert_eq!((&checked["images"], &checked["damaged"]), (&json!(1), &json!(0)), "{checked}");

    store.remove_ref(&put.manifest, "test").await.expect("removed");
    let plan = done(&bed, "gc?dryRun=true&").await;
    assert_eq!(plan["dry_run"], true);
    assert_ne!(plan["bytes_removed"], 0);
    let freed = done(&bed, "gc?").await;
    assert_eq!(freed["bytes_removed"], plan["bytes_removed"]);
    let (_, after) = bed.json("GET", &format!("{STORE}/stats?{VERSION}"), None).await;
    assert_eq!((&after["images"], &after["indexed"]), (&json!(0), &json!(0)), "{after}");
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_explained() {
    let bed = Bed::start().await;
    let (status, body) = bed.json("POST", &format!("/tintype/stores/nowhere/gc?{VERSION}"), None).await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("RegionNotFound")));
    assert!(body["error"]["message"].as_str().expect("a message").contains("eastus"), "{body}");
    let (status, body) = bed.json("POST", &format!("{STORE}/gc?{VERSION}&dryRun=perhaps"), None).await;
    assert_eq!((status, &body["error"]["code"]), (400, &json!("InvalidParameter")), "{body}");
    bed.stop().await;
}
