//! Services, and which workloads are behind them.

use mesh::{Families, NetworkAddress, PortMapping, Service, ServiceKey};

use super::Compiler;
use crate::manifest::{self, IntOrName, Kind, Object, ObjectKey, ServicePort};

impl Compiler<'_, '_> {
    pub(super) fn services(&mut self) {
        let all = self
            .of_kind(Kind::Service, |object| if let Object::Service(s) = object { Some(s) } else { None });
        for (key, service) in all {
            if service.spec.kind.as_deref() == Some("ExternalName") {
                self.warn(&key, "spec.type", "an ExternalName is an alias in DNS; the mesh does not see it");
                continue;
            }
            let compiled = self.service(&key, service);
            let name = compiled.key.clone();
            self.out.services.insert(name.clone(), compiled);
            self.endpoints(&key, service, &name);
        }
    }

    pub(super) fn service_key(&self, namespace: &str, name: &str) -> ServiceKey {
        let hostname = format!("{name}.{namespace}.svc.{}", self.options.cluster_domain);
        ServiceKey { namespace: namespace.into(), hostname: hostname.into() }
    }

    fn service(&mut self, key: &ObjectKey, service: &manifest::Service) -> Service {
        let namespace = self.namespace_metadata(&key.namespace);
        let mut from = vec![&service.metadata];
        from.extend(namespace);
        let waypoint =
            if self.is_waypoint_service(key) { None } else { self.waypoint_of_service(key, &from) };
        let network = self.options.network.clone();
        let addresses = service.addresses().into_iter();
        Service {
            key: self.service_key(&key.namespace, &key.name),
            name: key.name.clone(),
            addresses: addresses
                .map(|address| NetworkAddress { network: network.clone(), address })
                .collect(),
            ports: tcp_ports(service).map(mapping).collect(),
            subject_alt_names: Vec::new(),
            waypoint,
            allow_unhealthy: service.spec.publish_not_ready_addresses,
            node_local: service.spec.internal_traffic_policy.as_deref() == Some("Local"),
            families: families(service),
            passthrough: false,
        }
    }
}

/// The families that a headless service's names are answered in, where it says so.
fn families(service: &manifest::Service) -> Families {
    match service.spec.ip_families.as_deref() {
        Some([one]) if one == "IPv4" => Families::V4,
        Some([one]) if one == "IPv6" => Families::V6,
        _ => Families::Any,
    }
}

/// The ports that ztunnel carries.
pub(super) fn tcp_ports(service: &manifest::Service) -> impl Iterator<Item = &ServicePort> {
    service.spec.ports.iter().flatten().filter(|port| port.is_tcp())
}

/// The service's own view of a port; a named target is each workload's to say.
fn mapping(port: &ServicePort) -> PortMapping {
    let target_port = match port.target_port {
        None => port.port,
        Some(IntOrName::Number(number)) => number,
        Some(IntOrName::Name(_)) => 0,
    };
    PortMapping { service_port: port.port, target_port }
}
