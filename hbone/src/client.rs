//! The client side: a pool of tunnels, one CONNECT stream per connection.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use http::StatusCode;
use identity::{CertificateError, Store};
use mesh::Identity;

use crate::{Baggage, Settings, Socket, Transport, Tunnel};

/// What tunnels are shared by: never across callers of different identity or address, so that the
/// peer may judge a tunnel as it judges its caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The identity that the tunnel shows.
    pub source: Identity,
    /// The pod address that the tunnel comes from.
    pub source_ip: IpAddr,
    /// Where the peer listens (port 15008).
    pub peer: SocketAddr,
    /// The identities of which the peer must prove one.
    pub expected: Arc<[Identity]>,
}

/// One CONNECT request.
#[derive(Debug, Clone)]
pub struct Connect {
    /// `:authority`: `ip:port` or `hostname:port`.
    pub authority: String,
    /// The caller's own address, sent as `forwarded: for=…`.
    pub source: SocketAddr,
    /// The service that was dialled, sent as `forwarded: …;host=…`.
    pub service_host: Option<String>,
    /// `baggage`, as [`Baggage`] formats it.
    pub baggage: Option<String>,
    /// `traceparent`, passed on as it is.
    pub traceparent: Option<String>,
}

/// What is known of the other end of an opened stream.
#[derive(Debug, Clone)]
pub struct TunnelInfo {
    /// The identity that the peer proved.
    pub peer: Identity,
    /// The `baggage` of its answer: the destination's own names.
    pub baggage: Option<Baggage>,
    /// Whether the tunnel was there already.
    pub reused: bool,
    /// The tunnel's TCP socket, for statistics; `None` in simulations.
    pub socket: Option<Socket>,
}

/// Why no stream could be opened, and who is to blame. It is cloned to all who waited for one dial.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("cannot connect to {peer}: {source}")]
    Dial { peer: SocketAddr, source: Arc<io::Error> },
    #[error("{peer} did not {what} within {after:?}")]
    Timeout { peer: SocketAddr, what: &'static str, after: Duration },
    /// The peer proved an identity that the plan does not allow.
    #[error("{peer} proved to be {found}, expected one of {expected:?}")]
    WrongIdentity { peer: SocketAddr, found: Identity, expected: Arc<[Identity]> },
    /// We do not trust the peer's certificate, or it speaks no TLS of ours.
    #[error("TLS with {peer} failed: {reason}")]
    Tls { peer: SocketAddr, reason: String },
    /// The peer does not trust our certificate (its alert may come after the handshake).
    #[error("{peer} rejected our certificate: {reason}")]
    Rejected { peer: SocketAddr, reason: String },
    /// The peer answered the CONNECT with a status other than 200.
    #[error("{peer} refused the connection: {status}")]
    Refused { peer: SocketAddr, status: StatusCode },
    #[error("the tunnel to {peer} broke before the answer: {reason}")]
    Broken { peer: SocketAddr, reason: String },
    #[error("too many tunnels to {peer} ({limit})")]
    TooManyTunnels { peer: SocketAddr, limit: usize },
    #[error("the request to {peer} cannot be expressed in HTTP/2: {reason}")]
    BadRequest { peer: SocketAddr, reason: String },
}

/// One tunnel, for the admin endpoint.
#[derive(Debug, Clone)]
pub struct TunnelSummary {
    pub key: Key,
    pub peer: Identity,
    pub streams: usize,
    pub age: Duration,
    pub bulk: bool,
}

/// The tunnels of one worker. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    _inner: Rc<()>,
}

impl Pool {
    /// An empty pool. Must be used inside a `LocalSet`.
    pub fn new(settings: Settings, store: Arc<Store>) -> Self {
        let _ = (settings, store);
        Self { _inner: Rc::new(()) }
    }

    /// Opens one stream, over a tunnel that is there or a new one that `dial` connects. `dial` is run
    /// at most once, and may be run on behalf of others who wait for the same key.
    pub async fn open<D, T>(
        &self,
        key: &Key,
        dial: D,
        connect: &Connect,
    ) -> Result<(Tunnel, TunnelInfo), OpenError>
    where
        D: AsyncFnOnce() -> io::Result<T> + 'static,
        T: Transport,
    {
        let _ = (key, dial, connect);
        panic!("stub")
    }

    /// Retires every tunnel that `keep` does not want: no new stream enters it, and it closes with its
    /// last one. Returns how many. To be called when an identity is released or roots have changed.
    pub fn retain(&self, keep: impl FnMut(&Key) -> bool) -> usize {
        let _ = keep;
        panic!("stub")
    }

    /// All tunnels, for the admin endpoint.
    pub fn summaries(&self) -> Vec<TunnelSummary> {
        panic!("stub")
    }
}
