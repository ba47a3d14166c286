//! The scale bench: what a large mesh costs control, measured at the real program and through real delta
//! discovery streams over TLS.
//!
//! A world is generated, control started on it; one node joins cold (our ztunnel's own client), many subscribe,
//! and then pods and policies change under their eyes. Times are those of the whole way, from the write to the
//! acknowledgement's sending; what of it is the bench's own CPU is told beside.
#![forbid(unsafe_code)]

mod api;
mod cluster;
mod folder;
mod process;
mod report;
mod source;
mod steps;
mod subscribers;
mod wire;
mod world;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};

use crate::{cluster::Cluster, folder::Folder, report::Results, source::Source, world::Shape};

/// Measures control with many workloads and many nodes.
#[derive(Debug, Parser)]
#[command(name = "bench control", about, long_about = None)]
pub(crate) struct Arguments {
    /// Where control finds the world. For an API server `cargo xtask bench control` makes one, without kubelets, in
    /// a container (--node-image IMAGE is kind's image of nodes, where its own cannot be pulled), and removes it.
    #[arg(long, value_enum, default_value = "folder")]
    source: Kind,
    /// An API server that is there, empty but for the definitions of Istio's kinds, and is not emptied in the end.
    #[arg(long, value_name = "FILE", required_if_eq("source", "api-server"))]
    kubeconfig: Option<PathBuf>,
    /// Pods.
    #[arg(long, default_value_t = 100_000)]
    workloads: usize,
    /// Services.
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    /// Authorization policies.
    #[arg(long, default_value_t = 1_000)]
    policies: usize,
    /// Nodes, each with a subscriber to everything.
    #[arg(long, default_value_t = 500)]
    subscribers: usize,
    /// Subscribers that are without their first state at a time.
    #[arg(long, default_value_t = 8)]
    at_once: usize,
    /// Runs of each step; the median is told.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// The program.
    #[arg(long, value_name = "PATH", default_value = "target/release/control")]
    control: PathBuf,
    /// Where the results go.
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    output: PathBuf,
    /// End with an error if a goal is missed.
    #[arg(long)]
    gate: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Folder,
    ApiServer,
}

fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<ExitCode> {
    if cfg!(debug_assertions) {
        eprintln!("This is a development build: its own share is larger. Use `cargo xtask bench control`.");
    }
    if arguments.subscribers == 0 || arguments.workloads == 0 || arguments.runs == 0 {
        bail!("--subscribers, --workloads and --runs are 1 at least");
    }
    let shape = Shape {
        workloads: arguments.workloads,
        services: arguments.services,
        policies: arguments.policies,
        nodes: arguments.subscribers,
    };
    let mut results = Results::default();
    results.fact("cores", std::thread::available_parallelism().map_or(0, usize::from));
    results.fact("load at start", load());
    results.fact("world", format!("{shape:?}"));
    let place = tempfile::tempdir().context("make a folder for the world")?;
    let mut folder = Folder::new(place.path());
    let mut cluster = match (&arguments.kubeconfig, arguments.source) {
        (Some(kubeconfig), Kind::ApiServer) => Some(Cluster::new(kubeconfig, place.path())?),
        (_, _) => None,
    };
    let source: &mut dyn Source = match &mut cluster {
        Some(cluster) => cluster,
        None => &mut folder,
    };
    steps::all(arguments, shape, source, &mut results)?;
    results.fact("load at end", load());
    let name = if cluster.is_some() { "control-api-server" } else { "control" };
    results.write(&arguments.output, name)?;
    println!("{}", results.table());
    println!("written: {0}/{name}.json, {0}/{name}-machine.json", arguments.output.display());
    Ok(if arguments.gate && !results.goals_met() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}
