//! `cargo xtask`: every task a developer or CI runs, each one command.
//!
//! What a task needs and the machine lacks is installed first, with a line that says what and why.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod build;
mod ci;
mod conformance;
mod demo;
mod e2e;
mod ebpf;
mod fuzz;
mod gateway_api;
mod image;
mod kind;
mod lanes;
mod manifests;
mod setup;
mod shell;
mod test;
mod tidy;
mod tool_table;

/// The tasks of the Culvert workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what is missing on this machine, saying what and why.
    Setup,
    /// Build the kernel programs (their toolchain first, where it is missing).
    Ebpf,
    /// Build the kernel programs and every program of the workspace.
    Build(build::Args),
    /// Tell the story of the mesh on this machine: two nodes, real programs, every step checked.
    Demo(demo::Args),
    /// Build the images of the programs, each a static binary on nothing, with its bill of materials.
    Image(image::Args),
    /// Fill in the chart with its defaults for `culvert install`; writes deploy/manifests/culvert.yaml.
    Manifests(manifests::Args),
    /// The mesh in a real cluster of kind's, from an empty one to an empty one, under load, every step checked.
    Kind(kind::Args),
    /// Try the mesh on a real Kubernetes, case by case, under load; a cluster of kind's, or any.
    E2e(e2e::Args),
    /// Run the Gateway API's own conformance suite, unchanged, against the mesh on a cluster of kind's.
    Conformance(conformance::Args),
    /// Run every test, or those of one ring.
    Test(test::Args),
    /// Measure against no mesh, side by side; writes the figures to target/bench.
    Bench(bench::Args),
    /// Check what the compiler does not: who imports whom, file sizes, docs that name real commands.
    Tidy,
    /// Build the fuzz targets and run each for a while.
    Fuzz(fuzz::Args),
    /// Exactly what CI runs: format, lints, tidy, tests, fuzzing, the cases on Kubernetes, conformance.
    Ci(ci::Args),
    /// Remove test worlds whose owner is gone.
    Sweep,
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    let root = shell::root()?;
    match task {
        Task::Setup => kind::demand_helm(&root).map(drop).and_then(|()| setup::everything()),
        Task::Ebpf => ebpf::build(&root).map(|object| println!("{}", object.display())),
        Task::Build(args) => build::run(&root, &args),
        Task::Demo(args) => demo::run(&root, &args),
        Task::Image(args) => image::run(&root, &args),
        Task::Manifests(args) => manifests::run(&root, &args),
        Task::Kind(args) => kind::run(&root, &args),
        Task::E2e(args) => e2e::run(&root, &args),
        Task::Conformance(args) => conformance::run(&root, &args),
        Task::Test(args) => test::run(&root, &args),
        Task::Bench(args) => bench::run(&root, &args),
        Task::Tidy => tidy::run(&root),
        Task::Fuzz(args) => fuzz::run(&root, &args),
        Task::Ci(args) => ci::run(&root, &args),
        Task::Sweep => {
            let removed = bed::sweep()?;
            println!(
                "{} leftover world(s) removed{}{}",
                removed.len(),
                if removed.is_empty() { "" } else { ": " },
                removed.join(", ")
            );
            Ok(())
        }
    }
}
