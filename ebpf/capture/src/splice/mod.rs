//! Splicing two applications of one node, off unless the agent switches it on: ztunnel's side. What it is
//! and what it does to the applications is in `docs/splice.md`.
//!
//! The order, for a connection of two enrolled pods: [`Splices::expect`] the socket of the pod that is
//! dialled, dial it, [`Splices::meet`] both, copy. Whenever everything that was copied in one direction was consumed (nothing
//! unread in the front socket, the onward socket's send queue acknowledged, [`sockdiag::Diag::unread`] of
//! the application's socket 0), [`Splices::grant`] that direction. [`Splices::release`] at the end, or as
//! soon as it is clear that the connection is not to be spliced.
//!
//! [`sockdiag::Diag::unread`]: crate::sockdiag::Diag::unread

pub(crate) mod agent;
mod btf;
mod rig;
mod selftest;

use crate::{Error, layout, maps, sys};
use abi::{FlowKey, Grant, SpliceKey, SpliceState};
use aya::maps::{HashMap, MapData, MapError, SkStorage, SockHash};
pub use selftest::{Report, cgroup_root, self_test};
use std::{
    collections::HashSet,
    fmt,
    net::SocketAddr,
    os::fd::BorrowedFd,
    path::Path,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

/// What a redirected message is charged beside its bytes.
pub const MESSAGE: u64 = abi::SPLICE_MESSAGE;

/// A [`SpliceKey`] as its words.
pub(crate) type KeyWords = [u64; 6];
/// A [`Grant`] as its words.
pub(crate) type GrantWords = [u64; 9];
/// A [`SpliceState`] as its words.
pub(crate) type StateWords = [u64; SpliceState::WORDS];

/// The socket of an application: a connection seen from the application's end, and its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AppSocket(SpliceKey);

impl AppSocket {
    /// The place of a socket, to [`Splices::expect`] and [`Splices::meet`] it: the one in the namespace with this cookie ([`crate::Netns::cookie`]) that stands at `local` and
    /// is connected to `remote`. IPv4 may be written as such or as IPv6 (`::ffff:…`).
    pub fn new(netns_cookie: u64, local: SocketAddr, remote: SocketAddr) -> Self {
        Self(SpliceKey::new(netns_cookie, FlowKey::new(local, remote)))
    }

    fn place(&self) -> KeyWords {
        self.0.place().to_words()
    }
}

/// What the kernel may redirect. Each call is one or a few system calls, none of which waits.
pub struct Splices {
    sockets: Mutex<SockHash<MapData, KeyWords>>,
    expected: Mutex<HashMap<MapData, KeyWords, u32>>,
    grants: Mutex<HashMap<MapData, KeyWords, GrantWords>>,
    instances: Mutex<HashMap<MapData, KeyWords, u32>>,
    tally: Mutex<HashMap<MapData, KeyWords, [u64; 2]>>,
    state: SkStorage<MapData, StateWords>,
}

/// The sockets at which something may be queued, from their first grant to their release; of the whole process,
/// since the maps may be opened again while connections go on.
static RECEIVERS: LazyLock<Mutex<HashSet<AppSocket>>> = LazyLock::new(Mutex::default);

impl fmt::Debug for Splices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Splices").finish_non_exhaustive()
    }
}

impl Splices {
    /// Opens what the agent pinned. `None` where it has not switched splicing on.
    pub fn open(pins: &Path) -> Result<Option<Self>, Error> {
        match Self::open_in(&layout::splice(pins)) {
            Err(Error::NoPin { .. }) => Ok(None),
            opened => opened.map(Some),
        }
    }

    fn open_in(dir: &Path) -> Result<Self, Error> {
        Ok(Self::of(
            maps::splice_sockets(dir)?,
            maps::splice_expected(dir)?,
            maps::splice_grants(dir)?,
            maps::splice_instances(dir)?,
            maps::splice_tally(dir)?,
            maps::splice_state(dir)?,
        ))
    }

    fn of(
        sockets: SockHash<MapData, KeyWords>,
        expected: HashMap<MapData, KeyWords, u32>,
        grants: HashMap<MapData, KeyWords, GrantWords>,
        instances: HashMap<MapData, KeyWords, u32>,
        tally: HashMap<MapData, KeyWords, [u64; 2]>,
        state: SkStorage<MapData, StateWords>,
    ) -> Self {
        let (sockets, expected) = (Mutex::new(sockets), Mutex::new(expected));
        let (grants, tally, instances) = (Mutex::new(grants), Mutex::new(tally), Mutex::new(instances));
        Self { sockets, expected, grants, instances, tally, state }
    }

    /// Announces a socket that an application is about to accept from us: to be called before `connect`,
    /// which therefore needs a port of our choice. (The socket of the application that connected takes part
    /// without a word of ours.)
    pub fn expect(&self, app: &AppSocket) -> Result<(), Error> {
        locked(&self.expected)
            .insert(app.place(), 1, 0)
            .map_err(|error| Error::kernel("announce a socket to splice", &error))
    }

