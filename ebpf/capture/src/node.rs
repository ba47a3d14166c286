//! The agent's side, per node: what all pods share, and the way to each pod.

use crate::{
    Error, Mode, Netns, Pod, device, klog, layout, maps,
    programs::{self, Hook, Place},
    routing, sockdiag, splice,
};
use abi::Config;
use aya::programs::TcAttachType;
use std::path::{Path, PathBuf};

/// Room for a million flows is 16 MiB of kernel memory, before there is one.
const MOST_FLOWS: u32 = 1 << 20;

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
    /// Whether pods are captured for a foreign ztunnel too, told by its fixed ports and a packet mark, which
    /// a pod with NET_ADMIN can forge. See [`abi::FOREIGN_MARK`].
    pub foreign: bool,
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
        let mut ebpf = programs::load(&Place { shared: &options.pins, pod: None, flows: 1 }, false)?;
        if let Some(cgroup) = &options.cgroup {
            programs::attach_stats(&mut ebpf, &options.pins, cgroup)?;
        }
        Ok(Self { options })
    }

    /// Lets connections of the node's kubelet, told by its cgroup's id, pass to the pods' applications: health
    /// probes, which nobody can present a certificate for. `None` ends that.
    pub fn set_kubelet(&self, cgroup: Option<u64>) -> Result<(), Error> {
        maps::write_kubelet(&self.options.pins, cgroup.unwrap_or(0))
    }

    /// Lets ztunnel splice the applications of this node: makes what that needs, or adopts what an earlier
    /// agent left. The cgroup2 directory is one that holds the applications and ztunnel. Pods that are
    /// attached from now on take part, in [`Mode::Enforce`]; see [`splice::self_test`] first.
    pub fn splice_on(&self, cgroup: &Path) -> Result<(), Error> {
        splice::agent::switch_on(&self.options.pins, cgroup)
    }

    /// Ends all splicing: what is spliced goes on through ztunnel. That it was off is fine.
    pub fn splice_off(&self) -> Result<(), Error> {
        splice::agent::switch_off(&self.options.pins)
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
            Err(Error::NoPin { .. }) => false,
            // Another version's pins are not taken away: the pod would be open for a moment.
            Err(error) => return Err(error),
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
        let hooks = hooks(target, &device.name, host_end.as_deref());
        let accept_local = target.netns.enter(routing::accept_local_now)?;
        target.netns.enter(routing::set_up)?.map_err(|source| {
            Error::system(format!("pod {}: set up the routing of captured packets", target.uid), source)
        })?;
        let mut log = None;
        if !adopted || !self.is_current(dir, &hooks)? {
            let flows = if adopted { abi::FLOW_LIMIT } else { room_for_flows(target)? };
            let place = Place { shared: &self.options.pins, pod: Some(dir), flows };
            let mut ebpf = programs::load(&place, self.options.kernel_log)?;
            if !adopted {
                let (mode, netns) = (Mode::Learn as u32, target.netns.inode());
                let foreign = u32::from(self.options.foreign);
                let config = Config { mode, guard: 1, netns, build: 0, accept_local, foreign };
                maps::write_config(dir, &config)?;
            }
            programs::attach_reuse(&mut ebpf, dir, target.netns)?;
            for hook in &hooks {
                programs::attach(&mut ebpf, dir, hook)?;
            }
            let build = programs::build(self.options.kernel_log);
            maps::write_config(dir, &Config { build, ..maps::read_config(dir)? })?;
            if self.options.kernel_log {
                log = Some(klog::Reader::start(&mut ebpf, target.uid)?);
            }
        }
        if adopted {
            // The agent before may have been told otherwise.
            let foreign = u32::from(self.options.foreign);
            maps::write_config(dir, &Config { foreign, ..maps::read_config(dir)? })?;
        }
        let pod = Pod::new(&self.options.pins, target, dir, host_end.is_some(), log)?;
        pod.take_part(pod.mode());
        if !adopted {
            pod.measure_guard()?;
        }
        Ok(pod)
    }

    /// Whether the very programs that we would load are attached already. An agent that restarts finds its
    /// hundreds of pods so, and loading costs a tenth of a second for each.
    fn is_current(&self, dir: &Path, hooks: &[Hook<'_>]) -> Result<bool, Error> {
        // The log is read through the programs that are loaded here.
        if self.options.kernel_log || maps::read_config(dir)?.build != programs::build(false) {
            return Ok(false);
        }
        for hook in hooks {
            if !programs::is_attached(dir, hook)? {
                return Ok(false);
            }
        }
        Ok(true)
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
fn hooks<'a>(target: &Target<'a>, device: &'a str, host_end: Option<&'a str>) -> Vec<Hook<'a>> {
    let (pod, node) = (target.netns, target.node_netns);
    let (into, out) = (TcAttachType::Ingress, TcAttachType::Egress);
    let mut hooks = vec![
        Hook { program: programs::LOOPBACK, device: "lo", direction: into, netns: pod },
        Hook { program: programs::INGRESS, device, direction: into, netns: pod },
        Hook { program: programs::EGRESS, device, direction: out, netns: pod },
    ];
    if let Some(device) = host_end {
        hooks.push(Hook { program: programs::GUARD, device, direction: into, netns: node });
    }
    hooks
}

/// Room for four times the sockets that a pod has now: it is to outlive a drain, in which new connections
/// are recorded too.
fn room_for_flows(target: &Target<'_>) -> Result<u32, Error> {
    let sockets = target
        .netns
        .enter(sockdiag::list)?
        .map_err(|source| Error::system(format!("pod {}: list its TCP sockets", target.uid), source))?;
    let wanted = u32::try_from(sockets.len()).unwrap_or(u32::MAX).saturating_mul(4);
    Ok(wanted.clamp(abi::FLOW_LIMIT, MOST_FLOWS))
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
