//! Which rule is for a request: every kind of match, and the specification's precedence.

use std::borrow::Cow;

use mesh::{
    RouteKey, ServiceKey, ServiceRoutes,
    route::{
        FieldMatch, Found, Match, PathMatch, Protocol, Request, Route, RouteKind, Rule, TextMatch,
        check_pattern,
    },
};

#[derive(Default)]
struct Ask {
    method: &'static str,
    path: &'static str,
    query: Option<&'static str>,
    headers: Vec<(&'static str, &'static str)>,
}

impl Request for Ask {
    fn method(&self) -> &str {
        if self.method.is_empty() { "GET" } else { self.method }
    }

    fn path(&self) -> &str {
        self.path
    }

    fn query(&self) -> Option<&str> {
        self.query
    }

    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        let found = self.headers.iter().filter(|(held, _)| *held == name).map(|(_, value)| *value);
        let found: Vec<&str> = found.collect();
        (!found.is_empty()).then(|| found.join(",").into())
    }
}

fn get(path: &'static str) -> Ask {
    Ask { path, ..Ask::default() }
}

fn exact(path: &str) -> Match {
    Match { path: PathMatch::Exact(path.into()), ..Match::default() }
}

fn prefix(path: &str) -> Match {
    Match { path: PathMatch::Prefix(path.into()), ..Match::default() }
}

fn regex(path: &str) -> Match {
    Match { path: PathMatch::Regex(path.into()), ..Match::default() }
}

fn rpc(service: Option<&str>, method: Option<&str>) -> Match {
    let text = |text: &str| TextMatch::Exact(text.into());
    Match {
        path: PathMatch::Rpc { service: service.map(text), method: method.map(text) },
        ..Match::default()
    }
}

fn field(name: &str, value: &str) -> FieldMatch {
    FieldMatch { name: name.into(), value: TextMatch::Exact(value.into()) }
}

fn with_headers(mut of: Match, names: &[&str]) -> Match {
    of.headers = names.iter().map(|name| field(name, "1")).collect();
    of
}

fn route(name: &str, matches: Vec<Match>) -> Route {
    let rule = |of: Match| Rule { matches: vec![of], ..Rule::default() };
    Route {
        key: RouteKey { namespace: "shop".into(), name: name.into(), kind: RouteKind::Http },
        created: "".into(),
        port: None,
        for_namespace: None,
        hostnames: Vec::new(),
        rules: matches.into_iter().map(rule).collect(),
    }
}

fn routes(routes: Vec<Route>) -> ServiceRoutes {
    let service = ServiceKey { namespace: "shop".into(), hostname: "web.shop".into() };
    ServiceRoutes::new(service, vec![(80, Protocol::Http1)], routes).unwrap()
}

/// `route#rule`, or what else was found.
fn told(routes: &ServiceRoutes, port: u16, ask: &Ask) -> String {
    told_to(None, routes, port, ask)
}

fn told_to(caller: Option<&str>, routes: &ServiceRoutes, port: u16, ask: &Ask) -> String {
    match routes.find(port, caller, ask) {
        Found::NoRoute => "no route".into(),
        Found::NoMatch => "no match".into(),
        Found::Rule(found) => format!("{}#{}", found.route.key.name, found.index),
    }
}

#[test]
fn each_match_holds_for_what_it_says_and_for_nothing_else() {
    let cases: &[(Match, &[&'static str], &[&'static str])] = &[
        (exact("/a"), &["/a"], &["/a/", "/ab", "/", "/A"]),
        (prefix("/a"), &["/a", "/a/", "/a/b"], &["/ab", "/", "/b/a"]),
        (prefix("/a/"), &["/a", "/a/", "/a/b"], &["/ab"]),
        (prefix("/"), &["/", "/a", "/a/b"], &["*"]),
        (regex("/a[0-9]+"), &["/a1", "/a12"], &["/a", "/a1/", "x/a1", "/a1b"]),
        (regex("/a|/b"), &["/a", "/b"], &["/ab", "/a/b", "/bb"]),
        (
            rpc(Some("pkg.Shop"), Some("Buy")),
            &["/pkg.Shop/Buy"],
            &["/pkg.Shop/Sell", "/pkg.Shop", "/Shop/Buy"],
        ),
        (rpc(Some("pkg.Shop"), None), &["/pkg.Shop/Buy", "/pkg.Shop/Sell"], &["/pkg.Other/Buy"]),
        (rpc(None, Some("Buy")), &["/pkg.Shop/Buy"], &["/pkg.Shop/Sell", "/Buy"]),
    ];
    for (of, hits, misses) in cases {
        let routes = routes(vec![route("r", vec![of.clone()])]);
        hits.iter().for_each(|path| assert_eq!(told(&routes, 80, &get(path)), "r#0", "{of:?} {path}"));
        misses.iter().for_each(|path| assert_eq!(told(&routes, 80, &get(path)), "no match", "{of:?} {path}"));
    }
}

