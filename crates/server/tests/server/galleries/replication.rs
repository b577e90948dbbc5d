//! Versions in several regions: copied, shrunk, broken, deleted with their group.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_version_moves_between_regions_and_goes() {
    let gallery = Gallery::start().await;
    gallery.define("Debian").await;
    let (manifest, bytes) = gallery.seed("eastus", 7).await;
    gallery.publish("1.0.0", &manifest, &["eastus"]).await;
    let (east, west) = (gallery.region("eastus").await, gallery.region("westus").await);
    // The run's own reference may go: the version has one.
    east.remove_ref(&manifest, "seed").await.expect("removes");
    assert_eq!(east.refs(&manifest).await.expect("refs").len(), 1);
    assert!(!west.has_manifest(&manifest).await.expect("looks"));

    // Another version from it, in both regions.
    let source = format!("{}/images/Debian/versions/1.0.0", gallery.path);
    let below = "/images/Debian/versions/1.10.0";
    let answer = gallery.done("PUT", below, Some(copy_of(&source, &["eastus", "West US"])), 201).await;
    assert_eq!(answer["properties"]["provisioningState"], "Creating");
    let version = gallery.until("1.10.0", "Succeeded").await;
    let status = &version["properties"]["replicationStatus"];
    assert_eq!(status["aggregatedState"], "Completed");
    let regions: Vec<(&str, &str, i64)> = status["summary"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|region| {
            let text = |key: &str| region[key].as_str().expect("text");
            (text("region"), text("state"), region["progress"].as_i64().expect("a number"))
        })
        .collect();
    assert_eq!(regions, [("East US", "Completed", 100), ("West US", "Completed", 100)]);
    assert_eq!(version["properties"]["storageProfile"]["osDiskImage"]["sizeInGB"], 1);
    assert_eq!(version["properties"]["publishingProfile"]["targetRegions"][1]["name"], "West US");
    let (_, plain) = gallery.json("GET", below, None).await;
    assert_eq!(plain["properties"].get("replicationStatus"), None, "only when it is asked for");
    assert_eq!(east.refs(&manifest).await.expect("refs").len(), 2);

    // The bytes are there, and were counted. 70 000 equal bytes are two partial blocks, byte 100 a third.
    let id = format!("{}{below}", gallery.path);
    let placements = gallery
        .bed
        .server
        .state
        .store
        .read(|tx| Box::pin(async { tx.placements(&id).await }))
        .await
        .expect("reads");
    let moved: Vec<(&str, bool)> =
        placements.iter().map(|placement| (placement.region.as_str(), placement.bytes_moved > 0)).collect();
    assert_eq!(moved, [("eastus", false), ("westus", true)], "{placements:?}");
    let copy = gallery.bed.folder.path().join("copy.raw");
    std::fs::write(&copy, &bytes).expect("writes");
    let again = west.put_raw(&copy, "again", |_| {}).await.expect("puts");
    assert_eq!((again.manifest, again.new_blocks), (manifest, 0), "the same image, every block there");
    west.remove_ref(&manifest, "again").await.expect("removes");

    // One region less, and a replica more in the other.
    let patch = json!({"properties": {"publishingProfile": {"targetRegions": [{"name": "eastus", "regionalReplicaCount": 2}]}}});
    let answer = gallery.done("PATCH", below, Some(patch), 200).await;
    assert_eq!(answer["properties"]["provisioningState"], "Updating");
    let version = gallery.until("1.10.0", "Succeeded").await;
    assert_eq!(version["properties"]["publishingProfile"]["targetRegions"][0]["regionalReplicaCount"], 2);
    assert_eq!(version["properties"]["replicationStatus"]["summary"].as_array().map(Vec::len), Some(1));
    assert!(!west.has_manifest(&manifest).await.expect("looks"), "released where it was taken out");
    // And back.
    let body = copy_of(&source, &["eastus", "westus"]);
    gallery.done("PUT", below, Some(body.clone()), 200).await;
    assert!(west.has_manifest(&manifest).await.expect("looks"));

    // What may not change.
    let mut other = body;
    other["properties"]["storageProfile"]["source"]["id"] =
        json!(format!("{}/images/Debian/versions/1.9.0", gallery.path));
    gallery
        .refused(
            "PUT",
            below,
            Some(other),
            (
                409,
                "PropertyChangeNotAllowed",
                "storageProfile.source.id' is not allowed",
                "galleryImageVersion.properties.storageProfile.source.id",
            ),
        )
        .await;
    let keep = json!({"properties": {
        "publishingProfile": {"endOfLifeDate": "2099-01-01T00:00:00Z"},
        "safetyProfile": {"blockDeletionBeforeEndOfLife": true}
    }});
    gallery.done("PATCH", below, Some(keep), 200).await;
    gallery
        .refused(
            "DELETE",
            below,
            None,
            (409, "DeleteGalleryImageVersionBlockedBeforeEndOfLife", "endOfLifeDate has not reached yet", ""),
        )
        .await;
    let free = json!({"properties": {"safetyProfile": {"blockDeletionBeforeEndOfLife": false}}});
    gallery.done("PATCH", below, Some(free), 200).await;
    gallery
        .refused("DELETE", "/images/Debian", None, (409, "CannotDeleteResource", "nested resources", ""))
        .await;

    let (_, versions) = gallery.json("GET", "/images/Debian/versions", None).await;
    let names: Vec<&Value> =
        versions["value"].as_array().expect("a list").iter().map(|v| &v["name"]).collect();
    assert_eq!(names, ["1.0.0", "1.10.0"]);
    gallery.done("DELETE", below, None, 202).await;
    assert_eq!(gallery.bed.call("DELETE", &gallery.url(below), None).await.status(), 204);
    assert!(!west.has_manifest(&manifest).await.expect("looks"));
    assert_eq!(east.refs(&manifest).await.expect("refs").len(), 1, "the other version's");
    gallery.done("DELETE", "/images/Debian/versions/1.0.0", None, 202).await;
    assert!(!east.has_manifest(&manifest).await.expect("looks"));
    gallery.done("DELETE", "/images/Debian", None, 202).await;
    gallery.bed.stop().await;
}

