//! Reads a frame as far as the verdicts need it: both families in one path, the ports and flags of TCP,
//! and whether a UDP datagram is a DNS query.
//!
//! The rules for what is not plain: IPv4 options are read over. A fragment of TCP, TCP behind IPv6
//! extension headers, a VLAN tag inside the frame and a header that does not fit are [`Packet::Hidden`].
//! One extension header is read over: the jumbo option that the kernel itself puts on a GSO packet above
//! 64 KiB (BIG TCP). A length of zero is such a packet's, in IPv4 too.

use abi::{Address, FlowKey, Packet, Port, Segment, TcpFlags};
use aya_ebpf::{bindings::bpf_sock_tuple, programs::TcContext};
use core::mem;

const ETHERNET: usize = 14;
/// The shortest frame on a real wire; what pads a packet to it is no payload.
const SHORTEST_FRAME: usize = 60;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// The port of DNS (RFC 1035 §4.2).
const DNS: u16 = 53;

/// A frame, read. Its kind, flags and bareness are kept apart, each always set: of an enum with fields the
/// compiler copies also what is not set, and the verifier refuses to read that.
pub struct Frame {
    kind: Kind,
    flags: u8,
    bare: bool,
    pub v6: bool,
    pub source: Address,
    pub destination: Address,
    pub source_port: Port,
    pub destination_port: Port,
}

#[derive(Clone, Copy, PartialEq)]
#[repr(u8)]
enum Kind {
    Other,
    Hidden,
    Query,
    Tcp,
}

#[repr(C)]
struct Ipv4 {
    version_and_words: u8,
    service: u8,
    length: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

#[repr(C)]
struct Ipv6 {
    first: u32,
    length: u16,
    next: u8,
    hops: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

#[repr(C)]
struct Tcp {
    source: u16,
    destination: u16,
    sequence: u32,
    acknowledged: u32,
    words: u8,
    flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}

impl Frame {
    /// Reads the frame of a hook that has an Ethernet header in front.
    #[inline(always)]
    pub fn read(ctx: &TcContext) -> Self {
        let Ok(kind) = ctx.load::<u16>(12) else { return Self::without_addresses(Kind::Other) };
        match u16::from_be(kind) {
            0x0800 => Self::read_v4(ctx),
            0x86dd => Self::read_v6(ctx),
            0x8100 | 0x88a8 | 0x9100 => Self::without_addresses(Kind::Hidden),
            _ => Self::without_addresses(Kind::Other),
        }
    }

    #[inline(always)]
    fn read_v4(ctx: &TcContext) -> Self {
        let Ok(ip) = ctx.load::<Ipv4>(ETHERNET) else { return Self::without_addresses(Kind::Hidden) };
        let mut frame = Self {
            kind: Kind::Hidden,
            flags: 0,
            bare: false,
            v6: false,
            source: Address::from_v4_be(ip.source),
            destination: Address::from_v4_be(ip.destination),
            source_port: Port::new(0),
            destination_port: Port::new(0),
        };
        let header = usize::from(ip.version_and_words & 0x0f) * 4;
        let whole = header >= 20 && u16::from_be(ip.fragment) & 0x3fff == 0;
        if ip.protocol != TCP {
            frame.kind = Kind::Other;
            if ip.protocol == UDP && whole {
                frame.read_udp(ctx, ETHERNET + header);
            }
        } else if whole {
            let length = usize::from(u16::from_be(ip.length));
            frame.read_tcp(ctx, ETHERNET + header, if length == 0 { 0 } else { ETHERNET + length });
        }
        frame
    }

    #[inline(always)]
    fn read_v6(ctx: &TcContext) -> Self {
        let Ok(ip) = ctx.load::<Ipv6>(ETHERNET) else { return Self::without_addresses(Kind::Hidden) };
        let mut frame = Self {
            kind: Kind::Hidden,
            flags: 0,
            bare: false,
            v6: true,
            source: Address::from_v6_be(ip.source),
            destination: Address::from_v6_be(ip.destination),
            source_port: Port::new(0),
            destination_port: Port::new(0),
        };
        let start = ETHERNET + mem::size_of::<Ipv6>();
        match ip.next {
            TCP => {
                let length = usize::from(u16::from_be(ip.length));
                frame.read_tcp(ctx, start, if length == 0 { 0 } else { start + length });
            }
            UDP => {
                frame.kind = Kind::Other;
                frame.read_udp(ctx, start);
            }
            0 if jumbo_then_tcp(ctx, start) => frame.read_tcp(ctx, start + 8, 0),
            next => frame.kind = behind_extensions(ctx, start, next),
        }
        frame
    }

