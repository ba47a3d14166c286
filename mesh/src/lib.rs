//! What the mesh knows and how it decides: workloads, services, identities and policies in, a plan
//! or a verdict out.
//!
//! Nothing here does I/O, reads a clock or knows a wire format: every decision is a function of one
//! immutable [`Snapshot`] and the facts of one connection, so both ends can be tested in one process.
#![forbid(unsafe_code)]

mod absent;
pub mod admit;
mod claims;
mod compiled;
mod endpoints;
mod facet;
pub mod identity;
mod index;
mod names;
pub mod plan;
mod policies;
pub mod policy;
pub mod request;
pub mod route;
pub mod service;
pub mod snapshot;
mod sorted;
pub mod token;
pub mod trace;
pub mod waypoint;
pub mod workload;

pub use absent::{Absent, Lost, Standing};
pub use admit::{Attempt, Decision, Refusal, Verdict};
pub use identity::{Identity, InvalidIdentity};
pub use names::{Asker, Family, Named, is_automatic};
pub use plan::{Avoided, Choice, Chosen, HBONE_PORT, Outbound, Plan, PlanError, Target};
pub use policy::{
    Action, Clause, Match, PEER_AUTHENTICATION, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch,
    StringMatch,
};
pub use route::{RouteKey, ServiceRoutes};
pub use service::{Families, PortMapping, Service, ServiceKey};
pub use snapshot::{Editor, Snapshot};
pub use waypoint::{Behind, Passage, WaypointRequired};
pub use workload::{GatewayAddress, Locality, NetworkAddress, Tunnel, Workload, WorkloadKind, is_sandbox};
