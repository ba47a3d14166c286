//! The CNI plugin: a pod of the mesh starts captured, or not at all.

use std::{thread::sleep, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::joining::PODS;
use crate::{
    demo::stage::span,
    e2e::{
        Case, demand,
        world::{Client, World},
    },
    image,
    kind::{
        cluster::{SYSTEM, eventually},
        leftovers,
        shop::NAMESPACE,
    },
};

const SPACE: &str = "e2e-start";
const OTHER: &str = "e2e-start-plain";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "conflist",
        holds: "a CNI configuration that somebody rewrites is repaired, and new pods are captured from their start",
        long: false,
        ground: false,
        on_nodes: true,
        run: conflist,
    },
    Case {
        name: "static-pod",
        holds: "a static pod of the mesh, which its node knows by another uid than the API server, is captured",
        long: false,
        ground: false,
        on_nodes: true,
        run: static_pod,
    },
    Case {
        name: "agent-away",
        holds: "without an agent pods of the mesh and of unknown namespaces wait and say why, others start and run",
        long: false,
        ground: false,
        on_nodes: false,
        run: agent_away,
    },
];

/// A pod that does nothing but run.
pub(super) fn idle(world: &World<'_>, namespace: &str, name: &str, labels: Value) -> Result<()> {
    world.cluster.apply(&pod(namespace, name, labels).to_string())
}

fn pod(namespace: &str, name: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": labels },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "app",
                "image": image::name(image::TRAFFIC),
                "imagePullPolicy": "Never",
                "args": ["http", "--port=8080"],
            }],
        },
    })
}

pub(super) fn make(world: &World<'_>, namespace: &str, meshed: bool) -> Result<()> {
    let mode = if meshed { "ambient" } else { "none" };
    world.cluster.apply(&format!(
        r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{{"name":"{namespace}","labels":{{"istio.io/dataplane-mode":"{mode}"}}}}}}"#
    ))?;
    // Its first service account is made a moment later, and a pod wants one.
    eventually(Duration::from_secs(20), "the namespace's service account", || {
        let found = world
            .ask(namespace, &["get", "serviceaccount", "default", "--ignore-not-found", "--output=name"])?;
        Ok(if found.is_empty() { Err("none".to_owned()) } else { Ok(()) })
    })
    .map(drop)
}

fn phase(world: &World<'_>, namespace: &str, name: &str) -> Result<String> {
    world.ask(namespace, &["get", "pod", name, "--output=jsonpath={.status.phase}"])
}

pub(super) fn runs(world: &World<'_>, namespace: &str, name: &str, limit: Duration) -> Result<Duration> {
    let ask = || {
        let phase = phase(world, namespace, name)?;
        Ok(if phase == "Running" { Ok(()) } else { Err(phase) })
    };
    eventually(limit, &format!("{namespace}/{name} runs"), ask).map(|((), took)| took)
}

fn conflist(world: &World<'_>) -> Result<String> {
    let folder = "/etc/cni/net.d";
    let entries = || leftovers::on_nodes(world.cluster, &format!("grep -l culvert-cni -r {folder}"));
    let before = entries()?.lines().count();
    demand(before == world.cluster.nodes.len(), || format!("{before} nodes have the plugin's entry"))?;
    let (took, told) = world.flawless(|| {
        // As another CNI's installer does: the file as it was before us, renamed into place.
        for node in &world.cluster.nodes {
            let file = world.cluster.on(node, &format!("ls {folder}/*.conflist | head -1"))?;
            let file = file.trim();
            let mut list: Value =
                serde_json::from_str(&world.cluster.on(node, &format!("cat {file}"))?).context("the list")?;
            let plugins = list["plugins"].as_array_mut().context("plugins of the list")?;
            plugins.retain(|plugin| plugin["type"] != "culvert-cni");
            let script = format!("cat > /tmp/conflist <<'END' && mv /tmp/conflist {file}\n{list:#}\nEND");
            world.cluster.on(node, &script)?;
        }
        let repaired = || {
            let now = entries()?.lines().count();
            Ok(if now == before { Ok(()) } else { Err(format!("{now} of {before} nodes have the entry")) })
        };
        eventually(Duration::from_secs(15), "the entries are back", repaired).map(|((), took)| took)
    })?;
    make(world, SPACE, true)?;
    // The shop takes nothing in plaintext: not captured from its start, its first connections would fail.
    let (ok, words) = world.client(&Client {
        namespace: SPACE,
        name: "after",
        account: "default",
        labels: json!({"app": "after"}),
        arguments: &["load", "--to=catalog.shop:80", "--seconds=2"],
    })?;
    demand(ok, || format!("a pod that started afterwards: {words}"))?;
    world.remove(SPACE);
    Ok(format!("repaired on {before} nodes after {}; {told}", span(took)))
}

