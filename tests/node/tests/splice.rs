//! Two pods of one node whose agent lets connections be spliced: the bytes go past ztunnel, and everything
//! that ztunnel promises holds all the same.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use node::{PATIENCE, Scene, app, fails, outcome, port, same, well};

const SPLICED: &str = "culvert_ztunnel_spliced_connections_total";

fn scene() -> Result<Scene> {
    let pods = [("mesh", "client", "a"), ("mesh", "intern", "a"), ("mesh", "server", "a")];
    Scene::start_agents(&pods, &["--splice"])
}

/// How many connections node `a` has spliced so far.
fn spliced(scene: &Scene) -> Result<u64> {
    let metrics = scene.world.node("a").metrics()?;
    let count = metrics.lines().find_map(|line| line.strip_prefix(SPLICED)).context("no such metric")?;
    Ok(count.trim().parse()?)
}

fn exchange(stream: &mut TcpStream, message: &[u8]) -> Result<()> {
    stream.write_all(message)?;
    let mut echo = vec![0; message.len()];
    stream.read_exact(&mut echo)?;
    ensure!(echo == message, "another echo");
    Ok(())
}

/// A connection to the echo server that has been spliced.
fn live(scene: &Scene, from: &str) -> Result<TcpStream> {
    let before = spliced(scene)?;
    let to = scene.pod("server").at(port::ECHO);
    let mut stream = scene.pod(from).netns().connect(to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let start = Instant::now();
    while spliced(scene)? == before {
        ensure!(start.elapsed() < PATIENCE, "it is not spliced");
        exchange(&mut stream, b"hello")?;
        thread::sleep(Duration::from_millis(2));
    }
    Ok(stream)
}

fn has_ended(stream: &mut TcpStream) -> Result<()> {
    // A spliced socket that is woken by a reset may say `EAGAIN` first: docs/splice.md.
    for _ in 0..2 {
        match stream.read(&mut [0; 1]) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            other => bail!("it goes on: {other:?}"),
        }
    }
    bail!("it goes on")
}

#[test]
fn every_byte_arrives_and_is_counted_and_ends_are_as_ever() -> Result<()> {
    let mut scene = scene()?;
    let (client, server) = (scene.pod("client").clone(), scene.pod("server").clone());
    let since = scene.log_length("a");
    for to in [server.at(port::ECHO), server.at6(port::ECHO)] {
        let before = spliced(&scene)?;
        well(app(&client, "echo", to)?.args(["--count", "20000"]))?;
        ensure!(spliced(&scene)? > before, "{to} was not spliced");
    }
    let line = scene.wait_access("a", since, "the call", |line| line["dst.workload"] == "server")?;
    same("security", line["security"].as_str(), Some("same_node"))?;
    well(app(&client, "half-close", server.at(port::COUNT))?)?;
    well(app(&client, "rst", server.at(port::RESET))?)?;
    well(app(&client, "rst", server.at(port::ECHO))?.arg("--send"))?;
    well(app(&client, "stream", server.at(port::SINK))?.args(["--bytes", "300000000"]))?;
    well(app(&client, "slow", server.at(port::SOURCE))?)?;
    Ok(())
}

#[test]
fn a_connection_is_not_spliced_before_both_have_spoken() -> Result<()> {
    let scene = scene()?;
    let mut stream = scene.pod("client").netns().connect(scene.pod("server").at(port::ECHO), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    thread::sleep(Duration::from_millis(200));
    ensure!(spliced(&scene)? == 0, "spliced though nobody has spoken");
    exchange(&mut stream, b"hello")?;
    bed::eventually(PATIENCE, "the splice", || {
        Ok(Some(()).filter(|()| spliced(&scene).is_ok_and(|n| n == 1)))
    })?;
    Ok(())
}

#[test]
fn what_went_past_ztunnel_is_in_its_access_log() -> Result<()> {
    let mut scene = scene()?;
    let since = scene.log_length("a");
    let mut stream = live(&scene, "client")?;
    let message = vec![7; 1000];
    for _ in 0..1000 {
        exchange(&mut stream, &message)?;
    }
    drop(stream);
    let whole = |line: &serde_json::Value| line["bytes_sent"].as_u64() >= Some(1_000_000);
    let line = scene.wait_access("a", since, "the call", whole)?;
    ensure!(line["bytes_recv"].as_u64() >= Some(1_000_000), "{line}");
    Ok(())
}

#[test]
fn a_policy_ends_a_spliced_connection_at_once() -> Result<()> {
    let scene = scene()?;
    let mut streams = [live(&scene, "client")?, live(&scene, "intern")?];
    let allow = "selector:\n  matchLabels: {app: server}\naction: ALLOW\nrules:\n- from:\n  - source:\n      \
                 principals: [cluster.local/ns/mesh/sa/client]\n";
    let start = Instant::now();
    scene.world.manifests().authorization_policy("mesh", "only-client", allow)?;
    has_ended(&mut streams[1])?;
    ensure!(start.elapsed() < Duration::from_secs(1), "it took {:?}", start.elapsed());
    for _ in 0..100 {
        exchange(&mut streams[0], b"still allowed")?;
    }
    Ok(())
}

#[test]
fn a_spliced_connection_dies_with_its_ztunnel() -> Result<()> {
    let mut scene = scene()?;
    let mut stream = live(&scene, "client")?;
    scene.mesh.on("a").ztunnel.kill();
    has_ended(&mut stream)?;
    // What is written from now on reaches nobody.
    let start = Instant::now();
    while stream.write_all(b"anybody?").is_ok() {
        ensure!(start.elapsed() < PATIENCE, "it still takes bytes");
        thread::sleep(Duration::from_millis(10));
    }
    let (client, to) = (scene.pod("client").clone(), scene.pod("server").at(port::ECHO));
    fails(app(&client, "echo", to)?.args(["--patience", "1"]), &["timeout", "reset", "refused"])?;
    let programs = scene.mesh.on("a");
    programs.ztunnel = programs.node.spawn_ztunnel("ztunnel-2", &[])?;
    programs.node.wait_ztunnel(&mut programs.ztunnel)?;
    let served = || Ok(Some(outcome(app(&client, "echo", to)?)?).filter(|value| value["ok"] == true));
    bed::eventually(PATIENCE, "the new ztunnel to serve", served)?;
    live(&scene, "client")?;
    Ok(())
}
