//! Two nodes: what the wire shows before and after enrollment, and every way in which a connection can
//! begin, go on and end.

use std::{fs, net::SocketAddr};

use anyhow::{Result, ensure};
use node::{PATIENCE, Scene, app, leak::SECRET, port, same, well};

fn scene() -> Result<Scene> {
    Scene::start_with(
        &[("mesh", "client", "a"), ("mesh", "server", "b"), ("plain", "stranger", "b")],
        |world| {
            let ports = [(80, port::ECHO), (81, port::PEER)];
            world.service(1, "mesh", "server", &[("app", "server")], &ports).map(drop)
        },
    )
}

#[test]
fn what_was_readable_without_the_mesh_is_not_with_it() -> Result<()> {
    let scene = scene()?;
    let (client, server) = (scene.pod("client"), scene.pod("server"));
    let talk = |to: SocketAddr| well(app(client, "echo", to)?.args(["--say", SECRET, "--count", "3"]));
    let secrets: &[(&str, &[u8])] = &[("secret", SECRET.as_bytes())];

    let sniffer = scene.world.sniff(secrets)?;
    talk(server.at(port::ECHO))?;
    talk(server.at6(port::ECHO))?;
    let meshed = sniffer.stop()?;
    meshed.only_tunnels()?;
    ensure!(meshed.port(bed::sniff::HBONE).payload > 0, "nothing on 15008: {meshed:?}");
    ensure!(meshed.tls_hellos > 0, "no TLS handshake on 15008: {meshed:?}");

    // The control experiment: the same talk without the mesh is seen by the same sniffer.
    scene.enroll(false)?;
    let plain = || -> Result<Option<bed::Sniffed>> {
        let sniffer = scene.world.sniff(secrets)?;
        talk(server.at(port::ECHO))?;
        talk(server.at6(port::ECHO))?;
        let seen = sniffer.stop()?;
        Ok(Some(seen).filter(|seen| seen.showed("secret").len() == 2))
    };
    let (seen, _) = bed::eventually(PATIENCE, "the un-enrolled pods' talk to be readable", plain)?;
    seen.complete()?;
    same("what crossed on 15008", seen.port(bed::sniff::HBONE).opened, 0)
}

#[test]
fn every_behaviour_is_carried_faithfully_over_both_families() -> Result<()> {
    let scene = scene()?;
    let (client, server) = (scene.pod("client"), scene.pod("server"));
    for at in [|pod: &bed::Pod, port| pod.at(port), |pod: &bed::Pod, port| pod.at6(port)] {
        let to = |port| at(server, port);
        well(app(client, "echo", to(port::ECHO))?.args(["--count", "200", "--size", "1000"]))?;
        well(app(client, "banner", to(port::BANNER))?)?;
        well(app(client, "half-close", to(port::COUNT))?.args(["--bytes", "5000000"]))?;
        well(app(client, "rst", to(port::RESET))?)?;
        well(app(client, "rst", to(port::ECHO))?.arg("--send"))?;
        well(app(client, "stream", to(port::SINK))?.args(["--bytes", "50000000"]))?;
        well(app(client, "stream", to(port::SOURCE))?.args(["--bytes", "50000000", "--download"]))?;
        well(app(client, "slow", to(port::SOURCE))?.args(["--bytes", "20000000", "--rate", "20000000"]))?;
        well(app(client, "short", to(port::ECHO))?.args(["--count", "300", "--concurrency", "16"]))?;
    }
    Ok(())
}

#[test]
fn addresses_are_seen_as_they_are_and_the_caller_is_known_by_its_certificate() -> Result<()> {
    let mut scene = scene()?;
    let since = scene.log_length("b");
    let (client, server) = (scene.pod("client").clone(), scene.pod("server").clone());
    for (to, from, called_as) in [
        (server.at(port::PEER), client.v4(), server.at(port::PEER)),
        (server.at6(port::PEER), client.v6(), server.at6(port::PEER)),
        ("10.96.0.1:81".parse()?, client.v4(), server.at(port::PEER)),
    ] {
        let seen = well(app(&client, "peer", to)?)?;
        let by_server: SocketAddr = seen["seen_by_server"].as_str().unwrap_or_default().parse()?;
        same("the caller's address", by_server.ip(), from)?;
        same("the address called", seen["called_as"].as_str(), Some(called_as.to_string().as_str()))?;
    }
    let inbound =
        |line: &serde_json::Value| line["direction"] == "inbound" && line["dst.workload"] == "server";
    let line = scene.wait_access("b", since, "the call in the access log", inbound)?;
    let identity = line["src.identity"].as_str();
    same("the caller", identity, Some("spiffe://cluster.local/ns/mesh/sa/client"))?;
    same("security", line["security"].as_str(), Some("mutual_tls"))
}

#[test]
fn strangers_and_the_mesh_reach_each_other_in_plain() -> Result<()> {
    let scene = scene()?;
    let (client, server, stranger) = (scene.pod("client"), scene.pod("server"), scene.pod("stranger"));
    well(app(client, "echo", stranger.at(port::ECHO))?)?;
    well(app(stranger, "echo", server.at(port::ECHO))?)?;
    well(app(stranger, "echo", client.at6(port::ECHO))?)?;
    Ok(())
}

#[test]
fn the_metrics_are_as_promtool_wants_them() -> Result<()> {
    let scene = scene()?;
    well(app(scene.pod("client"), "echo", scene.pod("server").at(port::ECHO))?)?;
    for programs in &scene.mesh.nodes {
        let node = &programs.node;
        let metrics = node.metrics()?;
        ensure!(metrics.contains("istio_tcp_connections_opened_total"), "no connection counted: {metrics}");
        fs::write(node.folder().join("metrics.txt"), &metrics)?;
        node.job("promtool").args(["check", "metrics"]).stdin(metrics).check()?;
    }
    Ok(())
}
