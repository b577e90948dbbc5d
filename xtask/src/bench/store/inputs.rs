//! The disks that are measured with: Debian as the catalogue makes it, and the same disk after installing two packages.
//! Made once; the cache is keyed by what they are made from. (The packages' own state of the day is part of them, so two
//! machines have slightly different disks; on one machine they stay the same.)

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::lab::{Lab, run, sha256};

const SCRIPT: &str = include_str!("inputs.sh");
/// What the second disk has more.
const ADDED: &str = "nginx-light postgresql-client";

pub(super) struct Inputs {
    pub(super) v1: Disk,
    pub(super) v2: Disk,
}

/// A raw disk file, sparse.
pub(super) struct Disk {
    pub(super) path: PathBuf,
    pub(super) sha256: String,
}

impl Disk {
    pub(super) fn text(&self) -> String {
        self.path.display().to_string()
    }
}

impl Inputs {
    pub(super) fn make_or_find(lab: &Lab) -> anyhow::Result<Self> {
        let packages = catalogue_packages()?;
        let key = blake3::hash(format!("{SCRIPT}\0{packages}\0{ADDED}").as_bytes()).to_hex();
        let folder = lab.cache().join(format!("debian-{}", &key[..16]));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        // The script gives the second disk its name last.
        if !folder.join("v2.raw").exists() {
            lab.say(&format!("making the input disks in {}", folder.display()));
            let mut command = Command::new("sh");
            command.arg("-c").arg(SCRIPT);
            command.env("DIR", &folder).env("PACKAGES", &packages).env("ADDED", ADDED);
            run(&mut command).context("the input disks cannot be made")?;
        }
        Ok(Self { v1: disk(&folder, "v1")?, v2: disk(&folder, "v2")? })
    }
}

/// A disk with its checksum, which is kept beside it.
fn disk(folder: &Path, name: &str) -> anyhow::Result<Disk> {
    let path = folder.join(format!("{name}.raw"));
    let known = folder.join(format!("{name}.sha256"));
    let sha256 = match fs::read_to_string(&known) {
        Ok(sha256) => sha256,
        Err(_) => {
            let sha256 = sha256(&path)?;
            fs::write(&known, &sha256).with_context(|| format!("cannot write {}", known.display()))?;
            sha256
        }
    };
    Ok(Disk { path, sha256 })
}

/// The packages of Debian 12 in the catalogue, with commas between them.
fn catalogue_packages() -> anyhow::Result<String> {
    let path = crate::root().join("catalog/debian.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let catalogue: toml::Table = text.parse()?;
    let packages = catalogue
        .get("image")
        .and_then(|images| images.get(0))
        .and_then(|image| image.get("recipe")?.get("bootstrap")?.get("packages")?.as_array())
        .with_context(|| format!("{} has no list of packages", path.display()))?;
    let packages: Vec<_> = packages.iter().filter_map(toml::Value::as_str).collect();
    ensure!(!packages.is_empty(), "{} names no packages", path.display());
    Ok(packages.join(","))
}
