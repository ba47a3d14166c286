//! [`mesh::ServiceRoutes`] → `culvert.waypoint.v1.ServiceRoutes`.

use std::{sync::Arc, time::Duration};

use mesh::{
    ServiceRoutes,
    route::{
        Backend, BackendTls, FieldMatch, Filter, HeaderChange, Match, PathChange, PathMatch, Protocol, Route,
        RouteKind, Rule, SubjectName, TextMatch, To, Trust,
    },
};
use proto::waypoint as wire;

pub(super) fn message(from: &ServiceRoutes) -> wire::ServiceRoutes {
    let protocol = |protocol| match protocol {
        Protocol::Unknown => wire::Protocol::Unknown,
        Protocol::Http1 => wire::Protocol::Http1,
        Protocol::Http2 => wire::Protocol::Http2,
        Protocol::Tcp => wire::Protocol::Tcp,
    };
    let port = |(port, of): &(u16, Protocol)| wire::PortProtocol {
        port: u32::from(*port),
        protocol: protocol(*of).into(),
    };
    wire::ServiceRoutes {
        namespace: from.service.namespace.to_string(),
        hostname: from.service.hostname.to_string(),
        ports: from.ports.iter().map(port).collect(),
        routes: from.routes().iter().map(route).collect(),
        tls: from.tls.iter().map(|tls| backend_tls(tls)).collect(),
        policies: from.policies.all().iter().map(super::requests::message).collect(),
        tokens: from.authentication.rules().iter().map(super::tokens::message).collect(),
    }
}

fn backend_tls(from: &BackendTls) -> wire::BackendTls {
    use wire::{backend_tls::Trust as WireTrust, subject_name::Name};
    let name = |of: &SubjectName| wire::SubjectName {
        name: Some(match of {
            SubjectName::Dns(name) => Name::Dns(name.to_string()),
            SubjectName::Uri(uri) => Name::Uri(uri.to_string()),
        }),
    };
    wire::BackendTls {
        policy: from.policy.to_string(),
        port: from.port.map_or(0, u32::from),
        hostname: from.hostname.to_string(),
        trust: Some(match &from.trust {
            Trust::System => WireTrust::System(()),
            Trust::Roots(pem) => WireTrust::Roots(pem.to_string()),
            Trust::Nobody(reason) => WireTrust::Nobody(reason.to_string()),
        }),
        names: from.names.iter().map(name).collect(),
    }
}

fn route(from: &Route) -> wire::Route {
    let kind = match from.key.kind {
        RouteKind::Http => wire::RouteKind::Http,
        RouteKind::Grpc => wire::RouteKind::Grpc,
        RouteKind::Tls => wire::RouteKind::TlsRoute,
        RouteKind::Tcp => wire::RouteKind::TcpRoute,
    };
    wire::Route {
        kind: kind.into(),
        namespace: from.key.namespace.to_string(),
        name: from.key.name.to_string(),
        created: from.created.to_string(),
        port: from.port.map_or(0, u32::from),
        rules: from.rules.iter().map(rule).collect(),
        for_namespace: from.for_namespace.as_deref().unwrap_or_default().to_owned(),
        hostnames: texts(&from.hostnames),
    }
}

fn rule(from: &Rule) -> wire::Rule {
    wire::Rule {
        name: from.name.as_deref().unwrap_or_default().to_owned(),
        matches: from.matches.iter().map(match_of).collect(),
        filters: from.filters.iter().map(filter).collect(),
        backends: from.backends.iter().map(backend).collect(),
        request_timeout: from.timeouts.request.map(duration),
        backend_request_timeout: from.timeouts.backend_request.map(duration),
        retry: from.retry.as_ref().map(|retry| wire::Retry {
            codes: retry.codes.iter().copied().map(u32::from).collect(),
            attempts: retry.attempts,
            backoff: retry.backoff.map(duration),
        }),
    }
}

