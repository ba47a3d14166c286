//! Building: the kernel programs first (the capture crate embeds them), then the workspace.

use std::path::Path;

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
