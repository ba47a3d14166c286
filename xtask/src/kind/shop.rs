//! The shop in the cluster: its pods, and what its customers counted.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use super::cluster::Cluster;

pub(crate) const NAMESPACE: &str = "shop";
/// What must never be readable between the nodes once the shop is in the mesh.
pub(crate) const SECRET: &str = "the-safe-opens-at-7-31-88";
/// What control writes on a pod whose capture its node has measured.
const CAPTURED: &str = "/metadata/annotations/ambient.istio.io~1redirection";

/// What all customers counted since they began.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counted {
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) connects: u64,
    pub(crate) slow_connects: u64,
    pub(crate) slowest_connect_ms: u64,
    /// By connections kept or new, step and kind.
    pub(crate) failures: BTreeMap<String, u64>,
    /// The customers' lines.
    pub(crate) seconds: usize,
}

/// A line of a customer's log.
#[derive(Debug, Deserialize)]
struct Line {
    requests: u64,
    failed: u64,
    connects: u64,
    slow_connects: u64,
    slowest_connect_ms: u64,
    #[serde(default)]
    failures: BTreeMap<String, u64>,
    /// Only the last line has it, and counts again what the others did.
    total: Option<bool>,
}

impl Counted {
    /// What was counted since an earlier reading of the same customers. The slowest connect is that of all time.
    pub(crate) fn since(mut self, before: &Self) -> Self {
        self.requests = self.requests.saturating_sub(before.requests);
        self.failed = self.failed.saturating_sub(before.failed);
        self.connects = self.connects.saturating_sub(before.connects);
        self.slow_connects = self.slow_connects.saturating_sub(before.slow_connects);
        self.seconds = self.seconds.saturating_sub(before.seconds);
        for (kind, count) in &before.failures {
            if let Some(now) = self.failures.get_mut(kind) {
                *now = now.saturating_sub(*count);
            }
        }
        self.failures.retain(|_, count| *count > 0);
        self
    }

    /// Fails if a single request did.
    pub(crate) fn demand_flawless(&self) -> Result<String> {
        if self.failed > 0 || self.requests == 0 {
            bail!("{} of {} requests failed: {:?}", self.failed, self.requests, self.failures);
        }
        Ok(format!(
            "{} requests on {} new connections so far, 0 failed; {} connects took more than 100 ms, the slowest {} ms",
            self.requests, self.connects, self.slow_connects, self.slowest_connect_ms
        ))
    }
}

/// The manifests, with the image that is loaded.
pub(crate) fn manifests(text: &str, image: &str) -> String {
    text.replace("CULVERT_APP", image).replace("CULVERT_SECRET", SECRET)
}

/// The customers' pods.
pub(crate) fn customers(cluster: &Cluster) -> Result<Vec<Value>> {
    let mut pods = cluster.items(&["pods", "--namespace", NAMESPACE, "--selector=role=customers"])?;
    // Who leaves is gone before it can be asked.
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(pods)
}

/// Reads every customer's log from its beginning.
pub(crate) fn counted(cluster: &Cluster) -> Result<Counted> {
    let mut counted = Counted::default();
    for pod in customers(cluster)? {
        let name = pod["metadata"]["name"].as_str().context("a pod has a name")?;
        let log = cluster.ask(&["--namespace", NAMESPACE, "logs", name, "--all-containers"])?;
        add(&mut counted, &log);
    }
    Ok(counted)
}

fn add(counted: &mut Counted, log: &str) {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    for line in lines.filter(|line| line.total.is_none()) {
        counted.seconds += 1;
        counted.requests += line.requests;
        counted.failed += line.failed;
        counted.connects += line.connects;
        counted.slow_connects += line.slow_connects;
        counted.slowest_connect_ms = counted.slowest_connect_ms.max(line.slowest_connect_ms);
        for (kind, count) in line.failures {
            *counted.failures.entry(kind).or_default() += count;
        }
    }
}

/// The shop's pods, and of these the captured ones.
pub(crate) fn pods(cluster: &Cluster) -> Result<(Vec<Value>, usize)> {
    let pods = cluster.items(&["pods", "--namespace", NAMESPACE])?;
    let captured = |pod: &&Value| pod.pointer(CAPTURED).and_then(Value::as_str) == Some("enabled");
    let captured = pods.iter().filter(captured).count();
    Ok((pods, captured))
}

/// How often any container of the shop was started again, and when each pod was made: neither may change.
pub(crate) fn identity(cluster: &Cluster) -> Result<Vec<String>> {
    let pods = cluster.items(&["pods", "--namespace", NAMESPACE])?;
    Ok(pods
        .iter()
        .map(|pod| {
            let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
            format!("{} {restarts}", pod["metadata"]["uid"])
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_customers_counted_is_added_up_once() {
        let mut counted = Counted::default();
        let line = |more: &str| {
            format!(
                r#"{{"requests":10,"failed":1,"connects":2,"slow_connects":0,"slowest_connect_ms":7{more}}}"#
            )
        };
        let log = format!(
            "catalog request: reset\n{}\n{}\n{}\n",
            line(r#","failures":{"request: reset":1}"#),
            line(""),
            line(r#","total":true"#)
        );
        add(&mut counted, &log);
        assert_eq!((counted.requests, counted.failed, counted.seconds), (20, 2, 2));
        assert!(counted.demand_flawless().is_err());
        assert!(Counted::default().demand_flawless().is_err(), "no customer came");
        assert!(Counted { requests: 1, ..Counted::default() }.demand_flawless().is_ok());
    }
}
