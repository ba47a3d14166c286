//! The indexes of a snapshot against a model that keeps plain lists and looks through all of them,
//! after any history of puts and removals; and older snapshots never change.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use mesh::{NetworkAddress, Service, ServiceKey, Snapshot, Workload};
use proptest::prelude::*;

/// Every object with the number of its last put that changed it.
#[derive(Clone, Default)]
struct Model {
    workloads: BTreeMap<Arc<str>, (usize, Workload)>,
    services: BTreeMap<ServiceKey, (usize, Service)>,
    puts: usize,
}

impl Model {
    fn put_workload(&mut self, workload: Workload) {
        if self.workloads.get(&workload.uid).is_none_or(|(_, held)| *held != workload) {
            self.puts += 1;
            self.workloads.insert(workload.uid.clone(), (self.puts, workload));
        }
    }

    fn put_service(&mut self, service: Service) {
        if self.services.get(&service.key).is_none_or(|(_, held)| *held != service) {
            self.puts += 1;
            self.services.insert(service.key.clone(), (self.puts, service));
        }
    }

    fn workload_at(&self, network: &str, address: IpAddr) -> Option<&Workload> {
        let claims = |w: &&(usize, Workload)| *w.1.network == *network && w.1.addresses.contains(&address);
        self.workloads.values().filter(claims).max_by_key(|w| (w.1.uid.contains("//Pod/"), w.0)).map(|w| &w.1)
    }

