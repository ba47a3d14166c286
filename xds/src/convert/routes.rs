//! `culvert.waypoint.v1.ServiceRoutes` → [`mesh::ServiceRoutes`].
//!
//! What is left out and must be there refuses the service's routes as a whole, and their last good version stays: half
//! a route would lead requests elsewhere.

use std::{sync::Arc, time::Duration};

use mesh::{
    PolicyKey, RouteKey, ServiceKey, ServiceRoutes,
    request::{RequestAction, RequestPolicies, RequestPolicy, RequestRule},
    route::{
        Backend, BackendTls, Cors, FieldMatch, Filter, HeaderChange, Match, Mirror, PathChange, PathMatch,
        Protocol, Redirect, Retry, Rewrite, Route, RouteKind, Rule, SubjectName, TextMatch, Timeouts, To,
        Trust,
    },
    token::Authentication,
};
use prost::Message;
use proto::waypoint as wire;

use super::{Converter, Invalid, invalid, port, required};

impl Converter {
    /// Decodes and converts a resource of type `culvert.waypoint.v1.ServiceRoutes` that was sent as `name`.
    ///
    /// # Errors
    /// With the field that cannot be used.
    pub fn routes(&mut self, name: &str, encoded: &[u8]) -> Result<ServiceRoutes, Invalid> {
        let from =
            wire::ServiceRoutes::decode(encoded).map_err(|error| Invalid::Encoding(error.to_string()))?;
        let service = self.key_of(&from.namespace, &from.hostname)?;
        let found = service.to_string();
        if found != name {
            return Err(Invalid::Name { wanted: name.to_owned(), found });
        }
        let ports = from.ports.iter().map(|of| Ok((port("ports", of.port)?, protocol(of.protocol))));
        let ports = ports.collect::<Result<_, Invalid>>()?;
        let routes = from.routes.iter().map(|route| self.route(route)).collect::<Result<_, _>>()?;
        let policies =
            from.policies.iter().map(|policy| self.request_policy(policy)).collect::<Result<_, _>>()?;
        let routes = ServiceRoutes::new(service, ports, routes);
        let routes = routes.map_err(|error| invalid("routes", error.to_string()))?;
        let tokens = from.tokens.iter().map(|rule| self.token_rule(rule)).collect::<Result<_, _>>()?;
        let tls = from.tls.iter().map(|tls| backend_tls(tls).map(Arc::new)).collect::<Result<_, _>>()?;
        let routes = routes.with_policies(RequestPolicies::new(policies));
        Ok(routes.with_authentication(Authentication::new(tokens)).with_tls(tls))
    }

    /// Routes by which nothing of the service is reached: requests are refused, and connections that are no HTTP.
    ///
    /// # Errors
    /// If the name is no service's.
    pub fn closed_routes(&mut self, name: &str) -> Result<ServiceRoutes, Invalid> {
        let service = self.service_key("name", name)?;
        let nowhere = To::Nowhere("the routes of the service could not be read".into());
        let rule = Rule {
            backends: vec![Backend { to: nowhere, weight: 1, filters: Vec::new() }],
            ..Rule::default()
        };
        let key = RouteKey {
            namespace: service.namespace.clone(),
            name: self.share("unreadable"),
            kind: RouteKind::Http,
        };
        let route = Route {
            key,
            created: "".into(),
            port: None,
            for_namespace: None,
            hostnames: Vec::new(),
            rules: vec![rule],
        };
        // What is no HTTP is closed, too: its policies could not be read either.
        let nobody = RequestPolicy {
            key: PolicyKey { namespace: service.namespace.clone(), name: self.share("unreadable") },
            action: RequestAction::Deny,
            dry_run: false,
            rules: vec![RequestRule::default()],
        };
        let closed = ServiceRoutes::new(service, Vec::new(), vec![route]);
        let closed = closed.map_err(|error| invalid("routes", error.to_string()))?;
        Ok(closed.with_policies(RequestPolicies::new(vec![nobody])))
    }

    fn route(&mut self, from: &wire::Route) -> Result<Route, Invalid> {
        let kind = match wire::RouteKind::try_from(from.kind) {
            Ok(wire::RouteKind::Http) => RouteKind::Http,
            Ok(wire::RouteKind::Grpc) => RouteKind::Grpc,
            Ok(wire::RouteKind::TlsRoute) => RouteKind::Tls,
            Ok(wire::RouteKind::TcpRoute) => RouteKind::Tcp,
            Err(_) => return Err(invalid("kind", format!("{} is no kind we know", from.kind))),
        };
        Ok(Route {
            key: RouteKey {
                namespace: self.share(required("route.namespace", &from.namespace)?),
                name: self.share(required("route.name", &from.name)?),
                kind,
            },
            created: from.created.as_str().into(),
            port: Some(port("route.port", from.port)?).filter(|&port| port != 0),
            for_namespace: (!from.for_namespace.is_empty()).then(|| self.share(&from.for_namespace)),
            hostnames: texts(&from.hostnames),
            rules: from.rules.iter().map(|rule| self.route_rule(rule)).collect::<Result<_, _>>()?,
        })
    }

