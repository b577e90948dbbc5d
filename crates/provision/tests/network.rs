//! The whole network of a VM, used by a guest that is another TCP/IP stack.

mod guest;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use dhcproto::v4::{Message, MessageType};
use dhcproto::{Decodable, Decoder};
use guest::frames::{ETHERNET_HEADER, SWITCH, dhcp_frame, dns_question, tcp_frame, udp_frame};
use guest::{GATEWAY, IMDS, IP, Lab, MAC, PATIENCE, Reset, WIRESERVER};
use provision::GuestEvent;
use smoltcp::socket::tcp;
use smoltcp::wire::{Icmpv4Packet, IpAddress, Ipv4Packet, TcpControl, TcpPacket, TcpSeqNumber, UdpPacket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

const BULK: usize = 64 << 20;

/// Runs the guest's side, which blocks, on a thread of its own.
async fn in_guest<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(f).await.unwrap()
}

fn v4(addr: SocketAddr) -> SocketAddrV4 {
    match addr {
        SocketAddr::V4(addr) => addr,
        SocketAddr::V6(_) => panic!("not IPv4"),
    }
}

/// A listener on loopback, and the entry that lets guests reach it.
async fn listener() -> (TcpListener, SocketAddrV4, Vec<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = v4(listener.local_addr().unwrap());
    (listener, at, vec![at.to_string()])
}

async fn event(lab: &mut Lab) -> GuestEvent {
    tokio::time::timeout(PATIENCE, lab.events.recv()).await.unwrap().unwrap()
}

/// Bytes that differ everywhere, from their position.
fn pattern(position: usize, out: &mut [u8]) {
    for (i, byte) in out.iter_mut().enumerate() {
        let at = position + i;
        *byte = (at ^ (at >> 8) ^ (at >> 16)) as u8;
    }
}

