//! The world that control is given: deterministic, with what an object of a real cluster carries besides what
//! the mesh reads.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Pods of one group: a file of the folder.
pub(crate) const PODS_OF_A_GROUP: usize = 100;
/// Groups of one namespace.
const GROUPS_OF_A_NAMESPACE: usize = 10;
/// Where services' addresses begin, in 10.240.0.0/12 (deploy/kind/scale.yaml); those of pods are far below.
const SERVICES: usize = 0xf0_1000;

/// How large it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) workloads: usize,
    pub(crate) services: usize,
    pub(crate) policies: usize,
    pub(crate) nodes: usize,
}

/// What has happened to a group since the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Edition {
    /// Times that all its pods were restarted.
    pub(crate) restarts: u32,
    /// The version that its first pod says it has.
    pub(crate) version: u32,
    /// Added to the port of its policy.
    pub(crate) port: u32,
}

/// All groups.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) shape: Shape,
    editions: BTreeMap<usize, Edition>,
}

impl World {
    pub(crate) fn new(shape: Shape) -> Self {
        Self { shape, editions: BTreeMap::new() }
    }

    pub(crate) fn groups(&self) -> usize {
        self.shape.workloads.div_ceil(PODS_OF_A_GROUP)
    }

    pub(crate) fn edition(&mut self, group: usize) -> &mut Edition {
        self.editions.entry(group).or_default()
    }

    /// The nodes and namespaces, which belong to no group.
    pub(crate) fn common(&self) -> Vec<Value> {
        self.nodes().into_iter().chain(self.namespaces()).collect()
    }

    pub(crate) fn nodes(&self) -> Vec<Value> {
        let nodes = (0..self.shape.nodes).map(|node| {
            let zone = format!("zone-{}", node % 3);
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {
                "name": node_name(node),
                "labels": {"topology.kubernetes.io/region": "region-1", "topology.kubernetes.io/zone": zone},
            }})
        });
        nodes.collect()
    }

    pub(crate) fn namespaces(&self) -> Vec<Value> {
        let namespaces = (0..self.groups().div_ceil(GROUPS_OF_A_NAMESPACE)).map(|number| {
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
                "name": format!("team-{number:03}"), "labels": {"istio.io/dataplane-mode": "ambient"},
            }})
        });
        namespaces.collect()
    }

    /// The service accounts of all namespaces.
    pub(crate) fn accounts(&self) -> Vec<Value> {
        let accounts = (0..self.groups()).map(|group| {
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {
                "name": account(group), "namespace": namespace(group),
            }})
        });
        accounts.collect()
    }

    /// The services of a group.
    pub(crate) fn services(&self, group: usize) -> Vec<Value> {
        self.service_numbers(group).map(|number| service(group, number)).collect()
    }

    /// The policies of a group.
    pub(crate) fn policies(&self, group: usize) -> Vec<Value> {
        let policies = share(self.shape.policies, group, self.groups());
        policies.map(|number| self.policy(group, number)).collect()
    }

    /// The pods of a group as it is now.
    pub(crate) fn pods(&self, group: usize) -> Vec<Value> {
        self.pod_numbers(group).map(|number| self.pod(group, number)).collect()
    }

    /// What Kubernetes itself makes of a group's services and pods: a slice for each service, with the pods that it
    /// selects.
    pub(crate) fn slices(&self, group: usize) -> Vec<Value> {
        let pods = self.pods(group);
        let slices = self.service_numbers(group).map(|number| {
            let app = app_name(number);
            let endpoints = pods.iter().filter(|pod| pod["metadata"]["labels"]["app"] == app.as_str());
            let endpoints: Vec<Value> = endpoints.map(endpoint).collect();
            json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{app}-x7k2p"),
                    "namespace": namespace(group),
                    "labels": {
                        "app": app,
                        "kubernetes.io/service-name": app,
                        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    },
                },
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                "endpoints": endpoints,
            })
        });
        slices.collect()
    }

    /// The numbers of a group's pods.
    pub(crate) fn pod_numbers(&self, group: usize) -> std::ops::Range<usize> {
        let first = group * PODS_OF_A_GROUP;
        first..(first + PODS_OF_A_GROUP).min(self.shape.workloads)
    }

    fn service_numbers(&self, group: usize) -> std::ops::Range<usize> {
        share(self.shape.services, group, self.groups())
    }

    fn pod(&self, group: usize, number: usize) -> Value {
        let edition = self.editions.get(&group).copied().unwrap_or_default();
        let services = self.service_numbers(group);
        let app = match services.len() {
            0 => format!("group-{group:05}"),
            count => app_name(services.start + number % count),
        };
        let version = if number.is_multiple_of(PODS_OF_A_GROUP) { edition.version } else { 0 };
        let hash = format!("{:08x}", fold(group as u64) & 0xffff_ffff);
        let seed = fold((number as u64) << 16 | u64::from(edition.restarts));
        let name = format!("{app}-{hash}-{}", letters(seed));
        let ip = address(number + self.shape.workloads * (edition.restarts as usize % 8));
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": namespace(group),
                "uid": uuid(seed),
                "creationTimestamp": "2026-11-20T10:00:00Z",
                "labels": {"app": app, "pod-template-hash": hash, "version": format!("v{version}")},
                "annotations": {"kubectl.kubernetes.io/restartedAt": "2026-11-20T10:00:00Z"},
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-{hash}"),
                    "uid": uuid(fold(group as u64)), "controller": true,
                }],
            },
            "spec": {
                "nodeName": node_name(number % self.shape.nodes),
                "serviceAccountName": account(group),
                "containers": [{
                    "name": "app", "image": "registry.example/shop/app:1.2.3",
                    "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                }],
            },
            "status": {
                "phase": "Running",
                "podIP": ip,
                "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        })
    }

    fn policy(&self, group: usize, number: usize) -> Value {
        let port = 8080 + self.editions.get(&group).map_or(0, |edition| edition.port);
        let services = self.service_numbers(group);
        let app = app_name(services.start);
        json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": format!("policy-{number:05}"), "namespace": namespace(group)},
            "spec": {
                "selector": {"matchLabels": {"app": app}},
                "action": "ALLOW",
                "rules": [{
                    "from": [{"source": {"principals": [
                        format!("cluster.local/ns/{}/sa/account-0", namespace(group)),
                        format!("cluster.local/ns/{}/sa/account-1", namespace(group)),
                    ]}}],
                    "to": [{"operation": {"ports": [port.to_string()]}}],
                }],
            },
        })
    }
}

