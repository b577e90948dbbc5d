//! Put, commit, replicate, read: the bytes that come out are those that went in, and nothing moves twice.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::{BLOCK, MIB, Place, noise, open, put, qcow2, read_all, run, text};
use content::{BlockCache, Error, Store, StoreOptions, replicate};
use disk::{BlockSource, Extent, ExtentKind, Extents};
use proptest::prelude::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_is_stored_once() {
    let place = Place::new();
    let store = place.store("store").await;
    // 40 blocks of text, a hole, 20 of noise, one block of the text again, and an end that is no block.
    let mut disk: Vec<u8> = (0..40).flat_map(text).collect();
    disk.resize(100 * MIB as usize, 0);
    disk.extend(noise(1, 20 * BLOCK));
    disk.extend(text(7));
    disk.extend([5; 100]);
    let raw = place.raw("disk.raw", &disk);

    let seen = AtomicU64::new(0);
    let progress = |progress: content::Progress| {
        assert_eq!(progress.total_bytes, disk.len() as u64);
        assert!(seen.swap(progress.done_bytes, Ordering::Relaxed) <= progress.done_bytes);
    };
    let first = store.put_raw(&raw, "one", progress).await.expect("put");
    assert_eq!(seen.into_inner(), disk.len() as u64);
    assert_eq!(first.logical_bytes, disk.len() as u64);
    assert_eq!(first.data_bytes, 62 * BLOCK as u64);
    assert_eq!(first.new_blocks, 61);
    // The noise, little for the text, two pages and the tables.
    let noise_bytes = 20 * BLOCK as u64;
    assert!((noise_bytes..noise_bytes + 50_000).contains(&first.stored_bytes), "{first:?}");
    assert!(read_all(&open(&store, &first.manifest).await).await == disk);

    let stats = store.stats().await.expect("stats");
    let objects = place.objects("store").into_iter().filter(|path| !path.ends_with("reserve"));
    let on_disk: u64 = objects.map(|path| path.metadata().expect("file").len()).sum();
    assert_eq!((stats.manifests, stats.packs, stats.segments), (1, 1, 1));
    assert_eq!((stats.logical_bytes, stats.stored_bytes), (disk.len() as u64, on_disk));

    let again = store.put_raw(&raw, "two", |_| {}).await.expect("put");
    assert_eq!((again.manifest, again.new_blocks, again.stored_bytes), (first.manifest, 0, 0));
    assert_eq!(store.refs(&first.manifest).await.expect("refs"), ["one", "two"]);

    // A second process sees what the first wrote, and may not write.
    let reader = Store::open_read_only(&place.location("store")).await.expect("open");
    assert_eq!(reader.id(), store.id());
    assert_eq!(reader.manifest_info(&first.manifest).await.expect("info").data_blocks, 62);
    assert!(matches!(reader.put_raw(&raw, "x", |_| {}).await, Err(Error::ReadOnly { .. })));
    assert!(matches!(reader.remove_ref(&first.manifest, "one").await, Err(Error::ReadOnly { .. })));

    let report = store.verify(&first.manifest).await.expect("verify");
    assert_eq!((report.blocks, report.damaged_blocks), (62, 0));
}

/// A disk of which only some bytes are known: the first `held` of each block from `start` on.
struct Patches {
    bytes: Vec<u8>,
    start: usize,
    held: usize,
}

impl BlockSource for Patches {
    fn logical_size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn extents(&self) -> Extents<'_> {
        let starts = (self.start..self.bytes.len()).step_by(BLOCK);
        let whole = Extent { start: 0, len: self.start as u64, kind: ExtentKind::Data };
        let parts = starts.map(|start| {
            let len = self.held.min(self.bytes.len() - start) as u64;
            Extent { start: start as u64, len, kind: ExtentKind::Data }
        });
        Box::new(std::iter::once(whole).chain(parts).map(Ok))
    }

    fn read_onto(&self, offset: u64, buf: &mut [u8]) -> disk::Result<usize> {
        let mut covered = 0;
        for (at, byte) in (offset as usize..).zip(buf) {
            if at < self.start || at % BLOCK < self.held {
                *byte = self.bytes[at];
                covered += 1;
            }
        }
        Ok(covered)
    }
}

