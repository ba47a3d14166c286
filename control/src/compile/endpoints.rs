//! Which workloads are behind a service: its EndpointSlices where it has any, else its selector.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use mesh::{PortMapping, ServiceKey, Workload};

use super::{Compiler, services::tcp_ports};
use crate::manifest::{self, EndpointSlice, IntOrName, Kind, Object, ObjectKey, SliceEndpoint};

impl Compiler<'_, '_> {
    pub(super) fn endpoints(&mut self, key: &ObjectKey, service: &manifest::Service, name: &ServiceKey) {
        let slices: Vec<_> = self
            .all_slices()
            .into_iter()
            .filter(|(slice_key, slice)| {
                slice_key.namespace == key.namespace && slice.service() == Some(&*key.name)
            })
            .collect();
        if slices.is_empty() {
            self.select(key, service, name);
        }
        for (slice_key, slice) in slices {
            self.slice(&slice_key, slice, service, name);
        }
    }

    /// Pods and WorkloadEntries of the service's namespace that have its labels.
    fn select(&mut self, key: &ObjectKey, service: &manifest::Service, name: &ServiceKey) {
        let Some(selector) = service.spec.selector.as_ref().filter(|selector| !selector.is_empty()) else {
            return;
        };
        let chosen: Vec<Arc<str>> = self
            .out
            .workloads
            .values()
            .filter(|workload| workload.namespace == key.namespace)
            .filter(|workload| manifest::selects(selector, Some(self.labels_of(&workload.uid))))
            .map(|workload| workload.uid.clone())
            .collect();
        for uid in chosen {
            let ports = self.named_ports(&uid, service);
            if let Some(workload) = self.out.workloads.get_mut(&uid) {
                workload.services.insert(name.clone(), ports);
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
        let target = |port: &manifest::ServicePort| match &port.target_port {
            None => Some(port.port),
            Some(IntOrName::Number(number)) => Some(*number),
            Some(IntOrName::Name(name)) => pod.and_then(|pod| pod.named_port(name)),
        };
        let ports = tcp_ports(service)
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
        if slice.address_type.as_deref() == Some("FQDN") {
            self.warn(key, "addressType", "FQDN endpoints need DNS in the mesh, which is not there yet");
            return;
        }
        // A slice names its ports as the service does, and has their real numbers.
        let target: BTreeMap<&str, u16> = slice
            .ports
            .iter()
            .flatten()
            .filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))
            .filter_map(|port| Some((port.name.as_deref().unwrap_or_default(), port.port?)))
            .collect();
        let ports: Vec<PortMapping> = tcp_ports(service)
            .filter_map(|port| {
                let target_port = *target.get(port.name.as_deref().unwrap_or_default())?;
                Some(PortMapping { service_port: port.port, target_port })
            })
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            if ready || service.spec.publish_not_ready_addresses {
                self.slice_endpoint(key, endpoint, &ports, name);
            }
        }
    }

    fn slice_endpoint(
        &mut self,
        key: &ObjectKey,
        endpoint: &SliceEndpoint,
        ports: &[PortMapping],
        name: &ServiceKey,
    ) {
        let addresses: Vec<IpAddr> =
            endpoint.addresses.iter().filter_map(|address| address.parse().ok()).collect();
        let Some(first) = addresses.first().copied() else { return };
        let pod = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod");
        let uid: Arc<str> = match pod {
            Some(pod) => format!("{}//Pod/{}/{}", self.options.cluster_id, key.namespace, pod.name).into(),
            None => {
                let at = self.out.workloads.values().find(|workload| workload.addresses.contains(&first));
                at.map_or_else(
                    || {
                        let cluster = &self.options.cluster_id;
                        format!(
                            "{cluster}/discovery.k8s.io/EndpointSlice/{}/{}/{first}",
                            key.namespace, key.name
                        )
                        .into()
                    },
                    |workload| workload.uid.clone(),
                )
            }
        };
        if pod.is_none() && !self.out.workloads.contains_key(&uid) {
            let workload = Workload {
                trust_domain: self.options.trust_domain.clone(),
                cluster_id: self.options.cluster_id.clone(),
                network: self.options.network.clone(),
                node: endpoint.node_name.clone().unwrap_or_default(),
                addresses,
                ..Workload::named(uid.clone(), key.namespace.clone(), key.name.clone())
            };
            self.out.workloads.insert(uid.clone(), workload);
        }
        // An endpoint whose pod is not there (yet) is nobody's.
        if let Some(workload) = self.out.workloads.get_mut(&uid) {
            let mapped = workload.services.entry(name.clone()).or_default();
            for port in ports.iter().filter(|port| !mapped.contains(port)).copied().collect::<Vec<_>>() {
                mapped.push(port);
            }
        }
    }
}
