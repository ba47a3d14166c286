//! Pods to workloads, and what each node is told of its own.

use std::sync::Arc;

use mesh::{Locality, Tunnel, Workload, WorkloadKind};

use super::{Annotated, Compiler, Image, LocalPod, Special, Word};
use crate::manifest::{Kind, Labels, Metadata, Object, ObjectKey, Pod, Template, Uid};

/// The label that brings a namespace or a pod into the mesh.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
const AMBIENT: &str = "ambient";
/// The label's other word, which keeps a pod out.
const NONE: &str = "none";
/// Istio's sidecar injector says here that it has put one into the pod.
pub(crate) const SIDECAR: &str = "sidecar.istio.io/status";
/// Whether the pod's DNS queries are answered, whatever its node has.
pub(crate) const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
/// On the API server's image of a static pod, which has a uid of its own: the one by which its node knows the pod.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";
/// In folder mode: the path of the pod's network namespace.
pub(crate) const NETNS: &str = "culvert.dev/netns";

/// The uid that a node's kubelet gives to a pod that it has from a file: a hash in hexadecimal, which the uid of a pod
/// of the API server's never is. So nobody takes such a pod's uid by this annotation.
fn static_uid(pod: &Pod) -> Option<Uid> {
    let known = pod.annotation(MIRROR)?;
    let is_hash = known.len() == 32 && known.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let of_node = pod
        .template
        .owner
        .as_ref()
        .is_some_and(|owner| &*owner.kind == "Node" && Some(&owner.name) == pod.node.as_ref());
    (is_hash && of_node).then(|| known.into())
}

