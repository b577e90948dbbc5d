//! Which addresses users' requests may reach: one judgement for the guests' relay and for the server's own fetches.
//!
//! It is asked about the address that is about to be connected to, at each connect and redirect, never about a name
//! alone: a name can change its address between the question and the connection (DNS rebinding). What leads into the
//! host or its private networks is denied, in every notation that reaches the same place (IPv6-mapped, 6to4, NAT64),
//! unless an explicit entry allows it.
//!
//! `Ipv4Addr::is_global` and its relatives are not used: documentation ranges such as 203.0.113.0/24 are ordinary
//! addresses to us, and people do run registries there.

mod classify;
mod entry;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

pub use classify::Why;
pub use entry::{AllowEntry, Network, ParseEntryError};

/// What may be reached beyond the public internet, or at all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetPolicy {
    /// Explicit permissions; they win over every rule.
    pub allow: Vec<AllowEntry>,
    /// Deny even public addresses that no entry allows.
    pub deny_all_outbound: bool,
}

/// A refusal: the rule, and what would satisfy it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{addr} is denied: {why}; an allow entry such as `{addr}` would permit it")]
pub struct Denied {
    /// The address as asked.
    pub addr: SocketAddr,
    /// The rule.
    pub why: Why,
}

impl NetPolicy {
    /// Whether a connection to `addr` may be made.
    ///
    /// `host_name` is the name that `addr` was resolved from, if there was one; only entries for names look at it.
    /// `own_addrs` are the host's own addresses ([`host_addresses`](crate::host_addresses())): they may be public and
    /// still lead to services that trust the host.
    pub fn judge(
        &self,
        host_name: Option<&str>,
        addr: SocketAddr,
        own_addrs: &[IpAddr],
    ) -> Result<(), Denied> {
        let ip = addr.ip().to_canonical();
        if self.allow.iter().any(|entry| entry.permits(host_name, ip, addr.port())) {
            return Ok(());
        }
        let denied = |why| Err(Denied { addr, why });
        if self.deny_all_outbound {
            return denied(Why::OutboundDisabled);
        }
        for ip in std::iter::once(ip).chain(classify::embedded(ip)) {
            if let Some(why) = classify::denied(ip) {
                return denied(why);
            }
            if own_addrs.iter().any(|own| own.to_canonical() == ip) {
                return denied(Why::HostsOwn);
            }
        }
        if addr.port() == 0 { denied(Why::PortZero) } else { Ok(()) }
    }

