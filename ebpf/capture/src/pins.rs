//! ztunnel's side: marking its own sockets, offering its listeners, reading what the kernel measured.

use crate::{Error, layout, maps};
use aya::maps::{Array, MapData, SkStorage};
use std::{
    fmt, io,
    os::fd::{AsRawFd as _, BorrowedFd},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
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
    /// The pod's DNS queries over UDP, whomever it asks: a bound UDP socket in place of a listener. While the slot is
    /// empty they pass.
    Dns = 3,
}

const _: () = {
    assert!(Role::Outbound as u32 == abi::Slot::Outbound as u32);
    assert!(Role::Inbound as u32 == abi::Slot::Inbound as u32);
    assert!(Role::Hbone as u32 == abi::Slot::Hbone as u32);
    assert!(Role::Dns as u32 == abi::Slot::Dns as u32);
};

/// What the kernel measured of one of our TCP connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpStats {
    /// The smoothed round-trip time, in microseconds.
    pub srtt_us: u32,
    /// Segments sent again since the connection began.
    pub retransmits: u32,
    /// The latest delivery rate, in bytes per second; 0 before the first.
    pub delivery_rate: u64,
}

/// The pins an agent left for this node.
#[derive(Debug)]
pub struct Pins {
    dir: PathBuf,
    own: Mutex<SkStorage<MapData, u32>>,
    stats: SkStorage<MapData, [u64; 3]>,
}

impl Pins {
    /// Opens the shared pins of a node. [`Error::NoPin`] before the agent has made them.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Self { dir: dir.to_owned(), own: Mutex::new(maps::own(dir)?), stats: maps::stats(dir)? })
    }

    /// Opens one pod's slots. [`Error::NoPin`] when the pod has no capture of ours.
    pub fn pod(&self, uid: &str) -> Result<PodSlots, Error> {
        let dir = layout::pod(&self.dir, uid)?;
        Ok(PodSlots { slots: Mutex::new(maps::slots(&dir)?), dir, uid: uid.to_owned() })
    }

    /// Marks a socket as ztunnel's own: its packets are never captured. To be called before `connect`
    /// or `listen`; what a marked listener accepts is marked too.
    pub fn mark_own(&self, socket: BorrowedFd<'_>) -> Result<(), Error> {
        self.mark(socket, abi::OWN_MARK)
    }

    /// The same, and has the kernel measure the connection for [`Self::tcp_stats`]: a microsecond or two for
    /// each, so it is for those that cross a network.
    pub fn mark_measured(&self, socket: BorrowedFd<'_>) -> Result<(), Error> {
        self.mark(socket, abi::OWN_MARK | abi::OWN_MEASURED)
    }

    fn mark(&self, socket: BorrowedFd<'_>, mark: u32) -> Result<(), Error> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.insert(&socket, mark, 0).map_err(|error| Error::kernel("mark a socket as ztunnel's own", &error))
    }

    /// Whether a socket bears ztunnel's mark.
    pub fn is_own(&self, socket: BorrowedFd<'_>) -> bool {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.get(&socket, 0).is_ok_and(|mark| mark & abi::OWN_MARK != 0)
    }

    /// What the kernel measured of a connection marked for it; `None` before it is established, or when the node
    /// has no cgroup to measure in. The measurements go with the socket: read them before it is closed.
    pub fn tcp_stats(&self, socket: BorrowedFd<'_>) -> Option<TcpStats> {
        let stats = abi::TcpStats::from_words(self.stats.get(&socket, 0).ok()?);
        let micros = u64::from(stats.rate_interval_us);
        Some(TcpStats {
            srtt_us: stats.srtt_us,
            retransmits: stats.retransmits,
            delivery_rate: stats.rate_bytes.saturating_mul(1_000_000).checked_div(micros).unwrap_or(0),
        })
    }
}

/// One pod's listeners.
pub struct PodSlots {
    slots: Mutex<Array<MapData, u64>>,
    dir: PathBuf,
    uid: String,
}

impl fmt::Debug for PodSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodSlots").field("uid", &self.uid).finish_non_exhaustive()
    }
}

impl PodSlots {
    /// Puts a listening socket into the slot of `role`, in place of the one before, at once. It leaves the
    /// slot by itself when it is closed.
    pub fn set(&self, role: Role, listener: BorrowedFd<'_>) -> Result<(), Error> {
        let fd = u64::from(listener.as_raw_fd().unsigned_abs());
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.set(role as u32, fd, 0).map_err(|error| {
            let what = format!("pod {}: offer a listener for {role:?} (does it listen?)", self.uid);
            Error::kernel(what, &error)
        })
    }

    /// Empties the slot of `role`. To be done only by whoever holds it.
    pub fn clear(&self, role: Role) -> Result<(), Error> {
        let slot = role as u32;
        let what = || format!("pod {}: empty the slot for {role:?}", self.uid);
        let mut slots = maps::slots_to_empty(&self.dir)?;
        slots.remove(&slot).map_err(|error| Error::kernel(what(), &error))
    }

    /// The cookie of the socket that holds the slot of `role`; `None` when nobody listens.
    pub fn holder(&self, role: Role) -> Option<u64> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get(&(role as u32), 0).ok()
    }
}

/// The kernel's number for a socket, unique until the machine restarts.
pub fn socket_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    socket2::SockRef::from(&socket).cookie()
}
