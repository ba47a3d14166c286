//! Routes of connections, from manifests to what is published of them.

use mesh::{
    ServiceRoutes,
    route::{Found, RouteKind, To},
};

use super::tests::{ACCEPTED, GATEWAY, RESOLVED, SHOP, TILL, problems, standing, workload};
use crate::compile::{Compiled, tests::compiled};

/// A database behind the waypoint, and one that is not.
const DB: &str = "
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.96.0.5, selector: {app: web}, ports: [{name: tcp-sql, port: 5432}, {name: tls, port: 443}, {name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db-v2, namespace: shop}
spec: {clusterIP: 10.96.0.6, selector: {app: web-v2}, ports: [{name: tcp-sql, port: 5432}]}
";

fn route(kind: &str, name: &str, port: &str, rest: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: db{port}}}], {rest}}}\n"
    )
}

fn backends(refs: &str) -> String {
    format!("rules: [{{backendRefs: [{refs}]}}]")
}

fn db(compiled: &Compiled) -> &ServiceRoutes {
    compiled.routes.values().find(|routes| routes.service.hostname.starts_with("db.shop")).unwrap()
}

#[test]
fn a_route_of_connections_is_told_with_its_backends_found() {
    let to =
        backends("{name: db, port: 5432, weight: 3}, {name: db-v2, port: 5432}, {name: nobody, port: 1}");
    let compiled = compiled(&[SHOP, GATEWAY, DB, &route("TCPRoute", "r", ", port: 5432", &to)]);
    assert_eq!(standing(&compiled).concat(), [ACCEPTED, "ResolvedRefs=false/BackendNotFound"]);
    assert_eq!(
        problems(&compiled),
        [
            "TCPRoute shop/r: spec.rules[0].backendRefs[2].name: there is no service shop/nobody: its share is refused"
        ]
    );
    let db = db(&compiled);
    let Found::Rule(found) = db.find_connection(5432, None, None) else { panic!("{db:?}") };
    let told: Vec<_> =
        found.rule.backends.iter().map(|of| (of.weight, matches!(of.to, To::Service { .. }))).collect();
    assert_eq!(told, [(3, true), (1, true), (1, false)]);
    assert_eq!(db.find_connection(443, None, None), Found::NoRoute);
    assert_eq!(workload(&compiled, "web-2").routed_from, std::slice::from_ref(&db.service));
    // Another namespace's has to permit it, and by this kind.
    let abroad = route("TCPRoute", "r", "", &backends("{name: till, namespace: till, port: 80}"));
    let grant = |kind: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: till}}\n\
             spec: {{from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: shop}}], \
             to: [{{group: '', kind: Service}}]}}\n"
        )
    };
    for (kind, said) in [("TCPRoute", RESOLVED), ("HTTPRoute", "ResolvedRefs=false/RefNotPermitted")] {
        let compiled = super::super::tests::compiled(&[SHOP, GATEWAY, DB, TILL, &abroad, &grant(kind)]);
        assert_eq!(standing(&compiled).concat(), [ACCEPTED, said], "{kind}");
    }
}

#[test]
fn a_route_by_servers_names_them_to_the_waypoint() {
    let rest =
        format!("hostnames: [a.example.com, '*.example.com'], {}", backends("{name: db-v2, port: 5432}"));
    let compiled = compiled(&[SHOP, GATEWAY, DB, &route("TLSRoute", "r", ", port: 443", &rest)]);
    assert_eq!(standing(&compiled).concat(), [ACCEPTED, RESOLVED]);
    assert_eq!(problems(&compiled), Vec::<String>::new());
    let db = db(&compiled);
    assert_eq!(db.kind(443, None), Some(RouteKind::Tls));
    let found = |server| matches!(db.find_connection(443, None, Some(server)), Found::Rule(_));
    assert!(found("a.example.com") && found("b.example.com") && !found("example.com"));
}

