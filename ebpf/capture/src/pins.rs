//! ztunnel's side: marking its own sockets, offering its listeners, reading what the kernel measured.

use crate::Error;
use std::{
    io,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

/// The part a listener plays for its pod; the number is its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Role {
    /// What the pod dials.
    Outbound = 0,
    /// What others dial of the pod, in plaintext.
    Inbound = 1,
    /// Tunnels to the pod: its port 15008.
    Hbone = 2,
}

/// What the kernel measured of one of our TCP connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpStats {
    /// The smoothed round-trip time, in microseconds.
    pub srtt_us: u32,
    /// Segments sent again since the connection began.
    pub retransmits: u32,
    /// The latest delivery rate, in bytes per second.
    pub delivery_rate: u64,
}

/// The pins an agent left for this node.
#[derive(Debug)]
pub struct Pins {
    dir: PathBuf,
}

impl Pins {
    /// Opens the shared pins of a node.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Self { dir: dir.to_owned() })
    }

    /// Opens one pod's slots. [`Error::NoPin`] when the pod has no capture of ours.
    pub fn pod(&self, uid: &str) -> Result<PodSlots, Error> {
        Err(Error::NoPin { path: self.dir.join("pods").join(uid) })
    }

    /// Marks a socket as ztunnel's own: its packets are never captured. To be called before `connect`
    /// or `listen`; what a marked listener accepts is marked too.
    pub fn mark_own(&self, _socket: BorrowedFd<'_>) -> Result<(), Error> {
        Err(Error::NoPin { path: self.dir.clone() })
    }

    /// What the kernel measured of a marked connection; `None` before the first round trip, or when the
    /// node has no cgroup to measure in.
    pub fn tcp_stats(&self, _socket: BorrowedFd<'_>) -> Option<TcpStats> {
        None
    }
}

/// One pod's listeners.
#[derive(Debug)]
pub struct PodSlots {
    dir: PathBuf,
}

impl PodSlots {
    /// Puts a listening socket into the slot of `role`, in place of the one before, at once.
    pub fn set(&self, _role: Role, _listener: BorrowedFd<'_>) -> Result<(), Error> {
        Err(Error::NoPin { path: self.dir.clone() })
    }

    /// The cookie of the socket that holds the slot of `role`; `None` when nobody listens.
    pub fn holder(&self, _role: Role) -> Option<u64> {
        None
    }
}

/// The kernel's number for a socket, unique until the machine restarts.
pub fn socket_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    socket2::SockRef::from(&socket).cookie()
}
