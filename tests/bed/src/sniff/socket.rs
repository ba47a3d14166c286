//! A packet socket: the one place of the bed that needs unsafe code, for the socket options and the
//! address type that the safe wrappers do not have.
#![expect(
    unsafe_code,
    reason = "PACKET_STATISTICS, PACKET_IGNORE_OUTGOING and sockaddr_ll have no safe wrapper"
)]

use std::{
    io::{self, ErrorKind, Read},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, sockopt::RcvBufForce},
};
use socket2::Socket;

/// Enough for half a second of a link that carries 1 GB/s, in the kernel's own accounting.
const BUFFER: usize = 512 << 20;

/// An AF_PACKET socket bound to one device. It never blocks.
#[derive(Debug)]
pub(super) struct PacketSocket {
    socket: Socket,
}

impl PacketSocket {
    /// Opens it in the current network namespace; with `outgoing`, frames that leave are read too.
    pub(super) fn open(device: &str, outgoing: bool) -> Result<Self> {
        let index = if_nametoindex(device).with_context(|| format!("no device {device}"))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Without a protocol nothing is received until the bind below, so nothing of other devices is.
        let fd = nix::sys::socket::socket(AddressFamily::Packet, SockType::Raw, flags, None::<SockProtocol>)
            .context("open a packet socket (needs root)")?;
        setsockopt(&fd, RcvBufForce, &BUFFER).context("enlarge the sniffer's buffer")?;
        if !outgoing {
            set_option(&fd, libc::PACKET_IGNORE_OUTGOING, 1).context("ignore outgoing frames")?;
        }
        bind(&fd, index).with_context(|| format!("bind the sniffer to {device}"))?;
        Ok(Self { socket: fd.into() })
    }

    /// One frame into `buffer`, or `None` when there is none now.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>> {
        loop {
            match self.socket.read(buffer) {
                Ok(length) => return Ok(Some(length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                // The device went down (its peer was removed): nothing more will come.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("read a frame"),
            }
        }
    }

    /// How many frames the kernel has dropped since the last call.
    pub(super) fn take_drops(&self) -> Result<u64> {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = size_of_val(&stats) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes into `stats`, a plain struct of two u32, and
        // both pointers are valid for the call.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut length,
            )
        };
        Errno::result(result).context("ask for the sniffer's drops")?;
        Ok(stats.tp_drops.into())
    }
}

/// Waits until one of the sockets has a frame, at most for `limit`.
pub(super) fn wait(sockets: &[PacketSocket], limit: Duration) -> Result<()> {
    let mut fds: Vec<PollFd<'_>> =
        sockets.iter().map(|socket| PollFd::new(socket.socket.as_fd(), PollFlags::POLLIN)).collect();
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, limit) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context("wait for a frame"),
    }
}

fn set_option(fd: &impl AsFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: `value` is an int, as the option demands, and lives through the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(())
}

fn bind(fd: &impl AsFd, index: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: `address` is a whole sockaddr_ll of the length given and lives through the call.
    let result = unsafe {
        libc::bind(
            fd.as_fd().as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(())
}