#[test]
fn of_several_kinds_for_a_port_the_others_are_told_that_they_give_way() {
    let to = backends("{name: db, port: 5432}");
    let tcp = |name: &str, port: &str| route("TCPRoute", name, port, &to);
    let tls = |port: &str| route("TLSRoute", "tls", port, &format!("hostnames: [a.b], {to}"));
    let http = |port: &str| route("HTTPRoute", "http", port, &backends("{name: db, port: 80}"));
    let older = |text: &str| {
        text.replace(
            "namespace: shop}\nspec",
            "namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}\nspec",
        )
    };
    let newer = |text: &str| older(text).replace("2026-01-01", "2026-01-02");
    for (routes, said) in [
        (vec![tcp("tcp", ""), tls("")], vec!["tls Accepted", "tcp Conflicted: a TLSRoute is"]),
        (vec![tcp("tcp", ""), tls(", port: 443")], vec!["tls Accepted", "tcp Accepted"]),
        // What speaks no HTTP is not for it.
        (vec![tcp("tcp", ", port: 5432"), http("")], vec!["http Accepted", "tcp Accepted"]),
        (
            vec![tcp("tcp", ", port: 5432"), http(", port: 5432")],
            vec!["http Conflicted: a TCPRoute is", "tcp Accepted"],
        ),
        (
            vec![tcp("tcp", ", port: 80"), http(", port: 80")],
            vec!["http Accepted", "tcp Conflicted: an HTTPRoute is"],
        ),
        (
            vec![older(&tcp("b", ", port: 5432")), newer(&tcp("a", ", port: 5432"))],
            vec!["a Conflicted: an older TCPRoute is", "b Accepted"],
        ),
    ] {
        let texts: Vec<&str> =
            [SHOP, GATEWAY, DB].into_iter().chain(routes.iter().map(String::as_str)).collect();
        let compiled = compiled(&texts);
        let told: Vec<String> = compiled
            .routes_status
            .iter()
            .map(|(key, parents)| {
                let of = &parents[0].conditions[0];
                format!("{} {}: {}", key.name, of.reason, of.message)
            })
            .collect();
        assert_eq!(told.len(), said.len());
        for (told, said) in told.iter().zip(said) {
            assert!(told.starts_with(said), "{told:?} and not {said:?}");
        }
    }
}

#[test]
fn a_backend_may_be_a_service_entry_or_a_host_of_one() {
    let entry = |hosts: &str, resolution: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: bank, namespace: shop}}\n\
             spec: {{hosts: [{hosts}], addresses: [240.1.0.1], resolution: {resolution}, \
             ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 443, name: tls, protocol: TLS}}]}}\n"
        )
    };
    let one = entry("bank.example", "DNS");
    let group = "group: networking.istio.io";
    for (kind, entry, backend, said) in [
        ("HTTPRoute", &one, "kind: ServiceEntry, name: bank, port: 80", RESOLVED),
        ("HTTPRoute", &one, "kind: Hostname, name: bank.example, port: 80", RESOLVED),
        ("TCPRoute", &one, "kind: Hostname, name: bank.example, port: 443", RESOLVED),
        (
            "HTTPRoute",
            &one,
            "kind: Hostname, name: bank.example, port: 443",
            "ResolvedRefs=false/UnsupportedProtocol",
        ),
        (
            "HTTPRoute",
            &one,
            "kind: Hostname, name: nobody.example, port: 80",
            "ResolvedRefs=false/BackendNotFound",
        ),
        ("HTTPRoute", &one, "kind: ServiceEntry, name: bank, port: 81", "ResolvedRefs=false/BackendNotFound"),
        ("HTTPRoute", &one, "kind: ServiceEntry, name: bank", "ResolvedRefs=false/BackendNotFound"),
        ("HTTPRoute", &one, "kind: WorkloadEntry, name: bank, port: 80", "ResolvedRefs=false/InvalidKind"),
        (
            "HTTPRoute",
            &entry("a.example, b.example", "DNS"),
            "kind: ServiceEntry, name: bank, port: 80",
            "ResolvedRefs=false/BackendNotFound",
        ),
        (
            "HTTPRoute",
            &entry("bank.example", "NONE"),
            "kind: ServiceEntry, name: bank, port: 80",
            "ResolvedRefs=false/BackendNotFound",
        ),
    ] {
        let route = route(kind, "r", ", port: 80", &backends(&format!("{{{group}, {backend}}}")));
        let compiled = compiled(&[SHOP, GATEWAY, DB, entry, &route]);
        assert_eq!(standing(&compiled).concat(), [ACCEPTED, said], "{kind} {backend}");
        let told = &db(&compiled).routes()[0].rules[0].backends[0].to;
        let found = matches!(told, To::Service { service, .. } if *service.hostname == *"bank.example");
        assert_eq!(found, said == RESOLVED, "{told:?}");
        // Of a backend it matters what it speaks.
        assert_eq!(compiled.routes.keys().any(|key| *key.hostname == *"bank.example"), found);
    }
}

