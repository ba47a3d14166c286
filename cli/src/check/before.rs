//! Whether a cluster can carry the mesh: its version, the caller's rights, what its namespaces allow, who else is there.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Finding, facts::Facts};
use crate::{
    enrolled::{Adrift, COME_BACK},
    manifests::PART_OF,
    object::{self, items, text},
};

/// The oldest Kubernetes that the chart takes.
const KUBERNETES: (u32, u32) = (1, 28);

/// Major and minor of `/version`; distributions write `28+`.
pub(crate) fn version(version: &Value) -> (u32, u32) {
    let number = |field: &str| {
        let digits: String = text(&version[field]).chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    };
    (number("major"), number("minor"))
}

pub(super) fn kubernetes(facts: &Facts) -> Vec<Finding> {
    let said = text(&facts.version["gitVersion"]).to_owned();
    let finding = if version(&facts.version) >= KUBERNETES {
        Finding::ok("kubernetes", said)
    } else {
        let (major, minor) = KUBERNETES;
        Finding::problem(
            "kubernetes",
            "",
            format!("the API server is {said}"),
            format!("upgrade it to {major}.{minor} or newer"),
        )
    };
    vec![finding]
}

pub(super) fn rights(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !facts.unseen.is_empty() {
        let seen =
            format!("you may not list {}: what is judged by them was not judged", facts.unseen.join(", "));
        findings.push(Finding::warning("rights", "", seen, "use a context that may (--context)"));
    }
    if facts.refused.is_empty() && findings.is_empty() {
        return vec![Finding::ok("rights", "you may install the mesh and ask its programs")];
    }
    let (asking, installing): (Vec<_>, Vec<_>) =
        facts.refused.iter().partition(|one| one.ends_with("portforward"));
    if !installing.is_empty() {
        let all: Vec<&str> = installing.iter().map(|one| one.as_str()).collect();
        let seen = format!("you may not {} in {}", all.join(", "), facts.namespace);
        let mend = "use a context of a cluster administrator (--context), or have one install";
        findings.push(if facts.installed() {
            Finding::warning("rights", "", seen, mend)
        } else {
            Finding::problem("rights", "", seen, mend)
        });
    }
    if !asking.is_empty() {
        let seen = "you may not forward ports of pods: agents, ztunnels and control cannot be asked";
        let mend = format!("have somebody grant you create on pods/portforward in {}", facts.namespace);
        findings.push(Finding::warning("rights", "", seen, mend));
    }
    findings
}

/// The agent's init container is privileged, and host paths are mounted.
pub(super) fn pod_security(facts: &Facts) -> Vec<Finding> {
    const LEVEL: &str = "pod-security.kubernetes.io/enforce";
    let name = &facts.namespace;
    let Some(namespace) = facts.namespaces.iter().find(|one| object::name(one) == name) else {
        return vec![Finding::ok("pod-security", format!("{name} will be made, for privileged pods"))];
    };
    match object::label(namespace, LEVEL) {
        None | Some("privileged") => {
            vec![Finding::ok("pod-security", format!("{name} takes privileged pods"))]
        }
        Some(level) => vec![Finding::problem(
            "pod-security",
            format!("Namespace {name}"),
            format!("{LEVEL} is {level}: the agent's pods are refused"),
            format!("kubectl label --overwrite namespace {name} {LEVEL}=privileged"),
        )],
    }
}

