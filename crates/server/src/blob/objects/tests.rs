use axum::http::HeaderValue;
use content::{Key, KeyRing};
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

fn folder_with(path: &Path, key: Option<u8>) -> BlobFolder {
    let keys = key.map(|seed| KeyRing::new(Key::from_bytes([seed; 32]), Vec::new()).unwrap().into());
    BlobFolder { path: path.to_owned(), keys }
}

fn stored(folder: &BlobFolder, id: &str, bytes: &[u8]) -> StoredObject {
    let path = stored::file_of(folder, id);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut sink = Sink::create_in(&path, folder, id).unwrap();
    sink.writer.write(bytes).unwrap();
    sink.close().unwrap();
    StoredObject::new(folder.clone(), id, bytes.len() as u64, "con/b".into())
}

async fn all(parts: &[StoredObject], range: std::ops::Range<usize>) -> io::Result<Vec<u8>> {
    let range = range.start as u64..range.end as u64;
    Ok(stream(parts.to_vec(), range).try_collect::<Vec<_>>().await?.concat())
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
    for key in [None, Some(1)] {
        let place = tempfile::tempdir().unwrap();
        let folder = folder_with(place.path(), key);
        let lengths = [3_usize, 0, 700_000, 1];
        let mut content = Vec::new();
        let mut parts = Vec::new();
        for (number, length) in lengths.into_iter().enumerate() {
            let bytes: Vec<u8> = (0..length).map(|at| (at * 7 + number) as u8).collect();
            parts.push(stored(&folder, &format!("{number}{number}"), &bytes));
            content.extend(bytes);
        }
        for range in [0..content.len(), 0..0, 2..4, 3..3, 3..600_000, 524_290..700_004, 700_003..700_004] {
            assert!(all(&parts, range.clone()).await.unwrap() == content[range.clone()], "{range:?}");
        }
        assert!(all(&parts, 0..900_000).await.is_err(), "beyond");

        // Damage is an error that says where, never other bytes; what lies in other frames is still read.
        let path = parts[2].path();
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[300_000] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let error = BlobError::io("read a blob", &all(&parts, 0..700_004).await.unwrap_err());
        assert_eq!((error.status.as_u16(), error.code), (500, "InternalError"));
        let named = ["con/b", "object 22", "frame 4", "Upload the blob again"];
        assert!(named.iter().all(|name| error.message.contains(name)), "{}", error.message);
        assert!(all(&parts, 0..200_000).await.unwrap() == content[..200_000]);
        assert!(all(&parts, 400_000..700_004).await.unwrap() == content[400_000..]);
        // Cut off at a frame's end, another object's file, a file of a former form, none.
        let frame = 64 + 65_552;
        let other = stored(&folder, "xx", &content[3..700_003]).path();
        let other = std::fs::read(other).unwrap();
        for (what, bytes) in
            [("cut off", &good[..frame]), ("another", &other), ("former", &content[3..700_003])]
        {
            std::fs::write(&path, bytes).unwrap();
            let error = BlobError::io("read a blob", &all(&parts, 3..4).await.unwrap_err());
            assert!(error.message.contains("object 22 of blob 'con/b'"), "{what}: {}", error.message);
        }
        std::fs::remove_file(&path).unwrap();
        let error = BlobError::io("read a blob", &all(&parts, 3..4).await.unwrap_err());
        assert!(error.message.contains("object 22 of blob 'con/b'"), "{}", error.message);
    }
}

#[test]
fn a_file_is_shared_in_its_region_and_written_anew_elsewhere() {
    let place = tempfile::tempdir().unwrap();
    let (here, there) =
        (folder_with(&place.path().join("a"), Some(1)), folder_with(&place.path().join("b"), Some(2)));
    let first = stored(&here, "11", b"content");
    let read = |object: &StoredObject| {
        let mut bytes = [0; 7];
        object.open().and_then(|file| Ok(file.read_exact_at(&mut bytes, 0)?)).map(|()| bytes)
    };
    let link = |new: &StoredObject, old: &StoredObject| {
        std::fs::create_dir_all(new.path().parent().unwrap()).unwrap();
        std::fs::hard_link(old.path(), new.path()).unwrap();
    };
    let second = StoredObject::new(here.clone(), &stored::sharing("12", "11"), 7, "con/c".into());
    link(&second, &first);
    let third = StoredObject::new(here.clone(), &stored::sharing("13", second.id()), 7, "con/d".into());
    link(&third, &second);
    assert_eq!((read(&second).unwrap(), read(&third).unwrap()), (*b"content", *b"content"));
    let path = stored::file_of(&there, "14");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let copy = Pending { id: "14".to_owned(), path, folder: there.clone(), taken: true };
    copy.fill_from(&third).unwrap();
    assert_eq!(read(&StoredObject::new(there, "14", 7, "con/e".into())).unwrap(), *b"content");
    // Not under another object's name.
    let wrong = StoredObject::new(here, "15", 7, "con/f".into());
    link(&wrong, &first);
    assert!(read(&wrong).is_err());
}

#[test]
fn a_full_disk_is_told() {
    let full = BlobError::io("write a blob", &io::Error::from(rustix::io::Errno::NOSPC));
    assert_eq!((full.status.as_u16(), full.code), (507, "InsufficientStorage"));
    let other = BlobError::io("write a blob", &io::Error::from(rustix::io::Errno::IO));
    assert_eq!((other.status.as_u16(), other.code), (500, "InternalError"));
}
