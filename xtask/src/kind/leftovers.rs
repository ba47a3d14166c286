//! What of ours is on a cluster's nodes, once nothing of it should be.

use anyhow::Result;

use super::cluster::{Cluster, SYSTEM};

/// What is on the nodes and in the system's namespace; empty if there is nothing.
pub(crate) fn of_ours(cluster: &Cluster) -> Result<String> {
    let pods = cluster.items(&["pods", "--namespace", SYSTEM])?;
    if !pods.is_empty() {
        return Ok(format!("{} pods of {SYSTEM}", pods.len()));
    }
    // The rule's priority and table are ours alone; see ebpf/abi.
    on_nodes(
        cluster,
        "find /sys/fs/bpf/culvert /run/culvert /var/lib/culvert -mindepth 1 2>/dev/null; \
         ls -d /opt/cni/bin/culvert* 2>/dev/null; \
         grep -l culvert -r /etc/cni 2>/dev/null; \
         for p in $(pidof app); do nsenter --target $p --net ip rule; nsenter --target $p --net ip -6 rule; done \
         | grep -v -e 'lookup local' -e 'lookup main' -e 'lookup default'",
    )
}

/// What a script prints on all nodes together; its status does not count.
pub(crate) fn on_nodes(cluster: &Cluster, script: &str) -> Result<String> {
    let mut all = String::new();
    for node in &cluster.nodes {
        all.push_str(&cluster.on(node, &format!("{{ {script}; }} || true"))?);
    }
    Ok(all.trim().to_owned())
}
