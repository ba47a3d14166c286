//! `istio.workload.Address` → [`mesh::Workload`] or [`mesh::Service`].

use std::collections::BTreeMap;

use mesh::{
    Families, GatewayAddress, Identity, Locality, NetworkAddress, PolicyKey, PortMapping, Service,
    ServiceKey, Tunnel, WaypointRequired, Workload, WorkloadKind,
};
use prost::Message;
use proto::workload as wire;

use super::{Address, Converter, Invalid, invalid, ip, port, required};

impl Converter {
    /// Decodes and converts a resource of type `istio.workload.Address` that was sent as `name`.
    pub fn address(&mut self, name: &str, encoded: &[u8]) -> Result<Address, Invalid> {
        let address = wire::Address::decode(encoded).map_err(|error| Invalid::Encoding(error.to_string()))?;
        let (found, address) = match address.r#type {
            Some(wire::address::Type::Workload(workload)) => {
                (workload.uid.clone(), Address::Workload(self.workload(&workload)?))
            }
            Some(wire::address::Type::Service(service)) => {
                let service = self.service(&service)?;
                (service.key.to_string(), Address::Service(service))
            }
            None => return Err(invalid("type", "it is neither a workload nor a service")),
        };
        if found == name { Ok(address) } else { Err(Invalid::Name { wanted: name.to_owned(), found }) }
    }

    /// Converts a workload.
    pub fn workload(&mut self, from: &wire::Workload) -> Result<Workload, Invalid> {
        let mut addresses = Vec::with_capacity(from.addresses.len());
        for address in &from.addresses {
            addresses.push(ip("addresses", address)?);
        }
        let mut services = BTreeMap::new();
        for (name, ports) in &from.services {
            services.insert(self.service_key("services", name)?, mappings("services", &ports.ports)?);
        }
        let mut authorization_policies = Vec::with_capacity(from.authorization_policies.len());
        for name in &from.authorization_policies {
            authorization_policies.push(self.policy_key("authorization_policies", name)?);
        }
        let trust_domain = self.trust_domain.clone();
        let (waypoint_required, routed_from) = self.behind_waypoint(&from.extensions)?;
        Ok(Workload {
            uid: required("uid", &from.uid)?.into(),
            name: self.share(&from.name),
            namespace: self.share(&from.namespace),
            service_account: self.share_or(&from.service_account, "default"),
            trust_domain: self.share_or(&from.trust_domain, &trust_domain),
            network: self.share(&from.network),
            addresses,
            hostname: self.share(&from.hostname),
            node: self.share(&from.node),
            cluster_id: self.share(&from.cluster_id),
            canonical_name: self.share(&from.canonical_name),
            canonical_revision: self.share(&from.canonical_revision),
            workload_name: self.share(&from.workload_name),
            workload_kind: kind(from.workload_type),
            tunnel: tunnel(from.tunnel_protocol)?,
            native_tunnel: from.native_tunnel,
            waypoint: self.gateway("waypoint", from.waypoint.as_ref())?,
            waypoint_required,
            routed_from,
            network_gateway: self.gateway("network_gateway", from.network_gateway.as_ref())?,
            services,
            authorization_policies,
            // A state we do not know is no promise of health.
            healthy: from.status == wire::WorkloadStatus::Healthy as i32,
            locality: self.locality(from.locality.as_ref()),
        })
    }

    /// What our own extension says of waypoints; those of others are theirs.
    fn behind_waypoint(
        &mut self,
        from: &[wire::Extension],
    ) -> Result<(Option<WaypointRequired>, Vec<ServiceKey>), Invalid> {
        let Some(config) = from
            .iter()
            .find(|extension| extension.name == proto::WORKLOAD_WAYPOINT)
            .and_then(|extension| extension.config.as_ref())
        else {
            return Ok((None, Vec::new()));
        };
        if config.type_url != proto::WORKLOAD_WAYPOINT_TYPE {
            return Err(Invalid::Type(config.type_url.clone()));
        }
        let said = proto::waypoint::WorkloadWaypoint::decode(&*config.value)
            .map_err(|error| Invalid::Encoding(error.to_string()))?;
        let except_ports = said.except_ports.iter().map(|&number| port("extensions", number));
        let of = said.required_of.iter().map(|name| self.service_key("extensions", name));
        let required = WaypointRequired {
            except_ports: except_ports.collect::<Result<_, _>>()?,
            of: of.collect::<Result<_, _>>()?,
        };
        let routed_from = said.routed_from.iter().map(|name| self.service_key("extensions", name));
        Ok((said.required.then_some(required), routed_from.collect::<Result<_, _>>()?))
    }

    /// Converts a service.
    pub fn service(&mut self, from: &wire::Service) -> Result<Service, Invalid> {
        let mut addresses = Vec::with_capacity(from.addresses.len());
        for address in &from.addresses {
            addresses.push(self.network_address("addresses", address)?);
        }
        let mut subject_alt_names = Vec::new();
        for name in &from.subject_alt_names {
            subject_alt_names.push(
                name.parse::<Identity>().map_err(|error| invalid("subject_alt_names", error.to_string()))?,
            );
        }
        let balancing = from.load_balancing.as_ref();
        Ok(Service {
            key: ServiceKey {
                namespace: self.share(required("namespace", &from.namespace)?),
                hostname: self.share(required("hostname", &from.hostname)?),
            },
            name: self.share(&from.name),
            addresses,
            ports: mappings("ports", &from.ports)?,
            subject_alt_names,
            waypoint: self.gateway("waypoint", from.waypoint.as_ref())?,
            allow_unhealthy: balancing.is_some_and(|balancing| {
                balancing.health_policy == wire::load_balancing::HealthPolicy::AllowAll as i32
            }),
            node_local: balancing.is_some_and(|balancing| {
                balancing.mode == wire::load_balancing::Mode::Strict as i32
                    && balancing.routing_preference.contains(&(wire::load_balancing::Scope::Node as i32))
            }),
            passthrough: balancing
                .is_some_and(|balancing| balancing.mode == wire::load_balancing::Mode::Passthrough as i32),
            canonical: from.canonical,
            families: match wire::IpFamilies::try_from(from.ip_families) {
                Ok(wire::IpFamilies::Ipv4Only) => Families::V4,
                Ok(wire::IpFamilies::Ipv6Only) => Families::V6,
                Ok(wire::IpFamilies::Automatic | wire::IpFamilies::Dual) | Err(_) => Families::Any,
            },
        })
    }

    fn gateway(
        &mut self,
        field: &'static str,
        from: Option<&wire::GatewayAddress>,
    ) -> Result<Option<GatewayAddress>, Invalid> {
        use wire::gateway_address::Destination;
        let Some(from) = from else { return Ok(None) };
        let hbone_port = port(field, from.hbone_mtls_port)?;
        match &from.destination {
            Some(Destination::Address(address)) => {
                let address = self.network_address(field, address)?;
                Ok(Some(GatewayAddress::Address { address, hbone_port }))
            }
            Some(Destination::Hostname(host)) => {
                let service = ServiceKey {
                    namespace: self.share(required(field, &host.namespace)?),
                    hostname: self.share(required(field, &host.hostname)?),
                };
                Ok(Some(GatewayAddress::Host { service, hbone_port }))
            }
            // A gateway that must be passed and is not named must not become "no gateway".
            None => Err(invalid(field, "it names neither an address nor a host")),
        }
    }

    fn network_address(
        &mut self,
        field: &'static str,
        from: &wire::NetworkAddress,
    ) -> Result<NetworkAddress, Invalid> {
        Ok(NetworkAddress { network: self.share(&from.network), address: ip(field, &from.address)? })
    }

    fn locality(&mut self, from: Option<&wire::Locality>) -> Locality {
        from.map_or_else(Locality::default, |from| Locality {
            region: self.share(&from.region),
            zone: self.share(&from.zone),
            subzone: self.share(&from.subzone),
        })
    }

    pub(super) fn service_key(&mut self, field: &'static str, name: &str) -> Result<ServiceKey, Invalid> {
        let (namespace, hostname) = pair(field, name)?;
        Ok(ServiceKey { namespace: self.share(namespace), hostname: self.share(hostname) })
    }

    /// Parses `namespace/name`.
    pub fn policy_key(&mut self, field: &'static str, name: &str) -> Result<PolicyKey, Invalid> {
        let (namespace, name) = pair(field, name)?;
        Ok(PolicyKey { namespace: self.share(namespace), name: self.share(name) })
    }
}

