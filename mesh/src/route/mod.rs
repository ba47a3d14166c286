//! Routes of the Gateway API as a waypoint knows them: what a request is compared with, and what is then done with
//! it. The shape is that of HTTPRoute and GRPCRoute, whose fields are one here: a call of gRPC is a request whose
//! path is `/SERVICE/METHOD`.
//!
//! TLSRoute and TCPRoute have the same backends, and nothing of a request to compare.
//!
//! Which rule is for a request is decided in [`table`], which is for a connection in [`connection`]; what a rule says is
//! carried out by the waypoint.

mod backend_tls;
mod connection;
mod index;
mod kinds;
mod table;

use std::{fmt, sync::Arc, time::Duration};

pub use backend_tls::{BackendTls, SubjectName, Trust};
pub use table::{Found, Matched, Request};

use crate::{ServiceKey, request::RequestPolicies, token::Authentication};
use connection::Connections;
use kinds::Kinds;
use table::Table;

/// The kinds of routes, in the order in which they sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    Http,
    Grpc,
    /// Of connections, by the server's name that is asked for in TLS.
    Tls,
    /// Of connections.
    Tcp,
}

impl RouteKind {
    /// Whether it routes requests, and not connections as they are.
    pub fn is_of_requests(self) -> bool {
        match self {
            Self::Http | Self::Grpc => true,
            Self::Tls | Self::Tcp => false,
        }
    }

    /// Of several kinds for one port that of the lowest rank alone is followed.
    pub fn rank(self) -> u8 {
        match self {
            Self::Grpc => 0,
            Self::Http => 1,
            Self::Tls => 2,
            Self::Tcp => 3,
        }
    }
}

/// A route's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub kind: RouteKind,
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a port of a service speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// Nobody has said.
    #[default]
    Unknown,
    Http1,
    /// HTTP/2 with prior knowledge, gRPC among it.
    Http2,
    /// Bytes that are nobody's business.
    Tcp,
}

/// How a service behind a waypoint is routed.
#[derive(Debug, Clone)]
pub struct ServiceRoutes {
    pub service: ServiceKey,
    /// What its ports speak, where that was said.
    pub ports: Vec<(u16, Protocol)>,
    /// What judges its requests before they are routed.
    pub policies: RequestPolicies,
    /// Whose tokens its requests may bring.
    pub authentication: Authentication,
    /// How it is spoken to where TLS is begun with it, each for a port or for all of them.
    pub tls: Vec<Arc<BackendTls>>,
    routes: Vec<Route>,
    kinds: Kinds,
    table: Table,
    connections: Connections,
}

/// One route, as far as it is for this service.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    pub key: RouteKey,
    /// `metadata.creationTimestamp`, RFC 3339; empty sorts first. Of routes that say the same the older holds.
    pub created: Arc<str>,
    /// Only requests of this port of the service; `None` for all of them.
    pub port: Option<u16>,
    /// Only requests of callers of that namespace, for whom it is in the place of those that are for everybody: the
    /// route of a consumer.
    pub for_namespace: Option<Arc<str>>,
    /// TLSRoutes: the servers that it is for, in lower case, with `*.` before those below a name; none: every one.
    pub hostnames: Vec<Arc<str>>,
    /// Of a route of connections the first alone holds.
    pub rules: Vec<Rule>,
}

/// One rule of a route.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rule {
    pub name: Option<Arc<str>>,
    /// Any of them; none match everything.
    pub matches: Vec<Match>,
    /// In this order.
    pub filters: Vec<Filter>,
    pub backends: Vec<Backend>,
    pub timeouts: Timeouts,
    pub retry: Option<Retry>,
}

/// What a request must be, in every respect.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Match {
    pub path: PathMatch,
    pub method: Option<Arc<str>>,
    pub headers: Vec<FieldMatch>,
    pub query: Vec<FieldMatch>,
}

/// What its path must be.
#[derive(Debug, Clone, PartialEq)]
pub enum PathMatch {
    Exact(Arc<str>),
    /// By whole elements: `/a/b` is no prefix of `/a/bc`. A trailing slash says nothing.
    Prefix(Arc<str>),
    Regex(Arc<str>),
    /// A call of gRPC; what is not said may be anything.
    Rpc {
        service: Option<TextMatch>,
        method: Option<TextMatch>,
    },
}

impl Default for PathMatch {
    fn default() -> Self {
        Self::Prefix("/".into())
    }
}

