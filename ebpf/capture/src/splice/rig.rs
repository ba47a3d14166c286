//! What the self-test plays with: a network namespace of its own, programs and maps of its own, and a pair
//! of applications with a relay between them whose sockets bear ztunnel's mark.

use super::{AppSocket, Splices, agent};
use crate::{
    Error, Netns,
    netlink::Netlink,
    programs,
    sockdiag::Diag,
    splice::{StateWords, agent::Load},
    sys,
};
use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, SkStorage},
    programs::{sk_msg::SkMsgLink, sock_ops::SockOpsLink},
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{LinkFlags, LinkMessage},
};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    fmt,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// How long anything may take that takes microseconds when all is well and the machine is idle.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
const BEAT: Duration = Duration::from_micros(200);
/// The caller's address and the server's: what goes to loopback addresses takes no part in splicing.
const V4: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
const V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)];
/// The number of `lo` in every namespace.
const LOOPBACK: u32 = 1;

/// What went wrong in a case.
#[derive(Debug)]
pub(super) struct Failure(pub(super) String);

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) type Outcome<T = ()> = Result<T, Failure>;

/// Fails a case unless something holds.
pub(super) fn demand(holds: bool, what: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(Failure(what())) }
}

/// The namespace and the programs. Dropping it takes everything away.
pub(super) struct Rig {
    netns: Netns,
    cookie: u64,
    pub(super) splices: Splices,
    own: SkStorage<MapData, u32>,
    pub(super) diag: Diag,
    _links: (SockOpsLink, SkMsgLink),
    _programs: Ebpf,
}

impl Rig {
    /// Loads everything anew, for sockets of this process, which must be in the cgroup.
    pub(super) fn open(cgroup: &Path) -> Result<Self, Error> {
        let netns = new_netns()?;
        let cookie = netns.cookie()?;
        let load = Load::Scratch { write_seq: agent::write_seq()? };
        let mut programs = programs::load_splice(Path::new(""), load)?;
        let msg = programs::attach_splice_msg(&mut programs)?;
        let ops = programs::attach_splice_ops(&mut programs, cgroup)?;
        let mut pods: HashMap<_, u64, u32> = take(&mut programs, abi::SPLICE_PODS)?;
        pods.insert(cookie, 1, 0).map_err(|error| Error::kernel("name a namespace to try", &error))?;
        let splices = Splices::of(
            take(&mut programs, abi::SPLICE_SOCKETS)?,
            take(&mut programs, abi::SPLICE_EXPECTED)?,
            take(&mut programs, abi::SPLICE_GRANTS)?,
            take(&mut programs, abi::SPLICE_INSTANCES)?,
            take(&mut programs, abi::SPLICE_TALLY)?,
            take::<SkStorage<MapData, StateWords>>(&mut programs, abi::SPLICE_STATE)?,
        );
        let own = take(&mut programs, abi::OWN)?;
        let failed = |source| Error::system("ask about sockets of a namespace to try", source);
        let diag = netns.enter(Diag::open)?.map_err(failed)?;
        Ok(Self { netns, cookie, splices, own, diag, _links: (ops, msg), _programs: programs })
    }

    /// A socket made in the namespace; with ztunnel's mark if it is the relay's.
    fn socket(&mut self, domain: Domain, own: bool) -> Outcome<Socket> {
        let socket = self.netns.enter(|| Socket::new(domain, Type::STREAM, None))??;
        if own {
            self.own.insert(&socket, abi::OWN_MARK, 0)?;
        }
        Ok(socket)
    }