    fn route_rule(&mut self, from: &wire::Rule) -> Result<Rule, Invalid> {
        Ok(Rule {
            name: (!from.name.is_empty()).then(|| from.name.as_str().into()),
            matches: from.matches.iter().map(route_match).collect::<Result<_, _>>()?,
            filters: self.filters(&from.filters)?,
            backends: from.backends.iter().map(|backend| self.backend(backend)).collect::<Result<_, _>>()?,
            timeouts: Timeouts {
                request: duration(from.request_timeout.as_ref())?,
                backend_request: duration(from.backend_request_timeout.as_ref())?,
            },
            retry: from.retry.as_ref().map(retry).transpose()?,
        })
    }

    fn backend(&mut self, from: &wire::Backend) -> Result<Backend, Invalid> {
        Ok(Backend {
            to: self.to(from.to.as_ref())?,
            weight: from.weight,
            filters: self.filters(&from.filters)?,
        })
    }

    fn to(&mut self, from: Option<&wire::Destination>) -> Result<To, Invalid> {
        use wire::destination::To as Wire;
        match from.and_then(|from| from.to.as_ref()) {
            Some(Wire::Service(of)) => Ok(To::Service {
                service: self.key_of(&of.namespace, &of.hostname)?,
                port: port("backend.port", of.port)?,
            }),
            Some(Wire::Nowhere(reason)) => Ok(To::Nowhere(reason.as_str().into())),
            None => Err(Invalid::Missing { field: "backend.to" }),
        }
    }

    fn filters(&mut self, from: &[wire::Filter]) -> Result<Vec<Filter>, Invalid> {
        from.iter().map(|filter| self.filter(filter)).collect()
    }

    fn filter(&mut self, from: &wire::Filter) -> Result<Filter, Invalid> {
        use wire::filter::Filter as Wire;
        Ok(match from.filter.as_ref() {
            Some(Wire::RequestHeaders(change)) => Filter::RequestHeaders(header_change(change)),
            Some(Wire::ResponseHeaders(change)) => Filter::ResponseHeaders(header_change(change)),
            Some(Wire::Redirect(redirect)) => Filter::Redirect(Redirect {
                scheme: redirect.scheme.as_deref().map(Into::into),
                hostname: redirect.hostname.as_deref().map(Into::into),
                path: path_change(redirect.path.as_ref())?,
                port: redirect.port.map(|number| port("redirect.port", number)).transpose()?,
                status: port("redirect.status", redirect.status)?,
            }),
            Some(Wire::Rewrite(rewrite)) => Filter::Rewrite(Rewrite {
                hostname: rewrite.hostname.as_deref().map(Into::into),
                path: path_change(rewrite.path.as_ref())?,
            }),
            Some(Wire::Mirror(mirror)) => Filter::Mirror(Mirror {
                to: self.to(mirror.to.as_ref())?,
                of: mirror.of,
                copied: mirror.copied,
            }),
            Some(Wire::Cors(cors)) => Filter::Cors(Cors {
                allow_origins: texts(&cors.allow_origins),
                allow_credentials: cors.allow_credentials,
                allow_methods: texts(&cors.allow_methods),
                allow_headers: texts(&cors.allow_headers),
                expose_headers: texts(&cors.expose_headers),
                max_age: cors.max_age,
            }),
            // One that we do not know may be what keeps somebody out.
            None => return Err(invalid("filter", "it is none that we know")),
        })
    }

    fn key_of(&mut self, namespace: &str, hostname: &str) -> Result<ServiceKey, Invalid> {
        Ok(ServiceKey {
            namespace: self.share(required("namespace", namespace)?),
            hostname: self.share(required("hostname", hostname)?),
        })
    }
}

