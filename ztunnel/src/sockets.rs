//! Sockets in the pods' network namespaces: listeners, dials and onward legs, each recognised by the
//! kernel programs as ztunnel's own.
//!
//! A socket belongs for life to the namespace it was made in, so only its making happens inside; no
//! thread ever waits there. What travels over the sockets is not this file's business.

use std::{
    cell::Cell,
    io::{self, Read},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use capture::{Netns, Pins, TcpStats, sockdiag::Diag};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{error::Elapsed, timeout},
};

/// Connections that may wait to be accepted; the kernel caps it with `net.core.somaxconn`.
const ACCEPT_QUEUE: i32 = 4096;

/// Ports tried for one onward leg before it is given up: at 5 µs each, a stall of about a millisecond.
const ONWARD_ATTEMPTS: usize = 256;

/// How the kernel side recognises the sockets of this ztunnel in one pod.
#[derive(Clone)]
pub(crate) enum Own {
    /// Socket storage, which a pod cannot forge: our own capture.
    Storage(Arc<Pins>),
    /// A packet mark, as the iptables rules of a foreign CNI plugin expect it.
    Mark(u32),
}

impl Own {
    pub(crate) fn mark(&self, socket: BorrowedFd<'_>, measure: Measure) -> io::Result<()> {
        match self {
            Self::Storage(pins) => match measure {
                Measure::Yes => pins.mark_measured(socket),
                Measure::No => pins.mark_own(socket),
            }
            .map_err(io::Error::other),
            Self::Mark(mark) => setsockopt(&socket, sockopt::Mark, mark).map_err(io::Error::from),
        }
    }

    /// What the kernel measured of one of our connections.
    pub(crate) fn tcp_stats(&self, socket: BorrowedFd<'_>) -> Option<TcpStats> {
        match self {
            Self::Storage(pins) => pins.tcp_stats(socket),
            Self::Mark(_) => None,
        }
    }
}

/// Whether the kernel is to measure a connection: round-trip time, retransmits, delivery rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    Yes,
    /// It stays within the node, or nobody would read it.
    No,
}

/// How long and how often the kernel asks a silent peer whether it is still there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keepalive {
    pub(crate) idle: Duration,
    pub(crate) interval: Duration,
    pub(crate) retries: u32,
}

/// What every socket of this ztunnel is set to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SocketOptions {
    pub(crate) keepalive: Keepalive,
    pub(crate) dial_timeout: Duration,
}

/// The address a dual-stack socket shows for an IPv4 peer is `::ffff:a.b.c.d`; everyone else speaks of `a.b.c.d`.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// One accepted connection, not yet registered with any worker's reactor.
pub(crate) struct Accepted {
    stream: Cell<Option<std::net::TcpStream>>,
    /// What became of it while it was read early.
    failed: Cell<Option<io::Error>>,
    /// The caller.
    pub(crate) peer: SocketAddr,
    /// The address the caller dialled.
    pub(crate) original: SocketAddr,
}

