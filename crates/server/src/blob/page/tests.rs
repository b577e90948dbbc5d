use std::sync::Arc;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::Response;
use content::{BlockCache, Key, KeyRing, StoreLocation};
use disk::BlockSource;
use futures::TryStreamExt;
use http_body_util::BodyExt;

use super::*;
use crate::blob::{About, BlobQuery};

const KIB: u64 = 1024;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

fn name(keys: Option<u8>) -> PageName {
    let keys = keys.map(|seed| KeyRing::new(Key::from_bytes([seed; 32]), Vec::new()).unwrap().into());
    PageName { name: b"test".to_vec(), keys }
}

async fn put(blob: &PageBlob, action: &str, range: &str, bytes: Vec<u8>) -> Result<Response, BlobError> {
    let length = bytes.len().to_string();
    let headers = headers(&[("x-ms-page-write", action), ("x-ms-range", range), ("content-length", &length)]);
    serve::put_page(blob, &About::page(chrono::Utc::now()), &headers, Body::from(bytes)).await
}

async fn text(response: Response) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn all(blob: &PageBlob, range: Range<u64>) -> Vec<u8> {
    blob.stream(range).try_collect::<Vec<_>>().await.unwrap().concat()
}

#[tokio::test]
async fn pages_are_written_cleared_listed_and_sealed() {
    for key in [None, Some(1)] {
        check_pages(key).await;
    }
}

async fn check_pages(key: Option<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b");
    let file = PageFile::create(&path, &name(key), 1024 * KIB).await.unwrap();
    let blob = PageBlob::File(file.clone());
    let first = put(&blob, "update", "bytes=0-1023", vec![7; 1024]).await.unwrap();
    assert_eq!(first.status(), 201);
    let second = put(&blob, "update", "bytes=524288-528383", vec![8; 4096]).await.unwrap();
    assert_ne!(first.headers()["etag"], second.headers()["etag"], "each write is another version");
    put(&blob, "update", "bytes=65536-131071", vec![9; 65536]).await.unwrap();
    put(&blob, "clear", "bytes=65536-131071", Vec::new()).await.unwrap();

    let (ranges, next) = blob.data(0..blob.size(), 10).await.unwrap();
    assert_eq!((ranges.first().cloned(), next), (Some(0..4096), None));
    assert!(ranges.iter().all(|range| range.end <= 4096 || range.start >= 512 * KIB), "{ranges:?}");
    let (one, next) = blob.data(0..blob.size(), 1).await.unwrap();
    assert_eq!((one.len(), one[0].clone(), next), (1, 0..4096, Some(512 * KIB)));
    let query = BlobQuery::parse("comp=pagelist&maxresults=1").unwrap();
    let about = About::page(chrono::Utc::now());
    let listed = text(serve::page_ranges(&blob, &about, &headers(&[]), &query).await.unwrap()).await;
    assert!(
        listed.contains("<PageRange><Start>0</Start><End>4095</End></PageRange><NextMarker>524288<"),
        "{listed}"
    );

    let bytes = all(&blob, 0..1024 * KIB).await;
    assert_eq!(bytes.len(), 1024 * 1024);
    assert!(bytes[..1024].iter().all(|byte| *byte == 7));
    assert!(bytes[524_288..528_384].iter().all(|byte| *byte == 8));
    assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 1024 + 4096);

    for (action, range, length, code) in [
        ("update", "bytes=0-511", 1024, "InvalidHeaderValue"),
        ("update", "bytes=1-512", 512, "InvalidPageRange"),
        ("update", "bytes=1048576-1049087", 512, "InvalidPageRange"),
        ("clear", "bytes=0-511", 512, "InvalidHeaderValue"),
        ("delete", "bytes=0-511", 512, "InvalidHeaderValue"),
    ] {
        assert_eq!(
            put(&blob, action, range, vec![1; length]).await.unwrap_err().code,
            code,
            "{action} {range}"
        );
    }
    file.seal().await.unwrap();
    let late = put(&blob, "update", "bytes=0-511", vec![1; 512]).await.unwrap_err();
    assert_eq!((late.status.as_u16(), late.code), (409, "BlobImmutableDueToPolicy"));
    assert_eq!(all(&blob, 0..512).await, [7; 512]);
    assert_eq!(all(&blob, 1000..1030).await, [[7; 24].as_slice(), &[0; 6]].concat());

    // As a disk, and as another process finds it.
    let again = PageFile::open(&path, &name(key)).await.unwrap();
    let extents: Vec<_> = again.extents().map(|extent| extent.unwrap()).collect();
    assert!(extents.iter().all(|extent| extent.end() <= 4096 || extent.start >= 512 * KIB), "{extents:?}");
    let mut part = [1; 2048];
    again.read_onto(524_288 - 1024, &mut part).unwrap();
    assert_eq!(part, [[0; 1024], [8; 1024]].concat()[..]);
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.windows(100).any(|window| window == [8; 100]), key.is_none(), "what the disk shows");
    let other = PageName { name: b"other".to_vec(), ..name(key) };
    for wrong in [name(Some(2)), name(if key.is_some() { None } else { Some(1) }), other] {
        assert!(PageFile::open(&path, &wrong).await.is_err());
    }
    // Of the form without a header.
    std::fs::write(&path, [7; 8192]).unwrap();
    let error = PageFile::open(&path, &name(key)).await.unwrap_err().to_string();
    assert!(error.contains("not in the form"), "{error}");
}

