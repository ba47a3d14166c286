//! What CI runs, step by step, every step timed; all steps run, and any failure fails the whole.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{demo, ebpf, fuzz, kind, manifests, setup, shell, tidy};

/// Seconds that CI gives each fuzz target.
const FUZZ_SECONDS: u32 = 5;

/// What is left out.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave out the tests on Kubernetes, which need docker.
    #[arg(long)]
    without_cluster: bool,
}

/// Runs every step.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let mut steps = Steps::default();
    steps.step("set up", setup::everything);
    steps.step("format", || format(root));
    steps.step("tidy", || tidy::run(root));
    steps.step("chart", || kind::lint_chart(root));
    steps.step("manifests", || manifests::run(root, &manifests::Args { check: true }));
    steps.step("kernel programs", || ebpf::build(root).map(drop));
    steps.step("lints", || lints(root));
    steps.step("tests", || tests(root));
    steps.step("demo", || demo::play_built().map(drop));
    steps.step("fuzz", || fuzz::run(root, &fuzz::Args { seconds: FUZZ_SECONDS, target: None, dev: true }));
    if args.without_cluster {
        println!("\n==== NOT RUN: e2e and conformance, as was asked for");
    } else {
        // Each in a process of its own: it watches for Ctrl-C by itself.
        steps.step("e2e", || xtask(root, "e2e"));
        steps.step("conformance", || xtask(root, "conformance"));
    }
    steps.report()
}

/// As anyone calls it, not by this program's own path: the tests' build may have put another there meanwhile.
fn xtask(root: &Path, command: &str) -> Result<()> {
    shell::run(shell::cargo(root).args(["xtask", command]), &format!("cargo xtask {command}"))
}

#[derive(Debug, Default)]
struct Steps {
    done: Vec<(&'static str, Duration, Result<(), String>)>,
}

impl Steps {
    fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) {
        println!("\n==== {name}");
        let start = Instant::now();
        let outcome = work().map_err(|error| format!("{error:#}"));
        if let Err(error) = &outcome {
            println!("error: {error}");
        }
        self.done.push((name, start.elapsed(), outcome));
    }

    fn report(&self) -> Result<()> {
        println!("\n==== summary");
        for (name, took, outcome) in &self.done {
            // The reason again: who reads a log reads its end, and the step may be thousands of lines above.
            let verdict =
                outcome.as_ref().map_or_else(|error| format!("FAILED: {error}"), |()| "ok".to_owned());
            println!("  {name:<16} {:>7.1} s  {verdict}", took.as_secs_f64());
        }
        let total: Duration = self.done.iter().map(|(_, took, _)| *took).sum();
        println!("  {:<16} {:>7.1} s", "total", total.as_secs_f64());
        let failed: Vec<&str> =
            self.done.iter().filter(|(_, _, outcome)| outcome.is_err()).map(|(name, _, _)| *name).collect();
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

/// The workspaces of their own, beside the main one.
const BESIDE: [&str; 2] = ["ebpf/kernel/Cargo.toml", "tests/fuzz/Cargo.toml"];

fn format(root: &Path) -> Result<()> {
    shell::run(shell::cargo(root).args(["fmt", "--all", "--check"]), "format of the workspace")?;
    for manifest in BESIDE {
        let mut cargo = shell::cargo(root);
        cargo.args(["fmt", "--check", "--manifest-path"]).arg(root.join(manifest));
        shell::run(&mut cargo, &format!("format of {manifest}"))?;
    }
    Ok(())
}

fn lints(root: &Path) -> Result<()> {
    let mut cargo = shell::cargo(root);
    cargo.args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]);
    shell::run(&mut cargo, "lints of the workspace")?;
    ebpf::lints(root)
}

/// As README tells everyone to: the very command, in a process of its own.
fn tests(root: &Path) -> Result<()> {
    xtask(root, "test")
}
