//! Answers as control would send them, and what they lead to.

use mesh::{Action, Attempt, Policy, PolicyKey, Refusal, Verdict};
use proptest::prelude::*;
use prost::Message;
use proto::{Any, security, workload as wire};

use super::*;

fn resource(name: &str, version: &str, type_url: &str, message: &impl Message) -> Resource {
    Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(Any { type_url: type_url.into(), value: message.encode_to_vec().into() }),
        ..Default::default()
    }
}

fn workload(uid: &str, address: &[u8], policies: &[&str]) -> Resource {
    let workload = wire::Workload {
        uid: uid.into(),
        namespace: "shop".into(),
        name: "web".into(),
        addresses: vec![address.to_vec()],
        authorization_policies: policies.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let address = wire::Address { r#type: Some(wire::address::Type::Workload(workload)) };
    resource(uid, "1", ADDRESS_TYPE, &address)
}

fn service(hostname: &str, address: &[u8]) -> Resource {
    let at = wire::NetworkAddress { network: String::new(), address: address.to_vec() };
    let service = wire::Service {
        namespace: "shop".into(),
        hostname: hostname.into(),
        addresses: vec![at],
        ..Default::default()
    };
    let address = wire::Address { r#type: Some(wire::address::Type::Service(service)) };
    resource(&format!("shop/{hostname}"), "1", ADDRESS_TYPE, &address)
}

fn deny(port: u32, scope: security::Scope) -> security::Authorization {
    let r#match = security::Match { destination_ports: vec![port], ..Default::default() };
    let clause = security::Clause { matches: vec![r#match] };
    security::Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        scope: scope.into(),
        action: security::Action::Deny.into(),
        rules: vec![security::Rule { clauses: vec![clause] }],
        dry_run: false,
    }
}

fn answer(type_url: &str, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: "n".into(),
        resources,
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

fn session() -> Session {
    Session::new("cluster.local", "Kubernetes")
}

/// What the mesh says of a caller that reaches `port` of the workload.
fn verdict(session: &Session, port: u16) -> Verdict {
    let destination = session.snapshot.workload("w").unwrap().clone();
    let attempt = Attempt {
        source: None,
        source_ip: "10.9.9.9".parse().unwrap(),
        destination: &destination,
        destination_ip: destination.addresses[0],
        destination_port: port,
        through: None,
    };
    session.snapshot.admit(&attempt).verdict
}

#[test]
fn silence_is_not_complete_and_an_empty_answer_is() {
    let mut session = session();
    assert!(!session.snapshot.is_complete());
    session.receive(answer(AUTHORIZATION_TYPE, vec![], &[]));
    assert!(!session.snapshot.is_complete());
    let outcome = session.receive(answer(ADDRESS_TYPE, vec![], &[]));
    assert!(session.snapshot.is_complete());
    assert_eq!(outcome.reply.response_nonce, "n");
    assert_eq!(outcome.reply.error_detail, None);
}

#[test]
fn a_bad_resource_is_refused_by_name_and_the_rest_applied() {
    let mut session = session();
    let outcome = session.receive(answer(
        ADDRESS_TYPE,
        vec![
            workload("w", &[10, 0, 0, 1], &[]),
            workload("bad", &[10, 0], &[]),
            service("web", &[10, 1, 0, 1]),
        ],
        &[],
    ));
    let detail = outcome.reply.error_detail.unwrap();
    assert_eq!(detail.code, INVALID_ARGUMENT);
    assert_eq!(detail.message, "bad: addresses: an address has 4 or 16 bytes, not 2");
    assert!(session.snapshot.workload("w").is_some());
    assert!(session.snapshot.service_at("", "10.1.0.1".parse().unwrap()).is_some());
}

#[test]
fn an_update_that_is_refused_keeps_the_last_good_version() {
    let mut session = session();
    session.receive(answer(ADDRESS_TYPE, vec![workload("w", &[10, 0, 0, 1], &[])], &[]));
    let mut update = workload("w", &[1], &[]);
    update.version = "2".into();
    session.receive(answer(ADDRESS_TYPE, vec![update], &[]));
    assert_eq!(
        session.snapshot.workload("w").unwrap().addresses,
        ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]
    );
    let first = session.open(&Node::default());
    assert_eq!(first[1].initial_resource_versions["w"], "1", "control learns which version is held");
}

#[test]
fn what_is_removed_is_gone_and_unknown_names_are_passed_over() {
    let mut session = session();
    let resources = vec![workload("w", &[10, 0, 0, 1], &[]), service("web", &[10, 1, 0, 1])];
    session.receive(answer(ADDRESS_TYPE, resources, &[]));
    session.receive(answer(ADDRESS_TYPE, vec![], &["w", "shop/web", "nobody"]));
    assert_eq!(session.snapshot.workloads().count() + session.snapshot.services().count(), 0);
    assert!(session.open(&Node::default())[1].initial_resource_versions.is_empty());
}

#[test]
fn a_new_stream_says_what_is_held_and_asks_for_all() {
    let mut session = session();
    session.receive(answer(ADDRESS_TYPE, vec![workload("w", &[10, 0, 0, 1], &[])], &[]));
    let policy = resource("shop/p", "7", AUTHORIZATION_TYPE, &deny(80, security::Scope::Namespace));
    session.receive(answer(AUTHORIZATION_TYPE, vec![policy], &[]));
    let node = Node { id: "me".into(), ..Default::default() };
    let requests = session.open(&node);
    assert_eq!(requests[0].type_url, AUTHORIZATION_TYPE, "policies come first");
    assert_eq!(requests[0].node.as_ref().unwrap().id, "me");
    assert_eq!(requests[0].initial_resource_versions["shop/p"], "7");
    assert_eq!(requests[1].initial_resource_versions["w"], "1");
    for request in &requests {
        assert_eq!(request.resource_names_subscribe, ["*"]);
    }
}

#[test]
fn a_policy_that_was_never_held_and_is_refused_refuses_who_names_it() {
    let mut session = session();
    session.receive(answer(ADDRESS_TYPE, vec![workload("w", &[10, 0, 0, 1], &["shop/p"])], &[]));
    let mut bad = deny(80, security::Scope::WorkloadSelector);
    bad.rules[0].clauses[0].matches[0].source_ips =
        vec![security::Address { address: vec![10, 0, 0, 0], length: 33 }];
    let outcome = session.receive(answer(
        AUTHORIZATION_TYPE,
        vec![resource("shop/p", "1", AUTHORIZATION_TYPE, &bad)],
        &[],
    ));
    let message = outcome.reply.error_detail.unwrap().message;
    assert_eq!(message, "shop/p: source_ips: 10.0.0.0/33 is not an address block");
    let key = PolicyKey { namespace: "shop".into(), name: "p".into() };
    assert_eq!(verdict(&session, 81), Verdict::Refuse(Refusal::PolicyMissing(key)));

    // A good version lifts it, and stays when the next one is bad.
    let good = resource("shop/p", "2", AUTHORIZATION_TYPE, &deny(80, security::Scope::WorkloadSelector));
    session.receive(answer(AUTHORIZATION_TYPE, vec![good], &[]));
    assert_eq!(verdict(&session, 81), Verdict::Allow(None));
    session.receive(answer(AUTHORIZATION_TYPE, vec![resource("shop/p", "3", AUTHORIZATION_TYPE, &bad)], &[]));
    assert!(matches!(verdict(&session, 80), Verdict::Refuse(Refusal::Denied(_))));
    assert_eq!(verdict(&session, 81), Verdict::Allow(None));
}

#[test]
fn a_refused_policy_of_a_namespace_refuses_until_it_is_removed() {
    let mut session = session();
    session.receive(answer(ADDRESS_TYPE, vec![workload("w", &[10, 0, 0, 1], &[])], &[]));
    let mut bad = deny(80, security::Scope::Namespace);
    bad.action = 9;
    session.receive(answer(AUTHORIZATION_TYPE, vec![resource("shop/p", "1", AUTHORIZATION_TYPE, &bad)], &[]));
    assert!(matches!(verdict(&session, 81), Verdict::Refuse(Refusal::PolicyMissing(_))));
    session.receive(answer(AUTHORIZATION_TYPE, vec![], &["shop/p"]));
    assert_eq!(verdict(&session, 81), Verdict::Allow(None));
}

/// `rules: [{}]` has no clauses on the wire and matches everything; it must not become "never".
#[test]
fn a_rule_without_clauses_matches_everything() {
    let mut session = session();
    session.receive(answer(ADDRESS_TYPE, vec![workload("w", &[10, 0, 0, 1], &[])], &[]));
    let mut all = deny(80, security::Scope::Namespace);
    all.rules = vec![security::Rule::default()];
    session.receive(answer(AUTHORIZATION_TYPE, vec![resource("shop/p", "1", AUTHORIZATION_TYPE, &all)], &[]));
    assert!(matches!(verdict(&session, 81), Verdict::Refuse(Refusal::Denied(_))));
}

#[test]
fn a_resource_of_another_name_or_type_is_refused() {
    let mut session = session();
    let mut renamed = workload("w", &[10, 0, 0, 1], &[]);
    renamed.name = "other".into();
    let mut typed = workload("w", &[10, 0, 0, 1], &[]);
    typed.resource.as_mut().unwrap().type_url = "type.googleapis.com/x".into();
    let outcome = session.receive(answer(ADDRESS_TYPE, vec![renamed, typed, Resource::default()], &[]));
    assert_eq!(outcome.refused.len(), 3);
    assert_eq!(session.snapshot.workloads().count(), 0);
    let outcome = session.receive(answer("type.googleapis.com/x", vec![], &[]));
    assert!(outcome.reply.error_detail.is_some());
    assert!(!session.snapshot.is_complete());
}

#[test]
fn an_unknown_tunnel_does_not_become_plain_text() {
    let mut session = session();
    let workload = wire::Workload { uid: "w".into(), tunnel_protocol: 7, ..Default::default() };
    let address = wire::Address { r#type: Some(wire::address::Type::Workload(workload)) };
    let outcome =
        session.receive(answer(ADDRESS_TYPE, vec![resource("w", "1", ADDRESS_TYPE, &address)], &[]));
    assert_eq!(outcome.refused[0].1.to_string(), "tunnel_protocol: 7 is not a tunnel we know");
}

#[test]
fn actions_and_scopes_arrive() {
    let policy: Policy = Converter::new("td").policy(&deny(80, security::Scope::Global)).unwrap();
    assert_eq!((policy.action, policy.scope), (Action::Deny, mesh::Scope::Global));
}

proptest! {
    /// Whatever the bytes, there is an answer, and it is acknowledged or refused.
    #[test]
    fn no_bytes_panic(
        kind in any::<bool>(),
        resources in prop::collection::vec((".{0,12}", prop::collection::vec(any::<u8>(), 0..80)), 0..6),
        removed in prop::collection::vec(".{0,8}", 0..3),
    ) {
        let type_url = if kind { ADDRESS_TYPE } else { AUTHORIZATION_TYPE };
        let resources = resources.into_iter().map(|(name, bytes)| Resource {
            name,
            resource: Some(Any { type_url: type_url.into(), value: bytes.into() }),
            ..Default::default()
        });
        let removed: Vec<&str> = removed.iter().map(String::as_str).collect();
        let mut session = session();
        let outcome = session.receive(answer(type_url, resources.collect(), &removed));
        prop_assert_eq!(outcome.reply.error_detail.is_some(), !outcome.refused.is_empty());
    }
}

fn routes_answer(resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: ROUTES_TYPE.into(),
        resources,
        nonce: "n".into(),
        ..Default::default()
    }
}

fn routes_resource(value: Vec<u8>) -> Resource {
    let any = Any { type_url: ROUTES_TYPE.into(), value: value.into() };
    Resource { name: "shop/web".into(), version: "1".into(), resource: Some(any), ..Default::default() }
}

#[test]
fn routes_are_asked_for_by_waypoints_and_what_cannot_be_read_closes_the_service() {
    use mesh::route::To;
    let asked = |session: Session| {
        session.open(&Node::default()).into_iter().map(|request| request.type_url).collect::<Vec<_>>()
    };
    assert!(!asked(Session::new("td", "c")).contains(&ROUTES_TYPE.to_owned()));
    let mut session = Session::new("td", "c").with_routes(true);
    assert!(session.open(&Node::default()).iter().any(|request| request.type_url == ROUTES_TYPE));
    let key = mesh::ServiceKey { namespace: "shop".into(), hostname: "web".into() };

    let outcome = session.receive(routes_answer(vec![routes_resource(vec![0xff])]));
    assert!(outcome.reply.error_detail.is_some() && session.snapshot.has_routes());
    let closed = session.snapshot.routes(&key).expect("nothing is let through").clone();
    assert!(matches!(closed.routes()[0].rules[0].backends[0].to, To::Nowhere(_)));

    let good = proto::waypoint::ServiceRoutes {
        namespace: "shop".into(),
        hostname: "web".into(),
        ports: vec![proto::waypoint::PortProtocol { port: 80, protocol: 1 }],
        ..Default::default()
    };
    let outcome = session.receive(routes_answer(vec![routes_resource(good.encode_to_vec())]));
    assert!(outcome.reply.error_detail.is_none());
    let held = session.snapshot.routes(&key).expect("the routes").clone();
    assert_eq!((held.protocol(80), held.routes().len()), (mesh::route::Protocol::Http1, 0));

    session.receive(routes_answer(vec![routes_resource(vec![0xff])]));
    assert_eq!(session.snapshot.routes(&key), Some(&held), "the last good version stays");
    let gone =
        DeltaDiscoveryResponse { removed_resources: vec!["shop/web".into()], ..routes_answer(Vec::new()) };
    session.receive(gone);
    assert_eq!(session.snapshot.routes(&key), None);
}
