//! Damaged packs, and caches that are shared, damaged, full or cut off: errors that name the place, never wrong bytes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::support::{BLOCK, MIB, Place, noise, open, put, read_all, text};
use content::{BlockCache, Error, Image, Store, replicate};

/// The last frame of a pack with one disk of one page: header, hash, manifest.
const MANIFEST_FRAME: u64 = 16 + 32 + 40 + 40;

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("write");
}

fn disk() -> Vec<u8> {
    let mut disk: Vec<u8> = (0..20).flat_map(text).collect();
    disk.extend(noise(2, 4 * BLOCK));
    disk
}

/// Reads block by block: right bytes or an error that names the block's place.
async fn read_what_is_left(image: &Image, disk: &[u8]) -> Vec<String> {
    let mut errors = Vec::new();
    let mut block = vec![0; BLOCK];
    for (number, expected) in disk.chunks(BLOCK).enumerate() {
        let offset = (number * BLOCK) as u64;
        match image.read_at(offset, &mut block).await {
            Ok(()) => assert!(block == expected, "wrong bytes in block {number}"),
            Err(Error::Block { disk_offset, manifest, .. }) => {
                assert_eq!((disk_offset, manifest), (offset, image.id()));
                errors.push(format!("block {number}"));
            }
            // A damaged page.
            Err(error) => errors.push(error.to_string()),
        }
    }
    errors
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_in_a_pack_is_never_read() {
    let place = Place::new();
    let store = place.store("store").await;
    let disk = disk();
    let id = put(&store, &place.raw("disk.raw", &disk)).await.manifest;
    let pack = place.objects("store/packs").remove(0);
    let len = pack.metadata().expect("file").len();
    let name = pack.file_name().expect("name").to_string_lossy().into_owned();

    // The header of the first frame, its table of hashes, its payload, the noise, the page before the manifest.
    let page_end = len - MANIFEST_FRAME;
    let mut damaged_reads = 0;
    for at in [32, 36, 44, 60, 600, 640, 1200, len / 2, page_end - 200, page_end - 10] {
        flip(&pack, at);
        let image = open(&store, &id).await;
        let errors = read_what_is_left(&image, &disk).await;
        damaged_reads += usize::from(!errors.is_empty());
        match store.verify(&id).await {
            Ok(report) => {
                assert_eq!(report.damaged_blocks as usize, errors.len(), "byte {at}");
                assert!(report.damaged.iter().all(|damaged| damaged.reason.contains(&name)), "byte {at}");
            }
            Err(error) => assert!(error.to_string().contains(&name), "{error}"),
        }
        let other = place.store(&format!("other{at}")).await;
        let copied = replicate(&store, &other, &id, "test", |_| {}).await;
        assert_eq!(copied.is_err(), !errors.is_empty(), "byte {at}");
        assert_eq!(other.has_manifest(&id).await.expect("look"), errors.is_empty());
        flip(&pack, at);
    }
    // The byte in the frame's number changes nothing; each of the others was noticed.
    assert!(damaged_reads >= 8, "{damaged_reads}");
    assert!(read_what_is_left(&open(&store, &id).await, &disk).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_name_block_pack_and_image() {
    let place = Place::new();
    let store = place.store("store").await;
    let id = put(&store, &place.raw("disk.raw", &noise(8, 2 * BLOCK))).await.manifest;
    let pack = place.objects("store/packs").remove(0);
    let block = blake3::hash(&noise(8, 2 * BLOCK)[BLOCK..]).to_hex();
    flip(&pack, 100_000);
    let mut buf = [0; 10];
    let error = open(&store, &id).await.read_at(70_000, &mut buf).await.expect_err("damage").to_string();
    let pack_name = pack.file_name().expect("name").to_string_lossy().into_owned();
    for part in [block.as_str(), &id.to_string(), &pack_name, "byte 65536"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }

    // A pack that ends early, and one that is gone.
    let image = open(&store, &id).await;
    File::options().write(true).open(&pack).expect("open").set_len(100_000).expect("cut");
    let error = image.read_at(0, &mut buf).await.expect_err("damage").to_string();
    assert!(error.contains(&pack_name), "{error}");
    std::fs::remove_file(&pack).expect("remove");
    assert!(image.read_at(0, &mut buf).await.is_err());
    assert!(store.open_image(&id, Arc::new(BlockCache::in_memory())).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_manifest_is_refused() {
    let place = Place::new();
    let store = place.store("store").await;
    let id = put(&store, &place.raw("disk.raw", &disk())).await.manifest;
    // It is the last frame of the pack, before nothing.
    let pack = place.objects("store/packs").remove(0);
    flip(&pack, pack.metadata().expect("file").len() - 20);
    let refused = store.open_image(&id, Arc::new(BlockCache::in_memory())).await;
    assert!(matches!(refused, Err(Error::DamagedFrame { .. })));
}

async fn with_cache(store: &Store, id: &content::ManifestId, place: &Place, limit: u64) -> Image {
    let cache = BlockCache::open(&place.path("cache"), limit).expect("cache");
    store.open_image(id, Arc::new(cache)).await.expect("open")
}

fn cached_files(place: &Place) -> Vec<std::path::PathBuf> {
    place.objects("cache").into_iter().filter(|path| !path.starts_with(place.path("cache/tmp"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_serves_without_the_store_and_checks_what_it_finds() {
    let place = Place::new();
    let store = place.store("store").await;
    let disk = disk();
    let id = put(&store, &place.raw("disk.raw", &disk)).await.manifest;
    let image = with_cache(&store, &id, &place, 100 * MIB).await;
    assert!(read_all(&image).await == disk);
    assert_eq!(cached_files(&place).len(), 2);

    // Another process, later: frames come from the cache alone. The pack keeps only its last bytes, page and manifest.
    let pack = place.objects("store/packs").remove(0);
    let good = std::fs::read(&pack).expect("read");
    let page = good.len() - MANIFEST_FRAME as usize - (8 + 128 + 32 * 24);
    let mut without_blocks = good.clone();
    without_blocks[32..page - 100].fill(0);
    std::fs::write(&pack, without_blocks).expect("write");
    assert!(read_all(&with_cache(&store, &id, &place, 100 * MIB).await).await == disk);

    // A damaged file of the cache is replaced from the store, or an error if that is damaged too.
    let file = cached_files(&place).remove(0);
    flip(&file, 1000);
    let image = with_cache(&store, &id, &place, 100 * MIB).await;
    assert!(!read_what_is_left(&image, &disk).await.is_empty());
    assert!(!file.exists());
    std::fs::write(&pack, &good).expect("write");
    assert!(read_what_is_left(&image, &disk).await.is_empty());
    assert!(file.exists());

    // So is one that is cut off while it is open.
    for file in cached_files(&place) {
        File::options().write(true).open(&file).expect("open").set_len(10).expect("cut");
    }
    assert!(read_what_is_left(&image, &disk).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_cache_stays_within_its_limit() {
    const LIMIT: u64 = 8 * MIB;
    let place = Place::new();
    let store = place.store("store").await;
    let disk = Arc::new(noise(12, 40 * MIB as usize));
    let id = put(&store, &place.raw("disk.raw", &disk)).await.manifest;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..4_u64 {
        let image = with_cache(&store, &id, &place, LIMIT).await;
        let disk = Arc::clone(&disk);
        tasks.spawn(async move {
            let mut buf = vec![0; 300_000];
            for step in 0..100 {
                let offset = (step * 7_000_003 + number * 1_000_003) % (disk.len() - buf.len()) as u64;
                image.read_at(offset, &mut buf).await.expect("read");
                assert!(buf == disk[offset as usize..][..buf.len()]);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("task");
    }
    let used: u64 = cached_files(&place).iter().map(|path| path.metadata().expect("file").len()).sum();
    // Four writers, each a frame over the sixteenth that it may add unseen.
    assert!(used <= LIMIT + 4 * (LIMIT / 16 + 2 * MIB), "{used}");
    assert!(place.objects("cache/tmp").is_empty());
}

/// When the cache's folder is gone (or its disk full), reading goes on from memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_place_for_the_cache_reads_go_on() {
    let place = Place::new();
    let store = place.store("store").await;
    let disk = noise(13, 50 * MIB as usize);
    let id = put(&store, &place.raw("disk.raw", &disk)).await.manifest;
    let image = with_cache(&store, &id, &place, 100 * MIB).await;
    std::fs::remove_dir_all(place.path("cache")).expect("remove");
    std::fs::write(place.path("cache"), b"in the way").expect("write");
    assert!(read_all(&image).await == disk);
}
