use axum::http::HeaderValue;
use futures::TryStreamExt;

use super::*;
use crate::Config;

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
