//! What a program can know of a packet, of who sent it, and of the sockets it may belong to.

/// The flags of a TCP header (RFC 9293 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    /// Opens a connection: SYN and neither ACK nor RST. (SYN with FIN counts: what a stack would take
    /// for an opening is one.)
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN
    }

    /// Answers an opening: SYN and ACK, no RST.
    #[inline(always)]
    pub const fn answers(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN | Self::ACK
    }

    /// RST, whatever else.
    #[inline(always)]
    pub const fn resets(self) -> bool {
        self.0 & Self::RST != 0
    }

    /// ACK and nothing that changes a connection's state.
    #[inline(always)]
    pub const fn only_acks(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::ACK
    }
}

/// A readable TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its flags.
    pub flags: TcpFlags,
    /// Whether it carries no payload, by the packet's length as by its headers.
    pub bare: bool,
}

/// What a frame holds, as far as the mesh cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet {
    /// No TCP for certain: ARP, UDP, ICMP, ICMPv6, SCTP, an IP tunnel.
    Other,
    /// A whole UDP datagram to port 53, from another port: a DNS query, whatever is in it. A fragment, and UDP
    /// behind IPv6 extension headers, is [`Packet::Other`].
    Query,
    /// TCP, or what may be TCP, whose ports or flags cannot be read: a fragment, TCP behind IPv6
    /// extension headers (but the jumbo option of a large GSO packet is read over), a truncated or
    /// malformed header, a VLAN tag inside the frame.
    Hidden,
    /// A TCP segment. IPv4 options are read over.
    Tcp(Segment),
}

/// Who sent a packet, by the socket attached to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// No socket: forwarded, or the kernel's own answer.
    Unknown,
    /// A socket that is not full: TIME_WAIT, or a connection request.
    Mini,
    /// A full socket that is no TCP stream: the kernel's for RSTs, a raw or a packet socket.
    NoStream,
    /// A TCP socket of an application.
    App,
    /// A socket of ztunnel.
    Own,
}

/// What a socket lookup found for a packet's addresses and ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing, or a listener: the lookup falls back to listeners, which say nothing of this connection.
    None,
    /// A connection request that has its SYN and waits for the ACK.
    Handshake,
    /// The remains of a closed connection.
    TimeWait,
    /// A connection.
    Live,
    /// A connection of ztunnel's. Told apart from [`Found::Live`] only where a verdict needs it: while
    /// everything passes.
    Own,
}

impl Found {
    /// From the state of a `bpf_sock`; the numbers are the kernel's (`include/net/tcp_states.h`).
    #[inline(always)]
    pub const fn from_state(state: u32) -> Self {
        match state {
            6 => Self::TimeWait,
            7 | 10 => Self::None,
            12 => Self::Handshake,
            _ => Self::Live,
        }
    }
}

/// What a verdict may have to ask of the kernel, each at a price, so only when it matters.
pub trait Lookups {
    /// The socket in this namespace that would receive the packet: for a packet that leaves the pod, the
    /// transparent one of ztunnel that poses as the other end.
    fn socket(&mut self) -> Found;
    /// Whether the connection is recorded as one that passes ztunnel by.
    fn known_flow(&mut self) -> bool;
    /// Whether the packet was sent by a socket of the node's kubelet. Of a packet that was forwarded to the node
    /// nothing of the kind is known, whatever address it bears.
    fn is_of_kubelet(&mut self) -> bool;
    /// Whether somebody answers the pod's DNS queries: a socket is in [`crate::Slot::Dns`].
    fn is_dns_answered(&mut self) -> bool;
}
