//! The capture of a node taken away under a running ztunnel, and put back.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bed::{
    Pod,
    mesh::{AGENT_ADMIN, page, program},
};
use node::{PATIENCE, Scene, app, port, same, well};
use serde_json::Value;

/// How long ztunnel serves what is left of a pod that is gone (its default).
const POD_GRACE: Duration = Duration::from_secs(5);

/// Whether the traffic program's ports are all that is listened on in a pod.
fn only_the_app_listens(pod: &Pod) -> Result<bool> {
    let own: BTreeSet<u16> = (port::ECHO..=port::ONCE).collect();
    Ok(pod.netns().listening()? == own)
}

#[test]
fn uninstalling_makes_ztunnel_let_go_and_a_new_agent_brings_everything_back() -> Result<()> {
    let mut scene =
        Scene::start(&[("mesh", "client", "a"), ("mesh", "neighbour", "a"), ("mesh", "server", "b")])?;
    let (client, neighbour, server) =
        (scene.pod("client").clone(), scene.pod("neighbour").clone(), scene.pod("server").clone());
    let targets = [server.at(port::ECHO), server.at6(port::ECHO), neighbour.at(port::ECHO)];
    for to in targets {
        well(app(&client, "echo", to)?)?;
    }
    ensure!(!only_the_app_listens(&client)?, "ztunnel does not listen in the pod");

    scene.mesh.on("a").agent.terminate(PATIENCE)?;
    let node = scene.world.node("a").clone();
    let uninstall = node
        .job(program("agent")?)
        .args(["uninstall", "--pins"])
        .arg(node.pins())
        .arg("--state")
        .arg(node.folder().join("agent"))
        .arg("--zds-socket")
        .arg(node.zds_socket());
    let done = uninstall.check()?;
    let gone = Instant::now();
    ensure!(done.stdout.contains("2 pods") && done.stderr.is_empty(), "{done:?}");
    for pod in [&client, &neighbour] {
        let alone = || Ok(only_the_app_listens(pod)?.then_some(()));
        bed::eventually(PATIENCE, "ztunnel's listeners to close", alone)?;
    }
    same("pods that ztunnel serves", node.config_dump()?["pods"].as_array().map(Vec::len), Some(0))?;
    ensure!(scene.mesh.on("a").ztunnel.is_running()?, "ztunnel serves on");
    well(app(&client, "echo", neighbour.at(port::ECHO))?)?;

    let programs = scene.mesh.on("a");
    programs.agent = programs.node.spawn_agent("agent-2", &[])?;
    programs.wait_ready()?;
    let measured = || -> Result<Option<()>> {
        let dump: Value = serde_json::from_str(&page(node.netns(), AGENT_ADMIN, "/pods")?)?;
        let pods = dump["pods"].as_array().context("pods in the agent's dump")?;
        let measured = pods.iter().filter(|pod| pod["state"] == "CAPTURE_MEASURED").count();
        Ok((measured == 2).then_some(()))
    };
    bed::eventually(PATIENCE, "the new agent to capture the pods", measured)?;
    let wire = scene.world.sniff(&[])?;
    let mut live = Vec::new();
    for to in targets {
        well(app(&client, "echo", to)?)?;
        live.push(client.netns().connect(to, PATIENCE)?);
    }
    // What ends the pods of before, after their grace, ends nobody of those under the same uid now.
    thread::sleep((POD_GRACE + Duration::from_secs(1)).saturating_sub(gone.elapsed()));
    for stream in &mut live {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"still here?")?;
        let mut answer = [0; 11];
        stream.read_exact(&mut answer)?;
        same("the echo", &answer, b"still here?")?;
    }
    wire.stop()?.only_tunnels()
}
