//! A pod, its node, and somebody far away: three network namespaces, two links, both families.
//!
//! ```text
//! pod  eth0 ──── cvpod  node  cvfar ──── eth0  far
//! .2 of 10.77.0/24, fd77::/64     10.78.0/24, fd78::/64 of .2
//! ```

use crate::netlink::Netlink;
use capture::{Counters, Mode, Netns, Node, NodeOptions, Pins, Pod, PodSlots, Role, Target};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use nix::{
    mount::{MsFlags, mount},
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};
use socket2::{Domain, Socket, Type};
use std::{
    fs,
    io::{self, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub(crate) const UID: &str = "cv.test-pod";
/// Far more than anything here takes; only a failing test waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

pub(crate) const BOTH: [Family; 2] = [Family::V4, Family::V6];

/// The namespaces of a world.
pub(crate) struct Namespaces {
    pub(crate) pod: Netns,
    pub(crate) node: Netns,
    pub(crate) far: Netns,
}

pub(crate) struct World {
    pub(crate) pod: Netns,
    pub(crate) node: Netns,
    pub(crate) far: Netns,
    pub(crate) pins: PathBuf,
    // Unmounted with the mount namespace of this thread.
    _bpffs: tempfile::TempDir,
}

impl World {
    /// Makes the namespaces and the links. The calling thread gets a mount namespace of its own.
    pub(crate) fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("root, to make namespaces");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let bpffs = tempfile::tempdir().unwrap();
        mount(Some("bpf"), bpffs.path(), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        let Namespaces { pod, node, far } = Self::new_namespaces();
        Self { pod, node, far, pins: bpffs.path().join("culvert"), _bpffs: bpffs }
    }

    /// A pod, its node and somebody far away, linked.
    pub(crate) fn new_namespaces() -> Namespaces {
        let (pod, node, far) = (new_netns(), new_netns(), new_netns());
        node.enter(|| {
            for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                sysctl(path, "1");
            }
            link("cvpod", "eth0", &pod);
            link("cvfar", "eth0", &far);
            address("cvpod", &["10.77.0.1/24", "fd77::1/64"]);
            address("cvfar", &["10.78.0.1/24", "fd78::1/64"]);
        })
        .unwrap();
        pod.enter(|| end(&["10.77.0.2/24", "fd77::2/64"], &["10.77.0.1", "fd77::1"])).unwrap();
        far.enter(|| end(&["10.78.0.2/24", "fd78::2/64"], &["10.78.0.1", "fd78::1"])).unwrap();
        Namespaces { pod, node, far }
    }

    pub(crate) fn options(&self) -> NodeOptions {
        NodeOptions {
            pins: self.pins.clone(),
            cgroup: None,
            kernel_log: std::env::var_os("CV_LOG").is_some(),
            foreign: false,
        }
    }

    pub(crate) fn target(&self) -> Target<'_> {
        Target { uid: UID, netns: &self.pod, node_netns: &self.node }
    }

    /// A node and its one pod, attached, in a mode.
    pub(crate) fn attach(&self, mode: Mode) -> Pod {
        let node = Node::open(self.options()).unwrap();
        let pod = node.attach(&self.target()).unwrap();
        pod.set_mode(mode).unwrap();
        pod
    }

    pub(crate) fn ztunnel(&self) -> Ztunnel<'_> {
        let pins = Pins::open(&self.pins).unwrap();
        let slots = pins.pod(UID).unwrap();
        Ztunnel { world: self, pins, slots }
    }

    pub(crate) fn pod_ip(family: Family) -> IpAddr {
        match family {
            Family::V4 => "10.77.0.2".parse().unwrap(),
            Family::V6 => "fd77::2".parse().unwrap(),
        }
    }

    pub(crate) fn far_ip(family: Family) -> IpAddr {
        match family {
            Family::V4 => "10.78.0.2".parse().unwrap(),
            Family::V6 => "fd78::2".parse().unwrap(),
        }
    }

    pub(crate) fn at_pod(family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(Self::pod_ip(family), port)
    }

    pub(crate) fn at_far(family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(Self::far_ip(family), port)
    }
}

