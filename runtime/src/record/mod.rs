//! The one record of a connection: built when it is accepted, filled as facts become known, written
//! exactly once, on Drop: one line of access log and the `istio_tcp_…` metrics.
//!
//! ```text
//! accepted ──▶ Records::begin ──▶ source/destination/service/… ──▶ opened ──▶ progress… ──▶ end ──▶ Drop
//!                                                              └─▶ end(Denied, …) ─────────────────▶ Drop
//! ```
//! A connection that was opened counts in `istio_tcp_connections_opened_total` at once and in
//! `…_closed_total` on Drop; one that never was counts in `…_failed_total`. The labels are those of
//! Istio's ztunnel (its `src/proxy/metrics.rs`). As there, `istio_tcp_received_bytes_total` counts
//! from source to destination and `istio_tcp_sent_bytes_total` back, whoever reports; the log's
//! `bytes_sent` and `bytes_recv` are as the reporting side sees them.

mod access;
mod labels;
mod request;
mod same;
mod series;

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use mesh::{Identity, PolicyKey, RouteKey, Service, Workload};

use self::{
    labels::Facts,
    series::{Series, SeriesMap},
};
pub use self::{
    labels::{Derived, Direction, Security},
    request::{Ended, Flag, Heard, Request, Requests},
};
use crate::{logging::AccessLog, metrics::Metrics};

/// Makes the records of a program; clones are handed to its workers.
#[derive(Clone)]
pub struct Records {
    shared: Arc<Shared>,
}

struct Shared {
    log: AccessLog,
    series: Arc<SeriesMap>,
}

/// Bounds of what records keep.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Most label sets held at a time. Beyond it the longest unused are forgotten, and where all are
    /// in use, new connections count under labels that are all `unknown`.
    pub max_series: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_series: 10_000 }
    }
}

/// The record of one connection. See the module's documentation for its life.
#[must_use = "the record is written when it is dropped; hold it as long as the connection"]
pub struct Connection {
    shared: Arc<Shared>,
    facts: Facts,
    source: SocketAddr,
    destination: SocketAddr,
    tunnel: Option<SocketAddr>,
    through: Option<Identity>,
    started: Instant,
    policy: Option<PolicyKey>,
    dry_run: Vec<PolicyKey>,
    /// Few have one.
    route: Option<Box<Routed>>,
    tcp: Option<Tcp>,
    /// Present once opened.
    series: Option<Arc<Series>>,
    /// Bytes so far, source → destination and back.
    bytes: Bytes,
    end: Option<(End, Option<Box<str>>)>,
}

/// The route that a connection has taken, and the server that it asked for in TLS.
struct Routed {
    route: RouteKey,
    server: Option<Box<str>>,
}

/// Bytes carried, by direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bytes {
    /// From the source (who opened the connection) to the destination.
    pub forth: u64,
    /// From the destination to the source.
    pub back: u64,
}

/// What the kernel measured of the application's or the tunnel's TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    pub retransmits: u32,
    /// Bytes per second; 0 when unknown.
    pub delivery_rate: u64,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides closed.
    Finished,
    ResetBySource,
    ResetByDestination,
    /// This program finished its work (drain) with the connection still open.
    Drained,
    /// Authorization refused it, at the start or after a change of policy.
    Denied,
    /// The destination or its node could not be reached, or nothing says where it is.
    ConnectFailed,
    /// The TLS handshake with the peer failed.
    TlsFailed,
    /// There is no certificate to speak with, or the peer proved to be somebody else.
    IdentityFailed,
    /// An I/O error while bytes were carried.
    Broken,
    /// The record was dropped without an end: its task was cancelled.
    Abandoned,
}

impl Records {
    /// Registers the metrics (`istio_tcp_…`) and takes the log.
    pub fn new(metrics: &Metrics, log: AccessLog, options: Options) -> Self {
        let series = Arc::new(SeriesMap::new(options.max_series));
        metrics.under("istio", |registry| registry.register_collector(Box::new(series.clone())));
        Self { shared: Arc::new(Shared { log, series }) }
    }

    /// Begins the record of a connection from `source` to `destination`, the addresses as the
    /// application sees them.
    pub fn begin(&self, direction: Direction, source: SocketAddr, destination: SocketAddr) -> Connection {
        Connection {
            shared: self.shared.clone(),
            facts: Facts::new(direction),
            source,
            destination,
            tunnel: None,
            through: None,
            started: Instant::now(),
            policy: None,
            dry_run: Vec::new(),
            route: None,
            tcp: None,
            series: None,
            bytes: Bytes::default(),
            end: None,
        }
    }
}

impl Connection {
    /// The workload that opened the connection.
    pub fn source(&mut self, workload: &Arc<Workload>) {
        self.facts.source = Some(workload.clone());
    }

    /// What the peer says of a source that is not in the snapshot (from `baggage`). Only reported,
    /// and only where [`Self::source`] is not set.
    pub fn derived_source(&mut self, derived: Derived) {
        self.facts.derived = Some(Box::new(derived));
    }

    /// The workload the connection goes to.
    pub fn destination(&mut self, workload: &Arc<Workload>) {
        self.facts.destination = Some(workload.clone());
    }

