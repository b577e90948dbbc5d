//! What kind of place an address is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::azure_address::WIRESERVER;

/// The rule by which an address is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Why {
    /// 127.0.0.0/8, ::1
    #[error("it is a loopback address of the host")]
    Loopback,
    /// 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16
    #[error("it is a private address (RFC 1918)")]
    Private,
    /// 100.64.0.0/10
    #[error("it is in the shared address space 100.64.0.0/10")]
    SharedAddressSpace,
    /// 169.254.0.0/16, fe80::/10
    #[error("it is a link-local address")]
    LinkLocal,
    /// fc00::/7 and the older fec0::/10
    #[error("it is a unique-local address")]
    UniqueLocal,
    /// 224.0.0.0/4, ff00::/8
    #[error("it is a multicast address")]
    Multicast,
    /// 240.0.0.0/4 with the broadcast address
    #[error("it is a broadcast or reserved address")]
    Reserved,
    /// 0.0.0.0/8, ::
    #[error("it means this host or network")]
    ThisNetwork,
    /// 168.63.129.16: a public address that is the platform itself when the host is an Azure VM.
    #[error("it is Azure's platform service, which trusts the host it is asked from")]
    AzurePlatform,
    /// Teredo and local-use NAT64, whose real destination cannot be seen.
    #[error("it is a translated address whose destination cannot be judged")]
    Translated,
    /// An address of this host.
    #[error("it is an address of the host itself")]
    HostsOwn,
    /// `deny_all_outbound` is set.
    #[error("outbound connections are switched off")]
    OutboundDisabled,
    /// Port 0.
    #[error("port 0 cannot be connected to")]
    PortZero,
}

pub(super) fn denied(ip: IpAddr) -> Option<Why> {
    match ip {
        IpAddr::V4(ip) => denied_v4(ip),
        IpAddr::V6(ip) => denied_v6(ip),
    }
}

fn denied_v4(ip: Ipv4Addr) -> Option<Why> {
    let [a, b, ..] = ip.octets();
    match (a, b) {
        _ if ip == WIRESERVER => Some(Why::AzurePlatform),
        (0, _) => Some(Why::ThisNetwork),
        (127, _) => Some(Why::Loopback),
        (10, _) | (192, 168) | (172, 16..=31) => Some(Why::Private),
        (100, 64..=127) => Some(Why::SharedAddressSpace),
        (169, 254) => Some(Why::LinkLocal),
        (224..=239, _) => Some(Why::Multicast),
        (240..=255, _) => Some(Why::Reserved),
        _ => None,
    }
}

fn denied_v6(ip: Ipv6Addr) -> Option<Why> {
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Some(Why::Loopback),
        [0, 0, 0, 0, 0, 0, 0, 0] => Some(Why::ThisNetwork),
        [0xfe80..=0xfebf, ..] => Some(Why::LinkLocal),
        [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Some(Why::UniqueLocal),
        [0xff00..=0xffff, ..] => Some(Why::Multicast),
        // Teredo hides the client's address and port; RFC 8215's NAT64 prefix is for a site's own use, of any length.
        [0x2001, 0, ..] | [0x64, 0xff9b, 1, ..] => Some(Why::Translated),
        _ => None,
    }
}

/// The IPv4 address that an IPv6 address leads to, for the forms where that can be read off.
///
/// Mapped addresses (`::ffff:a.b.c.d`) are the same address in another notation and are made canonical before.
pub(super) fn embedded(ip: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(ip) = ip else { return None };
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
    };
    match ip.segments() {
        // :: and ::1 are addresses of their own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0, high, low] => v4(high, low), // IPv4-compatible
        [0, 0, 0, 0, 0xffff, 0, high, low] => v4(high, low), // SIIT
        [0x2002, high, low, ..] => v4(high, low),       // 6to4
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low), // NAT64
        _ => None,
    }
}