    /// `end` is where the packet ends by its IP header, 0 where that does not say.
    #[inline(always)]
    fn read_tcp(&mut self, ctx: &TcContext, start: usize, end: usize) {
        let Ok(tcp) = ctx.load::<Tcp>(start) else { return };
        let header = usize::from(tcp.words >> 4) * 4;
        let payload = start + header;
        if header < 20 || end != 0 && end < payload {
            return;
        }
        self.source_port = Port::from_be(tcp.source);
        self.destination_port = Port::from_be(tcp.destination);
        let len = ctx.len() as usize;
        let nothing_behind = len <= payload || end != 0 && len <= SHORTEST_FRAME;
        self.bare = (end == 0 || end == payload) && nothing_behind;
        self.flags = tcp.flags;
        self.kind = Kind::Tcp;
    }

    #[inline(always)]
    fn read_udp(&mut self, ctx: &TcContext, start: usize) {
        let Ok([source, destination]) = ctx.load::<[u16; 2]>(start) else { return };
        // From port 53 a resolver speaks to another, or answers one: its peer expects it from that very port.
        if u16::from_be(destination) == DNS && u16::from_be(source) != DNS {
            self.source_port = Port::from_be(source);
            self.destination_port = Port::from_be(destination);
            self.kind = Kind::Query;
        }
    }

    #[inline(always)]
    fn without_addresses(kind: Kind) -> Self {
        let nowhere = Address([0; 4]);
        Self {
            kind,
            flags: 0,
            bare: false,
            v6: false,
            source: nowhere,
            destination: nowhere,
            source_port: Port::new(0),
            destination_port: Port::new(0),
        }
    }

    /// What it holds.
    #[inline(always)]
    pub fn packet(&self) -> Packet {
        match self.kind {
            Kind::Other => Packet::Other,
            Kind::Hidden => Packet::Hidden,
            Kind::Query => Packet::Query,
            Kind::Tcp => Packet::Tcp(Segment { flags: TcpFlags(self.flags), bare: self.bare }),
        }
    }

    /// The connection of a packet that leaves the pod.
    #[inline(always)]
    pub fn outgoing(&self) -> FlowKey {
        FlowKey {
            local: self.source,
            remote: self.destination,
            local_port: self.source_port,
            remote_port: self.destination_port,
        }
    }

    /// The connection of a packet that enters the pod.
    #[inline(always)]
    pub fn incoming(&self) -> FlowKey {
        FlowKey {
            local: self.destination,
            remote: self.source,
            local_port: self.destination_port,
            remote_port: self.source_port,
        }
    }

    /// For a lookup of the socket that would receive this packet, with the size its family has.
    #[inline(always)]
    pub fn tuple(&self) -> (bpf_sock_tuple, u32) {
        // SAFETY: plain integers, for which zero is a value.
        let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
        if self.v6 {
            tuple.__bindgen_anon_1.ipv6.saddr = self.source.0;
            tuple.__bindgen_anon_1.ipv6.daddr = self.destination.0;
            tuple.__bindgen_anon_1.ipv6.sport = self.source_port.to_be();
            tuple.__bindgen_anon_1.ipv6.dport = self.destination_port.to_be();
            return (tuple, 36);
        }
        tuple.__bindgen_anon_1.ipv4.saddr = self.source.0[3];
        tuple.__bindgen_anon_1.ipv4.daddr = self.destination.0[3];
        tuple.__bindgen_anon_1.ipv4.sport = self.source_port.to_be();
        tuple.__bindgen_anon_1.ipv4.dport = self.destination_port.to_be();
        (tuple, 12)
    }
}

/// Whether a hop-by-hop header holds the jumbo option alone (RFC 2675) and TCP follows it.
#[inline(always)]
fn jumbo_then_tcp(ctx: &TcContext, at: usize) -> bool {
    matches!(ctx.load::<[u8; 4]>(at), Ok([TCP, 0, 0xc2, 4]))
}

/// What extension headers hide: TCP or nothing of ours. A chain too long to follow counts as TCP, and so
/// does a fragment that could be of it.
#[inline(always)]
fn behind_extensions(ctx: &TcContext, start: usize, first: u8) -> Kind {
    let (mut at, mut next) = (start, first);
    for _ in 0..6 {
        let words = match next {
            TCP => return Kind::Hidden,
            0 | 43 | 51 | 60 | 44 => {
                let Ok([after, length]) = ctx.load::<[u8; 2]>(at) else { return Kind::Hidden };
                let kind = mem::replace(&mut next, after);
                match kind {
                    // A fragment: what follows may be in another one.
                    44 if matches!(after, 0 | 43 | 44 | 51 | 60 | TCP) => return Kind::Hidden,
                    44 => return Kind::Other,
                    // RFC 4302: in units of four bytes, less two.
                    51 => usize::from(length) + 2,
                    _ => (usize::from(length) + 1) * 2,
                }
            }
            _ => return Kind::Other,
        };
        at += words * 4;
    }
    Kind::Hidden
}
