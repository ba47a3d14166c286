//! The client side: a pool of tunnels, one CONNECT stream per connection.
//!
//! *Whose tunnel:* tunnels are shared by [`Key`] only. *Which tunnel:* the first with a free seat that
//! carries no bulk. *When a new one:* when there is none such; one dial per key at a time, all others
//! who need it wait for its outcome, good or bad. *What is tried again:* a request that the peer
//! provably did not look at (REFUSED_STREAM, or above the last stream of a GOAWAY), once. *Who does not answer:* what
//! dials and tunnels come to is told to [`Peers`]; a tunnel whose peer has gone silent takes nobody more.

mod connection;
mod dial;
mod error;
mod peers;
mod pool;
mod request;

pub use error::OpenError;
pub use peers::{PATIENCE, Peers, Tally, Tries};
pub use pool::Pool;

pub(crate) use connection::Seat;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mesh::Identity;

use crate::{Baggage, Socket};

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
    /// Who calls, signed by the caller's key, for who stands behind a waypoint ([`identity::assertion`]).
    pub assertion: Option<Arc<str>>,
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
    /// The tunnel's TCP socket, for statistics.
    pub socket: Socket,
}

/// One tunnel, for the admin endpoint.
#[derive(Debug, Clone)]
pub struct TunnelSummary {
    pub key: Key,
    pub peer: Identity,
    /// Connections that it carries now.
    pub streams: usize,
    pub age: Duration,
    pub bulk: bool,
    /// It takes no new connections and closes with its last one.
    pub retired: bool,
}
