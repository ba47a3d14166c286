//! The agent's side, per pod: its mode, what was measured of it, and its end.

use crate::{
    Counters, Error, Netns, Target, device, klog, maps, node, probe,
    sockdiag::{self, Diag},
    splice,
};
use abi::{Config, FlowKey};
use nix::time::{ClockId, clock_gettime};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a recorded flow may have no socket before it is taken for ended: a handshake by SYN cookies has
/// none until it is complete.
const WITHOUT_SOCKET: Duration = Duration::from_secs(5);

/// What the kernel programs of a pod do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything passes; every TCP flow seen is remembered, so that it lives on under [`Mode::Enforce`].
    /// What ztunnel holds from before is still carried to it.
    Learn = 0,
    /// New connections go to ztunnel, or nowhere.
    Enforce = 1,
    /// New connections pass and are remembered; what ztunnel holds is still carried to it.
    Drain = 2,
}

/// What a probe of a pod's capture found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measured {
    /// A connection of the pod's own stack was turned round and accepted, or refused, by a listener of
    /// ztunnel, and nothing of it was seen on the host's end of the link.
    pub captured: bool,
    /// The connection was turned round, whether or not anybody listened.
    pub turned: bool,
    /// The guard on the host's end of the link is attached and can tell ztunnel's packets from others.
    pub guard: bool,
}

/// One attached pod.
///
/// Dropping it changes nothing in the kernel: capture is pinned, and ends with [`Pod::detach`].
#[derive(Debug)]
pub struct Pod {
    uid: String,
    pins: PathBuf,
    dir: PathBuf,
    netns: Netns,
    has_host_end: bool,
    _log: Option<klog::Reader>,
}

impl Pod {
    pub(crate) fn new(
        pins: &Path,
        target: &Target<'_>,
        dir: &Path,
        has_host_end: bool,
        log: Option<klog::Reader>,
    ) -> Result<Self, Error> {
        Ok(Self {
            uid: target.uid.to_owned(),
            pins: pins.to_owned(),
            dir: dir.to_owned(),
            netns: target.netns.try_clone()?,
            has_host_end,
            _log: log,
        })
    }

    /// The pod's unique id.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The pod's devices that are up and NOT captured: all but `lo` and the one of its default route.
    pub fn other_devices(&self) -> Result<Vec<String>, Error> {
        device::others(&self.uid, &self.netns)
    }

    /// The mode that holds now; the strict one if it cannot be read.
    pub fn mode(&self) -> Mode {
        let word = match maps::read_config(&self.dir) {
            Ok(config) => config.mode,
            Err(error) => {
                tracing::error!(pod = self.uid, %error, "cannot read the capture mode");
                return Mode::Enforce;
            }
        };
        match abi::Mode::from_word(word) {
            abi::Mode::Learn => Mode::Learn,
            abi::Mode::Enforce => Mode::Enforce,
            abi::Mode::Drain => Mode::Drain,
        }
    }

    /// Changes the mode, for the very next packet.
    pub fn set_mode(&self, mode: Mode) -> Result<(), Error> {
        let config = maps::read_config(&self.dir)?;
        maps::write_config(&self.dir, &Config { mode: mode as u32, ..config })?;
        self.take_part(mode);
        Ok(())
    }

    /// Lets the pod's sockets be spliced where all of them are ztunnel's to carry, if the node splices.
    pub(crate) fn take_part(&self, mode: Mode) {
        let told = match mode {
            Mode::Enforce => splice::agent::name(&self.pins, &self.netns),
            Mode::Learn | Mode::Drain => splice::agent::unname(&self.pins, &self.netns),
        };
        if let Err(error) = told {
            // It is slower then, and as right as ever.
            tracing::warn!(pod = self.uid, %error, "the pod's part in splicing cannot be changed");
        }
    }

    /// Remembers the pod's established connections, so that [`Mode::Enforce`] lets them live on, and forgets
    /// those that have ended. Returns how many are remembered.
    ///
    /// To be called in [`Mode::Learn`]: what begins meanwhile is remembered by the programs themselves.
    pub fn inventory(&self) -> Result<usize, Error> {
        let mut flows = maps::flows(&self.dir)?;
        let before: Vec<_> = flows.iter().filter_map(Result::ok).collect();
        let sockets = self.sockets()?;
        let own_end: HashSet<_> = sockets.iter().map(|socket| (socket.local, socket.remote)).collect();
        let passing: HashSet<_> = sockets
            .iter()
            .filter(|socket| socket.is_live() && !socket.own)
            // With both ends here it is ztunnel's to carry, or never leaves the pod.
            .filter(|socket| !own_end.contains(&(socket.remote, socket.local)))
            .map(|socket| FlowKey::new(socket.local, socket.remote))
            .collect();
        let now = monotonic()?;
        for (words, since) in before {
            let idle = Duration::from_nanos(now.saturating_sub(since)) > WITHOUT_SOCKET;
            if idle && !passing.contains(&FlowKey::from_words(words)) {
                // Gone meanwhile is as good.
                let _ = flows.remove(&words);
            }
        }
        let passing: Vec<_> = passing.into_iter().collect();
        maps::record_flows(&self.dir, &passing, now)?;
        self.passing_flows()
    }