/// ztunnel, as far as capture sees it.
pub(crate) struct Ztunnel<'a> {
    world: &'a World,
    pub(crate) pins: Pins,
    pub(crate) slots: PodSlots,
}

impl Ztunnel<'_> {
    /// A listener of ztunnel's, in its slot.
    pub(crate) fn listen(&self, role: Role) -> TcpListener {
        let listener = self.unslotted();
        self.slots.set(role, listener.as_fd()).unwrap();
        listener
    }

    /// The same, not yet in a slot.
    pub(crate) fn unslotted(&self) -> TcpListener {
        let socket = self.world.pod.enter(|| Socket::new(Domain::IPV6, Type::STREAM, None)).unwrap().unwrap();
        socket.set_only_v6(false).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_ip_transparent_v6(true).unwrap();
        self.pins.mark_measured(socket.as_fd()).unwrap();
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()).unwrap();
        socket.listen(1024).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.into()
    }

    /// A connection of ztunnel's own out of the pod.
    pub(crate) fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.own_socket(to);
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Ok(within_patience(socket.into()))
    }

    /// The same, of which nobody wants to know how it does.
    pub(crate) fn unmeasured(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.unmarked(to);
        self.pins.mark_own(socket.as_fd()).unwrap();
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Ok(within_patience(socket.into()))
    }

    /// The onward leg of an inbound connection: to the pod's application, from the caller's address.
    pub(crate) fn onward(&self, caller: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.own_socket(to);
        match to {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
        socket.set_reuse_address(true)?;
        socket.bind(&caller.into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Ok(within_patience(socket.into()))
    }

    fn unmarked(&self, to: SocketAddr) -> Socket {
        let domain = Domain::for_address(to);
        self.world.pod.enter(|| Socket::new(domain, Type::STREAM, None)).unwrap().unwrap()
    }

    fn own_socket(&self, to: SocketAddr) -> Socket {
        let socket = self.unmarked(to);
        self.pins.mark_measured(socket.as_fd()).unwrap();
        socket
    }
}

/// Accepts, and tells who called and whom, as plain addresses.
pub(crate) fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr, SocketAddr) {
    let (stream, peer) = listener.accept().expect("a connection");
    let stream = within_patience(stream);
    let local = plain(stream.local_addr().unwrap());
    (stream, plain(peer), local)
}

pub(crate) fn plain(at: SocketAddr) -> SocketAddr {
    SocketAddr::new(at.ip().to_canonical(), at.port())
}

/// Whether nobody is waiting to be accepted.
pub(crate) fn is_idle(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    let idle = listener.accept().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    listener.set_nonblocking(false).unwrap();
    idle
}

pub(crate) fn within_patience(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// An application's listener, of both families.
pub(crate) fn listen(netns: &Netns, port: u16) -> TcpListener {
    let listener = netns
        .enter(|| -> io::Result<TcpListener> {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
            socket.set_only_v6(false)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
            socket.listen(1024)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket.into())
        })
        .unwrap();
    listener.unwrap()
}

/// An application's connection.
pub(crate) fn connect(netns: &Netns, to: SocketAddr) -> io::Result<TcpStream> {
    netns.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().map(within_patience)
}

/// An application's connection that is not expected to be made.
pub(crate) fn try_connect(netns: &Netns, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    netns.enter(|| TcpStream::connect_timeout(&to, patience)).unwrap()
}

/// An application's connection from a port of its choice.
pub(crate) fn connect_from(netns: &Netns, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = netns.enter(|| Socket::new(Domain::for_address(to), Type::STREAM, None)).unwrap()?;
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(within_patience(socket.into()))
}

/// Sends a line each way.
pub(crate) fn talk(a: &mut TcpStream, b: &mut TcpStream) {
    say(a, b);
    say(b, a);
}

