//! Which names of the mesh a pod is told, and as what.

use std::{collections::BTreeMap, net::IpAddr};

use mesh::{Asker, Families, Family, NetworkAddress, Service, ServiceKey, Snapshot, Workload};

fn service(namespace: &str, hostname: &str, addresses: &[&str]) -> Service {
    let key = ServiceKey { namespace: namespace.into(), hostname: hostname.into() };
    Service {
        addresses: addresses
            .iter()
            .map(|text| NetworkAddress { network: "".into(), address: text.parse().unwrap() })
            .collect(),
        canonical: false,
        ..Service::named(key, "a-name")
    }
}

fn world() -> Snapshot {
    let mut edit = Snapshot::default().edit();
    edit.put_service(service("shop", "cart.shop.svc.cluster.local", &["10.96.0.1", "fd00::1"]));
    edit.put_service(service("shop", "old.shop.svc.cluster.local", &["10.96.0.2"]));
    edit.put_service(service("shop", "db.shop.svc.cluster.local", &[]));
    edit.put_service(service("shop", "empty.shop.svc.cluster.local", &[]));
    edit.put_service(service("bank", "api.example.com", &["240.240.0.2"]));
    edit.put_service(service("aaa", "api.example.com", &["240.240.0.3"]));
    edit.put_service(service("zoo", "api.example.com", &["240.240.0.4"]));
    edit.put_service(service("bank", "*.example.org", &["240.240.0.5"]));
    edit.put_service(service("bank", "*.deep.example.org", &["240.240.0.6"]));
    edit.put_service(service("bank", "one.deep.example.org", &["240.240.0.7"]));
    edit.put_service(service("bank", "Upper.Example.net", &["240.240.0.8"]));
    edit.put_service(service("db", "cart.db.svc.cluster.local", &["10.96.0.9"]));
    edit.put_service(service("bank", "cart.shop.svc.cluster.local", &["240.240.0.9"]));
    for (name, address, healthy) in
        [("db-0", "10.1.0.1", true), ("db-1", "10.1.0.2", true), ("db-2", "10.1.0.3", false)]
    {
        let mut workload = Workload::named(format!("c//Pod/shop/{name}"), "shop", name);
        workload.addresses =
            vec![address.parse().unwrap(), format!("fd01::{}", &address[7..]).parse().unwrap()];
        workload.healthy = healthy;
        let key = ServiceKey { namespace: "shop".into(), hostname: "db.shop.svc.cluster.local".into() };
        workload.services = BTreeMap::from([(key, Vec::new())]);
        edit.put_workload(workload);
    }
    edit.finish()
}

/// What `namespace` is told: the alias, and the addresses in order.
fn told(snapshot: &Snapshot, namespace: &str, name: &str) -> Option<(Option<String>, Vec<String>)> {
    let asker = Asker { namespace, network: "", cluster_domain: "cluster.local" };
    let named = snapshot.resolve(&asker, name)?;
    let mut addresses: Vec<IpAddr> = named.addresses.clone();
    addresses.sort_unstable();
    Some((named.alias, addresses.iter().map(ToString::to_string).collect()))
}

#[test]
fn names_are_found_as_a_pod_may_ask_for_them() {
    let snapshot = world();
    let table: &[(&str, &str, Option<&str>, &[&str])] = &[
        ("shop", "cart.shop.svc.cluster.local", None, &["10.96.0.1", "fd00::1"]),
        ("elsewhere", "cart.shop.svc.cluster.local", None, &["10.96.0.1", "fd00::1"]),
        ("shop", "cart", None, &["10.96.0.1", "fd00::1"]),
        ("elsewhere", "cart.shop", None, &["10.96.0.1", "fd00::1"]),
        ("elsewhere", "cart.shop.svc", None, &["10.96.0.1", "fd00::1"]),
        // By the search list: `cart.shop` of a pod in `elsewhere`.
        ("elsewhere", "cart.shop.elsewhere.svc.cluster.local", Some("cart.shop"), &["10.96.0.1", "fd00::1"]),
        // A headless service: who is healthy.
        ("shop", "db.shop.svc.cluster.local", None, &["10.1.0.1", "10.1.0.2", "fd01::1", "fd01::2"]),
        // Hosts of ServiceEntries: one's own first, then the first by namespace.
        ("bank", "api.example.com", None, &["240.240.0.2"]),
        ("zoo", "api.example.com", None, &["240.240.0.4"]),
        ("shop", "api.example.com", None, &["240.240.0.3"]),
        ("zoo", "api.example.com.zoo.svc.cluster.local", Some("api.example.com"), &["240.240.0.4"]),
        ("zoo", "api.example.com.svc.cluster.local", Some("api.example.com"), &["240.240.0.4"]),
        ("zoo", "api.example.com.cluster.local", Some("api.example.com"), &["240.240.0.4"]),
        ("shop", "upper.example.net", None, &["240.240.0.8"]),
        // Wildcards, the longest first, and a name of its own before any.
        ("shop", "x.example.org", None, &["240.240.0.5"]),
        ("shop", "x.y.example.org", None, &["240.240.0.5"]),
        ("shop", "x.deep.example.org", None, &["240.240.0.6"]),
        ("shop", "one.deep.example.org", None, &["240.240.0.7"]),
        ("shop", "x.example.org.shop.svc.cluster.local", Some("x.example.org"), &["240.240.0.5"]),
        // Of one name in two namespaces, one's own, else the Kubernetes service.
        ("bank", "cart.shop.svc.cluster.local", None, &["240.240.0.9"]),
    ];
    for (namespace, name, alias, addresses) in table {
        let (got_alias, got) = told(&snapshot, namespace, name)
            .unwrap_or_else(|| panic!("{namespace} is told nothing of {name}"));
        assert_eq!(got_alias.as_deref(), *alias, "{namespace}: {name}");
        assert_eq!(got, *addresses, "{namespace}: {name}");
    }
}

