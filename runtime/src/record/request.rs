//! The one record of a request at a waypoint: begun with its head, filled as facts become known, written exactly once
//! when its answer has ended: a line of access log and the `istio_request…` metrics.
//!
//! The labels are Istio's; `reporter` is `waypoint`. Label sets are bounded as those of connections are.

mod series;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh::{Identity, PolicyKey, RouteKey, Service, Workload};

use self::series::{Kept, RequestLabels};
use super::{
    Options,
    labels::{Direction, Facts, Security},
};
use crate::{logging::AccessLog, metrics::Metrics};

/// Makes the records of requests; clones are handed to workers.
#[derive(Clone)]
pub struct Requests {
    shared: Arc<Shared>,
}

struct Shared {
    log: AccessLog,
    kept: Arc<Kept>,
}

/// Why an answer is not the backend's own, as Envoy's `response_flags` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Flag {
    /// It is the backend's.
    #[default]
    None,
    /// No route is for the request.
    NoRoute,
    /// No backend is there to be chosen.
    NoEndpoint,
    /// The backend could not be reached.
    ConnectFailed,
    /// The backend ended before it had answered, or in the middle of its answer.
    BackendReset,
    /// The backend took too long.
    Timeout,
    /// Policy refused it.
    Denied,
    /// The caller ended before the answer did.
    CallerReset,
    /// It is none that HTTP allows, or none that can be carried.
    Malformed,
    /// The waypoint answered itself, as a route told it to.
    Direct,
}

impl Flag {
    fn name(self) -> &'static str {
        match self {
            Self::None | Self::Direct => "-",
            Self::NoRoute => "NR",
            Self::NoEndpoint => "UH",
            Self::ConnectFailed => "UF",
            Self::BackendReset => "UC",
            Self::Timeout => "UT",
            Self::Denied => "UAEX",
            Self::CallerReset => "DC",
            Self::Malformed => "DPE",
        }
    }

    fn is_failure(self) -> bool {
        !matches!(self, Self::None | Self::Direct | Self::CallerReset)
    }
}

/// The record of one request. See the module's documentation.
#[must_use = "the record is written when it is dropped; hold it as long as the answer"]
pub struct Request {
    shared: Arc<Shared>,
    facts: Facts,
    started: Instant,
    protocol: &'static str,
    method: Box<str>,
    path: Box<str>,
    authority: Box<str>,
    source: SocketAddr,
    upstream: Option<SocketAddr>,
    route: Option<(RouteKey, usize, Option<Arc<str>>)>,
    status: u16,
    grpc: Option<u16>,
    is_grpc: bool,
    flag: Flag,
    reason: Option<Box<str>>,
    policy: Option<PolicyKey>,
    dry_run: Vec<PolicyKey>,
    audited: Vec<PolicyKey>,
    tries: u32,
    sent: u64,
    received: u64,
}

/// The longest path and authority that a line shows, in bytes.
const SHOWN: usize = 512;

impl Requests {
    /// Registers the metrics (`istio_request…`) and takes the log.
    pub fn new(metrics: &Metrics, log: AccessLog, options: Options) -> Self {
        let kept = Arc::new(Kept::new(options.max_series));
        metrics.under("istio", |registry| registry.register_collector(Box::new(kept.clone())));
        Self { shared: Arc::new(Shared { log, kept }) }
    }

    /// Begins the record of a request of `source`.
    pub fn begin(&self, source: SocketAddr, protocol: &'static str, method: &str, path: &str) -> Request {
        let mut facts = Facts::new(Direction::Inbound);
        facts.security = Security::MutualTls;
        Request {
            shared: self.shared.clone(),
            facts,
            started: Instant::now(),
            protocol,
            method: cut(method),
            path: cut(path),
            authority: Box::default(),
            source,
            upstream: None,
            route: None,
            status: 0,
            grpc: None,
            is_grpc: false,
            flag: Flag::None,
            reason: None,
            policy: None,
            dry_run: Vec::new(),
            audited: Vec::new(),
            tries: 0,
            sent: 0,
            received: 0,
        }
    }
}

