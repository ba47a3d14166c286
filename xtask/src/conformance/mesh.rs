//! The mesh under the suite: installed by the chart, with namespaces and waypoints as a user makes them, and what it
//! says of the suite's traffic.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    e2e::{demand, is_captured},
    kind::cluster::{Cluster, SYSTEM, eventually},
    shell,
};

/// The suite's namespaces: its manifests name them.
const NAMESPACES: [&str; 2] = ["gateway-conformance-mesh", "gateway-conformance-mesh-consumer"];
/// Each one's waypoint.
const WAYPOINT: &str = "waypoint";
/// On a waypoint's pods: its Gateway's name.
const GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";
/// What a namespace says to have its pods captured and its Services behind its waypoint.
const LABELS: [(&str, &str); 2] =
    [("istio.io/dataplane-mode", "ambient"), ("istio.io/use-waypoint", WAYPOINT)];
/// Where all programs serve their metrics.
const METRICS: u16 = 15020;

/// As the suite takes them.
pub(super) fn labels() -> String {
    LABELS.map(|(name, value)| format!("{name}={value}")).join(",")
}

/// Installs the chart.
pub(super) fn install(cluster: &Cluster, chart: &Path) -> Result<()> {
    let chart = chart.to_string_lossy();
    // What was built here is not to be looked for elsewhere.
    let args = ["install", "culvert", &chart, "--namespace", SYSTEM, "--create-namespace"];
    let mut helm = cluster.helm(&[&args[..], &["--set", "image.pullPolicy=Never"]].concat());
    shell::output(&mut helm, "install the chart")?;
    cluster.rolled_out(SYSTEM, &["deployment/control", "daemonset/agent", "daemonset/ztunnel"])
}

/// Makes the suite's namespaces and their waypoints, and waits until these are programmed.
pub(super) fn prepare(cluster: &Cluster) -> Result<()> {
    let labels: Value = LABELS.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    for namespace in NAMESPACES {
        let objects = json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace, "labels": labels } },
            {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "Gateway",
                "metadata": { "name": WAYPOINT, "namespace": namespace },
                "spec": {
                    "gatewayClassName": "culvert-waypoint",
                    "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
                },
            },
        ]});
        cluster.apply(&objects.to_string())?;
    }
    for namespace in NAMESPACES {
        let gateway = format!("gateway/{WAYPOINT}");
        let wait = ["wait", "--for=condition=Programmed", &gateway, "--timeout=120s"];
        cluster
            .ask(&[&["--namespace", namespace], &wait[..]].concat())
            .with_context(|| format!("the waypoint of {namespace} is not programmed"))?;
    }
    Ok(())
}

/// Fails unless every pod of the suite was captured, and its calls went through ztunnels and waypoints; what was seen.
pub(super) fn captured(cluster: &Cluster) -> Result<String> {
    let mut told = Vec::new();
    for namespace in NAMESPACES {
        let echo = ["pods", "--namespace", namespace, "--selector=app=echo"];
        let (count, _) =
            eventually(Duration::from_secs(5), &format!("the pods of {namespace} captured"), || {
                let pods = cluster.items(&echo)?;
                let captured = pods.iter().filter(|pod| is_captured(pod)).count();
                let all = captured == pods.len() && captured > 0;
                Ok(if all { Ok(captured) } else { Err(format!("{captured} of {}", pods.len())) })
            })?;
        told.push(format!("{count} pods of {namespace}"));
    }
    let ztunnels = count(
        cluster,
        &["--namespace", SYSTEM, "--selector=app.kubernetes.io/name=ztunnel"],
        "istio_tcp_connections_opened_total",
    )?;
    demand(ztunnels > 0, || "no ztunnel has carried a connection of the suite's".to_owned())?;
    let waypoint = format!("--selector={GATEWAY}={WAYPOINT}");
    let requests = count(cluster, &["--all-namespaces", &waypoint], "istio_requests_total")?;
    demand(requests > 0, || "no waypoint has answered a request of the suite's".to_owned())?;
    Ok(format!(
        "captured: {}; {ztunnels} connections opened through ztunnels, {requests} requests through waypoints",
        told.join(", ")
    ))
}

/// What the waypoints have said.
pub(super) fn words(cluster: &Cluster) -> String {
    let selector = format!("--selector={GATEWAY}={WAYPOINT}");
    let mut text = String::new();
    for namespace in NAMESPACES {
        let logs = ["--namespace", namespace, "logs", &selector, "--tail=-1", "--prefix"];
        text.push_str(&cluster.ask(&logs).unwrap_or_default());
    }
    text
}

/// What a metric of these pods counts of the suite's namespaces.
fn count(cluster: &Cluster, which: &[&str], metric: &str) -> Result<u64> {
    let mut sum = 0;
    for pod in cluster.items(&[&["pods"], which].concat())? {
        let field = |name: &str| pod["metadata"][name].as_str().context("a pod has a name");
        let (namespace, name) = (field("namespace")?, field("name")?);
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{METRICS}/proxy/metrics");
        sum += counted(&cluster.ask(&["get", "--raw", &path])?, metric);
    }
    Ok(sum)
}

/// Of what callers of the suite's namespaces did, as its source or its waypoint tells: destinations tell it again.
fn counted(metrics: &str, metric: &str) -> u64 {
    let ours = format!("source_workload_namespace=\"{}", NAMESPACES[0]);
    let lines = metrics.lines().filter(|line| line.split('{').next() == Some(metric));
    let lines = lines.filter(|line| line.contains(&ours) && !line.contains("reporter=\"destination\""));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_suites_own_calls_are_counted_and_once() {
        let line = |metric: &str, reporter: &str, namespace: &str, count: u32| {
            format!(
                "{metric}{{reporter=\"{reporter}\",source_workload_namespace=\"{namespace}\",code=\"200\"}} {count}\n"
            )
        };
        let metric = "istio_tcp_connections_opened_total";
        let metrics = [
            line(metric, "source", "gateway-conformance-mesh", 3),
            line(metric, "source", "gateway-conformance-mesh-consumer", 4),
            line(metric, "destination", "gateway-conformance-mesh", 100),
            line(metric, "source", "kube-system", 100),
            line("istio_tcp_connections_closed_total", "source", "gateway-conformance-mesh", 100),
            format!("# HELP {metric} Of connections.\n"),
        ]
        .concat();
        assert_eq!(counted(&metrics, metric), 7);
    }
}
