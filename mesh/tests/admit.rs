//! What policies mean: each field and its `not_` twin, how fields, matches, clauses, rules and policies
//! combine, whom a policy is for, and what refuses when a policy is missing.

use std::net::IpAddr;

use mesh::{
    Action, Attempt, Clause, Decision, Identity, Match, Policy, PolicyKey, Refusal, Rule, Scope,
    ServiceAccountMatch, Snapshot, StringMatch, Verdict, Workload,
};

fn key(name: &str) -> PolicyKey {
    PolicyKey { namespace: "app".into(), name: name.into() }
}

/// A policy of namespace `app` and its scope, with the given rules.
fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    Policy { key: key(name), scope: Scope::Namespace, action, dry_run: false, rules }
}

fn of(matches: impl IntoIterator<Item = Match>) -> Vec<Rule> {
    vec![Rule { clauses: vec![Clause { matches: matches.into_iter().collect() }] }]
}

/// Matches callers of one namespace.
fn from(namespace: &str) -> Match {
    Match { namespaces: vec![StringMatch::Exact(namespace.into())], ..Match::default() }
}

fn to_port(port: u16) -> Match {
    Match { destination_ports: vec![port], ..Match::default() }
}

fn snapshot(policies: impl IntoIterator<Item = Policy>) -> Snapshot {
    let mut editor = Snapshot::default().edit();
    editor.mark_addresses_complete();
    editor.mark_policies_complete();
    policies.into_iter().for_each(|policy| editor.put_policy(policy));
    editor.finish()
}

fn server() -> Workload {
    Workload::named("c//Pod/app/server", "app", "server")
}

fn caller() -> Identity {
    "spiffe://td/ns/client/sa/curl".parse().unwrap()
}

/// The caller from 10.0.0.1 to port 80 of 10.0.0.2.
fn attempt<'a>(source: Option<&'a Identity>, destination: &'a Workload) -> Attempt<'a> {
    Attempt {
        source,
        source_ip: "10.0.0.1".parse().unwrap(),
        destination,
        destination_ip: "10.0.0.2".parse().unwrap(),
        destination_port: 80,
        through: None,
    }
}

fn admit(snapshot: &Snapshot) -> Decision {
    snapshot.admit(&attempt(Some(&caller()), &server()))
}

fn denied(name: &str) -> Verdict {
    Verdict::Refuse(Refusal::Denied(key(name)))
}

fn not_allowed(name: &str) -> Verdict {
    Verdict::Refuse(Refusal::NotAllowed(key(name)))
}

fn allowed(name: &str) -> Verdict {
    Verdict::Allow(Some(key(name)))
}

/// Whether a match holds for the caller with identity, and without.
fn holds(m: Match) -> (bool, bool) {
    let snapshot = snapshot([policy("p", Action::Allow, of([m]))]);
    let (caller, server) = (caller(), server());
    let is_allowed = |source| match snapshot.admit(&attempt(source, &server)).verdict {
        Verdict::Allow(by) => {
            assert_eq!(by, Some(key("p")));
            true
        }
        Verdict::Refuse(refusal) => {
            assert_eq!(refusal, Refusal::NotAllowed(key("p")));
            false
        }
    };
    (is_allowed(Some(&caller)), is_allowed(None))
}

#[test]
fn text_fields_and_their_twins() {
    use StringMatch::{Exact, Prefix, Presence, Suffix};
    // The value, whether it is the caller's namespace, whether it is its principal.
    let cases = [
        (Exact("client".into()), true, false),
        (Exact("clien".into()), false, false),
        (Exact("".into()), false, false),
        (Exact("td/ns/client/sa/curl".into()), false, true),
        (Exact("spiffe://td/ns/client/sa/curl".into()), false, false),
        (Prefix("cli".into()), true, false),
        (Prefix("td/ns/cli".into()), false, true),
        (Prefix("".into()), true, true),
        (Prefix("td/ns/client/sa/curl/and/more".into()), false, false),
        (Suffix("ent".into()), true, false),
        (Suffix("/sa/curl".into()), false, true),
        (Suffix("x/td/ns/client/sa/curl".into()), false, false),
        (Presence, true, true),
    ];
    for (value, namespace, principal) in cases {
        let values = || vec![value.clone()];
        let m = Match { namespaces: values(), ..Match::default() };
        assert_eq!(holds(m), (namespace, false), "namespaces {value:?}");
        let m = Match { not_namespaces: values(), ..Match::default() };
        assert_eq!(holds(m), (!namespace, true), "not_namespaces {value:?}");
        let m = Match { principals: values(), ..Match::default() };
        assert_eq!(holds(m), (principal, false), "principals {value:?}");
        let m = Match { not_principals: values(), ..Match::default() };
        assert_eq!(holds(m), (!principal, true), "not_principals {value:?}");
    }
}

