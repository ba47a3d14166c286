//! Leaving the mesh and coming back under open connections.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result};
use bed::Pod;
use node::{PATIENCE, Scene, app, port, same, well};

fn scene() -> Result<Scene> {
    Scene::start(&[("mesh", "client", "a"), ("mesh", "server", "b"), ("mesh", "neighbour", "a")])
}

/// One exchange on a connection that is open already.
fn exchange(stream: &mut TcpStream, text: &str) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(text.as_bytes()).with_context(|| format!("write {text:?}"))?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).with_context(|| format!("read {text:?} back"))?;
    same("the echo", back, text.as_bytes().to_vec())
}

/// Open connections of the client to the server, over both families, and to its neighbour.
fn open(client: &Pod, targets: &[&Pod]) -> Result<Vec<TcpStream>> {
    let addresses = targets.iter().flat_map(|pod| [pod.at(port::ECHO), pod.at6(port::ECHO)]);
    addresses.map(|to| client.netns().connect(to, PATIENCE)).collect()
}

fn all_live(streams: &mut [TcpStream], text: &str) -> Result<()> {
    streams.iter_mut().try_for_each(|stream| exchange(stream, text))
}

#[test]
fn leaving_and_coming_back_breaks_no_open_connection() -> Result<()> {
    let scene = scene()?;
    let client = scene.pod("client");
    let targets = [scene.pod("server"), scene.pod("neighbour")];
    let mut captured = open(client, &targets)?;
    all_live(&mut captured, "captured")?;
    scene.enroll(false)?;
    all_live(&mut captured, "after leaving")?;
    let mut plain = open(client, &targets)?;
    all_live(&mut plain, "opened outside")?;
    scene.enroll(true)?;
    all_live(&mut captured, "after coming back")?;
    all_live(&mut plain, "opened outside, now inside")?;
    // Left alone for a while, neither is forgotten.
    std::thread::sleep(Duration::from_secs(2));
    all_live(&mut captured, "later")?;
    all_live(&mut plain, "later still")?;
    well(app(client, "echo", targets[0].at(port::ECHO))?).map(drop)
}