    /// Whether an entry names this host, with any port.
    pub(crate) fn names(&self, host_name: &str) -> bool {
        self.allow.iter().any(|entry| entry.is_host(host_name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(entries: &[&str]) -> NetPolicy {
        NetPolicy { allow: entries.iter().map(|e| e.parse().unwrap()).collect(), deny_all_outbound: false }
    }

    fn why(policy: &NetPolicy, host: Option<&str>, addr: &str) -> Option<Why> {
        let own = ["198.51.100.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        policy.judge(host, addr.parse().unwrap(), &own).err().map(|denied| denied.why)
    }

    #[test]
    fn without_entries() {
        for (addr, want) in [
            ("127.0.0.1:80", Some(Why::Loopback)),
            ("127.255.0.9:80", Some(Why::Loopback)),
            ("10.0.0.1:80", Some(Why::Private)),
            ("172.16.0.1:80", Some(Why::Private)),
            ("172.31.255.255:80", Some(Why::Private)),
            ("172.32.0.1:80", None),
            ("192.168.1.1:80", Some(Why::Private)),
            ("192.169.1.1:80", None),
            ("100.63.255.255:80", None),
            ("100.64.0.1:80", Some(Why::SharedAddressSpace)),
            ("100.127.255.255:80", Some(Why::SharedAddressSpace)),
            ("100.128.0.1:80", None),
            ("169.254.169.254:80", Some(Why::LinkLocal)),
            ("168.63.129.16:80", Some(Why::AzurePlatform)),
            ("168.63.129.17:80", None),
            ("224.0.0.1:80", Some(Why::Multicast)),
            ("255.255.255.255:80", Some(Why::Reserved)),
            ("240.0.0.1:80", Some(Why::Reserved)),
            ("0.0.0.0:80", Some(Why::ThisNetwork)),
            ("0.1.2.3:80", Some(Why::ThisNetwork)),
            ("203.0.113.9:443", None),
            ("192.0.2.1:443", None),
            ("198.51.100.8:443", None),
            ("198.51.100.7:443", Some(Why::HostsOwn)),
            ("8.8.8.8:53", None),
            ("8.8.8.8:0", Some(Why::PortZero)),
            ("[::1]:80", Some(Why::Loopback)),
            ("[::]:80", Some(Why::ThisNetwork)),
            ("[::ffff:127.0.0.1]:80", Some(Why::Loopback)),
            ("[::ffff:10.1.2.3]:80", Some(Why::Private)),
            ("[::ffff:198.51.100.7]:80", Some(Why::HostsOwn)),
            ("[::ffff:8.8.8.8]:80", None),
            ("[::127.0.0.1]:80", Some(Why::Loopback)),
            ("[2002:7f00:1::]:80", Some(Why::Loopback)),
            ("[2002:c0a8:101::1]:80", Some(Why::Private)),
            ("[2002:808:808::1]:80", None),
            ("[64:ff9b::10.0.0.1]:80", Some(Why::Private)),
            ("[64:ff9b::a9fe:a9fe]:80", Some(Why::LinkLocal)),
            ("[64:ff9b::8.8.8.8]:80", None),
            ("[64:ff9b:1::8.8.8.8]:80", Some(Why::Translated)),
            ("[2001:0:1::1]:80", Some(Why::Translated)),
            ("[fe80::1]:80", Some(Why::LinkLocal)),
            ("[febf::1]:80", Some(Why::LinkLocal)),
            ("[fec0::1]:80", Some(Why::UniqueLocal)),
            ("[fc00::1]:80", Some(Why::UniqueLocal)),
            ("[fdff::1]:80", Some(Why::UniqueLocal)),
            ("[ff02::1]:80", Some(Why::Multicast)),
            ("[2001:db8::7]:80", Some(Why::HostsOwn)),
            ("[2001:db8::8]:80", None),
            ("[2606:4700::1111]:443", None),
        ] {
            assert_eq!(why(&policy(&[]), None, addr), want, "{addr}");
        }
    }

    #[test]
    fn entries_allow_exactly_what_they_say() {
        for (entry, host, addr, allowed) in [
            ("127.0.0.1:8080", None, "127.0.0.1:8080", true),
            ("127.0.0.1:8080", None, "127.0.0.1:8081", false),
            ("127.0.0.1:8080", None, "127.0.0.2:8080", false),
            ("127.0.0.1:8080", None, "[::ffff:127.0.0.1]:8080", true),
            ("127.0.0.1:8080", None, "[2002:7f00:1::]:8080", false),
            ("198.51.100.7", None, "198.51.100.7:22", true),
            ("10.0.0.0/8", None, "10.255.0.1:1", true),
            ("10.0.0.0/8", None, "11.0.0.1:1", true),
            ("10.0.0.0/9", None, "10.128.0.1:1", false),
            ("0.0.0.0/0", None, "192.168.0.1:1", true),
            ("0.0.0.0/0", None, "[fd00::1]:1", false),
            ("[::1]:443", None, "[::1]:443", true),
            ("fd00::/8", None, "[fdab::1]:443", true),
            ("files.corp", Some("files.corp"), "10.1.1.1:80", true),
            ("files.corp", Some("FILES.corp."), "10.1.1.1:80", true),
            ("files.corp:443", Some("files.corp"), "10.1.1.1:80", false),
            ("files.corp", Some("evil.files.corp"), "10.1.1.1:80", false),
            ("files.corp", None, "10.1.1.1:80", false),
        ] {
            assert_eq!(why(&policy(&[entry]), host, addr).is_none(), allowed, "{entry} {host:?} {addr}");
        }
    }

    #[test]
    fn everything_denied_but_entries() {
        let mut policy = policy(&["203.0.113.9:443"]);
        policy.deny_all_outbound = true;
        assert_eq!(why(&policy, None, "203.0.113.9:443"), None);
        assert_eq!(why(&policy, None, "203.0.113.9:80"), Some(Why::OutboundDisabled));
    }

    #[test]
    fn a_refusal_says_how_to_allow_it() {
        let denied = policy(&[]).judge(None, "10.1.2.3:80".parse().unwrap(), &[]).unwrap_err();
        let text = denied.to_string();
        assert_eq!(
            text,
            "10.1.2.3:80 is denied: it is a private address (RFC 1918); an allow entry such as `10.1.2.3:80` would permit it"
        );
        let entry = text.split('`').nth(1).unwrap();
        assert!(policy(&[entry]).judge(None, denied.addr, &[]).is_ok());
    }

    #[test]
    fn as_json() {
        let json = serde_json::json!({ "allow": ["10.0.0.0/8", "[::1]:80", "Files.Corp:443"], "deny_all_outbound": true });
        let policy: NetPolicy = serde_json::from_value(json).unwrap();
        let again = serde_json::to_value(&policy).unwrap();
        assert_eq!(again["allow"], serde_json::json!(["10.0.0.0/8", "[::1]:80", "files.corp:443"]));
        assert!(serde_json::from_str::<NetPolicy>(r#"{"allow":["10.0.0.0/33"]}"#).is_err());
        assert!(serde_json::from_str::<NetPolicy>(r#"{"deny":[]}"#).is_err());
    }
}
