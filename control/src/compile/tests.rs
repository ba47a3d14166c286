//! What compiling makes of manifests.

use std::path::Path;

use mesh::{Attempt, Snapshot, Tunnel, Verdict};

use super::*;
use crate::{manifest::parse, objects::Objects};

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Node
metadata: {name: a, labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-1}}
---
apiVersion: v1
kind: Pod
metadata:
  name: web-5d9-x1
  namespace: shop
  uid: u-web
  labels: {app: web, version: v2, pod-template-hash: 5d9}
  annotations: {culvert.dev/netns: /run/netns/web}
  ownerReferences: [{kind: ReplicaSet, name: web-5d9, controller: true}]
spec:
  nodeName: a
  serviceAccountName: web
  containers: [{ports: [{name: http, containerPort: 8080}]}]
status: {podIP: 10.1.0.2, podIPs: [{ip: 10.1.0.2}, {ip: \"fd00::2\"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, uid: u-client, labels: {app: client}}
spec: {nodeName: a, serviceAccountName: client}
status: {podIP: 10.1.0.3}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}, {name: dns, port: 53, protocol: UDP}]
";

pub(super) fn compiled(texts: &[&str]) -> Compiled {
    compiled_with(texts, &|_, _| Word::Fresh { measured: true })
}

fn compiled_with(texts: &[&str], word: &dyn Fn(&str, &str) -> Word) -> Compiled {
    for (index, text) in texts.iter().enumerate() {
        assert_eq!(parse(Path::new("a.yaml"), text).problems, [], "file {index}");
    }
    compiled_as_is(texts, word)
}

/// What is made of texts that may be wrong.
pub(super) fn compiled_as_is(texts: &[&str], word: &dyn Fn(&str, &str) -> Word) -> Compiled {
    let mut objects = Objects::default();
    for (index, text) in texts.iter().enumerate() {
        let name = format!("{index}.yaml");
        objects.apply(Path::new(&name), parse(Path::new(&name), text));
    }
    compile(&objects.view(), word, &Options::default())
}

fn web(compiled: &Compiled) -> &Workload {
    &compiled.workloads["Kubernetes//Pod/shop/web-5d9-x1"]
}

fn admits(compiled: &Compiled, source: Option<&mesh::Identity>, port: u16) -> bool {
    let mut editor = Snapshot::default().edit();
    compiled.workloads.values().cloned().for_each(|workload| editor.put_workload(workload));
    compiled.policies.values().cloned().for_each(|policy| editor.put_policy(policy));
    editor.mark_addresses_complete();
    editor.mark_policies_complete();
    let attempt = Attempt {
        source,
        source_ip: "10.1.0.3".parse().unwrap(),
        destination: web(compiled),
        destination_ip: "10.1.0.2".parse().unwrap(),
        destination_port: port,
        through: None,
    };
    matches!(editor.finish().admit(&attempt).verdict, Verdict::Allow(_))
}

#[test]
fn a_pod_becomes_a_workload_and_an_endpoint() {
    let compiled = compiled(&[SHOP]);
    let web = web(&compiled);
    assert_eq!((&*web.workload_name, web.workload_kind), ("web", mesh::WorkloadKind::Deployment));
    assert_eq!((&*web.canonical_name, &*web.canonical_revision), ("web", "v2"));
    assert_eq!(web.identity().to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!((&*web.locality.region, &*web.locality.zone), ("eu", "eu-1"));
    assert_eq!(web.addresses.len(), 2);
    let service = compiled.services.values().next().expect("one service");
    assert_eq!(service.key.to_string(), "shop/web.shop.svc.cluster.local");
    assert_eq!(service.ports.len(), 1, "UDP is not carried");
    assert_eq!(web.services[&service.key], [mesh::PortMapping { service_port: 80, target_port: 8080 }]);
    assert_eq!(compiled.nodes["a"].len(), 2);
    assert_eq!(compiled.nodes["a"][1].netns(), "/run/netns/web");
    assert_eq!(&*compiled.nodes["a"][0].uid.text(), "u-client");
}

#[test]
fn hbone_is_advertised_for_what_was_measured_only() {
    let word = |node: &str, uid: &str| Word::Fresh { measured: node == "a" && uid == "u-client" };
    let compiled = compiled_with(&[SHOP], &word);
    assert_eq!(web(&compiled).tunnel, Tunnel::None);
    assert_eq!(compiled.workloads["Kubernetes//Pod/shop/client"].tunnel, Tunnel::Hbone);
    assert!(compiled.nodes["a"].iter().all(|pod| pod.enroll), "both are to be enrolled");
}

#[test]
fn a_pods_own_label_wins() {
    let out = SHOP.replace(
        "uid: u-client, labels: {app: client",
        "uid: u-client, labels: {istio.io/dataplane-mode: none",
    );
    let compiled = compiled(&[&out]);
    let enrolled: Vec<bool> = compiled.nodes["a"].iter().map(|pod| pod.enroll).collect();
    assert_eq!(enrolled, [false, true]);
}

#[test]
fn a_pod_with_a_sidecar_is_not_taken_in_and_it_is_said() {
    let injected = SHOP.replace(
        "annotations: {culvert.dev/netns: /run/netns/web}",
        "annotations: {culvert.dev/netns: /run/netns/web, sidecar.istio.io/status: '{}'}",
    );
    let compiled = compiled(&[&injected]);
    let enrolled: Vec<bool> = compiled.nodes["a"].iter().map(|pod| pod.enroll).collect();
    assert_eq!(enrolled, [true, false]);
    assert!(compiled.problems.iter().any(|problem| problem.to_string().contains("sidecar")), "{compiled:?}");
}

#[test]
fn a_pod_with_a_kernel_of_its_own_is_not_taken_in_and_it_is_said() {
    for (class, taken) in [("kata-qemu", false), ("gvisor", false), ("nvidia", true)] {
        let with_class = format!("  serviceAccountName: web\n  runtimeClassName: {class}\n");
        let sandboxed = SHOP.replace("  serviceAccountName: web\n", &with_class);
        assert_ne!(sandboxed, SHOP);
        let compiled = compiled(&[&sandboxed]);
        let enrolled: Vec<bool> = compiled.nodes["a"].iter().map(|pod| pod.enroll).collect();
        assert_eq!(enrolled, [true, taken], "{class}");
        let said = compiled.problems.iter().any(|problem| problem.field == "spec.runtimeClassName");
        assert_eq!(said, !taken, "{class}");
    }
}

#[test]
fn a_label_that_means_nothing_is_told() {
    let compiled = compiled(&[&SHOP.replace("dataplane-mode: ambient", "dataplane-mode: ambiant")]);
    assert!(compiled.nodes["a"].iter().all(|pod| !pod.enroll));
    let told: Vec<String> = compiled.problems.iter().map(ToString::to_string).collect();
    assert!(told.iter().any(|told| told.contains("ambiant")), "{told:?}");
    assert_eq!(compiled.namespaces.get("shop"), Some(&false));
}

#[test]
fn slices_count_before_selectors() {
    let slice = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-abc, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 9090}]
endpoints:
- {addresses: [10.1.0.3], targetRef: {kind: Pod, name: client}}
- {addresses: [10.1.0.2], targetRef: {kind: Pod, name: web-5d9-x1}, conditions: {ready: false}}
- {addresses: [10.77.0.1]}
";
    let compiled = compiled(&[SHOP, slice]);
    assert!(web(&compiled).services.is_empty(), "not ready");
    let client = &compiled.workloads["Kubernetes//Pod/shop/client"];
    assert_eq!(client.services.values().next().unwrap()[0].target_port, 9090);
    let stranger = &compiled.workloads["Kubernetes/discovery.k8s.io/EndpointSlice/shop/web-abc/10.77.0.1"];
    assert_eq!(stranger.services.len(), 1);
}

