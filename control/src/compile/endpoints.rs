//! Which workloads are behind a service: its EndpointSlices where it has any, else its selector.

use std::{collections::BTreeMap, sync::Arc};

use mesh::{PortMapping, ServiceKey, Workload};

use super::{Compiler, NO_LABELS};
use crate::manifest::{self, Addressed, Endpoint, EndpointSlice, Kind, Object, ObjectKey, Target};

impl Compiler<'_, '_> {
    pub(super) fn endpoints(&mut self, key: &ObjectKey, service: &manifest::Service, name: &ServiceKey) {
        let slices = self.slices.get(&(key.namespace.clone(), &*key.name)).cloned().unwrap_or_default();
        if slices.is_empty() {
            self.selected(key, service, name);
        }
        for (slice_key, slice) in slices {
            self.slice(slice_key, slice, service, name);
        }
        // By them it is known who may speak for callers.
        if self.is_waypoint_service(key, service) {
            let others = self.out.workloads.values_mut().filter(|workload| !workload.native_tunnel);
            others.for_each(|workload| drop(workload.services.remove(name)));
        }
    }

    /// Pods and WorkloadEntries of the service's namespace that have its labels.
    fn selected(&mut self, key: &ObjectKey, service: &manifest::Service, name: &ServiceKey) {
        if service.selector.is_empty() {
            return;
        }
        for uid in self.select(&key.namespace, &service.selector) {
            let ports = self.named_ports(&uid, service);
            self.join(&uid, name, &ports, service);
        }
    }

    /// Makes a workload an endpoint for these ports. With none of the service's ports it is no endpoint: an
    /// empty list would mean that the service's own mapping holds.
    fn join(&mut self, uid: &str, name: &ServiceKey, ports: &[PortMapping], service: &manifest::Service) {
        if ports.is_empty() && !service.ports.is_empty() {
            return;
        }
        // An endpoint whose pod is not there (yet) is nobody's.
        let Some(workload) = self.out.workloads.get_mut(uid) else { return };
        let mapped = workload.services.entry(name.clone()).or_default();
        for port in ports {
            if !mapped.contains(port) {
                mapped.push(*port);
            }
        }
    }

    /// The ports of `service` as the workload `uid` has them; a named port it does not have is left out,
    /// so that the workload is no endpoint for that port.
    fn named_ports(&self, uid: &str, service: &manifest::Service) -> Vec<PortMapping> {
        let Some(workload) = self.out.workloads.get(uid) else { return Vec::new() };
        let pod_key =
            ObjectKey { kind: Kind::Pod, namespace: workload.namespace.clone(), name: workload.name.clone() };
        let pod = match self.view.get(&pod_key) {
            Some(Object::Pod(pod)) => Some(pod),
            _ => None,
        };
        let target = |port: &manifest::ServicePort| match &port.target {
            Target::Number(number) => Some(*number),
            Target::Name(name) => pod.and_then(|pod| pod.named_port(name)),
        };
        let ports = service
            .ports
            .iter()
            .filter_map(|port| Some(PortMapping { service_port: port.port, target_port: target(port)? }));
        ports.collect()
    }

    fn slice(
        &mut self,
        key: &ObjectKey,
        slice: &EndpointSlice,
        service: &manifest::Service,
        name: &ServiceKey,
    ) {
        if slice.fqdn {
            self.warn(key, "addressType", "FQDN endpoints need DNS in the mesh, which is not there yet");
            return;
        }
        // A slice names its ports as the service does, and has their real numbers.
        let target: BTreeMap<&str, u16> = slice.ports.iter().map(|(name, port)| (&**name, *port)).collect();
        let ports = service.ports.iter();
        let ports: Vec<PortMapping> = ports
            .filter_map(|port| {
                let target_port = *target.get(&*port.name)?;
                Some(PortMapping { service_port: port.port, target_port })
            })
            .collect();
        for endpoint in &slice.endpoints {
            if endpoint.ready || service.publish_not_ready_addresses {
                let uid = match &endpoint.at {
                    Endpoint::Pod(pod) => {
                        Some(format!("{}//Pod/{}/{pod}", self.options.cluster_id, key.namespace).into())
                    }
                    Endpoint::Addresses(at) => self.addressed(key, at),
                };
                if let Some(uid) = uid {
                    self.join(&uid, name, &ports, service);
                }
            }
        }
    }

    /// The workload that holds an endpoint's address, or one made for it.
    fn addressed(&mut self, key: &ObjectKey, at: &Addressed) -> Option<Arc<str>> {
        let first = *at.addresses.first()?;
        if let Some(uid) = self.by_address.get(&first) {
            return Some(uid.clone());
        }
        let cluster = &self.options.cluster_id;
        let uid = format!("{cluster}/discovery.k8s.io/EndpointSlice/{}/{}/{first}", key.namespace, key.name);
        let uid: Arc<str> = uid.into();
        let workload = Workload {
            trust_domain: self.options.trust_domain.clone(),
            cluster_id: self.options.cluster_id.clone(),
            network: self.options.network.clone(),
            node: at.node.clone().unwrap_or_default(),
            addresses: at.addresses.clone(),
            ..Workload::named(uid.clone(), key.namespace.clone(), key.name.clone())
        };
        self.add(workload, &NO_LABELS);
        Some(uid)
    }
}
