//! Which route is for a connection that is carried as it is: by its port, by the server's name, by the kinds that there are.

use std::sync::Arc;

use mesh::{
    PolicyKey, RouteKey, ServiceKey, ServiceRoutes,
    route::{BackendTls, Found, Protocol, Route, RouteKind, Rule, Trust},
    token::{Authentication, TokenRule},
};

fn route(kind: RouteKind, name: &str, hostnames: &[&str]) -> Route {
    Route {
        key: RouteKey { namespace: "shop".into(), name: name.into(), kind },
        created: "".into(),
        port: None,
        for_namespace: None,
        hostnames: hostnames.iter().map(|name| (*name).into()).collect(),
        rules: vec![Rule::default()],
    }
}

fn tls(name: &str, hostnames: &[&str]) -> Route {
    route(RouteKind::Tls, name, hostnames)
}

fn routes(routes: Vec<Route>) -> ServiceRoutes {
    let service = ServiceKey { namespace: "shop".into(), hostname: "web.shop".into() };
    let ports = vec![(80, Protocol::Http1), (5432, Protocol::Tcp)];
    ServiceRoutes::new(service, ports, routes).unwrap()
}

/// The route, or what else was found.
fn told(routes: &ServiceRoutes, port: u16, caller: Option<&str>, server: Option<&str>) -> String {
    match routes.find_connection(port, caller, server) {
        Found::NoRoute => "no route".into(),
        Found::NoMatch => "no match".into(),
        Found::Rule(found) => found.route.key.name.to_string(),
    }
}

#[test]
fn of_names_the_exact_one_holds_and_then_the_longest_wildcard() {
    let all = routes(vec![
        tls("far", &["*.example.com"]),
        tls("near", &["*.b.example.com", "b.example.com"]),
        tls("exact", &["a.b.example.com", "other.test"]),
    ]);
    for (server, said) in [
        (Some("a.b.example.com"), "exact"),
        (Some("A.b.Example.com"), "exact"),
        (Some("other.test"), "exact"),
        (Some("b.example.com"), "near"),
        (Some("c.b.example.com"), "near"),
        (Some("d.c.b.example.com"), "near"),
        (Some("x.example.com"), "far"),
        (Some("example.com"), "no match"),
        (Some(".example.com"), "no match"),
        (Some("badexample.com"), "no match"),
        (Some("test"), "no match"),
        (None, "no match"),
    ] {
        assert_eq!(told(&all, 443, None, server), said, "{server:?}");
    }
    let any = routes(vec![tls("any", &[]), tls("one", &["one.test"])]);
    assert_eq!(told(&any, 443, None, Some("one.test")), "one");
    assert_eq!((told(&any, 443, None, Some("x")), told(&any, 443, None, None)), ("any".into(), "any".into()));
}

#[test]
fn of_two_that_say_the_same_the_older_holds_and_then_the_first_by_name() {
    let dated = |of: Route, created: &str| Route { created: created.into(), ..of };
    for kind in [RouteKind::Tls, RouteKind::Tcp] {
        let older = dated(route(kind, "z", &[]), "2026-01-01T00:00:00Z");
        let newer = dated(route(kind, "a", &[]), "2026-01-02T00:00:00Z");
        assert_eq!(told(&routes(vec![newer.clone(), older]), 443, None, Some("x")), "z");
        let same = dated(route(kind, "z", &[]), "2026-01-02T00:00:00Z");
        assert_eq!(told(&routes(vec![same, newer]), 443, None, Some("x")), "a");
    }
}

#[test]
fn of_several_kinds_for_a_port_the_one_that_reads_most_is_followed() {
    use RouteKind::{Grpc, Http, Tcp, Tls};
    let of = |kinds: &[RouteKind]| routes(kinds.iter().map(|kind| route(*kind, "r", &[])).collect());
    for (kinds, http, unsaid, no_http) in [
        (&[Tcp][..], Tcp, Tcp, Some(Tcp)),
        (&[Tcp, Tls], Tls, Tls, Some(Tls)),
        (&[Tcp, Tls, Http], Http, Http, Some(Tls)),
        (&[Tcp, Http, Grpc], Grpc, Grpc, Some(Tcp)),
        (&[Http], Http, Http, None),
    ] {
        let all = of(kinds);
        assert_eq!((all.kind(80, None), all.kind(443, None)), (Some(http), Some(unsaid)), "{kinds:?}");
        assert_eq!(all.kind(5432, None), no_http, "{kinds:?}");
    }
    assert_eq!(told(&of(&[Http, Tcp]), 80, None, None), "no route", "it is for routes of requests");
    assert_eq!(told(&of(&[Http, Tcp]), 5432, None, None), "r");
    assert_eq!(told(&of(&[Http]), 5432, None, None), "no route");
}

