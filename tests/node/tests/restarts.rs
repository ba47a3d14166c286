//! What restarts under traffic: ztunnel by a successor, control, the agent; and a pod that goes away.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bed::{NodePrograms, Process};
use nix::sys::signal::Signal;
use node::{PATIENCE, Scene, app, outcome, port, same, well};

fn scene() -> Result<Scene> {
    Scene::start(&[("mesh", "client", "a"), ("mesh", "neighbour", "a"), ("mesh", "server", "b")])
}

/// Starts a second ztunnel beside the first (with ports of its own) and waits until it holds the slots.
fn successor(programs: &NodePrograms) -> Result<Process> {
    const READY: &str = "[::]:16021";
    let ports = ["--admin-addr", "none", "--metrics-addr", "none", "--ready-addr", READY];
    let mut next = programs.node.spawn_ztunnel("successor", &ports)?;
    bed::mesh::wait_ready(&mut next, programs.node.netns(), 16021)?;
    Ok(next)
}

fn talk(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"still there?").context("write to a live connection")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).context("read from a live connection")?;
    same("the echo", &answer, b"still there?")
}

fn live(scene: &Scene) -> Result<Vec<TcpStream>> {
    let client = scene.pod("client").netns();
    let targets = [
        scene.pod("server").at(port::ECHO),
        scene.pod("server").at6(port::ECHO),
        scene.pod("neighbour").at(port::ECHO),
    ];
    targets
        .into_iter()
        .map(|to| {
            let mut stream = client.connect(to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            talk(&mut stream)?;
            Ok(stream)
        })
        .collect()
}

#[test]
fn a_successor_takes_the_slots_under_a_thousand_connections_a_second() -> Result<()> {
    let mut scene = scene()?;
    let mut carried = live(&scene)?;
    let to = scene.pod("server").at(port::ECHO);
    let rate = ["--count", "8000", "--rate", "1000", "--concurrency", "512"];
    let mut traffic = app(scene.pod("client"), "short", to)?.args(rate).spawn("traffic")?;
    std::thread::sleep(Duration::from_secs(1));
    let mut successors = Vec::new();
    for name in ["a", "b"] {
        let programs = scene.mesh.on(name);
        successors.push(successor(programs)?);
        programs.ztunnel.signal(Signal::SIGTERM)?;
        std::thread::sleep(Duration::from_millis(1500));
    }
    traffic.wait(Duration::from_secs(60))?;
    let report: serde_json::Value =
        serde_json::from_str(traffic.log().lines().last().context("no report")?).context("the report")?;
    same("connections that failed", &report["failures"], &serde_json::json!({}))?;
    same("connections that succeeded", report["succeeded"].as_u64(), Some(8000))?;
    // What the predecessors carry, they carry on.
    carried.iter_mut().try_for_each(talk)?;
    drop(carried);
    for name in ["a", "b"] {
        scene.mesh.on(name).ztunnel.wait(PATIENCE).context("the predecessor ends once it carries nothing")?;
    }
    Ok(())
}

#[test]
fn control_goes_and_comes_back_and_nobody_notices() -> Result<()> {
    let mut scene = scene()?;
    let mut carried = live(&scene)?;
    scene.mesh.control.kill();
    carried.iter_mut().try_for_each(talk)?;
    let (client, to) = (scene.pod("client").clone(), scene.pod("server").at(port::ECHO));
    well(app(&client, "short", to)?.args(["--count", "200"]))?;
    // An edit while control is away counts when it is back.
    let deny = "selector:\n  matchLabels: {app: server}\naction: DENY\nrules:\n- from:\n  - source:\n      \
                principals: [cluster.local/ns/mesh/sa/client]\n";
    scene.world.manifests().authorization_policy("mesh", "no-client", deny)?;
    well(app(&client, "echo", to)?)?;
    scene.mesh.control = scene.world.start_control()?;
    let refused = || Ok(Some(outcome(app(&client, "echo", to)?)?).filter(|value| value["ok"] == false));
    bed::eventually(PATIENCE, "the policy to be in effect", refused)?;
    talk(&mut carried[2]).context("the connection to the neighbour, whom the policy does not concern")
}

#[test]
fn the_agent_goes_and_comes_back_and_pods_stay_captured() -> Result<()> {
    let mut scene = scene()?;
    let mut carried = live(&scene)?;
    let (client, to) = (scene.pod("client").clone(), scene.pod("server").at(port::ECHO));
    let sniffer = scene.world.sniff(&[])?;
    let programs = scene.mesh.on("a");
    programs.agent.kill();
    well(app(&client, "short", to)?.args(["--count", "200"]))?;
    programs.agent = programs.node.spawn_agent("agent-2", &[])?;
    programs.wait_ready()?;
    well(app(&client, "short", to)?.args(["--count", "200"]))?;
    carried.iter_mut().try_for_each(talk)?;
    sniffer.stop()?.only_tunnels()?;
    // The new agent knows its pods: it can let them go, and take them again.
    scene.enroll(false)?;
    scene.enroll(true)?;
    carried.iter_mut().try_for_each(talk)?;
    well(app(&client, "echo", to)?)?;
    Ok(())
}

#[test]
fn a_pod_deleted_mid_stream_harms_nobody_else() -> Result<()> {
    let scene = scene()?;
    let mut carried = live(&scene)?;
    let neighbour = scene.pod("neighbour").clone();
    scene.world.delete_pod(&neighbour)?;
    let gone = || -> Result<Option<()>> {
        let dump = scene.world.node("a").config_dump()?;
        let pods = dump["pods"].as_array().context("pods in the dump")?;
        Ok(pods.iter().all(|pod| pod["name"] != "neighbour").then_some(()))
    };
    bed::eventually(PATIENCE, "ztunnel to let the deleted pod go", gone)?;
    carried[..2].iter_mut().try_for_each(talk)?;
    let (client, to) = (scene.pod("client"), scene.pod("server").at(port::ECHO));
    well(app(client, "short", to)?.args(["--count", "200"]))?;
    // A successor of the same name and another namespace is enrolled like any other pod.
    let again = scene.world.pod(bed::PodSpec::new("mesh", "neighbour-2", "a"))?;
    let _server = node::serve(&again)?;
    bed::report::wait_enrolled(&scene.mesh.nodes, &[&again], true, PATIENCE)?;
    well(app(client, "echo", again.at(port::ECHO))?)?;
    ensure!(scene.world.node("a").connections().is_ok());
    Ok(())
}