/// Others who would take in the same pods.
pub(super) fn other_meshes(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let place = |object: &Value| format!("{} {}", text(&object["kind"]), object::name(object));
    let ours = |set: &Value| object::label(set, PART_OF) == Some("culvert");
    // Two of ours would each take in the pods of the same label, on every node.
    let second = facts.daemonsets.iter().filter(|set| {
        matches!(object::name(set), "agent" | "ztunnel")
            && ours(set)
            && object::namespace(set) != facts.namespace
    });
    let namespaces: BTreeSet<&str> = second.map(object::namespace).collect();
    for namespace in namespaces {
        findings.push(Finding::problem(
            "other-meshes",
            format!("Namespace {namespace}"),
            "Culvert's agents or ztunnels are there already: a cluster has one mesh, for all namespaces",
            format!(
                "mean that one with --namespace {namespace}, or take it away first: culvert uninstall \
                 --namespace {namespace} --release-all (helm's: helm uninstall, once all labels are off)"
            ),
        ));
    }
    for set in &facts.daemonsets {
        // Istio's own node side listens for the same label.
        let of_istio = object::name(set) == "ztunnel" || object::name(set) == "istio-cni-node";
        if of_istio && object::namespace(set) != facts.namespace && !ours(set) {
            findings.push(Finding::problem(
                "other-meshes",
                format!("DaemonSet {}/{}", object::namespace(set), object::name(set)),
                "Istio's ambient node side takes in the pods of the same label",
                "remove it, or do not label any namespace before it is gone",
            ));
        }
    }
    for deployment in &facts.deployments {
        let (name, namespace) = (object::name(deployment), object::namespace(deployment));
        if object::label(deployment, "app") == Some("istiod") {
            findings.push(Finding::warning(
                "other-meshes",
                format!("Deployment {namespace}/{name}"),
                "istiod is there: pods with its sidecar are never taken in",
                "take a namespace out of injection and restart its pods before it joins",
            ));
        } else if object::label(deployment, "linkerd.io/control-plane-component").is_some() {
            findings.push(Finding::warning(
                "other-meshes",
                format!("Deployment {namespace}/{name}"),
                "Linkerd is there: a pod with its proxy is not to be in both meshes",
                "restart a namespace's pods without linkerd.io/inject before it joins",
            ));
        }
    }
    for namespace in &facts.namespaces {
        let injected = object::label(namespace, "istio-injection") == Some("enabled")
            || object::annotation(namespace, "linkerd.io/inject") == Some("enabled");
        if injected && super::mode(None, Some(namespace)) == Some(super::AMBIENT) {
            findings.push(Finding::warning(
                "other-meshes",
                format!("Namespace {}", object::name(namespace)),
                "new pods get a sidecar, and those of Istio's are then not taken in",
                "take off istio-injection, or linkerd.io/inject, and restart the pods",
            ));
        }
    }
    // One component of Linkerd's speaks for all.
    findings.dedup_by(|one, other| {
        one.seen == other.seen && one.level == super::Level::Warning && one.about.starts_with("Deployment")
    });
    if findings.is_empty() {
        let pods = facts
            .pods
            .iter()
            .filter(|pod| items(&pod["spec"]["containers"]).iter().any(|c| c["name"] == "istio-proxy"));
        match pods.count() {
            0 => findings.push(Finding::ok("other-meshes", "none")),
            some => findings.push(Finding::warning(
                "other-meshes",
                facts
                    .pods
                    .iter()
                    .find(|pod| items(&pod["spec"]["containers"]).iter().any(|c| c["name"] == "istio-proxy"))
                    .map(place)
                    .unwrap_or_default(),
                format!("{some} pods have a sidecar left, and are never taken in"),
                "restart them",
            )),
        }
    }
    findings
}

/// Pods whose mesh is gone, and they are in it still: nothing of them would say so.
pub(super) fn left_behind(facts: &Facts) -> Option<Finding> {
    // Who cannot see whose pods they are does not judge.
    if facts.unseen.iter().any(|one| one == "daemonsets") {
        return None;
    }
    Some(match Adrift::of(&facts.namespaces, &facts.pods, &facts.daemonsets)? {
        Adrift::CutOff(seen) => Finding::problem("left-behind", "", seen, COME_BACK),
        Adrift::Labelled(seen) => Finding::warning("left-behind", "", seen, COME_BACK),
    })
}
