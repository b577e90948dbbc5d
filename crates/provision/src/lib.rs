//! A VM's world as Azure shows it, for one VM, without root.
//!
//! An Azure guest finds out who it is from three places: the provisioning media ([`media`]), the wireserver with its
//! host plugin at 168.63.129.16, and the instance metadata service at 169.254.169.254. The last two are reached
//! over the network, so the whole network of a VM lives here too ([`net`]): one user-space stack on a Unix datagram
//! socket that QEMU's `-netdev dgram` speaks to. The socket is the VM's identity. A guest can reach only its own data,
//! whatever addresses it makes up.
//!
//! ```text
//!  guest ── virtio-net ── QEMU ── unix dgram ── net::Network ─┬─ ARP, DHCP, ICMP echo, DNS forwarder
//!                                                             ├─ 168.63.129.16:80    wireserver ──┐
//!                                                             ├─ 168.63.129.16:32526 host plugin ─┼─▶ GuestEvent
//!                                                             ├─ 169.254.169.254:80  IMDS         ┘
//!                                                             ├─ any other address   relay, judged by netpolicy
//!                                                             └─ connect_guest(port) ◀── the host (SSH)
//! ```
//!
//! What the guests' agents send and accept was recorded from real ones; the tests hold those recordings.

mod azure_address;
pub mod event;
mod fetch_guard;
mod host_addresses;
mod host_plugin;
mod http;
pub mod identity;
mod imds;
mod mac;
pub mod media;
pub mod net;
pub mod netpolicy;
mod ovf;
#[cfg(test)]
mod testing;
mod wireserver;
mod xml;

pub use event::GuestEvent;
pub use fetch_guard::{FetchDenied, resolve_allowed};
pub use host_addresses::host_addresses;
pub use identity::VmIdentity;
pub use mac::{MacAddress, ParseMacError};
pub use net::{Counters, GuestStream, NetConfig, Network, NetworkError};
pub use netpolicy::{AllowEntry, Denied, NetPolicy};
