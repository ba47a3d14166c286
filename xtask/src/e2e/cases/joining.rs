//! The shop opens, the mesh is installed, the shop joins.

use std::{thread::sleep, time::Duration};

use anyhow::{Context, Result};

use super::faults;
use crate::{
    demo::stage::span,
    e2e::{
        Case, demand,
        world::{Earlier, World},
    },
    kind::{
        cluster::{Cluster, SYSTEM, eventually},
        shop::{self, NAMESPACE},
    },
    shell,
};

/// The case that wants an earlier version.
pub(in crate::e2e) const UPGRADE_FROM: &str = "upgrade-from";
/// From the label to the last pod measured, as it is promised.
const PROMISED: Duration = Duration::from_secs(5);
/// … and so that the other cases make sense.
const LIMIT: Duration = Duration::from_secs(20);
/// Certificates of the suite live so long, so that each is renewed under load several times.
pub(super) const CERTIFICATE_LIFETIME: &str = "control.extraArgs={--certificate-lifetime=3m}";

/// Where waypoints send spans: to a collector that the case `waypoint` brings.
const TRACING: &str = "waypoint.tracing.endpoint=http://collector.e2e-collector.svc:4317";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "shop",
        holds: "services and their customers run, without a mesh",
        long: false,
        ground: true,
        on_nodes: false,
        run: shop_opens,
    },
    Case {
        name: "chart",
        holds: "the API server takes every object of the chart as it is, by its own schemas",
        long: false,
        ground: false,
        on_nodes: false,
        run: chart,
    },
    Case {
        name: "install",
        holds: "the mesh is installed beside running pods, which do not notice",
        long: false,
        ground: true,
        on_nodes: false,
        run: install,
    },
    Case {
        name: "label",
        holds: "running pods are captured after the label, and no request fails",
        long: false,
        ground: true,
        on_nodes: false,
        run: label,
    },
    Case {
        name: "label-in-time",
        holds: "the last running pod was captured within 5 s of the label",
        long: false,
        ground: false,
        on_nodes: false,
        run: label_in_time,
    },
    Case {
        name: UPGRADE_FROM,
        holds: "the earlier version is upgraded to this one under load, and no new connection fails",
        long: false,
        ground: false,
        on_nodes: false,
        run: upgrade_from,
    },
    Case {
        name: "new-pods",
        holds: "new pods are captured from their first connection: under STRICT, from here on, none of theirs fails",
        long: false,
        ground: true,
        on_nodes: false,
        run: new_pods,
    },
    Case {
        name: "wire",
        holds: "nothing of the shop can be read between the nodes",
        long: false,
        ground: false,
        on_nodes: true,
        run: wire,
    },
    Case {
        name: "culvert",
        holds: "`culvert check` finds no problem, and `culvert status` names every pod of the shop as captured",
        long: false,
        ground: false,
        on_nodes: false,
        run: culvert,
    },
];

fn shop_opens(world: &World<'_>) -> Result<String> {
    open_shop(world, world.cluster)?;
    let (pods, _) = enough(world.cluster)?;
    let ((), told) = world.flawless(|| {
        sleep(Duration::from_secs(2));
        Ok(())
    })?;
    Ok(format!("{pods} pods; {told}"))
}

/// Everything of the shop, on any cluster.
pub(super) fn open_shop(world: &World<'_>, cluster: &Cluster) -> Result<()> {
    cluster.apply(&world.manifests("deploy/kind/shop.yaml")?)?;
    cluster.rolled_out(NAMESPACE, &["deployment/catalog", "deployment/cart", "deployment/checkout"])?;
    let others = world.manifests("tests/e2e/customers.yaml")?;
    cluster.apply(&others)?;
    cluster.rolled_out(NAMESPACE, &["deployment/stock"])?;
    // Ready is not yet reachable: kube-proxy is told a moment later. Customers that came in that moment come again.
    sleep(Duration::from_secs(3));
    cluster.apply(&world.manifests("deploy/kind/customers.yaml")?)?;
    cluster.ask(&["--namespace", NAMESPACE, "rollout", "restart", "deployment/linguists"])?;
    cluster.rolled_out(NAMESPACE, &["deployment/customers", "deployment/linguists"])
}

/// Waits for the first seconds of all customers, of those only that stay; the number of the shop's pods.
pub(super) fn enough(cluster: &Cluster) -> Result<(usize, Duration)> {
    eventually(Duration::from_secs(40), "word of every customer", || {
        let (pods, _) = shop::pods(cluster)?;
        let counted = shop::counted(cluster)?;
        let ready = pods.len() == PODS && counted.seconds > 2 * CUSTOMERS;
        Ok(if ready {
            Ok(pods.len())
        } else {
            Err(format!("{} pods, {} lines", pods.len(), counted.seconds))
        })
    })
}

/// Three services and customers of two pods each, the stock and the linguists.
pub(in crate::e2e) const PODS: usize = 10;
/// Containers that count.
pub(super) const CUSTOMERS: usize = 7;

