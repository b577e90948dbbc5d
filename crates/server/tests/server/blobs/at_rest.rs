//! Blobs on the disk: nothing to read there where the region has a key, and nothing that was changed there is given out.

use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Lab, error};

/// Not found by chance, nor by compressing.
fn secret(seed: u8, len: usize) -> Vec<u8> {
    let line = format!("secret {seed}: {:02x?}\n", [seed.wrapping_mul(31); 16]);
    line.bytes().cycle().take(len).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_on_the_disk() {
    for encrypted in [true, false] {
        let lab = Lab::start_with(|config| {
            let key = config.data_dir.join("store-key");
            let mut options = std::fs::File::options();
            let file = options.write(true).create_new(true).mode(0o600).open(&key).expect("makes the key");
            std::io::Write::write_all(&mut &file, "5a".repeat(32).as_bytes()).expect("writes");
            config.regions[0].key_file = encrypted.then_some(key);
        })
        .await;
        lab.container("con").await;
        check(&lab, encrypted).await;
        lab.bed.stop().await;
    }
}

async fn check(lab: &Lab, encrypted: bool) {
    let whole = secret(1, 300_000);
    let put = lab.blob("PUT", "/con/whole", &[("x-ms-blob-type", "BlockBlob")], whole.clone()).await;
    assert_eq!(put.status(), 201);
    assert_eq!(put.headers()["x-ms-request-server-encrypted"], if encrypted { "true" } else { "false" });
    let (one, two) = (secret(2, 70_000), secret(3, 5));
    for (id, block) in [("YQ==", &one), ("Yg==", &two)] {
        let put = lab.blob("PUT", &format!("/con/list?comp=block&blockid={id}"), &[], block.clone()).await;
        assert_eq!(put.status(), 201);
    }
    let list = b"<BlockList><Latest>YQ==</Latest><Latest>Yg==</Latest></BlockList>".to_vec();
    assert_eq!(lab.blob("PUT", "/con/list?comp=blocklist", &[], list).await.status(), 201);
    let append = [("x-ms-blob-type", "AppendBlob")];
    assert_eq!(lab.blob("PUT", "/con/log", &append, Vec::new()).await.status(), 201);
    let line = secret(4, 1000);
    assert_eq!(lab.blob("PUT", "/con/log?comp=appendblock", &[], line.clone()).await.status(), 201);
    let pages = [("x-ms-blob-type", "PageBlob"), ("x-ms-blob-content-length", "1048576")];
    assert_eq!(lab.blob("PUT", "/con/pages", &pages, Vec::new()).await.status(), 201);
    let page = secret(5, 1024);
    let range = [("x-ms-page-write", "update"), ("x-ms-range", "bytes=65536-66559")];
    assert_eq!(lab.blob("PUT", "/con/pages?comp=page", &range, page.clone()).await.status(), 201);
    for (from, to) in [("whole", "copy1"), ("copy1", "copy2"), ("list", "copy3")] {
        let source = format!("{}/con/{from}", lab.url);
        let copied =
            lab.blob("PUT", &format!("/con/{to}"), &[("x-ms-copy-source", &source)], Vec::new()).await;
        assert_eq!(copied.status(), 202, "{}", copied.text().await.expect("text"));
    }

    let mut paged = vec![0; 1 << 20];
    paged[65_536..66_560].copy_from_slice(&page);
    let listed = [one.clone(), two.clone()].concat();
    let blobs = [
        ("whole", &whole),
        ("list", &listed),
        ("log", &line),
        ("pages", &paged),
        ("copy1", &whole),
        ("copy2", &whole),
        ("copy3", &listed),
    ];
    for (name, bytes) in blobs {
        let path = format!("/con/{name}");
        let got = lab.blob("GET", &path, &[], Vec::new()).await;
        assert!(got.status() == 200 && got.bytes().await.expect("bytes") == bytes[..], "{name}");
        let part = lab.blob("GET", &path, &[("x-ms-range", "bytes=500-777")], Vec::new()).await;
        assert!(part.status() == 206 && part.bytes().await.expect("bytes") == bytes[500..=777], "{name}");
    }

    // Seen from the disk.
    let below = lab.bed.folder.path().to_owned();
    let found = |wanted: &[u8]| {
        let shows = |path: &PathBuf| {
            let bytes = std::fs::read(path).unwrap_or_default();
            bytes.windows(wanted.len()).any(|window| window == wanted)
        };
        files(&below).iter().filter(|path| shows(path)).count()
    };
    for (name, bytes) in [("whole", &whole), ("list", &one), ("log", &line), ("pages", &page)] {
        assert_eq!(found(&bytes[100..160]) == 0, encrypted, "{name}");
    }

    // One changed byte in each file, which copies share; page blobs have no checksum.
    let mut changed = std::collections::BTreeSet::new();
    for path in files(&below.join("regions/eastus/blobs")) {
        let mut bytes = std::fs::read(&path).expect("reads");
        let file = std::fs::metadata(&path).expect("a file").ino();
        if !bytes.starts_with(b"TTPAGES") && changed.insert(file) {
            bytes[66] ^= 1;
            std::fs::write(&path, bytes).expect("writes");
        }
    }
    assert_eq!(changed.len(), 4, "whole, two blocks, what was appended");
    for (name, _) in blobs.iter().filter(|(name, _)| *name != "pages") {
        let (status, code, text) =
            error(lab.blob("GET", &format!("/con/{name}"), &[], Vec::new()).await).await;
        assert_eq!((status, code.as_str()), (500, "InternalError"), "{name}");
        assert!(text.contains(&format!("blob 'con/{name}'")) && text.contains("frame 0"), "{text}");
        assert!(!text.contains("secret 1"), "{text}");
    }
    // Other frames are still good, and nothing else is needed for them.
    let part = lab.blob("GET", "/con/whole", &[("x-ms-range", "bytes=70000-80000")], Vec::new()).await;
    assert!(part.status() == 206 && part.bytes().await.expect("bytes") == whole[70_000..=80_000]);
}
