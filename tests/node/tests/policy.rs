//! Policies: refusal with the policy's name, edits that count for live connections.

use std::{
    io::{ErrorKind, Read, Write},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use node::{PATIENCE, Scene, app, fails, outcome, port, same, well};
use serde_json::Value;

const REFUSED: &[&str] = &["reset", "eof", "broken_pipe", "refused"];

fn scene() -> Result<Scene> {
    Scene::start(&[
        ("mesh", "client", "a"),
        ("mesh", "intern", "a"),
        ("plain", "stranger", "a"),
        ("mesh", "server", "b"),
    ])
}

fn allow(who: &str) -> String {
    format!(
        "selector:\n  matchLabels: {{app: server}}\naction: ALLOW\nrules:\n- from:\n  - source:\n      \
         principals: [cluster.local/ns/mesh/sa/{who}]\n"
    )
}

#[test]
fn the_refused_are_refused_by_name_and_the_others_are_not() -> Result<()> {
    let mut scene = scene()?;
    let (client, intern, stranger) =
        (scene.pod("client").clone(), scene.pod("intern").clone(), scene.pod("stranger").clone());
    let to = scene.pod("server").at(port::ECHO);
    for pod in [&client, &intern, &stranger] {
        well(app(pod, "echo", to)?)?;
    }
    let since = scene.log_length("b");
    scene.world.manifests().authorization_policy("mesh", "only-client", &allow("client"))?;
    let refused = || Ok(Some(outcome(app(&intern, "echo", to)?)?).filter(|value| value["ok"] == false));
    let (_, took) = bed::eventually(PATIENCE, "the intern to be refused", refused)?;
    ensure!(took < Duration::from_secs(1), "the policy took {took:?}");
    fails(app(&intern, "echo", to)?, REFUSED)?;
    fails(app(&stranger, "echo", to)?, REFUSED)?;
    well(app(&client, "echo", to)?)?;
    let named = |line: &Value| line["src.workload"] == "intern" && !line["policy"].is_null();
    let line = scene.wait_access("b", since, "the refusal", named)?;
    ensure!(line["policy"].as_str().is_some_and(|policy| policy.contains("only-client")), "{line}");

    scene.world.manifests().remove_authorization_policy("mesh", "only-client")?;
    let served = || Ok(Some(outcome(app(&stranger, "echo", to)?)?).filter(|value| value["ok"] == true));
    bed::eventually(PATIENCE, "everyone to be served again", served)?;
    Ok(())
}

#[test]
fn an_edit_ends_the_live_connections_that_it_forbids_and_no_other() -> Result<()> {
    let scene = scene()?;
    let to = scene.pod("server").at(port::ECHO);
    let manifests = scene.world.manifests();
    manifests.authorization_policy("mesh", "clients", &allow("*"))?;
    let mut live = Vec::new();
    for name in ["client", "intern"] {
        let mut stream = scene.pod(name).netns().connect(to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        echo(&mut stream)?;
        live.push(stream);
    }
    let start = Instant::now();
    manifests.authorization_policy("mesh", "clients", &allow("client"))?;
    let ended = match live[1].read(&mut [0; 1]) {
        Ok(length) => length == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    };
    let took = start.elapsed();
    ensure!(ended && took < Duration::from_secs(1), "the intern's connection ended: {ended}, after {took:?}");
    for _ in 0..20 {
        echo(&mut live[0])?;
    }
    Ok(())
}

fn echo(stream: &mut std::net::TcpStream) -> Result<()> {
    stream.write_all(b"still allowed?")?;
    let mut answer = [0; 14];
    stream.read_exact(&mut answer)?;
    same("the echo", &answer, b"still allowed?")
}