fn backend_tls(from: &wire::BackendTls) -> Result<BackendTls, Invalid> {
    use wire::{backend_tls::Trust as WireTrust, subject_name::Name};
    let name = |of: &wire::SubjectName| match &of.name {
        Some(Name::Dns(name)) => Ok(SubjectName::Dns(name.as_str().into())),
        Some(Name::Uri(uri)) => Ok(SubjectName::Uri(uri.as_str().into())),
        None => Err(Invalid::Missing { field: "tls.names" }),
    };
    Ok(BackendTls {
        policy: from.policy.as_str().into(),
        port: Some(port("tls.port", from.port)?).filter(|&port| port != 0),
        hostname: required("tls.hostname", &from.hostname)?.into(),
        trust: match &from.trust {
            Some(WireTrust::System(_)) => Trust::System,
            Some(WireTrust::Roots(pem)) => Trust::Roots(pem.as_str().into()),
            Some(WireTrust::Nobody(reason)) => Trust::Nobody(reason.as_str().into()),
            None => return Err(Invalid::Missing { field: "tls.trust" }),
        },
        names: from.names.iter().map(name).collect::<Result<_, _>>()?,
    })
}

/// What a port speaks is a hint: what is not known is found out.
fn protocol(from: i32) -> Protocol {
    match wire::Protocol::try_from(from) {
        Ok(wire::Protocol::Http1) => Protocol::Http1,
        Ok(wire::Protocol::Http2) => Protocol::Http2,
        Ok(wire::Protocol::Tcp) => Protocol::Tcp,
        Ok(wire::Protocol::Unknown) | Err(_) => Protocol::Unknown,
    }
}

fn route_match(from: &wire::Match) -> Result<Match, Invalid> {
    use wire::r#match::Path;
    let text = |of: &Option<wire::TextMatch>| of.as_ref().map(text_match).transpose();
    Ok(Match {
        path: match &from.path {
            Some(Path::Exact(path)) => PathMatch::Exact(path.as_str().into()),
            Some(Path::Prefix(path)) => PathMatch::Prefix(path.as_str().into()),
            Some(Path::Regex(pattern)) => PathMatch::Regex(pattern.as_str().into()),
            Some(Path::Rpc(rpc)) => {
                PathMatch::Rpc { service: text(&rpc.service)?, method: text(&rpc.method)? }
            }
            None => return Err(Invalid::Missing { field: "match.path" }),
        },
        method: (!from.method.is_empty()).then(|| from.method.as_str().into()),
        headers: from.headers.iter().map(field_match).collect::<Result<_, _>>()?,
        query: from.query.iter().map(field_match).collect::<Result<_, _>>()?,
    })
}

fn field_match(from: &wire::FieldMatch) -> Result<FieldMatch, Invalid> {
    let value = from.value.as_ref().ok_or(Invalid::Missing { field: "match.value" })?;
    Ok(FieldMatch { name: required("match.name", &from.name)?.into(), value: text_match(value)? })
}

fn text_match(from: &wire::TextMatch) -> Result<TextMatch, Invalid> {
    match &from.text {
        Some(wire::text_match::Text::Exact(text)) => Ok(TextMatch::Exact(text.as_str().into())),
        Some(wire::text_match::Text::Regex(pattern)) => Ok(TextMatch::Regex(pattern.as_str().into())),
        None => Err(Invalid::Missing { field: "match.text" }),
    }
}

fn header_change(from: &wire::HeaderChange) -> HeaderChange {
    let pairs = |of: &[wire::Header]| -> Vec<(Arc<str>, Arc<str>)> {
        of.iter().map(|header| (header.name.as_str().into(), header.value.as_str().into())).collect()
    };
    HeaderChange { set: pairs(&from.set), add: pairs(&from.add), remove: texts(&from.remove) }
}

fn path_change(from: Option<&wire::PathChange>) -> Result<Option<PathChange>, Invalid> {
    let Some(from) = from else { return Ok(None) };
    match &from.path {
        Some(wire::path_change::Path::Full(path)) => Ok(Some(PathChange::Full(path.as_str().into()))),
        Some(wire::path_change::Path::Prefix(path)) => Ok(Some(PathChange::Prefix(path.as_str().into()))),
        None => Err(Invalid::Missing { field: "path" }),
    }
}

fn retry(from: &wire::Retry) -> Result<Retry, Invalid> {
    let codes = from.codes.iter().map(|&code| port("retry.codes", code)).collect::<Result<_, _>>()?;
    Ok(Retry { codes, attempts: from.attempts, backoff: duration(from.backoff.as_ref())? })
}

fn duration(from: Option<&prost_types::Duration>) -> Result<Option<Duration>, Invalid> {
    let read = |from: &prost_types::Duration| {
        Duration::try_from(*from).map_err(|_| invalid("timeouts", "a time is not below nothing"))
    };
    from.map(read).transpose()
}

fn texts(from: &[String]) -> Vec<Arc<str>> {
    from.iter().map(|text| text.as_str().into()).collect()
}