impl Accepted {
    /// The stream itself, on this thread's reactor from now on. To be taken once, when there is
    /// something to do with it.
    pub(crate) fn take(&self) -> io::Result<TcpStream> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let stream = self.stream.take().ok_or_else(|| io::Error::other("the stream was taken before"))?;
        TcpStream::from_std(stream)
    }

    /// Reads what the caller has said already, without waiting; 0 if that is nothing, or its end.
    pub(crate) fn read_now(&self, buffer: &mut [u8]) -> usize {
        let Some(mut stream) = self.stream.take() else { return 0 };
        let read = stream.read(buffer);
        match read {
            // The socket tells an error once only; then it seems to have ended in order.
            Err(error) if !is_not_now(&error) => {
                self.failed.set(Some(error));
                0
            }
            // An end is met again by whoever reads next.
            read => {
                self.stream.set(Some(stream));
                read.unwrap_or(0)
            }
        }
    }

    /// Whether the caller has said something already.
    pub(crate) fn has_bytes(&self) -> bool {
        let Some(stream) = self.stream.take() else { return false };
        match stream.peek(&mut [0]) {
            Err(error) if !is_not_now(&error) => {
                self.failed.set(Some(error));
                false
            }
            looked => {
                self.stream.set(Some(stream));
                looked.is_ok_and(|count| count > 0)
            }
        }
    }

    /// Ends a connection that was not taken by a RST: the caller sees a failure and not an empty answer.
    pub(crate) fn reset(self) {
        if let Some(stream) = self.stream.take() {
            // A failure to set it leaves a FIN, which ends the connection too.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    }
}

fn is_not_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Where an accepted socket's original destination is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OriginalDestination {
    /// The socket's own address: the kernel assigned the connection, nothing was rewritten.
    LocalAddress,
    /// netfilter's memory of what it rewrote.
    Netfilter,
}

/// Makes a listener in `netns`. `port` 0 takes a free one.
pub(crate) fn listen(
    netns: &Netns,
    own: &Own,
    port: u16,
    measure: Measure,
    options: &SocketOptions,
) -> io::Result<std::net::TcpListener> {
    let socket = netns
        .enter(|| Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)))
        .map_err(io::Error::other)??;
    socket.set_only_v6(false)?;
    socket.set_ip_transparent_v6(true)?;
    // Accepted sockets sit on the app's own port; without this the app could not bind it again.
    socket.set_reuse_address(true)?;
    // Without slots a successor listens on the same port before we close it.
    socket.set_reuse_port(matches!(own, Own::Mark(_)))?;
    socket.set_nonblocking(true)?;
    // What follows is inherited by the accepted sockets.
    tune(&socket, options)?;
    // Children inherit the mark with their first segment only if it is there before listen().
    own.mark(socket.as_fd(), measure)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(ACCEPT_QUEUE)?;
    Ok(socket.into())
}

/// Takes one connection from a listener's queue; `WouldBlock` when it is empty.
pub(crate) fn accept(listener: &std::net::TcpListener, kind: OriginalDestination) -> io::Result<Accepted> {
    let (stream, peer) = listener.accept()?;
    stream.set_nonblocking(true)?;
    let peer = canonical(peer);
    let original = match kind {
        OriginalDestination::LocalAddress => canonical(stream.local_addr()?),
        // What came straight to the listener's port (HBONE does) was not rewritten.
        OriginalDestination::Netfilter => match original_of_netfilter(&stream, peer) {
            Ok(original) => original,
            Err(_) => canonical(stream.local_addr()?),
        },
    };
    Ok(Accepted { stream: Cell::new(Some(stream)), failed: Cell::default(), peer, original })
}

fn original_of_netfilter(stream: &std::net::TcpStream, peer: SocketAddr) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let address = if peer.is_ipv4() { socket.original_dst_v4()? } else { socket.original_dst_v6()? };
    address
        .as_socket()
        .map(canonical)
        .ok_or_else(|| io::Error::other("netfilter's original destination is no IP address"))
}

/// Connects from a pod's namespace, as the pod: from its address `from`, with a port of the kernel's choice.
pub(crate) async fn dial(
    netns: &Netns,
    own: &Own,
    from: Option<IpAddr>,
    to: SocketAddr,
    measure: Measure,
    options: &SocketOptions,
) -> io::Result<TcpStream> {
    let socket = make(netns, own, to, measure, options)?;
    if let Some(from) = from.filter(|from| from.is_ipv4() == to.is_ipv4()) {
        // The port is chosen at connect(), by the whole tuple, so that ports do not run out by source address.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
    }
    start(&socket, to)?;
    finish(socket, options.dial_timeout).await
}

/// What the caller has said before the app is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FirstBytes {
    /// They are sent as soon as the connection stands. Were they not, the app would learn of the connection
    /// 200 ms late.
    AtHand,
    /// The app may be the first to speak.
    Unknown,
}

