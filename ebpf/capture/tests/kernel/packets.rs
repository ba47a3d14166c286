//! Packets made by hand: what no well-behaved stack sends, and the stated verdict on each.

use crate::{
    netlink::Netlink,
    sniff::Sniffer,
    world::{Family, World, accept, change_link, connect, counted, is_idle, listen, until},
};
use capture::{Mode, Netns, Pod, Role};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
};
use nix::libc;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const PSH_ACK: u8 = 0x18;

/// A TCP segment with a right checksum.
pub(crate) fn segment(from: SocketAddr, to: SocketAddr, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(7_u32.to_be_bytes());
    tcp.extend(if flags & ACK != 0 { 9_u32.to_be_bytes() } else { [0; 4] });
    tcp.extend([0x50, flags]);
    tcp.extend(65_000_u16.to_be_bytes());
    tcp.extend([0; 4]);
    tcp.extend(payload);
    let mut pseudo = Vec::new();
    for ip in [from.ip(), to.ip()] {
        pseudo.extend(octets(ip));
    }
    pseudo.extend((tcp.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, 6]);
    pseudo.extend(&tcp);
    let sum = checksum(&pseudo);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    tcp
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An IPv4 packet: options in whole words, and the fragment field as it stands in the header.
fn ipv4(from: IpAddr, to: IpAddr, protocol: u8, options: &[u8], fragment: u16, payload: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let mut ip = vec![0x40 | (header / 4) as u8, 0];
    ip.extend(((header + payload.len()) as u16).to_be_bytes());
    ip.extend([0x12, 0x34]);
    ip.extend(fragment.to_be_bytes());
    ip.extend([64, protocol, 0, 0]);
    ip.extend(octets(from));
    ip.extend(octets(to));
    ip.extend(options);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip.extend(payload);
    ip
}

/// An IPv6 packet.
fn ipv6(from: IpAddr, to: IpAddr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x60, 0, 0, 0];
    ip.extend((payload.len() as u16).to_be_bytes());
    ip.extend([next, 64]);
    ip.extend(octets(from));
    ip.extend(octets(to));
    ip.extend(payload);
    ip
}

/// A plain TCP packet of either family.
pub(crate) fn plain_tcp(from: SocketAddr, to: SocketAddr, flags: u8, payload: &[u8]) -> Vec<u8> {
    let tcp = segment(from, to, flags, payload);
    match from.ip() {
        IpAddr::V4(_) => ipv4(from.ip(), to.ip(), 6, &[], 0, &tcp),
        IpAddr::V6(_) => ipv6(from.ip(), to.ip(), 6, &tcp),
    }
}

/// Sends an IP packet as it stands, through the routing and tc of a namespace.
pub(crate) fn send(netns: &Netns, packet: &[u8], to: IpAddr) {
    let raw = Some(Protocol::from(libc::IPPROTO_RAW));
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = netns.enter(|| Socket::new(domain, Type::RAW, raw)).unwrap().unwrap();
    socket.send_to(packet, &SockAddr::from(SocketAddr::new(to, 0))).unwrap();
}

/// Somebody behind `far`'s link who has no stack: nobody answers for him.
pub(crate) struct RawCaller<'a> {
    world: &'a World,
    sniffer: Sniffer,
    from: SocketAddr,
    to: SocketAddr,
}

impl<'a> RawCaller<'a> {
    pub(crate) fn new(world: &'a World, family: Family, to: SocketAddr) -> Self {
        let from = match family {
            Family::V4 => "10.78.0.99:44444",
            Family::V6 => "[fd78::99]:44444",
        };
        warm_up(world);
        // Heard on the node, where the pod's answers pass in vain.
        let sniffer = Sniffer::open(&world.node);
        Self { world, sniffer, from: from.parse().unwrap(), to }
    }

    pub(crate) fn from(&self) -> SocketAddr {
        self.from
    }

    pub(crate) fn send_syn(&self) {
        self.send(SYN, b"");
    }

    pub(crate) fn send_ack(&self, payload: &[u8]) {
        self.send(PSH_ACK, payload);
    }

    fn send(&self, flags: u8, payload: &[u8]) {
        let before = self.arrived();
        send(&self.world.far, &plain_tcp(self.from, self.to, flags, payload), self.to.ip());
        until("the packet arrives", || self.arrived() > before);
    }

    /// How many packets the pod's device has taken in.
    fn arrived(&self) -> u64 {
        received(&self.world.pod)
    }

    pub(crate) fn hears_reset(&self, while_: Duration) -> bool {
        let end = Instant::now() + while_;
        while Instant::now() < end {
            let ports = [self.to.port().to_be_bytes(), self.from.port().to_be_bytes()].concat();
            let is_reset = |frame: &Vec<u8>| {
                let at = if self.from.is_ipv4() { 34 } else { 54 };
                frame.get(at..at + 4) == Some(&ports[..])
                    && frame.get(at + 13).is_some_and(|flags| flags & RST != 0)
            };
            if self.sniffer.frames().iter().any(is_reset) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

/// What a device has received, by its own count.
fn received(netns: &Netns) -> u64 {
    let look = || {
        let answers =
            Netlink::open().unwrap().dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).unwrap();
        let packets = answers.into_iter().flat_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => link.attributes,
            _ => Vec::new(),
        });
        packets
            .filter_map(|attribute| match attribute {
                LinkAttribute::Stats64(stats) => Some(stats.rx_packets),
                _ => None,
            })
            .sum()
    };
    netns.enter(look).unwrap()
}