#[test]
fn service_accounts_and_their_twin() {
    for (namespace, account, expected) in [
        ("client", "curl", true),
        ("client", "other", false),
        ("other", "curl", false),
        ("client/curl", "", false),
    ] {
        let values =
            vec![ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() }];
        let m = Match { service_accounts: values.clone(), ..Match::default() };
        assert_eq!(holds(m), (expected, false), "{namespace} {account}");
        let m = Match { not_service_accounts: values, ..Match::default() };
        assert_eq!(holds(m), (!expected, true), "not {namespace} {account}");
    }
}

#[test]
fn addresses_and_their_twins() {
    // The network, whether it holds 10.0.0.1 (the source), whether it holds 10.0.0.2 (the destination).
    let cases = [
        ("10.0.0.1/32", true, false),
        ("10.0.0.3/31", false, true),
        ("10.0.0.77/24", true, true),
        ("0.0.0.0/0", true, true),
        ("11.0.0.0/8", false, false),
        ("::ffff:10.0.0.1/128", true, false),
        ("::ffff:10.0.0.0/120", true, true),
        ("::ffff:0:0/96", true, true),
        ("::/0", false, false),
        ("fd00::/8", false, false),
    ];
    for (net, source, destination) in cases {
        let values = || vec![net.parse().unwrap()];
        let m = Match { source_ips: values(), ..Match::default() };
        assert_eq!(holds(m), (source, source), "source {net}");
        let m = Match { not_source_ips: values(), ..Match::default() };
        assert_eq!(holds(m), (!source, !source), "not source {net}");
        let m = Match { destination_ips: values(), ..Match::default() };
        assert_eq!(holds(m), (destination, destination), "destination {net}");
        let m = Match { not_destination_ips: values(), ..Match::default() };
        assert_eq!(holds(m), (!destination, !destination), "not destination {net}");
    }
}

#[test]
fn addresses_in_ipv6_form_are_judged_as_what_they_are() {
    let judged = |net: &str, ip: &str| {
        let rules = of([Match { source_ips: vec![net.parse().unwrap()], ..Match::default() }]);
        let snapshot = snapshot([policy("p", Action::Deny, rules)]);
        let server = server();
        let source_ip: IpAddr = ip.parse().unwrap();
        snapshot.admit(&Attempt { source_ip, ..attempt(None, &server) }).verdict == denied("p")
    };
    assert!(judged("10.0.0.0/8", "::ffff:10.1.2.3"));
    assert!(judged("::ffff:10.0.0.0/104", "10.1.2.3"));
    assert!(judged("fd00::/64", "fd00::5"));
    assert!(!judged("fd00::/64", "fd00:0:0:1::5"));
    assert!(!judged("10.0.0.0/8", "::10.1.2.3"), "a compatible address is not a mapped one");
    assert!(judged("::/0", "fd00::5"));
}

#[test]
fn ports_and_their_twin() {
    for (ports, expected) in [(vec![80], true), (vec![443, 80], true), (vec![81], false)] {
        let m = Match { destination_ports: ports.clone(), ..Match::default() };
        assert_eq!(holds(m), (expected, expected), "{ports:?}");
        let m = Match { not_destination_ports: ports.clone(), ..Match::default() };
        assert_eq!(holds(m), (!expected, !expected), "not {ports:?}");
    }
}

