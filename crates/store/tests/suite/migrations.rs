//! Migrations.

use store::{Store, StoreError};

use super::{GROUP, get, put};
use crate::support::Bed;

pub(crate) async fn run_once_however_often_asked(bed: Bed) {
    let mut starts = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let url = bed.url.clone();
        starts.spawn(async move { Store::connect(&url).await });
    }
    while let Some(store) = starts.join_next().await {
        store.expect("task").expect("each of four processes that start at once connects").close().await;
    }
    let store = bed.store().await;
    put(&store, GROUP).await.expect("group");
    store.close().await;
    let store = bed.store().await;
    assert!(get(&store, GROUP).await.is_some(), "migrating again keeps what is there");
}

pub(crate) async fn refuse_newer_and_edited_schemas(bed: Bed) {
    bed.store().await.close().await;
    bed.raw("UPDATE schema_migrations SET checksum = 'other'").await;
    let edited = Store::connect(&bed.url).await;
    assert!(matches!(edited, Err(StoreError::ChangedMigration { version: 1 })), "{edited:?}");
    bed.raw("UPDATE schema_migrations SET version = version + 998").await;
    let newer = Store::connect(&bed.url).await;
    assert!(matches!(newer, Err(StoreError::NewerSchema { found: 999, .. })), "{newer:?}");
}