#[test]
fn service_entries_reach_machines() {
    let entry = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: shop}
spec: {hosts: [db.example], addresses: [240.0.0.1], resolution: STATIC, ports: [{number: 5432, name: pg}],
  endpoints: [{address: 10.9.9.9, ports: {pg: 6000}}, {address: 10.1.0.2}]}
";
    let compiled = compiled(&[SHOP, entry]);
    let key = ServiceKey { namespace: "shop".into(), hostname: "db.example".into() };
    assert!(compiled.services.contains_key(&key));
    let machine = &compiled.workloads["Kubernetes/networking.istio.io/ServiceEntry/shop/db/0"];
    assert_eq!(machine.services[&key], [mesh::PortMapping { service_port: 5432, target_port: 6000 }]);
    assert!(web(&compiled).services.contains_key(&key), "an endpoint that is a pod is met as that pod");
}

/// The addresses of a host of the namespace `shop`, as text.
fn addresses_of(compiled: &Compiled, host: &str) -> Vec<String> {
    let key = ServiceKey { namespace: "shop".into(), hostname: host.into() };
    let service = compiled.services.get(&key);
    service.iter().flat_map(|service| &service.addresses).map(|at| at.address.to_string()).collect()
}

#[test]
fn hosts_without_addresses_have_automatic_ones() {
    let entry = |spec: &str, more: &str| {
        let text = format!(
            "\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: shop{more}}}\n\
             spec: {{hosts: [api.example.com, \"*.example.org\"], ports: [{{number: 80, name: http}}], {spec}}}\n"
        );
        compiled(&[SHOP, &text])
    };
    let given = ["240.240.119.233", "2001:2::f0f0:77e9"];
    let dns = entry("resolution: DNS", "");
    assert_eq!(addresses_of(&dns, "api.example.com"), given);
    assert!(addresses_of(&dns, "*.example.org").is_empty(), "a wildcard is many hosts");
    // With no endpoint the host itself is one, by its name.
    let uid = "Kubernetes/networking.istio.io/ServiceEntry/shop/e/api.example.com";
    assert_eq!(&*dns.workloads[uid].hostname, "api.example.com");

    let named = entry("resolution: DNS, endpoints: [{address: db.internal}]", "");
    let endpoint = &named.workloads["Kubernetes/networking.istio.io/ServiceEntry/shop/e/0"];
    assert_eq!((&*endpoint.hostname, endpoint.addresses.len()), ("db.internal", 0));
    assert!(!named.workloads.contains_key(uid));

    assert!(addresses_of(&entry("resolution: NONE", ""), "api.example.com").is_empty());
    let refused = ", labels: {networking.istio.io/enable-autoallocate-ip: \"false\"}";
    assert!(addresses_of(&entry("resolution: DNS", refused), "api.example.com").is_empty());
    let own = entry("resolution: NONE, addresses: [240.0.0.1]", "");
    assert_eq!(addresses_of(&own, "*.example.org"), ["240.0.0.1"]);
    assert!(own.services.values().any(|service| service.passthrough));
}

