//! The copy loops: socket ↔ tunnel and socket ↔ socket, with ends and resets carried faithfully.

use std::{future::Future, io, time::Duration};

use crate::{Transport, Tunnel};

/// Counts what one connection has carried. Written by its worker, readable from any thread.
#[derive(Debug)]
pub struct Meter {
    _private: (),
}

impl Meter {
    pub fn new() -> Self {
        Self { _private: () }
    }
    /// Bytes from the first socket onward: into the tunnel, or to the second socket.
    pub fn sent(&self) -> u64 {
        panic!("stub")
    }
    /// Bytes that came back.
    pub fn received(&self) -> u64 {
        panic!("stub")
    }
    /// Time since a byte moved.
    pub fn idle(&self) -> Duration {
        panic!("stub")
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

/// How a copy ended.
#[derive(Debug)]
pub enum End {
    /// Both directions came to an orderly end.
    Finished,
    /// The first socket was reset by its peer.
    ResetByLocal,
    /// The tunnel stream, or the second socket, was reset by its peer.
    ResetByRemote,
    /// `stop` resolved: both ends were reset.
    Stopped,
    /// Neither: the tunnel's own connection failed, say. Both ends were reset.
    Failed(io::Error),
}

/// Copies between a socket and a tunnel until both directions have ended, one is reset, or `stop`
/// resolves.
pub async fn relay<T, S>(tcp: T, tunnel: Tunnel, meter: &Meter, stop: S) -> End
where
    T: Transport,
    S: Future<Output = ()>,
{
    let _ = (tcp, tunnel, meter, stop);
    panic!("stub")
}

/// Copies between two sockets in the same manner; `a` is the first.
pub async fn direct<A, B, S>(a: A, b: B, meter: &Meter, stop: S) -> End
where
    A: Transport,
    B: Transport,
    S: Future<Output = ()>,
{
    let _ = (a, b, meter, stop);
    panic!("stub")
}
