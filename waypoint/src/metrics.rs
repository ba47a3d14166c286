//! What this waypoint counts of itself; requests and connections are counted by their records (`istio_…`).

use std::sync::Arc;

use hbone::client::Tally;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use runtime::metrics::{Metrics as Registry, Reading};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// The metrics under `culvert_waypoint_`.
pub(crate) struct Metrics {
    pub(crate) tunnels: Gauge,
    pub(crate) handshake_failures: Counter,
    pub(crate) backends_dialled: Counter,
    pub(crate) chosen_again: Counter,
    pub(crate) retries: Counter,
    pub(crate) denied: Counter,
    pub(crate) audited: Counter,
    refused: Family<Reason, Counter>,
    mirrors: Family<Outcome, Counter>,
    spans: Family<Outcome, Counter>,
    tokens: Family<Outcome, Counter>,
}

impl Metrics {
    pub(crate) fn new(registry: &Arc<Registry>, tally: &Arc<Tally>) -> Self {
        let metrics = Self {
            tunnels: Gauge::default(),
            handshake_failures: Counter::default(),
            backends_dialled: Counter::default(),
            chosen_again: Counter::default(),
            retries: Counter::default(),
            denied: Counter::default(),
            audited: Counter::default(),
            refused: Family::default(),
            mirrors: Family::default(),
            spans: Family::default(),
            tokens: Family::default(),
        };
        registry.under("culvert_waypoint", |registry| {
            registry.register("tunnels", "HBONE tunnels of callers now", metrics.tunnels.clone());
            let help = "Callers that got no tunnel";
            registry.register("handshake_failures", help, metrics.handshake_failures.clone());
            let help = "Connections opened to backends";
            registry.register("backends_dialled", help, metrics.backends_dialled.clone());
            let help = "Times that another endpoint was chosen, since the one before could not be reached";
            registry.register("chosen_again", help, metrics.chosen_again.clone());
            let (absent, lost) = (tally.clone(), tally.clone());
            let help = "Peers that do not answer now, and are passed over where there are others";
            registry.register_collector(Reading::gauge("peers_absent", help, move || absent.marked() as u64));
            let help = "How often a peer that had answered did not any more";
            registry.register_collector(Reading::counter("peers_lost", help, move || lost.losses()));
            registry.register("retries", "Requests tried again", metrics.retries.clone());
            let help = "Requests, and connections that are no HTTP, that a policy of this waypoint refused";
            registry.register("denied", help, metrics.denied.clone());
            registry.register("audited", "Matches of AUDIT policies", metrics.audited.clone());
            let help = "Connections that were not taken, by reason";
            registry.register("refused", help, metrics.refused.clone());
            let help = "Copies of requests, by what became of them; of body: it was too large or broke off";
            registry.register("mirrors", help, metrics.mirrors.clone());
            let help = "Spans, by what became of them; dropped: too many waited, lost: the collector could not be reached";
            registry.register("spans", help, metrics.spans.clone());
            let help = "Tokens of requests, accepted or, by reason, not";
            registry.register("tokens", help, metrics.tokens.clone());
        });
        metrics
    }

    /// Counts a copy of a request.
    pub(crate) fn mirrored(&self, outcome: &'static str) {
        self.mirrors.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts spans on their way to the collector.
    pub(crate) fn spans(&self, outcome: &'static str, count: u64) {
        self.spans.get_or_create(&Outcome { outcome }).inc_by(count);
    }

    /// Counts a token.
    pub(crate) fn token(&self, outcome: &'static str) {
        self.tokens.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts a connection that was not taken.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }
}
