//! A guest's UDP datagrams to the outside: for each pair of ports a connected socket of the host, so that only the
//! destination's answers come back.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::frame::{self, MAX_UDP, Unreachable};
use super::stream::Shared;
use crate::mac::MacAddress;

/// Flows that a guest may have at a time.
const MAX_FLOWS: usize = 256;
/// Datagrams of the guest that wait for the host's socket; more are lost, as UDP's are.
const MAX_WAITING: usize = 64;
/// How long a flow lives without a datagram either way.
const IDLE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct UdpRelay {
    mac: MacAddress,
    flows: HashMap<(SocketAddrV4, SocketAddrV4), mpsc::Sender<Vec<u8>>>,
}

/// What became of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Relayed {
    Yes,
    Lost,
    OverLimit,
}

impl UdpRelay {
    pub(super) fn new(mac: MacAddress) -> Self {
        Self { mac, flows: HashMap::new() }
    }

    /// Whether the datagram belongs to a flow that was judged already.
    pub(super) fn knows(&self, from: SocketAddrV4, to: SocketAddrV4) -> bool {
        self.flows.get(&(from, to)).is_some_and(|flow| !flow.is_closed())
    }

    /// Sends a datagram on; a new flow becomes a task.
    pub(super) fn relay(
        &mut self,
        from: SocketAddrV4,
        to: SocketAddrV4,
        payload: Vec<u8>,
        shared: &Arc<Shared>,
        tasks: &mut JoinSet<()>,
    ) -> Relayed {
        if !self.knows(from, to) {
            self.flows.retain(|_, flow| !flow.is_closed());
            if self.flows.len() >= MAX_FLOWS {
                return Relayed::OverLimit;
            }
            let (sender, receiver) = mpsc::channel(MAX_WAITING);
            tasks.spawn(run(shared.clone(), self.mac, from, to, receiver));
            self.flows.insert((from, to), sender);
        }
        match self.flows.get(&(from, to)).map(|flow| flow.try_send(payload)) {
            Some(Ok(())) => Relayed::Yes,
            _ => Relayed::Lost,
        }
    }

    /// Ends every flow.
    pub(super) fn clear(&mut self) {
        self.flows.clear();
    }
}

async fn run(
    shared: Arc<Shared>,
    mac: MacAddress,
    guest: SocketAddrV4,
    far: SocketAddrV4,
    mut outgoing: mpsc::Receiver<Vec<u8>>,
) {
    if let Err(error) = carry(&shared, mac, guest, far, &mut outgoing).await {
        tracing::debug!(%far, %error, "a UDP flow ends");
        if error.kind() == ErrorKind::ConnectionRefused {
            shared.send(frame::unreachable(mac, guest, far, Unreachable::Port)).await;
        }
    }
}

async fn carry(
    shared: &Shared,
    mac: MacAddress,
    guest: SocketAddrV4,
    far: SocketAddrV4,
    outgoing: &mut mpsc::Receiver<Vec<u8>>,
) -> std::io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(SocketAddr::V4(far)).await?;
    // One more than fits, so that what does not fit is seen.
    let mut buffer = vec![0; MAX_UDP + 1];
    loop {
        tokio::select! {
            payload = outgoing.recv() => match payload {
                Some(payload) => drop(socket.send(&payload).await?),
                None => return Ok(()),
            },
            received = socket.recv(&mut buffer) => {
                let len = received?;
                if let Some(frame) = frame::udp(mac, far, guest, &buffer[..len]) {
                    shared.send(frame).await;
                }
            }
            () = tokio::time::sleep(IDLE) => return Ok(()),
        }
    }
}
