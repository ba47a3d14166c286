//! demo
use anyhow::Result;
use std::path::Path;
/// args
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}
pub(crate) fn run(_root: &Path, _args: &Args) -> Result<()> {
    Ok(())
}
