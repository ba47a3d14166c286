//! NetworkPolicies between enrolled pods see port 15008 in the place of the application's: who let 8080 through and
//! not 15008 will cut his pods off. The patch that mends it is told.

use serde_json::Value;

use super::{AMBIENT, EXEMPT, Finding, facts::Facts, mode};
use crate::object::{self, items, selects, text};

const HBONE: u64 = 15008;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let enrolled = |name: &str| {
        let namespace = facts.namespaces.iter().find(|one| object::name(one) == name);
        mode(None, namespace) == Some(AMBIENT)
            || facts
                .pods
                .iter()
                .any(|pod| object::namespace(pod) == name && mode(Some(pod), None) == Some(AMBIENT))
    };
    let any = facts.namespaces.iter().any(|one| enrolled(object::name(one)));
    let mut findings = Vec::new();
    for policy in &facts.network_policies {
        let namespace = object::namespace(policy);
        if namespace == EXEMPT || namespace == facts.namespace {
            continue;
        }
        let now = enrolled(namespace);
        for rule in closed_rules(policy, facts, &|name| {
            if any { enrolled(name) } else { name != EXEMPT && name != facts.namespace }
        }) {
            let about = format!("NetworkPolicy {namespace}/{}", object::name(policy));
            let (direction, number) = rule;
            let seen = format!(
                "spec.{direction}[{number}].ports has no 15008, at which enrolled pods meet: they are cut off"
            );
            let patch = format!(
                "kubectl --namespace {namespace} patch networkpolicy {} --type=json --patch '[{{\"op\":\"add\",\"path\":\"/spec/{direction}/{number}/ports/-\",\"value\":{{\"protocol\":\"TCP\",\"port\":15008}}}}]'",
                object::name(policy)
            );
            findings.push(if now {
                Finding::problem("network-policy", about, seen, patch)
            } else {
                Finding::warning("network-policy", about, format!("{seen} once the namespace joins"), patch)
            });
        }
    }
    if findings.is_empty() {
        let seen = match facts.network_policies.len() {
            0 => "there is none".to_owned(),
            all => format!("{all}, and none keeps enrolled pods from port 15008"),
        };
        findings.push(Finding::ok("network-policy", seen));
    }
    findings
}

/// The rules of a policy that let TCP to some ports through and not to 15008, where nothing else lets it through.
fn closed_rules(policy: &Value, facts: &Facts, joins: &dyn Fn(&str) -> bool) -> Vec<(&'static str, usize)> {
    let mut closed = Vec::new();
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (number, rule) in items(&policy["spec"][direction]).iter().enumerate() {
            if lets_through(rule) || !names_tcp(rule) {
                continue;
            }
            // To somewhere outside of the mesh connections go on as they are.
            if !meets_the_mesh(&rule[peers], object::namespace(policy), facts, joins) {
                continue;
            }
            let opened = facts.network_policies.iter().any(|other| {
                let same_pods = object::namespace(other) == object::namespace(policy)
                    && (is_empty(&other["spec"]["podSelector"])
                        || other["spec"]["podSelector"] == policy["spec"]["podSelector"]);
                same_pods
                    && items(&other["spec"][direction]).iter().any(|open| {
                        lets_through(open) && (items(&open[peers]).is_empty() || open[peers] == rule[peers])
                    })
            });
            if !opened {
                closed.push((direction, number));
            }
        }
    }
    closed
}

fn is_empty(selector: &Value) -> bool {
    selector.as_object().is_none_or(|selector| {
        selector.values().all(|one| {
            one.as_object().is_some_and(serde_json::Map::is_empty)
                || one.as_array().is_some_and(Vec::is_empty)
        })
    })
}

/// Whether TCP to 15008 passes a rule.
fn lets_through(rule: &Value) -> bool {
    let ports = items(&rule["ports"]);
    ports.is_empty()
        || ports.iter().any(|port| {
            let tcp = matches!(text(&port["protocol"]), "" | "TCP");
            let first = port["port"].as_u64();
            let last = port["endPort"].as_u64().or(first);
            let in_range = first.zip(last).is_some_and(|(first, last)| (first..=last).contains(&HBONE));
            tcp && (port["port"].is_null() || in_range)
        })
}

fn names_tcp(rule: &Value) -> bool {
    items(&rule["ports"]).iter().any(|port| matches!(text(&port["protocol"]), "" | "TCP"))
}

/// Whether the peers of a rule may be enrolled pods. An address block is not taken for one.
fn meets_the_mesh(peers: &Value, own: &str, facts: &Facts, joins: &dyn Fn(&str) -> bool) -> bool {
    let peers = items(peers);
    peers.is_empty()
        || peers.iter().any(|peer| match peer.get("namespaceSelector") {
            None => peer.get("podSelector").is_some() && joins(own),
            Some(selector) => {
                let chosen =
                    facts.namespaces.iter().filter(|one| selects(selector, &one["metadata"]["labels"]));
                chosen.into_iter().any(|one| joins(object::name(one)))
            }
        })
}
