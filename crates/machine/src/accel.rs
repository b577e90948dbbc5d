//! Which accelerator to use: KVM only if a trial boot under it answers in time, else TCG.
//!
//! An openable `/dev/kvm` proves nothing: some nested kinds run firmware at speed and then emulate a
//! 64-bit guest instruction by instruction, so that a kernel would need hours. The trial boots a sector
//! that enters long mode and runs 2^24 memory operations (0.4 s even under TCG), then leaves through
//! QEMU's `isa-debug-exit`. The source of the sector is `accel/probe.s`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::{QEMU_SYSTEM, error::MachineError};

/// How long the trial boot may take. TCG needs about 0.4 s for it, working KVM less.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(4);

/// `(0x2a << 1) | 1`: what QEMU exits with when the probe writes 0x2a to the debug port.
const PROBE_EXIT: i32 = 0x55;
/// SeaBIOS refuses to boot from a disk without a geometry: one sector is too small, a mebibyte is not.
const PROBE_DISK_BYTES: usize = 1 << 20;

/// QEMU's accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualization.
    Kvm,
    /// QEMU's translator, one thread per vCPU.
    Tcg,
}

impl Accelerator {
    /// Tries KVM by booting the probe under it; TCG where it does not answer within [`PROBE_DEADLINE`].
    ///
    /// # Errors
    /// When QEMU itself cannot be started, or the probe's disk cannot be written below `dir`.
    pub async fn probe(dir: &Path) -> Result<Self, MachineError> {
        let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
        if kvm && trial_boot(dir, "kvm", PROBE_DEADLINE).await? { Ok(Self::Kvm) } else { Ok(Self::Tcg) }
    }
}

/// Boots the probe under `accel`; true if it left through the debug port within `deadline`.
async fn trial_boot(dir: &Path, accel: &str, deadline: Duration) -> Result<bool, MachineError> {
    std::fs::create_dir_all(dir).map_err(MachineError::io("create the directory of the KVM probe"))?;
    let disk = dir.join(format!("probe-{accel}-{}.raw", std::process::id()));
    std::fs::write(&disk, probe_disk()).map_err(MachineError::io("write the KVM probe's disk"))?;
    let child = Command::new(QEMU_SYSTEM)
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-m",
            "64",
            "-M",
            "q35",
            "-accel",
            accel,
        ])
        .arg("-drive")
        .arg(format!("if=none,id=d,format=raw,readonly=on,file={}", disk.display()))
        .args(["-device", "virtio-blk-pci,drive=d", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let outcome = match child {
        Ok(mut child) => match tokio::time::timeout(deadline, child.wait()).await {
            Ok(status) => {
                Ok(status.map_err(MachineError::io("wait for the KVM probe"))?.code() == Some(PROBE_EXIT))
            }
            Err(_) => {
                child.kill().await.map_err(MachineError::io("end the KVM probe"))?;
                Ok(false)
            }
        },
        Err(source) => Err(MachineError::QemuMissing { source }),
    };
    std::fs::remove_file(&disk).map_err(MachineError::io("remove the KVM probe's disk"))?;
    outcome
}

fn probe_disk() -> Vec<u8> {
    let mut disk = vec![0; PROBE_DISK_BYTES];
    disk[..PROBE.len()].copy_from_slice(&PROBE);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

#[rustfmt::skip]
const PROBE: [u8; 204] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xe4, 0x92, 0x0c, 0x02,
    0xe6, 0x92, 0x66, 0xbf, 0x00, 0x10, 0x00, 0x00, 0x66, 0x31, 0xc0, 0xb9, 0x00, 0x0c, 0x66, 0xf3,
    0xab, 0x66, 0xc7, 0x06, 0x00, 0x10, 0x03, 0x20, 0x00, 0x00, 0x66, 0xc7, 0x06, 0x00, 0x20, 0x03,
    0x30, 0x00, 0x00, 0xbf, 0x00, 0x30, 0x66, 0xb8, 0x83, 0x00, 0x00, 0x00, 0xb9, 0x00, 0x02, 0x66,
    0x89, 0x05, 0x66, 0x05, 0x00, 0x00, 0x20, 0x00, 0x83, 0xc7, 0x08, 0xe2, 0xf2, 0x66, 0xb8, 0x00,
    0x10, 0x00, 0x00, 0x0f, 0x22, 0xd8, 0x0f, 0x20, 0xe0, 0x66, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0,
    0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x66, 0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x30,
    0x0f, 0x01, 0x16, 0xc8, 0x7c, 0x0f, 0x20, 0xc0, 0x66, 0x0d, 0x01, 0x00, 0x00, 0x80, 0x0f, 0x22,
    0xc0, 0xea, 0x86, 0x7c, 0x08, 0x00, 0x48, 0xc7, 0xc7, 0x00, 0x00, 0x20, 0x00, 0xba, 0x40, 0x00,
    0x00, 0x00, 0x48, 0xc7, 0xc6, 0x00, 0x00, 0x20, 0x00, 0xb9, 0x00, 0x00, 0x04, 0x00, 0x48, 0x01,
    0x0e, 0x48, 0x83, 0xc6, 0x40, 0xff, 0xc9, 0x75, 0xf5, 0xff, 0xca, 0x75, 0xe5, 0xb0, 0x2a, 0xe6,
    0xf4, 0xf4, 0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x9a, 0x20, 0x00, 0x0f, 0x00, 0xb8, 0x7c,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_probe_answers_under_tcg_and_not_past_its_deadline() {
        let dir = tempfile::tempdir().unwrap();
        assert!(trial_boot(dir.path(), "tcg", Duration::from_secs(30)).await.unwrap());
        assert!(!trial_boot(dir.path(), "tcg", Duration::from_millis(1)).await.unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the probe leaves its disk behind");
    }
}
