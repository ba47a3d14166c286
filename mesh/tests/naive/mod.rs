//! Judges an attempt by reading every policy from front to back: what the index must agree with.
//!
//! Written against `policy.rs` alone and sharing no code with the crate's own evaluation.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use mesh::{
    Action, Attempt, Clause, Decision, Identity, Match, Policy, PolicyKey, Refusal, Rule, Scope, StringMatch,
    Verdict,
};

/// All policies, and those marked unusable with the scope that could be read.
#[derive(Default)]
pub(crate) struct Naive {
    pub(crate) policies: BTreeMap<PolicyKey, Policy>,
    pub(crate) unusable: BTreeMap<PolicyKey, Option<Scope>>,
}

impl Naive {
    pub(crate) fn admit(&self, attempt: &Attempt<'_>) -> Decision {
        let workload = attempt.destination;
        let named = |key: &PolicyKey| workload.authorization_policies.contains(key);
        let applies = |policy: &&Policy| {
            named(&policy.key)
                || match policy.scope {
                    Scope::Global => true,
                    Scope::Namespace => policy.key.namespace == workload.namespace,
                    Scope::WorkloadSelector => false,
                }
        };
        let with = |action: Action, dry_run: bool| -> Vec<&Policy> {
            let wanted = |p: &&Policy| p.action == action && p.dry_run == dry_run && applies(p);
            self.policies.values().filter(wanted).collect()
        };
        let matching = |policies: &[&Policy]| -> Vec<PolicyKey> {
            policies.iter().filter(|p| matches(p, attempt)).map(|p| p.key.clone()).collect()
        };
        let missing = self.unusable.iter().filter(|(key, scope)| {
            named(key)
                || match scope {
                    Some(Scope::Global) => true,
                    None | Some(Scope::Namespace) => key.namespace == workload.namespace,
                    Some(Scope::WorkloadSelector) => false,
                }
        });
        let not_held = workload.authorization_policies.iter().filter(|key| !self.policies.contains_key(key));
        let missing = missing.map(|(key, _)| key).chain(not_held).min().cloned();

        let allow = with(Action::Allow, false);
        let verdict = match (matching(&with(Action::Deny, false)).first(), missing, allow.first()) {
            (Some(key), _, _) => Verdict::Refuse(Refusal::Denied(key.clone())),
            (None, Some(key), _) => Verdict::Refuse(Refusal::PolicyMissing(key)),
            (None, None, None) => Verdict::Allow(None),
            (None, None, Some(first)) => match matching(&allow).first() {
                Some(key) => Verdict::Allow(Some(key.clone())),
                None => Verdict::Refuse(Refusal::NotAllowed(first.key.clone())),
            },
        };
        let dry_allow = with(Action::Allow, true);
        let mut dry_run = match &verdict {
            Verdict::Allow(_) => matching(&with(Action::Deny, true)),
            Verdict::Refuse(Refusal::NotAllowed(_)) => matching(&dry_allow),
            Verdict::Refuse(_) => Vec::new(),
        };
        if verdict == Verdict::Allow(None) && matching(&dry_allow).is_empty() {
            dry_run.extend(dry_allow.first().map(|p| p.key.clone()));
        }
        dry_run.sort();
        dry_run.truncate(16);
        Decision { verdict, dry_run }
    }
}

fn matches(policy: &Policy, attempt: &Attempt<'_>) -> bool {
    policy.rules.iter().any(|rule: &Rule| rule.clauses.iter().all(|c| clause(c, policy.action, attempt)))
}

fn clause(clause: &Clause, action: Action, attempt: &Attempt<'_>) -> bool {
    clause.matches.is_empty()
        || clause
            .matches
            .iter()
            .any(|m| if *m == Match::default() { action == Action::Deny } else { fields(m, attempt) })
}

fn fields(m: &Match, attempt: &Attempt<'_>) -> bool {
    let id = attempt.source;
    let principal = id.map(|id| id.to_string().replacen("spiffe://", "", 1));
    let namespace = id.map(|id| id.namespace().to_owned());
    twins(&m.namespaces, &m.not_namespaces, |v| string(v, namespace.as_deref()))
        && twins(&m.principals, &m.not_principals, |v| string(v, principal.as_deref()))
        && twins(&m.service_accounts, &m.not_service_accounts, |v| {
            id.is_some_and(|id: &Identity| {
                id.namespace() == &*v.namespace && id.service_account() == &*v.service_account
            })
        })
        && twins(&m.source_ips, &m.not_source_ips, |net| holds(net, attempt.source_ip))
        && twins(&m.destination_ips, &m.not_destination_ips, |net| holds(net, attempt.destination_ip))
        && twins(&m.destination_ports, &m.not_destination_ports, |port| *port == attempt.destination_port)
}

fn twins<T>(positive: &[T], negative: &[T], matches: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&matches)) && !negative.iter().any(&matches)
}

fn string(value: &StringMatch, text: Option<&str>) -> bool {
    let Some(text) = text else { return false };
    match value {
        StringMatch::Exact(exact) => **exact == *text,
        StringMatch::Prefix(prefix) => text.starts_with(&**prefix),
        StringMatch::Suffix(suffix) => text.ends_with(&**suffix),
        StringMatch::Presence => true,
    }
}

/// Compares bit by bit: in IPv6 form where both are IPv4 or mapped, else within the family.
fn holds(net: &IpNet, address: IpAddr) -> bool {
    let address = match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 => v4,
    };
    match (net, address) {
        (IpNet::V4(net), IpAddr::V4(address)) => net.contains(&address),
        (IpNet::V6(net), IpAddr::V4(address)) => {
            net.prefix_len() >= 96 && net.contains(&address.to_ipv6_mapped())
        }
        (IpNet::V6(net), IpAddr::V6(address)) => net.contains(&address),
        (IpNet::V4(_), IpAddr::V6(_)) => false,
    }
}