    /// Listens on both families, as most servers do.
    fn listener(&mut self, own: bool) -> Outcome<TcpListener> {
        let socket = self.socket(Domain::IPV6, own)?;
        socket.set_only_v6(false)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into())?;
        socket.listen(4)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket.into())
    }

    /// What a listener of MPTCP accepts from the relay, which speaks plain TCP; `None` where the kernel has no
    /// MPTCP.
    pub(super) fn accepted_by_mptcp(&mut self) -> Outcome<Option<TcpStream>> {
        let made = self.netns.enter(|| Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::MPTCP)))?;
        let unknown = [libc::EPROTONOSUPPORT, libc::ENOPROTOOPT, libc::EINVAL];
        let server = match made {
            Err(error) if error.raw_os_error().is_some_and(|code| unknown.contains(&code)) => {
                return Ok(None);
            }
            made => made?,
        };
        server.set_only_v6(false)?;
        server.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into())?;
        server.listen(4)?;
        let server = TcpListener::from(server);
        let at = SocketAddr::new(V4[1].into(), server.local_addr()?.port());
        let onward = self.socket(Domain::IPV4, true)?;
        onward.bind(&SocketAddr::new(V4[0].into(), 0).into())?;
        let bound = plain(onward.local_addr()?.as_socket())?;
        self.splices.expect(&AppSocket::new(self.cookie, at, bound))?;
        onward.connect_timeout(&at.into(), PATIENCE)?;
        Ok(Some(server.accept()?.0))
    }

    /// A connects to the relay, and the relay to B.
    pub(super) fn pair(&mut self, v6: bool) -> Outcome<Pair> {
        let (caller, ip) =
            if v6 { (IpAddr::V6(V6[0]), IpAddr::V6(V6[1])) } else { (V4[0].into(), V4[1].into()) };
        let (relay, server) = (self.listener(true)?, self.listener(false)?);
        let at =
            |listener: &TcpListener| Ok::<_, io::Error>(SocketAddr::new(ip, listener.local_addr()?.port()));
        let app = self.socket(Domain::for_address(at(&relay)?), false)?;
        app.bind(&SocketAddr::new(caller, 0).into())?;
        app.connect_timeout(&at(&relay)?.into(), PATIENCE)?;
        let (front, _) = relay.accept()?;

        let onward = self.socket(Domain::for_address(at(&server)?), true)?;
        onward.bind(&SocketAddr::new(caller, 0).into())?;
        let bound = plain(onward.local_addr()?.as_socket())?;
        let b_socket = AppSocket::new(self.cookie, at(&server)?, bound);
        self.splices.expect(&b_socket)?;
        onward.connect_timeout(&at(&server)?.into(), PATIENCE)?;
        let (b, _) = server.accept()?;

        let a = TcpStream::from(app);
        let a_socket = AppSocket::new(self.cookie, a.local_addr()?, a.peer_addr()?);
        let meet = |app, own: &OwnedFd, name: &str| {
            let met = self.splices.meet(app, own.as_fd());
            met.ok_or_else(|| {
                Failure(format!("the socket that faces {name} takes no part; is this process in the cgroup?"))
            })
        };
        let (front, onward) = (OwnedFd::from(front), OwnedFd::from(onward));
        let pair = Pair {
            a_socket: meet(&a_socket, &front, "front")?,
            b_socket: meet(&b_socket, &onward, "onward")?,
            ends: [(a.local_addr()?, a.peer_addr()?), (at(&server)?, bound)],
            front: Some(front.into()),
            onward: Some(onward.into()),
            a,
            b,
            carried: [0; 2],
        };
        for socket in [Some(&pair.a), Some(&pair.b), pair.front.as_ref(), pair.onward.as_ref()] {
            let Some(socket) = socket else { continue };
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            socket.set_nodelay(true)?;
        }
        Ok(pair)
    }
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Forth = 0,
    Back = 1,
}

/// Two applications and the relay between them.
pub(super) struct Pair {
    pub(super) a: TcpStream,
    pub(super) b: TcpStream,
    pub(super) front: Option<TcpStream>,
    pub(super) onward: Option<TcpStream>,
    pub(super) a_socket: AppSocket,
    pub(super) b_socket: AppSocket,
    /// The addresses of A's socket and of B's.
    pub(super) ends: [(SocketAddr, SocketAddr); 2],
    /// Bytes that the relay copied, forth and back.
    pub(super) carried: [u64; 2],
}

