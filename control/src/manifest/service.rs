//! Services and their EndpointSlices. There is one of each for some ten pods, and a slice names each of these, so
//! only what the mesh reads is kept.

use std::{net::IpAddr, sync::Arc};

use mesh::{Families, route::Protocol};
use serde::Deserialize;

use super::{
    kube::{Metadata, parse_ip},
    labels::Labels,
    shared::Shared,
};
use crate::compile::{EXPORT_TO, WAYPOINT_EXCEPT};

type Checked = Result<(), (String, String)>;

/// What the mesh knows of a service.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Service {
    pub metadata: Metadata,
    /// The virtual addresses; none for a headless service.
    pub addresses: Box<[IpAddr]>,
    /// Others that nodes lead to it: external ones, and those of load balancers.
    pub outside: Box<[IpAddr]>,
    /// The TCP ports, which are those that ztunnel carries.
    pub ports: Box<[ServicePort]>,
    pub selector: Labels,
    pub families: Families,
    /// It is an alias in DNS.
    pub external_name: bool,
    pub publish_not_ready_addresses: bool,
    /// Traffic from within stays on its node.
    pub node_local: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ServicePort {
    pub name: Arc<str>,
    pub port: u16,
    pub target: Target,
    /// What it speaks, where that was said.
    pub protocol: Protocol,
}

/// The port of the pods behind a service's.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    Number(u16),
    /// Of a container port: each pod has its own number for it.
    Name(Arc<str>),
}

/// A service as it is written.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ServiceManifest {
    metadata: Metadata,
    #[serde(default)]
    spec: ServiceSpec,
    #[serde(default)]
    status: Option<ServiceStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceStatus {
    load_balancer: Option<LoadBalancer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Option<Vec<Ingress>>,
}

/// One has an address or a name.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ingress {
    ip: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    ports: Option<Vec<Port>>,
    selector: Labels,
    publish_not_ready_addresses: bool,
    internal_traffic_policy: Option<String>,
    ip_families: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    #[serde(default)]
    name: Option<Arc<str>>,
    port: u16,
    #[serde(default)]
    target_port: Option<IntOrName>,
    #[serde(default)]
    protocol: Option<String>,
    #[serde(default)]
    app_protocol: Option<String>,
}

/// A port by number or by the name of a container port.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum IntOrName {
    Number(u16),
    Name(Arc<str>),
}

impl ServiceManifest {
    pub(super) fn check(&self) -> Checked {
        for (index, ip) in self.spec.cluster_ips.iter().flatten().enumerate() {
            if ip != "None" {
                parse_ip(&format!("spec.clusterIPs[{index}]"), ip)?;
            }
        }
        match self.spec.cluster_ip.as_deref() {
            None | Some("None" | "") => {}
            Some(ip) => {
                parse_ip("spec.clusterIP", ip)?;
            }
        }
        for (index, port) in self.spec.ports.iter().flatten().enumerate() {
            if port.port == 0 {
                return Err((format!("spec.ports[{index}].port"), "a port is 1 to 65535".to_owned()));
            }
        }
        Ok(())
    }

    fn addresses(&self) -> Box<[IpAddr]> {
        let all = self.spec.cluster_ips.iter().flatten().map(String::as_str);
        each_once(self.spec.cluster_ip.as_deref().into_iter().chain(all))
    }

    fn outside(&self) -> Box<[IpAddr]> {
        let external = self.spec.external_ips.iter().flatten().map(String::as_str);
        let balancer = self.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
        each_once(external.chain(ingress.filter_map(|one| one.ip.as_deref())))
    }

    /// The families that a headless service's names are answered in, where it says so.
    fn families(&self) -> Families {
        match self.spec.ip_families.as_deref() {
            Some([one]) if one == "IPv4" => Families::V4,
            Some([one]) if one == "IPv6" => Families::V6,
            _ => Families::Any,
        }
    }
}

/// What is no address is left out.
fn each_once<'t>(texts: impl Iterator<Item = &'t str>) -> Box<[IpAddr]> {
    let mut found: Vec<IpAddr> = Vec::new();
    for ip in texts {
        if let Ok(ip) = ip.parse()
            && !found.contains(&ip)
        {
            found.push(ip);
        }
    }
    found.into()
}

impl From<ServiceManifest> for Service {
    fn from(manifest: ServiceManifest) -> Self {
        let (addresses, outside, families) = (manifest.addresses(), manifest.outside(), manifest.families());
        let ServiceManifest { metadata, spec, .. } = manifest;
        let ports = spec.ports.into_iter().flatten().filter(|port| is_tcp(port.protocol.as_deref()));
        let ports = ports.map(|port| ServicePort {
            protocol: protocol_of(port.app_protocol.as_deref(), port.name.as_deref()),
            name: port.name.unwrap_or_default(),
            port: port.port,
            target: match port.target_port {
                None => Target::Number(port.port),
                Some(IntOrName::Number(number)) => Target::Number(number),
                Some(IntOrName::Name(name)) => Target::Name(name),
            },
        });
        Self {
            metadata,
            addresses,
            outside,
            ports: ports.collect(),
            selector: spec.selector,
            families,
            external_name: spec.kind.as_deref() == Some("ExternalName"),
            publish_not_ready_addresses: spec.publish_not_ready_addresses,
            node_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        }
    }
}

