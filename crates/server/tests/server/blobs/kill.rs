//! Servers that are killed in the middle of uploads: nothing that was answered is lost, nothing that was not whole is seen,
//! and the files that are left over go.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reqwest::{Client, RequestBuilder, StatusCode};
use server::Server;

use super::Lab;

/// Servers that are started and killed.
const KILLS: u64 = 36;
/// The longest that one works before it is killed, in milliseconds.
const WORK_MS: u64 = 240;
/// Tells a process of this test that it is to be a server, and where.
const CHILD: &str = "TINTYPE_BLOB_KILL_TEST_CHILD";
const PAGE: usize = 512;
const PAGES: usize = 64;

/// Not a test of its own: what the killed processes run. Returns at once where nobody asked for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(task) = std::env::var(CHILD) else { return };
    // The same address each time: tokens name it.
    let (address, folder) = task.split_once(' ').expect("an address and a folder");
    let mut config = Lab::config(Path::new(folder), with_key);
    config.listen = address.parse().expect("an address");
    let server = Server::start(config).await.expect("starts");
    println!("\nserving {}", server.url);
    // Until it is killed, or its parent has gone.
    let wait = || std::io::stdin().read_to_end(&mut Vec::new());
    tokio::task::spawn_blocking(wait).await.expect("waits").expect("reads");
}

fn with_key(config: &mut server::Config) {
    let path = config.data_dir.join("store-key");
    if !path.exists() {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = std::fs::File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(&path).expect("makes the key");
        std::io::Write::write_all(&mut &file, "5a".repeat(32).as_bytes()).expect("writes");
    }
    config.regions[0].key_file = Some(path);
}

struct Process {
    child: Child,
    url: String,
}

impl Process {
    fn start(address: &str, folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "blobs::kill::child", "--nocapture", "--test-threads=1"])
            .env(CHILD, format!("{address} {}", folder.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut output = BufReader::new(child.stdout.take().expect("output"));
        let mut line = String::new();
        let url = loop {
            line.clear();
            assert!(output.read_line(&mut line).expect("reads") > 0, "the server failed");
            if let Some(url) = line.strip_prefix("serving ") {
                break format!("{}/acct1", url.trim());
            }
        };
        Self { child, url }
    }

    fn kill(mut self) {
        self.child.kill().expect("kills");
        self.child.wait().expect("waits");
    }
}

/// What a blob holds, if it is there.
type Content = Option<Vec<u8>>;

/// What clients were told, and what they may find.
#[derive(Default)]
struct Promises {
    /// By name: what was answered, and what was sent and not answered.
    blobs: BTreeMap<String, (Content, Content)>,
    /// The first byte of each page, in the same way.
    pages: Vec<(u8, Option<u8>)>,
    answered: u64,
}

struct Work<'a> {
    client: &'a Client,
    token: &'a str,
    random: u64,
}

impl Work<'_> {
    fn next(&mut self, below: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let (len, seed) = (self.next(most) + 1, self.next(251));
        (0..len).map(|at| (at * 7 + at / 251 + seed) as u8).collect()
    }

    fn request(&self, method: &str, url: &str) -> RequestBuilder {
        let method = method.parse().expect("a method");
        self.client.request(method, url).bearer_auth(self.token).header("x-ms-version", "2024-05-04")
    }

    async fn put(&self, url: &str, headers: &[(&str, String)], body: Vec<u8>) -> Option<StatusCode> {
        let mut request = self.request("PUT", url).header("content-length", body.len());
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        Some(request.body(body).send().await.ok()?.status())
    }

    /// Works until the server is gone.
    async fn run(&mut self, url: &str, promises: &mut Promises) -> Option<()> {
        loop {
            match self.next(4) {
                0 => {
                    let (name, body) = (format!("put{}", self.next(3)), self.bytes(400_000));
                    let entry = promises.blobs.entry(name.clone()).or_default();
                    entry.1 = Some(body.clone());
                    let kind = [("x-ms-blob-type", "BlockBlob".to_owned())];
                    assert_eq!(self.put(&format!("{url}/con/{name}"), &kind, body).await?, 201);
                    *entry = (entry.1.take(), None);
                }
                1 => {
                    let name = format!("list{}", self.next(2));
                    let (mut whole, mut list) = (Vec::new(), String::new());
                    for id in ["YQ==", "Yg==", "Yw=="] {
                        let block = self.bytes(100_000);
                        let place = format!("{url}/con/{name}?comp=block&blockid={id}");
                        assert_eq!(self.put(&place, &[], block.clone()).await?, 201);
                        whole.extend(block);
                        list += &format!("<Uncommitted>{id}</Uncommitted>");
                    }
                    let entry = promises.blobs.entry(name.clone()).or_default();
                    entry.1 = Some(whole);
                    let list = format!("<BlockList>{list}</BlockList>").into_bytes();
                    let place = format!("{url}/con/{name}?comp=blocklist");
                    assert_eq!(self.put(&place, &[], list).await?, 201);
                    *entry = (entry.1.take(), None);
                }
                2 => {
                    let (first, count) = (self.next(PAGES as u64 - 8) as usize, self.next(8) as usize + 1);
                    let value = self.next(256) as u8;
                    let clear = value < 64;
                    let value = if clear { 0 } else { value };
                    promises.pages[first..first + count].iter_mut().for_each(|page| page.1 = Some(value));
                    let range = format!("bytes={}-{}", first * PAGE, (first + count) * PAGE - 1);
                    let action = if clear { "clear" } else { "update" };
                    let headers = [("x-ms-page-write", action.to_owned()), ("x-ms-range", range)];
                    let body = if clear { Vec::new() } else { vec![value; count * PAGE] };
                    assert_eq!(self.put(&format!("{url}/con/pages?comp=page"), &headers, body).await?, 201);
                    promises.pages[first..first + count].iter_mut().for_each(|page| *page = (value, None));
                }
                _ => {
                    let body = self.bytes(5000);
                    let entry = promises.blobs.get_mut("log").expect("the log");
                    let before = entry.0.clone().unwrap_or_default();
                    entry.1 = Some([before, body.clone()].concat());
                    assert_eq!(self.put(&format!("{url}/con/log?comp=appendblock"), &[], body).await?, 201);
                    *entry = (entry.1.take(), None);
                }
            }
            promises.answered += 1;
        }
    }

    async fn read(&self, url: &str) -> Option<Vec<u8>> {
        let answer = self.request("GET", url).send().await.expect("answers");
        let status = answer.status();
        let bytes = answer.bytes().await.expect("bytes").to_vec();
        assert!(status == 200 || status == 404, "{url}: {status} {}", String::from_utf8_lossy(&bytes));
        (status == 200).then_some(bytes)
    }

    /// What is there is what was promised, or what may have been done; that is known from now on.
    async fn check(&self, url: &str, promises: &mut Promises) {
        for (name, (promised, maybe)) in &mut promises.blobs {
            let found = self.read(&format!("{url}/con/{name}")).await;
            let right = found == *promised || (maybe.is_some() && found == *maybe);
            let len = |bytes: &Content| bytes.as_ref().map(Vec::len);
            assert!(right, "{name}: {:?}, {:?} or {:?}", len(&found), len(promised), len(maybe));
            (*promised, *maybe) = (found, None);
        }
        let pages = self.read(&format!("{url}/con/pages")).await.expect("the pages");
        for (number, (page, (promised, maybe))) in pages.chunks(PAGE).zip(&mut promises.pages).enumerate() {
            let right = page[0] == *promised || Some(page[0]) == *maybe;
            assert!(right && page.iter().all(|byte| *byte == page[0]), "page {number}");
            (*promised, *maybe) = (page[0], None);
        }
    }
}

