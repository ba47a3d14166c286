//! A pod whose processes have NET_ADMIN and NET_RAW, and want out.

use crate::{
    netlink::Netlink,
    packets::{self, ACK, PSH_ACK, SYN},
    sniff::Sniffer,
    world::{BOTH, Family, World, accept, connect, counted, is_idle, listen, try_connect},
};
use capture::{Mode, Role};
use netlink_packet_route::{
    RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
    rule::{RuleAttribute, RuleMessage},
};
use nix::{libc, net::if_::if_nametoindex};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use std::{io, net::IpAddr, os::fd::AsRawFd, time::Duration};

const SECRET: &[u8] = b"smuggled out in plaintext";
const SHORT: Duration = Duration::from_millis(200);

#[test]
fn a_forged_mark_leads_into_ztunnel() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let listener = ztunnel.listen(Role::Outbound);
    let wire = Sniffer::open(&world.node);
    for family in BOTH {
        for mark in [abi::TURNED_MARK, 0x539, 1] {
            let to = World::at_far(family, 8080);
            let domain = Domain::for_address(to);
            let app = world.pod.enter(|| Socket::new(domain, Type::STREAM, None)).unwrap().unwrap();
            app.set_mark(mark).unwrap();
            match app.connect_timeout(&to.into(), crate::world::PATIENCE) {
                Ok(()) => {
                    let _ours = accept(&listener);
                    app.send(SECRET).unwrap();
                }
                // Our own mark leads to a route of this host; IPv6 finds no source address for that.
                Err(error) => assert!(mark == abi::TURNED_MARK, "{family:?} {mark:#x}: {error}"),
            }
        }
    }
    assert!(!wire.hears(SECRET, SHORT));
    assert_eq!(pod.counters().unwrap().get("guard_leak_prevented"), 0);
}

/// A packet socket that skips tc egress in the pod meets the guard on the host.
#[test]
fn skipping_tc_ends_at_the_guard() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let _listener = ztunnel.listen(Role::Outbound);
    let (node, far) = (Sniffer::open(&world.node), Sniffer::open(&world.far));
    for family in BOTH {
        let (from, to) = (World::at_pod(family, 40_000), World::at_far(family, 8080));
        let smuggler = Smuggler::new(&world, family, true);
        for flags in [SYN, PSH_ACK, ACK] {
            let packet = packets::plain_tcp(from, to, flags, SECRET);
            let (stopped, ()) = counted(&pod, "guard_leak_prevented", || smuggler.send(&packet));
            assert_eq!(stopped, 1, "{family:?} {flags:#x}");
        }
        assert!(node.hears(SECRET, SHORT), "the test itself: the packet reached the host's end");
        assert!(!far.hears(SECRET, SHORT), "plaintext left the node");
        // Inside a VLAN tag there is no telling what it is, but that it is not ztunnel's.
        let (hidden, ()) = counted(&pod, "guard_drop_hidden", || {
            smuggler.send_tagged(&packets::plain_tcp(from, to, SYN, SECRET))
        });
        assert_eq!(hidden, 1);
    }
    // Without skipping, tc egress itself turns it round.
    let (from, to) = (World::at_pod(Family::V4, 40_000), World::at_far(Family::V4, 8080));
    let (turned, ()) = counted(&pod, "egress_turn_unknown", || {
        Smuggler::new(&world, Family::V4, false).send(&packets::plain_tcp(from, to, PSH_ACK, SECRET));
    });
    assert_eq!(turned, 1);
}

#[test]
fn removing_the_rule_fails_closed() {
    let world = World::new();
    let pod = world.attach(Mode::Enforce);
    let ztunnel = world.ztunnel();
    let listener = ztunnel.listen(Role::Outbound);
    let _server = listen(&world.far, 8080);
    let wire = Sniffer::open(&world.far);
    let remove = || {
        let netlink = Netlink::open().unwrap();
        for answer in netlink.dump(RouteNetlinkMessage::GetRule(RuleMessage::default())).unwrap() {
            let RouteNetlinkMessage::NewRule(rule) = answer else { continue };
            if rule.attributes.contains(&RuleAttribute::FwMark(abi::TURNED_MARK)) {
                netlink.remove(RouteNetlinkMessage::DelRule(rule)).unwrap();
            }
        }
    };
    world.pod.enter(remove).unwrap();
    for family in BOTH {
        let to = World::at_far(family, 8080);
        assert_eq!(try_connect(&world.pod, to, SHORT).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
    assert!(is_idle(&listener));
    let arrived = wire.frames().into_iter().any(|frame| frame.get(12..14) == Some(&[8, 0]) && frame[23] == 6);
    assert!(!arrived, "a SYN left the node");
    // The agent's next look sets it right.
    pod.repair().unwrap();
    let _app = connect(&world.pod, World::at_far(Family::V4, 8080)).unwrap();
    accept(&listener);
}

/// Frames written to the pod's device as they stand.
struct Smuggler {
    socket: Socket,
    device: u32,
    hardware: Vec<u8>,
    kind: [u8; 2],
}

impl Smuggler {
    fn new(world: &World, family: Family, skip_tc: bool) -> Self {
        // So that the gateway's hardware address is known.
        let _ = try_connect(&world.pod, World::at_far(family, 7), Duration::from_millis(20));
        let (device, gateway) =
            world.pod.enter(|| (if_nametoindex("eth0").unwrap(), gateway_address(family))).unwrap();
        let own = [2, 0, 0, 0, 0, 1];
        let socket =
            world.pod.enter(|| Socket::new(Domain::PACKET, Type::RAW, None::<Protocol>)).unwrap().unwrap();
        if skip_tc {
            let on: libc::c_int = 1;
            // SAFETY: an option of one integer, whose size is given.
            let result = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_PACKET,
                    libc::PACKET_QDISC_BYPASS,
                    (&raw const on).cast(),
                    size_of_val(&on) as u32,
                )
            };
            assert_eq!(result, 0);
        }
        let kind = if family == Family::V4 { [8, 0] } else { [0x86, 0xdd] };
        Self { socket, device, hardware: [&gateway[..], &own].concat(), kind }
    }

    fn send(&self, packet: &[u8]) {
        self.write(&[&self.hardware[..], &self.kind, packet].concat());
    }

    fn send_tagged(&self, packet: &[u8]) {
        // Twice: the outer tag is taken off by the stack before tc looks.
        let tags = [0x81, 0, 0, 5, 0x81, 0, 0, 6];
        self.write(&[&self.hardware[..], &tags, &self.kind, packet].concat());
    }

    fn write(&self, frame: &[u8]) {
        self.socket.send_to(frame, &link_layer(self.device)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The hardware address of the pod's gateway, as its neighbour table has it.
fn gateway_address(family: Family) -> Vec<u8> {
    let gateway: IpAddr = if family == Family::V4 { "10.77.0.1" } else { "fd77::1" }.parse().unwrap();
    let answers = Netlink::open()
        .unwrap()
        .dump(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))
        .unwrap();
    let wanted = NeighbourAttribute::Destination(match gateway {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    });
    let attributes = answers
        .into_iter()
        .find_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(n) if n.attributes.contains(&wanted) => Some(n.attributes),
            _ => None,
        })
        .expect("the gateway is known");
    attributes
        .into_iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(address) => Some(address),
            _ => None,
        })
        .expect("with its hardware address")
}

/// `struct sockaddr_ll`.
fn link_layer(device: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage is large enough for any address, zeroed, and the type is plain integers.
    unsafe {
        let address = storage.view_as::<libc::sockaddr_ll>();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = device as i32;
        address.sll_halen = 6;
        SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as u32)
    }
}
