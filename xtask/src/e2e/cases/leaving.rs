//! The shop leaves the mesh, and the mesh the cluster.

use std::{thread::sleep, time::Duration};

use anyhow::{Context, Result};

use super::{joining::enough, node};
use crate::{
    demo::stage::span,
    e2e::{Case, demand, world::World},
    kind::{
        cluster::{SYSTEM, eventually},
        leftovers, shop,
        shop::NAMESPACE,
    },
    shell,
};

/// The shop's pods without its customers.
const SERVICES: usize = 7;
/// A namespace that is made when the mesh is gone.
const AFTER: &str = "e2e-after";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "unlabel",
        holds: "the label goes, every pod is released, and no request fails",
        long: false,
        ground: false,
        on_nodes: false,
        run: unlabel,
    },
    Case {
        name: "uninstall",
        holds: "the mesh is uninstalled under load: nothing of it is left, and no request fails",
        long: false,
        ground: false,
        on_nodes: true,
        run: uninstall,
    },
    Case {
        name: "without-helm",
        holds: "`culvert install` and `culvert uninstall` do the same without helm, and new pods start afterwards",
        long: false,
        ground: false,
        on_nodes: true,
        run: without_helm,
    },
];

fn unlabel(world: &World<'_>) -> Result<String> {
    // While a namespace leaves, its pods see plaintext for a moment, which STRICT refuses.
    world.ask(NAMESPACE, &["delete", "peerauthentication", "strict", "--ignore-not-found"])?;
    sleep(Duration::from_secs(2));
    let (took, told) = world.flawless(|| {
        world.label("istio.io/dataplane-mode-")?;
        let released = || {
            let (captured, _) = world.shop()?;
            Ok(if captured == 0 { Ok(()) } else { Err(format!("{captured} captured")) })
        };
        let ((), took) = eventually(Duration::from_secs(20), "every pod released", released)?;
        sleep(Duration::from_secs(3));
        Ok(took)
    })?;
    Ok(format!("the last one after {}; {told}", span(took)))
}

fn uninstall(world: &World<'_>) -> Result<String> {
    world.cluster.ask(&["label", "namespace", "--all", "istio.io/dataplane-mode-"])?;
    // Connections that never end were captured, and are carried for ever: their owners begin anew.
    for who in ["deployment/customers", "deployment/linguists"] {
        world.ask(NAMESPACE, &["rollout", "restart", who])?;
    }
    world.cluster.rolled_out(NAMESPACE, &["deployment/customers", "deployment/linguists"])?;
    let pinned = || {
        let pinned = leftovers::on_nodes(world.cluster, "ls /sys/fs/bpf/culvert/pods 2>/dev/null")?;
        Ok(if pinned.is_empty() { Ok(()) } else { Err(pinned) })
    };
    eventually(Duration::from_secs(60), "no pod pinned", pinned)?;
    enough(world.cluster)?;
    let (took, told) = world.flawless(|| {
        let flags = ["uninstall", "culvert", "--namespace", SYSTEM, "--wait"];
        shell::output(&mut world.cluster.helm(&flags), "uninstall the chart")?;
        let gone = || {
            let left = leftovers::of_ours(world.cluster)?;
            Ok(if left.is_empty() { Ok(()) } else { Err(left) })
        };
        eventually(Duration::from_secs(60), "nothing left", gone).map(|((), took)| took)
    })?;
    shop::counted(world.cluster)?.demand_flawless().context("since the customers came again")?;
    Ok(format!(
        "nothing left on {} nodes, {} after helm was done; {told}",
        world.cluster.nodes.len(),
        span(took)
    ))
}

fn without_helm(world: &World<'_>) -> Result<String> {
    let culvert = |args: &[&str]| {
        let what = format!("culvert {}", args[0]);
        shell::output(&mut world.cluster.culvert(&world.culvert, args), &what)
    };
    // What never ends would be waited for.
    for who in ["customers", "linguists"] {
        world.ask(NAMESPACE, &["scale", "deployment", who, "--replicas=0"])?;
    }
    // helm leaves its definitions, and what it made is not taken away by others.
    let definitions = world.cluster.ask(&["get", "customresourcedefinitions", "--output=name"])?;
    for definition in definitions.lines().filter(|name| name.ends_with(".istio.io")) {
        world.cluster.ask(&["delete", definition])?;
    }
    let begin = std::time::Instant::now();
    culvert(&["install", "--pull-policy", "Never"])?;
    let installed = begin.elapsed();
    world.label("istio.io/dataplane-mode=ambient")?;
    world.captured(NAMESPACE, SERVICES, Duration::from_secs(30))?;
    let refused = culvert(&["uninstall"]);
    demand(refused.is_err(), || "an uninstall that would let pods go did not ask".to_owned())?;
    let begin = std::time::Instant::now();
    let words = culvert(&["uninstall", "--release-all", "--purge", "--purge-policies"])?;
    let gone = begin.elapsed();
    let left = leftovers::of_ours(world.cluster)?;
    demand(left.is_empty(), || format!("left behind: {left}\n{words}"))?;
    let definitions = world.cluster.ask(&["get", "customresourcedefinitions", "--output=name"])?;
    demand(!definitions.contains("istio.io"), || format!("left behind: {definitions}"))?;
    node::make(world, AFTER, false)?;
    node::idle(world, AFTER, "after", serde_json::json!({"app": "after"}))?;
    node::runs(world, AFTER, "after", Duration::from_secs(30))?;
    world.remove(AFTER);
    Ok(format!("installed in {}, gone in {}", span(installed), span(gone)))
}