#[test]
fn an_address_that_another_control_plane_gave_comes_first() {
    let text = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e, namespace: shop}
spec: {hosts: [api.example.com], ports: [{number: 80, name: http}], resolution: DNS}
status: {addresses: [{host: api.example.com, value: 240.240.0.7}, {host: other.example, value: 240.240.0.8}]}
";
    assert_eq!(addresses_of(&compiled(&[SHOP, text]), "api.example.com"), ["240.240.0.7"]);
}

#[test]
fn who_is_to_see_a_host_is_said_not_to_be_heeded() {
    let warned = |text: &str, field: &str| {
        let compiled = compiled(&[SHOP, text]);
        let problems = compiled.problems.into_iter().filter(|problem| problem.field == field);
        problems.map(|problem| problem.reason).collect::<Vec<_>>()
    };
    let entry = |to: &str| {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api, namespace: shop}}\n\
             spec: {{hosts: [api.example.com], ports: [{{number: 80}}], resolution: DNS{to}}}\n"
        );
        warned(&text, "spec.exportTo")
    };
    assert!(entry(", exportTo: [\".\"]")[0].starts_with("not heeded"));
    assert_eq!(entry(", exportTo: [billing, other]").len(), 1);
    for everyone in ["", ", exportTo: []", ", exportTo: [\"*\"]", ", exportTo: [\".\", \"*\"]"] {
        assert!(entry(everyone).is_empty(), "{everyone}");
    }
    let service = |to: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: api, namespace: shop, annotations: \
             {{networking.istio.io/exportTo: \"{to}\"}}}}\nspec: {{clusterIP: 10.96.0.99, ports: [{{port: 80}}]}}\n"
        );
        warned(&text, "networking.istio.io/exportTo").len()
    };
    assert_eq!((service("."), service("., billing"), service(".,*"), service("*")), (1, 1, 0, 0));
}

