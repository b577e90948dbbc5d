//! Ethernet frames: which of the guest's count, and the small ones that we make ourselves.

use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4DstUnreachable,
    Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

use super::MTU;
use crate::azure_address::SWITCH_MAC;
use crate::mac::MacAddress;

pub(super) const ETHERNET_HEADER: usize = 14;
/// Longest frame, in bytes.
pub(super) const MAX_FRAME: usize = ETHERNET_HEADER + MTU;
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const HOP_LIMIT: u8 = 64;
/// Longest UDP payload that fits into one frame. We never fragment.
pub(super) const MAX_UDP: usize = MTU - IP_HEADER - UDP_HEADER;

/// A guest's frame that may matter.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    Arp(ArpRepr),
    /// A whole IPv4 packet with a sound header, not a fragment; padding cut off.
    Ipv4(Ipv4Packet<&'a [u8]>),
}

/// What a guest sent, or `None` if it is malformed, not from its card, not to us, or not a protocol that we speak.
pub(super) fn parse(frame: &[u8], guest: MacAddress) -> Option<Frame<'_>> {
    if frame.len() > MAX_FRAME {
        return None;
    }
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let to = ethernet.dst_addr();
    if ethernet.src_addr().0 != guest.0 || !(to.0 == SWITCH_MAC.0 || to.is_broadcast()) {
        return None;
    }
    let body = &frame[ETHERNET_HEADER..];
    match ethernet.ethertype() {
        EthernetProtocol::Arp => ArpRepr::parse(&ArpPacket::new_checked(body).ok()?).ok().map(Frame::Arp),
        EthernetProtocol::Ipv4 => {
            let packet = Ipv4Packet::new_checked(body).ok()?;
            let sound = packet.version() == 4 && packet.header_len() >= 20 && packet.verify_checksum();
            let whole = !packet.more_frags() && packet.frag_offset() == 0;
            let body = &body[..usize::from(packet.total_len())];
            (sound && whole).then(|| Frame::Ipv4(Ipv4Packet::new_unchecked(body)))
        }
        _ => None,
    }
}

/// The answer to an ARP request: we are everybody but the guest. Probes and announcements get none, or the guest
/// would think its own address taken.
pub(super) fn arp_reply(request: &ArpRepr, guest: MacAddress, guest_ip: Ipv4Addr) -> Option<Vec<u8>> {
    let ArpRepr::EthernetIpv4 {
        operation, source_protocol_addr: asker, target_protocol_addr: wanted, ..
    } = *request
    else {
        return None;
    };
    let probe = asker.is_unspecified() || asker == wanted;
    if operation != ArpOperation::Request || wanted == guest_ip || asker != guest_ip || probe {
        return None;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(SWITCH_MAC.0),
        source_protocol_addr: wanted,
        target_hardware_addr: EthernetAddress(guest.0),
        target_protocol_addr: asker,
    };
    let mut frame = ethernet(guest, EthernetProtocol::Arp, reply.buffer_len());
    reply.emit(&mut ArpPacket::new_unchecked(&mut frame[ETHERNET_HEADER..]));
    Some(frame)
}

/// A frame to the guest with room for `len` bytes after the header.
pub(super) fn ethernet(guest: MacAddress, protocol: EthernetProtocol, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; ETHERNET_HEADER + len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_dst_addr(EthernetAddress(guest.0));
    frame.set_src_addr(EthernetAddress(SWITCH_MAC.0));
    frame.set_ethertype(protocol);
    bytes
}

fn ipv4(
    guest: MacAddress,
    from: Ipv4Addr,
    to: Ipv4Addr,
    next_header: IpProtocol,
    payload_len: usize,
) -> Vec<u8> {
    let header = Ipv4Repr { src_addr: from, dst_addr: to, next_header, payload_len, hop_limit: HOP_LIMIT };
    let mut frame = ethernet(guest, EthernetProtocol::Ipv4, IP_HEADER + payload_len);
    header.emit(
        &mut Ipv4Packet::new_unchecked(&mut frame[ETHERNET_HEADER..]),
        &ChecksumCapabilities::default(),
    );
    frame
}

