//! The control protocol: one JSON line asks, JSON lines answer, one request per connection.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use machine::StateKey;
use serde::{Deserialize, Serialize};

/// Control socket in the VM's directory.
pub(crate) const CONTROL_SOCKET: &str = "control.sock";
/// How the VM ended, written before its process exits.
pub(crate) const ENDED_FILE: &str = "ended.json";
/// The longest line of either side.
pub(crate) const LINE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// One status line.
    Status,
    /// A status line now and after every change, until the VM ends.
    Watch,
    /// Renews the lease until the connection ends; no answer.
    KeepAlive,
    /// Freezes the disk and goes on in `overlay`; with `state`, saves the machine too.
    Snapshot { overlay: PathBuf, state: Option<SaveTo> },
    /// Presses the power button.
    PowerButton,
    /// Ends the machine at once.
    PowerOff,
    /// After `ok`, the connection is a byte stream to this TCP port of the guest.
    Tunnel { port: u16 },
    /// Listens on a loopback port of the host and forwards it to this TCP port of the guest.
    Forward { port: u16 },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SaveTo {
    pub(crate) path: PathBuf,
    pub(crate) key: StateKey,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Answer {
    Ok,
    Status { status: Box<VmStatus> },
    Forwarded { address: SocketAddr },
    Refused { reason: String },
}

/// What a VM process says of its VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Process id of the vmhost.
    pub vmhost_pid: u32,
    /// Process id of QEMU, once it runs.
    pub qemu_pid: Option<u32>,
    /// When the process began.
    pub started_at: DateTime<Utc>,
    /// Where the machine is in its life.
    pub phase: Phase,
    /// How far the guest's own agent is.
    pub provisioning: Provisioning,
    /// The last status blob of the guest's agent, if it sends one.
    pub agent: Option<serde_json::Value>,
    /// Loopback forwards: guest port → host address.
    pub forwards: BTreeMap<u16, SocketAddr>,
    /// Outbound connections that the policy refused, as text; the last few.
    pub outbound_denied: Vec<String>,
    /// Blocks of the disk that one store could not give and another gave: somebody should repair the first.
    #[serde(default)]
    pub damaged_reads: u64,
}

/// Where a machine is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// Parts are being put together; QEMU may not run yet.
    Starting,
    /// The guest runs.
    Running,
    /// The guest is paused because a disk could not be read or written.
    DiskError {
        /// QEMU's reason.
        reason: String,
    },
    /// It is over.
    Ended(Ended),
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ended", rename_all = "snake_case")]
pub enum Ended {
    /// The guest powered itself off.
    GuestPoweredOff,
    /// Somebody asked this process to end it.
    PoweredOff,
    /// Nobody kept it alive.
    LeaseExpired,
    /// It could not start.
    StartFailed {
        /// The cause.
        reason: String,
    },
    /// QEMU ended by itself.
    QemuFailed {
        /// Exit status and last words.
        reason: String,
    },
    /// Its process is gone and left no word: it was killed.
    Lost,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::GuestPoweredOff => f.write_str("the guest powered off"),
            Self::PoweredOff => f.write_str("it was powered off"),
            Self::LeaseExpired => f.write_str("nobody kept it alive"),
            Self::StartFailed { reason } => write!(f, "it could not start: {reason}"),
            Self::QemuFailed { reason } => write!(f, "QEMU failed: {reason}"),
            Self::Lost => f.write_str("its vmhost process was killed"),
        }
    }
}

/// How far the guest's agent is. A later `Ready` overrides a failure, as on Azure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "provisioning", rename_all = "snake_case")]
pub enum Provisioning {
    /// Nothing was heard.
    Silent,
    /// The agent is at work.
    InProgress {
        /// Its text.
        text: String,
    },
    /// The agent reported success.
    Ready {
        /// When.
        at: DateTime<Utc>,
    },
    /// The agent reported failure.
    Failed {
        /// Its text.
        text: String,
    },
}

/// Reads `ended.json`; [`Ended::Lost`] when there is none.
pub(crate) fn read_ended(dir: &Path) -> Ended {
    std::fs::read(dir.join(ENDED_FILE))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or(Ended::Lost)
}
