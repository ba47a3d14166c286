//! One CONNECT: who calls, what is called, and what is spoken.
//!
//! Only what names this waypoint is carried on: it is a way to what stands behind it, and to nowhere else.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use ::http::StatusCode;
use hbone::{Authority, client::OpenError, server::Arrival};
use identity::assertion::{self, BadAssertion, Claims};
use mesh::{
    Behind, PlanError, Refusal, RouteKey, Service, Snapshot, Workload,
    request::RequestRefusal,
    route::{Protocol, RouteKind},
};

use crate::{
    authorize,
    detect::{self, MayBe, NoHello, Spoken},
    http,
    limits::{Beyond, Counted},
    shared::Settings,
    tcp,
    vault::Asserted,
    worker::Worker,
};

/// What is called.
#[derive(Debug, Clone)]
pub(crate) enum Called {
    Service(Arc<Service>),
    /// By its own address.
    Workload(Arc<Workload>),
}

/// Who calls what: all requests of a connection are of one call.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) claims: Claims,
    /// The caller's own address, with its port where that is known.
    pub(crate) source: SocketAddr,
    /// The caller's workload.
    pub(crate) workload: Option<Arc<Workload>>,
    pub(crate) called: Called,
    /// The address that was dialled, where it was no name.
    pub(crate) address: Option<IpAddr>,
    /// The port of the service, or of the workload.
    pub(crate) port: u16,
    /// By this its ztunnel says who calls, so that the destination can judge the caller.
    pub(crate) assertion: Option<Arc<Asserted>>,
    /// It counts as one of its source, as long as this lives.
    pub(crate) _counted: Counted,
}

impl Call {
    /// The namespace whose routes of consumers are followed: the caller's, as it was proved, in this trust domain.
    pub(crate) fn namespace(&self, settings: &Settings) -> Option<&str> {
        let caller = &self.claims.caller;
        (caller.trust_domain() == settings.identity.trust_domain()).then(|| caller.namespace())
    }
}

