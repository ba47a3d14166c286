//! Which pod a process belongs to, by what the kernel says of its cgroups. Pure: text in, uids out.
//!
//! The kubelet gives each pod a cgroup that bears its uid, and the runtime one below it for each container:
//!
//! ```text
//! cgroupfs  /kubepods/burstable/pod<uid>/<container>
//! systemd   /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/cri-containerd-<container>.scope
//! ```
//!
//! systemd's names have `_` where the uid has `-`. What stands before differs (kind puts `/kubelet` there, a cgroup
//! namespace shows `/../..`), so any component of the path may be the one. The uids of static pods are no UUIDs
//! and not those of their mirror pods: they name nobody here.

/// The dashes of a UUID.
const DASHES: [usize; 4] = [8, 13, 18, 23];
const UUID: usize = 36;

/// A pod that a process belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Membership {
    pub(super) uid: String,
    /// How many cgroups below the pod's own: 1 for a container's first process, more for what a container made.
    /// The most of all hierarchies, since in some of version 1 a process stays in the pod's own.
    pub(super) depth: usize,
}

/// The pods named in the text of a `/proc/PID/cgroup`, each once; more than one where clusters are nested.
pub(super) fn memberships(text: &str) -> Vec<Membership> {
    let mut found: Vec<Membership> = Vec::new();
    for line in text.lines() {
        // hierarchy : controllers : path, and only the last may hold colons.
        let Some(path) = line.splitn(3, ':').nth(2) else { continue };
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        for (at, part) in parts.iter().enumerate() {
            let Some(uid) = uid(part) else { continue };
            let depth = parts.len() - at - 1;
            match found.iter_mut().find(|known| known.uid == uid) {
                Some(known) => known.depth = known.depth.max(depth),
                None => found.push(Membership { uid, depth }),
            }
        }
    }
    found
}