impl Service {
    /// Its own texts become those that all share.
    pub(crate) fn share(&mut self, shared: &mut Shared) {
        self.metadata.share(&[EXPORT_TO, WAYPOINT_EXCEPT], shared);
        self.selector.share(shared);
        for port in &mut self.ports {
            shared.replace(&mut port.name);
            if let Target::Name(name) = &mut port.target {
                shared.replace(name);
            }
        }
    }
}

/// What the mesh knows of an EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EndpointSlice {
    /// The service it is a slice of (label `kubernetes.io/service-name`).
    pub service: Option<Arc<str>>,
    /// Its addresses are names in DNS.
    pub fqdn: bool,
    pub endpoints: Box<[SliceEndpoint]>,
    /// The TCP ports by their names in the service, as the endpoints have them.
    pub ports: Box<[(Arc<str>, u16)]>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SliceEndpoint {
    pub ready: bool,
    pub at: Endpoint,
}

/// Who an endpoint is.
#[derive(Debug, Clone, PartialEq)]
pub enum Endpoint {
    /// A pod of the slice's namespace.
    Pod(Arc<str>),
    /// Whoever has the first of these addresses.
    Addresses(Box<Addressed>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Addressed {
    pub addresses: Vec<IpAddr>,
    pub node: Option<Arc<str>>,
}

/// A slice as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SliceManifest {
    metadata: Metadata,
    #[serde(default)]
    address_type: Option<String>,
    #[serde(default)]
    endpoints: Option<Vec<WrittenEndpoint>>,
    #[serde(default)]
    ports: Option<Vec<SlicePort>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WrittenEndpoint {
    addresses: Vec<String>,
    conditions: Option<SliceConditions>,
    node_name: Option<Arc<str>>,
    target_ref: Option<TargetRef>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SliceConditions {
    ready: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TargetRef {
    kind: String,
    name: Arc<str>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SlicePort {
    name: Option<Arc<str>>,
    port: Option<u16>,
    protocol: Option<String>,
}

impl SliceManifest {
    fn is_fqdn(&self) -> bool {
        self.address_type.as_deref() == Some("FQDN")
    }

    pub(super) fn check(&self) -> Checked {
        if self.is_fqdn() {
            return Ok(());
        }
        for (index, endpoint) in self.endpoints.iter().flatten().enumerate() {
            for (number, ip) in endpoint.addresses.iter().enumerate() {
                parse_ip(&format!("endpoints[{index}].addresses[{number}]"), ip)?;
            }
        }
        Ok(())
    }
}

impl From<SliceManifest> for EndpointSlice {
    fn from(manifest: SliceManifest) -> Self {
        let fqdn = manifest.is_fqdn();
        let ports = manifest.ports.into_iter().flatten();
        let ports = ports.filter(|port| is_tcp(port.protocol.as_deref()));
        Self {
            service: manifest.metadata.label("kubernetes.io/service-name").map(Arc::from),
            fqdn,
            endpoints: manifest.endpoints.into_iter().flatten().filter_map(endpoint).collect(),
            ports: ports.filter_map(|port| Some((port.name.unwrap_or_default(), port.port?))).collect(),
        }
    }
}

/// `None` if it has no address.
fn endpoint(written: WrittenEndpoint) -> Option<SliceEndpoint> {
    let addresses: Vec<IpAddr> =
        written.addresses.iter().filter_map(|address| address.parse().ok()).collect();
    if addresses.is_empty() {
        return None;
    }
    let ready = written.conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    let at = match written.target_ref {
        Some(target) if target.kind == "Pod" => Endpoint::Pod(target.name),
        _ => Endpoint::Addresses(Box::new(Addressed { addresses, node: written.node_name })),
    };
    Some(SliceEndpoint { ready, at })
}

impl EndpointSlice {
    /// Its own texts become those that all share.
    pub(crate) fn share(&mut self, shared: &mut Shared) {
        self.service.iter_mut().for_each(|service| shared.replace(service));
        self.ports.iter_mut().for_each(|(name, _)| shared.replace(name));
    }

    /// The pods it names take the names that `held` has for them.
    pub(crate) fn share_names(&mut self, held: impl Fn(&Arc<str>) -> Option<Arc<str>>) {
        for endpoint in &mut self.endpoints {
            if let Endpoint::Pod(name) = &mut endpoint.at
                && let Some(held) = held(name)
            {
                *name = held;
            }
        }
    }
}

/// What says nothing is TCP.
fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

/// What a port of a service speaks, by `appProtocol` or by the beginning of its name, as Istio has it.
fn protocol_of(app_protocol: Option<&str>, name: Option<&str>) -> Protocol {
    let word = app_protocol.map(str::to_ascii_lowercase);
    let word = word.or_else(|| Some(name?.split('-').next()?.to_ascii_lowercase()));
    match word.as_deref() {
        Some("http" | "http1" | "kubernetes.io/ws") => Protocol::Http1,
        Some("http2" | "h2c" | "kubernetes.io/h2c" | "grpc") => Protocol::Http2,
        Some(
            "tcp" | "tls" | "https" | "kubernetes.io/wss" | "mongo" | "mysql" | "redis" | "postgres"
            | "postgresql" | "kafka" | "amqp",
        ) => Protocol::Tcp,
        _ => Protocol::Unknown,
    }
}
