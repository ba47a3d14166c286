//! The labels of a connection's metrics: which facts they come from, and their names.

use std::sync::Arc;

use mesh::{Identity, Service, Workload};
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::End;

/// Which side of the connection this program stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// It carries a connection that its own pod opened: `reporter="source"`.
    Outbound,
    /// It carries a connection to its own pod: `reporter="destination"`.
    Inbound,
    /// It stands between them: `reporter="waypoint"`.
    Waypoint,
}

/// How a connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Security {
    /// Not at all (`unknown` in the metrics, as in Istio).
    #[default]
    Plain,
    MutualTls,
    /// It never leaves this node, and the kernel's capture proved who calls.
    SameNode,
}

/// What a peer says of a source that is not in our snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Derived {
    pub workload: Option<Arc<str>>,
    pub namespace: Option<Arc<str>>,
    /// The canonical service.
    pub app: Option<Arc<str>>,
    pub revision: Option<Arc<str>>,
    pub cluster: Option<Arc<str>>,
}

/// What is known of a connection's ends.
pub(super) struct Facts {
    pub(super) direction: Direction,
    pub(super) source: Option<Arc<Workload>>,
    pub(super) derived: Option<Box<Derived>>,
    pub(super) destination: Option<Arc<Workload>>,
    pub(super) service: Option<Arc<Service>>,
    pub(super) source_identity: Option<Identity>,
    pub(super) destination_identity: Option<Identity>,
    pub(super) security: Security,
}

impl Direction {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Waypoint => "waypoint",
        }
    }
}

impl Security {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::MutualTls => "mutual_tls",
            Self::SameNode => "same_node",
        }
    }
}

impl Facts {
    pub(super) fn new(direction: Direction) -> Self {
        Self {
            direction,
            source: None,
            derived: None,
            destination: None,
            service: None,
            source_identity: None,
            destination_identity: None,
            security: Security::Plain,
        }
    }
}

/// Longest value of a label in bytes; names of Kubernetes objects have 253 at most, identities more.
const MAX_VALUE: usize = 512;

/// Names of the labels, in the order of [`Labels::values`].
const NAMES: [&str; 26] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
    "connection_security_policy",
    "response_flags",
];

/// One label set; values are shared with the workloads they come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    values: [Value; NAMES.len()],
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Value {
    Fixed(&'static str),
    Shared(Arc<str>),
}

impl Labels {
    /// The labels of a connection with these facts, and `end` if it failed.
    pub(super) fn of(facts: &Facts, end: End) -> Self {
        let [source, destination] = [&facts.source, &facts.destination].map(Option::as_deref);
        let derived = facts.derived.as_deref();
        let from = |of: fn(&Workload) -> &Arc<str>, or: fn(&Derived) -> &Option<Arc<str>>| {
            value(source.map(of).or_else(|| or(derived?).as_ref()))
        };
        let to = |of: fn(&Workload) -> &Arc<str>| value(destination.map(of));
        let service = |of: fn(&Service) -> &Arc<str>| value(facts.service.as_deref().map(of));
        let destination_identity =
            facts.destination_identity.clone().or_else(|| destination.map(Workload::identity));
        Self {
            values: [
                Value::Fixed(match facts.direction {
                    Direction::Outbound => "source",
                    Direction::Inbound => "destination",
                    Direction::Waypoint => "waypoint",
                }),
                from(|w| &w.workload_name, |d| &d.workload),
                from(|w| &w.canonical_name, |d| &d.app),
                from(|w| &w.canonical_revision, |d| &d.revision),
                from(|w| &w.namespace, |d| &d.namespace),
                identity(facts.source_identity.as_ref()),
                from(|w| &w.canonical_name, |d| &d.app),
                from(|w| &w.canonical_revision, |d| &d.revision),
                from(|w| &w.cluster_id, |d| &d.cluster),
                service(|s| &s.key.hostname),
                service(|s| &s.key.namespace),
                service(|s| &s.name),
                to(|w| &w.workload_name),
                to(|w| &w.canonical_name),
                to(|w| &w.canonical_revision),
                to(|w| &w.namespace),
                identity(destination_identity.as_ref()),
                to(|w| &w.canonical_name),
                to(|w| &w.canonical_revision),
                to(|w| &w.cluster_id),
                value(source.map(|w| &w.locality.region)),
                value(source.map(|w| &w.locality.zone)),
                to(|w| &w.locality.region),
                to(|w| &w.locality.zone),
                Value::Fixed(match facts.security {
                    Security::Plain => "unknown",
                    Security::MutualTls => "mutual_tls",
                    Security::SameNode => "same_node",
                }),
                Value::Fixed(end.flags()),
            ],
        }
    }

    /// The labels that stand for all others once there are too many.
    pub(super) fn overflow() -> Self {
        Self { values: [const { Value::Fixed("unknown") }; NAMES.len()] }
    }
}

impl Labels {
    /// Encodes all labels but those named.
    pub(super) fn encode_but(
        &self,
        others: &[&str],
        encoder: &mut LabelSetEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        for (name, value) in NAMES.iter().zip(&self.values).filter(|(name, _)| !others.contains(name)) {
            (*name, value.as_str()).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        ("request_protocol", "tcp").encode(encoder.encode_label())?;
        for (name, value) in NAMES.iter().zip(&self.values) {
            (*name, value.as_str()).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

impl Value {
    fn as_str(&self) -> &str {
        match self {
            Self::Fixed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

/// The value of a label; `unknown` where there is none, as in Istio.
fn value(text: Option<&Arc<str>>) -> Value {
    match text {
        Some(text) if text.len() > MAX_VALUE => {
            let end = (0..=MAX_VALUE).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            Value::Shared(text[..end].into())
        }
        Some(text) if !text.is_empty() => Value::Shared(text.clone()),
        Some(_) | None => Value::Fixed("unknown"),
    }
}

fn identity(identity: Option<&Identity>) -> Value {
    let text: Option<Arc<str>> = identity.map(|identity| identity.to_string().into());
    value(text.as_ref())
}
