//! The agent's side, per node: what all pods share, and the way to each pod.

use crate::{
    Error, Mode, Netns, Pod, device, klog, layout, maps,
    programs::{self, Hook},
    routing,
};
use abi::Config;
use aya::{Ebpf, programs::TcAttachType};
use std::path::{Path, PathBuf};

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
        layout::make(&options.pins)?;
        let mut ebpf = programs::load(&options.pins, None, false)?;
        if let Some(cgroup) = &options.cgroup {
            programs::attach_stats(&mut ebpf, &options.pins, cgroup)?;
        }
        Ok(Self { options })
    }

    /// Loads, attaches and pins the capture of one pod, or adopts and renews what is pinned for it.
    ///
    /// A pod attached for the first time is in [`Mode::Learn`]; an adopted one keeps its mode. Pins that
    /// belong to an earlier namespace of the same pod are removed.
    ///
    /// # Errors
    /// A failure half-way leaves a pod attached for the first time as it was. An adopted one stays captured
    /// by the programs it has.
    pub fn attach(&self, target: &Target<'_>) -> Result<Pod, Error> {
        let dir = layout::pod(&self.options.pins, target.uid)?;
        let adopted = match maps::read_config(&dir) {
            Ok(config) => config.netns == target.netns.inode(),
            Err(_) => false,
        };
        if !adopted {
            layout::remove(&dir)?;
        }
        layout::make(&dir)?;
        let attached = self.attach_in(target, &dir, adopted);
        if attached.is_err() && !adopted {
            // The first error is the one to tell.
            let _ = take_away(&dir, target.netns, 0);
        }
        attached
    }

    fn attach_in(&self, target: &Target<'_>, dir: &Path, adopted: bool) -> Result<Pod, Error> {
        let device = device::of_pod(target.uid, target.netns)?;
        let host_end = device::host_end(&device, target.netns, target.node_netns)?;
        let mut ebpf = programs::load(&self.options.pins, Some(dir), self.options.kernel_log)?;
        let accept_local = target.netns.enter(routing::accept_local_now)?;
        target.netns.enter(routing::set_up)?.map_err(|source| {
            Error::system(format!("pod {}: set up the routing of captured packets", target.uid), source)
        })?;
        if !adopted {
            let netns = target.netns.inode();
            let config = Config { mode: Mode::Learn as u32, guard: 1, netns, accept_local, zero: 0 };
            maps::write_config(dir, &config)?;
        }
        attach_all(&mut ebpf, target, dir, &device.name, host_end.as_deref())?;
        let log = match self.options.kernel_log {
            true => Some(klog::Reader::start(&mut ebpf, target.uid)?),
            false => None,
        };
        let pod = Pod::new(&self.options.pins, target, dir, host_end.is_some(), log)?;
        if !adopted {
            pod.measure_guard()?;
        }
        Ok(pod)
    }

    /// The ids of the pods that have pins.
    pub fn pinned(&self) -> Result<Vec<String>, Error> {
        layout::pods(&self.options.pins)
    }

    /// Removes the pins of a pod whose namespace is gone. Where it is not gone, this ends the capture, but
    /// leaves rules and routes: use [`Pod::detach`].
    pub fn discard(&self, uid: &str) -> Result<(), Error> {
        layout::remove(&layout::pod(&self.options.pins, uid)?)
    }
}

/// In this order a packet that one program sends on finds the next one already there.
fn attach_all(
    ebpf: &mut Ebpf,
    target: &Target<'_>,
    dir: &Path,
    device: &str,
    host_end: Option<&str>,
) -> Result<(), Error> {
    programs::attach_reuse(ebpf, dir, target.netns)?;
    let (pod, node) = (target.netns, target.node_netns);
    let (into, out) = (TcAttachType::Ingress, TcAttachType::Egress);
    let in_pod = [
        Hook { program: programs::LOOPBACK, device: "lo", direction: into, netns: pod },
        Hook { program: programs::INGRESS, device, direction: into, netns: pod },
        Hook { program: programs::EGRESS, device, direction: out, netns: pod },
    ];
    for hook in &in_pod {
        programs::attach(ebpf, dir, hook)?;
    }
    match host_end {
        Some(device) => {
            let hook = Hook { program: programs::GUARD, device, direction: into, netns: node };
            programs::attach(ebpf, dir, &hook)
        }
        None => Ok(()),
    }
}

/// Removes everything that [`Node::attach`] made for a pod.
pub(crate) fn take_away(dir: &Path, netns: &Netns, accept_local: u32) -> Result<(), Error> {
    for program in programs::LINKED {
        programs::detach(&layout::link(dir, program))?;
    }
    netns
        .enter(|| routing::tear_down(accept_local))?
        .map_err(|source| Error::system("take away the routing of captured packets", source))?;
    layout::remove(dir)
}
