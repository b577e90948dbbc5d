//! A guest without a machine: smoltcp as an Ethernet host on a Unix datagram socket, in QEMU's place.
//!
//! Like QEMU it sends to the stack's path without connecting, and never waits inside a send.

pub(crate) mod frames;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use provision::identity::{Generation, ImageReference, OsDisk, SshKey, VmIdentity};
use provision::{GuestEvent, NetConfig, NetPolicy, Network};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::RecvFlags;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpListenEndpoint};
use tokio::sync::mpsc;

pub(crate) const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 4);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const WIRESERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
pub(crate) const IMDS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub(crate) const MAC: [u8; 6] = [0, 0x22, 0x48, 0, 0, 4];
/// Nothing in here takes this long, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn identity() -> VmIdentity {
    VmIdentity {
        vm_id: "11111111-2222-4333-8444-555555555555".parse().unwrap(),
        name: "web1".into(),
        resource_id: "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/virtualMachines/web1"
            .into(),
        subscription_id: "s".into(),
        resource_group: "rg".into(),
        location: "westeurope".into(),
        vm_size: "Standard_B2s".into(),
        hostname: "web1".into(),
        admin_username: "azureuser".into(),
        admin_password: None,
        disable_password_authentication: true,
        ssh_keys: vec![SshKey {
            path: "/home/azureuser/.ssh/authorized_keys".into(),
            key_data: "ssh-ed25519 AAAA".into(),
        }],
        custom_data: None,
        user_data: None,
        tags: Default::default(),
        image_reference: ImageReference::default(),
        os_disk: OsDisk { name: "web1_OsDisk_1".into(), size_gb: 30 },
        mac: "00:22:48:00:00:04".parse().unwrap(),
        container_id: "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee".parse().unwrap(),
        instance_id: "99999999-2222-4333-8444-555555555555._web1".into(),
        deployment_id: "77777777-2222-4333-8444-555555555555".parse().unwrap(),
        generation: Generation::V2,
        provision_guest_agent: true,
    }
}

/// A network that waits for its guest.
pub(crate) struct Lab {
    pub(crate) network: Network,
    pub(crate) events: mpsc::Receiver<GuestEvent>,
    dir: tempfile::TempDir,
}

impl Lab {
    pub(crate) fn start(allow: &[String], resolvers: Vec<SocketAddr>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (network, events) = Network::start(NetConfig {
            stack_socket: dir.path().join("s"),
            qemu_socket: dir.path().join("q"),
            identity: Arc::new(identity()),
            guest_ip: IP,
            gateway: GATEWAY,
            policy: NetPolicy {
                allow: allow.iter().map(|e| e.parse().unwrap()).collect(),
                deny_all_outbound: false,
            },
            resolvers,
            own_addrs: provision::host_addresses().unwrap(),
        })
        .unwrap();
        Self { network, events, dir }
    }

    pub(crate) fn stack_socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// A machine at QEMU's end; it takes the place of an earlier one.
    pub(crate) fn power_on(&self) -> Guest {
        let path = self.dir.path().join("q");
        // Nothing there the first time.
        let _ = std::fs::remove_file(&path);
        Guest::new(UnixDatagram::bind(path).unwrap(), &self.stack_socket())
    }
}

pub(crate) struct Guest {
    interface: Interface,
    pub(crate) sockets: SocketSet<'static>,
    card: Card,
    epoch: Instant,
    next_port: u16,
}

/// The far end reset the connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reset;

