//! HTTPRoutes to what waypoints are told: for each service with a waypoint its routes, with what they refer to found.
//!
//! What a route refers to and is not there, or may not be referred to, makes its share 500 and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh::{
    RouteKey, ServiceKey, ServiceRoutes,
    route::{self, Backend, Filter, Mirror, Protocol, Route, RouteKind, To},
};

use super::{
    Compiler,
    waypoints::{add_routed_from, is_service},
};
use crate::manifest::{self, HttpRoute, Kind, Object, ObjectKey, Reference};

impl Compiler<'_, '_> {
    pub(super) fn routes(&mut self) {
        let all = self.of_kind(Kind::HTTPRoute, |object| match object {
            Object::HTTPRoute(route) => Some(&**route),
            _ => None,
        });
        let mut of_services: BTreeMap<ServiceKey, Vec<Route>> = BTreeMap::new();
        for (key, route) in all {
            for (field, reason) in &route.remarks {
                self.warn(&key, field, reason.clone());
            }
            let rules: Vec<route::Rule> =
                route.rules.iter().enumerate().map(|(at, rule)| self.rule(&key, at, rule)).collect();
            for (at, parent) in route.parents.iter().enumerate() {
                if let Some(service) = self.parent(&key, at, parent) {
                    let compiled = Route {
                        key: RouteKey {
                            namespace: key.namespace.clone(),
                            name: key.name.clone(),
                            kind: RouteKind::Http,
                        },
                        created: created(route),
                        port: parent.port,
                        rules: rules.clone(),
                    };
                    of_services.entry(service).or_default().push(compiled);
                }
            }
        }
        self.lead_to_backends(&of_services);
        for service in self.told_to_waypoints(&of_services) {
            let ports = self.protocols(&service);
            let routes = of_services.remove(&service).unwrap_or_default();
            match ServiceRoutes::new(service.clone(), ports, routes) {
                Ok(routes) => drop(self.out.routes.insert(service, routes)),
                // Each pattern was compiled when its route was read.
                Err(error) => tracing::error!(%service, %error, "routes cannot be ordered"),
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
        let key =
            ObjectKey { kind: Kind::Service, namespace: service.namespace.clone(), name: held.name.clone() };
        let Some(Object::Service(manifest)) = self.view.get(&key) else { return Vec::new() };
        let said = manifest.ports.iter().map(|port| (port.port, port.protocol));
        said.filter(|(_, protocol)| *protocol != Protocol::Unknown).collect()
    }

    /// The service that a route is for.
    fn parent(&mut self, key: &ObjectKey, at: usize, parent: &Reference) -> Option<ServiceKey> {
        if !is_service(parent.group.as_deref(), parent.kind.as_deref(), "Gateway") {
            // A Gateway's, say: somebody else's to serve.
            return None;
        }
        let field = format!("spec.parentRefs[{at}]");
        let namespace = parent.namespace.as_deref().unwrap_or(&key.namespace);
        if *namespace != *key.namespace {
            let reason = "routes of a consumer, for services of another namespace, are not followed yet";
            self.warn(key, &format!("{field}.namespace"), reason);
            return None;
        }
        let service = self.service_key(namespace, &parent.name);
        let Some(held) = self.out.services.get(&service) else {
            self.warn(
                key,
                &format!("{field}.name"),
                format!("there is no service {namespace}/{}", parent.name),
            );
            return None;
        };
        if let Some(port) = parent.port
            && !held.ports.iter().any(|mapping| mapping.service_port == port)
        {
            let reason = format!("service {namespace}/{} has no port {port}", parent.name);
            self.warn(key, &format!("{field}.port"), reason);
            return None;
        }
        if held.waypoint.is_none() {
            let reason = format!(
                "service {namespace}/{} names no waypoint (istio.io/use-waypoint): nobody follows the route",
                parent.name
            );
            self.warn(key, &field, reason);
        }
        Some(service)
    }

    fn rule(&mut self, key: &ObjectKey, at: usize, rule: &manifest::Rule) -> route::Rule {
        let field = format!("spec.rules[{at}]");
        let mut foreign = None;
        let filters = self.filters(key, &field, &rule.filters, &mut foreign);
        let mut backends: Vec<Backend> = Vec::new();
        for (at, backend) in rule.backends.iter().enumerate() {
            let field = format!("{field}.backendRefs[{at}]");
            let mut foreign = None;
            let filters = self.filters(key, &field, &backend.filters, &mut foreign);
            let to = foreign.map_or_else(|| self.to(key, &field, &backend.to), To::Nowhere);
            backends.push(Backend { to, weight: backend.weight, filters });
        }
        // A filter that we cannot carry out must not be passed over: the rule leads nowhere.
        if let Some(reason) = foreign {
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
                    let to = self.to(key, &format!("{field}.requestMirror.backendRef"), to);
                    Filter::Mirror(Mirror { to, of: *of, copied: *copied })
                }
                manifest::Filter::Foreign(reason) => {
                    self.warn(key, &field, format!("{reason}: what it is part of is answered 500"));
                    foreign.get_or_insert_with(|| reason.clone());
                    continue;
                }
            });
        }
        filters
    }

    /// What a route refers to as a backend.
    fn to(&mut self, key: &ObjectKey, field: &str, to: &Reference) -> To {
        match self.backend(key, to) {
            Ok(found) => found,
            Err((part, reason)) => {
                self.warn(key, &format!("{field}.{part}"), format!("{reason}: its share is answered 500"));
                To::Nowhere(reason.into())
            }
        }
    }

    fn backend(&self, key: &ObjectKey, to: &Reference) -> Result<To, (&'static str, String)> {
        if !is_service(to.group.as_deref(), to.kind.as_deref(), "Service") {
            let kind = to.kind.as_deref().unwrap_or_default();
            return Err(("kind", format!("a backend is a Service, and not a {kind}")));
        }
        let namespace = to.namespace.as_deref().unwrap_or(&key.namespace);
        if *namespace != *key.namespace {
            return Err(("namespace", format!("nobody permits it to refer to namespace {namespace}")));
        }
        let service = self.service_key(namespace, &to.name);
        let held = self.out.services.get(&service);
        let held = held.ok_or_else(|| ("name", format!("there is no service {namespace}/{}", to.name)))?;
        let port = to.port.ok_or_else(|| ("port", "a Service as backend needs a port".to_owned()))?;
        if !held.ports.iter().any(|mapping| mapping.service_port == port) {
            return Err(("port", format!("service {namespace}/{} has no port {port}", to.name)));
        }
        Ok(To::Service { service, port })
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

fn created(route: &HttpRoute) -> Arc<str> {
    route.metadata.creation_timestamp.as_deref().unwrap_or_default().into()
}

#[cfg(test)]
mod tests;
