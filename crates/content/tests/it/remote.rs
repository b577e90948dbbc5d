//! Stores in S3 (moto) and Azure Blob (Azurite): what works in a folder works there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use content::nbd::Export;
use content::{BlockCache, Error, GcOptions, Store, StoreLocation, StoreOptions, replicate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::servers::{self, azure, azurite, gcs, google, moto, options, s3};
use crate::support::{BLOCK, MIB, Place, noise, open, put, qcow2, read_all, run, text};

/// Segments in a mirror folder.
fn copies(place: &Place, mirror: &str, store: &Store) -> usize {
    std::fs::read_dir(place.path(mirror).join(store.id().to_string())).expect("mirror").count()
}

/// Reads an image as QEMU does, over NBD.
async fn read_by_qemu(place: &Place, store: &Store, manifest: &content::ManifestId) -> Vec<u8> {
    let cache = Arc::new(BlockCache::open(&place.path("cache"), 1 << 30).expect("cache"));
    let image = store.open_image(manifest, cache).await.expect("open");
    let (socket, flat) = (place.path("nbd.sock"), place.text("flat.raw"));
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(Export::bind(&socket).expect("bind").serve(image, shutdown.clone()));
    let url = format!("nbd+unix:///?socket={}", socket.display());
    let convert = move || run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &url, &flat]);
    tokio::task::spawn_blocking(convert).await.expect("qemu-img");
    shutdown.cancel();
    task.await.expect("served");
    std::fs::read(place.path("flat.raw")).expect("flat")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_travels_between_stores_of_every_kind() {
    let place = Place::new();
    let (moto, azurite) = (moto(), azurite());
    let locations = [s3(moto.address, "regions/west"), azure(azurite.address, "east")];
    let [west, east] = &locations;
    // Ends in a block of its own; more than one part of an upload (8 MiB), with a hole.
    let mut disk = noise(1, 20 * MIB as usize);
    disk.resize(90 * MIB as usize, 0);
    disk.extend((0..40).flat_map(text));
    disk.resize(disk.len() + 100, 5);
    let raw = place.raw("disk.raw", &disk);

    let store = servers::open(west, &options(&place, "west")).await;
    let first = put(&store, &raw).await;
    assert_eq!(first.new_blocks, 320 + 40 + 1);
    let again = store.put_raw(&raw, "again", |_| {}).await.expect("put");
    assert_eq!((again.manifest, again.new_blocks), (first.manifest, 0));
    let mut owners = store.refs(&first.manifest).await.expect("refs");
    owners.sort();
    assert_eq!(owners, ["again", "test"]);
    store.remove_ref(&first.manifest, "again").await.expect("remove");
    store.remove_ref(&first.manifest, "again").await.expect("remove again");

    let top = place.text("top.qcow2");
    let commands = ["write -P 7 1M 64k", "write -P 8 70M 128k", "write -z -u 8M 1M"].map(str::to_owned);
    qcow2(&top, None, &disk.len().next_multiple_of(512).to_string(), "64k", &commands);
    let second = store.commit_overlay(&first.manifest, &[top.into()], "top", |_| {}).await.expect("commit");
    assert_eq!(second.new_blocks, 2);
    disk[MIB as usize..][..BLOCK].fill(7);
    disk[70 * MIB as usize..][..2 * BLOCK].fill(8);
    disk[8 * MIB as usize..][..MIB as usize].fill(0);
    disk.resize(disk.len().next_multiple_of(512), 0);

    // Another process, with nothing but the location; then one with the first's mirror.
    for mirror in ["empty", "west"] {
        let reader = Store::open_read_only_with(west, &options(&place, mirror)).await.expect("open");
        assert_eq!((reader.id(), reader.owner()), (store.id(), "test"));
        assert!(copies(&place, mirror, &reader) >= 2);
        assert!(read_all(&open(&reader, &second.manifest).await).await == disk, "{mirror}");
        assert_eq!(reader.verify(&second.manifest).await.expect("verify").damaged_blocks, 0);
        assert!(matches!(reader.put_raw(&raw, "x", |_| {}).await, Err(Error::ReadOnly { .. })));
    }

    // S3 → Azure → folder: what was there does not move again.
    let other = servers::open(east, &options(&place, "east")).await;
    replicate(&store, &other, &first.manifest, "test", |_| {}).await.expect("replicate");
    let moved = replicate(&store, &other, &second.manifest, "test", |_| {}).await.expect("replicate");
    assert_eq!(moved.blocks_moved, 2);
    let moved = replicate(&store, &other, &second.manifest, "once more", |_| {}).await.expect("replicate");
    assert_eq!((moved.blocks_moved, moved.bytes_moved), (0, 0));
    assert!(read_by_qemu(&place, &other, &second.manifest).await == disk);
    let home = place.store("home").await;
    replicate(&other, &home, &second.manifest, "test", |_| {}).await.expect("replicate");
    assert!(read_all(&open(&home, &second.manifest).await).await == disk);

    for store in [&store, &other] {
        assert_eq!(store.verify(&first.manifest).await.expect("verify").damaged_blocks, 0);
        let stats = store.stats().await.expect("stats");
        assert_eq!(stats.manifests, 2);
        assert!(stats.stored_bytes > 20 * MIB && stats.stored_bytes < 21 * MIB, "{stats:?}");
        store.remove_ref(&first.manifest, "test").await.expect("remove");
        assert!(!store.has_manifest(&first.manifest).await.expect("look"));
    }
}

