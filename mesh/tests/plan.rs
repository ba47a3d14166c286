//! Where outbound connections go: every way, and every reason why there is none.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use mesh::{
    GatewayAddress, Identity, NetworkAddress, Outbound, Plan, PlanError, PortMapping, Service, ServiceKey,
    Snapshot, Target, Tunnel, Workload,
};

const HERE: &str = "node-1";

fn web() -> ServiceKey {
    ServiceKey { namespace: "app".into(), hostname: "web.app.svc.cluster.local".into() }
}

fn at(network: &str, address: &str) -> NetworkAddress {
    NetworkAddress { network: network.into(), address: address.parse().unwrap() }
}

fn service() -> Service {
    Service {
        addresses: vec![at("", "10.96.0.1"), at("", "fd96::1")],
        ports: vec![
            PortMapping { service_port: 80, target_port: 8080 },
            PortMapping { service_port: 81, target_port: 0 },
        ],
        canonical: false,
        ..Service::named(web(), "web")
    }
}

/// A pod of the service on another node.
fn pod(name: &str, addresses: &[&str]) -> Workload {
    let mut pod = Workload::named(format!("c//Pod/app/{name}"), "app", name);
    pod.addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    pod.service_account = "web".into();
    pod.node = "node-2".into();
    pod.tunnel = Tunnel::Hbone;
    pod.services = BTreeMap::from([(web(), Vec::new())]);
    pod
}

fn client() -> Workload {
    let mut client = Workload::named("c//Pod/app/client", "app", "client");
    client.addresses = vec!["10.0.0.9".parse().unwrap()];
    client.node = HERE.into();
    client.tunnel = Tunnel::Hbone;
    client
}

fn mesh(services: impl IntoIterator<Item = Service>, pods: impl IntoIterator<Item = Workload>) -> Snapshot {
    let mut editor = Snapshot::default().edit();
    editor.mark_addresses_complete();
    editor.mark_policies_complete();
    services.into_iter().for_each(|service| editor.put_service(service));
    pods.into_iter().for_each(|pod| editor.put_workload(pod));
    editor.finish()
}

fn plan_from(snapshot: &Snapshot, source: &Workload, to: &str, seed: u64) -> Result<Plan, PlanError> {
    snapshot.plan(HERE, &Outbound { source, destination: to.parse().unwrap(), seed, avoided: None })
}

fn plan(snapshot: &Snapshot, to: &str) -> Result<Plan, PlanError> {
    plan_from(snapshot, &client(), to, 7)
}

/// The plan in one line.
fn told(plan: Result<Plan, PlanError>) -> String {
    match plan {
        Ok(Plan::Passthrough { to }) => format!("passthrough {to}"),
        Ok(Plan::Plain(target)) => format!("plain {}", target.address),
        Ok(Plan::SameNode(target)) => format!("same node {}", target.address),
        Ok(Plan::Named { workload, port, .. }) => format!("plain {}:{port}", workload.hostname),
        Ok(Plan::Waypoint { target, authority, .. }) => format!("{authority} by waypoint {}", target.address),
        Ok(Plan::Hbone { target, peer, authority, .. }) => {
            assert_eq!(authority, target.address.to_string());
            format!("hbone {authority} by {peer}")
        }
        Err(error) => error.to_string(),
    }
}

/// The addresses that many seeds lead to.
fn spread(snapshot: &Snapshot, source: &Workload, to: &str) -> BTreeSet<SocketAddr> {
    let address = |seed| match plan_from(snapshot, source, to, seed) {
        Ok(Plan::Hbone { target, .. } | Plan::SameNode(target) | Plan::Plain(target)) => Some(target.address),
        Ok(Plan::Passthrough { .. } | Plan::Named { .. } | Plan::Waypoint { .. }) | Err(_) => None,
    };
    (0..200).filter_map(address).collect()
}

fn addresses(texts: &[&str]) -> BTreeSet<SocketAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn an_incomplete_state_plans_nothing() {
    assert_eq!(plan(&Snapshot::default(), "1.2.3.4:80").unwrap_err(), PlanError::Incomplete);
    let mut editor = Snapshot::default().edit();
    editor.mark_addresses_complete();
    editor.put_workload(pod("a", &["10.0.0.1"]));
    assert_eq!(plan(&editor.finish(), "10.0.0.1:80").unwrap_err(), PlanError::Incomplete);
}

