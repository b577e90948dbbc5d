//! Publishing from a run and resolving references, on a real database.

use std::collections::BTreeMap;

use arm::ApiVersion;
use content::StoreLocation;
use model::content::DiskContent;
use model::gallery::Gallery;
use model::image_template::TemplateTargetRegion;
use model::image_version::VersionContent;
use model::{
    GalleryName, ImageDefinitionName, ManifestRef, ResourceGroupName, ResourceRef, SubscriptionId, Tags,
};
use model::{ImageDefinitionRef, ImageVersionRef, VersionSelector};
use serde_json::json;
use store::Store;

use super::resolve::ResolvedImage;
use super::*;

const SUBSCRIPTION: &str = "22222222-2222-2222-2222-222222222222";

struct Bed {
    store: Store,
    _folder: tempfile::TempDir,
}

fn definition_id() -> String {
    format!(
        "/subscriptions/{SUBSCRIPTION}/resourceGroups/rg/providers/Microsoft.Compute/galleries/g/images/d"
    )
}

fn region(name: &str) -> Region {
    Region::parse(name).unwrap()
}

impl Bed {
    async fn new() -> Bed {
        let folder = tempfile::tempdir().unwrap();
        let store =
            Store::connect(&format!("sqlite:{}", folder.path().join("t.db").display())).await.unwrap();
        let bed = Bed { store, _folder: folder };
        let version = ApiVersion::parse("2024-03-03").unwrap();
        let gallery = arm::gallery::parse(json!({"location": "eastus"}), &version).unwrap().data;
        let gallery = Gallery::create(GalleryName::parse("g").unwrap(), gallery);
        let body = json!({"location": "eastus", "properties": {
            "osType": "Linux", "osState": "Generalized",
            "identifier": {"publisher": "p", "offer": "o", "sku": "s"}
        }});
        let spec = arm::image_definition::parse(body, &version, DateTime::<Utc>::MIN_UTC).unwrap().data;
        let definition = ImageDefinition::create(ImageDefinitionName::parse("d").unwrap(), spec);
        let id = definition_id();
        let (gallery_id, _) = id.split_once("/images/").unwrap();
        let (group_id, _) = id.split_once("/providers/").unwrap();
        let ready = store::ProvisioningState::Succeeded;
        let written: Result<(), StoreError> = bed
            .store
            .write(|tx| {
                Box::pin(async {
                    tx.insert(&mut Document::new(group_id, "eastus", ready, json!({}))?).await?;
                    tx.insert(&mut Document::new(gallery_id, "eastus", ready, gallery.clone())?).await?;
                    tx.insert(&mut Document::new(&id, "eastus", ready, definition.clone())?).await
                })
            })
            .await;
        written.unwrap();
        bed
    }

    async fn publish(&self, change: impl FnOnce(&mut NewVersion)) -> Result<String, ApiError> {
        let target = |name: &str| TemplateTargetRegion {
            region: region(name),
            replica_count: 1,
            storage_account_type: None,
        };
        let os_disk = DiskContent { manifest: ManifestRef::parse("m").unwrap(), size_bytes: 1 };
        let mut new = NewVersion {
            definition_id: definition_id().to_uppercase().replacen("/SUBSCRIPTIONS", "/subscriptions", 1),
            name: None,
            major: None,
            home: region("eastus"),
            targets: vec![target("eastus"), target("westus")],
            exclude_from_latest: false,
            tags: Tags::default(),
            source_template: ResourceRef::parse("/subscriptions/s/t", "id").unwrap(),
            content: VersionContent { os_disk, data_disks: BTreeMap::new() },
        };
        change(&mut new);
        let mut config = Config::new(std::path::Path::new("/nowhere"));
        let store = StoreLocation::Folder("/nowhere/westus".into());
        config.regions.push(RegionConfig::of_one_zone(region("westus"), store));
        let config = &config;
        self.store.write(|tx| Box::pin(async { publish_from_run(tx, config, new.clone()).await })).await
    }

    /// Marks a region of a version as done, as the job does.
    async fn complete(&self, id: &str, name: &str) {
        let written: Result<(), StoreError> = self
            .store
            .write(|tx| {
                Box::pin(async {
                    let mut found = tx.get::<ImageVersion>(id).await?.unwrap();
                    found.data.state =
                        found.data.state.clone().region(&region(name), RegionReplication::Completed).unwrap();
                    tx.update(&mut found).await
                })
            })
            .await;
        written.unwrap();
    }

    async fn resolve(&self, version: VersionSelector, name: &str) -> Result<ResolvedImage, ApiError> {
        let definition = ImageDefinitionRef {
            subscription: SubscriptionId::parse(SUBSCRIPTION).unwrap(),
            resource_group: ResourceGroupName::parse("RG").unwrap(),
            gallery: GalleryName::parse("G").unwrap(),
            definition: ImageDefinitionName::parse("D").unwrap(),
        };
        let (reference, asking) = (ImageVersionRef { definition, version }, region(name));
        self.store.read(|tx| Box::pin(async { resolve_gallery_image(tx, &reference, &asking).await })).await
    }
}

