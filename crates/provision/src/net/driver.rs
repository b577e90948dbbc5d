//! The one task that moves frames between QEMU's socket and the stack, and starts a task for whatever needs the outside.
//!
//! Nothing here waits while it holds the stack. When QEMU does not read, frames to the guest wait in a bounded queue,
//! sockets wait for room in it, and programs behind the relay wait for the sockets; when that queue stays full we stop
//! reading from QEMU as well.

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::dns_forward::{MAX_IN_FLIGHT, Resolver};
use super::frame::{self, MAX_FRAME, Unreachable};
use super::link::{Link, Refreshed, Sent};
use super::stack::{Arrival, FlowKey};
use super::stream::{GuestStream, Shared};
use super::tcp_relay;
use super::udp_relay::{Relayed, UdpRelay};
use crate::event::GuestEvent;
use crate::http::{self, World};
use crate::netpolicy::{Denied, NetPolicy};

/// Frames that are read before the stack is let go.
const BATCH: usize = 64;
/// How often QEMU's path is looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often connections are looked over.
const SWEEP: Duration = Duration::from_secs(1);
/// How soon a full socket is tried again if the kernel does not say that there is room (it should).
const RETRY: Duration = Duration::from_millis(10);
/// Different denied destinations that are reported for one VM.
const MAX_DENIED_REPORTED: usize = 64;

#[derive(Debug)]
pub(super) struct Driver {
    link: Link,
    shared: Arc<Shared>,
    world: Arc<World>,
    resolver: Arc<Resolver>,
    own_addrs: Vec<IpAddr>,
    udp: UdpRelay,
    tasks: JoinSet<()>,
    dns_in_flight: Arc<tokio::sync::Semaphore>,
    /// Frames taken from the stack that QEMU has no room for yet.
    unsent: VecDeque<Vec<u8>>,
    arrivals: Vec<Arrival>,
    denied: HashSet<SocketAddr>,
    last_tick: Instant,
    last_sweep: Instant,
}

/// How a turn ended.
#[derive(Debug)]
struct Turn {
    /// There is more to do at once.
    busy: bool,
    /// QEMU has to read before anything more can be sent.
    full: bool,
    /// When the stack wants to be polled.
    delay: Option<Duration>,
}

impl Driver {
    pub(super) fn new(
        link: Link,
        shared: Arc<Shared>,
        world: Arc<World>,
        policy: NetPolicy,
        resolvers: Vec<SocketAddr>,
        own_addrs: Vec<IpAddr>,
    ) -> Self {
        let resolver = Resolver::new(&world.identity.hostname, world.network.address, policy, resolvers);
        Self {
            link,
            udp: UdpRelay::new(world.identity.mac),
            shared,
            world,
            resolver: Arc::new(resolver),
            own_addrs,
            tasks: JoinSet::new(),
            dns_in_flight: Arc::new(tokio::sync::Semaphore::new(MAX_IN_FLIGHT)),
            unsent: VecDeque::new(),
            arrivals: Vec::new(),
            denied: HashSet::new(),
            last_tick: Instant::now(),
            last_sweep: Instant::now(),
        }
    }

