//! One client against a few states.

use std::collections::BTreeMap;

use mesh::{Action, Policy, PolicyKey, Scope, Workload};

use proto::discovery::DeltaDiscoveryResponse;

use super::*;
use crate::publish::Store;

fn workload(name: &str, address: &str) -> Workload {
    let mut workload = Workload::named(format!("c//Pod/a/{name}"), "a", name);
    workload.addresses = vec![address.parse().unwrap()];
    workload
}

fn policy(name: &str, scope: Scope) -> Policy {
    let key = PolicyKey { namespace: "a".into(), name: name.into() };
    Policy { key, scope, action: Action::Deny, dry_run: false, rules: Vec::new() }
}

struct World(Store);

impl World {
    fn new(workloads: &[Workload], policies: &[Policy]) -> Self {
        let world = Self(Store::default());
        world.publish(workloads, policies);
        world
    }

    fn publish(&self, workloads: &[Workload], policies: &[Policy]) {
        self.0.publish(workloads.to_vec(), [], policies.to_vec());
    }

    fn state(&self) -> Arc<State> {
        self.0.subscribe().borrow().clone()
    }
}

fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
    let names = names.iter().map(ToString::to_string).collect();
    DeltaDiscoveryRequest { resource_names_subscribe: names, ..Default::default() }
}

fn acknowledge(answer: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { response_nonce: answer.nonce.clone(), ..Default::default() }
}

fn next(subscription: &mut Subscription, state: &State, part: Part) -> Option<DeltaDiscoveryResponse> {
    Some(subscription.next(state, part)?.message())
}

fn names(answer: &DeltaDiscoveryResponse) -> Vec<&str> {
    answer.resources.iter().map(|resource| resource.name.as_str()).collect()
}

#[test]
fn an_empty_mesh_is_answered_once() {
    let world = World::new(&[], &[]);
    let mut addresses = Subscription::new(Type::Address);
    assert_eq!(next(&mut addresses, &world.state(), Part::Whole), None, "nobody has asked");
    addresses.receive(subscribe(&["*"]), &world.state()).unwrap();
    let answer = next(&mut addresses, &world.state(), Part::Whole).unwrap();
    assert_eq!((answer.resources.len(), answer.removed_resources.len()), (0, 0));
    addresses.receive(acknowledge(&answer), &world.state()).unwrap();
    assert_eq!(next(&mut addresses, &world.state(), Part::Whole), None);
    assert_eq!(addresses.acknowledged(), 1);
}

#[test]
fn a_slow_client_is_brought_to_the_newest_state_in_one_step() {
    let world = World::new(&[workload("one", "10.0.0.1")], &[]);
    let mut addresses = Subscription::new(Type::Address);
    addresses.receive(subscribe(&[]), &world.state()).unwrap();
    let first = next(&mut addresses, &world.state(), Part::Whole).unwrap();
    assert_eq!(names(&first), ["c//Pod/a/one"]);
    for last in 2..9 {
        world.publish(&[workload("two", &format!("10.0.0.{last}"))], &[]);
        assert_eq!(next(&mut addresses, &world.state(), Part::Whole), None, "the first is not acknowledged");
    }
    addresses.receive(acknowledge(&first), &world.state()).unwrap();
    assert_eq!(addresses.acknowledged(), 1);
    let second = next(&mut addresses, &world.state(), Part::Whole).unwrap();
    assert_eq!(names(&second), ["c//Pod/a/two"]);
    assert_eq!(second.removed_resources, ["c//Pod/a/one"]);
    addresses.receive(acknowledge(&second), &world.state()).unwrap();
    assert_eq!(next(&mut addresses, &world.state(), Part::Whole), None);
    assert_eq!(addresses.acknowledged(), world.state().generation);
}

#[test]
fn who_comes_back_is_sent_what_differs() {
    let world = World::new(&[workload("one", "10.0.0.1"), workload("two", "10.0.0.2")], &[]);
    let version = world.state().addresses.get("c//Pod/a/one").unwrap().version();
    let held = [("c//Pod/a/one", version.as_str()), ("c//Pod/a/two", "old"), ("c//Pod/a/gone", "old")];
    let held: BTreeMap<String, String> = held.map(|(n, v)| (n.to_owned(), v.to_owned())).into();
    let mut addresses = Subscription::new(Type::Address);
    let request = DeltaDiscoveryRequest { initial_resource_versions: held, ..subscribe(&["*"]) };
    addresses.receive(request, &world.state()).unwrap();
    let answer = next(&mut addresses, &world.state(), Part::Whole).unwrap();
    assert_eq!(names(&answer), ["c//Pod/a/two"]);
    assert_eq!(answer.removed_resources, ["c//Pod/a/gone"]);
}

