//! Workloads of every kind, while they come and go.

use std::{thread::sleep, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;

use crate::{
    demo::stage::span,
    e2e::{
        Case,
        cases::joining::PODS,
        demand,
        world::{Client, World, is_captured},
    },
    kind::{cluster::eventually, shop::NAMESPACE},
};

const SPACE: &str = "e2e-workloads";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "rolling",
        holds: "a Deployment rolls under load, and no request fails",
        long: false,
        ground: false,
        on_nodes: false,
        run: rolling,
    },
    Case {
        name: "scaling",
        holds: "a Deployment scales 1 to 30 to 1 under load, and no request fails",
        long: false,
        ground: false,
        on_nodes: false,
        run: scaling,
    },
    Case {
        name: "headless",
        holds: "pods of a StatefulSet are reached by their own names, with mutual TLS",
        long: false,
        ground: false,
        on_nodes: false,
        run: headless,
    },
    Case {
        name: "job",
        holds: "a Job's init container, native sidecar and main container call the mesh, and the Job completes",
        long: false,
        ground: false,
        on_nodes: false,
        run: job,
    },
    Case {
        name: "neighbours",
        holds: "pods of the host network and those that opted out are left alone, and talk with the mesh",
        long: false,
        ground: false,
        on_nodes: false,
        run: neighbours,
    },
    Case {
        name: "dns",
        holds: "a host that only a ServiceEntry knows, and without an address, is found by its name and reached",
        long: false,
        ground: false,
        on_nodes: false,
        run: dns,
    },
    Case {
        name: "host-port",
        holds: "a captured pod is reached by its hostPort, from its own node and from the others",
        long: false,
        ground: false,
        on_nodes: true,
        run: host_port,
    },
];

fn rolling(world: &World<'_>) -> Result<String> {
    let ((), told) = world.flawless(|| {
        world.ask(NAMESPACE, &["rollout", "restart", "deployment/catalog"])?;
        world.cluster.rolled_out(NAMESPACE, &["deployment/catalog"])?;
        settled(world)
    })?;
    Ok(told)
}

/// Nothing of the shop ends any more.
fn settled(world: &World<'_>) -> Result<()> {
    world.captured(NAMESPACE, PODS, Duration::from_secs(30)).map(drop)
}

fn scaling(world: &World<'_>) -> Result<String> {
    let scale = |replicas: usize| -> Result<()> {
        world.ask(NAMESPACE, &["scale", "deployment/catalog", &format!("--replicas={replicas}")])?;
        world.cluster.rolled_out(NAMESPACE, &["deployment/catalog"])
    };
    let (took, told) = world.flawless(|| {
        scale(1)?;
        scale(30)?;
        let took = world.captured(NAMESPACE, PODS + 28, Duration::from_secs(30))?;
        scale(1)?;
        scale(2)?;
        settled(world)?;
        Ok(took)
    })?;
    Ok(format!("30 replicas captured {} after they were ready; {told}", span(took)))
}

fn headless(world: &World<'_>) -> Result<String> {
    world.apply("workloads")?;
    world.cluster.rolled_out(SPACE, &["statefulset/db"])?;
    let names =
        [format!("db-0.db.{SPACE}:9000"), format!("db-1.db.{SPACE}:9000"), format!("db.{SPACE}:9000")];
    let to: Vec<String> = names.iter().map(|name| format!("--to={name}")).collect();
    let mut arguments = vec!["load", "--protocol=client-first", "--seconds=3"];
    arguments.extend(to.iter().map(String::as_str));
    let client = Client {
        namespace: SPACE,
        name: "headless",
        account: "default",
        labels: json!({"app": "headless"}),
        arguments: &arguments,
    };
    let (ok, words) = world.client(&client)?;
    let total = words.lines().last().unwrap_or_default();
    demand(ok, || words.clone())?;
    // Both ends say so: the caller's ztunnel and, of another node, the pod's.
    let carried = carried(world, "headless")?;
    for pod in ["db-0", "db-1"] {
        let seen = carried.lines().any(|line| {
            line.contains(&format!("dst.workload={pod} "))
                && (line.contains("security=mutual_tls") || line.contains("security=same_node"))
        });
        demand(seen, || format!("nothing tells of {pod}:\n{carried}"))?;
    }
    Ok(total.to_owned())
}

/// The lines of connections that a pod began, in the last minute.
fn carried(world: &World<'_>, workload: &str) -> Result<String> {
    // A line is written when the connection has ended.
    sleep(Duration::from_secs(1));
    let selector = "--selector=app.kubernetes.io/name=ztunnel";
    let logs = world.ask(world.system, &["logs", selector, "--since=60s", "--tail=-1"])?;
    let of = format!("src.workload={workload} ");
    Ok(logs.lines().filter(|line| line.contains(&of)).collect::<Vec<_>>().join("\n"))
}