/// A region whose store cannot be used fails; the other serves, and a later PUT makes up for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_is_broken_fails_alone() {
    let gallery = Gallery::start().await;
    gallery.define("Debian").await;
    let (manifest, _) = gallery.seed("eastus", 9).await;
    gallery.publish("1.0.0", &manifest, &["eastus"]).await;
    let folder = gallery.bed.folder.path().join("regions/westus");
    let location: StoreLocation = folder.to_str().expect("text").parse().expect("a location");
    drop(content::Store::open_or_create(&location, "somebody else").await.expect("opens"));

    let source = format!("{}/images/Debian/versions/1.0.0", gallery.path);
    let body = copy_of(&source, &["eastus", "westus"]);
    let (_, end) = gallery.ended("PUT", "/images/Debian/versions/1.0.1", Some(body.clone()), 201).await;
    assert_eq!(
        (&end["status"], &end["error"]["code"]),
        (&json!("Failed"), &json!("GalleryImageReplicationFailed")),
        "{end}"
    );
    assert!(
        end["error"]["message"]
            .as_str()
            .is_some_and(|text| text.contains("West US") && text.contains("somebody else"))
    );
    let version = gallery.until("1.0.1", "Failed").await;
    let summary = &version["properties"]["replicationStatus"]["summary"];
    assert_eq!(
        (&summary[0]["state"], &summary[1]["state"]),
        (&json!("Completed"), &json!("Failed")),
        "{summary}"
    );

    std::fs::remove_dir_all(&folder).expect("removes");
    gallery.done("PUT", "/images/Debian/versions/1.0.1", Some(body), 200).await;
    assert!(gallery.region("westus").await.has_manifest(&manifest).await.expect("looks"));
    gallery.bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_groups_deletion_releases_the_bytes() {
    let gallery = Gallery::start().await;
    gallery.define("Debian").await;
    let (manifest, _) = gallery.seed("eastus", 5).await;
    gallery.publish("1.0.0", &manifest, &["eastus", "westus"]).await;
    let (east, west) = (gallery.region("eastus").await, gallery.region("westus").await);
    east.remove_ref(&manifest, "seed").await.expect("removes");
    let group = format!("{SUBSCRIPTION}/resourceGroups/Rg?api-version=2024-11-01");
    assert_eq!(gallery.bed.call("DELETE", &group, None).await.status(), 202);
    let gone = async {
        while gallery.bed.json("GET", &group, None).await.0 != 404 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.expect("the group goes");
    for store in [east, west] {
        assert!(!store.has_manifest(&manifest).await.expect("looks"));
    }
    gallery.bed.stop().await;
}
