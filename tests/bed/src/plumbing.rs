//! Links, addresses and routes: what a CNI and a switch would have set up.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    Netns,
    address::{self, GATEWAY_V4, GATEWAY_V6},
};

/// The bridge in the wire's namespace.
pub(crate) const BRIDGE: &str = "br0";
/// A node's (and the control plane's) device on the wire.
pub(crate) const UPLINK: &str = "uplink";

/// Runs iproute2 commands, one per line, in the calling thread's network namespace.
pub(crate) fn ip_batch(lines: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run `ip` (Debian package iproute2)")?;
    child.stdin.take().context("stdin of `ip`")?.write_all(lines.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "`ip -batch` failed: {}; the lines were:\n{lines}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Makes named namespaces.
pub(crate) fn add_namespaces<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let lines: String = names.into_iter().map(|name| format!("netns add {name}\n")).collect();
    ip_batch(&lines).context("make network namespaces (needs root)")
}

/// What every namespace of the bed has in common. Duplicate address detection is off: it would make
/// each address useless for its first second.
pub(crate) fn prepare(ns: &Netns) -> Result<()> {
    for which in ["all", "default"] {
        ns.sysctl(&format!("net/ipv6/conf/{which}/accept_dad"), "0")?;
    }
    ns.ip("link set lo up\n")
}

/// The bridge, with spanning tree off so that a port forwards at once.
pub(crate) fn make_wire(wire: &Netns) -> Result<()> {
    wire.ip(&format!("link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0\nlink set {BRIDGE} up\n"))
}

/// Plugs a namespace into the wire; `port` names the bridge's end.
pub(crate) fn plug(wire: &Netns, ns: &Netns, port: &str, addresses: [std::net::IpAddr; 2]) -> Result<()> {
    wire.ip(&format!(
        "link add {port} type veth peer name {UPLINK} netns {}\n\
         link set {port} master {BRIDGE} up\n",
        ns.name()
    ))?;
    let [v4, v6] = addresses;
    ns.ip(&format!(
        "link set {UPLINK} up\naddr add {v4}/24 dev {UPLINK}\naddr add {v6}/64 dev {UPLINK} nodad\n"
    ))
}

/// Lets a node's namespace forward, and tells it the way to the pods of `others`.
pub(crate) fn make_router(node: &Netns, others: &[u8]) -> Result<()> {
    node.sysctl("net/ipv4/ip_forward", "1")?;
    node.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    let mut lines = String::new();
    for &other in others {
        for (subnet, via) in address::pod_subnets(other).iter().zip(address::node(other)) {
            lines.push_str(&format!("route add {subnet} via {via} dev {UPLINK}\n"));
        }
    }
    node.ip(&lines)
}

/// Plugs a pod into its node: a veth pair, a /32 and a /128, the default route through the node.
pub(crate) fn plug_pod(
    node: &Netns,
    pod: &Netns,
    host_device: &str,
    addresses: [std::net::IpAddr; 2],
    mtu: u16,
) -> Result<()> {
    let [v4, v6] = addresses;
    node.ip(&format!(
        "link add {host_device} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
         addr add {GATEWAY_V4}/32 dev {host_device}\n\
         addr add {GATEWAY_V6}/64 dev {host_device} nodad\n\
         link set {host_device} up\n\
         route add {v4}/32 dev {host_device}\n\
         route add {v6}/128 dev {host_device}\n",
        pod.name()
    ))?;
    pod.ip(&format!(
        "link set eth0 up\n\
         addr add {v4}/32 dev eth0\n\
         addr add {v6}/128 dev eth0 nodad\n\
         route add default via {GATEWAY_V4} dev eth0 onlink src {v4}\n\
         route add default via {GATEWAY_V6} dev eth0 src {v6}\n"
    ))
}
