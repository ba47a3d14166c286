//! One immutable state of the mesh, and the editor that makes the next one from it.
//!
//! Every map is persistent: a clone is O(1), an edit copies the path it changes, and readers of the old
//! state are never disturbed. The indexes here are facts about the last put of each object, and nothing
//! but [`Editor`] changes them. Deciding is not done here: see [`crate::plan`] and [`crate::admit`].

use std::{net::IpAddr, sync::Arc};

use equivalent::Equivalent;
use imbl::HashMap;

use crate::{
    NetworkAddress, Policy, PolicyKey, Scope, Service, ServiceKey, ServiceRoutes, Workload,
    claims::{Claims, Object},
    endpoints::Endpoints,
    policies::Policies,
};

/// One immutable, indexed state of the mesh. Cloning is O(1); an edit shares what it does not change.
#[derive(Clone, Default)]
pub struct Snapshot {
    workloads: HashMap<Arc<str>, Arc<Workload>>,
    workloads_by_address: HashMap<NetworkAddress, Claims<Workload>>,
    workloads_by_name: HashMap<Name, Claims<Workload>>,
    services: HashMap<ServiceKey, Arc<Service>>,
    services_by_address: HashMap<NetworkAddress, Claims<Service>>,
    /// By host name in lower case.
    services_by_hostname: HashMap<Arc<str>, Claims<Service>>,
    endpoints: HashMap<ServiceKey, Arc<Endpoints>>,
    pub(crate) policies: Policies,
    /// Of services behind waypoints; only waypoints are told.
    routes: HashMap<ServiceKey, Arc<ServiceRoutes>>,
    /// The cluster whose pods `pod` prefers; empty: none is preferred.
    cluster: Option<Arc<str>>,
    addresses_complete: bool,
    policies_complete: bool,
    routes_complete: bool,
}

impl Snapshot {
    /// Whether a first complete state of workloads AND of policies has arrived.
    /// Nothing is planned or admitted before (an empty answer is complete, silence is not).
    pub fn is_complete(&self) -> bool {
        self.addresses_complete && self.policies_complete
    }

    /// Whether a first complete state of routes has arrived, too: a waypoint routes nothing before.
    pub fn has_routes(&self) -> bool {
        self.routes_complete
    }

    /// How a service behind a waypoint is routed.
    pub fn routes(&self, service: &ServiceKey) -> Option<&Arc<ServiceRoutes>> {
        self.routes.get(service)
    }

    /// The workload of that unique id.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that holds `address` in `network`: of those that claim it, the one put last.
    pub fn workload_at(&self, network: &str, address: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads_by_address.get(&At { network, address: address.to_canonical() }).map(Claims::holder)
    }

    /// The pod of that namespace and name (any cluster; pods of ours first).
    ///
    /// A workload whose uid says `Pod` comes before one of another kind, one of our own cluster (see
    /// [`Editor::set_cluster`]) before a foreign one, and of equals the one put last.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        let claims = self.workloads_by_name.get(&Named { namespace, name })?;
        let preference =
            |w: &Workload| (!w.is_pod(), self.cluster.as_ref().is_some_and(|ours| w.cluster_id != *ours));
        claims.iter().min_by_key(|workload| preference(workload))
    }

    /// The service of that name.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The service with the virtual address `address` in `network`: of those that claim it, the one put last.
    pub fn service_at(&self, network: &str, address: IpAddr) -> Option<&Arc<Service>> {
        self.services_by_address.get(&At { network, address: address.to_canonical() }).map(Claims::holder)
    }

    /// The services of that host name (in lower case), in no order: of each namespace at most one.
    pub fn services_named(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.services_by_hostname.get(hostname).into_iter().flat_map(Claims::iter)
    }

    /// The policy of that name, as it was put.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// Every workload, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// Every service, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// Every policy, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter()
    }

    /// The workloads that name a service, healthy ones first. The service itself may be unknown yet.
    pub fn endpoints(&self, service: &ServiceKey) -> impl Iterator<Item = &Arc<Workload>> {
        self.endpoints.get(service).into_iter().flat_map(|endpoints| endpoints.iter())
    }

    /// The names of all policies that judge a workload, in order: those of the mesh, of its namespace and
    /// those it names; a name it refers to that is not held is among them.
    pub fn policies_for(&self, workload: &Workload) -> Vec<PolicyKey> {
        self.policies.names_for(workload)
    }

    /// Whether a policy that is for the workload was sent and could not be understood. What else is missing
    /// may still come; this will not, unless it is sent anew.
    pub fn has_unusable_policy_for(&self, workload: &Workload) -> bool {
        self.policies.has_unusable_for(workload)
    }

    /// Changes whenever a policy does: equal numbers of two snapshots of one history mean equal policies.
    ///
    /// A live connection needs no new verdict while this number and the `Arc` of its destination's
    /// workload stay the same.
    pub fn policy_generation(&self) -> u64 {
        self.policies.generation()
    }

    /// Starts the next state.
    pub fn edit(&self) -> Editor {
        Editor { next: self.clone() }
    }

    pub(crate) fn endpoints_of(&self, service: &ServiceKey) -> Option<&Endpoints> {
        self.endpoints.get(service).map(Arc::as_ref)
    }
}

