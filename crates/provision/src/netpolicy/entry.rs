//! An explicit permission: `ip[:port]`, `cidr`, or `hostname[:port]`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest host name that DNS knows, in bytes.
const MAX_HOST_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// One permission. Written as text: `10.1.2.3`, `10.1.2.3:443`, `10.0.0.0/8`, `[fd00::1]:443`, `files.corp:443`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AllowEntry {
    /// One address, with one port or all.
    Address {
        /// Canonical: never an IPv4-mapped IPv6 address.
        ip: IpAddr,
        /// `None` is every port.
        port: Option<u16>,
    },
    /// A network, all ports.
    Network(Network),
    /// A host by name, with one port or all, whatever address it has.
    Host {
        /// Lower case, without a final dot. Matches this name only, not names under it.
        name: String,
        /// `None` is every port.
        port: Option<u16>,
    },
}

/// A network in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    base: IpAddr,
    prefix: u8,
}

/// Text that is no entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not an allow entry: {problem}; write `ip`, `ip:port`, `[ipv6]:port`, `network/prefix`, `host` or `host:port`"
)]
pub struct ParseEntryError {
    text: String,
    problem: &'static str,
}

impl AllowEntry {
    /// `ip` must be canonical.
    pub(super) fn permits(&self, host_name: Option<&str>, ip: IpAddr, port: u16) -> bool {
        let port_fits = |wanted: &Option<u16>| wanted.is_none_or(|wanted| wanted == port);
        match self {
            Self::Address { ip: allowed, port } => *allowed == ip && port_fits(port),
            Self::Network(network) => network.contains(ip),
            Self::Host { port, .. } => port_fits(port) && host_name.is_some_and(|name| self.is_host(name)),
        }
    }

    pub(super) fn is_host(&self, host_name: &str) -> bool {
        let host_name = host_name.strip_suffix('.').unwrap_or(host_name);
        matches!(self, Self::Host { name, .. } if name.eq_ignore_ascii_case(host_name))
    }
}

impl Network {
    /// Whether `ip` (canonical) is in this network.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let differing = match (self.base, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => u128::from(a.to_bits() ^ b.to_bits()) << 96,
            (IpAddr::V6(a), IpAddr::V6(b)) => a.to_bits() ^ b.to_bits(),
            _ => return false,
        };
        differing.leading_zeros() >= u32::from(self.prefix)
    }
}

impl FromStr for AllowEntry {
    type Err = ParseEntryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |problem| ParseEntryError { text: text.chars().take(MAX_HOST_NAME).collect(), problem };
        if let Some((base, prefix)) = text.split_once('/') {
            return network(base, prefix).map(Self::Network).map_err(error);
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Address { ip: ip.to_canonical(), port: None });
        }
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return match addr.port() {
                0 => Err(error("port 0 means nothing")),
                port => Ok(Self::Address { ip: addr.ip().to_canonical(), port: Some(port) }),
            };
        }
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, Some(parse_port(port).map_err(error)?)),
            None => (text, None),
        };
        host_name(name).map(|name| Self::Host { name, port }).map_err(error)
    }
}

fn network(base: &str, prefix: &str) -> Result<Network, &'static str> {
    let base: IpAddr = base.parse().map_err(|_| "before the slash there is no IP address")?;
    if base != base.to_canonical() {
        return Err("an IPv4-mapped network is written as IPv4");
    }
    let max = if base.is_ipv4() { 32 } else { 128 };
    let prefix = Some(prefix)
        .filter(|p| p.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|p| p.parse::<u8>().ok())
        .filter(|p| *p <= max)
        .ok_or("the prefix length is a number up to 32 (IPv4) or 128 (IPv6)")?;
    let host_bits = match base {
        IpAddr::V4(ip) => ip.to_bits().checked_shl(u32::from(prefix)).unwrap_or(0) != 0,
        IpAddr::V6(ip) => ip.to_bits().checked_shl(u32::from(prefix)).unwrap_or(0) != 0,
    };
    if host_bits { Err("the address has bits beyond the prefix") } else { Ok(Network { base, prefix }) }
}

fn parse_port(text: &str) -> Result<u16, &'static str> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port @ 1..) if digits => Ok(port),
        _ => Err("the port is a number from 1 to 65535"),
    }
}

fn host_name(text: &str) -> Result<String, &'static str> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let label_fits = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > MAX_HOST_NAME || !name.split('.').all(label_fits) {
        return Err("it is neither an address nor a host name");
    }
    // 10.1 or 127.0.0.256 look like addresses and were surely meant as such.
    if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
        return Err("it looks like an IPv4 address but is none");
    }
    Ok(name)
}

impl fmt::Display for AllowEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { ip, port: None } => write!(f, "{ip}"),
            Self::Address { ip, port: Some(port) } => write!(f, "{}", SocketAddr::new(*ip, *port)),
            Self::Network(Network { base, prefix }) => write!(f, "{base}/{prefix}"),
            Self::Host { name, port: None } => write!(f, "{name}"),
            Self::Host { name, port: Some(port) } => write!(f, "{name}:{port}"),
        }
    }
}

impl TryFrom<String> for AllowEntry {
    type Error = ParseEntryError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<AllowEntry> for String {
    fn from(entry: AllowEntry) -> Self {
        entry.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn good_and_bad_text() {
        for good in [
            "1.2.3.4",
            "1.2.3.4:80",
            "10.0.0.0/8",
            "0.0.0.0/0",
            "1.2.3.4/32",
            "::1",
            "[::1]:80",
            "::/0",
            "fd00::/8",
            "localhost",
            "localhost:8080",
            "a_b.example-x.org",
        ] {
            assert_eq!(good.parse::<AllowEntry>().unwrap().to_string(), good);
        }
        assert_eq!("Files.Corp.:443".parse::<AllowEntry>().unwrap().to_string(), "files.corp:443");
        assert_eq!("::ffff:10.0.0.1".parse::<AllowEntry>().unwrap().to_string(), "10.0.0.1");
        for (bad, problem) in [
            ("", "neither"),
            ("1.2.3.4:0", "port 0"),
            ("1.2.3.4:70000", "port"),
            ("1.2.3.256", "looks like"),
            ("10.1", "looks like"),
            ("10.0.0.1/8", "bits beyond"),
            ("10.0.0.0/33", "prefix length"),
            ("10.0.0.0/+8", "prefix length"),
            ("::/129", "prefix length"),
            ("::ffff:10.0.0.0/104", "written as IPv4"),
            ("host/8", "before the slash"),
            ("host:", "port is"),
            ("host:+80", "port is"),
            ("host name", "neither"),
            ("*.example.org", "neither"),
            ("-a.org", "neither"),
            ("a..b", "neither"),
            ("http://x", "before the slash"),
        ] {
            let error = bad.parse::<AllowEntry>().unwrap_err().to_string();
            assert!(error.contains(problem), "{bad}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_entry_or_an_error(text in ".{0,80}") {
            if let Ok(entry) = text.parse::<AllowEntry>() {
                prop_assert_eq!(entry.to_string().parse::<AllowEntry>().unwrap(), entry);
            }
        }
    }
}
