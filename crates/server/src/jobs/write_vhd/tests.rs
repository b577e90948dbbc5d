//! VHDs in accounts of this service, in Azurite, and on a server that fails now and then, compared with qemu-img and read
//! back by Azure's own client.

#[path = "../../../tests/server/azurite.rs"]
#[expect(dead_code, reason = "shared with tests that read from it")]
mod azurite;
#[path = "../../../tests/server/python.rs"]
mod python;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::put;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::ResourceGroupName;
use model::resource_group::{ResourceGroup, ResourceGroupSpec};
use model::storage_account::{StorageAccountName, StorageAccountSpec, StorageKind, StorageSku};
use reqwest::Url;
use sha2::{Digest, Sha256};
use store::{Document, ProvisioningState};

use self::azurite::{Azurite, service_sas};
use super::*;
use crate::api::storage_accounts;
use crate::blob::own_pages::ensure_container;
use crate::{Config, Server};

/// No number of MiB, and no number of pages.
const DISK: usize = (33 << 20) + 300_100;
/// The same as Azure takes it.
const PUBLISHED: u64 = 34 << 20;
const ACCOUNT: &str = "acct1";

struct Bed {
    server: Server,
    folder: tempfile::TempDir,
    raw: PathBuf,
    manifest: ManifestId,
    region: Region,
}

impl Bed {
    /// A server that may write to `allowed`, with a mostly empty disk in its store.
    async fn start(allowed: Vec<String>) -> Bed {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::new(folder.path());
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.network.allow = allowed;
        let region = config.regions[0].name.clone();
        let server = Server::start(config).await.unwrap();
        let mut disk = vec![0; DISK];
        for (index, byte) in disk[5_000_000..12_000_000].iter_mut().enumerate() {
            *byte = (index * 7 % 251) as u8;
        }
        disk[0] = 1;
        disk[DISK - 1] = 2;
        let raw = folder.path().join("disk.raw");
        std::fs::write(&raw, &disk).unwrap();
        let store = server.state.fabric.store(&region).await.unwrap();
        let manifest = store.put_raw(&raw, "test", |_| {}).await.unwrap().manifest;
        Bed { server, folder, raw, manifest, region }
    }

    async fn write(&self, target: &VhdTarget) -> Result<Written, String> {
        let mut last = 0;
        let written = write_vhd(&self.server.state, &self.region, self.manifest, target, |done, of| {
            assert!(done >= last && of == PUBLISHED, "{done} of {of} after {last}");
            last = done;
        });
        written.await
    }

    /// What the unmodified Python client downloads.
    async fn download(&self, url: &str, name: &str) -> PathBuf {
        let python = tokio::task::spawn_blocking(|| python::environment("azure-storage-blob", "12.31.1"));
        let program = python.await.unwrap().join("python");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server/disks/page_blob.py");
        let file = self.folder.path().join(name);
        let mut command = python::command(&program, &self.server.ca_pem);
        let output = command.arg(script).args(["download", url]).arg(&file).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
        // It prints the ranges of the pages, or what was wrong: data alone was written.
        assert!(said.starts_with("0-"), "{said}");
        file
    }

    /// The file is the disk, of the published size.
    fn compare(&self, vhd: &Path) {
        assert_eq!(std::fs::metadata(vhd).unwrap().len(), PUBLISHED + 512);
        let info = qemu_img(&["info", "--output=json", "-f", "vpc"], &[vhd]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["virtual-size"], PUBLISHED, "{info}");
        // Without -s a longer file is the same if the rest is zeros.
        let said = qemu_img(&["compare", "-f", "raw", "-F", "vpc"], &[&self.raw, vhd]);
        assert!(said.contains("Images are identical"), "{said}");
    }
}

fn qemu_img(arguments: &[&str], files: &[&Path]) -> String {
    let output = Command::new("qemu-img").args(arguments).args(files).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said} {}", String::from_utf8_lossy(&output.stderr));
    said
}

