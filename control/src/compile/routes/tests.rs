//! Waypoints and routes, from manifests to what is published of them.

use mesh::{
    GatewayAddress, Tunnel, Workload,
    route::{PathMatch, Protocol, To},
};

use crate::{
    compile::{
        Compiled, Condition, Word,
        tests::{compiled, compiled_as_is},
    },
    manifest::Severity,
};

pub(crate) const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: a, serviceAccountName: web}
status: {podIP: 10.1.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web-v2}}
spec: {nodeName: a, serviceAccountName: web}
status: {podIP: 10.1.0.3}
---
apiVersion: v1
kind: Pod
metadata: {name: wp-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}}
spec: {nodeName: a, serviceAccountName: wp}
status: {podIP: 10.1.0.9}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}, {name: x, port: 81, appProtocol: grpc}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-v2, namespace: shop}
spec: {clusterIP: 10.96.0.2, selector: {app: web-v2}, ports: [{name: http2-web, port: 80}]}
";

pub(crate) const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: culvert-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
";

fn route(spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{spec}]}}\n"
    )
}

pub(crate) fn workload<'c>(compiled: &'c Compiled, name: &str) -> &'c Workload {
    compiled.workloads.values().find(|workload| *workload.name == *name).unwrap()
}

/// The waypoint of a service, and of a workload that is called by its address.
fn waypoints(compiled: &Compiled) -> (bool, bool) {
    let service = compiled.services.values().find(|service| *service.name == *"web").unwrap();
    (service.waypoint.is_some(), workload(compiled, "web-1").waypoint.is_some())
}