/// The next state in the making. Cheap to start; costs O(log n) per change.
///
/// A put of what is already held, unchanged, is no change at all.
pub struct Editor {
    next: Snapshot,
}

impl Editor {
    /// Adds or replaces a workload. Its addresses are its own from now on, also where another workload
    /// claims them: the last put holds an address. IPv4-mapped IPv6 addresses are taken as IPv4.
    pub fn put_workload(&mut self, mut workload: Workload) {
        workload.addresses.iter_mut().for_each(|address| *address = address.to_canonical());
        if let Some(held) = self.next.workloads.get(&workload.uid) {
            if **held == workload {
                return;
            }
            let held = held.clone();
            self.unindex_workload(&held);
        }
        let workload = Arc::new(workload);
        self.index_workload(&workload);
        self.next.workloads.insert(workload.uid.clone(), workload);
    }

    /// Removes a workload; its addresses go to whom else claims them, the last put of those.
    pub fn remove_workload(&mut self, uid: &str) {
        if let Some(held) = self.next.workloads.remove(uid) {
            self.unindex_workload(&held);
        }
    }

    /// Adds or replaces a service; as for workloads, the last put holds an address.
    pub fn put_service(&mut self, mut service: Service) {
        service.addresses.iter_mut().for_each(|at| at.address = at.address.to_canonical());
        if let Some(held) = self.next.services.get(&service.key) {
            if **held == service {
                return;
            }
            let held = held.clone();
            self.unindex_service(&held);
        }
        let service = Arc::new(service);
        for address in &service.addresses {
            claim(&mut self.next.services_by_address, address.clone(), &service);
        }
        claim(&mut self.next.services_by_hostname, lower(&service.key.hostname), &service);
        self.next.services.insert(service.key.clone(), service);
    }

    /// Removes a service. Workloads that name it stay, and are its endpoints again if it comes back.
    pub fn remove_service(&mut self, key: &ServiceKey) {
        if let Some(held) = self.next.services.remove(key) {
            self.unindex_service(&held);
        }
    }

    /// Adds or replaces a policy; a mark of unusable is lifted.
    pub fn put_policy(&mut self, policy: Policy) {
        self.next.policies.put(policy);
    }

    /// Removes a policy and its mark. Workloads that still name it are refused until they no longer do.
    pub fn remove_policy(&mut self, key: &PolicyKey) {
        self.next.policies.remove(key);
    }

    /// A policy that was sent, could not be understood and was never held: whoever it selects is refused.
    /// As its scope is not known either, that is its namespace and the workloads that name it.
    /// Where a version of it is held, that version stays in force and the mark is not set.
    pub fn mark_policy_unusable(&mut self, key: &PolicyKey) {
        self.next.policies.mark_unusable(key, None);
    }

    /// The same of a policy whose scope could be read: exactly those in the scope are refused.
    pub fn mark_policy_unusable_in(&mut self, key: &PolicyKey, scope: Scope) {
        self.next.policies.mark_unusable(key, Some(scope));
    }

    /// Adds or replaces the routes of a service. Keys of tokens that were known stay until others are.
    pub fn put_routes(&mut self, mut routes: ServiceRoutes) {
        if let Some(before) = self.next.routes.get(&routes.service) {
            routes.authentication = routes.authentication.keeping(&before.authentication);
        }
        self.next.routes.insert(routes.service.clone(), Arc::new(routes));
    }

