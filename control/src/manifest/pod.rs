//! Pods. A cluster has more of them than of anything else, so of each is kept only what the mesh reads, in as
//! little memory as it takes.

use std::{net::IpAddr, sync::Arc};

use serde::Deserialize;

use super::{
    addresses::Addresses,
    kube::{OwnerReference, parse_ip},
    labels::Labels,
    shared::Shared,
    uid::Uid,
};
use crate::compile::{DNS_CAPTURE, MARK, MIRROR, NETNS, REDIRECTION, SIDECAR, WAYPOINT_EXCEPT};

/// The annotations that are read.
pub(crate) const ANNOTATIONS: [&str; 7] =
    [NETNS, REDIRECTION, MARK, MIRROR, SIDECAR, DNS_CAPTURE, WAYPOINT_EXCEPT];

/// A port by its name.
type NamedPort = (Arc<str>, u16);

/// What the mesh knows of a pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: Option<Uid>,
    /// What it has of its owner.
    pub template: Arc<Template>,
    /// The node that it is bound to.
    pub node: Option<Arc<str>>,
    /// Every address, the primary one first.
    pub addresses: Addresses,
    ready: bool,
    ended: bool,
}

/// What pods of one owner have in common, so that it is kept once for all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Template {
    pub labels: Labels,
    /// Those that are read.
    annotations: Labels,
    /// `metadata.creationTimestamp`, of a static pod's image only: of two images the older one is believed.
    pub since: Option<Box<str>>,
    /// Who controls it.
    pub owner: Option<OwnerReference>,
    pub service_account: Option<Arc<str>>,
    /// Its TCP ports with a name.
    ports: Box<[NamedPort]>,
    pub host_network: bool,
    /// `spec.runtimeClassName`, if it is one whose pods have a network stack of their own ([`mesh::is_sandbox`]).
    pub sandbox: Option<Arc<str>>,
}

/// A pod as it is written.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(super) struct Manifest {
    metadata: PodMetadata,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodMetadata {
    uid: Option<Uid>,
    labels: Labels,
    annotations: Labels,
    owner_references: Option<Vec<OwnerReference>>,
    creation_timestamp: Option<Box<str>>,
    deletion_timestamp: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: Option<Arc<str>>,
    service_account_name: Option<Arc<str>>,
    host_network: bool,
    runtime_class_name: Option<Arc<str>>,
    containers: Option<Vec<Container>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Container {
    ports: Option<Vec<ContainerPort>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort {
    name: Option<Arc<str>>,
    container_port: u16,
    protocol: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl Manifest {
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        if let Some(ip) = &self.status.pod_ip {
            parse_ip("status.podIP", ip)?;
        }
        for (index, ip) in self.status.pod_ips.iter().flatten().enumerate() {
            parse_ip(&format!("status.podIPs[{index}].ip"), &ip.ip)?;
        }
        Ok(())
    }

    fn addresses(&self) -> Addresses {
        let all = self.status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
        let mut found: Vec<IpAddr> = Vec::new();
        for ip in self.status.pod_ip.as_deref().into_iter().chain(all) {
            if let Ok(ip) = ip.parse()
                && !found.contains(&ip)
            {
                found.push(ip);
            }
        }
        found.into_iter().collect()
    }

    /// A pod without status conditions (a hand-written manifest) is ready.
    fn ready(&self) -> bool {
        let phase = self.status.phase.as_deref().is_none_or(|phase| phase == "Running");
        let conditions = self.status.conditions.iter().flatten();
        let mut of_readiness = conditions.filter(|condition| condition.kind == "Ready");
        let ready = of_readiness.next().is_none_or(|condition| condition.status == "True");
        phase && ready && self.metadata.deletion_timestamp.is_none()
    }

    fn ports(&self) -> Box<[NamedPort]> {
        let containers = self.spec.containers.iter().flatten();
        let ports = containers.flat_map(|container| container.ports.iter().flatten());
        let tcp = ports.filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
        tcp.filter_map(|port| Some((port.name.clone()?, port.container_port))).collect()
    }
}

impl From<Manifest> for Pod {
    fn from(manifest: Manifest) -> Self {
        let (addresses, ready, ports) = (manifest.addresses(), manifest.ready(), manifest.ports());
        let ended = matches!(manifest.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let Manifest { metadata, spec, .. } = manifest;
        let mut owners = metadata.owner_references.into_iter().flatten();
        let annotations = metadata.annotations.only(&ANNOTATIONS);
        let template = Template {
            labels: metadata.labels,
            since: metadata.creation_timestamp.filter(|_| annotations.get(MIRROR).is_some()),
            annotations,
            owner: owners.find(|owner| owner.controller == Some(true)),
            service_account: spec.service_account_name,
            ports,
            host_network: spec.host_network,
            sandbox: spec.runtime_class_name.filter(|class| mesh::is_sandbox(class)),
        };
        let (uid, node) = (metadata.uid, spec.node_name);
        Self { uid, template: Arc::new(template), node, addresses, ready, ended }
    }
}

impl Pod {
    /// Ready to be sent traffic.
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// It ran to its end: its addresses are free for others.
    pub fn ended(&self) -> bool {
        self.ended
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.template.labels.get(name)
    }

    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.template.annotations.get(name)
    }

    /// The number of a named TCP container port.
    pub fn named_port(&self, name: &str) -> Option<u16> {
        self.template.ports.iter().find(|(held, _)| **held == *name).map(|(_, port)| *port)
    }

    /// What others have, too, becomes what all share.
    pub(crate) fn share(&mut self, shared: &mut Shared) {
        self.node.iter_mut().for_each(|node| shared.replace(node));
        shared.template(&mut self.template);
    }
}

impl Template {
    /// Its own texts become those that all share.
    pub(super) fn share(&mut self, shared: &mut Shared) {
        for labels in [&mut self.labels, &mut self.annotations] {
            labels.share(shared);
        }
        let owner = self.owner.iter_mut().flat_map(|owner| [&mut owner.kind, &mut owner.name]);
        let ports = self.ports.iter_mut().map(|(name, _)| name);
        owner
            .chain(ports)
            .chain(&mut self.service_account)
            .chain(&mut self.sandbox)
            .for_each(|text| shared.replace(text));
    }
}
