//! The cluster's own network: what of it would take our plugin out, or our traffic past us.

use serde_json::Value;

use super::{Finding, facts::Facts};
use crate::object::{self, text};

/// DaemonSets by which a network is known: a name's beginning, and whose it is.
const KNOWN: &[(&str, &str)] = &[
    ("cilium", "Cilium"),
    ("calico-node", "Calico"),
    ("canal", "Canal"),
    ("kube-flannel", "Flannel"),
    ("kindnet", "kindnet"),
    ("aws-node", "Amazon VPC CNI"),
    ("azure-cni", "Azure CNI"),
    ("azure-npm", "Azure CNI"),
    ("netd", "GKE's"),
    ("anetd", "GKE Dataplane V2 (Cilium)"),
    ("antrea-agent", "Antrea"),
    ("weave-net", "Weave"),
    ("kube-router", "kube-router"),
    ("ovnkube-node", "OVN-Kubernetes"),
    ("kube-ovn-cni", "Kube-OVN"),
    ("multus", "Multus"),
    ("kube-multus", "Multus"),
];

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let known = |set: &Value| {
        KNOWN.iter().find(|(name, _)| object::name(set).starts_with(name)).map(|(_, whose)| *whose)
    };
    let mut found: Vec<&str> = facts.daemonsets.iter().filter_map(known).collect();
    found.sort_unstable();
    found.dedup();
    let mut findings = Vec::new();
    findings.extend(facts.cilium.as_ref().map(|settings| cilium(&settings["data"])).unwrap_or_default());
    findings.extend(facts.felix.iter().flat_map(|felix| calico(&felix["spec"])));
    if found.contains(&"Multus") {
        findings.push(Finding::warning(
            "cni",
            "Multus",
            "only the device of a pod's default route is captured; others are not",
            "the agent's log names the devices that it leaves alone",
        ));
    }
    if findings.is_empty() {
        let whose = if found.is_empty() { "one that is not known here".to_owned() } else { found.join(", ") };
        findings.push(Finding::ok("cni", format!("{whose}: nothing known against it")));
    }
    findings
}

fn cilium(data: &Value) -> Vec<Finding> {
    let is = |key: &str, default: bool| match text(&data[key]) {
        "" => default,
        value => value == "true",
    };
    let mut findings = Vec::new();
    if is("cni-exclusive", true) {
        findings.push(Finding::problem(
            "cni",
            "Cilium",
            "cni-exclusive is on: Cilium takes the CNI plugin out again, and pods start before they are captured",
            "helm upgrade cilium … --reuse-values --set cni.exclusive=false",
        ));
    }
    let socket_lb = is("bpf-lb-sock", false)
        || is("kube-proxy-replacement", false)
        || text(&data["kube-proxy-replacement"]) == "strict";
    if socket_lb && !is("bpf-lb-sock-hostns-only", false) {
        findings.push(Finding::problem(
            "cni",
            "Cilium",
            "its socket load balancer chooses a Service's pod in connect(): policies and metrics by Service are lost",
            "helm upgrade cilium … --reuse-values --set socketLB.hostNamespaceOnly=true",
        ));
    }
    findings
}

fn calico(spec: &Value) -> Vec<Finding> {
    if spec["bpfEnabled"] != true {
        return Vec::new();
    }
    let balanced = text(&spec["bpfConnectTimeLoadBalancing"]);
    let off = balanced == "Disabled" || spec["bpfConnectTimeLoadBalancingEnabled"] == false;
    if off {
        return Vec::new();
    }
    vec![Finding::problem(
        "cni",
        "Calico",
        "its eBPF dataplane chooses a Service's pod in connect(): policies and metrics by Service are lost",
        "kubectl patch felixconfiguration default --type=merge -p '{\"spec\":{\"bpfConnectTimeLoadBalancing\":\"Disabled\",\"bpfHostNetworkedNATWithoutCTLB\":\"Enabled\"}}'",
    )]
}
