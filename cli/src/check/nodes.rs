//! The nodes: whether they can run the programs, whether they do, and what their agents find there.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Finding, Level, facts::Facts};
use crate::{
    object::{self, items, text},
    rollout,
};

/// The oldest kernel that has what the programs need.
const KERNEL: (u32, u32) = (6, 6);
/// What there are images for.
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];
/// A DaemonSet is not meant for these.
const NO_LINUX: &str = "windows";

pub(super) fn kernels(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut good: BTreeMap<String, usize> = BTreeMap::new();
    for node in &facts.nodes {
        let (about, info) = (format!("Node {}", object::name(node)), &node["status"]["nodeInfo"]);
        let (system, kernel, architecture) =
            (text(&info["operatingSystem"]), text(&info["kernelVersion"]), text(&info["architecture"]));
        if system == NO_LINUX {
            let seen = "it runs Windows: its pods stay out of the mesh";
            findings.push(Finding::warning(
                "nodes",
                about,
                seen,
                "nothing to do; label no namespace whose pods run there only",
            ));
            continue;
        }
        if !ARCHITECTURES.contains(&architecture) {
            let seen = format!("there is no image for {architecture}");
            findings.push(Finding::problem(
                "nodes",
                about.clone(),
                seen,
                "build one there: cargo xtask image",
            ));
        }
        if is_new_enough(kernel) {
            *good.entry(kernel.to_owned()).or_default() += 1;
        } else {
            findings.push(Finding::problem(
                "nodes",
                about,
                format!("Linux {kernel} is too old: tcx and sk_assign are missing"),
                format!("use a node image with Linux {}.{} or newer", KERNEL.0, KERNEL.1),
            ));
        }
    }
    if !good.is_empty() {
        let kernels: Vec<String> =
            good.into_iter().map(|(kernel, nodes)| format!("{nodes} with Linux {kernel}")).collect();
        findings.push(Finding::ok("nodes", kernels.join(", ")));
    }
    findings
}

fn is_new_enough(kernel: &str) -> bool {
    let mut numbers =
        kernel.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= KERNEL
}

/// Whether every node has a ready agent and ztunnel, and control is there.
pub(super) fn programs(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for workload in &facts.workloads {
        let about = format!("{} {}", text(&workload["kind"]), object::name(workload));
        if workload["status"].is_null() {
            findings.push(Finding::problem("programs", about, "it is not there", "culvert install"));
            continue;
        }
        let selector = &workload["spec"]["template"]["spec"];
        for node in
            facts.nodes.iter().filter(|node| text(&workload["kind"]) == "DaemonSet" && wants(node, selector))
        {
            let name = object::name(node);
            let there =
                facts.programs.iter().any(|one| one.standing.node == name && one.is(object::name(workload)));
            if !there {
                findings.push(Finding::problem(
                    "programs",
                    format!("Node {name}"),
                    format!("no {} runs here", object::name(workload)),
                    format!(
                        "kubectl --namespace {} describe daemonset {}",
                        facts.namespace,
                        object::name(workload)
                    ),
                ));
            }
        }
    }
    for (program, kind) in rollout::PROGRAMS {
        // Told above, if there is nothing to make it either.
        let made = facts.workloads.iter().any(|one| object::name(one) == program && !one["status"].is_null());
        if made && !facts.programs.iter().any(|one| one.is(program)) {
            let mend = format!("kubectl --namespace {} describe {kind} {program}", facts.namespace);
            findings.push(Finding::problem("programs", program, "it runs nowhere", mend));
        }
    }
    for program in facts.programs.iter().filter(|one| !one.standing.ready) {
        let one = &program.standing;
        findings.push(Finding::problem(
            "programs",
            format!("{} on {}", one.program, one.node),
            one.why.clone(),
            rollout::image_advice(&one.why).map_or_else(
                || {
                    format!(
                        "kubectl --namespace {} describe pod {}; kubectl --namespace {0} logs {1}",
                        facts.namespace, one.pod
                    )
                },
                str::to_owned,
            ),
        ));
    }
    for program in facts.programs.iter().filter(|one| one.standing.ready) {
        let one = &program.standing;
        for (path, reason) in
            program.said.iter().filter_map(|(path, said)| Some((path, said.as_ref().err()?)))
        {
            findings.push(Finding::warning(
                "programs",
                format!("{} on {}", one.program, one.node),
                format!("it cannot be asked for {path}: {reason}"),
                "what it knows is missing below; an older version may not know that path",
            ));
        }
    }
    if !findings.iter().any(|finding| finding.level == Level::Problem) {
        let count = |program: &str| facts.programs.iter().filter(|one| one.is(program)).count();
        let counts = rollout::PROGRAMS.map(|(program, _)| format!("{} {program}", count(program)));
        findings.push(Finding::ok("programs", format!("all ready: {}", counts.join(", "))));
    }
    findings
}

