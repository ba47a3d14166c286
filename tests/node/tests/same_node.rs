//! Caller and server on one node: the same decisions, no wire.

use anyhow::Result;
use node::{PATIENCE, Scene, app, fails, outcome, port, same, well};

#[test]
fn neighbours_talk_without_the_wire_and_are_known_and_judged_all_the_same() -> Result<()> {
    let mut scene =
        Scene::start(&[("mesh", "client", "a"), ("mesh", "intern", "a"), ("mesh", "server", "a")])?;
    let (client, intern, server) =
        (scene.pod("client").clone(), scene.pod("intern").clone(), scene.pod("server").clone());
    let since = scene.log_length("a");
    let sniffer = scene.world.sniff(&[])?;
    for to in [server.at(port::ECHO), server.at6(port::ECHO)] {
        well(app(&client, "echo", to)?.args(["--count", "50"]))?;
    }
    well(app(&client, "half-close", server.at(port::COUNT))?)?;
    well(app(&client, "rst", server.at(port::RESET))?)?;
    well(app(&client, "rst", server.at(port::ECHO))?.arg("--send"))?;
    well(app(&client, "stream", server.at(port::SINK))?.args(["--bytes", "100000000"]))?;
    let seen = sniffer.stop()?;
    seen.only_tunnels()?;
    same("tunnels opened over the wire", seen.port(bed::sniff::HBONE).opened, 0)?;
    let line = scene.wait_access("a", since, "the call", |line| line["dst.workload"] == "server")?;
    same("the caller", line["src.identity"].as_str(), Some("spiffe://cluster.local/ns/mesh/sa/client"))?;
    same("security", line["security"].as_str(), Some("same_node"))?;

    let allow = "selector:\n  matchLabels: {app: server}\naction: ALLOW\nrules:\n- from:\n  - source:\n      \
                 principals: [cluster.local/ns/mesh/sa/client]\n";
    scene.world.manifests().authorization_policy("mesh", "only-client", allow)?;
    let refused =
        || Ok(Some(outcome(app(&intern, "echo", server.at(port::ECHO))?)?).filter(|v| v["ok"] == false));
    bed::eventually(PATIENCE, "the intern to be refused", refused)?;
    fails(app(&intern, "echo", server.at(port::ECHO))?, &["reset", "eof", "broken_pipe", "refused"])?;
    well(app(&client, "echo", server.at(port::ECHO))?)?;
    Ok(())
}