#[test]
fn values_of_a_field_are_alternatives_and_fields_are_not() {
    let both = Match { destination_ports: vec![80], ..from("client") };
    assert_eq!(holds(both.clone()), (true, false));
    assert_eq!(holds(Match { destination_ports: vec![81], ..both.clone() }), (false, false));
    assert_eq!(holds(Match { not_destination_ports: vec![80, 81], ..both.clone() }), (false, false));
    assert_eq!(holds(Match { not_destination_ports: vec![443, 81], ..both }), (true, false));
    let values = ["other", "client"].map(|name| StringMatch::Exact(name.into())).to_vec();
    assert_eq!(holds(Match { namespaces: values.clone(), ..Match::default() }), (true, false));
    assert_eq!(holds(Match { not_namespaces: values, ..Match::default() }), (false, true));
}

#[test]
fn long_lists_are_judged_as_short_ones() {
    let networks = (0..2000u32).map(|n| IpAddr::from((0x0a01_0000 + (n << 8)).to_be_bytes()));
    let networks = |extra: &[&str]| {
        let own = extra.iter().map(|net| net.parse().unwrap());
        networks.clone().map(|ip| ipnet::IpNet::new(ip, 24).unwrap()).chain(own).collect::<Vec<_>>()
    };
    assert!(!holds(Match { source_ips: networks(&[]), ..Match::default() }).0);
    assert!(holds(Match { source_ips: networks(&["10.0.0.0/30"]), ..Match::default() }).0);
    let principals = |extra: &str| {
        let many = (0..2000).map(|n| format!("td/ns/client/sa/curl-{n}")).chain([extra.to_owned()]);
        many.map(|text| StringMatch::Exact(text.into())).collect::<Vec<_>>()
    };
    assert!(!holds(Match { principals: principals("x"), ..Match::default() }).0);
    assert!(holds(Match { principals: principals("td/ns/client/sa/curl"), ..Match::default() }).0);
}

#[test]
fn a_rule_of_very_many_callers_and_ports_is_hung_once_for_each_not_for_each_pair() {
    let principals = (0..20_000).map(|n| StringMatch::Exact(format!("td/ns/client/sa/curl-{n}").into()));
    let who = Match {
        principals: principals.chain([StringMatch::Exact("td/ns/client/sa/curl".into())]).collect(),
        ..Match::default()
    };
    let ports = Match { destination_ports: (80..20_000).collect(), ..Match::default() };
    let clauses = [who, ports].map(|m| Clause { matches: vec![m] }).to_vec();
    let snapshot = snapshot([policy("p", Action::Allow, vec![Rule { clauses }])]);
    assert_eq!(admit(&snapshot).verdict, allowed("p"));
    let server = server();
    assert_eq!(snapshot.admit(&attempt(None, &server)).verdict, not_allowed("p"));
}

#[test]
fn rules_and_matches_are_alternatives_and_clauses_are_not() {
    let clause = |matches: &[Match]| Clause { matches: matches.to_vec() };
    let rule = |clauses: Vec<Clause>| Rule { clauses };
    let cases: [(&str, Vec<Rule>, bool); 6] = [
        ("one match of two", vec![rule(vec![clause(&[from("other"), from("client")])])], true),
        ("two clauses", vec![rule(vec![clause(&[from("client")]), clause(&[to_port(80)])])], true),
        ("one clause of two", vec![rule(vec![clause(&[from("client")]), clause(&[to_port(81)])])], false),
        (
            "one rule of two",
            vec![rule(vec![clause(&[to_port(81)])]), rule(vec![clause(&[to_port(80)])])],
            true,
        ),
        ("no rule of two", vec![rule(vec![clause(&[to_port(81)])]), rule(vec![clause(&[from("x")])])], false),
        ("an empty clause beside another", vec![rule(vec![clause(&[]), clause(&[to_port(81)])])], false),
    ];
    for (case, rules, expected) in cases {
        let verdict = admit(&snapshot([policy("p", Action::Allow, rules.clone())])).verdict;
        assert_eq!(verdict, if expected { allowed("p") } else { not_allowed("p") }, "ALLOW, {case}");
        let verdict = admit(&snapshot([policy("p", Action::Deny, rules)])).verdict;
        assert_eq!(verdict, if expected { denied("p") } else { Verdict::Allow(None) }, "DENY, {case}");
    }
}