impl FirstBytes {
    pub(crate) fn at_hand(there: bool) -> Self {
        if there { Self::AtHand } else { Self::Unknown }
    }
}

/// A pod from within.
pub(crate) struct Inside<'a> {
    pub(crate) netns: &'a Netns,
    pub(crate) own: &'a Own,
    pub(crate) ports: &'a OnwardPorts,
}

/// Connects to a pod's own app inside the pod's namespace with the caller's address as source.
///
/// The port is chosen explicitly and never the caller's: were it the same, our SYN would hit the front
/// leg's socket. The kernel's own choice does not check the mirrored tuple, so we ask SOCK_DIAG.
///
/// With `first` the handshake's last ACK waits for the caller's first bytes and travels with them, which
/// wakes the app once in place of twice.
///
/// `before` is told the source of each attempt, before its SYN goes out.
pub(crate) async fn onward(
    inside: &Inside<'_>,
    caller: IpAddr,
    to: SocketAddr,
    first: FirstBytes,
    options: &SocketOptions,
    before: impl FnMut(SocketAddr),
) -> io::Result<TcpStream> {
    let start = || start_onward(inside, caller, to, first, before);
    let socket = inside.netns.enter(start).map_err(io::Error::other)??;
    // Over `lo` the connection stands, or has failed, before connect() returns.
    if is_settled(&socket)? {
        return connected(TcpStream::from_std(socket.into())?);
    }
    finish(socket, options.dial_timeout).await
}

fn start_onward(
    inside: &Inside<'_>,
    caller: IpAddr,
    to: SocketAddr,
    first: FirstBytes,
    mut before: impl FnMut(SocketAddr),
) -> io::Result<Socket> {
    let Inside { netns, own, ports } = *inside;
    let mut search = Search::default();
    for _ in 0..ONWARD_ATTEMPTS {
        let from = SocketAddr::new(caller, ports.candidate(&search));
        let mirror = if from == to { Mirror::Alive } else { ports.mirror(netns, to, from)? };
        if !search.takes(mirror) {
            continue;
        }
        let socket = make_here(own, to, Measure::No)?;
        // Its other end is in the same kernel: nobody needs to ask whether it is still there.
        socket.set_tcp_nodelay(true)?;
        if to.is_ipv4() {
            socket.set_ip_transparent_v4(true)?
        } else {
            socket.set_ip_transparent_v6(true)?
        }
        socket.set_reuse_address(true)?;
        if first == FirstBytes::AtHand {
            socket.set_tcp_quickack(false)?;
        }
        let started = socket.bind(&from.into()).and_then(|()| {
            before(from);
            start(&socket, to)
        });
        match started {
            Ok(()) => return Ok(socket),
            Err(error) if is_taken(&error) => search.held(),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrNotAvailable,
        format!("no free port among {ONWARD_ATTEMPTS} tried for a connection of {caller} to {to}"),
    ))
}

/// What stands where the other end of an onward leg will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mirror {
    Nothing,
    /// TIME_WAIT, as a rule of an earlier onward leg of ours that the app closed. A new SYN may follow it.
    Remains,
    Alive,
}

/// One search for a port.
#[derive(Debug, Default)]
struct Search {
    alive: usize,
    remains: usize,
}

/// Ports with remains passed over while there may be a better one. All have remains once 17,000
/// connections were closed within a minute.
const REMAINS_PASSED: usize = 2;

/// Held ports in a row before the search jumps.
const NEIGHBOURS: usize = 4;

impl Search {
    fn takes(&mut self, mirror: Mirror) -> bool {
        match mirror {
            Mirror::Nothing => true,
            Mirror::Remains => {
                self.remains += 1;
                self.remains > REMAINS_PASSED
            }
            Mirror::Alive => {
                self.held();
                false
            }
        }
    }

