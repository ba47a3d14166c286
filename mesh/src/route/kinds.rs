//! Which routes are followed at all, for a port and a caller: those of the caller's own namespace in the place of
//! those for everybody, and of several kinds for one port the one that reads most of what passes: GRPCRoute,
//! HTTPRoute, TLSRoute, TCPRoute.
//!
//! Where it is known that HTTP is spoken, a consumer's route of connections is not followed: it would take his requests
//! past all that is said of requests.

use super::{Route, RouteKind};

/// Which routes are followed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Followed<'a> {
    /// Those that are for callers of this namespace, else those for everybody.
    pub(super) namespace: Option<&'a str>,
    pub(super) kind: RouteKind,
}

/// The kinds that a service has routes of: for whom (`None`: everybody), and for which port (`None`: each).
#[derive(Debug, Clone, Default)]
pub(super) struct Kinds(Vec<(Option<Box<str>>, Option<u16>, RouteKind)>);

impl Kinds {
    pub(super) fn new(routes: &[Route]) -> Self {
        let of = |route: &Route| (route.for_namespace.as_deref().map(Into::into), route.port, route.key.kind);
        let mut kinds: Vec<_> = routes.iter().map(of).collect();
        kinds.sort();
        kinds.dedup();
        Self(kinds)
    }

    /// Whether a route of requests for everybody is for the port, by its name or with all others.
    pub(super) fn has_requests_of(&self, port: u16) -> bool {
        let names =
            |whose: &Option<Box<str>>, of: &Option<u16>| whose.is_none() && of.is_none_or(|of| of == port);
        self.0.iter().any(|(whose, of, kind)| kind.is_of_requests() && names(whose, of))
    }

    /// Which routes are followed on a port for callers of a namespace. Where it was said that the port speaks no HTTP
    /// (`no_http`), routes of requests are not for it; where it is known that it does, no consumer's of connections.
    pub(super) fn followed<'c>(
        &self,
        port: u16,
        caller: Option<&'c str>,
        no_http: bool,
        speaks_http: impl Fn() -> bool,
    ) -> Option<Followed<'c>> {
        let first = |namespace: Option<&'c str>| {
            let of_them = self.0.iter().filter(|(whose, of, kind)| {
                whose.as_deref() == namespace
                    && of.is_none_or(|of| of == port)
                    && !(no_http && kind.is_of_requests())
                    && (namespace.is_none() || kind.is_of_requests() || !speaks_http())
            });
            let kind = of_them.map(|(.., kind)| *kind).min_by_key(|kind| kind.rank())?;
            Some(Followed { namespace, kind })
        };
        caller.and_then(|caller| first(Some(caller))).or_else(|| first(None))
    }
}