#[test]
fn what_is_empty_is_told_apart() {
    let rule = |clauses: &[&[Match]]| {
        let clauses = clauses.iter().map(|matches| Clause { matches: matches.to_vec() }).collect();
        vec![Rule { clauses }]
    };
    let empty = Match::default();
    // The rules, whether an ALLOW matches, whether a DENY does.
    let cases: [(&str, Vec<Rule>, bool, bool); 7] = [
        ("no rules", vec![], false, false),
        ("a rule without clauses: rules: [{}]", rule(&[]), true, true),
        ("an empty clause", rule(&[&[]]), true, true),
        ("an empty match alone", rule(&[std::slice::from_ref(&empty)]), false, true),
        ("an empty match beside one that fails", rule(&[&[empty.clone(), to_port(81)]]), false, true),
        ("an empty match beside one that holds", rule(&[&[empty.clone(), to_port(80)]]), true, true),
        ("an empty match, and a clause that fails", rule(&[&[empty], &[to_port(81)]]), false, false),
    ];
    for (case, rules, allow, deny) in cases {
        let verdict = admit(&snapshot([policy("p", Action::Allow, rules.clone())])).verdict;
        assert_eq!(verdict, if allow { allowed("p") } else { not_allowed("p") }, "ALLOW, {case}");
        let verdict = admit(&snapshot([policy("p", Action::Deny, rules)])).verdict;
        assert_eq!(verdict, if deny { denied("p") } else { Verdict::Allow(None) }, "DENY, {case}");
    }
}

#[test]
fn deny_comes_before_allow_and_the_first_name_is_told() {
    let all = || vec![Rule::default()];
    let none = Vec::new;
    assert_eq!(admit(&snapshot([])).verdict, Verdict::Allow(None));
    let cases = [
        (vec![policy("b", Action::Allow, all())], allowed("b")),
        (vec![policy("b", Action::Allow, all()), policy("a", Action::Allow, all())], allowed("a")),
        (vec![policy("b", Action::Allow, all()), policy("a", Action::Allow, none())], allowed("b")),
        (vec![policy("b", Action::Allow, none()), policy("a", Action::Allow, none())], not_allowed("a")),
        (vec![policy("a", Action::Allow, all()), policy("z", Action::Deny, all())], denied("z")),
        (vec![policy("y", Action::Deny, all()), policy("z", Action::Deny, all())], denied("y")),
        (vec![policy("y", Action::Deny, none()), policy("z", Action::Deny, all())], denied("z")),
        (vec![policy("a", Action::Deny, none())], Verdict::Allow(None)),
    ];
    for (policies, expected) in cases {
        let reversed = policies.iter().rev().cloned().collect::<Vec<_>>();
        assert_eq!(admit(&snapshot(policies.clone())).verdict, expected, "{policies:?}");
        assert_eq!(admit(&snapshot(reversed)).verdict, expected, "{policies:?} in the other order");
    }
}

#[test]
fn a_policy_is_for_its_scope() {
    let with = |namespace: &str, scope| {
        let key = PolicyKey { namespace: namespace.into(), name: "p".into() };
        snapshot([Policy { key, scope, ..policy("p", Action::Deny, vec![Rule::default()]) }])
    };
    let refused = |snapshot: &Snapshot, names: &[(&str, &str)]| {
        let mut server = server();
        let key =
            |&(namespace, name): &(&str, &str)| PolicyKey { namespace: namespace.into(), name: name.into() };
        server.authorization_policies = names.iter().map(key).collect();
        matches!(snapshot.admit(&attempt(None, &server)).verdict, Verdict::Refuse(Refusal::Denied(_)))
    };
    assert!(refused(&with("root", Scope::Global), &[]));
    assert!(refused(&with("app", Scope::Namespace), &[]));
    assert!(!refused(&with("other", Scope::Namespace), &[]));
    assert!(!refused(&with("app", Scope::WorkloadSelector), &[]));
    assert!(refused(&with("app", Scope::WorkloadSelector), &[("app", "p")]));
    assert!(
        refused(&with("root", Scope::WorkloadSelector), &[("root", "p")]),
        "PeerAuthentication is so compiled"
    );
    assert!(refused(&with("app", Scope::Namespace), &[("app", "p")]), "named besides");
}