    /// The very socket at the place of `app`, as long as it faces `own`, an established socket of ours: to be
    /// asked for both sockets of a connection before its first grant, and used from then on. A later socket
    /// between the same addresses is another one.
    ///
    /// `None` where nothing may be granted: the application's socket takes no part (or not yet: it may be a
    /// few microseconds behind ours), ours is not established any more, or the kernel would not take the
    /// grant away when ours ends, since it is outside the cgroup that the agent was given or was established
    /// before.
    pub fn meet(&self, app: &AppSocket, own: BorrowedFd<'_>) -> Option<AppSocket> {
        let instance = locked(&self.instances).get(&app.place(), 0).ok()?;
        // Asked after: while ours stands, no other connection can be between these addresses.
        let stands = self.is_watched(own) && sys::is_established(own);
        stands.then_some(AppSocket(SpliceKey { instance, ..app.0 }))
    }

    /// Whether the kernel takes the grant of the application that this socket of ours faces away when the
    /// socket ends, however it ends.
    pub fn is_watched(&self, socket: BorrowedFd<'_>) -> bool {
        self.kind(socket) == Some(SpliceState::WATCHED)
    }

    /// Whether a socket of an application was put in when its connection was made; by a descriptor of it,
    /// which ztunnel has not.
    pub fn takes_part(&self, socket: BorrowedFd<'_>) -> bool {
        self.kind(socket) == Some(SpliceState::APP)
    }

    fn kind(&self, socket: BorrowedFd<'_>) -> Option<u32> {
        Some(SpliceState::from_words(self.state.get(&socket, 0).ok()?).kind)
    }

    /// Lets `from` send straight to `to`, as long as it has sent exactly `carried` bytes by TCP and until what it
    /// has sent straight was charged `limit`, over its whole life ([`Splices::charged`]). In place of an earlier
    /// grant; to be taken back ([`Splices::revoke`]) once more has gone by TCP, or it would hold again 4 GiB on. Every one of the `carried` bytes must have been consumed by `to`. Both must have been met.
    pub fn grant(&self, from: &AppSocket, to: &AppSocket, carried: u64, limit: u64) -> Result<(), Error> {
        if from.0.instance == 0 || to.0.instance == 0 {
            let reason = "a socket was not met".to_owned();
            return Err(Error::Kernel { what: "grant a splice".to_owned(), reason });
        }
        let words = from.place();
        locked(&RECEIVERS).insert(*to);
        match locked(&self.tally).insert(words, [0; 2], NOEXIST) {
            Ok(()) => {}
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(Error::kernel("make the tally of a spliced connection", &error)),
        }
        locked(&self.grants)
            .insert(words, Grant::new(&from.0, to.0, carried, limit).to_words(), 0)
            .map_err(|error| Error::kernel("grant a splice", &error))
    }

    /// Takes the grant of `from` away. From the return of this call on, what it begins to send goes by TCP;
    /// a message that is being sent right now may still go straight.
    pub fn revoke(&self, from: &AppSocket) {
        // Gone already: its connection's end was quicker.
        let _ = locked(&self.grants).remove(&from.place());
    }

    /// Whether `from` has a grant, be it used up or not.
    pub fn is_granted(&self, from: &AppSocket) -> bool {
        locked(&self.grants).get(&from.place(), 0).is_ok()
    }

    /// How many bytes of `from` went straight to its peer; 0 for one that was never granted anything. A
    /// message that the kernel could not queue in one piece, for want of memory, counts more than once.
    pub fn redirected(&self, from: &AppSocket) -> u64 {
        self.tally(from)[0]
    }

    /// What those bytes were charged: themselves, and [`MESSAGE`] for each message that they came in.
    pub fn charged(&self, from: &AppSocket) -> u64 {
        self.tally(from)[1]
    }

    fn tally(&self, from: &AppSocket) -> [u64; 2] {
        locked(&self.tally).get(&from.place(), 0).unwrap_or_default()
    }

    /// Takes a socket out of everything; that it is gone already is fine. One at which bytes may be queued
    /// stays what it is until it is closed: they would be lost.
    pub fn release(&self, app: &AppSocket) {
        let place = app.place();
        self.revoke(app);
        let _ = locked(&self.expected).remove(&place);
        let _ = locked(&self.tally).remove(&place);
        let met = app.0.instance != 0;
        let instance = if met { Ok(app.0.instance) } else { locked(&self.instances).get(&place, 0) };
        let Ok(instance) = instance else { return };
        let socket = AppSocket(SpliceKey { instance, ..app.0 });
        // One that was never met may be taken for a later one, which is in somebody else's hands.
        let mut receivers = locked(&RECEIVERS);
        let receives = if met { receivers.remove(&socket) } else { receivers.contains(&socket) };
        if !receives {
            let _ = locked(&self.sockets).remove(&socket.0.to_words());
        }
    }
}

/// `BPF_NOEXIST`.
const NOEXIST: u64 = 1;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
