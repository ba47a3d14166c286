//! Which route is for a connection that is carried as it is: a TLSRoute by the server's name that the caller asks for,
//! a TCPRoute for all of its port.
//!
//! A name as it is comes before a wildcard, a longer wildcard before a shorter one (`*.example.com` is for names of any
//! depth below `example.com`, and not for that one), and what names none last; then the older route, the first by
//! `namespace/name`.

use std::cmp::Reverse;

use super::{Found, Matched, Route, RouteKind, kinds::Followed};

/// Every name of every such route, the first that holds first.
#[derive(Debug, Clone, Default)]
pub(super) struct Connections(Vec<Entry>);

#[derive(Debug, Clone)]
struct Entry {
    route: usize,
    server: Server,
}

/// Whom the caller must ask for.
#[derive(Debug, Clone)]
enum Server {
    Exact(Box<str>),
    /// With the dot before it.
    Below(Box<str>),
    Any,
}

impl Connections {
    pub(super) fn new(routes: &[Route]) -> Self {
        let mut ranked = Vec::new();
        for (at, route) in routes.iter().enumerate().filter(|(_, route)| !route.key.kind.is_of_requests()) {
            let mut servers: Vec<Server> = route.hostnames.iter().map(|name| Server::of(name)).collect();
            if servers.is_empty() {
                servers.push(Server::Any);
            }
            let age = (&route.created, &route.key.namespace, &route.key.name);
            ranked.extend(
                servers.into_iter().map(|server| ((server.rank(), age), Entry { route: at, server })),
            );
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        Self(ranked.into_iter().map(|(_, entry)| entry).collect())
    }

    /// `server` is the name that the caller asks for, where it asks for one.
    pub(super) fn find<'a>(
        &self,
        routes: &'a [Route],
        port: u16,
        followed: Option<Followed<'_>>,
        server: Option<&str>,
    ) -> Found<'a> {
        let Some(followed) = followed.filter(|of| !of.kind.is_of_requests()) else { return Found::NoRoute };
        let server = server.map(|name| name.trim_end_matches('.').to_ascii_lowercase());
        let is_followed = |route: &Route| {
            route.port.is_none_or(|of| of == port)
                && followed == Followed { namespace: route.for_namespace.as_deref(), kind: route.key.kind }
        };
        for entry in &self.0 {
            let Some(route) = routes.get(entry.route).filter(|route| is_followed(route)) else { continue };
            // Of what is carried as it is nobody asks for a name.
            if followed.kind == RouteKind::Tcp || entry.server.holds(server.as_deref()) {
                let Some(rule) = route.rules.first() else { return Found::NoMatch };
                return Found::Rule(Matched { route, rule, index: 0, prefix: None });
            }
        }
        Found::NoMatch
    }
}

impl Server {
    fn of(name: &str) -> Self {
        match name.strip_prefix('*') {
            Some(below) => Self::Below(below.into()),
            None => Self::Exact(name.into()),
        }
    }

    fn rank(&self) -> (u8, Reverse<usize>) {
        match self {
            Self::Exact(_) => (0, Reverse(0)),
            Self::Below(below) => (1, Reverse(below.len())),
            Self::Any => (2, Reverse(0)),
        }
    }

    fn holds(&self, server: Option<&str>) -> bool {
        match (self, server) {
            (Self::Any, _) => true,
            (Self::Exact(name), Some(server)) => server == &**name,
            (Self::Below(below), Some(server)) => {
                server.strip_suffix(&**below).is_some_and(|front| !front.is_empty())
            }
            (Self::Exact(_) | Self::Below(_), None) => false,
        }
    }
}
