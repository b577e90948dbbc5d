//! Resources and links.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Document, Filter, ProvisioningState, StoreError};

use super::{GROUP, delete, gallery_id, get, put};
use crate::support::Bed;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Gallery {
    description: Option<String>,
    size_bytes: u64,
}

pub(crate) async fn round_trip_keeps_everything(bed: Bed) {
    let store = bed.store().await;
    put(&store, GROUP).await.expect("group");
    let id = gallery_id("Gal_1");
    let data =
        Gallery { description: Some("naïve \"quotes\" \u{0} 日本".to_owned()), size_bytes: u64::MAX };
    let mut written = Document::new(&id, "eastus2", ProvisioningState::Creating, data).expect("id");
    written.schema = 7;
    written.extra.insert("tags".to_owned(), json!({"B": "1", "a": null}));
    let document = &written;
    let inserted = store
        .write(|tx| {
            Box::pin(async move {
                let mut document = document.clone();
                tx.insert(&mut document).await?;
                Ok::<_, StoreError>(document)
            })
        })
        .await
        .expect("insert");
    let read = store
        .read(|tx| Box::pin(async { tx.get::<Gallery>(&id).await }))
        .await
        .expect("read")
        .expect("there");
    assert_eq!(read, inserted);
    assert_eq!(read.id, id, "the case it was written in");
    assert_eq!(read.key, id.to_lowercase());
    assert_eq!((read.ty.as_str(), read.name.as_str()), ("microsoft.compute/galleries", "Gal_1"));
    assert_eq!((read.subscription.as_str(), read.resource_group.as_str()), ("s1", "rg1"));
    assert_eq!(read.parent.as_deref(), Some(GROUP.to_lowercase().as_str()));
    assert_eq!((read.generation, read.schema), (1, 7));
    assert_eq!(read.data, written.data);
    assert_eq!(read.extra, written.extra);
    assert!(read.created_at.timestamp() > 1_700_000_000, "database time: {}", read.created_at);
}

pub(crate) async fn ids_compare_without_case(bed: Bed) {
    let store = bed.store().await;
    put(&store, GROUP).await.expect("group");
    let found = get(&store, "/SUBSCRIPTIONS/s1/resourcegroups/RG1").await.expect("found");
    assert_eq!(found.id, GROUP);
    let again = put(&store, "/subscriptions/S1/RESOURCEGROUPS/rG1/").await;
    assert!(matches!(again, Err(StoreError::AlreadyExists { .. })), "{again:?}");
}

pub(crate) async fn insert_refuses_twice_and_orphans(bed: Bed) {
    let store = bed.store().await;
    let orphan = put(&store, &gallery_id("g")).await;
    assert!(
        matches!(&orphan, Err(StoreError::ParentMissing { parent, .. }) if *parent == GROUP.to_lowercase())
    );
    put(&store, GROUP).await.expect("group");
    put(&store, &gallery_id("g")).await.expect("gallery");
    let twice = put(&store, &gallery_id("G")).await;
    assert!(matches!(twice, Err(StoreError::AlreadyExists { .. })), "{twice:?}");
    for id in ["", "no/slash", "/subscriptions/s/resourceGroups/rg/x", "/a/b\u{0}"] {
        assert!(matches!(put(&store, id).await, Err(StoreError::BadId { .. })), "{id:?}");
    }
}

pub(crate) async fn update_compares_the_generation(bed: Bed) {
    let store = bed.store().await;
    let first = put(&store, GROUP).await.expect("group");
    let update = async |mut document: Document<Value>, text: &str| {
        document.data = json!({ "text": text });
        document.state = ProvisioningState::Updating;
        let document = &document;
        store
            .write(|tx| {
                Box::pin(async move {
                    let mut document = document.clone();
                    tx.update(&mut document).await?;
                    Ok::<_, StoreError>(document)
                })
            })
            .await
    };
    let second = update(first.clone(), "second").await.expect("update");
    assert_eq!(second.generation, 2);
    assert!(second.updated_at >= first.updated_at);
    let stale = update(first, "stale").await;
    assert!(matches!(stale, Err(StoreError::StaleDocument { expected: 1, found: 2, .. })), "{stale:?}");
    let read = get(&store, GROUP).await.expect("there");
    assert_eq!(read.data, json!({"text": "second"}));
    assert_eq!(read.state, ProvisioningState::Updating);
    delete(&store, GROUP).await.expect("delete");
    let gone = update(second, "gone").await;
    assert!(matches!(gone, Err(StoreError::NotFound { .. })), "{gone:?}");
}

