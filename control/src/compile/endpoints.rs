//! Which workloads are behind a service: its EndpointSlices where it has any, else its selector.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use mesh::{PortMapping, ServiceKey, Workload};

use super::{Compiler, services::tcp_ports};
use crate::manifest::{self, EndpointSlice, IntOrName, Kind, Object, ObjectKey, SliceEndpoint};

impl Compiler<'_, '_> {
    pub(super) fn endpoints(&mut self, key: &ObjectKey, service: &manifest::Service, name: &ServiceKey) {
        let slices = self.slices.get(&(key.namespace.clone(), &*key.name)).cloned().unwrap_or_default();
        if slices.is_empty() {
            self.selected(key, service, name);
        }
        for (slice_key, slice) in slices {
            self.slice(slice_key, slice, service, name);
        }
    }

    /// Pods and WorkloadEntries of the service's namespace that have its labels.
    fn selected(&mut self, key: &ObjectKey, service: &manifest::Service, name: &ServiceKey) {
        let Some(selector) = service.spec.selector.as_ref().filter(|selector| !selector.is_empty()) else {
            return;
        };
        for uid in self.select(&key.namespace, selector) {
            let ports = self.named_ports(&uid, service);
            self.join(&uid, name, &ports, service);
        }
    }

    /// Makes a workload an endpoint for these ports. With none of the service's ports it is no endpoint: an
    /// empty list would mean that the service's own mapping holds.
    fn join(&mut self, uid: &str, name: &ServiceKey, ports: &[PortMapping], service: &manifest::Service) {
        if ports.is_empty() && tcp_ports(service).next().is_some() {
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
                let uid = self.slice_endpoint(key, endpoint);
                if let Some(uid) = uid {
                    self.join(&uid, name, &ports, service);
                }
            }
        }
    }

    /// The workload behind an endpoint: the pod it names, who holds its address, or one made for it.
    fn slice_endpoint(&mut self, key: &ObjectKey, endpoint: &SliceEndpoint) -> Option<Arc<str>> {
        let addresses: Vec<IpAddr> =
            endpoint.addresses.iter().filter_map(|address| address.parse().ok()).collect();
        let first = addresses.first().copied()?;
        let cluster = &self.options.cluster_id;
        if let Some(pod) = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod") {
            return Some(format!("{cluster}//Pod/{}/{}", key.namespace, pod.name).into());
        }
        if let Some(uid) = self.by_address.get(&first) {
            return Some(uid.clone());
        }
        let uid = format!("{cluster}/discovery.k8s.io/EndpointSlice/{}/{}/{first}", key.namespace, key.name);
        let uid: Arc<str> = uid.into();
        let workload = Workload {
            trust_domain: self.options.trust_domain.clone(),
            cluster_id: self.options.cluster_id.clone(),
            network: self.options.network.clone(),
            node: endpoint.node_name.clone().unwrap_or_default(),
            addresses,
            ..Workload::named(uid.clone(), key.namespace.clone(), key.name.clone())
        };
        self.add(workload, None);
        Some(uid)
    }
}
