//! ztunnel, as far as splicing sees it: a relay between an application of one pod and one of another, with
//! marked sockets, which grants each direction when everything it copied was consumed.

use crate::world::{PATIENCE, World, within_patience};
use capture::{AppSocket, Mode, Netns, Node, Pins, Pod, Splices, Target, sockdiag::Diag, splice};
use nix::libc;
use socket2::{Domain, Socket, Type};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
};

/// How the applications listen and dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    V4,
    V6,
    /// IPv4 to a listener of both families: the accepted socket has mapped addresses.
    Mapped,
}

pub(crate) const FLAVOURS: [Flavour; 3] = [Flavour::V4, Flavour::V6, Flavour::Mapped];

impl Flavour {
    fn ip(self) -> IpAddr {
        match self {
            Self::V4 | Self::Mapped => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    fn any(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 | Self::Mapped => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// A node that splices, with two pods.
pub(crate) struct Mesh {
    pub(crate) world: World,
    pub(crate) node: Node,
    pub(crate) splices: Splices,
    _pods: [Pod; 2],
    pins: Pins,
    cookies: [u64; 2],
    pub(crate) diags: [Diag; 2],
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let world = World::new();
        let node = Node::open(world.options()).unwrap();
        node.splice_on(&splice::cgroup_root().unwrap()).unwrap();
        let pods = Self::attach(&world, &node);
        let splices = Splices::open(&world.pins).unwrap().expect("switched on");
        let pins = Pins::open(&world.pins).unwrap();
        let cookies = [&world.pod, &world.far].map(|netns| netns.cookie().unwrap());
        let diags = [&world.pod, &world.far].map(|netns| netns.enter(Diag::open).unwrap().unwrap());
        Self { world, node, splices, _pods: pods, pins, cookies, diags }
    }

    /// Attaches both pods, or adopts them.
    pub(crate) fn attach(world: &World, node: &Node) -> [Pod; 2] {
        [("pod-a", &world.pod), ("pod-b", &world.far)].map(|(uid, netns)| {
            let pod = node.attach(&Target { uid, netns, node_netns: &world.node }).unwrap();
            pod.set_mode(Mode::Learn).unwrap();
            pod
        })
    }

    fn socket(&self, netns: &Netns, domain: Domain, own: bool) -> Socket {
        let socket = netns.enter(|| Socket::new(domain, Type::STREAM, None)).unwrap().unwrap();
        if own {
            self.pins.mark_own(socket.as_fd()).unwrap();
        }
        socket
    }

    fn listen(&self, netns: &Netns, flavour: Flavour, own: bool) -> TcpListener {
        let at = SocketAddr::new(flavour.any(), 0);
        let socket = self.socket(netns, Domain::for_address(at), own);
        if flavour == Flavour::V6 {
            socket.set_only_v6(true).unwrap();
        }
        socket.bind(&at.into()).unwrap();
        socket.listen(16).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.into()
    }

    /// A in the one pod, B in the other, and the relay between them.
    pub(crate) fn pair(&self, flavour: Flavour) -> (TcpStream, TcpStream, Relay<'_>) {
        let (here, there) = (&self.world.pod, &self.world.far);
        let at =
            |listener: &TcpListener| SocketAddr::new(flavour.ip(), listener.local_addr().unwrap().port());
        let (relay, server) = (self.listen(here, flavour, true), self.listen(there, flavour, false));
        let a = self.socket(here, Domain::for_address(at(&relay)), false);
        a.connect_timeout(&at(&relay).into(), PATIENCE).unwrap();
        let front = relay.accept().unwrap().0;
        let onward = self.socket(there, Domain::for_address(at(&server)), true);
        onward.bind(&SocketAddr::new(flavour.ip(), 0).into()).unwrap();
        let bound = onward.local_addr().unwrap().as_socket().unwrap();
        let b_socket = AppSocket::new(self.cookies[1], at(&server), bound);
        self.splices.expect(&b_socket).unwrap();
        onward.connect_timeout(&at(&server).into(), PATIENCE).unwrap();
        let b = within_patience(server.accept().unwrap().0);
        let a = within_patience(a.into());
        let ends = [(a.local_addr().unwrap(), a.peer_addr().unwrap()), (at(&server), bound)];
        let a_socket = AppSocket::new(self.cookies[0], ends[0].0, ends[0].1);
        let onward = TcpStream::from(onward);
        for socket in [&front, &onward] {
            assert!(self.splices.is_watched(socket.as_fd()), "{flavour:?}");
            socket.set_nodelay(true).unwrap();
            socket.set_nonblocking(true).unwrap();
        }
        let ways = [Way::default(), Way::default()];
        (a, b, Relay { mesh: self, apps: [a_socket, b_socket], ends, sockets: [front, onward], ways })
    }
}

/// One direction.
#[derive(Default)]
pub(crate) struct Way {
    /// Read and not yet written.
    pending: Vec<u8>,
    pub(crate) carried: u64,
    ended: bool,
    pub(crate) done: bool,
}

/// The relay of one connection. Direction 0 is from A to B, 1 from B to A.
pub(crate) struct Relay<'a> {
    mesh: &'a Mesh,
    pub(crate) apps: [AppSocket; 2],
    /// The addresses of A's socket and of B's.
    pub(crate) ends: [(SocketAddr, SocketAddr); 2],
    /// The one that faces A, and the one that faces B.
    pub(crate) sockets: [TcpStream; 2],
    pub(crate) ways: [Way; 2],
}

impl Relay<'_> {
    /// Copies what can be copied without waiting. Whether anything was.
    pub(crate) fn carry(&mut self, way: usize) -> io::Result<bool> {
        let (mut from, mut to) = (&self.sockets[way], &self.sockets[1 - way]);
        let state = &mut self.ways[way];
        let mut moved = false;
        if state.pending.is_empty() && !state.ended {
            let mut buffer = vec![0; 64 * 1024];
            match from.read(&mut buffer) {
                Ok(0) => (state.ended, moved) = (true, true),
                Ok(length) => {
                    buffer.truncate(length);
                    (state.pending, moved) = (buffer, true);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        if !state.pending.is_empty() {
            match to.write(&state.pending) {
                Ok(length) => {
                    state.pending.drain(..length);
                    state.carried += length as u64;
                    moved = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        if state.ended && state.pending.is_empty() && !state.done {
            to.shutdown(Shutdown::Write)?;
            (state.done, moved) = (true, true);
        }
        Ok(moved)
    }

    /// Whether everything that was copied this way was consumed.
    pub(crate) fn is_drained(&self, way: usize) -> bool {
        let (local, remote) = self.ends[1 - way];
        let diag = &self.mesh.diags[1 - way];
        self.ways[way].pending.is_empty()
            && unsent(&self.sockets[1 - way]) == 0
            && diag.unread(local, remote).unwrap() == Some(0)
    }

    /// Grants a direction `more` bytes if it is drained. Whether it was.
    pub(crate) fn grant(&self, way: usize, more: u64) -> bool {
        let drained = self.is_drained(way);
        if drained {
            let (from, to) = (&self.apps[way], &self.apps[1 - way]);
            let limit = self.mesh.splices.redirected(from) + more;
            self.mesh.splices.grant(from, to, self.ways[way].carried, limit).unwrap();
        }
        drained
    }

    /// Grants a direction, waiting until that may be.
    pub(crate) fn splice(&mut self, way: usize, more: u64) {
        let end = std::time::Instant::now() + PATIENCE;
        while !self.grant(way, more) {
            self.carry(way).unwrap();
            assert!(std::time::Instant::now() < end, "not drained");
            std::thread::yield_now();
        }
    }

    pub(crate) fn redirected(&self, way: usize) -> u64 {
        self.mesh.splices.redirected(&self.apps[way])
    }

    pub(crate) fn unread(&self, end: usize) -> u32 {
        let (local, remote) = self.ends[end];
        self.mesh.diags[end].unread(local, remote).unwrap().expect("a socket")
    }
}

/// SIOCOUTQ.
fn unsent(socket: &TcpStream) -> i32 {
    let mut bytes = 0;
    // SAFETY: the question fills one integer.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    assert_eq!(result, 0);
    bytes
}
