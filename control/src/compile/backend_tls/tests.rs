//! Policies for TLS with backends, from manifests to what is published of them.

use mesh::route::{BackendTls, SubjectName, Trust};
use rcgen::{CertificateParams, IsCa, KeyPair};

use crate::compile::{
    Compiled, Condition, Word,
    routes::tests::{GATEWAY, SHOP, problems},
    tests::{compiled, compiled_as_is},
};

const ACCEPTED: &str = "Accepted=true/Accepted";
const RESOLVED: &str = "ResolvedRefs=true/ResolvedRefs";

/// A policy for the service `web`.
fn policy(name: &str, port: &str, validation: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{targetRefs: [{{group: '', kind: Service, name: web{port}}}], validation: {{hostname: web.test, {validation}}}}}\n"
    )
}

const SYSTEM: &str = "wellKnownCACertificates: System";
const BY_CONFIG_MAP: &str = "caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]";

fn roots(text: &str) -> String {
    let lines: String = text.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: roots, namespace: shop}}\ndata:\n  ca.crt: |\n{lines}"
    )
}

fn authority() -> String {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

/// What is told to waypoints of the service `web`.
fn told(compiled: &Compiled) -> Vec<BackendTls> {
    let web = compiled.routes.values().find(|routes| routes.service.hostname.starts_with("web.")).unwrap();
    web.tls.iter().map(|tls| BackendTls::clone(tls)).collect()
}

/// How each policy stands: `NAME TYPE=STATUS/REASON …`.
fn standing(compiled: &Compiled) -> Vec<String> {
    let words = |of: &Condition| format!("{}={}/{}", of.kind, of.status, of.reason);
    let statuses = compiled.routes_status.iter().flat_map(|(key, all)| all.iter().map(move |one| (key, one)));
    statuses
        .map(|(key, one)| {
            let conditions: Vec<String> = one.conditions.iter().map(words).collect();
            format!("{} {}", key.name, conditions.join(" "))
        })
        .collect()
}

#[test]
fn a_policy_is_told_with_its_certificates_found() {
    let pem = authority();
    let names =
        "subjectAltNames: [{type: Hostname, hostname: '*.web.test'}, {type: URI, uri: 'spiffe://a/b'}]";
    let own = policy("own", ", sectionName: http", &format!("{BY_CONFIG_MAP}, {names}"));
    let compiled = compiled(&[SHOP, GATEWAY, &own, &roots(&pem), &policy("all", "", SYSTEM)]);
    assert_eq!(problems(&compiled), Vec::<String>::new());
    assert_eq!(standing(&compiled), ["all", "own"].map(|name| format!("{name} {ACCEPTED} {RESOLVED}")));
    let [all, own] = &told(&compiled)[..] else { panic!("{:?}", told(&compiled)) };
    assert_eq!((all.port, &all.trust, &*all.policy), (None, &Trust::System, "shop/all"));
    assert_eq!((own.port, &*own.hostname), (Some(80), "web.test"));
    let Trust::Roots(found) = &own.trust else { panic!("{own:?}") };
    assert_eq!(found.trim(), pem.replace('\r', "").trim());
    assert_eq!(own.names, [SubjectName::Dns("*.web.test".into()), SubjectName::Uri("spiffe://a/b".into())]);
}

#[test]
fn what_cannot_be_used_is_told_and_closes_the_way() {
    let none = "Accepted=false/NoValidCACertificate ResolvedRefs=false/InvalidCACertificateRef";
    for (validation, config_map, said) in [
        (BY_CONFIG_MAP.to_owned(), String::new(), none),
        (BY_CONFIG_MAP.to_owned(), roots("nothing"), none),
        (BY_CONFIG_MAP.to_owned(), roots("x").replace("ca.crt", "other"), none),
        (
            BY_CONFIG_MAP.replace("ConfigMap", "Secret"),
            roots(&authority()),
            "Accepted=false/NoValidCACertificate ResolvedRefs=false/InvalidKind",
        ),
        (
            BY_CONFIG_MAP.replace("name: roots}", "name: roots}, {kind: ConfigMap, name: nobody}"),
            roots(&authority()),
            "Accepted=true/Accepted ResolvedRefs=false/InvalidCACertificateRef",
        ),
        (
            SYSTEM.replace("System", "example.com/own"),
            String::new(),
            "Accepted=false/Invalid ResolvedRefs=true/ResolvedRefs",
        ),
    ] {
        let compiled = compiled(&[SHOP, GATEWAY, &policy("p", "", &validation), &config_map]);
        assert_eq!(standing(&compiled), [format!("p {said}")], "{validation}");
        assert_eq!(problems(&compiled).len(), 1, "{:?}", problems(&compiled));
        let told = told(&compiled);
        assert!(matches!(&told[..], [BackendTls { trust: Trust::Nobody(_), .. }]), "{validation}: {told:?}");
    }
}

#[test]
fn of_several_for_the_same_the_oldest_holds_and_a_target_must_be_there() {
    let dated = |text: &str, day: &str| {
        text.replace(
            "namespace: shop}",
            &format!("namespace: shop, creationTimestamp: '2026-01-{day}T00:00:00Z'}}"),
        )
    };
    let (new, old) = (dated(&policy("a", "", SYSTEM), "02"), dated(&policy("b", "", SYSTEM), "01"));
    let other = policy("c", ", sectionName: x", SYSTEM);
    let lost = policy("d", ", sectionName: nobody", SYSTEM);
    let nobody = policy("e", "", SYSTEM).replace("name: web", "name: absent");
    let compiled = compiled(&[SHOP, GATEWAY, &new, &old, &other, &lost, &nobody]);
    let conflicted = format!("a Accepted=false/Conflicted {RESOLVED}");
    let accepted = |name: &str| format!("{name} {ACCEPTED} {RESOLVED}");
    let lost = |name: &str| format!("{name} Accepted=false/TargetNotFound");
    assert_eq!(standing(&compiled), [conflicted, accepted("b"), accepted("c"), lost("d"), lost("e")]);
    let told: Vec<(String, Option<u16>)> =
        told(&compiled).iter().map(|tls| (tls.policy.to_string(), tls.port)).collect();
    assert_eq!(told, [("shop/c".to_owned(), Some(81)), ("shop/b".to_owned(), None)]);
}

#[test]
fn what_was_refused_and_never_good_closes_the_way_to_what_it_is_for() {
    let word: &dyn Fn(&str, &str) -> Word = &|_, _| Word::Fresh { measured: true };
    for (case, refused, port, hostname) in [
        (
            "a field that nobody knows",
            policy("p", ", sectionName: x", "wellKnown: System"),
            Some(Some(81)),
            "web.test",
        ),
        ("no server", policy("p", "", SYSTEM).replace("web.test", "'*.test'"), Some(None), "unreadable"),
        (
            "a name that is none",
            policy("p", "", &format!("{SYSTEM}, subjectAltNames: [{{}}]")),
            Some(None),
            "web.test",
        ),
        (
            "a validation that is none",
            policy("p", "", "x: [y]").replace("hostname: web.test,", ""),
            Some(None),
            "unreadable",
        ),
        (
            "a target that is odd",
            policy("p", "", SYSTEM).replace("name: web}", "name: web, port: 80}"),
            Some(None),
            "web.test",
        ),
        (
            "a target beside one that is odd",
            policy("p", "", SYSTEM).replace("[{group", "[7, {group"),
            Some(None),
            "web.test",
        ),
        (
            "its own namespace",
            policy("p", "", SYSTEM).replace("name: web}", "name: web, namespace: shop}"),
            Some(None),
            "web.test",
        ),
        (
            "one target that is in no list",
            policy("p", "", SYSTEM).replace("[{group", "{group").replace("web}]", "web}"),
            Some(None),
            "web.test",
        ),
        (
            "odd metadata",
            policy("p", "", SYSTEM).replace("namespace: shop", "namespace: shop, labels: [x]"),
            Some(None),
            "web.test",
        ),
        (
            "another namespace",
            policy("p", "", SYSTEM).replace("name: web}", "name: web, namespace: x}"),
            None,
            "spec.targetRefs[0]: it is in another namespace than the policy (shop)",
        ),
        (
            "no targets",
            policy("p", "", SYSTEM).replace("targetRefs:", "targets:"),
            None,
            "spec.targetRefs: no target can be read",
        ),
        (
            "a spec of which nothing can be read",
            policy("p", "", SYSTEM).replace("spec: {", "spec: {targetRefs: [], "),
            None,
            "spec.targetRefs: no target can be read",
        ),
    ] {
        let compiled = compiled_as_is(&[SHOP, GATEWAY, &refused], word);
        let told = told(&compiled);
        let Some(port) = port else {
            assert_eq!((told, standing(&compiled)), (Vec::new(), Vec::new()), "{case}: nobody is named");
            let [_, left_out] = &problems(&compiled)[..] else { panic!("{case}: {:?}", problems(&compiled)) };
            let said = format!("{hostname}: the policy is refused, and closes no way to it");
            assert!(left_out.contains(&said), "{case}: {left_out}");
            continue;
        };
        let [BackendTls { trust: Trust::Nobody(reason), port: of, hostname: asked, .. }] = &told[..] else {
            panic!("{case}: {told:?}")
        };
        assert!(reason.starts_with("the policy is refused: "), "{case}: {reason}");
        assert_eq!((*of, &**asked), (port, hostname), "{case}");
        assert_eq!(standing(&compiled), ["p Accepted=false/Invalid"], "{case}");
        let said = compiled.routes_status.values().flatten().flat_map(|status| &status.conditions);
        let said: Vec<&str> = said.map(|condition| condition.message.as_str()).collect();
        assert!(
            said[0].ends_with(
                "until it is mended nothing is sent to its targets but what callers have begun in TLS themselves"
            ),
            "{case}: {said:?}"
        );
    }
}

#[test]
fn what_was_refused_for_its_many_targets_closes_the_way_to_them_and_tells_which_it_does_not() {
    let word: &dyn Fn(&str, &str) -> Word = &|_, _| Word::Fresh { measured: true };
    let of = |others: usize| {
        let others: String =
            (0..others).map(|number| format!("{{kind: Service, name: n{number}}}, ")).collect();
        let many = policy("p", "", SYSTEM).replace("[{group", &format!("[{others}{{group"));
        let compiled = compiled_as_is(&[SHOP, GATEWAY, &many], word);
        let refused = standing(&compiled).iter().filter(|one| *one == "p Accepted=false/Invalid").count();
        let left_out = problems(&compiled).into_iter().filter(|one| one.contains("closes no way")).collect();
        (told(&compiled).len(), refused, left_out)
    };
    assert_eq!(of(16), (1, 17, Vec::new()));
    assert_eq!(of(1023), (1, 1024, Vec::new()));
    let (told, refused, left_out): (_, _, Vec<String>) = of(1024);
    assert_eq!((told, refused), (0, 1024));
    let [left_out] = &left_out[..] else { panic!("{left_out:?}") };
    assert!(left_out.contains("of 1025 targets those after the 1024th are not read"), "{left_out}");
}

#[test]
fn an_option_that_nobody_knows_changes_nothing_and_is_told() {
    let compiled = compiled(&[
        SHOP,
        GATEWAY,
        &policy("p", "", SYSTEM).replace("spec: {", "spec: {options: {a.test/b: c}, "),
    ]);
    let [problem] = &problems(&compiled)[..] else { panic!("{:?}", problems(&compiled)) };
    assert!(problem.contains("spec.options[a.test/b]: no option is known here"), "{problem}");
    assert_eq!(standing(&compiled), [format!("p {ACCEPTED} {RESOLVED}")]);
    assert_eq!(told(&compiled)[0].trust, Trust::System);
}

#[test]
fn a_port_at_which_callers_own_tls_is_passed_through_is_named() {
    let shop = SHOP.replacen(
        "{name: x, port: 81, appProtocol: grpc}",
        "{name: tcp-sql, port: 81}, {name: bare, port: 82}",
        1,
    );
    let route = |kind: &str, port: u16| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r{port}, namespace: shop}}\n\
             spec: {{parentRefs: [{{group: '', kind: Service, name: web, port: {port}}}], rules: [{{backendRefs: \
             [{{name: web, port: {port}}}]}}]}}\n"
        )
    };
    let said = |texts: &[&str]| {
        let compiled = compiled(&[&[&*shop, GATEWAY], texts].concat());
        let statuses = compiled.routes_status.iter().filter(|(key, _)| &*key.name == "p");
        let conditions = statuses.flat_map(|(_, all)| all).flat_map(|status| status.conditions.clone());
        let accepted: Vec<_> = conditions.filter(|one| one.kind == "Accepted").collect();
        assert!(accepted.len() == 1 && accepted[0].status, "{accepted:?}");
        let said = accepted[0].message.strip_prefix("waypoints begin TLS with it");
        said.expect("what is accepted").to_owned()
    };
    let of = |section: &str| policy("p", &format!(", sectionName: {section}"), SYSTEM);
    let all = policy("p", "", SYSTEM);
    let begun = |ports: &str| {
        format!(
            "; at port {ports}, which may speak no HTTP, TLS that a caller has begun himself is passed through"
        )
    };
    let led = |ports: &str| format!(", but not at port {ports}, whose TLS a TLSRoute leads on as it is");
    for (case, policies, routes, expected) in [
        ("all", vec![&*all], vec![], begun("81, 82")),
        ("no HTTP", vec![&*of("tcp-sql")], vec![], begun("81")),
        ("nothing is said", vec![&*of("bare")], vec![], begun("82")),
        ("HTTP", vec![&*of("http")], vec![], String::new()),
        ("TCPRoutes", vec![&*all], vec![("TCPRoute", 81), ("TCPRoute", 82)], String::new()),
        ("a TLSRoute", vec![&*all], vec![("TLSRoute", 81)], led("81") + &begun("82")),
        ("a TLSRoute where nothing is said", vec![&*all], vec![("TLSRoute", 82)], led("82") + &begun("81")),
        ("a route says HTTP", vec![&*all], vec![("HTTPRoute", 82)], begun("81")),
        (
            "another policy's",
            vec![&*all, &*of("tcp-sql").replace("name: p,", "name: q,")],
            vec![],
            begun("82"),
        ),
    ] {
        let routes: Vec<String> = routes.iter().map(|(kind, port)| route(kind, *port)).collect();
        let texts: Vec<&str> = policies.into_iter().chain(routes.iter().map(String::as_str)).collect();
        assert_eq!(said(&texts), expected, "{case}");
    }
}
