//! Frames that a guest's own stack would not send.

use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::v4::{DhcpOption, Message, MessageType};
use dhcproto::{Encodable, Encoder};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr,
    TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

use super::MAC;

pub(crate) const SWITCH: [u8; 6] = [0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc];
pub(crate) const ETHERNET_HEADER: usize = 14;
const IP_HEADER: usize = 20;

fn frame(source: [u8; 6], from: Ipv4Addr, to: Ipv4Addr, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; ETHERNET_HEADER + IP_HEADER];
    bytes.extend(payload);
    let mut ethernet = EthernetFrame::new_unchecked(&mut bytes);
    ethernet.set_src_addr(EthernetAddress(source));
    ethernet.set_dst_addr(EthernetAddress(SWITCH));
    ethernet.set_ethertype(EthernetProtocol::Ipv4);
    let header = Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: protocol,
        payload_len: payload.len(),
        hop_limit: 64,
    };
    header.emit(
        &mut Ipv4Packet::new_unchecked(&mut bytes[ETHERNET_HEADER..]),
        &ChecksumCapabilities::default(),
    );
    bytes
}

pub(crate) fn udp_frame(source: [u8; 6], from: SocketAddrV4, to: SocketAddrV4, data: &[u8]) -> Vec<u8> {
    let mut payload = vec![0; 8 + data.len()];
    UdpRepr { src_port: from.port(), dst_port: to.port() }.emit(
        &mut UdpPacket::new_unchecked(&mut payload[..]),
        &IpAddress::Ipv4(*from.ip()),
        &IpAddress::Ipv4(*to.ip()),
        data.len(),
        |out| out.copy_from_slice(data),
        &ChecksumCapabilities::default(),
    );
    frame(source, *from.ip(), *to.ip(), IpProtocol::Udp, &payload)
}

pub(crate) fn tcp_frame(
    from: SocketAddrV4,
    to: SocketAddrV4,
    control: TcpControl,
    ack: Option<i32>,
) -> Vec<u8> {
    let segment = TcpRepr {
        src_port: from.port(),
        dst_port: to.port(),
        control,
        seq_number: TcpSeqNumber(1000),
        ack_number: ack.map(TcpSeqNumber),
        window_len: 1000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let mut payload = vec![0; segment.buffer_len()];
    segment.emit(
        &mut TcpPacket::new_unchecked(&mut payload[..]),
        &IpAddress::Ipv4(*from.ip()),
        &IpAddress::Ipv4(*to.ip()),
        &ChecksumCapabilities::default(),
    );
    frame(MAC, *from.ip(), *to.ip(), IpProtocol::Tcp, &payload)
}

pub(crate) fn dhcp_frame(kind: MessageType) -> Vec<u8> {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(7, none, none, none, none, &MAC);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    let mut bytes = vec![];
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    let mut frame =
        udp_frame(MAC, SocketAddrV4::new(none, 68), SocketAddrV4::new(Ipv4Addr::BROADCAST, 67), &bytes);
    frame[..6].fill(0xff);
    frame
}

/// A DNS question for an IPv4 address.
pub(crate) fn dns_question(name: &str) -> Vec<u8> {
    let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend(label.bytes());
    }
    out.extend([0, 0, 1, 0, 1]);
    out
}
