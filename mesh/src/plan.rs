//! The outbound plan: where a captured connection goes, decided from one snapshot.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    Behind, GatewayAddress, Identity, Service, ServiceKey, Snapshot, Tunnel, Workload,
    endpoints::{NoPick, Wanted},
};

/// Where a workload that speaks HBONE takes tunnels.
pub const HBONE_PORT: u16 = 15008;

/// What is known of an outbound connection when it is captured.
pub struct Outbound<'a> {
    /// The workload that calls.
    pub source: &'a Workload,
    /// The address as the app dialled it (a service's virtual address, or a workload's own).
    pub destination: SocketAddr,
    /// A random number for load balancing; the same number gives the same plan.
    pub seed: u64,
    /// Who is passed over while there is somebody else.
    pub avoided: Option<Avoided<'a>>,
}

/// Whether the peer at an address is to be passed over while another can be chosen. Where all are, it does not count.
pub type Avoided<'a> = &'a dyn Fn(IpAddr) -> bool;

/// Where it goes.
#[derive(Debug, Clone)]
pub enum Plan {
    /// Not of the mesh: plain TCP to the original destination.
    Passthrough { to: SocketAddr },
    /// A known workload that does not speak HBONE: plain TCP to it.
    Plain(Target),
    /// A workload of this very node that is enrolled: admitted by the same function, without TLS.
    SameNode(Target),
    /// A workload known by its host name alone: plain TCP to this port of an address that the name has.
    Named { workload: Arc<Workload>, service: Arc<Service>, port: u16 },
    /// HBONE to the workload: TCP to `peer`, TLS that must prove one of `expected`, CONNECT `authority`.
    Hbone { target: Target, peer: SocketAddr, expected: Arc<[Identity]>, authority: String },
    /// HBONE to a waypoint (`target`, whose address is the peer's), which is to carry it on to `behind`. It is told
    /// what the app dialled, and by an assertion who calls.
    Waypoint { target: Target, expected: Arc<[Identity]>, authority: String, behind: Behind },
}

/// By what an endpoint is chosen.
pub struct Choice<'a> {
    /// The caller's network, and its node.
    pub network: &'a str,
    pub node: &'a str,
    /// Of its addresses one of this family, if it has one.
    pub like: IpAddr,
    pub seed: u64,
    /// Who is passed over while there is somebody else.
    pub avoided: Option<Avoided<'a>>,
}

/// An endpoint that was chosen.
#[derive(Debug, Clone)]
pub enum Chosen {
    Target(Target),
    /// It is known by its host name alone.
    Named {
        workload: Arc<Workload>,
        port: u16,
    },
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
    /// Its endpoints have neither an address nor a name that may be dialled without a tunnel.
    #[error("no endpoint of service {0} has an address or a host name that can be resolved")]
    NoAddress(ServiceKey),
    #[error("every endpoint of service {0} is in another network, which is not reached yet")]
    OtherNetwork(ServiceKey),
}

impl Snapshot {
    /// Plans one outbound connection. `local_node` is the node this ztunnel serves.
    ///
    /// The destination is looked up in the caller's network: a service's virtual address first, then a
    /// workload's own; what is neither is not of the mesh. Where a service or workload names a waypoint, that is
    /// where it goes. One that cannot be used is an error, never a way round it; the waypoint itself goes straight to
    /// what is behind it.
    pub fn plan(&self, local_node: &str, outbound: &Outbound<'_>) -> Result<Plan, PlanError> {
        if !self.is_complete() {
            return Err(PlanError::Incomplete);
        }
        let source = outbound.source;
        let dialled = SocketAddr::new(outbound.destination.ip().to_canonical(), outbound.destination.port());
        if let Some(service) = self.service_at(&source.network, dialled.ip()) {
            // Without resolution whoever is dialled is meant, and one of the mesh is met as ever.
            if !service.passthrough || self.must_pass(source, service.waypoint.as_ref()) {
                return self.to_service(service, local_node, dialled, outbound);
            }
        }
        let Some(workload) = self.workload_at(&source.network, dialled.ip()) else {
            return Ok(Plan::Passthrough { to: dialled });
        };
        if let Some(waypoint) = self.waypoint_before(workload, source) {
            return self.through(waypoint, Behind::Workload(workload.uid.clone()), None, dialled, outbound);
        }
        let target = Target { workload: workload.clone(), address: dialled, service: None };
        Ok(way_to(target, local_node))
    }

