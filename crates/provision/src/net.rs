//! A VM's whole network in user space, behind one Unix datagram socket that QEMU's `-netdev dgram` speaks to.
//!
//! TCP is smoltcp's, in any-IP mode: a socket is made for each connection that the guest opens, whatever its
//! destination, and only after the host's own connection stands, so the guest sees a refusal as a refusal. Everything
//! else (ARP, DHCP, DNS, ICMP, UDP) is a question and an answer and is done on frames. smoltcp, rather than a relay of
//! our own that relies on the socket never losing anything, because a guest may be paused, replaced or hostile, and
//! then retransmission, windows and resets have to be right.
//!
//! ```text
//!  QEMU ⇄ link ⇄ driver (one task) ⇄ stack (behind a lock) ⇄ GuestStream ⇄ tasks: HTTP, TCP relay, connect_guest
//!                       └──────────── tasks: UDP relay, DNS forwarder
//! ```
//!
//! What starts empty here may not be empty in the guest: one resumed from a saved state has connections that we never
//! saw. Their segments are answered with resets. When another QEMU takes over the socket, our connections end.

mod counters;
mod dhcp;
mod dns;
mod dns_forward;
mod driver;
mod frame;
mod link;
mod queue;
mod stack;
mod stream;
mod tcp_relay;
mod udp_relay;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::event::{GuestEvent, MAX_WAITING_EVENTS};
use crate::http::World;
use crate::identity::VmIdentity;
use crate::imds::NetworkFacts;
use crate::netpolicy::NetPolicy;
pub use counters::Counters;
use driver::Driver;
use link::Link;
use stack::Stack;
pub use stream::GuestStream;
use stream::Shared;

/// Length of the guest's subnet prefix.
pub(crate) const PREFIX: u8 = 24;
/// The guest's IP packets are at most this long, in bytes.
pub(crate) const MTU: usize = 1500;

/// What a network is made of.
#[derive(Debug)]
pub struct NetConfig {
    /// Our end of the socket pair (QEMU's `remote.path`); made here, before QEMU starts. At most 107 bytes, in a
    /// directory that only this VM's processes can enter.
    pub stack_socket: PathBuf,
    /// QEMU's end (`local.path`), which QEMU makes. At most 107 bytes.
    pub qemu_socket: PathBuf,
    /// Whose network it is.
    pub identity: Arc<VmIdentity>,
    /// The address that DHCP gives, such as 10.0.0.4.
    pub guest_ip: Ipv4Addr,
    /// The gateway, in the guest's /24, such as 10.0.0.1.
    pub gateway: Ipv4Addr,
    /// What the guest may reach.
    pub policy: NetPolicy,
    /// The host's resolvers, asked in order.
    pub resolvers: Vec<SocketAddr>,
    /// The host's own addresses, see [`host_addresses`](crate::host_addresses()).
    pub own_addrs: Vec<IpAddr>,
}

/// Why a network cannot start.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Addresses that do not fit together.
    #[error("guest {guest_ip} and gateway {gateway} must be two host addresses of one /{PREFIX} network")]
    Addresses {
        /// As configured.
        guest_ip: Ipv4Addr,
        /// As configured.
        gateway: Ipv4Addr,
    },
    /// A path that does not fit into a Unix socket's address.
    #[error("{} is longer than the {} bytes that a Unix socket's path may have: use a shorter directory", .0.display(), link::MAX_PATH)]
    PathTooLong(PathBuf),
    /// The socket cannot be made.
    #[error("the VM's network socket {} cannot be made: check that its directory exists and is writable", .path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// One VM's network. Dropping it ends all connections and tasks and removes the socket.
#[derive(Debug)]
pub struct Network {
    shared: Arc<Shared>,
    driver: JoinHandle<()>,
}

impl Network {
    /// Makes the socket and starts serving; QEMU may come, go and be replaced later. Within a tokio runtime.
    ///
    /// # Errors
    /// [`NetworkError`]; nothing is left behind then.
    pub fn start(config: NetConfig) -> Result<(Self, mpsc::Receiver<GuestEvent>), NetworkError> {
        let facts = subnet(config.guest_ip, config.gateway)?;
        let link = Link::bind(config.stack_socket, config.qemu_socket)?;
        let (events, receiver) = mpsc::channel(MAX_WAITING_EVENTS);
        let stack = Stack::new(config.identity.mac, config.guest_ip, config.gateway);
        let shared = Arc::new(Shared::new(stack));
        let world = Arc::new(World { identity: config.identity, network: facts, events });
        let driver =
            Driver::new(link, shared.clone(), world, config.policy, config.resolvers, config.own_addrs);
        Ok((Self { shared, driver: tokio::spawn(driver.run()) }, receiver))
    }

    /// Opens a TCP connection from the gateway to a port of the guest.
    ///
    /// # Errors
    /// `NotConnected` while no QEMU is there, `ConnectionRefused` if the guest refuses, `TimedOut` if it does not
    /// answer within 10 s, `ResourceBusy` when 64 such
    /// connections exist.
    pub async fn connect_guest(&self, port: u16) -> io::Result<GuestStream> {
        GuestStream::connect(self.shared.clone(), port).await
    }

    /// What has passed so far.
    pub fn counters(&self) -> Counters {
        self.shared.lock().counters()
    }

    /// Ends everything and waits until it has ended.
    pub async fn shutdown(mut self) {
        self.driver.abort();
        // Cancelled, which is what was asked for.
        let _ = (&mut self.driver).await;
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn subnet(guest_ip: Ipv4Addr, gateway: Ipv4Addr) -> Result<NetworkFacts, NetworkError> {
    let network = |ip: Ipv4Addr| Ipv4Addr::from_bits(ip.to_bits() & (u32::MAX << (32 - PREFIX)));
    let is_host =
        |ip: Ipv4Addr| !matches!(ip.octets()[3], 0 | 255) && !ip.is_loopback() && !ip.is_multicast();
    let fits =
        network(guest_ip) == network(gateway) && guest_ip != gateway && is_host(guest_ip) && is_host(gateway);
    if !fits || guest_ip.octets()[0] == 0 {
        return Err(NetworkError::Addresses { guest_ip, gateway });
    }
    Ok(NetworkFacts { address: guest_ip, subnet: network(guest_ip), prefix: PREFIX })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_must_fit() {
        let fits = |guest: [u8; 4], gateway: [u8; 4]| subnet(guest.into(), gateway.into());
        assert_eq!(fits([10, 0, 0, 4], [10, 0, 0, 1]).unwrap().subnet, Ipv4Addr::new(10, 0, 0, 0));
        for (guest, gateway) in [
            ([10, 0, 0, 4], [10, 0, 1, 1]),
            ([10, 0, 0, 1], [10, 0, 0, 1]),
            ([10, 0, 0, 0], [10, 0, 0, 1]),
            ([10, 0, 0, 4], [10, 0, 0, 255]),
            ([127, 0, 0, 2], [127, 0, 0, 1]),
            ([0, 0, 0, 4], [0, 0, 0, 1]),
        ] {
            assert!(matches!(fits(guest, gateway), Err(NetworkError::Addresses { .. })), "{guest:?}");
        }
    }
}
