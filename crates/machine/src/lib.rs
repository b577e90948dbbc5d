//! QEMU as a machine: arguments, one driver task per VM, QMP, overlays, saved states, accelerator probe.
//!
//! ```text
//!  MachineSpec ── args ──► qemu-system-x86_64 ◄── QMP ── Machine (driver)
//!                             │  disk: qcow2 overlay ► frozen layers ► NBD (read-only base)
//!                             │  net:  -netdev dgram on a Unix socket
//!                             └  serial console ► serial.log
//! ```
//!
//! A machine knows nothing of Azure, of stores, or of why it runs: `vmhost` puts it together with the
//! block export and the guest's network. QEMU must be spawned from a thread that lives as long as the
//! process (see [`Machine::launch`]), because it is told to die with that thread.

mod accel;
mod args;
mod error;
mod machine;
mod overlay;
mod qmp;
mod spec;
mod state;

pub use accel::{Accelerator, PROBE_DEADLINE};
pub use error::MachineError;
pub use machine::{Machine, MachineEvent, RunState};
pub use overlay::{CLUSTER_BYTES, create_overlay};
pub use spec::{DiskLayers, Firmware, MachineSpec, NetSockets};
pub use state::StateKey;

/// The one QEMU program that is used.
pub const QEMU_SYSTEM: &str = "qemu-system-x86_64";

/// What QEMU says of itself, e.g. `7.2.22`: part of every step-cache key, because a saved state fits only
/// the version that wrote it.
///
/// # Errors
/// When QEMU is missing or does not print a version.
pub async fn qemu_version() -> Result<String, MachineError> {
    let output = tokio::process::Command::new(QEMU_SYSTEM)
        .arg("--version")
        .output()
        .await
        .map_err(|source| MachineError::QemuMissing { source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .next()
        .and_then(|line| line.strip_prefix("QEMU emulator version "))
        .map(str::to_owned)
        .ok_or_else(|| MachineError::QmpConnection { during: "reading QEMU's version".into() })
}