#[test]
fn an_unknown_address_passes_through() {
    let snapshot = mesh([service()], []);
    assert_eq!(told(plan(&snapshot, "1.2.3.4:80")), "passthrough 1.2.3.4:80");
    assert_eq!(told(plan(&snapshot, "[::ffff:1.2.3.4]:80")), "passthrough 1.2.3.4:80");
    assert_eq!(told(plan(&snapshot, "[2001:db8::1]:80")), "passthrough [2001:db8::1]:80");
}

#[test]
fn a_workload_is_reached_by_what_it_speaks_and_where_it_runs() {
    type Change = fn(&mut Workload);
    let cases: [(&str, Change, &str); 6] = [
        ("another node", |_| {}, "hbone 10.0.0.1:9000 by 10.0.0.1:15008"),
        ("this node", |w| w.node = HERE.into(), "same node 10.0.0.1:9000"),
        ("plain TCP", |w| w.tunnel = Tunnel::None, "plain 10.0.0.1:9000"),
        (
            "plain TCP on this node",
            |w| (w.node, w.tunnel) = (HERE.into(), Tunnel::None),
            "plain 10.0.0.1:9000",
        ),
        (
            "a waypoint of this node",
            |w| (w.node, w.native_tunnel) = (HERE.into(), true),
            "hbone 10.0.0.1:9000 by 10.0.0.1:15008",
        ),
        ("an unknown node", |w| w.node = "".into(), "hbone 10.0.0.1:9000 by 10.0.0.1:15008"),
    ];
    for (case, change, expected) in cases {
        let mut pod = pod("a", &["10.0.0.1"]);
        change(&mut pod);
        let snapshot = mesh([], [pod]);
        assert_eq!(told(plan(&snapshot, "10.0.0.1:9000")), expected, "{case}");
        assert_eq!(told(plan(&snapshot, "[::ffff:10.0.0.1]:9000")), expected, "{case}, mapped");
    }
    let mut nowhere = pod("a", &["10.0.0.1"]);
    nowhere.node = "".into();
    let outbound =
        Outbound { source: &client(), destination: "10.0.0.1:80".parse().unwrap(), seed: 0, avoided: None };
    let unnamed = mesh([], [nowhere]).plan("", &outbound);
    assert!(matches!(unnamed, Ok(Plan::Hbone { .. })), "two unknown nodes are not the same node");
}

#[test]
fn a_workload_is_dialled_at_the_address_the_app_dialled() {
    let snapshot = mesh([], [pod("a", &["10.0.0.1", "fd00::1"])]);
    assert_eq!(told(plan(&snapshot, "[fd00::1]:80")), "hbone [fd00::1]:80 by [fd00::1]:15008");
    assert_eq!(told(plan(&snapshot, "10.0.0.1:80")), "hbone 10.0.0.1:80 by 10.0.0.1:15008");
}

#[test]
fn a_services_port_leads_to_the_endpoints_port() {
    let mapped = |mappings: &[(u16, u16)]| {
        let mut pod = pod("a", &["10.0.0.1"]);
        let mapping = |&(service_port, target_port)| PortMapping { service_port, target_port };
        pod.services = BTreeMap::from([(web(), mappings.iter().map(mapping).collect())]);
        mesh([service()], [pod])
    };
    type Mappings = &'static [(u16, u16)];
    // The endpoint's own mapping, the port that is dialled, the port it leads to.
    let cases: [(Mappings, u16, u16); 6] = [
        (&[], 80, 8080),
        (&[], 81, 81),
        (&[(80, 9090)], 80, 9090),
        (&[(81, 9091)], 80, 8080),
        (&[(81, 9091)], 81, 9091),
        (&[(80, 0)], 80, 8080),
    ];
    for (mappings, dialled, expected) in cases {
        let plan = told(plan(&mapped(mappings), &format!("10.96.0.1:{dialled}")));
        assert_eq!(plan, format!("hbone 10.0.0.1:{expected} by 10.0.0.1:15008"), "{mappings:?} {dialled}");
    }
    let unknown = plan(&mapped(&[(443, 8443)]), "10.96.0.1:443").unwrap_err();
    assert_eq!(unknown, PlanError::NoSuchPort(web(), 443));
}