/// A UDP datagram to the guest; `None` if it does not fit into a frame.
pub(super) fn udp(
    guest: MacAddress,
    from: SocketAddrV4,
    to: SocketAddrV4,
    payload: &[u8],
) -> Option<Vec<u8>> {
    if payload.len() > MAX_UDP {
        return None;
    }
    let mut frame = ipv4(guest, *from.ip(), *to.ip(), IpProtocol::Udp, UDP_HEADER + payload.len());
    let header = UdpRepr { src_port: from.port(), dst_port: to.port() };
    header.emit(
        &mut UdpPacket::new_unchecked(&mut frame[ETHERNET_HEADER + IP_HEADER..]),
        &IpAddress::Ipv4(*from.ip()),
        &IpAddress::Ipv4(*to.ip()),
        payload.len(),
        |out| out.copy_from_slice(payload),
        &ChecksumCapabilities::default(),
    );
    Some(frame)
}

/// Why a datagram of the guest went nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// Nobody listens there.
    Port,
    /// The policy denies it.
    Prohibited,
}

/// Tells the guest that its datagram `from` → `to` went nowhere, so that its program fails at once.
pub(super) fn unreachable(
    guest: MacAddress,
    from: SocketAddrV4,
    to: SocketAddrV4,
    why: Unreachable,
) -> Vec<u8> {
    // What is quoted is the headers; receivers look only at addresses and ports.
    let mut udp_header = [0; UDP_HEADER];
    udp_header[..2].copy_from_slice(&from.port().to_be_bytes());
    udp_header[2..4].copy_from_slice(&to.port().to_be_bytes());
    udp_header[4..6].copy_from_slice(&(UDP_HEADER as u16).to_be_bytes());
    let header = Ipv4Repr {
        src_addr: *from.ip(),
        dst_addr: *to.ip(),
        next_header: IpProtocol::Udp,
        payload_len: UDP_HEADER,
        hop_limit: HOP_LIMIT,
    };
    let reason = match why {
        Unreachable::Port => Icmpv4DstUnreachable::PortUnreachable,
        Unreachable::Prohibited => Icmpv4DstUnreachable::CommProhibited,
    };
    icmp(guest, *to.ip(), *from.ip(), &Icmpv4Repr::DstUnreachable { reason, header, data: &udp_header })
}

/// The answer to a ping, or `None` if `packet` is none.
pub(super) fn echo_reply(guest: MacAddress, packet: &Ipv4Packet<&[u8]>) -> Option<Vec<u8>> {
    let request = Icmpv4Packet::new_checked(packet.payload()).ok()?;
    match Icmpv4Repr::parse(&request, &ChecksumCapabilities::default()).ok()? {
        Icmpv4Repr::EchoRequest { ident, seq_no, data } => {
            let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
            Some(icmp(guest, packet.dst_addr(), packet.src_addr(), &reply))
        }
        _ => None,
    }
}

