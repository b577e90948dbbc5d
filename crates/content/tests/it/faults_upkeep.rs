//! Collecting, committing, verifying, repairing and sharing over object stores that fail: after each, whole or not at all.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use content::{BlockCache, Error, GcOptions, Image, ManifestId, Store, VerifyOptions, replicate};
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::faults::{check, open_at_last, open_in, options_of};
use crate::faulty::Faulty;
use crate::support::{BLOCK, Place, noise, open, put, qcow2, read_all, text};

/// Of 1000 requests, how many fail.
const RATES: [u64; 3] = [10, 40, 120];
const SEEDS: u64 = 12;
/// What is done in each round, in an order that the seed decides.
const WORK: [&str; 6] = ["gc", "commit", "verify", "repair", "share", "drop"];
const ROUNDS: usize = 3;

/// What everybody knows: the disks, whose images share blocks.
struct Disks {
    base: (PathBuf, Vec<u8>),
    other: (PathBuf, Vec<u8>),
    garbage: PathBuf,
    overlay: PathBuf,
    top: Vec<u8>,
}

impl Disks {
    fn new(place: &Place) -> Self {
        let shared: Vec<u8> = [noise(1, 20 * BLOCK), (0..4).flat_map(text).collect()].concat();
        let disk = |seed, blocks| [shared.clone(), noise(seed, blocks * BLOCK)].concat();
        let (base, other) = (disk(2, 3), noise(3, 20 * BLOCK));
        let overlay = place.text("top.qcow2");
        let mut top = base.clone();
        top[2 * BLOCK..3 * BLOCK].fill(7);
        // Less than a block: the base has the rest.
        top[5 * BLOCK + 4096..][..4096].fill(8);
        let writes = ["write -P 7 128k 64k", "write -P 8 324k 4k"].map(str::to_owned);
        qcow2(&overlay, None, &base.len().to_string(), "4k", &writes);
        Self {
            garbage: place.raw("garbage.raw", &disk(4, 40)),
            base: (place.raw("base.raw", &base), base),
            other: (place.raw("other.raw", &other), other),
            overlay: overlay.into(),
            top,
        }
    }
}

/// Flips a byte in the largest pack of an image that is alone in a store: in a frame of blocks.
async fn rot(objects: &dyn ObjectStore) {
    let packs: Vec<_> = objects.list(Some(&Path::from("packs"))).try_collect().await.expect("list");
    let pack = packs.iter().max_by_key(|pack| pack.size).expect("a pack");
    let mut bytes = objects.get(&pack.location).await.expect("get").bytes().await.expect("bytes").to_vec();
    bytes[5000] ^= 4;
    objects.put(&pack.location, bytes.into()).await.expect("put");
}

