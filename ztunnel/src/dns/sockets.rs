//! The UDP sockets of DNS in a pod's network namespace: the one that its queries are led to, those that ask its
//! resolver, and those that answer in the resolver's place.
//!
//! What is in the datagrams is not known here.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd},
};

use capture::Netns;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, recvmsg, setsockopt, sockopt,
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
    /// Whom it asked.
    pub(super) resolver: SocketAddr,
}

/// Makes the socket for a pod's queries, on a free port. It hears only what the kernel programs give it: what is
/// sent to its own port does not come from [`receive`].
pub(crate) fn listen(netns: &Netns, own: &Own) -> io::Result<UdpSocket> {
    let socket = netns.enter(|| datagrams(own, Domain::IPV6)).map_err(io::Error::other)??;
    socket.set_only_v6(false)?;
    setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?;
    setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into())?;
    Ok(socket.into())
}

/// Takes one datagram; `WouldBlock` when there is none. `None` for one that was not a query on its way to a
/// resolver: somebody has found our port.
pub(super) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut control = nix::cmsg_space!(libc::sockaddr_in, libc::sockaddr_in6);
    let mut vectors = [IoSliceMut::new(buffer)];
    let got =
        recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut vectors, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let resolver = got.cmsgs()?.find_map(|message| match message {
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
    let (Some(client), Some(resolver)) = (client, resolver.map(canonical)) else { return Ok(None) };
    Ok((resolver.port() == PORT).then_some(Received { length: got.bytes, client, resolver }))
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
