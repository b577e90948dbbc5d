//! The resolver at 168.63.129.16:53: answers for the VM's own name, forwards the rest to the host's resolvers.
//!
//! The forwarder also remembers which addresses an allowed *name* was answered with: the relay sees addresses only,
//! and an allow entry for a host must still work. Only names with an entry are remembered, so that a guest cannot
//! make one up that stands for an address.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket};

use super::dns::{self, Question, Record, ResponseCode, TYPE_A, TYPE_PTR};
use super::frame::MAX_UDP;
use crate::azure_address::DNS_SUFFIX;
use crate::netpolicy::NetPolicy;

/// Questions that one guest may have under way.
pub(super) const MAX_IN_FLIGHT: usize = 64;
/// How long one resolver is waited for, and how many are asked.
const RESOLVER_TIMEOUT: Duration = Duration::from_secs(3);
const MAX_RESOLVERS: usize = 3;
/// Longest answer that is read; longer ones come over TCP.
const MAX_ANSWER: usize = 4096;
/// Addresses that are remembered for allowed names.
const MAX_REMEMBERED: usize = 1024;
const MAX_NAMES_PER_ADDRESS: usize = 8;

/// The resolver of one VM.
#[derive(Debug)]
pub(super) struct Resolver {
    hostname: String,
    guest_ip: Ipv4Addr,
    policy: NetPolicy,
    resolvers: Vec<SocketAddr>,
    names: Mutex<NameMemory>,
}

/// Allowed names by the addresses they were answered with, oldest address first.
#[derive(Debug, Default)]
struct NameMemory {
    names: HashMap<Ipv4Addr, Vec<String>>,
    order: VecDeque<Ipv4Addr>,
}

impl Resolver {
    pub(super) fn new(
        hostname: &str,
        guest_ip: Ipv4Addr,
        policy: NetPolicy,
        resolvers: Vec<SocketAddr>,
    ) -> Self {
        let hostname = hostname.to_ascii_lowercase();
        Self { hostname, guest_ip, policy, resolvers, names: Mutex::default() }
    }

    /// The response to a guest's message; `None` if it is no question.
    pub(super) async fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let question = dns::question(query)?;
        if let Some((code, record)) = self.own(&question) {
            return Some(dns::response(query, &question, code, record.as_ref()));
        }
        if self.policy.deny_all_outbound && !self.policy.names(&question.name) {
            // At once, so that sudo and the like do not wait; and a name is a way out, too.
            return Some(dns::response(query, &question, ResponseCode::NoSuchName, None));
        }
        match self.forward(query).await {
            Some(response) => {
                self.remember(&question.name, &dns::addresses(&response));
                if response.len() > MAX_UDP { dns::truncated(&response) } else { Some(response) }
            }
            None => Some(dns::response(query, &question, ResponseCode::ServerFailure, None)),
        }
    }

    /// What is not asked of anybody else: the VM's own names, and the domain that only exists in here.
    fn own(&self, question: &Question) -> Option<(ResponseCode, Option<Record>)> {
        let suffix =
            question.name.strip_suffix(DNS_SUFFIX).filter(|rest| rest.is_empty() || rest.ends_with('.'));
        let bare = suffix.map_or(question.name.as_str(), |rest| rest.trim_end_matches('.'));
        if bare == self.hostname {
            let record = (question.kind == TYPE_A).then_some(Record::Address(self.guest_ip));
            return Some((ResponseCode::Ok, record));
        }
        let [a, b, c, d] = self.guest_ip.octets();
        if question.name == format!("{d}.{c}.{b}.{a}.in-addr.arpa") {
            let name = format!("{}.{DNS_SUFFIX}", self.hostname);
            return Some((ResponseCode::Ok, (question.kind == TYPE_PTR).then_some(Record::Name(name))));
        }
        suffix.map(|_| (ResponseCode::NoSuchName, None))
    }

    async fn forward(&self, query: &[u8]) -> Option<Vec<u8>> {
        for resolver in self.resolvers.iter().take(MAX_RESOLVERS) {
            match tokio::time::timeout(RESOLVER_TIMEOUT, ask(*resolver, query)).await {
                Ok(Ok(response)) => return Some(response),
                Ok(Err(error)) => tracing::debug!(%resolver, %error, "DNS"),
                Err(_) => tracing::debug!(%resolver, "DNS: no answer in time"),
            }
        }
        None
    }

    /// A connection to a resolver, for a guest that asks over TCP. With names denied there is none.
    pub(super) async fn connect(&self) -> Option<TcpStream> {
        if self.policy.deny_all_outbound {
            return None;
        }
        for resolver in self.resolvers.iter().take(MAX_RESOLVERS) {
            if let Ok(Ok(stream)) = tokio::time::timeout(RESOLVER_TIMEOUT, TcpStream::connect(resolver)).await
            {
                return Some(stream);
            }
        }
        None
    }

    fn remember(&self, name: &str, addresses: &[Ipv4Addr]) {
        if self.policy.names(name) {
            let mut memory = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            addresses.iter().for_each(|address| memory.insert(*address, name));
        }
    }

    /// Judges an address that the guest wants to reach, under every allowed name that it was answered for.
    pub(super) fn judge(&self, to: SocketAddr, own_addrs: &[IpAddr]) -> Result<(), crate::netpolicy::Denied> {
        let verdict = self.policy.judge(None, to, own_addrs);
        let IpAddr::V4(ip) = to.ip() else { return verdict };
        let memory = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let names = memory.names.get(&ip).into_iter().flatten();
        let by_name = names.map(|name| self.policy.judge(Some(name), to, own_addrs)).find(Result::is_ok);
        by_name.unwrap_or(verdict)
    }
}

