//! Making load with programs that others wrote, and reading their figures.
//!
//! The programs run inside the pods; what they print is parsed here, and a figure that is missing or a
//! load that met errors fails the run.

mod iperf;
mod nginx;
mod sockperf;
mod wrk;

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use bed::{Job, Pod, Process};

use crate::plan::Bench;

/// Where nginx listens in a server's pod.
pub(crate) const HTTP_PORT: u16 = 8080;
const IPERF_PORT: u16 = 5201;
const SOCKPERF_PORT: u16 = 11111;

/// Beyond its own duration a load may take this long to connect and to say what it found.
const MARGIN: Duration = Duration::from_secs(20);

/// What one run of a load came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figures {
    /// In the unit of the bench's headline metric; none for a latency bench.
    pub(crate) rate: Option<f64>,
    /// Microseconds.
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    /// How many units of work were done: gigabytes, requests or connections.
    pub(crate) work: f64,
}

/// Runs `bench` from one pod against the servers of another.
pub(crate) fn run(bench: Bench, client: &Pod, server: &Pod, time: Duration) -> Result<Figures> {
    let seconds = time.as_secs().max(1);
    match bench {
        Bench::Bulk { streams } => iperf::run(client, server, streams, seconds),
        Bench::Requests { connections } => wrk::run(client, server, wrk::Load::Small, connections, seconds),
        Bench::Bodies { connections } => wrk::run(client, server, wrk::Load::Body, connections, seconds),
        Bench::Connections { at_once } => {
            wrk::run(client, server, wrk::Load::NewConnection, at_once, seconds)
        }
        Bench::Latency => sockperf::run(client, server, seconds),
    }
}

/// Starts everything that a server's pod serves, and waits until all of it listens.
pub(crate) fn serve(pod: &Pod, folder: &Path) -> Result<Vec<Process>> {
    let name = pod.full_name().replace('/', "-");
    let mut servers = vec![
        nginx::start(pod, &folder.join(format!("nginx-{name}")), &name)?,
        iperf::serve(pod, &name)?,
        sockperf::serve(pod, &name)?,
    ];
    for (server, port) in servers.iter_mut().zip([HTTP_PORT, IPERF_PORT, SOCKPERF_PORT]) {
        server.wait_until(MARGIN, &format!("port {port} of {}", pod.full_name()), || {
            pod.netns().connect(pod.at(port), Duration::from_millis(200)).ok()
        })?;
    }
    Ok(servers)
}

/// Runs a load that takes `seconds` to its end and gives what it printed.
pub(crate) fn finish(job: Job, name: &str, seconds: u64) -> Result<String> {
    let mut process = job.spawn(name)?;
    // Asleep rather than asking every millisecond whether it is done: on two cores that would be felt.
    std::thread::sleep(Duration::from_secs(seconds));
    let status = process.wait(MARGIN)?;
    let said = process.log();
    // The name is used again by the next run.
    fs::remove_file(process.log_path())
        .with_context(|| format!("remove {}", process.log_path().display()))?;
    if !status.success() {
        let end = said.trim();
        let end = &end[end.floor_char_boundary(end.len().saturating_sub(600))..];
        bail!("{name} ended with {status}: {end}");
    }
    Ok(said)
}
