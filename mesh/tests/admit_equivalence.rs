//! The index gives the answers of a plain reading of all policies, to the name and to the dry-run list,
//! after any history of puts, removals and marks.

mod naive;

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use mesh::{
    Action, Attempt, Clause, Identity, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, Snapshot,
    StringMatch, Workload,
};
use naive::Naive;
use proptest::prelude::*;

const NAMESPACES: [&str; 3] = ["a", "ab", "b"];
const ACCOUNTS: [&str; 2] = ["x", "xy"];

fn text(choices: &'static [&'static str]) -> impl Strategy<Value = Arc<str>> {
    prop::sample::select(choices).prop_map(Arc::from)
}

fn namespace_match() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        4 => text(&NAMESPACES).prop_map(StringMatch::Exact),
        1 => text(&["", "a", "ab"]).prop_map(StringMatch::Prefix),
        1 => text(&["", "b"]).prop_map(StringMatch::Suffix),
        1 => Just(StringMatch::Presence),
    ]
}

fn principal_match() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        4 => text(&["td/ns/a/sa/x", "td/ns/ab/sa/x", "td/ns/b/sa/xy"]).prop_map(StringMatch::Exact),
        1 => text(&["td/", "td/ns/a", "other/"]).prop_map(StringMatch::Prefix),
        1 => text(&["/sa/x", "xy", "a/much/longer/suffix/than/any/principal/there/is"]).prop_map(StringMatch::Suffix),
        1 => Just(StringMatch::Presence),
    ]
}

fn net() -> impl Strategy<Value = IpNet> {
    let nets = [
        "10.0.0.1/32",
        "10.0.0.0/31",
        "10.0.0.3/24",
        "0.0.0.0/0",
        "::ffff:10.0.0.1/128",
        "::ffff:10.0.0.0/120",
        "fd00::1/128",
        "fd00::/64",
        "::/0",
    ];
    prop::sample::select(nets.map(|net| net.parse::<IpNet>().unwrap()).to_vec())
}

fn account() -> impl Strategy<Value = ServiceAccountMatch> {
    (text(&NAMESPACES), text(&ACCOUNTS))
        .prop_map(|(namespace, service_account)| ServiceAccountMatch { namespace, service_account })
}

/// Most fields are empty, most others have one value.
fn field<S: Strategy + 'static>(value: S) -> impl Strategy<Value = Vec<S::Value>>
where
    S::Value: Clone,
{
    let value = value.boxed();
    prop_oneof![
        8 => Just(Vec::new()),
        2 => prop::collection::vec(value.clone(), 1),
        1 => prop::collection::vec(value, 2..4),
    ]
}

prop_compose! {
    fn any_match()(
        (namespaces, not_namespaces) in (field(namespace_match()), field(namespace_match())),
        (principals, not_principals) in (field(principal_match()), field(principal_match())),
        (service_accounts, not_service_accounts) in (field(account()), field(account())),
        (source_ips, not_source_ips) in (field(net()), field(net())),
        (destination_ips, not_destination_ips) in (field(net()), field(net())),
        (destination_ports, not_destination_ports) in (field(80u16..83), field(80u16..83)),
    ) -> Match {
        Match {
            namespaces, not_namespaces, service_accounts, not_service_accounts, principals, not_principals,
            source_ips, not_source_ips, destination_ips, not_destination_ips, destination_ports,
            not_destination_ports,
        }
    }
}

fn rule() -> impl Strategy<Value = Rule> {
    let clause = prop::collection::vec(any_match(), 0..3).prop_map(|matches| Clause { matches });
    prop::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses })
}

fn key() -> impl Strategy<Value = PolicyKey> {
    (text(&["a", "b"]), text(&["p0", "p1", "p2", "p3", "p4"]))
        .prop_map(|(namespace, name)| PolicyKey { namespace, name })
}

fn one_of_many_keys() -> impl Strategy<Value = PolicyKey> {
    (text(&["a", "b"]), 0..400u32)
        .prop_map(|(namespace, number)| PolicyKey { namespace, name: format!("p{number}").into() })
}

fn scope() -> impl Strategy<Value = Scope> {
    prop::sample::select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector])
}

prop_compose! {
    fn policy()(
        key in key(),
        scope in scope(),
        deny in any::<bool>(),
        dry_run in prop::bool::weighted(0.25),
        rules in prop::collection::vec(rule(), 0..4),
    ) -> Policy {
        Policy { key, scope, action: if deny { Action::Deny } else { Action::Allow }, dry_run, rules }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Put(Policy),
    Remove(PolicyKey),
    Unusable(PolicyKey, Option<Scope>),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => policy().prop_map(Op::Put),
        2 => key().prop_map(Op::Remove),
        1 => (key(), prop::option::of(scope())).prop_map(|(key, scope)| Op::Unusable(key, scope)),
    ]
}

