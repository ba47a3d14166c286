//! `mesh` types → discovery resources. The same object always encodes to the same bytes, so a
//! resource's version is the digest of its bytes: it survives a restart of control, and a client that
//! comes back is sent only what differs.

use std::{collections::HashSet, mem::take, net::IpAddr, ops::Range, sync::Arc};

use aws_lc_rs::digest;
use bytes::{BufMut, Bytes, BytesMut};
use mesh::{
    Action, Families, GatewayAddress, Match, NetworkAddress, Policy, PortMapping, Scope, Service,
    ServiceRoutes, StringMatch, Tunnel, Workload, WorkloadKind,
};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use proto::{Any, discovery, security, workload as wire};

use super::Type;

/// One encoded resource, shared by every client it is sent to. There is one for each workload of the mesh: it
/// holds nothing that can be had from the rest.
#[derive(Debug)]
pub struct Resource {
    r#type: Type,
    /// A policy that takes effect only where a workload names it.
    pub by_selector: bool,
    version: Version,
    /// The encoded object, behind it the aliases as fields of `discovery.Resource`, and the name where that is no
    /// part of the object.
    bytes: Box<[u8]>,
    /// The end of the object, if others end alike.
    tail: Option<Arc<[u8]>>,
    /// How much of `bytes` is of the object.
    object: u32,
    /// Where in `bytes` the name is.
    name: Range<u32>,
}

/// Ends of objects. What the pods of one owner have in common is most of what is told of them, and is kept once: the
/// fields of a message may come in any order.
#[derive(Debug, Default)]
pub(crate) struct Tails(HashSet<Arc<[u8]>>);

impl Tails {
    /// Those that are in use already.
    pub(crate) fn of<'r>(resources: impl Iterator<Item = &'r Arc<Resource>>) -> Self {
        Self(resources.filter_map(|resource| resource.tail.clone()).collect())
    }

    fn share(&mut self, bytes: Vec<u8>) -> Arc<[u8]> {
        if let Some(known) = self.0.get(&*bytes) {
            return known.clone();
        }
        let tail: Arc<[u8]> = bytes.into();
        self.0.insert(tail.clone());
        tail
    }
}

/// A digest of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version([u8; 16]);

/// Characters of a version as it is told.
const VERSION: usize = 32;
/// Fields' heads that may come before the name in an object.
const NEAR: usize = 16;
/// `discovery.Resource` and `google.protobuf.Any`: fields and what they are called.
const RESOURCE_VERSION: u32 = 1;
const RESOURCE_OBJECT: u32 = 2;
const RESOURCE_NAME: u32 = 3;
/// `Address`, its workload.
const ADDRESS_WORKLOAD: u32 = 1;
const ANY_TYPE: u32 = 1;
const ANY_VALUE: u32 = 2;

/// Equal names and versions are equal resources: the version is a digest of the content.
impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version && self.name() == other.name()
    }
}

impl Eq for Resource {}

impl Version {
    fn of(parts: &[&[u8]]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        parts.iter().for_each(|part| context.update(part));
        let mut version = [0; 16];
        version.copy_from_slice(&context.finish().as_ref()[..16]);
        Self(version)
    }

    fn text(self) -> [u8; VERSION] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; VERSION];
        for (at, byte) in self.0.into_iter().enumerate() {
            text[2 * at] = DIGITS[usize::from(byte >> 4)];
            text[2 * at + 1] = DIGITS[usize::from(byte & 15)];
        }
        text
    }

    /// What was never a version of ours is a digest of itself, which is none of an object's.
    fn parse(text: &str) -> Self {
        let digit = |at: usize| text.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
        let mut version = [0; 16];
        for (at, byte) in version.iter_mut().enumerate() {
            match digit(2 * at) {
                Some(value) if text.len() == VERSION => *byte = value,
                _ => return Self::of(&[text.as_bytes()]),
            }
        }
        Self(version)
    }
}

impl Resource {
    /// What it is called in every version.
    pub fn name(&self) -> &str {
        // It was text when it was put there.
        str::from_utf8(self.part(&self.name)).unwrap_or_default()
    }

    /// What it is called in this version.
    pub fn version(&self) -> String {
        self.version.text().into_iter().map(char::from).collect()
    }