fn pair<'a>(field: &'static str, name: &'a str) -> Result<(&'a str, &'a str), Invalid> {
    match name.split_once('/') {
        Some((namespace, rest)) if !namespace.is_empty() && !rest.is_empty() => Ok((namespace, rest)),
        Some(_) | None => Err(invalid(field, format!("{name:?} is not of the form namespace/name"))),
    }
}

fn mappings(field: &'static str, from: &[wire::Port]) -> Result<Vec<PortMapping>, Invalid> {
    from.iter()
        .map(|mapping| {
            Ok(PortMapping {
                service_port: port(field, mapping.service_port)?,
                target_port: port(field, mapping.target_port)?,
            })
        })
        .collect()
}

/// Only reported, so an unknown kind is no reason to refuse the workload.
fn kind(from: i32) -> WorkloadKind {
    match wire::WorkloadType::try_from(from) {
        Ok(wire::WorkloadType::Deployment) => WorkloadKind::Deployment,
        Ok(wire::WorkloadType::Cronjob) => WorkloadKind::CronJob,
        Ok(wire::WorkloadType::Job) => WorkloadKind::Job,
        Ok(wire::WorkloadType::Pod) | Err(_) => WorkloadKind::Pod,
    }
}

/// An unknown tunnel must not become plain text.
fn tunnel(from: i32) -> Result<Tunnel, Invalid> {
    match wire::TunnelProtocol::try_from(from) {
        Ok(wire::TunnelProtocol::None) => Ok(Tunnel::None),
        Ok(wire::TunnelProtocol::Hbone) => Ok(Tunnel::Hbone),
        Err(_) => Err(invalid("tunnel_protocol", format!("{from} is not a tunnel we know"))),
    }
}
