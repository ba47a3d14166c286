//! Waypoints: where calls go that must pass one, and which calls that say they passed one are believed.

use std::{collections::BTreeMap, sync::Arc};

use mesh::{
    Attempt, Behind, GatewayAddress, Identity, NetworkAddress, Outbound, Passage, Plan, PlanError,
    PortMapping, Refusal, Service, ServiceKey, Snapshot, Target, Tunnel, Verdict, WaypointRequired, Workload,
};

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "shop".into(), hostname: format!("{name}.shop.svc.cluster.local").into() }
}

fn gateway(name: &str) -> GatewayAddress {
    GatewayAddress::Host { service: key(name), hbone_port: 15008 }
}

fn service(name: &str, address: Option<&str>) -> Service {
    let at = |address: &str| NetworkAddress { network: "".into(), address: address.parse().unwrap() };
    Service {
        addresses: address.map(at).into_iter().collect(),
        ports: vec![PortMapping { service_port: 80, target_port: 8080 }],
        ..Service::named(key(name), name)
    }
}

fn pod(name: &str, address: &str, services: &[&str]) -> Workload {
    let mut pod = Workload::named(format!("c//Pod/shop/{name}"), "shop", name);
    pod.addresses = vec![address.parse().unwrap()];
    pod.service_account = name.into();
    pod.node = "far".into();
    pod.tunnel = Tunnel::Hbone;
    pod.services = services.iter().map(|name| (key(name), Vec::new())).collect::<BTreeMap<_, _>>();
    pod
}

/// The service `web` behind the waypoint `wp`, `other` behind `wp2`.
struct World {
    services: Vec<Service>,
    pods: Vec<Workload>,
}

impl World {
    fn new() -> Self {
        let behind = |name, address, waypoint| Service {
            waypoint: Some(gateway(waypoint)),
            ..service(name, Some(address))
        };
        let way = |name, address, of| Workload { native_tunnel: true, ..pod(name, address, &[of]) };
        Self {
            services: vec![
                behind("web", "10.96.0.1", "wp"),
                behind("other", "10.96.0.2", "wp2"),
                service("wp", None),
                service("wp2", None),
            ],
            pods: vec![
                pod("web", "10.0.0.1", &["web"]),
                pod("client", "10.0.0.9", &[]),
                way("wp", "10.0.0.5", "wp"),
                way("wp2", "10.0.0.6", "wp2"),
            ],
        }
    }

    fn pod(&mut self, name: &str) -> &mut Workload {
        self.pods.iter_mut().find(|pod| *pod.name == *name).unwrap()
    }

    fn snapshot(&self) -> Snapshot {
        let mut editor = Snapshot::default().edit();
        editor.mark_addresses_complete();
        editor.mark_policies_complete();
        self.services.iter().cloned().for_each(|service| editor.put_service(service));
        self.pods.iter().cloned().for_each(|pod| editor.put_workload(pod));
        editor.finish()
    }

    fn plan(&self, source: &str, to: &str) -> Result<Plan, PlanError> {
        let snapshot = self.snapshot();
        let source = self.pods.iter().find(|pod| *pod.name == *source).unwrap();
        snapshot.plan("here", &Outbound { source, destination: to.parse().unwrap(), seed: 3, avoided: None })
    }

    fn told(&self, source: &str, to: &str) -> String {
        match self.plan(source, to) {
            Ok(Plan::Waypoint { target, expected, authority, behind }) => {
                format!("{authority} by {} as {:?} for {behind}", target.address, expected[0])
            }
            Ok(Plan::Hbone { authority, .. }) => format!("straight {authority}"),
            Ok(other) => format!("{other:?}"),
            Err(error) => error.to_string(),
        }
    }

    /// Judges a call of the pod `web`.
    fn admit(&self, source: &str, port: u16, through: Option<(&str, Behind)>) -> Verdict {
        let through = through.map(|(waypoint, behind)| Passage { waypoint: identity(waypoint), behind });
        let snapshot = self.snapshot();
        let verdict = snapshot.admit(&Attempt {
            source: (!source.is_empty()).then(|| identity(source)).as_ref(),
            source_ip: "10.0.0.9".parse().unwrap(),
            destination: snapshot.workload("c//Pod/shop/web").unwrap(),
            destination_ip: "10.0.0.1".parse().unwrap(),
            destination_port: port,
            through: through.as_ref(),
        });
        verdict.verdict
    }
}