#[test]
fn what_the_mesh_does_not_know_is_left_to_the_pods_resolver() {
    let snapshot = world();
    for name in [
        "",
        "com",
        "example.org",
        "nobody.shop.svc.cluster.local",
        "db-0.db.shop.svc.cluster.local",
        "empty.shop.svc.cluster.local",
        "cart.shop.svc.other.domain",
        "api.example.com.other.svc.cluster.local",
        "cluster.local",
        "svc.cluster.local",
        ".cluster.local",
        "cart.bank",
        // Not service `cart` of the namespace `db`, but a pod of the service `db`.
        "cart.db.shop.svc.cluster.local",
        "*.example.com",
    ] {
        assert_eq!(told(&snapshot, "shop", name), None, "{name}");
    }
}

#[test]
fn a_family_that_a_name_has_not_is_an_empty_answer_and_no_unknown_name() {
    let snapshot = world();
    let asker = Asker { namespace: "shop", network: "", cluster_domain: "cluster.local" };
    let named = snapshot.resolve(&asker, "old.shop.svc.cluster.local").expect("known");
    assert_eq!(named.of(Family::V4).count(), 1);
    assert_eq!(named.of(Family::V6).count(), 0);
}

#[test]
fn addresses_of_another_network_are_not_told() {
    let snapshot = world();
    let asker = Asker { namespace: "shop", network: "far", cluster_domain: "cluster.local" };
    assert!(snapshot.resolve(&asker, "cart.shop.svc.cluster.local").is_none());
}

#[test]
fn a_headless_service_is_told_in_its_own_families() {
    let mut edit = world().edit();
    edit.put_service(Service { families: Families::V4, ..service("shop", "db.shop.svc.cluster.local", &[]) });
    let (_, addresses) = told(&edit.finish(), "shop", "db.shop.svc.cluster.local").expect("known");
    assert_eq!(addresses, ["10.1.0.1", "10.1.0.2"]);
}

#[test]
fn a_removed_service_is_forgotten_by_its_name() {
    let mut edit = world().edit();
    for namespace in ["aaa", "bank", "zoo"] {
        let hostname = "api.example.com".into();
        edit.remove_service(&ServiceKey { namespace: namespace.into(), hostname });
    }
    assert_eq!(told(&edit.finish(), "zoo", "api.example.com"), None);
}

/// Whoever may write a ServiceEntry somewhere could else answer for every name that every pod asks for: with their
/// search domains all of them are under the cluster's first.
#[test]
fn nobody_but_its_namespace_answers_for_a_name_of_the_clusters_domain() {
    let mut edit = world().edit();
    for host in ["*.svc.cluster.local", "*.cluster.local", "*.local", "db-0.db.shop.svc.cluster.local"] {
        edit.put_service(service("thief", host, &["240.240.9.9"]));
    }
    edit.put_service(service("thief", "headless.shop.svc.cluster.local", &["240.240.9.9"]));
    edit.put_service(service("shop", "extra.shop.svc.cluster.local", &["240.240.1.1"]));
    let snapshot = edit.finish();
    for name in [
        "www.google.com.shop.svc.cluster.local",
        "google.com.cluster.local",
        "db-0.db.shop.svc.cluster.local",
        "headless.shop.svc.cluster.local",
        "empty.shop.svc.cluster.local",
        "nobody.shop.svc.cluster.local",
    ] {
        for namespace in ["shop", "other"] {
            assert_eq!(told(&snapshot, namespace, name), None, "{name} in {namespace}");
        }
    }
    assert_eq!(told(&snapshot, "thief", "google.com.cluster.local"), None);
    let extra = told(&snapshot, "bank", "extra.shop.svc.cluster.local").expect("its own namespace's");
    assert_eq!(extra.1, ["240.240.1.1"]);
    let wild =
        told(&snapshot, "shop", "x.example.org.shop.svc.cluster.local").expect("a wildcard of the world's");
    assert_eq!(wild.0.as_deref(), Some("x.example.org"));
}
