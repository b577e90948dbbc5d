use axum::http::HeaderValue;
use futures::TryStreamExt;
use model::ResourceGroupName;
use model::resource_group::{ResourceGroup, ResourceGroupSpec};
use model::storage_account::{StorageAccountName, StorageAccountSpec, StorageKind, StorageSku};
use store::{BlobKey, Document, ProvisioningState};

use super::*;
use crate::Config;
use crate::api::storage_accounts;
use crate::blob::own_pages::ensure_container;

async fn state(folder: &Path) -> AppState {
    AppState::for_tests(Config::new(folder)).await
}

fn region() -> Region {
    Region::parse("eastus").unwrap()
}

async fn received(state: &AppState, bytes: Vec<u8>) -> Result<Received, BlobError> {
    let length = HeaderValue::from(bytes.len());
    let headers = HeaderMap::from_iter([("content-length".parse().unwrap(), length)]);
    receive(state, &region(), &headers, Body::from(bytes), 10 << 20).await
}

#[tokio::test]
async fn what_is_due_goes_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let state = state(folder.path()).await;
    let named = received(&state, vec![1; 10]).await.unwrap();
    let unnamed = received(&state, vec![2; 10]).await.unwrap();
    let killed = received(&state, vec![3; 10]).await.unwrap();
    let drop_now = |id: String| {
        let state = &state;
        async move {
            let drop = state.store.write(|tx| {
                let id = [id.clone()];
                Box::pin(async move {
                    tx.take_object(&id[0]).await?;
                    tx.drop_objects("eastus", &id, TimeDelta::zero()).await
                })
            });
            drop.await.unwrap();
        }
    };
    state.store.write(|tx| Box::pin(async { tx.take_object(&named.object.id).await })).await.unwrap();
    let paths = [&named, &unnamed, &killed].map(|received| received.object.path.clone());
    drop_now(unnamed.object.id.clone()).await;
    named.object.taken();
    unnamed.object.taken();
    assert_eq!(sweep_once(&state).await.unwrap(), 1, "the one that is due");
    assert_eq!(paths.clone().map(|path| path.exists()), [true, false, true]);

    // As after kill -9: nobody removes the file, but the note from before it was made is there.
    let id = killed.object.id.clone();
    std::mem::forget(killed);
    drop_now(id).await;
    drop_now("0".repeat(32)).await;
    assert_eq!(sweep_once(&state).await.unwrap(), 2, "one of them never had a file");
    assert_eq!(paths.map(|path| path.exists()), [true, false, false]);
    assert_eq!(sweep_once(&state).await.unwrap(), 0);
}

#[tokio::test]
async fn a_region_that_is_away_holds_up_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let state = state(folder.path()).await;
    let due = received(&state, vec![1; 10]).await.unwrap();
    let gone: Vec<String> = (0..SWEEP_OBJECTS + 1).map(|number| format!("{number:032x}")).collect();
    let id = [due.object.id.clone()];
    let noted = state.store.write(|tx| {
        Box::pin(async {
            tx.drop_objects("mars", &gone, TimeDelta::hours(-1)).await?;
            tx.take_object(&id[0]).await?;
            tx.drop_objects("eastus", &id, TimeDelta::zero()).await
        })
    });
    noted.await.unwrap();
    assert_eq!(sweep_once(&state).await.unwrap(), 1);
    assert!(!due.object.path.exists());
    let left = state.store.read(|tx| Box::pin(async { tx.due_objects("mars", 2000).await })).await.unwrap();
    assert_eq!(left.len(), gone.len(), "they wait for their region");
}

#[tokio::test]
async fn an_upload_that_is_due_is_not_taken_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let state = state(folder.path()).await;
    let id = ["a".repeat(32)];
    let noted =
        state.store.write(|tx| Box::pin(async { tx.drop_objects("eastus", &id, TimeDelta::zero()).await }));
    noted.await.unwrap();
    let taken = state.store.write(|tx| Box::pin(async { super::super::blobs::take(tx, &id[0]).await }));
    assert_eq!(taken.await.unwrap_err().code, "OperationTimedOut", "a sweep may be removing it");
    assert_eq!(sweep_once(&state).await.unwrap(), 1);
}

