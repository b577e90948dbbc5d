//! Encryption at rest: what is stored tells nothing without the key, and another implementation opens it by the specification.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use content::{BlockCache, Error, GcOptions, Key, KeyRing, ManifestId, Store, StoreOptions, replicate};

use crate::servers::{self, moto, options, s3};
use crate::support::{BLOCK, MIB, Place, noise, open, put, read_all, text};

fn ring(seeds: &[u8]) -> KeyRing {
    let mut keys = seeds.iter().map(|seed| Key::from_bytes([*seed; 32]));
    KeyRing::new(keys.next().expect("a key"), keys.collect()).expect("ring")
}

fn sealed(place: &Place, mirror: &str, seeds: &[u8]) -> StoreOptions {
    let keys = (!seeds.is_empty()).then(|| ring(seeds));
    StoreOptions { index_dir: Some(place.path(mirror)), keys, ..StoreOptions::default() }
}

pub(crate) async fn open_folder(place: &Place, name: &str, seeds: &[u8]) -> content::Result<Store> {
    let options = sealed(place, &format!("{name}-mirror"), seeds);
    Store::open_or_create_with(&place.location(name), "test", &options).await
}

async fn read_error(store: &Store, manifest: &ManifestId) -> Error {
    let image = match store.open_image(manifest, Arc::new(BlockCache::in_memory())).await {
        Ok(image) => image,
        Err(error) => return error,
    };
    image.read_at(0, &mut vec![0; image.size() as usize]).await.expect_err("cannot be read")
}