    fn service_at(&self, network: &str, address: IpAddr) -> Option<&Service> {
        let at = NetworkAddress { network: network.into(), address };
        self.services
            .values()
            .filter(|s| s.1.addresses.contains(&at))
            .max_by_key(|s| (s.1.canonical, s.0))
            .map(|s| &s.1)
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<&Workload> {
        let named = self.workloads.values().filter(|w| *w.1.namespace == *namespace && *w.1.name == *name);
        named.max_by_key(|w| (w.1.uid.contains("//Pod/"), &*w.1.cluster_id == "home", w.0)).map(|w| &w.1)
    }

    fn endpoints(&self, key: &ServiceKey) -> Vec<&Workload> {
        let all = self.workloads.values().map(|w| &w.1).filter(|w| w.services.contains_key(key));
        all.collect()
    }
}

#[derive(Debug, Clone)]
enum Op {
    PutWorkload(Box<Workload>),
    RemoveWorkload(Arc<str>),
    PutService(Box<Service>),
    RemoveService(ServiceKey),
}

const NETWORKS: [&str; 2] = ["", "east"];

fn one_of(choices: &[&str]) -> impl Strategy<Value = Arc<str>> + use<> {
    prop::sample::select(choices.iter().map(|&choice| Arc::from(choice)).collect::<Vec<Arc<str>>>())
}

fn address() -> impl Strategy<Value = IpAddr> {
    let all = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"];
    prop::sample::select(all.map(|address| address.parse::<IpAddr>().unwrap()).to_vec())
}

fn service_key() -> impl Strategy<Value = ServiceKey> {
    (one_of(&["ns"]), one_of(&["s1", "s2", "s3"]))
        .prop_map(|(namespace, hostname)| ServiceKey { namespace, hostname })
}

fn uid() -> impl Strategy<Value = Arc<str>> {
    let ids = [
        "home//Pod/ns/p1",
        "far//Pod/ns/p1",
        "home/x/WorkloadEntry/ns/p1",
        "home//Pod/ns/p2",
        "home//Pod/ns/p3",
    ];
    one_of(&ids)
}

prop_compose! {
    fn workload()(
        uid in uid(),
        addresses in prop::collection::vec(address(), 0..3),
        network in one_of(&NETWORKS),
        node in one_of(&["", "n1", "n2"]),
        services in prop::collection::btree_set(service_key(), 0..3),
        healthy in any::<bool>(),
    ) -> Workload {
        let parts: Vec<&str> = uid.split('/').collect();
        let mut workload = Workload::named(uid.clone(), "ns", parts[4]);
        workload.cluster_id = parts[0].into();
        workload.addresses = addresses;
        workload.network = network;
        workload.node = node;
        workload.services = services.into_iter().map(|key| (key, Vec::new())).collect();
        workload.healthy = healthy;
        workload
    }
}

prop_compose! {
    fn service()(
        key in service_key(),
        addresses in prop::collection::vec((one_of(&NETWORKS), address()), 0..3),
        allow_unhealthy in any::<bool>(),
        canonical in any::<bool>(),
    ) -> Service {
        let address = |(network, address)| NetworkAddress { network, address };
        Service {
            name: key.hostname.clone(),
            key,
            addresses: addresses.into_iter().map(address).collect(),
            ports: Vec::new(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            allow_unhealthy,
            node_local: false,
            families: mesh::Families::Any,
            passthrough: false,
            canonical,
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => workload().prop_map(|w| Op::PutWorkload(Box::new(w))),
        2 => uid().prop_map(Op::RemoveWorkload),
        3 => service().prop_map(|s| Op::PutService(Box::new(s))),
        1 => service_key().prop_map(Op::RemoveService),
    ]
}

fn check(snapshot: &Snapshot, model: &Model) -> Result<(), TestCaseError> {
    prop_assert_eq!(snapshot.workloads().count(), model.workloads.len());
    prop_assert_eq!(snapshot.services().count(), model.services.len());
    for (uid, (_, workload)) in &model.workloads {
        prop_assert_eq!(snapshot.workload(uid).map(|held| &**held), Some(workload));
    }
    for network in NETWORKS {
        for address in
            ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"].map(|a| a.parse::<IpAddr>().unwrap())
        {
            prop_assert_eq!(
                snapshot.workload_at(network, address).map(|w| &**w),
                model.workload_at(network, address)
            );
            prop_assert_eq!(
                snapshot.service_at(network, address).map(|s| &**s),
                model.service_at(network, address)
            );
            if let IpAddr::V4(v4) = address {
                let mapped = IpAddr::V6(v4.to_ipv6_mapped());
                prop_assert_eq!(
                    snapshot.workload_at(network, mapped),
                    snapshot.workload_at(network, address)
                );
                prop_assert_eq!(snapshot.service_at(network, mapped), snapshot.service_at(network, address));
            }
        }
    }
    for name in ["p1", "p2", "p3", "p4"] {
        prop_assert_eq!(snapshot.pod("ns", name).map(|w| &**w), model.pod("ns", name));
    }
    for hostname in ["s1", "s2", "s3"] {
        let key = ServiceKey { namespace: "ns".into(), hostname: hostname.into() };
        prop_assert_eq!(snapshot.service(&key).map(|s| &**s), model.services.get(&key).map(|s| &s.1));
        let mut endpoints: Vec<&Workload> = snapshot.endpoints(&key).map(|w| &**w).collect();
        endpoints.sort_by_key(|w| w.uid.clone());
        prop_assert_eq!(endpoints, model.endpoints(&key));
    }
    Ok(())
}

fn apply(op: Op, editor: &mut mesh::Editor, model: &mut Model) {
    match op {
        Op::PutWorkload(workload) => {
            editor.put_workload((*workload).clone());
            model.put_workload(*workload);
        }
        Op::RemoveWorkload(uid) => {
            editor.remove_workload(&uid);
            model.workloads.remove(&uid);
        }
        Op::PutService(service) => {
            editor.put_service((*service).clone());
            model.put_service(*service);
        }
        Op::RemoveService(key) => {
            editor.remove_service(&key);
            model.services.remove(&key);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_index_is_right_after_any_history(ops in prop::collection::vec(op(), 0..40)) {
        let mut editor = Snapshot::default().edit();
        editor.set_cluster("home");
        let (mut snapshot, mut model) = (editor.finish(), Model::default());
        let mut halfway = None;
        let half = ops.len() / 2;
        for (number, op) in ops.into_iter().enumerate() {
            let mut editor = snapshot.edit();
            apply(op, &mut editor, &mut model);
            snapshot = editor.finish();
            if number == half {
                halfway = Some((snapshot.clone(), model.clone()));
            }
        }
        check(&snapshot, &model)?;
        if let Some((snapshot, model)) = halfway {
            check(&snapshot, &model)?;
        }
    }
}

#[test]
fn an_address_given_again_is_the_new_holders_and_the_old_ones_removal_changes_nothing() {
    let pod = |name: &str| {
        let mut pod = Workload::named(format!("c//Pod/ns/{name}"), "ns", name);
        pod.addresses = vec!["10.0.0.1".parse().unwrap()];
        pod
    };
    let holder = |snapshot: &Snapshot| {
        snapshot.workload_at("", "10.0.0.1".parse().unwrap()).map(|workload| workload.name.to_string())
    };
    let mut editor = Snapshot::default().edit();
    editor.put_workload(pod("old"));
    editor.put_workload(pod("new"));
    let both = editor.finish();
    assert_eq!(holder(&both).as_deref(), Some("new"));

    let mut editor = both.edit();
    editor.put_workload(pod("old"));
    assert_eq!(holder(&editor.finish()).as_deref(), Some("new"), "a put without a change takes nothing");

    let mut editor = both.edit();
    editor.remove_workload("c//Pod/ns/old");
    let one = editor.finish();
    assert_eq!(holder(&one).as_deref(), Some("new"));

    let mut editor = both.edit();
    editor.remove_workload("c//Pod/ns/new");
    assert_eq!(holder(&editor.finish()).as_deref(), Some("old"), "the one who still claims it");

    let mut editor = one.edit();
    editor.remove_workload("c//Pod/ns/new");
    assert_eq!(holder(&editor.finish()), None);
}

#[test]
fn nothing_is_complete_before_both_first_answers() {
    let empty = Snapshot::default();
    let mut addresses = empty.edit();
    addresses.mark_addresses_complete();
    let mut policies = empty.edit();
    policies.mark_policies_complete();
    let (addresses, policies) = (addresses.finish(), policies.finish());
    assert_eq!([&empty, &addresses, &policies].map(Snapshot::is_complete), [false; 3]);
    let mut both = addresses.edit();
    both.mark_policies_complete();
    assert!(both.finish().is_complete());
}