#[test]
fn strict_refuses_callers_without_identity() {
    let anonymous = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
    let strict = snapshot([policy("strict", Action::Deny, of([anonymous.clone()]))]);
    let (caller, server) = (caller(), server());
    assert_eq!(strict.admit(&attempt(None, &server)).verdict, denied("strict"));
    assert_eq!(strict.admit(&attempt(Some(&caller), &server)).verdict, Verdict::Allow(None));

    // STRICT but for port 80, and STRICT at port 80 only.
    let except = Match { not_destination_ports: vec![80], ..Match::default() };
    let clauses = [anonymous.clone(), except].map(|m| Clause { matches: vec![m] }).to_vec();
    let except = snapshot([policy("strict", Action::Deny, vec![Rule { clauses }])]);
    let only = Match { destination_ports: vec![80], ..anonymous };
    let only = snapshot([policy("strict", Action::Deny, of([only]))]);
    for (port, except_refuses, only_refuses) in [(80, false, true), (81, true, false)] {
        let attempt = Attempt { destination_port: port, ..attempt(None, &server) };
        assert_eq!(except.admit(&attempt).verdict == denied("strict"), except_refuses, "{port}");
        assert_eq!(only.admit(&attempt).verdict == denied("strict"), only_refuses, "{port}");
    }
}

#[test]
fn a_policy_that_is_named_and_not_held_refuses() {
    let mut server = server();
    server.authorization_policies = vec![key("z"), key("missing")];
    let (all, caller) = (vec![Rule::default()], caller());
    let of = |policies: Vec<Policy>| snapshot(policies).admit(&attempt(Some(&caller), &server)).verdict;
    let missing = |name: &str| Verdict::Refuse(Refusal::PolicyMissing(key(name)));
    assert_eq!(of(vec![]), missing("missing"), "the first by name");
    assert_eq!(of(vec![policy("missing", Action::Allow, all.clone())]), missing("z"));
    assert_eq!(
        of(vec![policy("missing", Action::Deny, all.clone())]),
        denied("missing"),
        "DENY is told first"
    );
    let both = vec![policy("missing", Action::Allow, vec![]), policy("z", Action::Allow, all)];
    assert_eq!(of(both), allowed("z"));
}

#[test]
fn an_unusable_policy_refuses_whom_it_may_be_for() {
    let bad = |scope: Option<Scope>| {
        let mut editor = snapshot([policy("allow", Action::Allow, vec![Rule::default()])]).edit();
        match scope {
            Some(scope) => editor.mark_policy_unusable_in(&key("bad"), scope),
            None => editor.mark_policy_unusable(&key("bad")),
        }
        editor.finish()
    };
    let refused = |snapshot: &Snapshot, namespace: &str, names: &[&str]| {
        let mut workload = Workload::named("u", namespace, "w");
        workload.authorization_policies = names.iter().map(|name| key(name)).collect();
        snapshot.admit(&attempt(None, &workload)).verdict
            == Verdict::Refuse(Refusal::PolicyMissing(key("bad")))
    };
    // In the policy's namespace, elsewhere, elsewhere and naming it.
    let told = |scope| {
        let snapshot = bad(scope);
        [
            refused(&snapshot, "app", &[]),
            refused(&snapshot, "other", &[]),
            refused(&snapshot, "other", &["bad"]),
        ]
    };
    assert_eq!(told(None), [true, false, true]);
    assert_eq!(told(Some(Scope::Namespace)), [true, false, true]);
    assert_eq!(told(Some(Scope::Global)), [true, true, true]);
    assert_eq!(told(Some(Scope::WorkloadSelector)), [false, false, true]);

    let mut editor = bad(None).edit();
    editor.put_policy(policy("bad", Action::Allow, vec![]));
    assert_eq!(admit(&editor.finish()).verdict, allowed("allow"), "a put lifts the mark");
    let mut editor = bad(None).edit();
    editor.remove_policy(&key("bad"));
    assert_eq!(admit(&editor.finish()).verdict, allowed("allow"), "and so does a removal");
}