/// Two hosts, each with a mirror of its own, put disks that share blocks into one store at once, many times, so that each
/// merges segments under the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_writers_at_once() {
    let place = Place::new();
    let (moto, azurite, google) = (moto(), azurite(), google());
    let locations = [
        ("s3", s3(moto.address, "two")),
        ("az", azure(azurite.address, "two")),
        ("gs", gcs(google.address, "two")),
    ];
    for (name, location) in locations {
        let writer = async |who: &str, seed: u64| {
            let store = servers::open(&location, &options(&place, &format!("{name}-{who}"))).await;
            let mut written = Vec::new();
            for round in 0..12 {
                let mut disk: Vec<u8> = (0..4).flat_map(|block| text(100 * round + block)).collect();
                disk.extend(noise(seed + round, BLOCK));
                let raw = place.raw(&format!("{name}-{who}-{round}.raw"), &disk);
                written.push((put(&store, &raw).await.manifest, disk));
            }
            written
        };
        let (one, two) = tokio::join!(writer("one", 1000), writer("two", 2000));
        let reader = Store::open_read_only_with(&location, &options(&place, "fresh")).await.expect("open");
        let stats = reader.stats().await.expect("stats");
        assert_eq!(stats.manifests, 24);
        assert!(stats.segments < 24, "nothing was merged: {stats:?}");
        for (manifest, disk) in one.into_iter().chain(two) {
            assert!(read_all(&open(&reader, &manifest).await).await == disk);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remote_stores_are_opened_with_care() {
    let place = Place::new();
    let moto = moto();
    let location = s3(moto.address, "care");
    let options = options(&place, "mirror");
    let absent = Store::open_read_only_with(&location, &options).await;
    assert!(matches!(absent, Err(Error::NotAStore { .. })), "{absent:?}");
    // Many who create at once: one store.
    let stores: Vec<_> = futures::future::join_all((0..4).map(|_| servers::open(&location, &options))).await;
    assert!(stores.iter().all(|store| store.id() == stores[0].id()));
    let another = Store::open_or_create_with(&location, "another", &options).await.expect_err("refused");
    assert!(another.to_string().contains("`test`"), "{another}");

    let text = location.to_string().replace("bucket/", "no-such-bucket/");
    let error = Store::open_or_create_with(&text.parse().expect("location"), "test", &options).await;
    let error = error.expect_err("no bucket").to_string();
    assert!(error.contains("NoSuchBucket"), "{error}");

    let none = StoreOptions { credentials: Some(content::Credentials::default()), ..options };
    let error = Store::open_read_only_with(&location, &none).await.expect_err("no credentials").to_string();
    assert!(error.contains("AWS_ACCESS_KEY_ID"), "{error}");
}

/// A copy of a segment that was torn by a crash of the host is fetched again, and a damaged one in the store is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_mirror_is_mended() {
    let place = Place::new();
    let moto = moto();
    let location = s3(moto.address, "torn");
    let options = options(&place, "mirror");
    let store = servers::open(&location, &options).await;
    let disk = noise(1, 5 * BLOCK);
    let id = put(&store, &place.raw("disk.raw", &disk)).await.manifest;
    let mirror = place.path("mirror").join(store.id().to_string());
    for damage in [&b""[..], &[0; 500]] {
        for copy in std::fs::read_dir(&mirror).expect("mirror") {
            std::fs::write(copy.expect("copy").path(), damage).expect("write");
        }
        let reader = Store::open_read_only_with(&location, &options).await.expect("open");
        assert!(read_all(&open(&reader, &id).await).await == disk);
    }
}

/// Everything that is done to a store, through Google's client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_lives_in_gcs() {
    let place = Place::new();
    let google = google();
    let location = gcs(google.address, "regions/west");
    let opened = futures::future::join_all((0..4).map(|n| {
        let (location, options) = (location.clone(), options(&place, &format!("mirror-{n}")));
        async move { servers::open(&location, &options).await }
    }));
    let stores = opened.await;
    let store = &stores[0];
    assert!(stores.iter().all(|other| other.id() == store.id()), "one of four creates it");

    // More than one part of an upload; then a change of it.
    let mut disk = noise(1, 20 * MIB as usize);
    disk.resize(40 * MIB as usize, 0);
    disk.extend((0..40).flat_map(text));
    let raw = place.raw("disk.raw", &disk);
    let first = put(store, &raw).await;
    assert_eq!(first.new_blocks, 320 + 40);
    assert_eq!(store.put_raw(&raw, "again", |_| {}).await.expect("put").new_blocks, 0);
    let top = place.text("top.qcow2");
    let commands = ["write -P 7 1M 64k".to_owned()];
    qcow2(&top, None, &disk.len().to_string(), "64k", &commands);
    let second = store.commit_overlay(&first.manifest, &[top.into()], "top", |_| {}).await.expect("commit");
    assert_eq!(second.new_blocks, 1);
    let mut changed = disk.clone();
    changed[MIB as usize..][..BLOCK].fill(7);

    // A reader with nothing but the location; QEMU; a folder and another bucket.
    let reader = Store::open_read_only_with(&location, &options(&place, "reader")).await.expect("open");
    assert!(read_all(&open(&reader, &second.manifest).await).await == changed);
    assert!(read_by_qemu(&place, store, &first.manifest).await == disk);
    let home = place.store("home").await;
    replicate(store, &home, &second.manifest, "test", |_| {}).await.expect("replicate");
    let east = servers::open(&gcs(google.address, "regions/east"), &options(&place, "east")).await;
    replicate(&home, &east, &second.manifest, "test", |_| {}).await.expect("replicate");
    let moved = replicate(store, &east, &first.manifest, "test", |_| {}).await.expect("replicate");
    assert_eq!(moved.blocks_moved, 1, "the block that the second changed");
    assert!(read_all(&open(&east, &first.manifest).await).await == disk);

    // What nobody refers to goes, twice asked for as well; what somebody does stays.
    for owner in ["test", "again", "again"] {
        store.remove_ref(&first.manifest, owner).await.expect("remove");
    }
    assert!(!store.has_manifest(&first.manifest).await.expect("look"));
    let report = store.gc(&GcOptions::default(), |_, _, _| {}).await.expect("collect");
    assert_eq!(report.images, 1);
    assert!(read_all(&open(store, &second.manifest).await).await == changed);
    store.remove_ref(&second.manifest, "top").await.expect("remove");
    assert!(store.gc(&GcOptions::default(), |_, _, _| {}).await.expect("collect").packs_removed > 0);
    let empty = store.stats().await.expect("stats");
    assert_eq!((empty.manifests, empty.packs, empty.segments), (0, 0, 0));
    assert_eq!(east.verify(&first.manifest).await.expect("verify").damaged_blocks, 0);
    assert_eq!(put(store, &raw).await.new_blocks, 360, "and it is as good as new");
}

