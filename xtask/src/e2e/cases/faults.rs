//! Programs of the mesh are replaced, killed, and away.

use std::{thread::sleep, time::Duration};

use anyhow::{Context, Result};

use super::joining::PODS;
use crate::{
    demo::stage::span,
    e2e::{Case, demand, world::World},
    kind::{
        cluster::{SYSTEM, eventually},
        shop::{Counted, NAMESPACE},
    },
};

/// How long control is away.
const CONTROL_AWAY: Duration = Duration::from_secs(60);
/// ztunnel's drain in this suite, and a little.
pub(super) const DRAIN: Duration = Duration::from_secs(24);
/// Connections of the customers' that never end: two of each customer to each service, and one of each linguist's
/// but UDP's. Either end's ztunnel may cut one.
const KEPT: u64 = 16;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "ztunnel-rolls",
        holds: "ztunnel's DaemonSet rolls under load: no new connection fails, those that never end are cut once",
        long: false,
        ground: false,
        on_nodes: false,
        run: ztunnel_rolls,
    },
    Case {
        name: "agent-rolls",
        holds: "the agent's DaemonSet rolls under load, and no request fails",
        long: false,
        ground: false,
        on_nodes: false,
        run: agent_rolls,
    },
    Case {
        name: "agent-killed",
        holds: "an agent killed by SIGKILL is not noticed",
        long: false,
        ground: false,
        on_nodes: true,
        run: agent_killed,
    },
    Case {
        name: "control-away",
        holds: "control is away for a minute, and no request fails",
        long: false,
        ground: false,
        on_nodes: false,
        run: control_away,
    },
    Case {
        name: "ztunnel-killed",
        holds: "a ztunnel killed by SIGKILL: nothing leaves in plaintext, and the next one serves",
        long: false,
        ground: false,
        on_nodes: true,
        run: ztunnel_killed,
    },
    Case {
        name: "certificates",
        holds: "certificates that live for three minutes are renewed under load, and no request fails",
        long: false,
        ground: false,
        on_nodes: false,
        run: certificates,
    },
];

/// Failures by kept and by new connections.
pub(in crate::e2e) fn split(counted: &Counted) -> (u64, u64) {
    let kept = counted.failures.iter().filter(|(kind, _)| kind.starts_with("kept: request"));
    let kept: u64 = kept.map(|(_, count)| count).sum();
    (kept, counted.failed - kept)
}

fn ztunnel_rolls(world: &World<'_>) -> Result<String> {
    let (took, counted) = world.counted(|| {
        world.ask(world.system, &["rollout", "restart", "daemonset/ztunnel"])?;
        let begin = std::time::Instant::now();
        world.cluster.rolled_out(world.system, &["daemonset/ztunnel"])?;
        let took = begin.elapsed();
        sleep(DRAIN);
        Ok(took)
    })?;
    let (kept, new) = split(&counted);
    demand(new == 0, || format!("{new} on new connections: {:?}", counted.failures))?;
    demand(kept <= 2 * KEPT, || {
        format!("{kept} cuts of {KEPT} connections that never end, with two ends each")
    })?;
    world.captured(NAMESPACE, PODS, Duration::from_secs(20))?;
    Ok(format!(
        "3 nodes in {}; {} requests, {} new connections, 0 of these failed, {} connects over 100 ms; {kept} \
         connections that never end were cut after the drain of 20 s",
        span(took),
        counted.requests,
        counted.connects,
        counted.slow_connects
    ))
}

fn agent_rolls(world: &World<'_>) -> Result<String> {
    let ((), told) = world.flawless(|| {
        world.ask(SYSTEM, &["rollout", "restart", "daemonset/agent"])?;
        world.cluster.rolled_out(SYSTEM, &["daemonset/agent"])
    })?;
    world.captured(NAMESPACE, PODS, Duration::from_secs(20))?;
    Ok(told)
}

/// Ends a program on a node as nothing else does; its pod goes on with the next one.
fn kill(world: &World<'_>, node: &str, program: &str) -> Result<()> {
    let script = format!("pkill -KILL -x {program}");
    world.cluster.on(node, &script).map(drop)
}

fn agent_killed(world: &World<'_>) -> Result<String> {
    let node = world.cluster.workers().next().context("a worker")?;
    let ((), told) = world.flawless(|| {
        kill(world, node, "agent")?;
        sleep(Duration::from_secs(3));
        world.cluster.rolled_out(SYSTEM, &["daemonset/agent"])
    })?;
    world.captured(NAMESPACE, PODS, Duration::from_secs(20))?;
    Ok(told)
}

fn control_away(world: &World<'_>) -> Result<String> {
    let ((), told) = world.flawless(|| {
        world.ask(SYSTEM, &["scale", "deployment/control", "--replicas=0"])?;
        sleep(CONTROL_AWAY);
        world.ask(SYSTEM, &["scale", "deployment/control", "--replicas=1"])?;
        world.cluster.rolled_out(SYSTEM, &["deployment/control"])
    })?;
    let took = world.captured(NAMESPACE, PODS, Duration::from_secs(20))?;
    Ok(format!("{told}; all captured {} after it was back", span(took)))
}

fn ztunnel_killed(world: &World<'_>) -> Result<String> {
    let node = world.cluster.workers().next().context("a worker")?;
    let (seen, counted) = world.counted(|| {
        // The wire of that node, from before the kill until well after.
        let seen = std::thread::scope(|scope| {
            let wire = scope.spawn(|| world.wire(10));
            sleep(Duration::from_secs(1));
            kill(world, node, "ztunnel")?;
            wire.join().map_err(|_| anyhow::anyhow!("listening ended badly"))?
        })?;
        world.cluster.rolled_out(world.system, &["daemonset/ztunnel"])?;
        Ok(seen)
    })?;
    demand(seen.secrets == 0, || format!("the secret was on the wire: {seen:?}"))?;
    let ((), told) = world.flawless(|| {
        sleep(Duration::from_secs(2));
        Ok(())
    })?;
    world.captured(NAMESPACE, PODS, Duration::from_secs(20))?;
    Ok(format!(
        "{} of {} requests failed meanwhile, the secret in none of {} segments; then {told}",
        counted.failed, counted.requests, seen.segments
    ))
}

/// How many certificates control has signed since its start.
fn signed(world: &World<'_>) -> Result<u64> {
    let pods =
        world.ask(SYSTEM, &["get", "pods", "--selector=app.kubernetes.io/name=control", "--output=name"])?;
    let pod = pods.lines().next().context("control has a pod")?.trim_start_matches("pod/");
    let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}:15020/proxy/metrics");
    let metrics = world.cluster.ask(&["get", "--raw", &path])?;
    let count = metrics
        .lines()
        .filter(|line| line.starts_with("culvert_control_certificates_total") && line.contains("issued"));
    Ok(count.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
}

fn certificates(world: &World<'_>) -> Result<String> {
    let before = signed(world)?;
    let ((renewed, took), told) = world.flawless(|| {
        // Each node holds certificates of several accounts, and renews them at half their life.
        eventually(Duration::from_secs(150), "renewed certificates", || {
            let renewed = signed(world)?.saturating_sub(before);
            Ok(if renewed >= 8 { Ok(renewed) } else { Err(format!("{renewed} signed")) })
        })
    })?;
    Ok(format!("{renewed} renewed in {}; {told}", span(took)))
}
