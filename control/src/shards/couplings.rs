//! Which namespaces must be compiled together: those whose routes refer to each other, and, since an endpoint that is
//! named by its address alone is whoever holds that address, those in which it may be.
//!
//! There are few such routes, and few such endpoints (of services without a selector, and of ServiceEntries), so that
//! only of their addresses it is known who holds them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    compile::granted_as,
    manifest::{
        Endpoint, EndpointSlice, Kind, Object, ObjectKey, Reference, ReferenceGrant, Route, ServiceEntry,
    },
    objects::Objects,
};

type Names = BTreeSet<Arc<str>>;

/// What is known of such addresses.
#[derive(Debug, Default)]
pub(super) struct Couplings {
    /// Namespace → the addresses that its endpoints are named by.
    mentioned: BTreeMap<Arc<str>, BTreeSet<IpAddr>>,
    /// Each of these → the namespaces that mention it or have a workload there.
    concerned: BTreeMap<IpAddr, Names>,
    /// Namespaces with routes that refer to others.
    referring: Names,
    /// Each of these → those that its routes lead to, or are for; itself among them.
    referred: BTreeMap<Arc<str>, Names>,
}

impl Couplings {
    /// Takes in what has `changed`.
    pub(super) fn update(&mut self, objects: &Objects, changed: &Names) {
        for namespace in changed {
            let routes = objects.of_namespace(namespace).filter_map(Object::route);
            match routes.flat_map(elsewhere).any(|to| to.namespace.as_ref() != Some(namespace)) {
                true => drop(self.referring.insert(namespace.clone())),
                false => drop(self.referring.remove(namespace)),
            }
        }
        // What they refer to may have come or gone elsewhere.
        self.referred = self.referring.iter().map(|name| (name.clone(), referred(objects, name))).collect();
        let before = self.mentioned.len();
        let mut other = false;
        for namespace in changed {
            let mentioned: BTreeSet<IpAddr> = objects.of_namespace(namespace).flat_map(mentioned).collect();
            other |=
                self.mentioned.get(namespace).is_some_and(|held| *held != mentioned) || !mentioned.is_empty();
            match mentioned.is_empty() {
                true => drop(self.mentioned.remove(namespace)),
                false => drop(self.mentioned.insert(namespace.clone(), mentioned)),
            }
        }
        if other || self.mentioned.len() != before {
            // Rare: everybody is asked.
            self.concerned.clear();
            for (namespace, mentioned) in &self.mentioned {
                for address in mentioned {
                    self.concerned.entry(*address).or_default().insert(namespace.clone());
                }
            }
            if !self.concerned.is_empty() {
                for namespace in &objects.namespaces() {
                    self.note_holders(objects, namespace);
                }
            }
        } else if !self.concerned.is_empty() {
            for (address, names) in &mut self.concerned {
                let mentions =
                    |name: &Arc<str>| self.mentioned.get(name).is_some_and(|all| all.contains(address));
                names.retain(|name| !changed.contains(name) || mentions(name));
            }
            for namespace in changed {
                self.note_holders(objects, namespace);
            }
        }
    }

    fn note_holders(&mut self, objects: &Objects, namespace: &Arc<str>) {
        let addresses = objects.of_namespace(namespace).flat_map(held);
        for address in addresses {
            if let Some(names) = self.concerned.get_mut(&address) {
                names.insert(namespace.clone());
            }
        }
    }

    /// Each namespace that is compiled with others, and with which (itself among them).
    pub(super) fn groups(&self) -> BTreeMap<Arc<str>, Arc<Names>> {
        let mut groups: BTreeMap<Arc<str>, Arc<Names>> = BTreeMap::new();
        let together = self.concerned.values().chain(self.referred.values());
        for names in together.filter(|names| names.len() > 1) {
            let mut group = names.clone();
            for name in names {
                group.extend(groups.get(name).into_iter().flat_map(|group| group.iter().cloned()));
            }
            let group = Arc::new(group);
            for name in group.iter() {
                groups.insert(name.clone(), group.clone());
            }
        }
        groups
    }
}

/// What a route refers to with a namespace.
fn elsewhere(route: &Route) -> impl Iterator<Item = &Reference> {
    route.services().chain(route.leads_to()).filter(|to| to.namespace.is_some())
}

/// The namespaces that the routes of one are compiled with. Nobody is drawn in by being named alone: a service that a
/// route is for must be there, and what it leads to must permit it.
fn referred(objects: &Objects, namespace: &Arc<str>) -> Names {
    let mut names = Names::from([namespace.clone()]);
    for object in objects.of_namespace(namespace) {
        let (kind, route) = match object {
            Object::HTTPRoute(route) => ("HTTPRoute", route),
            Object::GRPCRoute(route) => ("GRPCRoute", route),
            Object::TLSRoute(route) => ("TLSRoute", route),
            Object::TCPRoute(route) => ("TCPRoute", route),
            _ => continue,
        };
        let other = |to: &&Reference| to.namespace.as_ref().is_some_and(|other| other != namespace);
        let is_there = |to: &&Reference| {
            // Of a waypoint control makes the Service.
            let kinds = match to.kind.as_deref() {
                Some("Service") => &[Kind::Service, Kind::Gateway][..],
                _ => &[Kind::ServiceEntry],
            };
            let place = to.namespace.clone().unwrap_or_default();
            let key =
                |kind: &Kind| ObjectKey { kind: *kind, namespace: place.clone(), name: to.name.clone() };
            kinds.iter().any(|kind| objects.get(&key(kind)).is_some())
        };
        let permits = |to: &&Reference| {
            let grants = objects.of_namespace(to.namespace.as_deref().unwrap_or_default());
            let asked = granted_as(to);
            let permits = |grant: &ReferenceGrant| asked.is_some_and(|of| grant.permits(kind, namespace, of));
            grants.filter_map(Object::grant).any(permits)
        };
        let parents = route.services().filter(other).filter(is_there);
        let backends = route.leads_to().filter(other).filter(permits);
        names.extend(parents.chain(backends).filter_map(|to| to.namespace.clone()));
    }
    names
}

/// Addresses by which an object names workloads.
fn mentioned(object: &Object) -> Vec<IpAddr> {
    match object {
        Object::EndpointSlice(slice) => of_slice(slice),
        Object::ServiceEntry(entry) => of_entry(entry),
        _ => Vec::new(),
    }
}

fn of_slice(slice: &EndpointSlice) -> Vec<IpAddr> {
    let addresses = slice.endpoints.iter().flat_map(|endpoint| match &endpoint.at {
        Endpoint::Pod(_) => &[],
        Endpoint::Addresses(at) => &at.addresses[..],
    });
    addresses.copied().collect()
}

fn of_entry(entry: &ServiceEntry) -> Vec<IpAddr> {
    let endpoints = entry.spec.endpoints.iter().flatten();
    endpoints.filter_map(|endpoint| endpoint.address.as_ref()?.parse().ok()).collect()
}

/// Addresses at which an object is a workload.
fn held(object: &Object) -> Vec<IpAddr> {
    match object {
        Object::Pod(pod) => pod.addresses.to_vec(),
        Object::WorkloadEntry(entry) => {
            entry.spec.address.iter().filter_map(|address| address.parse().ok()).collect()
        }
        _ => Vec::new(),
    }
}
