//! What to build and what comes out.

use std::path::PathBuf;
use std::time::Duration;

use content::{ManifestId, PutReport};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vmhost::identity::Generation;
use vmhost::{Accelerator, Outbound};

use crate::cache::StepCache;

/// One build, complete: every script is here, no URL is left to fetch.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// Names the run's directory and its references in the store; letters, digits and `-`.
    pub run_id: String,
    /// Shown in logs and to guests as the VM's name.
    pub name: String,
    /// The source image.
    pub base: BaseImage,
    /// Number of vCPUs of the build VM.
    pub vcpus: u32,
    /// Memory of the build VM in MiB.
    pub memory_mib: u32,
    /// Size of the OS disk in bytes; at least the source's.
    pub disk_bytes: u64,
    /// Customizers in order.
    pub steps: Vec<Step>,
    /// Validations in order; empty: no validation VM.
    pub validations: Vec<Step>,
    /// Publish although a validation failed (`continueDistributeOnFailure`).
    pub continue_on_validation_failure: bool,
    /// Subscription, template identity and whatever else bounds who may see a cached machine's memory.
    pub rights: String,
    /// Whether finished steps may be taken from the cache.
    pub reuse: Reuse,
    /// `buildTimeoutInMinutes`.
    pub timeout: Duration,
}

/// The image that a build starts from.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// Its manifest in the home region's store.
    pub manifest: ManifestId,
    /// How messages name it.
    pub name: String,
    /// Its firmware.
    pub generation: Generation,
}

/// Whether finished steps may be taken from the cache. Azure's users rely on a run doing its work anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// Every step runs; only the booted state of the immutable base is reused.
    Nothing,
    /// Unchanged leading steps come from the cache.
    UnchangedSteps,
}

/// A customizer or validation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The author's name for it, or `Type #n`.
    pub name: String,
    /// What it does.
    pub action: StepAction,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepAction {
    /// Runs a script with the guest's shell.
    Shell {
        /// The script's bytes; for inline commands, the lines joined.
        script: Vec<u8>,
    },
    /// Copies a file.
    File {
        /// Its bytes.
        content: Vec<u8>,
        /// Full path in the guest; the parent must exist.
        destination: String,
    },
}

impl Step {
    /// SHA-256 over kind, parameters and content. The name is not part of it: renaming a step runs nothing.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        match &self.action {
            StepAction::Shell { script } => {
                hash.update(b"shell\0");
                hash.update(script);
            }
            StepAction::File { content, destination } => {
                hash.update(b"file\0");
                hash.update((destination.len() as u64).to_le_bytes());
                hash.update(destination);
                hash.update(content);
            }
        }
        hex::encode(hash.finalize())
    }
}

/// The parts of this host that builds use.
#[derive(Debug, Clone)]
pub struct Host {
    /// This program, for `vmhost` processes.
    pub program: PathBuf,
    /// Parent of the runs' directories.
    pub runs_dir: PathBuf,
    /// The step cache.
    pub cache: StepCache,
    /// The stores of the home region that hold the base, at least one: the result is committed to the first that takes it.
    pub stores: Vec<content::Store>,
    /// The same stores as VM processes open them.
    pub store_locations: Vec<String>,
    /// File with their keys, if they are encrypted with such.
    pub store_key_file: Option<PathBuf>,
    /// Block cache shared by the VMs of this host.
    pub block_cache_dir: PathBuf,
    /// Its bound in bytes.
    pub block_cache_bytes_max: u64,
    /// KVM or TCG.
    pub accelerator: Accelerator,
    /// What QEMU says of itself.
    pub qemu_version: String,
    /// What guests may reach.
    pub outbound: Outbound,
}

/// A finished build.
#[derive(Debug, Clone)]
pub struct BuildOutput {
    /// The new image, held in the store by the reference `run-<run_id>` until the caller holds it otherwise.
    pub manifest: ManifestId,
    /// Its size in bytes.
    pub logical_bytes: u64,
    /// What committing it cost.
    pub commit: PutReport,
    /// One entry per customizer.
    pub steps: Vec<StepReport>,
    /// From the start of the run to the first command in the build VM, in seconds.
    pub first_command_s: f64,
    /// Whether the build VM was resumed from a saved state.
    pub resumed: bool,
    /// Time spent validating, in seconds; 0 without validations.
    pub validate_s: f64,
    /// A failed validation that the template said to publish in spite of.
    pub validation_failure: Option<String>,
}

/// How a customizer went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step's name.
    pub name: String,
    /// Taken from the step cache.
    pub cached: bool,
    /// Seconds that it took, its snapshot included; 0 when cached.
    pub seconds: f64,
}