pub(crate) fn problems(compiled: &Compiled) -> Vec<String> {
    compiled.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn a_gateway_makes_its_pods_a_waypoint_that_is_found_by_its_name() {
    let compiled = compiled(&[SHOP, GATEWAY]);
    assert_eq!(problems(&compiled), Vec::<String>::new());
    let wp = workload(&compiled, "wp-1");
    assert!(wp.native_tunnel && wp.tunnel == Tunnel::Hbone && wp.waypoint.is_none());
    let service = compiled.services.values().find(|service| *service.name == *"wp").expect("made by control");
    assert!(wp.services.contains_key(&service.key) && service.addresses.is_empty());
    let local = compiled.nodes["a"].iter().find(|pod| *pod.name == *"wp-1").unwrap();
    assert!(local.waypoint && !local.enroll, "it has its certificate, and is not captured");
    let web = compiled.services.values().find(|service| *service.name == *"web").unwrap();
    let address = GatewayAddress::Host { service: service.key.clone(), hbone_port: 15008 };
    assert_eq!(web.waypoint.as_ref(), Some(&address));
    // A pod that bears the label of no Gateway is a pod.
    let without = super::super::tests::compiled(&[SHOP]);
    assert!(!workload(&without, "wp-1").native_tunnel);
    assert!(problems(&without)[0].contains("waypoint shop/wp does not exist"), "{:?}", problems(&without));
    assert_eq!(waypoints(&without), (true, false), "refused, and not led around");
}

#[test]
fn a_waypoint_is_for_what_its_label_says() {
    let labelled = |of: &str| {
        let gateway = GATEWAY
            .replace("namespace: shop", &format!("namespace: shop, labels: {{istio.io/waypoint-for: {of}}}"));
        // The namespace names it, so that it is for services and pods alike.
        let shop =
            SHOP.replace("dataplane-mode: ambient", "dataplane-mode: ambient, istio.io/use-waypoint: wp");
        waypoints(&compiled(&[&shop, &gateway]))
    };
    assert_eq!(labelled("service"), (true, false));
    assert_eq!(labelled("workload"), (false, true));
    assert_eq!(labelled("all"), (true, true));
    assert_eq!(labelled("none"), (false, false));
}

#[test]
fn a_route_is_told_with_its_backends_found() {
    let route = route("{matches: [{path: {value: /a}}], backendRefs: [{name: web-v2, port: 80, weight: 3}]}");
    let compiled = compiled(&[SHOP, GATEWAY, &route]);
    assert_eq!(problems(&compiled), Vec::<String>::new());
    let of = |name: &str| {
        compiled.routes.values().find(|routes| routes.service.hostname.starts_with(name)).unwrap()
    };
    let web = of("web.");
    assert_eq!((web.protocol(80), web.protocol(81)), (Protocol::Http1, Protocol::Http2));
    let rule = &web.routes()[0].rules[0];
    assert_eq!(rule.matches[0].path, PathMatch::Prefix("/a".into()));
    let To::Service { service, port } = &rule.backends[0].to else { panic!("{rule:?}") };
    assert_eq!((&*service.hostname, *port), ("web-v2.shop.svc.cluster.local", 80));
    assert_eq!(of("web-v2.").protocol(80), Protocol::Http2, "of a backend it matters what it speaks");
    assert_eq!(workload(&compiled, "web-2").routed_from, std::slice::from_ref(&web.service));
    assert!(workload(&compiled, "web-1").routed_from.is_empty());
}

#[test]
fn what_a_route_refers_to_in_vain_is_told_and_costs_its_share_only() {
    for (backend, says) in [
        ("{name: nobody, port: 80}", "backendRefs[0].name: there is no service shop/nobody"),
        ("{name: web-v2, port: 99}", "backendRefs[0].port: service shop/web-v2 has no port 99"),
        ("{name: web-v2}", "backendRefs[0].port: a Service as backend needs a port"),
        ("{name: web-v2, port: 80, namespace: other}", "backendRefs[0].namespace: no ReferenceGrant permits"),
        ("{kind: Bucket, group: x, name: b}", "backendRefs[0].kind: a backend is a Service"),
    ] {
        let route = route(&format!("{{backendRefs: [{backend}, {{name: web, port: 80}}]}}"));
        let compiled = compiled(&[SHOP, GATEWAY, &route]);
        let told = problems(&compiled);
        assert!(told.len() == 1 && told[0].contains(says), "{backend}: {told:?}");
        assert_eq!(compiled.problems[0].severity, Severity::Warning);
        let routes = compiled.routes.values().next().unwrap();
        let backends = &routes.routes()[0].rules[0].backends;
        assert!(matches!(backends[0].to, To::Nowhere(_)) && matches!(backends[1].to, To::Service { .. }));
    }
}

#[test]
fn a_filter_that_is_somebody_elses_leaves_no_way_through_its_rule() {
    let filter = "{type: ExtensionRef, extensionRef: {group: x, kind: Y, name: z}}";
    let route = route(&format!("{{filters: [{filter}], backendRefs: [{{name: web, port: 80}}]}}"));
    let compiled = compiled(&[SHOP, GATEWAY, &route]);
    let rule = &compiled.routes.values().next().unwrap().routes()[0].rules[0];
    assert!(rule.backends.len() == 1 && matches!(rule.backends[0].to, To::Nowhere(_)));
}

#[test]
fn who_requires_a_waypoint_excepts_what_all_of_them_except() {
    let required = |ports: &str| {
        format!(
            "labels: {{culvert.dev/waypoint: required}}, annotations: {{culvert.dev/waypoint-except-ports: '{ports}'}}"
        )
    };
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, ";
    let of = |namespace: String| {
        let shop = SHOP.replace("labels: {istio.io/use-waypoint: wp}", &required("9090, 15020"));
        let shop = shop.replace("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}", &namespace);
        compiled(&[&shop, GATEWAY])
    };
    let by_service = of(format!("{namespace}labels: {{}}}}"));
    let whose = |compiled: &Compiled, name: &str| {
        let required = workload(compiled, name).waypoint_required.as_ref().unwrap();
        required.of.iter().map(|service| service.hostname.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(whose(&by_service, "web-1"), ["web.shop.svc.cluster.local"], "its own");
    let ports = |compiled: &Compiled, name: &str| {
        workload(compiled, name).waypoint_required.as_ref().map(|required| required.except_ports.clone())
    };
    assert_eq!(ports(&by_service, "web-1"), Some(vec![9090, 15020]));
    assert_eq!(ports(&by_service, "web-2"), None);
    let by_both = of(format!("{namespace}{}}}", required("15020")));
    assert_eq!(ports(&by_both, "web-1"), Some(vec![15020]));
    assert_eq!(ports(&by_both, "web-2"), Some(vec![15020]));
    assert_eq!(whose(&by_both, "web-1"), ["web.shop.svc.cluster.local"]);
    assert_eq!(whose(&by_both, "web-2"), Vec::<String>::new(), "each of its");
    assert_eq!(ports(&by_both, "wp-1"), None, "the waypoint itself is called directly");
}

/// What is said of the only route at its parents: `TYPE=STATUS/REASON`, in their order.
pub(crate) fn standing(compiled: &Compiled) -> Vec<Vec<String>> {
    assert!(compiled.routes_status.len() <= 1, "{:?}", compiled.routes_status);
    let parents = compiled.routes_status.values().flatten();
    let words = |condition: &Condition| {
        assert!(!condition.message.is_empty(), "{condition:?}");
        format!("{}={}/{}", condition.kind, condition.status, condition.reason)
    };
    parents.map(|parent| parent.conditions.iter().map(words).collect()).collect()
}

pub(crate) const ACCEPTED: &str = "Accepted=true/Accepted";
pub(crate) const RESOLVED: &str = "ResolvedRefs=true/ResolvedRefs";

#[test]
fn a_route_is_told_how_it_stands_with_each_parent() {
    let entry = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: bank, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {hosts: [bank.example], addresses: [240.1.0.1], resolution: DNS, ports: [{number: 80, name: http}]}
";
    let service = "group: '', kind: Service";
    for (parent, said) in [
        (format!("{service}, name: web"), vec![ACCEPTED, RESOLVED]),
        (format!("{service}, name: web, port: 80"), vec![ACCEPTED, RESOLVED]),
        (format!("{service}, name: web, sectionName: http"), vec![ACCEPTED, RESOLVED]),
        ("group: networking.istio.io, kind: ServiceEntry, name: bank".to_owned(), vec![ACCEPTED, RESOLVED]),
        (format!("{service}, name: web, port: 99"), vec!["Accepted=false/NoMatchingParent", RESOLVED]),
        (format!("{service}, name: web, sectionName: no"), vec!["Accepted=false/NoMatchingParent", RESOLVED]),
        (
            format!("{service}, name: web, port: 80, sectionName: x"),
            vec!["Accepted=false/NoMatchingParent", RESOLVED],
        ),
        (format!("{service}, name: nobody"), vec!["Accepted=false/NoMatchingParent", RESOLVED]),
        // It has no waypoint.
        (format!("{service}, name: web-v2"), vec!["Accepted=false/NoMatchingParent", RESOLVED]),
        // A waypoint is ours, and serves whatever names it.
        ("name: wp".to_owned(), vec!["Accepted=false/InvalidKind", RESOLVED]),
        // Somebody else's.
        ("name: ingress".to_owned(), vec![]),
        ("group: x, kind: Y, name: z".to_owned(), vec![]),
    ] {
        let route = route("{backendRefs: [{name: web, port: 80}]}")
            .replace("{group: '', kind: Service, name: web}", &format!("{{{parent}}}"));
        let compiled = compiled(&[SHOP, GATEWAY, entry, &route]);
        let found = standing(&compiled);
        assert_eq!(found.concat(), said, "{parent}");
        assert_eq!(found.is_empty(), said.is_empty());
    }
}

#[test]
fn what_a_route_refers_to_in_vain_is_its_condition() {
    let mirror = "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: nobody, port: 80}}}], \
                  backendRefs: [{name: web, port: 80}]";
    let foreign = "filters: [{type: ExtensionRef, extensionRef: {group: x, kind: Y, name: z}}]";
    for (rules, said) in [
        ("{backendRefs: [{name: nobody, port: 80}]}", vec![ACCEPTED, "ResolvedRefs=false/BackendNotFound"]),
        ("{backendRefs: [{name: web}]}", vec![ACCEPTED, "ResolvedRefs=false/BackendNotFound"]),
        ("{backendRefs: [{kind: Bucket, name: b}]}", vec![ACCEPTED, "ResolvedRefs=false/InvalidKind"]),
        (
            "{backendRefs: [{name: web, port: 80, namespace: other}]}",
            vec![ACCEPTED, "ResolvedRefs=false/RefNotPermitted"],
        ),
        ("{backendRefs: [{name: db, port: 80}]}", vec![ACCEPTED, "ResolvedRefs=false/UnsupportedProtocol"]),
        (&format!("{{{mirror}}}"), vec![ACCEPTED, "ResolvedRefs=false/BackendNotFound"]),
        (
            &format!("{{{foreign}}}, {{backendRefs: [{{name: web, port: 80}}]}}"),
            vec![ACCEPTED, "ResolvedRefs=false/InvalidKind", "PartiallyInvalid=true/UnsupportedValue"],
        ),
        (
            &format!("{{{foreign}}}"),
            vec!["Accepted=false/UnsupportedValue", "ResolvedRefs=false/InvalidKind"],
        ),
        ("{filters: [{type: Magic}]}", vec!["Accepted=false/UnsupportedValue"]),
        (
            "{filters: [{type: URLRewrite, urlRewrite: {}}, {type: RequestRedirect, requestRedirect: {}}]}",
            vec!["Accepted=false/IncompatibleFilters"],
        ),
    ] {
        let db = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\n\
                  spec: {clusterIP: 10.96.0.7, ports: [{name: mysql, port: 80}]}\n";
        let compiled = compiled_as_is(&[SHOP, GATEWAY, db, &route(rules)], &|_, _| Word::None);
        assert_eq!(standing(&compiled).concat(), said, "{rules}");
    }
}

#[test]
fn of_routes_of_several_kinds_for_one_port_those_of_calls_are_followed() {
    let http = route("{backendRefs: [{name: web, port: 80}]}");
    let calls = |port: &str| {
        http.replace("HTTPRoute", "GRPCRoute")
            .replace("metadata: {name: web,", "metadata: {name: calls,")
            .replace("name: web}], rules", &format!("name: web{port}}}], rules"))
    };
    let accepted = |texts: &[&str]| -> Vec<(String, String)> {
        let compiled = compiled(texts);
        let statuses = compiled.routes_status.iter();
        statuses
            .map(|(key, parents)| (key.name.to_string(), parents[0].conditions[0].reason.to_owned()))
            .collect()
    };
    let pair = |name: &str, reason: &str| (name.to_owned(), reason.to_owned());
    assert_eq!(
        accepted(&[SHOP, GATEWAY, &http, &calls("")]),
        [pair("web", "Conflicted"), pair("calls", "Accepted")]
    );
    assert_eq!(
        accepted(&[SHOP, GATEWAY, &http, &calls(", port: 81")]),
        [pair("web", "Accepted"), pair("calls", "Accepted")],
        "port 80 is left"
    );
}

pub(crate) const TILL: &str = "
apiVersion: v1
kind: Pod
metadata: {name: till-1, namespace: till, labels: {app: till}}
spec: {nodeName: a, serviceAccountName: till}
status: {podIP: 10.1.0.4}
---
apiVersion: v1
kind: Service
metadata: {name: till, namespace: till}
spec: {clusterIP: 10.96.0.4, selector: {app: till}, ports: [{name: http, port: 80}]}
";

/// A route of the namespace `till` for the service `shop/web`.
fn of_consumer(backend: &str) -> String {
    route(&format!("{{backendRefs: [{backend}]}}"))
        .replacen("namespace: shop", "namespace: till", 1)
        .replace("name: web}], rules", "name: web, namespace: shop}], rules")
}

#[test]
fn a_route_of_a_consumer_is_told_to_the_producers_waypoint_for_his_callers_only() {
    let compiled = compiled(&[SHOP, GATEWAY, TILL, &of_consumer("{name: till, port: 80}")]);
    assert_eq!(problems(&compiled), Vec::<String>::new());
    assert_eq!(standing(&compiled).concat(), [ACCEPTED, RESOLVED]);
    let web =
        compiled.routes.values().find(|routes| routes.service.hostname.starts_with("web.shop")).unwrap();
    let [route] = web.routes() else { panic!("{web:?}") };
    assert_eq!((route.for_namespace.as_deref(), &*route.key.namespace), (Some("till"), "till"));
    assert_eq!(workload(&compiled, "till-1").routed_from, std::slice::from_ref(&web.service));
}

#[test]
fn whoever_is_referred_to_from_another_namespace_has_to_permit_it() {
    let grant = |from: &str, kind: &str, name: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: shop}}\n\
             spec: {{from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {from}}}], \
             to: [{{group: '', kind: Service, name: {name}}}]}}\n"
        )
    };
    let to = of_consumer("{name: web-v2, namespace: shop, port: 80}");
    let refused = "ResolvedRefs=false/RefNotPermitted";
    for (grant, said) in [
        (grant("till", "HTTPRoute", "web-v2"), RESOLVED),
        (grant("till", "HTTPRoute", "''"), RESOLVED),
        (grant("till", "HTTPRoute", "web"), refused),
        (grant("till", "GRPCRoute", "web-v2"), refused),
        (grant("other", "HTTPRoute", "web-v2"), refused),
        // One of another namespace says nothing.
        (grant("till", "HTTPRoute", "web-v2").replace("namespace: shop}\n", "namespace: till}\n"), refused),
    ] {
        let compiled = compiled(&[SHOP, GATEWAY, TILL, &to, &grant]);
        assert_eq!(standing(&compiled).concat(), [ACCEPTED, said], "{grant}");
        let web = compiled.routes.values().find(|routes| routes.service.hostname.starts_with("web.shop"));
        let to = &web.unwrap().routes()[0].rules[0].backends[0].to;
        assert_eq!(matches!(to, To::Service { .. }), said == RESOLVED, "{to:?}");
    }
    // To go on to what was called nobody has to permit.
    let on = compiled(&[SHOP, GATEWAY, TILL, &of_consumer("{name: web, namespace: shop, port: 80}")]);
    assert_eq!(standing(&on).concat(), [ACCEPTED, RESOLVED]);
    // What is not there is not told to who may not refer to it.
    let nobody = compiled(&[SHOP, GATEWAY, TILL, &of_consumer("{name: nobody, namespace: shop, port: 80}")]);
    assert_eq!(standing(&nobody).concat(), [ACCEPTED, refused]);
}

