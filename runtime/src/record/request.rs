//! The one record of a request at a waypoint: begun with its head, filled as facts become known, written exactly once
//! when its answer has ended: a line of access log and the `istio_request…` metrics.
//!
//! The labels are Istio's; `reporter` is `waypoint`. Label sets are bounded as those of connections are.

mod ended;
mod messages;
mod series;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh::{
    Identity, PolicyKey, RouteKey, Service, ServiceKey, Workload,
    trace::{RequestId, TraceId},
};

pub use self::ended::Ended;
use self::{
    messages::Messages,
    series::{Counts, Kept, Outcome},
};
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
    /// It brought a token that is not accepted.
    BadToken,
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
            Self::BadToken => "JWT",
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
    id: Option<RequestId>,
    trace: Option<TraceId>,
    source: SocketAddr,
    called_port: u16,
    backend: Option<(ServiceKey, u16)>,
    upstream: Option<SocketAddr>,
    upstream_time: Option<Duration>,
    route: Option<(RouteKey, usize, Option<Arc<str>>)>,
    status: u16,
    grpc: Option<u16>,
    is_grpc: bool,
    flag: Flag,
    reason: Option<Box<str>>,
    principal: Option<Box<str>>,
    policy: Option<PolicyKey>,
    dry_run: Vec<PolicyKey>,
    audited: Vec<PolicyKey>,
    tries: u32,
    sent: u64,
    received: u64,
    /// Of the request and of the answer, where it is a call of gRPC.
    messages: [Messages; 2],
    /// Who tells it in another form.
    heard: Option<Heard>,
}

/// Is told of a request at its end.
pub type Heard = Box<dyn FnOnce(&Ended<'_>)>;

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
            id: None,
            trace: None,
            source,
            called_port: 0,
            backend: None,
            upstream: None,
            upstream_time: None,
            route: None,
            status: 0,
            grpc: None,
            is_grpc: false,
            flag: Flag::None,
            reason: None,
            principal: None,
            policy: None,
            dry_run: Vec::new(),
            audited: Vec::new(),
            tries: 0,
            sent: 0,
            received: 0,
            messages: Default::default(),
            heard: None,
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

    /// What was called: a service, or a workload by its own address.
    pub fn called(&mut self, service: Option<&Arc<Service>>, port: u16) {
        self.facts.service = service.cloned();
        self.called_port = port;
    }

    /// What it is called in every log.
    pub fn id(&mut self, id: RequestId) {
        self.id = Some(id);
    }

    /// The trace that it is part of.
    pub fn trace(&mut self, trace: TraceId) {
        self.trace = Some(trace);
    }

    /// It is told to `heard` once it has ended.
    pub fn hear(&mut self, heard: Heard) {
        self.heard = Some(heard);
    }

    /// It is tried at an endpoint of a backend, or of what was called; the last one counts. How often it was tried
    /// before.
    pub fn try_at(
        &mut self,
        backend: Option<(ServiceKey, u16)>,
        workload: &Arc<Workload>,
        at: SocketAddr,
    ) -> u32 {
        self.facts.destination = Some(workload.clone());
        self.backend = backend;
        self.upstream = Some(at);
        // Of an earlier try.
        self.upstream_time = None;
        self.tries += 1;
        self.tries - 1
    }

    /// How long the endpoint took from being asked to the head of its answer.
    pub fn upstream_time(&mut self, time: Duration) {
        self.upstream_time = Some(time);
    }

    /// The rule that was for it.
    pub fn route(&mut self, route: &RouteKey, rule: usize, name: Option<&Arc<str>>) {
        self.route = Some((route.clone(), rule, name.cloned()));
    }

    /// The path as it is to be shown.
    pub fn path(&mut self, path: &str) {
        self.path = cut(path);
    }

    /// Whose token it brought: `ISSUER/SUBJECT`.
    pub fn principal(&mut self, principal: &str) {
        self.principal = Some(cut(principal));
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
    pub fn received(&mut self, part: &[u8]) {
        self.received += part.len() as u64;
        if self.is_grpc {
            self.messages[0].read(part);
        }
    }

    /// A part of the answer's body.
    pub fn sent(&mut self, part: &[u8]) {
        self.sent += part.len() as u64;
        if self.is_grpc {
            self.messages[1].read(part);
        }
    }

    /// Since it began.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // Whatever is answered has a status.
        if self.status == 0 {
            self.flag(Flag::CallerReset, "the caller left before it was answered");
        }
        let heard = self.heard.take();
        let ended = Ended::of(self);
        let outcome = Outcome::new(ended.kind(), self.status, self.grpc, self.flag.name());
        let counts = Counts {
            age: ended.age,
            received: self.received,
            sent: self.sent,
            messages: [0, 1].map(|way: usize| self.messages[way].count()),
        };
        self.shared.kept.count(&self.facts, outcome, &counts);
        if self.shared.log.is_enabled(ended.is_failure) {
            self.shared.log.write(ended.is_failure, |line| ended.write(line));
        }
        if let Some(heard) = heard {
            heard(&ended);
        }
    }
}