impl Guest {
    fn new(socket: UnixDatagram, stack: &Path) -> Self {
        rustix::net::sockopt::set_socket_send_buffer_size(&socket, 1 << 20).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut card = Card { socket, stack: stack.to_owned(), unsent: VecDeque::new() };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        config.random_seed = 42;
        let mut interface = Interface::new(config, &mut card, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(IpAddress::Ipv4(IP), 24)).unwrap());
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        Self { interface, sockets: SocketSet::new(vec![]), card, epoch: Instant::now(), next_port: 40000 }
    }

    /// Sends a frame as it is.
    pub(crate) fn send_frame(&mut self, frame: &[u8]) {
        self.card.unsent.push_back(frame.to_vec());
        self.card.flush();
    }

    /// The next frame, past the guest's own stack.
    pub(crate) fn receive_frame(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(frame) = self.card.read() {
                return Some(frame);
            }
            if Instant::now() > deadline {
                return None;
            }
            self.card.wait(Duration::from_millis(1));
        }
    }

    /// One round of the guest's kernel; waits shortly if there is nothing to do.
    fn step(&mut self) {
        let now = StackInstant::from_micros(self.epoch.elapsed().as_micros() as i64);
        self.card.flush();
        let idle =
            self.interface.poll(now, &mut self.card, &mut self.sockets) == smoltcp::iface::PollResult::None;
        self.card.flush();
        if idle {
            self.card.wait(Duration::from_millis(1));
        }
    }

    /// Runs the guest until `done` gives something.
    pub(crate) fn run<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut SocketSet<'static>) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(result) = done(&mut self.sockets) {
                return result;
            }
            assert!(Instant::now() < deadline, "the guest waits for {what}");
            self.step();
        }
    }

    fn tcp_socket(&mut self) -> SocketHandle {
        // Receiving without window scaling, which smoltcp 0.14 rounds wrongly (see the crate's stack.rs); Linux does not.
        let ring = |len| tcp::SocketBuffer::new(vec![0; len]);
        self.sockets.add(tcp::Socket::new(ring(65_535), ring(512 << 10)))
    }

    fn port(&mut self) -> u16 {
        self.next_port += 1;
        self.next_port
    }

    /// Opens a TCP connection.
    pub(crate) fn connect(&mut self, to: SocketAddrV4) -> Result<SocketHandle, Reset> {
        let handle = self.tcp_socket();
        let port = self.port();
        let far = IpEndpoint::new(IpAddress::Ipv4(*to.ip()), to.port());
        let context = self.interface.context();
        self.sockets.get_mut::<tcp::Socket<'_>>(handle).connect(context, far, port).unwrap();
        self.run("a connection", |sockets| match sockets.get_mut::<tcp::Socket<'_>>(handle).state() {
            tcp::State::SynSent => None,
            tcp::State::Closed => Some(Err(Reset)),
            _ => Some(Ok(handle)),
        })
    }

    /// Waits for a connection to this port.
    pub(crate) fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.tcp_socket();
        self.sockets.get_mut::<tcp::Socket<'_>>(handle).listen(port).unwrap();
        handle
    }

    /// Sends `len` bytes made by `source`, then the end, while reading until the far end's end into `sink`.
    pub(crate) fn transfer(
        &mut self,
        handle: SocketHandle,
        len: usize,
        mut source: impl FnMut(usize, &mut [u8]),
        mut sink: impl FnMut(&[u8]),
    ) -> Result<(), Reset> {
        let mut sent = 0;
        self.run("a transfer", |sockets| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            while sent < len && socket.can_send() {
                sent += socket
                    .send(|room| {
                        let n = room.len().min(len - sent);
                        source(sent, &mut room[..n]);
                        (n, n)
                    })
                    .unwrap();
            }
            if sent == len {
                socket.close();
            }
            while socket.can_recv() {
                socket.recv(|data| (data.len(), sink(data))).unwrap();
            }
            match socket.recv(|_| (0, ())) {
                Err(tcp::RecvError::Finished) if sent == len => Some(Ok(())),
                Err(tcp::RecvError::InvalidState) if socket.state() == tcp::State::Closed => Some(Err(Reset)),
                _ => None,
            }
        })
    }

    /// An HTTP exchange: status and body.
    pub(crate) fn http(
        &mut self,
        to: SocketAddrV4,
        method: &str,
        target: &str,
        headers: &str,
        body: &str,
    ) -> (u16, String) {
        let handle = self.connect(to).unwrap();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}",
            to.ip(),
            body.len()
        );
        // Our end of the connection stays open until the answer is there, as HTTP clients do it.
        let mut answer = vec![];
        let mut sent = false;
        self.run("an HTTP answer", |sockets| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            if !sent {
                assert_eq!(socket.send_slice(request.as_bytes()).unwrap(), request.len());
                sent = true;
            }
            while socket.can_recv() {
                socket.recv(|data| (data.len(), answer.extend_from_slice(data))).unwrap();
            }
            (!socket.may_recv()).then_some(())
        });
        self.sockets.get_mut::<tcp::Socket<'_>>(handle).close();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("not HTTP: {answer:?}"));
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Sends a datagram; its answer, if one comes in time.
    pub(crate) fn ask(&mut self, to: SocketAddrV4, payload: &[u8], patience: Duration) -> Option<Vec<u8>> {
        let port = self.port();
        let ring = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 8192]);
        let mut socket = udp::Socket::new(ring(), ring());
        socket.bind(IpListenEndpoint { addr: None, port }).unwrap();
        socket.send_slice(payload, IpEndpoint::new(IpAddress::Ipv4(*to.ip()), to.port())).unwrap();
        let handle = self.sockets.add(socket);
        let deadline = Instant::now() + patience;
        let answer =
            self.run("a datagram", |sockets| match sockets.get_mut::<udp::Socket<'_>>(handle).recv() {
                Ok((answer, _)) => Some(Some(answer.to_vec())),
                Err(_) => (Instant::now() > deadline).then_some(None),
            });
        self.sockets.remove(handle);
        answer
    }
}

struct Card {
    socket: UnixDatagram,
    stack: PathBuf,
    unsent: VecDeque<Vec<u8>>,
}

impl Card {
    fn flush(&mut self) {
        while let Some(frame) = self.unsent.front() {
            match self.socket.send_to(frame, &self.stack) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                // EPERM until the stack has seen the new machine; QEMU drops the frame, too.
                _ => drop(self.unsent.pop_front()),
            }
        }
    }

    fn read(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 2048];
        let (len, _) = rustix::net::recv(&self.socket, frame.as_mut_slice(), RecvFlags::DONTWAIT).ok()?;
        frame.truncate(len);
        Some(frame)
    }

    fn wait(&self, time: Duration) {
        let time = Timespec { tv_sec: 0, tv_nsec: time.as_nanos() as i64 };
        rustix::event::poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&time)).unwrap();
    }
}

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = ToSend<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Received, ToSend<'_>)> {
        // A guest whose own sends are stuck still reads.
        let frame = self.read()?;
        Some((Received(frame), ToSend(self)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<ToSend<'_>> {
        self.flush();
        self.unsent.is_empty().then_some(ToSend(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct ToSend<'a>(&'a mut Card);

impl TxToken for ToSend<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.unsent.push_back(frame);
        self.0.flush();
        result
    }
}
