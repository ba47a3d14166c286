//! Many connections: short ones in a hurry, ten thousand alive at once from one address, idle ones that
//! speak again, and a gigabyte compared byte by byte.

use std::time::Duration;

use anyhow::Result;
use node::{Scene, app, port, same, well};
use serde_json::Value;

fn scene() -> Result<Scene> {
    Scene::start(&[("mesh", "client", "a"), ("mesh", "neighbour", "a"), ("mesh", "server", "b")])
}

fn none_failed(value: &Value, count: u64) -> Result<()> {
    same("connections that failed", value["failed"].as_u64(), Some(0))?;
    same("connections that succeeded", value["succeeded"].as_u64(), Some(count))
}

#[test]
fn ten_thousand_short_connections_and_none_fails() -> Result<()> {
    let scene = scene()?;
    let client = scene.pod("client");
    for (to, count) in [
        (scene.pod("server").at(port::ECHO), 10_000),
        (scene.pod("server").at6(port::ECHO), 2_000),
        (scene.pod("neighbour").at(port::ECHO), 5_000),
    ] {
        let job = app(client, "short", to)?.args(["--count", &count.to_string(), "--concurrency", "64"]);
        none_failed(&well(job)?, count)?;
    }
    Ok(())
}

/// There are 17,304 ports for the legs to an app from one caller's address. Where the app closes first, each
/// leaves the remains of a connection (TIME_WAIT) for a minute; from then on every port is used again.
#[test]
fn more_connections_from_one_address_than_there_are_ports_for_them() -> Result<()> {
    let scene = scene()?;
    let count = 18_500;
    for name in ["neighbour", "server"] {
        let pod = scene.pod(name);
        let job = app(scene.pod("client"), "short", pod.at(port::ONCE))?;
        let job = job.args(["--count", &count.to_string(), "--concurrency", "64", "--server-closes"]);
        let outcome = well(job)?;
        none_failed(&outcome, count)?;
        let remains = pod.netns().remains_of(port::ONCE)?;
        // On a slow machine the first of them are forgotten before the last is there.
        let all = outcome["seconds"].as_f64().is_none_or(|seconds| seconds < 55.0);
        anyhow::ensure!(!all || remains > 17_000, "the app of {name} closed first, and left {remains}");
    }
    Ok(())
}

#[test]
fn ten_thousand_live_connections_from_one_address() -> Result<()> {
    let scene = scene()?;
    let job = app(scene.pod("client"), "live", scene.pod("server").at(port::ECHO))?;
    let job =
        job.args(["--count", "10000", "--idle", "1", "--patience", "60"]).limit(Duration::from_secs(240));
    none_failed(&well(job)?, 10_000)
}

#[test]
fn a_thousand_idle_connections_speak_again() -> Result<()> {
    let scene = scene()?;
    for to in [scene.pod("server").at(port::ECHO), scene.pod("neighbour").at6(port::ECHO)] {
        let job = app(scene.pod("client"), "live", to)?.args(["--count", "1000", "--idle", "5"]);
        none_failed(&well(job)?, 1000)?;
    }
    Ok(())
}

#[test]
fn a_gigabyte_arrives_byte_by_byte_in_both_directions() -> Result<()> {
    let scene = scene()?;
    let (client, server) = (scene.pod("client"), scene.pod("server"));
    well(app(client, "stream", server.at(port::SINK))?)?;
    well(app(client, "stream", server.at(port::SOURCE))?.arg("--download"))?;
    Ok(())
}