/// Buffers are used again: what one held before is in no block after it, neither where a source holds nothing nor behind the
/// end of the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_before_is_in_no_later_block() {
    let place = Place::new();
    let store = place.store("store").await;
    let start = 24 * MIB as usize;
    let bytes = noise(1, start + 33 * BLOCK + 100);
    let mut expected = bytes.clone();
    for part in expected[start..].chunks_mut(BLOCK) {
        let held = part.len().min(4096);
        part[held..].fill(0);
    }
    let put =
        store.put_source(Arc::new(Patches { bytes, start, held: 4096 }), "one", |_| {}).await.expect("put");
    assert!(read_all(&open(&store, &put.manifest).await).await == expected);

    // The block at the end is the same behind other data: it is the disk's bytes and zeros.
    let mut other = vec![0; expected.len()];
    other[start + 33 * BLOCK..].copy_from_slice(&expected[start + 33 * BLOCK..]);
    let other = store.put_raw(&place.raw("other.raw", &other), "two", |_| {}).await.expect("put");
    assert_eq!((other.data_bytes, other.new_blocks), (BLOCK as u64, 0));
}

#[tokio::test]
async fn stores_are_opened_with_care() {
    let place = Place::new();
    let location = place.location("store");
    assert!(matches!(Store::open_read_only(&location).await, Err(Error::NotAStore { .. })));
    let store = place.store("store").await;
    let other = Store::open_or_create(&location, "another").await.expect_err("refused");
    assert!(other.to_string().contains("`test`"), "{other}");
    assert!(matches!(store.put_raw(&place.path("absent"), "x", |_| {}).await, Err(Error::Disk(_))));
    let raw = place.raw("disk.raw", &[1; 10]);
    assert!(matches!(store.put_raw(&raw, "", |_| {}).await, Err(Error::Refused { .. })));

    let json = std::fs::read_to_string(place.path("store/store.json")).expect("description");
    let newer = json.replace("\"version\":2", "\"version\":3");
    assert_ne!(json, newer);
    for damaged in [newer.as_str(), "{", ""] {
        std::fs::write(place.path("store/store.json"), damaged).expect("write");
        assert!(matches!(Store::open_read_only(&location).await, Err(Error::Format { .. })), "{damaged}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reference_makes_an_image_visible() {
    let place = Place::new();
    let store = place.store("store").await;
    let disk = noise(3, 5 * BLOCK);
    let raw = place.raw("disk.raw", &disk);
    let id = put(&store, &raw).await.manifest;

    store.add_ref(&id, "/subscriptions/x/versions/1.0.0").await.expect("add");
    store.remove_ref(&id, "test").await.expect("remove");
    store.remove_ref(&id, "test").await.expect("remove again");
    assert!(store.has_manifest(&id).await.expect("look"));
    store.remove_ref(&id, "/subscriptions/x/versions/1.0.0").await.expect("remove");

    // What is left is what a crash before the reference leaves.
    assert_eq!(place.objects("store/packs").len(), 1);
    assert!(!store.has_manifest(&id).await.expect("look"));
    let cache = Arc::new(BlockCache::in_memory());
    assert!(matches!(store.open_image(&id, cache).await, Err(Error::ManifestNotFound { .. })));
    assert!(matches!(store.add_ref(&id, "late").await, Err(Error::ManifestNotFound { .. })));
    let other = place.store("other").await;
    let refused = replicate(&store, &other, &id, "test", |_| {}).await;
    assert!(matches!(refused, Err(Error::ManifestNotFound { .. })));
    assert_eq!(store.stats().await.expect("stats").manifests, 0);

    let again = put(&store, &raw).await;
    assert_eq!((again.manifest, again.new_blocks), (id, 0));
    assert!(store.has_manifest(&id).await.expect("look"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_leaves_is_harmless() {
    let place = Place::new();
    let store = place.store("store").await;
    let disk = noise(4, 30 * BLOCK);
    let raw = place.raw("disk.raw", &disk);

    // A pack that no segment names is garbage; the blocks are stored anew.
    let first = put(&store, &raw).await;
    for folder in ["store/index", "store/refs"] {
        std::fs::remove_dir_all(place.path(folder)).expect("remove");
    }
    // So is what an upload left.
    let pack = place.objects("store/packs").remove(0);
    std::fs::write(format!("{}#1", pack.display()), b"torn").expect("write");
    std::fs::create_dir(place.path("store/index")).expect("create");
    std::fs::write(place.path("store/index").join(format!("{}#1", "0".repeat(32))), b"torn").expect("write");

    let store = place.store("store").await;
    assert!(!store.has_manifest(&first.manifest).await.expect("look"));
    let second = put(&store, &raw).await;
    assert_eq!((second.manifest, second.new_blocks), (first.manifest, 30));
    assert!(read_all(&open(&store, &second.manifest).await).await == disk);
    let stats = store.stats().await.expect("stats");
    assert_eq!((stats.packs, stats.segments), (2, 1));

    // A replication that was cut off before its manifest moves nothing again.
    let other = place.store("other").await;
    let moved = replicate(&store, &other, &first.manifest, "test", |_| {}).await.expect("replicate");
    assert_eq!((moved.blocks_moved, moved.blocks_present), (30, 0));
    std::fs::remove_dir_all(place.path("other/refs")).expect("remove");
    let again = replicate(&store, &other, &first.manifest, "test", |_| {}).await.expect("replicate");
    assert_eq!((again.blocks_moved, again.bytes_moved, again.blocks_present), (0, 0, 30));
    assert!(read_all(&open(&other, &first.manifest).await).await == disk);
}

/// A put that is dropped in the middle leaves nothing visible and a store that works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_is_cut_off_is_not_there() {
    let place = Place::new();
    let store = place.store("store").await;
    let disk = noise(5, 90 * MIB as usize);
    let raw = place.raw("disk.raw", &disk);
    for part in [1, 3] {
        let reached = Arc::new(tokio::sync::Notify::new());
        let notify = Arc::clone(&reached);
        let limit = disk.len() as u64 * part / 4;
        let progress = move |progress: content::Progress| {
            if progress.done_bytes >= limit {
                notify.notify_one();
            }
        };
        tokio::select! {
            _ = store.put_raw(&raw, "test", progress) => panic!("the put was not cut off"),
            () = reached.notified() => {}
        }
        assert_eq!(store.stats().await.expect("stats").manifests, 0);
    }
    let store = place.store("store").await;
    let report = put(&store, &raw).await;
    assert_eq!(report.data_bytes, 90 * MIB);
    assert_eq!(store.verify(&report.manifest).await.expect("verify").damaged_blocks, 0);
    // Two packs, for what does not fit one.
    assert!(place.objects("store/packs").len() >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_costs_what_changed() {
    let place = Place::new();
    let store = place.store("store").await;
    let mut disk = noise(6, 40 * MIB as usize);
    disk.resize(300 * MIB as usize, 0);
    let raw = place.raw("base.raw", &disk);
    let base = put(&store, &raw).await;

    let top = place.text("top.qcow2");
    let commands = ["write -P 7 1M 64k", "write -P 8 290M 128k", "write -z -u 8M 1M", "discard 20M 64k"]
        .map(str::to_owned);
    qcow2(&top, Some(&raw.display().to_string()), "320M", "64k", &commands);
    // The base's file is not needed, and the name in the header is not followed.
    std::fs::remove_file(&raw).expect("remove");
    let report = store.commit_overlay(&base.manifest, &[top.into()], "test", |_| {}).await.expect("commit");

    disk.resize(320 * MIB as usize, 0);
    disk[MIB as usize..][..BLOCK].fill(7);
    disk[290 * MIB as usize..][..2 * BLOCK].fill(8);
    disk[8 * MIB as usize..][..MIB as usize].fill(0);
    disk[20 * MIB as usize..][..BLOCK].fill(0);
    assert!(read_all(&open(&store, &report.manifest).await).await == disk);
    assert_eq!((report.new_blocks, report.logical_bytes), (2, 320 * MIB));
    assert_eq!(report.data_bytes, (640 - 16 - 1 + 2) * BLOCK as u64);
    assert!(report.stored_bytes < 40_000, "{report:?}");

    // An overlay smaller than its base is refused.
    let small = place.text("small.qcow2");
    qcow2(&small, None, "1M", "64k", &[]);
    let refused = store.commit_overlay(&base.manifest, &[small.into()], "test", |_| {}).await;
    assert!(matches!(refused, Err(Error::Refused { .. })));

    // Another region that has the base receives two blocks.
    let other = place.store("other").await;
    replicate(&store, &other, &base.manifest, "test", |_| {}).await.expect("replicate");
    let moved = replicate(&store, &other, &report.manifest, "test", |_| {}).await.expect("replicate");
    assert_eq!(moved.blocks_moved, 2);
    assert!(moved.bytes_moved < 1000, "{moved:?}");
    assert!(read_all(&open(&other, &report.manifest).await).await == disk);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_of_32_tib_take_no_time() {
    const LAST: u64 = (32 << 40) - 65536;
    let place = Place::new();
    let started = Instant::now();
    let store = place.store("store").await;
    let base = place.text("base.qcow2");
    qcow2(&base, None, "32T", "64k", &["write -P 5 0 1M".into(), "write -P 6 16T 64k".into()]);
    let first = store.put_layers(&[base.clone().into()], "test", |_| {}).await.expect("put");
    assert_eq!((first.logical_bytes, first.data_bytes), (32 << 40, 17 * BLOCK as u64));

    let top = place.text("top.qcow2");
    let commands = [format!("write -P 9 {LAST} 64k"), "write -z -u 0 512k".into()];
    qcow2(&top, Some(&base), "32T", "64k", &commands);
    let second = store.commit_overlay(&first.manifest, &[top.into()], "test", |_| {}).await.expect("commit");
    assert_eq!((second.new_blocks, second.data_bytes), (1, 10 * BLOCK as u64));
    let other = place.store("other").await;
    replicate(&store, &other, &second.manifest, "test", |_| {}).await.expect("replicate");

    let image = open(&other, &second.manifest).await;
    let mut block = vec![0xee; BLOCK];
    for (offset, byte) in [(0, 0), (512 << 10, 5), (16 << 40, 6), (1 << 40, 0), (LAST, 9)] {
        image.read_at(offset, &mut block).await.expect("read");
        assert!(block.iter().all(|b| *b == byte), "at {offset}");
    }
    assert!(matches!(image.read_at(LAST + 1, &mut block).await, Err(Error::OutOfRange { .. })));
    let zeros = image.block_status(1 << 40, 8 << 40, 10).await.expect("status");
    assert_eq!((zeros.len(), zeros[0].len, zeros[0].zero), (1, 8 << 40, true));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_stay_few() {
    let place = Place::new();
    let store = place.store("store").await;
    let mut disk = Vec::new();
    let mut manifests = Vec::new();
    for number in 0..40 {
        disk.extend(text(number));
        manifests.push(put(&store, &place.raw("disk.raw", &disk)).await.manifest);
    }
    let stats = store.stats().await.expect("stats");
    assert_eq!((stats.packs, stats.indexed), (40, 120));
    assert!(stats.segments <= 17, "{stats:?}");
    // A process that listed the old ones finds everything in the new.
    for (number, manifest) in manifests.iter().enumerate() {
        let image = open(&place.store("store").await, manifest).await;
        assert!(read_all(&image).await == disk[..(number + 1) * BLOCK]);
    }
}

/// A disk as the numbers of its blocks; 0 is zeros.
fn disks() -> impl Strategy<Value = Vec<u64>> {
    // Few different blocks, so that they repeat within and between disks; runs, so that frames fill.
    let run = (prop::sample::select(vec![0_u64, 0, 1, 50, 200]), 1_u64..40);
    prop::collection::vec(run, 1..12).prop_map(|runs| {
        let blocks = |(first, len): (u64, u64)| (0..len).map(move |i| if first == 0 { 0 } else { first + i });
        runs.into_iter().flat_map(blocks).collect()
    })
}

fn bytes(disk: &[u64]) -> Vec<u8> {
    disk.iter().flat_map(|number| if *number == 0 { vec![0; BLOCK] } else { text(*number) }).collect()
}

fn distinct(disk: &[u64]) -> HashSet<u64> {
    disk.iter().copied().filter(|number| *number != 0).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 30, failure_persistence: None, ..ProptestConfig::default() })]

    /// Two disks in one store, the second replicated to a store that has the first or not: bytes and counts are those of a
    /// model that is a set of blocks.
    #[test]
    fn the_store_is_a_set_of_blocks(
        first in disks(),
        second in disks(),
        tail in 1_usize..BLOCK,
        has_first in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("runtime");
        runtime.block_on(async {
            let place = Place::new();
            let (store, other) = (place.store("store").await, place.store("other").await);
            let one = put(&store, &place.raw("one.raw", &bytes(&first))).await;
            assert_eq!(one.new_blocks, distinct(&first).len() as u64);
            assert_eq!(one.data_bytes, (first.iter().filter(|n| **n != 0).count() * BLOCK) as u64);

            // The second disk ends within a block.
            let mut disk = bytes(&second);
            disk.extend(vec![3; tail]);
            let two = put(&store, &place.raw("two.raw", &disk)).await;
            let new = distinct(&second).difference(&distinct(&first)).count() as u64 + 1;
            assert_eq!((two.new_blocks, two.new_blocks_bytes), (new, new * BLOCK as u64));
            assert!(read_all(&open(&store, &two.manifest).await).await == disk);
            assert!(read_all(&open(&store, &one.manifest).await).await == bytes(&first));

            if has_first {
                replicate(&store, &other, &one.manifest, "test", |_| {}).await.expect("replicate");
            }
            let moved = replicate(&store, &other, &two.manifest, "test", |_| {}).await.expect("replicate");
            let missing = if has_first { new } else { distinct(&second).len() as u64 + 1 };
            assert_eq!(moved.blocks_moved, missing);
            assert!(read_all(&open(&other, &two.manifest).await).await == disk);
            assert_eq!(other.verify(&two.manifest).await.expect("verify").damaged_blocks, 0);
            assert_eq!(other.has_manifest(&one.manifest).await.expect("look"), has_first || one.manifest == two.manifest);
        });
    }

    /// Whatever was written to a chain of overlays, with clusters smaller or larger than blocks, the committed image is what
    /// QEMU makes of the chain.
    #[test]
    fn commits_are_what_qemu_sees(
        changes in prop::collection::vec((0_u64..500, 1_u64..60, 0_u8..4, prop::bool::weighted(0.3)), 1..8),
        cluster in prop::sample::select(vec!["4k", "64k", "128k"]),
        grow in 0_u64..200,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("runtime");
        runtime.block_on(async {
            let place = Place::new();
            let store = place.store("store").await;
            // 2 MiB and a bit, in units of 4 KiB.
            let base = noise(9, 513 * 4096);
            let raw = place.raw("base.raw", &base);
            let manifest = put(&store, &raw).await.manifest;
            let size = format!("{}", (513 + grow) * 4096);
            let (below, above) = changes.split_at(changes.len() / 2);
            let mut backing = raw.display().to_string();
            let mut layers = Vec::new();
            for (name, changes) in [("a.qcow2", below), ("b.qcow2", above)] {
                let command = |(at, len, byte, zero): &(u64, u64, u8, bool)| {
                    let len = len.min(&(513 + grow - at)) * 4;
                    if *zero { format!("write -z -u {}k {len}k", at * 4) } else { format!("write -P {byte} {}k {len}k", at * 4) }
                };
                let commands: Vec<String> = changes.iter().map(command).collect();
                let file = place.text(name);
                qcow2(&file, Some(&backing), &size, cluster, &commands);
                layers.push(file.clone().into());
                backing = file;
            }
            let report = store.commit_overlay(&manifest, &layers, "test", |_| {}).await.expect("commit");
            let flat = place.text("flat.raw");
            run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &backing, &flat]);
            let expected = std::fs::read(&flat).expect("flat");
            assert!(read_all(&open(&store, &report.manifest).await).await == expected);
            // The same disk from a raw file is the same image: there is one encoding.
            assert_eq!(put(&store, flat.as_ref()).await.manifest, report.manifest);
        });
    }
}

/// A write of many packs keeps the index small while it goes on: what opens a store opens each of its segments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_packs_of_one_write_have_few_segments() {
    let place = Place::new();
    let options = StoreOptions { pack_bytes: Some(64 << 10), ..StoreOptions::default() };
    let store = Store::open_or_create_with(&place.location("store"), "test", &options).await.expect("open");
    let disk = noise(1, 1600 * BLOCK);
    let path = place.raw("disk.raw", &disk);
    let watching = place.location("store");
    let watch = async {
        let mut most = 0;
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            most = most.max(place.objects("store/index").len());
            if place.objects("store/refs").len() == 1 {
                return most;
            }
        }
    };
    let (report, most) = tokio::join!(put(&store, &path), watch);
    assert!(place.objects("store/packs").len() >= 100 && most < 40, "{most}");
    let store = Store::open_read_only(&watching).await.expect("open");
    assert!(read_all(&open(&store, &report.manifest).await).await == disk);
}
