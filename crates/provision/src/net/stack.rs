//! The state of one VM's network: smoltcp's sockets, and the table of the guest's connections.
//!
//! Everything here is synchronous and does no IO. Frames go in, frames come out of a bounded queue, and what needs the
//! outside (a connection to be opened, a datagram to be relayed) comes out as an [`Arrival`].

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{
    HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpListenEndpoint, IpProtocol, Ipv4Packet, TcpPacket,
    UdpPacket,
};

use super::frame::{self, Frame};
use super::queue::Queue;
use super::{Counters, PREFIX, dhcp};
use crate::azure_address::{IMDS, WIRESERVER};
use crate::http::Service;
use crate::mac::MacAddress;

/// TCP connections that the guest may have, waiting ones included.
pub(super) const MAX_GUEST_FLOWS: usize = 512;
/// TCP connections from the host to the guest.
pub(super) const MAX_HOST_FLOWS: usize = 64;
/// Bytes from the guest that TCP buffers for one connection: the largest window that needs no scaling. smoltcp 0.14 takes
/// the *rounded* window that it last announced for the limit of what it accepts, so with scaling its limit moves back by
/// a few bytes now and then, and a guest that fills the window loses its last segment and waits a second to repeat it.
/// Between two processes of one host 64 KiB are enough for full speed.
const RECEIVE_BUFFER: usize = 65_535;
/// Bytes to the guest that TCP buffers, for a relayed connection and for one to a service.
const RELAY_SEND_BUFFER: usize = 256 << 10;
const SERVICE_SEND_BUFFER: usize = 32 << 10;
/// How long nothing may pass before a connection is cut.
const RELAY_IDLE: Duration = Duration::from_secs(30 * 60);
const SERVICE_IDLE: Duration = Duration::from_secs(2 * 60);
/// How long a connection that our side has closed may take to end properly.
const LINGER: Duration = Duration::from_secs(60);
const FIRST_LOCAL_PORT: u16 = 49152;
const DNS_PORT: u16 = 53;
const HTTP_PORT: u16 = 80;
const HOST_PLUGIN_PORT: u16 = 32526;

/// A TCP connection: the guest's port, and the far end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FlowKey {
    pub(super) guest_port: u16,
    pub(super) far: SocketAddrV4,
}

/// Something that the stack cannot do by itself.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A connection to one of our services stands.
    Service { handle: SocketHandle, service: Service },
    /// A connection to our resolver stands.
    DnsConnection { handle: SocketHandle },
    /// The guest wants a connection; answer with `accept`, `refuse` or `forget`.
    Connection { key: FlowKey },
    /// A DNS message to our resolver.
    DnsMessage { from: SocketAddrV4, message: Vec<u8> },
    /// A datagram to be relayed.
    Datagram { from: SocketAddrV4, to: SocketAddrV4, payload: Vec<u8> },
    /// The guest has its address.
    Lease,
}

/// What the guest's first segment of a connection led to.
#[derive(Debug)]
enum FlowState {
    /// The host is connecting; the segment is kept until it has.
    Waiting {
        syn: Vec<u8>,
    },
    Open(SocketHandle),
}

#[derive(Debug)]
struct Flow {
    key: FlowKey,
    from_host: bool,
    last_activity: Instant,
    idle_limit: Duration,
    /// Set when nobody holds the stream any more.
    released: Option<Instant>,
}

pub(super) struct Stack {
    mac: MacAddress,
    guest_ip: Ipv4Addr,
    gateway: Ipv4Addr,
    epoch: Instant,
    now: Instant,
    interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    device: Queue,
    table: HashMap<FlowKey, FlowState>,
    flows: HashMap<SocketHandle, Flow>,
    /// Connections whose end waits for what was written before it.
    finishing: Vec<SocketHandle>,
    next_local_port: u16,
    connected: bool,
    closed: bool,
    pub(super) counters: Counters,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack")
            .field("guest_ip", &self.guest_ip)
            .field("flows", &self.flows)
            .finish_non_exhaustive()
    }
}