#[tokio::test]
async fn blocks_that_nobody_commits_go_after_a_week() {
    let folder = tempfile::tempdir().unwrap();
    let state = state(folder.path()).await;
    let name = StorageAccountName::parse("acct1").unwrap();
    let keys = storage_accounts::new_keys(&state, &name).unwrap();
    let spec = StorageAccountSpec {
        location: region(),
        tags: model::Tags::default(),
        sku: StorageSku::StandardLrs,
        kind: StorageKind::StorageV2,
        https_only: true,
        shared_key_access: true,
    };
    let group = "/subscriptions/s/resourceGroups/rg";
    let block = received(&state, vec![1; 10]).await.unwrap();
    let part = store::BlobPart { id: "MQ==".to_owned(), object: block.object.id.clone(), bytes: 10 };
    let put = state.store.write(|tx| {
        Box::pin(async {
            let new =
                ResourceGroupSpec { location: region(), tags: model::Tags::default(), managed_by: None };
            let new = ResourceGroup::create(ResourceGroupName::parse("rg").unwrap(), new);
            tx.insert(&mut Document::new(group, "eastus", ProvisioningState::Succeeded, new)?).await?;
            let account: String =
                storage_accounts::ensure(tx, group, &name, spec.clone(), keys.clone()).await?;
            ensure_container(tx, &account, "con").await?;
            tx.take_object(&part.object).await?;
            let key = BlobKey { account, container: "con".to_owned(), name: "b".to_owned() };
            tx.put_block(&key, &part).await?;
            Ok::<_, crate::http::error::ApiError>(key)
        })
    });
    let key: BlobKey = put.await.unwrap();
    let count = || state.store.read(|tx| Box::pin(async { tx.count_blocks(&key).await }));
    assert_eq!(expire_blocks(&state, BLOCKS_KEPT).await.unwrap(), 0);
    assert_eq!(count().await.unwrap(), 1);
    assert_eq!(expire_blocks(&state, TimeDelta::zero()).await.unwrap(), 1);
    assert_eq!(count().await.unwrap(), 0);
    let taken = state.store.write(|tx| Box::pin(async { tx.take_object(&part.object).await }));
    assert!(taken.await.unwrap(), "its file is swept with the rest");
}

#[tokio::test]
async fn parts_are_read_across_their_borders() {
    let folder = tempfile::tempdir().unwrap();
    let lengths = [3_usize, 0, 700_000, 1];
    let mut all = Vec::new();
    let mut parts = Vec::new();
    for (number, length) in lengths.into_iter().enumerate() {
        let bytes: Vec<u8> = (0..length).map(|at| (at * 7 + number) as u8).collect();
        let path = folder.path().join(number.to_string());
        std::fs::write(&path, &bytes).unwrap();
        parts.push((path, length as u64));
        all.extend(bytes);
    }
    for range in [0..all.len(), 0..0, 2..4, 3..3, 3..600_000, 524_290..700_004, 700_003..700_004] {
        let (start, end) = (range.start as u64, range.end as u64);
        let read = stream(parts.clone(), start..end).try_collect::<Vec<_>>().await.unwrap().concat();
        assert!(read == all[range.clone()], "{range:?}");
    }
    // A file that is shorter than its row says gives an error, never fewer bytes.
    std::fs::write(&parts[2].0, b"short").unwrap();
    assert!(stream(parts.clone(), 0..700_004).try_collect::<Vec<_>>().await.is_err());
    let beyond = stream(parts, 0..900_000).try_collect::<Vec<_>>().await;
    assert!(beyond.is_err());
}

#[test]
fn a_full_disk_is_told() {
    let full = BlobError::io("write a blob", &io::Error::from(rustix::io::Errno::NOSPC));
    assert_eq!((full.status.as_u16(), full.code), (507, "InsufficientStorage"));
    let other = BlobError::io("write a blob", &io::Error::from(rustix::io::Errno::IO));
    assert_eq!((other.status.as_u16(), other.code), (500, "InternalError"));
}
