//! Real object stores on loopback: Azurite for Azure Blob, moto for S3. `tools/object-stores` installs them on first use.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use content::{Credentials, Store, StoreLocation, StoreOptions};

use crate::support::Place;

/// Node and Python start in a few seconds, on a busy machine in more.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// Published by Microsoft for every emulator: no secret.
const AZURITE_ACCOUNT: &str = "devstoreaccount1";
const AZURITE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A server of this test, ended with it.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    /// What it keeps on disk, if anything.
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have died by itself, and then the test says so.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// An S3 of its own, with one bucket.
pub(crate) fn moto() -> Server {
    let [_, program] = programs();
    let mut command = Command::new(program);
    command.args(["-H", "127.0.0.1", "-p", "0"]);
    let server = start(command);
    let answer = exchange(server.address, "PUT /bucket", &[]);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server
}

/// The same behind Google's protocol: `gcs.py` says what it takes the place of.
pub(crate) fn google() -> Server {
    let mut command = Command::new(python());
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/gcs.py"));
    let server = start(command);
    let answer = exchange(server.address, "PUT /bucket", &[]);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server
}

/// An Azure Blob Storage of its own, with one container.
pub(crate) fn azurite() -> Server {
    let [program, _] = programs();
    let mut command = Command::new(program);
    command.args([
        "--disableTelemetry",
        "--inMemoryPersistence",
        "--blobHost",
        "127.0.0.1",
        "--blobPort",
        "0",
    ]);
    let server = start(command);
    let date = chrono::Utc::now().format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let version = "2021-08-06";
    let to_sign = format!(
        "PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:{version}\n\
         /{AZURITE_ACCOUNT}/{AZURITE_ACCOUNT}/images\nrestype:container"
    );
    let key = BASE64.decode(AZURITE_KEY).expect("base64");
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), to_sign.as_bytes());
    let authorization = format!("SharedKey {AZURITE_ACCOUNT}:{}", BASE64.encode(signature));
    let headers =
        [("x-ms-date", date.as_str()), ("x-ms-version", version), ("Authorization", &authorization)];
    let request = format!("PUT /{AZURITE_ACCOUNT}/images?restype=container");
    let answer = exchange(server.address, &request, &headers);
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    server
}

/// A store in the server's bucket, whichever it is.
pub(crate) fn s3(address: SocketAddr, prefix: &str) -> StoreLocation {
    format!("s3://bucket/{prefix}?endpoint=http://{address}&region=us-east-1").parse().expect("location")
}

pub(crate) fn azure(address: SocketAddr, prefix: &str) -> StoreLocation {
    format!("az://{AZURITE_ACCOUNT}/images/{prefix}?endpoint=http://{address}").parse().expect("location")
}

/// A bucket by Google's protocol: of [`google`], or of [`moto`], for whose reading it is S3's in another dress.
pub(crate) fn gcs(address: SocketAddr, prefix: &str) -> StoreLocation {
    format!("gs://bucket/{prefix}?endpoint=http://{address}").parse().expect("location")
}

/// Options with the credentials for all, and a mirror folder of this name.
pub(crate) fn options(place: &Place, mirror: &str) -> StoreOptions {
    let variables = [
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AZURE_STORAGE_ACCOUNT_KEY", AZURITE_KEY),
        ("GOOGLE_BEARER_TOKEN", "test"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    StoreOptions {
        index_dir: Some(place.path(mirror)),
        credentials: Some(Credentials::from_variables(variables)),
        ..StoreOptions::default()
    }
}

pub(crate) async fn open(location: &StoreLocation, options: &StoreOptions) -> Store {
    Store::open_or_create_with(location, "test", options).await.expect("store")
}

/// A Python with moto's packages, among them `cryptography`.
pub(crate) fn python() -> PathBuf {
    Path::new(&programs()[1]).with_file_name("python")
}

/// Paths of Azurite and moto.
fn programs() -> &'static [String; 2] {
    static PROGRAMS: OnceLock<[String; 2]> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/object-stores");
        let output = Command::new(tool).output().expect("tools/object-stores");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let paths = String::from_utf8(output.stdout).expect("text");
        let paths: Vec<_> = paths.lines().map(str::to_owned).collect();
        paths.try_into().expect("two paths")
    })
}

/// Starts a server that says which port it took.
fn start(mut command: Command) -> Server {
    let dir = tempfile::tempdir().expect("temporary folder");
    let log = dir.path().join("log");
    let file = std::fs::File::create(&log).expect("log");
    let both = file.try_clone().expect("log");
    command.current_dir(dir.path()).stdin(Stdio::null()).stdout(file).stderr(both);
    let mut child = command.spawn().expect("the server starts");
    let started = Instant::now();
    loop {
        let lines = BufReader::new(std::fs::File::open(&log).expect("log")).lines();
        let port = lines.map_while(Result::ok).find_map(|line| {
            let (_, port) = line.split_once("http://127.0.0.1:")?;
            port.trim().parse().ok()
        });
        if let Some(port) = port {
            return Server { child, address: SocketAddr::from(([127, 0, 0, 1], port)), _dir: dir };
        }
        let gone = child.try_wait().expect("wait").is_some();
        if gone || started.elapsed() > START_TIMEOUT {
            drop(child.kill());
            panic!("the server did not start: {}", std::fs::read_to_string(&log).unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Sends a request without a body.
fn exchange(address: SocketAddr, request: &str, headers: &[(&str, &str)]) -> String {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
    let mut text =
        format!("{request} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).expect("send");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answer");
    String::from_utf8_lossy(&answer).into_owned()
}
