//! The benchmark: built optimised, run by `tests/bench`.

use std::{ffi::OsString, path::Path};

use anyhow::Result;

use crate::{build, setup, shell, tool_table::Use};

/// What is passed on to `tests/bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Options of the benchmark itself, for example --peer-ztunnel PATH. `control`, as the first word, measures
    /// control with many workloads and many nodes instead; what follows is for that (control --help).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
    options: Vec<OsString>,
}

/// Builds everything optimised and runs the benchmark.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    if let Some((first, options)) = args.options.split_first()
        && first == "control"
    {
        return control(root, options);
    }
    shell::demand_root("the benchmark")?;
    setup::ensure(&[Use::Bench])?;
    build::run(root, &build::Args::release())?;
    let mut cargo = shell::cargo(root);
    cargo.args(["run", "--release", "--quiet", "--package", "bench", "--"]).args(&args.options);
    shell::run(&mut cargo, "the benchmark")
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
