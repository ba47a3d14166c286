//! The server side: one accepted connection, its CONNECT streams handed out one by one.

use std::{future::Future, net::SocketAddr, sync::Arc};

use http::StatusCode;
use mesh::Identity;
use rustls::ServerConfig;

use crate::{Authority, Baggage, Forwarded, Settings, Socket, Transport, Tunnel};

/// How one tunnel is served.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    pub settings: Settings,
}

/// The two ends of the accepted TCP connection.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// The caller's address, as TCP shows it.
    pub remote: SocketAddr,
    /// Our own: the address that the caller dialled.
    pub local: SocketAddr,
}

/// One CONNECT request, to be accepted or refused. Dropping it refuses it with 503.
pub struct Arrival {
    /// The identity that the caller proved.
    pub peer: Identity,
    pub ends: Ends,
    /// Where the caller wants to go.
    pub authority: Authority,
    pub forwarded: Option<Forwarded>,
    pub baggage: Option<Baggage>,
    pub traceparent: Option<String>,
    /// The tunnel's TCP socket, for statistics; `None` in simulations.
    pub socket: Option<Socket>,
}

impl Arrival {
    /// Answers 200 with the destination's own `baggage`.
    pub fn accept(self, baggage: Option<&str>) -> Result<Tunnel, Gone> {
        let _ = baggage;
        panic!("stub")
    }

    /// Answers with an error status and ends the stream: 401 policy, 400 not this workload, 503 dial.
    pub fn refuse(self, status: StatusCode) {
        let _ = status;
        panic!("stub")
    }

    /// Resolves when the caller gives up before the answer: whoever dials can stop.
    pub async fn cancelled(&mut self) {
        panic!("stub")
    }
}

/// The caller was gone before the answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the caller gave up before the answer: {0}")]
pub struct Gone(pub String);

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
    #[error("{remote} did not finish the TLS handshake within {after:?}")]
    HandshakeTimeout { remote: SocketAddr, after: std::time::Duration },
    #[error("the TLS handshake of {remote} failed: {reason}")]
    Handshake { remote: SocketAddr, reason: String },
    #[error("{remote} did not prove a service account: {reason}")]
    NoIdentity { remote: SocketAddr, reason: String },
    #[error("the tunnel of {peer} from {remote} broke: {reason}")]
    Broken { remote: SocketAddr, peer: Identity, reason: String },
}

/// Serves one connection to its end: TLS, then CONNECT streams, each given to `handler` in a task of
/// its own. When `drain` resolves the caller is told to go elsewhere (GOAWAY), and the streams that
/// are there are served to their end. Must run inside a `LocalSet`. Dropping it ends all.
pub async fn serve<T, D, H, F>(
    transport: T,
    ends: Ends,
    config: Arc<ServerConfig>,
    limits: &Limits,
    drain: D,
    handler: H,
) -> Result<Served, ServeError>
where
    T: Transport,
    D: Future<Output = ()>,
    H: Fn(Arrival) -> F + 'static,
    F: Future<Output = ()> + 'static,
{
    let _ = (transport, ends, config, limits, drain, handler);
    panic!("stub")
}
