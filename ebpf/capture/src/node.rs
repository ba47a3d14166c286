//! The agent's side, per node: the shared maps and programs, and the way to each pod.

use crate::{Error, Netns, Pod};
use std::path::PathBuf;

/// How a node's capture is set up.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// A directory in a mounted bpffs, made if missing: `/sys/fs/bpf/culvert`.
    pub pins: PathBuf,
    /// The cgroup2 directory that ztunnel runs in or below, where round-trip times and retransmits are
    /// measured; without one they are not.
    pub cgroup: Option<PathBuf>,
    /// Whether the kernel programs log each verdict (slow; for debugging).
    pub kernel_log: bool,
}

/// The capture of one node.
#[derive(Debug)]
pub struct Node {
    options: NodeOptions,
}

/// The pod to attach.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The pod's unique id, which names its pins.
    pub uid: &'a str,
    /// The pod's network namespace.
    pub netns: &'a Netns,
    /// The namespace that holds the host's end of the pod's link.
    pub node_netns: &'a Netns,
}

impl Node {
    /// Makes what all pods share, or adopts what another agent left pinned.
    pub fn open(options: NodeOptions) -> Result<Self, Error> {
        Ok(Self { options })
    }

    /// Loads, attaches and pins the capture of one pod, or adopts and renews what is pinned for it.
    ///
    /// A pod attached for the first time is in [`crate::Mode::Learn`]; an adopted one keeps its mode.
    pub fn attach(&self, target: &Target<'_>) -> Result<Pod, Error> {
        Err(unfinished(target.uid, &self.options))
    }

    /// The ids of the pods that have pins.
    pub fn pinned(&self) -> Result<Vec<String>, Error> {
        Err(unfinished("", &self.options))
    }

    /// Removes the pins of a pod whose namespace is gone.
    pub fn discard(&self, uid: &str) -> Result<(), Error> {
        Err(unfinished(uid, &self.options))
    }
}

pub(crate) fn unfinished(uid: &str, options: &NodeOptions) -> Error {
    Error::Unsupported { uid: uid.to_owned(), reason: format!("not built yet ({})", options.pins.display()) }
}