    /// Runs until it is aborted; then every connection ends.
    pub(super) async fn run(mut self) {
        let mut buffer = vec![0; MAX_FRAME + 1];
        self.tick();
        loop {
            if self.last_tick.elapsed() >= TICK {
                self.tick();
            }
            let turn = self.turn(&mut buffer);
            if turn.busy {
                tokio::task::yield_now().await;
                continue;
            }
            let tick = TICK.saturating_sub(self.last_tick.elapsed());
            let wait = match (turn.full, turn.delay) {
                (true, _) => RETRY.min(tick),
                (false, Some(delay)) => delay.min(tick),
                (false, None) => tick,
            };
            let writable = async {
                if turn.full {
                    self.link.writable().await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = self.link.readable(), if !self.is_stuck() => {}
                () = writable => {}
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Frames wait in both queues: QEMU has not read for long, and gets nothing more out of us.
    fn is_stuck(&self) -> bool {
        !self.unsent.is_empty() && !self.shared.lock().has_room()
    }

    /// One round: frames in, sockets polled, frames out.
    fn turn(&mut self, buffer: &mut [u8]) -> Turn {
        let mut read = 0;
        let (delay, wanted_room) = {
            let mut stack = self.shared.lock();
            stack.tick();
            while read < BATCH && (self.unsent.is_empty() || stack.has_room()) {
                let Some(len) = self.link.receive(buffer) else { break };
                read += 1;
                stack.frame(&buffer[..len], &mut self.arrivals);
            }
            stack.poll();
            if self.unsent.is_empty() {
                stack.take_frames(&mut self.unsent);
            }
            (stack.poll_delay(), stack.wants_room())
        };
        if read > 0 && !self.link.is_connected() {
            self.refresh();
        }
        let full = self.send();
        let left = !full && !self.shared.lock().is_drained();
        for arrival in std::mem::take(&mut self.arrivals) {
            self.arrival(arrival);
        }
        Turn { busy: read == BATCH || left || (wanted_room && !full), full, delay }
    }

    /// Sends what QEMU takes; true if it has to read first.
    fn send(&mut self) -> bool {
        let (mut sent, mut bytes, mut dropped) = (0, 0, 0);
        let mut full = false;
        while let Some(frame) = self.unsent.front() {
            match self.link.send(frame) {
                Sent::Yes => {
                    sent += 1;
                    bytes += frame.len() as u64;
                }
                Sent::Gone => dropped += 1,
                Sent::Full => {
                    full = true;
                    break;
                }
            }
            self.unsent.pop_front();
        }
        if sent + dropped > 0 {
            let mut stack = self.shared.lock();
            stack.count(sent, bytes, dropped);
            if stack.is_connected() && !self.link.is_connected() {
                stack.set_connected(false);
                stack.reset();
            }
            drop(stack);
            self.shared.room.notify_waiters();
        }
        full
    }

    fn tick(&mut self) {
        self.last_tick = Instant::now();
        self.refresh();
        if self.last_sweep.elapsed() >= SWEEP {
            self.last_sweep = self.last_tick;
            let mut stack = self.shared.lock();
            stack.tick();
            stack.sweep();
        }
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "a task of the VM's network");
            }
        }
    }

    /// Looks for a new QEMU. Another machine has none of our connections.
    fn refresh(&mut self) {
        let refreshed = self.link.refresh();
        if refreshed == Refreshed::Unchanged {
            return;
        }
        tracing::debug!(?refreshed, "QEMU");
        let mut stack = self.shared.lock();
        stack.counters.qemu_connections += 1;
        stack.set_connected(true);
        if refreshed == Refreshed::Replaced {
            stack.reset();
            let mut stale = VecDeque::new();
            stack.take_frames(&mut stale);
            stack.count(0, 0, (stale.len() + self.unsent.len()) as u64);
            self.unsent.clear();
            self.udp.clear();
            self.shared.room.notify_waiters();
        }
    }

    // --- what needs the outside -------------------------------------------------------------------------------------

    fn arrival(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Service { handle, service } => {
                let stream = GuestStream::new(self.shared.clone(), handle);
                self.tasks.spawn(http::serve(stream, service, self.world.clone()));
            }
            Arrival::DnsConnection { handle } => {
                let (stream, resolver) =
                    (GuestStream::new(self.shared.clone(), handle), self.resolver.clone());
                self.tasks.spawn(async move { tcp_relay::dns(stream, &resolver).await });
            }
            Arrival::Connection { key } => self.connection(key),
            Arrival::DnsMessage { from, message } => self.dns(from, message),
            Arrival::Datagram { from, to, payload } => self.datagram(from, to, payload),
            Arrival::Lease => self.report(GuestEvent::Lease),
        }
    }

    fn connection(&mut self, key: FlowKey) {
        match self.resolver.judge(SocketAddr::V4(key.far), &self.own_addrs) {
            Ok(()) => drop(self.tasks.spawn(tcp_relay::run(self.shared.clone(), key))),
            Err(denied) => {
                self.shared.lock().refuse(key);
                self.shared.wake.notify_one();
                self.denied(denied);
            }
        }
    }

    fn dns(&mut self, from: SocketAddrV4, message: Vec<u8>) {
        // Too many at once: lost, and asked again by the guest's resolver.
        let Ok(permit) = self.dns_in_flight.clone().try_acquire_owned() else {
            self.shared.lock().counters.over_limit += 1;
            return;
        };
        let (shared, resolver, mac) = (self.shared.clone(), self.resolver.clone(), self.world.identity.mac);
        self.tasks.spawn(async move {
            let _permit = permit;
            let server = SocketAddrV4::new(crate::azure_address::WIRESERVER, 53);
            if let Some(response) = resolver.answer(&message).await
                && let Some(frame) = frame::udp(mac, server, from, &response)
            {
                shared.send(frame).await;
            }
        });
    }

    fn datagram(&mut self, from: SocketAddrV4, to: SocketAddrV4, payload: Vec<u8>) {
        if !self.udp.knows(from, to)
            && let Err(denied) = self.resolver.judge(SocketAddr::V4(to), &self.own_addrs)
        {
            let refusal = frame::unreachable(self.world.identity.mac, from, to, Unreachable::Prohibited);
            let mut stack = self.shared.lock();
            if stack.has_room() {
                stack.push(refusal);
            }
            drop(stack);
            self.shared.wake.notify_one();
            return self.denied(denied);
        }
        let relayed = self.udp.relay(from, to, payload, &self.shared, &mut self.tasks);
        if relayed == Relayed::OverLimit {
            self.shared.lock().counters.over_limit += 1;
        }
    }

    fn denied(&mut self, denied: Denied) {
        self.shared.lock().counters.denied += 1;
        if self.denied.len() < MAX_DENIED_REPORTED && self.denied.insert(denied.addr) {
            tracing::info!(%denied, "guest");
            let event = GuestEvent::OutboundDenied {
                destination: denied.addr.to_string(),
                reason: denied.to_string(),
            };
            self.report(event);
        }
    }

    fn report(&self, event: GuestEvent) {
        debug_assert!(event.may_be_lost());
        // Nobody reads, or too slowly: these inform, nothing waits for them.
        let _ = self.world.events.try_send(event);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Streams that are held elsewhere must not wait for a driver that is gone.
        self.shared.lock().close();
    }
}