fn icmp(guest: MacAddress, from: Ipv4Addr, to: Ipv4Addr, message: &Icmpv4Repr<'_>) -> Vec<u8> {
    let mut frame = ipv4(guest, from, to, IpProtocol::Icmp, message.buffer_len());
    let mut packet = Icmpv4Packet::new_unchecked(&mut frame[ETHERNET_HEADER + IP_HEADER..]);
    message.emit(&mut packet, &ChecksumCapabilities::default());
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GUEST: MacAddress = MacAddress([0, 0x22, 0x48, 0, 0, 4]);
    const GUEST_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 4);

    /// `to_guest` as if the guest had sent it.
    fn mirrored(mut to_guest: Vec<u8>) -> Vec<u8> {
        to_guest[..6].copy_from_slice(&SWITCH_MAC.0);
        to_guest[6..12].copy_from_slice(&GUEST.0);
        to_guest
    }

    #[test]
    fn arp_is_answered_for_all_but_the_guest() {
        let request = |asker: Ipv4Addr, wanted: Ipv4Addr| ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: EthernetAddress(GUEST.0),
            source_protocol_addr: asker,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: wanted,
        };
        for (asker, wanted, answered) in [
            (GUEST_IP, Ipv4Addr::new(10, 0, 0, 1), true),
            (GUEST_IP, Ipv4Addr::new(169, 254, 169, 254), true),
            (GUEST_IP, GUEST_IP, false),
            (Ipv4Addr::UNSPECIFIED, GUEST_IP, false),
            (Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(10, 0, 0, 9), false),
            (Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 0, 0, 1), false),
        ] {
            let reply = arp_reply(&request(asker, wanted), GUEST, GUEST_IP);
            assert_eq!(reply.is_some(), answered, "{asker} asks for {wanted}");
            if let Some(reply) = reply {
                let reply =
                    ArpRepr::parse(&ArpPacket::new_checked(&reply[ETHERNET_HEADER..]).unwrap()).unwrap();
                let ArpRepr::EthernetIpv4 { source_hardware_addr, source_protocol_addr, .. } = reply else {
                    panic!()
                };
                assert_eq!((source_hardware_addr.0, source_protocol_addr), (SWITCH_MAC.0, wanted));
            }
        }
    }

    #[test]
    fn only_the_guests_own_frames_count() {
        let from = SocketAddrV4::new(GUEST_IP, 1000);
        let to = SocketAddrV4::new(Ipv4Addr::new(8, 8, 8, 8), 53);
        let good = mirrored(udp(GUEST, from, to, b"hello").unwrap());
        let Some(Frame::Ipv4(packet)) = parse(&good, GUEST) else { panic!() };
        let datagram = UdpPacket::new_checked(packet.payload()).unwrap();
        assert!(datagram.verify_checksum(&IpAddress::Ipv4(GUEST_IP), &IpAddress::Ipv4(*to.ip())));
        assert_eq!((datagram.src_port(), datagram.dst_port(), datagram.payload()), (1000, 53, &b"hello"[..]));

        // Ethernet pads short frames.
        let mut padded = good.clone();
        padded.resize(60, 0);
        let Some(Frame::Ipv4(packet)) = parse(&padded, GUEST) else { panic!() };
        assert_eq!(packet.into_inner().len(), 33);

        let spoiled = |at: usize| {
            let mut frame = good.clone();
            frame[at] ^= 1;
            frame
        };
        // Destination, source, protocol, IP length, fragment offset, checksum.
        for at in [0, 6, 12, 16, 20, 24] {
            assert_eq!(parse(&spoiled(at), GUEST), None, "byte {at}");
        }
        assert_eq!(parse(&good[..20], GUEST), None);
        assert_eq!(parse(&[0; MAX_FRAME + 1], GUEST), None);
        assert_eq!(udp(GUEST, from, to, &[0; MAX_UDP + 1]), None);
        assert_eq!(udp(GUEST, from, to, &[0; MAX_UDP]).unwrap().len(), MAX_FRAME);
    }

    #[test]
    fn pings_and_refusals() {
        let ping = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 9, data: b"abc" };
        let request = mirrored(icmp(GUEST, GUEST_IP, Ipv4Addr::new(10, 0, 0, 1), &ping));
        let Some(Frame::Ipv4(packet)) = parse(&request, GUEST) else { panic!() };
        let reply = mirrored(echo_reply(GUEST, &packet).unwrap());
        let Some(Frame::Ipv4(packet)) = parse(&reply, GUEST) else { panic!() };
        assert_eq!((packet.src_addr(), packet.dst_addr()), (Ipv4Addr::new(10, 0, 0, 1), GUEST_IP));
        let message = Icmpv4Packet::new_checked(packet.payload()).unwrap();
        let message = Icmpv4Repr::parse(&message, &ChecksumCapabilities::default()).unwrap();
        assert_eq!(message, Icmpv4Repr::EchoReply { ident: 7, seq_no: 9, data: b"abc" });
        assert_eq!(echo_reply(GUEST, &packet), None);

        let to = SocketAddrV4::new(Ipv4Addr::new(10, 9, 9, 9), 99);
        let refusal =
            mirrored(unreachable(GUEST, SocketAddrV4::new(GUEST_IP, 1000), to, Unreachable::Prohibited));
        let Some(Frame::Ipv4(packet)) = parse(&refusal, GUEST) else { panic!() };
        let message = Icmpv4Packet::new_checked(packet.payload()).unwrap();
        assert_eq!((message.msg_code(), message.verify_checksum()), (13, true));
        let quoted = &packet.payload()[8 + IP_HEADER..];
        assert_eq!(quoted[..4], [3, 232, 0, 99]);
    }

    proptest! {
        #[test]
        fn no_frame_panics(mut frame in proptest::collection::vec(any::<u8>(), 0..200), protocol in 0..3usize) {
            if frame.len() >= ETHERNET_HEADER {
                frame[..6].copy_from_slice(&SWITCH_MAC.0);
                frame[6..12].copy_from_slice(&GUEST.0);
                frame[12..14].copy_from_slice(&[[8, 0], [8, 6], [0x86, 0xdd]][protocol]);
            }
            match parse(&frame, GUEST) {
                Some(Frame::Arp(request)) => drop(arp_reply(&request, GUEST, GUEST_IP)),
                Some(Frame::Ipv4(packet)) => drop(echo_reply(GUEST, &packet)),
                None => {}
            }
        }
    }
}
