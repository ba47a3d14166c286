//! The bench of layer 7: our waypoint beside Envoy, doing the same job for the same client and the same backend.
//!
//! Both take what the client's ztunnel brings them by HBONE, route it by path among ten or a thousand rules, and carry
//! it on plainly or by HBONE; each in its turn, with one thread, on a core that nothing else runs on. The client's
//! ztunnel and whatever makes and answers the load share the rest of the machine, for both alike. A run in which a
//! request failed, or did not go through its proxy, fails.

mod backend;
mod envoy;
mod load;
mod plan;
mod report;
mod scene;

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result};

use self::{
    plan::{Load, Mode, Selection, schedule},
    report::{Metric, Results},
    scene::Scene,
};
use crate::{Common, facts::Facts, proc::Cpu, profile, raise_descriptors, tools};

/// Measures our waypoint beside Envoy.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Runs of each load through each proxy; the median is told.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,
    /// Seconds that a run lasts.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    /// Only loads with these parts, for example `http2,1k,32c,plain`; several of a kind are alternatives.
    #[arg(long, value_name = "PARTS")]
    only: Option<Selection>,
    /// One run of one second each: does everything work?
    #[arg(long)]
    quick: bool,
    /// Also run each load once more through our waypoint under perf, and tell where the time goes.
    #[arg(long)]
    profile: bool,
    #[command(flatten)]
    common: Common,
}

/// Builds the world, takes every figure, and tells them.
pub(crate) fn measure(arguments: &Arguments) -> Result<ExitCode> {
    raise_descriptors()?;
    tools::require(&tools::L7, arguments.profile)?;
    let (runs, seconds) =
        if arguments.quick { (1, 1) } else { (usize::from(arguments.runs), u64::from(arguments.seconds)) };
    let loads = arguments.only.clone().unwrap_or_default().loads();
    let envoy = interop::ensure_envoy(&interop::scene::root()).context("fetch Envoy")?;
    // Before the scene takes this process from one of the cores.
    let mut facts = Facts::gather(&std::env::current_dir()?, None, runs, seconds);
    eprintln!("building the world: three nodes, a waypoint, Envoy …");
    let scene = Scene::build(&envoy, &arguments.common.ztunnel_options)?;
    facts.congestion_control = Some(scene.congestion_control.to_owned());
    let mut results = Results::default();
    if let Err(error) = fill(&scene, &loads, runs, seconds, &mut results) {
        eprintln!("{}", scene.logs());
        return Err(error);
    }
    results.write(&arguments.common.output, &facts)?;
    println!("{}", results.table(&facts));
    if arguments.profile {
        println!("{}", profiled(&scene, &loads, seconds, &arguments.common.output)?);
    }
    println!("written: {0}/l7.json, {0}/l7-machine.json", arguments.common.output.display());
    let missed = arguments.common.gate && !results.goals_met();
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn fill(scene: &Scene, loads: &[Load], runs: usize, seconds: u64, results: &mut Results) -> Result<()> {
    scene.settle(loads)?;
    let order = schedule(loads, runs);
    let total = order.len();
    for (done, (load, mode)) in order.into_iter().enumerate() {
        let rate =
            turn(scene, load, mode, seconds, results).with_context(|| format!("{load} through {mode}"))?;
        eprintln!("{:3}/{total} {load} {mode}: {rate:.0}", done + 1);
    }
    Ok(())
}

/// Runs each load once more through our waypoint, under perf.
fn profiled(scene: &Scene, loads: &[Load], seconds: u64, output: &Path) -> Result<String> {
    let mut tables = String::new();
    for &load in loads {
        eprintln!("profile of {load} …");
        let recording = profile::record(&output.join(format!("perf-{load}.data")))?;
        scene.run(load, Mode::Waypoint, seconds.max(3))?;
        tables += &recording.stop(&[scene.proxy(Mode::Waypoint)])?.table(&load.to_string(), "waypoint");
    }
    let path = output.join("l7-profile.md");
    std::fs::write(&path, &tables).with_context(|| format!("write {}", path.display()))?;
    Ok(tables)
}

/// One run: the figures, and what they cost. Gives the rate.
fn turn(scene: &Scene, load: Load, mode: Mode, seconds: u64, results: &mut Results) -> Result<f64> {
    let proxy = [scene.proxy(mode)];
    let before = Cpu::now(&proxy)?;
    let figures = scene.run(load, mode, seconds)?;
    let spent = Cpu::now(&proxy)?.since(before);
    let mut add = |metric, value| results.add(load, mode, metric, value);
    add(Metric::RequestsPerSecond, figures.per_second);
    // The kernel's books are kept in ticks of 10 ms.
    add(Metric::RequestsPerCore, figures.requests / spent.processes.max(0.01));
    add(Metric::P50, figures.p50);
    add(Metric::P99, figures.p99);
    add(Metric::Resident, scene.resident(mode)?);
    add(Metric::MachineCpu, spent.machine * 1e6 / figures.requests);
    Ok(figures.per_second)
}
