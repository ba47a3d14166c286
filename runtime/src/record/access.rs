//! How a record reads: the fields of its line, in the order in which people look for them.

use std::time::Duration;

use mesh::PolicyKey;
use serde_json::{Value, json};

use super::{Connection, Direction, End, Routed, Security};
use crate::logging::line::Line;

/// The fields of a connection, but for its end.
pub(super) fn fields(connection: &Connection, line: &mut Line<'_>) {
    let facts = &connection.facts;
    let proved = facts.security != Security::Plain;
    line.text("direction", facts.direction.name());

    line.shown("src.addr", connection.source);
    match (&facts.source, &facts.derived) {
        (Some(source), _) => {
            line.text("src.workload", &source.name);
            line.text("src.namespace", &source.namespace);
        }
        (None, Some(derived)) => {
            derived.workload.iter().for_each(|name| line.text("src.workload", name));
            derived.namespace.iter().for_each(|name| line.text("src.namespace", name));
        }
        (None, None) => {}
    }
    if let Some(identity) = facts.source_identity.as_ref().filter(|_| proved) {
        line.text("src.identity", &identity.to_string());
    }

    if let Some(waypoint) = &connection.through {
        line.text("src.waypoint", &waypoint.to_string());
    }

    line.shown("dst.addr", connection.destination);
    connection.tunnel.iter().for_each(|peer| line.shown("dst.hbone_addr", peer));
    facts.service.iter().for_each(|service| line.text("dst.service", &service.key.hostname));
    if let Some(destination) = &facts.destination {
        line.text("dst.workload", &destination.name);
        line.text("dst.namespace", &destination.namespace);
    }
    if let Some(identity) = facts.destination_identity.as_ref().filter(|_| proved) {
        line.text("dst.identity", &identity.to_string());
    }

    if let Some(Routed { route, server }) = connection.route.as_deref() {
        line.text("route", &route.to_string());
        server.iter().for_each(|server| line.text("server", server));
    }
    line.text("security", facts.security.name());
    let (sent, received) = sent_received(connection);
    line.number("bytes_sent", sent);
    line.number("bytes_recv", received);
    line.shown("duration", Millis(connection.age()));
    if let Some(tcp) = &connection.tcp {
        line.shown("rtt", Millis(tcp.rtt));
        line.number("retransmits", tcp.retransmits);
        if tcp.delivery_rate > 0 {
            line.number("delivery_rate", tcp.delivery_rate);
        }
    }
    connection.policy.iter().for_each(|policy| line.text("policy", &policy.to_string()));
    if !connection.dry_run.is_empty() {
        line.text("dry_run", &list(&connection.dry_run));
    }
}

/// How it ended, where it did not just finish.
pub(super) fn ending(end: End, reason: Option<&str>, line: &mut Line<'_>) {
    if end != End::Finished {
        line.text("reason", end.name());
    }
    if let Some(reason) = reason {
        line.text("error", reason);
    }
}

/// A live connection as JSON; the names are those of the log.
pub(super) fn json(connection: &Connection) -> Value {
    let facts = &connection.facts;
    let (sent, received) = sent_received(connection);
    let derived = facts.derived.as_deref();
    let source = facts.source.as_deref();
    let source_name = source.map(|w| &w.name).or_else(|| derived?.workload.as_ref());
    let source_namespace = source.map(|w| &w.namespace).or_else(|| derived?.namespace.as_ref());
    json!({
        "direction": facts.direction.name(),
        "src": {
            "addr": connection.source.to_string(),
            "workload": source_name,
            "namespace": source_namespace,
            "identity": facts.source_identity.as_ref().map(ToString::to_string),
            "waypoint": connection.through.as_ref().map(ToString::to_string),
        },
        "dst": {
            "addr": connection.destination.to_string(),
            "hbone_addr": connection.tunnel.map(|peer| peer.to_string()),
            "service": facts.service.as_ref().map(|service| &service.key.hostname),
            "workload": facts.destination.as_ref().map(|workload| &workload.name),
            "namespace": facts.destination.as_ref().map(|workload| &workload.namespace),
            "identity": facts.destination_identity.as_ref().map(ToString::to_string),
        },
        "security": facts.security.name(),
        "opened": connection.is_opened(),
        "bytes_sent": sent,
        "bytes_recv": received,
        "age_ms": u64::try_from(connection.age().as_millis()).unwrap_or(u64::MAX),
        "policy": connection.policy.as_ref().map(ToString::to_string),
        "dry_run": connection.dry_run.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// Bytes as the reporting side sees them.
fn sent_received(connection: &Connection) -> (u64, u64) {
    let bytes = connection.bytes;
    match connection.facts.direction {
        Direction::Outbound => (bytes.forth, bytes.back),
        Direction::Inbound | Direction::Waypoint => (bytes.back, bytes.forth),
    }
}

pub(super) fn list(policies: &[PolicyKey]) -> String {
    policies.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// A duration in milliseconds with microseconds after the point: `12.345ms`.
pub(super) struct Millis(pub(super) Duration);

impl std::fmt::Display for Millis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = self.0.as_micros();
        write!(f, "{}.{:03}ms", micros / 1000, micros % 1000)
    }
}
