//! One object, whichever kind it is of: what is asked of all of them.

use super::{
    Authorization, BackendTlsPolicy, ConfigMap, EndpointSlice, Gateway, Namespace, Node, PeerAuthentication,
    Pod, ReferenceGrant, RequestAuthentication, Route, Service, ServiceEntry, Shared, WorkloadEntry,
};
use crate::compile::WAYPOINT_EXCEPT;

/// One object, typed and valid.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    Namespace(Box<Namespace>),
    Node(Box<Node>),
    Pod(Box<Pod>),
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    ServiceEntry(Box<ServiceEntry>),
    WorkloadEntry(Box<WorkloadEntry>),
    AuthorizationPolicy(Box<Authorization>),
    PeerAuthentication(Box<PeerAuthentication>),
    RequestAuthentication(Box<RequestAuthentication>),
    Gateway(Box<Gateway>),
    HTTPRoute(Box<Route>),
    GRPCRoute(Box<Route>),
    TLSRoute(Box<Route>),
    TCPRoute(Box<Route>),
    ReferenceGrant(Box<ReferenceGrant>),
    BackendTLSPolicy(Box<BackendTlsPolicy>),
    ConfigMap(Box<ConfigMap>),
}

/// The pattern of a route, of whichever kind.
macro_rules! any_route {
    ($route:ident) => {
        Self::HTTPRoute($route) | Self::GRPCRoute($route) | Self::TLSRoute($route) | Self::TCPRoute($route)
    };
}

impl Object {
    /// Whether other namespaces than its own are compiled by it, too: waypoints serve several.
    pub(crate) fn is_far(&self) -> bool {
        match self {
            Self::Gateway(gateway) => gateway.is_waypoint(),
            Self::AuthorizationPolicy(policy) => policy.is_for_gateways(),
            Self::RequestAuthentication(policy) => policy.is_for_gateways(),
            _ => false,
        }
    }

    /// It, if it is a route.
    pub fn route(&self) -> Option<&Route> {
        match self {
            any_route!(route) => Some(route),
            _ => None,
        }
    }

    /// Whether no version of it was ever good, and this holds in its place.
    pub(crate) fn is_stand_in(&self) -> bool {
        match self {
            Self::BackendTLSPolicy(policy) => policy.is_stand_in(),
            _ => self.route().is_some_and(|route| route.refused.is_some() && route.parents.is_empty()),
        }
    }

    /// It, if it is a grant.
    pub fn grant(&self) -> Option<&ReferenceGrant> {
        match self {
            Self::ReferenceGrant(grant) => Some(grant),
            _ => None,
        }
    }

    pub(crate) fn route_mut(&mut self) -> Option<&mut Route> {
        match self {
            any_route!(route) => Some(route),
            _ => None,
        }
    }

    /// Its own texts become those that all share.
    pub(crate) fn share(&mut self, shared: &mut Shared) {
        match self {
            Self::Pod(pod) => pod.share(shared),
            Self::EndpointSlice(slice) => slice.share(shared),
            Self::Service(service) => service.share(shared),
            Self::Namespace(object) => object.metadata.share(&[WAYPOINT_EXCEPT], shared),
            Self::Node(object) => object.metadata.share(&[], shared),
            Self::Gateway(object) => object.metadata.share(&[], shared),
            // Its age counts.
            any_route!(object) => object.metadata.labels.share(shared),
            Self::ReferenceGrant(object) => object.metadata.share(&[], shared),
            Self::BackendTLSPolicy(object) => object.metadata.labels.share(shared),
            Self::ConfigMap(_)
            | Self::ServiceEntry(_)
            | Self::WorkloadEntry(_)
            | Self::AuthorizationPolicy(_)
            | Self::PeerAuthentication(_)
            | Self::RequestAuthentication(_) => {}
        }
    }
}
