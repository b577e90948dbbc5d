//! DHCP: one address for ever, and the options by which agents know that they are on Azure.
//!
//! Guests do not ask for option 245, the wireserver's address; Azure sends it all the same, and waagent does not
//! provision without it (or the route). Options 121 and 249 are the same routes, for Linux and for Windows.
//!
//! Answers are dhcproto's. Requests are read here: dhcproto 0.15's decoder panics on malformed options (a wrong length of
//! a time, a hardware address longer than 16), and a guest may send anything.

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode, UnknownOption};
use dhcproto::{Encodable, Encoder};

use super::{MTU, PREFIX};
use crate::azure_address::{DNS_SUFFIX, IMDS, WIRESERVER};
use crate::mac::MacAddress;

pub(super) const SERVER_PORT: u16 = 67;
pub(super) const CLIENT_PORT: u16 = 68;

/// Some clients drop shorter BOOTP messages.
const MIN_MESSAGE: usize = 300;
const MAX_MESSAGE: usize = 1500;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
const BOOT_REQUEST: u8 = 1;
/// Ethernet, with six bytes of address.
const HARDWARE: [u8; 2] = [1, 6];
const OPTIONS: usize = 240;
const OPTION_REQUESTED_ADDRESS: u8 = 50;
const OPTION_MESSAGE_TYPE: u8 = 53;
const FOREVER: u32 = u32::MAX;

/// The answer to a client, to be broadcast.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) message: Vec<u8>,
    /// The client has its lease now, as opposed to an offer.
    pub(super) is_lease: bool,
}

/// Answers DISCOVER and REQUEST of the guest's own card; anything else gets none.
pub(super) fn answer(bytes: &[u8], mac: MacAddress, guest_ip: Ipv4Addr, gateway: Ipv4Addr) -> Option<Answer> {
    let request = Request::parse(bytes, mac)?;
    let kind = match request.kind {
        MessageType::Discover => MessageType::Offer,
        // A client that remembers another network's address asks for that one.
        MessageType::Request if request.wanted.is_some_and(|ip| ip != guest_ip) => MessageType::Nak,
        MessageType::Request => MessageType::Ack,
        _ => return None,
    };
    let address = if kind == MessageType::Nak { Ipv4Addr::UNSPECIFIED } else { guest_ip };
    let none = Ipv4Addr::UNSPECIFIED;
    let mut reply = Message::new_with_id(request.id, none, address, gateway, none, &mac.0);
    reply.set_opcode(Opcode::BootReply).set_flags(Flags::from(request.flags));
    for option in options(kind, gateway) {
        reply.opts_mut().insert(option);
    }
    let mut message = vec![];
    reply.encode(&mut Encoder::new(&mut message)).ok()?;
    message.resize(message.len().max(MIN_MESSAGE), 0);
    Some(Answer { message, is_lease: kind == MessageType::Ack })
}

/// As much of a client's message as decides the answer.
struct Request {
    id: u32,
    flags: u16,
    kind: MessageType,
    /// The address that it is about: option 50, or the one that the client has.
    wanted: Option<Ipv4Addr>,
}

impl Request {
    /// `None` unless it is a sound request from the card `mac`.
    fn parse(bytes: &[u8], mac: MacAddress) -> Option<Self> {
        let (header, options) = bytes.split_at_checked(OPTIONS).filter(|_| bytes.len() <= MAX_MESSAGE)?;
        let from_card = header[0] == BOOT_REQUEST && header[1..3] == HARDWARE && header[28..34] == mac.0;
        if !from_card || header[236..OPTIONS] != MAGIC {
            return None;
        }
        let [kind] = option(options, OPTION_MESSAGE_TYPE)?.try_into().ok()?;
        let requested = option(options, OPTION_REQUESTED_ADDRESS).and_then(|ip| <[u8; 4]>::try_from(ip).ok());
        let current: [u8; 4] = header[12..16].try_into().ok()?;
        let wanted = Ipv4Addr::from(requested.unwrap_or(current));
        Some(Self {
            id: u32::from_be_bytes(header[4..8].try_into().ok()?),
            flags: u16::from_be_bytes(header[10..12].try_into().ok()?),
            kind: MessageType::from(kind),
            wanted: Some(wanted).filter(|ip| !ip.is_unspecified()),
        })
    }
}

/// The bytes of an option: code, length, data; 0 pads and 255 ends.
fn option(options: &[u8], code: u8) -> Option<&[u8]> {
    let mut rest = options;
    loop {
        match rest {
            [0, tail @ ..] => rest = tail,
            [255, ..] | [] | [_] => return None,
            [found, len, tail @ ..] => {
                let (data, next) = tail.split_at_checked(usize::from(*len))?;
                if *found == code {
                    return Some(data);
                }
                rest = next;
            }
        }
    }
}

