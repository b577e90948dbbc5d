//! An S3 that is not ours: moto on loopback, which `tools/object-stores` installs.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Python starts in a few seconds, on a busy machine in more.
const START_TIMEOUT: Duration = Duration::from_secs(90);

/// A moto of this test with the bucket `bucket`, ended with it.
pub(crate) struct Moto {
    child: Child,
    pub(crate) address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for Moto {
    fn drop(&mut self) {
        // It may have died by itself, and then the test says so.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Moto {
    pub(crate) async fn start() -> Moto {
        let started = tokio::task::spawn_blocking(Moto::spawn).await.expect("moto starts");
        let made = client().put(format!("http://{}/bucket", started.address)).send().await.expect("answers");
        assert_eq!(made.status(), 200);
        started
    }

    fn spawn() -> Moto {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/object-stores");
        let output = Command::new(tool).output().expect("tools/object-stores");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let paths = String::from_utf8(output.stdout).expect("text");
        let dir = tempfile::tempdir().expect("a temporary folder");
        let log = dir.path().join("log");
        let file = std::fs::File::create(&log).expect("a log");
        let both = file.try_clone().expect("a log");
        let mut command = Command::new(paths.lines().nth(1).expect("a path"));
        command.args(["-H", "127.0.0.1", "-p", "0"]).current_dir(dir.path());
        let mut child = command.stdin(Stdio::null()).stdout(file).stderr(both).spawn().expect("moto starts");
        let started = Instant::now();
        loop {
            let lines = BufReader::new(std::fs::File::open(&log).expect("a log")).lines();
            let port = lines.map_while(Result::ok).find_map(|line| {
                let (_, port) = line.split_once("http://127.0.0.1:")?;
                port.trim().parse().ok()
            });
            if let Some(port) = port {
                return Moto { child, address: SocketAddr::from(([127, 0, 0, 1], port)), _dir: dir };
            }
            if child.try_wait().expect("waits").is_some() || started.elapsed() > START_TIMEOUT {
                drop(child.kill());
                panic!("moto did not start: {}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Names in the bucket that begin with a prefix.
    pub(crate) async fn names(&self, prefix: &str) -> Vec<String> {
        let url = format!("http://{}/bucket?list-type=2&prefix={prefix}", self.address);
        let text = client().get(url).send().await.expect("answers").text().await.expect("text");
        let names = text.split("<Key>").skip(1);
        names.map(|rest| rest.split("</Key>").next().unwrap_or_default().to_owned()).collect()
    }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().expect("a client")
}