pub(crate) async fn delete_refuses_parents_and_targets(bed: Bed) {
    let store = bed.store().await;
    put(&store, GROUP).await.expect("group");
    let (gallery, source) = (gallery_id("G"), gallery_id("source"));
    put(&store, &gallery).await.expect("gallery");
    put(&store, &source).await.expect("source");
    let refused = delete(&store, GROUP).await;
    assert!(
        matches!(&refused, Err(StoreError::HasChildren { child, .. }) if *child == gallery),
        "{refused:?}"
    );

    let link = || store.write(|tx| Box::pin(async { tx.link(&gallery, &source, "source").await }));
    link().await.expect("link");
    link().await.expect("linking twice is linking once");
    let refused = delete(&store, &source).await;
    let expected = gallery.to_lowercase();
    assert!(
        matches!(&refused, Err(StoreError::Referenced { by, kind, .. }) if *by == expected && kind == "source")
    );
    let links = store.read(|tx| Box::pin(async { tx.links_to(&source).await })).await.expect("links");
    assert_eq!(links.len(), 1);

    delete(&store, &gallery).await.expect("the referring side can go");
    let links = store.read(|tx| Box::pin(async { tx.links_to(&source).await })).await.expect("links");
    assert_eq!(links, []);
    delete(&store, &source).await.expect("nothing refers to it now");
    assert!(matches!(delete(&store, &source).await, Err(StoreError::NotFound { .. })));
    let missing = store.write(|tx| Box::pin(async { tx.link(GROUP, &source, "x").await })).await;
    assert!(matches!(missing, Err(StoreError::NotFound { .. })), "{missing:?}");
}

pub(crate) async fn lists_filter_and_page(bed: Bed) {
    let store = bed.store().await;
    put(&store, GROUP).await.expect("group");
    put(&store, "/subscriptions/S1/resourceGroups/other").await.expect("group");
    for n in 0..5 {
        put(&store, &gallery_id(&format!("G{n}"))).await.expect("gallery");
        put(&store, &format!("{}/images/I{n}", gallery_id("G0"))).await.expect("image");
    }
    let list = async |filter: Filter| {
        store.read(|tx| Box::pin(async { tx.list::<Value>(&filter).await })).await.expect("list")
    };
    let names =
        |listing: &store::Listing<Value>| listing.items.iter().map(|d| d.name.clone()).collect::<Vec<_>>();

    let galleries = Filter {
        ty: Some("Microsoft.Compute/galleries".to_owned()),
        subscription: Some("S1".to_owned()),
        resource_group: Some("RG1".to_owned()),
        limit: 2,
        ..Filter::default()
    };
    let first = list(galleries.clone()).await;
    assert_eq!(names(&first), ["G0", "G1"]);
    let second = list(Filter { after: first.next, ..galleries.clone() }).await;
    assert_eq!(names(&second), ["G2", "G3"]);
    let third = list(Filter { after: second.next, ..galleries }).await;
    assert_eq!(names(&third), ["G4"]);
    assert_eq!(third.next, None);

    let children = list(Filter { parent: Some(gallery_id("G0")), ..Filter::default() }).await;
    assert_eq!(names(&children), ["I0", "I1", "I2", "I3", "I4"]);
    assert_eq!(children.next, None);
    let none = list(Filter {
        resource_group: Some("other".to_owned()),
        parent: Some(GROUP.to_owned()),
        ..Filter::default()
    });
    assert_eq!(names(&none.await), Vec::<String>::new());
}

pub(crate) async fn the_database_enforces_foreign_keys(bed: Bed) {
    let store = bed.store().await;
    put(&store, GROUP).await.expect("group");
    put(&store, &gallery_id("g")).await.expect("gallery");
    // SQLite enforces per connection; the store's connections are what counts, so go through one.
    let dangling = store
        .write(|tx| {
            Box::pin(async { tx.put_placement(&placement("/subscriptions/s1/resourcegroups/none")).await })
        })
        .await;
    assert!(matches!(dangling, Err(StoreError::NotFound { .. })), "{dangling:?}");
    let refused =
        bed.raw_refused("INSERT INTO links (from_key, to_key, kind) VALUES ('/a', '/b', 'x')").await;
    assert!(refused.to_lowercase().contains("foreign key"), "{refused}");
    let refused =
        bed.raw_refused(&format!("DELETE FROM resources WHERE key = '{}'", GROUP.to_lowercase())).await;
    assert!(refused.to_lowercase().contains("foreign key"), "{refused}");
}

fn placement(version: &str) -> store::Placement {
    store::Placement {
        version_key: version.to_owned(),
        region: "eastus".to_owned(),
        manifest: "m".to_owned(),
        state: store::PlacementState::Pending,
        bytes_moved: 0,
        progress: 0,
    }
}

pub(crate) async fn nonsense_in_a_row_is_named(bed: Bed) {
    let store = bed.store().await;
    put(&store, GROUP).await.expect("group");
    let read = async || store.read(|tx| Box::pin(async { tx.get::<Gallery>(GROUP).await })).await;
    let wrong_shape = read().await;
    assert!(
        matches!(&wrong_shape, Err(StoreError::Inconsistent { table: "resources", column: "doc", row, .. })
            if *row == GROUP.to_lowercase()),
        "{wrong_shape:?}"
    );
    bed.raw("UPDATE resources SET doc = '{\"data\":{\"size_bytes\":1}}'").await;
    assert!(read().await.is_ok());
    bed.raw("UPDATE resources SET provisioning_state = 'Thinking'").await;
    let no_state = read().await;
    assert!(
        matches!(no_state, Err(StoreError::Inconsistent { column: "provisioning_state", .. })),
        "{no_state:?}"
    );
}