impl<'v> Compiler<'v, '_> {
    pub(super) fn pods(&mut self, word: &dyn Fn(&str, &str) -> Word) {
        for (key, pod) in self.all_pods() {
            if pod.ended() {
                continue;
            }
            let waypoint = self.is_waypoint(&key, pod);
            let enroll = !waypoint && self.enrolled(&key, pod);
            self.check_label(&key, &pod.template.labels);
            if !enroll && self.mode(&key, pod) == Some(AMBIENT) && pod.annotation(SIDECAR).is_some() {
                self.warn(
                    &key,
                    SIDECAR,
                    "the pod has a sidecar of Istio's, and is not taken in: restart it without",
                );
            }
            if let Some(class) = &pod.template.sandbox
                && self.mode(&key, pod) == Some(AMBIENT)
            {
                let reason = format!(
                    "pods of RuntimeClass {class} have a kernel of their own, in which nothing can be captured: the \
                     pod is not taken in, and speaks plaintext"
                );
                self.warn(&key, "spec.runtimeClassName", reason);
            }
            let node = pod.node.as_deref().unwrap_or_default();
            let by_hand = || format!("{}.{}", key.namespace, key.name).as_str().into();
            let uid = pod.uid.clone().unwrap_or_else(by_hand);
            let (uid, image) = match static_uid(pod) {
                Some(known) => {
                    let since = pod.template.since.clone().unwrap_or_default();
                    (known, Some(Image { uid, since }))
                }
                None => (uid, None),
            };
            let mut local = LocalPod {
                uid,
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                service_account: pod.template.service_account.clone().unwrap_or_else(|| self.default.clone()),
                addresses: pod.addresses.clone(),
                enroll,
                answer_dns: self.answer_dns(&key, pod),
                annotated: Annotated::of(pod),
                captured: false,
                waypoint,
                special: None,
            };
            let netns = pod.annotation(NETNS);
            if image.is_some() || netns.is_some() {
                let netns = netns.unwrap_or_default().into();
                local.special = Some(Box::new(Special { image, netns }));
            }
            if enroll && local.addresses.is_empty() {
                self.warn(&key, "status.podIP", "the pod is to be enrolled and has no address yet");
            }
            local.captured = local.annotated.captured(word(node, &local.uid.text()));
            let tunnel = if local.captured || waypoint { Tunnel::Hbone } else { Tunnel::None };
            let workload = self.workload(&key, pod, &local, tunnel);
            self.add(workload, &pod.template.labels);
            match &pod.node {
                Some(node) => self.out.nodes.entry(node.clone()).or_default().push(Arc::new(local)),
                None if enroll => {
                    self.warn(&key, "spec.nodeName", "no node is named: nobody can enroll this pod")
                }
                None => {}
            }
        }
    }

    /// Host-network pods, those with a sidecar and those with a kernel of their own are never enrolled.
    fn enrolled(&self, key: &ObjectKey, pod: &Pod) -> bool {
        let Template { host_network, sandbox, .. } = &*pod.template;
        let able = !host_network && sandbox.is_none() && pod.annotation(SIDECAR).is_none();
        able && self.mode(key, pod) == Some(AMBIENT)
    }

    /// The pod's own label wins over its namespace's.
    fn mode<'p>(&'p self, key: &ObjectKey, pod: &'p Pod) -> Option<&'p str> {
        let namespace = self.namespace_metadata(&key.namespace);
        let of_namespace = || namespace.and_then(|metadata| metadata.label(DATAPLANE_MODE));
        pod.label(DATAPLANE_MODE).or_else(of_namespace)
    }

    /// What a pod says of its DNS queries, in any of the words that Istio takes for yes and no.
    fn answer_dns(&mut self, key: &ObjectKey, pod: &Pod) -> Option<bool> {
        let word = pod.annotation(DNS_CAPTURE)?;
        match &*word.to_ascii_lowercase() {
            "true" | "t" | "1" => Some(true),
            "false" | "f" | "0" => Some(false),
            _ => {
                let reason = format!("{word:?} means nothing: true or false; the node's setting holds");
                self.warn(key, DNS_CAPTURE, reason);
                None
            }
        }
    }

    /// A label with another word than the two enrolls nobody, and keeps nobody out who is not out already.
    fn check_label(&mut self, key: &ObjectKey, labels: &Labels) {
        if let Some(word) = labels.get(DATAPLANE_MODE).filter(|word| ![AMBIENT, NONE].contains(word)) {
            let reason = format!("{word:?} means nothing: {AMBIENT} takes in, {NONE} keeps out");
            self.warn(key, "metadata.labels", reason);
        }
    }

    /// What each namespace wants of its pods: a node decides by it about those that nobody has told it of yet.
    pub(super) fn namespaces(&mut self) {
        let view = self.view;
        for (key, object) in &view.objects {
            if let Object::Namespace(namespace) = object {
                let enroll = namespace.metadata.label(DATAPLANE_MODE) == Some(AMBIENT);
                self.out.namespaces.insert(key.name.clone(), enroll);
                self.check_label(key, &namespace.metadata.labels);
            }
        }
    }

    pub(super) fn namespace_metadata(&self, name: &str) -> Option<&'v Metadata> {
        let key = ObjectKey { kind: Kind::Namespace, namespace: "".into(), name: name.into() };
        match self.view.get(&key) {
            Some(Object::Namespace(namespace)) => Some(&namespace.metadata),
            _ => None,
        }
    }

    fn workload(&mut self, key: &ObjectKey, pod: &Pod, local: &LocalPod, tunnel: Tunnel) -> Workload {
        let uid = format!("{}//Pod/{}/{}", self.options.cluster_id, key.namespace, key.name);
        let (workload_name, workload_kind) = owner(key, pod);
        let label = |names: &[&str]| names.iter().find_map(|name| pod.label(name)).map(Arc::from);
        let canonical_name = label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
        let canonical_revision =
            label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
        Workload {
            service_account: local.service_account.clone(),
            trust_domain: self.options.trust_domain.clone(),
            network: pod
                .label("topology.istio.io/network")
                .map_or_else(|| self.options.network.clone(), Arc::from),
            addresses: local.addresses.to_vec(),
            node: pod.node.clone().unwrap_or_default(),
            cluster_id: self.options.cluster_id.clone(),
            canonical_name: canonical_name.unwrap_or_else(|| workload_name.clone()),
            canonical_revision: canonical_revision.unwrap_or_else(|| "latest".into()),
            workload_name,
            workload_kind,
            tunnel,
            native_tunnel: local.waypoint,
            waypoint: if local.waypoint { None } else { self.waypoint_of_pod(key, pod) },
            healthy: pod.ready(),
            locality: self.locality(pod.node.as_deref()),
            ..Workload::named(uid, key.namespace.clone(), key.name.clone())
        }
    }

    fn locality(&self, node: Option<&str>) -> Locality {
        let key = ObjectKey { kind: Kind::Node, namespace: "".into(), name: node.unwrap_or_default().into() };
        let Some(Object::Node(node)) = self.view.get(&key) else { return Locality::default() };
        let label = |name| node.metadata.label(name).unwrap_or_default().into();
        Locality {
            region: label("topology.kubernetes.io/region"),
            zone: label("topology.kubernetes.io/zone"),
            subzone: label("topology.istio.io/subzone"),
        }
    }
}

/// Name and kind of what owns the pod, as dashboards group it.
fn owner(key: &ObjectKey, pod: &Pod) -> (Arc<str>, WorkloadKind) {
    let Some(owner) = &pod.template.owner else {
        return (key.name.clone(), WorkloadKind::Pod);
    };
    match &*owner.kind {
        "ReplicaSet" => {
            let hash = pod.label("pod-template-hash").unwrap_or_default();
            let deployment = owner.name.strip_suffix(hash).and_then(|name| name.strip_suffix('-'));
            (deployment.map_or_else(|| owner.name.clone(), Arc::from), WorkloadKind::Deployment)
        }
        "Job" => match owner.name.rsplit_once('-') {
            // A CronJob names its jobs after the minute they were due.
            Some((cron, minute)) if minute.len() >= 8 && minute.bytes().all(|byte| byte.is_ascii_digit()) => {
                (cron.into(), WorkloadKind::CronJob)
            }
            _ => (owner.name.clone(), WorkloadKind::Job),
        },
        _ => (owner.name.clone(), WorkloadKind::Pod),
    }
}
