//! The bench: what the mesh costs, against no mesh, in one run on one machine.
//!
//! Loads are made by programs that others wrote (iperf3, wrk, nginx, sockperf) between pods made of network
//! namespaces. The modes take turns, every figure is a median, and a run whose traffic did not go the way
//! of its mode fails. DNS is measured by itself (`dns`). It changes nothing outside its own namespaces.
#![forbid(unsafe_code)]

mod dns;
mod facts;
mod l7;
mod load;
mod memory;
mod peer;
mod plan;
mod proc;
mod profile;
mod report;
mod tools;
mod verify;
mod world;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::{
    facts::Facts,
    peer::Peer,
    plan::{Bench, Metric, Mode, Selection, schedule},
    proc::Cpu,
    report::{Results, Subject},
    verify::Evidence,
    world::Scene,
};

/// Measures bulk, requests, new connections and latency through the mesh and without it.
#[derive(Debug, Parser)]
#[command(name = "bench", about, long_about = None, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    other: Option<Other>,
    /// Runs of each bench in each mode; the median is told.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,
    /// Seconds that a run lasts.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    /// Only these benches and modes, by name, for example `bulk-1,two-nodes`; `memory` is one too.
    #[arg(long, value_name = "NAMES")]
    only: Option<Selection>,
    /// One run of one second each: does everything work?
    #[arg(long)]
    quick: bool,
    /// Also sample the CPU with perf in the mode two-nodes and tell where the time goes.
    #[arg(long)]
    profile: bool,
    /// A foreign ztunnel to measure beside ours, mode `peer-two-nodes`.
    #[arg(long, value_name = "PATH")]
    peer_ztunnel: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// What every measurement is told.
#[derive(Debug, clap::Args)]
struct Common {
    /// An option for our own ztunnels, for example `--ztunnel-option=--workers=2`; may be given again.
    #[arg(long = "ztunnel-option", value_name = "OPTION", allow_hyphen_values = true)]
    ztunnel_options: Vec<String>,
    /// Where the results go.
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    output: PathBuf,
    /// End with an error if a goal is missed.
    #[arg(long)]
    gate: bool,
}

/// What else is measured, in a world of its own.
#[derive(Debug, clap::Subcommand)]
enum Other {
    Dns(dns::Arguments),
    L7(l7::Arguments),
}

fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("must run as root: it makes network namespaces and loads kernel programs");
    }
    if cfg!(debug_assertions) {
        eprintln!("This is a development build: what it measures says nothing. Use `cargo xtask bench`.");
    }
    match &arguments.other {
        Some(Other::Dns(arguments)) => return dns::measure(arguments),
        Some(Other::L7(arguments)) => return l7::measure(arguments),
        None => tools::require(&tools::L4, arguments.profile)?,
    }
    raise_descriptors()?;
    let (runs, seconds) =
        if arguments.quick { (1, 1) } else { (usize::from(arguments.runs), u64::from(arguments.seconds)) };
    let peer = arguments.peer_ztunnel.as_deref().map(Peer::new).transpose()?;
    let mut available = Mode::OURS.to_vec();
    available.extend(peer.as_ref().map(|_| Mode::PeerTwoNodes));
    let selection = arguments.only.clone().unwrap_or_default();
    let (benches, modes) = (selection.benches(), selection.modes(&available));

    eprintln!("building the world: {} …", if peer.is_some() { "seven nodes" } else { "five nodes" });
    let scene = Scene::build(&modes, peer.as_ref(), &arguments.common.ztunnel_options)?;
    let facts = Facts::gather(&std::env::current_dir()?, Some(scene.congestion_control), runs, seconds);
    let mut results = Results::default();
    let outcome = fill(&scene, &benches, &modes, selection.memory(), runs, seconds, &mut results);
    let profiles = match (&outcome, arguments.profile) {
        (Ok(()), true) => profile_two_nodes(&scene, &benches, &arguments.common.output, seconds)?,
        _ => String::new(),
    };
    if let Err(error) = outcome {
        eprintln!("{}", scene.logs());
        return Err(error);
    }
    results.write(&arguments.common.output, &facts)?;
    println!("{}{profiles}", results.table(&facts));
    println!("written: {0}/l4.json, {0}/l4-machine.json, {0}/l4.svg", arguments.common.output.display());
    let missed = arguments.common.gate && !results.goals_met();
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Takes every figure.
fn fill(
    scene: &Scene,
    benches: &[Bench],
    modes: &[Mode],
    memory: bool,
    runs: usize,
    seconds: u64,
    results: &mut Results,
) -> Result<()> {
    for mode in modes {
        come_into_effect(scene, *mode)?;
    }
    if memory {
        for mode in modes.iter().filter(|mode| matches!(mode, Mode::TwoNodes | Mode::PeerTwoNodes)) {
            eprintln!("memory, {mode} …");
            memory::measure(scene, *mode, results)?;
        }
    }
    let order = schedule(benches, modes, runs);
    let total = order.len();
    for (done, (bench, mode)) in order.into_iter().enumerate() {
        let value = run(scene, bench, mode, Duration::from_secs(seconds), results)
            .with_context(|| format!("{bench} in mode {mode}"))?;
        eprintln!("{:3}/{total} {bench} {mode}: {value:.1}", done + 1);
    }
    Ok(())
}

