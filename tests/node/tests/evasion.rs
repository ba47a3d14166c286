//! A pod whose processes have NET_ADMIN and NET_RAW, and want out: nothing of theirs leaves the node but
//! through ztunnel.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::{Job, Pod, mesh::program, sniff::Sniffer};
use node::{PATIENCE, Scene, leak::SECRET, outcome, port, well};
use serde_json::Value;

/// The mark of packets that were turned round, as the kernel programs set it.
const TURNED_MARK: u32 = 0x0c01_5e27;
/// The mark by which a foreign CNI plugin's rules know a proxy's own packets.
const FOREIGN_MARK: u32 = 0x539;
/// Where nobody listens.
const NOWHERE: u16 = 7777;

/// A command with these two capabilities and no other, in a pod.
fn intruder(pod: &Pod, program: impl Into<PathBuf>) -> Job {
    let few = ["--bounding-set=-all,+net_admin,+net_raw", "--inh-caps=-all", "--"];
    pod.job("setpriv").args(few).arg(program.into())
}

fn echo(pod: &Pod, to: SocketAddr) -> Result<Job> {
    let job = intruder(pod, program("app")?);
    Ok(job.args(["echo", "--to", &to.to_string(), "--say", SECRET]))
}

/// A command of iproute2 that may find nothing to do.
fn attempt(pod: &Pod, line: &str) -> Result<bool> {
    let mut words = line.split(' ');
    let job = intruder(pod, words.next().context("a command")?).args(words);
    Ok(job.run()?.success())
}

/// Frames with the secret, over both families, to a port of `to` where nobody listens.
fn smuggle(scene: &Scene, pod: &Pod, to: &Pod, bypass: bool) -> Result<()> {
    let node = scene.world.node(&pod.spec().node);
    let link = node.job("ip").args(["-o", "link", "show", "dev", pod.host_device()]).check()?;
    let gateway = link.stdout.split(' ').skip_while(|word| *word != "link/ether").nth(1);
    let gateway = gateway.with_context(|| format!("no hardware address in {:?}", link.stdout))?;
    for (from, to) in [(pod.at(40_000), to.at(NOWHERE)), (pod.at6(40_000), to.at6(NOWHERE))] {
        let (from, to) = (from.to_string(), to.to_string());
        let job = intruder(pod, program("app")?).args(["smuggle", "--from", &from, "--to", &to]);
        let job = job.args(["--gateway", gateway, "--say", SECRET]);
        well(if bypass { job.arg("--bypass") } else { job })?;
    }
    Ok(())
}

/// Waits until a sniffer has seen the secret on that many flows.
fn shown(sniffer: &Sniffer, flows: usize) -> Result<()> {
    let seen = || Ok((sniffer.so_far()?.showed("secret").len() >= flows).then_some(()));
    bed::eventually(PATIENCE, "the secret to be seen", seen)?;
    Ok(())
}

#[test]
fn net_admin_and_net_raw_are_no_way_out() -> Result<()> {
    let pods = [("mesh", "intruder", "a"), ("mesh", "server", "b"), ("plain", "stranger", "a")];
    let scene = Scene::start(&pods)?;
    let (pod, server) = (scene.pod("intruder"), scene.pod("server"));
    let secrets: &[(&str, &[u8])] = &[("secret", SECRET.as_bytes())];

    // The control experiment: the same frames of a pod that is not in the mesh do cross the wire.
    let wire = scene.world.sniff(secrets)?;
    smuggle(&scene, scene.pod("stranger"), server, true)?;
    shown(&wire, 2).context("frames of a pod outside the mesh")?;
    wire.stop()?.complete()?;

    let wire = scene.world.sniff(secrets)?;
    let link = Sniffer::both_ways(scene.world.node("a").netns(), pod.host_device(), secrets)?;
    let targets = [server.at(port::ECHO), server.at6(port::ECHO)];

    for to in targets {
        well(echo(pod, to)?.args(["--mark", &FOREIGN_MARK.to_string()]))?;
        // Our own mark leads to a route within the pod; what comes of it is not the point.
        outcome(echo(pod, to)?.args(["--mark", &TURNED_MARK.to_string(), "--patience", "2"]))?;
    }
    wire.so_far()?.only_tunnels().context("after forged marks")?;

    smuggle(&scene, pod, server, false)?;
    wire.so_far()?.only_tunnels().context("after frames through the device's hooks")?;
    ensure!(link.so_far()?.showed("secret").is_empty(), "frames passed the hooks in the pod");
    smuggle(&scene, pod, server, true)?;
    shown(&link, 2).context("frames past the hooks reach the node's end of the link")?;
    wire.so_far()?.only_tunnels().context("after frames past the device's hooks")?;

    // A clsact of one's own sits at the same place as our hooks, and takes nothing along when it goes.
    ensure!(attempt(pod, "tc qdisc add dev eth0 clsact")?, "the intruder has NET_ADMIN");
    for at in ["clsact", "root", "ingress"] {
        attempt(pod, &format!("tc qdisc del dev eth0 {at}"))?;
    }
    for to in targets {
        well(echo(pod, to)?)?;
    }
    wire.so_far()?.only_tunnels().context("after the queueing disciplines are gone")?;

    for family in ["-4", "-6"] {
        ensure!(attempt(pod, &format!("ip {family} rule del fwmark {TURNED_MARK}"))?, "no rule to delete");
    }
    for to in targets {
        // Unless the agent has looked after it already, in vain.
        outcome(echo(pod, to)?.args(["--patience", "1"]))?;
    }
    smuggle(&scene, pod, server, true)?;
    // Retransmissions come after 1 s.
    std::thread::sleep(Duration::from_millis(1500));
    wire.so_far()?.only_tunnels().context("after the rule is gone")?;
    for to in targets {
        let served = || Ok(Some(outcome(echo(pod, to)?)?).filter(|value: &Value| value["ok"] == true));
        bed::eventually(PATIENCE, "the agent to set the rule again", served)?;
    }
    let seen = wire.stop()?;
    seen.only_tunnels()?;
    ensure!(seen.port(bed::sniff::HBONE).payload > 0, "nothing crossed at all: {seen:?}");
    link.stop()?.complete()
}
