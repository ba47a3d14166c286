//! The benchmark: built optimised, run by `tests/bench`.

use std::{ffi::OsString, path::Path};

use anyhow::Result;

use crate::{build, ebpf, setup, shell, tool_table::Use};

/// What is passed on to `tests/bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Options of the benchmark itself, for example --peer-ztunnel PATH. As the first word, `control` measures
    /// control with many workloads and many nodes instead, and `dns` the DNS queries of pods; what follows is for
    /// that (control --help, dns --help).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
    options: Vec<OsString>,
}

/// Builds everything optimised and runs the benchmark.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    match args.options.first() {
        Some(first) if first == "control" => return control(root, &args.options[1..]),
        // It makes its load itself, and has a name for its own word.
        Some(first) if first == "dns" => dns_programs(root)?,
        _ => {
            shell::demand_root("the benchmark")?;
            setup::ensure(&[Use::Bench])?;
            build::run(root, &build::Args::release())?;
        }
    }
    let mut cargo = shell::cargo(root);
    cargo.args(["run", "--release", "--quiet", "--package", "bench", "--"]).args(&args.options);
    shell::run(&mut cargo, "the benchmark")
}

/// Builds what a node and its control plane need, optimised.
fn dns_programs(root: &Path) -> Result<()> {
    shell::demand_root("the benchmark of DNS")?;
    setup::ensure(&[Use::Demo])?;
    ebpf::build(root)?;
    let mut cargo = shell::cargo(root);
    cargo.args(["build", "--release", "--bins"]);
    cargo.args(["--package", "control", "--package", "agent", "--package", "ztunnel"]);
    shell::run(&mut cargo, "build control, agent and ztunnel")
}

/// Builds control optimised and measures it with a large mesh; needs no rights.
fn control(root: &Path, options: &[OsString]) -> Result<()> {
    let mut cargo = shell::cargo(root);
    cargo.args(["build", "--release", "--package", "control", "--bin", "control"]);
    shell::run(&mut cargo, "build control")?;
    let mut cargo = shell::cargo(root);
    cargo.args(["run", "--release", "--quiet", "--package", "scale", "--"]).args(options);
    shell::run(&mut cargo, "the benchmark of control")
}
