//! A ztunnel that is killed: whether anything leaves a pod in plaintext until the next one serves.

use std::{io::Write, thread, time::Duration};

use anyhow::{Result, ensure};
use bed::{Pod, Process, mesh::NodePrograms, sniff::Sniffer};

use crate::{PATIENCE, Scene, app, fails, outcome, port, well};

/// What may not be seen.
pub const SECRET: &str = "the-safe-opens-at-7-31-88";
/// Seconds; the kernel's default is 60.
const FIN_TIMEOUT: u64 = 1;

/// Kills node a's ztunnel by SIGKILL. Then the wire stays silent, also for what apps of the pod `client` write long after
/// into connections that were idle, until what `next` starts serves.
pub fn nothing_leaks_after_sigkill(
    mut scene: Scene,
    meanwhile: impl FnOnce(&Pod) -> Result<()>,
    next: impl FnOnce(&NodePrograms) -> Result<Process>,
) -> Result<()> {
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
    for to in targets {
        fails(app(&client, "echo", to)?.args(["--patience", "1"]), &["timeout", "reset", "refused"])?;
    }
    meanwhile(&client)?;
    thread::sleep(Duration::from_secs(2 * FIN_TIMEOUT + 1));
    for stream in &mut idle {
        // That the kernel refuses to write at all is as good.
        let _ = stream.write_all(SECRET.as_bytes());
    }
    // Retransmissions come after 200, 400, 800 ms.
    thread::sleep(Duration::from_millis(1700));
    wire.so_far()?.only_tunnels()?;

    let programs = scene.mesh.on("a");
    programs.ztunnel = next(programs)?;
    programs.node.wait_ztunnel(&mut programs.ztunnel)?;
    for to in targets {
        let served = || Ok(Some(outcome(app(&client, "echo", to)?)?).filter(|value| value["ok"] == true));
        bed::eventually(PATIENCE, "the new ztunnel to serve", served)?;
    }
    wire.stop()?.only_tunnels()?;
    let seen = link.stop()?;
    seen.complete()?;
    ensure!(seen.showed("secret").is_empty(), "it left the pod: {seen:?}");
    Ok(())
}