#[test]
fn method_headers_and_parameters_must_all_be_there() {
    let mut of = with_headers(prefix("/"), &["x-a"]);
    of.method = Some("POST".into());
    of.query =
        vec![field("q", "a b"), FieldMatch { name: "n".into(), value: TextMatch::Regex("[0-9]+".into()) }];
    let routes = routes(vec![route("r", vec![of])]);
    let ask = |method, header: &'static str, query| Ask {
        method,
        path: "/",
        query: Some(query),
        headers: vec![("x-a", header)],
    };
    assert_eq!(told(&routes, 80, &ask("POST", "1", "n=7&q=a%20b")), "r#0");
    assert_eq!(told(&routes, 80, &ask("POST", "1", "q=a+b&n=7&q=other")), "r#0", "the first of two counts");
    for (method, header, query) in [
        ("GET", "1", "n=7&q=a%20b"),
        ("POST", "2", "n=7&q=a%20b"),
        ("POST", "1", "n=x&q=a%20b"),
        ("POST", "1", "n=7"),
        ("POST", "1", ""),
    ] {
        assert_eq!(told(&routes, 80, &ask(method, header, query)), "no match", "{method} {header} {query}");
    }
    let twice = Ask {
        method: "POST",
        path: "/",
        query: Some("n=7&q=a%20b"),
        headers: vec![("x-a", "1"), ("x-a", "1")],
    };
    assert_eq!(told(&routes, 80, &twice), "no match", "1,1 is not 1");
}

#[test]
fn the_most_specific_match_holds_whatever_the_order() {
    let method = Match { method: Some("GET".into()), ..prefix("/a") };
    let query = Match { query: vec![field("q", "1")], ..prefix("/a") };
    // Each comes before all that follow it, for a request that every one of them matches.
    let order = [
        exact("/a/b/c"),
        regex("/a/.*"),
        prefix("/a/b"),
        Match { headers: vec![field("x-1", "1")], ..method.clone() },
        method,
        with_headers(prefix("/a"), &["x-1", "x-2"]),
        Match { query: vec![field("q", "1")], ..with_headers(prefix("/a"), &["x-1"]) },
        with_headers(prefix("/a"), &["x-1"]),
        query,
        prefix("/a"),
        with_headers(prefix("/"), &["x-1"]),
        prefix("/"),
    ];
    let ask = Ask {
        path: "/a/b/c",
        query: Some("q=1"),
        headers: vec![("x-1", "1"), ("x-2", "1")],
        ..Ask::default()
    };
    for first in 0..order.len() {
        let mut some: Vec<Match> = order[first..].to_vec();
        some.reverse();
        let last = some.len() - 1;
        let routes = routes(vec![route("r", some)]);
        assert_eq!(told(&routes, 80, &ask), format!("r#{last}"), "{:?}", order[first]);
    }
}

#[test]
fn a_call_of_grpc_goes_to_the_rule_that_names_most_of_it() {
    let order = [
        rpc(Some("pkg.Shop"), Some("Buy")),
        with_headers(rpc(Some("pkg.Shop"), None), &["x-1"]),
        rpc(Some("pkg.Shop"), None),
        rpc(None, Some("Buy")),
        rpc(None, None),
    ];
    let ask = Ask { path: "/pkg.Shop/Buy", headers: vec![("x-1", "1")], ..Ask::default() };
    for first in 0..order.len() {
        let mut some: Vec<Match> = order[first..].to_vec();
        some.reverse();
        let last = some.len() - 1;
        assert_eq!(told(&routes(vec![of_calls(route("r", some))]), 80, &ask), format!("r#{last}"));
    }
}

