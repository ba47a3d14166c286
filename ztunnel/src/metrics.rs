//! What this ztunnel counts of itself; connections are counted by their records (`istio_tcp_…`).

use std::sync::Arc;

use hbone::client::Tally;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use runtime::metrics::{Metrics as Registry, Reading};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Reason {
    pub(crate) reason: &'static str,
}

/// The metrics under `culvert_ztunnel_`.
pub(crate) struct Metrics {
    pub(crate) pods: Gauge,
    pub(crate) agent_connected: Gauge,
    pub(crate) tunnels_open: Gauge,
    pub(crate) tunnels_dialled: Counter,
    pub(crate) chosen_again: Counter,
    pub(crate) tunnels_accepted: Counter,
    pub(crate) handshake_failures: Counter,
    pub(crate) rejudged: Counter,
    pub(crate) spliced: Counter,
    pub(crate) policy_generation: Gauge,
    pub(crate) dns: crate::dns::Metrics,
    refused: Family<Reason, Counter>,
}

impl Metrics {
    pub(crate) fn new(registry: &Arc<Registry>, tally: &Arc<Tally>) -> Self {
        let metrics = Self {
            pods: Gauge::default(),
            agent_connected: Gauge::default(),
            tunnels_open: Gauge::default(),
            tunnels_dialled: Counter::default(),
            chosen_again: Counter::default(),
            tunnels_accepted: Counter::default(),
            handshake_failures: Counter::default(),
            rejudged: Counter::default(),
            spliced: Counter::default(),
            policy_generation: Gauge::default(),
            dns: crate::dns::Metrics::new(registry),
            refused: Family::default(),
        };
        registry.under("culvert_ztunnel", |registry| {
            registry.register("pods", "Pods served", metrics.pods.clone());
            registry.register(
                "agent_connected",
                "Whether the agent is connected (1) or not (0)",
                metrics.agent_connected.clone(),
            );
            registry.register(
                "inbound_tunnels",
                "HBONE tunnels of callers now",
                metrics.tunnels_open.clone(),
            );
            registry.register(
                "tunnels_dialled",
                "TCP connections made for outbound HBONE tunnels",
                metrics.tunnels_dialled.clone(),
            );
            let help = "Connections that turned to another endpoint or waypoint, since the one chosen did not answer";
            registry.register("chosen_again", help, metrics.chosen_again.clone());
            let (absent, lost) = (tally.clone(), tally.clone());
            let help = "Peers that do not answer now, and are passed over where there are others";
            registry.register_collector(Reading::gauge("peers_absent", help, move || absent.marked() as u64));
            let help = "How often a peer that had answered did not any more";
            registry.register_collector(Reading::counter("peers_lost", help, move || lost.losses()));
            registry.register(
                "tunnels_accepted",
                "TCP connections taken for inbound HBONE tunnels",
                metrics.tunnels_accepted.clone(),
            );
            registry.register(
                "handshake_failures",
                "Inbound HBONE connections that did not become a tunnel",
                metrics.handshake_failures.clone(),
            );
            registry.register(
                "ended_by_policy",
                "Live connections ended because a new state does not allow them",
                metrics.rejudged.clone(),
            );
            registry.register(
                "spliced_connections",
                "Connections within this node that were spliced from app to app in the kernel",
                metrics.spliced.clone(),
            );
            registry.register(
                "policy_generation",
                "Number of the policies in force; it changes when they do",
                metrics.policy_generation.clone(),
            );
            registry.register("refused", "Connections refused, by reason", metrics.refused.clone());
        });
        metrics
    }

    /// Counts an inbound tunnel as long as the result lives.
    pub(crate) fn tunnel_open(&self) -> Open {
        self.tunnels_open.inc();
        Open(self.tunnels_open.clone())
    }

    /// Counts a refusal; reasons are few and fixed.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }
}

/// Something that is open and counted.
pub(crate) struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