    /// Plans anew what was [`Plan::Named`], now that the name has an address: what the mesh has there is met as ever,
    /// and nothing else is dialled plainly.
    ///
    /// # Errors
    /// As of [`Self::plan`].
    pub fn plan_resolved(
        &self,
        local_node: &str,
        outbound: &Outbound<'_>,
        named: Target,
    ) -> Result<Plan, PlanError> {
        let (source, to) = (outbound.source, named.address);
        let found = self.service_at(&source.network, to.ip());
        if let Some(found) =
            found.filter(|found| named.service.as_ref().is_none_or(|own| own.key != found.key))
        {
            return match self.plan(local_node, &Outbound { destination: to, ..*outbound })? {
                // Once is enough: two names could lead to each other.
                Plan::Named { .. } => Err(PlanError::NoAddress(found.key.clone())),
                Plan::Passthrough { .. } => Ok(Plan::Plain(named)),
                plan => Ok(plan),
            };
        }
        let Some(workload) = self.workload_at(&source.network, to.ip()) else {
            return Ok(Plan::Plain(named));
        };
        if let Some(waypoint) = self.waypoint_before(workload, source) {
            let behind = Behind::Workload(workload.uid.clone());
            return self.through(waypoint, behind, named.service.as_ref(), to, outbound);
        }
        Ok(match workload.tunnel {
            Tunnel::None => Plan::Plain(named),
            Tunnel::Hbone => way_to(Target { workload: workload.clone(), ..named }, local_node),
        })
    }

    /// Picks an endpoint of a service, and its port.
    fn to_service(
        &self,
        service: &Arc<Service>,
        local_node: &str,
        dialled: SocketAddr,
        outbound: &Outbound<'_>,
    ) -> Result<Plan, PlanError> {
        let key = &service.key;
        if !service.ports.iter().any(|mapping| mapping.service_port == dialled.port()) {
            return Err(PlanError::NoSuchPort(key.clone(), dialled.port()));
        }
        if let Some(waypoint) =
            service.waypoint.as_ref().filter(|at| self.must_pass(outbound.source, Some(at)))
        {
            return self.through(waypoint, Behind::Service(key.clone()), Some(service), dialled, outbound);
        }

        let choice = Choice {
            network: &outbound.source.network,
            node: local_node,
            like: dialled.ip(),
            seed: outbound.seed,
            avoided: outbound.avoided,
        };
        match self.choose(service, dialled.port(), &choice)? {
            Chosen::Target(target) => Ok(way_to(target, local_node)),
            Chosen::Named { workload, port } => Ok(Plan::Named { workload, service: service.clone(), port }),
        }
    }

    /// Chooses an endpoint of a service for its port: each that may be used has the same chance over all seeds.
    ///
    /// # Errors
    /// If the service has no such port, or nobody can be chosen.
    pub fn choose(
        &self,
        service: &Arc<Service>,
        port: u16,
        choice: &Choice<'_>,
    ) -> Result<Chosen, PlanError> {
        let key = &service.key;
        let mapping = service.ports.iter().find(|mapping| mapping.service_port == port);
        let mapping = mapping.ok_or_else(|| PlanError::NoSuchPort(key.clone(), port))?;
        let none_healthy = || PlanError::NoHealthyEndpoint(key.clone());
        if service.node_local && choice.node.is_empty() {
            return Err(none_healthy());
        }
        let is_avoided = |workload: &Workload| is_avoided(workload, choice.like, choice.avoided);
        let wanted = Wanted {
            network: choice.network,
            node: service.node_local.then_some(choice.node),
            allow_unhealthy: service.allow_unhealthy,
            seed: choice.seed,
            avoided: choice.avoided.is_some().then_some(&is_avoided as &dyn Fn(&Workload) -> bool),
        };
        let picked = self.endpoints_of(key).ok_or_else(none_healthy)?.pick(&wanted);
        let workload = picked.map_err(|none| match none {
            NoPick::NoneHealthy => none_healthy(),
            NoPick::NoAddress => PlanError::NoAddress(key.clone()),
            NoPick::OtherNetwork => PlanError::OtherNetwork(key.clone()),
        })?;
        let own_mapping = workload.services.get(key).into_iter().flatten();
        let own_port = own_mapping.filter(|own| own.service_port == port).map(|own| own.target_port);
        let port = own_port.chain([mapping.target_port]).find(|&port| port != 0).unwrap_or(port);
        let Some(address) = address_like(workload, choice.like) else {
            // A tunnel ends at an address; what is to have one must not go without.
            return match workload.tunnel {
                Tunnel::None if !workload.hostname.is_empty() => {
                    Ok(Chosen::Named { workload: workload.clone(), port })
                }
                Tunnel::None | Tunnel::Hbone => Err(PlanError::NoAddress(key.clone())),
            };
        };
        Ok(Chosen::Target(Target {
            workload: workload.clone(),
            address: SocketAddr::new(address, port),
            service: Some(service.clone()),
        }))
    }

