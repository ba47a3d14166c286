//! Taking a frame apart, as far as the sniffer needs: who spoke to whom, over what, saying what.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// TCP's FIN flag.
pub const FIN: u8 = 0x01;
/// TCP's SYN flag.
pub const SYN: u8 = 0x02;
/// TCP's RST flag.
pub const RST: u8 = 0x04;
/// TCP's ACK flag.
pub const ACK: u8 = 0x10;

/// What a frame carries.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Address resolution of IPv4.
    Arp,
    /// Neighbour discovery, router solicitation or multicast listener report of IPv6.
    Neighbour,
    Tcp(Segment<'a>),
    Udp {
        from: SocketAddr,
        to: SocketAddr,
    },
    /// Any other protocol over IP, a fragment that is not the first included.
    OtherIp {
        from: IpAddr,
        to: IpAddr,
        protocol: u8,
    },
    /// Not IP, or cut short.
    Unknown {
        ethertype: u16,
    },
}

/// One TCP segment.
#[derive(Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub flags: u8,
    pub payload: &'a [u8],
}

impl Segment<'_> {
    /// Opens a connection: SYN without ACK.
    pub fn opens(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }
}

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ICMP6: u8 = 58;
const DESTINATION: u8 = 60;

/// Takes an Ethernet frame apart.
pub fn parse(frame: &[u8]) -> Packet<'_> {
    let Some(ethertype) = be16(frame, 12) else { return Packet::Unknown { ethertype: 0 } };
    let body = frame.get(14..).unwrap_or_default();
    let parsed = match ethertype {
        ARP => Some(Packet::Arp),
        IPV4 => ipv4(body),
        IPV6 => ipv6(body),
        _ => None,
    };
    parsed.unwrap_or(Packet::Unknown { ethertype })
}

fn ipv4(body: &[u8]) -> Option<Packet<'_>> {
    let header = usize::from(body.first()? & 0x0f) * 4;
    let total = usize::from(be16(body, 2)?);
    // Zero: a segmentation-offloaded packet of more than 64 KiB.
    let total = if total == 0 { body.len() } else { total };
    let first = be16(body, 6)? & 0x1fff == 0;
    let from: [u8; 4] = body.get(12..16)?.try_into().ok()?;
    let to: [u8; 4] = body.get(16..20)?.try_into().ok()?;
    let rest = body.get(header..total.min(body.len()))?;
    transport(*body.get(9)?, first, Ipv4Addr::from(from).into(), Ipv4Addr::from(to).into(), rest)
}

fn ipv6(body: &[u8]) -> Option<Packet<'_>> {
    let from: [u8; 16] = body.get(8..24)?.try_into().ok()?;
    let to: [u8; 16] = body.get(24..40)?.try_into().ok()?;
    let (from, to) = (Ipv6Addr::from(from).into(), Ipv6Addr::from(to).into());
    let length = usize::from(be16(body, 4)?);
    let end = if length == 0 { body.len() } else { (40 + length).min(body.len()) };
    let mut rest = body.get(40..end)?;
    let mut next = *body.get(6)?;
    let mut first = true;
    while matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) && first {
        let size = if next == FRAGMENT { 8 } else { (usize::from(*rest.get(1)?) + 1) * 8 };
        if next == FRAGMENT {
            first = be16(rest, 2)? & 0xfff8 == 0;
        }
        next = *rest.first()?;
        rest = rest.get(size..)?;
    }
    if next == ICMP6 && matches!(rest.first(), Some(130..=137 | 143)) {
        return Some(Packet::Neighbour);
    }
    transport(next, first, from, to, rest)
}

fn transport(protocol: u8, first: bool, from: IpAddr, to: IpAddr, rest: &[u8]) -> Option<Packet<'_>> {
    let other = Packet::OtherIp { from, to, protocol };
    if !first || !matches!(protocol, TCP | UDP) {
        return Some(other);
    }
    let from = SocketAddr::new(from, be16(rest, 0)?);
    let to = SocketAddr::new(to, be16(rest, 2)?);
    if protocol == UDP {
        return Some(Packet::Udp { from, to });
    }
    let header = usize::from(rest.get(12)? >> 4) * 4;
    Some(Packet::Tcp(Segment { from, to, flags: *rest.get(13)?, payload: rest.get(header..)? }))
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(payload: &[u8]) -> Vec<u8> {
        let mut segment = vec![0x1f, 0x90, 0x00, 0x50, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, SYN, 0, 0, 0, 0, 0, 0];
        segment.extend_from_slice(payload);
        segment
    }

    fn ethernet(ethertype: u16, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend_from_slice(&ethertype.to_be_bytes());
        frame.extend_from_slice(body);
        frame
    }

    #[test]
    fn tcp_is_found_behind_ipv4_options_and_before_padding() {
        let segment = tcp(b"hello");
        let total = u8::try_from(24 + segment.len()).unwrap();
        let mut body =
            vec![0x46, 0, 0, total, 0, 0, 0, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 1, 1, 1];
        body.extend_from_slice(&segment);
        body.extend_from_slice(&[0xee; 6]);
        let frame = ethernet(IPV4, &body);
        let Packet::Tcp(found) = parse(&frame) else { panic!("not TCP: {:?}", parse(&frame)) };
        assert_eq!(found.from, "10.0.0.1:8080".parse().unwrap());
        assert_eq!(found.to, "10.0.0.2:80".parse().unwrap());
        assert_eq!(found.payload, b"hello");
        assert!(found.opens());
    }

    #[test]
    fn tcp_is_found_behind_ipv6_extension_headers() {
        let segment = tcp(b"hello");
        let mut body = vec![0x60, 0, 0, 0, 0, u8::try_from(8 + segment.len()).unwrap(), HOP_BY_HOP, 64];
        body.extend_from_slice(&Ipv6Addr::LOCALHOST.octets());
        body.extend_from_slice(&Ipv6Addr::LOCALHOST.octets());
        body.extend_from_slice(&[TCP, 0, 0, 0, 0, 0, 0, 0]);
        body.extend_from_slice(&segment);
        let frame = ethernet(IPV6, &body);
        assert!(matches!(parse(&frame), Packet::Tcp(Segment { payload: b"hello", .. })));
    }

    #[test]
    fn no_prefix_of_a_frame_panics() {
        let mut body = vec![0x45, 0, 0, 45, 0, 0, 0, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        body.extend_from_slice(&tcp(b"hello"));
        for (ethertype, body) in [(IPV4, body.clone()), (IPV6, vec![0xff; 80]), (IPV6, vec![0; 80])] {
            let frame = ethernet(ethertype, &body);
            for end in 0..=frame.len() {
                parse(&frame[..end]);
            }
        }
    }
}
