//! One VM as one process: `machine` (QEMU), `provision` (the guest's view of Azure and its network) and a
//! `content` export (the lazily read base of its disk), put together behind a small control socket.
//!
//! ```text
//!   server / build                       tintype vmhost <dir>                      QEMU (dies with vmhost)
//!   VmHandle ──── dir/control.sock ────► host ─┬─ content: nbd.sock  ◄── base of the disk
//!      spawn, attach, snapshot,                ├─ provision: net-*.sock ◄── -netdev dgram
//!      tunnel, power, keep alive               └─ machine: qmp.sock
//! ```
//!
//! The directory *is* the VM: `spec.json` says what it is, `ended.json` how it ended. Sockets are bound
//! relative to it (a Unix path holds 108 bytes), and whoever may enter it (mode 0700) may drive the VM.
//! A virtual machine outlives the server, which attaches again. A build's vmhost ends when nobody has
//! kept it alive for its lease, so nothing of a build survives a killed server.

mod client;
mod control;
mod host;
mod protocol;
mod spec;

pub use client::{KeepAlive, VmError, VmHandle};
pub use content::StoreLocation;
pub use host::run;
pub use machine::{Accelerator, MachineError, StateKey, create_overlay, qemu_version};
pub use protocol::{Ended, Phase, Provisioning, VmStatus};
pub use provision::{
    AllowEntry, MacAddress, NetPolicy, VmIdentity, host_addresses, identity, netpolicy, resolve_allowed,
};
pub use spec::{BaseDisk, Lifetime, Outbound, ResumeFrom, VmSpec};

/// Name of the folder, beside the block cache, in which a VM's process keeps copies of a remote store's index; the service
/// on this host uses the same.
pub const INDEX_DIR: &str = "index";
