//! Layer 7 on Kubernetes: a Gateway becomes a waypoint, routes are shifted, and the waypoint comes and goes, under load.

use std::{collections::BTreeMap, thread::sleep, time::Duration};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    demo::stage::span,
    e2e::{Case, demand, world::World},
    gateway_api,
    kind::cluster::eventually,
};

mod lost;
mod told;

const SPACE: &str = "e2e-waypoint";
/// So long the share is counted.
const COUNTED: Duration = Duration::from_secs(5);
/// Of some thousand requests it does not differ by more, but once in many thousand runs.
const TOLERANCE: f64 = 0.04;
/// The waypoint serves what it has begun for so long after it was told to end.
const LEAVES: Duration = Duration::from_secs(45);

pub(super) const CASES: &[Case] = &[
    Case {
        name: "waypoint",
        holds: "a Gateway becomes a waypoint; a canary is shifted, tokens open a page, a trace is told of, the waypoint \
                rolled and scaled, and no request fails; without its pods calls are refused",
        long: false,
        ground: false,
        on_nodes: false,
        run: waypoint,
    },
    Case {
        name: "waypoint-node-lost",
        holds: "a waypoint's node is lost without a word: few requests fail until that is noticed, and none after it",
        long: true,
        ground: false,
        on_nodes: true,
        run: lost::node_lost,
    },
];

/// What the customers counted.
#[derive(Debug, Default, Clone, Deserialize)]
struct Counted {
    requests: u64,
    served: u64,
    failed: u64,
    #[serde(default)]
    failures: BTreeMap<String, u64>,
    #[serde(default)]
    pages: BTreeMap<String, u64>,
}

impl Counted {
    fn now(world: &World<'_>) -> Result<Self> {
        let mut all = Self::default();
        for container in ["http1", "h2c"] {
            let log = world.ask(SPACE, &["logs", "customers", "--container", container])?;
            for line in log.lines().filter_map(|line| serde_json::from_str::<Self>(line).ok()) {
                all.requests += line.requests;
                all.served += line.served;
                all.failed += line.failed;
                add(&mut all.failures, line.failures);
                add(&mut all.pages, line.pages);
            }
        }
        Ok(all)
    }

    fn since(mut self, before: &Self) -> Self {
        self.requests -= before.requests;
        self.served -= before.served;
        self.failed -= before.failed;
        for (now, before) in [(&mut self.failures, &before.failures), (&mut self.pages, &before.pages)] {
            for (key, count) in before {
                *now.entry(key.clone()).or_default() -= count;
            }
            now.retain(|_, count| *count > 0);
        }
        self
    }

    /// The share that a version has answered.
    fn share(&self, version: &str) -> f64 {
        let of = self.pages.get(version).copied().unwrap_or(0);
        of as f64 / self.served.max(1) as f64
    }
}

fn add(to: &mut BTreeMap<String, u64>, more: BTreeMap<String, u64>) {
    for (key, count) in more {
        *to.entry(key).or_default() += count;
    }
}

/// What is counted meanwhile; no request may fail.
fn flawless(world: &World<'_>, what: &str, work: impl FnOnce() -> Result<()>) -> Result<Counted> {
    let before = Counted::now(world)?;
    work()?;
    // A line of the customers' is a second old at most.
    sleep(Duration::from_millis(1500));
    let counted = Counted::now(world)?.since(&before);
    demand(counted.requests > 0 && counted.failed == 0, || {
        format!("{what}: {} of {} requests failed: {:?}", counted.failed, counted.requests, counted.failures)
    })?;
    Ok(counted)
}

fn waypoint(world: &World<'_>) -> Result<String> {
    open(world, None)?;
    let told = [
        behind(world)?,
        canary(world)?,
        told::tokens(world)?,
        told::trace(world)?,
        rolled(world)?,
        scaled(world)?,
        without(world)?,
    ];
    close(world)?;
    Ok(told.join("\n"))
}

