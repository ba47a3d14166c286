//! What control counts (`culvert_control_…`).

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::publish::Type;

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
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfType {
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
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
