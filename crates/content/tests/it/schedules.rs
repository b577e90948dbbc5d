//! Writers, readers and garbage collections at once, each paused at any request for any time.
//!
//! The code under test is the real one; only the object store is in memory, and a few requests of each actor wait until the
//! others have made some of theirs. After each schedule: whatever was made visible is whole and has the right bytes, what
//! was deleted is freed, and nothing that an actor was told is untrue. A seed fixes what the actors do and where they
//! pause; threads that hash and compress may still change the order a little.

mod actors;
mod slow;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use content::{GcOptions, Store, StoreLocation, StoreOptions};
use object_store::ObjectStore;
use object_store::memory::InMemory;

use actors::{Actor, World, contents};
use slow::{Pace, Slow};

/// Schedules that are tried, in two threads.
const SCHEDULES: u64 = 10_000;
/// Actors of one schedule.
const MAX_ACTORS: u64 = 5;
/// A schedule that takes longer hangs.
const MAX_TIME: Duration = Duration::from_secs(60);

#[test]
fn no_even_schedule_loses_anything() {
    run((0..SCHEDULES).filter(|seed| seed % 2 == 0));
}

#[test]
fn no_odd_schedule_loses_anything() {
    run((0..SCHEDULES).filter(|seed| seed % 2 == 1));
}

fn run(seeds: impl Iterator<Item = u64>) {
    let only = std::env::var("TINTYPE_SCHEDULE").ok().and_then(|seed| seed.parse::<u64>().ok());
    let mut totals = BTreeMap::new();
    for seed in seeds.filter(|seed| only.is_none_or(|only| only == *seed)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build()
            .expect("runtime");
        let checked = runtime.block_on(async { tokio::time::timeout(MAX_TIME, schedule(seed)).await });
        for (what, count) in checked.unwrap_or_else(|_| panic!("schedule {seed} hangs")) {
            *totals.entry(what).or_insert(0) += count;
        }
        // What was killed in the middle waits for ever.
        runtime.shutdown_background();
    }
    println!("{totals:?}");
    // The schedules are no test if they do not get in each other's way.
    for what in ["put", "commit", "replicate", "collected", "packs removed", "given up", "killed", "read"] {
        assert!(totals.get(what).is_some_and(|count| *count > 100), "too few: {what} in {totals:?}");
    }
}

/// Two stores in memory, which several actors use at once, each with handles of its own.
pub(crate) struct Stores {
    objects: [Arc<dyn ObjectStore>; 2],
    index: tempfile::TempDir,
}

impl Stores {
    fn new() -> Self {
        let parent = if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
        let index = tempfile::Builder::new().prefix("tintype-schedules").tempdir_in(parent).expect("folder");
        Self { objects: [Arc::new(InMemory::new()), Arc::new(InMemory::new())], index }
    }

    /// A handle whose requests keep this pace.
    pub(crate) async fn open(&self, number: usize, pace: &Arc<Pace>) -> Store {
        let slow = Arc::new(Slow::new(Arc::clone(&self.objects[number]), Arc::clone(pace)));
        let location: StoreLocation = format!("s3://store{number}").parse().expect("location");
        let options =
            StoreOptions { index_dir: Some(self.index.path().to_owned()), ..StoreOptions::default() };
        Store::open_with(slow, &location, Some("test"), &options).await.expect("open")
    }
}

async fn schedule(seed: u64) -> BTreeMap<&'static str, u64> {
    let world = Arc::new(World::new(seed));
    let quick = Arc::new(Pace::quick());
    let stores = [world.stores.open(0, &quick).await, world.stores.open(1, &quick).await];
    world.prepare(&stores).await;

    let mut tasks = Vec::new();
    for number in 0..2 + seed % (MAX_ACTORS - 1) {
        let actor = Actor::new(Arc::clone(&world), number).await;
        tasks.push(tokio::spawn(actor.act()));
    }
    for task in tasks {
        if let Err(error) = task.await {
            panic!("schedule {seed}: {error}");
        }
    }

    // Everything that is visible is whole; everything that was promised is visible.
    for (number, store) in stores.iter().enumerate() {
        for round in 0..3 {
            let images = store.images().await.expect("images");
            let promised = if round < 2 { world.promised(number) } else { Vec::new() };
            for (manifest, owner) in promised {
                let owners = images.get(&manifest);
                assert!(
                    owners.is_some_and(|owners| owners.contains(&owner)),
                    "schedule {seed}: {owner}'s image {manifest} is not visible in store {number}"
                );
            }
            for manifest in images.keys() {
                let bytes = contents(store, manifest).await;
                let bytes = bytes.unwrap_or_else(|error| panic!("schedule {seed}, round {round}: {error}"));
                assert!(world.is_disk(manifest, &bytes), "schedule {seed}: other bytes");
            }
            // What any writer left is given up, once with images and once without.
            let options = GcOptions { writer_timeout: Duration::ZERO, ..GcOptions::default() };
            let collected = store.gc(&options, |_, _, _| {}).await;
            collected.unwrap_or_else(|error| panic!("schedule {seed}, round {round}: {error}"));
            if round == 1 {
                for (manifest, owners) in images {
                    for owner in owners {
                        store.remove_ref(&manifest, &owner).await.expect("remove");
                    }
                }
            }
        }
        let stats = store.stats().await.expect("stats");
        assert_eq!((stats.packs, stats.segments, stats.manifests), (0, 0, 0), "schedule {seed}: {stats:?}");
    }
    world.counts()
}
