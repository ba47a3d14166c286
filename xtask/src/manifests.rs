//! `cargo xtask manifests`: the chart, filled in with its defaults, as `culvert install` carries it. The file is kept
//! in the repository, so that building `culvert` needs no helm; CI proves that it is what the chart says.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::{kind, shell};

/// Where it is kept.
const FILE: &str = "deploy/manifests/culvert.yaml";
/// The chart asks which Kubernetes it is for. `culvert install` takes out what an older one does not know.
const KUBERNETES: &str = "1.34.0";
const OPENING: &str =
    "# The chart of deploy/helm/culvert with its defaults, filled in by `cargo xtask manifests`.\n";

/// Whether to write or to compare.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only compare, and fail where the chart says something else.
    #[arg(long)]
    pub(crate) check: bool,
}

/// Writes the file, or compares it.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let path = root.join(FILE);
    let filled = fill(root)?;
    if !args.check {
        let folder = path.parent().context("the file's folder")?;
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        fs::write(&path, filled).with_context(|| format!("write {}", path.display()))?;
        println!("{FILE} is what the chart says");
        return Ok(());
    }
    let kept = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    if let Some((number, line)) = difference(&kept, &filled) {
        bail!("{FILE}:{number} is not what the chart says, which is: {line}\n  run `cargo xtask manifests`");
    }
    println!("{FILE} is what the chart says");
    Ok(())
}

fn fill(root: &Path) -> Result<String> {
    let mut helm = Command::new(kind::demand_helm(root)?);
    helm.args(["template", "culvert"]).arg(root.join("deploy/helm/culvert"));
    helm.args(["--namespace", "culvert-system", "--include-crds", "--kube-version", KUBERNETES]);
    Ok(format!("{OPENING}{}", shell::output(&mut helm, "fill in the chart")?))
}

/// The first line that differs, and what it is to be.
fn difference<'t>(kept: &'t str, wanted: &'t str) -> Option<(usize, &'t str)> {
    let (mut kept, mut wanted, mut number) = (kept.lines(), wanted.lines(), 0);
    loop {
        number += 1;
        match (kept.next(), wanted.next()) {
            (None, None) => return None,
            (left, right) if left == right => {}
            (_, right) => return Some((number, right.unwrap_or("the end of the file"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(difference("a\nb\n", "a\nc\n"), Some((2, "c")));
        assert_eq!(difference("a\nb\n", "a\n"), Some((2, "the end of the file")));
        assert_eq!(difference("a\n", "a\nb\n"), Some((2, "b")));
    }
}