/// Sends a packet out of the pod, and asserts which verdict it got.
fn leaves(world: &World, pod: &Pod, verdict: &str, packet: &[u8], to: IpAddr) {
    let (count, ()) = counted(pod, verdict, || {
        // The neighbour is known from here on.
        send(&world.pod, packet, to);
        std::thread::sleep(Duration::from_millis(20));
    });
    assert_eq!(count, 1, "{verdict}: {}", crate::world::told(pod));
}

/// Sends a packet into the pod, and asserts which verdict it got.
fn enters(world: &World, pod: &Pod, verdict: &str, packet: &[u8], to: IpAddr) {
    let (count, ()) = counted(pod, verdict, || {
        send(&world.far, packet, to);
        std::thread::sleep(Duration::from_millis(20));
    });
    assert_eq!(count, 1, "{verdict}: {}", crate::world::told(pod));
}

/// Has the neighbours of both ends found, by a datagram each way.
fn warm_up(world: &World) {
    for family in crate::world::BOTH {
        for (netns, peer) in [(&world.pod, World::far_ip(family)), (&world.far, World::pod_ip(family))] {
            let any = if peer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = netns.enter(|| UdpSocket::bind(any)).unwrap().unwrap();
            socket.send_to(b"hello", (peer, 9)).unwrap();
        }
    }
    std::thread::sleep(Duration::from_millis(100));
}

struct Ends {
    v4: (SocketAddr, SocketAddr),
    v6: (SocketAddr, SocketAddr),
}

impl Ends {
    fn outbound() -> Self {
        let of = |family| (World::at_pod(family, 40_000), World::at_far(family, 8080));
        Self { v4: of(Family::V4), v6: of(Family::V6) }
    }

    fn inbound() -> Self {
        let of = |family| (World::at_far(family, 40_000), World::at_pod(family, 8080));
        Self { v4: of(Family::V4), v6: of(Family::V6) }
    }
}

const MORE_FRAGMENTS: u16 = 0x2000;
/// Hop-by-hop, routing, destination options; each eight bytes of padding, before TCP.
const EXTENSIONS: [u8; 3] = [0, 43, 60];

/// Every kind of packet whose ports or flags cannot be read.
fn hidden(ends: &Ends) -> Vec<(Vec<u8>, IpAddr)> {
    let ((a, b), (c, d)) = (ends.v4, ends.v6);
    let (tcp4, tcp6) = (segment(a, b, SYN, b""), segment(c, d, SYN, b""));
    let mut packets = vec![
        // The first fragment, with all of the header; and a later one, with none.
        (ipv4(a.ip(), b.ip(), 6, &[], MORE_FRAGMENTS, &segment(a, b, SYN, &[7; 12])), b.ip()),
        (ipv4(a.ip(), b.ip(), 6, &[], 4, b"some of the middle"), b.ip()),
        // A header cut short, and one that claims less than it needs.
        (ipv4(a.ip(), b.ip(), 6, &[], 0, &tcp4[..10]), b.ip()),
        (ipv4(a.ip(), b.ip(), 6, &[], 0, &with_header_words(&tcp4, 2)), b.ip()),
        (ipv4(a.ip(), b.ip(), 6, &[], 0, &with_header_words(&tcp4, 15)), b.ip()),
        (ipv6(c.ip(), d.ip(), 6, &tcp6[..10]), d.ip()),
    ];
    // A fragment header, of the first fragment and of a later one.
    for offset in [1_u16, 8 << 3] {
        let mut fragment = vec![6, 0];
        fragment.extend(offset.to_be_bytes());
        fragment.extend([0, 0, 0, 1]);
        fragment.extend(&tcp6);
        packets.push((ipv6(c.ip(), d.ip(), 44, &fragment), d.ip()));
    }
    for kind in EXTENSIONS {
        let padding = if kind == 43 { [6, 0, 4, 0, 0, 0, 0, 0] } else { [6, 0, 1, 4, 0, 0, 0, 0] };
        packets.push((ipv6(c.ip(), d.ip(), kind, &[&padding[..], &tcp6].concat()), d.ip()));
    }
    // Two of them, and more of them than anybody follows.
    for length in [2, 12] {
        let mut chain = [60, 0, 1, 4, 0, 0, 0, 0].repeat(length - 1);
        chain.extend([6, 0, 1, 4, 0, 0, 0, 0]);
        chain.extend(&tcp6);
        packets.push((ipv6(c.ip(), d.ip(), 60, &chain), d.ip()));
    }
    packets
}