impl Stack {
    pub(super) fn new(mac: MacAddress, guest_ip: Ipv4Addr, gateway: Ipv4Addr) -> Self {
        let epoch = Instant::now();
        let mut device = Queue::new(mac);
        let mut config = Config::new(HardwareAddress::Ip);
        // For initial sequence numbers. The only one who could abuse a guess is the guest, towards itself.
        config.random_seed = uuid::Uuid::new_v4().as_u128() as u64;
        let mut interface = Interface::new(config, &mut device, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // The list has room for at least one.
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(gateway), PREFIX));
        });
        interface.set_any_ip(true);
        Self {
            mac,
            guest_ip,
            gateway,
            epoch,
            now: epoch,
            interface,
            sockets: SocketSet::new(Vec::new()),
            device,
            table: HashMap::new(),
            flows: HashMap::new(),
            finishing: Vec::new(),
            next_local_port: FIRST_LOCAL_PORT,
            connected: false,
            closed: false,
            counters: Counters::default(),
        }
    }

    pub(super) fn counters(&self) -> Counters {
        Counters { tcp_open: self.flows.len() as u64, ..self.counters }
    }

    /// Reads the clock; times in here are those of the last call.
    pub(super) fn tick(&mut self) {
        self.now = Instant::now();
    }

    fn stack_now(&self) -> StackInstant {
        StackInstant::from_micros((self.now - self.epoch).as_micros() as i64)
    }

    // --- frames -----------------------------------------------------------------------------------------------------

    /// Takes in a frame of the guest.
    pub(super) fn frame(&mut self, bytes: &[u8], arrivals: &mut Vec<Arrival>) {
        self.counters.frames_received += 1;
        self.counters.bytes_received += bytes.len() as u64;
        let used = match frame::parse(bytes, self.mac) {
            Some(Frame::Arp(request)) => {
                let reply = frame::arp_reply(&request, self.mac, self.guest_ip);
                reply.map(|reply| self.device.push(reply)).is_some()
            }
            Some(Frame::Ipv4(packet)) => self.packet(&packet, arrivals).is_some(),
            None => false,
        };
        self.counters.frames_ignored += u64::from(!used);
    }

    /// `None` if the packet is ignored.
    fn packet(&mut self, packet: &Ipv4Packet<&[u8]>, arrivals: &mut Vec<Arrival>) -> Option<()> {
        let (from, to) = (packet.src_addr(), packet.dst_addr());
        if packet.next_header() == IpProtocol::Udp {
            let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
            if datagram.dst_port() == dhcp::SERVER_PORT && datagram.src_port() == dhcp::CLIENT_PORT {
                return self.dhcp(datagram.payload(), arrivals);
            }
        }
        if from != self.guest_ip
            || to.is_multicast()
            || to.is_broadcast()
            || to.is_unspecified()
            || to == self.guest_ip
        {
            return None;
        }
        match packet.next_header() {
            IpProtocol::Tcp => self.segment(packet, arrivals),
            IpProtocol::Udp => self.datagram(packet, arrivals),
            IpProtocol::Icmp if self.is_ours(to) => {
                let reply = frame::echo_reply(self.mac, packet)?;
                self.device.push(reply);
                Some(())
            }
            _ => None,
        }
    }

    fn dhcp(&mut self, request: &[u8], arrivals: &mut Vec<Arrival>) -> Option<()> {
        let answer = dhcp::answer(request, self.mac, self.guest_ip, self.gateway)?;
        let from = SocketAddrV4::new(self.gateway, dhcp::SERVER_PORT);
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, dhcp::CLIENT_PORT);
        self.device.push(frame::udp(self.mac, from, to, &answer.message)?);
        if answer.is_lease {
            arrivals.push(Arrival::Lease);
        }
        Some(())
    }

    fn datagram(&mut self, packet: &Ipv4Packet<&[u8]>, arrivals: &mut Vec<Arrival>) -> Option<()> {
        let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
        let (source, target) = (IpAddress::Ipv4(packet.src_addr()), IpAddress::Ipv4(packet.dst_addr()));
        if datagram.src_port() == 0 || datagram.dst_port() == 0 || !datagram.verify_checksum(&source, &target)
        {
            return None;
        }
        let from = SocketAddrV4::new(packet.src_addr(), datagram.src_port());
        let to = SocketAddrV4::new(packet.dst_addr(), datagram.dst_port());
        let payload = datagram.payload().to_vec();
        if *to.ip() == WIRESERVER && to.port() == DNS_PORT {
            self.counters.dns_questions += 1;
            arrivals.push(Arrival::DnsMessage { from, message: payload });
        } else if self.is_ours(*to.ip()) {
            self.device.push(frame::unreachable(self.mac, from, to, frame::Unreachable::Port));
        } else {
            arrivals.push(Arrival::Datagram { from, to, payload });
        }
        Some(())
    }

    /// Whether the address is answered in here and never relayed: our services and all of the guest's own subnet.
    fn is_ours(&self, ip: Ipv4Addr) -> bool {
        let network = |ip: Ipv4Addr| ip.to_bits() >> (32 - PREFIX);
        ip == WIRESERVER || ip == IMDS || network(ip) == network(self.gateway)
    }

    // --- TCP ----------------------------------------------------------------------------------------------------------

    fn segment(&mut self, packet: &Ipv4Packet<&[u8]>, arrivals: &mut Vec<Arrival>) -> Option<()> {
        let segment = TcpPacket::new_checked(packet.payload()).ok()?;
        if segment.src_port() == 0 || segment.dst_port() == 0 {
            return None;
        }
        let far = SocketAddrV4::new(packet.dst_addr(), segment.dst_port());
        let key = FlowKey { guest_port: segment.src_port(), far };
        let bytes = packet.as_ref();
        let is_new = segment.syn() && !segment.ack() && !segment.rst() && self.may_open(key);
        if !is_new {
            match self.table.get(&key) {
                // The guest repeats itself while the host is still connecting; or it has given up.
                Some(FlowState::Waiting { .. }) if segment.rst() => drop(self.table.remove(&key)),
                Some(FlowState::Waiting { .. }) => {}
                _ => self.feed(bytes),
            }
            return Some(());
        }
        if self.guest_flows() >= MAX_GUEST_FLOWS {
            self.sweep();
        }
        if self.guest_flows() >= MAX_GUEST_FLOWS {
            self.counters.over_limit += 1;
            self.feed(bytes);
            return Some(());
        }
        let service = match (*far.ip(), far.port()) {
            (WIRESERVER, HTTP_PORT) => Some(Service::Wireserver),
            (WIRESERVER, HOST_PLUGIN_PORT) => Some(Service::HostPlugin),
            (IMDS, HTTP_PORT) => Some(Service::Imds),
            _ => None,
        };
        if let Some(service) = service {
            if let Some(handle) = self.open(key, bytes, SERVICE_SEND_BUFFER, SERVICE_IDLE) {
                arrivals.push(Arrival::Service { handle, service });
            }
        } else if (*far.ip(), far.port()) == (WIRESERVER, DNS_PORT) {
            if let Some(handle) = self.open(key, bytes, SERVICE_SEND_BUFFER, SERVICE_IDLE) {
                arrivals.push(Arrival::DnsConnection { handle });
            }
        } else if self.is_ours(*far.ip()) {
            self.feed(bytes); // nobody listens: a reset
        } else {
            self.table.insert(key, FlowState::Waiting { syn: bytes.to_vec() });
            arrivals.push(Arrival::Connection { key });
        }
        Some(())
    }

    /// Whether a first segment opens a new connection: there is none of this key, or it is over but for its last wait.
    fn may_open(&mut self, key: FlowKey) -> bool {
        let handle = match self.table.get(&key) {
            None => return true,
            Some(FlowState::Waiting { .. }) => return false,
            Some(FlowState::Open(handle)) => *handle,
        };
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        if socket.is_open() {
            return false; // smoltcp challenges it (RFC 5961)
        }
        // Its holder may still read what has arrived; it takes no more segments.
        socket.abort();
        self.table.remove(&key);
        true
    }

    fn guest_flows(&self) -> usize {
        let waiting = self.table.values().filter(|state| matches!(state, FlowState::Waiting { .. })).count();
        waiting + self.flows.values().filter(|flow| !flow.from_host).count()
    }

    /// Gives a packet to smoltcp. One that fits no socket is answered with a reset.
    fn feed(&mut self, packet: &[u8]) {
        self.device.set_incoming(packet);
        let now = self.stack_now();
        self.interface.poll_ingress_single(now, &mut self.device, &mut self.sockets);
    }

    /// Makes a socket for the connection that `syn` opens.
    fn open(
        &mut self,
        key: FlowKey,
        syn: &[u8],
        send_buffer: usize,
        idle_limit: Duration,
    ) -> Option<SocketHandle> {
        let mut socket = socket(send_buffer);
        let endpoint = IpListenEndpoint { addr: Some(IpAddress::Ipv4(*key.far.ip())), port: key.far.port() };
        socket.listen(endpoint).ok()?;
        let handle = self.sockets.add(socket);
        self.feed(syn);
        if self.sockets.get::<tcp::Socket<'_>>(handle).state() != tcp::State::SynReceived {
            self.sockets.remove(handle);
            return None;
        }
        self.insert(handle, key, false, idle_limit);
        Some(handle)
    }

    fn insert(&mut self, handle: SocketHandle, key: FlowKey, from_host: bool, idle_limit: Duration) {
        self.table.insert(key, FlowState::Open(handle));
        self.flows
            .insert(handle, Flow { key, from_host, last_activity: self.now, idle_limit, released: None });
    }

    /// The host has its connection: completes the guest's. `None` if the guest has given up.
    pub(super) fn accept(&mut self, key: FlowKey) -> Option<SocketHandle> {
        let syn = self.take_waiting(key)?;
        self.open(key, &syn, RELAY_SEND_BUFFER, RELAY_IDLE)
    }

    /// The connection is refused, by the far end or by the policy.
    pub(super) fn refuse(&mut self, key: FlowKey) {
        if let Some(syn) = self.take_waiting(key) {
            self.feed(&syn);
        }
    }

    /// The far end did not answer; neither do we.
    pub(super) fn forget(&mut self, key: FlowKey) {
        self.take_waiting(key);
    }

    fn take_waiting(&mut self, key: FlowKey) -> Option<Vec<u8>> {
        match self.table.remove(&key)? {
            FlowState::Waiting { syn } => Some(syn),
            open @ FlowState::Open(_) => {
                self.table.insert(key, open);
                None
            }
        }
    }

    /// Starts a connection from the gateway to the guest.
    pub(super) fn connect(&mut self, guest_port: u16) -> std::io::Result<SocketHandle> {
        use std::io::{Error, ErrorKind};
        if self.closed || !self.connected {
            return Err(Error::new(ErrorKind::NotConnected, "no QEMU is connected to this VM's network"));
        }
        if self.flows.values().filter(|flow| flow.from_host).count() >= MAX_HOST_FLOWS {
            let text = format!("{MAX_HOST_FLOWS} connections to this guest exist: close one first");
            return Err(Error::new(ErrorKind::ResourceBusy, text));
        }
        self.tick();
        let key = loop {
            let port = self.next_local_port;
            self.next_local_port = port.checked_add(1).unwrap_or(FIRST_LOCAL_PORT);
            let key = FlowKey { guest_port, far: SocketAddrV4::new(self.gateway, port) };
            // There are more ports than connections.
            if !self.table.contains_key(&key) {
                break key;
            }
        };
        let mut socket = socket(RELAY_SEND_BUFFER);
        let guest = IpEndpoint::new(IpAddress::Ipv4(self.guest_ip), guest_port);
        let local = IpListenEndpoint { addr: Some(IpAddress::Ipv4(self.gateway)), port: key.far.port() };
        socket
            .connect(self.interface.context(), guest, local)
            .map_err(|error| Error::new(ErrorKind::InvalidInput, error.to_string()))?;
        let handle = self.sockets.add(socket);
        self.insert(handle, key, true, RELAY_IDLE);
        Ok(handle)
    }

    pub(super) fn touch(&mut self, handle: SocketHandle) {
        if let Some(flow) = self.flows.get_mut(&handle) {
            flow.last_activity = self.now;
        }
    }

    /// Ends our side once the guest has everything that was written.
    ///
    /// Not at once, because smoltcp 0.14 takes a window update in LAST-ACK for a duplicate and drops it: a guest that
    /// has closed first, and reads slowly, would get the rest by one probe a second.
    pub(super) fn finish(&mut self, handle: SocketHandle) {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        // The guest's own end is acknowledged at once, or the socket might be gone before.
        socket.set_ack_delay(None);
        if socket.send_queue() == 0 {
            socket.close();
        } else {
            self.finishing.push(handle);
        }
    }

    fn finish_drained(&mut self) {
        self.finishing.retain(|handle| {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*handle);
            // What was reset has lost its queue, too.
            let drained = socket.send_queue() == 0 || !socket.is_open();
            if drained {
                socket.close();
            }
            !drained
        });
    }

    /// Nobody reads or writes this connection any more. It ends by itself; its handle must not be used again.
    pub(super) fn release(&mut self, handle: SocketHandle) {
        self.finish(handle);
        if let Some(flow) = self.flows.get_mut(&handle) {
            flow.released = Some(self.now);
        }
    }

    /// Cuts what is idle, and removes what is over. Called about once a second.
    pub(super) fn sweep(&mut self) {
        let mut over = vec![];
        for (handle, flow) in &self.flows {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*handle);
            // A closed socket that still has a remote end has a reset to send.
            let closed = socket.state() == tcp::State::Closed && socket.remote_endpoint().is_none();
            match flow.released {
                Some(_) if closed || socket.state() == tcp::State::TimeWait => over.push(*handle),
                Some(at) if self.now.duration_since(at) > LINGER => socket.abort(),
                None if self.now.duration_since(flow.last_activity) > flow.idle_limit => socket.abort(),
                _ => {}
            }
        }
        for handle in over {
            self.remove(handle);
        }
    }

    fn remove(&mut self, handle: SocketHandle) {
        self.finishing.retain(|finishing| *finishing != handle);
        self.sockets.remove(handle);
        if let Some(flow) = self.flows.remove(&handle)
            && matches!(self.table.get(&flow.key), Some(FlowState::Open(open)) if *open == handle)
        {
            // Otherwise a newer connection has the key.
            self.table.remove(&flow.key);
        }
    }

    /// Another machine is at the socket, or none will ever be again: every connection is over.
    pub(super) fn reset(&mut self) {
        self.table.retain(|_, state| matches!(state, FlowState::Open(_)));
        for handle in self.flows.keys() {
            self.sockets.get_mut::<tcp::Socket<'_>>(*handle).abort();
        }
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
        self.connected = false;
        self.reset();
    }

    pub(super) fn set_connected(&mut self, connected: bool) {
        self.connected = connected;
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected
    }

    // --- the queue to the guest -----------------------------------------------------------------------------------------

    /// Lets sockets send what they may.
    pub(super) fn poll(&mut self) {
        let now = self.stack_now();
        self.device.forget_refusal();
        self.interface.poll_maintenance(now);
        self.finish_drained();
        // Each pass lets every socket send one segment, which shares the queue fairly.
        while self.interface.poll_egress(now, &mut self.device, &mut self.sockets)
            != smoltcp::iface::PollResult::None
        {
            if self.device.has_refused() {
                break;
            }
        }
    }

    /// When to poll next, if nothing happens.
    pub(super) fn poll_delay(&mut self) -> Option<Duration> {
        let now = self.stack_now();
        self.interface.poll_delay(now, &self.sockets).map(Duration::from)
    }

    /// Whether sockets wait for room in the queue.
    pub(super) fn wants_room(&self) -> bool {
        self.device.has_refused()
    }

    /// Exchanges the queued frames with an empty queue.
    pub(super) fn take_frames(&mut self, empty: &mut VecDeque<Vec<u8>>) {
        self.device.swap(empty);
    }

    /// Whether no frame waits.
    pub(super) fn is_drained(&self) -> bool {
        self.device.is_empty()
    }

    /// Whether a frame that is no socket's may be queued.
    pub(super) fn has_room(&self) -> bool {
        self.device.has_room()
    }

    pub(super) fn push(&mut self, frame: Vec<u8>) {
        self.device.push(frame);
    }

    /// Counts frames that left the queue.
    pub(super) fn count(&mut self, frames_sent: u64, bytes_sent: u64, frames_dropped: u64) {
        self.counters.frames_sent += frames_sent;
        self.counters.bytes_sent += bytes_sent;
        self.counters.frames_dropped += frames_dropped;
    }
}

fn socket(send_buffer: usize) -> tcp::Socket<'static> {
    let ring = |len| tcp::SocketBuffer::new(vec![0; len]);
    let mut socket = tcp::Socket::new(ring(RECEIVE_BUFFER), ring(send_buffer));
    // The program at the far end has decided already what belongs into one segment.
    socket.set_nagle_enabled(false);
    socket
}
