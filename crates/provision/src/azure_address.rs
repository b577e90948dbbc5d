//! The addresses that every Azure guest has built in.

use std::net::Ipv4Addr;

use crate::mac::MacAddress;

/// Wireserver, host plugin, DNS and DHCP (option 245).
pub(crate) const WIRESERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
/// Instance metadata service.
pub(crate) const IMDS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The address that Azure's virtual switch answers every ARP request with.
pub(crate) const SWITCH_MAC: MacAddress = MacAddress([0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc]);
/// Suffix of the guests' names, as in Azure's default virtual network.
pub(crate) const DNS_SUFFIX: &str = "internal.cloudapp.net";