#[test]
fn a_policy_that_is_held_stays_in_force_when_its_update_is_unusable() {
    let mut editor = snapshot([policy("p", Action::Deny, of([from("client")]))]).edit();
    editor.mark_policy_unusable(&key("p"));
    let snapshot = editor.finish();
    assert_eq!(admit(&snapshot).verdict, denied("p"));
    assert_eq!(snapshot.admit(&attempt(None, &server())).verdict, Verdict::Allow(None));
}

#[test]
fn dry_run_is_told_and_never_enforced() {
    let dry = |name: &str, action, rules| Policy { dry_run: true, ..policy(name, action, rules) };
    let all = || vec![Rule::default()];
    let never = Vec::new;
    let keys = |names: &[&str]| names.iter().map(|name| key(name)).collect::<Vec<_>>();
    let cases: [(&str, Vec<Policy>, Verdict, &[&str]); 8] = [
        ("a DENY that matches", vec![dry("d", Action::Deny, all())], Verdict::Allow(None), &["d"]),
        ("a DENY that does not", vec![dry("d", Action::Deny, never())], Verdict::Allow(None), &[]),
        (
            "all DENY that match, beside an enforced ALLOW",
            vec![
                dry("e", Action::Deny, all()),
                dry("d", Action::Deny, all()),
                policy("a", Action::Allow, all()),
            ],
            allowed("a"),
            &["d", "e"],
        ),
        (
            "an ALLOW that would let in",
            vec![dry("x", Action::Allow, all()), policy("a", Action::Allow, never())],
            not_allowed("a"),
            &["x"],
        ),
        (
            "an ALLOW that would shut out",
            vec![dry("y", Action::Allow, never()), dry("x", Action::Allow, never())],
            Verdict::Allow(None),
            &["x"],
        ),
        (
            "ALLOWs of which one matches",
            vec![dry("x", Action::Allow, never()), dry("y", Action::Allow, all())],
            Verdict::Allow(None),
            &[],
        ),
        (
            "what an enforced ALLOW lets in anyway",
            vec![dry("x", Action::Allow, never()), policy("a", Action::Allow, all())],
            allowed("a"),
            &[],
        ),
        (
            "what is denied anyway",
            vec![
                dry("d", Action::Deny, all()),
                dry("x", Action::Allow, all()),
                policy("a", Action::Deny, all()),
            ],
            denied("a"),
            &[],
        ),
    ];
    for (case, policies, verdict, dry_run) in cases {
        let named: Vec<_> = policies.iter().map(|policy| policy.key.clone()).collect();
        let selected = policies.iter().cloned().map(|p| Policy { scope: Scope::WorkloadSelector, ..p });
        let mut server = server();
        server.authorization_policies = named;
        let expected = Decision { verdict, dry_run: keys(dry_run) };
        assert_eq!(admit(&snapshot(policies.clone())), expected, "{case}");
        assert_eq!(
            snapshot(selected).admit(&attempt(Some(&caller()), &server)),
            expected,
            "{case}, by selector"
        );
    }
    let many = (0..40).map(|n| dry(&format!("d{n:02}"), Action::Deny, all()));
    assert_eq!(admit(&snapshot(many)).dry_run, (0..16).map(|n| key(&format!("d{n:02}"))).collect::<Vec<_>>());
}