#[test]
fn a_pod_may_say_whether_its_dns_is_answered() {
    let told = |word: &str| {
        let said = format!(
            "annotations: {{culvert.dev/netns: /run/netns/web, ambient.istio.io/dns-capture: \"{word}\"}}"
        );
        let compiled = compiled(&[&SHOP.replace("annotations: {culvert.dev/netns: /run/netns/web}", &said)]);
        let warned = compiled.problems.iter().any(|problem| problem.field == DNS_CAPTURE);
        let mut pods = compiled.nodes.values().flatten();
        let pod = pods.find(|pod| pod.netns() == "/run/netns/web").unwrap();
        (pod.answer_dns, warned)
    };
    assert_eq!(told("true"), (Some(true), false));
    assert_eq!(told("False"), (Some(false), false));
    assert_eq!(told("perhaps"), (None, true));
    assert!(compiled(&[SHOP]).nodes.values().flatten().all(|pod| pod.answer_dns.is_none()));
}

fn peer_authentication(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: \
         {namespace}}}\nspec: {spec}\n"
    )
}

#[test]
fn the_narrowest_peer_authentication_counts() {
    let caller = mesh::Identity::new("cluster.local", "shop", "client");
    let mesh_strict = peer_authentication("m", "istio-system", "{mtls: {mode: STRICT}}");
    let ns_permissive = peer_authentication("n", "shop", "{mtls: {mode: PERMISSIVE}}");
    let ns_unset = peer_authentication("n", "shop", "{mtls: {mode: UNSET}}");
    let ports =
        "{selector: {matchLabels: {app: web}}, portLevelMtls: {8080: {mode: STRICT}, 9: {mode: STRICT}}}";
    let own_ports = peer_authentication("w", "shop", ports);
    let own_open = peer_authentication(
        "w",
        "shop",
        "{selector: {matchLabels: {app: web}}, portLevelMtls: {8080: {mode: PERMISSIVE}}}",
    );
    for (texts, plain_8080, plain_9090) in [
        (vec![], true, true),
        (vec![&mesh_strict], false, false),
        (vec![&mesh_strict, &ns_permissive], true, true),
        (vec![&mesh_strict, &ns_unset], false, false),
        (vec![&own_ports], false, true),
        (vec![&mesh_strict, &own_open], true, false),
        (vec![&mesh_strict, &ns_permissive, &own_ports], false, true),
    ] {
        let mut all = vec![SHOP];
        all.extend(texts.iter().map(|text| text.as_str()));
        let compiled = compiled(&all);
        assert_eq!(admits(&compiled, None, 8080), plain_8080, "8080 with {texts:?}");
        assert_eq!(admits(&compiled, None, 9090), plain_9090, "9090 with {texts:?}");
        assert!(admits(&compiled, Some(&caller), 8080), "a proven caller with {texts:?}");
    }
}