fn wants(node: &Value, spec: &Value) -> bool {
    let labels = &node["metadata"]["labels"];
    let wanted = spec["nodeSelector"].as_object();
    wanted.is_none_or(|wanted| wanted.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

/// Whether all say the same version as this command.
pub(super) fn versions(facts: &Facts) -> Vec<Finding> {
    const OURS: &str = env!("CARGO_PKG_VERSION");
    let mut found: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for program in &facts.programs {
        let said = program
            .said
            .values()
            .filter_map(|said| said.as_ref().ok())
            .find_map(|said| said["version"].as_str());
        let version = said.unwrap_or(&program.tag).to_owned();
        let name = &program.standing.program;
        found
            .entry((version, name.clone()))
            .or_default()
            .push(format!("{name} on {}", program.standing.node));
    }
    let others: Vec<_> = found.iter().filter(|((version, _), _)| version != OURS).collect();
    if others.is_empty() {
        return vec![Finding::ok("versions", format!("{OURS} everywhere"))];
    }
    let finding = |((version, _), who): (&(String, String), &Vec<String>)| {
        let seen = format!("{version}, and this command is {OURS}");
        let mend = "take the culvert of that version, or bring the mesh to this one: culvert install";
        Finding::warning("versions", shortened(who), seen, mend)
    };
    others.into_iter().map(finding).collect()
}

/// What the agents find on their nodes: what all find is told once.
pub(super) fn own(facts: &Facts) -> Vec<Finding> {
    const CHECKS: [(&str, &str); 8] = [
        ("kernel", "kernel"),
        ("btf", "btf"),
        ("bpffs", "bpffs"),
        ("cgroup", "cgroup"),
        ("kubelet", "kubelet"),
        ("cni", "cni-chain"),
        ("control", "control-stream"),
        ("ztunnel", "ztunnel-stream"),
    ];
    // By check, level, what was found and how to mend it: the nodes.
    let mut found: BTreeMap<(usize, String, String, String), Vec<String>> = BTreeMap::new();
    for program in &facts.programs {
        let Some(said) = program.answer("/checks") else { continue };
        for one in items(&said["checks"]) {
            let Some(number) = CHECKS.iter().position(|(name, _)| one["check"] == *name) else { continue };
            let key = (
                number,
                text(&one["state"]).to_owned(),
                text(&one["found"]).to_owned(),
                text(&one["mend"]).to_owned(),
            );
            found.entry(key).or_default().push(program.standing.node.clone());
        }
    }
    let finding = |((number, state, seen, mend), nodes): ((usize, String, String, String), Vec<String>)| {
        let level = match state.as_str() {
            "ok" => Level::Ok,
            "warning" => Level::Warning,
            _ => Level::Problem,
        };
        Finding { check: CHECKS[number].1, level, about: shortened(&nodes), seen, mend }
    };
    found.into_iter().map(finding).collect()
}

/// The first names, and how many more there are.
fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
