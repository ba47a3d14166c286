//! The agent's side, per pod: its mode, what was measured of it, and its end.

use crate::{Counters, Error};

/// What the kernel programs of a pod do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything passes; every TCP flow seen is remembered, so that it lives on under [`Mode::Enforce`].
    Learn,
    /// New connections go to ztunnel, or nowhere.
    Enforce,
    /// New connections pass; what ztunnel holds is still carried to it.
    Drain,
}

/// What a probe of a pod's capture found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// A connection of the pod's own stack was turned round and handed to a listener of ztunnel.
    pub captured: bool,
    /// The guard on the host's end of the link is attached and can tell ztunnel's packets from others.
    pub guard: bool,
}

/// One attached pod.
///
/// Dropping it changes nothing in the kernel: capture is pinned, and ends with [`Pod::detach`].
#[derive(Debug)]
pub struct Pod {
    uid: String,
}

impl Pod {
    /// The pod's unique id.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The mode that holds now.
    pub fn mode(&self) -> Mode {
        Mode::Learn
    }

    /// Changes the mode, for the very next packet.
    pub fn set_mode(&self, _mode: Mode) -> Result<(), Error> {
        Err(self.unfinished())
    }

    /// Remembers the pod's established connections, so that [`Mode::Enforce`] lets them live on.
    /// Returns how many are remembered.
    pub fn inventory(&self) -> Result<usize, Error> {
        Err(self.unfinished())
    }

    /// Measures the capture: a connection through the pod's own stack to a documentation address.
    pub fn probe(&self) -> Result<Measured, Error> {
        Err(self.unfinished())
    }

    /// How many captured connections are still alive: mirrored pairs of sockets in the pod's namespace.
    pub fn captured_connections(&self) -> Result<usize, Error> {
        Err(self.unfinished())
    }

    /// How often each verdict fell.
    pub fn counters(&self) -> Result<Counters, Error> {
        Err(self.unfinished())
    }

    /// Takes the capture away: links, pins, rules, routes.
    pub fn detach(self) -> Result<(), Error> {
        Err(self.unfinished())
    }

    fn unfinished(&self) -> Error {
        Error::Unsupported { uid: self.uid.clone(), reason: "not built yet".to_owned() }
    }
}
