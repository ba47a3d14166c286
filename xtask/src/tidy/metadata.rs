//! What `cargo metadata` says of our own packages.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::shell;

/// The packages of the workspace.
#[derive(Debug, Deserialize)]
pub(crate) struct Workspace {
    pub(crate) packages: Vec<Package>,
}

/// One of our packages.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
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

/// Reads the metadata of the workspace with this manifest.
pub(crate) fn read(root: &Path, manifest: &Path) -> Result<Workspace> {
    let mut cargo = shell::cargo(root);
    cargo.args(["metadata", "--format-version", "1", "--locked", "--no-deps"]);
    cargo.arg("--manifest-path").arg(manifest);
    let text = shell::output(&mut cargo, &format!("cargo metadata of {}", manifest.display()))?;
    serde_json::from_str(&text).context("the output of cargo metadata")
}
