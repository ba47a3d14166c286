//! What a ztunnel keeps in memory: idle, per idle connection, per pod.
//!
//! It is measured first, on fresh processes: memory that an allocator keeps after heavy load is another story.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    load::HTTP_PORT,
    plan::{Metric, Mode},
    proc,
    report::{Results, Subject},
    world::{EXTRA_PODS, Scene, Ztunnel},
};

const IDLE_CONNECTIONS: usize = 1000;
/// How long a figure must not move before it is taken.
const STILL: Duration = Duration::from_millis(1500);

/// Measures one pair of ztunnels: ours, or the foreign ones.
pub(crate) fn measure(scene: &Scene, mode: Mode, results: &mut Results) -> Result<()> {
    let carriers = scene.carriers(mode);
    let pids: Vec<u32> = carriers.iter().map(|ztunnel| ztunnel.process.pid()).collect();
    settle(scene, &pids)?;
    let idle = mean(&pids, proc::resident)?;
    results.add(Subject::Memory, mode, Metric::RssIdle, idle / 1e6);
    let connections = open_idle(scene, mode)?;
    settle(scene, &pids)?;
    let held = mean(&pids, proc::resident)?;
    let per_connection = (held - idle) / connections.len() as f64;
    results.add(Subject::Memory, mode, Metric::RssPerIdleConnection, per_connection / 1e3);
    drop(connections);
    if let Mode::TwoNodes = mode {
        per_pod(scene, carriers[0], results)?;
    }
    Ok(())
}

/// Opens connections that have each carried one request and then say nothing.
fn open_idle(scene: &Scene, mode: Mode) -> Result<Vec<TcpStream>> {
    let (client, server) = scene.pair(mode)?;
    let mut connections = Vec::with_capacity(IDLE_CONNECTIONS);
    for number in 0..IDLE_CONNECTIONS {
        let mut stream = client
            .netns()
            .connect(server.at(HTTP_PORT), Duration::from_secs(5))
            .with_context(|| format!("open idle connection {number} in mode {mode}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /small HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        let mut answer = [0; 512];
        let read =
            stream.read(&mut answer).with_context(|| format!("idle connection {number} got no answer"))?;
        ensure!(answer[..read].starts_with(b"HTTP/1.1 200"), "idle connection {number} got another answer");
        connections.push(stream);
    }
    Ok(connections)
}

fn per_pod(scene: &Scene, ztunnel: &Ztunnel, results: &mut Results) -> Result<()> {
    let pids = [ztunnel.process.pid()];
    settle(scene, &pids)?;
    let before = (mean(&pids, proc::resident)?, mean(&pids, proc::descriptors)?);
    scene.enroll_extra(true)?;
    // Each pod brings its listeners at least; fewer descriptors mean that it is not enrolled yet.
    let enough = before.1 + 2.0 * EXTRA_PODS as f64;
    let start = Instant::now();
    while mean(&pids, proc::descriptors)? < enough {
        if start.elapsed() > scene.patience() {
            bail!(
                "{EXTRA_PODS} pods were not enrolled within {:?}: ztunnel has {} descriptors, {} before",
                scene.patience(),
                proc::descriptors(pids[0])?,
                before.1
            );
        }
        sleep(Duration::from_millis(50));
    }
    settle(scene, &pids)?;
    let after = (mean(&pids, proc::resident)?, mean(&pids, proc::descriptors)?);
    let pods = EXTRA_PODS as f64;
    results.add(Subject::Memory, Mode::TwoNodes, Metric::RssPerPod, (after.0 - before.0) / pods / 1e3);
    results.add(Subject::Memory, Mode::TwoNodes, Metric::DescriptorsPerPod, (after.1 - before.1) / pods);
    scene.enroll_extra(false)
}

fn mean(pids: &[u32], figure: impl Fn(u32) -> Result<u64>) -> Result<f64> {
    let mut sum = 0.0;
    for pid in pids {
        sum += figure(*pid)? as f64;
    }
    Ok(sum / pids.len().max(1) as f64)
}

/// Waits until neither memory nor descriptors have moved for a while.
fn settle(scene: &Scene, pids: &[u32]) -> Result<()> {
    let start = Instant::now();
    let (mut seen, mut since) = ((0.0, 0.0), Instant::now());
    while since.elapsed() < STILL {
        let now = (mean(pids, proc::resident)?, mean(pids, proc::descriptors)?);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        // Memory that never stands still is taken as it is then.
        if start.elapsed() > scene.patience() {
            break;
        }
        sleep(Duration::from_millis(100));
    }
    Ok(())
}