fn identity(name: &str) -> Identity {
    Identity::new("cluster.local", "shop", name)
}

fn web() -> Behind {
    Behind::Service(key("web"))
}

#[test]
fn what_names_a_waypoint_is_reached_through_it() {
    let mut world = World::new();
    let through = "10.96.0.1:80 by 10.0.0.5:15008 as spiffe://cluster.local/ns/shop/sa/wp for \
                   shop/web.shop.svc.cluster.local";
    assert_eq!(world.told("client", "10.96.0.1:80"), through);
    assert_eq!(world.told("client", "10.0.0.1:8080"), "straight 10.0.0.1:8080", "the pod names none");
    world.pod("web").waypoint = Some(gateway("wp"));
    assert_eq!(
        world.told("client", "10.0.0.1:8080"),
        "10.0.0.1:8080 by 10.0.0.5:15008 as spiffe://cluster.local/ns/shop/sa/wp for c//Pod/shop/web"
    );
    assert_eq!(
        world.told("client", "10.96.0.1:81"),
        "service shop/web.shop.svc.cluster.local has no port 81"
    );
}

#[test]
fn a_waypoint_goes_straight_to_what_is_behind_it_and_through_that_of_others() {
    let mut world = World::new();
    world.pod("web").waypoint = Some(gateway("wp"));
    assert_eq!(world.told("wp", "10.96.0.1:80"), "straight 10.0.0.1:8080");
    assert_eq!(world.told("wp", "10.0.0.1:8080"), "straight 10.0.0.1:8080");
    assert!(world.told("wp", "10.96.0.2:80").contains(" by 10.0.0.6:15008 "));
}

#[test]
fn a_waypoint_by_address_is_one_too() {
    let mut world = World::new();
    let address = NetworkAddress { network: "".into(), address: "10.0.0.5".parse().unwrap() };
    world.services[0].waypoint = Some(GatewayAddress::Address { address, hbone_port: 15009 });
    assert!(world.told("client", "10.96.0.1:80").contains(" by 10.0.0.5:15009 "));
    assert_eq!(world.told("wp", "10.96.0.1:80"), "straight 10.0.0.1:8080");
    assert_eq!(world.admit("client", 8080, Some(("wp", web()))), Verdict::Allow(None));
}

#[test]
fn a_host_outside_that_names_a_waypoint_is_reached_through_it_however_it_is_resolved() {
    let mut world = World::new();
    let entry = |passthrough| Service {
        key: key("outside"),
        waypoint: Some(gateway("wp")),
        passthrough,
        canonical: false,
        ..service("outside", Some("240.240.0.1"))
    };
    let mut far = Workload::named("c/networking.istio.io/ServiceEntry/shop/outside", "shop", "outside");
    far.hostname = "outside.example".into();
    far.services = BTreeMap::from([(key("outside"), Vec::new())]);
    world.pods.push(far);
    for passthrough in [false, true] {
        world.services.retain(|service| *service.name != *"outside");
        world.services.push(entry(passthrough));
        let told = world.told("client", "240.240.0.1:80");
        assert!(told.starts_with("240.240.0.1:80 by 10.0.0.5:15008 "), "{told}");
        world.pod("wp").healthy = false;
        let told = world.told("client", "240.240.0.1:80");
        assert!(told.ends_with("needs a waypoint, and none is ready"), "{told}");
        world.pod("wp").healthy = true;
    }
    assert!(matches!(world.plan("wp", "240.240.0.1:80"), Ok(Plan::Passthrough { .. })), "resolved by nobody");
    world.services.retain(|service| *service.name != *"outside");
    world.services.push(entry(false));
    assert!(matches!(world.plan("wp", "240.240.0.1:80"), Ok(Plan::Named { .. })), "the waypoint itself");
}