/// The uid that a cgroup's name ends with, as Kubernetes writes it.
fn uid(name: &str) -> Option<String> {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let (before, uid) = name.split_at_checked(name.len().checked_sub(UUID)?)?;
    let before = before.strip_suffix("pod")?;
    let is_name = before.is_empty() || before.ends_with('-');
    let is_uuid = uid.bytes().enumerate().all(|(at, byte)| match DASHES.contains(&at) {
        true => byte == b'-' || byte == b'_',
        false => byte.is_ascii_hexdigit(),
    });
    (is_name && is_uuid).then(|| uid.replace('_', "-").to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UID: &str = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";
    const CONTAINER: &str = "b4ac7a1c9d0f4c2d9a53c5b2a0f3a7a66f6e1a2f0b8f4f0e9a7b6c5d4e3f2a1b";

    fn of(text: &str) -> Vec<(String, usize)> {
        memberships(text).into_iter().map(|found| (found.uid, found.depth)).collect()
    }

    fn one(depth: usize) -> Vec<(String, usize)> {
        vec![(UID.to_owned(), depth)]
    }

    #[test]
    fn what_runtimes_and_drivers_write_is_understood() {
        let under = UID.replace('-', "_");
        let samples = [
            // containerd, cgroup v2, systemd.
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-{CONTAINER}.scope\n"
            ),
            // Guaranteed pods have no class in their name.
            format!("0::/kubepods.slice/kubepods-pod{under}.slice/cri-containerd-{CONTAINER}.scope\n"),
            // CRI-O, cgroup v2, systemd.
            format!(
                "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{under}.slice/crio-{CONTAINER}.scope\n"
            ),
            // containerd, cgroup v2, cgroupfs.
            format!("0::/kubepods/burstable/pod{UID}/{CONTAINER}\n"),
            format!("0::/kubepods/pod{UID}/{CONTAINER}\n"),
            // containerd, cgroup v1, cgroupfs: a line for each hierarchy.
            format!(
                "12:pids:/kubepods/burstable/pod{UID}/{CONTAINER}\n11:cpu,cpuacct:/kubepods/burstable/pod{UID}/{CONTAINER}\n\
                 1:name=systemd:/kubepods/burstable/pod{UID}/{CONTAINER}\n0::/system.slice/containerd.service\n"
            ),
            // containerd, cgroup v1, systemd, with the runtime's own form of the path.
            format!(
                "10:memory:/system.slice/containerd.service/kubepods-burstable-pod{UID}.slice:cri-containerd:{CONTAINER}\n\
                 9:cpuset:/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-{CONTAINER}.scope\n"
            ),
            // dockerd by cri-dockerd.
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/docker-{CONTAINER}.scope\n"
            ),
            // kind, both drivers, on machines of cgroup v2 and v1.
            format!(
                "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{under}.slice/cri-containerd-{CONTAINER}.scope\n"
            ),
            format!(
                "4:memory:/docker/{CONTAINER}/kubelet/kubepods/besteffort/pod{UID}/{CONTAINER}\n0::/docker/{CONTAINER}/kubelet/kubepods/besteffort/pod{UID}/{CONTAINER}\n"
            ),
            // Seen out of another pod's cgroup namespace.
            format!("0::/../../kubepods-burstable-pod{under}.slice/cri-containerd-{CONTAINER}.scope\n"),
            format!("0::/../../../besteffort/pod{UID}/{CONTAINER}\n"),
        ];
        for sample in samples {
            assert_eq!(of(&sample), one(1), "{sample}");
        }
    }

    #[test]
    fn what_a_container_made_below_itself_lies_deeper() {
        assert_eq!(of(&format!("0::/kubepods/pod{UID}\n")), one(0));
        assert_eq!(of(&format!("0::/kubepods/pod{UID}/{CONTAINER}/docker/{CONTAINER}\n")), one(3));
        // Seen in kind on a machine of cgroup v1: not every hierarchy has a cgroup for the container.
        let both = format!(
            "6:freezer:/kubelet.slice/kubelet-kubepods-besteffort-pod{UID}.slice/cri-containerd-{CONTAINER}.scope\n\
             5:devices:/kubelet.slice/kubelet-kubepods-besteffort-pod{UID}.slice\n"
        );
        assert_eq!(of(&both), one(1));
    }

    #[test]
    fn of_nested_clusters_both_pods_are_named() {
        let inner = "ffffffff-4e5f-6071-8293-a4b5c6d7e8f9";
        let text = format!("0::/kubepods/pod{UID}/{CONTAINER}/kubelet/kubepods/pod{inner}/{CONTAINER}\n");
        assert_eq!(of(&text), [(UID.to_owned(), 5), (inner.to_owned(), 1)]);
    }

    #[test]
    fn what_is_no_pod_names_nobody() {
        let nobody = [
            "",
            "0::/\n",
            "0::/init.scope\n",
            "0::/system.slice/kubelet.service\n",
            "0\n",
            "::\n",
            // A static pod: the hash of its configuration.
            "0::/kubepods/burstable/podb83789a8a722c1eb7b0ee4c5f6c8b4ba/x\n",
            // Too short, too long, or of another kind.
            "0::/kubepods/pod0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f/x\n",
            "0::/kubepods/0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9/x\n",
            "0::/kubepods/tripod0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9/x\n",
            "0::/kubepods/pod0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8fg/x\n",
            "0::/libpod-0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9.scope\n",
        ];
        for text in nobody {
            assert_eq!(of(text), [], "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "\\PC{0,200}") {
            memberships(&text);
        }

        #[test]
        fn whatever_stands_around_it_a_pod_is_found(
            before in "(/[a-z.-]{1,12}){0,4}", after in "(/[a-z0-9.-]{1,12}){0,3}", dashes in any::<bool>(),
        ) {
            let name = if dashes { format!("pod{UID}") } else { format!("kubepods-pod{}.slice", UID.replace('-', "_")) };
            let depth = after.split('/').filter(|part| !part.is_empty()).count();
            prop_assert_eq!(of(&format!("0::{before}/{name}{after}\n")), one(depth));
        }
    }
}
