//! What the agent finds on its node, looked at anew whenever somebody asks: for `culvert check`, which needs no
//! privileged pod of its own then. It repairs nothing; whoever does looks for himself.

use std::{
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use prometheus_client::metrics::gauge::Gauge;
use serde_json::{Value, json};

use crate::{bpffs, plugin};

/// The oldest kernel that has what the programs need: tcx, and sk_assign from it.
const KERNEL: (u32, u32) = (6, 6);
/// Types of the kernel's own, by which the programs are fitted to it.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// What is looked at.
pub(crate) struct Looked {
    pub(crate) node: String,
    pub(crate) pins: PathBuf,
    pub(crate) cgroup: Option<PathBuf>,
    /// The plugin's set-up, and the knowledge of namespaces that its entry names; `None`: not asked for.
    pub(crate) plugin: Option<(plugin::Options, std::sync::Arc<plugin::Namespaces>)>,
    /// Whether the kubelet is known; `None`: not asked for.
    pub(crate) kubelet: Option<Gauge>,
    pub(crate) control: Gauge,
    pub(crate) ztunnels: Gauge,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    check: &'static str,
    state: &'static str,
    found: String,
    mend: String,
}

impl Found {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, state: "ok", found: found.into(), mend: String::new() }
    }

    fn wrong(
        check: &'static str,
        state: &'static str,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { check, state, found: found.into(), mend: mend.into() }
    }
}

impl Looked {
    /// Everything, as the admin server shows it.
    pub(crate) fn json(&self) -> Value {
        let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
        let found = [
            kernel(release.as_deref().unwrap_or_default()),
            btf(Path::new(BTF)),
            in_bpffs(&self.pins),
            cgroup(self.cgroup.as_deref()),
            self.kubelet(),
            self.cni(),
            self.control(),
            self.ztunnel(),
        ];
        let checks: Vec<Value> = found
            .into_iter()
            .map(|one| json!({"check": one.check, "state": one.state, "found": one.found, "mend": one.mend}))
            .collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        json!({"node": self.node, "version": runtime::VERSION, "time": now, "checks": checks})
    }

    fn kubelet(&self) -> Found {
        match &self.kubelet {
            None => Found::ok("kubelet", "its probes are captured like any call, as the agent was told"),
            Some(known) if known.get() == 1 => Found::ok("kubelet", "it is known, and its probes pass"),
            Some(_) => Found::wrong(
                "kubelet",
                "warning",
                "this node's kubelet cannot be told apart: its probes are refused where mutual TLS is STRICT",
                "the agent's log says why; where it stays so, use exec probes, or mutual TLS PERMISSIVE on the probed port",
            ),
        }
    }

    fn cni(&self) -> Found {
        let Some((options, namespaces)) = &self.plugin else {
            return Found::wrong(
                "cni",
                "warning",
                "the CNI plugin is not installed: a new pod's first connections may leave in plaintext",
                "install with it: agent.cni.enabled=true, or no --no-cni",
            );
        };
        match options.look(namespaces) {
            Ok(chain) if chain.in_place => {
                Found::ok("cni", format!("{}: {}", name(&chain.path), chain.types.join(" → ")))
            }
            Ok(chain) => Found::wrong(
                "cni",
                "problem",
                format!("{}: {}, without {}", name(&chain.path), chain.types.join(" → "), cni::PLUGIN),
                "somebody takes the entry out again; with Cilium, set cni.exclusive=false",
            ),
            Err(error) => {
                Found::wrong("cni", "problem", error.to_string(), "put the node's CNI configuration right")
            }
        }
    }

    fn control(&self) -> Found {
        match self.control.get() {
            1 => Found::ok("control", "connected"),
            _ => Found::wrong(
                "control",
                "problem",
                "there is no stream to control: pods stay as they are, and nothing new is captured",
                "see the agent's log for why, and whether control is ready",
            ),
        }
    }

    fn ztunnel(&self) -> Found {
        match self.ztunnels.get() {
            0 => Found::wrong(
                "ztunnel",
                "problem",
                "no ztunnel is connected: captured pods of this node reach nobody",
                "see why the ztunnel pod of this node is not running",
            ),
            1 => Found::ok("ztunnel", "connected"),
            more => Found::ok("ztunnel", format!("{more} connected: one takes over from the other")),
        }
    }
}

/// A file without its folder, which has another name in the agent's container than on the node.
fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn kernel(release: &str) -> Found {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= KERNEL => Found::ok("kernel", release),
        _ => Found::wrong(
            "kernel",
            "problem",
            format!("Linux {release:?}"),
            format!("run a node image with Linux {}.{} or newer", KERNEL.0, KERNEL.1),
        ),
    }
}

fn btf(path: &Path) -> Found {
    match std::fs::metadata(path) {
        Ok(file) => Found::ok("btf", format!("{}, {} KiB", path.display(), file.len() / 1024)),
        Err(error) => Found::wrong(
            "btf",
            "problem",
            format!("{}: {error}", path.display()),
            "run a kernel that is built with CONFIG_DEBUG_INFO_BTF=y",
        ),
    }
}

fn in_bpffs(pins: &Path) -> Found {
    match bpffs::is_there(pins) {
        Ok(true) => Found::ok("bpffs", format!("{} is in one", pins.display())),
        Ok(false) => Found::wrong(
            "bpffs",
            "problem",
            format!("{} is in another filesystem", pins.display()),
            "mount a bpffs at /sys/fs/bpf on the node, or leave agent.mountBpffs on",
        ),
        Err(error) => Found::wrong(
            "bpffs",
            "problem",
            format!("{} cannot be looked at: {error}", pins.display()),
            "the pins are gone, so pods are not captured any more: delete this agent's pod, which sets them up anew",
        ),
    }
}

fn cgroup(given: Option<&Path>) -> Found {
    let Some(path) = given else {
        return Found::ok("cgroup", "round-trip times are not measured, as the agent was told");
    };
    match statfs(path) {
        Ok(at) if at.filesystem_type() == CGROUP2_SUPER_MAGIC => {
            Found::ok("cgroup", format!("{} is cgroup2", path.display()))
        }
        Ok(_) => Found::wrong(
            "cgroup",
            "warning",
            format!("{} is no cgroup2: round-trip times are not measured", path.display()),
            "name a directory of cgroup2 in agent.cgroup, or none",
        ),
        Err(error) => {
            let mend = "name a directory of cgroup2 in agent.cgroup, or none";
            Found::wrong("cgroup", "warning", format!("{}: {error}", path.display()), mend)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_old_or_new_enough() {
        for (release, state) in [
            ("6.6.0", "ok"),
            ("6.12.8-generic", "ok"),
            ("7.0-rc1", "ok"),
            ("6.5.13", "problem"),
            ("5.15.0-91-generic", "problem"),
            ("", "problem"),
        ] {
            assert_eq!(kernel(release).state, state, "{release}");
        }
    }

    #[test]
    fn what_is_not_as_it_should_be_says_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let found = [
            btf(&folder.path().join("vmlinux")),
            in_bpffs(folder.path()),
            in_bpffs(&folder.path().join("gone")),
            cgroup(Some(folder.path())),
        ];
        for one in found {
            assert!(one.state != "ok" && !one.mend.is_empty(), "{one:?}");
        }
        assert_eq!(cgroup(None).state, "ok");
    }
}