#[test]
fn a_refusal_is_told_and_not_repeated_for_ever() {
    let world = World::new(&[workload("one", "10.0.0.1")], &[]);
    let mut addresses = Subscription::new(Type::Address);
    addresses.receive(subscribe(&["*"]), &world.state()).unwrap();
    let answer = next(&mut addresses, &world.state(), Part::Whole).unwrap();
    let detail = proto::discovery::Status { code: 3, message: "no".into(), details: Vec::new() };
    let refusal = DeltaDiscoveryRequest { error_detail: Some(detail), ..acknowledge(&answer) };
    assert_eq!(addresses.receive(refusal.clone(), &world.state()), Ok(Received::Refused("no".into())));
    assert_eq!(next(&mut addresses, &world.state(), Part::Whole), None);
    // The same nonce again is no answer to anything.
    assert_eq!(addresses.receive(refusal, &world.state()), Ok(Received::Request));
}

#[test]
fn by_name_only_what_is_named_is_sent_and_what_is_unknown_is_said_to_be() {
    let world = World::new(&[workload("one", "10.0.0.1"), workload("two", "10.0.0.2")], &[]);
    let mut addresses = Subscription::new(Type::Address);
    // How a client subscribes to nothing.
    let nothing = DeltaDiscoveryRequest { resource_names_unsubscribe: vec!["*".into()], ..subscribe(&["*"]) };
    addresses.receive(nothing, &world.state()).unwrap();
    let answer = next(&mut addresses, &world.state(), Part::Whole).unwrap();
    assert_eq!(names(&answer), Vec::<&str>::new());
    addresses.receive(acknowledge(&answer), &world.state()).unwrap();

    addresses.receive(subscribe(&["/10.0.0.2", "/10.0.0.3"]), &world.state()).unwrap();
    let answer = next(&mut addresses, &world.state(), Part::Whole).unwrap();
    assert_eq!(names(&answer), ["c//Pod/a/two"]);
    assert_eq!(answer.resources[0].aliases, ["/10.0.0.2"]);
    assert_eq!(answer.removed_resources, ["/10.0.0.3"]);
    addresses.receive(acknowledge(&answer), &world.state()).unwrap();

    // Who asks again may have forgotten.
    addresses.receive(subscribe(&["/10.0.0.2"]), &world.state()).unwrap();
    let answer = next(&mut addresses, &world.state(), Part::Whole).unwrap();
    assert_eq!(names(&answer), ["c//Pod/a/two"]);
    addresses.receive(acknowledge(&answer), &world.state()).unwrap();

    // What was unknown comes to be; what nobody asked for is not sent.
    world.publish(&[workload("one", "10.0.0.9"), workload("three", "10.0.0.3")], &[]);
    let answer = next(&mut addresses, &world.state(), Part::Whole).unwrap();
    assert_eq!(names(&answer), ["c//Pod/a/three"]);
    assert_eq!(answer.removed_resources, ["c//Pod/a/two"]);
    addresses.receive(acknowledge(&answer), &world.state()).unwrap();

    let forget =
        DeltaDiscoveryRequest { resource_names_unsubscribe: vec!["/10.0.0.3".into()], ..Default::default() };
    addresses.receive(forget, &world.state()).unwrap();
    world.publish(&[], &[]);
    assert_eq!(next(&mut addresses, &world.state(), Part::Whole), None);
}

/// A policy is not taken away, nor given to the selected only, before the workloads are told.
#[test]
fn early_means_nothing_is_taken_away() {
    let world = World::new(&[], &[policy("gone", Scope::Namespace), policy("narrowed", Scope::Namespace)]);
    let mut policies = Subscription::new(Type::Authorization);
    policies.receive(subscribe(&["*"]), &world.state()).unwrap();
    let first = next(&mut policies, &world.state(), Part::Early).unwrap();
    assert_eq!(names(&first), ["a/gone", "a/narrowed"]);
    policies.receive(acknowledge(&first), &world.state()).unwrap();
    assert!(policies.is_sent(&world.state()));

    world
        .publish(&[], &[policy("narrowed", Scope::WorkloadSelector), policy("new", Scope::WorkloadSelector)]);
    let early = next(&mut policies, &world.state(), Part::Early).unwrap();
    assert_eq!((names(&early), early.removed_resources.len()), (vec!["a/new"], 0));
    assert!(policies.is_early_sent(&world.state()) && !policies.is_sent(&world.state()));
    policies.receive(acknowledge(&early), &world.state()).unwrap();
    assert_eq!(next(&mut policies, &world.state(), Part::Early), None);
    let late = next(&mut policies, &world.state(), Part::Whole).unwrap();
    assert_eq!(names(&late), ["a/narrowed"]);
    assert_eq!(late.removed_resources, ["a/gone"]);
}

#[test]
fn too_many_names_end_the_stream() {
    let world = World::new(&[], &[]);
    let mut addresses = Subscription::new(Type::Address);
    let names: Vec<String> = (0..=MAX_NAMES).map(|number| number.to_string()).collect();
    let request = DeltaDiscoveryRequest { resource_names_subscribe: names, ..Default::default() };
    assert_eq!(addresses.receive(request, &world.state()), Err(TooMany));
}
