//! The bench of DNS: what a name costs in the mesh, against the same resolver asked without one.
//!
//! Queries go over UDP, by turns from a pod outside the mesh and from one inside it. Rounds are short and many, so
//! that what else the machine does falls on all ways alike, and a turn whose queries did not go the way that it
//! is of fails the run.

mod load;
mod report;
mod scene;

use std::{fmt, process::ExitCode, time::Duration};

use anyhow::{Context, Result};

use self::{
    load::Load,
    report::{Metric, Results},
    scene::Scene,
};
use crate::{Common, facts::Facts, proc::Cpu};

/// Measures names that ztunnel passes on and names that it answers, beside no mesh.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Rounds, in each of which every way has its turn at every load; medians are told.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..=999))]
    rounds: u16,
    /// Seconds that a turn lasts.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    /// One round: does everything work?
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    common: Common,
}

/// The way that a query takes to its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// From a pod that is not enrolled to the resolver.
    NoMesh,
    /// From an enrolled pod through ztunnel to the same resolver: a name that the mesh does not know.
    PassedOn,
    /// From an enrolled pod to ztunnel, which answers: a Service.
    Answered,
}

impl Way {
    const ALL: [Self; 3] = [Self::NoMesh, Self::PassedOn, Self::Answered];
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NoMesh => "no-mesh",
            Self::PassedOn => "passed-on",
            Self::Answered => "answered",
        })
    }
}

/// Builds the world, takes every figure, and tells them.
pub(crate) fn measure(arguments: &Arguments) -> Result<ExitCode> {
    let rounds = if arguments.quick { 1 } else { usize::from(arguments.rounds) };
    let seconds = u64::from(arguments.seconds);
    eprintln!("building the world: three nodes …");
    let scene = Scene::build(&arguments.common.ztunnel_options)?;
    let facts = Facts::gather(&std::env::current_dir()?, None, rounds, seconds);
    let mut results = Results::default();
    if let Err(error) = fill(&scene, rounds, Duration::from_secs(seconds), &mut results) {
        eprintln!("{}", scene.logs());
        return Err(error);
    }
    results.write(&arguments.common.output, &facts)?;
    println!("{}", results.table(&facts));
    println!("written: {0}/dns.json, {0}/dns-machine.json", arguments.common.output.display());
    let missed = arguments.common.gate && !results.goals_met();
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn fill(scene: &Scene, rounds: usize, time: Duration, results: &mut Results) -> Result<()> {
    scene.settle()?;
    let order = schedule(rounds);
    let total = order.len();
    for (done, (load, way)) in order.into_iter().enumerate() {
        let p99 = turn(scene, load, way, time, results).with_context(|| format!("{load} {way}"))?;
        eprintln!("{:3}/{total} {load} {way}: p99 {p99:.0} µs", done + 1);
    }
    Ok(())
}

/// One turn: the figures, the CPU they cost, and the proof of the way they took. Gives the p99.
fn turn(scene: &Scene, load: Load, way: Way, time: Duration, results: &mut Results) -> Result<f64> {
    let ztunnel = [scene.ztunnel()];
    let evidence = scene.evidence()?;
    let before = Cpu::now(&ztunnel)?;
    let figures = load.run(&scene.asked(way), time)?;
    let spent = Cpu::now(&ztunnel)?.since(before);
    scene.check(way, &evidence, figures.queries)?;

    let mut add = |metric, value| results.add(load, way, metric, value);
    add(Metric::QueriesPerSecond, figures.per_second);
    add(Metric::P50, figures.p50);
    add(Metric::P99, figures.p99);
    let each = 1e6 / figures.queries as f64;
    add(Metric::MachineCpu, spent.machine * each);
    if way != Way::NoMesh {
        add(Metric::ZtunnelCpu, spent.processes * each);
    }
    Ok(figures.p99)
}

/// The order of the turns: round by round, each starting one way later, so that no way always goes first.
fn schedule(rounds: usize) -> Vec<(Load, Way)> {
    let ways = Way::ALL.len();
    (0..rounds)
        .flat_map(|round| Load::ALL.into_iter().map(move |load| (round, load)))
        .flat_map(|(round, load)| (0..ways).map(move |place| (load, Way::ALL[(place + round) % ways])))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_meets_every_load_in_every_round_and_none_always_goes_first() {
        let order = schedule(3);
        assert_eq!(order.len(), 3 * 2 * 3);
        for load in Load::ALL {
            for way in Way::ALL {
                assert_eq!(order.iter().filter(|turn| **turn == (load, way)).count(), 3);
            }
        }
        let first: Vec<Way> = order.iter().step_by(6).map(|(_, way)| *way).collect();
        assert_eq!(first, Way::ALL);
    }
}
