//! Connections that are easy to get wrong: to oneself, to one's own closed port, to a port that one
//! listens on too, between devices of different MTU, into a reader that does not read.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use bed::PodSpec;
use node::{Scene, app, fails, port, same, serve, well};

#[test]
fn a_pod_reaches_others_on_the_port_it_listens_on_itself() -> Result<()> {
    // Every pod runs the server, so the client listens on each port that it calls elsewhere.
    let scene = Scene::start(&[("mesh", "client", "a"), ("mesh", "server", "b")])?;
    let (client, server) = (scene.pod("client"), scene.pod("server"));
    for to in [server.at(port::PEER), server.at6(port::PEER)] {
        let seen = well(app(client, "peer", to)?)?;
        same("who answered", seen["called_as"].as_str(), Some(to.to_string().as_str()))?;
    }
    Ok(())
}

#[test]
fn closed_ports_are_refused_at_once_ones_own_included() -> Result<()> {
    let scene = Scene::start(&[("mesh", "client", "a"), ("mesh", "server", "b")])?;
    let client = scene.pod("client");
    // Own address: the kernel's own answer, not ours.
    fails(app(client, "echo", client.at(7))?, &["refused"])?;
    fails(app(client, "echo", client.at6(7))?, &["refused"])?;
    // Elsewhere the refusal comes after our answer to the handshake.
    fails(app(client, "echo", scene.pod("server").at(7))?, &["refused", "reset", "eof"])?;
    // And the mesh is unharmed by it.
    well(app(client, "echo", scene.pod("server").at(port::ECHO))?)?;
    Ok(())
}

#[test]
fn a_pod_that_calls_its_own_service_may_pick_itself() -> Result<()> {
    let scene = Scene::start_with(&[("mesh", "lonely", "a")], |world| {
        world
            .service(1, "mesh", "lonely", &[("app", "lonely")], &[(80, port::ECHO), (81, port::PEER)])
            .map(drop)
    })?;
    let lonely = scene.pod("lonely");
    for to in ["10.96.0.1:80", "[fd96::1]:80"] {
        well(app(lonely, "echo", to.parse::<SocketAddr>()?)?.args(["--count", "20"]))?;
    }
    well(app(lonely, "short", "10.96.0.1:80".parse()?)?.args(["--count", "500", "--concurrency", "8"]))?;
    Ok(())
}

#[test]
fn devices_of_different_mtu() -> Result<()> {
    let scene = Scene::start(&[("mesh", "server", "b")])?;
    let small = scene.world.pod(PodSpec::new("mesh", "small", "a").mtu(1280))?;
    let jumbo = scene.world.pod(PodSpec::new("mesh", "jumbo", "a").mtu(9000))?;
    let _servers = [serve(&small)?, serve(&jumbo)?];
    bed::report::wait_enrolled(&scene.mesh.nodes, &[&small, &jumbo], true, node::PATIENCE)?;
    let server = scene.pod("server");
    let megabytes = ["--bytes", "20000000"];
    for client in [&small, &jumbo] {
        well(app(client, "stream", server.at(port::SINK))?.args(megabytes))?;
        well(app(client, "stream", server.at6(port::SOURCE))?.args(megabytes).arg("--download"))?;
    }
    well(app(&jumbo, "stream", small.at(port::SINK))?.args(megabytes))?;
    well(app(&small, "stream", jumbo.at(port::SINK))?.args(megabytes))?;
    Ok(())
}

#[test]
fn a_reader_that_waits_gets_everything_and_memory_stays_bounded() -> Result<()> {
    let mut scene = Scene::start(&[("mesh", "client", "a"), ("mesh", "server", "b")])?;
    let before: u64 =
        scene.mesh.nodes.iter().map(|programs| programs.ztunnel.resident()).sum::<Result<u64>>()?;
    let to = scene.pod("server").at(port::SOURCE);
    let client = app(scene.pod("client"), "slow", to)?;
    let mut slow =
        client.args(["--bytes", "400000000", "--rate", "100000000", "--wait", "3"]).spawn("slow")?;
    // While the reader waits, the server sends as much as the path takes up.
    std::thread::sleep(Duration::from_secs(2));
    let during: u64 =
        scene.mesh.nodes.iter().map(|programs| programs.ztunnel.resident()).sum::<Result<u64>>()?;
    let status = slow.wait(Duration::from_secs(60))?;
    anyhow::ensure!(status.success(), "the slow reader: {}", slow.log());
    // Windows of 4 MiB per stream and 16 MiB per connection, on two ztunnels.
    let grown = during.saturating_sub(before);
    anyhow::ensure!(grown < 80 << 20, "the ztunnels grew by {} MB while nobody read", grown >> 20);
    anyhow::ensure!(scene.mesh.on("a").ztunnel.is_running()? && scene.mesh.on("b").ztunnel.is_running()?);
    Ok(())
}