#[test]
fn of_equal_matches_the_older_route_then_the_first_name_then_the_first_rule_holds() {
    let aged =
        |name: &str, created: &str| Route { created: created.into(), ..route(name, vec![prefix("/")]) };
    let all = vec![aged("c", "2024-01-02T00:00:00Z"), aged("b", "2024-01-01T00:00:00Z")];
    assert_eq!(told(&routes(all), 80, &get("/")), "b#0");
    let all = vec![aged("c", "2024-01-01T00:00:00Z"), aged("b", "2024-01-01T00:00:00Z")];
    assert_eq!(told(&routes(all), 80, &get("/")), "b#0");
    assert_eq!(told(&routes(vec![route("r", vec![prefix("/"), prefix("/")])]), 80, &get("/")), "r#0");
    // Age is nothing to a better match of another route.
    let newer = Route { created: "2030-01-01T00:00:00Z".into(), ..route("z", vec![exact("/x")]) };
    assert_eq!(told(&routes(vec![aged("a", ""), newer]), 80, &get("/x")), "z#0");
}

#[test]
fn a_route_of_a_port_is_for_that_port() {
    let of = |port, name: &str| Route { port, ..route(name, vec![prefix("/a")]) };
    let both = routes(vec![of(Some(80), "web")]);
    assert_eq!(told(&both, 80, &get("/a")), "web#0");
    assert_eq!(told(&both, 80, &get("/b")), "no match");
    assert_eq!(told(&both, 81, &get("/a")), "no route");
    assert_eq!(told(&routes(vec![of(None, "all")]), 81, &get("/a")), "all#0");
    assert_eq!(told(&routes(vec![]), 80, &get("/")), "no route");
    let (named, all) = (&both, routes(vec![of(None, "all")]));
    assert_eq!(
        [named.kind(80, None), named.kind(81, None), all.kind(81, None)].map(|kind| kind.is_some()),
        [true, false, true]
    );
    assert_eq!(
        (
            named.is_named_by_routes(80, None),
            named.is_named_by_routes(81, None),
            all.is_named_by_routes(81, None)
        ),
        (true, false, false)
    );
}

#[test]
fn a_rule_without_matches_is_for_everything_and_a_route_without_rules_for_nothing() {
    let rule = Route { rules: vec![Rule::default()], ..route("r", vec![]) };
    assert_eq!(told(&routes(vec![rule]), 80, &get("/x")), "r#0");
    assert_eq!(told(&routes(vec![route("r", vec![])]), 80, &get("/x")), "no match");
}

#[test]
fn the_prefix_that_matched_is_told() {
    let routes = routes(vec![route("r", vec![prefix("/a/b/"), prefix("/")])]);
    let of = |path| match routes.find(80, None, &get(path)) {
        Found::Rule(found) => found.prefix.map(str::to_owned),
        Found::NoRoute | Found::NoMatch => panic!("{path}"),
    };
    assert_eq!(of("/a/b/c").as_deref(), Some("/a/b"));
    assert_eq!(of("/c").as_deref(), Some(""));
}

#[test]
fn patterns_are_bounded_and_cannot_reach_out_of_their_group() {
    assert!(check_pattern("/a.*").is_ok());
    for bad in ["(", "a)|(b", "(?=x)", "\\", &"a".repeat(2000), "((a{100}){100}){100}"] {
        assert!(check_pattern(bad).is_err(), "{bad:.20}");
    }
}

fn of_consumer(namespace: &str, of: Route) -> Route {
    let key = RouteKey { namespace: namespace.into(), ..of.key.clone() };
    Route { key, for_namespace: Some(namespace.into()), ..of }
}

fn of_calls(of: Route) -> Route {
    Route { key: RouteKey { kind: RouteKind::Grpc, ..of.key.clone() }, ..of }
}

