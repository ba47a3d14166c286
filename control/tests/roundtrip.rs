//! What control encodes is what ztunnel understands: any object survives the way.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use control::publish::{Store, Type};
use ipnet::IpNet;
use mesh::{
    Action, Clause, Families, GatewayAddress, Identity, Locality, Match, NetworkAddress, Policy, PolicyKey,
    PortMapping, Rule, Scope, Service, ServiceAccountMatch, ServiceKey, StringMatch, Tunnel, Workload,
    WorkloadKind,
};
use proptest::{collection::vec, option, prelude::*};
use xds::convert::{Address, Converter};

fn text() -> impl Strategy<Value = Arc<str>> {
    "[a-z][a-z0-9.-]{0,8}".prop_map(Arc::from)
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

fn network_address() -> impl Strategy<Value = NetworkAddress> {
    (text(), address()).prop_map(|(network, address)| NetworkAddress { network, address })
}

fn service_key() -> impl Strategy<Value = ServiceKey> {
    (text(), text()).prop_map(|(namespace, hostname)| ServiceKey { namespace, hostname })
}

fn policy_key() -> impl Strategy<Value = PolicyKey> {
    (text(), text()).prop_map(|(namespace, name)| PolicyKey { namespace, name })
}

fn ports() -> impl Strategy<Value = Vec<PortMapping>> {
    let port = (any::<u16>(), any::<u16>());
    vec(port.prop_map(|(service_port, target_port)| PortMapping { service_port, target_port }), 0..3)
}

fn gateway() -> impl Strategy<Value = GatewayAddress> {
    prop_oneof![
        (network_address(), any::<u16>())
            .prop_map(|(address, hbone_port)| GatewayAddress::Address { address, hbone_port }),
        (service_key(), any::<u16>())
            .prop_map(|(service, hbone_port)| GatewayAddress::Host { service, hbone_port }),
    ]
}

fn workload() -> impl Strategy<Value = Workload> {
    let names = (vec(text(), 12), text(), text(), text());
    let kinds = prop::sample::select(vec![
        WorkloadKind::Deployment,
        WorkloadKind::CronJob,
        WorkloadKind::Pod,
        WorkloadKind::Job,
    ]);
    let facts = (kinds, any::<bool>(), any::<bool>(), any::<bool>());
    let services: BoxedStrategy<BTreeMap<ServiceKey, Vec<PortMapping>>> =
        prop::collection::btree_map(service_key(), ports(), 0..3).boxed();
    let rest = (
        vec(address(), 0..3),
        services,
        vec(policy_key(), 0..3),
        option::of(gateway()),
        option::of(gateway()),
        (option::of((vec(any::<u16>(), 0..3), vec(service_key(), 0..3))), vec(service_key(), 0..3)),
    );
    (names, facts, rest).prop_map(|((names, region, zone, subzone), (kind, hbone, native, healthy), rest)| {
        let (addresses, services, authorization_policies, waypoint, network_gateway, behind) = rest;
        let (required, routed_from) = behind;
        Workload {
            uid: format!("{}//Pod/{}/{}", names[0], names[1], names[2]).into(),
            namespace: names[1].clone(),
            name: names[2].clone(),
            service_account: names[3].clone(),
            trust_domain: names[4].clone(),
            network: names[5].clone(),
            addresses,
            hostname: names[6].clone(),
            node: names[7].clone(),
            cluster_id: names[8].clone(),
            canonical_name: names[9].clone(),
            canonical_revision: names[10].clone(),
            workload_name: names[11].clone(),
            workload_kind: kind,
            tunnel: if hbone { Tunnel::Hbone } else { Tunnel::None },
            native_tunnel: native,
            waypoint,
            waypoint_required: required.map(|(except_ports, of)| mesh::WaypointRequired { except_ports, of }),
            routed_from,
            network_gateway,
            services,
            authorization_policies,
            healthy,
            locality: Locality { region, zone, subzone },
        }
    })
}

fn service() -> impl Strategy<Value = Service> {
    let names = vec((text(), text(), text()), 0..3)
        .prop_map(|names| names.into_iter().map(|(td, ns, sa)| Identity::new(td, ns, sa)).collect());
    let families = prop::sample::select(vec![Families::Any, Families::V4, Families::V6]);
    // Each is a mode of balancing, which has one.
    let balancing = prop_oneof![
        (any::<bool>(), any::<bool>()).prop_map(|(unhealthy, local)| (unhealthy, local, false)),
        any::<bool>().prop_map(|unhealthy| (unhealthy, false, true)),
    ];
    let facts = (option::of(gateway()), balancing, families, any::<bool>());
    (service_key(), text(), vec(network_address(), 0..3), ports(), names, facts).prop_map(
        |(key, name, addresses, ports, subject_alt_names, facts)| {
            let (waypoint, (allow_unhealthy, node_local, passthrough), families, canonical) = facts;
            Service {
                key,
                name,
                addresses,
                ports,
                subject_alt_names,
                waypoint,
                allow_unhealthy,
                node_local,
                families,
                canonical,
                passthrough,
            }
        },
    )
}

fn texts() -> impl Strategy<Value = Vec<StringMatch>> {
    vec(
        prop_oneof![
            text().prop_map(StringMatch::Exact),
            text().prop_map(StringMatch::Prefix),
            text().prop_map(StringMatch::Suffix),
            Just(StringMatch::Presence),
        ],
        0..3,
    )
}

fn accounts() -> impl Strategy<Value = Vec<ServiceAccountMatch>> {
    let account = (text(), text())
        .prop_map(|(namespace, service_account)| ServiceAccountMatch { namespace, service_account });
    vec(account, 0..3)
}

fn blocks() -> impl Strategy<Value = Vec<IpNet>> {
    let block = (address(), 0u8..=128).prop_map(|(address, length)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, length.min(most)).unwrap().trunc()
    });
    vec(block, 0..3)
}

