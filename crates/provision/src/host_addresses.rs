//! The host's own addresses, which `netpolicy` keeps guests and fetches away from.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const IPV4_TABLE: &str = "/proc/net/fib_trie";
const IPV6_TABLE: &str = "/proc/net/if_inet6";
/// More than hosts have; a limit for what is kept.
const MAX_ADDRESSES: usize = 4096;

/// Every address of every interface of this host, loopback included, as the kernel's tables in `/proc` list them.
///
/// # Errors
/// A table that cannot be read, except that of IPv6 where the kernel has none.
pub fn host_addresses() -> io::Result<Vec<IpAddr>> {
    let mut found = parse_ipv4(&std::fs::read_to_string(IPV4_TABLE)?);
    match std::fs::read_to_string(IPV6_TABLE) {
        Ok(text) => found.extend(parse_ipv6(&text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    found.truncate(MAX_ADDRESSES);
    Ok(found)
}

/// The routing trie: an address line, followed by `/32 host LOCAL` if it is the host's.
fn parse_ipv4(text: &str) -> Vec<IpAddr> {
    let mut found = vec![];
    let mut last = None;
    for line in text.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(last.map(IpAddr::V4));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Lines such as `fe80…01 04 40 20 80 eth0`: the address is 32 hexadecimal digits.
fn parse_ipv6(text: &str) -> Vec<IpAddr> {
    let digits = text.lines().filter_map(|line| line.split_ascii_whitespace().next());
    digits
        .filter(|digits| digits.len() == 32)
        .filter_map(|digits| u128::from_str_radix(digits, 16).ok())
        .map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 127.0.0.0\n        /8 host LOCAL\n     |-- 127.0.0.1\n        \
                    /32 host LOCAL\n     |-- 192.0.2.0\n        /24 link UNICAST\n     |-- 192.0.2.2\n        \
                    /32 host LOCAL\n     |-- 192.0.2.255\n        /32 link BROADCAST\nLocal:\n     |-- 192.0.2.2\n        \
                    /32 host LOCAL\n";
        assert_eq!(parse_ipv4(trie), ["127.0.0.1", "192.0.2.2"].map(|a| a.parse::<IpAddr>().unwrap()));
        let inet6 = "fd000000000000000000000000000002 04 40 00 82     eth0\nshort 01\n";
        assert_eq!(parse_ipv6(inet6), ["fd00::2".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn this_host_has_loopback() {
        assert!(host_addresses().unwrap().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
