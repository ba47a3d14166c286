//! The outbound plan: where a captured connection goes, decided from one snapshot.

use std::{net::SocketAddr, sync::Arc};

use crate::{Identity, Service, ServiceKey, Snapshot, Workload};

/// What is known of an outbound connection when it is captured.
pub struct Outbound<'a> {
    /// The workload that calls.
    pub source: &'a Workload,
    /// The address as the app dialled it (a service's virtual address, or a workload's own).
    pub destination: SocketAddr,
    /// A random number for load balancing; the same number gives the same plan.
    pub seed: u64,
}

/// Where it goes.
#[derive(Debug, Clone)]
pub enum Plan {
    /// Not of the mesh: plain TCP to the original destination.
    Passthrough { to: SocketAddr },
    /// A known workload that does not speak HBONE: plain TCP to it.
    Plain(Target),
    /// A workload of this very node that is enrolled: admitted by the same function, without TLS.
    SameNode(Target),
    /// HBONE to the workload: TCP to `peer`, TLS that must prove one of `expected`, CONNECT `authority`.
    Hbone { target: Target, peer: SocketAddr, expected: Arc<[Identity]>, authority: String },
}

/// The workload that was chosen.
#[derive(Debug, Clone)]
pub struct Target {
    pub workload: Arc<Workload>,
    /// Its own address and real port.
    pub address: SocketAddr,
    /// The service it was reached by, if the app dialled one.
    pub service: Option<Arc<Service>>,
}

/// Why there is no way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("the mesh state is not complete yet")]
    Incomplete,
    #[error("service {0} has no port {1}")]
    NoSuchPort(ServiceKey, u16),
    #[error("service {0} has no healthy endpoint")]
    NoHealthyEndpoint(ServiceKey),
    #[error("{0} needs a waypoint, and none is ready")]
    WaypointUnavailable(String),
}

impl Snapshot {
    /// Plans one outbound connection. `local_node` is the node this ztunnel serves.
    pub fn plan(&self, _local_node: &str, _outbound: &Outbound<'_>) -> Result<Plan, PlanError> {
        panic!("stub")
    }
}