/// Answers of the database, a line each. The server must have been killed.
fn sql(folder: &Path, statement: &str) -> BTreeSet<String> {
    let script = "import sqlite3, sys\nwith sqlite3.connect(sys.argv[1]) as db:\n  for row in db.execute(sys.argv[2]): print(row[0])";
    let database = folder.join("tintype.db");
    let output = Command::new("python3").args(["-c", script]).arg(database).arg(statement).output();
    let output = output.expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

fn objects(folder: &Path) -> BTreeSet<String> {
    let list =
        |path: &Path| std::fs::read_dir(path).into_iter().flatten().map(|entry| entry.expect("an entry"));
    let below = list(&folder.join("regions/eastus/blobs"));
    below
        .flat_map(|two| list(&two.path()).collect::<Vec<_>>())
        .map(|file| file.file_name().into_string().expect("text"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_servers_lose_and_leave_nothing() {
    let lab = Lab::start_with(with_key).await;
    lab.container("con").await;
    let append = [("x-ms-blob-type", "AppendBlob")];
    assert_eq!(lab.blob("PUT", "/con/log", &append, Vec::new()).await.status(), 201);
    let size = (PAGE * PAGES).to_string();
    let pages = [("x-ms-blob-type", "PageBlob"), ("x-ms-blob-content-length", size.as_str())];
    assert_eq!(lab.blob("PUT", "/con/pages", &pages, Vec::new()).await.status(), 201);
    let Lab { bed, .. } = lab;
    let crate::support::Bed { server, client, token, folder, .. } = bed;
    let address = format!("127.0.0.1:{}", server.url.rsplit(':').next().expect("a port"));
    server.shutdown().await;
    let folder = folder.path();

    let mut work = Work { client: &client, token: &token, random: 7 };
    let mut promises = Promises { pages: vec![(0, None); PAGES], ..Promises::default() };
    promises.blobs.insert("log".to_owned(), (Some(Vec::new()), None));
    for number in 0..KILLS {
        let process = Process::start(&address, folder);
        let url = process.url.clone();
        work.check(&url, &mut promises).await;
        let delay = Duration::from_millis(1 + number * 37 % KILLS * WORK_MS / KILLS);
        let kill = async move {
            tokio::time::sleep(delay).await;
            process.kill();
        };
        tokio::join!(work.run(&url, &mut promises), kill);
    }
    assert!(promises.answered > KILLS, "hardly any work: {}", promises.answered);

    // Long after: what no row names goes, and nothing else.
    sql(folder, "UPDATE blob_garbage SET due = 0");
    let before = objects(folder);
    let process = Process::start(&address, folder);
    work.check(&process.url, &mut promises).await;
    let named =
        "SELECT object FROM blobs UNION SELECT object FROM blob_parts UNION SELECT object FROM blob_blocks";
    let swept = async {
        while !objects(folder).is_subset(&sql(folder, named)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), swept).await.expect("what is left over goes");
    assert!(objects(folder).len() < before.len(), "there was something to sweep");
    work.check(&process.url, &mut promises).await;
    process.kill();
}
