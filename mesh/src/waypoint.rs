//! Waypoints as the layer-4 proxies see them: who is one, for what a caller passes one, and whether a call that
//! says it came through one did.
//!
//! What a waypoint does with a request is not here: see [`crate::route`].

use std::{fmt, sync::Arc};

use crate::{GatewayAddress, Identity, Service, ServiceKey, Snapshot, Workload};

/// What was called when a waypoint had to be passed on the way.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Behind {
    Service(ServiceKey),
    /// A workload by its own address; its uid.
    Workload(Arc<str>),
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => key.fmt(f),
            Self::Workload(uid) => f.write_str(uid),
        }
    }
}

/// A call that a waypoint brought, in the name of the caller that its assertion names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    /// What TLS proved of the waypoint.
    pub waypoint: Identity,
    /// What the caller had called.
    pub behind: Behind,
}

/// `culvert.dev/waypoint: required`: who does not come through a waypoint of the workload is refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WaypointRequired {
    /// The workload's real ports that may be called directly all the same.
    pub except_ports: Vec<u16>,
    /// Its services that ask for theirs: the waypoints of others of its services do not do. None: each of its does.
    pub of: Vec<ServiceKey>,
}

impl WaypointRequired {
    /// Whether calls of that port must come through a waypoint.
    pub fn covers(&self, port: u16) -> bool {
        !self.except_ports.contains(&port)
    }
}

impl Snapshot {
    /// Whether that call may be brought by that waypoint to that workload, in the name of another: only what was
    /// called with this very waypoint before it, and leads to the workload.
    pub fn vouches(&self, passage: &Passage, workload: &Workload) -> bool {
        let gateway = match &passage.behind {
            Behind::Workload(uid) if *uid == workload.uid => workload.waypoint.as_ref(),
            Behind::Workload(_) => None,
            Behind::Service(key)
                if workload.services.contains_key(key) || workload.routed_from.contains(key) =>
            {
                self.service(key).and_then(|service| service.waypoint.as_ref())
            }
            Behind::Service(_) => None,
        };
        gateway.is_some_and(|gateway| self.is_identity_of(&passage.waypoint, gateway))
    }

    /// Whether `identity` is that of one of the workload's waypoints: its own, its services', or one whose routes
    /// lead to it.
    pub fn is_waypoint_of(&self, identity: &Identity, workload: &Workload) -> bool {
        let services = workload.services.keys().chain(&workload.routed_from);
        let of_services = services.filter_map(|key| self.service(key)?.waypoint.as_ref());
        workload.waypoint.iter().chain(of_services).any(|gateway| self.is_identity_of(identity, gateway))
    }

    /// Whether a call that comes through the waypoint of that identity has come through one that is required: the
    /// workload's own, that of a service that asks for its, or one whose routes lead here.
    pub(crate) fn is_required_waypoint(
        &self,
        identity: &Identity,
        required: &WaypointRequired,
        workload: &Workload,
    ) -> bool {
        if required.of.is_empty() {
            return self.is_waypoint_of(identity, workload);
        }
        let services = required.of.iter().chain(&workload.routed_from);
        let of_services = services.filter_map(|key| self.service(key)?.waypoint.as_ref());
        workload.waypoint.iter().chain(of_services).any(|gateway| self.is_identity_of(identity, gateway))
    }

    /// Whether a service is called through the waypoint of that identity.
    pub fn is_behind(&self, service: &Service, waypoint: &Identity) -> bool {
        service.waypoint.as_ref().is_some_and(|gateway| self.is_identity_of(waypoint, gateway))
    }

    /// Whether a workload is called by its address through the waypoint of that identity.
    pub fn is_workload_behind(&self, workload: &Workload, waypoint: &Identity) -> bool {
        workload.waypoint.as_ref().is_some_and(|gateway| self.is_identity_of(waypoint, gateway))
    }

    /// Whether some workload of the gateway has that identity; one that ends still counts.
    fn is_identity_of(&self, identity: &Identity, gateway: &GatewayAddress) -> bool {
        let has = |key: &ServiceKey| self.endpoints(key).any(|workload| workload.is_identified_by(identity));
        match gateway {
            GatewayAddress::Host { service, .. } => has(service),
            GatewayAddress::Address { address, .. } => {
                match self.service_at(&address.network, address.address) {
                    Some(service) => has(&service.key),
                    None => self
                        .workload_at(&address.network, address.address)
                        .is_some_and(|workload| workload.is_identified_by(identity)),
                }
            }
        }
    }
}

impl Workload {
    /// Whether `identity` is the workload's own.
    fn is_identified_by(&self, identity: &Identity) -> bool {
        *self.trust_domain == *identity.trust_domain()
            && *self.namespace == *identity.namespace()
            && *self.service_account == *identity.service_account()
    }
}
