//! What the admin server shows of this ztunnel: what it knows, whom it serves, what it carries.

use std::sync::Arc;

use mesh::{Policy, Service, Tunnel, Workload};
use runtime::admin::Handlers;
use serde_json::{Value, json};

use crate::{
    pods::{Holder, Pod},
    shared::Shared,
    worker::Workers,
};

/// Registers the handlers.
pub(crate) fn register(handlers: &Handlers, shared: &Arc<Shared>, workers: &Workers) {
    let dumped = shared.clone();
    handlers.add("/config_dump", "workloads, services, policies, pods and certificates", move |_| {
        let shared = dumped.clone();
        async move { Ok(dump(&shared)) }
    });
    let asked = shared.clone();
    handlers.add(
        "/certificates",
        "the certificates, until when they hold, and what their renewal met",
        move |_| {
            let shared = asked.clone();
            async move {
                let certificates = shared.store.summaries();
                let certificates: Vec<Value> = certificates.iter().map(certificate).collect();
                Ok(json!({ "version": runtime::VERSION, "certificates": certificates }))
            }
        },
    );
    let asked = workers.clone();
    handlers.add("/connections", "live connections", move |_| {
        let workers = asked.clone();
        async move { Ok(Value::Array(workers.connections().await)) }
    });
    let asked = workers.clone();
    handlers.add("/tunnels", "outbound HBONE tunnels", move |_| {
        let workers = asked.clone();
        async move { Ok(Value::Array(workers.tunnels().await)) }
    });
}

fn dump(shared: &Shared) -> Value {
    let snapshot = shared.mesh.current();
    json!({
        "node": &*shared.settings.node,
        "complete": snapshot.is_complete(),
        "pods": shared.pods.all().iter().map(self::pod).collect::<Vec<_>>(),
        "workloads": sorted(snapshot.workloads().map(|w| (w.uid.to_string(), workload(w)))),
        "services": sorted(snapshot.services().map(|s| (s.key.to_string(), service(s)))),
        "policies": sorted(snapshot.policies().map(|p| (p.key.to_string(), policy(p)))),
        "certificates": shared.store.summaries().iter().map(certificate).collect::<Vec<_>>(),
    })
}

fn sorted(named: impl Iterator<Item = (String, Value)>) -> Vec<Value> {
    let mut named: Vec<(String, Value)> = named.collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    named.into_iter().map(|(_, value)| value).collect()
}

fn pod(pod: &Arc<Pod>) -> Value {
    json!({
        "uid": &*pod.uid,
        "namespace": &*pod.namespace,
        "name": &*pod.name,
        "identity": pod.identity.to_string(),
        "netns": pod.netns.inode(),
        "listeners": match pod.holder() {
            Holder::Us => "ours",
            Holder::Another => "another ztunnel's",
            Holder::Nobody => "not in their slots",
        },
        "connections": pod.connections(),
    })
}

fn workload(workload: &Arc<Workload>) -> Value {
    json!({
        "uid": &*workload.uid,
        "namespace": &*workload.namespace,
        "name": &*workload.name,
        "identity": workload.identity().to_string(),
        "addresses": workload.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "network": &*workload.network,
        "node": &*workload.node,
        "protocol": match workload.tunnel {
            Tunnel::None => "TCP",
            Tunnel::Hbone => "HBONE",
        },
        "healthy": workload.healthy,
        "services": workload.services.keys().map(ToString::to_string).collect::<Vec<_>>(),
        "policies": workload.authorization_policies.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn service(service: &Arc<Service>) -> Value {
    let port = |port: &mesh::PortMapping| json!({ "port": port.service_port, "target": port.target_port });
    json!({
        "namespace": &*service.key.namespace,
        "hostname": &*service.key.hostname,
        "addresses": service.addresses.iter().map(|a| a.address.to_string()).collect::<Vec<_>>(),
        "ports": service.ports.iter().map(port).collect::<Vec<_>>(),
    })
}

fn policy(policy: &Arc<Policy>) -> Value {
    json!({
        "name": policy.key.to_string(),
        "scope": format!("{:?}", policy.scope),
        "action": format!("{:?}", policy.action),
        "dry_run": policy.dry_run,
        "rules": policy.rules.iter().map(|rule| format!("{rule:?}")).collect::<Vec<_>>(),
    })
}

fn certificate(summary: &identity::CertificateSummary) -> Value {
    let seconds = |time: &std::time::SystemTime| {
        time.duration_since(std::time::UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
    };
    json!({
        "identity": summary.identity.to_string(),
        "pods": summary.holders,
        "serial": summary.serial,
        "not_before": summary.not_before.as_ref().map(seconds),
        "not_after": summary.not_after.as_ref().map(seconds),
        "next_attempt": summary.next_attempt.as_ref().map(seconds),
        "last_error": summary.last_error,
    })
}