#[test]
fn neither_an_address_that_nobody_resolves_nor_a_name_leads_round_anothers_waypoint() {
    let mut world = World::new();
    world.pod("web").waypoint = Some(gateway("wp"));
    let named = Service { canonical: false, ..service("named", Some("240.240.0.2")) };
    let unresolved =
        Service { passthrough: true, canonical: false, ..service("unresolved", Some("10.0.0.1")) };
    world.services.extend([named.clone(), unresolved]);
    let told = world.told("client", "10.0.0.1:8080");
    assert!(told.starts_with("10.0.0.1:8080 by 10.0.0.5:15008 "), "{told}");

    let resolved = |world: &World, to: &str| {
        let source = world.pods.iter().find(|pod| *pod.name == *"client").unwrap();
        let outbound =
            Outbound { source, destination: "240.240.0.2:80".parse().unwrap(), seed: 3, avoided: None };
        let workload = Arc::new(Workload::named("c/e", "shop", "named"));
        let service = Some(Arc::new(named.clone()));
        let target = Target { workload, address: to.parse().unwrap(), service };
        world.snapshot().plan_resolved("here", &outbound, target)
    };
    for (to, what) in
        [("10.0.0.1:8080", "c//Pod/shop/web"), ("10.96.0.1:80", "shop/web.shop.svc.cluster.local")]
    {
        match resolved(&world, to) {
            Ok(Plan::Waypoint { target, authority, behind, .. }) => {
                assert_eq!((authority.as_str(), behind.to_string().as_str()), (to, what));
                assert_eq!(target.address.to_string(), "10.0.0.5:15008");
            }
            other => panic!("{to}: {other:?}"),
        }
    }
    world.pod("wp").healthy = false;
    for to in ["10.0.0.1:8080", "10.96.0.1:80"] {
        assert!(matches!(resolved(&world, to), Err(PlanError::WaypointUnavailable(_))), "{to}");
    }
    assert!(matches!(resolved(&world, "192.0.2.7:8080"), Ok(Plan::Plain(_))));
}

#[test]
fn without_a_waypoint_that_is_ready_there_is_no_way_and_none_round_it() {
    type Change = fn(&mut World);
    let changes: [(&str, Change); 5] = [
        ("not there", |world| world.pods.retain(|pod| *pod.name != *"wp")),
        ("not ready", |world| world.pod("wp").healthy = false),
        ("no tunnel", |world| world.pod("wp").tunnel = Tunnel::None),
        ("another network", |world| world.pod("wp").network = "far".into()),
        ("no such service", |world| world.services.retain(|service| *service.name != *"wp")),
    ];
    for (what, change) in changes {
        let mut world = World::new();
        change(&mut world);
        assert_eq!(
            world.told("client", "10.96.0.1:80"),
            "shop/web.shop.svc.cluster.local needs a waypoint, and none is ready",
            "{what}"
        );
    }
}

#[test]
fn only_the_waypoint_of_what_was_called_speaks_for_others() {
    let mut world = World::new();
    let refused = |name: &str| Verdict::Refuse(Refusal::NotItsWaypoint(identity(name)));
    assert_eq!(world.admit("client", 8080, Some(("wp", web()))), Verdict::Allow(None));
    assert_eq!(world.admit("client", 8080, Some(("wp2", web()))), refused("wp2"), "another's waypoint");
    assert_eq!(world.admit("client", 8080, Some(("client", web()))), refused("client"), "no waypoint at all");
    let other = || Behind::Service(key("other"));
    assert_eq!(
        world.admit("client", 8080, Some(("wp2", other()))),
        refused("wp2"),
        "not this workload's service"
    );
    assert_eq!(world.admit("client", 8080, Some(("wp", other()))), refused("wp"));
    let workload = |uid: &str| Behind::Workload(uid.into());
    assert_eq!(world.admit("client", 8080, Some(("wp", workload("c//Pod/shop/web")))), refused("wp"));
    world.pod("web").waypoint = Some(gateway("wp"));
    assert_eq!(world.admit("client", 8080, Some(("wp", workload("c//Pod/shop/web")))), Verdict::Allow(None));
    assert_eq!(world.admit("client", 8080, Some(("wp", workload("c//Pod/shop/x")))), refused("wp"));
    // A route of the other service leads here.
    world.pod("web").routed_from = vec![key("other")];
    assert_eq!(world.admit("client", 8080, Some(("wp2", other()))), Verdict::Allow(None));
    assert_eq!(world.admit("client", 8080, Some(("wp", other()))), refused("wp"));
}