/// What Google's client asks is understood by a server of S3, but for the condition of a create: it must not be written to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_read_by_the_client_of_gcs() {
    let place = Place::new();
    let moto = moto();
    let store = servers::open(&s3(moto.address, "gcs/x"), &options(&place, "s3")).await;
    let disk = noise(4, 3 * MIB as usize);
    let id = put(&store, &place.raw("disk.raw", &disk)).await.manifest;

    let (location, options) = (gcs(moto.address, "gcs/x"), options(&place, "gcs"));
    let reader = Store::open_read_only_with(&location, &options).await.expect("open");
    assert_eq!(reader.id(), store.id());
    assert!(read_all(&open(&reader, &id).await).await == disk);
    assert_eq!(reader.refs(&id).await.expect("refs"), ["test"]);
    let error =
        Store::open_or_create_with(&location, "test", &options).await.expect_err("refused").to_string();
    assert!(error.contains("If-None-Match"), "{error}");
    assert_eq!(store.verify(&id).await.expect("verify").damaged_blocks, 0);
}

/// Connections that break in the middle of answers: reads go on where they stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_are_survived() {
    let place = Place::new();
    let moto = moto();
    let store = servers::open(&s3(moto.address, "cut"), &options(&place, "direct")).await;
    let disk = noise(9, 24 * MIB as usize);
    let id = put(&store, &place.raw("disk.raw", &disk)).await.manifest;

    let cuts = Arc::new(AtomicUsize::new(0));
    let proxy = cutting_proxy(moto.address, Arc::clone(&cuts)).await;
    let location: StoreLocation = s3(proxy, "cut");
    let reader = Store::open_read_only_with(&location, &options(&place, "proxied")).await.expect("open");
    assert!(read_all(&open(&reader, &id).await).await == disk);
    assert_eq!(reader.verify(&id).await.expect("verify").damaged_blocks, 0);
    assert!(cuts.load(Ordering::Relaxed) >= 20, "{cuts:?}");
}

/// Passes on what is sent, and closes each connection after 300 to 900 KiB of answers.
async fn cutting_proxy(to: SocketAddr, cuts: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok((client, _)) = listener.accept().await {
            number += 1;
            let random = u64::from(noise(number, 1)[0]);
            let limit = (300 << 10) + random * (600 << 10) / 255;
            let cuts = Arc::clone(&cuts);
            tokio::spawn(async move {
                let server = TcpStream::connect(to).await?;
                let (mut from_client, mut to_client) = client.into_split();
                let (from_server, mut to_server) = server.into_split();
                let requests =
                    tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                let sent = tokio::io::copy(&mut from_server.take(limit), &mut to_client).await;
                if sent.is_ok_and(|sent| sent == limit) {
                    cuts.fetch_add(1, Ordering::Relaxed);
                }
                requests.abort();
                to_client.shutdown().await
            });
        }
    });
    address
}
