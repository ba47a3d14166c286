//! Routes to what waypoints are told: for each service with a waypoint its routes, with what they refer to found.
//!
//! What a route refers to and is not there, or may not be referred to, makes its share 500 and nothing else; of
//! connections its share is refused.

mod backend;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub(crate) use backend::granted_as;
use mesh::{
    RouteKey, ServiceKey, ServiceRoutes,
    request::RequestPolicies,
    route::{self, Backend, Filter, Found, Mirror, Protocol, Route, RouteKind, To},
};

use super::{
    Compiler,
    standing::{Condition, ParentStatus, Unresolved},
    waypoints::{add_routed_from, is_service, is_service_entry},
};
use crate::manifest::{self, Kind, Object, ObjectKey, Reference};

/// Routes of other namespaces that are followed for one service.
const MOST_CONSUMERS: usize = 128;

/// A service that a route is for, and the one port, if it is for one.
type Attachment = (ServiceKey, Option<u16>);

/// A parent that does not take the route.
struct Rejected {
    /// The field within the reference that is why.
    part: &'static str,
    reason: &'static str,
    message: String,
}

/// What came of a route's rules, for one of its parents.
#[derive(Default)]
struct Outcome {
    /// The services that are called.
    called: Vec<ServiceKey>,
    unresolved: Vec<Unresolved>,
    /// Rules that cannot be carried out, and why.
    invalid: Vec<(usize, Arc<str>)>,
}

/// What is followed in the place of a route.
#[derive(Clone, Copy)]
enum Instead {
    Kind(RouteKind),
    /// Of the same kind.
    Older,
    /// Whatever is for requests: a consumer's route of connections is not for a port that speaks HTTP.
    Requests,
}

impl Instead {
    fn words(self) -> String {
        let what = match self {
            Self::Kind(RouteKind::Grpc) => "a GRPCRoute",
            Self::Kind(RouteKind::Http) => "an HTTPRoute",
            Self::Kind(RouteKind::Tls) => "a TLSRoute",
            Self::Kind(RouteKind::Tcp) => "a TCPRoute",
            Self::Older => "an older TCPRoute",
            Self::Requests => {
                return "the port speaks HTTP, and a route of connections of another namespace than the service's would \
                        take requests past its routes and policies: it is not followed there"
                    .to_owned();
            }
        };
        format!("{what} is for the same service and port, and goes before")
    }
}

/// How a route stands with one parent, until all routes are known.
struct Standing<'v> {
    key: ObjectKey,
    at: usize,
    parent: &'v Reference,
    attached: Result<Vec<Attachment>, Rejected>,
    outcome: Outcome,
    /// How many rules it has.
    rules: usize,
}