fn with_header_words(tcp: &[u8], words: u8) -> Vec<u8> {
    let mut tcp = tcp.to_vec();
    tcp[12] = words << 4;
    tcp
}

#[test]
fn tcp_that_cannot_be_read_is_dropped_on_its_way_out() {
    let world = World::new();
    let pod = world.attach(Mode::Learn);
    warm_up(&world);
    let wire = Sniffer::open(&world.node);
    for (packet, to) in hidden(&Ends::outbound()) {
        pod.set_mode(Mode::Enforce).unwrap();
        leaves(&world, &pod, "egress_drop_hidden", &packet, to);
        assert!(!wire.hears(&packet, Duration::from_millis(5)));
        pod.set_mode(Mode::Learn).unwrap();
        leaves(&world, &pod, "egress_pass_hidden", &packet, to);
        assert!(wire.hears(&packet, crate::world::PATIENCE), "the test itself hears nothing");
    }
}

#[test]
fn tcp_that_cannot_be_read_is_dropped_on_its_way_in() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    warm_up(&world);
    let app = listen(&world.pod, 8080);
    for (packet, to) in hidden(&Ends::inbound()) {
        enters(&world, &pod, "ingress_drop_hidden", &packet, to);
    }
    assert!(is_idle(&app));
}

#[test]
fn ip_options_are_read_over() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    warm_up(&world);
    let ztunnel = world.ztunnel();
    let (_out, _inbound) = (ztunnel.listen(Role::Outbound), ztunnel.listen(Role::Inbound));
    // Up to the most that fits: ten words of "no operation".
    for words in [1, 3, 10] {
        let options = vec![1; words * 4];
        let syn = |(mut from, to): (SocketAddr, SocketAddr)| {
            // Each from a port of its own: the one before left a half-open connection.
            from.set_port(40_000 + words as u16);
            (ipv4(from.ip(), to.ip(), 6, &options, 0, &segment(from, to, SYN, b"")), to.ip())
        };
        let (packet, to) = syn(Ends::outbound().v4);
        leaves(&world, &pod, "loopback_listener", &packet, to);
        let (packet, to) = syn(Ends::inbound().v4);
        enters(&world, &pod, "ingress_to_inbound", &packet, to);
    }
}

#[test]
fn other_protocols_pass_both_ways_and_are_counted() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    warm_up(&world);
    for family in crate::world::BOTH {
        let any = SocketAddr::new(if family == Family::V4 { "0.0.0.0" } else { "::" }.parse().unwrap(), 5353);
        let bind = |netns: &Netns| {
            let socket = netns.enter(|| UdpSocket::bind(any)).unwrap().unwrap();
            socket.set_read_timeout(Some(crate::world::PATIENCE)).unwrap();
            socket
        };
        let (near, far) = (bind(&world.pod), bind(&world.far));
        let (left, ()) = counted(&pod, "egress_other", || {
            near.send_to(b"query", World::at_far(family, 5353)).unwrap();
            far.recv(&mut [0; 8]).unwrap();
        });
        let (entered, ()) = counted(&pod, "ingress_other", || {
            far.send_to(b"answer", World::at_pod(family, 5353)).unwrap();
            near.recv(&mut [0; 8]).unwrap();
        });
        assert!(left > 0 && entered > 0);
        // Also in fragments, whose later ones have no ports.
        near.send_to(&[7; 4000], World::at_far(family, 5353)).unwrap();
        assert_eq!(far.recv(&mut [0; 8000]).unwrap(), 4000);
    }
}

/// Above 64 KiB, IPv6 carries the jumbo option in front of TCP, and IPv4 a length of zero.
#[test]
fn frames_above_64_kib_are_captured() {
    const LARGE: u32 = 180_000;
    let world = World::new();
    let _pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let listener = ztunnel.listen(Role::Outbound);
    world
        .pod
        .enter(|| {
            for device in ["eth0", "lo"] {
                change_link(device, |link| {
                    link.attributes = vec![
                        LinkAttribute::GsoMaxSize(LARGE),
                        LinkAttribute::GroMaxSize(LARGE),
                        LinkAttribute::GsoIpv4MaxSize(LARGE),
                        LinkAttribute::GroIpv4MaxSize(LARGE),
                    ];
                });
            }
        })
        .unwrap();
    for family in crate::world::BOTH {
        let sniffer = Sniffer::open(&world.pod);
        let mut app = connect(&world.pod, World::at_far(family, 9000)).unwrap();
        let (mut ours, ..) = accept(&listener);
        let writer = std::thread::spawn(move || {
            app.write_all(&vec![7; 32 << 20]).unwrap();
        });
        let mut total = 0;
        let mut largest = 0;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = ours.read(&mut buffer).unwrap();
            total += read;
            largest = sniffer.sizes().into_iter().fold(largest, usize::max);
            if read == 0 {
                break;
            }
        }
        writer.join().unwrap();
        assert_eq!(total, 32 << 20);
        assert!(largest > 66_000, "{family:?}: the largest frame had {largest} bytes; nothing was tested");
    }
}