#[tokio::test]
async fn runs_number_their_versions_one_after_the_other() {
    let bed = Bed::new().await;
    let id = bed.publish(|_| {}).await.unwrap();
    assert_eq!(id, format!("{}/versions/0.0.1", definition_id()), "the definition's own spelling");
    let last = |id: String| id.rsplit('/').next().unwrap().to_owned();
    let (a, b) = tokio::join!(bed.publish(|_| {}), bed.publish(|_| {}));
    let mut both = [last(a.unwrap()), last(b.unwrap())];
    both.sort();
    assert_eq!(both, ["0.0.2", "0.0.3"], "two at once never get the same");
    assert_eq!(last(bed.publish(|new| new.major = Some(4)).await.unwrap()), "4.0.1");
    let fixed = VersionName::parse("1.2.3").unwrap();
    assert_eq!(last(bed.publish(|new| new.name = Some(fixed)).await.unwrap()), "1.2.3");
    let taken = bed.publish(|new| new.name = Some(fixed)).await.unwrap_err();
    assert_eq!(taken.status(), 409);
    let gone = bed.publish(|new| new.definition_id.push('x')).await.unwrap_err();
    assert_eq!(gone.error_object()["code"], "ParentResourceNotFound");
    // Where it goes without the run's region, its home is the definition's, or else the first.
    for (targets, home) in [(vec!["westus", "eastus"], "eastus"), (vec!["westus"], "westus")] {
        let id = bed
            .publish(|new| {
                new.home = region("uksouth");
                new.targets.retain(|target| targets.contains(&target.region.as_str()));
            })
            .await
            .unwrap();
        let found = bed.store.read(|tx| Box::pin(async { tx.get::<ImageVersion>(&id).await })).await;
        assert_eq!(found.unwrap().unwrap().data.spec.location, region(home));
    }
    let jobs = bed.store.read(|tx| Box::pin(async { tx.unfinished_jobs(&id).await })).await.unwrap();
    assert_eq!(jobs.len(), 1);
    assert_eq!(jobs[0].payload, json!({"version": id, "from": "eastus"}));
}

#[tokio::test]
async fn latest_is_what_the_region_has() {
    let bed = Bed::new().await;
    let message = |error: ApiError| error.error_object()["message"].as_str().unwrap().to_owned();
    let none = bed.resolve(VersionSelector::Latest, "eastus").await.unwrap_err();
    assert_eq!(message(none), format!("There is no latest image version exists for \"{}\"", definition_id()));

    let old = bed.publish(|_| {}).await.unwrap();
    let new = bed.publish(|_| {}).await.unwrap();
    let not_yet = bed.resolve(VersionSelector::Latest, "eastus").await.unwrap_err();
    assert_eq!(not_yet.error_object()["code"], "GalleryImageNotFound");
    assert!(
        message(not_yet).starts_with(&format!(
            "The gallery image {} is not available in eastus region.",
            definition_id()
        ))
    );

    bed.complete(&old, "eastus").await;
    bed.complete(&old, "westus").await;
    bed.complete(&new, "westus").await;
    assert_eq!(bed.resolve(VersionSelector::Latest, "eastus").await.unwrap().version_id, old);
    let found = bed.resolve(VersionSelector::Latest, "westus").await.unwrap();
    assert_eq!((found.version_id, found.exact.to_string()), (new.clone(), "0.0.2".to_owned()));
    assert_eq!((found.content.os_disk.manifest.as_str(), found.definition.name.as_str()), ("m", "d"));
    let exact = VersionSelector::Exact(VersionName::parse("0.0.2").unwrap());
    let away = bed.resolve(exact, "eastus").await.unwrap_err();
    assert!(message(away).contains("/versions/0.0.2 is not available in eastus region"));
    assert_eq!(bed.resolve(exact, "westus").await.unwrap().version_id, new);

    let newest = bed.publish(|new| new.exclude_from_latest = true).await.unwrap();
    bed.complete(&newest, "westus").await;
    assert_eq!(bed.resolve(VersionSelector::Latest, "westus").await.unwrap().version_id, new, "excluded");

    let deleted: Result<(), StoreError> = bed
        .store
        .write(|tx| {
            Box::pin(async {
                assert_eq!(begin_delete(tx, &new).await?, Begun::Working);
                let jobs = tx.unfinished_jobs(&new).await?;
                let asked: Vec<(&str, bool)> =
                    jobs.iter().map(|job| (job.kind.as_str(), job.cancel_requested)).collect();
                assert_eq!(asked, [("replicateImageVersion", true), ("deleteImageVersion", false)]);
                Ok(())
            })
        })
        .await;
    deleted.unwrap();
    assert_eq!(bed.resolve(VersionSelector::Latest, "westus").await.unwrap().version_id, old, "going away");
    assert!(bed.resolve(exact, "westus").await.is_err());
}