    fn held(&mut self) {
        self.alive += 1;
    }

    fn jumps(&self) -> bool {
        self.alive > 0 && self.alive.is_multiple_of(NEIGHBOURS)
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

fn make(
    netns: &Netns,
    own: &Own,
    to: SocketAddr,
    measure: Measure,
    options: &SocketOptions,
) -> io::Result<Socket> {
    let socket = netns.enter(|| make_here(own, to, measure)).map_err(io::Error::other)??;
    tune(&socket, options)?;
    Ok(socket)
}

/// A socket in the namespace this thread is in now.
fn make_here(own: &Own, to: SocketAddr, measure: Measure) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    own.mark(socket.as_fd(), measure)?;
    Ok(socket)
}

fn tune(socket: &Socket, options: &SocketOptions) -> io::Result<()> {
    let Keepalive { idle, interval, retries } = options.keepalive;
    socket.set_tcp_nodelay(true)?;
    socket
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(retries))
}

fn start(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => other,
    }
}

async fn finish(socket: Socket, limit: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::from_std(socket.into())?;
    timeout(limit, stream.ready(Interest::WRITABLE)).await.map_err(|_: Elapsed| {
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", limit.as_secs_f32()))
    })??;
    connected(stream)
}

fn connected(stream: TcpStream) -> io::Result<TcpStream> {
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

/// Whether a connect() has come to its end, well or not.
fn is_settled(socket: &Socket) -> io::Result<bool> {
    let mut asked = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut asked, PollTimeout::ZERO) {
        Ok(ready) => Ok(ready > 0),
        // The reactor will tell.
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Turns the coming close of a stream into a RST.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    // A failure to set it leaves a FIN, which ends the connection too.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// The ports of onward legs into one pod: 61000–65535, which few kernels give to callers, then 20000–32767.
///
/// Ports are taken in turn, which keeps the time until one is used again long. A caller with thousands
/// of live connections would make that a long search, so after a few held ports the search jumps.
pub(crate) struct OnwardPorts {
    next: AtomicU32,
    /// Asks the pod's namespace about its sockets; opened there with the first question.
    diag: Mutex<Option<Diag>>,
}

const HIGH: u32 = 65536 - 61000;
const LOW: u32 = 32768 - 20000;

impl OnwardPorts {
    /// Starts anywhere, so that two ztunnels on a pod do not walk in step.
    pub(crate) fn new() -> Self {
        Self { next: AtomicU32::new(rand::random()), diag: Mutex::default() }
    }

    /// Asks about the sockets of the pod, whose namespace is `netns`.
    pub(crate) fn ask<T>(
        &self,
        netns: &Netns,
        question: impl FnOnce(&Diag) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut diag = self.diag.lock().unwrap_or_else(PoisonError::into_inner);
        let diag = match diag.as_ref() {
            Some(diag) => diag,
            None => diag.insert(netns.enter(Diag::open).map_err(io::Error::other)??),
        };
        question(diag)
    }

    fn mirror(&self, netns: &Netns, to: SocketAddr, from: SocketAddr) -> io::Result<Mirror> {
        Ok(match self.ask(netns, |diag| diag.find(to, from))? {
            None => Mirror::Nothing,
            Some(socket) if socket.is_live() => Mirror::Alive,
            Some(_) => Mirror::Remains,
        })
    }

    fn candidate(&self, search: &Search) -> u16 {
        if search.jumps() {
            self.next.store(rand::random(), Ordering::Relaxed);
        }
        onward_port(self.next.fetch_add(1, Ordering::Relaxed))
    }
}

fn onward_port(turn: u32) -> u16 {
    let turn = turn % (HIGH + LOW);
    let port = if turn < HIGH { 61000 + turn } else { 20000 + turn - HIGH };
    u16::try_from(port).expect("both ranges end below 65536")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A caller, and its connection as it was accepted.
    fn accepted() -> (std::net::TcpStream, Accepted) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let caller = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (caller, accept(&listener, OriginalDestination::LocalAddress).unwrap())
    }

    #[tokio::test]
    async fn what_the_caller_has_said_is_read_without_waiting() {
        let (mut caller, accepted) = accepted();
        let mut buffer = [0; 16];
        assert_eq!(accepted.read_now(&mut buffer), 0);
        std::io::Write::write_all(&mut caller, b"hello").unwrap();
        assert_eq!(accepted.read_now(&mut buffer), 5);
        assert_eq!(&buffer[..5], b"hello");
        drop(caller);
        assert_eq!(accepted.read_now(&mut buffer), 0, "an end is nothing said");
        assert!(accepted.take().is_ok(), "and is the next reader's to see");
    }

    #[tokio::test]
    async fn a_reset_that_was_read_early_is_not_taken_for_an_end() {
        let (caller, accepted) = accepted();
        SockRef::from(&caller).set_linger(Some(Duration::ZERO)).unwrap();
        drop(caller);
        assert_eq!(accepted.read_now(&mut [0; 16]), 0);
        assert_eq!(accepted.take().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_reset_that_was_met_while_looking_is_not_taken_for_an_end() {
        let (caller, accepted) = accepted();
        SockRef::from(&caller).set_linger(Some(Duration::ZERO)).unwrap();
        drop(caller);
        assert!(!accepted.has_bytes());
        assert_eq!(accepted.take().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn onward_ports_cover_both_ranges_and_nothing_else() {
        let ports: BTreeSet<u16> = (0..HIGH + LOW).map(onward_port).collect();
        assert_eq!(ports.len(), (HIGH + LOW) as usize, "each port comes once in a round");
        assert!(ports.iter().all(|port| (20000..=32767).contains(port) || (61000..=65535).contains(port)));
        assert_eq!(onward_port(0), 61000);
        assert_eq!(onward_port(HIGH - 1), 65535);
        assert_eq!(onward_port(HIGH), 20000);
        assert_eq!(onward_port(HIGH + LOW), 61000);
    }

    /// The ports that a search looks at when it finds `found` at each.
    fn looked_at(found: Mirror, ports: &OnwardPorts) -> Vec<u16> {
        let mut search = Search::default();
        let mut seen = Vec::new();
        for _ in 0..40 * NEIGHBOURS {
            seen.push(ports.candidate(&search));
            if search.takes(found) {
                break;
            }
        }
        seen
    }

    #[test]
    fn a_search_among_live_connections_leaves_the_neighbourhood() {
        let ports = OnwardPorts { next: AtomicU32::new(0), diag: Mutex::default() };
        let seen = looked_at(Mirror::Alive, &ports);
        assert_eq!(seen[..NEIGHBOURS], [61000, 61001, 61002, 61003]);
        let starts: BTreeSet<u16> = seen.iter().step_by(NEIGHBOURS).copied().collect();
        assert!(starts.len() > 30, "jumps go to different places: {starts:?}");
    }

    #[test]
    fn remains_are_avoided_and_taken_in_turn_where_there_is_nothing_else() {
        let ports = OnwardPorts { next: AtomicU32::new(0), diag: Mutex::default() };
        assert_eq!(looked_at(Mirror::Nothing, &ports), [61000]);
        assert_eq!(looked_at(Mirror::Remains, &ports), [61001, 61002, 61003]);
        assert_eq!(looked_at(Mirror::Remains, &ports), [61004, 61005, 61006], "the oldest come first");
    }

    #[test]
    fn mapped_addresses_are_shown_as_ipv4() {
        assert_eq!(canonical("[::ffff:10.1.2.3]:80".parse().unwrap()), "10.1.2.3:80".parse().unwrap());
        assert_eq!(canonical("[fd00::1]:80".parse().unwrap()), "[fd00::1]:80".parse().unwrap());
    }
}
