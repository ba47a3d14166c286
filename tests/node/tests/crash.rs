//! ztunnel killed with SIGKILL: the wire stays silent, also for what apps write long after, and a new
//! ztunnel takes over.

use std::{io::Write, thread, time::Duration};

use anyhow::Result;
use bed::sniff::Sniffer;
use node::{PATIENCE, Scene, app, fails, outcome, port, well};

const SECRET: &str = "the-safe-opens-at-7-31-88";
/// Seconds; the kernel's default is 60.
const FIN_TIMEOUT: u64 = 1;

#[test]
fn nothing_leaks_after_sigkill_not_even_from_an_idle_connection() -> Result<()> {
    let mut scene =
        Scene::start(&[("mesh", "client", "a"), ("mesh", "server", "b"), ("mesh", "neighbour", "a")])?;
    let (client, server) = (scene.pod("client").clone(), scene.pod("server").clone());
    client.netns().sysctl("net/ipv4/tcp_fin_timeout", &FIN_TIMEOUT.to_string())?;
    let targets = [server.at(port::ECHO), server.at6(port::ECHO), scene.pod("neighbour").at(port::ECHO)];
    let mut idle = Vec::new();
    for to in targets {
        well(app(&client, "echo", to)?)?;
        idle.push(client.netns().connect(to, PATIENCE)?);
    }
    let secrets: &[(&str, &[u8])] = &[("secret", SECRET.as_bytes())];
    let wire = scene.world.sniff(secrets)?;
    // The node's end of the pod's link shows what the wire would not: what never leaves the node.
    let link = Sniffer::both_ways(scene.world.node("a").netns(), client.host_device(), secrets)?;

    scene.mesh.on("a").ztunnel.kill();
    fails(
        app(&client, "echo", server.at(port::ECHO))?.args(["--patience", "1"]),
        &["timeout", "reset", "refused"],
    )?;
    thread::sleep(Duration::from_secs(2 * FIN_TIMEOUT + 1));
    for stream in &mut idle {
        // That the kernel refuses to write at all is as good.
        let _ = stream.write_all(SECRET.as_bytes());
    }
    // Retransmissions come after 200, 400, 800 ms.
    thread::sleep(Duration::from_millis(1700));
    wire.so_far()?.only_tunnels()?;

    let programs = scene.mesh.on("a");
    programs.ztunnel = programs.node.spawn_ztunnel("ztunnel-2", &[])?;
    programs.node.wait_ztunnel(&mut programs.ztunnel)?;
    for to in targets {
        let served = || Ok(Some(outcome(app(&client, "echo", to)?)?).filter(|value| value["ok"] == true));
        bed::eventually(PATIENCE, "the new ztunnel to serve", served)?;
    }
    wire.stop()?.only_tunnels()?;
    let seen = link.stop()?;
    seen.complete()?;
    anyhow::ensure!(seen.showed("secret").is_empty(), "it left the pod: {seen:?}");
    Ok(())
}
