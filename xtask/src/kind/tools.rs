//! The programs that a cluster needs: taken from the PATH, or said to be missing, with how to get them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{image, shell};

/// helm, as a Go module: there is no package of it in Debian.
const HELM: &str = "helm.sh/helm/v3/cmd/helm@v3.22.0";
/// kind, too.
const KIND: &str = "sigs.k8s.io/kind@v0.33.0";

/// Where the programs are. docker is found by all of them in the PATH.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    pub(crate) kind: PathBuf,
    pub(crate) kubectl: PathBuf,
    pub(crate) helm: PathBuf,
}

impl Tools {
    /// Finds all, or tells of all that is missing at once.
    pub(crate) fn find(root: &Path) -> Result<Self> {
        image::demand_docker()?;
        let found =
            (shell::which("kubectl"), go_program(root, "kind", KIND)?, go_program(root, "helm", HELM)?);
        if let (Some(kubectl), Some(kind), Some(helm)) = &found {
            return Ok(Self { kind: kind.clone(), kubectl: kubectl.clone(), helm: helm.clone() });
        }
        let (kubectl, kind, helm) = found;
        let mut missing = Vec::new();
        let mut want = |there: bool, what: &str| {
            if !there {
                missing.push(what.to_owned());
            }
        };
        want(kubectl.is_some(), "kubectl: https://kubernetes.io/docs/tasks/tools");
        want(kind.is_some(), &format!("kind: go install {KIND}, or https://kind.sigs.k8s.io"));
        want(helm.is_some(), &format!("helm 3: go install {HELM}, or https://helm.sh"));
        bail!("not in the PATH:\n  {}", missing.join("\n  "))
    }
}

/// helm alone, for the chart's checks.
pub(crate) fn demand_helm(root: &Path) -> Result<PathBuf> {
    let helm = go_program(root, "helm", HELM)?;
    helm.with_context(|| {
        format!("no helm in the PATH, and no Go to install it: go install {HELM}, or https://helm.sh")
    })
}

/// A program from the PATH or `target/tools`, installed there by `go` if it is nowhere; `None` without a `go`.
fn go_program(root: &Path, name: &str, module: &str) -> Result<Option<PathBuf>> {
    if let Some(path) = shell::which(name) {
        return Ok(Some(path));
    }
    let folder = root.join("target/tools/bin");
    let path = folder.join(name);
    if !path.is_file() {
        let Some(go) = go() else { return Ok(None) };
        println!("  installing  {name:<18} with go, into target/tools/bin");
        let mut go = Command::new(go);
        go.args(["install", "-ldflags=-s -w", module]).env("GOBIN", &folder).env("CGO_ENABLED", "0");
        shell::run(&mut go, &format!("install {module}"))?;
    }
    Ok(Some(path))
}

/// Go itself.
pub(crate) fn go() -> Option<PathBuf> {
    // Debian's folder for a Go of its own, and the one of Go's own archive.
    shell::which("go").or_else(|| Some(PathBuf::from("/usr/local/go/bin/go")).filter(|go| go.is_file()))
}