/// Waits until a mode works and is what it says, with a load too small to be measured.
fn come_into_effect(scene: &Scene, mode: Mode) -> Result<()> {
    let start = std::time::Instant::now();
    loop {
        let attempt = run(
            scene,
            Bench::Requests { connections: 1 },
            mode,
            Duration::from_secs(1),
            &mut Results::default(),
        );
        match attempt {
            Ok(_) => return Ok(()),
            Err(error) if start.elapsed() > scene.patience() => {
                return Err(error
                    .context(format!("mode {mode} did not come into effect within {:?}", scene.patience())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// One run: the figures, the CPU they cost, and the proof of the way they took. Gives the headline figure.
fn run(scene: &Scene, bench: Bench, mode: Mode, time: Duration, results: &mut Results) -> Result<f64> {
    let (client, server) = scene.pair(mode)?;
    let pids: Vec<u32> = scene.carriers(mode).iter().map(|ztunnel| ztunnel.process.pid()).collect();
    let evidence = Evidence::gather(scene, mode)?;
    let before = Cpu::now(&pids)?;
    let figures = load::run(bench, client, server, time)?;
    let spent = Cpu::now(&pids)?.since(before);
    evidence.check(scene, bench, mode, &figures)?;

    let subject = Subject::Load(bench);
    let mut headline = 0.0;
    for (metric, value) in
        [(bench.headline(), figures.rate), (Metric::P50, figures.p50), (Metric::P99, figures.p99)]
    {
        if let Some(value) = value {
            results.add(subject, mode, metric, value);
            headline = if metric == bench.headline() { value } else { headline };
        }
    }
    let per_unit = bench.unit().scale() / figures.work;
    results.add(subject, mode, Metric::MachineCpu(bench.unit()), spent.machine * per_unit);
    if !pids.is_empty() {
        results.add(subject, mode, Metric::ZtunnelCpu(bench.unit()), spent.processes * per_unit);
    }
    Ok(headline)
}

/// Runs each bench once more under perf, in the mode two-nodes.
fn profile_two_nodes(
    scene: &Scene,
    benches: &[Bench],
    output: &std::path::Path,
    seconds: u64,
) -> Result<String> {
    std::fs::create_dir_all(output).with_context(|| format!("make {}", output.display()))?;
    let mode = Mode::TwoNodes;
    let pids: Vec<u32> = scene.carriers(mode).iter().map(|ztunnel| ztunnel.process.pid()).collect();
    let (client, server) = scene.pair(mode)?;
    let mut tables = String::new();
    for bench in benches {
        eprintln!("profile of {bench} {mode} …");
        let recording = profile::record(&output.join(format!("perf-{bench}.data")))?;
        load::run(*bench, client, server, Duration::from_secs(seconds.max(3)))?;
        tables += &recording.stop(&pids)?.table(&format!("{bench}, {mode}"), "ztunnels");
    }
    let path = output.join("l4-profile.md");
    std::fs::write(&path, &tables).with_context(|| format!("write {}", path.display()))?;
    Ok(tables)
}

/// A thousand idle connections take more descriptors than most shells allow.
fn raise_descriptors() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("read the limit of descriptors")?;
    let wanted = 65_536.min(hard);
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).context("raise the limit of descriptors")?;
    }
    Ok(())
}
