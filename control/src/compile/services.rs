//! Services, and which workloads are behind them.

use mesh::{NetworkAddress, PortMapping, Service, ServiceKey};

use super::Compiler;
use crate::manifest::{self, Kind, Object, ObjectKey, ServicePort, Target};

/// Istio's annotation of a Service with the namespaces that are to see it.
pub(crate) const EXPORT_TO: &str = "networking.istio.io/exportTo";

impl Compiler<'_, '_> {
    pub(super) fn services(&mut self) {
        let all = self
            .of_kind(Kind::Service, |object| if let Object::Service(s) = object { Some(&**s) } else { None });
        for (key, service) in all {
            if service.external_name {
                self.warn(&key, "spec.type", "an ExternalName is an alias in DNS; the mesh does not see it");
                continue;
            }
            let to = service.metadata.annotation(EXPORT_TO).into_iter();
            self.check_export(
                &key,
                EXPORT_TO,
                to.flat_map(|list| list.split(',').map(str::trim).filter(|one| !one.is_empty())),
            );
            let compiled = self.service(&key, service);
            let name = compiled.key.clone();
            self.out.services.insert(name.clone(), compiled);
            self.endpoints(&key, service, &name);
        }
    }

    /// Every node holds every host, as in Istio's ambient mode: that only some namespaces are to see one is not heeded.
    pub(super) fn check_export<'e>(
        &mut self,
        key: &ObjectKey,
        field: &str,
        mut to: impl Iterator<Item = &'e str> + Clone,
    ) {
        let limited = to.clone().next().is_some() && !to.any(|namespace| namespace == "*");
        if limited {
            let reason =
                "not heeded: all namespaces see it; who may call is for an AuthorizationPolicy to say";
            self.warn(key, field, reason);
        }
    }

    pub(super) fn service_key(&self, namespace: &str, name: &str) -> ServiceKey {
        let hostname = format!("{name}.{namespace}.svc.{}", self.options.cluster_domain);
        ServiceKey { namespace: namespace.into(), hostname: hostname.into() }
    }

    fn service(&mut self, key: &ObjectKey, service: &manifest::Service) -> Service {
        let namespace = self.namespace_metadata(&key.namespace);
        let mut from = vec![&service.metadata.labels];
        from.extend(namespace.map(|metadata| &metadata.labels));
        let waypoint =
            if self.is_waypoint_service(key, service) { None } else { self.waypoint_of_service(key, &from) };
        let network = self.options.network.clone();
        let addresses = service.addresses.iter();
        Service {
            key: self.service_key(&key.namespace, &key.name),
            name: key.name.clone(),
            addresses: addresses
                .map(|address| NetworkAddress { network: network.clone(), address: *address })
                .collect(),
            ports: service.ports.iter().map(mapping).collect(),
            subject_alt_names: Vec::new(),
            waypoint,
            allow_unhealthy: service.publish_not_ready_addresses,
            node_local: service.node_local,
            families: service.families,
            passthrough: false,
            canonical: true,
        }
    }
}

/// The service's own view of a port; a named target is each workload's to say.
fn mapping(port: &ServicePort) -> PortMapping {
    let target_port = match port.target {
        Target::Number(number) => number,
        Target::Name(_) => 0,
    };
    PortMapping { service_port: port.port, target_port }
}
