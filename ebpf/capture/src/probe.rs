//! Measures capture from inside a pod, with one connection to an address that nobody has. Called in the
//! pod's network namespace.

use crate::{Error, counters, device, maps};
use abi::{Egress, Guard, PROBE_PORT, PROBE_V4, PROBE_V6};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// How long a probe's SYN may take through the pod's own stack: its neighbour may have to be found first,
/// and a lost SYN is sent again after a second.
const PATIENCE: Duration = Duration::from_millis(1_300);
/// The same for a probe of the guard, which is repeated with every measurement.
const GUARD_PATIENCE: Duration = Duration::from_millis(500);
const BEAT: Duration = Duration::from_millis(2);

/// What became of a connection of the pod's own stack.
pub(crate) struct Foreign {
    /// It was turned round.
    pub(crate) turned: bool,
    /// Somebody accepted it or refused it.
    pub(crate) answered: bool,
    /// It reached the host's end of the link.
    pub(crate) leaked: bool,
}

/// Connects as any application would.
pub(crate) fn foreign(pod: &Path) -> Result<Foreign, Error> {
    let count = |counter| counters::read_one(pod, counter);
    let (turned, leaked) = (Egress::TurnProbe.counter(), Guard::ProbeUnmarked.counter());
    let before = (count(turned)?, count(leaked)?);
    let Some(to) = target()? else {
        return Ok(Foreign { turned: false, answered: false, leaked: false });
    };
    let socket = dial(to, |_| Ok(()))?;
    let answered = match &socket {
        Some(socket) => is_answered(socket)?,
        None => true,
    };
    if let Some(socket) = socket {
        // Leaves nothing behind, on our side or ztunnel's.
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
    Ok(Foreign {
        turned: count(turned)? > before.0,
        answered: answered && count(turned)? > before.0,
        leaked: count(leaked)? > before.1,
    })
}

/// Connects as ztunnel would: whether the guard saw the mark, or `None` if nothing arrived there.
pub(crate) fn own(pins: &Path, pod: &Path) -> Result<Option<bool>, Error> {
    let count = |counter| counters::read_one(pod, counter);
    let (seen, unmarked) = (Guard::ProbeSeen.counter(), Guard::ProbeUnmarked.counter());
    let before = (count(seen)?, count(unmarked)?);
    let Some(to) = target()? else { return Ok(None) };
    let mut marks = maps::own(pins)?;
    let _socket = dial(to, |socket| {
        marks
            .insert(socket, abi::OWN_MARK, 0)
            .map_err(|error| Error::kernel("mark a socket as ztunnel's", &error))
    })?;
    let end = Instant::now() + GUARD_PATIENCE;
    loop {
        if count(seen)? > before.0 {
            return Ok(Some(true));
        }
        if count(unmarked)? > before.1 {
            return Ok(Some(false));
        }
        if Instant::now() > end {
            return Ok(None);
        }
        thread::sleep(BEAT);
    }
}

/// The address to dial in a family for which the pod has a way out.
fn target() -> Result<Option<SocketAddr>, Error> {
    let (v4, v6) = device::default_routes()
        .map_err(|source| Error::system("read the routes of a pod to probe", source))?;
    let ip = match (v4, v6) {
        (true, _) => IpAddr::V4(PROBE_V4),
        (false, true) => IpAddr::V6(PROBE_V6),
        (false, false) => return Ok(None),
    };
    Ok(Some(SocketAddr::new(ip, PROBE_PORT)))
}

/// Begins to connect; `None` if it was refused at once.
fn dial(to: SocketAddr, prepare: impl FnOnce(&Socket) -> Result<(), Error>) -> Result<Option<Socket>, Error> {
    let failed = |source| Error::system(format!("connect a probe to {to}"), source);
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))
        .map_err(failed)?;
    prepare(&socket)?;
    match socket.connect(&to.into()) {
        Ok(()) => Ok(Some(socket)),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(Some(socket)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Whether the connection was accepted or refused in time, rather than lost.
fn is_answered(socket: &Socket) -> Result<bool, Error> {
    let failed = |source| Error::system("wait for a probe's connection", source);
    let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    let ready = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], patience)
        .map_err(|errno| failed(errno.into()))?;
    if ready == 0 {
        return Ok(false);
    }
    match socket.take_error().map_err(failed)? {
        None => Ok(true),
        Some(error) => {
            Ok(matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset))
        }
    }
}
