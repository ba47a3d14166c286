//! How what arrives is carried, and who may say what of himself.

use std::time::Duration;

use mesh::{
    Identity, PolicyKey, ServiceKey, ServiceRoutes,
    route::{BackendTls, Route, Rule, Trust},
    token::{Authentication, TokenRule},
};

use super::*;
use crate::limits::Limits;

fn settings() -> Settings {
    Settings {
        identity: Identity::new("cluster.local", "shop", "wp"),
        network: "".into(),
        hbone: hbone::Settings::default(),
        max_tunnels: 1,
        max_connections: 1,
        max_connections_per_source: 1,
        patience: Duration::ZERO,
        dial_timeout: Duration::ZERO,
        backend_idle: Duration::ZERO,
        http_idle: Duration::ZERO,
        head_timeout: Duration::ZERO,
    }
}

/// A call of somebody's of the namespace `till` to a port of `web`, and the mesh that it is in.
fn arrives(port: u16, routes: ServiceRoutes) -> (Snapshot, Call) {
    let key = routes.service.clone();
    let service = Service::named(key.clone(), "web");
    let mut editor = Snapshot::default().edit();
    editor.put_routes(routes);
    let claims = Claims {
        caller: Identity::new("cluster.local", "till", "client"),
        address: [10, 0, 0, 9].into(),
        waypoint: settings().identity,
        behind: Behind::Service(key),
    };
    let call = Call {
        source: ([10, 0, 0, 9], 0).into(),
        workload: None,
        called: Called::Service(Arc::new(service)),
        address: None,
        port,
        assertion: None,
        _counted: Limits::new(1, 1).count(claims.address).unwrap(),
        claims,
    };
    (editor.finish(), call)
}

#[test]
fn where_tokens_are_read_nobody_speaks_what_is_only_almost_http() {
    let key = || ServiceKey { namespace: "shop".into(), hostname: "web".into() };
    let route = |kind, for_namespace: Option<&str>| Route {
        key: RouteKey { namespace: "shop".into(), name: "r".into(), kind },
        created: "".into(),
        port: None,
        for_namespace: for_namespace.map(Into::into),
        hostnames: Vec::new(),
        rules: vec![Rule::default()],
    };
    let rule = TokenRule::of("i", PolicyKey { namespace: "shop".into(), name: "p".into() });
    let ports = vec![(80, Protocol::Http1), (5432, Protocol::Tcp)];
    let (none, http) = (Vec::new(), vec![route(RouteKind::Http, None)]);
    let (own, consumers) = (vec![route(RouteKind::Tcp, None)], vec![route(RouteKind::Tcp, Some("till"))]);
    let unknown = |is_routed| Way::Unknown { is_routed };
    for (case, routes, port, without, with_tokens) in [
        ("declared", &none, 80, Way::Http, Way::Http),
        ("declared as none", &none, 5432, Way::Bytes, Way::Bytes),
        ("nothing is said", &none, 81, unknown(false), Way::Http),
        ("routes are for all ports", &http, 81, unknown(true), Way::Http),
        ("the owner says bytes", &own, 81, Way::Bytes, Way::Bytes),
        ("a consumer says bytes", &consumers, 81, Way::Bytes, Way::Http),
        ("a consumer says bytes, where HTTP is declared", &consumers, 80, Way::Http, Way::Http),
    ] {
        let of = |tokens: Vec<TokenRule>| {
            let routes = ServiceRoutes::new(key(), ports.clone(), routes.clone()).unwrap();
            let (snapshot, call) = arrives(port, routes.with_authentication(Authentication::new(tokens)));
            way(&snapshot, &call, &settings())
        };
        assert_eq!((of(Vec::new()), of(vec![rule.clone()])), (without, with_tokens), "{case}");
    }
}

#[test]
fn bytes_are_carried_in_tls_where_a_policy_says_so() {
    let key = ServiceKey { namespace: "shop".into(), hostname: "web".into() };
    let route = |kind, port| Route {
        key: RouteKey { namespace: "shop".into(), name: "r".into(), kind },
        created: "".into(),
        port: Some(port),
        for_namespace: None,
        hostnames: Vec::new(),
        rules: vec![Rule::default()],
    };
    let tls = |port| {
        Arc::new(BackendTls {
            policy: "shop/p".into(),
            port: Some(port),
            hostname: "web.test".into(),
            trust: Trust::Nobody("it is refused".into()),
            names: Vec::new(),
        })
    };
    let ports =
        vec![(80, Protocol::Http1), (5432, Protocol::Tcp), (5433, Protocol::Tcp), (443, Protocol::Tcp)];
    let routes = vec![route(RouteKind::Tcp, 5433), route(RouteKind::Tls, 443)];
    for (case, port, passthrough, without, with_tls) in [
        ("HTTP", 80, false, Way::Http, Way::Http),
        ("no HTTP", 5432, false, Way::Bytes, Way::BytesInTls),
        ("a TCPRoute: whoever dials begins it", 5433, false, Way::Bytes, Way::Bytes),
        ("a TLSRoute", 443, false, Way::Tls, Way::Tls),
        ("whatever is dialled", 80, true, Way::Bytes, Way::BytesInTls),
    ] {
        let of = |tls: Vec<Arc<BackendTls>>| {
            let routes = ServiceRoutes::new(key.clone(), ports.clone(), routes.clone()).unwrap();
            let (snapshot, mut call) = arrives(port, routes.with_tls(tls));
            let service = Service { passthrough, ..Service::named(key.clone(), "web") };
            call.called = Called::Service(Arc::new(service));
            way(&snapshot, &call, &settings())
        };
        assert_eq!((of(vec![tls(1)]), of(vec![tls(port)])), (without, with_tls), "{case}");
    }
}

#[test]
fn nobody_says_that_another_pods_address_is_his_be_it_of_the_same_account() {
    let who = |name: &str| Identity::new("cluster.local", "shop", name);
    let pod = |name: &str, account: &str, addresses: &[&str]| {
        let mut pod = Workload::named(format!("c//Pod/shop/{name}"), "shop", name);
        pod.service_account = account.into();
        pod.addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        pod
    };
    let mut editor = Snapshot::default().edit();
    editor.put_workload(pod("a", "client", &["10.0.0.1", "fd00::1"]));
    editor.put_workload(pod("b", "client", &["10.0.0.2"]));
    editor.put_workload(pod("c", "intern", &["10.0.0.3", "fd00::3"]));
    let snapshot = editor.finish();
    let may = |says: &str, remote: &str| {
        let address = says.parse().unwrap();
        let behind = Behind::Workload("w".into());
        let said = Claims { caller: who("client"), address, waypoint: who("wp"), behind };
        may_have(&snapshot, "", &said, remote.parse().unwrap())
    };
    assert!(may("10.0.0.1", "10.0.0.1") && may("10.0.0.9", "10.0.0.9"), "the tunnel's own");
    assert!(may("fd00::1", "10.0.0.1"), "the same pod's other one");
    assert!(!may("10.0.0.2", "10.0.0.1"), "another pod's of the account");
    assert!(!may("10.0.0.3", "10.0.0.1") && !may("fd00::3", "10.0.0.3"), "another account's");
    assert!(!may("10.0.0.7", "10.0.0.1"), "nobody's");
}
