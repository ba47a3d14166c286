//! Policies for requests, and what they are found to be for.

use std::collections::BTreeSet;

use crate::{
    compile::{Compiled, Options, Word, compile, tests::compiled},
    objects::Objects,
};

pub(crate) const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: culvert-waypoint}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: ingress, namespace: shop}
spec: {gatewayClassName: another}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: bare, namespace: shop}
spec: {clusterIP: 10.96.0.2, selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: bank, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {hosts: [bank.example], addresses: [240.1.0.1], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}
";

/// Another namespace's service, behind the waypoint of `shop`.
pub(crate) const FAR: &str = "
apiVersion: v1
kind: Service
metadata:
  name: far
  namespace: elsewhere
  labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop}
spec: {clusterIP: 10.96.0.3, selector: {app: far}, ports: [{name: http, port: 80}]}
";

fn policy(namespace: &str, target: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\n\
         spec: {{targetRefs: [{target}], rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}]}}\n"
    )
}

fn judged(compiled: &Compiled) -> Vec<&str> {
    let with = compiled.routes.values().filter(|routes| !routes.policies.all().is_empty());
    with.map(|routes| &*routes.service.hostname).collect()
}

pub(crate) const WEB: &str = "web.shop.svc.cluster.local";
pub(crate) const WAYPOINT: &str = "wp.shop.svc.cluster.local";
const EVERYWHERE: [&str; 4] = ["far.elsewhere.svc.cluster.local", "bank.example", WEB, WAYPOINT];

#[test]
fn a_policy_is_for_what_its_targets_name() {
    let gateway = "group: gateway.networking.k8s.io, kind: Gateway";
    let class = "group: gateway.networking.k8s.io, kind: GatewayClass";
    for (namespace, target, wanted, told) in [
        ("shop", "{kind: Service, name: web}".to_owned(), vec![WEB], ""),
        (
            "shop",
            "{group: networking.istio.io, kind: ServiceEntry, name: bank}".to_owned(),
            vec!["bank.example"],
            "",
        ),
        ("shop", "{kind: Service, name: bare}".to_owned(), vec![], "NOBODY judges by this policy"),
        ("shop", "{kind: Service, name: no}".to_owned(), vec![], "there is no service shop/no"),
        ("elsewhere", "{kind: Service, name: web}".to_owned(), vec![], "there is no service elsewhere/web"),
        ("shop", format!("{{{gateway}, name: wp}}"), EVERYWHERE.to_vec(), ""),
        ("shop", format!("{{{gateway}, name: no}}"), vec![], "there is no Gateway shop/no"),
        ("shop", format!("{{{gateway}, name: ingress}}"), vec![], "is no waypoint"),
        ("istio-system", format!("{{{class}, name: culvert-waypoint}}"), EVERYWHERE.to_vec(), ""),
        ("istio-system", format!("{{{class}, name: another}}"), vec![], ""),
        ("shop", format!("{{{class}, name: culvert-waypoint}}"), vec![], "of the root namespace"),
    ] {
        let compiled = compiled(&[SHOP, FAR, &policy(namespace, &target)]);
        assert_eq!(judged(&compiled), wanted, "{namespace} {target}");
        assert!(compiled.policies.is_empty(), "connections are not judged by it");
        let about: Vec<String> = compiled.problems.iter().map(ToString::to_string).collect();
        let about: Vec<&String> = about.iter().filter(|problem| problem.contains("targetRefs")).collect();
        assert_eq!(about.is_empty(), told.is_empty(), "{about:?}");
        assert!(about.iter().all(|problem| problem.contains(told)), "{about:?}");
    }
}

#[test]
fn whoever_is_behind_a_waypoint_of_another_namespace_is_judged_by_its_policies_too() {
    let mut objects = Objects::default();
    let gateway = "{group: gateway.networking.k8s.io, kind: Gateway, name: wp}";
    for (file, text) in [("shop", SHOP), ("far", FAR), ("policy", &policy("shop", gateway))] {
        let path = std::path::Path::new(file);
        let parsed = crate::manifest::parse(path, text);
        assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
        objects.apply(path, parsed);
    }
    let of = |objects: &Objects, namespace: &str| -> Vec<String> {
        let namespaces = BTreeSet::from([namespace.into()]);
        let view = objects.view_of(&namespaces, "istio-system");
        let compiled = compile(&view, &|_, _| Word::None, &Options::default());
        assert!(compiled.problems.iter().all(|problem| !problem.to_string().contains("targetRefs")));
        judged(&compiled).into_iter().map(ToOwned::to_owned).collect()
    };
    assert_eq!(of(&objects, "elsewhere"), ["far.elsewhere.svc.cluster.local"], "and no other's resources");
    assert_eq!(of(&objects, "shop"), ["bank.example", WEB, WAYPOINT]);
    // All namespaces are looked at again when it goes.
    objects.take_changes();
    objects.apply(std::path::Path::new("policy"), crate::manifest::Parsed::default());
    assert!(objects.take_changes().far);
    assert_eq!(of(&objects, "elsewhere"), Vec::<String>::new());
}
