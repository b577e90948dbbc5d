//! Blobs on the disk: nothing to read there where the region has a key, and nothing that was changed there is given out.

use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{API, Lab, account, body, error};
use crate::azurite::service_sas;

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

    // To a region without a key, and back.
    let west = account("west1");
    let mut other = body();
    other["location"] = "westus".into();
    assert_eq!(lab.bed.json("PUT", &format!("{west}?{API}"), Some(other)).await.0, 200);
    let keys = lab.bed.json("POST", &format!("{west}/listKeys?{API}"), None).await.1;
    let west_key = keys["keys"][0]["value"].as_str().expect("a key");
    let west = format!("{}/west1", lab.bed.server.url);
    let send = async |url: String, source: String| {
        let request = lab.bed.request("PUT", &url).bearer_auth(&lab.bed.token).header("content-length", 0);
        let request = request.header("x-ms-version", "2024-05-04");
        let request = if source.is_empty() { request } else { request.header("x-ms-copy-source", source) };
        request.send().await.expect("answers").status().as_u16()
    };
    assert_eq!(send(format!("{west}/con?restype=container"), String::new()).await, 201);
    let sas = service_sas(&lab.key, "/blob/acct1/con/list", "b", "r");
    assert_eq!(send(format!("{west}/con/list"), format!("{}/con/list?{sas}", lab.url)).await, 202);
    let sas = service_sas(west_key, "/blob/west1/con/list", "b", "r");
    assert_eq!(send(format!("{}/con/back", lab.url), format!("{west}/con/list?{sas}")).await, 202);

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
        ("back", &listed),
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
    let blobs_of = |region: &str| below.join("regions").join(region).join("blobs");
    assert_eq!(files(&blobs_of("westus")).len(), 2);
    std::fs::remove_dir_all(blobs_of("westus")).expect("removes what may be read");
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
    for path in files(&blobs_of("eastus")) {
        let mut bytes = std::fs::read(&path).expect("reads");
        let file = std::fs::metadata(&path).expect("a file").ino();
        if !bytes.starts_with(b"TTPAGES") && changed.insert(file) {
            bytes[66] ^= 1;
            std::fs::write(&path, bytes).expect("writes");
        }
    }
    assert_eq!(changed.len(), 6, "whole, two blocks twice, what was appended");
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

    // Found in the middle of an answer: it ends early, and asking for the rest tells why.
    let large = secret(6, 3 << 20);
    lab.put_blob("/con/large", &large).await;
    let path =
        files(&blobs_of("eastus")).into_iter().max_by_key(|path| path.metadata().expect("a file").len());
    let path = path.expect("a file");
    let mut bytes = std::fs::read(&path).expect("reads");
    bytes[2_000_000] ^= 1;
    std::fs::write(&path, bytes).expect("writes");
    let begun = lab.blob("GET", "/con/large", &[], Vec::new()).await;
    assert_eq!((begun.status().as_u16(), begun.content_length()), (200, Some(3 << 20)));
    assert!(begun.bytes().await.is_err(), "it does not end as a whole blob does");
    let rest = lab.blob("GET", "/con/large", &[("x-ms-range", "bytes=1999000-")], Vec::new()).await;
    assert!(error(rest).await.2.contains("blob 'con/large'"));
}