/// No number of MiB, and no number of pages; published as 21 MiB.
const ODD: usize = (20 << 20) + 70_001;
const PUBLISHED: u64 = 21 << 20;

#[tokio::test]
async fn an_image_is_a_vhd_that_azure_takes() {
    let folder = tempfile::tempdir().unwrap();
    let location: StoreLocation = folder.path().join("store").to_str().unwrap().parse().unwrap();
    let store = content::Store::open_or_create(&location, "test").await.unwrap();
    let image = async |disk: &[u8]| {
        let raw = folder.path().join("raw");
        std::fs::write(&raw, disk).unwrap();
        let put_report = store.put_raw(&raw, "o", |_| {}).await.unwrap();
        let cache = BlockCache::open(&folder.path().join("cache"), 1 << 24).unwrap();
        let image = store.open_image(&put_report.manifest, Arc::new(cache)).await.unwrap();
        PageBlob::Image(PageImage::new(image, [0xfe; 16]).unwrap())
    };
    let mut disk = vec![0; ODD];
    disk[200_000..200_100].fill(5);
    disk[ODD - 1] = 6;
    let blob = image(&disk).await;

    assert_eq!(blob.size(), PUBLISHED + 512);
    disk.resize(PUBLISHED as usize, 0);
    disk.extend(disk::vhd::fixed_footer(PUBLISHED, [0xfe; 16]));
    assert!(all(&blob, 0..blob.size()).await == disk, "the bytes of the disk, zeros, then the footer");
    let vhd = folder.path().join("d.vhd");
    std::fs::write(&vhd, &disk).unwrap();
    assert_eq!(
        crate::vhd::open_fixed(Arc::new(disk::RawFile::open(&vhd).unwrap()), "d").unwrap().logical_size(),
        PUBLISHED,
        "as uploads are checked"
    );
    for at in [ODD as u64, PUBLISHED, PUBLISHED - 10_000] {
        let range = at as usize - 3..at as usize + 3;
        assert_eq!(all(&blob, at - 3..at + 3).await, disk[range], "{at}");
    }
    let (ranges, _) = blob.data(0..blob.size(), 10).await.unwrap();
    let end = (ODD as u64).next_multiple_of(512);
    assert_eq!(ranges, [196_608..262_144, (20 << 20) + 65_536..end, PUBLISHED..PUBLISHED + 512]);
    assert_eq!(put(&blob, "clear", "bytes=0-511", Vec::new()).await.unwrap_err().status.as_u16(), 409);

    let about = About::page(chrono::Utc::now());
    let part = serve::get(&blob, &about, &headers(&[("range", "bytes=200000-200001")]), true).await.unwrap();
    assert_eq!(part.status(), 206);
    assert_eq!(part.headers()["content-range"], format!("bytes 200000-200001/{}", PUBLISHED + 512));
    assert_eq!(part.headers()["x-ms-blob-type"], "PageBlob");
    assert_eq!(part.headers()["x-ms-blob-sequence-number"], "0");
    assert_eq!(text(part).await.as_bytes(), [5, 5]);
    let head = serve::get(&blob, &about, &headers(&[]), false).await.unwrap();
    assert_eq!(head.headers()["content-length"], (PUBLISHED + 512).to_string());
    assert_eq!(image(&[1; 700]).await.size(), (20 << 20) + 512, "Azure's smallest");
}