#[test]
fn a_service_has_so_many_routes_of_other_namespaces_and_no_more() {
    let to = backends("{name: db, namespace: shop, port: 5432}");
    let of = |number: usize| {
        let date = format!(
            "namespace: till, creationTimestamp: '2026-01-01T00:{:02}:{:02}Z'",
            number / 60,
            number % 60
        );
        route("HTTPRoute", &format!("r{number}"), "", &to)
            .replacen("namespace: shop", &date, 1)
            .replace("name: db}], rules", "name: db, namespace: shop}], rules")
    };
    let routes: Vec<String> = (0..130).map(of).collect();
    let texts: Vec<&str> =
        [SHOP, GATEWAY, DB, TILL].into_iter().chain(routes.iter().map(String::as_str)).collect();
    let compiled = compiled(&texts);
    let refused: Vec<&str> = compiled
        .routes_status
        .iter()
        .filter(|(_, parents)| parents[0].conditions[0].reason == "TooManyRoutes")
        .map(|(key, _)| &*key.name)
        .collect();
    assert_eq!(refused, ["r128", "r129"], "the newest");
    assert_eq!(db(&compiled).routes().len(), 128);
}

#[test]
fn a_consumers_route_of_connections_is_told_that_a_port_speaks_http() {
    let of = |kind: &str, port: &str| {
        let names = if kind == "TLSRoute" { "hostnames: [a.b], " } else { "" };
        let rest = format!("{names}{}", backends("{name: db, namespace: shop, port: 5432}"));
        let own = route(kind, "r", port, &rest).replacen("namespace: shop", "namespace: till", 1);
        own.replace("kind: Service, name: db", "kind: Service, namespace: shop, name: db")
    };
    let unsaid = DB.replace("{name: tls, port: 443}", "{name: x, port: 443}");
    let named = route("HTTPRoute", "http", ", port: 443", &backends("{name: db, port: 80}"));
    for kind in ["TCPRoute", "TLSRoute"] {
        for (port, beside, said) in [
            (", port: 80", "", "Conflicted: the port speaks HTTP"),
            (", port: 443", "", "Accepted"),
            (", port: 443", &*named, "Conflicted: the port speaks HTTP"),
            (", port: 5432", "", "Accepted"),
            ("", "", "Accepted"),
        ] {
            let compiled = compiled(&[SHOP, GATEWAY, &unsaid, TILL, &of(kind, port), beside]);
            let (_, parents) =
                compiled.routes_status.iter().find(|(key, _)| &*key.name == "r").expect("it is told");
            let condition = &parents[0].conditions[0];
            let told = format!("{}: {}", condition.reason, condition.message);
            assert!(told.starts_with(said), "{kind}{port}: {told}");
            assert_eq!(condition.status, said == "Accepted", "{kind}{port}");
        }
    }
}