fn say(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"over the border\n").unwrap();
    let mut heard = [0; 16];
    to.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"over the border\n");
}

/// Closes with a RST.
pub(crate) fn reset(stream: TcpStream) {
    Socket::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Waits until something holds, and says what did not.
pub(crate) fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The difference of one counter over a deed.
pub(crate) fn counted<T>(pod: &Pod, name: &str, deed: impl FnOnce() -> T) -> (u64, T) {
    let get = |counters: Counters| {
        assert!(counters.iter().any(|(known, _)| known == name), "no counter {name}");
        counters.get(name)
    };
    let before = get(pod.counters().unwrap());
    let result = deed();
    (get(pod.counters().unwrap()) - before, result)
}

/// Every verdict that fell, for the message of a failed assertion.
pub(crate) fn told(pod: &Pod) -> String {
    let counters = pod.counters().unwrap();
    let fallen = counters.iter().filter(|(_, count)| *count > 0);
    fallen.map(|(name, count)| format!("{name} {count}, ")).collect()
}

pub(crate) fn sysctl(path: &str, value: &str) {
    fs::write(Path::new("/proc/sys/net").join(path), value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

pub(crate) fn new_netns() -> Netns {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Netns::current().unwrap()
    });
    let netns = made.join().unwrap();
    netns
        .enter(|| {
            // An address would be of no use for a second or two, while it is looked for elsewhere.
            sysctl("ipv6/conf/all/accept_dad", "0");
            sysctl("ipv6/conf/default/accept_dad", "0");
            change_link("lo", up);
        })
        .unwrap();
    netns
}

/// A veth pair: one end here, the other in `peer_netns`.
fn link(name: &str, peer: &str, peer_netns: &Netns) {
    let mut other = LinkMessage::default();
    other.attributes =
        vec![LinkAttribute::IfName(peer.to_owned()), LinkAttribute::NetNsFd(peer_netns.as_fd().as_raw_fd())];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]),
    ];
    netlink().ensure(RouteNetlinkMessage::NewLink(message)).unwrap();
    change_link(name, up);
    peer_netns.enter(|| change_link(peer, up)).unwrap();
}

pub(crate) fn change_link(name: &str, change: impl FnOnce(&mut LinkMessage)) {
    let mut message = LinkMessage::default();
    message.header.index = if_nametoindex(name).unwrap();
    change(&mut message);
    netlink().change(RouteNetlinkMessage::SetLink(message)).unwrap();
}

fn up(message: &mut LinkMessage) {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
}

/// A namespace with one device and default routes.
fn end(addresses: &[&str], gateways: &[&str]) {
    address("eth0", addresses);
    for gateway in gateways {
        let gateway: IpAddr = gateway.parse().unwrap();
        let mut route = RouteMessage::default();
        route.header.address_family = family_of(gateway);
        route.header.protocol = RouteProtocol::Static;
        route.header.scope = RouteScope::Universe;
        route.header.kind = RouteType::Unicast;
        route.header.table = 254; // main
        route.attributes = vec![
            RouteAttribute::Gateway(RouteAddress::from(gateway)),
            RouteAttribute::Oif(if_nametoindex("eth0").unwrap()),
        ];
        netlink().ensure(RouteNetlinkMessage::NewRoute(route)).unwrap();
    }
}

fn address(device: &str, addresses: &[&str]) {
    for text in addresses {
        let (ip, length) = text.split_once('/').unwrap();
        let ip: IpAddr = ip.parse().unwrap();
        let mut message = AddressMessage::default();
        message.header.family = family_of(ip);
        message.header.prefix_len = length.parse().unwrap();
        message.header.flags = AddressHeaderFlags::Nodad;
        message.header.index = if_nametoindex(device).unwrap();
        message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
        netlink().ensure(RouteNetlinkMessage::NewAddress(message)).unwrap();
    }
}

fn family_of(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn netlink() -> Netlink {
    Netlink::open().unwrap()
}