fn static_pod(world: &World<'_>) -> Result<String> {
    let (space, node) = ("e2e-static", world.cluster.workers().next().context("a worker")?);
    make(world, space, true)?;
    // The kubelet reads the folder every twenty seconds, or when something in it changes.
    let file = "/etc/kubernetes/manifests/culvert-e2e.json";
    let pod = pod(space, "static", json!({"app": "static"}));
    world.cluster.on(node, &format!("cat > {file} <<'END'\n{pod}\nEND"))?;
    let captured = world.captured(space, 1, Duration::from_secs(60));
    let known = || -> Result<String> {
        let uids = "jsonpath={.items[*].metadata.annotations.kubernetes\\.io/config\\.mirror} {.items[*].metadata.uid}";
        world.ask(space, &["get", "pods", &format!("--output={uids}")])
    };
    let uids = known();
    // The pod goes with its file, not with its namespace.
    world.cluster.on(node, &format!("rm {file}"))?;
    let took = captured?;
    let uids = uids?;
    demand(uids.split(' ').count() == 2, || format!("no static pod: {uids}"))?;
    let gone = || {
        let left = world.ask(space, &["get", "pods", "--output=name"])?;
        Ok(if left.is_empty() { Ok(()) } else { Err(left) })
    };
    eventually(Duration::from_secs(60), "the static pod ends", gone)?;
    world.remove(space);
    Ok(format!("captured {} after its file was written", span(took)))
}

fn agent_away(world: &World<'_>) -> Result<String> {
    let (meshed, plain, new) = ("e2e-away", OTHER, "e2e-start-new");
    make(world, meshed, true)?;
    make(world, plain, false)?;
    // The agents have heard of both, and told the plugin's file.
    sleep(Duration::from_secs(3));
    let nowhere = r#"{"spec":{"template":{"spec":{"nodeSelector":{"culvert.dev/e2e":"nowhere"}}}}}"#;
    let back = r#"{"spec":{"template":{"spec":{"nodeSelector":{"culvert.dev/e2e":null}}}}}"#;
    let patch = |patch: &str| {
        world.ask(SYSTEM, &["patch", "daemonset", "agent", "--type=strategic", "--patch", patch])
    };
    let (reason, told) = world.flawless(|| {
        patch(nowhere)?;
        eventually(Duration::from_secs(60), "no agent", || {
            let pods = world.cluster.items(&[
                "pods",
                "--namespace",
                SYSTEM,
                "--selector=app.kubernetes.io/name=agent",
            ])?;
            Ok(if pods.is_empty() { Ok(()) } else { Err(format!("{} agents", pods.len())) })
        })?;
        let outcome = (|| {
            idle(world, plain, "outside", json!({"app": "outside"}))?;
            idle(world, meshed, "inside", json!({"app": "inside"}))?;
            runs(world, plain, "outside", Duration::from_secs(30))?;
            let reason = || {
                let events =
                    world.ask(meshed, &["get", "events", "--output=jsonpath={.items[*].message}"])?;
                let at = events.find("culvert-cni");
                Ok(at.map(|at| events[at..].chars().take(240).collect::<String>()).ok_or(events))
            };
            let (reason, _) = eventually(Duration::from_secs(30), "an event that says why", reason)?;
            let waits = phase(world, meshed, "inside")?;
            demand(waits == "Pending", || format!("the pod of the mesh is {waits}"))?;
            // Nobody on the node has heard of it, so it may be in the mesh.
            make(world, new, false)?;
            idle(world, new, "unknown", json!({"app": "unknown"}))?;
            let told = || {
                let events = world.ask(new, &["get", "events", "--output=jsonpath={.items[*].message}"])?;
                let known = events.contains(&format!("namespace {new} is not known on this node"));
                Ok(if known { Ok(()) } else { Err(events) })
            };
            eventually(Duration::from_secs(30), "an event about the unknown namespace", told)?;
            Ok(reason)
        })();
        patch(back)?;
        world.cluster.rolled_out(SYSTEM, &["daemonset/agent"])?;
        outcome
    })?;
    let took = runs(world, meshed, "inside", Duration::from_secs(60)).context("once the agent is back")?;
    world.captured(meshed, 1, Duration::from_secs(20))?;
    runs(world, new, "unknown", Duration::from_secs(60)).context("once the agent knows its namespace")?;
    world.captured(NAMESPACE, PODS, Duration::from_secs(20))?;
    for namespace in [meshed, plain, new] {
        world.remove(namespace);
    }
    Ok(format!("\"{reason}\"\nstarted {} after the agents were back; {told}", span(took)))
}
