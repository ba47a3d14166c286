//! The Kubernetes kinds, with only the fields the mesh reads.

use std::{net::IpAddr, sync::Arc};

use serde::Deserialize;

use super::labels::Labels;

type Checked = Result<(), (String, String)>;

/// `metadata` of every object.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub name: Arc<str>,
    pub namespace: Option<Arc<str>>,
    pub uid: Option<Arc<str>>,
    pub labels: Option<Labels>,
    pub annotations: Option<Labels>,
    pub owner_references: Option<Vec<OwnerReference>>,
    /// RFC 3339; compared as text, which sorts as time does in UTC.
    pub creation_timestamp: Option<String>,
    pub deletion_timestamp: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct OwnerReference {
    pub kind: String,
    pub name: String,
    pub controller: Option<bool>,
}

impl Metadata {
    /// The namespace, `default` unless given.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default")
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.as_ref()?.get(name)
    }

    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name)
    }
}

/// `matchLabels`, the only form the policies of the mesh have.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    #[serde(default)]
    pub match_labels: Labels,
}

impl LabelSelector {
    pub fn matches(&self, labels: Option<&Labels>) -> bool {
        selects(&self.match_labels, labels)
    }
}

/// Whether `labels` has every pair of `wanted`.
pub fn selects(wanted: &Labels, labels: Option<&Labels>) -> bool {
    labels.unwrap_or(&Labels::NONE).have(wanted)
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Namespace {
    pub metadata: Metadata,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Node {
    pub metadata: Metadata,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Pod {
    pub metadata: Metadata,
    #[serde(default)]
    pub spec: PodSpec,
    #[serde(default)]
    pub status: PodStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub node_name: Option<Arc<str>>,
    pub service_account_name: Option<Arc<str>>,
    pub host_network: bool,
    pub containers: Option<Vec<Container>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Container {
    pub ports: Option<Vec<ContainerPort>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    pub name: Option<String>,
    pub container_port: u16,
    pub protocol: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: Option<String>,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIp>>,
    pub conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    pub ip: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
}

impl Pod {
    pub(super) fn check(&self) -> Checked {
        if let Some(ip) = &self.status.pod_ip {
            parse_ip("status.podIP", ip)?;
        }
        for (index, ip) in self.status.pod_ips.iter().flatten().enumerate() {
            parse_ip(&format!("status.podIPs[{index}].ip"), &ip.ip)?;
        }
        Ok(())
    }

    /// Every address, the primary one first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let all = self.status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
        let mut found: Vec<IpAddr> = Vec::new();
        for ip in self.status.pod_ip.as_deref().into_iter().chain(all) {
            if let Ok(ip) = ip.parse()
                && !found.contains(&ip)
            {
                found.push(ip);
            }
        }
        found
    }

    /// Ready to be sent traffic. A pod without status conditions (a hand-written manifest) is.
    pub fn ready(&self) -> bool {
        let phase = self.status.phase.as_deref().is_none_or(|phase| phase == "Running");
        let ready = self
            .status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.kind == "Ready")
            .is_none_or(|condition| condition.status == "True");
        phase && ready && self.metadata.deletion_timestamp.is_none()
    }

    /// It ran to its end: its addresses are free for others.
    pub fn ended(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// The number of a named TCP container port.
    pub fn named_port(&self, name: &str) -> Option<u16> {
        let mut ports =
            self.spec.containers.iter().flatten().flat_map(|container| container.ports.iter().flatten());
        ports
            .find(|port| {
                port.name.as_deref() == Some(name) && port.protocol.as_deref().is_none_or(|p| p == "TCP")
            })
            .map(|port| port.container_port)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Service {
    pub metadata: Metadata,
    #[serde(default)]
    pub spec: ServiceSpec,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Option<Vec<String>>,
    pub ports: Option<Vec<ServicePort>>,
    pub selector: Option<Labels>,
    pub publish_not_ready_addresses: bool,
    pub internal_traffic_policy: Option<String>,
    pub ip_families: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    #[serde(default)]
    pub name: Option<String>,
    pub port: u16,
    #[serde(default)]
    pub target_port: Option<IntOrName>,
    #[serde(default)]
    pub protocol: Option<String>,
}

/// A port by number or by the name of a container port.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum IntOrName {
    Number(u16),
    Name(String),
}

impl ServicePort {
    pub fn is_tcp(&self) -> bool {
        self.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
    }
}

impl Service {
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

    /// The virtual addresses; none for a headless service.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut found: Vec<IpAddr> = Vec::new();
        let all = self.spec.cluster_ips.iter().flatten().map(String::as_str);
        for ip in self.spec.cluster_ip.as_deref().into_iter().chain(all) {
            if let Ok(ip) = ip.parse()
                && !found.contains(&ip)
            {
                found.push(ip);
            }
        }
        found
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    pub metadata: Metadata,
    #[serde(default)]
    pub address_type: Option<String>,
    #[serde(default)]
    pub endpoints: Option<Vec<SliceEndpoint>>,
    #[serde(default)]
    pub ports: Option<Vec<SlicePort>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceEndpoint {
    pub addresses: Vec<String>,
    pub conditions: Option<SliceConditions>,
    pub node_name: Option<Arc<str>>,
    pub target_ref: Option<TargetRef>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SliceConditions {
    pub ready: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct TargetRef {
    pub kind: String,
    pub name: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SlicePort {
    pub name: Option<String>,
    pub port: Option<u16>,
    pub protocol: Option<String>,
}

impl EndpointSlice {
    pub(super) fn check(&self) -> Checked {
        if self.address_type.as_deref() == Some("FQDN") {
            return Ok(());
        }
        for (index, endpoint) in self.endpoints.iter().flatten().enumerate() {
            for (number, ip) in endpoint.addresses.iter().enumerate() {
                parse_ip(&format!("endpoints[{index}].addresses[{number}]"), ip)?;
            }
        }
        Ok(())
    }

    /// The service it is a slice of (label `kubernetes.io/service-name`).
    pub fn service(&self) -> Option<&str> {
        self.metadata.label("kubernetes.io/service-name")
    }
}

/// Parses an address or says which field is wrong.
pub(super) fn parse_ip(field: &str, text: &str) -> Result<IpAddr, (String, String)> {
    text.parse().map_err(|_| (field.to_owned(), format!("{text:?} is not an IP address")))
}