impl Pair {
    /// Copies what waits at the relay, and an end of stream. Whether there was anything.
    pub(super) fn carry(&mut self, way: Way) -> Outcome<bool> {
        let (Some(front), Some(onward)) = (&self.front, &self.onward) else { return Ok(false) };
        let (mut from, mut to) = if way == Way::Forth { (front, onward) } else { (onward, front) };
        let mut buffer = [0; 16 * 1024];
        from.set_nonblocking(true)?;
        let read = from.read(&mut buffer);
        from.set_nonblocking(false)?;
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Ok(0) => {
                to.shutdown(std::net::Shutdown::Write)?;
                Ok(true)
            }
            read => {
                let read = read?;
                to.write_all(&buffer[..read])?;
                self.carried[way as usize] += read as u64;
                Ok(true)
            }
        }
    }

    /// Copies until `count` bytes have gone this way.
    pub(super) fn carry_to(&mut self, way: Way, count: u64) -> Outcome {
        let end = Instant::now() + PATIENCE;
        while self.carried[way as usize] < count {
            if !self.carry(way)? {
                let carried = self.carried[way as usize];
                demand(Instant::now() < end, || format!("{carried} of {count} bytes came to the relay"))?;
                thread::sleep(BEAT);
            }
        }
        Ok(())
    }

    /// Whether everything that the relay copied this way was consumed, and nothing is about to be copied.
    fn is_drained(&self, rig: &Rig, way: Way) -> Outcome<bool> {
        let (Some(front), Some(onward)) = (&self.front, &self.onward) else { return Ok(false) };
        let (from, to) = if way == Way::Forth { (front, onward) } else { (onward, front) };
        let (local, remote) = self.ends[1 - way as usize];
        Ok(sys::unread(from.as_fd())? == 0
            && sys::unsent(to.as_fd())? == 0
            && rig.diag.unread(local, remote)? == Some(0))
    }

    /// Grants a direction `more` bytes, as soon as what was copied is consumed.
    pub(super) fn grant(&self, rig: &Rig, way: Way, more: u64) -> Outcome {
        let end = Instant::now() + PATIENCE;
        while !self.is_drained(rig, way)? {
            demand(Instant::now() < end, || "what was copied is not seen to be consumed".to_owned())?;
            thread::sleep(BEAT);
        }
        let (from, to) = self.sockets(way);
        let limit = rig.splices.charged(from) + more;
        rig.splices.grant(from, to, self.carried[way as usize], limit)?;
        Ok(())
    }

    /// Who sends this way, and who receives.
    pub(super) fn sockets(&self, way: Way) -> (&AppSocket, &AppSocket) {
        match way {
            Way::Forth => (&self.a_socket, &self.b_socket),
            Way::Back => (&self.b_socket, &self.a_socket),
        }
    }

    /// Sends bytes, and demands that `straight` of them were redirected.
    pub(super) fn send(&mut self, rig: &Rig, way: Way, bytes: &[u8], straight: usize) -> Outcome {
        let from = *self.sockets(way).0;
        let before = rig.splices.redirected(&from);
        if way == Way::Forth { &mut self.a } else { &mut self.b }.write_all(bytes)?;
        let redirected = rig.splices.redirected(&from) - before;
        demand(redirected == straight as u64, || {
            format!("{redirected} bytes were redirected, not {straight}")
        })
    }

    /// Reads exactly these bytes at the other end.
    pub(super) fn expect(&mut self, way: Way, bytes: &[u8]) -> Outcome {
        let mut read = vec![0; bytes.len()];
        let to = if way == Way::Forth { &mut self.b } else { &mut self.a };
        to.read_exact(&mut read).map_err(|error| {
            Failure(format!("{:?} cannot be read: {error}", String::from_utf8_lossy(bytes)))
        })?;
        demand(read == bytes, || {
            format!("{:?} was read, not {:?}", String::from_utf8_lossy(&read), String::from_utf8_lossy(bytes))
        })
    }
}

/// The kernel readies an IPv6 address a while after it was added: until then, what is sent to it comes back
/// as unreachable.
fn wait_for_routes() -> io::Result<()> {
    let ends = [UdpSocket::bind((V6[0], 0))?, UdpSocket::bind((V6[1], 0))?];
    let end = Instant::now() + PATIENCE;
    for (from, to) in [(0, 1), (1, 0)] {
        let at = ends[to].local_addr()?;
        ends[to].set_read_timeout(Some(Duration::from_millis(2)))?;
        while ends[from].send_to(&[0], at).and_then(|_| ends[to].recv(&mut [0])).is_err() {
            if Instant::now() > end {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{at} is not reached over lo")));
            }
        }
    }
    Ok(())
}

/// An address of `lo`, and of nothing else.
fn address(ip: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    (message.header.family, message.header.prefix_len) = match ip {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.header.flags = AddressHeaderFlags::Nodad;
    message.header.index = LOOPBACK;
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}

/// A namespace with nothing but `lo`, up.
fn new_netns() -> Result<Netns, Error> {
    let failed = |source| Error::system("make a network namespace to try splicing in", source);
    let made = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
        let netns = Netns::current()?;
        let mut lo = LinkMessage::default();
        lo.header.index = LOOPBACK;
        lo.header.flags = LinkFlags::Up;
        lo.header.change_mask = LinkFlags::Up;
        let set_up = Netlink::open().and_then(|netlink| {
            netlink.change(RouteNetlinkMessage::SetLink(lo))?;
            let addresses = V4.map(IpAddr::V4).into_iter().chain(V6.map(IpAddr::V6));
            addresses
                .map(address)
                .try_for_each(|address| netlink.ensure(RouteNetlinkMessage::NewAddress(address)))
        });
        set_up.and_then(|()| wait_for_routes()).map(|()| netns).map_err(failed)
    });
    made.join().map_err(|_| failed(io::Error::other("the thread panicked")))?
}

fn take<M: TryFrom<Map, Error = MapError>>(programs: &mut Ebpf, name: &str) -> Result<M, Error> {
    let map = programs.take_map(name).ok_or_else(|| programs::missing(name))?;
    M::try_from(map).map_err(|error| Error::kernel(format!("use the map {name}"), &error))
}

fn plain(at: Option<SocketAddr>) -> Outcome<SocketAddr> {
    at.ok_or_else(|| Failure("a socket has no address".to_owned()))
}