#[test]
fn a_route_is_for_its_port_and_a_consumers_for_his_callers() {
    let of_port = |of: Route, port| Route { port: Some(port), ..of };
    let all = routes(vec![
        of_port(route(RouteKind::Tcp, "db", &[]), 5432),
        Route { for_namespace: Some("till".into()), ..of_port(route(RouteKind::Tcp, "own", &[]), 5432) },
        // What it says of requests is not for a port that speaks none, and leaves that to the producer's.
        Route { for_namespace: Some("desk".into()), ..route(RouteKind::Http, "web", &[]) },
    ]);
    for (port, caller, said) in [
        (5432, None, "db"),
        (5432, Some("till"), "own"),
        (5432, Some("desk"), "db"),
        (80, None, "no route"),
        (80, Some("till"), "no route"),
    ] {
        assert_eq!(told(&all, port, caller, None), said, "{port} {caller:?}");
    }
    assert_eq!(all.kind(80, Some("desk")), Some(RouteKind::Http));
    assert!(!all.is_named_by_routes(5432, None), "no word of HTTP");
    let bare = routes(vec![Route { rules: Vec::new(), ..route(RouteKind::Tcp, "bare", &[]) }]);
    assert_eq!(told(&bare, 5432, None, None), "no match");
}

#[test]
fn a_consumers_route_of_connections_does_not_take_requests_past_what_is_said_of_them() {
    let of_port = |of: Route, port| Route { port: Some(port), ..of };
    let consumers = |kind| Route { for_namespace: Some("till".into()), ..route(kind, "own", &[]) };
    let rule = || TokenRule::of("i", PolicyKey { namespace: "shop".into(), name: "p".into() });
    for kind in [RouteKind::Tcp, RouteKind::Tls] {
        let alone = routes(vec![consumers(kind)]);
        let beside = routes(vec![consumers(kind), of_port(route(RouteKind::Http, "web", &[]), 81)]);
        let whole = routes(vec![consumers(kind), route(RouteKind::Http, "web", &[])]);
        let tokens = alone.clone().with_authentication(Authentication::new(vec![rule()]));
        let http = Some(RouteKind::Http);
        for (case, routes, port, followed) in [
            ("declared", &alone, 80, None),
            ("declared as none", &alone, 5432, Some(kind)),
            ("nothing is said", &alone, 81, Some(kind)),
            ("the producer's route says it", &beside, 81, http),
            ("of another port", &beside, 82, Some(kind)),
            ("the producer's route is for all ports", &whole, 82, http),
            ("tokens are read", &tokens, 81, None),
            ("tokens are read elsewhere", &tokens, 5432, Some(kind)),
        ] {
            assert_eq!(routes.kind(port, Some("till")), followed, "{kind:?}: {case}");
            let carried = told(routes, port, Some("till"), Some("x")) == "own";
            assert_eq!(carried, followed == Some(kind), "{kind:?}: {case}");
        }
    }
    let own = routes(vec![route(RouteKind::Tcp, "db", &[])]);
    assert_eq!(own.kind(80, Some("till")), Some(RouteKind::Tcp), "the owner may say so");
}

#[test]
fn tls_with_a_port_is_as_is_said_of_that_port_and_else_of_all() {
    let tls = |port, policy: &str| {
        Arc::new(BackendTls {
            policy: policy.into(),
            port,
            hostname: "web.test".into(),
            trust: Trust::System,
            names: Vec::new(),
        })
    };
    let of = |all: Vec<Arc<BackendTls>>| routes(Vec::new()).with_tls(all);
    let said = |routes: &ServiceRoutes, port| routes.tls(port).map(|tls| tls.policy.to_string());
    let both = of(vec![tls(None, "all"), tls(Some(443), "one")]);
    assert_eq!((said(&both, 443), said(&both, 80)), (Some("one".into()), Some("all".into())));
    assert_eq!(said(&of(vec![tls(Some(443), "one")]), 80), None);
}
