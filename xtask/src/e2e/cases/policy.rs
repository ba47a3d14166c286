//! Who may talk to whom, and that the kubelet always may.

use std::{thread::sleep, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    demo::stage::span,
    e2e::{
        Case, demand,
        world::{Client, World},
    },
    kind::cluster::eventually,
};

const PROBES: &str = "e2e-probes";
const POLICY: &str = "e2e-policy";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "probes",
        holds: "under STRICT the kubelet's HTTP, TCP, gRPC and exec probes pass",
        long: false,
        ground: false,
        on_nodes: false,
        run: probes,
    },
    Case {
        name: "strict",
        holds: "under STRICT a call from outside of the mesh is refused, and one of the node that is no probe",
        long: false,
        ground: false,
        on_nodes: true,
        run: strict,
    },
    Case {
        name: "authorization",
        holds: "an AuthorizationPolicy by service account lets one in, and refuses the other by name",
        long: false,
        ground: false,
        on_nodes: false,
        run: authorization,
    },
];

fn restarts(world: &World<'_>) -> Result<(usize, usize, i64)> {
    let pods = world.cluster.items(&["pods", "--namespace", PROBES, "--selector=app=probed"])?;
    let ready = |pod: &&Value| pod["status"]["containerStatuses"][0]["ready"] == Value::Bool(true);
    let restarts = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_i64();
    Ok((pods.len(), pods.iter().filter(ready).count(), pods.iter().filter_map(restarts).sum()))
}

fn probes(world: &World<'_>) -> Result<String> {
    world.apply("probes")?;
    let all = || {
        let (pods, ready, _) = restarts(world)?;
        Ok(if pods == 4 && ready == 4 { Ok(()) } else { Err(format!("{ready} of {pods} ready")) })
    };
    let (_, took) = eventually(Duration::from_secs(60), "four pods ready", all)?;
    world.captured(PROBES, 4, Duration::from_secs(20))?;
    // Ten probes of each, while they are captured: a single one that failed would make a pod unready.
    for _ in 0..10 {
        sleep(Duration::from_secs(1));
        let (pods, ready, restarts) = restarts(world)?;
        demand(ready == pods && restarts == 0, || format!("{ready} of {pods} ready, {restarts} restarts"))?;
    }
    Ok(format!("4 pods, all ready {} after they were made, and for 10 s more", span(took)))
}

/// How often a client failed that was served nothing at all.
pub(in crate::e2e) fn refused(words: &str) -> Option<u64> {
    let total: Value = serde_json::from_str(words.lines().last()?).ok()?;
    let failed = total["failed"].as_u64()?;
    (total["served"].as_u64()? == 0 && failed > 0).then_some(failed)
}

/// What curl's status says of a node's call to the NodePort: 200 bytes of a page, or how it was refused.
fn by_node_port(world: &World<'_>, from: &str, to: &str, port: &str) -> Result<(i32, String)> {
    let script = format!(
        "curl --silent --max-time 5 --output /dev/null --write-out '%{{http_code}}' http://{to}:{port}/10; echo \" $?\""
    );
    let answer = world.cluster.on(from, &script)?;
    let (code, status) = answer.trim().rsplit_once(' ').context("curl says how it ended")?;
    Ok((status.parse().context("curl's status")?, code.to_owned()))
}

fn mode(world: &World<'_>, mode: &str) -> Result<()> {
    let patch = format!(r#"{{"spec":{{"mtls":{{"mode":"{mode}"}}}}}}"#);
    world
        .ask(PROBES, &["patch", "peerauthentication", "default", "--type=merge", "--patch", &patch])
        .map(drop)
}

fn strict(world: &World<'_>) -> Result<String> {
    world.apply("probes")?;
    world.captured(PROBES, 4, Duration::from_secs(60))?;
    let call = |namespace: &str, name: &str| {
        world.client(&Client {
            namespace,
            name,
            account: "default",
            labels: json!({"app": name}),
            arguments: &["load", "--to=probed.e2e-probes:80", "--seconds=2", "--clients=2"],
        })
    };
    let (ok, words) = call(PROBES, "inside")?;
    demand(ok, || format!("a caller of the mesh: {words}"))?;
    let (ok, words) = call("e2e-outside", "outside")?;
    let outside = refused(&words);
    demand(!ok && outside.is_some(), || format!("a caller from outside was served: {words}"))?;
    let port =
        world.ask(PROBES, &["get", "service", "probed", "--output=jsonpath={.spec.ports[0].nodePort}"])?;
    let ways: Vec<(&str, &str)> = world
        .cluster
        .workers()
        .flat_map(|from| world.cluster.nodes.iter().map(move |to| (from, to.as_str())))
        .collect();
    // First that these ways lead to the pods at all: without STRICT they are served.
    mode(world, "PERMISSIVE")?;
    for (from, to) in &ways {
        eventually(Duration::from_secs(20), "a NodePort that serves", || {
            let (status, code) = by_node_port(world, from, to, &port)?;
            Ok(if status == 0 && code == "200" { Ok(()) } else { Err(format!("curl {status}, {code}")) })
        })?;
    }
    mode(world, "STRICT")?;
    // Through kube-proxy, which masquerades: it arrives from a node's address, as a probe does.
    for (from, to) in &ways {
        eventually(Duration::from_secs(20), &format!("{from} refused by {to}'s NodePort"), || {
            let (status, code) = by_node_port(world, from, to, &port)?;
            // An empty answer, or a reset.
            Ok(if matches!(status, 52 | 56) { Ok(()) } else { Err(format!("curl {status}, {code}")) })
        })?;
    }
    Ok(format!(
        "{} calls from outside failed, none was served; {} ways by NodePort from nodes: served without STRICT, reset with it",
        outside.unwrap_or_default(),
        ways.len()
    ))
}

fn authorization(world: &World<'_>) -> Result<String> {
    world.apply("authorization")?;
    world.ask(POLICY, &["wait", "--for=condition=Ready", "pod/vault", "--timeout=60s"])?;
    world.captured(POLICY, 1, Duration::from_secs(20))?;
    let call = |account: &str| {
        world.client(&Client {
            namespace: POLICY,
            name: account,
            account,
            labels: json!({"app": account}),
            arguments: &["load", "--to=vault.e2e-policy:80", "--seconds=3", "--clients=2"],
        })
    };
    let (ok, words) = call("friend")?;
    demand(ok, || format!("the friend was refused: {words}"))?;
    let friend = words.lines().last().unwrap_or_default().to_owned();
    let (ok, words) = call("stranger")?;
    demand(!ok && refused(&words).is_some(), || format!("the stranger was served: {words}"))?;
    let selector = "--selector=app.kubernetes.io/name=ztunnel";
    let logs = world.ask(world.system, &["logs", selector, "--since=60s", "--tail=-1"])?;
    // Istio's writes values in quotes.
    let logs = logs.replace('"', "");
    let named = logs.lines().find(|line| {
        line.contains("direction=inbound") && line.contains("sa/stranger") && line.contains("error=")
    });
    let named = named.map(|line| line.split("error=").nth(1).unwrap_or_default().to_owned());
    demand(named.is_some(), || "no line of the access log names the stranger and why".to_owned())?;
    world.remove(POLICY);
    Ok(format!("friend: {friend}\nstranger: error={}", named.unwrap_or_default()))
}