#[test]
fn an_incomplete_state_admits_nothing() {
    let refused = |snapshot: Snapshot| admit(&snapshot).verdict == Verdict::Refuse(Refusal::Incomplete);
    let edited = |edit: fn(&mut mesh::Editor)| {
        let mut editor = Snapshot::default().edit();
        editor.put_policy(policy("p", Action::Allow, vec![Rule::default()]));
        edit(&mut editor);
        editor.finish()
    };
    assert!(refused(Snapshot::default()));
    assert!(refused(edited(|editor| editor.mark_addresses_complete())));
    assert!(refused(edited(|editor| editor.mark_policies_complete())));
}

#[test]
fn a_policy_is_replaced_whole_and_in_every_scope() {
    let mut snapshot = snapshot([policy("p", Action::Deny, of([from("client")]))]);
    let versions = [
        (policy("p", Action::Deny, of([from("other")])), Verdict::Allow(None)),
        (policy("p", Action::Allow, of([from("client")])), allowed("p")),
        (
            Policy { scope: Scope::WorkloadSelector, ..policy("p", Action::Deny, of([from("client")])) },
            Verdict::Allow(None),
        ),
        (Policy { scope: Scope::Global, ..policy("p", Action::Deny, of([from("client")])) }, denied("p")),
        (Policy { dry_run: true, ..policy("p", Action::Deny, of([from("client")])) }, Verdict::Allow(None)),
    ];
    for (version, expected) in versions {
        let before = admit(&snapshot);
        let mut editor = snapshot.edit();
        editor.put_policy(version.clone());
        let next = editor.finish();
        assert_eq!(admit(&next).verdict, expected, "{version:?}");
        assert_eq!(admit(&snapshot), before, "the older state is as it was");
        snapshot = next;
    }
}

#[test]
fn the_generation_changes_with_the_policies_only() {
    let first = snapshot([policy("p", Action::Deny, vec![])]);
    let after = |edit: &dyn Fn(&mut mesh::Editor)| {
        let mut editor = first.edit();
        edit(&mut editor);
        editor.finish().policy_generation() != first.policy_generation()
    };
    assert!(!after(&|_| {}));
    assert!(!after(&|editor| editor.put_workload(server())));
    assert!(!after(&|editor| editor.put_policy(policy("p", Action::Deny, vec![]))), "as it was");
    assert!(!after(&|editor| editor.remove_policy(&key("none"))));
    assert!(!after(&|editor| editor.mark_policy_unusable(&key("p"))), "held");
    assert!(after(&|editor| editor.put_policy(policy("p", Action::Allow, vec![]))));
    assert!(after(&|editor| editor.remove_policy(&key("p"))));
    assert!(after(&|editor| editor.mark_policy_unusable(&key("q"))));
}

#[test]
fn the_names_of_the_policies_for_a_workload() {
    let mut server = server();
    server.authorization_policies = vec![key("named"), key("gone")];
    let scoped = |name: &str, scope| Policy { scope, ..policy(name, Action::Allow, vec![]) };
    let mut elsewhere = scoped("elsewhere", Scope::Namespace);
    elsewhere.key.namespace = "other".into();
    let mut editor = snapshot([
        scoped("here", Scope::Namespace),
        scoped("all", Scope::Global),
        scoped("named", Scope::WorkloadSelector),
        scoped("other", Scope::WorkloadSelector),
        elsewhere,
    ])
    .edit();
    editor.mark_policy_unusable_in(&key("bad"), Scope::Namespace);
    let names = ["all", "bad", "gone", "here", "named"].map(key);
    assert_eq!(editor.finish().policies_for(&server), names);
}

#[test]
fn a_refusal_reads_well() {
    let texts = [
        (Refusal::Denied(key("p")), "denied by policy app/p"),
        (
            Refusal::Denied(key("culvert_peer_authentication_strict")),
            "the caller has no identity (plaintext), and a PeerAuthentication is STRICT",
        ),
        (Refusal::NotAllowed(key("p")), "no ALLOW policy matches (policy app/p among them)"),
        (
            Refusal::PolicyMissing(key("p")),
            "policy app/p selects this workload and could not be read or was never received",
        ),
    ];
    for (refusal, text) in texts {
        assert_eq!(refusal.to_string(), text);
    }
}
