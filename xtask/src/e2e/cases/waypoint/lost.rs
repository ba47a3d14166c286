//! The node of a waypoint is lost under load, without a word: it is frozen, so that its kernel goes on to take
//! connections which nobody serves.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{Counted, SPACE, close, flawless, gateway, lead_through, open, pods, renew_customers, scale};
use crate::{
    demo::stage::span,
    e2e::{
        cases::long::{docker, recovered},
        demand,
        world::World,
    },
    kind::cluster::{SYSTEM, eventually},
};

/// Until Kubernetes calls a silent node not ready (its grace period is 50 s), and its pods with it.
const NOTICED: Duration = Duration::from_secs(90);
/// From then on until no request fails any more, with the window in which that is seen; what has begun before takes
/// the customers' patience of 5 s.
const SOON: Duration = Duration::from_secs(20);
const WINDOW: Duration = Duration::from_secs(3);

/// A node that does nothing until this is dropped.
struct Frozen<'a>(&'a str);

impl<'a> Frozen<'a> {
    fn freeze(node: &'a str) -> Result<Self> {
        docker("pause", &[node])?;
        Ok(Self(node))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = docker("unpause", &[self.0]) {
            eprintln!("{} stays frozen: {error:#}", self.0);
        }
    }
}

/// The worker where control is, with all but a half of the waypoint, and the other one, which is lost.
fn nodes<'w>(world: &World<'w>) -> Result<[&'w str; 2]> {
    let path = "--output=jsonpath={.items[0].spec.nodeName}";
    let of_control =
        world.ask(SYSTEM, &["get", "pods", "--selector=app.kubernetes.io/name=control", path])?;
    let workers: Vec<&'w str> = world.cluster.workers().collect();
    let stays = workers.iter().find(|node| **node == of_control).context("control is on no worker")?;
    let lost = workers.iter().find(|node| *node != stays).context("a second worker")?;
    Ok([stays, lost])
}

fn is_ready(world: &World<'_>, node: &str) -> Result<bool> {
    let path = "--output=jsonpath={.status.conditions[?(@.type=='Ready')].status}";
    Ok(world.cluster.ask(&["get", "node", node, path])? == "True")
}

/// What is counted in a while.
fn counted(world: &World<'_>, time: Duration) -> Result<Counted> {
    let before = Counted::now(world)?;
    sleep(time);
    Ok(Counted::now(world)?.since(&before))
}

pub(super) fn node_lost(world: &World<'_>) -> Result<String> {
    let [stays, lost] = nodes(world)?;
    open(world, Some(stays))?;
    world.cluster.apply(&gateway().to_string())?;
    world.ask(SPACE, &["wait", "--for=condition=Programmed", "gateway/wp", "--timeout=90s"])?;
    scale(world, 2)?;
    world.cluster.rolled_out(SPACE, &["deployment/wp"])?;
    let places = world.ask(
        SPACE,
        &[
            "get",
            "pods",
            "--selector=gateway.networking.k8s.io/gateway-name=wp",
            "--output=jsonpath={.items[*].spec.nodeName}",
        ],
    )?;
    demand(places.split(' ').any(|node| node == lost), || format!("no waypoint on {lost}: {places}"))?;
    lead_through(world)?;
    renew_customers(world, Some(stays))?;
    flawless(world, "a waypoint on two nodes", || {
        sleep(WINDOW);
        Ok(())
    })?;

    let before = Counted::now(world)?;
    let begin = Instant::now();
    let frozen = Frozen::freeze(lost)?;
    let silent = || {
        let ready = is_ready(world, lost)?;
        Ok(if ready { Err(format!("{lost} is ready")) } else { Ok(()) })
    };
    let ((), noticed) = eventually(NOTICED, "Kubernetes calls the node not ready", silent)?;
    let (again, took) = eventually(SOON, "no request fails any more", || {
        let counted = counted(world, WINDOW)?;
        let is_well = counted.failed == 0 && counted.served > 0;
        Ok(if is_well { Ok(counted) } else { Err(format!("{counted:?}")) })
    })?;
    let all = Counted::now(world)?.since(&before);
    let meanwhile = begin.elapsed();
    // What was on its way to the lost one waits for its customer's patience. Who comes then goes to the other one.
    demand(all.failed * 200 <= all.requests, || format!("more than 0.5 % failed: {all:?}"))?;

    drop(frozen);
    let back = recovered(world)?;
    pods(world, 2)?;
    let told = said(world, stays)?;
    let healed = flawless(world, "the node is back", || {
        sleep(WINDOW);
        Ok(())
    })?;
    close(world)?;
    Ok(format!(
        "{lost} is frozen: not ready after {}, and {} later none of {} requests failed; meanwhile, in {}, {} of {} did, \
         each by its patience of 5 s; ztunnel tells of {told} peers that did not answer\nthe node is back: {back}; {} requests, 0 failed",
        span(noticed),
        span(took),
        again.requests,
        span(meanwhile),
        all.failed,
        all.requests,
        healed.requests
    ))
}

/// How many peers the ztunnel beside the customers says that it has missed.
fn said(world: &World<'_>, node: &str) -> Result<usize> {
    let of_node = format!("--field-selector=spec.nodeName={node}");
    let selector = "--selector=app.kubernetes.io/name=ztunnel";
    let name = world.ask(SYSTEM, &["get", "pods", selector, &of_node, "--output=name"])?;
    let name = name.lines().next().with_context(|| format!("no ztunnel on {node}"))?;
    let log = world.ask(SYSTEM, &["logs", name, "--since=5m"])?;
    let count = log.lines().filter(|line| line.contains("a peer does not answer")).count();
    demand(count > 0, || format!("ztunnel of {node} does not say that a peer did not answer"))?;
    Ok(count)
}