#[test]
fn where_a_waypoint_is_required_nobody_comes_directly() {
    let mut world = World::new();
    world.pod("web").waypoint_required = Some(WaypointRequired { except_ports: vec![9090], of: Vec::new() });
    let refused = Verdict::Refuse(Refusal::WaypointRequired);
    assert_eq!(world.admit("client", 8080, None), refused);
    assert_eq!(world.admit("", 8080, None), refused, "plaintext");
    assert_eq!(world.admit("wp2", 8080, None), refused, "another's waypoint");
    assert_eq!(world.admit("client", 8080, Some(("wp", web()))), Verdict::Allow(None));
    assert_eq!(world.admit("wp", 8080, None), Verdict::Allow(None), "the waypoint itself");
    assert_eq!(world.admit("client", 9090, None), Verdict::Allow(None), "a port that is excepted");
}

#[test]
fn what_a_service_requires_is_its_own_waypoint_and_not_that_of_another_service_of_the_workload() {
    let mut world = World::new();
    let web_is = |world: &mut World, services: &[&str], of: &[&str]| {
        let pod = world.pod("web");
        pod.services = services.iter().map(|name| (key(name), Vec::new())).collect();
        let of = of.iter().map(|name| key(name)).collect();
        pod.waypoint_required = Some(WaypointRequired { except_ports: vec![9090], of });
    };
    let (refused, other) = (Verdict::Refuse(Refusal::WaypointRequired), || Behind::Service(key("other")));
    for (of, by_web, by_other) in [
        (&[][..], Verdict::Allow(None), Verdict::Allow(None)),
        (&["web"], Verdict::Allow(None), refused.clone()),
        (&["other"], refused.clone(), Verdict::Allow(None)),
        (&["web", "other"], Verdict::Allow(None), Verdict::Allow(None)),
    ] {
        web_is(&mut world, &["web", "other"], of);
        assert_eq!(world.admit("client", 8080, Some(("wp", web()))), by_web, "{of:?}");
        assert_eq!(world.admit("client", 8080, Some(("wp2", other()))), by_other, "{of:?}");
        assert_eq!(
            (world.admit("wp", 8080, None), world.admit("wp2", 8080, None)),
            (by_web, by_other),
            "{of:?}"
        );
        assert_eq!(
            world.admit("client", 9090, Some(("wp2", other()))),
            Verdict::Allow(None),
            "it is excepted"
        );
    }
    // The same waypoint, for another service: what is for it as a whole was judged.
    web_is(&mut world, &["web", "other"], &["web"]);
    for service in &mut world.services {
        if *service.name == *"other" {
            service.waypoint = Some(gateway("wp"));
        }
    }
    assert_eq!(world.admit("client", 8080, Some(("wp", other()))), Verdict::Allow(None));
    // A route of the other service that leads here.
    let mut world = World::new();
    web_is(&mut world, &["web"], &["web"]);
    world.pod("web").routed_from = vec![key("other")];
    assert_eq!(world.admit("client", 8080, Some(("wp2", other()))), Verdict::Allow(None));
}

#[test]
fn policies_judge_the_caller_and_not_the_waypoint() {
    use mesh::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, StringMatch};
    let world = World::new();
    let verdict = |action, principal: &str, source: &str| {
        let mut editor = world.snapshot().edit();
        let name = format!("cluster.local/ns/shop/sa/{principal}");
        let principals = vec![StringMatch::Exact(Arc::from(name))];
        let of = Match { principals, ..Match::default() };
        editor.put_policy(Policy {
            key: PolicyKey { namespace: "shop".into(), name: "p".into() },
            scope: Scope::Namespace,
            action,
            dry_run: false,
            rules: vec![Rule { clauses: vec![Clause { matches: vec![of] }] }],
        });
        let snapshot = editor.finish();
        let attempt = Attempt {
            source: Some(&identity(source)),
            source_ip: "10.0.0.9".parse().unwrap(),
            destination: snapshot.workload("c//Pod/shop/web").unwrap(),
            destination_ip: "10.0.0.1".parse().unwrap(),
            destination_port: 8080,
            through: Some(&Passage { waypoint: identity("wp"), behind: web() }),
        };
        matches!(snapshot.admit(&attempt).verdict, Verdict::Allow(_))
    };
    assert!(verdict(Action::Allow, "client", "client"));
    assert!(!verdict(Action::Allow, "client", "intern"));
    assert!(!verdict(Action::Allow, "wp", "client"), "who may call is not said by who carries");
    assert!(!verdict(Action::Deny, "client", "client"));
    assert!(verdict(Action::Deny, "intern", "client"));
}
