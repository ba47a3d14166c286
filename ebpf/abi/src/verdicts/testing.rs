//! Facts to order, for the tests of the verdicts.

use crate::{Address, Found, Lookups, Packet, Segment, TcpFlags};
use core::net::IpAddr;

pub(super) const FIN_ACK: u8 = 0x11;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const RST_ACK: u8 = 0x14;
pub(super) const PSH_ACK: u8 = 0x18;
pub(super) const ACK: u8 = 0x10;
pub(super) const SYN_ACK: u8 = 0x12;

/// Where a capture probe goes: [`crate::PROBE_V4`].
pub(super) const PROBE: &str = "192.0.2.1";

/// An address.
pub(super) fn to(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

/// A segment without payload.
pub(super) fn bare(flags: u8) -> Packet {
    Packet::Tcp(Segment { flags: TcpFlags(flags), bare: true })
}

/// A segment with payload.
pub(super) fn loaded(flags: u8) -> Packet {
    Packet::Tcp(Segment { flags: TcpFlags(flags), bare: false })
}

/// The answers that lookups will give.
#[derive(Clone, Copy)]
pub(super) struct World {
    pub(super) socket: Found,
    pub(super) known: bool,
    pub(super) kubelet: bool,
    pub(super) dns: bool,
}

impl World {
    pub(super) fn empty() -> Self {
        Self { socket: Found::None, known: false, kubelet: false, dns: false }
    }

    pub(super) fn known() -> Self {
        Self { socket: Found::None, known: true, kubelet: false, dns: false }
    }

    pub(super) fn with(socket: Found) -> Self {
        Self { socket, known: false, kubelet: false, dns: false }
    }
}

impl Lookups for World {
    fn socket(&mut self) -> Found {
        self.socket
    }
    fn known_flow(&mut self) -> bool {
        self.known
    }
    fn is_of_kubelet(&mut self) -> bool {
        self.kubelet
    }
    fn is_dns_answered(&mut self) -> bool {
        self.dns
    }
}

/// A world in which nothing may be asked: for verdicts that must cost no lookup.
pub(super) struct Unasked;

impl Lookups for Unasked {
    fn socket(&mut self) -> Found {
        panic!("looked a socket up for nothing")
    }
    fn known_flow(&mut self) -> bool {
        panic!("looked a flow up for nothing")
    }
    fn is_of_kubelet(&mut self) -> bool {
        panic!("asked for the sender's cgroup for nothing")
    }
    fn is_dns_answered(&mut self) -> bool {
        panic!("looked for who answers DNS for nothing")
    }
}
