//! Other tools at the same work. Each keeps both disks as it would; its files are synced inside the measured time.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use super::inputs::Inputs;
use super::lab::{Caches, Lab, bytes_below, run, timed};

/// Wall times of keeping the first disk, and the second after it.
#[derive(Default)]
pub(super) struct Times {
    pub(super) first_s: Vec<f64>,
    pub(super) second_s: Vec<f64>,
}

/// What a tool needed.
#[derive(Default)]
pub(super) struct Figures {
    pub(super) cold: Times,
    pub(super) warm: Times,
    /// Bytes of all its files, with both disks.
    pub(super) stored_bytes: u64,
}

impl Figures {
    pub(super) fn of(&self, caches: Caches) -> &Times {
        match caches {
            Caches::Cold => &self.cold,
            Caches::Warm => &self.warm,
        }
    }

    pub(super) fn of_mut(&mut self, caches: Caches) -> &mut Times {
        match caches {
            Caches::Cold => &mut self.cold,
            Caches::Warm => &mut self.warm,
        }
    }
}

/// A tool that can keep disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    QemuImg,
    Borg,
    Restic,
    Casync,
    Cp,
}

pub(super) const PEERS: [Peer; 5] = [Peer::QemuImg, Peer::Borg, Peer::Restic, Peer::Casync, Peer::Cp];

impl Peer {
    /// As it is shown.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::QemuImg => "qemu-img convert -c, zstd",
            Self::Borg => "borg create -C zstd,3",
            Self::Restic => "restic backup",
            Self::Casync => "casync make",
            Self::Cp => "cp --sparse=always",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::QemuImg => "qemu-img",
            Self::Borg => "borg",
            Self::Restic => "restic",
            Self::Casync => "casync",
            Self::Cp => "cp",
        }
    }

    pub(super) fn is_installed(self) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(self.program()).is_file())
    }

    /// Whether a goal names it. The others are slow, or no stores, and shown after one turn.
    pub(super) fn has_goal(self) -> bool {
        matches!(self, Self::QemuImg | Self::Borg | Self::Restic)
    }

    /// One more turn of the tool at both disks.
    pub(super) fn measure(
        self,
        lab: &Lab,
        inputs: &Inputs,
        caches: Caches,
        figures: &mut Figures,
    ) -> anyhow::Result<()> {
        let folder = lab.fresh("peer")?;
        self.prepare(&folder)?;
        let figure = figures.of_mut(caches);
        for (name, disk, times) in
            [("v1", &inputs.v1, &mut figure.first_s), ("v2", &inputs.v2, &mut figure.second_s)]
        {
            caches.prepare(&disk.path)?;
            let (seconds, ()) = timed(|| {
                run(&mut self.keep(&folder, name, &disk.path))?;
                sync_below(&folder)
            })
            .with_context(|| format!("{} at {name}", self.name()))?;
            times.push(seconds);
        }
        figures.stored_bytes = bytes_below(&folder.join("kept"))?;
        lab.fresh("peer")?;
        Ok(())
    }

    fn prepare(self, folder: &Path) -> anyhow::Result<()> {
        let kept = folder.join("kept");
        match self {
            Self::Borg => run(borg(folder).args(["init", "-e", "none"]).arg(kept)).map(drop),
            Self::Restic => run(restic(folder).arg("init")).map(drop),
            Self::QemuImg | Self::Casync | Self::Cp => {
                std::fs::create_dir(&kept).context("cannot make a folder")
            }
        }
    }

    fn keep(self, folder: &Path, name: &str, disk: &Path) -> Command {
        let kept = folder.join("kept");
        match self {
            Self::QemuImg => {
                let mut command = Command::new("qemu-img");
                command.args(["convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd"]);
                command.arg(disk).arg(kept.join(name));
                command
            }
            Self::Borg => {
                let mut archive = kept.into_os_string();
                archive.push(format!("::{name}"));
                let mut command = borg(folder);
                command.args(["create", "-C", "zstd,3"]).arg(archive).arg(disk);
                command
            }
            Self::Restic => {
                let mut command = restic(folder);
                command.arg("backup").arg(disk);
                command
            }
            Self::Casync => {
                let mut command = Command::new("casync");
                let mut store = std::ffi::OsString::from("--store=");
                store.push(kept.join("store.castr"));
                command.arg("make").arg(store).arg(kept.join(format!("{name}.caibx"))).arg(disk);
                command
            }
            Self::Cp => {
                let mut command = Command::new("cp");
                command.arg("--sparse=always").arg(disk).arg(kept.join(name));
                command
            }
        }
    }
}

/// Borg with its own folder for everything that it remembers.
fn borg(folder: &Path) -> Command {
    let mut command = Command::new("borg");
    command
        .env("BORG_BASE_DIR", folder.join("borg"))
        .env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
    command
}

fn restic(folder: &Path) -> Command {
    let mut command = Command::new("restic");
    command
        .arg("--quiet")
        .arg("--repo")
        .arg(folder.join("kept"))
        .arg("--cache-dir")
        .arg(folder.join("restic"));
    command.env("RESTIC_PASSWORD", "bench");
    command
}

fn sync_below(folder: &Path) -> anyhow::Result<()> {
    run(Command::new("find").arg(folder.join("kept")).args(["-type", "f", "-exec", "sync", "{}", "+"]))
        .map(drop)
}