#[test]
fn the_expected_identities_are_the_endpoints_and_the_services() {
    let other = Identity::new("other.example", "x", "y");
    let snapshot =
        mesh([Service { subject_alt_names: vec![other.clone()], ..service() }], [pod("a", &["10.0.0.1"])]);
    let own = Identity::new("cluster.local", "app", "web");
    let expected = |to| match plan(&snapshot, to) {
        Ok(Plan::Hbone { expected, target, .. }) => {
            (expected.to_vec(), target.service.map(|s| s.key.clone()))
        }
        other => panic!("not a tunnel: {other:?}"),
    };
    assert_eq!(expected("10.96.0.1:80"), (vec![own.clone(), other], Some(web())));
    assert_eq!(expected("10.0.0.1:80"), (vec![own], None), "by its own address no service vouches");
}

#[test]
fn only_healthy_endpoints_are_picked_unless_the_service_publishes_all() {
    let mut ill = pod("ill", &["10.0.0.3"]);
    ill.healthy = false;
    let pods = [pod("a", &["10.0.0.1"]), pod("b", &["10.0.0.2"]), ill.clone()];
    let snapshot = mesh([service()], pods.clone());
    assert_eq!(spread(&snapshot, &client(), "10.96.0.1:80"), addresses(&["10.0.0.1:8080", "10.0.0.2:8080"]));
    let all = mesh([Service { allow_unhealthy: true, ..service() }], pods);
    assert_eq!(spread(&all, &client(), "10.96.0.1:80").len(), 3);

    let none = mesh([service()], [ill]);
    assert_eq!(plan(&none, "10.96.0.1:80").unwrap_err(), PlanError::NoHealthyEndpoint(web()));
    assert!(plan(&none, "10.0.0.3:80").is_ok(), "who dials the pod itself knows what he does");
    assert_eq!(
        plan(&mesh([service()], []), "10.96.0.1:80").unwrap_err(),
        PlanError::NoHealthyEndpoint(web())
    );
}

#[test]
fn every_endpoint_gets_its_share_and_a_seed_decides() {
    let pods = (0..10).map(|n| pod(&format!("p{n}"), &[&format!("10.0.1.{n}")]));
    let snapshot = mesh([service()], pods);
    let mut counts = BTreeMap::new();
    for seed in 0..10_000 {
        let plan = told(plan_from(&snapshot, &client(), "10.96.0.1:80", seed));
        assert_eq!(plan, told(plan_from(&snapshot, &client(), "10.96.0.1:80", seed)));
        *counts.entry(plan).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 10);
    assert!(counts.values().all(|&count| (800..1200).contains(&count)), "{counts:?}");
}

#[test]
fn a_node_local_service_stays_on_the_node() {
    let mut near = pod("near", &["10.0.0.1"]);
    near.node = HERE.into();
    let local = Service { node_local: true, ..service() };
    let mut unknown = pod("unknown", &["10.0.0.3"]);
    unknown.node = "".into();
    let pods = [near, pod("far", &["10.0.0.2"]), unknown];
    let snapshot = mesh([local.clone()], pods.clone());
    assert_eq!(spread(&snapshot, &client(), "10.96.0.1:80"), addresses(&["10.0.0.1:8080"]));
    let without = mesh([local], pods.into_iter().skip(1));
    assert_eq!(plan(&without, "10.96.0.1:80").unwrap_err(), PlanError::NoHealthyEndpoint(web()));
    let outbound =
        Outbound { source: &client(), destination: "10.96.0.1:80".parse().unwrap(), seed: 0, avoided: None };
    assert_eq!(without.plan("", &outbound).unwrap_err(), PlanError::NoHealthyEndpoint(web()));
}

#[test]
fn an_endpoint_with_two_addresses_is_dialled_in_the_family_the_app_chose() {
    let snapshot = mesh([service()], [pod("a", &["10.0.0.1", "fd00::1"])]);
    assert_eq!(told(plan(&snapshot, "10.96.0.1:80")), "hbone 10.0.0.1:8080 by 10.0.0.1:15008");
    assert_eq!(told(plan(&snapshot, "[fd96::1]:80")), "hbone [fd00::1]:8080 by [fd00::1]:15008");
    let single = mesh([service()], [pod("a", &["10.0.0.1"])]);
    assert_eq!(told(plan(&single, "[fd96::1]:80")), "hbone 10.0.0.1:8080 by 10.0.0.1:15008");
}

