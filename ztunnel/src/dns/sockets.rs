//! The UDP sockets of DNS in a pod's network namespace: the one that its queries are led to, those that ask its
//! resolver, and those that answer in the resolver's place.
//!
//! What is in the datagrams is not known here.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    os::fd::{AsFd, AsRawFd},
};

use capture::Netns;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::sockets::{Measure, Own, canonical};

/// The port of DNS.
pub(crate) const PORT: u16 = 53;

/// The longest datagram.
pub(super) const LONGEST: usize = 65_535;

/// One datagram of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) length: usize,
    /// The app.
    pub(super) client: SocketAddr,
    /// Where it arrived: at the resolver's address, unless that was rewritten.
    pub(super) at: SocketAddr,
}

/// Makes the socket for a pod's queries, on `port`; 0 takes a free one.
pub(crate) fn listen(netns: &Netns, own: &Own, port: u16) -> io::Result<UdpSocket> {
    let socket = netns.enter(|| datagrams(own, Domain::IPV6)).map_err(io::Error::other)??;
    socket.set_only_v6(false)?;
    setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?;
    setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true)?;
    // Without slots a successor takes queries on the same port before we close it.
    socket.set_reuse_port(matches!(own, Own::Mark(_)))?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket.into())
}

/// Takes one datagram; `WouldBlock` when there is none. `None` for one that does not say where it comes from and goes.
pub(super) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut control = nix::cmsg_space!(libc::sockaddr_in, libc::sockaddr_in6);
    let mut vectors = [IoSliceMut::new(buffer)];
    let got =
        recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut vectors, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let at = got.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4OrigDstAddr(at) => {
            let at = SockaddrIn::from(at);
            Some(SocketAddr::new(IpAddr::V4(at.ip()), at.port()))
        }
        ControlMessageOwned::Ipv6OrigDstAddr(at) => {
            let at = SockaddrIn6::from(at);
            Some(SocketAddr::new(IpAddr::V6(at.ip()), at.port()))
        }
        _ => None,
    });
    let client = got.address.map(|at| canonical(SocketAddr::new(IpAddr::V6(at.ip()), at.port())));
    let (Some(client), Some(at)) = (client, at.map(canonical)) else { return Ok(None) };
    Ok(Some(Received { length: got.bytes, client, at }))
}

/// A socket from which a pod's resolver is asked, as the pod: from its address `from`, and a port that nobody
/// can guess. Only the resolver's own datagrams are heard.
pub(super) fn ask(netns: &Netns, own: &Own, from: IpAddr, resolver: SocketAddr) -> io::Result<UdpSocket> {
    let socket =
        netns.enter(|| datagrams(own, Domain::for_address(resolver))).map_err(io::Error::other)??;
    if from.is_ipv4() == resolver.is_ipv4() {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect(&resolver.into())?;
    Ok(socket.into())
}

/// Answers an app in the place of the resolver that it asked.
///
/// The socket poses as the resolver, so it is on port 53, and lives for this one datagram: a pod that is a
/// resolver itself could not bind that port as long as any socket of the pod's namespace has it.
pub(super) fn answer(
    netns: &Netns,
    own: &Own,
    resolver: SocketAddr,
    client: SocketAddr,
    bytes: &[u8],
) -> io::Result<()> {
    pose(netns, own, resolver)?.send_to(bytes, &client.into()).map(drop)
}

/// Answers an app from the address at which its query arrived, and from the same port: the rules that led the query
/// here know the answer by both, and give it the resolver's address.
pub(super) fn answer_from(
    socket: &UdpSocket,
    from: IpAddr,
    client: SocketAddr,
    bytes: &[u8],
) -> io::Result<()> {
    let mapped = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let source =
        libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: mapped(from).octets() }, ipi6_ifindex: 0 };
    let to = SockaddrIn6::from(SocketAddrV6::new(mapped(client.ip()), client.port(), 0, 0));
    let control = [ControlMessage::Ipv6PacketInfo(&source)];
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::MSG_DONTWAIT, Some(&to))?;
    Ok(())
}

/// Whether resolvers of both families can be posed as in this namespace: not where an app has port 53 on every address
/// of a family, nor without the capability to bind it.
pub(super) fn can_pose(netns: &Netns, own: &Own) -> io::Result<()> {
    // Addresses for documentation (RFC 5737, RFC 3849), which nobody has: as good as any resolver's.
    pose(netns, own, SocketAddr::from(([192, 0, 2, 53], PORT)))?;
    match pose(netns, own, SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53], PORT))) {
        Err(error) if is_in_the_way(&error) => Err(error),
        // Where there is no IPv6, nobody asks over it.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Whether an error says that port 53 cannot be had.
pub(super) fn is_in_the_way(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
}

fn pose(netns: &Netns, own: &Own, resolver: SocketAddr) -> io::Result<Socket> {
    let socket =
        netns.enter(|| datagrams(own, Domain::for_address(resolver))).map_err(io::Error::other)??;
    if resolver.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_ip_transparent_v6(true)?;
    }
    // Two answers of one resolver may be on their way at a time.
    socket.set_reuse_address(true)?;
    socket.bind(&resolver.into())?;
    Ok(socket)
}

/// A marked socket in the namespace that this thread is in now.
fn datagrams(own: &Own, domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    own.mark(socket.as_fd(), Measure::No)?;
    Ok(socket)
}
