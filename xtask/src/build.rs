//! Building: the kernel programs first (the capture crate embeds them), then the workspace.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::Result;

use crate::{ebpf, setup, shell, tool_table::Use};

/// What to build.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Optimised, as shipped; the default is the profile that tests and the demo use.
    #[arg(long)]
    release: bool,
}

impl Args {
    /// Optimised.
    pub(crate) fn release() -> Self {
        Self { release: true }
    }
}

/// Builds the kernel programs and all programs of the workspace.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    setup::ensure(&[Use::Demo])?;
    ebpf::build(root)?;
    let mut cargo = shell::cargo(root);
    cargo.args(["build", "--workspace", "--bins"]);
    if args.release {
        cargo.arg("--release");
    }
    shell::run(&mut cargo, "build the workspace")
}

/// Builds all programs and their tests, as development and tests have them, by one command: another would compile much
/// of it again, since tests turn on features of dependencies. The lines of `cargo --message-format=json`.
pub(crate) fn with_tests(root: &Path) -> Result<String> {
    ebpf::build(root)?;
    let mut cargo = shell::cargo(root);
    cargo.args(["build", "--workspace", "--bins", "--tests", "--message-format=json-render-diagnostics"]);
    shell::output(cargo.stderr(Stdio::inherit()), "build the programs and their tests")
}

/// Where cargo puts what it builds.
pub(crate) fn target_folder(root: &Path) -> PathBuf {
    let all = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    root.join(all)
}
