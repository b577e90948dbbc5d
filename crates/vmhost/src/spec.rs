//! What a VM is, as the document that its process starts from: `spec.json` in the VM's directory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use machine::{Accelerator, StateKey};
use provision::VmIdentity;
use serde::{Deserialize, Serialize};

/// Name of the specification in a VM's directory. It holds secrets: mode 0600.
pub(crate) const SPEC_FILE: &str = "spec.json";
/// Largest specification that is read: custom data (64 KiB) and keys fit many times.
const SPEC_BYTES_MAX: u64 = 4 << 20;

/// Everything that one VM process needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// When the process ends by itself.
    pub lifetime: Lifetime,
    /// What the guest is told about itself.
    pub identity: VmIdentity,
    /// The immutable image below the disk.
    pub base: BaseDisk,
    /// Frozen qcow2 layers over the base, from the bottom to the top.
    pub frozen: Vec<PathBuf>,
    /// The writable layer, relative to the VM's directory; made if absent.
    pub overlay: PathBuf,
    /// Size of the disk in bytes, at least the base's.
    pub disk_bytes: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// KVM or TCG, probed by the server once.
    pub accelerator: Accelerator,
    /// Where the guest may connect to.
    pub outbound: Outbound,
    /// A saved machine state to go on from instead of booting.
    pub resume: Option<ResumeFrom>,
}

/// When a VM process ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifetime {
    /// A virtual machine: until its guest powers off or somebody says so.
    Virtual,
    /// A build: as long as somebody keeps it alive at least every `lease_s` seconds.
    Leased {
        /// Length of the lease in seconds.
        lease_s: u64,
    },
}

/// The image below a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseDisk {
    /// Locations of the stores that hold the image, as `content` parses them, the one to read first in front. One that
    /// cannot be used is passed over while another can.
    #[serde(alias = "store", deserialize_with = "one_or_more")]
    pub stores: Vec<String>,
    /// File with the keys of those stores, if they are encrypted; absent: those of the environment, if any.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// The image's manifest.
    pub manifest: String,
    /// Directory of the block cache shared by the VMs of this host.
    pub cache_dir: PathBuf,
    /// Bound of that cache in bytes.
    pub cache_bytes_max: u64,
}

/// Also reads what older services wrote: a single location.
fn one_or_more<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    Ok(match OneOrMore::deserialize(deserializer)? {
        OneOrMore::One(store) => vec![store],
        OneOrMore::More(stores) => stores,
    })
}

/// What the guest's outbound connections may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outbound {
    /// Entries of the configuration's allow list, as `netpolicy` parses them.
    pub allow: Vec<String>,
    /// Where names are resolved; empty: the host's resolvers.
    pub resolvers: Vec<SocketAddr>,
}

/// A saved machine state.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumeFrom {
    /// The container file.
    pub state: PathBuf,
    /// Its key.
    pub key: StateKey,
}

impl VmSpec {
    /// Reads `dir/spec.json`.
    ///
    /// # Errors
    /// When it is missing, too large, or not a specification of this version.
    pub fn read(dir: &Path) -> std::io::Result<Self> {
        let file = std::fs::File::open(dir.join(SPEC_FILE))?;
        let reader = std::io::BufReader::new(std::io::Read::take(file, SPEC_BYTES_MAX));
        serde_json::from_reader(reader).map_err(std::io::Error::other)
    }

    /// Writes `dir/spec.json`, readable by its owner alone.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, dir: &Path) -> std::io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = dir.join(SPEC_FILE);
        let file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        serde_json::to_writer(&file, self).map_err(std::io::Error::other)?;
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_specification_of_an_older_service_has_one_store() {
        let older = r#"{"store": "/srv/a", "manifest": "m", "cache_dir": "/c", "cache_bytes_max": 1}"#;
        assert_eq!(serde_json::from_str::<BaseDisk>(older).unwrap().stores, ["/srv/a"]);
        let newer =
            r#"{"stores": ["/srv/a", "/srv/b"], "manifest": "m", "cache_dir": "/c", "cache_bytes_max": 1}"#;
        assert_eq!(serde_json::from_str::<BaseDisk>(newer).unwrap().stores.len(), 2);
    }
}
