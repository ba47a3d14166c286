//! The server side: one accepted connection, its CONNECT streams handed out one by one.
//!
//! TLS proves the caller, HTTP/2 is bounded (headers, streams, resets), a request that is no CONNECT
//! or names nothing is answered 400 here. What is left is an [`Arrival`]: the program judges it, dials
//! and answers.

mod arrival;
mod serve;

pub use arrival::{Arrival, Gone};
pub use serve::serve;

use std::{net::SocketAddr, time::Duration};

use mesh::Identity;

use crate::Settings;

/// How one tunnel is served.
#[derive(Debug, Clone)]
pub struct Limits {
    pub settings: Settings,
    /// Requests that a caller may give up before their answer, per [`Limits::reset_window`]; one more
    /// and the tunnel is closed (ENHANCE_YOUR_CALM). Default 1000 in 10 s.
    pub resets: u32,
    pub reset_window: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { settings: Settings::default(), resets: 1000, reset_window: Duration::from_secs(10) }
    }
}

/// The two ends of the accepted TCP connection.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// The caller's address, as TCP shows it.
    pub remote: SocketAddr,
    /// Our own: the address that the caller dialled.
    pub local: SocketAddr,
}

/// How a tunnel ended that was served.
#[derive(Debug, Clone)]
pub struct Served {
    pub peer: Identity,
    /// CONNECT requests seen.
    pub streams: u64,
}

/// Why a connection did not become, or did not remain, a tunnel: the caller's fault in each case.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{remote} did not finish the handshake within {after:?}")]
    HandshakeTimeout { remote: SocketAddr, after: Duration },
    #[error("the TLS handshake of {remote} failed: {reason}")]
    Handshake { remote: SocketAddr, reason: String },
    #[error("{remote} did not prove a service account: {reason}")]
    NoIdentity { remote: SocketAddr, reason: String },
    #[error("the tunnel of {peer} from {remote} broke: {reason}")]
    Broken { remote: SocketAddr, peer: Identity, reason: String },
}
