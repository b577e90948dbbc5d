//! Platform images: the catalogue's routes, and images that are made by download.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{Bed, SUBSCRIPTION, VERSION, config, header};

/// Files by path; anything under `/to/` is a redirect to what follows.
pub(crate) async fn serve(files: Vec<(&'static str, Vec<u8>)>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            let (head, body) = match (path.strip_prefix("/to/"), files.iter().find(|(name, _)| *name == path))
            {
                (Some(target), _) => (format!("302 Found\r\nlocation: {target}"), &Vec::new()),
                (None, Some((_, body))) => ("200 OK".to_owned(), body),
                (None, None) => ("404 Not Found".to_owned(), &Vec::new()),
            };
            let head =
                format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _gone: Result<(), _> = stream.write_all(head.as_bytes()).await;
            let _gone: Result<(), _> = stream.write_all(body).await;
        }
    });
    address
}

pub(crate) fn entry(sku: &str, url: &str, sha256: &str, format: &str) -> String {
    format!(
        "[[image]]\npublisher = \"Test\"\noffer = \"disks\"\nsku = \"{sku}\"\nversion = \"1.0\"\nhyper_v_generation = \"V2\"\n\
         [image.recipe.download]\nurl = \"{url}\"\nsha256 = \"{sha256}\"\nformat = \"{format}\"\n"
    )
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A disk of 1 MiB with something in it.
pub(crate) fn disk() -> Vec<u8> {
    (0..1_u32 << 18).flat_map(|word| (word / 5000).to_le_bytes()).collect()
}

fn qcow2(folder: &Path, arguments: &[&str]) -> Vec<u8> {
    let path = folder.join("made.qcow2");
    let made = Command::new("qemu-img").args(arguments).arg(&path).output().expect("qemu-img");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::read(path).expect("the file")
}

/// Polls an operation to its end.
pub(crate) async fn ended(bed: &Bed, operation: &str) -> Value {
    for _ in 0..1200 {
        let (status, body) = bed.json("GET", operation, None).await;
        assert_eq!(status, 200, "{body}");
        if body["status"] != "InProgress" {
            return body;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{operation} does not end");
}

/// POSTs a `make` and polls to the end.
async fn make(bed: &Bed, sku: &str, location: &str) -> Value {
    let path = format!("/tintype/platformImages/test/DISKS/{sku}/make?{VERSION}&location={location}");
    let response = bed.call("POST", &path, None).await;
    assert_eq!(response.status(), 202);
    ended(bed, &header(&response, "azure-asyncoperation")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalogue_is_listed_as_compute_lists_it() {
    let bed = Bed::start().await;
    let base = format!("{SUBSCRIPTION}/providers/Microsoft.Compute/locations/East%20US/publishers");
    let get = async |path: &str| bed.json("GET", &format!("{base}{path}?{VERSION}"), None).await;
    let (status, publishers) = get("").await;
    assert_eq!((status, &publishers[0]["name"]), (200, &json!("Debian")));
    let (_, offers) = get("/debian/artifacttypes/vmimage/offers").await;
    assert_eq!(offers.as_array().map(Vec::len), Some(1), "{offers}");
    assert_eq!(offers[0]["name"], "debian-12");
    let (_, skus) = get("/Debian/artifacttypes/VMImage/offers/Debian-12/skus").await;
    let names: Vec<_> = skus.as_array().expect("a list").iter().map(|sku| sku["name"].as_str()).collect();
    assert_eq!(names, [Some("12"), Some("12-gen2")]);
    let versions = "/Debian/artifacttypes/vmimage/offers/debian-12/skus/12-gen2/versions";
    let (_, listed) = get(versions).await;
    let version = listed[0]["name"].as_str().expect("a name");
    assert!(version.starts_with("12.0.20"), "{version}");
    let (status, shown) = get(&format!("{versions}/{version}")).await;
    assert_eq!(status, 200);
    assert_eq!(shown["properties"]["hyperVGeneration"], "V2");
    assert_eq!(shown["properties"]["osDiskImage"]["operatingSystem"], "Linux");
    for missing in ["/nobody/artifacttypes/vmimage/offers", &format!("{versions}/1.2.3")] {
        let (status, body) = get(missing).await;
        assert_eq!((status, body["error"]["code"].as_str()), (404, Some("NotFound")), "{missing}: {body}");
    }
    let elsewhere =
        format!("{SUBSCRIPTION}/providers/Microsoft.Compute/locations/atlantis/publishers?{VERSION}");
    assert_eq!(bed.json("GET", &elsewhere, None).await.0, 400);
    let sizes = format!("{SUBSCRIPTION}/providers/Microsoft.Compute/locations/eastus/vmSizes?{VERSION}");
    let (_, sizes) = bed.json("GET", &sizes, None).await;
    assert!(sizes["value"].as_array().expect("a list").iter().any(|size| size["name"] == "Standard_B1s"));
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_downloaded_once_and_brought_to_other_regions() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = disk();
    let sparse = qcow2(folder.path(), &["create", "-q", "-f", "qcow2", "-o", "size=8M"]);
    let backed = {
        let victim = folder.path().join("victim.raw");
        std::fs::write(&victim, vec![7; 1 << 20]).expect("writes");
        let options = format!("size=1M,backing_file={},backing_fmt=raw", victim.display());
        qcow2(folder.path(), &["create", "-q", "-f", "qcow2", "-o", &options])
    };
    let address =
        serve(vec![("/disk", disk.clone()), ("/sparse", sparse.clone()), ("/backed", backed.clone())]).await;
    let (http, sum) = (format!("http://{address}"), sha256(&disk));
    let catalog = folder.path().join("catalog");
    std::fs::create_dir(&catalog).expect("makes");
    let entries = [
        entry("raw", &format!("{http}/disk"), &sum, "raw"),
        entry("hops", &format!("{http}/to/{http}/disk"), &sum.to_uppercase(), "raw"),
        entry("wrong", &format!("{http}/disk"), &"0".repeat(64), "raw"),
        entry("gone", &format!("{http}/nothing"), &sum, "raw"),
        entry("qcow2", &format!("{http}/sparse"), &sha256(&sparse), "qcow2"),
        entry("backed", &format!("{http}/backed"), &sha256(&backed), "qcow2"),
        entry("liar", &format!("{http}/disk"), &sum, "qcow2"),
        entry("private", "http://127.0.0.2:9/disk", &sum, "raw"),
        entry("escape", &format!("{http}/to/http://127.0.0.2:9/disk"), &sum, "raw"),
    ];
    std::fs::write(catalog.join("test.toml"), entries.concat()).expect("writes");
    let mut config = config(folder.path());
    config.catalog = vec![catalog];
    config.network.allow = vec![address.to_string()];
    let mut west = config.regions[0].clone();
    west.name = model::Region::parse("westus").expect("a region");
    west.zones = vec![content::StoreLocation::Folder(folder.path().join("regions/westus"))];
    config.regions.push(west.clone());
    let bed = Bed::start_with(config, folder).await;

    let made = make(&bed, "raw", "eastus").await;
    assert_eq!(made["status"], "Succeeded", "{made}");
    let result = &made["properties"]["output"];
    assert_eq!(result["logicalBytes"], disk.len(), "{made}");
    let again = make(&bed, "raw", "East US").await;
    assert_eq!(&again["properties"]["output"], result, "it is made once");
    let manifest = result["manifest"].as_str().expect("an id").parse().expect("an id");
    let store = bed.server.state.fabric.store(&west.name).await.expect("a store");
    assert!(!store.has_manifest(&manifest).await.expect("answers"));
    let brought = make(&bed, "raw", "westus").await;
    assert_eq!(&brought["properties"]["output"], result, "the same image, not another one");
    assert!(store.has_manifest(&manifest).await.expect("answers"));
    let run = result["runId"].as_str().expect("a run").to_owned();
    assert_eq!(store.refs(&manifest).await.expect("answers"), std::slice::from_ref(&run));
    let database = &bed.server.state.store;
    let chunks = database.read(|tx| Box::pin(async { tx.read_log(&run, 0).await })).await.expect("a log");
    let log: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.bytes).collect();
    let log = String::from_utf8(log).expect("text");
    assert!(
        log.contains("SHA-256 as the catalogue says") && log.contains("copying from region 'eastus'"),
        "{log}"
    );

    assert_eq!(make(&bed, "hops", "eastus").await["status"], "Succeeded");
    let converted = make(&bed, "qcow2", "eastus").await;
    assert_eq!(converted["properties"]["output"]["logicalBytes"], 8 << 20, "{converted}");
    for (sku, expected) in [
        ("wrong", format!("its SHA-256 is {sum}, not {}", "0".repeat(64))),
        ("gone", "the server answered 404 Not Found".to_owned()),
        ("backed", "it refers to another file".to_owned()),
        ("liar", "it is no qcow2 file".to_owned()),
        ("private", "127.0.0.2:9 is denied: it is a loopback address".to_owned()),
        ("escape", "127.0.0.2:9 is denied".to_owned()),
    ] {
        let failed = make(&bed, sku, "eastus").await;
        assert_eq!(
            (&failed["status"], &failed["error"]["code"]),
            (&json!("Failed"), &json!("PlatformImageFailed"))
        );
        let message = failed["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(&expected), "{sku}: {message}");
    }
    let left = std::fs::read_dir(bed.folder.path().join("scratch")).expect("the folder").count();
    assert_eq!(left, 0, "scratch files are removed");
    let (status, body) =
        bed.json("POST", &format!("/tintype/platformImages/a/b/c/make?{VERSION}"), None).await;
    assert_eq!((status, body["error"]["code"].as_str()), (404, Some("PlatformImageNotFound")));
    bed.stop().await;
}