fn job(world: &World<'_>) -> Result<String> {
    world.apply("workloads")?;
    world.ask(SPACE, &["delete", "job", "audit", "--ignore-not-found"])?;
    world.apply("job")?;
    let done = || {
        let path = "--output=jsonpath={.status.conditions[*].type}";
        let conditions = world.ask(SPACE, &["get", "job", "audit", path])?;
        Ok(if conditions.contains("Complete") {
            Ok(())
        } else {
            Err(format!("its conditions: {conditions}"))
        })
    };
    let ((), took) = eventually(Duration::from_secs(60), "the job is complete", done)?;
    let words = world.ask(SPACE, &["logs", "job/audit", "--container=main"])?;
    let main = words.lines().last().context("the main container said nothing")?;
    let pod = world.ask(SPACE, &["get", "pods", "--selector=job-name=audit", "--output=name"])?;
    let pod = pod.trim().trim_start_matches("pod/");
    let carried = carried(world, pod)?;
    let tunnelled = |line: &&str| line.contains("security=mutual_tls") || line.contains("security=same_node");
    let tunnelled = carried.lines().filter(tunnelled).count();
    demand(tunnelled > 0, || format!("no connection of {pod} went by the mesh:\n{carried}"))?;
    Ok(format!("after {}: {main}", span(took)))
}

fn neighbours(world: &World<'_>) -> Result<String> {
    world.apply("workloads")?;
    let ready = ["wait", "--for=condition=Ready", "pod", "--selector=app=outside", "--timeout=60s"];
    world.ask(SPACE, &ready)?;
    let pods = world.cluster.items(&["pods", "--namespace", SPACE, "--selector=app=outside"])?;
    let captured = pods.iter().filter(|pod| is_captured(pod)).count();
    demand(pods.len() == 2 && captured == 0, || format!("{captured} of {} pods are captured", pods.len()))?;
    let address = |name: &str| -> Result<String> {
        world.ask(SPACE, &["get", "pod", name, "--output=jsonpath={.status.podIP}"])
    };
    let (opted_out, host) = (address("opted-out")?, address("host")?);
    let to = [format!("--to={opted_out}:8080"), format!("--to={host}:18080")];
    let call = |name: &str, labels: serde_json::Value, to: &[&str]| -> Result<()> {
        let arguments: Vec<&str> = ["load", "--seconds=3"].iter().chain(to).copied().collect();
        let (ok, words) = world.client(&Client {
            namespace: SPACE,
            name,
            account: "default",
            labels,
            arguments: &arguments,
        })?;
        demand(ok, || format!("{name}: {words}"))
    };
    call("inside", json!({"app": "inside"}), &[&to[0], &to[1]])?;
    let none = json!({"app": "other", "istio.io/dataplane-mode": "none"});
    world.ask(SPACE, &["wait", "--for=condition=Ready", "pod/door", "--timeout=60s"])?;
    let door = format!("--to={}:8080", address("door")?);
    call("other", none, &[&door, &to[0], &to[1]])?;
    Ok("from the mesh to both, from an opted-out pod to the mesh and to both: no request failed".to_owned())
}

fn host_port(world: &World<'_>) -> Result<String> {
    world.apply("workloads")?;
    world.ask(SPACE, &["wait", "--for=condition=Ready", "pod/door", "--timeout=60s"])?;
    let captured = || {
        let pods = world.cluster.items(&["pods", "--namespace", SPACE, "--selector=app=door"])?;
        Ok(if pods.iter().all(is_captured) { Ok(()) } else { Err("not captured".to_owned()) })
    };
    eventually(Duration::from_secs(20), "the pod is captured", captured)?;
    let node = world.ask(SPACE, &["get", "pod", "door", "--output=jsonpath={.status.hostIP}"])?;
    for from in &world.cluster.nodes {
        let script = format!(
            "curl --silent --fail --max-time 5 --output /dev/null --write-out '%{{http_code}} %{{size_download}}' http://{node}:18090/1000"
        );
        let answer = world.cluster.on(from, &script)?;
        // A first line, and the bytes asked for.
        let whole = answer
            .strip_prefix("200 ")
            .and_then(|size| size.parse::<u32>().ok())
            .is_some_and(|size| size > 1000);
        demand(whole, || format!("{from} got {answer:?}"))?;
    }
    Ok(format!("from {} nodes", world.cluster.nodes.len()))
}

fn dns(world: &World<'_>) -> Result<String> {
    world.apply("workloads")?;
    world.ask(SPACE, &["wait", "--for=condition=Ready", "pod/opted-out", "--timeout=60s"])?;
    let address = world.ask(SPACE, &["get", "pod", "opted-out", "--output=jsonpath={.status.podIP}"])?;
    // No resolver of the cluster's knows the name, and the entry names no address: ztunnel answers for both.
    let entry = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": "outside", "namespace": SPACE},
        "spec": {
            "hosts": ["outside.example"],
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080}],
            "resolution": "STATIC",
            "endpoints": [{"address": address}],
        },
    });
    world.cluster.apply(&entry.to_string())?;
    let (ok, words) = world.client(&Client {
        namespace: SPACE,
        name: "asks",
        account: "default",
        labels: json!({"app": "asks"}),
        arguments: &["load", "--to=outside.example:80", "--seconds=3"],
    })?;
    demand(ok, || format!("by the entry's name: {words}"))?;
    Ok(words.lines().last().unwrap_or_default().to_owned())
}