/// Every image that is visible has its bytes, and those that were promised are visible. What is rotten in the first store
/// comes from the second.
async fn whole(stores: &[Store; 2], images: &BTreeMap<ManifestId, &[u8]>, promised: &[(ManifestId, String)]) {
    let visible = stores[0].images().await.expect("images");
    for (image, owner) in promised {
        assert!(visible.get(image).is_some_and(|owners| owners.contains(owner)), "{owner}'s image is lost");
    }
    for image in visible.keys() {
        let disk = images.get(image).expect("an image that nobody made");
        let opened = Image::open(stores, image, Arc::new(BlockCache::in_memory())).await.expect("open");
        assert!(read_all(&opened).await == *disk, "other bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upkeep_over_failing_stores_loses_nothing() {
    let place = Place::new();
    let disks = Disks::new(&place);
    let mut counts: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    let mut faults = 0;
    for (rate, seed) in RATES.into_iter().flat_map(|rate| (0..SEEDS).map(move |seed| (rate, seed))) {
        let objects: [Arc<dyn ObjectStore>; 2] = [Arc::new(InMemory::new()), Arc::new(InMemory::new())];
        let plain = options_of(&place, "upkeep", seed);
        let stores = [
            open_in(objects[0].clone(), &plain).await.expect("open"),
            open_in(objects[1].clone(), &plain).await.expect("open"),
        ];
        let other = put(&stores[0], &disks.other.0).await.manifest;
        replicate(&stores[0], &stores[1], &other, "test", |_| {}).await.expect("replicate");
        rot(&*objects[0]).await;
        // Half of this one's pack will be needed by the base.
        let garbage = put(&stores[0], &disks.garbage).await.manifest;
        let base = put(&stores[0], &disks.base.0).await.manifest;
        stores[0].remove_ref(&garbage, "test").await.expect("remove");
        let top = {
            let layers = [disks.overlay.clone()];
            let aside = open_in(Arc::new(InMemory::new()), &plain).await.expect("open");
            put(&aside, &disks.base.0).await;
            aside.commit_overlay(&base, &layers, "aside", |_| {}).await.expect("commit").manifest
        };
        let images: BTreeMap<ManifestId, &[u8]> =
            [(base, disks.base.1.as_slice()), (other, disks.other.1.as_slice()), (top, disks.top.as_slice())]
                .into();
        let mut promised = vec![(base, "test".to_owned()), (other, "test".to_owned())];

        let faulty = [0, 1].map(|i| Faulty::new(objects[i].clone(), 1000 * rate + seed * 2 + i as u64, rate));
        let options = options_of(&place, "upkeep-faulty", seed);
        for round in 0..ROUNDS {
            let failing =
                [open_at_last(&faulty[0], &options).await, open_at_last(&faulty[1], &options).await];
            let store = &failing[0];
            for turn in 0..WORK.len() {
                let work = WORK[(turn + seed as usize + round) % WORK.len()];
                let owner = format!("{work}-{round}");
                let done: Result<(), Error> = match work {
                    "gc" => store.gc(&GcOptions::default(), |_, _, _| {}).await.map(drop),
                    "commit" => {
                        let layers = [disks.overlay.clone()];
                        let done = store.commit_overlay(&base, &layers, &owner, |_| {}).await;
                        done.map(|report| promised.push((report.manifest, owner)))
                    }
                    "share" => store.add_ref(&other, &owner).await.map(|()| promised.push((other, owner))),
                    "drop" => {
                        let last = promised.iter().rposition(|(_, owner)| owner != "test");
                        match last.map(|last| promised.remove(last)) {
                            Some((image, owner)) => store.remove_ref(&image, &owner).await,
                            None => Ok(()),
                        }
                    }
                    _ => {
                        let replicas = vec![failing[1].clone()];
                        let options = VerifyOptions { replicas, repair: work == "repair" };
                        store.verify_all(&options, |_, _| {}).await.map(drop)
                    }
                };
                if let Err(error) = &done {
                    check(error);
                }
                counts.entry(work).or_default()[usize::from(done.is_err())] += 1;
                whole(&stores, &images, &promised).await;
            }
        }
        faults += faulty.iter().map(|faulty| faulty.faults()).sum::<u64>();

        // Without faults: what was rotten is mended, what failed work left is freed, and nothing is left to do.
        let [store, replica] = &stores;
        let case = format!("rate {rate}, seed {seed}");
        let options = VerifyOptions { replicas: vec![replica.clone()], repair: true };
        store.verify_all(&options, |_, _| {}).await.expect("repair");
        let options = GcOptions { writer_timeout: Duration::ZERO, ..GcOptions::default() };
        let report = store.gc(&options, |_, _, _| {}).await.expect("collect");
        assert_eq!(report.packs_damaged, 0, "{case}: {report:?}");
        let verified = store.verify_all(&VerifyOptions::default(), |_, _| {}).await.expect("verify");
        assert_eq!((verified.damaged, verified.damaged_frames), (0, 0), "{case}: {verified:?}");
        let dry = GcOptions { dry_run: true, ..options.clone() };
        let report = store.gc(&dry, |_, _, _| {}).await.expect("look");
        assert_eq!(report.packs_removed, 0, "{case}: {report:?}");
        for (image, owners) in store.images().await.expect("images") {
            assert!(read_all(&open(store, &image).await).await == images[&image], "{case}");
            for owner in owners {
                store.remove_ref(&image, &owner).await.expect("remove");
            }
        }
        store.gc(&options, |_, _, _| {}).await.expect("collect");
        let stats = store.stats().await.expect("stats");
        assert_eq!((stats.packs, stats.segments, stats.manifests), (0, 0, 0), "{case}: {stats:?}");
    }
    println!("{counts:?}, {faults} faults");
    // The test tells something only if all of it happened.
    let all = WORK.iter().all(|work| counts[work].iter().all(|count| *count >= 3));
    assert!(all && faults > 500, "{counts:?} {faults}");
}