/// What a text must be.
#[derive(Debug, Clone, PartialEq)]
pub enum TextMatch {
    Exact(Arc<str>),
    /// As a whole.
    Regex(Arc<str>),
}

/// A header (its name in lower case) or a parameter of the query, and what it must be.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldMatch {
    pub name: Arc<str>,
    pub value: TextMatch,
}

/// What is done with a request or its answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    RequestHeaders(HeaderChange),
    ResponseHeaders(HeaderChange),
    Redirect(Redirect),
    Rewrite(Rewrite),
    Mirror(Mirror),
    Cors(Cors),
}

/// A change of headers: first what is removed, then what is set, then what is added. Names in lower case.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeaderChange {
    pub set: Vec<(Arc<str>, Arc<str>)>,
    pub add: Vec<(Arc<str>, Arc<str>)>,
    pub remove: Vec<Arc<str>>,
}

/// An answer that sends the caller elsewhere; what is not said stays as it is in the request.
#[derive(Debug, Clone, PartialEq)]
pub struct Redirect {
    pub scheme: Option<Arc<str>>,
    pub hostname: Option<Arc<str>>,
    pub path: Option<PathChange>,
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// Another path.
#[derive(Debug, Clone, PartialEq)]
pub enum PathChange {
    Full(Arc<str>),
    /// In place of the prefix by which the rule matched.
    Prefix(Arc<str>),
}

/// Another host or path, towards the backend.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rewrite {
    pub hostname: Option<Arc<str>>,
    pub path: Option<PathChange>,
}

/// A copy of the request, whose answer is thrown away.
#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    pub to: To,
    /// Of so many requests ...
    pub of: u32,
    /// ... so many are copied.
    pub copied: u32,
}

/// Cross-origin requests, answered in the place of the service.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cors {
    /// `*`, an origin, or one with `*` in its host.
    pub allow_origins: Vec<Arc<str>>,
    pub allow_credentials: bool,
    pub allow_methods: Vec<Arc<str>>,
    pub allow_headers: Vec<Arc<str>>,
    pub expose_headers: Vec<Arc<str>>,
    /// Seconds.
    pub max_age: u32,
}

/// Where a share of the requests goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Backend {
    pub to: To,
    /// Its share, relative to those of the others; 0 gets none.
    pub weight: u32,
    pub filters: Vec<Filter>,
}

/// A backend.
#[derive(Debug, Clone, PartialEq)]
pub enum To {
    Service {
        service: ServiceKey,
        port: u16,
    },
    /// There is no such thing, or it may not be referred to: its share is answered 500. The reason is for people.
    Nowhere(Arc<str>),
}

/// How long things may take; `None`: as long as they like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's head to the end of its answer, tries included.
    pub request: Option<Duration>,
    /// The same of one try.
    pub backend_request: Option<Duration>,
}

/// When a request is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Statuses after which it is.
    pub codes: Vec<u16>,
    /// So often at most.
    pub attempts: u32,
    /// The least pause before a further try.
    pub backoff: Option<Duration>,
}

impl Retry {
    /// No rule has a request sent again more often.
    pub const MOST: u32 = 10;
}

impl Rule {
    /// The backend for one request or connection: each by its weight over all numbers. `None` if none has a share.
    pub fn backend(&self, random: u64) -> Option<&Backend> {
        let total: u64 = self.backends.iter().map(|backend| u64::from(backend.weight)).sum();
        // The bias is below 2^-32.
        let mut left = random.checked_rem(total)?;
        self.backends.iter().find(|backend| match left.checked_sub(u64::from(backend.weight)) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        })
    }

    /// Everything that a request or a copy of it may be sent to.
    pub fn leads_to(&self) -> impl Iterator<Item = &To> {
        let of_backends = self.backends.iter().flat_map(|backend| &backend.filters);
        let mirrors = self.filters.iter().chain(of_backends).filter_map(|filter| match filter {
            Filter::Mirror(mirror) => Some(&mirror.to),
            _ => None,
        });
        self.backends.iter().map(|backend| &backend.to).chain(mirrors)
    }
}

impl Route {
    fn is_for(&self, port: u16, caller: Option<&str>) -> bool {
        self.port.is_none_or(|of| of == port)
            && (self.for_namespace.is_none() || self.for_namespace.as_deref() == caller)
    }
}

/// A pattern that does not compile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{pattern:?} is no regular expression that can be used: {reason}")]
pub struct BadPattern {
    pub pattern: String,
    pub reason: String,
}

