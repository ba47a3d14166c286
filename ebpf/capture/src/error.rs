//! What can go wrong between us and the kernel, told so that an operator can act on it.

use std::{io, path::PathBuf};

/// Why the kernel's side of capture could not be made, changed or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call of the operating system failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried, and on what.
        what: String,
        /// What the system answered.
        source: io::Error,
    },
    /// A pin that should be there is not: no agent has attached this pod, or it was detached.
    #[error("{}: no such pin; is the agent running, and is bpffs shared with this process?", path.display())]
    NoPin {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The kernel programs could not be loaded, attached or reached.
    #[error("{what}: {reason}")]
    Kernel {
        /// What was tried, and on what.
        what: String,
        /// What aya or the kernel's verifier said.
        reason: String,
    },
    /// The pod's network namespace is not one that can be captured.
    #[error("pod {uid}: {reason}")]
    Unsupported {
        /// The pod.
        uid: String,
        /// What is missing, and what to do.
        reason: String,
    },
}

impl Error {
    pub(crate) fn system(what: impl Into<String>, source: io::Error) -> Self {
        Self::System { what: what.into(), source }
    }

    /// With the whole chain of causes in one line.
    pub(crate) fn kernel(what: impl Into<String>, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors repeat their cause in their own text.
            if !reason.contains(&text) {
                reason = format!("{reason}: {text}");
            }
            cause = error.source();
        }
        Self::Kernel { what: what.into(), reason }
    }
}
