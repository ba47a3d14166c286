//! `mesh` types → discovery resources. The same object always encodes to the same bytes, so a
//! resource's version is the digest of its bytes: it survives a restart of control, and a client that
//! comes back is sent only what differs.

use std::{net::IpAddr, sync::Arc};

use aws_lc_rs::digest;
use bytes::Bytes;
use mesh::{
    Action, Families, GatewayAddress, Match, NetworkAddress, Policy, PortMapping, Scope, Service, ServiceKey,
    StringMatch, Tunnel, Workload, WorkloadKind,
};
use prost::Message;
use proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, Any, discovery, security, workload as wire};

/// One encoded resource, shared by every client it is sent to.
#[derive(Debug)]
pub struct Resource {
    pub name: Arc<str>,
    pub version: String,
    /// `network/IP` of each address, by which it may be asked for.
    pub aliases: Vec<String>,
    /// Names of the services this resource is an endpoint of.
    pub services: Vec<String>,
    /// A policy that takes effect only where a workload names it.
    pub by_selector: bool,
    any: Any,
}

/// Equal names and versions are equal resources: the version is a digest of the content.
impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version && self.name == other.name
    }
}

impl Eq for Resource {}

impl Resource {
    /// The resource as it goes on the wire; the encoded object is not copied.
    pub fn on_the_wire(&self) -> discovery::Resource {
        discovery::Resource {
            name: self.name.to_string(),
            version: self.version.clone(),
            aliases: self.aliases.clone(),
            resource: Some(self.any.clone()),
            ttl: None,
        }
    }

    /// What a client said it holds: nothing is known of it but name and version.
    pub fn held(name: Arc<str>, version: String) -> Self {
        Self {
            name,
            version,
            aliases: Vec::new(),
            services: Vec::new(),
            by_selector: false,
            any: Any::default(),
        }
    }

    fn new(name: Arc<str>, type_url: &str, message: &impl Message) -> Self {
        let value = Bytes::from(message.encode_to_vec());
        let digest = digest::digest(&digest::SHA256, &value);
        let version = digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let any = Any { type_url: type_url.to_owned(), value };
        Self { any, ..Self::held(name, version) }
    }
}