/// What is to be routed, its customers, and a collector of spans; all of it on one node, if that matters.
fn open(world: &World<'_>, node: Option<&str>) -> Result<()> {
    for file in gateway_api::definitions(world.root)? {
        world.cluster.ask(&["apply", "--server-side", "--filename", &file.to_string_lossy()])?;
    }
    // An earlier case has asked for their end.
    eventually(Duration::from_secs(90), "the namespaces of an earlier case to be gone", || {
        let get = ["get", "namespace", SPACE, told::COLLECTOR, "--ignore-not-found", "--output=name"];
        let left = world.cluster.ask(&get)?;
        Ok(if left.is_empty() { Ok(()) } else { Err(left) })
    })?;
    apply(world, "waypoint", node)?;
    for space in [SPACE, told::COLLECTOR] {
        world.ask(space, &["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
    }
    world.captured(SPACE, 2, Duration::from_secs(20))?;
    customers(world, node)
}

fn close(world: &World<'_>) -> Result<()> {
    world.ask(SPACE, &["delete", "gateway", "wp", "--ignore-not-found"])?;
    pods(world, 0)?;
    world.remove(SPACE);
    world.remove(told::COLLECTOR);
    Ok(())
}

/// Applies a file, its pods on that node.
fn apply(world: &World<'_>, name: &str, node: Option<&str>) -> Result<()> {
    let text = world.manifests(&format!("tests/e2e/{name}.yaml"))?;
    let placed = match node {
        Some(node) => text.replace(
            "\n  terminationGracePeriodSeconds:",
            &format!("\n  nodeName: {node}\n  terminationGracePeriodSeconds:"),
        ),
        None => text,
    };
    world.cluster.apply(&placed)
}

fn customers(world: &World<'_>, node: Option<&str>) -> Result<()> {
    apply(world, "waypoint-customers", node)?;
    world.ask(SPACE, &["wait", "--for=condition=Ready", "pod/customers", "--timeout=60s"]).map(drop)
}

/// New connections go through the waypoint from here on.
fn lead_through(world: &World<'_>) -> Result<()> {
    world.cluster.ask(&["label", "namespace", SPACE, "istio.io/use-waypoint=wp"])?;
    sleep(Duration::from_secs(1));
    Ok(())
}

/// Connections from before are carried on as they began: those that are kept for ever would be never routed.
fn renew_customers(world: &World<'_>, node: Option<&str>) -> Result<()> {
    world.ask(SPACE, &["delete", "pod", "customers"])?;
    customers(world, node)
}

fn gateway() -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        // Of traces those are told of that their callers have begun.
        "metadata": {"name": "wp", "namespace": SPACE, "annotations": {"culvert.dev/trace-sampling": "0"}},
        "spec": {
            "gatewayClassName": "culvert-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    })
}

/// The Gateway is deployed, and the namespace led through it.
fn behind(world: &World<'_>) -> Result<String> {
    let mut took = Duration::ZERO;
    let counted = flawless(world, "the waypoint begins", || {
        world.cluster.apply(&gateway().to_string())?;
        let begin = std::time::Instant::now();
        let wait = ["wait", "--for=condition=Programmed", "gateway/wp", "--timeout=90s"];
        world.ask(SPACE, &wait)?;
        took = begin.elapsed();
        lead_through(world)
    })?;
    renew_customers(world, None)?;
    Ok(format!("Programmed {} after it was applied; {} requests, 0 failed", span(took), counted.requests))
}

/// Sends this share of a hundred to the second version.
fn shift(world: &World<'_>, second: u32) -> Result<()> {
    let to = |name: &str, weight: u32| json!({"name": name, "port": 80, "weight": weight});
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "web", "namespace": SPACE},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "web", "port": 80}],
            "rules": [{"backendRefs": [to("web", 100 - second), to("web-v2", second)]}],
        },
    });
    world.cluster.apply(&route.to_string())
}

