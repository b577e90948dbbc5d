use bytes::Bytes;
use chrono::TimeDelta;
use content::StoreLocation;
use model::managed_disk::AccessMode;

use super::*;
use crate::blob::page::PageBlob;
use crate::config::RegionConfig;
use crate::{AppState, Config};

fn name(region: &str) -> Region {
    Region::parse(region).unwrap()
}

async fn two_regions(folder: &Path) -> AppState {
    let mut config = Config::new(folder);
    let region = |region: &str| {
        RegionConfig::of_one_zone(name(region), StoreLocation::Folder(folder.join("regions").join(region)))
    };
    config.regions = vec![region("east"), region("west")];
    AppState::for_tests(config).await
}

#[tokio::test]
async fn an_image_is_read_where_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let state = two_regions(folder.path()).await;
    let raw = folder.path().join("raw");
    std::fs::write(&raw, vec![7; 1 << 20]).unwrap();
    let mut ids = Vec::new();
    for region in ["east", "west"] {
        let store = state.fabric.store(&name(region)).await.unwrap();
        ids.push(store.put_raw(&raw, "o", |_| {}).await.unwrap().manifest);
    }
    assert_eq!(ids[0], ids[1], "the same bytes are the same manifest");
    let from_east = image(&state, &name("east"), ids[0]).await.unwrap();
    let (again, fresh) = state.disk_exports.opened(&name("east"), ids[0]).unwrap();
    assert!(fresh && again.id() == from_east.id());
    // East loses its copy, packs and all; nothing of it was read yet.
    std::fs::remove_dir_all(folder.path().join("regions/east/packs")).unwrap();
    let from_west = image(&state, &name("west"), ids[0]).await.unwrap();
    let mut bytes = [0; 100];
    from_west.read_at(70_000, &mut bytes).await.unwrap();
    assert_eq!(bytes, [7; 100]);
}

#[tokio::test]
async fn an_image_is_opened_anew_when_other_zones_have_it() {
    let folder = tempfile::tempdir().unwrap();
    let exports = two_regions(folder.path()).await;
    let exports = &exports.disk_exports;
    let id: ManifestId = "0".repeat(64).parse().unwrap();
    let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let cell = |stores: &[Uuid]| exports.cell(&name("east"), id, stores.iter().copied().collect());
    let first = cell(&[a]);
    assert!(Arc::ptr_eq(&first, &cell(&[a])));
    assert!(!Arc::ptr_eq(&first, &cell(&[a, b])));
    // One that never ends opening keeps nobody waiting.
    let slow = cell(&[a, b]);
    let opening = tokio::spawn(async move { slow.get_or_init(std::future::pending).await.size() });
    tokio::task::yield_now().await;
    assert!(exports.opened(&name("east"), id).is_none());
    let other = exports.cell(&name("west"), id, BTreeSet::from([a]));
    assert!(!other.initialized());
    opening.abort();
    for number in 0..2 * OPEN_IMAGES_MAX as u128 {
        exports.cell(&name("east"), format!("{number:064x}").parse().unwrap(), BTreeSet::from([a]));
    }
    assert_eq!(exports.images().len(), OPEN_IMAGES_MAX);
}

fn access(at: i64) -> DiskAccess {
    let granted = DateTime::from_timestamp(at, 0).unwrap();
    let expires = granted + TimeDelta::hours(1);
    DiskAccess { id: Uuid::new_v4(), mode: AccessMode::Write, granted, expires }
}

async fn write(file: &PageFile) -> Result<(), crate::blob::BlobError> {
    PageBlob::File(file.clone()).write(0, Bytes::from_static(&[1; 512])).await
}

#[tokio::test]
async fn an_upload_is_written_by_its_newest_access() {
    let folder = tempfile::tempdir().unwrap();
    let state = two_regions(folder.path()).await;
    let exports = &state.disk_exports;
    let disk = Uuid::new_v4();
    let (first, second) = (access(100), access(200));
    assert!(exports.upload(disk, &first, None).await.unwrap().is_none(), "no file yet");
    exports.begin_upload(disk, 1024, None).await.unwrap();
    let old = exports.upload(disk, &first, None).await.unwrap().unwrap();
    write(&old).await.unwrap();
    let new = exports.upload(disk, &second, None).await.unwrap().unwrap();
    assert_eq!(write(&old).await.unwrap_err().status.as_u16(), 409, "the former access writes no more");
    assert!(exports.upload(disk, &first, None).await.unwrap().is_none(), "nor comes in again");
    write(&new).await.unwrap();
    // The upload ends: nobody comes in while it is stored; and if that failed, only who is granted anew.
    let sealed = exports.seal_upload(disk, None).await.unwrap().unwrap();
    assert!(write(&new).await.is_err() && write(&sealed).await.is_err());
    assert!(exports.upload(disk, &access(300), None).await.unwrap().is_none());
    exports.close_upload(disk).await;
    write(&exports.upload(disk, &access(300), None).await.unwrap().unwrap()).await.unwrap();
    drop((old, new, sealed));
    exports.remove_upload(disk).await.unwrap();
    assert_eq!(open_files(exports), 0, "a file that was removed is closed");
}

/// Files of uploads that this process has open, removed ones too.
fn open_files(exports: &DiskExports) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let target = std::fs::read_link(entry.ok()?.path()).ok()?;
        target.starts_with(&exports.uploads_dir).then_some(())
    });
    links.count()
}

#[tokio::test]
async fn open_uploads_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let state = two_regions(folder.path()).await;
    let exports = &state.disk_exports;
    let access = access(1);
    let mut held = Vec::new();
    for number in 0..OPEN_UPLOADS_MAX as u128 + 10 {
        let disk = Uuid::from_u128(number);
        exports.begin_upload(disk, 512, None).await.unwrap();
        let file = exports.upload(disk, &access, None).await.unwrap().unwrap();
        if number >= 10 {
            held.push(file);
        }
    }
    assert_eq!(open_files(exports), OPEN_UPLOADS_MAX);
    // All are being written: another has to wait, and none of them is let go.
    let one_more = exports.upload(Uuid::from_u128(0), &access, None).await.unwrap_err();
    assert_eq!(one_more.kind(), io::ErrorKind::ResourceBusy);
    held.pop();
    assert!(exports.upload(Uuid::from_u128(0), &access, None).await.unwrap().is_some());
}

#[tokio::test]
async fn a_file_that_cannot_be_made_is_told_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let state = two_regions(folder.path()).await;
    let exports = &state.disk_exports;
    let disk = Uuid::new_v4();
    // Beyond what any file may have.
    let error = exports.begin_upload(disk, i64::MAX as u64 / 512 * 512, None).await.unwrap_err().to_string();
    assert!(error.contains("request the access again"), "{error}");
    assert!(!exports.upload_path(disk).exists());
    // As a process leaves it that is killed in between.
    std::fs::write(exports.upload_path(disk), "").unwrap();
    exports.begin_upload(disk, 1024, None).await.unwrap();
    assert_eq!(std::fs::metadata(exports.upload_path(disk)).unwrap().len(), PageFile::bytes_of(1024));
}
