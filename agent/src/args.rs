//! The agent's configuration.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use runtime::config::{Common, Problems, values};

/// Owns a node of the mesh: enrolls its pods, loads and pins the kernel programs that capture their
/// traffic, hands the pods to ztunnel, and tells control what it measured. Runs in the node's network
/// namespace, as root or with CAP_NET_ADMIN and CAP_SYS_ADMIN.
///
/// When it ends, everything stays captured: what is pinned in the kernel and ztunnel serve on, and
/// the next agent takes over. `agent uninstall` takes the capture away.
#[derive(Debug, Parser)]
#[command(name = "agent", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
// It shares its network namespace with ztunnel, which has 15000, 15020 and 15021.
#[command(mut_args = |arg| match arg.get_id().as_str() {
    "admin_addr" => arg.default_value("127.0.0.1:15100"),
    "metrics_addr" => arg.default_value("[::]:15120"),
    "ready_addr" => arg.default_value("[::]:15121"),
    _ => arg,
})]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) serve: Option<Serve>,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Takes the capture of every pod of this node away, at once: what is captured breaks. The agent
    /// must not be running; a ztunnel that runs is told, and lets go of the pods
    Uninstall(Uninstall),
    /// Mounts a bpffs, unless there is one: for nodes whose system does not
    MountBpffs(MountBpffs),
}

#[derive(Debug, Args)]
pub(crate) struct MountBpffs {
    /// Where to mount it
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub(crate) at: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    /// Directory in bpffs that the agent was given
    #[arg(long, value_name = "DIR", default_value = PINS)]
    pub(crate) pins: PathBuf,

    /// State directory that the agent was given
    #[arg(long, value_name = "DIR", default_value = STATE)]
    pub(crate) state: PathBuf,

    /// Unix socket on which ztunnels are told of the pods, as the agent was given it
    #[arg(long, value_name = "PATH", default_value = ZDS)]
    pub(crate) zds_socket: PathBuf,

    /// The node's procfs, as the agent was given it
    #[arg(long, value_name = "DIR", default_value = PROC)]
    pub(crate) host_proc: PathBuf,

    /// Directory of the node's CNI programs
    #[arg(long, value_name = "DIR", default_value = CNI_BIN)]
    pub(crate) cni_bin_dir: PathBuf,

    /// Directory of the node's CNI configurations
    #[arg(long, value_name = "DIR", default_value = CNI_CONF)]
    pub(crate) cni_conf_dir: PathBuf,

    /// Unix socket on which the CNI plugin asks, as the agent was given it
    #[arg(long, value_name = "PATH", default_value = CNI_SOCKET)]
    pub(crate) cni_socket: PathBuf,
}

