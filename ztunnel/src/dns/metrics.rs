//! What is counted of DNS, under the names that Istio's ztunnel gives it; each label has a few fixed values.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
};
use runtime::metrics::Metrics as Registry;

use super::{Transport, message::Kind};
use crate::metrics::Reason;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    request_query_type: &'static str,
    request_protocol: &'static str,
}

/// The metrics under `istio_dns_`.
pub(crate) struct Metrics {
    requests: Family<Request, Counter>,
    upstream: Counter,
    upstream_failures: Family<Reason, Counter>,
    upstream_duration: Histogram,
    own_duration: Histogram,
}

impl Metrics {
    pub(crate) fn new(registry: &Arc<Registry>) -> Self {
        let metrics = Self {
            requests: Family::default(),
            upstream: Counter::default(),
            upstream_failures: Family::default(),
            upstream_duration: Histogram::new(exponential_buckets(0.0005, 2.0, 14)),
            own_duration: Histogram::new(exponential_buckets(0.000_01, 2.0, 12)),
        };
        registry.under("istio_dns", |registry| {
            registry.register(
                "requests",
                "DNS queries of pods, by type and transport",
                metrics.requests.clone(),
            );
            registry.register(
                "upstream_requests",
                "DNS queries passed on to the resolver that the pod asked",
                metrics.upstream.clone(),
            );
            registry.register(
                "upstream_failures",
                "DNS queries passed on without an answer, by reason",
                metrics.upstream_failures.clone(),
            );
            registry.register(
                "upstream_request_duration_seconds",
                "Time until the pod's resolver has answered",
                metrics.upstream_duration.clone(),
            );
        });
        registry.under("culvert_ztunnel", |registry| {
            registry.register(
                "dns_answer_duration_seconds",
                "Time from reading a DNS query of a name of the mesh to having sent its answer",
                metrics.own_duration.clone(),
            );
        });
        metrics
    }

    /// Counts a query; `None` for one that is not read.
    pub(super) fn asked(&self, kind: Option<Kind>, transport: Transport) {
        let request_query_type = match kind {
            Some(Kind::A) => "A",
            Some(Kind::Aaaa) => "AAAA",
            Some(Kind::Service | Kind::Other) | None => "other",
        };
        let request_protocol = match transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        self.requests.get_or_create(&Request { request_query_type, request_protocol }).inc();
    }

    pub(super) fn answered(&self, took: Duration) {
        self.own_duration.observe(took.as_secs_f64());
    }

    pub(super) fn passed_on(&self) {
        self.upstream.inc();
    }

    pub(super) fn upstream_answered(&self, took: Duration) {
        self.upstream_duration.observe(took.as_secs_f64());
    }

    pub(super) fn upstream_failed(&self, reason: &'static str) {
        self.upstream_failures.get_or_create(&Reason { reason }).inc();
    }
}