    /// Whether the caller has to pass that waypoint: everybody but the waypoint itself.
    fn must_pass(&self, source: &Workload, waypoint: Option<&GatewayAddress>) -> bool {
        waypoint.is_some_and(|waypoint| !self.is_gateway(source, waypoint))
    }

    /// The waypoint that a workload's caller has to pass.
    fn waypoint_before<'w>(&self, workload: &'w Workload, source: &Workload) -> Option<&'w GatewayAddress> {
        workload.waypoint.as_ref().filter(|waypoint| self.must_pass(source, Some(waypoint)))
    }

    /// The way to one of the workloads of a waypoint.
    fn through(
        &self,
        waypoint: &GatewayAddress,
        behind: Behind,
        service: Option<&Arc<Service>>,
        dialled: SocketAddr,
        outbound: &Outbound<'_>,
    ) -> Result<Plan, PlanError> {
        let unavailable = || PlanError::WaypointUnavailable(behind.to_string());
        let (front, hbone_port) = match waypoint {
            GatewayAddress::Host { service, hbone_port } => (self.service(service), hbone_port),
            GatewayAddress::Address { address, hbone_port } => {
                (self.service_at(&address.network, address.address), hbone_port)
            }
        };
        let is_avoided = |workload: &Workload| is_avoided(workload, dialled.ip(), outbound.avoided);
        let wanted = Wanted {
            network: &outbound.source.network,
            node: None,
            allow_unhealthy: false,
            seed: outbound.seed,
            avoided: outbound.avoided.is_some().then_some(&is_avoided as &dyn Fn(&Workload) -> bool),
        };
        let workload = match (front, waypoint) {
            (Some(front), _) => {
                self.endpoints_of(&front.key).and_then(|endpoints| endpoints.pick(&wanted).ok())
            }
            (None, GatewayAddress::Address { address, .. }) => {
                let at = self.workload_at(&address.network, address.address);
                at.filter(|workload| workload.healthy)
            }
            (None, GatewayAddress::Host { .. }) => None,
        };
        // What is not reached by a tunnel cannot be told who calls, and would be called in plaintext.
        let workload =
            workload.filter(|workload| workload.tunnel == Tunnel::Hbone).ok_or_else(unavailable)?;
        let address = address_like(workload, dialled.ip()).ok_or_else(unavailable)?;
        let further = front.iter().flat_map(|front| front.subject_alt_names.iter().cloned());
        let expected = std::iter::once(workload.identity()).chain(further).collect();
        let target = Target {
            workload: workload.clone(),
            address: SocketAddr::new(address, *hbone_port),
            service: service.cloned(),
        };
        Ok(Plan::Waypoint { target, expected, authority: dialled.to_string(), behind })
    }

    /// Whether a workload is the gateway of that address, or an endpoint of the service that is.
    fn is_gateway(&self, workload: &Workload, gateway: &GatewayAddress) -> bool {
        match gateway {
            GatewayAddress::Host { service, .. } => workload.services.contains_key(service),
            GatewayAddress::Address { address: at, .. } => {
                let address = at.address.to_canonical();
                let own = workload.network == at.network && workload.addresses.contains(&address);
                own || self
                    .service_at(&at.network, address)
                    .is_some_and(|service| workload.services.contains_key(&service.key))
            }
        }
    }
}

/// The workload's first address of the family of the dialled one, else its first.
fn address_like(workload: &Workload, dialled: IpAddr) -> Option<IpAddr> {
    let same_family = workload.addresses.iter().find(|address| address.is_ipv4() == dialled.is_ipv4());
    same_family.or(workload.addresses.first()).copied()
}

/// Whether the address by which a workload would be reached is one to be passed over.
fn is_avoided(workload: &Workload, dialled: IpAddr, avoided: Option<Avoided<'_>>) -> bool {
    avoided.is_some_and(|avoided| address_like(workload, dialled).is_some_and(avoided))
}

/// How a chosen workload is reached.
fn way_to(target: Target, local_node: &str) -> Plan {
    let workload = &target.workload;
    let is_ours = !local_node.is_empty() && *workload.node == *local_node && !workload.native_tunnel;
    match workload.tunnel {
        Tunnel::None => Plan::Plain(target),
        Tunnel::Hbone if is_ours => Plan::SameNode(target),
        Tunnel::Hbone => {
            let further = target.service.iter().flat_map(|service| &service.subject_alt_names);
            let expected = std::iter::once(workload.identity()).chain(further.cloned()).collect();
            let peer = SocketAddr::new(target.address.ip(), HBONE_PORT);
            let authority = target.address.to_string();
            Plan::Hbone { target, peer, expected, authority }
        }
    }
}
