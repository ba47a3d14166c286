//! Services: a name and virtual addresses for a set of workloads. The fields are those of
//! `istio.workload.Service`.

use std::{fmt, sync::Arc};

use crate::{GatewayAddress, Identity, NetworkAddress};

/// A service's name in the mesh: `namespace/hostname`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    pub namespace: Arc<str>,
    pub hostname: Arc<str>,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// A port of a service and the port of the workload behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortMapping {
    pub service_port: u16,
    /// 0: the workload's own mapping says (named target ports), else the same as the service port.
    pub target_port: u16,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub key: ServiceKey,
    pub name: Arc<str>,
    /// Virtual addresses; empty for a headless service.
    pub addresses: Vec<NetworkAddress>,
    pub ports: Vec<PortMapping>,
    /// Identities a client may meet behind the service besides those of its workloads.
    pub subject_alt_names: Vec<Identity>,
    pub waypoint: Option<GatewayAddress>,
    /// `publishNotReadyAddresses`: unhealthy endpoints are used as well.
    pub allow_unhealthy: bool,
    /// Only endpoints of the caller's own node (`internalTrafficPolicy: Local`).
    pub node_local: bool,
    /// Which of its endpoints' addresses are told of a service that has none of its own.
    pub families: Families,
    /// Whoever is dialled is meant: no endpoint is chosen.
    pub passthrough: bool,
    /// A Service of Kubernetes, whose addresses and names the cluster gave it; not somebody's claim (`canonical`).
    pub canonical: bool,
}

impl Service {
    /// A service of Kubernetes with nothing but its names; the other fields are set by the caller.
    pub fn named(key: ServiceKey, name: impl Into<Arc<str>>) -> Self {
        Self {
            key,
            name: name.into(),
            addresses: Vec::new(),
            ports: Vec::new(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            allow_unhealthy: false,
            node_local: false,
            families: Families::Any,
            passthrough: false,
            canonical: true,
        }
    }
}

/// The families of IP that a service is offered in (`ip_families`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Families {
    /// Whatever its addresses are.
    #[default]
    Any,
    V4,
    V6,
}

impl Families {
    /// Whether an address is of these families.
    pub fn contain(self, address: std::net::IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}
