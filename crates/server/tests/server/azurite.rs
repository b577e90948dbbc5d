//! A storage account that is not ours: Azurite on loopback, which `tools/object-stores` installs, and the SAS that its
//! account's key makes. Also included by unit tests, so it uses nothing of this crate.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Node and Python start in a few seconds, on a busy machine in more.
const START_TIMEOUT: Duration = Duration::from_secs(90);
const ACCOUNT: &str = "devstoreaccount1";
/// Published by Microsoft for every emulator: no secret.
pub(crate) const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
const VERSION: &str = "2021-12-02";

/// One of the servers that `tools/object-stores` installs, on a port of its own; ended with its test.
pub(crate) struct Emulator {
    child: Child,
    pub(crate) address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may have died by itself, and then the test says so.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Emulator {
    /// The program that the tool names in this line.
    pub(crate) async fn start(line: usize, arguments: &'static [&'static str]) -> Emulator {
        tokio::task::spawn_blocking(move || Emulator::spawn(line, arguments)).await.expect("it starts")
    }

    fn spawn(line: usize, arguments: &[&str]) -> Emulator {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/object-stores");
        let output = Command::new(tool).output().expect("tools/object-stores");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let paths = String::from_utf8(output.stdout).expect("text");
        let dir = tempfile::tempdir().expect("a temporary folder");
        let log = dir.path().join("log");
        let file = std::fs::File::create(&log).expect("a log");
        let both = file.try_clone().expect("a log");
        let mut command = Command::new(paths.lines().nth(line).expect("a path"));
        command.args(arguments).current_dir(dir.path()).stdin(Stdio::null()).stdout(file).stderr(both);
        let mut child = command.spawn().expect("it starts");
        let started = Instant::now();
        loop {
            let lines = BufReader::new(std::fs::File::open(&log).expect("a log")).lines();
            let port = lines.map_while(Result::ok).find_map(|line| {
                let (_, port) = line.split_once("http://127.0.0.1:")?;
                port.trim().parse().ok()
            });
            if let Some(port) = port {
                return Emulator { child, address: SocketAddr::from(([127, 0, 0, 1], port)), _dir: dir };
            }
            if child.try_wait().expect("waits").is_some() || started.elapsed() > START_TIMEOUT {
                drop(child.kill());
                panic!("it did not start: {}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// An Azurite of this test with the container `images`.
pub(crate) struct Azurite {
    pub(crate) address: SocketAddr,
    _emulator: Emulator,
}

impl Azurite {
    pub(crate) async fn start() -> Azurite {
        let arguments = &[
            "--disableTelemetry",
            "--inMemoryPersistence",
            "--skipApiVersionCheck",
            "--blobHost",
            "127.0.0.1",
            "--blobPort",
            "0",
        ];
        let emulator = Emulator::start(0, arguments).await;
        let started = Azurite { address: emulator.address, _emulator: emulator };
        let sas = account_sas();
        let made = started.put(&format!("images?restype=container&{sas}"), &[], Vec::new()).await;
        assert_eq!(made.status(), 201, "{}", made.text().await.expect("text"));
        started
    }

    /// The address of something in the account, without a SAS.
    pub(crate) fn url(&self, below: &str) -> String {
        format!("http://{}/{ACCOUNT}/{below}", self.address)
    }

    /// The address of a blob in `images` with a SAS for it alone.
    pub(crate) fn signed(&self, name: &str, permissions: &str) -> String {
        let sas = service_sas(KEY, &format!("/blob/{ACCOUNT}/images/{name}"), "b", permissions);
        format!("{}?{sas}", self.url(&format!("images/{name}")))
    }

    /// Names in the container `images` that begin with a prefix.
    pub(crate) async fn names(&self, prefix: &str) -> Vec<String> {
        let below = format!("images?restype=container&comp=list&prefix={prefix}&{}", account_sas());
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let request = client.get(self.url(&below)).header("x-ms-version", VERSION);
        let text = request.send().await.expect("answers").text().await.expect("text");
        let names = text.split("<Name>").skip(1);
        names.map(|rest| rest.split("</Name>").next().unwrap_or_default().to_owned()).collect()
    }

    /// Puts a block blob into `images`.
    pub(crate) async fn put_blob(&self, name: &str, bytes: &[u8]) {
        let below = format!("images/{name}?{}", account_sas());
        let made = self.put(&below, &[("x-ms-blob-type", "BlockBlob")], bytes.to_vec()).await;
        assert_eq!(made.status(), 201, "{}", made.text().await.expect("text"));
    }

    /// Puts a page blob into `images`, only its pages that hold something.
    pub(crate) async fn put_pages(&self, name: &str, bytes: &[u8]) {
        self.create_pages(name, bytes.len() as u64).await;
        for (index, piece) in bytes.chunks(4 << 20).enumerate() {
            if piece.iter().any(|byte| *byte != 0) {
                self.put_page(name, index as u64 * (4 << 20), piece.to_vec()).await;
            }
        }
    }

    /// Puts a page blob without content into `images`.
    pub(crate) async fn create_pages(&self, name: &str, size: u64) {
        let below = format!("images/{name}?{}", account_sas());
        let size = size.to_string();
        let headers = [("x-ms-blob-type", "PageBlob"), ("x-ms-blob-content-length", size.as_str())];
        let made = self.put(&below, &headers, Vec::new()).await;
        assert_eq!(made.status(), 201, "{}", made.text().await.expect("text"));
    }

    /// Writes at most 4 MiB of pages.
    pub(crate) async fn put_page(&self, name: &str, start: u64, piece: Vec<u8>) {
        let below = format!("images/{name}?comp=page&{}", account_sas());
        let range = format!("bytes={start}-{}", start + piece.len() as u64 - 1);
        let headers = [("x-ms-page-write", "update"), ("x-ms-range", range.as_str())];
        let put = self.put(&below, &headers, piece).await;
        assert_eq!(put.status(), 201, "{}", put.text().await.expect("text"));
    }

    async fn put(&self, below: &str, headers: &[(&str, &str)], body: Vec<u8>) -> reqwest::Response {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let mut request = client.put(self.url(below)).header("x-ms-version", VERSION);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.header("content-length", body.len()).body(body).send().await.expect("answers")
    }
}

fn expiry() -> String {
    (chrono::Utc::now() + chrono::Duration::days(1)).format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn signature(key: &str, text: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(key).expect("base64"));
    let signature = STANDARD.encode(hmac::sign(&key, text.as_bytes()));
    signature.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
}

/// A SAS for everything in Azurite's account.
fn account_sas() -> String {
    let expiry = expiry();
    let text = format!("{ACCOUNT}\nrwdlac\nb\nsco\n\n{expiry}\n\n\n{VERSION}\n\n");
    format!("sv={VERSION}&ss=b&srt=sco&sp=rwdlac&se={expiry}&sig={}", signature(KEY, &text))
}

/// A service SAS for a day from now.
pub(crate) fn service_sas(key: &str, resource: &str, kind: &str, permissions: &str) -> String {
    let expiry = expiry();
    let text = format!("{permissions}\n\n{expiry}\n{resource}\n\n\n\n{VERSION}\n{kind}\n\n\n\n\n\n\n");
    let signature = signature(key, &text);
    format!("sv={VERSION}&sr={kind}&sp={permissions}&se={expiry}&sig={signature}")
}