fn canary(world: &World<'_>) -> Result<String> {
    let mut told = Vec::new();
    for second in [10, 50, 100] {
        flawless(world, "a route is shifted", || {
            shift(world, second)?;
            sleep(Duration::from_secs(1));
            Ok(())
        })?;
        let counted = flawless(world, "a route holds", || {
            sleep(COUNTED);
            Ok(())
        })?;
        let (share, wanted) = (counted.share("v2"), f64::from(second) / 100.0);
        demand((share - wanted).abs() <= TOLERANCE, || {
            format!("of {} requests {:.1} % went to v2, and not {second} %", counted.served, share * 100.0)
        })?;
        told.push(format!("{second} %: {:.1} % of {}", share * 100.0, counted.served));
    }
    let parents = world.ask(SPACE, &["get", "httproute", "web", "--output=jsonpath={.status.parents}"])?;
    let parents: Value = serde_json::from_str(&parents).context("status.parents of the route")?;
    let conditions = parents[0]["conditions"].as_array().cloned().unwrap_or_default();
    for kind in ["Accepted", "ResolvedRefs"] {
        let holds = conditions.iter().any(|one| one["type"] == kind && one["status"] == "True");
        demand(holds, || format!("the route is not told {kind}: {parents}"))?;
    }
    Ok(format!("canary shifted, observed {}", told.join(", ")))
}

fn rolled(world: &World<'_>) -> Result<String> {
    let counted = flawless(world, "the waypoint is rolled", || {
        world.ask(SPACE, &["rollout", "restart", "deployment/wp"])?;
        world.cluster.rolled_out(SPACE, &["deployment/wp"])?;
        pods(world, 1)
    })?;
    Ok(format!("rolled: {} requests, 0 failed", counted.requests))
}

fn scaled(world: &World<'_>) -> Result<String> {
    let counted = flawless(world, "the waypoint is scaled", || {
        scale(world, 3)?;
        world.cluster.rolled_out(SPACE, &["deployment/wp"])?;
        pods(world, 3)?;
        scale(world, 1)?;
        pods(world, 1)
    })?;
    Ok(format!("scaled to 3 and back: {} requests, 0 failed", counted.requests))
}

fn scale(world: &World<'_>, replicas: usize) -> Result<()> {
    world.ask(SPACE, &["scale", "deployment/wp", &format!("--replicas={replicas}")]).map(drop)
}

/// Waits until there are so many pods, and those that leave are gone.
fn pods(world: &World<'_>, wanted: usize) -> Result<()> {
    let selector = "--selector=gateway.networking.k8s.io/gateway-name=wp";
    let all = || {
        let there = world.cluster.items(&["pods", "--namespace", SPACE, selector])?.len();
        Ok(if there == wanted { Ok(()) } else { Err(format!("{there} pods")) })
    };
    eventually(LEAVES, &format!("{wanted} pods of the waypoint"), all).map(drop)
}

/// Without its pods nothing is let through, and the Gateway says so; with one again everything is.
fn without(world: &World<'_>) -> Result<String> {
    scale(world, 0)?;
    pods(world, 0)?;
    let wait = ["wait", "--for=condition=Programmed=False", "gateway/wp", "--timeout=20s"];
    world.ask(SPACE, &wait)?;
    // What is told of the last second is of before.
    sleep(Duration::from_millis(1500));
    let before = Counted::now(world)?;
    sleep(Duration::from_secs(3));
    let none = Counted::now(world)?.since(&before);
    demand(none.served == 0 && none.failed > 0, || {
        format!("without a waypoint {} requests were served, {} failed", none.served, none.failed)
    })?;
    scale(world, 1)?;
    world.ask(SPACE, &["wait", "--for=condition=Programmed", "gateway/wp", "--timeout=60s"])?;
    sleep(Duration::from_secs(2));
    let again = flawless(world, "the waypoint is back", || {
        sleep(Duration::from_secs(2));
        Ok(())
    })?;
    Ok(format!(
        "without its pods {} calls failed, 0 served; with one again {} of {} served; gone with its Gateway",
        none.failed, again.served, again.requests
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_what_was_counted_meanwhile() {
        let counted = |served, v2| Counted {
            requests: served,
            served,
            pages: [("v1".to_owned(), served - v2), ("v2".to_owned(), v2)].into(),
            ..Counted::default()
        };
        let meanwhile = counted(300, 60).since(&counted(100, 10));
        assert_eq!((meanwhile.served, meanwhile.share("v2"), meanwhile.share("v3")), (200, 0.25, 0.0));
    }
}
