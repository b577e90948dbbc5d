//! Writable qcow2 overlays, made by `qemu-img` in the one shape that `disk` reads back.

use std::path::Path;

use tokio::process::Command;

use crate::MachineError;

/// Cluster of an overlay: equal to the store's block, so that a changed cluster is a changed block.
pub const CLUSTER_BYTES: u64 = 64 * 1024;

/// Makes an empty overlay of `size` bytes at `path`. It names no backing file: the chain is given to QEMU
/// and to the commit explicitly.
///
/// # Errors
/// When `qemu-img` is missing or refuses.
pub async fn create_overlay(path: &Path, size: u64) -> Result<(), MachineError> {
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-o"])
        .arg(format!("cluster_size={CLUSTER_BYTES},compat=1.1,lazy_refcounts=off"))
        .arg(path)
        .arg(size.to_string())
        .output()
        .await
        .map_err(MachineError::io("start qemu-img (install the distribution's qemu-utils package)"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(MachineError::Exited {
        status: format!("qemu-img: {}", output.status),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
