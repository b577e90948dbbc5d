//! Between smoltcp and the link: one packet in, a bounded queue of frames out.

use std::collections::VecDeque;

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::EthernetProtocol;

use super::MTU;
use super::frame::{self, ETHERNET_HEADER};
use crate::mac::MacAddress;

/// Frames to the guest that wait for QEMU to read.
const MAX_QUEUED_FRAMES: usize = 256;

/// smoltcp's network card: one packet in, a bounded queue of frames out.
pub(super) struct Queue {
    mac: MacAddress,
    incoming: Vec<u8>,
    outgoing: VecDeque<Vec<u8>>,
    /// A socket was told to wait since this was last cleared.
    refused: bool,
}

impl Queue {
    pub(super) fn new(mac: MacAddress) -> Self {
        Self { mac, incoming: Vec::new(), outgoing: VecDeque::new(), refused: false }
    }

    /// The packet that smoltcp receives next.
    pub(super) fn set_incoming(&mut self, packet: &[u8]) {
        self.incoming.clear();
        self.incoming.extend_from_slice(packet);
    }

    /// Whether a frame may be queued that does not answer another.
    pub(super) fn has_room(&self) -> bool {
        self.outgoing.len() < MAX_QUEUED_FRAMES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.outgoing.is_empty()
    }

    pub(super) fn has_refused(&self) -> bool {
        self.refused
    }

    pub(super) fn forget_refusal(&mut self) {
        self.refused = false;
    }

    /// Exchanges the queued frames with `other`.
    pub(super) fn swap(&mut self, other: &mut VecDeque<Vec<u8>>) {
        std::mem::swap(&mut self.outgoing, other);
    }

    /// For what answers a frame one to one: reading stops when the queue is long, so this is bounded too.
    pub(super) fn push(&mut self, frame: Vec<u8>) {
        self.outgoing.push_back(frame);
    }
}

impl Device for Queue {
    type RxToken<'a> = Incoming<'a>;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        if self.incoming.is_empty() {
            return None;
        }
        let Self { mac, incoming, outgoing, .. } = self;
        Some((Incoming(incoming), Outgoing { mac: *mac, queue: outgoing }))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Outgoing<'_>> {
        if !self.has_room() {
            self.refused = true;
            return None;
        }
        Some(Outgoing { mac: self.mac, queue: &mut self.outgoing })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        // What comes through a socket of this host was not damaged on the way; what we send is checked by the guest.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities
    }
}

pub(super) struct Incoming<'a>(&'a mut Vec<u8>);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let result = f(self.0);
        self.0.clear();
        result
    }
}

pub(super) struct Outgoing<'a> {
    mac: MacAddress,
    queue: &'a mut VecDeque<Vec<u8>>,
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = frame::ethernet(self.mac, EthernetProtocol::Ipv4, len);
        let result = f(&mut frame[ETHERNET_HEADER..]);
        self.queue.push_back(frame);
        result
    }
}