fn options(kind: MessageType, gateway: Ipv4Addr) -> Vec<DhcpOption> {
    let mut options = vec![DhcpOption::MessageType(kind), DhcpOption::ServerIdentifier(gateway)];
    if kind == MessageType::Nak {
        return options;
    }
    let raw = |code: u8, data: Vec<u8>| DhcpOption::Unknown(UnknownOption::new(OptionCode::from(code), data));
    let routes = routes(gateway);
    options.extend([
        DhcpOption::AddressLeaseTime(FOREVER),
        DhcpOption::SubnetMask(Ipv4Addr::from_bits(u32::MAX << (32 - PREFIX))),
        DhcpOption::Router(vec![gateway]),
        DhcpOption::DomainNameServer(vec![WIRESERVER]),
        DhcpOption::DomainName(DNS_SUFFIX.to_owned()),
        DhcpOption::InterfaceMtu(MTU as u16),
        raw(121, routes.clone()),
        raw(249, routes),
        raw(245, WIRESERVER.octets().to_vec()),
    ]);
    options
}

/// RFC 3442: prefix length, significant octets, gateway. A client that takes these ignores option 3.
fn routes(gateway: Ipv4Addr) -> Vec<u8> {
    let mut out = vec![0];
    out.extend(gateway.octets());
    for service in [WIRESERVER, IMDS] {
        out.push(32);
        out.extend(service.octets());
        out.extend(gateway.octets());
    }
    out
}

#[cfg(test)]
mod tests {
    use dhcproto::{Decodable, Decoder};
    use proptest::prelude::*;

    use super::*;

    const MAC: MacAddress = MacAddress([0, 0x22, 0x48, 0, 0, 4]);
    const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 4);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    fn request(kind: MessageType, mac: &[u8], wanted: Option<Ipv4Addr>) -> Vec<u8> {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(0xabcd, none, none, none, none, mac);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        if let Some(ip) = wanted {
            message.opts_mut().insert(DhcpOption::RequestedIpAddress(ip));
        }
        let mut bytes = vec![];
        message.encode(&mut Encoder::new(&mut bytes)).unwrap();
        bytes
    }

    fn ask(bytes: &[u8]) -> Option<(Message, bool)> {
        let answer = answer(bytes, MAC, GUEST, GATEWAY)?;
        assert!(answer.message.len() >= MIN_MESSAGE);
        Some((Message::decode(&mut Decoder::new(&answer.message)).unwrap(), answer.is_lease))
    }

    #[test]
    fn offer_and_lease() {
        for (kind, wanted, reply, lease) in [
            (MessageType::Discover, None, MessageType::Offer, false),
            (MessageType::Request, Some(GUEST), MessageType::Ack, true),
            (MessageType::Request, None, MessageType::Ack, true),
            (MessageType::Request, Some(Ipv4Addr::new(192, 168, 0, 9)), MessageType::Nak, false),
        ] {
            let (message, is_lease) = ask(&request(kind, &MAC.0, wanted)).unwrap();
            assert_eq!((message.opts().msg_type(), is_lease), (Some(reply), lease), "{kind:?}");
            assert_eq!((message.xid(), message.opcode()), (0xabcd, Opcode::BootReply));
            let address = if reply == MessageType::Nak { Ipv4Addr::UNSPECIFIED } else { GUEST };
            assert_eq!(message.yiaddr(), address);
        }
    }

    #[test]
    fn options_are_azures() {
        let answer = answer(&request(MessageType::Request, &MAC.0, None), MAC, GUEST, GATEWAY).unwrap();
        let routes = [0, 10, 0, 0, 1, 32, 168, 63, 129, 16, 10, 0, 0, 1, 32, 169, 254, 169, 254, 10, 0, 0, 1];
        for (code, bytes) in [
            (1, &[255, 255, 255, 0][..]),
            (3, &[10, 0, 0, 1]),
            (6, &[168, 63, 129, 16]),
            (15, DNS_SUFFIX.as_bytes()),
            (26, &1500u16.to_be_bytes()),
            (51, &[255; 4]),
            (53, &[5]),
            (54, &[10, 0, 0, 1]),
            (121, &routes),
            (245, &[168, 63, 129, 16]),
            (249, &routes),
        ] {
            assert_eq!(option(&answer.message[OPTIONS..], code), Some(bytes), "option {code}");
        }
    }

    #[test]
    fn others_get_nothing() {
        assert!(ask(&request(MessageType::Discover, &[1, 2, 3, 4, 5, 6], None)).is_none());
        assert!(ask(&request(MessageType::Release, &MAC.0, None)).is_none());
        let mut wild = request(MessageType::Discover, &MAC.0, None);
        wild[2] = 255;
        assert!(ask(&wild).is_none());
        assert!(ask(&[]).is_none());
    }

    proptest! {
        #[test]
        fn no_message_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = answer(&bytes, MAC, GUEST, GATEWAY);
            let mut message = request(MessageType::Discover, &MAC.0, None);
            message.truncate(OPTIONS);
            message.extend(bytes);
            let _ = answer(&message, MAC, GUEST, GATEWAY);
        }
    }
}
