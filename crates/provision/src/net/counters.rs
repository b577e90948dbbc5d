//! What has passed through a VM's network.

use serde::Serialize;

/// Totals since the network started, and what is open now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Frames from the guest.
    pub frames_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Frames to the guest.
    pub frames_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Frames from the guest that were not acted on: malformed, not its own address, not IPv4.
    pub frames_ignored: u64,
    /// Frames to the guest that were lost: no QEMU, or a UDP burst beyond the queue.
    pub frames_dropped: u64,
    /// Connections of the guest that the policy denied, TCP and UDP.
    pub denied: u64,
    /// Connections of the guest that were refused because a limit was reached.
    pub over_limit: u64,
    /// TCP connections that exist now, of the guest and to it.
    pub tcp_open: u64,
    /// DNS questions of the guest.
    pub dns_questions: u64,
    /// How often another QEMU was connected to.
    pub qemu_connections: u64,
}
