//! What an encrypted store leaves on the host that reads it: a cache of blocks and copies of the index, both sealed.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use content::nbd::Export;
use content::{BlockCache, FramedWriter, Key, KeyRing, ManifestId, PageSeal, Store};
use tokio_util::sync::CancellationToken;

use crate::sealed::{contains, open_folder};
use crate::servers::python;
use crate::support::{BLOCK, Place, noise, open, put, read_all, run, text};

/// Reads an image through the cache in a folder, as another process would.
async fn read_through(store: &Store, id: &ManifestId, cache: &Path) -> content::Result<Vec<u8>> {
    let cache = Arc::new(BlockCache::open(cache, 1 << 30).expect("cache"));
    let image = store.open_image(id, cache).await?;
    let mut disk = vec![0; image.size() as usize];
    image.read_at(0, &mut disk).await?;
    // What is warm is decrypted anew, in any piece.
    for (at, len) in [(0, 1), (4095, 2), (BLOCK - 1, 4098), (disk.len() - 5, 5)] {
        let mut part = vec![0; len];
        image.read_at(at as u64, &mut part).await?;
        assert!(part == disk[at..at + len], "{len} bytes at {at}");
    }
    Ok(disk)
}

/// Text, which compresses, and noise, which does not; and bytes of both that must not be found anywhere.
fn secret_disk() -> (Vec<u8>, Vec<Vec<u8>>) {
    let disk = [(0..20).flat_map(text).collect(), noise(1, 20 * BLOCK)].concat();
    let block = |number: usize| &disk[number * BLOCK..][..BLOCK];
    let hash = |number| blake3::hash(block(number)).as_bytes().to_vec();
    let patterns = vec![block(3)[..64].to_vec(), block(25)[1000..1064].to_vec(), hash(3), hash(25)];
    (disk, patterns)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_file_of_this_host_shows_what_was_read() {
    for (seeds, shows) in [(&[1][..], false), (&[], true)] {
        let (data, input) = (Place::new(), Place::new());
        let (disk, patterns) = secret_disk();
        let store = open_folder(&data, "store", seeds).await.expect("store");
        let id = put(&store, &input.raw("disk.raw", &disk)).await.manifest;
        let cache = data.path("cache");
        assert!(read_through(&store, &id, &cache).await.expect("read") == disk);
        let socket = input.path("nbd.sock");
        let opened = Arc::new(BlockCache::open(&cache, 1 << 30).expect("cache"));
        let image = store.open_image(&id, opened).await.expect("image");
        let (export, stop) = (Export::bind(&socket).expect("bind"), CancellationToken::new());
        let serving = tokio::spawn(export.serve(image, stop.clone()));
        let (uri, copy) = (format!("nbd+unix:///?socket={}", socket.display()), input.text("copy.raw"));
        let convert = move || run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, &copy]);
        tokio::task::spawn_blocking(convert).await.expect("convert");
        assert!(std::fs::read(input.path("copy.raw")).expect("copy") == disk);
        stop.cancel();
        serving.await.expect("served");

        let files = data.objects(".");
        let cached = files.iter().filter(|path| path.starts_with(&cache)).count();
        let mirrored = files.iter().filter(|path| path.starts_with(data.path("store-mirror"))).count();
        assert!(cached >= 2 && (mirrored >= 1) != shows, "{files:?}");
        let contents: Vec<_> = files.iter().map(|path| std::fs::read(path).expect("file")).collect();
        for (number, pattern) in patterns.iter().enumerate() {
            let found = contents.iter().any(|bytes| contains(bytes, pattern));
            assert_eq!(found, shows, "pattern {number} with keys {seeds:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_the_cache_is_a_miss_and_refilled() {
    let place = Place::new();
    let (disk, _) = secret_disk();
    let store = open_folder(&place, "store", &[1]).await.expect("store");
    let id = put(&store, &place.raw("disk.raw", &disk)).await.manifest;
    let cache = place.path("cache");
    assert!(read_through(&store, &id, &cache).await.expect("read") == disk);
    let cached = place.objects("cache");
    for at in [0, 12, 30, 45, 70, 5000, usize::MAX] {
        for path in &cached {
            let mut bytes = std::fs::read(path).expect("file");
            let last = bytes.len() - 1;
            bytes[at.min(last)] ^= 1;
            std::fs::write(path, bytes).expect("write");
        }
        assert!(read_through(&store, &id, &cache).await.expect("read") == disk, "byte {at}");
    }
    // And while the files are open.
    let open_cache = Arc::new(BlockCache::open(&cache, 1 << 30).expect("cache"));
    let image = store.open_image(&id, open_cache).await.expect("image");
    let mut read = vec![0; disk.len()];
    image.read_at(0, &mut read).await.expect("read");
    for path in &cached {
        let file = std::fs::File::options().write(true).open(path).expect("open");
        file.write_all_at(b"torn", 9000).expect("write");
    }
    read.fill(0);
    image.read_at(0, &mut read).await.expect("read");
    assert!(read == disk);
    assert_eq!(place.objects("cache").len(), cached.len());

    // The copies of the index: as well.
    let mirror = place.objects("store-mirror");
    assert_eq!(mirror.len(), 1);
    let good = std::fs::read(&mirror[0]).expect("copy");
    for at in [3, 20, 50, 100, good.len() - 1] {
        let reader = open_folder(&place, "store", &[1]).await.expect("store");
        let mut bad = good.clone();
        bad[at] ^= 1;
        // In place: the reader has it open.
        std::fs::write(&mirror[0], &bad).expect("write");
        assert!(read_all(&open(&reader, &id).await).await == disk, "byte {at}");
        let reopened = open_folder(&place, "store", &[1]).await.expect("store");
        assert!(read_all(&open(&reopened, &id).await).await == disk, "byte {at}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cached_under_a_key_that_is_not_here() {
    let place = Place::new();
    let (disk, patterns) = secret_disk();
    let old = open_folder(&place, "store", &[1]).await.expect("store");
    let id = put(&old, &place.raw("disk.raw", &disk)).await.manifest;
    let cache = place.path("cache");
    let key_ids = || -> Vec<Vec<u8>> {
        let bytes = place.objects("cache").into_iter().map(|path| std::fs::read(path).expect("file"));
        bytes.map(|bytes| bytes[24..40].to_vec()).collect()
    };
    let id_of = |seed: u8| blake3::hash(&[seed; 32]).as_bytes()[..16].to_vec();
    let rotated = open_folder(&place, "store", &[2, 1]).await.expect("store");
    assert!(read_through(&rotated, &id, &cache).await.expect("read") == disk);
    assert!(key_ids().iter().all(|key| *key == id_of(2)));
    // Who does not have the new key reads the store, and puts its own in the place.
    assert!(read_through(&old, &id, &cache).await.expect("read") == disk);
    assert!(key_ids().iter().all(|key| *key == id_of(1)));
    let before: Vec<_> =
        place.objects("cache").iter().map(|path| std::fs::read(path).expect("file")).collect();
    assert!(read_through(&rotated, &id, &cache).await.expect("read") == disk);
    let after: Vec<_> =
        place.objects("cache").iter().map(|path| std::fs::read(path).expect("file")).collect();
    assert!(before == after, "a hit with the older key");
    // What was cached in the clear, by whatever, is not used and goes.
    for path in place.objects("cache") {
        std::fs::write(
            path,
            [disk[..BLOCK].to_vec(), blake3::hash(&disk[..BLOCK]).as_bytes().to_vec()].concat(),
        )
        .expect("write");
    }
    assert!(read_through(&rotated, &id, &cache).await.expect("read") == disk);
    assert!(
        !place
            .objects("cache")
            .iter()
            .any(|path| contains(&std::fs::read(path).expect("file"), &patterns[1]))
    );
    assert!(key_ids().iter().all(|key| *key == id_of(2)));
}

/// Opens a framed file and a page by `docs/format.md` alone, with Python's `cryptography` (which has no BLAKE3: the context is
/// given).
const BY_THE_BOOK: &str = r#"
import struct, sys
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives import hashes

key, context = bytes.fromhex(sys.argv[1]), bytes.fromhex(sys.argv[2])
framed, pages, plain = (open(path, "rb").read() for path in sys.argv[3:6])

def derive(info, length):
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=info).derive(key)

magic, version, flags, size, zero, key_id, salt = struct.unpack("<8sIIII16s16s", framed[:56])
assert (magic, version, flags, size, zero) == (b"TTFRAMES", 1, 1, 4096, 0) and framed[56:64] == bytes(8)
cipher, at, number, found = AESGCM(derive(b"tintype file\0" + salt + b"name", 32)), 64, 0, b""
while at < len(framed):
    frame, at = framed[at:at + size + 16], at + size + 16
    place = struct.pack("<QB", number, at >= len(framed))
    found += cipher.decrypt(bytes(4) + struct.pack("<Q", number), frame, context + place)
    number += 1
assert found == plain

magic, version, flags, page_key_id, salt = struct.unpack("<8sII16s16s", pages[:48])
assert (magic, version, flags, page_key_id) == (b"TTPAGES\0", 1, 1, key_id) and pages[96:4096] == bytes(4000)
both = derive(b"tintype pages\0" + salt + b"name", 64)
for number in range(len(pages) // 512 - 8):
    page = pages[4096 + number * 512:][:512]
    tweak = modes.XTS(struct.pack("<QQ", 7 + number, 0))
    decryptor = Cipher(algorithms.AES(both), tweak).decryptor()
    assert decryptor.update(page) + decryptor.finalize() == plain[number * 512:][:512]
print(number + 1)
"#;

#[test]
fn another_implementation_opens_framed_and_page_files() {
    let place = Place::new();
    let keys = KeyRing::new(Key::from_bytes([0xab; 32]), Vec::new()).expect("ring");
    let plain = noise(5, 10_240);
    let mut writer = FramedWriter::new(Vec::new(), Some(&keys), b"name", 4096).expect("begin");
    writer.write(&plain).expect("write");
    let framed = writer.finish().expect("finish");
    let context = blake3::Hasher::new().update(&framed[..64]).update(b"name").finalize();
    let (seal, header) = PageSeal::new(Some(&keys), b"name");
    let mut pages = plain.clone();
    seal.encrypt(7, &mut pages);
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(place.path(name), bytes).expect("write");
        place.text(name)
    };
    let files = [write("f", &framed), write("p", &[&header[..], &pages].concat()), write("x", &plain)];
    let (key, context) = ("ab".repeat(32), context.to_hex());
    let python = python().display().to_string();
    let printed = run(&python, &["-c", BY_THE_BOOK, &key, &context, &files[0], &files[1], &files[2]]);
    assert_eq!(printed.trim(), "20");
}
