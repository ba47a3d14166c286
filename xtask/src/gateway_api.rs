//! The Gateway API's definitions, as its Go module has them: whoever runs a mesh installs them, and so do the tests.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{kind::tools, shell};

/// Its version is that of the suite's module, where it is a dependency.
const MODULE: &str = "sigs.k8s.io/gateway-api";
/// What a waypoint reads.
const KINDS: [&str; 8] = [
    "gatewayclasses",
    "gateways",
    "httproutes",
    "grpcroutes",
    "tlsroutes",
    "tcproutes",
    "referencegrants",
    "backendtlspolicies",
];

/// The files of the standard channel's definitions, as far as waypoints read them.
pub(crate) fn definitions(root: &Path) -> Result<Vec<PathBuf>> {
    let go = tools::go().context("no Go in the PATH: https://go.dev/doc/install")?;
    let mut fetch = Command::new(go);
    fetch.args(["mod", "download", "-json", MODULE]).current_dir(root.join("tests/conformance"));
    let told = shell::output(&mut fetch, &format!("fetch the Go module {MODULE}"))?;
    let told: Value = serde_json::from_str(&told).context("what go tells of the module")?;
    let folder = PathBuf::from(told["Dir"].as_str().context("go names no folder of the module")?);
    let folder = folder.join("config/crd/standard");
    let file = |kind: &str| folder.join(format!("gateway.networking.k8s.io_{kind}.yaml"));
    Ok(KINDS.into_iter().map(file).collect())
}