impl NameMemory {
    fn insert(&mut self, address: Ipv4Addr, name: &str) {
        if !self.names.contains_key(&address) {
            self.order.push_back(address);
        }
        let names = self.names.entry(address).or_default();
        if names.len() < MAX_NAMES_PER_ADDRESS && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
        if self.order.len() > MAX_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
    }
}

/// One question to one resolver, from a port of its own, so that a forged answer has to guess it.
async fn ask(resolver: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = if resolver.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_ANSWER];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if dns::answers(&buffer[..len], query) {
            buffer.truncate(len);
            return Ok(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::dns::tests::query;
    use super::*;

    fn resolver(policy: NetPolicy, resolvers: Vec<SocketAddr>) -> Resolver {
        Resolver::new("Web1", Ipv4Addr::new(10, 0, 0, 4), policy, resolvers)
    }

    /// Response code and addresses.
    async fn ask(resolver: &Resolver, name: &str, kind: u16) -> (u8, Vec<Ipv4Addr>) {
        let response = resolver.answer(&query(7, name, kind)).await.unwrap();
        (response[3] & 15, dns::addresses(&response))
    }

    /// A resolver on loopback that knows one address for every name.
    async fn upstream(address: Ipv4Addr) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
                let query = &buffer[..len];
                let asked = dns::question(query).unwrap();
                // A forged one first: another question's.
                let mut forged = dns::response(query, &asked, ResponseCode::NoSuchName, None);
                forged[0] ^= 1;
                socket.send_to(&forged, from).await.unwrap();
                let answer = dns::response(query, &asked, ResponseCode::Ok, Some(&Record::Address(address)));
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        at
    }

    #[tokio::test]
    async fn own_names_stay_inside() {
        let resolver = resolver(NetPolicy::default(), vec![]);
        let own = vec![Ipv4Addr::new(10, 0, 0, 4)];
        assert_eq!(ask(&resolver, "web1", TYPE_A).await, (0, own.clone()));
        assert_eq!(ask(&resolver, "WEB1.internal.cloudapp.net", TYPE_A).await, (0, own));
        assert_eq!(ask(&resolver, "web1", 28).await, (0, vec![]));
        assert_eq!(ask(&resolver, "other.internal.cloudapp.net", TYPE_A).await.0, 3);
        assert_eq!(ask(&resolver, "4.0.0.10.in-addr.arpa", TYPE_PTR).await.0, 0);
        // No resolver: a failure, not silence.
        assert_eq!(ask(&resolver, "example.org", TYPE_A).await.0, 2);
        assert_eq!(ask(&resolver, "notinternal.cloudapp.net", TYPE_A).await.0, 2);
        assert_eq!(resolver.answer(b"garbage").await, None);
    }

    #[tokio::test]
    async fn others_are_forwarded_and_allowed_names_remembered() {
        let private = Ipv4Addr::new(10, 1, 1, 1);
        let policy: NetPolicy = serde_json::from_str(r#"{"allow": ["files.corp:443"]}"#).unwrap();
        let resolver = resolver(policy, vec![upstream(private).await]);
        let port = |port| SocketAddr::from((private, port));
        assert!(resolver.judge(port(443), &[]).is_err());
        assert_eq!(ask(&resolver, "evil.example", TYPE_A).await, (0, vec![private]));
        assert!(resolver.judge(port(443), &[]).is_err());
        assert_eq!(ask(&resolver, "files.corp", TYPE_A).await, (0, vec![private]));
        assert!(resolver.judge(port(443), &[]).is_ok());
        assert!(resolver.judge(port(80), &[]).is_err());
    }

    #[tokio::test]
    async fn with_everything_denied_only_allowed_names_are_asked_for() {
        let policy: NetPolicy =
            serde_json::from_str(r#"{"allow": ["files.corp"], "deny_all_outbound": true}"#).unwrap();
        let resolver = resolver(policy, vec![upstream(Ipv4Addr::new(10, 1, 1, 1)).await]);
        assert_eq!(ask(&resolver, "secret.evil.example", TYPE_A).await.0, 3);
        assert_eq!(ask(&resolver, "files.corp", TYPE_A).await.0, 0);
        assert!(resolver.connect().await.is_none());
    }

    #[test]
    fn memory_is_bounded() {
        let mut memory = NameMemory::default();
        for i in 0..(MAX_REMEMBERED as u32 * 2) {
            memory.insert(Ipv4Addr::from_bits(i), "a");
            memory.insert(Ipv4Addr::from_bits(i), &format!("n{i}"));
        }
        assert_eq!((memory.names.len(), memory.order.len()), (MAX_REMEMBERED, MAX_REMEMBERED));
    }
}