fn sum(path: &Path) -> [u8; 32] {
    Sha256::digest(std::fs::read(path).unwrap()).into()
}

fn remote(uri: &str) -> VhdTarget {
    VhdTarget::Remote(Url::parse(uri).unwrap())
}

/// Sparse: the data and what shares its blocks of 64 KiB.
fn assert_sparse(written: Written) {
    assert_eq!(written.bytes, PUBLISHED + 512);
    assert!((7_000_000..8_000_000).contains(&written.sent_bytes), "{written:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vhd_in_an_own_account_is_read_back_by_azures_client() {
    let bed = Bed::start(Vec::new()).await;
    let state = &bed.server.state;
    let blob =
        OwnBlob { account: ACCOUNT.to_owned(), container: "vhds".to_owned(), name: "dir/out.vhd".to_owned() };
    let target = VhdTarget::Own(blob.clone());
    let error = bed.write(&target).await.unwrap_err();
    assert!(error.contains("Create the storage account 'acct1' first"), "{error}");

    let name = StorageAccountName::parse(ACCOUNT).unwrap();
    let keys = storage_accounts::new_keys(state, &name).unwrap();
    let spec = StorageAccountSpec {
        location: bed.region.clone(),
        tags: model::Tags::default(),
        sku: StorageSku::StandardLrs,
        kind: StorageKind::StorageV2,
        https_only: true,
        shared_key_access: true,
    };
    let group = "/subscriptions/s/resourceGroups/rg";
    let account = state.store.write(|tx| {
        Box::pin(async {
            let new = ResourceGroupSpec {
                location: bed.region.clone(),
                tags: model::Tags::default(),
                managed_by: None,
            };
            let new = ResourceGroup::create(ResourceGroupName::parse("rg").unwrap(), new);
            let location = bed.region.as_str();
            tx.insert(&mut Document::new(group, location, ProvisioningState::Succeeded, new)?).await?;
            storage_accounts::ensure(tx, group, &name, spec.clone(), keys.clone()).await
        })
    });
    let key: String = account.await.unwrap();
    let error = bed.write(&target).await.unwrap_err();
    assert!(error.contains("(ContainerNotFound) Create the container 'vhds'"), "{error}");
    let container = state.store.write(|tx| Box::pin(async { ensure_container(tx, &key, "vhds").await }));
    container.await.unwrap();

    let written = bed.write(&target).await.unwrap();
    assert_sparse(written);
    let (account, _) = blob.find(state).await.unwrap();
    let key = STANDARD.encode(&storage_accounts::open_keys(state, &account.data).unwrap()[0]);
    let sas = service_sas(&key, "/blob/acct1/vhds/dir/out.vhd", "b", "r");
    let url = format!("{}/acct1/vhds/dir/out.vhd?{sas}", bed.server.url);
    let first = bed.download(&url, "first.vhd").await;
    bed.compare(&first);
    // Again: the same blob, byte for byte.
    assert_eq!(bed.write(&target).await.unwrap(), written);
    let second = bed.download(&url, "second.vhd").await;
    assert_eq!(sum(&first), sum(&second));
    bed.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vhd_goes_to_azurite_and_comes_back() {
    let azurite = Azurite::start().await;
    let bed = Bed::start(vec![azurite.address.to_string()]).await;
    let target = remote(&azurite.signed("out.vhd", "cw"));
    assert_sparse(bed.write(&target).await.unwrap());
    let url = azurite.signed("out.vhd", "r");
    let first = bed.download(&url, "first.vhd").await;
    bed.compare(&first);
    assert_sparse(bed.write(&target).await.unwrap());
    let second = bed.download(&url, "second.vhd").await;
    assert_eq!(sum(&first), sum(&second), "writing twice gives the same blob");

    for (uri, expected) in [
        (
            azurite.signed("read.vhd", "r"),
            "403 Forbidden (AuthorizationPermissionMismatch); check that its SAS",
        ),
        (target_url(&target).replace("sig=", "sig=AAAA"), "403 Forbidden (AuthorizationFailure)"),
        (azurite.signed("out.vhd", "cw").replace("/images/", "/none/"), "(AuthorizationFailure)"),
    ] {
        let error = bed.write(&remote(&uri)).await.unwrap_err();
        assert!(error.contains(expected) && !error.contains("sig"), "{uri}: {error}");
    }
    let closed = Bed::start(Vec::new()).await;
    let error = closed.write(&target).await.unwrap_err();
    assert!(error.contains("loopback") && !error.contains("sig"), "{error}");
    closed.server.shutdown().await;
    bed.server.shutdown().await;
}

fn target_url(target: &VhdTarget) -> String {
    match target {
        VhdTarget::Remote(url) => url.to_string(),
        VhdTarget::Own(_) => panic!("an own blob"),
    }
}

/// What a server has been sent.
#[derive(Default)]
struct Sent {
    requests: u32,
    size: u64,
    pages: BTreeMap<u64, Vec<u8>>,
    last: u64,
}

/// A storage account that is busy at every third request.
async fn flaky(
    State(sent): State<Arc<Mutex<Sent>>>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse + use<> {
    let mut sent = sent.lock().unwrap();
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    sent.requests += 1;
    assert_eq!(query["sig"], "s+/=");
    if query.contains_key("forbidden") {
        return (StatusCode::FORBIDDEN, [("x-ms-error-code", "AuthorizationFailure")]).into_response();
    }
    if sent.requests % 3 == 1 {
        return (StatusCode::SERVICE_UNAVAILABLE, [("x-ms-error-code", "ServerBusy")]).into_response();
    }
    if query.get("comp").is_some_and(|comp| comp == "page") {
        let range = text("x-ms-range").unwrap();
        let start: u64 = range["bytes=".len()..].split('-').next().unwrap().parse().unwrap();
        assert!(
            start.is_multiple_of(512) && body.len().is_multiple_of(512) && body.len() <= 4 << 20,
            "{range}"
        );
        sent.last = start;
        sent.pages.insert(start, body.to_vec());
    } else {
        assert_eq!(text("x-ms-blob-type").as_deref(), Some("PageBlob"));
        sent.size = text("x-ms-blob-content-length").unwrap().parse().unwrap();
    }
    StatusCode::CREATED.into_response()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_server_is_asked_again_and_the_footer_comes_last() {
    let sent = Arc::new(Mutex::new(Sent::default()));
    let app = Router::new().route("/a/c/{blob}", put(flaky)).with_state(Arc::clone(&sent));
    let app = app.layer(axum::extract::DefaultBodyLimit::max(5 << 20));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let bed = Bed::start(vec![address.to_string()]).await;
    let uri = format!("http://{address}/a/c/b.vhd?sig=s%2B%2F%3D");
    let written = bed.write(&remote(&uri)).await.unwrap();
    assert_sparse(written);
    {
        let sent = sent.lock().unwrap();
        assert_eq!((sent.size, sent.last), (PUBLISHED + 512, PUBLISHED), "the footer comes last");
        let mut whole = vec![0; sent.size as usize];
        for (start, bytes) in &sent.pages {
            whole[*start as usize..*start as usize + bytes.len()].copy_from_slice(bytes);
        }
        let file = bed.folder.path().join("whole.vhd");
        std::fs::write(&file, whole).unwrap();
        bed.compare(&file);
    }
    let before = sent.lock().unwrap().requests;
    let error = bed.write(&remote(&format!("{uri}&forbidden=1"))).await.unwrap_err();
    assert!(error.contains("(AuthorizationFailure)") && error.contains("/a/c/b.vhd'"), "{error}");
    assert!(!error.contains("sig"), "{error}");
    assert_eq!(sent.lock().unwrap().requests, before + 1, "a refusal is not asked again");
    bed.server.shutdown().await;
}