impl<'v> Compiler<'v, '_> {
    pub(super) fn routes(&mut self) {
        let mut of_services: BTreeMap<ServiceKey, Vec<Route>> = BTreeMap::new();
        let mut standings = Vec::new();
        let mut consumers: BTreeMap<ServiceKey, usize> = BTreeMap::new();
        for (key, route) in self.all_routes() {
            for (field, reason) in &route.remarks {
                self.warn(&key, field, reason.clone());
            }
            for (at, parent) in route.parents.iter().enumerate() {
                if !self.is_parent_of_ours(&key, parent) {
                    continue;
                }
                let attached = self.parent(&key, parent);
                let attached = attached.and_then(|attached| few_consumers(&key, attached, &mut consumers));
                let called = attached.iter().flatten().map(|(service, _)| service.clone()).collect();
                let mut outcome = Outcome { called, ..Outcome::default() };
                let rules = route.rules.iter().enumerate();
                let rules: Vec<route::Rule> =
                    rules.map(|(at, rule)| self.rule(&key, at, rule, &mut outcome)).collect();
                for (service, port) in attached.iter().flatten() {
                    let compiled = Route {
                        key: route_key(&key),
                        created: created(route),
                        port: *port,
                        for_namespace: consumer(&key, service),
                        hostnames: route.hostnames.clone(),
                        rules: rules.clone(),
                    };
                    of_services.entry(service.clone()).or_default().push(compiled);
                }
                let rules = rules.len();
                standings.push(Standing { key: key.clone(), at, parent, attached, outcome, rules });
            }
        }
        self.lead_to_backends(&of_services);
        let mut policies = self.request_policies();
        let mut told = self.told_to_waypoints(&of_services);
        told.extend(policies.keys().cloned());
        let mut authentications = self.authentications();
        told.extend(authentications.keys().cloned());
        for service in told {
            let ports = self.protocols(&service);
            let routes = of_services.remove(&service).unwrap_or_default();
            let policies = RequestPolicies::new(policies.remove(&service).unwrap_or_default());
            let authentication = authentications.remove(&service).unwrap_or_default();
            if authentication.is_empty() {
                self.warn_of_tokens(&service, policies.all());
            }
            match ServiceRoutes::new(service.clone(), ports, routes) {
                Ok(routes) => {
                    let tls = self.tls.get(&service).cloned().unwrap_or_default();
                    let routes =
                        routes.with_policies(policies).with_authentication(authentication).with_tls(tls);
                    self.out.routes.insert(service.clone(), routes);
                    self.warn_of_unsaid(&service);
                }
                // Each pattern was compiled when its route was read.
                Err(error) => tracing::error!(%service, %error, "routes cannot be ordered"),
            }
        }
        self.tls_of_callers();
        for standing in standings {
            self.stands(standing);
        }
        for (key, route) in self.all_routes() {
            if let Some(refused) = &route.refused {
                self.out.routes_status.remove(&key);
                self.refused_route(&key, refused);
            }
        }
    }

    fn all_routes(&self) -> Vec<(ObjectKey, &'v manifest::Route)> {
        let kinds = [Kind::HTTPRoute, Kind::GRPCRoute, Kind::TLSRoute, Kind::TCPRoute];
        let mut all: Vec<_> = kinds.into_iter().flat_map(|kind| self.of_kind(kind, Object::route)).collect();
        // The oldest first: of those that are too many the newest are left out.
        all.sort_by(|(one, first), (other, second)| {
            (created(first), &one.namespace, &one.name).cmp(&(created(second), &other.namespace, &other.name))
        });
        all
    }

    /// Says how a route stands with a parent.
    fn stands(&mut self, standing: Standing<'_>) {
        let Standing { key, at, parent, attached, outcome, rules } = standing;
        let field = format!("spec.parentRefs[{at}]");
        let invalid: Vec<String> =
            outcome.invalid.iter().map(|(at, reason)| format!("spec.rules[{at}]: {reason}")).collect();
        let invalid = invalid.join("; ");
        let mut conditions = Vec::new();
        match attached {
            Err(Rejected { part, reason, message }) => {
                let field = if part.is_empty() { field } else { format!("{field}.{part}") };
                self.warn(&key, &field, message.clone());
                conditions.push(Condition::not_accepted(reason, message));
            }
            Ok(attached) if attached.iter().all(|to| self.instead_of(&key, to).is_some()) => {
                let instead = attached.first().and_then(|to| self.instead_of(&key, to));
                let message = instead.map_or_else(|| "no service is left for it".to_owned(), Instead::words);
                self.warn(&key, &field, message.clone());
                conditions.push(Condition::not_accepted("Conflicted", message));
            }
            Ok(_) if !outcome.invalid.is_empty() && outcome.invalid.len() == rules => {
                let message = format!("no rule can be carried out, and all are answered 500: {invalid}");
                conditions.push(Condition::not_accepted("UnsupportedValue", message));
            }
            Ok(_) => {
                conditions.push(Condition::accepted());
                if !outcome.invalid.is_empty() {
                    let message = format!("Dropped Rule, whose requests are answered 500: {invalid}");
                    conditions.push(Condition::partially_invalid(message));
                }
            }
        }
        conditions.insert(1, Condition::references(&outcome.unresolved));
        let status = ParentStatus { parent: parent.clone(), conditions };
        self.out.routes_status.entry(key).or_default().push(status);
    }

    /// What is followed in the place of a route, on every port that it is for: of several kinds one alone is, and of
    /// TCPRoutes the oldest; of those of other namespaces none, where they would carry requests as bytes.
    fn instead_of(&self, key: &ObjectKey, (service, port): &Attachment) -> Option<Instead> {
        let own = route_key(key);
        let whose = consumer(key, service);
        let routes = self.out.routes.get(service)?;
        let past_requests = |port| whose.is_some() && !own.kind.is_of_requests() && routes.speaks_http(port);
        let on = |port: u16| match routes.kind(port, whose.as_deref()) {
            _ if past_requests(port) => Some(Instead::Requests),
            None => None,
            Some(RouteKind::Tcp) if own.kind == RouteKind::Tcp => {
                let found = routes.find_connection(port, whose.as_deref(), None);
                matches!(found, Found::Rule(of) if of.route.key != own).then_some(Instead::Older)
            }
            Some(kind) => (kind != own.kind).then_some(Instead::Kind(kind)),
        };
        match port {
            Some(port) => on(*port),
            None => {
                let ports = &self.out.services.get(service)?.ports;
                let all: Option<Vec<Instead>> = ports.iter().map(|port| on(port.service_port)).collect();
                all?.first().copied()
            }
        }
    }

    /// Services behind waypoints, and those that their routes lead to: of these it matters what they speak.
    fn told_to_waypoints(&self, of_services: &BTreeMap<ServiceKey, Vec<Route>>) -> BTreeSet<ServiceKey> {
        let services = self.out.services.values().filter(|service| service.waypoint.is_some());
        let mut told: BTreeSet<ServiceKey> = services.map(|service| service.key.clone()).collect();
        let behind: Vec<ServiceKey> = told.iter().cloned().collect();
        for rule in
            behind.iter().filter_map(|key| of_services.get(key)).flatten().flat_map(|route| &route.rules)
        {
            for to in rule.leads_to() {
                if let To::Service { service, .. } = to {
                    told.insert(service.clone());
                }
            }
        }
        told
    }

    /// What the ports of a service speak, where that was said.
    fn protocols(&self, service: &ServiceKey) -> Vec<(u16, Protocol)> {
        let Some(held) = self.out.services.get(service) else { return Vec::new() };
        let key = |kind| ObjectKey { kind, namespace: service.namespace.clone(), name: held.name.clone() };
        let own = held.key == self.service_key(&service.namespace, &held.name);
        let said: Vec<(u16, Protocol)> = match self.view.get(&key(Kind::Service)).filter(|_| own) {
            Some(Object::Service(manifest)) => {
                manifest.ports.iter().map(|port| (port.port, port.protocol)).collect()
            }
            _ => match self.view.get(&key(Kind::ServiceEntry)) {
                Some(Object::ServiceEntry(entry)) => {
                    entry.spec.ports.iter().flatten().map(|port| (port.number, port.speaks())).collect()
                }
                _ => Vec::new(),
            },
        };
        said.into_iter().filter(|(_, protocol)| *protocol != Protocol::Unknown).collect()
    }

    /// Whether it is for us to say how a route stands with it.
    pub(super) fn is_parent_of_ours(&self, key: &ObjectKey, parent: &Reference) -> bool {
        let (group, kind) = (parent.group.as_deref(), parent.kind.as_deref());
        let namespace = parent.namespace.as_deref().unwrap_or(&key.namespace);
        is_service(group, kind, "Gateway")
            || is_service_entry(group, kind)
            || self.is_waypoint_gateway(group, kind, namespace, &parent.name)
    }

    /// The services that a route is for by one of its parents, which is ours.
    fn parent(&self, key: &ObjectKey, parent: &Reference) -> Result<Vec<Attachment>, Rejected> {
        let no = |part, message| Rejected { part, reason: "NoMatchingParent", message };
        let (group, kind) = (parent.group.as_deref(), parent.kind.as_deref());
        let namespace = parent.namespace.as_deref().unwrap_or(&key.namespace);
        let name = &*parent.name;
        let (services, what) = if is_service(group, kind, "Gateway") {
            (vec![self.service_key(namespace, name)], "service")
        } else if is_service_entry(group, kind) {
            (self.hosts_of(namespace, name), "ServiceEntry")
        } else {
            let message =
                format!("a route is for Services: {namespace}/{name} is a waypoint, and serves several");
            return Err(Rejected { part: "kind", reason: "InvalidKind", message });
        };
        let mut attached = Vec::new();
        let mut without_waypoint = false;
        let mut held = services.iter().filter_map(|service| self.out.services.get(service)).peekable();
        if held.peek().is_none() {
            return Err(no("name", format!("there is no {what} {namespace}/{name}")));
        }
        for service in held {
            let named = parent.section_name.as_deref().filter(|section| !section.is_empty());
            let named = match named {
                Some(section) => match self.port_named(namespace, name, what, section) {
                    Some(port) => Some(port),
                    None => {
                        let message = format!("{what} {namespace}/{name} has no port named {section}");
                        return Err(no("sectionName", message));
                    }
                },
                None => None,
            };
            let port = parent.port.or(named);
            if let Some(port) = port
                && (named.is_some_and(|named| named != port)
                    || !service.ports.iter().any(|mapping| mapping.service_port == port))
            {
                return Err(no("port", format!("{what} {namespace}/{name} has no port {port}")));
            }
            match service.waypoint {
                Some(_) => attached.push((service.key.clone(), port)),
                None => without_waypoint = true,
            }
        }
        if without_waypoint && attached.is_empty() {
            let message = format!(
                "{what} {namespace}/{name} names no waypoint (istio.io/use-waypoint): nobody follows the route"
            );
            return Err(no("", message));
        }
        Ok(attached)
    }

    /// The services that a ServiceEntry makes.
    pub(super) fn hosts_of(&self, namespace: &str, name: &str) -> Vec<ServiceKey> {
        let key = ObjectKey { kind: Kind::ServiceEntry, namespace: namespace.into(), name: name.into() };
        let Some(Object::ServiceEntry(entry)) = self.view.get(&key) else { return Vec::new() };
        let hosts = entry.spec.hosts.iter();
        hosts.map(|host| ServiceKey { namespace: namespace.into(), hostname: host.as_str().into() }).collect()
    }

    /// The number of a port that has this name.
    pub(super) fn port_named(&self, namespace: &str, name: &str, what: &str, section: &str) -> Option<u16> {
        let kind = if what == "service" { Kind::Service } else { Kind::ServiceEntry };
        match self.view.get(&ObjectKey { kind, namespace: namespace.into(), name: name.into() })? {
            Object::Service(service) => {
                service.ports.iter().find(|port| *port.name == *section).map(|port| port.port)
            }
            Object::ServiceEntry(entry) => {
                let mut ports = entry.spec.ports.iter().flatten();
                ports.find(|port| *port.name == *section).map(|port| port.number)
            }
            _ => None,
        }
    }

    fn rule(
        &mut self,
        key: &ObjectKey,
        at: usize,
        rule: &manifest::Rule,
        outcome: &mut Outcome,
    ) -> route::Rule {
        let field = format!("spec.rules[{at}]");
        let mut foreign = None;
        let filters = self.filters(key, &field, &rule.filters, &mut foreign, outcome);
        let mut backends: Vec<Backend> = Vec::new();
        for (at, backend) in rule.backends.iter().enumerate() {
            let field = format!("{field}.backendRefs[{at}]");
            let mut foreign = None;
            let filters = self.filters(key, &field, &backend.filters, &mut foreign, outcome);
            let to = self.to(key, &field, &backend.to, outcome);
            let to = foreign.map_or(to, To::Nowhere);
            backends.push(Backend { to, weight: backend.weight, filters });
        }
        // A filter that we cannot carry out must not be passed over: the rule leads nowhere.
        if let Some(reason) = foreign {
            outcome.invalid.push((at, reason.clone()));
            backends = vec![Backend { to: To::Nowhere(reason), weight: 1, filters: Vec::new() }];
        }
        route::Rule {
            name: rule.name.clone(),
            matches: rule.matches.clone(),
            filters,
            backends,
            timeouts: rule.timeouts,
            retry: rule.retry.clone(),
        }
    }

    fn filters(
        &mut self,
        key: &ObjectKey,
        field: &str,
        from: &[manifest::Filter],
        foreign: &mut Option<Arc<str>>,
        outcome: &mut Outcome,
    ) -> Vec<Filter> {
        let mut filters = Vec::new();
        for (at, filter) in from.iter().enumerate() {
            let field = format!("{field}.filters[{at}]");
            filters.push(match filter {
                manifest::Filter::RequestHeaders(change) => Filter::RequestHeaders(change.clone()),
                manifest::Filter::ResponseHeaders(change) => Filter::ResponseHeaders(change.clone()),
                manifest::Filter::Redirect(redirect) => Filter::Redirect(redirect.clone()),
                manifest::Filter::Rewrite(rewrite) => Filter::Rewrite(rewrite.clone()),
                manifest::Filter::Cors(cors) => Filter::Cors(cors.clone()),
                manifest::Filter::Mirror { to, of, copied } => {
                    let to = self.to(key, &format!("{field}.requestMirror.backendRef"), to, outcome);
                    Filter::Mirror(Mirror { to, of: *of, copied: *copied })
                }
                manifest::Filter::Foreign(reason) => {
                    self.warn(key, &field, format!("{reason}: what it is part of is answered 500"));
                    let message = format!("{field}: {reason}");
                    outcome.unresolved.push(Unresolved::new("extensionRef", "InvalidKind", message));
                    foreign.get_or_insert_with(|| reason.clone());
                    continue;
                }
            });
        }
        filters
    }

    /// What a route refers to as a backend.
    fn to(&mut self, key: &ObjectKey, field: &str, to: &Reference, outcome: &mut Outcome) -> To {
        match self.backend(key, to, &outcome.called) {
            Ok(found) => found,
            Err(unresolved) => {
                let Unresolved { part, message, .. } = &unresolved;
                let share = if is_of_requests(key) { "answered 500" } else { "refused" };
                self.warn(key, &format!("{field}.{part}"), format!("{message}: its share is {share}"));
                let reason = message.as_str().into();
                outcome.unresolved.push(unresolved);
                To::Nowhere(reason)
            }
        }
    }

    /// Tells the endpoints of backends from which services they are reached.
    fn lead_to_backends(&mut self, of_services: &BTreeMap<ServiceKey, Vec<Route>>) {
        let mut led: BTreeMap<&ServiceKey, BTreeSet<&ServiceKey>> = BTreeMap::new();
        for (service, routes) in of_services {
            let rules = routes.iter().flat_map(|route| &route.rules);
            for to in rules.flat_map(route::Rule::leads_to) {
                if let To::Service { service: backend, .. } = to
                    && backend != service
                {
                    led.entry(backend).or_default().insert(service);
                }
            }
        }
        for workload in self.out.workloads.values_mut() {
            let own: Vec<ServiceKey> = workload.services.keys().cloned().collect();
            for from in own.iter().filter_map(|service| led.get(service)).flatten() {
                add_routed_from(workload, from);
            }
        }
    }
}

