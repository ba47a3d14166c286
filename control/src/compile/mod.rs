//! Objects in, the state of the mesh out. Pure and deterministic: no files, no clock, no protobuf, so
//! that folder and Kubernetes compile alike and an answer can be explained without a cluster.

mod authentication;
mod authorization;
pub(crate) mod automatic;
mod backend_tls;
mod capture;
mod endpoints;
mod external;
mod peer_authentication;
mod routes;
mod services;
mod standing;
mod waypoints;
mod workloads;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

pub use capture::{Annotated, MARK, Mark, REDIRECTION, Word};
use mesh::{Policy, PolicyKey, Service, ServiceKey, ServiceRoutes, Workload};
pub(crate) use routes::granted_as;
pub(crate) use services::EXPORT_TO;
pub use standing::{Condition, ParentStatus};
pub(crate) use waypoints::WAYPOINT_EXCEPT;
pub(crate) use workloads::{DNS_CAPTURE, MIRROR, NETNS, SIDECAR};

use crate::{
    manifest::{
        Addresses, Authorization, EndpointSlice, Kind, Labels, Object, ObjectKey, PeerAuthentication, Pod,
        Problem, Severity, Uid,
    },
    objects::View,
};

/// What holds for the whole mesh.
#[derive(Debug, Clone)]
pub struct Options {
    pub trust_domain: Arc<str>,
    pub cluster_id: Arc<str>,
    /// The network that pods without another word are in; empty by default.
    pub network: Arc<str>,
    /// Policies in this namespace are for the whole mesh.
    pub root_namespace: Arc<str>,
    /// The suffix of service host names, `cluster.local`.
    pub cluster_domain: Arc<str>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            cluster_id: "Kubernetes".into(),
            network: "".into(),
            root_namespace: "istio-system".into(),
            cluster_domain: "cluster.local".into(),
        }
    }
}

/// What the mesh is to know.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Compiled {
    /// By uid.
    pub workloads: BTreeMap<Arc<str>, Workload>,
    pub services: BTreeMap<ServiceKey, Service>,
    pub policies: BTreeMap<PolicyKey, Policy>,
    /// Of services behind waypoints.
    pub routes: BTreeMap<ServiceKey, ServiceRoutes>,
    /// How each route stands with those of its parents that are ours.
    pub routes_status: BTreeMap<ObjectKey, Vec<ParentStatus>>,
    /// By node: the pods that run there.
    pub nodes: BTreeMap<Arc<str>, Vec<Arc<LocalPod>>>,
    /// Whether the pods of each namespace are in the mesh, where they say nothing else.
    pub namespaces: BTreeMap<Arc<str>, bool>,
    pub problems: Vec<Problem>,
}

/// A pod as its node is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPod {
    /// As the node knows it: `metadata.uid`, or `NAMESPACE.NAME` in a hand-written manifest; of a static pod what
    /// `kubernetes.io/config.mirror` says.
    pub uid: Uid,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub service_account: Arc<str>,
    pub addresses: Addresses,
    /// Whether its labels and its namespace's ask for it to be in the mesh.
    pub enroll: bool,
    /// Whether its DNS queries are answered; `None` where that is the node's to say.
    pub answer_dns: Option<bool>,
    /// What its annotations say of its capture.
    pub annotated: Annotated,
    /// Its peers are told to use HBONE.
    pub captured: bool,
    /// It is a waypoint, which has its certificate without being captured.
    pub waypoint: bool,
    /// What few pods have.
    pub special: Option<Box<Special>>,
}

/// What few pods have, each of which costs the others no memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Special {
    /// Of a static pod: how the API server knows it.
    pub image: Option<Image>,
    /// Path of its network namespace, from the annotation `culvert.dev/netns`; empty where CNI tells.
    pub netns: Box<str>,
}

/// The API server's image of a static pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its `metadata.uid`.
    pub uid: Uid,
    /// Its `metadata.creationTimestamp`.
    pub since: Box<str>,
}

impl LocalPod {
    /// The uid by which the API server knows it.
    pub fn object_uid(&self) -> &Uid {
        self.image().map_or(&self.uid, |image| &image.uid)
    }

    /// Of a static pod: how the API server knows it.
    pub fn image(&self) -> Option<&Image> {
        self.special.as_ref()?.image.as_ref()
    }

    /// Path of its network namespace; empty where CNI tells.
    pub fn netns(&self) -> &str {
        self.special.as_ref().map_or("", |special| &special.netns)
    }
}

