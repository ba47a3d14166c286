//! What a ztunnel says of itself, as JSON: its dump, its live connections, its access log.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{Node, Pod, Process, eventually, mesh::NodePrograms};

impl Node {
    /// What the node's ztunnel knows: workloads, services, policies, its pods, its certificates.
    pub fn config_dump(&self) -> Result<Value> {
        self.json("/config_dump")
    }

    /// The connections that the node's ztunnel carries now.
    pub fn connections(&self) -> Result<Vec<Value>> {
        let value = self.json("/connections")?;
        value.as_array().cloned().with_context(|| format!("/connections is no list: {value}"))
    }

    fn json(&self, path: &str) -> Result<Value> {
        serde_json::from_str(&self.admin(path)?).with_context(|| format!("{path} of node {}", self.name()))
    }

    /// Whether the node's ztunnel would reach this pod by HBONE; `None` while it does not know the pod.
    pub fn reaches_by_hbone(&self, pod: &Pod) -> Result<Option<bool>> {
        let dump = self.config_dump()?;
        let spec = pod.spec();
        let workloads = dump["workloads"].as_array().context("no list of workloads in the dump")?;
        let known = workloads
            .iter()
            .find(|workload| workload["namespace"] == *spec.namespace && workload["name"] == *spec.name);
        Ok(known.map(|workload| workload["protocol"] == "HBONE"))
    }
}

/// Waits until every ztunnel knows these pods as enrolled (or as not enrolled); says how long it took.
pub fn wait_enrolled(
    nodes: &[NodePrograms],
    pods: &[&Pod],
    enrolled: bool,
    limit: Duration,
) -> Result<Duration> {
    let names: Vec<String> = pods.iter().map(|pod| pod.full_name()).collect();
    let what = format!("{} to be {}", names.join(", "), if enrolled { "enrolled" } else { "un-enrolled" });
    let settled = || -> Result<Option<()>> {
        for programs in nodes {
            for pod in pods {
                if programs.node.reaches_by_hbone(pod)? != Some(enrolled) {
                    return Ok(None);
                }
            }
        }
        Ok(Some(()))
    };
    let tails = || {
        let tail = |process: &Process| format!("--- {}\n{}", process.name(), process.log_tail(4));
        nodes.iter().flat_map(|programs| [tail(&programs.agent), tail(&programs.ztunnel)]).collect::<String>()
    };
    eventually(limit, &what, settled).map(|((), took)| took).with_context(tails)
}

/// The connections in the access log of a ztunnel after its log was `since` bytes long.
pub fn accesses(ztunnel: &Process, since: usize) -> Vec<Value> {
    let log = ztunnel.log_since(since);
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "access").collect()
}

/// Waits for a connection in the access log that `pick` accepts.
pub fn wait_access(
    ztunnel: &mut Process,
    since: usize,
    limit: Duration,
    what: &str,
    pick: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let log = ztunnel.log_path().to_owned();
    let find = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let lines = text.get(since..)?.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.into_iter().find(|line| line["target"] == "access" && pick(line))
    };
    Ok(ztunnel.wait_until(limit, what, find)?.0)
}
