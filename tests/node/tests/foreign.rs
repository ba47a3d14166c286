//! `agent --foreign-ztunnel`: a ztunnel that knows nothing of our slots and of our mark on sockets, on its
//! fixed ports and with its packet mark. Ours plays it.

use std::{io::Write, net::IpAddr, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use bed::sniff::HBONE;
use nix::sys::signal::Signal;
use node::{
    PATIENCE, Scene, app,
    dns::{A, Resolver, addresses, ask, odd_answer, query, read_framed, write_framed},
    fails,
    leak::{SECRET, nothing_leaks_after_sigkill},
    port, same, well,
};

/// Handshakes that may be under way on two nodes when a listener closes.
const HALF_OPEN: u64 = 16;

const PODS: [(&str, &str, &str); 4] = [
    ("mesh", "client", "a"),
    ("mesh", "neighbour", "a"),
    ("mesh", "server", "b"),
    ("plain", "stranger", "b"),
];

/// That the programs under test are what this test is about.
fn is_foreign(scene: &Scene, pod: &str) -> Result<()> {
    let listening = scene.pod(pod).job("ss").args(["-Htln"]).check()?.stdout;
    for port in [15001, 15006, 15008, 15053] {
        ensure!(listening.contains(&format!(":{port} ")), "nobody listens on {port}: {listening}");
    }
    Ok(())
}

#[test]
fn a_foreign_ztunnel_is_fed_and_only_tunnels_are_on_the_wire() -> Result<()> {
    let mut scene = Scene::start_foreign(&PODS)?;
    let (client, server) = (scene.pod("client").clone(), scene.pod("server").clone());
    is_foreign(&scene, "client")?;
    is_foreign(&scene, "server")?;
    let since = scene.log_length("b");
    let sniffer = scene.world.sniff(&[("secret", SECRET.as_bytes())])?;
    for at in [|pod: &bed::Pod, port| pod.at(port), |pod: &bed::Pod, port| pod.at6(port)] {
        let to = |port| at(&server, port);
        well(app(&client, "echo", to(port::ECHO))?.args(["--say", SECRET, "--count", "50"]))?;
        well(app(&client, "half-close", to(port::COUNT))?.args(["--bytes", "10000000"]))?;
        well(app(&client, "stream", to(port::SINK))?.args(["--bytes", "10000000"]))?;
        well(app(&client, "stream", to(port::SOURCE))?.args(["--bytes", "10000000", "--download"]))?;
        well(app(&client, "rst", to(port::RESET))?)?;
        well(app(&client, "rst", to(port::ECHO))?.arg("--send"))?;
        well(app(&client, "short", to(port::ECHO))?.args(["--count", "300", "--concurrency", "16"]))?;
    }
    let seen = sniffer.stop()?;
    seen.only_tunnels()?;
    ensure!(seen.port(HBONE).payload > 0, "nothing on 15008: {seen:?}");
    let peer = well(app(&client, "peer", server.at(port::PEER))?)?;
    let caller: std::net::SocketAddr = peer["seen_by_server"].as_str().unwrap_or_default().parse()?;
    same("the caller's address", caller.ip(), client.v4())?;
    let inbound = |line: &serde_json::Value| {
        line["direction"] == "inbound" && line["dst.workload"] == "server" && line["security"] == "mutual_tls"
    };
    let line = scene.wait_access("b", since, "the call in the access log", inbound)?;
    same("the caller", line["src.identity"].as_str(), Some("spiffe://cluster.local/ns/mesh/sa/client"))
}

#[test]
fn neighbours_and_strangers_are_served_by_a_foreign_ztunnel() -> Result<()> {
    let mut scene = Scene::start_foreign(&PODS)?;
    let (client, neighbour) = (scene.pod("client").clone(), scene.pod("neighbour").clone());
    let stranger = scene.pod("stranger").clone();
    let since = scene.log_length("a");
    let sniffer = scene.world.sniff(&[])?;
    for to in [neighbour.at(port::ECHO), neighbour.at6(port::ECHO)] {
        well(app(&client, "echo", to)?.args(["--count", "50"]))?;
    }
    well(app(&client, "half-close", neighbour.at(port::COUNT))?)?;
    let seen = sniffer.stop()?;
    seen.only_tunnels()?;
    same("tunnels opened over the wire", seen.port(HBONE).opened, 0)?;
    scene.wait_access("a", since, "the call", |line| {
        line["dst.workload"] == "neighbour" && line["security"] == "same_node"
    })?;
    // In plain both ways, and captured at our end.
    well(app(&client, "echo", stranger.at(port::ECHO))?)?;
    for to in [client.at(port::ECHO), client.at6(port::ECHO)] {
        well(app(&stranger, "echo", to)?)?;
    }
    scene.wait_access("a", since, "the stranger's call", |line| {
        line["direction"] == "inbound" && line["dst.workload"] == "client"
    })?;

    // Connections from before live on, and the drain ends without a reset.
    let mut live = client.netns().connect(neighbour.at(port::ECHO), PATIENCE)?;
    live.write_all(b"x")?;
    scene.enroll(false)?;
    live.write_all(b"y")?;
    well(app(&client, "echo", neighbour.at(port::ECHO))?)?;
    drop(live);
    scene.enroll(true)?;
    well(app(&client, "echo", neighbour.at(port::ECHO))?).map(drop)
}

/// The price of the option: what `evasion.rs` shows to be no way out without it is one with it.
#[test]
fn a_forged_mark_passes_by_and_no_other_does() -> Result<()> {
    let scene = Scene::start_foreign(&PODS)?;
    let (client, server) = (scene.pod("client"), scene.pod("server"));
    let wire = scene.world.sniff(&[("secret", SECRET.as_bytes())])?;
    let echo = |mark: &str| {
        well(app(client, "echo", server.at(port::ECHO))?.args(["--say", SECRET, "--mark", mark]))
    };
    echo("1336")?;
    wire.so_far()?.only_tunnels()?;
    echo("1337")?;
    let leaked = || Ok((!wire.so_far()?.showed("secret").is_empty()).then_some(()));
    bed::eventually(PATIENCE, "the secret on the wire", leaked).map(drop)
}

#[test]
fn nothing_leaks_when_a_foreign_ztunnel_is_killed() -> Result<()> {
    let scene = Scene::start_foreign(&PODS)?;
    let to = scene.pod("server").at(port::ECHO);
    // Nor does an application that takes the port for itself become a ztunnel: it has no mark.
    let taken = |client: &bed::Pod| {
        let mut taken = client.job("python3").args(["-m", "http.server", "15001"]).spawn("taken")?;
        bed::eventually(PATIENCE, "the port to be taken", || {
            let listening = client.job("ss").args(["-Htln"]).check()?.stdout;
            Ok(listening.contains(":15001 ").then_some(()))
        })?;
        fails(app(client, "echo", to)?.args(["--patience", "1"]), &["timeout", "reset", "refused"])?;
        taken.kill();
        Ok(())
    };
    nothing_leaks_after_sigkill(scene, taken, |programs| {
        programs.node.spawn_foreign_ztunnel("ztunnel-2", &[])
    })
}

/// A second ztunnel beside the first, as a DaemonSet rolls: it asks `resolver` what it does not know.
fn successor(scene: &mut Scene, node: &str, resolver: IpAddr) -> Result<()> {
    let programs = scene.mesh.on(node);
    let own = ["--admin-addr", "none", "--metrics-addr", "none", "--ready-addr", "[::]:16021"];
    let resolver = resolver.to_string();
    let flags = [&own[..], &["--resolver", &resolver]].concat();
    let mut next = programs.node.spawn_foreign_ztunnel("successor", &flags)?;
    bed::mesh::wait_ready(&mut next, programs.node.netns(), 16021)?;
    let mut before = std::mem::replace(&mut programs.ztunnel, next);
    before.signal(Signal::SIGTERM)?;
    before.wait(PATIENCE).context("the predecessor ends once it carries nothing").map(drop)
}

#[test]
fn a_foreign_ztunnel_is_rolled_and_loses_only_handshakes_under_way() -> Result<()> {
    let mut scene = Scene::start_foreign(&PODS)?;
    let to = scene.pod("server").at(port::ECHO);
    let rate = ["--count", "4000", "--rate", "500", "--concurrency", "256"];
    let mut traffic = app(scene.pod("client"), "short", to)?.args(rate).spawn("traffic")?;
    thread::sleep(Duration::from_secs(1));
    let nobody = scene.pod("stranger").v4();
    for node in ["a", "b"] {
        successor(&mut scene, node, nobody)?;
    }
    traffic.wait(Duration::from_secs(60))?;
    let report = traffic.log();
    let report: serde_json::Value = serde_json::from_str(report.lines().last().context("no report")?)?;
    // Where ports are shared, the kernel resets a handshake whose last word comes when its listener has closed
    // (net.ipv4.tcp_migrate_req is off, as everywhere): some of a busy machine's 4,000, never many.
    let succeeded = report["succeeded"].as_u64().unwrap_or_default();
    ensure!(succeeded >= 4000 - HALF_OPEN, "{succeeded} succeeded: {}", report["failures"]);
    Ok(())
}

/// As Istio's CNI plugin has it by default: queries are rewritten to port 15053 of the pod itself.
#[test]
fn queries_that_rules_lead_to_the_port_are_answered_or_passed_on() -> Result<()> {
    let pods = [("mesh", "client", "a"), ("mesh", "server", "b"), ("plain", "resolver", "b")];
    let mut scene = Scene::start_foreign(&pods)?;
    let service = scene.world.service(7, "mesh", "shop", &[("app", "server")], &[(80, port::ECHO)])?;
    let resolver = Resolver::start(scene.pod("resolver"), None)?;
    let [v4, v6] = resolver.at;
    successor(&mut scene, "a", v4.ip())?;
    let client = scene.pod("client").clone();
    for tables in ["iptables", "ip6tables"] {
        for (transport, place) in [("udp", ["!", "-o", "lo"]), ("tcp", ["!", "-o", "lo"])] {
            let rule = ["-t", "nat", "-A", "OUTPUT", "-p", transport, "--dport", "53"];
            let but = ["-m", "mark", "!", "--mark", "0x539/0xfff", "-j", "REDIRECT", "--to-ports", "15053"];
            client.job(tables).args(rule).args(place).args(but).check()?;
        }
    }
    let own = |at| addresses(&ask(&client, at, &query(1, "shop.mesh.svc.cluster.local", A))?);
    for at in [v4, v6] {
        let known = || Ok((own(at)? == [service[0]]).then_some(()));
        bed::eventually(PATIENCE, "the service's address", known)?;
        let other = query(2, "elsewhere.example.com", A);
        let before = resolver.asked();
        same("what the resolver said", ask(&client, at, &other)?, odd_answer(&other))?;
        same("asked of it", resolver.asked(), before + 1)?;
        let mut stream = client.netns().connect(at, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write_framed(&mut stream, &query(3, "shop.mesh.svc.cluster.local", A))?;
        same("ours over TCP", addresses(&read_framed(&mut stream)?)?, vec![service[0]])?;
        write_framed(&mut stream, &other)?;
        same("the resolver's over TCP", read_framed(&mut stream)?, odd_answer(&other))?;
    }
    // Nobody from elsewhere is answered at the port.
    let stranger = scene.pod("resolver");
    let asked = ask(stranger, client.at(15053), &query(4, "shop.mesh.svc.cluster.local", A));
    ensure!(asked.is_err(), "a resolver for strangers: {asked:x?}");
    Ok(())
}
