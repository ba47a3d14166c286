//! Whether ztunnel may splice connections within this node: only where it is wanted, and the running kernel
//! passed every case of the self-test.

use std::path::PathBuf;

use capture::{
    Node,
    splice::{cgroup_root, self_test},
};

/// How to splice.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The cgroup2 directory that holds agent, ztunnel and applications; the machine's root if `None`.
    pub(crate) cgroup: Option<PathBuf>,
}

/// Switches splicing on, or off: where it is not wanted, or cannot be, what an earlier agent left is taken
/// away. Whether it is on now.
///
/// # Errors
/// When what an earlier agent left cannot be taken away.
pub(crate) fn settle(node: &Node, wanted: Option<&Options>) -> Result<bool, capture::Error> {
    if let Some(options) = wanted {
        match switch_on(node, options) {
            Ok(()) => return Ok(true),
            Err(reason) => {
                tracing::warn!(
                    reason,
                    "connections within the node are NOT spliced, though --splice is given"
                );
            }
        }
    }
    node.splice_off()?;
    Ok(false)
}

fn switch_on(node: &Node, options: &Options) -> Result<(), String> {
    let cgroup = match &options.cgroup {
        Some(cgroup) => cgroup.clone(),
        None => cgroup_root().ok_or("no cgroup2 is mounted here; name a directory in --splice-cgroup")?,
    };
    let report = self_test(&cgroup).map_err(|error| format!("the self-test cannot be run: {error}"))?;
    if !report.is_good() {
        return Err(format!("this kernel fails the self-test: {}", report.failures.join("; ")));
    }
    node.splice_on(&cgroup).map_err(|error| error.to_string())?;
    let limits = report.limits.join("; ");
    tracing::info!(cgroup = %cgroup.display(), limits, "connections within the node may be spliced");
    Ok(())
}