fn match_of(from: &Match) -> wire::Match {
    use wire::r#match::Path;
    let rpc = |service: &Option<TextMatch>, method: &Option<TextMatch>| wire::RpcMatch {
        service: service.as_ref().map(text),
        method: method.as_ref().map(text),
    };
    wire::Match {
        path: Some(match &from.path {
            PathMatch::Exact(path) => Path::Exact(path.to_string()),
            PathMatch::Prefix(path) => Path::Prefix(path.to_string()),
            PathMatch::Regex(pattern) => Path::Regex(pattern.to_string()),
            PathMatch::Rpc { service, method } => Path::Rpc(rpc(service, method)),
        }),
        method: from.method.as_deref().unwrap_or_default().to_owned(),
        headers: from.headers.iter().map(field).collect(),
        query: from.query.iter().map(field).collect(),
    }
}

fn field(from: &FieldMatch) -> wire::FieldMatch {
    wire::FieldMatch { name: from.name.to_string(), value: Some(text(&from.value)) }
}

fn text(from: &TextMatch) -> wire::TextMatch {
    use wire::text_match::Text;
    wire::TextMatch {
        text: Some(match from {
            TextMatch::Exact(text) => Text::Exact(text.to_string()),
            TextMatch::Regex(pattern) => Text::Regex(pattern.to_string()),
        }),
    }
}

fn filter(from: &Filter) -> wire::Filter {
    use wire::filter::Filter as Wire;
    let filter = match from {
        Filter::RequestHeaders(change) => Wire::RequestHeaders(header_change(change)),
        Filter::ResponseHeaders(change) => Wire::ResponseHeaders(header_change(change)),
        Filter::Redirect(redirect) => Wire::Redirect(wire::Redirect {
            scheme: redirect.scheme.as_deref().map(str::to_owned),
            hostname: redirect.hostname.as_deref().map(str::to_owned),
            path: redirect.path.as_ref().map(path_change),
            port: redirect.port.map(u32::from),
            status: u32::from(redirect.status),
        }),
        Filter::Rewrite(rewrite) => Wire::Rewrite(wire::Rewrite {
            hostname: rewrite.hostname.as_deref().map(str::to_owned),
            path: rewrite.path.as_ref().map(path_change),
        }),
        Filter::Mirror(mirror) => Wire::Mirror(wire::Mirror {
            to: Some(destination(&mirror.to)),
            of: mirror.of,
            copied: mirror.copied,
        }),
        Filter::Cors(cors) => Wire::Cors(wire::Cors {
            allow_origins: texts(&cors.allow_origins),
            allow_credentials: cors.allow_credentials,
            allow_methods: texts(&cors.allow_methods),
            allow_headers: texts(&cors.allow_headers),
            expose_headers: texts(&cors.expose_headers),
            max_age: cors.max_age,
        }),
    };
    wire::Filter { filter: Some(filter) }
}

fn header_change(from: &HeaderChange) -> wire::HeaderChange {
    let headers = |of: &[(Arc<str>, Arc<str>)]| {
        let header = |(name, value): &(Arc<str>, Arc<str>)| wire::Header {
            name: name.to_string(),
            value: value.to_string(),
        };
        of.iter().map(header).collect()
    };
    wire::HeaderChange { set: headers(&from.set), add: headers(&from.add), remove: texts(&from.remove) }
}

fn path_change(from: &PathChange) -> wire::PathChange {
    use wire::path_change::Path;
    wire::PathChange {
        path: Some(match from {
            PathChange::Full(path) => Path::Full(path.to_string()),
            PathChange::Prefix(path) => Path::Prefix(path.to_string()),
        }),
    }
}

fn destination(from: &To) -> wire::Destination {
    use wire::destination::To as Wire;
    wire::Destination {
        to: Some(match from {
            To::Service { service, port } => Wire::Service(wire::ServicePort {
                namespace: service.namespace.to_string(),
                hostname: service.hostname.to_string(),
                port: u32::from(*port),
            }),
            To::Nowhere(reason) => Wire::Nowhere(reason.to_string()),
        }),
    }
}

fn backend(from: &Backend) -> wire::Backend {
    wire::Backend {
        to: Some(destination(&from.to)),
        weight: from.weight,
        filters: from.filters.iter().map(filter).collect(),
    }
}

/// What was read of a manifest is far below what this type holds.
fn duration(from: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(from).unwrap_or_default()
}

fn texts(from: &[Arc<str>]) -> Vec<String> {
    from.iter().map(ToString::to_string).collect()
}