const PINS: &str = "/sys/fs/bpf/culvert";
const STATE: &str = "/var/lib/culvert/agent";
const ZDS: &str = "/run/culvert/zds.sock";
const PROC: &str = "/proc";
const CNI_BIN: &str = "/opt/cni/bin";
const CNI_CONF: &str = "/etc/cni/net.d";
const CNI_SOCKET: &str = "/run/culvert/cni.sock";

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Name of this node
    #[arg(long, value_name = "NAME")]
    pub(crate) node: String,

    /// Where control is
    #[arg(long, value_name = "URL", value_parser = control_uri, help_heading = "Control")]
    pub(crate) control: String,

    /// PEM file with the certificates that control may prove itself by; read anew at each attempt
    #[arg(long, value_name = "FILE", help_heading = "Control")]
    pub(crate) control_ca: PathBuf,

    /// File with this node's token; read anew at each attempt
    #[arg(long, value_name = "FILE", help_heading = "Control")]
    pub(crate) token_file: PathBuf,

    /// Directory in a mounted bpffs for the kernel programs and maps; made if missing
    #[arg(long, value_name = "DIR", default_value = PINS, help_heading = "Capture")]
    pub(crate) pins: PathBuf,

    /// The node's procfs, where the network namespace of a pod that control names none for is found, by the
    /// pod's uid in the cgroups of its processes. Needs CAP_SYS_PTRACE
    #[arg(long, value_name = "DIR", default_value = PROC, help_heading = "Capture")]
    pub(crate) host_proc: PathBuf,

    /// Let the health probes of this node's kubelet pass to the pods' applications, also where mutual TLS is
    /// STRICT. The kubelet is known by the cgroup of its sockets: nothing that is forwarded to the node is taken for
    /// it. Where that cgroup holds containers, no probe passes
    #[arg(long, help_heading = "Capture")]
    pub(crate) kubelet_probes: bool,

    /// cgroup2 directory that ztunnel runs in or below, to measure round-trip times; without one they
    /// are not
    #[arg(long, value_name = "DIR", help_heading = "Capture")]
    pub(crate) cgroup: Option<PathBuf>,

    /// Let ztunnel splice connections between two captured pods of this node: what one application sends is
    /// queued at the other one in the kernel. Tried on the running kernel first, and left off where a case
    /// fails; read docs/splice.md for what applications may notice
    #[arg(long, help_heading = "Capture")]
    pub(crate) splice: bool,

    /// cgroup2 directory that the agent, ztunnel and the pods' applications run in or below, for splicing; the
    /// cgroup2 root of this machine where this is not given
    #[arg(long, value_name = "DIR", help_heading = "Capture")]
    pub(crate) splice_cgroup: Option<PathBuf>,

    /// Capture for a foreign ztunnel too, one that speaks ZDS and knows nothing of our eBPF: its listeners are
    /// found in each pod on the ports 15001, 15006 and 15008, and its sockets by the packet mark 0x539. That
    /// mark can be forged: a pod with NET_ADMIN sets it and passes ztunnel by, in plaintext and past every
    /// policy. Our own ztunnel does not need this option, and without it no mark counts
    #[arg(long, conflicts_with = "splice", help_heading = "Capture")]
    pub(crate) foreign_ztunnel: bool,

    /// How often each captured pod's capture is measured by a probe connection
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = values::duration, help_heading = "Capture")]
    pub(crate) probe_every: Duration,

    /// How long connections from before a pod's enrollment may live on past ztunnel; as long as they
    /// like where this is not given
    #[arg(long, value_name = "DURATION", value_parser = values::duration, help_heading = "Capture")]
    pub(crate) earlier_connections: Option<Duration>,

    /// Let the kernel programs log each verdict; slow, for debugging
    #[arg(long, help_heading = "Capture")]
    pub(crate) kernel_log: bool,

    /// Unix socket on which ztunnels are told of the pods (ZDS)
    #[arg(long, value_name = "PATH", default_value = ZDS, help_heading = "Node")]
    pub(crate) zds_socket: PathBuf,

    /// Unix socket on which a ztunnel leaves its certificates for the next one
    #[arg(long, value_name = "PATH", default_value = "/run/culvert/handover.sock", help_heading = "Node")]
    pub(crate) handover_socket: PathBuf,

    /// Install the CNI plugin on this node and answer it: a pod that is to be in the mesh starts only when it is
    /// captured. The plugin outlives the agent: without one, pods of namespaces in the mesh do not start
    #[arg(long, help_heading = "CNI")]
    pub(crate) cni: bool,

    /// Directory of the node's CNI programs
    #[arg(long, value_name = "DIR", default_value = CNI_BIN, help_heading = "CNI")]
    pub(crate) cni_bin_dir: PathBuf,

    /// Directory of the node's CNI configurations; the plugin is added to the first in it
    #[arg(long, value_name = "DIR", default_value = CNI_CONF, help_heading = "CNI")]
    pub(crate) cni_conf_dir: PathBuf,

    /// Unix socket on which the CNI plugin asks; the same path on the node
    #[arg(long, value_name = "PATH", default_value = CNI_SOCKET, help_heading = "CNI")]
    pub(crate) cni_socket: PathBuf,

    /// The plugin's program; `culvert-cni` beside the agent's where this is not given
    #[arg(long, value_name = "FILE", help_heading = "CNI")]
    pub(crate) cni_plugin: Option<PathBuf>,

    /// Namespaces whose pods start without asking: the node's and the mesh's own
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "kube-system,culvert-system",
        help_heading = "CNI"
    )]
    pub(crate) cni_exempt: Vec<String>,

    /// At the end, where no pod is captured (and with --cni no namespace is in the mesh), remove what all pods
    /// shared, the CNI plugin and the state directory: an agent that is taken off a node leaves nothing there. What
    /// is captured stays captured
    #[arg(long, help_heading = "Node")]
    pub(crate) leave_nothing: bool,

    /// Directory for what control wanted last, so that a start without control serves the same pods
    #[arg(long, value_name = "DIR", default_value = STATE, help_heading = "Node")]
    pub(crate) state: PathBuf,
}

