//! Fetching a program into `target/tools`, saying what and why, once for all processes.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

/// The folder of one tool. Holding it keeps every other process from filling the same folder.
pub(crate) struct Place {
    pub(crate) folder: PathBuf,
    _lock: Flock<File>,
}

impl Place {
    /// Takes `target/tools/NAME` of the repository at `root`; waits while another process has it.
    pub(crate) fn take(root: &Path, name: &str) -> Result<Self> {
        let folder = root.join("target/tools").join(name);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let path = folder.join("lock");
        let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("lock {}", path.display()))?;
        Ok(Self { folder, _lock: lock })
    }
}

/// Runs a command to its end; its output is told only if it fails.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("start {name} (is it installed? try `cargo xtask setup`)"))?;
    if !output.status.success() {
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        bail!(
            "{name} {} ended with {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