fn cut(text: &str) -> Box<str> {
    let end = (0..=SHOWN.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text[..end].into()
}

impl Request {
    pub fn authority(&mut self, authority: &str) {
        self.authority = cut(authority);
    }

    /// Who calls.
    pub fn source(&mut self, identity: &Identity, workload: Option<&Arc<Workload>>) {
        self.facts.source_identity = Some(identity.clone());
        self.facts.source = workload.cloned();
    }

    /// The service that was called.
    pub fn service(&mut self, service: &Arc<Service>) {
        self.facts.service = Some(service.clone());
    }

    /// The backend that was chosen; the last one counts.
    pub fn backend(&mut self, workload: &Arc<Workload>, address: SocketAddr) {
        self.facts.destination = Some(workload.clone());
        self.upstream = Some(address);
        self.tries += 1;
    }

    /// The rule that was for it.
    pub fn route(&mut self, route: &RouteKey, rule: usize, name: Option<&Arc<str>>) {
        self.route = Some((route.clone(), rule, name.cloned()));
    }

    /// The policy that decided.
    pub fn policy(&mut self, policy: &PolicyKey) {
        self.policy = Some(policy.clone());
    }

    /// Policies in dry-run that would have decided otherwise.
    pub fn dry_run(&mut self, policies: &[PolicyKey]) {
        self.dry_run = policies.to_vec();
    }

    /// AUDIT policies that match.
    pub fn audited(&mut self, policies: &[PolicyKey]) {
        self.audited = policies.to_vec();
    }

    /// It is a call of gRPC.
    pub fn grpc(&mut self) {
        self.is_grpc = true;
    }

    pub fn grpc_status(&mut self, status: u16) {
        self.grpc = Some(status);
    }

    pub fn status(&mut self, status: u16) {
        self.status = status;
    }

    /// Why the answer is not the backend's own; the first reason counts.
    pub fn flag(&mut self, flag: Flag, reason: impl std::fmt::Display) {
        if self.flag == Flag::None {
            self.flag = flag;
            self.reason = Some(reason.to_string().into());
        }
    }

    /// A part of the request's body.
    pub fn received(&mut self, bytes: u64) {
        self.received += bytes;
    }

    /// A part of the answer's body.
    pub fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// Since it began.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let age = self.started.elapsed();
        let protocol = if self.is_grpc { "grpc" } else { "http" };
        let labels = RequestLabels::of(&self.facts, protocol, self.status, self.grpc, self.flag.name());
        self.shared.kept.count(labels, age, self.received, self.sent);
        let failed = self.flag.is_failure() || self.status >= 500;
        if !self.shared.log.is_enabled(failed) {
            return;
        }
        self.shared.log.write(failed, |line| {
            line.text("protocol", self.protocol);
            line.text("method", &self.method);
            line.text("authority", &self.authority);
            line.text("path", &self.path);
            line.number("status", self.status);
            self.grpc.iter().for_each(|status| line.number("grpc_status", *status));
            line.text("flags", self.flag.name());
            line.shown("src.addr", self.source);
            self.facts.source.iter().for_each(|source| line.text("src.workload", &source.name));
            self.facts.source_identity.iter().for_each(|who| line.text("src.identity", &who.to_string()));
            self.facts.service.iter().for_each(|service| line.text("dst.service", &service.key.hostname));
            self.upstream.iter().for_each(|address| line.shown("dst.addr", address));
            self.facts.destination.iter().for_each(|workload| line.text("dst.workload", &workload.name));
            if let Some((route, rule, name)) = &self.route {
                line.text("route", &route.to_string());
                line.number("rule", *rule as u64);
                name.iter().for_each(|name| line.text("rule_name", name));
            }
            self.policy.iter().for_each(|policy| line.text("policy", &policy.to_string()));
            for (name, policies) in [("dry_run", &self.dry_run), ("audited", &self.audited)] {
                if !policies.is_empty() {
                    line.text(name, &super::access::list(policies));
                }
            }
            line.number("tries", self.tries);
            line.number("bytes_recv", self.received);
            line.number("bytes_sent", self.sent);
            line.shown("duration", super::access::Millis(age));
            self.reason.iter().for_each(|reason| line.text("error", reason));
        });
    }
}