    /// The resource as it goes on the wire.
    pub fn on_the_wire(&self) -> discovery::Resource {
        let any = Any { type_url: self.r#type.url().to_owned(), value: self.object() };
        discovery::Resource {
            name: self.name().to_owned(),
            version: self.version(),
            aliases: self.aliases(),
            resource: Some(any),
            ttl: None,
        }
    }

    /// Appends `discovery.Resource`, without a copy in between.
    pub(super) fn put(&self, into: &mut BytesMut) {
        let url = self.r#type.url();
        put_text(into, RESOURCE_VERSION, &self.version.text());
        put_head(
            into,
            RESOURCE_OBJECT,
            field_len(ANY_TYPE, url.len()) + field_len(ANY_VALUE, self.object_len()),
        );
        put_text(into, ANY_TYPE, url.as_bytes());
        put_head(into, ANY_VALUE, self.object_len());
        into.extend_from_slice(self.part(&(0..self.object)));
        into.extend_from_slice(self.tail());
        put_text(into, RESOURCE_NAME, self.part(&self.name));
        into.extend_from_slice(self.part(&self.aliases_at()));
    }

    /// How much [`Self::put`] appends.
    pub(super) fn put_len(&self) -> usize {
        let any = field_len(ANY_TYPE, self.r#type.url().len()) + field_len(ANY_VALUE, self.object_len());
        field_len(RESOURCE_VERSION, VERSION)
            + field_len(RESOURCE_OBJECT, any)
            + field_len(RESOURCE_NAME, self.name.len())
            + self.aliases_at().len()
    }

    /// `network/IP` of each address, by which it may be asked for.
    pub(super) fn aliases(&self) -> Vec<String> {
        // They were encoded here, so that they decode.
        discovery::Resource::decode(self.part(&self.aliases_at())).unwrap_or_default().aliases
    }

    /// Names of the services this resource is an endpoint of.
    pub(super) fn services(&self) -> Vec<String> {
        match wire::Address::decode(self.object()).ok().and_then(|address| address.r#type) {
            Some(wire::address::Type::Workload(workload)) => workload.services.into_keys().collect(),
            Some(wire::address::Type::Service(_)) | None => Vec::new(),
        }
    }

    /// What a client said it holds: nothing is known of it but name and version.
    pub fn held(name: &str, version: &str) -> Self {
        let version = Version::parse(version);
        let (bytes, name) = (name.as_bytes().into(), 0..size(name.len()));
        let r#type = Type::Address;
        Self { r#type, by_selector: false, version, bytes, tail: None, object: 0, name }
    }

    fn object(&self) -> Bytes {
        [self.part(&(0..self.object)), self.tail()].concat().into()
    }

    fn object_len(&self) -> usize {
        self.object as usize + self.tail().len()
    }

    fn tail(&self) -> &[u8] {
        self.tail.as_deref().unwrap_or_default()
    }

    /// Where in `bytes` the aliases are: behind the object, up to a name that is no part of it.
    fn aliases_at(&self) -> Range<u32> {
        let end = if self.name.start >= self.object { self.name.start } else { size(self.bytes.len()) };
        self.object..end
    }

    fn part(&self, range: &Range<u32>) -> &[u8] {
        &self.bytes[range.start as usize..range.end as usize]
    }

    /// Of an object whole, or of its beginning and its end.
    fn new(
        name: &str,
        r#type: Type,
        mut bytes: Vec<u8>,
        tail: Option<Arc<[u8]>>,
        aliases: Vec<String>,
    ) -> Self {
        let version = Version::of(&[&bytes, tail.as_deref().unwrap_or_default()]);
        let object = bytes.len();
        // A workload's uid comes before everything else in it.
        let near = &bytes[..object.min(name.len() + NEAR)];
        let start = near.windows(name.len().max(1)).position(|window| window == name.as_bytes());
        // A vector grows as it is needed: this does not fail.
        let _ = discovery::Resource { aliases, ..Default::default() }.encode(&mut bytes);
        let start = start.unwrap_or_else(|| {
            bytes.extend_from_slice(name.as_bytes());
            bytes.len() - name.len()
        });
        let name = size(start)..size(start + name.len());
        Self { r#type, by_selector: false, version, bytes: bytes.into(), tail, object: size(object), name }
    }
}

/// A place in a resource: none has 4 GB.
fn size(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Appends what comes before the content of a field.
pub(super) fn put_head(into: &mut impl BufMut, field: u32, length: usize) {
    encode_key(field, WireType::LengthDelimited, into);
    encode_varint(length as u64, into);
}

/// Appends a field of text or bytes.
pub(super) fn put_text(into: &mut BytesMut, field: u32, content: &[u8]) {
    put_head(into, field, content.len());
    into.extend_from_slice(content);
}

/// What a field with so much content takes.
pub(super) fn field_len(field: u32, content: usize) -> usize {
    key_len(field) + encoded_len_varint(content as u64) + content
}

/// Encodes a workload; it is named by its uid.
pub(crate) fn workload(from: &Workload, tails: &mut Tails) -> Resource {
    let aliases = from.addresses.iter().map(|address| format!("{}/{address}", from.network)).collect();
    let mut rest = workload_message(from);
    let own = wire::Workload {
        uid: take(&mut rest.uid),
        name: take(&mut rest.name),
        addresses: take(&mut rest.addresses),
        hostname: take(&mut rest.hostname),
        node: take(&mut rest.node),
        locality: take(&mut rest.locality),
        ..Default::default()
    };
    let tail = tails.share(rest.encode_to_vec());
    let length = own.encoded_len() + tail.len();
    let mut bytes = Vec::with_capacity(field_len(ADDRESS_WORKLOAD, length) - tail.len());
    put_head(&mut bytes, ADDRESS_WORKLOAD, length);
    let _ = own.encode(&mut bytes);
    Resource::new(&from.uid, Type::Address, bytes, Some(tail), aliases)
}

/// Encodes a service; it is named `namespace/hostname`.
pub(crate) fn service(from: &Service) -> Resource {
    let aliases = from.addresses.iter().map(|at| format!("{}/{}", at.network, at.address)).collect();
    let message = wire::Address { r#type: Some(wire::address::Type::Service(service_message(from))) };
    Resource::new(&from.key.to_string(), Type::Address, message.encode_to_vec(), None, aliases)
}

/// Encodes the routes of a service; they are named `namespace/hostname`.
pub(crate) fn routes(from: &ServiceRoutes) -> Resource {
    let message = super::routes::message(from);
    Resource::new(&from.service.to_string(), Type::Routes, message.encode_to_vec(), None, Vec::new())
}

/// Encodes a policy; it is named `namespace/name`.
pub(crate) fn policy(from: &Policy) -> Resource {
    let name = from.key.to_string();
    let resource =
        Resource::new(&name, Type::Authorization, policy_message(from).encode_to_vec(), None, Vec::new());
    Resource { by_selector: from.scope == Scope::WorkloadSelector, ..resource }
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
        extensions: behind_waypoint(from).into_iter().collect(),
        ..Default::default()
    }
}

/// What Istio's type has no field for.
fn behind_waypoint(from: &Workload) -> Option<wire::Extension> {
    if from.waypoint_required.is_none() && from.routed_from.is_empty() {
        return None;
    }
    let except = from.waypoint_required.iter().flat_map(|required| &required.except_ports);
    let of = from.waypoint_required.iter().flat_map(|required| &required.of);
    let said = proto::waypoint::WorkloadWaypoint {
        required: from.waypoint_required.is_some(),
        except_ports: except.copied().map(u32::from).collect(),
        routed_from: from.routed_from.iter().map(ToString::to_string).collect(),
        required_of: of.map(ToString::to_string).collect(),
    };
    let config =
        Any { type_url: proto::WORKLOAD_WAYPOINT_TYPE.to_owned(), value: said.encode_to_vec().into() };
    Some(wire::Extension { name: proto::WORKLOAD_WAYPOINT.to_owned(), config: Some(config) })
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
        canonical: from.canonical,
        ..Default::default()
    }
}

fn families(from: &Service) -> wire::IpFamilies {
    let has = |v4| from.addresses.iter().any(|at| at.address.is_ipv4() == v4);
    match from.families {
        Families::V4 => wire::IpFamilies::Ipv4Only,
        Families::V6 => wire::IpFamilies::Ipv6Only,
        Families::Any if has(true) && has(false) => wire::IpFamilies::Dual,
        Families::Any => wire::IpFamilies::Automatic,
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

pub(super) fn match_message(from: &Match) -> security::Match {
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

pub(super) fn texts(from: &[StringMatch]) -> Vec<security::StringMatch> {
    from.iter().map(text).collect()
}

pub(super) fn text(from: &StringMatch) -> security::StringMatch {
    use security::string_match::MatchType;
    let match_type = match from {
        StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
        StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
        StringMatch::Presence => MatchType::Presence(()),
    };
    security::StringMatch { match_type: Some(match_type) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_the_resource() {
        let mut from = Workload::named("c//Pod/a/one", "a", "one");
        from.addresses = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let resource = workload(&from, &mut Tails::default());
        let mut bytes = BytesMut::new();
        resource.put(&mut bytes);
        assert_eq!(bytes.len(), resource.put_len());
        let read = discovery::Resource::decode(bytes).unwrap();
        assert_eq!(read, resource.on_the_wire());
        assert_eq!(read.aliases, ["/10.0.0.1", "/fd00::1"]);
        assert_eq!(read.name, "c//Pod/a/one");
    }

    #[test]
    fn a_resource_takes_a_cache_line() {
        assert!(size_of::<Resource>() <= 64, "{}: there is one for each pod", size_of::<Resource>());
    }

    #[test]
    fn what_pods_of_one_owner_have_in_common_is_kept_once() {
        let mut tails = Tails::default();
        let mut encode = |name: &str, account: &str| {
            let mut from = Workload::named(format!("c//Pod/a/{name}"), "a", name);
            (from.service_account, from.node) = (account.into(), format!("node-of-{name}").into());
            (from.workload_name, from.canonical_name) = ("web".into(), "web".into());
            (workload(&from, &mut tails), from)
        };
        let all = [encode("one", "web"), encode("two", "web"), encode("three", "other")];
        let tail = |at: usize| all[at].0.tail.clone().unwrap();
        assert!(Arc::ptr_eq(&tail(0), &tail(1)) && tail(0) != tail(2));
        for (resource, from) in &all {
            let read = wire::Address::decode(resource.object()).unwrap();
            assert_eq!(read.r#type, Some(wire::address::Type::Workload(workload_message(from))));
        }
    }

    #[test]
    fn a_version_that_a_client_holds_is_known_again() {
        let resource = workload(&Workload::named("c//Pod/a/one", "a", "one"), &mut Tails::default());
        let held = |version: &str| Resource::held(resource.name(), version);
        assert_eq!(held(&resource.version()), resource);
        for other in ["", "7", &"0".repeat(32), &"ä".repeat(16)] {
            assert_ne!(held(other), resource);
        }
    }
}
