//! The Kubernetes kinds, with only the fields the mesh reads.

use std::{net::IpAddr, sync::Arc};

use serde::Deserialize;

use super::{labels::Labels, shared::Shared};

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
    pub owner_references: Option<Box<[OwnerReference]>>,
    /// RFC 3339; compared as text, which sorts as time does in UTC.
    pub creation_timestamp: Option<Box<str>>,
    pub deletion_timestamp: Option<Box<str>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct OwnerReference {
    pub kind: Arc<str>,
    pub name: Arc<str>,
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

impl Metadata {
    /// Its own texts become those that all share; its name is the key's.
    pub(crate) fn share(&mut self, name: &Arc<str>, shared: &mut Shared) {
        self.name = name.clone();
        self.namespace.iter_mut().for_each(|namespace| shared.replace(namespace));
        for labels in [&mut self.labels, &mut self.annotations].into_iter().flatten() {
            labels.share(shared);
        }
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
    #[serde(default)]
    pub app_protocol: Option<String>,
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

    /// Its own texts become those that all share. Lists have no more room than they need.
    pub(crate) fn share(&mut self, shared: &mut Shared) {
        for endpoint in self.endpoints.iter_mut().flatten() {
            endpoint.node_name.iter_mut().for_each(|node| shared.replace(node));
            endpoint.addresses.shrink_to_fit();
        }
        self.endpoints.iter_mut().for_each(Vec::shrink_to_fit);
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