#[test]
fn policies_land_in_their_scope() {
    let policy = |namespace: &str, selector: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: \
             {namespace}}}\nspec: {{{selector} action: DENY, rules: [{{to: [{{operation: {{ports: [\"8080\"]}}}}]}}]}}\n"
        )
    };
    for (namespace, selector, denies) in [
        ("shop", "", true),
        ("istio-system", "", true),
        ("other", "", false),
        ("shop", "selector: {matchLabels: {app: web}},", true),
        ("shop", "selector: {matchLabels: {app: db}},", false),
        ("istio-system", "selector: {matchLabels: {app: web}},", true),
        ("other", "selector: {matchLabels: {app: web}},", false),
    ] {
        let compiled = compiled(&[SHOP, &policy(namespace, selector)]);
        let caller = mesh::Identity::new("cluster.local", "shop", "client");
        assert_eq!(!admits(&compiled, Some(&caller), 8080), denies, "{namespace} {selector}");
        assert!(admits(&compiled, Some(&caller), 9090), "{namespace} {selector}");
    }
}

#[test]
fn a_waypoint_that_does_not_exist_is_not_led_around() {
    let labelled = SHOP.replace(
        "metadata: {name: web, namespace: shop}",
        "metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: w}}",
    );
    let compiled = compiled(&[&labelled]);
    assert!(compiled.services.values().all(|service| service.waypoint.is_some()));
    assert!(compiled.problems.iter().any(|problem| problem.reason.contains("waypoint")));
}

#[test]
fn compiling_twice_gives_the_same() {
    assert_eq!(compiled(&[SHOP]), compiled(&[SHOP]));
}

/// No port of the service at all: were it an endpoint without a mapping, the service's own would hold.
#[test]
fn a_pod_without_the_named_port_is_no_endpoint() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: bare, namespace: shop, labels: {app: web}}\n\
               status: {podIP: 10.0.3.1}\n";
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
                   spec: {clusterIP: 10.96.0.10, selector: {app: web}, ports: [{port: 80, targetPort: http}]}\n";
    let compiled = compiled(&[pod, service]);
    assert_eq!(compiled.workloads["Kubernetes//Pod/shop/bare"].services, BTreeMap::new());
    let numbered = service.replace("targetPort: http", "targetPort: 8080");
    let compiled = self::compiled(&[pod, &numbered]);
    assert_eq!(compiled.workloads["Kubernetes//Pod/shop/bare"].services.len(), 1);
}

#[test]
fn a_static_pod_is_named_to_its_node_as_the_node_knows_it() {
    let mirror = |hash: &str, owner: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: web-a, namespace: shop, uid: u-image, annotations: \
             {{kubernetes.io/config.mirror: {hash}}}, ownerReferences: [{{kind: Node, name: {owner}, controller: true}}]}}, \
             spec: {{nodeName: a}}, status: {{podIP: 10.1.0.9}}}}"
        )
    };
    let hash = "0123456789abcdef0123456789abcdef";
    let uuid = "6f1c8a6e-0000-4000-8000-000000000000";
    for (said, owner, known) in
        [(hash, "a", hash), ("u-web", "a", "u-image"), (uuid, "a", "u-image"), (hash, "b", "u-image")]
    {
        let compiled = compiled(&[SHOP, &mirror(said, owner)]);
        let pod = compiled.nodes["a"].iter().find(|pod| &*pod.name == "web-a").unwrap();
        assert_eq!((&*pod.uid.text(), &*pod.object_uid().text()), (known, "u-image"), "{said} of {owner}");
    }
}

#[test]
fn hosts_under_the_clusters_domain_are_warned_of() {
    let entry = |host: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: e, namespace: bank}}, spec: \
             {{hosts: [\"{host}\"], addresses: [10.9.9.9], ports: [{{number: 80, name: tcp}}], resolution: STATIC}}}}"
        )
    };
    for (host, warned) in [
        ("*.svc.cluster.local", true),
        ("*.bank.svc.cluster.local", true),
        ("cart.shop.svc.cluster.local", true),
        ("cart.bank.svc.cluster.local", false),
        ("*.example.com", false),
        ("notcluster.local", false),
    ] {
        let compiled = compiled(&[&entry(host)]);
        let said = compiled.problems.iter().any(|problem| problem.reason.contains("the cluster's domain"));
        assert_eq!(said, warned, "{host}");
    }
}
