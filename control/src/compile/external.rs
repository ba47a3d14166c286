//! ServiceEntry and WorkloadEntry: services and machines that Kubernetes does not know.

use std::{collections::btree_map::Entry, sync::Arc};

use mesh::{
    Families, Identity, Locality, NetworkAddress, PortMapping, Service, ServiceKey, Tunnel, Workload,
};

use super::{Compiler, NO_LABELS, automatic};
use crate::manifest::{Kind, Object, ObjectKey, Resolution, ServiceEntry, WorkloadEntrySpec};

/// The label by which an entry refuses automatic addresses.
const AUTO_ALLOCATE: &str = "networking.istio.io/enable-autoallocate-ip";

impl<'v> Compiler<'v, '_> {
    pub(super) fn workload_entries(&mut self) {
        let all = self.of_kind(Kind::WorkloadEntry, |object| {
            if let Object::WorkloadEntry(entry) = object { Some(entry) } else { None }
        });
        for (key, entry) in all {
            let uid = format!(
                "{}/networking.istio.io/WorkloadEntry/{}/{}",
                self.options.cluster_id, key.namespace, key.name
            );
            let workload = self.machine(uid.into(), &key, key.name.clone(), &entry.spec);
            let labels = entry.spec.labels.as_ref().unwrap_or(&entry.metadata.labels);
            self.add(workload, labels);
        }
    }

    pub(super) fn service_entries(&mut self) {
        let all = self.of_kind(Kind::ServiceEntry, |object| {
            if let Object::ServiceEntry(entry) = object { Some(&**entry) } else { None }
        });
        let given = match &self.view.automatic {
            Some(given) => given.clone(),
            None => {
                let mut wants = automatic::Wants::default();
                all.iter().for_each(|(key, entry)| wants.add(&key.namespace, entry));
                Arc::new(automatic::give(&wants))
            }
        };
        for (key, entry) in all {
            let to = entry.spec.export_to.iter().flatten().map(String::as_str);
            self.check_export(&key, "spec.exportTo", to);
            for host in &entry.spec.hosts {
                self.host(&key, entry, host, &given);
            }
            if entry.resolution() == Resolution::None {
                continue;
            }
            for (index, endpoint) in entry.spec.endpoints.iter().flatten().enumerate() {
                self.entry_endpoint(&key, entry, index, endpoint);
            }
            if entry.resolution() == Resolution::Dns && !has_endpoints(entry) {
                self.named_hosts(&key, entry);
            }
            self.entry_selection(&key, entry);
        }
    }

    /// The hosts themselves are the endpoints, at whatever address DNS has for them.
    fn named_hosts(&mut self, key: &ObjectKey, entry: &'v ServiceEntry) {
        for host in entry.spec.hosts.iter().filter(|host| !host.starts_with('*')) {
            let uid = format!(
                "{}/networking.istio.io/ServiceEntry/{}/{}/{host}",
                self.options.cluster_id, key.namespace, key.name
            );
            let spec = WorkloadEntrySpec::default();
            let mut workload = self.machine(uid.into(), key, key.name.clone(), &spec);
            workload.hostname = host.to_ascii_lowercase().into();
            let name = ServiceKey { namespace: key.namespace.clone(), hostname: host.as_str().into() };
            workload.services.insert(name, mapped(entry, &spec));
            self.add(workload, &NO_LABELS);
        }
    }

    /// Under the cluster's domain ztunnel believes in DNS only the namespace that a name has in it, and no wildcard.
    fn check_host(&mut self, key: &ObjectKey, host: &str) {
        let domain = &*self.options.cluster_domain;
        let inside = host.strip_suffix(domain).is_some_and(|front| front.is_empty() || front.ends_with('.'));
        let own = host.ends_with(&format!(".{}.svc.{domain}", key.namespace));
        if inside && (host.starts_with('*') || !own) {
            let reason = format!(
                "{host} is under the cluster's domain: DNS tells it to pods of {} alone, and a wildcard to nobody",
                key.namespace
            );
            self.warn(key, "spec.hosts", reason);
        }
    }

    fn host(&mut self, key: &ObjectKey, entry: &ServiceEntry, host: &str, automatic: &automatic::Given) {
        let name = ServiceKey { namespace: key.namespace.clone(), hostname: host.into() };
        self.check_host(key, host);
        let namespace = self.namespace_metadata(&key.namespace);
        let mut from = vec![&entry.metadata.labels];
        from.extend(namespace.map(|metadata| &metadata.labels));
        let mut subject_alt_names = Vec::new();
        for (index, text) in entry.spec.subject_alt_names.iter().flatten().enumerate() {
            match text.parse::<Identity>() {
                Ok(identity) => subject_alt_names.push(identity),
                Err(error) => self.warn(key, &format!("spec.subjectAltNames[{index}]"), error.to_string()),
            }
        }
        let network = self.options.network.clone();
        let mut addresses: Vec<_> = entry.addresses().collect();
        if addresses.is_empty() {
            addresses.extend(entry.given(host));
        }
        if addresses.is_empty() && wants_address(entry, host) {
            match automatic.get(&name) {
                Some(given) => addresses.extend(given),
                None => self.warn(key, "spec.addresses", "no automatic address is left for this host"),
            }
        }
        if addresses.is_empty() {
            // Its name is the pod's resolver's to tell, and no connection can be known to be for it.
            let reason =
                format!("{host} has no address of its own: connections to it are not told from others");
            self.warn(key, "spec.addresses", reason);
            return;
        }
        let service = Service {
            key: name.clone(),
            name: key.name.clone(),
            addresses: addresses
                .into_iter()
                .map(|address| NetworkAddress { network: network.clone(), address })
                .collect(),
            ports: entry
                .spec
                .ports
                .iter()
                .flatten()
                .map(|port| PortMapping {
                    service_port: port.number,
                    target_port: port.target_port.unwrap_or(port.number),
                })
                .collect(),
            subject_alt_names,
            waypoint: self.waypoint_of_service(key, &from),
            allow_unhealthy: false,
            node_local: false,
            families: Families::Any,
            passthrough: entry.resolution() == Resolution::None,
            canonical: false,
        };
        match self.out.services.entry(name) {
            Entry::Vacant(place) => {
                place.insert(service);
            }
            Entry::Occupied(taken) => {
                let name = taken.key();
                let reason = format!("{name} is a service already; this entry of the same host is not used");
                self.warn(key, "spec.hosts", reason);
            }
        }
    }

    fn entry_endpoint(
        &mut self,
        key: &ObjectKey,
        entry: &'v ServiceEntry,
        index: usize,
        spec: &'v WorkloadEntrySpec,
    ) {
        let uid = format!(
            "{}/networking.istio.io/ServiceEntry/{}/{}/{index}",
            self.options.cluster_id, key.namespace, key.name
        );
        let name: Arc<str> = format!("{}-{index}", key.name).into();
        let mut workload = self.machine(uid.into(), key, name, spec);
        // An endpoint that is a pod or a machine of the mesh must be met as such, with its identity.
        let known = workload.addresses.iter().find_map(|address| self.by_address.get(address)).cloned();
        let ports = mapped(entry, spec);
        let services = entry.spec.hosts.iter().map(|host| {
            (ServiceKey { namespace: key.namespace.clone(), hostname: host.as_str().into() }, ports.clone())
        });
        match known.and_then(|uid| self.out.workloads.get_mut(&uid)) {
            Some(known) => known.services.extend(services),
            None => {
                workload.services.extend(services);
                self.add(workload, spec.labels.as_ref().unwrap_or(&NO_LABELS));
            }
        }
    }

    fn entry_selection(&mut self, key: &ObjectKey, entry: &ServiceEntry) {
        let Some(selector) = &entry.spec.workload_selector else { return };
        for uid in self.select(&key.namespace, &selector.labels) {
            let Some(workload) = self.out.workloads.get_mut(&uid) else { continue };
            for host in &entry.spec.hosts {
                let name = ServiceKey { namespace: key.namespace.clone(), hostname: host.as_str().into() };
                workload.services.insert(name, mapped(entry, &WorkloadEntrySpec::default()));
            }
        }
    }

    fn machine(&self, uid: Arc<str>, key: &ObjectKey, name: Arc<str>, spec: &WorkloadEntrySpec) -> Workload {
        let label = |name: &str| spec.labels.as_ref().and_then(|labels| labels.get(name));
        let mut locality = spec.locality.as_deref().unwrap_or_default().split('/');
        let mut part = || locality.next().unwrap_or_default().into();
        Workload {
            service_account: spec.service_account.clone().unwrap_or_else(|| "default".into()),
            trust_domain: self.options.trust_domain.clone(),
            network: spec.network.clone().unwrap_or_else(|| self.options.network.clone()),
            addresses: spec.address.iter().filter_map(|address| address.parse().ok()).collect(),
            hostname: spec.hostname().unwrap_or_default().to_ascii_lowercase().into(),
            cluster_id: self.options.cluster_id.clone(),
            canonical_name: label("app").map_or_else(|| name.clone(), Arc::from),
            // A machine that runs a ztunnel of its own says so, as Istio has it.
            tunnel: if label("networking.istio.io/tunnel") == Some("http") {
                Tunnel::Hbone
            } else {
                Tunnel::None
            },
            locality: Locality { region: part(), zone: part(), subzone: part() },
            ..Workload::named(uid, key.namespace.clone(), name)
        }
    }
}

/// Whether a host is to have an address of the automatic ranges. One that is a wildcard is many hosts, and without
/// resolution whoever is dialled would have to be the address itself.
pub(super) fn wants_address(entry: &ServiceEntry, host: &str) -> bool {
    let refused = entry.metadata.label(AUTO_ALLOCATE) == Some("false");
    let named = entry.spec.addresses.as_ref().is_some_and(|addresses| !addresses.is_empty());
    !refused && !named && entry.resolution() != Resolution::None && !host.starts_with('*')
}

fn has_endpoints(entry: &ServiceEntry) -> bool {
    entry.spec.workload_selector.is_some()
        || entry.spec.endpoints.as_ref().is_some_and(|endpoints| !endpoints.is_empty())
}

/// The entry's ports as the endpoint has them: by the endpoint's own names first.
fn mapped(entry: &ServiceEntry, endpoint: &WorkloadEntrySpec) -> Vec<PortMapping> {
    let own = |name: &str| endpoint.ports.as_ref().and_then(|ports| ports.get(name)).copied();
    let ports = entry.spec.ports.iter().flatten();
    ports
        .map(|port| PortMapping {
            service_port: port.number,
            target_port: own(&port.name).or(port.target_port).unwrap_or(port.number),
        })
        .collect()
}
