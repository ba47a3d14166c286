//! What control counts (`culvert_control_…`).

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{manifest::Kind, publish::Type};

/// The counters and gauges of control.
#[derive(Debug, Default)]
pub struct Metrics {
    pushes: Family<OfType, Counter>,
    refusals: Family<OfType, Counter>,
    certificates: Family<Outcome, Counter>,
    clients: Gauge,
    agents: Gauge,
    refused_objects: Gauge,
    published: Family<OfType, Gauge>,
    watch_errors: Family<OfKind, Counter>,
    held: Family<OfKind, Gauge>,
    reviews: Family<Outcome, Counter>,
    marks: Family<Outcome, Counter>,
    leader: Gauge,
    key_fetches: Family<Outcome, Counter>,
    key_sources: Family<State, Gauge>,
}

/// What became of a token that was to be reviewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Review {
    /// The API server accepts it.
    Accepted,
    Refused,
    /// The answer was known.
    Remembered,
    /// The API server could not be asked.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfType {
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: String,
}

impl From<Kind> for OfKind {
    fn from(kind: Kind) -> Self {
        Self { kind: format!("{kind:?}") }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

impl From<Type> for OfType {
    fn from(r#type: Type) -> Self {
        Self { r#type: r#type.name() }
    }
}

impl Metrics {
    /// Adds everything to `registry`, which prefixes the names.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("xds_pushes", "Discovery answers sent", self.pushes.clone());
        registry.register("xds_refused", "Discovery answers that a client refused", self.refusals.clone());
        registry.register("xds_clients", "Open discovery streams", self.clients.clone());
        registry.register("agents", "Nodes whose agent is connected", self.agents.clone());
        registry.register("certificates", "Certificate requests answered", self.certificates.clone());
        registry.register("refused_objects", "Objects that are refused now", self.refused_objects.clone());
        registry.register("resources", "Resources published now", self.published.clone());
        let fetches = "Attempts to fetch keys of tokens";
        registry.register("jwks_fetches", fetches, self.key_fetches.clone());
        let sources = "Places that keys of tokens are fetched from; stale: the last attempt failed; missing: all did; beyond: \
             not asked, since there are too many";
        registry.register("jwks_sources", sources, self.key_sources.clone());
    }

    /// Adds what there is to count only on the Kubernetes API server.
    pub fn register_kubernetes(&self, registry: &mut Registry) {
        let errors = "Failures to find, list or watch a kind";
        registry.register("kubernetes_watch_errors", errors, self.watch_errors.clone());
        registry.register("kubernetes_objects", "Objects held of a kind", self.held.clone());
        registry.register("kubernetes_token_reviews", "Tokens of nodes reviewed", self.reviews.clone());
        registry.register("kubernetes_pod_marks", "Annotations written on pods", self.marks.clone());
        registry.register("kubernetes_leader", "1 while this replica leads", self.leader.clone());
    }

    pub(crate) fn watch_failed(&self, kind: Kind) {
        self.watch_errors.get_or_create(&kind.into()).inc();
    }

    pub(crate) fn set_held(&self, kind: Kind, objects: usize) {
        self.held.get_or_create(&kind.into()).set(objects as i64);
    }

    pub(crate) fn reviewed(&self, review: Review) {
        let outcome = match review {
            Review::Accepted => "accepted",
            Review::Refused => "refused",
            Review::Remembered => "remembered",
            Review::Failed => "failed",
        };
        self.reviews.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn marked(&self, written: bool) {
        let outcome = if written { "written" } else { "failed" };
        self.marks.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    pub(crate) fn keys_fetched(&self, fetched: bool) {
        let outcome = if fetched { "fetched" } else { "failed" };
        self.key_fetches.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn set_key_sources(&self, fresh: usize, stale: usize, missing: usize, beyond: usize) {
        let all = [("fresh", fresh), ("stale", stale), ("missing", missing), ("beyond", beyond)];
        for (state, sources) in all {
            self.key_sources.get_or_create(&State { state }).set(sources as i64);
        }
    }

    pub(crate) fn pushed(&self, r#type: Type) {
        self.pushes.get_or_create(&r#type.into()).inc();
    }

    pub(crate) fn refused(&self, r#type: Type) {
        self.refusals.get_or_create(&r#type.into()).inc();
    }

    pub(crate) fn certificate(&self, issued: bool) {
        let outcome = if issued { "issued" } else { "refused" };
        self.certificates.get_or_create(&Outcome { outcome }).inc();
    }

    /// What can be counted at any moment, counted now.
    pub fn observe(&self, clients: usize, agents: usize) {
        self.clients.set(clients as i64);
        self.agents.set(agents as i64);
    }

    pub(crate) fn set_published(&self, r#type: Type, resources: usize) {
        self.published.get_or_create(&r#type.into()).set(resources as i64);
    }

    pub(crate) fn set_refused_objects(&self, objects: usize) {
        self.refused_objects.set(objects as i64);
    }
}