    /// Removes the routes of a service.
    pub fn remove_routes(&mut self, service: &ServiceKey) {
        self.next.routes.remove(service);
    }

    /// Names our own cluster, whose pods [`Snapshot::pod`] prefers where two clusters have one of that name.
    pub fn set_cluster(&mut self, cluster: impl Into<Arc<str>>) {
        self.next.cluster = Some(cluster.into());
    }

    /// The first complete answer for workloads and services is in.
    pub fn mark_addresses_complete(&mut self) {
        self.next.addresses_complete = true;
    }

    /// The first complete answer for policies is in.
    pub fn mark_policies_complete(&mut self) {
        self.next.policies_complete = true;
    }

    /// The first complete answer for routes is in.
    pub fn mark_routes_complete(&mut self) {
        self.next.routes_complete = true;
    }

    /// The state as edited.
    pub fn finish(self) -> Snapshot {
        self.next
    }

    fn index_workload(&mut self, workload: &Arc<Workload>) {
        let next = &mut self.next;
        for &address in &workload.addresses {
            let at = NetworkAddress { network: workload.network.clone(), address };
            claim(&mut next.workloads_by_address, at, workload);
        }
        claim(&mut next.workloads_by_name, Name::of(workload), workload);
        for service in workload.services.keys() {
            Arc::make_mut(next.endpoints.entry(service.clone()).or_default()).put(workload);
        }
    }

    fn unindex_workload(&mut self, workload: &Workload) {
        let next = &mut self.next;
        for &address in &workload.addresses {
            let at = NetworkAddress { network: workload.network.clone(), address };
            unclaim(&mut next.workloads_by_address, &at, workload);
        }
        unclaim(&mut next.workloads_by_name, &Name::of(workload), workload);
        for service in workload.services.keys() {
            let Some(endpoints) = next.endpoints.get_mut(service).map(Arc::make_mut) else { continue };
            endpoints.remove(workload);
            if endpoints.is_empty() {
                next.endpoints.remove(service);
            }
        }
    }

    fn unindex_service(&mut self, service: &Service) {
        for address in &service.addresses {
            unclaim(&mut self.next.services_by_address, address, service);
        }
        unclaim(&mut self.next.services_by_hostname, &lower(&service.key.hostname), service);
    }
}

fn claim<K: std::hash::Hash + Eq + Clone, T: Object>(
    map: &mut HashMap<K, Claims<T>>,
    key: K,
    object: &Arc<T>,
) {
    match map.get_mut(&key) {
        Some(claims) => claims.put(object),
        None => drop(map.insert(key, Claims::One(object.clone()))),
    }
}

fn unclaim<K: std::hash::Hash + Eq + Clone, T: Object>(map: &mut HashMap<K, Claims<T>>, key: &K, object: &T) {
    if map.get_mut(key).is_some_and(|claims| claims.remove(object)) {
        map.remove(key);
    }
}

/// Host names differ not by case (RFC 4343).
fn lower(hostname: &Arc<str>) -> Arc<str> {
    if hostname.bytes().any(|byte| byte.is_ascii_uppercase()) {
        hostname.to_ascii_lowercase().into()
    } else {
        hostname.clone()
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Name {
    namespace: Arc<str>,
    name: Arc<str>,
}

impl Name {
    fn of(workload: &Workload) -> Self {
        Self { namespace: workload.namespace.clone(), name: workload.name.clone() }
    }
}

// The borrowed twins of the keys, so that a lookup allocates nothing; they must hash as their twins do,
// which the derive grants: the same fields in the same order.

#[derive(Hash)]
struct Named<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl Equivalent<Name> for Named<'_> {
    fn equivalent(&self, key: &Name) -> bool {
        *self.namespace == *key.namespace && *self.name == *key.name
    }
}

#[derive(Hash)]
struct At<'a> {
    network: &'a str,
    address: IpAddr,
}

impl Equivalent<NetworkAddress> for At<'_> {
    fn equivalent(&self, key: &NetworkAddress) -> bool {
        *self.network == *key.network && self.address == key.address
    }
}