fn chart(world: &World<'_>) -> Result<String> {
    let path = world.chart();
    let path = path.to_string_lossy();
    let mut template =
        world.cluster.helm(&["template", "culvert", &path, "--namespace", SYSTEM, "--include-crds"]);
    let version = world.cluster.ask(&["get", "--raw", "/version"])?;
    let version: serde_json::Value = serde_json::from_str(&version).context("the API server's version")?;
    let version = version["gitVersion"].as_str().context("the API server's version")?;
    template.args(["--kube-version", version, "--set", "control.replicas=2"]);
    let objects = shell::output(&mut template, "fill in the chart")?;
    // An object of a namespace is judged only where there is such a namespace.
    let made = world.cluster.ask(&["create", "namespace", SYSTEM])?;
    let judged = ["apply", "--dry-run=server", "--validate=strict", "--filename", "-", "--output=name"];
    let judged = world.cluster.feed(&judged, &objects);
    world.cluster.ask(&["delete", "namespace", SYSTEM])?;
    demand(!made.is_empty(), || "no namespace was made".to_owned())?;
    Ok(format!("{} objects", judged?.lines().count()))
}

fn install(world: &World<'_>) -> Result<String> {
    let Some(earlier) = &world.earlier else {
        let ((), told) = world.flawless(|| world.helm(&[CERTIFICATE_LIFETIME, TRACING]))?;
        return Ok(told);
    };
    let tag = format!("image.tag={}", Earlier::TAG);
    let ((), told) = world.flawless(|| world.helm_of(&earlier.chart, &[CERTIFICATE_LIFETIME, &tag]))?;
    Ok(format!("{}; {told}", earlier.commit))
}

fn upgrade_from(world: &World<'_>) -> Result<String> {
    upgraded(world, &[])
}

/// Upgrades all programs at once, and counts new connections apart from those that never end.
pub(super) fn upgraded(world: &World<'_>, set: &[&str]) -> Result<String> {
    let ((), counted) = world.counted(|| {
        world.helm(&[&[CERTIFICATE_LIFETIME, TRACING], set].concat())?;
        sleep(faults::DRAIN);
        Ok(())
    })?;
    let (kept, new) = faults::split(&counted);
    demand(new == 0, || format!("{new} on new connections: {:?}", counted.failures))?;
    world.captured(NAMESPACE, PODS, Duration::from_secs(20))?;
    let (requests, connects) = (counted.requests, counted.connects);
    Ok(format!(
        "{requests} requests, {connects} new connections, 0 of these failed; {kept} kept ones were cut"
    ))
}

fn label(world: &World<'_>) -> Result<String> {
    let before = shop::identity(world.cluster)?;
    let (took, told) = world.flawless(|| {
        world.label("istio.io/dataplane-mode=ambient")?;
        world.captured(NAMESPACE, PODS, LIMIT)
    })?;
    let _ = world.joined.set(took);
    demand(shop::identity(world.cluster)? == before, || "a pod was made anew, or a container".to_owned())?;
    Ok(format!("{PODS} pods captured after {}; {told}", span(took)))
}

fn label_in_time(world: &World<'_>) -> Result<String> {
    let took = *world.joined.get().context("the shop has joined")?;
    demand(took <= PROMISED, || format!("{PODS} pods took {}", span(took)))?;
    Ok(span(took))
}

/// From here on nothing of the shop takes a call in plaintext: a pod that is not captured fails at once.
const STRICT: &str = r#"{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","metadata":{"name":"strict","namespace":"shop"},"spec":{"mtls":{"mode":"STRICT"}}}"#;

fn new_pods(world: &World<'_>) -> Result<String> {
    // It cuts the connections from before the label, whose owners leave now.
    world.cluster.apply(STRICT)?;
    sleep(Duration::from_secs(2));
    // A customer that ends cuts off nobody; the new ones are counted from their first request.
    for who in ["deployment/customers", "deployment/linguists"] {
        world.ask(NAMESPACE, &["rollout", "restart", who])?;
    }
    world.cluster.rolled_out(NAMESPACE, &["deployment/customers", "deployment/linguists"])?;
    let took = world.captured(NAMESPACE, PODS, Duration::from_secs(20))?;
    enough(world.cluster)?;
    let counted = shop::counted(world.cluster)?;
    Ok(format!("captured {} after they were ready; {}", span(took), counted.demand_flawless()?))
}

fn culvert(world: &World<'_>) -> Result<String> {
    let culvert = |args: &[&str]| world.cluster.culvert(&world.culvert, args);
    // It ends with 1 where there is a problem.
    let checked = shell::output(&mut culvert(&["check"]), "culvert check")?;
    let status = shell::output(&mut culvert(&["status", NAMESPACE, "--output", "json"]), "culvert status")?;
    let status: serde_json::Value = serde_json::from_str(&status).context("culvert status")?;
    let pods = status["pods"].as_array().context("pods of culvert status")?;
    let captured = pods.iter().filter(|pod| pod["state"] == "captured").count();
    demand(pods.len() == PODS && captured == PODS, || format!("{captured} of {}: {status:#}", pods.len()))?;
    let warnings = checked.lines().filter(|line| line.trim_start().starts_with("warning")).count();
    Ok(format!("{captured} pods captured, {warnings} warnings"))
}

fn wire(world: &World<'_>) -> Result<String> {
    let (seen, told) = world.flawless(|| world.wire(4))?;
    demand(seen.secrets == 0 && seen.tls > 0, || format!("{seen:?}"))?;
    Ok(format!(
        "{} segments, {} records of TLS to port 15008, the secret in none; {told}",
        seen.segments, seen.tls
    ))
}
