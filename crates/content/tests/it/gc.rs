//! Garbage collection: what nothing needs goes, what something needs stays.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use content::{BlockCache, GcOptions, GcReport, Store, VerifyOptions, replicate};

use crate::support::{BLOCK, MIB, Place, noise, open, put, qcow2, read_all, run, text};

async fn gc(store: &Store) -> GcReport {
    store.gc(&GcOptions::default(), |_, _, _| {}).await.expect("collect")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nothing_needs_is_freed() {
    let place = Place::new();
    let store = place.store("store").await;
    let shared = noise(1, 60 * BLOCK);
    let with = |own: u64| [shared.clone(), noise(own, 60 * BLOCK)].concat();
    let first = put(&store, &place.raw("first.raw", &with(2))).await.manifest;
    let second = put(&store, &place.raw("second.raw", &with(3))).await.manifest;
    let reader = Store::open_read_only(&place.location("store")).await.expect("open");
    let before = store.stats().await.expect("stats");

    // Nothing to free: everything is needed.
    let report = gc(&store).await;
    assert_eq!((report.images, report.packs_removed, report.bytes_removed), (2, 0, 0), "{report:?}");

    // Half of the first pack is dead: what lives moves, and a reader that knew the old place finds the new one.
    let image = reader.open_image(&second, Arc::new(BlockCache::in_memory())).await.expect("open");
    let mut block = vec![0; BLOCK];
    image.read_at(0, &mut block).await.expect("read");
    store.remove_ref(&first, "test").await.expect("remove");
    let options = GcOptions { dry_run: true, ..GcOptions::default() };
    let dry = store.gc(&options, |_, _, _| {}).await.expect("look");
    assert_eq!((dry.dry_run, dry.packs_removed), (true, 1));
    assert_eq!(store.stats().await.expect("stats").packs, before.packs);
    let report = gc(&store).await;
    assert_eq!((report.images, report.packs_removed, report.bytes_removed), (1, 1, dry.bytes_removed));
    assert!(report.bytes_moved.abs_diff(60 * BLOCK as u64) < 20_000, "{report:?}");
    assert!(report.bytes_moved.abs_diff(dry.bytes_moved) < 20_000, "{report:?} {dry:?}");
    let after = store.stats().await.expect("stats");
    assert!(before.stored_bytes - after.stored_bytes > 59 * BLOCK as u64, "{before:?} {after:?}");
    let image = reader.open_image(&second, Arc::new(BlockCache::in_memory())).await.expect("open");
    assert!(read_all(&image).await == with(3));
    assert!(read_all(&open(&store, &second).await).await == with(3));
    assert_eq!(store.verify(&second).await.expect("verify").damaged_blocks, 0);

    // Everything goes.
    store.remove_ref(&second, "test").await.expect("remove");
    gc(&store).await;
    let empty = store.stats().await.expect("stats");
    assert_eq!((empty.manifests, empty.packs, empty.segments, empty.indexed), (0, 0, 0, 0));
    let left = place.objects("store");
    assert!(left.iter().all(|path| path.ends_with("store.json") || path.ends_with("reserve")), "{left:?}");

    // And the store is as good as new.
    let again = put(&store, &place.raw("first.raw", &with(2))).await;
    assert_eq!((again.manifest, again.new_blocks), (first, 120));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_image_follows_its_blocks() {
    let place = Place::new();
    let store = place.store("store").await;
    let disk = [noise(1, 40 * BLOCK), noise(2, 60 * BLOCK)].concat();
    let kept = noise(1, 40 * BLOCK);
    let all = put(&store, &place.raw("all.raw", &disk)).await.manifest;
    let part = put(&store, &place.raw("part.raw", &kept)).await.manifest;
    let reader = Store::open_read_only(&place.location("store")).await.expect("open");
    let image = reader.open_image(&part, Arc::new(BlockCache::in_memory())).await.expect("open");
    // It knows where all of its blocks are, and has none of them.
    let mut bytes = vec![0; 16];
    for block in 0..40 {
        image.read_at(block * BLOCK as u64, &mut bytes).await.expect("read");
    }
    store.remove_ref(&all, "test").await.expect("remove");
    assert_eq!(gc(&store).await.packs_removed, 1);
    assert!(read_all(&image).await == kept);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_packs_are_gathered() {
    let place = Place::new();
    let store = place.store("store").await;
    let mut disk = Vec::new();
    for number in 0..70 {
        disk.extend(text(number));
        put(&store, &place.raw("disk.raw", &disk)).await;
    }
    assert_eq!(store.stats().await.expect("stats").packs, 70);
    gc(&store).await;
    let stats = store.stats().await.expect("stats");
    assert_eq!((stats.packs, stats.manifests), (1, 70), "{stats:?}");
    for manifest in store.images().await.expect("images").keys() {
        assert_eq!(store.verify(manifest).await.expect("verify").damaged_blocks, 0);
    }
}

/// A write that was cut off keeps its packs until its writer is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_writer_left_goes() {
    let place = Place::new();
    let store = place.store("store").await;
    let raw = place.raw("disk.raw", &noise(5, 120 * MIB as usize));
    let kept = put(&store, &place.raw("kept.raw", &text(1))).await.manifest;
    let clean = store.stats().await.expect("stats").stored_bytes;
    {
        // Forgotten rather than dropped, as a killed process forgets.
        let cut = store.put_raw(&raw, "test", |_| {});
        let mut cut = std::mem::ManuallyDrop::new(Box::pin(cut));
        let timeout = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                tokio::select! {
                    _ = cut.as_mut() => panic!("it ended"),
                    () = tokio::time::sleep(Duration::from_millis(5)) => {}
                }
                let packs = place.objects("store/packs");
                let growing = packs.iter().filter(|pack| pack.display().to_string().contains('#')).count();
                if (packs.len(), growing) == (3, 1) {
                    break;
                }
            }
        });
        timeout.await.expect("the first pack is complete, the second begins");
    }
    let other = place.store("store").await;
    let report = gc(&other).await;
    assert_eq!((report.writers_given_up, report.packs_removed), (0, 0), "{report:?}");
    let options = GcOptions { writer_timeout: Duration::ZERO, ..GcOptions::default() };
    let report = other.gc(&options, |_, _, _| {}).await.expect("collect");
    assert_eq!(report.writers_given_up, 1);
    // The first pack may be complete or not when the second begins.
    assert_eq!(report.packs_removed + report.uploads_removed, 2, "{report:?}");
    let stats = other.stats().await.expect("stats");
    assert!(stats.stored_bytes <= clean + 10_000, "{clean} {stats:?}");
    assert_eq!(other.verify(&kept).await.expect("verify").damaged_blocks, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_freed_while_something_is_lost() {
    let place = Place::new();
    let store = place.store("store").await;
    let first = put(&store, &place.raw("first.raw", &noise(1, 20 * BLOCK))).await.manifest;
    put(&store, &place.raw("second.raw", &noise(2, 20 * BLOCK))).await;
    store.remove_ref(&first, "test").await.expect("remove");
    // The index lost the second image's blocks; its pack looks as if nothing lived in it.
    let segments = place.objects("store/index");
    let newest = segments.iter().max_by_key(|path| path.metadata().and_then(|m| m.modified()).expect("time"));
    std::fs::remove_file(newest.expect("a segment")).expect("remove");
    let store = place.store("store").await;
    let refused = store.gc(&GcOptions::default(), |_, _, _| {}).await;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(place.objects("store/packs").len(), 2);
}

/// A rotten block without a good copy keeps its pack, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_keeps_its_own_pack_alone() {
    let place = Place::new();
    let (store, other) = (place.store("store").await, place.store("other").await);
    let shared = noise(1, 40 * BLOCK);
    let first = put(&store, &place.raw("first.raw", &[shared.clone(), noise(2, 60 * BLOCK)].concat())).await;
    let rotten = place.objects("store/packs").remove(0);
    let second = put(&store, &place.raw("second.raw", &[shared.clone(), noise(3, 9 * BLOCK)].concat())).await;
    let third = put(&store, &place.raw("third.raw", &noise(4, 50 * BLOCK))).await;
    let second = second.manifest;
    replicate(&store, &other, &second, "copy", |_| {}).await.expect("replicate");
    for manifest in [&first.manifest, &third.manifest] {
        store.remove_ref(manifest, "test").await.expect("remove");
    }
    // One byte of the first frame, which 16 of the shared blocks are in.
    let flip = || {
        let file = std::fs::File::options().read(true).write(true).open(&rotten).expect("open");
        let mut byte = [0];
        file.read_exact_at(&mut byte, 3000).expect("read");
        file.write_all_at(&[byte[0] ^ 1], 3000).expect("write");
    };
    flip();

    // The first time its pack is condemned, the second time it is so already.
    for removed in [1, 0] {
        let report = gc(&store).await;
        assert_eq!((report.packs_removed, report.packs_damaged), (removed, 1), "{report:?}");
        assert!(rotten.exists());
        let verified = store.verify_all(&VerifyOptions::default(), |_, _| {}).await.expect("verify");
        assert_eq!(
            (verified.damaged, verified.damages[0].needed_by[0].manifest),
            (16, second),
            "{verified:?}"
        );
        assert_eq!(verified.damages[0].needed_by.len(), 1);
    }
    // What was whole in it was copied out of it: with the pack gone, no more is missing.
    let hidden = place.path("hidden");
    std::fs::rename(&rotten, &hidden).expect("hide");
    let store = place.store("store").await;
    let verified = store.verify_all(&VerifyOptions::default(), |_, _| {}).await.expect("verify");
    assert_eq!((verified.needed, verified.damaged), (49 + 2, 16));
    std::fs::rename(&hidden, &rotten).expect("show");

    // Its image can be shared and built upon: it is as damaged as before, and the store works.
    let store = place.store("store").await;
    store.add_ref(&second, "another").await.expect("share");
    let file = place.text("top.qcow2");
    qcow2(&file, None, &(49 * BLOCK).to_string(), "64k", &["write -P 7 2560k 64k".to_owned()]);
    let top = store.commit_overlay(&second, &[file.into()], "top", |_| {}).await.expect("commit").manifest;
    for image in [&second, &top] {
        assert_eq!(store.verify(image).await.expect("verify").damaged_blocks, 16);
    }
    let report = gc(&store).await;
    assert_eq!((report.packs_removed, report.packs_damaged), (0, 1), "{report:?}");

    // The disk gives it after all: it moves, and the pack goes.
    let copy = place.path("copy");
    run("cp", &["-a", &place.text("store"), &copy.display().to_string()]);
    flip();
    let report = gc(&store).await;
    assert_eq!((report.packs_removed, report.packs_damaged), (1, 0), "{report:?}");
    for image in [&second, &top] {
        assert_eq!(store.verify(image).await.expect("verify").damaged_blocks, 0);
    }
    assert!(place.objects("store/condemned").is_empty());

    // Or a replica has it: repairing frees the pack as well.
    let store = place.store("copy").await;
    let options = VerifyOptions { replicas: vec![other], repair: true };
    let repaired = store.verify_all(&options, |_, _| {}).await.expect("repair");
    assert_eq!((repaired.damaged, repaired.repaired), (16, 16), "{repaired:?}");
    assert!(
        !place
            .path("copy/packs")
            .join(rotten.strip_prefix(place.path("store/packs")).expect("in it"))
            .exists()
    );
    assert_eq!(store.verify_all(&VerifyOptions::default(), |_, _| {}).await.expect("verify").damaged, 0);
    assert!(place.objects("copy/condemned").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_collected_for_itself() {
    let place = Place::new();
    let (west, east) = (place.store("west").await, place.store("east").await);
    let image = put(&west, &place.raw("disk.raw", &noise(1, 20 * BLOCK))).await.manifest;
    replicate(&west, &east, &image, "copy", |_| {}).await.expect("replicate");
    west.remove_ref(&image, "test").await.expect("remove");
    gc(&west).await;
    gc(&east).await;
    assert_eq!(west.stats().await.expect("stats").packs, 0);
    assert_eq!(east.verify(&image).await.expect("verify").damaged_blocks, 0);
}
