//! Copies of an image that are out of reach: reads go on, quickly, and come back to them.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use content::{BlockCache, Image, ManifestId, Store, StoreLocation, StoreOptions, replicate};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;

use crate::faulty::{Faulty, Outage};
use crate::support::{BLOCK, MIB, Place, noise, put};

/// Bytes of a page: neighbours of one are read from the same copy.
const PAGE: u64 = 64 * MIB;
const PAGES: u64 = 4;
/// Blocks at the start of each page.
const BLOCKS: u64 = 16 * 12;
/// What the read that finds a copy out of reach may take, and what those after it may.
const FIRST: Duration = Duration::from_secs(5);
const LATER: Duration = Duration::from_millis(500);
/// How soon a copy is used again.
const BACK: Duration = Duration::from_secs(20);

fn disk(place: &Place) -> PathBuf {
    let path = place.path("disk.raw");
    let file = std::fs::File::create(&path).expect("create");
    file.set_len(PAGES * PAGE).expect("size");
    for page in 0..PAGES {
        file.write_all_at(&noise(page, BLOCKS as usize * BLOCK), page * PAGE).expect("write");
    }
    path
}

/// Reads a little of a frame of a page (there are 12), and checks it.
async fn read(image: &Image, page: u64, frame: u64) -> Duration {
    let started = Instant::now();
    let mut bytes = vec![0; 1000];
    let at = frame * 16 * BLOCK as u64;
    image.read_at(page * PAGE + at, &mut bytes).await.expect("read");
    assert!(
        bytes == noise(page, BLOCKS as usize * BLOCK)[at as usize..][..1000],
        "page {page}, frame {frame}"
    );
    started.elapsed()
}

struct Zones {
    faulty: [Arc<Faulty>; 2],
    inner: [Arc<dyn ObjectStore>; 2],
    stores: Vec<Store>,
    image: ManifestId,
}

impl Zones {
    async fn new(place: &Place) -> Self {
        let inner: [Arc<dyn ObjectStore>; 2] = [Arc::new(InMemory::new()), Arc::new(InMemory::new())];
        let faulty = [0, 1].map(|zone| Faulty::new(Arc::clone(&inner[zone]), 0, 0));
        let mut stores = Vec::new();
        for (number, objects) in faulty.iter().enumerate() {
            let location: StoreLocation = format!("s3://zone{number}").parse().expect("location");
            let options = StoreOptions { index_dir: Some(place.path("index")), ..StoreOptions::default() };
            stores.push(
                Store::open_with(objects.clone(), &location, Some("test"), &options).await.expect("open"),
            );
        }
        let image = put(&stores[0], &disk(place)).await.manifest;
        replicate(&stores[0], &stores[1], &image, "copy", |_| {}).await.expect("replicate");
        Self { faulty, inner, stores, image }
    }

    async fn open(&self) -> Image {
        Image::open(&self.stores, &self.image, Arc::new(BlockCache::in_memory())).await.expect("open")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_out_of_reach_costs_one_short_wait() {
    let place = Place::new();
    let zones = Zones::new(&place).await;
    for outage in [Outage::Hangs, Outage::Refuses, Outage::Slow(Duration::from_secs(100))] {
        let image = zones.open().await;
        let away = &zones.faulty[0];
        // Even pages come from the first zone.
        let before = away.pack_reads();
        read(&image, 0, 0).await;
        assert!(away.pack_reads() > before);

        away.set(Some(outage));
        let time = tokio::time::timeout(FIRST, read(&image, 0, 1)).await;
        time.unwrap_or_else(|_| panic!("{outage:?}: the first read waits for the retries"));
        for (page, frame) in (2..8).flat_map(|frame| [(0, frame), (1, frame), (2, frame)]) {
            let time = read(&image, page, frame).await;
            assert!(time < LATER, "{outage:?}: page {page}, frame {frame} took {time:?}");
        }
        // Who comes now is not kept either.
        let late = tokio::time::timeout(FIRST, zones.open()).await.expect("opening waits");
        let time = read(&late, 0, 0).await + read(&late, 2, 0).await;
        assert!(time < 2 * LATER, "{outage:?}: {time:?}");
        // Out of reach is not damaged.
        assert_eq!((image.damaged_reads(), late.damaged_reads()), (0, 0), "{outage:?}");

        // Both find out when it is back.
        away.set(None);
        for image in [&image, &late] {
            let started = Instant::now();
            let before = away.pack_reads();
            while away.pack_reads() == before {
                assert!(started.elapsed() < BACK, "{outage:?}: the copy is not used again");
                tokio::time::sleep(Duration::from_millis(250)).await;
                // More frames than the cache keeps, in turn.
                for frame in 0..12 {
                    for page in [0, 1, 2, 3] {
                        read(image, page, frame).await;
                    }
                }
            }
            assert_eq!(image.damaged_reads(), 0, "{outage:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_counted_beside_a_copy_that_is_away() {
    let place = Place::new();
    let zones = Zones::new(&place).await;
    let image = zones.open().await;
    // The second zone's packs are rotten, all of them: odd pages come from the first.
    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;
    let packs: Vec<_> = zones.inner[1].list(Some(&Path::from("packs"))).try_collect().await.expect("list");
    for pack in packs {
        let rotten = vec![0x5a_u8; pack.size as usize];
        zones.inner[1].put(&pack.location, rotten.into()).await.expect("put");
    }
    assert!(read(&image, 1, 0).await < LATER);
    assert!(image.damaged_reads() > 0);
    // With the whole one away as well nobody gives it; the error is there as soon as that one fails.
    zones.faulty[0].set(Some(Outage::Refuses));
    let mut bytes = [0; 10];
    image.read_at(PAGE + 3 * 16 * BLOCK as u64, &mut bytes).await.expect_err("nobody has it");
    zones.faulty[0].set(None);
    read(&image, 1, 3).await;
}

/// A folder that is not mounted looks empty, which is not damage, and is no reason never to look again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_not_mounted_is_away() {
    let place = Place::new();
    let stores = [place.store("a").await, place.store("b").await];
    let id = put(&stores[0], &disk(&place)).await.manifest;
    replicate(&stores[0], &stores[1], &id, "copy", |_| {}).await.expect("replicate");
    let image = Image::open(&stores, &id, Arc::new(BlockCache::in_memory())).await.expect("open");
    read(&image, 0, 0).await;
    std::fs::rename(place.path("a"), place.path("elsewhere")).expect("unmount");
    for (page, frame) in (0..12).flat_map(|frame| [(0, frame), (1, frame)]) {
        assert!(read(&image, page, frame).await < LATER);
    }
    assert_eq!(image.damaged_reads(), 0);

    // Now it is the only one.
    std::fs::rename(place.path("elsewhere"), place.path("a")).expect("mount");
    std::fs::rename(place.path("b"), place.path("elsewhere")).expect("unmount");
    for (page, frame) in (0..12).flat_map(|frame| [(2, frame), (3, frame)]) {
        read(&image, page, frame).await;
    }
    assert_eq!(image.damaged_reads(), 0);
}