#[test]
fn a_service_that_happens_to_be_called_as_a_gateway_keeps_its_own_waypoint() {
    let another = GATEWAY.replace("name: wp", "name: web");
    assert!(waypoints(&compiled(&[SHOP, GATEWAY, &another])).0, "it is led around its waypoint");
    let own = "apiVersion: v1\nkind: Service\nmetadata: {name: wp, namespace: shop, labels: {istio.io/use-waypoint: wp}}\n\
               spec: {clusterIP: 10.96.0.9, selector: {gateway.networking.k8s.io/gateway-name: wp}, ports: [{port: 15008}]}\n";
    let compiled = compiled(&[SHOP, GATEWAY, own]);
    let own = compiled.services.values().find(|service| *service.name == *"wp").unwrap();
    assert_eq!(own.waypoint, None);
    assert!(workload(&compiled, "wp-1").services.contains_key(&own.key));
}

#[test]
fn a_label_without_the_account_makes_no_waypoint() {
    let labels = "{gateway.networking.k8s.io/gateway-name: wp}";
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: thief, namespace: shop, labels: {labels}}}\n\
         spec: {{nodeName: a, serviceAccountName: web}}\nstatus: {{podIP: 10.1.0.8}}\n"
    );
    let own = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: wp, namespace: shop}}\n\
         spec: {{clusterIP: 10.96.0.9, selector: {labels}, ports: [{{port: 15008}}]}}\n"
    );
    for texts in [vec![SHOP, GATEWAY, &pod], vec![SHOP, GATEWAY, &pod, &own]] {
        let compiled = compiled(&texts);
        let (waypoint, thief) = (workload(&compiled, "wp-1"), workload(&compiled, "thief"));
        assert!(waypoint.native_tunnel && !thief.native_tunnel);
        assert_eq!(
            (waypoint.services.len(), thief.services.len()),
            (1, 0),
            "nobody is led to it, and it vouches for nobody"
        );
        let local = compiled.nodes.values().flatten().find(|pod| *pod.name == *"thief").unwrap();
        assert!(!local.waypoint && local.enroll);
    }
}