#[test]
fn a_pod_that_picks_itself_is_on_the_same_node() {
    let mut own = client();
    own.services = BTreeMap::from([(web(), Vec::new())]);
    let snapshot = mesh([service()], [own.clone()]);
    assert_eq!(told(plan_from(&snapshot, &own, "10.96.0.1:80", 1)), "same node 10.0.0.9:8080");
    assert_eq!(told(plan_from(&snapshot, &own, "10.0.0.9:80", 1)), "same node 10.0.0.9:80");
}

#[test]
fn endpoints_without_an_address_are_an_error_of_their_own() {
    let snapshot = mesh([service()], [pod("named", &[])]);
    assert_eq!(plan(&snapshot, "10.96.0.1:80").unwrap_err(), PlanError::NoAddress(web()));
    let mixed = mesh([service()], [pod("named", &[]), pod("a", &["10.0.0.1"])]);
    assert_eq!(spread(&mixed, &client(), "10.96.0.1:80"), addresses(&["10.0.0.1:8080"]));
}

#[test]
fn networks_are_kept_apart() {
    let mut east = pod("east", &["10.0.0.1"]);
    east.network = "east".into();
    let snapshot = mesh([service()], [east.clone()]);
    assert_eq!(told(plan(&snapshot, "10.0.0.1:80")), "passthrough 10.0.0.1:80");
    assert_eq!(plan(&snapshot, "10.96.0.1:80").unwrap_err(), PlanError::OtherNetwork(web()));

    let mut source = client();
    source.network = "east".into();
    assert_eq!(told(plan_from(&snapshot, &source, "10.0.0.1:80", 0)), "hbone 10.0.0.1:80 by 10.0.0.1:15008");
    assert_eq!(told(plan_from(&snapshot, &source, "10.96.0.1:80", 0)), "passthrough 10.96.0.1:80");

    let both = mesh([service()], [east, pod("here", &["10.0.0.2"])]);
    assert_eq!(spread(&both, &client(), "10.96.0.1:80"), addresses(&["10.0.0.2:8080"]));
}

#[test]
fn a_waypoint_is_never_gone_round() {
    let gateway = ServiceKey { namespace: "app".into(), hostname: "waypoint.app.svc.cluster.local".into() };
    let by_name = GatewayAddress::Host { service: gateway.clone(), hbone_port: 15008 };
    let by_address = |address: &str| GatewayAddress::Address { address: at("", address), hbone_port: 15008 };
    let mut waypoint = Workload::named("c//Pod/app/waypoint", "app", "waypoint");
    waypoint.addresses = vec!["10.0.0.5".parse().unwrap()];
    waypoint.services = BTreeMap::from([(gateway.clone(), Vec::new())]);
    let front = Service { key: gateway, addresses: vec![at("", "10.96.0.5")], ..service() };

    for by in [by_name, by_address("10.0.0.5"), by_address("10.96.0.5"), by_address("::ffff:10.0.0.5")] {
        let behind = Service { waypoint: Some(by.clone()), ..service() };
        let mut member = pod("a", &["10.0.0.1"]);
        member.waypoint = Some(by.clone());
        let snapshot = mesh([behind, front.clone()], [member, waypoint.clone()]);
        for to in ["10.96.0.1:80", "10.0.0.1:80"] {
            let refused = plan(&snapshot, to).unwrap_err();
            assert!(matches!(refused, PlanError::WaypointUnavailable(_)), "{by:?} {to}: {refused}");
            assert!(plan_from(&snapshot, &waypoint, to, 0).is_ok(), "{by:?} {to}");
        }
    }
}

#[test]
fn a_services_own_waypoint_decides_not_that_of_the_endpoint() {
    let mut member = pod("a", &["10.0.0.1"]);
    member.waypoint = Some(GatewayAddress::Address { address: at("", "10.0.0.5"), hbone_port: 15008 });
    assert!(plan(&mesh([service()], [member]), "10.96.0.1:80").is_ok());
}

#[test]
fn a_services_address_comes_before_a_workloads() {
    let snapshot = mesh([service()], [pod("a", &["10.96.0.1"])]);
    let planned = plan(&snapshot, "10.96.0.1:80");
    let Ok(Plan::Hbone { target, .. }) = planned else { panic!("not a tunnel: {planned:?}") };
    assert_eq!(target.service.map(|service: Arc<Service>| service.key.clone()), Some(web()));
}

