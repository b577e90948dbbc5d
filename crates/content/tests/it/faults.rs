//! Put, replicate and read over object stores that fail: the right bytes or an error that says what failed, and a store in
//! which the same work then succeeds.

use std::sync::Arc;

use content::{BlockCache, Error, Key, KeyRing, ManifestId, Store, StoreLocation, StoreOptions, replicate};
use object_store::ObjectStore;
use object_store::memory::InMemory;

use crate::faulty::{Faulty, Unconditional};
use crate::support::{BLOCK, MIB, Place, noise, open, put, read_all, text};

/// Of 1000 requests, how many fail; with the last, hardly anything succeeds.
const RATES: [u64; 4] = [20, 80, 200, 500];
/// Times that a store is opened until the faults let it.
const MAX_OPENS: usize = 200;
const SEEDS: u64 = 12;

fn location() -> StoreLocation {
    "s3://faulty/store".parse().expect("location")
}

fn options(place: &Place, mirror: &str) -> StoreOptions {
    StoreOptions { index_dir: Some(place.path(mirror)), ..StoreOptions::default() }
}

/// Every other store is encrypted.
pub(crate) fn options_of(place: &Place, mirror: &str, seed: u64) -> StoreOptions {
    let key = Key::from_bytes([7; 32]);
    let keys = (seed % 2 == 1).then(|| KeyRing::new(key, Vec::new()).expect("ring"));
    StoreOptions { keys, ..options(place, mirror) }
}

pub(crate) async fn open_in(objects: Arc<dyn ObjectStore>, options: &StoreOptions) -> content::Result<Store> {
    Store::open_with(objects, &location(), Some("test"), options).await
}

/// Opens a store as soon as its faults let it.
pub(crate) async fn open_at_last(objects: &Arc<Faulty>, options: &StoreOptions) -> Store {
    for _ in 0..MAX_OPENS {
        match open_in(objects.clone(), options).await {
            Ok(store) => return store,
            Err(error) => check(&error),
        }
    }
    panic!("never opened");
}

/// An error of the right kind: it names what was asked for and why it failed.
pub(crate) fn check(error: &Error) {
    let text = error.to_string();
    let known = matches!(
        error,
        Error::Objects { .. }
            | Error::DamagedFrame { .. }
            | Error::DamagedObject { .. }
            | Error::Block { .. }
            | Error::Format { .. }
            | Error::Location { .. }
    );
    assert!(known, "{error:?}");
    // Objects are quoted; packs, images and stores are said to be such.
    let named = ["`", "pack ", "image ", "store "].iter().any(|part| text.contains(part));
    assert!(named, "{text}");
}

/// Reads all of an image once; every byte that is given out is right.
async fn read_some(store: &Store, manifest: &ManifestId, disk: &[u8]) -> Result<(), Error> {
    let image = store.open_image(manifest, Arc::new(BlockCache::in_memory())).await?;
    let mut first = Ok(());
    for (number, part) in disk.chunks(300_000).enumerate() {
        let mut bytes = vec![0; part.len()];
        match image.read_at(number as u64 * 300_000, &mut bytes).await {
            Ok(()) => assert!(bytes == part, "wrong bytes in part {number}"),
            Err(error) => {
                check(&error);
                first = first.and(Err(error));
            }
        }
    }
    first
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_over_failing_stores_succeeds_or_says_why() {
    let place = Place::new();
    let mut disk: Vec<u8> = (0..30).flat_map(text).collect();
    disk.resize(70 * MIB as usize, 0);
    disk.extend(noise(1, 40 * BLOCK));
    let raw = place.raw("disk.raw", &disk);
    let other_disk: Vec<u8> = (10..50).flat_map(text).collect();
    let other_raw = place.raw("other.raw", &other_disk);
    let (mut done, mut failed, mut faults) = ([0; 3], [0; 3], 0);
    for rate in RATES {
        for seed in 0..SEEDS {
            let objects: [Arc<dyn ObjectStore>; 2] = [Arc::new(InMemory::new()), Arc::new(InMemory::new())];
            let plain = options_of(&place, "plain", seed);
            // The base is there before anything fails.
            let base =
                put(&open_in(objects[0].clone(), &plain).await.expect("open"), &other_raw).await.manifest;
            let faulty = [0, 1].map(|i| Faulty::new(objects[i].clone(), seed * 2 + i as u64, rate));
            let mirrors = options_of(&place, "faulty", seed);
            let mut note = |what: usize, result: Result<(), Error>| match result {
                Ok(()) => done[what] += 1,
                Err(error) => {
                    check(&error);
                    failed[what] += 1;
                }
            };
            for _ in 0..3 {
                let [from, to] =
                    &[open_at_last(&faulty[0], &mirrors).await, open_at_last(&faulty[1], &mirrors).await];
                note(0, from.put_raw(&raw, "test", |_| {}).await.map(|_| ()));
                note(1, read_some(from, &base, &other_disk).await);
                note(2, replicate(from, to, &base, "test", |_| {}).await.map(|_| ()));
            }
            faults += faulty.iter().map(|faulty| faulty.faults()).sum::<u64>();

            // Whatever happened: without faults all of it works, and nothing is damaged.
            let from = open_in(objects[0].clone(), &options_of(&place, "after", seed)).await.expect("open");
            let to = open_in(objects[1].clone(), &options_of(&place, "after", seed)).await.expect("open");
            let id = put(&from, &raw).await.manifest;
            for manifest in [&id, &base] {
                replicate(&from, &to, manifest, "after", |_| {}).await.expect("replicate");
                for store in [&from, &to] {
                    let report = store.verify(manifest).await.expect("verify");
                    assert_eq!(report.damaged_blocks, 0, "rate {rate}, seed {seed}");
                }
            }
            assert!(read_all(&open(&to, &id).await).await == disk);
            assert!(read_all(&open(&to, &base).await).await == other_disk);
        }
    }
    // The test tells something only if all of it happened.
    assert!(
        done.iter().chain(&failed).all(|count| *count >= 10) && faults > 500,
        "{done:?} {failed:?} {faults}"
    );
}

#[tokio::test]
async fn an_object_store_that_overwrites_is_refused() {
    let place = Place::new();
    let options = options(&place, "mirror");
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let unconditional: Arc<dyn ObjectStore> = Arc::new(Unconditional(Arc::clone(&objects)));
    for _ in 0..2 {
        let error = open_in(unconditional.clone(), &options).await.expect_err("refused").to_string();
        assert!(error.contains("If-None-Match"), "{error}");
    }
    // Looking harmed nothing.
    let store = open_in(objects, &options).await.expect("open");
    assert_eq!(store.owner(), "test");
    Store::open_with(unconditional, &location(), None, &options).await.expect("reading needs no conditions");
}