#[test]
fn the_routes_of_a_callers_own_namespace_are_in_the_place_of_those_for_everybody() {
    let producer = route("web", vec![exact("/a"), prefix("/")]);
    let consumer = of_consumer("till", route("own", vec![prefix("/a")]));
    let all = routes(vec![producer.clone(), consumer]);
    for (caller, path, said) in [
        (Some("till"), "/a", "own#0"),
        // Merged they are not: of the producer's nothing is left for him.
        (Some("till"), "/b", "no match"),
        (Some("other"), "/a", "web#0"),
        (Some("other"), "/b", "web#1"),
        (None, "/a", "web#0"),
    ] {
        assert_eq!(told_to(caller, &all, 80, &get(path)), said, "{caller:?} {path}");
    }
    // Of one port they leave the others to the producer's.
    let of_port = Route { port: Some(81), ..of_consumer("till", route("own", vec![prefix("/")])) };
    let all = routes(vec![producer, of_port.clone()]);
    assert_eq!(told_to(Some("till"), &all, 80, &get("/b")), "web#1");
    assert_eq!(told_to(Some("till"), &all, 81, &get("/b")), "own#0");
    // Where there are no others, everybody else's requests go to the service itself.
    let alone = routes(vec![of_port]);
    assert_eq!(told_to(Some("other"), &alone, 81, &get("/")), "no route");
    assert_eq!((alone.kind(81, Some("till")), alone.kind(81, Some("other"))), (Some(RouteKind::Http), None));
    assert!(alone.is_named_by_routes(81, Some("till")) && !alone.is_named_by_routes(81, None));
    // The routes of several consumers are nothing to each other.
    let two = routes(vec![
        of_consumer("a", route("of-a", vec![prefix("/")])),
        of_consumer("b", route("of-b", vec![exact("/")])),
    ]);
    assert_eq!(told_to(Some("a"), &two, 80, &get("/")), "of-a#0");
    assert_eq!(told_to(Some("b"), &two, 80, &get("/")), "of-b#0");
}

#[test]
fn routes_of_calls_are_in_the_place_of_others_for_the_same_port() {
    let http = route("web", vec![prefix("/")]);
    let calls = of_calls(route("calls", vec![rpc(Some("pkg.Shop"), None)]));
    let all = routes(vec![http.clone(), calls.clone()]);
    assert_eq!(told(&all, 80, &get("/pkg.Shop/Buy")), "calls#0");
    assert_eq!(told(&all, 80, &get("/index")), "no match");
    let of_port = routes(vec![http.clone(), Route { port: Some(81), ..calls.clone() }]);
    assert_eq!(told(&of_port, 80, &get("/pkg.Shop/Buy")), "web#0");
    assert_eq!(told(&of_port, 81, &get("/index")), "no match");
    // The consumer's kinds are his own.
    let mixed = routes(vec![calls, of_consumer("till", http)]);
    assert_eq!(told_to(Some("till"), &mixed, 80, &get("/index")), "web#0");
    assert_eq!(told_to(Some("other"), &mixed, 80, &get("/index")), "no match");
    // One that has no rules is a route all the same.
    let bare = routes(vec![of_calls(route("none", vec![])), route("web", vec![prefix("/")])]);
    assert_eq!(told(&bare, 80, &get("/index")), "no match");
}

#[test]
fn of_calls_the_longer_names_hold_and_then_headers() {
    // Each comes before all that follow it; the longest service outweighs any method, and any method any header.
    let regex = |service: &str, method: &str| Match {
        path: PathMatch::Rpc {
            service: Some(TextMatch::Regex(service.into())),
            method: Some(TextMatch::Regex(method.into())),
        },
        ..Match::default()
    };
    let order = [
        rpc(Some("pkg.Shop"), Some("Buy")),
        with_headers(rpc(Some("pkg.Shop"), None), &["x-1", "x-2"]),
        with_headers(rpc(Some("pkg.Shop"), None), &["x-1"]),
        regex("pkg.*", "B.+"),
        regex("pkg.*", "B.*"),
        rpc(None, Some("Buy")),
        with_headers(rpc(None, None), &["x-1"]),
        rpc(None, None),
    ];
    let ask = Ask {
        method: "POST",
        path: "/pkg.Shop/Buy",
        headers: vec![("x-1", "1"), ("x-2", "1")],
        ..Ask::default()
    };
    for first in 0..order.len() {
        // Of two that weigh the same the first holds: so the others are not put before it.
        let some: Vec<Match> = match first {
            3 => order[first..].to_vec(),
            _ => order[first..].iter().rev().cloned().collect(),
        };
        let at = if first == 3 { 0 } else { some.len() - 1 };
        let found = told(&routes(vec![of_calls(route("r", some))]), 80, &ask);
        assert_eq!(found, format!("r#{at}"), "{:?}", order[first]);
    }
}