fn service(group: usize, number: usize) -> Value {
    let app = app_name(number);
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": app, "namespace": namespace(group), "labels": {"app": app}},
        "spec": {
            "clusterIP": address(SERVICES + number),
            "clusterIPs": [address(SERVICES + number)],
            "selector": {"app": app},
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    })
}

pub(crate) fn node_name(node: usize) -> String {
    format!("node-{node:04}")
}

fn namespace(group: usize) -> String {
    format!("team-{:03}", group / GROUPS_OF_A_NAMESPACE)
}

fn account(group: usize) -> String {
    format!("account-{}", group % GROUPS_OF_A_NAMESPACE)
}

fn app_name(service: usize) -> String {
    format!("app-{service:05}")
}

/// The part of `all` that falls to a group.
fn share(all: usize, group: usize, groups: usize) -> std::ops::Range<usize> {
    all * group / groups..all * (group + 1) / groups
}

/// One of 10.0.0.0/8.
fn address(number: usize) -> String {
    format!("10.{}.{}.{}", (number >> 16) % 256, (number >> 8) % 256, number % 256)
}

/// A pod as an endpoint of its service.
fn endpoint(pod: &Value) -> Value {
    let metadata = &pod["metadata"];
    json!({
        "addresses": [pod["status"]["podIP"]],
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": pod["spec"]["nodeName"],
        "targetRef": {
            "kind": "Pod", "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
        },
    })
}

fn letters(seed: u64) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..7).map(|at| char::from(ALPHABET[(fold(seed + at) % 27) as usize])).collect()
}

fn uuid(seed: u64) -> String {
    let (high, low) = (fold(seed ^ 0x5eed), fold(seed.wrapping_add(77)));
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low >> 48 & 0xfff,
        low & 0xffff_ffff_ffff
    )
}

/// Spreads the bits of a number (the finaliser of SplitMix64).
fn fold(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn world() -> World {
        World::new(Shape { workloads: 1050, services: 100, policies: 7, nodes: 5 })
    }

    #[test]
    fn every_object_is_there_once() {
        let world = world();
        let all = |of: &dyn Fn(usize) -> Vec<Value>| (0..world.groups()).flat_map(of).collect::<Vec<_>>();
        let pods = all(&|group| world.pods(group));
        let distinct =
            |field: &dyn Fn(&Value) -> String| pods.iter().map(field).collect::<BTreeSet<_>>().len();
        assert_eq!(distinct(&|pod| pod["metadata"]["name"].to_string()), 1050);
        assert_eq!(distinct(&|pod| pod["metadata"]["uid"].to_string()), 1050);
        assert_eq!(distinct(&|pod| pod["status"]["podIP"].to_string()), 1050);
        assert_eq!(all(&|group| world.services(group)).len(), 100);
        assert_eq!(all(&|group| world.policies(group)).len(), 7);
    }

    #[test]
    fn a_restart_replaces_every_pod_of_the_group_and_no_other() {
        let mut world = world();
        let before = (world.pods(0), world.pods(1));
        world.edition(0).restarts += 1;
        let after = (world.pods(0), world.pods(1));
        assert_eq!(before.1, after.1);
        assert!(before.0.iter().zip(&after.0).all(|(old, new)| {
            old["metadata"]["name"] != new["metadata"]["name"]
                && old["status"]["podIP"] != new["status"]["podIP"]
        }));
    }
}