/// Everybody may write routes for everybody's services: a service has so many of other namespaces, and no more.
fn few_consumers(
    key: &ObjectKey,
    attached: Vec<Attachment>,
    consumers: &mut BTreeMap<ServiceKey, usize>,
) -> Result<Vec<Attachment>, Rejected> {
    let foreign = || attached.iter().filter(|(service, _)| consumer(key, service).is_some());
    let full =
        foreign().find(|(service, _)| consumers.get(service).is_some_and(|held| *held >= MOST_CONSUMERS));
    if let Some((service, _)) = full {
        let message = format!(
            "{MOST_CONSUMERS} older routes of other namespaces are for {service}, and more are not followed"
        );
        return Err(Rejected { part: "", reason: "TooManyRoutes", message });
    }
    foreign().for_each(|(service, _)| *consumers.entry(service.clone()).or_default() += 1);
    Ok(attached)
}

/// Whose requests a route is for, if it is not of the service's own namespace.
fn consumer(key: &ObjectKey, service: &ServiceKey) -> Option<Arc<str>> {
    (service.namespace != key.namespace).then(|| key.namespace.clone())
}

/// Whether it routes requests, and not connections as they are.
fn is_of_requests(key: &ObjectKey) -> bool {
    route_key(key).kind.is_of_requests()
}

fn route_key(key: &ObjectKey) -> RouteKey {
    let kind = match key.kind {
        Kind::GRPCRoute => RouteKind::Grpc,
        Kind::TLSRoute => RouteKind::Tls,
        Kind::TCPRoute => RouteKind::Tcp,
        _ => RouteKind::Http,
    };
    RouteKey { namespace: key.namespace.clone(), name: key.name.clone(), kind }
}

fn created(route: &manifest::Route) -> Arc<str> {
    route.metadata.creation_timestamp.as_deref().unwrap_or_default().into()
}

#[cfg(test)]
mod stream_tests;
#[cfg(test)]
pub(crate) mod tests;