    /// The service the source dialled.
    pub fn service(&mut self, service: &Arc<Service>) {
        self.facts.service = Some(service.clone());
    }

    /// The proved identity of the source.
    pub fn source_identity(&mut self, identity: &Identity) {
        self.facts.source_identity = Some(identity.clone());
    }

    /// The proved identity of the destination.
    pub fn destination_identity(&mut self, identity: &Identity) {
        self.facts.destination_identity = Some(identity.clone());
    }

    /// How the connection is protected; [`Security::Plain`] until said otherwise.
    pub fn security(&mut self, security: Security) {
        self.facts.security = security;
    }

    /// The tunnel's other end (`dst.hbone_addr`).
    pub fn tunnel(&mut self, peer: SocketAddr) {
        self.tunnel = Some(peer);
    }

    /// The waypoint that brought the connection in the name of the source.
    pub fn through(&mut self, waypoint: &Identity) {
        self.through = Some(waypoint.clone());
    }

    /// The source's own address, where another brought the connection.
    pub fn source_address(&mut self, source: SocketAddr) {
        self.source = source;
    }

    /// The destination's real address, where it is another than the one that was dialled.
    pub fn destination_address(&mut self, destination: SocketAddr) {
        self.destination = destination;
    }

    /// The policy that decided.
    pub fn policy(&mut self, policy: &PolicyKey) {
        self.policy = Some(policy.clone());
    }

    /// Policies in dry-run that would have decided otherwise.
    pub fn dry_run(&mut self, policies: &[PolicyKey]) {
        self.dry_run = policies.to_vec();
    }

    /// The route that it takes, and the server that it asks for, where that is read.
    pub fn route(&mut self, route: &RouteKey, server: Option<&str>) {
        self.route = Some(Box::new(Routed { route: route.clone(), server: server.map(Into::into) }));
    }

    /// The connection is admitted and both of its legs stand. Facts set later show in the log only.
    pub fn opened(&mut self) {
        if self.series.is_none() {
            let series = self.shared.series.open(&self.facts);
            series.opened.fetch_add(1, Ordering::Relaxed);
            self.series = Some(series);
        }
    }

    /// Bytes carried so far, counted from the beginning. Call it as often as metrics shall move while
    /// the connection lives, and once at its end.
    pub fn progress(&mut self, bytes: Bytes) {
        if let Some(series) = &self.series {
            series.received.fetch_add(bytes.forth.saturating_sub(self.bytes.forth), Ordering::Relaxed);
            series.sent.fetch_add(bytes.back.saturating_sub(self.bytes.back), Ordering::Relaxed);
        }
        self.bytes =
            Bytes { forth: bytes.forth.max(self.bytes.forth), back: bytes.back.max(self.bytes.back) };
    }

    /// What the kernel measured.
    pub fn tcp(&mut self, tcp: Tcp) {
        self.tcp = Some(tcp);
    }

    /// How it ended. The first call counts.
    pub fn end(&mut self, end: End) {
        self.end.get_or_insert((end, None));
    }

    /// How it ended, and why. The first call counts.
    pub fn end_because(&mut self, end: End, reason: impl fmt::Display) {
        if self.end.is_none() {
            self.end = Some((end, Some(reason.to_string().into())));
        }
    }

    /// Since the connection was accepted.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether [`Self::opened`] was called.
    pub fn is_opened(&self) -> bool {
        self.series.is_some()
    }

    /// The record as JSON, for the list of live connections.
    pub fn json(&self) -> serde_json::Value {
        access::json(self)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let (end, reason) = self.end.take().unwrap_or((End::Abandoned, None));
        self.shared.series.close(self.series.take(), &self.facts, end);
        let failed = end.is_failure();
        if self.shared.log.is_enabled(failed) {
            self.shared.log.write(failed, |line| {
                access::fields(self, line);
                access::ending(end, reason.as_deref(), line);
            });
        }
    }
}

impl End {
    /// Istio's `response_flags`.
    fn flags(self) -> &'static str {
        match self {
            Self::Finished
            | Self::ResetBySource
            | Self::ResetByDestination
            | Self::Drained
            | Self::Broken
            | Self::Abandoned => "-",
            Self::Denied => "DENY",
            Self::ConnectFailed => "CONNECT",
            Self::TlsFailed => "TLS_FAILURE",
            Self::IdentityFailed => "IDENTITY_ERROR",
        }
    }

    /// Whether the operator may want to know (the line is a warning).
    fn is_failure(self) -> bool {
        match self {
            Self::Finished | Self::ResetBySource | Self::ResetByDestination | Self::Drained => false,
            Self::Denied
            | Self::ConnectFailed
            | Self::TlsFailed
            | Self::IdentityFailed
            | Self::Broken
            | Self::Abandoned => true,
        }
    }

    /// As in the access log.
    fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::ResetBySource => "reset_by_source",
            Self::ResetByDestination => "reset_by_destination",
            Self::Drained => "drained",
            Self::Denied => "denied",
            Self::ConnectFailed => "connect_failed",
            Self::TlsFailed => "tls_failed",
            Self::IdentityFailed => "identity_failed",
            Self::Broken => "broken",
            Self::Abandoned => "abandoned",
        }
    }
}