pub(crate) fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|part| part == wanted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_tells_nothing_without_the_key() {
    let place = Place::new();
    let store = open_folder(&place, "sealed", &[1]).await.expect("store");
    let open_store = place.store("open").await;
    let mut disk: Vec<u8> = (0..20).flat_map(text).collect();
    disk.extend(noise(1, 20 * BLOCK));
    let raw = place.raw("disk.raw", &disk);
    let id = put(&store, &raw).await.manifest;
    // The same disk is the same image, encrypted or not, and no larger than its tags.
    assert_eq!(put(&open_store, &raw).await.manifest, id);
    assert!(read_all(&open(&store, &id).await).await == disk);
    assert_eq!(store.verify(&id).await.expect("verify").damaged_blocks, 0);
    let again = store.put_raw(&raw, "again", |_| {}).await.expect("put");
    assert_eq!((again.manifest, again.new_blocks), (id, 0));

    let block = &disk[25 * BLOCK..][..64];
    let hash = blake3::hash(&disk[25 * BLOCK..][..BLOCK]);
    for (name, shows) in [("open", true), ("sealed", false)] {
        for wanted in [block, hash.as_bytes()] {
            let objects =
                [place.objects(&format!("{name}/packs")), place.objects(&format!("{name}/index"))].concat();
            assert!(objects.len() >= 2);
            let found =
                objects.iter().any(|object| contains(&std::fs::read(object).expect("object"), wanted));
            assert_eq!(found, shows, "{name}");
        }
    }

    // No key, or another one.
    let key_id = ring(&[1]).current().id().to_string();
    for seeds in [&[][..], &[2], &[2, 3]] {
        let error = open_folder(&place, "sealed", seeds).await.expect_err("refused").to_string();
        assert!(error.contains(&key_id) && error.contains("TINTYPE_STORE_KEY_FILE"), "{error}");
    }
    // A key for a store that is not encrypted: nobody should think that it is.
    assert!(matches!(open_folder(&place, "open", &[1]).await, Err(Error::Key { .. })));

    // Encrypted → not → encrypted with another key.
    let (plain, other) =
        (place.store("plain").await, open_folder(&place, "other", &[9]).await.expect("store"));
    replicate(&store, &plain, &id, "test", |_| {}).await.expect("replicate");
    replicate(&plain, &other, &id, "test", |_| {}).await.expect("replicate");
    for store in [&plain, &other] {
        assert_eq!(store.verify(&id).await.expect("verify").damaged_blocks, 0);
        assert!(read_all(&open(store, &id).await).await == disk);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_rotated() {
    let place = Place::new();
    let old = open_folder(&place, "store", &[1]).await.expect("store");
    let (first, second) = (noise(1, 5 * BLOCK), [noise(1, 5 * BLOCK), noise(2, 3 * BLOCK)].concat());
    let one = put(&old, &place.raw("one.raw", &first)).await.manifest;
    let elsewhere = Store::open_read_only_with(&place.location("store"), &sealed(&place, "elsewhere", &[1]))
        .await
        .expect("open");
    let rotated = open_folder(&place, "store", &[2, 1]).await.expect("store");
    let report = put(&rotated, &place.raw("two.raw", &second)).await;
    assert_eq!(report.new_blocks, 3);
    for (id, disk) in [(&one, &first), (&report.manifest, &second)] {
        assert!(&read_all(&open(&rotated, id).await).await == disk);
        assert_eq!(rotated.verify(id).await.expect("verify").damaged_blocks, 0);
    }
    // Who was not told of the new key learns which one is missing: from a frame, where the copies of the index are shared,
    // and from the index otherwise.
    for store in [&old, &elsewhere] {
        let error = read_error(store, &report.manifest).await;
        let source = std::error::Error::source(&error).map(ToString::to_string);
        let text = format!("{error} {source:?}");
        assert!(text.contains("TINTYPE_STORE_KEY"), "{text}");
        assert!(text.contains(&ring(&[2]).current().id().to_string()), "{text}");
    }
    let error = open_folder(&place, "store", &[2]).await.expect_err("refused").to_string();
    assert!(error.contains(&ring(&[1]).current().id().to_string()), "{error}");
}

/// What a garbage collection packs anew is sealed with the current key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_seals_what_it_moves() {
    let place = Place::new();
    let old = open_folder(&place, "store", &[1]).await.expect("store");
    let shared = noise(1, 40 * BLOCK);
    let all =
        put(&old, &place.raw("all.raw", &[shared.clone(), noise(2, 60 * BLOCK)].concat())).await.manifest;
    let kept = put(&old, &place.raw("kept.raw", &shared)).await.manifest;
    let rotated = open_folder(&place, "store", &[2, 1]).await.expect("store");
    rotated.remove_ref(&all, "test").await.expect("remove");
    let report = rotated.gc(&GcOptions::default(), |_, _, _| {}).await.expect("collect");
    assert!(report.packs_removed >= 1 && report.bytes_moved > 0, "{report:?}");
    assert!(read_all(&open(&rotated, &kept).await).await == shared);
    assert_eq!(rotated.verify(&kept).await.expect("verify").damaged_blocks, 0);
    let key_of = |path: &Path| std::fs::read(path).expect("pack")[32..48].to_vec();
    let keys: Vec<_> = place.objects("store/packs").iter().map(|path| key_of(path)).collect();
    let wanted = |seed: u8| blake3::hash(&[seed; 32]).as_bytes()[..16].to_vec();
    assert!(keys.contains(&wanted(2)), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_changed_is_not_read() {
    let place = Place::new();
    let store = open_folder(&place, "store", &[1]).await.expect("store");
    let disk = noise(1, 40 * BLOCK);
    let id = put(&store, &place.raw("disk.raw", &disk)).await.manifest;
    let pack = place.objects("store/packs").remove(0);
    let good = std::fs::read(&pack).expect("pack");
    for at in (48..good.len()).step_by(100_003).chain([48 + 6, 48 + 20]) {
        let mut bad = good.clone();
        bad[at] ^= 4;
        std::fs::write(&pack, &bad).expect("write");
        let error = read_error(&store, &id).await;
        let text = format!("{error} {:?}", std::error::Error::source(&error).map(ToString::to_string));
        assert!(text.contains("damaged"), "byte {at}: {text}");
    }
    std::fs::write(&pack, &good).expect("write");
    assert!(read_all(&open(&store, &id).await).await == disk);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_store_in_s3() {
    let place = Place::new();
    let moto = moto();
    let location = s3(moto.address, "sealed");
    let keys =
        |seeds: &[u8], mirror: &str| StoreOptions { keys: Some(ring(seeds)), ..options(&place, mirror) };
    let store = servers::open(&location, &keys(&[1], "one")).await;
    let disk = noise(3, 10 * MIB as usize);
    let id = put(&store, &place.raw("disk.raw", &disk)).await.manifest;
    let reader = Store::open_read_only_with(&location, &keys(&[5, 1], "two")).await.expect("open");
    assert!(read_all(&open(&reader, &id).await).await == disk);
    let error = Store::open_read_only_with(&location, &options(&place, "three")).await.expect_err("no key");
    assert!(matches!(error, Error::KeyNeeded { .. }), "{error}");
}

/// Opens every frame of a pack by `docs/format.md` alone, with Python's `cryptography`; stored blocks must be the disk's.
const BY_THE_BOOK: &str = r#"
import struct, sys
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives import hashes

key, key_id, segment_name = bytes.fromhex(sys.argv[1]), bytes.fromhex(sys.argv[2]), sys.argv[5]
pack, disk, segment = (open(path, "rb").read() for path in (sys.argv[3], sys.argv[4], sys.argv[6]))

def derive(info):
    return AESGCM(HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(key))

magic, version, flags, pack_id, used = struct.unpack("<8sII16s16s", pack[:48])
assert (magic, flags, used) == (b"TTPACK\0\0", 1, key_id)
cipher, at, number, blocks = derive(b"tintype pack\0" + pack_id), 48, 0, 0
while at < len(pack):
    header = pack[at:at + 16]
    magic, kind, codec, count, flags, this, payload = struct.unpack("<4sBBBBII", header)
    assert (magic, flags, this) == (b"TTFR", 1, number)
    end = at + 16 + 32 * count + payload
    nonce = bytes(8) + struct.pack("<I", number)
    plain = cipher.decrypt(nonce, pack[at + 16:end], pack_id + struct.pack("<I", 1) + header)
    assert len(plain) == 32 * count + payload - 16
    if kind == 1 and codec == 0:
        for block in range(count):
            found = disk.find(plain[32 * count + block * 65536:][:65536])
            assert found >= 0 and found % 65536 == 0
            blocks += 1
    at, number = end, number + 1
assert at == len(pack)

assert segment[:16] == b"TTSEAL\0\0" + struct.pack("<II", 1, 0) and segment[16:32] == key_id
name = b"index/" + segment_name.encode()
plain = derive(b"tintype object\0" + name).decrypt(bytes(12), segment[32:], segment[:32] + name)
assert plain[:8] == b"TTINDEX\0" and pack_id in plain
print(blocks)
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_implementation_opens_it() {
    let place = Place::new();
    let store = open_folder(&place, "store", &[0xab]).await.expect("store");
    let raw = place.raw("disk.raw", &noise(1, 50 * BLOCK));
    put(&store, &raw).await;
    let only = |folder: &str| place.objects(folder).remove(0).display().to_string();
    let (pack, segment) = (only("store/packs"), only("store/index"));
    let name = Path::new(&segment).file_name().expect("name").to_str().expect("text").to_owned();
    let key = "ab".repeat(32);
    let id = ring(&[0xab]).current().id().to_string();
    let raw = raw.display().to_string();
    let arguments = ["-c", BY_THE_BOOK, &key, &id, &pack, &raw, &name, &segment];
    let output = Command::new(servers::python()).args(arguments).output().expect("Python");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "50");
}