/// Compiles everything. `word` tells of a node and a pod's uid what the node's agent said of its capture: only if
/// it was measured are its peers told to use HBONE.
pub fn compile(view: &View<'_>, word: &dyn Fn(&str, &str) -> Word, options: &Options) -> Compiled {
    let mut compiler = Compiler::new(view, options);
    compiler.out.problems = view.problems.clone();
    compiler.nodes();
    compiler.namespaces();
    compiler.pods(word);
    compiler.workload_entries();
    compiler.services();
    compiler.service_entries();
    compiler.waypoint_services();
    compiler.required_waypoints();
    compiler.tls = compiler.backend_tls();
    compiler.routes();
    compiler.authorization_policies();
    compiler.peer_authentications();
    compiler.out.problems.sort();
    compiler.out.problems.dedup();
    compiler.out
}

/// One compilation under way.
struct Compiler<'v, 'o> {
    view: &'v View<'v>,
    options: &'o Options,
    out: Compiled,
    /// Labels of each workload, by uid: what selectors see.
    labels: HashMap<Arc<str>, &'v Labels>,
    /// Workloads by namespace, and by address the first that holds it: without these every service
    /// would look at every workload.
    by_namespace: HashMap<Arc<str>, Vec<Arc<str>>>,
    by_address: HashMap<IpAddr, Arc<str>>,
    /// Gateways that are waypoints, of all namespaces.
    waypoints: waypoints::Waypoints,
    /// With which services TLS is begun.
    tls: backend_tls::OfBackends,
    /// EndpointSlices by namespace and service.
    slices: HashMap<(Arc<str>, &'v str), Vec<Slice<'v>>>,
    /// The service account of who names none.
    default: Arc<str>,
}

/// An EndpointSlice and its name.
type Slice<'v> = (&'v ObjectKey, &'v EndpointSlice);

/// For workloads without labels.
static NO_LABELS: Labels = Labels::NONE;

impl<'v, 'o> Compiler<'v, 'o> {
    fn new(view: &'v View<'v>, options: &'o Options) -> Self {
        let mut slices: HashMap<_, Vec<_>> = HashMap::new();
        for (key, object) in &view.objects {
            if let Object::EndpointSlice(slice) = object
                && let Some(service) = slice.service.as_deref()
            {
                slices.entry((key.namespace.clone(), service)).or_default().push((key, &**slice));
            }
        }
        Self {
            view,
            options,
            out: Compiled::default(),
            labels: HashMap::new(),
            by_namespace: HashMap::new(),
            by_address: HashMap::new(),
            waypoints: waypoints::Waypoints::of(view),
            tls: backend_tls::OfBackends::new(),
            slices,
            default: "default".into(),
        }
    }

    /// Adds a workload and what selectors see of it.
    fn add(&mut self, workload: Workload, labels: &'v Labels) {
        let uid = workload.uid.clone();
        self.labels.insert(uid.clone(), labels);
        self.by_namespace.entry(workload.namespace.clone()).or_default().push(uid.clone());
        for address in &workload.addresses {
            self.by_address.entry(*address).or_insert_with(|| uid.clone());
        }
        self.out.workloads.insert(uid, workload);
    }

    /// The workloads of a namespace that have all these labels, in the order they were added.
    fn select(&self, namespace: &str, wanted: &Labels) -> Vec<Arc<str>> {
        let uids = self.by_namespace.get(namespace).into_iter().flatten();
        uids.filter(|uid| self.labels_of(uid).have(wanted)).cloned().collect()
    }

    fn nodes(&mut self) {
        for key in self.view.objects.keys().filter(|key| key.kind == Kind::Node) {
            self.out.nodes.entry(key.name.clone()).or_default();
        }
    }

    fn warn(&mut self, about: &ObjectKey, field: &str, reason: impl Into<String>) {
        self.out.problems.push(Problem::about(about, Severity::Warning, field, reason));
    }

    fn labels_of(&self, uid: &str) -> &'v Labels {
        self.labels.get(uid).copied().unwrap_or(&NO_LABELS)
    }

    fn of_kind<T>(&self, kind: Kind, pick: impl Fn(&'v Object) -> Option<&'v T>) -> Vec<(ObjectKey, &'v T)> {
        let view = self.view;
        view.objects
            .iter()
            .filter(|(key, _)| key.kind == kind)
            .filter_map(|(key, object)| Some((key.clone(), pick(object)?)))
            .collect()
    }

    fn all_pods(&self) -> Vec<(ObjectKey, &'v Pod)> {
        self.of_kind(Kind::Pod, |object| if let Object::Pod(pod) = object { Some(&**pod) } else { None })
    }

    fn all_authorizations(&self) -> Vec<(ObjectKey, &'v Authorization)> {
        self.of_kind(Kind::AuthorizationPolicy, |object| {
            if let Object::AuthorizationPolicy(policy) = object { Some(&**policy) } else { None }
        })
    }

    fn all_peer_authentications(&self) -> Vec<(ObjectKey, &'v PeerAuthentication)> {
        self.of_kind(Kind::PeerAuthentication, |object| {
            if let Object::PeerAuthentication(policy) = object { Some(&**policy) } else { None }
        })
    }
}

#[cfg(test)]
mod tests;
