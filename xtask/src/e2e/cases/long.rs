//! What takes minutes: an API server that is away, nodes that reboot.

use std::{
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{joining, joining::PODS};
use crate::{
    demo::stage::span,
    e2e::{
        Case, demand,
        world::{Client, World},
    },
    kind::{
        cluster::{SYSTEM, eventually},
        shop::NAMESPACE,
    },
    shell,
};

/// How long the API server is away.
const API_AWAY: Duration = Duration::from_secs(60);
/// Until a node that was started again is ready, and its pods run.
const BOOT: Duration = Duration::from_secs(180);

pub(super) const CASES: &[Case] = &[
    Case {
        name: "api-server-away",
        holds: "the API server is away for a minute, and no request fails",
        long: true,
        ground: false,
        on_nodes: true,
        run: api_server_away,
    },
    Case {
        name: "worker-reboots",
        holds: "a worker reboots: no window of plaintext, and its pods are captured again",
        long: true,
        ground: false,
        on_nodes: true,
        run: worker_reboots,
    },
    Case {
        name: "all-reboot",
        holds: "all nodes reboot at once, and come back with every pod captured",
        long: true,
        ground: false,
        on_nodes: true,
        run: all_reboot,
    },
    Case {
        name: "upgrade",
        holds: "the chart is upgraded to images of another tag, all programs at once, and no new connection fails",
        long: true,
        ground: false,
        on_nodes: false,
        run: upgrade,
    },
    Case {
        name: "dual-stack",
        holds: "in a cluster of both families the shop joins, and calls by IPv6 are carried as by IPv4",
        long: true,
        ground: false,
        on_nodes: true,
        run: dual_stack,
    },
];

fn control_plane<'w>(world: &World<'w>) -> Result<&'w str> {
    let nodes = &world.cluster.nodes;
    nodes.iter().find(|node| node.ends_with("control-plane")).map(String::as_str).context("a control plane")
}

fn answers(world: &World<'_>) -> Result<()> {
    eventually(BOOT, "the API server answers", || {
        Ok(world.cluster.ask(&["get", "--raw", "/readyz"]).map(drop).map_err(|error| format!("{error:#}")))
    })
    .map(drop)
}

fn api_server_away(world: &World<'_>) -> Result<String> {
    let node = control_plane(world)?;
    let manifest = "/etc/kubernetes/manifests/kube-apiserver.yaml";
    let ((), told) = world.flawless(|| {
        world.cluster.on(node, &format!("mv {manifest} /tmp/kube-apiserver.yaml"))?;
        sleep(API_AWAY);
        world.cluster.on(node, &format!("mv /tmp/kube-apiserver.yaml {manifest}"))?;
        answers(world)
    })?;
    let took = world.captured(NAMESPACE, PODS, Duration::from_secs(60))?;
    Ok(format!("{told}; all captured {} after it was back", span(took)))
}

pub(super) fn docker(verb: &str, nodes: &[&str]) -> Result<()> {
    shell::output(Command::new("docker").arg(verb).args(nodes), &format!("docker {verb}")).map(drop)
}

/// The mesh and the shop are whole again, and serve.
pub(super) fn recovered(world: &World<'_>) -> Result<String> {
    let begin = Instant::now();
    answers(world)?;
    eventually(BOOT, "every node ready", || {
        let nodes = world.cluster.ask(&["get", "nodes", "--no-headers"])?;
        let ready = nodes.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready")).count();
        Ok(if ready == world.cluster.nodes.len() { Ok(()) } else { Err(nodes) })
    })?;
    world.cluster.rolled_out(SYSTEM, &["deployment/control", "daemonset/agent", "daemonset/ztunnel"])?;
    world.captured(NAMESPACE, PODS, BOOT)?;
    let took = begin.elapsed();
    // Customers look for names first, and wait for them.
    eventually(BOOT, "customers again, and all of them served", || {
        let ((), counted) = world.counted(|| Ok(()))?;
        let served = counted.failed == 0 && counted.seconds >= 3 * joining::CUSTOMERS;
        Ok(if served { Ok(()) } else { Err(format!("{counted:?}")) })
    })?;
    let ((), told) = world.flawless(|| {
        sleep(Duration::from_secs(5));
        Ok(())
    })?;
    Ok(format!("captured again after {}; {told}", span(took)))
}

