//! The demo's own server: another process of this program.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::scene::{HOME, OTHER};

const READY_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) struct ServerProcess {
    child: Child,
    pub(super) url: String,
    pub(super) ca: PathBuf,
    pub(super) credentials: PathBuf,
}

#[derive(Deserialize)]
struct Ready {
    url: String,
    ca: PathBuf,
    credentials: PathBuf,
}

impl ServerProcess {
    /// Writes a configuration with two regions and starts `tintype serve` on a free port.
    pub(super) async fn start(dir: &Path, scripts: SocketAddr) -> anyhow::Result<Self> {
        let config = format!(
            "data_dir = \"data\"\nlisten = \"127.0.0.1:0\"\n\n\
             [[region]]\nname = \"{HOME}\"\nstore = \"regions/{HOME}\"\n\n\
             [[region]]\nname = \"{OTHER}\"\nstore = \"regions/{OTHER}\"\n\n\
             [network]\nallow = [\"{scripts}\"]\n"
        );
        let path = dir.join("tintype.toml");
        std::fs::write(&path, config).context("cannot write the configuration")?;
        let log = std::fs::File::create(dir.join("server.log"))?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--json", "--config"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the server")?;
        let stdout = child.stdout.take().context("the server has no output")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(READY_TIMEOUT, lines.next_line()).await;
        let Ok(Ok(Some(line))) = line else {
            let log = std::fs::read_to_string(dir.join("server.log")).unwrap_or_default();
            bail!("the server did not start: {}", log.trim());
        };
        let Ready { url, ca, credentials } = serde_json::from_str(&line)?;
        Ok(Self { child, url, ca, credentials })
    }

    /// SIGTERM, and wait.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let status = tokio::time::timeout(STOP_TIMEOUT, self.child.wait())
            .await
            .context("the server did not stop in time")??;
        if status.success() { Ok(()) } else { bail!("the server ended with {status}") }
    }
}