#[test]
fn an_endpoint_without_address_is_reached_by_its_name() {
    let mut named = pod("a", &[]);
    named.hostname = "db.example".into();
    named.tunnel = Tunnel::None;
    let snapshot = mesh([service()], [named.clone()]);
    assert_eq!(told(plan(&snapshot, "10.96.0.1:80")), "plain db.example:8080");
    // What is to be met in a tunnel is not met without.
    let hbone = Workload { tunnel: Tunnel::Hbone, ..named.clone() };
    let snapshot = mesh([service()], [hbone]);
    assert_eq!(plan(&snapshot, "10.96.0.1:80").unwrap_err(), PlanError::NoAddress(web()));
    // An address is better than a name.
    let snapshot = mesh([service()], [named, pod("b", &["10.0.0.1"])]);
    for seed in 0..20 {
        let plan = plan_from(&snapshot, &client(), "10.96.0.1:80", seed);
        assert_eq!(told(plan), "hbone 10.0.0.1:8080 by 10.0.0.1:15008");
    }
}

#[test]
fn a_service_that_chooses_nothing_lets_the_address_through() {
    let service = Service { passthrough: true, ..service() };
    let snapshot = mesh([service], [pod("a", &["10.0.0.1"])]);
    assert_eq!(told(plan(&snapshot, "10.96.0.1:80")), "passthrough 10.96.0.1:80");
    assert_eq!(told(plan(&snapshot, "10.96.0.1:4444")), "passthrough 10.96.0.1:4444");
}

#[test]
fn an_entry_that_chooses_nothing_leads_no_pod_out_of_the_mesh() {
    let entry =
        Service { addresses: vec![at("", "10.0.0.1"), at("", "10.96.0.1")], passthrough: true, ..service() };
    let entry =
        Service { key: ServiceKey { namespace: "thief".into(), hostname: "x.example".into() }, ..entry };
    let real = Service { canonical: true, ..service() };
    for services in [[entry.clone(), real.clone()], [real, entry]] {
        let snapshot = mesh(services, [pod("a", &["10.0.0.1"])]);
        assert_eq!(told(plan(&snapshot, "10.0.0.1:9090")), "hbone 10.0.0.1:9090 by 10.0.0.1:15008");
        assert_eq!(told(plan(&snapshot, "10.96.0.1:80")), "hbone 10.0.0.1:8080 by 10.0.0.1:15008");
    }
    // Nor does an endpoint that somebody says to be at a pod's address.
    let mut machine = Workload::named("c/networking.istio.io/WorkloadEntry/thief/m", "thief", "m");
    machine.addresses = vec!["10.0.0.1".parse().unwrap()];
    let snapshot = mesh([], [pod("a", &["10.0.0.1"]), machine]);
    assert_eq!(told(plan(&snapshot, "10.0.0.1:9090")), "hbone 10.0.0.1:9090 by 10.0.0.1:15008");
}

#[test]
fn a_name_that_resolves_into_the_mesh_is_met_as_ever() {
    let named = ServiceKey { namespace: "bank".into(), hostname: "orders.example".into() };
    let entry = |ip| Service { key: named.clone(), addresses: vec![at("", ip)], ..service() };
    let mut far = Workload::named("c/networking.istio.io/ServiceEntry/bank/e", "bank", "e");
    far.hostname = "web.app.svc.cluster.local".into();
    far.services = BTreeMap::from([(named.clone(), Vec::new())]);
    let real = Service { canonical: true, ..service() };
    let snapshot = mesh([real, entry("240.240.0.1")], [pod("a", &["10.0.0.1"]), far]);
    let resolved = |to: &str| {
        let source = client();
        let outbound = Outbound {
            source: &source,
            destination: "240.240.0.1:80".parse().unwrap(),
            seed: 7,
            avoided: None,
        };
        let Ok(Plan::Named { workload, service, .. }) = snapshot.plan(HERE, &outbound) else {
            panic!("it has a name alone")
        };
        let target = Target { workload, address: to.parse().unwrap(), service: Some(service) };
        told(snapshot.plan_resolved(HERE, &outbound, target))
    };
    assert_eq!(resolved("10.96.0.1:80"), "hbone 10.0.0.1:8080 by 10.0.0.1:15008");
    assert_eq!(resolved("10.0.0.1:8080"), "hbone 10.0.0.1:8080 by 10.0.0.1:15008");
    assert_eq!(resolved("192.0.2.7:8080"), "plain 192.0.2.7:8080");
    // Its own address is where it is.
    assert_eq!(resolved("240.240.0.1:8080"), "plain 240.240.0.1:8080");
}
