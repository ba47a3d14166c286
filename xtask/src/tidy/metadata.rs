//! What `cargo metadata` says of the workspace and of all it depends on.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::shell;

/// The packages of a resolved workspace.
#[derive(Debug, Deserialize)]
pub(crate) struct Workspace {
    pub(crate) packages: Vec<Package>,
}

/// One package, ours or the world's.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) license: Option<String>,
    /// `None`: it comes from a path, so it is ours.
    source: Option<String>,
    pub(crate) manifest_path: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) targets: Vec<Target>,
}

/// A dependency as a manifest declares it.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// `None`: normal.
    pub(crate) kind: Option<String>,
}

/// A library, program, test or build script.
#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    pub(crate) kind: Vec<String>,
    pub(crate) src_path: PathBuf,
}

impl Package {
    pub(crate) fn is_ours(&self) -> bool {
        self.source.is_none()
    }
}

impl Workspace {
    /// Our own packages.
    pub(crate) fn ours(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| package.is_ours())
    }
}

/// Reads the metadata of the workspace with this manifest.
pub(crate) fn read(root: &Path, manifest: &Path) -> Result<Workspace> {
    let mut cargo = shell::cargo(root);
    cargo.args([
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--filter-platform",
        "x86_64-unknown-linux-gnu",
    ]);
    cargo.arg("--manifest-path").arg(manifest);
    let text = shell::output(&mut cargo, &format!("cargo metadata of {}", manifest.display()))?;
    serde_json::from_str(&text).context("the output of cargo metadata")
}