fn pattern_hash(len: usize) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    for at in (0..len).step_by(buffer.len()) {
        let n = buffer.len().min(len - at);
        pattern(at, &mut buffer[..n]);
        hasher.update(&buffer[..n]);
    }
    hasher.finalize()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_over_dhcp() {
    let mut lab = Lab::start(&[], vec![]);
    let mut guest = lab.power_on();
    in_guest(move || {
        for (ask, want) in
            [(MessageType::Discover, MessageType::Offer), (MessageType::Request, MessageType::Ack)]
        {
            guest.send_frame(&dhcp_frame(ask));
            let reply = guest.receive_frame(PATIENCE).unwrap();
            assert_eq!((&reply[..6], &reply[6..12]), (&MAC[..], &SWITCH[..]));
            let packet = Ipv4Packet::new_checked(&reply[ETHERNET_HEADER..]).unwrap();
            assert_eq!((packet.src_addr(), packet.dst_addr()), (GATEWAY, Ipv4Addr::BROADCAST));
            assert!(packet.verify_checksum());
            let datagram = UdpPacket::new_checked(packet.payload()).unwrap();
            assert!(
                datagram.verify_checksum(&IpAddress::Ipv4(GATEWAY), &IpAddress::Ipv4(Ipv4Addr::BROADCAST))
            );
            assert_eq!((datagram.src_port(), datagram.dst_port()), (67, 68));
            let message = Message::decode(&mut Decoder::new(datagram.payload())).unwrap();
            assert_eq!((message.opts().msg_type(), message.yiaddr()), (Some(want), IP));
            let wire_server = [245, 4, 168, 63, 129, 16];
            assert!(datagram.payload().windows(6).any(|bytes| bytes == wire_server), "no option 245");
        }
    })
    .await;
    assert_eq!(event(&mut lab).await, GuestEvent::Lease);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_provisions() {
    let mut lab = Lab::start(&[], vec![]);
    let mut guest = lab.power_on();
    in_guest(move || {
        let wireserver = SocketAddrV4::new(WIRESERVER, 80);
        let (status, goal) = guest.http(wireserver, "GET", "/machine/?comp=goalstate", "x-ms-version: 2012-11-30\r\n", "");
        assert_eq!(status, 200);
        let text = |name: &str| {
            goal.split(&format!("<{name}>")).nth(1).unwrap().split('<').next().unwrap().to_owned()
        };
        let (status, body) = guest.http(
            SocketAddrV4::new(IMDS, 80),
            "GET",
            "/metadata/instance?api-version=2021-08-01&extended=true",
            "Metadata: true\r\n",
            "",
        );
        assert_eq!(status, 200);
        let imds: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(imds["compute"]["vmId"], "11111111-2222-4333-8444-555555555555");
        assert_eq!(imds["network"]["interface"][0]["ipv4"]["ipAddress"][0]["privateIpAddress"], "10.0.0.4");
        let (status, versions) = guest.http(SocketAddrV4::new(WIRESERVER, 32526), "GET", "/versions", "", "");
        assert_eq!((status, versions.as_str()), (200, r#"["2015-09-01"]"#));
        let report = |state: &str| {
            format!(
                "<Health><GoalStateIncarnation>{}</GoalStateIncarnation><Container><ContainerId>{}</ContainerId>\
                 <RoleInstanceList><Role><InstanceId>{}</InstanceId><Health>{state}</Health></Role></RoleInstanceList>\
                 </Container></Health>",
                text("Incarnation"),
                text("ContainerId"),
                text("InstanceId")
            )
        };
        for state in [
            "<State>NotReady</State><Details><SubStatus>Provisioning</SubStatus><Description>Starting</Description></Details>",
            "<State>Ready</State>",
        ] {
            assert_eq!(guest.http(wireserver, "POST", "/machine?comp=health", "", &report(state)).0, 200);
        }
    })
    .await;
    assert_eq!(event(&mut lab).await, GuestEvent::Provisioning { text: "Starting".into() });
    assert_eq!(event(&mut lab).await, GuestEvent::Ready);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_resolved() {
    let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let resolver = upstream.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = upstream.recv_from(&mut buffer).await {
            let mut answer = buffer[..len].to_vec();
            answer[2] |= 0x80;
            answer[7] = 1;
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 203, 0, 113, 9]);
            upstream.send_to(&answer, from).await.unwrap();
        }
    });
    let lab = Lab::start(&[], vec![resolver]);
    let mut guest = lab.power_on();
    in_guest(move || {
        let server = SocketAddrV4::new(WIRESERVER, 53);
        for (name, address) in [("web1", IP), ("example.org", Ipv4Addr::new(203, 0, 113, 9))] {
            let answer = guest.ask(server, &dns_question(name), PATIENCE).unwrap();
            assert_eq!(
                (&answer[..2], &answer[answer.len() - 4..]),
                (&[0x12, 0x34][..], &address.octets()[..])
            );
        }
    })
    .await;
    assert_eq!(lab.network.counters().dns_questions, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outbound_tcp_is_judged() {
    let (listener, at, allow) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
            });
        }
    });
    let lab = Lab::start(&allow, vec![]);
    let mut guest = lab.power_on();
    in_guest(move || {
        let handle = guest.connect(at).unwrap();
        let mut echoed: Vec<u8> = vec![];
        guest
            .transfer(
                handle,
                5,
                |at, out| out.copy_from_slice(&b"hello"[at..at + out.len()]),
                |d| echoed.extend(d),
            )
            .unwrap();
        assert_eq!(echoed, b"hello");
    })
    .await;
    let counters = lab.network.counters();
    assert_eq!((counters.denied, counters.over_limit, counters.qemu_connections), (0, 0, 1));

    // The same destination without the entry, and others that never are relayed.
    let mut lab = Lab::start(&["127.0.0.1:1".to_owned()], vec![]);
    let mut guest = lab.power_on();
    in_guest(move || {
        let started = Instant::now();
        let nobody = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
        let neighbour = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), 22);
        for far in [at, nobody, neighbour, SocketAddrV4::new(WIRESERVER, 8080), SocketAddrV4::new(IMDS, 443)]
        {
            assert_eq!(guest.connect(far).unwrap_err(), Reset, "{far}");
        }
        assert!(started.elapsed() < Duration::from_secs(5), "refusals are immediate");
    })
    .await;
    assert_eq!(lab.network.counters().denied, 1);
    let denied = event(&mut lab).await;
    assert!(
        matches!(&denied, GuestEvent::OutboundDenied { destination, reason }
            if *destination == at.to_string() && reason.contains("loopback")),
        "{denied:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outbound_udp_is_judged() {
    let echo = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = v4(echo.local_addr().unwrap());
    tokio::spawn(async move {
        let mut buffer = [0; 2000];
        while let Ok((len, from)) = echo.recv_from(&mut buffer).await {
            echo.send_to(&buffer[..len], from).await.unwrap();
        }
    });
    let lab = Lab::start(&[at.to_string()], vec![]);
    let mut guest = lab.power_on();
    in_guest(move || {
        assert_eq!(guest.ask(at, &[7; 1472], PATIENCE).as_deref(), Some(&[7; 1472][..]));
        let denied = SocketAddrV4::new(Ipv4Addr::new(192, 168, 7, 7), 99);
        guest.send_frame(&udp_frame(MAC, SocketAddrV4::new(IP, 5000), denied, b"x"));
        let refusal = guest.receive_frame(PATIENCE).unwrap();
        let packet = Ipv4Packet::new_checked(&refusal[ETHERNET_HEADER..]).unwrap();
        let message = Icmpv4Packet::new_checked(packet.payload()).unwrap();
        assert_eq!((packet.src_addr(), message.msg_code()), (*denied.ip(), 13));
    })
    .await;
    assert_eq!(lab.network.counters().denied, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn bulk_both_ways() {
    let (listener, at, allow) = listener().await;
    let lab = Lab::start(&allow, vec![]);
    let mut guest = lab.power_on();
    let want = pattern_hash(BULK);

    // Up: the guest sends, the far end answers with its checksum.
    let sink = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = stream.read(&mut buffer).await.unwrap();
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
        }
        stream.write_all(hasher.finalize().as_bytes()).await.unwrap();
        drop(stream);
        listener
    });
    let started = Instant::now();
    let (mut guest, answer) = in_guest(move || {
        let handle = guest.connect(at).unwrap();
        let mut answer = vec![];
        guest.transfer(handle, BULK, pattern, |data| answer.extend_from_slice(data)).unwrap();
        (guest, answer)
    })
    .await;
    let up = started.elapsed();
    assert_eq!(answer, want.as_bytes());
    let listener = sink.await.unwrap();

    // Down: and the guest goes to sleep on the way.
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = vec![0; 1 << 20];
        for at in (0..BULK).step_by(buffer.len()) {
            pattern(at, &mut buffer);
            stream.write_all(&buffer).await.unwrap();
        }
    });
    let started = Instant::now();
    let pause = Duration::from_millis(300);
    in_guest(move || {
        let handle = guest.connect(at).unwrap();
        let (mut hasher, mut received) = (blake3::Hasher::new(), 0);
        guest
            .transfer(
                handle,
                0,
                |_, _| {},
                |data| {
                    if received < BULK / 2 && received + data.len() >= BULK / 2 {
                        std::thread::sleep(pause);
                    }
                    received += data.len();
                    hasher.update(data);
                },
            )
            .unwrap();
        assert_eq!((received, hasher.finalize()), (BULK, want));
    })
    .await;
    let down = started.elapsed() - pause;
    let rate = |time: Duration| BULK as f64 / 1e6 / time.as_secs_f64();
    println!("64 MiB up {:.0} MB/s, down {:.0} MB/s; {:?}", rate(up), rate(down), lab.network.counters());
    assert_eq!(lab.network.counters().frames_dropped, 0);
}