fn control_uri(text: &str) -> Result<String, String> {
    let wrong = || "write https://HOST:PORT, such as https://control.culvert-system:15010".to_owned();
    let uri: tonic::transport::Uri = text.parse().map_err(|_| wrong())?;
    if uri.scheme_str() != Some("https") || uri.host().is_none_or(str::is_empty) {
        return Err(wrong());
    }
    Ok(text.to_owned())
}

/// What is wrong between values that are each right.
pub(crate) fn check(arguments: &Arguments, problems: &mut Problems) {
    let Some(serve) = &arguments.serve else { return };
    if serve.probe_every < Duration::from_secs(1) {
        let given = Some(format!("{:?}", serve.probe_every));
        problems.add("--probe-every", given, "a probe is a connection of the pod: 1s at least");
    }
    if let (Some(cgroup), false) = (&serve.splice_cgroup, serve.splice) {
        let given = Some(cgroup.display().to_string());
        problems.add("--splice-cgroup", given, "it says where to splice, and --splice is not given");
    }
    if serve.zds_socket == serve.handover_socket {
        let given = Some(serve.zds_socket.display().to_string());
        problems.add("--zds-socket", given, "it is also --handover-socket: each needs a path of its own");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn resolve(line: &[&str]) -> Result<Arguments, runtime::config::Stop> {
        let line = line.iter().map(OsString::from);
        runtime::config::resolve_from(line, &|_| None, check)
    }

    const GOOD: [&str; 9] = [
        "agent",
        "--node",
        "n",
        "--control",
        "https://[::1]:15010",
        "--control-ca",
        "ca.pem",
        "--token-file",
        "token",
    ];

    #[test]
    fn the_agent_keeps_off_ztunnels_ports() {
        let arguments = resolve(&GOOD).expect("good");
        assert_eq!(arguments.serve.as_ref().expect("serving").node, "n");
        let ports = arguments.common.addresses();
        let of = |address: Option<std::net::SocketAddr>| address.expect("an address").port();
        assert_eq!([of(ports.admin), of(ports.metrics), of(ports.ready)], [15100, 15120, 15121]);
        assert!(ports.admin.expect("an address").ip().is_loopback());
    }

    #[test]
    fn what_is_wrong_is_told_together() {
        let line =
            [&GOOD[..], &["--probe-every", "1ms", "--zds-socket", "/run/culvert/handover.sock"]].concat();
        let Err(runtime::config::Stop::Problems(problems)) = resolve(&line) else { panic!("no problem") };
        assert_eq!(problems.iter().count(), 2);
        let line = ["agent", "--control", "http://x"];
        let Err(runtime::config::Stop::Problems(problems)) = resolve(&line) else { panic!("no problem") };
        let told = problems.to_string();
        for expected in
            ["--node", "--control-ca", "--token-file", "--control is \"http://x\": write https://"]
        {
            assert!(told.contains(expected), "{expected} is missing in {told}");
        }
    }

    #[test]
    fn uninstall_needs_nothing_of_all_that() {
        let arguments = resolve(&["agent", "uninstall", "--pins", "/x"]).expect("good");
        let Some(Command::Uninstall(uninstall)) = arguments.command else { panic!("{arguments:?}") };
        assert_eq!(uninstall.pins, PathBuf::from("/x"));
    }

    #[test]
    fn splicing_is_off_unless_asked_for() {
        let serve =
            |more: &[&str]| resolve(&[&GOOD[..], more].concat()).map(|all| all.serve.expect("serving"));
        assert!(!serve(&[]).expect("good").splice);
        let given = serve(&["--splice", "--splice-cgroup", "/sys/fs/cgroup/mesh"]).expect("good");
        assert!(given.splice && given.splice_cgroup.is_some());
        assert!(
            serve(&["--splice-cgroup", "/sys/fs/cgroup/mesh"]).is_err(),
            "a place, and nothing to do there"
        );
    }
}
