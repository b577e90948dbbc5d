use axum::http::HeaderValue;
use content::{Key, KeyRing};
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
