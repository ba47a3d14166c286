//! The Gateway API's definitions, as its Go module has them: whoever runs a mesh installs them, and so do the tests.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell;

/// The version that is tried.
const MODULE: &str = "sigs.k8s.io/gateway-api@v1.6.3";
/// What a waypoint reads.
const KINDS: [&str; 5] = ["gatewayclasses", "gateways", "httproutes", "grpcroutes", "referencegrants"];

/// The files of the standard channel's definitions, as far as waypoints read them.
pub(crate) fn definitions() -> Result<Vec<PathBuf>> {
    if shell::which("go").is_none() {
        bail!("no go in the PATH, by which the module {MODULE} is fetched: install it (https://go.dev/dl)");
    }
    let mut go = Command::new("go");
    // Outside of any module, so that nothing but this one is looked at.
    go.args(["mod", "download", "-json", MODULE]).current_dir(std::env::temp_dir());
    let told = shell::output(&mut go, &format!("fetch the Go module {MODULE}"))?;
    let told: Value = serde_json::from_str(&told).context("what go tells of the module")?;
    let folder = PathBuf::from(told["Dir"].as_str().context("go names no folder of the module")?);
    let folder = folder.join("config/crd/standard");
    let file = |kind: &str| folder.join(format!("gateway.networking.k8s.io_{kind}.yaml"));
    Ok(KINDS.into_iter().map(file).collect())
}