/// Encodes a workload; it is named by its uid.
pub(super) fn workload(from: &Workload) -> Resource {
    let alias = |address: &IpAddr| format!("{}/{address}", from.network);
    let message = wire::Address { r#type: Some(wire::address::Type::Workload(workload_message(from))) };
    Resource {
        aliases: from.addresses.iter().map(alias).collect(),
        services: from.services.keys().map(ServiceKey::to_string).collect(),
        ..Resource::new(from.uid.clone(), ADDRESS_TYPE, &message)
    }
}

/// Encodes a service; it is named `namespace/hostname`.
pub(super) fn service(from: &Service) -> Resource {
    let alias = |at: &NetworkAddress| format!("{}/{}", at.network, at.address);
    let message = wire::Address { r#type: Some(wire::address::Type::Service(service_message(from))) };
    Resource {
        aliases: from.addresses.iter().map(alias).collect(),
        ..Resource::new(from.key.to_string().into(), ADDRESS_TYPE, &message)
    }
}

/// Encodes a policy; it is named `namespace/name`.
pub(super) fn policy(from: &Policy) -> Resource {
    Resource {
        by_selector: from.scope == Scope::WorkloadSelector,
        ..Resource::new(from.key.to_string().into(), AUTHORIZATION_TYPE, &policy_message(from))
    }
}

fn workload_message(from: &Workload) -> wire::Workload {
    let kind = match from.workload_kind {
        WorkloadKind::Deployment => wire::WorkloadType::Deployment,
        WorkloadKind::CronJob => wire::WorkloadType::Cronjob,
        WorkloadKind::Pod => wire::WorkloadType::Pod,
        WorkloadKind::Job => wire::WorkloadType::Job,
    };
    let tunnel = match from.tunnel {
        Tunnel::None => wire::TunnelProtocol::None,
        Tunnel::Hbone => wire::TunnelProtocol::Hbone,
    };
    let status = if from.healthy { wire::WorkloadStatus::Healthy } else { wire::WorkloadStatus::Unhealthy };
    let locality = (from.locality != mesh::Locality::default()).then(|| wire::Locality {
        region: from.locality.region.to_string(),
        zone: from.locality.zone.to_string(),
        subzone: from.locality.subzone.to_string(),
    });
    let services =
        from.services.iter().map(|(key, ports)| (key.to_string(), wire::PortList { ports: mappings(ports) }));
    wire::Workload {
        uid: from.uid.to_string(),
        name: from.name.to_string(),
        namespace: from.namespace.to_string(),
        addresses: from.addresses.iter().map(|&address| octets(address)).collect(),
        hostname: from.hostname.to_string(),
        network: from.network.to_string(),
        tunnel_protocol: tunnel.into(),
        trust_domain: from.trust_domain.to_string(),
        service_account: from.service_account.to_string(),
        waypoint: from.waypoint.as_ref().map(gateway),
        network_gateway: from.network_gateway.as_ref().map(gateway),
        node: from.node.to_string(),
        canonical_name: from.canonical_name.to_string(),
        canonical_revision: from.canonical_revision.to_string(),
        workload_type: kind.into(),
        workload_name: from.workload_name.to_string(),
        native_tunnel: from.native_tunnel,
        services: services.collect(),
        authorization_policies: from.authorization_policies.iter().map(ToString::to_string).collect(),
        status: status.into(),
        cluster_id: from.cluster_id.to_string(),
        locality,
        ..Default::default()
    }
}

fn service_message(from: &Service) -> wire::Service {
    use wire::load_balancing::{HealthPolicy, Mode, Scope};
    let load_balancing =
        (from.allow_unhealthy || from.node_local || from.passthrough).then(|| wire::LoadBalancing {
            routing_preference: if from.node_local { vec![Scope::Node.into()] } else { Vec::new() },
            mode: match (from.passthrough, from.node_local) {
                (true, _) => Mode::Passthrough,
                (false, true) => Mode::Strict,
                (false, false) => Mode::UnspecifiedMode,
            }
            .into(),
            health_policy: if from.allow_unhealthy {
                HealthPolicy::AllowAll
            } else {
                HealthPolicy::OnlyHealthy
            }
            .into(),
            ..Default::default()
        });
    wire::Service {
        name: from.name.to_string(),
        namespace: from.key.namespace.to_string(),
        hostname: from.key.hostname.to_string(),
        addresses: from.addresses.iter().map(network_address).collect(),
        ports: mappings(&from.ports),
        subject_alt_names: from.subject_alt_names.iter().map(ToString::to_string).collect(),
        waypoint: from.waypoint.as_ref().map(gateway),
        load_balancing,
        ip_families: families(from).into(),
        ..Default::default()
    }
}

fn families(from: &Service) -> wire::IpFamilies {
    let v4 = from.addresses.iter().any(|at| at.address.is_ipv4());
    let v6 = from.addresses.iter().any(|at| at.address.is_ipv6());
    match (v4, v6, from.families) {
        (true, true, _) => wire::IpFamilies::Dual,
        (true, false, _) | (false, false, Families::V4) => wire::IpFamilies::Ipv4Only,
        (false, true, _) | (false, false, Families::V6) => wire::IpFamilies::Ipv6Only,
        (false, false, Families::Any) => wire::IpFamilies::Automatic,
    }
}

fn policy_message(from: &Policy) -> security::Authorization {
    let scope = match from.scope {
        Scope::Global => security::Scope::Global,
        Scope::Namespace => security::Scope::Namespace,
        Scope::WorkloadSelector => security::Scope::WorkloadSelector,
    };
    let action = match from.action {
        Action::Allow => security::Action::Allow,
        Action::Deny => security::Action::Deny,
    };
    let clause = |clause: &mesh::Clause| security::Clause {
        matches: clause.matches.iter().map(match_message).collect(),
    };
    // On the wire a rule without clauses matches everything, in `mesh` nothing: it is left out.
    let rules = from.rules.iter().filter(|rule| !rule.clauses.is_empty());
    security::Authorization {
        name: from.key.name.to_string(),
        namespace: from.key.namespace.to_string(),
        scope: scope.into(),
        action: action.into(),
        rules: rules
            .map(|rule| security::Rule { clauses: rule.clauses.iter().map(clause).collect() })
            .collect(),
        dry_run: from.dry_run,
    }
}

fn match_message(from: &Match) -> security::Match {
    security::Match {
        namespaces: texts(&from.namespaces),
        not_namespaces: texts(&from.not_namespaces),
        service_accounts: accounts(&from.service_accounts),
        not_service_accounts: accounts(&from.not_service_accounts),
        principals: texts(&from.principals),
        not_principals: texts(&from.not_principals),
        source_ips: blocks(&from.source_ips),
        not_source_ips: blocks(&from.not_source_ips),
        destination_ips: blocks(&from.destination_ips),
        not_destination_ips: blocks(&from.not_destination_ips),
        destination_ports: from.destination_ports.iter().copied().map(u32::from).collect(),
        not_destination_ports: from.not_destination_ports.iter().copied().map(u32::from).collect(),
    }
}

fn texts(from: &[StringMatch]) -> Vec<security::StringMatch> {
    use security::string_match::MatchType;
    from.iter()
        .map(|from| security::StringMatch {
            match_type: Some(match from {
                StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
                StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
                StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
                StringMatch::Presence => MatchType::Presence(()),
            }),
        })
        .collect()
}

fn accounts(from: &[mesh::ServiceAccountMatch]) -> Vec<security::ServiceAccountMatch> {
    from.iter()
        .map(|from| security::ServiceAccountMatch {
            namespace: from.namespace.to_string(),
            service_account: from.service_account.to_string(),
        })
        .collect()
}

fn blocks(from: &[ipnet::IpNet]) -> Vec<security::Address> {
    from.iter()
        .map(|block| security::Address {
            address: octets(block.network()),
            length: u32::from(block.prefix_len()),
        })
        .collect()
}

fn mappings(from: &[PortMapping]) -> Vec<wire::Port> {
    from.iter()
        .map(|mapping| wire::Port {
            service_port: u32::from(mapping.service_port),
            target_port: u32::from(mapping.target_port),
        })
        .collect()
}

fn gateway(from: &GatewayAddress) -> wire::GatewayAddress {
    use wire::gateway_address::Destination;
    let (destination, port) = match from {
        GatewayAddress::Address { address, hbone_port } => {
            (Destination::Address(network_address(address)), hbone_port)
        }
        GatewayAddress::Host { service, hbone_port } => (
            Destination::Hostname(wire::NamespacedHostname {
                namespace: service.namespace.to_string(),
                hostname: service.hostname.to_string(),
            }),
            hbone_port,
        ),
    };
    wire::GatewayAddress { destination: Some(destination), hbone_mtls_port: u32::from(*port) }
}

fn network_address(from: &NetworkAddress) -> wire::NetworkAddress {
    wire::NetworkAddress { network: from.network.to_string(), address: octets(from.address) }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
