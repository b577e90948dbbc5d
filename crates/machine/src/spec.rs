//! What a machine is made of, as data.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Accelerator;

/// Everything that QEMU's command line is made from. Paths of sockets are relative to the working
/// directory of the process, because `sun_path` holds 108 bytes.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// Shown in the process list.
    pub name: String,
    /// What the firmware reports; the caller byte-swaps it for BIOS machines (PROTOCOL.md, section 5).
    pub smbios_uuid: Uuid,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// BIOS or UEFI.
    pub firmware: Firmware,
    /// KVM or TCG.
    pub accelerator: Accelerator,
    /// The OS disk.
    pub disk: DiskLayers,
    /// Provisioning media as an ISO file.
    pub media: Option<PathBuf>,
    /// The guest's network.
    pub net: NetSockets,
    /// Hardware address, `00:22:48:aa:bb:cc`.
    pub mac: String,
    /// QMP socket, made by QEMU.
    pub qmp_socket: PathBuf,
    /// The serial console is appended to this file.
    pub serial_log: PathBuf,
    /// Start as the target of a saved state.
    pub incoming: bool,
}

/// The OS disk: a writable overlay over frozen layers over a read-only block export.
#[derive(Debug, Clone)]
pub struct DiskLayers {
    /// NBD export of the base, a Unix socket.
    pub base_socket: PathBuf,
    /// Frozen qcow2 layers from the bottom to the top. The chain is this list; names inside the files
    /// are not believed.
    pub frozen: Vec<PathBuf>,
    /// The writable qcow2 layer.
    pub overlay: PathBuf,
}

/// Firmware of a machine: Azure's generation V1 is BIOS, V2 is UEFI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF, with this file as the machine's own variable store.
    Uefi {
        /// Copy of the distribution's variable template.
        vars: PathBuf,
    },
}

/// The datagram sockets between QEMU and the user-space network.
#[derive(Debug, Clone)]
pub struct NetSockets {
    /// Bound by QEMU.
    pub qemu: PathBuf,
    /// Bound by the network stack, before QEMU starts.
    pub stack: PathBuf,
}
