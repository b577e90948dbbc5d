//! Checking a store, reading past damage, and repairing it from a replica.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use content::{BlockCache, Image, KeyRing, ManifestId, Store, StoreOptions, VerifyOptions, replicate};

use crate::support::{BLOCK, Place, noise, open, put, read_all, text};

/// A disk of text and noise, in two stores.
async fn two_copies(place: &Place) -> ([Store; 2], ManifestId, Vec<u8>) {
    let stores = [place.store("a").await, place.store("b").await];
    let disk = [(0..40).flat_map(text).collect(), noise(3, 60 * BLOCK)].concat();
    let image = put(&stores[0], &place.raw("disk.raw", &disk)).await.manifest;
    replicate(&stores[0], &stores[1], &image, "copy", |_| {}).await.expect("replicate");
    (stores, image, disk)
}

/// Overwrites every object of a store below a folder, but for its first bytes.
fn ruin(place: &Place, folder: &str, from: u64) {
    for path in place.objects(folder) {
        let file = std::fs::File::options().write(true).open(&path).expect("open");
        let len = file.metadata().expect("file").len();
        file.write_all_at(&vec![0x5a; (len - from) as usize], from).expect("write");
    }
}

async fn verify(store: &Store, options: &VerifyOptions) -> content::StoreVerifyReport {
    store.verify_all(options, |done, total| assert!(done <= total)).await.expect("verify")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_named_with_those_who_need_it() {
    let place = Place::new();
    let store = place.store("store").await;
    let shared = noise(1, 20 * BLOCK);
    let first =
        put(&store, &place.raw("first.raw", &[shared.clone(), noise(2, BLOCK)].concat())).await.manifest;
    let second =
        put(&store, &place.raw("second.raw", &[noise(4, BLOCK), shared.clone()].concat())).await.manifest;
    let clean = verify(&store, &VerifyOptions::default()).await;
    assert_eq!((clean.images, clean.damaged, clean.damaged_frames), (2, 0, 0));
    assert_eq!(clean.needed, 22 + 2 + 2);

    // One byte of the first frame: its 16 blocks of both images.
    let mut packs = place.objects("store/packs");
    packs.sort_by_key(|path| std::cmp::Reverse(path.metadata().expect("file").len()));
    let file = std::fs::File::options().write(true).open(&packs[0]).expect("open");
    file.write_all_at(b"x", 3000).expect("write");
    let report = verify(&store, &VerifyOptions::default()).await;
    assert_eq!((report.damaged, report.damaged_frames, report.damages.len()), (16, 1, 16));
    let name = packs[0].file_name().expect("name").to_string_lossy().into_owned();
    let block = blake3::hash(&shared[..BLOCK]).to_hex().to_string();
    let damage = report.damages.iter().find(|damage| damage.hash == block).expect("the first block");
    assert!(damage.reason.contains(&name) && !damage.repaired, "{damage:?}");
    let mut needs: Vec<_> = damage.needed_by.iter().map(|n| (n.manifest, n.disk_offset)).collect();
    needs.sort_by_key(|(_, offset)| *offset);
    assert_eq!(needs, [(first, Some(0)), (second, Some(BLOCK as u64))]);
    assert_eq!(damage.needed_by[0].owners, ["test"]);

    // Nobody has it: repairing says so and takes nothing away.
    let report = verify(&store, &VerifyOptions { repair: true, ..Default::default() }).await;
    assert_eq!((report.damaged, report.repaired), (16, 0));
    assert!(packs[0].exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_repairs_everything() {
    let place = Place::new();
    let (stores, image, disk) = two_copies(&place).await;
    // Every frame, the pages and the manifest included.
    ruin(&place, "a/packs", 0);
    let options = VerifyOptions { replicas: vec![stores[1].clone()], repair: false };
    let found = verify(&stores[0], &options).await;
    assert_eq!((found.damaged, found.repaired), (found.needed, 0));
    assert_eq!(found.needed, 100 + 1 + 1);

    let options = VerifyOptions { repair: true, ..options };
    let repaired = verify(&stores[0], &options).await;
    assert_eq!((repaired.damaged, repaired.repaired), (102, 102));
    assert!(repaired.damages.iter().all(|damage| damage.repaired));
    assert_eq!(verify(&stores[0], &VerifyOptions::default()).await.damaged, 0);
    assert!(read_all(&open(&stores[0], &image).await).await == disk);
    // The damaged pack is gone: as many bytes as in the replica.
    let (a, b) = (stores[0].stats().await.expect("stats"), stores[1].stats().await.expect("stats"));
    assert_eq!(a.packs, b.packs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_pack_comes_back() {
    let place = Place::new();
    let (stores, image, disk) = two_copies(&place).await;
    for path in [place.objects("a/packs"), place.objects("a/index")].concat() {
        std::fs::remove_file(path).expect("remove");
    }
    let options = VerifyOptions { replicas: vec![stores[1].clone()], repair: true };
    let a = place.store("a").await;
    let report = verify(&a, &options).await;
    assert_eq!((report.damaged, report.repaired), (102, 102));
    assert!(read_all(&open(&a, &image).await).await == disk);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_on_while_one_copy_has_them() {
    let place = Place::new();
    let (stores, image, disk) = two_copies(&place).await;
    let opened = || Image::open(&stores, &image, Arc::new(BlockCache::in_memory()));
    let before = opened().await.expect("open");
    ruin(&place, "a/packs", 0);
    assert!(read_all(&before).await == disk);
    assert!(before.damaged_reads() > 0);
    assert!(read_all(&opened().await.expect("open")).await == disk);

    // One is gone altogether.
    std::fs::remove_dir_all(place.path("a")).expect("remove");
    assert!(read_all(&opened().await.expect("open")).await == disk);
    std::fs::remove_dir_all(place.path("b")).expect("remove");
    assert!(opened().await.is_err());
}

/// While a page is lost, nobody knows which blocks it needs: not even what a collection condemned before may go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_freed_while_a_table_is_lost() {
    let place = Place::new();
    let store = place.store("store").await;
    let blocks = noise(1, 20 * BLOCK);
    let first = put(&store, &place.raw("first.raw", &blocks)).await.manifest;
    let of_first = place.objects("store/packs").remove(0);
    let more = [blocks.clone(), noise(2, BLOCK)].concat();
    let second = put(&store, &place.raw("second.raw", &more)).await.manifest;
    store.remove_ref(&first, "test").await.expect("remove");
    let of_second = place.objects("store/packs").into_iter().find(|path| *path != of_first).expect("a pack");

    // A collection was killed after it had condemned the first pack; then the second image's page was damaged.
    let id = of_first.file_name().expect("name").to_string_lossy().into_owned();
    let id = u128::from_str_radix(&id, 16).expect("an id").to_be_bytes();
    std::fs::create_dir_all(place.path("store/condemned")).expect("folder");
    std::fs::write(place.path("store/condemned").join("0".repeat(32)), id).expect("write");
    let good = std::fs::read(&of_second).expect("read");
    let mut bad = good.clone();
    let in_page = good.len() - (16 + 32 + 40 + 40) - 10;
    bad[in_page] ^= 1;
    std::fs::write(&of_second, &bad).expect("write");

    let report = verify(&store, &VerifyOptions { repair: true, ..Default::default() }).await;
    assert_eq!((report.damaged, report.repaired), (1, 0), "{report:?}");
    store.gc(&content::GcOptions::default(), |_, _, _| {}).await.expect_err("a page is lost");
    assert!(of_first.exists() && of_second.exists());
    // The disk gives the page after all.
    std::fs::write(&of_second, &good).expect("write");
    assert!(read_all(&open(&store, &second).await).await == more);
    store.gc(&content::GcOptions::default(), |_, _, _| {}).await.expect("collect");
    assert!(!of_first.exists());
    assert!(read_all(&open(&store, &second).await).await == more);
}

/// Changes one byte of every index segment of a store in its first, middle or last part, or removes them.
fn ruin_index(place: &Place, store: &str, how: &str) {
    for path in place.objects(&format!("{store}/index")) {
        let mut bytes = std::fs::read(&path).expect("read");
        let len = bytes.len();
        match how {
            "header" => bytes[3] ^= 1,
            "entry" => bytes[len / 2] ^= 1,
            "truncated" => bytes.truncate(len - 7),
            _ => {
                std::fs::remove_file(&path).expect("remove");
                continue;
            }
        }
        std::fs::write(&path, bytes).expect("write");
    }
}

/// The index is a cache of what the packs say: it is made anew from them, without a replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_index_is_made_anew() {
    for how in ["header", "entry", "truncated", "removed"] {
        for keys in [None, Some(KeyRing::from_text(&"7".repeat(64)).expect("a key"))] {
            let place = Place::new();
            let options =
                StoreOptions { keys, index_dir: Some(place.path("mirror")), ..StoreOptions::default() };
            let opened = async || {
                Store::open_or_create_with(&place.location("store"), "test", &options).await.expect("open")
            };
            let store = opened().await;
            let disk = [(0..40).flat_map(text).collect(), noise(3, 60 * BLOCK)].concat();
            let image = put(&store, &place.raw("disk.raw", &disk)).await.manifest;
            let other = put(&store, &place.raw("other.raw", &noise(4, 3 * BLOCK))).await.manifest;
            ruin_index(&place, "store", how);
            drop(store);
            std::fs::remove_dir_all(place.path("mirror")).ok();

            let store = opened().await;
            let found = verify(&store, &VerifyOptions::default()).await;
            assert_eq!(found.damaged_segments, if how == "removed" { 0 } else { 2 }, "{how}: {found:?}");
            assert_eq!(found.damaged, 2, "both manifests, {how}: {found:?}");
            store.gc(&content::GcOptions::default(), |_, _, _| {}).await.expect_err("much is lost");
            let options = VerifyOptions { repair: true, ..VerifyOptions::default() };
            let repaired = verify(&store, &options).await;
            assert_eq!((repaired.reindexed_packs, repaired.damaged), (2, 0), "{how}: {repaired:?}");
            assert_eq!(verify(&store, &VerifyOptions::default()).await.copies_damaged(), 0);
            store.gc(&content::GcOptions::default(), |_, _, _| {}).await.expect("collect");
            let store = opened().await;
            assert!(read_all(&open(&store, &image).await).await == disk);
            assert!(read_all(&open(&store, &other).await).await == noise(4, 3 * BLOCK));
        }
    }
}

/// Where both the index and a frame's header are damaged, the frames behind it are found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_behind_a_damaged_one_are_found() {
    let place = Place::new();
    let (stores, image, disk) = two_copies(&place).await;
    let pack = place.objects("a/packs").remove(0);
    let file = std::fs::File::options().write(true).open(&pack).expect("open");
    // The length of the first frame's payload.
    file.write_all_at(&[0xff; 4], 32 + 12).expect("write");
    ruin_index(&place, "a", "removed");
    let alone = place.store("a").await;
    let report = verify(&alone, &VerifyOptions { repair: true, ..VerifyOptions::default() }).await;
    assert_eq!((report.reindexed_packs, report.damaged), (1, 16), "{report:?}");
    let options = VerifyOptions { replicas: vec![stores[1].clone()], repair: true };
    assert_eq!(verify(&alone, &options).await.repaired, 16);
    assert!(read_all(&open(&alone, &image).await).await == disk);
}

/// All that a store has but its description, references included, is damaged: a replica makes it whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_damaged_objects_becomes_whole() {
    let place = Place::new();
    let (stores, image, disk) = two_copies(&place).await;
    stores[1].add_ref(&image, "test").await.expect("refer");
    for folder in ["a/packs", "a/index", "a/refs"] {
        ruin(&place, folder, 0);
    }
    let store = place.store("a").await;
    assert_eq!(store.refs(&image).await.expect("refs"), Vec::<String>::new());
    assert!(store.images().await.expect("images").contains_key(&image));
    let options = VerifyOptions { replicas: vec![stores[1].clone()], repair: true };
    let report = verify(&store, &options).await;
    assert_eq!((report.damaged, report.repaired), (102, 102), "{report:?}");
    assert_eq!((report.damaged_references, report.repaired_references), (1, 1));
    assert_eq!(store.refs(&image).await.expect("refs"), ["test"]);
    assert!(read_all(&open(&store, &image).await).await == disk);
    let after = verify(&store, &VerifyOptions::default()).await;
    assert_eq!((after.damaged, after.copies_damaged()), (0, 0), "{after:?}");
}
