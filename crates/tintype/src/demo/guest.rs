//! The VM as its owner sees it: a key, custom data, and the system's own ssh.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::process::Command;

use super::report::Report;
use super::scene::Scene;

/// The administrator of the demo's VM.
pub(super) const USER: &str = "azureuser";

const SSH_TIMEOUT: Duration = Duration::from_secs(240);
/// Cloud-init writes this from the custom data.
const CUSTOM_DATA: &str =
    "#cloud-config\nwrite_files:\n  - path: /etc/custom-data-was-here\n    content: was here\n";
/// What is asked of the guest in one login, one answer a line.
const PROOF: &str = "cloud-init status --wait >/dev/null; hostname; id -un; cat /etc/custom-data-was-here; echo; cat /etc/motd; \
                     cat /var/www/html/index.html; systemctl is-active nginx";

pub(super) struct Guest {
    key: PathBuf,
}

impl Guest {
    /// Makes a key pair.
    pub(super) fn prepare(dir: &Path) -> anyhow::Result<Self> {
        let key = dir.join("vm-key");
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "tintype-demo", "-f"])
            .arg(&key)
            .status()
            .context("cannot start ssh-keygen: install the distribution's openssh-client package")?;
        ensure!(made.success(), "ssh-keygen ended with {made}");
        Ok(Self { key })
    }

    pub(super) fn public_key(&self) -> anyhow::Result<String> {
        let text = std::fs::read_to_string(self.key.with_extension("pub"))?;
        Ok(text.trim().to_owned())
    }

    /// Base64, as the API wants it.
    pub(super) fn custom_data(&self) -> String {
        BASE64.encode(CUSTOM_DATA)
    }

    /// Logs in and looks. The agent reports ready before sshd and custom data are there, so it tries again.
    pub(super) async fn prove(&self, address: &str, scene: &Scene, report: &Report) -> anyhow::Result<()> {
        let (host, port) = address.rsplit_once(':').context("an SSH address without a port")?;
        let started = Instant::now();
        loop {
            let output = Command::new("ssh")
                .arg("-i")
                .arg(&self.key)
                .args(["-p", port, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
                .args(["-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20"])
                .arg(format!("{USER}@{host}"))
                .arg(PROOF)
                .stdin(Stdio::null())
                .kill_on_drop(true)
                .output()
                .await
                .context("cannot start ssh")?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() {
                report.say(&format!("SSH answered after another {:.1} s:", started.elapsed().as_secs_f64()));
                for line in text.lines() {
                    report.log(line);
                }
                return check(&text, scene);
            }
            if started.elapsed() > SSH_TIMEOUT {
                bail!("SSH to the VM failed: {}{text}", String::from_utf8_lossy(&output.stderr).trim());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

fn check(answer: &str, scene: &Scene) -> anyhow::Result<()> {
    let lines: Vec<_> = answer.lines().collect();
    let site = format!("{} first edition", scene.nonce);
    for expected in ["web1", USER, "was here", "Built by Tintype.", &site, "active"] {
        ensure!(lines.contains(&expected), "the VM does not show {expected:?}, but:\n{answer}");
    }
    Ok(())
}