/// Whether a pattern can be used.
///
/// # Errors
/// With what is wrong with it: its syntax, or that it is too large.
pub fn check_pattern(pattern: &str) -> Result<(), BadPattern> {
    table::compile(pattern).map(drop)
}

impl ServiceRoutes {
    /// Orders the routes by the specification's precedence.
    ///
    /// # Errors
    /// If a pattern does not compile.
    pub fn new(
        service: ServiceKey,
        ports: Vec<(u16, Protocol)>,
        routes: Vec<Route>,
    ) -> Result<Self, BadPattern> {
        let (kinds, connections) = (Kinds::new(&routes), Connections::new(&routes));
        let table = Table::new(&routes)?;
        let (policies, authentication) = (RequestPolicies::default(), Authentication::default());
        Ok(Self {
            service,
            ports,
            policies,
            authentication,
            tls: Vec::new(),
            routes,
            kinds,
            table,
            connections,
        })
    }

    /// With policies for its requests.
    pub fn with_policies(self, policies: RequestPolicies) -> Self {
        Self { policies, ..self }
    }

    /// With rules for the tokens of its requests.
    pub fn with_authentication(self, authentication: Authentication) -> Self {
        Self { authentication, ..self }
    }

    /// With TLS, which is begun with it.
    pub fn with_tls(self, tls: Vec<Arc<BackendTls>>) -> Self {
        Self { tls, ..self }
    }

    /// How TLS is begun with a port; `None` where it is spoken to in plaintext.
    pub fn tls(&self, port: u16) -> Option<&Arc<BackendTls>> {
        backend_tls::of_port(&self.tls, port)
    }

    /// What a port speaks.
    pub fn protocol(&self, port: u16) -> Protocol {
        self.ports.iter().find(|(of, _)| *of == port).map_or(Protocol::Unknown, |(_, protocol)| *protocol)
    }

    /// The kind of routes that is followed on that port for callers of that namespace; `None` if no route is for it.
    pub fn kind(&self, port: u16, caller: Option<&str>) -> Option<RouteKind> {
        self.followed(port, caller).map(|followed| followed.kind)
    }

    fn followed<'c>(&self, port: u16, caller: Option<&'c str>) -> Option<kinds::Followed<'c>> {
        let no_http = self.protocol(port) == Protocol::Tcp;
        self.kinds.followed(port, caller, no_http, || self.speaks_http(port))
    }

    /// Whether a port is for HTTP: by what its owner declares, by a route of requests that is for it, or since tokens are
    /// read there. No consumer's route carries connections to it as they are.
    pub fn speaks_http(&self, port: u16) -> bool {
        match self.protocol(port) {
            Protocol::Http1 | Protocol::Http2 => true,
            Protocol::Tcp => false,
            Protocol::Unknown => !self.authentication.is_empty() || self.kinds.has_requests_of(port),
        }
    }

    /// Whether a route of requests is for that port by name, and not for all ports of the service.
    pub fn is_named_by_routes(&self, port: u16, caller: Option<&str>) -> bool {
        let named = |route: &Route| route.key.kind.is_of_requests() && route.port.is_some();
        self.routes.iter().any(|route| named(route) && route.is_for(port, caller))
    }

    /// Whether a port of which nobody has said what it speaks may speak no HTTP: no route of requests names it, and no
    /// tokens are read there.
    pub fn may_be_bytes(&self, port: u16, caller: Option<&str>) -> bool {
        self.authentication.is_empty() && !self.is_named_by_routes(port, caller)
    }

    /// Its routes.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The rule for a request to `port` of the service, by a caller of that namespace; `None` if his is not known.
    pub fn find(&self, port: u16, caller: Option<&str>, request: &impl Request) -> Found<'_> {
        let followed = self.kinds.followed(port, caller, false, || self.speaks_http(port));
        self.table.find(&self.routes, port, followed, request)
    }

    /// The rule for a connection to `port` of the service that is carried as it is. `server` is the name of the server
    /// that is asked for in TLS. Where routes of requests are followed, none is for it.
    pub fn find_connection(&self, port: u16, caller: Option<&str>, server: Option<&str>) -> Found<'_> {
        self.connections.find(&self.routes, port, self.followed(port, caller), server)
    }
}

/// Equal if they say the same; the order that was made of it follows from it.
impl PartialEq for ServiceRoutes {
    fn eq(&self, other: &Self) -> bool {
        self.service == other.service
            && self.ports == other.ports
            && self.policies == other.policies
            && self.authentication == other.authentication
            && self.tls == other.tls
            && self.routes == other.routes
    }
}
