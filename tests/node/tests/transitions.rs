//! Joining and leaving the mesh under traffic: no open connection breaks, whichever ends are in the mesh,
//! and no new call fails.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result};
use node::{PATIENCE, Scene, app, port, same};

fn talk(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"unbroken?")?;
    let mut answer = [0; 9];
    stream.read_exact(&mut answer)?;
    same("the echo", &answer, b"unbroken?")
}

#[test]
fn no_call_fails_and_no_stream_breaks_while_pods_join_and_leave() -> Result<()> {
    let pods = [
        ("mesh", "client", "a"),
        ("mesh", "neighbour", "a"),
        ("mesh", "server", "b"),
        ("plain", "stranger", "b"),
    ];
    let scene = Scene::start(&pods)?;
    let open = |from: &str, to| -> Result<TcpStream> {
        let stream = scene.pod(from).netns().connect(to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    };
    let routes = [
        ("client", scene.pod("server").at(port::ECHO)),
        ("client", scene.pod("server").at6(port::ECHO)),
        ("client", scene.pod("neighbour").at(port::ECHO)),
        ("client", scene.pod("stranger").at(port::ECHO)),
        ("stranger", scene.pod("client").at(port::ECHO)),
    ];
    let mut streams = Vec::new();
    let endless = ["--count", "100000", "--rate", "100", "--concurrency", "16", "--until-line"];
    let calls = |from: &str, to, name: &str| app(scene.pod(from), "short", to)?.args(endless).spawn(name);
    let mut callers = vec![
        calls("client", scene.pod("server").at(port::ECHO), "calls-far")?,
        calls("client", scene.pod("neighbour").at6(port::ECHO), "calls-near")?,
        calls("stranger", scene.pod("server").at(port::ECHO), "calls-in")?,
        calls("client", scene.pod("stranger").at(port::ECHO), "calls-out")?,
    ];
    for round in 0..4 {
        for (from, to) in routes {
            streams.push(open(from, to)?);
        }
        for stream in &mut streams {
            talk(stream).with_context(|| format!("round {round}"))?;
        }
        scene.enroll(round % 2 == 1)?;
        // What was decided just before the change may still be on its way.
        std::thread::sleep(Duration::from_millis(300));
        for stream in &mut streams {
            talk(stream).with_context(|| format!("after the change of round {round}"))?;
        }
    }
    for caller in &mut callers {
        caller.write_line("enough")?;
        caller.wait(PATIENCE)?;
        let line = caller.log();
        let report: serde_json::Value =
            serde_json::from_str(line.lines().last().context("no report")?).context("the report")?;
        same(&format!("failures of {}", caller.name()), &report["failures"], &serde_json::json!({}))?;
    }
    Ok(())
}
