//! ztunnel, as far as splicing sees it: a relay between an application of one pod and one of another, with
//! marked sockets, which grants each direction when everything it copied was consumed.

use crate::world::{Family, PATIENCE, World, accept, connect};
use capture::{AppSocket, Mode, Netns, Node, Pins, Pod, Role, Splices, Target, sockdiag::Diag, splice};
use nix::libc;
use socket2::{Domain, Socket, Type};
use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
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

/// A node that splices, with two pods whose traffic is captured.
pub(crate) struct Mesh {
    pub(crate) world: World,
    pub(crate) node: Node,
    pub(crate) splices: Splices,
    pub(crate) pods: [Pod; 2],
    pins: Pins,
    /// ztunnel's, for what the first pod dials.
    outbound: TcpListener,
    cookies: [u64; 2],
    diags: [Diag; 2],
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let world = World::new();
        let node = Node::open(world.options()).unwrap();
        node.splice_on(&splice::cgroup_root().unwrap()).unwrap();
        let pods = Self::attach(&world, &node);
        let splices = Splices::open(&world.pins).unwrap().expect("switched on");
        let pins = Pins::open(&world.pins).unwrap();
        let outbound = listen(&world.pod, "[::]:0", Some(&pins));
        pins.pod(PODS[0]).unwrap().set(Role::Outbound, outbound.as_fd()).unwrap();
        let cookies = [&world.pod, &world.far].map(|netns| netns.cookie().unwrap());
        let diags = [&world.pod, &world.far].map(|netns| netns.enter(Diag::open).unwrap().unwrap());
        Self { world, node, splices, pods, pins, outbound, cookies, diags }
    }

    /// Attaches both pods, or adopts them.
    pub(crate) fn attach(world: &World, node: &Node) -> [Pod; 2] {
        let netns = [&world.pod, &world.far];
        [0, 1].map(|number| {
            let target = Target { uid: PODS[number], netns: netns[number], node_netns: &world.node };
            let pod = node.attach(&target).unwrap();
            pod.set_mode(Mode::Enforce).unwrap();
            pod
        })
    }

    /// What the relay's listener of the first pod accepts: who called, and whom.
    pub(crate) fn accept(&self) -> (TcpStream, SocketAddr, SocketAddr) {
        accept(&self.outbound)
    }

    /// A in the one pod, B in the other, and the relay between them.
    pub(crate) fn pair(&self, flavour: Flavour) -> (TcpStream, TcpStream, Relay<'_>) {
        let (here, there) = (&self.world.pod, &self.world.far);
        let (family, any) = match flavour {
            Flavour::V4 => (Family::V4, "0.0.0.0:0"),
            Flavour::V6 => (Family::V6, "[::]:0"),
            Flavour::Mapped => (Family::V4, "[::]:0"),
        };
        let server = listen(there, any, None);
        let at = World::at_far(family, server.local_addr().unwrap().port());
        let a = connect(here, at).unwrap();
        let (front, caller, dialled) = accept(&self.outbound);
        assert_eq!((caller, dialled), (a.local_addr().unwrap(), at), "captured");

        let onward = socket(there, at, Some(&self.pins));
        match at {
            SocketAddr::V4(_) => onward.set_ip_transparent_v4(true).unwrap(),
            SocketAddr::V6(_) => onward.set_ip_transparent_v6(true).unwrap(),
        }
        onward.bind(&SocketAddr::new(caller.ip(), 0).into()).unwrap();
        let bound = onward.local_addr().unwrap().as_socket().unwrap();
        let apps = [AppSocket::new(self.cookies[0], caller, at), AppSocket::new(self.cookies[1], at, bound)];
        self.splices.expect(&apps[1]).unwrap();
        onward.connect_timeout(&at.into(), PATIENCE).unwrap();
        let b = accept(&server).0;
        let sockets = [front, onward.into()];
        let met = [0, 1].map(|end| self.splices.meet(&apps[end], sockets[end].as_fd()));
        let apps = met.map(|app| app.unwrap_or_else(|| panic!("{flavour:?}: not met")));
        for socket in &sockets {
            socket.set_nodelay(true).unwrap();
            socket.set_nonblocking(true).unwrap();
        }
        let ends = [(caller, at), (at, bound)];
        (a, b, Relay { mesh: self, apps, ends, sockets, ways: Default::default() })
    }
}

/// The ids of the pods.
const PODS: [&str; 2] = ["pod-a", "pod-b"];

/// A socket of the relay's, or of an application's.
fn socket(netns: &Netns, at: SocketAddr, own: Option<&Pins>) -> Socket {
    let domain = Domain::for_address(at);
    let socket = netns.enter(|| Socket::new(domain, Type::STREAM, None)).unwrap().unwrap();
    if let Some(pins) = own {
        pins.mark_own(socket.as_fd()).unwrap();
    }
    socket
}

fn listen(netns: &Netns, at: &str, own: Option<&Pins>) -> TcpListener {
    let at: SocketAddr = at.parse().unwrap();
    let socket = socket(netns, at, own);
    if own.is_some() {
        socket.set_ip_transparent_v6(true).unwrap();
    }
    socket.bind(&at.into()).unwrap();
    socket.listen(16).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
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
            let limit = self.mesh.splices.charged(from) + more;
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
