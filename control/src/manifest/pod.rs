//! Pods. A cluster has more of them than of anything else, so of each is kept only what the mesh reads, in as
//! little memory as it takes.

use std::{net::IpAddr, sync::Arc};

use serde::Deserialize;

use super::{
    kube::{Metadata, OwnerReference, parse_ip},
    shared::Shared,
};
use crate::compile::{DNS_CAPTURE, MARK, NETNS, REDIRECTION, SIDECAR, WAYPOINT_EXCEPT};

/// The annotations that are read.
const ANNOTATIONS: [&str; 6] = [NETNS, REDIRECTION, MARK, SIDECAR, DNS_CAPTURE, WAYPOINT_EXCEPT];

/// A port by its name.
type NamedPort = (Arc<str>, u16);

/// What the mesh knows of a pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pod {
    /// Without owners and times.
    pub metadata: Metadata,
    /// Who controls it.
    pub owner: Option<Arc<OwnerReference>>,
    /// The node that it is bound to.
    pub node: Option<Arc<str>>,
    pub service_account: Option<Arc<str>>,
    /// Every address, the primary one first.
    pub addresses: Arc<[IpAddr]>,
    /// Its TCP ports with a name.
    ports: Option<Box<[NamedPort]>>,
    pub host_network: bool,
    ready: bool,
    ended: bool,
}

/// A pod as it is written.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(super) struct Manifest {
    metadata: Metadata,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: Option<Arc<str>>,
    service_account_name: Option<Arc<str>>,
    host_network: bool,
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

    fn addresses(&self) -> Arc<[IpAddr]> {
        let all = self.status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
        let mut found: Vec<IpAddr> = Vec::new();
        for ip in self.status.pod_ip.as_deref().into_iter().chain(all) {
            if let Ok(ip) = ip.parse()
                && !found.contains(&ip)
            {
                found.push(ip);
            }
        }
        found.into()
    }

    /// A pod without status conditions (a hand-written manifest) is ready.
    fn ready(&self) -> bool {
        let phase = self.status.phase.as_deref().is_none_or(|phase| phase == "Running");
        let conditions = self.status.conditions.iter().flatten();
        let mut of_readiness = conditions.filter(|condition| condition.kind == "Ready");
        let ready = of_readiness.next().is_none_or(|condition| condition.status == "True");
        phase && ready && self.metadata.deletion_timestamp.is_none()
    }

    fn ports(&self) -> Option<Box<[NamedPort]>> {
        let containers = self.spec.containers.iter().flatten();
        let ports = containers.flat_map(|container| container.ports.iter().flatten());
        let tcp = ports.filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
        let named: Box<[_]> =
            tcp.filter_map(|port| Some((port.name.clone()?, port.container_port))).collect();
        (!named.is_empty()).then_some(named)
    }
}

impl From<Manifest> for Pod {
    fn from(manifest: Manifest) -> Self {
        let (addresses, ready, ports) = (manifest.addresses(), manifest.ready(), manifest.ports());
        let ended = matches!(manifest.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let Manifest { mut metadata, spec, .. } = manifest;
        metadata.creation_timestamp = None;
        metadata.deletion_timestamp = None;
        let annotations = metadata.annotations.map(|annotations| annotations.only(&ANNOTATIONS));
        metadata.annotations = annotations.filter(|annotations| !annotations.is_empty());
        let owners = metadata.owner_references.take().into_iter().flatten();
        let owner = { owners }.find(|owner| owner.controller == Some(true)).map(Arc::new);
        Self {
            metadata,
            owner,
            node: spec.node_name,
            service_account: spec.service_account_name,
            addresses,
            ports,
            host_network: spec.host_network,
            ready,
            ended,
        }
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

    /// The number of a named TCP container port.
    pub fn named_port(&self, name: &str) -> Option<u16> {
        self.ports.iter().flatten().find(|(held, _)| **held == *name).map(|(_, port)| *port)
    }

    /// Its own texts become those that all share.
    pub(crate) fn share(&mut self, name: &Arc<str>, shared: &mut Shared) {
        self.metadata.share(name, shared);
        for text in [&mut self.node, &mut self.service_account].into_iter().flatten() {
            shared.replace(text);
        }
        for (name, _) in self.ports.iter_mut().flatten() {
            shared.replace(name);
        }
        self.owner.iter_mut().for_each(|owner| shared.owner(owner));
    }
}