/// A client that ends its side first and then reads slowly, so that its window closes again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_that_has_closed_gets_the_rest_without_stalls() {
    const LEN: usize = 512 << 10;
    let (listener, at, allow) = listener().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_to_end(&mut vec![]).await.unwrap();
        let mut data = vec![0; LEN];
        pattern(0, &mut data);
        stream.write_all(&data).await.unwrap();
    });
    let lab = Lab::start(&allow, vec![]);
    let mut guest = lab.power_on();
    let started = Instant::now();
    let received = in_guest(move || {
        let handle = guest.connect(at).unwrap();
        let (mut received, mut last_read) = (vec![], Instant::now());
        guest.run("the rest", |sockets| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            if socket.may_send() {
                socket.send_slice(b"?").unwrap();
                socket.close();
            }
            // Long enough for the window to close.
            if last_read.elapsed() > Duration::from_millis(100) {
                while socket.can_recv() {
                    socket.recv(|data| (data.len(), received.extend_from_slice(data))).unwrap();
                }
                last_read = Instant::now();
            }
            matches!(socket.recv(|_| (0, ())), Err(tcp::RecvError::Finished)).then_some(())
        });
        received
    })
    .await;
    assert_eq!((received.len(), blake3::hash(&received)), (LEN, pattern_hash(LEN)));
    // Some eight windows of 100 ms each; a stall is a second, and there would be four.
    assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn the_host_connects_to_the_guest() {
    let lab = Lab::start(&[], vec![]);
    let error = lab.network.connect_guest(22).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotConnected);

    const LEN: usize = 4 << 20;
    let mut guest = lab.power_on();
    let sshd = guest.listen(22);
    let guest = tokio::task::spawn_blocking(move || {
        // Answers everything with itself, until the host has ended its side.
        let mut held = Vec::new();
        guest.run("the host", |sockets| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(sshd);
            if held.is_empty() && socket.can_recv() {
                socket.recv(|data| (data.len(), held.extend_from_slice(data))).unwrap();
            }
            if !held.is_empty() && socket.can_send() {
                let sent = socket.send_slice(&held).unwrap();
                held.drain(..sent);
            }
            // As in the crate's stack.rs: smoltcp must not close with something left to send.
            let drained = held.is_empty() && !socket.can_recv() && socket.send_queue() == 0;
            if socket.state() == tcp::State::CloseWait && drained {
                socket.close();
            }
            (socket.state() == tcp::State::Closed).then_some(())
        });
        // A port that nobody listens on; ended from outside.
        let refused = Instant::now() + Duration::from_secs(1);
        guest.run("a refusal", |_| (Instant::now() > refused).then_some(()));
    });
    let stream = loop {
        match lab.network.connect_guest(22).await {
            Ok(stream) => break stream,
            // The new machine has not been noticed yet.
            Err(e) if e.kind() == std::io::ErrorKind::NotConnected => {
                tokio::time::sleep(Duration::from_millis(20)).await
            }
            Err(e) => panic!("{e}"),
        }
    };
    let (mut read, mut write) = tokio::io::split(stream);
    let writer = tokio::spawn(async move {
        let mut data = vec![0; LEN];
        pattern(0, &mut data);
        write.write_all(&data).await.unwrap();
        write.shutdown().await.unwrap();
        write
    });
    let mut echoed = vec![];
    tokio::time::timeout(PATIENCE, read.read_to_end(&mut echoed)).await.unwrap().unwrap();
    assert_eq!((echoed.len(), blake3::hash(&echoed)), (LEN, pattern_hash(LEN)));
    drop((read, writer.await.unwrap()));
    let error = lab.network.connect_guest(23).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    guest.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_machine_at_the_same_socket() {
    let (listener, at, allow) = listener().await;
    let lab = Lab::start(&allow, vec![]);
    let mut first = lab.power_on();
    let (first, far) = (
        in_guest(move || first.connect(at).map(|_| first)).await.unwrap(),
        listener.accept().await.unwrap().0,
    );
    assert_eq!(lab.network.counters().tcp_open, 1);
    drop(first);

    // A resumed machine goes on with connections that its stack has never heard of.
    let mut second = lab.power_on();
    let second = in_guest(move || {
        let from = SocketAddrV4::new(IP, 5555);
        let reset = (0..100).find_map(|_| {
            second.send_frame(&tcp_frame(from, at, TcpControl::Psh, Some(77)));
            let frame = second.receive_frame(Duration::from_millis(100))?;
            let packet = Ipv4Packet::new_checked(&frame[ETHERNET_HEADER..]).unwrap();
            let segment = TcpPacket::new_checked(packet.payload()).unwrap();
            (segment.dst_port() == 5555).then(|| (segment.rst(), segment.seq_number()))
        });
        assert_eq!(reset, Some((true, TcpSeqNumber(77))));
        second.connect(at).unwrap();
        second
    })
    .await;
    // The old machine's connection is over on the host's side too.
    let mut far = far;
    let end = tokio::time::timeout(PATIENCE, far.read(&mut [0; 10])).await.unwrap();
    assert!(matches!(&end, Ok(0)) || end.is_err(), "{end:?}");
    listener.accept().await.unwrap();
    assert_eq!(lab.network.counters().qemu_connections, 2);
    drop(second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_only_itself() {
    let lab = Lab::start(&[], vec![]);
    let mut guest = lab.power_on();
    in_guest(move || {
        let server = SocketAddrV4::new(WIRESERVER, 53);
        let question = dns_question("web1");
        let (itself, other) =
            (SocketAddrV4::new(IP, 5000), SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 5), 5000));
        guest.send_frame(&udp_frame(MAC, other, server, &question));
        guest.send_frame(&udp_frame([2, 0, 0, 0, 0, 1], itself, server, &question));
        guest.send_frame(&[0xff; 9]);
        guest.send_frame(&[0xff; 1600]);
        assert_eq!(guest.receive_frame(Duration::from_millis(300)), None);
        guest.send_frame(&udp_frame(MAC, itself, server, &question));
        assert!(guest.receive_frame(PATIENCE).is_some());
    })
    .await;
    // A frame is counted just after it was sent.
    let counted = async {
        while lab.network.counters().frames_sent == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.unwrap();
    let counters = lab.network.counters();
    assert_eq!((counters.frames_received, counters.frames_ignored, counters.frames_sent), (5, 4, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_limited() {
    let (listener, at, allow) = listener().await;
    let lab = Lab::start(&allow, vec![]);
    let mut guest = lab.power_on();
    // Held, so that none ends.
    let holder = tokio::spawn(async move {
        let mut held: Vec<TcpStream> = vec![];
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    in_guest(move || {
        let (mut opened, mut refused) = (0, 0);
        for port in 0..600 {
            guest.send_frame(&tcp_frame(SocketAddrV4::new(IP, 10_000 + port), at, TcpControl::Syn, None));
            let frame = guest.receive_frame(PATIENCE).unwrap();
            let packet = Ipv4Packet::new_checked(&frame[ETHERNET_HEADER..]).unwrap();
            let segment = TcpPacket::new_checked(packet.payload()).unwrap();
            // Retransmitted answers to earlier ones come in between.
            match (segment.rst(), segment.dst_port() == 10_000 + port) {
                (true, true) => refused += 1,
                (false, true) => opened += 1,
                _ => {}
            }
        }
        assert!((500..=512).contains(&opened), "{opened}");
        assert!(refused > 50, "{refused}");
    })
    .await;
    assert!(lab.network.counters().over_limit >= 80);
    holder.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ending_the_network_ends_everything() {
    let (listener, at, allow) = listener().await;
    let lab = Lab::start(&allow, vec![]);
    let mut guest = lab.power_on();
    let sshd = guest.listen(22);
    let guest = tokio::task::spawn_blocking(move || {
        guest.connect(at).unwrap();
        guest.run("the host", |sockets| {
            (sockets.get::<tcp::Socket<'_>>(sshd).state() == tcp::State::Established).then_some(())
        });
        guest
    });
    let (mut far, _) = listener.accept().await.unwrap();
    let mut stream = lab.network.connect_guest(22).await.unwrap();
    let guest = guest.await.unwrap();
    let socket = lab.stack_socket();
    assert!(socket.exists());
    tokio::time::timeout(PATIENCE, lab.network.shutdown()).await.unwrap();
    assert!(!socket.exists());
    let error = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 10])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let end = tokio::time::timeout(PATIENCE, far.read(&mut [0; 10])).await.unwrap();
    assert!(matches!(&end, Ok(0)) || end.is_err(), "{end:?}");
    drop(guest);
}