/// Why a CONNECT is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Beyond(#[from] Beyond),
    #[error("the mesh state is not complete yet; is control reachable?")]
    Incomplete,
    #[error("{0} is nothing that the mesh knows")]
    Unknown(Authority),
    #[error("{0} is not called through this waypoint")]
    NotBehind(Behind),
    #[error("{0} has no port {1}")]
    NoSuchPort(Behind, u16),
    #[error(transparent)]
    Assertion(#[from] BadAssertion),
    #[error("the assertion that the caller brought is another's: it says {0}")]
    AnothersAssertion(String),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Unauthorized(#[from] RequestRefusal),
    #[error("{0} is no address that a backend may have")]
    NoBackend(IpAddr),
    #[error(transparent)]
    NoEndpoint(#[from] PlanError),
    #[error("the name {name} of the backend leads to no address: {reason}")]
    NoName { name: Arc<str>, reason: Arc<str> },
    #[error("TLS with the backend {to} as {server} (BackendTLSPolicy {policy}) failed: {reason}")]
    Tls { to: SocketAddr, server: Arc<str>, policy: Arc<str>, reason: String },
    #[error("it is to be TLS: {0}")]
    NoHello(#[from] NoHello),
    #[error("no TLSRoute of {of} is for {}", .server.as_deref().unwrap_or("a caller that names no server"))]
    NoRoute { of: Behind, server: Option<Box<str>> },
    #[error("the route {route} leads nowhere: {reason}")]
    Nowhere { route: RouteKey, reason: String },
    #[error("the backend did not take it: {0}")]
    Open(#[from] OpenError),
    #[error("{to} cannot be reached: {source}")]
    Dial { to: SocketAddr, source: std::io::Error },
}

impl Failure {
    /// The answer to a CONNECT that fails so.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Assertion(_) | Self::AnothersAssertion(_) | Self::Refused(_) | Self::Unauthorized(_) => {
                StatusCode::UNAUTHORIZED
            }
            Self::NotBehind(_) | Self::NoSuchPort(..) | Self::NoHello(_) => StatusCode::BAD_REQUEST,
            // What the destination says of the caller is said to the caller.
            Self::Open(OpenError::Refused { status, .. }) => *status,
            Self::Beyond(_)
            | Self::Incomplete
            | Self::Unknown(_)
            | Self::NoBackend(_)
            | Self::NoEndpoint(_)
            | Self::NoName { .. }
            | Self::Tls { .. }
            | Self::NoRoute { .. }
            | Self::Nowhere { .. }
            | Self::Open(_)
            | Self::Dial { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The reason's name in metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Beyond(_) => "too-many-connections",
            Self::Incomplete => "state-incomplete",
            Self::Unknown(_) => "unknown-destination",
            Self::NotBehind(_) => "not-behind",
            Self::NoSuchPort(..) => "no-such-port",
            Self::Assertion(_) | Self::AnothersAssertion(_) => "assertion",
            Self::Refused(_) | Self::Unauthorized(_) => "policy",
            Self::NoEndpoint(_) | Self::NoBackend(_) | Self::NoName { .. } => "no-endpoint",
            Self::Tls { .. } => "backend-tls",
            Self::NoHello(_) => "no-tls",
            Self::NoRoute { .. } => "no-route",
            Self::Nowhere { .. } => "no-backend",
            Self::Open(OpenError::Refused { .. }) => "backend-refused",
            Self::Open(_) | Self::Dial { .. } => "backend-unreachable",
        }
    }
}

/// Serves one CONNECT to its end.
pub(crate) async fn serve(worker: &Rc<Worker>, mut arrival: Arrival) {
    let shared = &worker.shared;
    if arrival.authority.to_string() == assertion::REFRESH {
        return refresh(worker, arrival);
    }
    let call = match take(worker, &arrival).await {
        Ok(call) => Rc::new(call),
        Err(failure) => {
            shared.metrics.refused(failure.name());
            tracing::warn!(peer = %arrival.peer, authority = %arrival.authority, error = %failure, "not taken");
            return arrival.refuse(failure.status());
        }
    };
    let way = way(&shared.mesh.current(), &call, &shared.settings);
    match way {
        Way::Bytes => return tcp::carry(worker, &call, arrival).await,
        Way::BytesInTls => return tcp::carry_in_tls(worker, &call, arrival).await,
        Way::Tls => return tcp::carry_tls(worker, &call, arrival).await,
        Way::Http | Way::Unknown { .. } => {}
    }
    let has_bytes = arrival.has_bytes();
    let Ok(tunnel) = arrival.accept(None) else { return };
    let stream = tunnel.into_stream();
    if let Way::Unknown { is_routed } = way {
        match detect::first_words(worker, &call, stream, has_bytes, MayBe::Http { is_routed }).await {
            Ok((Spoken::Http1, stream)) => http::one(worker, &call, stream).await,
            Ok((Spoken::Http2, stream)) => http::two(worker, &call, stream).await,
            Ok((Spoken::Tcp(begun, dialled), stream)) => {
                tcp::relay(worker, &call, stream, begun, dialled).await;
            }
            // The caller ended before it had said anything.
            Err(_) => {}
        }
    } else {
        match detect::version(stream).await {
            Ok((true, stream)) => http::two(worker, &call, stream).await,
            Ok((false, stream)) => http::one(worker, &call, stream).await,
            Err(_) => {}
        }
    }
}

/// How a connection is carried.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// Request by request.
    Http,
    /// As it is.
    Bytes,
    /// As it is, within TLS that is begun here, unless its first bytes tell that the caller has.
    BytesInTls,
    /// As it is, by the server that is asked for in it.
    Tls,
    /// Its first bytes tell; `is_routed` if routes of requests are for it.
    Unknown { is_routed: bool },
}

/// A caller's ztunnel brings a newer assertion, for what the caller's connections need from now on.
fn refresh(worker: &Worker, arrival: Arrival) {
    let shared = &worker.shared;
    let said = arrival.assertion.as_deref().map(assertion::claims);
    let is_own = |claims: &Claims| {
        claims.caller == arrival.peer
            && claims.waypoint == shared.settings.identity
            && may_have(&shared.mesh.current(), &shared.settings.network, claims, arrival.ends.remote.ip())
    };
    match (said, &arrival.assertion) {
        (Some(Ok((claims, end))), Some(header)) if is_own(&claims) => {
            shared.vault.renew(&claims, header, end);
            // An answer is all that is waited for; what is left of the stream ends with it.
            drop(arrival.accept(None));
        }
        _ => {
            shared.metrics.refused("assertion");
            arrival.refuse(StatusCode::UNAUTHORIZED);
        }
    }
}

/// How a connection is carried, as far as that was said. A route of requests that names the port says that it speaks
/// HTTP: then nobody gets round the route by speaking something that is only almost HTTP. A route of connections says
/// that nobody is to read what they carry. Where tokens are read and nobody has said what a port speaks, it is to be
/// HTTP: backends may read as a request what is none here, with headers that are only made of tokens.
fn way(snapshot: &Snapshot, call: &Call, settings: &Settings) -> Way {
    let routes = match &call.called {
        Called::Service(service) => snapshot.routes(&service.key),
        // Of its ports nobody can say what they speak.
        Called::Workload(_) => {
            let front = authorize::routes(snapshot, call, settings);
            return Way::Unknown { is_routed: front.is_some_and(|routes| !routes.authentication.is_empty()) };
        }
    };
    let is_passthrough = matches!(&call.called, Called::Service(service) if service.passthrough);
    let Some(routes) = routes else {
        return if is_passthrough { Way::Bytes } else { Way::Unknown { is_routed: false } };
    };
    let namespace = call.namespace(settings);
    let bytes = if routes.tls(call.port).is_some() { Way::BytesInTls } else { Way::Bytes };
    match (routes.kind(call.port, namespace), routes.protocol(call.port)) {
        (Some(RouteKind::Tcp), _) => Way::Bytes,
        _ if is_passthrough => bytes,
        (Some(RouteKind::Tls), _) => Way::Tls,
        (_, Protocol::Tcp) => bytes,
        (_, Protocol::Http1 | Protocol::Http2) => Way::Http,
        (_, Protocol::Unknown) if !routes.may_be_bytes(call.port, namespace) => Way::Http,
        (kind, Protocol::Unknown) => Way::Unknown { is_routed: kind.is_some() },
    }
}

/// Who calls what; refused is what is not behind this waypoint, and who brings another's assertion.
async fn take(worker: &Worker, arrival: &Arrival) -> Result<Call, Failure> {
    let shared = &worker.shared;
    let settings = &shared.settings;
    let snapshot = shared.state().await.ok_or(Failure::Incomplete)?;
    let (called, port) =
        (resolve(&snapshot, &settings.network, &arrival.authority)?, arrival.authority.port());
    let behind = called.behind();
    let is_behind = match &called {
        Called::Service(service) => snapshot.is_behind(service, &settings.identity),
        Called::Workload(workload) => snapshot.is_workload_behind(workload, &settings.identity),
    };
    if !is_behind {
        return Err(Failure::NotBehind(behind));
    }
    if let Called::Service(service) = &called
        && !service.ports.iter().any(|mapping| mapping.service_port == port)
    {
        return Err(Failure::NoSuchPort(behind, port));
    }
    let remote = arrival.ends.remote.ip();
    let mut claims =
        Claims { caller: arrival.peer.clone(), address: remote, waypoint: settings.identity.clone(), behind };
    let mut asserted = None;
    if let Some(header) = &arrival.assertion {
        let (said, end) = assertion::claims(header)?;
        claims.address = said.address;
        if said != claims || !may_have(&snapshot, &settings.network, &said, remote) {
            return Err(Failure::AnothersAssertion(format!(
                "{} at {} for {} through {}",
                said.caller, said.address, said.behind, said.waypoint
            )));
        }
        asserted = Some(shared.vault.put(&claims, header, end));
    }
    let said = arrival.forwarded.as_ref().map(|forwarded| forwarded.source);
    let port_of_caller = said.filter(|said| said.ip() == claims.address).map_or(0, |said| said.port());
    let workload = snapshot.workload_at(&settings.network, claims.address);
    let counted = shared.limits.count(claims.address)?;
    Ok(Call {
        source: SocketAddr::new(claims.address, port_of_caller),
        workload: workload.filter(|workload| workload.identity() == claims.caller).cloned(),
        called,
        address: match &arrival.authority {
            Authority::Ip(address) => Some(address.ip().to_canonical()),
            Authority::Host { .. } => None,
        },
        port,
        assertion: asserted,
        claims,
        _counted: counted,
    })
}

/// Whether a caller may say that this is its address: the tunnel comes from it, or from another address of the same
/// workload, which is the caller's.
fn may_have(snapshot: &Snapshot, network: &str, said: &Claims, remote: IpAddr) -> bool {
    let is_callers = |workload: &&Arc<Workload>| {
        workload.identity() == said.caller && workload.addresses.contains(&remote)
    };
    said.address == remote || snapshot.workload_at(network, said.address).filter(is_callers).is_some()
}

fn resolve(snapshot: &Snapshot, network: &str, authority: &Authority) -> Result<Called, Failure> {
    let unknown = || Failure::Unknown(authority.clone());
    match authority {
        Authority::Ip(address) => {
            if let Some(service) = snapshot.service_at(network, address.ip()) {
                return Ok(Called::Service(service.clone()));
            }
            let workload = snapshot.workload_at(network, address.ip());
            Ok(Called::Workload(workload.ok_or_else(unknown)?.clone()))
        }
        Authority::Host { name, .. } => {
            // Of services of one host name in several namespaces one with a waypoint is meant: the caller was told so.
            let services = snapshot.services_named(name);
            let service = services.max_by_key(|service| service.waypoint.is_some());
            Ok(Called::Service(service.ok_or_else(unknown)?.clone()))
        }
    }
}

impl Called {
    pub(crate) fn behind(&self) -> Behind {
        match self {
            Self::Service(service) => Behind::Service(service.key.clone()),
            Self::Workload(workload) => Behind::Workload(workload.uid.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
