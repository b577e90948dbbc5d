//! Fetching on a user's behalf: from a name to addresses that may be connected to.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::netpolicy::{Denied, NetPolicy};

/// Most addresses of one name that are looked at.
const MAX_ADDRESSES: usize = 32;
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a host may not, or cannot, be fetched from.
#[derive(Debug, thiserror::Error)]
pub enum FetchDenied {
    /// Every address of the host is denied; this is the first.
    #[error("`{host}` may not be fetched from: {denied}, or `{host}`")]
    Policy {
        /// The host as asked.
        host: String,
        /// The judgement of its first address.
        #[source]
        denied: Denied,
    },
    /// The name has no address.
    #[error("`{host}` cannot be resolved: check the name and the host's DNS")]
    Resolve {
        /// The host as asked.
        host: String,
        /// What the resolver said.
        #[source]
        source: std::io::Error,
    },
}

/// The addresses of `host` (a name, an IP address, or a bracketed IPv6 address) that `policy` allows, in the resolver's
/// order.
///
/// Connect to exactly these, for instance through reqwest's `resolve_to_addrs`, without a proxy, and ask again at each
/// redirect: whoever resolves the name a second time may get another answer. The list is never empty.
pub async fn resolve_allowed(
    policy: &NetPolicy,
    own_addrs: &[IpAddr],
    host: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, FetchDenied> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let resolve_error = |source| FetchDenied::Resolve { host: host.to_owned(), source };
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((bare, port)))
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .map_err(resolve_error)?;
    let mut allowed = vec![];
    let mut first_denied = None;
    for addr in found.take(MAX_ADDRESSES) {
        match policy.judge(Some(bare), addr, own_addrs) {
            Ok(()) if !allowed.contains(&addr) => allowed.push(addr),
            Ok(()) => {}
            Err(denied) => first_denied = first_denied.or(Some(denied)),
        }
    }
    match first_denied {
        Some(denied) if allowed.is_empty() => Err(FetchDenied::Policy { host: host.to_owned(), denied }),
        None if allowed.is_empty() => Err(resolve_error(std::io::ErrorKind::NotFound.into())),
        _ => Ok(allowed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn resolve(entries: &[&str], host: &str) -> Result<Vec<SocketAddr>, FetchDenied> {
        let allow = entries.iter().map(|e| e.parse().unwrap()).collect();
        let policy = NetPolicy { allow, deny_all_outbound: false };
        resolve_allowed(&policy, &["192.0.2.2".parse().unwrap()], host, 8080).await
    }

    #[tokio::test]
    async fn names_and_addresses_are_judged() {
        assert!(matches!(resolve(&[], "localhost").await, Err(FetchDenied::Policy { .. })));
        let localhost = resolve(&["localhost:8080"], "localhost").await.unwrap();
        assert!(!localhost.is_empty() && localhost.iter().all(|a| a.ip().is_loopback()), "{localhost:?}");
        assert_eq!(
            resolve(&["127.0.0.0/8"], "localhost").await.unwrap(),
            ["127.0.0.1:8080".parse().unwrap()]
        );
        assert_eq!(resolve(&[], "203.0.113.1").await.unwrap(), ["203.0.113.1:8080".parse().unwrap()]);
        assert_eq!(resolve(&[], "[2001:db8::1]").await.unwrap(), ["[2001:db8::1]:8080".parse().unwrap()]);
        for denied in
            ["192.0.2.2", "127.0.0.1", "[::1]", "::ffff:10.0.0.1", "0.0.0.0", "2130706433", "0x7f.1"]
        {
            let error = resolve(&[], denied).await.unwrap_err();
            // The last two are addresses only to C libraries: denied if resolved, and else not found.
            assert!(
                matches!(error, FetchDenied::Policy { .. } | FetchDenied::Resolve { .. }),
                "{denied}: {error}"
            );
        }
    }

    #[tokio::test]
    async fn a_name_that_is_none() {
        let error = resolve(&[], "no such name").await.unwrap_err();
        assert!(matches!(error, FetchDenied::Resolve { .. }), "{error}");
    }
}
