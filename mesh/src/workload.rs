//! Workloads: what runs somewhere and has addresses. The fields are those of `istio.workload.Workload`.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::{Identity, PolicyKey, PortMapping, ServiceKey, WaypointRequired};

/// Whether pods of that RuntimeClass have a kernel of their own, by its name: Kata Containers, gVisor and what is built on
/// them. Their connections are made where no program of the node's kernel sees them.
pub fn is_sandbox(runtime_class: &str) -> bool {
    let name = runtime_class.to_ascii_lowercase();
    ["kata", "gvisor", "runsc", "firecracker"].iter().any(|known| name.contains(known))
}

/// An address within a named network (two clusters may use the same addresses).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    pub network: Arc<str>,
    pub address: IpAddr,
}

/// How a workload is reached by its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Tunnel {
    /// Plain TCP.
    #[default]
    None,
    /// HTTP/2 CONNECT over mutual TLS at port 15008 of the workload's own address.
    Hbone,
}

/// What owns the workload; only reported (baggage, metrics labels).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WorkloadKind {
    Deployment,
    CronJob,
    #[default]
    Pod,
    Job,
}

/// Where the workload runs, for locality preference.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub subzone: Arc<str>,
}

/// A waypoint or network gateway: named by address or by service host name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GatewayAddress {
    Address { address: NetworkAddress, hbone_port: u16 },
    Host { service: ServiceKey, hbone_port: u16 },
}

/// One workload (a pod, or a machine named by a WorkloadEntry).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Unique over all clusters: `cluster/group/kind/namespace/name`, for a pod `CLUSTER//Pod/NS/NAME`.
    pub uid: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
    pub trust_domain: Arc<str>,
    pub network: Arc<str>,
    /// Every address of the workload; empty for one that is known by host name only.
    pub addresses: Vec<IpAddr>,
    pub hostname: Arc<str>,
    /// The node it runs on; empty when unknown.
    pub node: Arc<str>,
    pub cluster_id: Arc<str>,
    pub canonical_name: Arc<str>,
    pub canonical_revision: Arc<str>,
    pub workload_name: Arc<str>,
    pub workload_kind: WorkloadKind,
    pub tunnel: Tunnel,
    /// It terminates HBONE itself (a waypoint): its ztunnel does not.
    pub native_tunnel: bool,
    pub waypoint: Option<GatewayAddress>,
    /// Calls must come through a waypoint.
    pub waypoint_required: Option<WaypointRequired>,
    /// Services, not its own, from whose waypoints routes lead to it.
    pub routed_from: Vec<ServiceKey>,
    pub network_gateway: Option<GatewayAddress>,
    /// The services this workload is an endpoint of, each with its own port mapping
    /// (empty: the service's mapping holds).
    pub services: BTreeMap<ServiceKey, Vec<PortMapping>>,
    /// Policies that select this workload by label.
    pub authorization_policies: Vec<PolicyKey>,
    pub healthy: bool,
    pub locality: Locality,
}

impl Workload {
    /// Whether the uid has the form `CLUSTER/GROUP/Pod/NAMESPACE/NAME`.
    pub fn is_pod(&self) -> bool {
        self.uid.split('/').nth(2) == Some("Pod")
    }

    /// A healthy workload with nothing but its names; the other fields are set by the caller.
    pub fn named(
        uid: impl Into<Arc<str>>,
        namespace: impl Into<Arc<str>>,
        name: impl Into<Arc<str>>,
    ) -> Self {
        let empty: Arc<str> = Arc::from("");
        let name = name.into();
        Self {
            uid: uid.into(),
            namespace: namespace.into(),
            service_account: Arc::from("default"),
            trust_domain: Arc::from("cluster.local"),
            network: empty.clone(),
            addresses: Vec::new(),
            hostname: empty.clone(),
            node: empty.clone(),
            cluster_id: empty.clone(),
            canonical_name: name.clone(),
            canonical_revision: Arc::from("latest"),
            workload_name: name.clone(),
            workload_kind: WorkloadKind::Pod,
            tunnel: Tunnel::None,
            native_tunnel: false,
            waypoint: None,
            waypoint_required: None,
            routed_from: Vec::new(),
            network_gateway: None,
            services: BTreeMap::new(),
            authorization_policies: Vec::new(),
            healthy: true,
            locality: Locality::default(),
            name,
        }
    }

    /// The SPIFFE identity of the workload's service account.
    pub fn identity(&self) -> Identity {
        Identity::new(self.trust_domain.clone(), self.namespace.clone(), self.service_account.clone())
    }
}