fn identity() -> impl Strategy<Value = Option<Identity>> {
    let some = (text(&["td", "other"]), text(&NAMESPACES), text(&ACCOUNTS));
    prop::option::weighted(0.8, some.prop_map(|(td, ns, sa)| Identity::new(td, ns, sa)))
}

fn address() -> impl Strategy<Value = IpAddr> {
    let all = ["10.0.0.1", "10.0.0.2", "10.9.9.9", "::ffff:10.0.0.1", "fd00::1", "fd00::2", "fe80::1"];
    prop::sample::select(all.map(|address| address.parse::<IpAddr>().unwrap()).to_vec())
}

type Parts = (Option<Identity>, IpAddr, IpAddr, u16);

fn parts() -> impl Strategy<Value = Parts> {
    (identity(), address(), address(), 80u16..83)
}

fn play(ops: &[Op]) -> (Snapshot, Naive) {
    let mut editor = Snapshot::default().edit();
    editor.mark_addresses_complete();
    editor.mark_policies_complete();
    let mut snapshot = editor.finish();
    let mut naive = Naive::default();
    for op in ops {
        let mut editor = snapshot.edit();
        match op {
            Op::Put(policy) => {
                editor.put_policy(policy.clone());
                naive.unusable.remove(&policy.key);
                naive.policies.insert(policy.key.clone(), policy.clone());
            }
            Op::Remove(key) => {
                editor.remove_policy(key);
                naive.policies.remove(key);
                naive.unusable.remove(key);
            }
            Op::Unusable(key, scope) => {
                match scope {
                    Some(scope) => editor.mark_policy_unusable_in(key, *scope),
                    None => editor.mark_policy_unusable(key),
                }
                if !naive.policies.contains_key(key) {
                    naive.unusable.insert(key.clone(), *scope);
                }
            }
        }
        snapshot = editor.finish();
    }
    (snapshot, naive)
}

fn agree(
    snapshot: &Snapshot,
    naive: &Naive,
    workload: &Workload,
    attempts: &[Parts],
) -> Result<(), TestCaseError> {
    for (source, source_ip, destination_ip, destination_port) in attempts {
        let attempt = Attempt {
            source: source.as_ref(),
            source_ip: *source_ip,
            destination: workload,
            destination_ip: *destination_ip,
            destination_port: *destination_port,
            through: None,
        };
        prop_assert_eq!(snapshot.admit(&attempt), naive.admit(&attempt), "{:?}", attempt);
    }
    Ok(())
}

proptest! {
    // Enough policies that buckets of the index split, and that rules hang in all the ways there are.
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_agrees_with_a_plain_reading_of_hundreds(
        puts in prop::collection::vec((policy(), one_of_many_keys()), 500),
        removed in prop::collection::vec(one_of_many_keys(), 150),
        attempts in prop::collection::vec(parts(), 40),
    ) {
        let puts = puts.into_iter().map(|(policy, key)| {
            // An ALLOW or DENY of everything would hide all others.
            let rules = policy.rules.into_iter().filter(|rule| rule.clauses.len() > 1).collect();
            Op::Put(Policy { key, rules, ..policy })
        });
        let ops: Vec<_> = puts.chain(removed.into_iter().map(Op::Remove)).collect();
        let (snapshot, naive) = play(&ops);
        agree(&snapshot, &naive, &Workload::named("u", "a", "w"), &attempts)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_agrees_with_a_plain_reading(
        ops in prop::collection::vec(op(), 0..14),
        named in prop::collection::vec(key(), 0..3),
        attempts in prop::collection::vec(parts(), 24),
    ) {
        let (snapshot, naive) = play(&ops);
        let mut workload = Workload::named("u", "a", "w");
        workload.authorization_policies = named;
        agree(&snapshot, &naive, &workload, &attempts)?;
        for policy in naive.policies.values() {
            prop_assert_eq!(snapshot.policy(&policy.key).map(|held| &**held), Some(policy));
        }
        prop_assert_eq!(snapshot.policies().count(), naive.policies.len());
    }

    /// After everything is removed nothing of the policies is left behind to match.
    #[test]
    fn a_policy_that_is_removed_leaves_nothing(ops in prop::collection::vec(op(), 0..14)) {
        let (snapshot, naive) = play(&ops);
        let mut editor = snapshot.edit();
        for key in naive.policies.keys().chain(naive.unusable.keys()) {
            editor.remove_policy(key);
        }
        let empty = editor.finish();
        let workload = Workload::named("u", "a", "w");
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let caller = Identity::new("td", "a", "x");
        for source in [None, Some(&caller)] {
            let attempt =
                Attempt { source, source_ip: ip, destination: &workload, destination_ip: ip, destination_port: 80, through: None };
            prop_assert_eq!(empty.admit(&attempt), Naive::default().admit(&attempt));
        }
        prop_assert!(empty.policies_for(&workload).is_empty());
    }
}
