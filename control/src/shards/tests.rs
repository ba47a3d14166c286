//! Whatever happens in whichever order, what the shards publish is what one compilation of everything gives.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{manifest::parse, publish::Store};

/// Few names, so that they meet.
const NAMESPACES: [&str; 4] = ["a", "b", "c", "istio-system"];

/// Something that happens to one object.
#[derive(Debug, Clone)]
struct Step {
    kind: usize,
    namespace: usize,
    number: usize,
    address: usize,
    variant: usize,
    gone: bool,
}

fn step() -> impl Strategy<Value = Step> {
    (0..13usize, 0..4usize, 0..2usize, 0..3usize, 0..4usize, prop::bool::weighted(0.3)).prop_map(
        |(kind, namespace, number, address, variant, gone)| Step {
            kind,
            namespace,
            number,
            address,
            variant,
            gone,
        },
    )
}

impl Step {
    /// The object's file and text.
    fn manifest(&self) -> (String, String) {
        let Self { kind, namespace, number, address, variant, .. } = self;
        let (space, ip) = (NAMESPACES[*namespace], format!("10.0.0.{address}"));
        let app = format!("app: x{}", variant % 2);
        let meta = format!("metadata: {{name: n{number}, namespace: {space}, labels: {{{app}}}}}");
        let text = match kind {
            0 => {
                let mode = ["ambient", "none"][variant % 2];
                format!(
                    "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {space}, labels: {{istio.io/dataplane-mode: {mode}}}}}"
                )
            }
            1 => format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: n{number}, labels: {{topology.kubernetes.io/zone: z{variant}}}}}"
            ),
            2 => format!(
                "apiVersion: v1\nkind: Pod\n{meta}\nspec: {{nodeName: n{}}}\nstatus: {{podIP: {ip}}}",
                variant / 2
            ),
            3 => {
                let meta = match variant / 2 {
                    0 => meta.replace("app:", "istio.io/use-waypoint: n1, app:"),
                    _ => meta,
                };
                format!(
                    "apiVersion: v1\nkind: Service\n{meta}\nspec: {{selector: {{{app}}}, ports: [{{port: 80}}]}}"
                )
            }
            4 => {
                let target = ["", ", targetRef: {kind: Pod, name: n0}"][variant % 2];
                format!(
                    "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{number}, namespace: {space}, \
                     labels: {{kubernetes.io/service-name: n{}}}}}\naddressType: IPv4\nports: [{{port: 80}}]\n\
                     endpoints: [{{addresses: [{ip}]{target}}}]",
                    variant / 2
                )
            }
            // Half of them without an address: it is given one that no other namespace's host has.
            5 if number % 2 == 1 => format!(
                "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n{meta}\nspec: {{hosts: [h{variant}.example], \
                 ports: [{{number: 80, name: tcp, protocol: TCP}}], resolution: DNS}}"
            ),
            5 => format!(
                "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n{meta}\nspec: {{hosts: [h{variant}.example], addresses: [240.0.0.{number}], \
                 ports: [{{number: 80, name: tcp, protocol: TCP}}], resolution: STATIC, endpoints: [{{address: {ip}}}]}}"
            ),
            6 => format!(
                "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n{meta}\nspec: {{address: {ip}, labels: {{{app}}}}}"
            ),
            7 => {
                let selector = ["", "selector: {matchLabels: {app: x0}}, "][variant % 2];
                format!(
                    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n{meta}\n\
                     spec: {{{selector}action: DENY, rules: [{{to: [{{operation: {{ports: [\"8{variant}\"]}}}}]}}]}}"
                )
            }
            9 => format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n{meta}\nspec: {{gatewayClassName: culvert-waypoint}}"
            ),
            10 | 11 => {
                let kind = ["HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute"][kind - 10 + 2 * (variant / 3)];
                let (parent, backend) = (NAMESPACES[*address], NAMESPACES[variant % 3]);
                format!(
                    "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n{meta}\nspec: {{parentRefs: [{{group: '', \
                     kind: Service, name: n{number}, namespace: {parent}}}], rules: [{{backendRefs: [{{name: n{}, \
                     namespace: {backend}, port: 80}}]}}]}}",
                    variant % 2
                )
            }
            12 => format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\n{meta}\nspec: {{from: [{{group: \
                 gateway.networking.k8s.io, kind: HTTPRoute, namespace: {}}}], to: [{{group: '', kind: Service}}]}}",
                NAMESPACES[*variant]
            ),
            _ => {
                let selector = ["", "selector: {matchLabels: {app: x1}}, "][variant % 2];
                let mode = ["STRICT", "PERMISSIVE"][variant / 2];
                format!(
                    "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n{meta}\nspec: {{{selector}mtls: {{mode: {mode}}}}}"
                )
            }
        };
        (format!("{kind}-{namespace}-{number}.yaml"), text)
    }
}

/// The shards, what they have published, and what they were made of.
#[derive(Default)]
struct Bed {
    objects: Objects,
    shards: Shards,
    store: Store,
    /// Pods that their node has reported, by uid.
    measured: BTreeSet<String>,
}

impl Bed {
    fn turn(&mut self, reported: &BTreeSet<String>) -> usize {
        let options = Options::default();
        let measured = self.measured.clone();
        let word = |_: &str, uid: &str| match measured.contains(uid) {
            true => Word::Fresh { measured: true },
            false => Word::None,
        };
        let turn = self.shards.turn(&mut self.objects, reported, &word, &options);
        let compiled = turn.compiled;
        self.store.update(turn.edit);
        let whole = compile(&self.objects.view(), &word, &options);
        self.holds(&whole);
        compiled
    }

    fn holds(&self, whole: &Compiled) {
        let fresh = Store::default();
        fresh.publish(
            whole.workloads.values().cloned(),
            whole.services.values().cloned(),
            whole.policies.values().cloned(),
        );
        let (wanted, got) = (fresh.subscribe().borrow().clone(), self.store.subscribe().borrow().clone());
        let names = |resources: &crate::publish::Resources| -> BTreeMap<String, String> {
            resources
                .values()
                .map(|one| (one.name().to_owned(), format!("{:?}", one.on_the_wire())))
                .collect()
        };
        assert_eq!(names(&got.addresses), names(&wanted.addresses));
        assert_eq!(names(&got.policies), names(&wanted.policies));
        let wanted: BTreeMap<String, String> = whole
            .routes
            .values()
            .map(encode::routes)
            .map(|one| (one.name().to_owned(), format!("{:?}", one.on_the_wire())))
            .collect();
        assert_eq!(names(&got.routes), wanted);
        let outline = self.shards.outline();
        let pods = |node: &[Arc<LocalPod>]| node.iter().map(|pod| LocalPod::clone(pod)).collect::<Vec<_>>();
        let got: BTreeMap<_, _> = outline.nodes.iter().map(|(node, of)| (node.clone(), pods(of))).collect();
        let wanted: BTreeMap<_, _> = whole.nodes.iter().map(|(node, of)| (node.clone(), pods(of))).collect();
        assert_eq!(got, wanted);
        assert_eq!(*outline.namespaces, whole.namespaces);
        assert_eq!((outline.workloads, outline.services), (whole.workloads.len(), whole.services.len()));
        assert_eq!(*outline.routes_status, whole.routes_status);
        assert_eq!(outline.problems.iter().collect::<Vec<_>>(), whole.problems.iter().collect::<Vec<_>>());
    }

    fn take(&mut self, step: &Step) {
        let (file, text) = step.manifest();
        let path = Path::new(&file);
        if step.gone {
            self.objects.remove(path);
        } else {
            let parsed = parse(path, &text);
            assert_eq!(parsed.problems, [], "{text}");
            self.objects.apply(path, parsed);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_shards_sum_is_the_whole(turns in vec((vec(step(), 1..6), any::<bool>()), 1..12)) {
        let mut bed = Bed::default();
        for (steps, reports) in turns {
            for step in &steps {
                bed.take(step);
            }
            let mut reported = BTreeSet::new();
            if reports {
                // The other way round from now on.
                let uid = format!("{}.n0", NAMESPACES[steps[0].namespace]);
                if !bed.measured.remove(&uid) {
                    bed.measured.insert(uid);
                }
                reported = ["n0".to_owned(), "n1".to_owned()].into();
            }
            bed.turn(&reported);
        }
    }
}

#[test]
fn one_change_compiles_one_namespace() {
    let mut bed = Bed::default();
    let pod =
        |namespace, address, variant| Step { kind: 2, namespace, number: 0, address, variant, gone: false };
    for namespace in 0..4 {
        bed.take(&pod(namespace, 0, 0));
    }
    assert_eq!(bed.turn(&BTreeSet::new()), 4);
    bed.take(&pod(0, 1, 0));
    assert_eq!(bed.turn(&BTreeSet::new()), 1);
    assert_eq!(bed.turn(&["n0".to_owned()].into()), 0, "nothing new was reported");
    // An endpoint at an address that two other namespaces have: the three are one from now on.
    let slice = Step { kind: 4, namespace: 1, number: 0, address: 0, variant: 0, gone: false };
    bed.take(&slice);
    assert_eq!(bed.turn(&BTreeSet::new()), 3);
    bed.take(&Step { gone: true, ..slice });
    assert_eq!(bed.turn(&BTreeSet::new()), 3);
    bed.take(&pod(2, 2, 0));
    assert_eq!(bed.turn(&BTreeSet::new()), 1);
}

#[test]
fn a_route_that_refers_to_another_namespace_is_compiled_with_it() {
    let mut bed = Bed::default();
    for namespace in 0..4 {
        for (kind, number) in [(3, 0), (9, 1)] {
            bed.take(&Step { kind, namespace, number, address: 0, variant: 0, gone: false });
        }
    }
    bed.turn(&BTreeSet::new());
    // Of `b`, for a service of `a`, and on to one of `c`, which has to permit it.
    let route = Step { kind: 10, namespace: 1, number: 0, address: 0, variant: 2, gone: false };
    bed.take(&route);
    assert_eq!(bed.turn(&BTreeSet::new()), 2, "nobody is drawn in by being named");
    let resolved = |bed: &Bed| {
        let status = bed.shards.outline().routes_status.values().next().expect("a route").clone();
        (status[0].conditions[0].reason, status[0].conditions[1].reason)
    };
    assert_eq!(resolved(&bed), ("Accepted", "RefNotPermitted"));
    let grant = Step { kind: 12, namespace: 2, number: 0, address: 0, variant: 1, gone: false };
    bed.take(&grant);
    assert_eq!(bed.turn(&BTreeSet::new()), 3);
    assert_eq!(resolved(&bed), ("Accepted", "ResolvedRefs"));
    bed.take(&Step { gone: true, ..grant });
    bed.turn(&BTreeSet::new());
    assert_eq!(resolved(&bed), ("Accepted", "RefNotPermitted"), "revoked");
    let pod = Step { kind: 2, namespace: 2, number: 0, address: 0, variant: 0, gone: false };
    bed.take(&pod);
    assert_eq!(bed.turn(&BTreeSet::new()), 1, "it is by itself again");
    bed.take(&Step { gone: true, ..route });
    bed.turn(&BTreeSet::new());
    assert!(bed.shards.outline().routes_status.is_empty());
}

#[test]
fn hosts_of_two_namespaces_that_want_one_address_get_two() {
    let entry = |namespace: &str, host: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: {namespace}}}\n\
             spec: {{hosts: [{host}], ports: [{{number: 80, name: tcp, protocol: TCP}}], resolution: DNS}}"
        )
    };
    let addresses = |objects: &Objects| {
        let compiled = compile(&objects.view(), &|_, _| Word::None, &Options::default());
        let all = compiled.services.into_values().map(|service| (service.key.to_string(), service.addresses));
        all.collect::<BTreeMap<_, _>>()
    };
    let put = |objects: &mut Objects, namespace: &str, host: &str| {
        let path = PathBuf::from(format!("{namespace}.yaml"));
        objects.apply(&path, parse(&path, &entry(namespace, host)));
    };
    // Of so many names two have the same place.
    let mut seen = BTreeMap::new();
    let (one, two) = (0..5000)
        .find_map(|number| {
            let mut alone = Objects::default();
            let (namespace, host) = (["a", "b"][number % 2], format!("h{number}.example"));
            put(&mut alone, namespace, &host);
            let place = addresses(&alone).into_values().next().expect("an address");
            let before = seen.insert(format!("{place:?}"), (namespace, host.clone()))?;
            (before.0 != namespace).then_some((before.1, host))
        })
        .expect("two that collide");
    let (of_a, of_b) =
        if one.trim_matches(|c: char| !c.is_ascii_digit()).parse::<usize>().expect("a number") % 2 == 0 {
            (one, two)
        } else {
            (two, one)
        };
    let mut bed = Bed::default();
    put(&mut bed.objects, "a", &of_a);
    assert_eq!(bed.turn(&BTreeSet::new()), 1);
    put(&mut bed.objects, "b", &of_b);
    bed.turn(&BTreeSet::new());
    let both = addresses(&bed.objects);
    assert_eq!(both.len(), 2);
    let different: BTreeSet<String> = both.values().map(|addresses| format!("{addresses:?}")).collect();
    assert_eq!(different.len(), 2, "{both:?}");
    // The first one goes: the other one may have its place, and whoever is told is told the same.
    bed.objects.remove(&PathBuf::from("a.yaml"));
    bed.turn(&BTreeSet::new());
}

/// Who may create pods can give one the annotation of a static pod's image.
#[test]
fn a_forged_image_of_a_static_pod_takes_no_pods_place() {
    let hash = "0123456789abcdef0123456789abcdef";
    let (mut objects, mut shards) = (Objects::default(), Shards::default());
    for (namespace, mode, day) in [("a", "ambient", 2), ("b", "none", 1), ("shop", "ambient", 1)] {
        let path = PathBuf::from(format!("{namespace}.yaml"));
        let text = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}, labels: {{istio.io/dataplane-mode: {mode}}}}}}}\n\
             ---\n{{apiVersion: v1, kind: Pod, metadata: {{name: web, namespace: {namespace}, uid: u-{namespace}, \
             creationTimestamp: 2026-01-0{day}T00:00:00Z, annotations: {{kubernetes.io/config.mirror: {hash}}}, \
             ownerReferences: [{{kind: Node, name: n, controller: true}}]}}, spec: {{nodeName: n}}, \
             status: {{podIP: 10.0.0.1}}}}"
        );
        objects.apply(&path, parse(&path, &text));
    }
    shards.turn(&mut objects, &BTreeSet::new(), &|_, _| Word::None, &Options::default());
    let named: Vec<(String, &str)> =
        shards.outline.nodes["n"].iter().map(|pod| (pod.uid.to_string(), &*pod.namespace)).collect();
    assert_eq!(named, [(hash.to_owned(), "shop")]);
}