    /// How many connections are remembered as passing ztunnel by. Those that ended count until the next
    /// [`Pod::inventory`].
    pub fn passing_flows(&self) -> Result<usize, Error> {
        Ok(maps::flows(&self.dir)?.keys().filter(Result::is_ok).count())
    }

    /// Forgets every connection that passes ztunnel by: in [`Mode::Enforce`] it is reset at its next
    /// segment. For a time limit on connections from before the enrollment.
    pub fn forget_flows(&self) -> Result<usize, Error> {
        let mut flows = maps::flows(&self.dir)?;
        let keys: Vec<_> = flows.keys().filter_map(Result::ok).collect();
        Ok(keys.iter().filter(|words| flows.remove(words).is_ok()).count())
    }

    /// Measures the capture: a connection through the pod's own stack to a documentation address.
    ///
    /// In [`Mode::Enforce`], with ztunnel's listener in its slot, [`Measured::captured`] is to be expected.
    /// The guard is switched off where it turns out to be blind, and on where it is not. Takes a few
    /// milliseconds when all is well, and at most about two seconds.
    pub fn probe(&self) -> Result<Measured, Error> {
        let guard = self.measure_guard()?;
        let turned = self.netns.enter(|| probe::foreign(&self.dir))??;
        Ok(Measured { captured: turned.answered && !turned.leaked, turned: turned.turned, guard })
    }

    /// Whether the guard sees which packets are ztunnel's; and sets it accordingly. One that no probe can
    /// reach (no default route, no neighbour) stays as it is: on, unless it was measured to be blind.
    pub(crate) fn measure_guard(&self) -> Result<bool, Error> {
        if !self.has_host_end {
            return Ok(false);
        }
        let config = maps::read_config(&self.dir)?;
        let seen = self.netns.enter(|| probe::own(&self.pins, &self.dir))??;
        let guard = u32::from(seen.unwrap_or(config.guard == 1));
        if guard != config.guard {
            tracing::warn!(pod = self.uid, guard, "the guard's sight of sockets has changed");
            let config = maps::read_config(&self.dir)?;
            maps::write_config(&self.dir, &Config { guard, ..config })?;
        }
        Ok(seen == Some(true))
    }

    /// How many captured connections are still alive: pairs of sockets in the pod's namespace that face
    /// each other, one of them in the place of somebody who is not there.
    pub fn captured_connections(&self) -> Result<usize, Error> {
        let sockets = self.sockets()?;
        let addresses = self
            .netns
            .enter(device::addresses)?
            .map_err(|source| Error::system(format!("pod {}: read its addresses", self.uid), source))?;
        let is_local = |ip: &std::net::IpAddr| ip.is_loopback() || addresses.contains(ip);
        Ok(sockdiag::mirrored_pairs(&sockets, is_local))
    }

    /// How often each verdict fell.
    pub fn counters(&self) -> Result<Counters, Error> {
        Counters::read(&self.dir)
    }

    /// Sets the routing up again, should the pod have lost it: switching `lo`'s IPv6 off and on does that.
    pub fn repair(&self) -> Result<(), Error> {
        let set_up = self.netns.enter(crate::routing::set_up)?;
        set_up.map_err(|source| Error::system(format!("pod {}: set up the routing", self.uid), source))
    }

    /// Takes the capture away: links, pins, rules, routes. What ztunnel still held breaks; wait for
    /// [`Pod::captured_connections`] in [`Mode::Drain`] first.
    pub fn detach(self) -> Result<(), Error> {
        splice::agent::unname(&self.pins, &self.netns)?;
        let config = maps::read_config(&self.dir)?;
        // While the programs go one by one, those still there let everything pass.
        maps::write_config(&self.dir, &Config { mode: abi::Mode::Drain as u32, ..config })?;
        node::take_away(&self.dir, &self.netns, config.accept_local)
    }

    /// Every TCP socket of the pod, ztunnel's told apart.
    fn sockets(&self) -> Result<Vec<sockdiag::TcpSocket>, Error> {
        let failed = |source| Error::system(format!("pod {}: list its TCP sockets", self.uid), source);
        let diag = self.netns.enter(Diag::open)?.map_err(failed)?;
        let marks = maps::own_data(&self.pins)?;
        let mut sockets = diag.list_marked(std::os::fd::AsFd::as_fd(marks.fd())).map_err(failed)?;
        if maps::read_config(&self.dir)?.is_foreign() {
            sockets.iter_mut().for_each(|socket| socket.own |= socket.mark == abi::FOREIGN_MARK);
        }
        Ok(sockets)
    }
}

/// The clock that the programs read: nanoseconds since boot.
fn monotonic() -> Result<u64, Error> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_err(|errno| Error::system("read the monotonic clock", errno.into()))?;
    Ok(Duration::from(now).as_nanos() as u64)
}