fn worker_reboots(world: &World<'_>) -> Result<String> {
    let mut workers = world.cluster.workers();
    let (watch, boots) = (workers.next().context("a worker")?, workers.next().context("a second worker")?);
    // All that the rebooted node's pods say to the other worker's goes by that one's wire.
    let seen = std::thread::scope(|scope| {
        let wire = scope.spawn(|| world.wire(60));
        docker("restart", &[boots])?;
        wire.join().map_err(|_| anyhow::anyhow!("listening ended badly"))?
    })?;
    demand(seen.secrets == 0 && seen.tls > 0, || format!("on the wire of {watch}: {seen:?}"))?;
    let told = recovered(world)?;
    Ok(format!("{} segments on the wire, the secret in none; {told}", seen.segments))
}

fn all_reboot(world: &World<'_>) -> Result<String> {
    let mut nodes: Vec<&str> = world.cluster.nodes.iter().map(String::as_str).collect();
    // Docker gives addresses in the order of starting: each node is to have its own again.
    nodes.sort_by_key(|node| address(node).unwrap_or_default());
    docker("kill", &nodes)?;
    docker("start", &nodes)?;
    recovered(world)
}

fn address(node: &str) -> Result<Vec<u8>> {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let text =
        shell::output(Command::new("docker").args(["inspect", "--format", format, node]), "ask for it")?;
    Ok(text.trim().split('.').filter_map(|part| part.parse().ok()).collect())
}

/// The tag under which the images are known a second time.
const NEXT: &str = "next";

fn upgrade(world: &World<'_>) -> Result<String> {
    let mut next = Vec::new();
    for image in &world.images {
        let name = image.split(':').next().context("an image has a name")?;
        let tagged = format!("{name}:{NEXT}");
        docker("tag", &[image, &tagged])?;
        next.push(tagged);
    }
    world.cluster.load(&next)?;
    joining::upgraded(world, &[&format!("image.tag={NEXT}")])
}

fn dual_stack(world: &World<'_>) -> Result<String> {
    let config = world.root.join("deploy/kind/dual-stack.yaml");
    world.elsewhere("dual-stack", "culvert-e2e-dual", config, &[], dual_stack_in)
}

fn dual_stack_in(world: &World<'_>) -> Result<String> {
    world.helm(&[])?;
    world.apply("dual-stack")?;
    let space = "e2e-dual";
    world.cluster.rolled_out(space, &["deployment/page"])?;
    let took = world.captured(space, 2, Duration::from_secs(30))?;
    let get =
        |path: &str| world.ask(space, &["get", "service", "page", &format!("--output=jsonpath={path}")]);
    let addresses = get("{.spec.clusterIPs[*]}")?;
    let mut told = format!("captured after {}", span(took));
    for (number, address) in addresses.split(' ').enumerate() {
        let to =
            if address.contains(':') { format!("--to=[{address}]:80") } else { format!("--to={address}:80") };
        let (ok, words) = world.client(&Client {
            namespace: space,
            name: &format!("caller-{number}"),
            account: "default",
            labels: serde_json::json!({"app": "caller"}),
            arguments: &["load", &to, "--seconds=3"],
        })?;
        demand(ok, || format!("to {address}: {words}"))?;
        told = format!("{told}\n{address}: {}", words.lines().last().unwrap_or_default());
    }
    demand(addresses.contains(':') && addresses.contains('.'), || {
        format!("the service has only {addresses}")
    })?;
    let logs = world
        .ask(SYSTEM, &["logs", "--selector=app.kubernetes.io/name=ztunnel", "--since=60s", "--tail=-1"])?;
    for (number, address) in addresses.split(' ').enumerate() {
        let caller = format!("src.workload=caller-{number} ");
        let family = if address.contains(':') { "dst.addr=[" } else { "dst.addr=10." };
        let tunnelled = logs.lines().any(|line| {
            line.contains(&caller)
                && line.contains(family)
                && (line.contains("security=mutual_tls") || line.contains("security=same_node"))
        });
        demand(tunnelled, || format!("no ztunnel tells that it carried {caller}to {address}:\n{logs}"))?;
    }
    Ok(told)
}
