//! A policy as control sends it: converted, indexed and judged as a plain reading of it judges.
#![no_main]

#[path = "../../../mesh/tests/naive/mod.rs"]
mod naive;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use libfuzzer_sys::fuzz_target;
use mesh::{Attempt, Identity, Policy, Scope, Snapshot, StringMatch, Workload};
use naive::Naive;
use prost::Message;
use xds::convert::Converter;

static COMPLETE: LazyLock<Snapshot> = LazyLock::new(|| {
    let mut editor = Snapshot::default().edit();
    editor.mark_addresses_complete();
    editor.mark_policies_complete();
    editor.finish()
});

fuzz_target!(|bytes: &[u8]| {
    let mut converter = Converter::new("cluster.local");
    let _ = converter.authorization("ns/name", bytes);
    let Ok(message) = proto::security::Authorization::decode(bytes) else { return };
    let Ok(policy) = converter.policy(&message) else { return };

    let mut destination = Workload::named("u", policy.key.namespace.clone(), "w");
    if policy.scope == Scope::WorkloadSelector {
        destination.authorization_policies = vec![policy.key.clone()];
    }
    let callers = callers(&policy);
    let ports: Vec<u16> =
        matches(&policy).flat_map(|m| m.destination_ports.clone()).chain([80]).take(4).collect();
    let addresses: Vec<IpAddr> = matches(&policy)
        .flat_map(|m| m.source_ips.iter().chain(&m.destination_ips).map(|net| net.addr()).collect::<Vec<_>>())
        .chain([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
        .take(4)
        .collect();

    let mut editor = COMPLETE.edit();
    editor.put_policy(policy.clone());
    let snapshot = editor.finish();
    let mut naive = Naive::default();
    naive.policies.insert(policy.key.clone(), policy);
    for source in &callers {
        for (&source_ip, &destination_port) in addresses.iter().zip(ports.iter().cycle()) {
            let attempt = Attempt {
                source: source.as_ref(),
                source_ip,
                destination: &destination,
                destination_ip: addresses[0],
                destination_port,
                through: None,
            };
            assert_eq!(snapshot.admit(&attempt), naive.admit(&attempt), "{attempt:?}");
        }
    }
});

fn matches(policy: &Policy) -> impl Iterator<Item = &mesh::Match> {
    policy.rules.iter().flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.matches)
}

/// Nobody, somebody, and callers that the policy speaks of.
fn callers(policy: &Policy) -> Vec<Option<Identity>> {
    let named = matches(policy).flat_map(|m| {
        let accounts = m
            .service_accounts
            .iter()
            .map(|a| Identity::new("td", a.namespace.clone(), a.service_account.clone()));
        let namespaces = m.namespaces.iter().filter_map(|value| match value {
            StringMatch::Exact(text) | StringMatch::Prefix(text) | StringMatch::Suffix(text) => {
                Some(Identity::new("td", text.clone(), "sa"))
            }
            StringMatch::Presence => None,
        });
        let principals = m.principals.iter().filter_map(|value| match value {
            StringMatch::Exact(text) => format!("spiffe://{text}").parse().ok(),
            StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Presence => None,
        });
        accounts.chain(namespaces).chain(principals).collect::<Vec<Identity>>()
    });
    [None, Some(Identity::new("td", "ns", "sa"))].into_iter().chain(named.take(4).map(Some)).collect()
}