fn r#match() -> impl Strategy<Value = Match> {
    let ports = || vec(any::<u16>(), 0..3);
    let who = (texts(), texts(), accounts(), accounts(), texts(), texts());
    let whence = (blocks(), blocks(), blocks(), blocks(), ports(), ports());
    (who, whence).prop_map(|(who, whence)| Match {
        namespaces: who.0,
        not_namespaces: who.1,
        service_accounts: who.2,
        not_service_accounts: who.3,
        principals: who.4,
        not_principals: who.5,
        source_ips: whence.0,
        not_source_ips: whence.1,
        destination_ips: whence.2,
        not_destination_ips: whence.3,
        destination_ports: whence.4,
        not_destination_ports: whence.5,
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let clause = vec(r#match(), 0..3).prop_map(|matches| Clause { matches });
    // A rule without clauses has no form on the wire: it never matches and is left out.
    let rules = vec(vec(clause, 1..3).prop_map(|clauses| Rule { clauses }), 0..3);
    let scope = prop::sample::select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]);
    let action = prop::sample::select(vec![Action::Allow, Action::Deny]);
    (policy_key(), scope, action, any::<bool>(), rules)
        .prop_map(|(key, scope, action, dry_run, rules)| Policy { key, scope, action, dry_run, rules })
}

/// The only resource of that type, as it goes on the wire.
fn encoded(store: &Store, r#type: Type) -> (String, bytes::Bytes) {
    let state = store.subscribe().borrow().clone();
    let (_, resource) = state.resources(r#type).iter().next().unwrap();
    let resource = resource.on_the_wire();
    (resource.name, resource.resource.unwrap().value)
}

proptest! {
    #[test]
    fn workloads(workload in workload()) {
        let store = Store::default();
        store.publish([workload.clone()], [], []);
        let (name, value) = encoded(&store, Type::Address);
        prop_assert_eq!(Converter::new("td").address(&name, &value), Ok(Address::Workload(workload)));
    }

    #[test]
    fn services(service in service()) {
        let store = Store::default();
        store.publish([], [service.clone()], []);
        let (name, value) = encoded(&store, Type::Address);
        prop_assert_eq!(Converter::new("td").address(&name, &value), Ok(Address::Service(service)));
    }

    #[test]
    fn policies(policy in policy()) {
        let store = Store::default();
        store.publish([], [], [policy.clone()]);
        let (name, value) = encoded(&store, Type::Authorization);
        prop_assert_eq!(Converter::new("td").authorization(&name, &value), Ok(policy));
    }
}

/// In `mesh` such a rule never matches; on the wire it would match everything.
#[test]
fn a_rule_without_clauses_is_not_sent() {
    let key = PolicyKey { namespace: "a".into(), name: "p".into() };
    let rules = vec![Rule::default()];
    let policy = Policy { key, scope: Scope::Global, action: Action::Allow, dry_run: false, rules };
    let store = Store::default();
    store.publish([], [], [policy]);
    let (name, value) = encoded(&store, Type::Authorization);
    assert_eq!(Converter::new("td").authorization(&name, &value).unwrap().rules, []);
}
