//! What an AuthorizationPolicy applies to: connections of the mesh, of a namespace or of the workloads its selector
//! names; or requests at the waypoints of its `targetRefs`.

use std::{collections::BTreeMap, sync::Arc};

use mesh::{
    Action, GatewayAddress, Policy, PolicyKey, Rule, Scope, Service, ServiceKey, request::RequestPolicy,
};

use super::Compiler;
use crate::manifest::{Authorization, Judges, Kind, LabelSelector, ObjectKey, PolicyTarget, TargetKind};

/// Policies for requests, by the service whose requests they judge; by a waypoint's own service, those for calls of
/// workloads by their address.
pub(super) type OfRequests = BTreeMap<ServiceKey, Vec<RequestPolicy>>;

impl Compiler<'_, '_> {
    pub(super) fn authorization_policies(&mut self) {
        for (key, authorization) in self.all_authorizations() {
            for (field, reason) in &authorization.remarks {
                self.warn(&key, field, reason.clone());
            }
            if let Judges::Connections { selector, action, rules } = &authorization.judges {
                self.for_connections(&key, authorization, selector.as_ref(), (*action, rules));
            }
        }
    }

    fn for_connections(
        &mut self,
        key: &ObjectKey,
        authorization: &Authorization,
        selector: Option<&LabelSelector>,
        (action, rules): (Action, &[Rule]),
    ) {
        let name = PolicyKey { namespace: key.namespace.clone(), name: key.name.clone() };
        let root = key.namespace == self.options.root_namespace;
        let scope = match (selector, root) {
            (Some(_), _) => Scope::WorkloadSelector,
            (None, true) => Scope::Global,
            (None, false) => Scope::Namespace,
        };
        if let Some(selector) = selector {
            let namespaces: Vec<Arc<str>> =
                if root { self.by_namespace.keys().cloned().collect() } else { vec![key.namespace.clone()] };
            let chosen =
                namespaces.iter().flat_map(|namespace| self.select(namespace, &selector.match_labels));
            let chosen: Vec<Arc<str>> = chosen.collect();
            for uid in chosen {
                if let Some(workload) = self.out.workloads.get_mut(&uid) {
                    workload.authorization_policies.push(name.clone());
                }
            }
        }
        let dry_run = authorization.dry_run;
        let policy = Policy { key: name.clone(), scope, action, dry_run, rules: rules.to_vec() };
        self.out.policies.insert(name, policy);
    }

    /// The policies for requests, by what they are for. Those of Gateways may be other namespaces'.
    pub(super) fn request_policies(&mut self) -> OfRequests {
        let mut found = OfRequests::new();
        let foreign = self.view.foreign_policies.iter().map(|(key, policy)| (key.clone(), *policy));
        let all: Vec<(ObjectKey, &Authorization)> =
            self.all_authorizations().into_iter().chain(foreign).collect();
        for (key, authorization) in all {
            let Judges::Requests { targets, action, rules } = &authorization.judges else { continue };
            let services = self.services_of(&key, targets);
            let policy = RequestPolicy {
                key: PolicyKey { namespace: key.namespace.clone(), name: key.name.clone() },
                action: *action,
                dry_run: authorization.dry_run,
                rules: rules.clone(),
            };
            for service in services {
                found.entry(service).or_default().push(policy.clone());
            }
        }
        found
    }

    /// The services whose requests targets mean, each once.
    pub(super) fn services_of(&mut self, key: &ObjectKey, targets: &[PolicyTarget]) -> Vec<ServiceKey> {
        let mut services: Vec<ServiceKey> = Vec::new();
        for (at, target) in targets.iter().enumerate() {
            services.extend(self.judged_by(key, at, target));
        }
        services.sort_unstable();
        services.dedup();
        services
    }

    /// The services whose requests a target means.
    fn judged_by(&mut self, key: &ObjectKey, at: usize, target: &PolicyTarget) -> Vec<ServiceKey> {
        let namespace = &key.namespace;
        match target.kind {
            TargetKind::Service => {
                let service = self.service_key(namespace, &target.name);
                self.with_waypoint(key, at, target, vec![service])
            }
            TargetKind::ServiceEntry => {
                let hosts = self.hosts_of(namespace, &target.name);
                self.with_waypoint(key, at, target, hosts)
            }
            TargetKind::Gateway => {
                let gateway = ObjectKey {
                    kind: Kind::Gateway,
                    namespace: namespace.clone(),
                    name: target.name.clone(),
                };
                if self.waypoints.get(namespace, &target.name).is_none() {
                    let reason = match self.view.get(&gateway) {
                        Some(_) => format!("Gateway {namespace}/{} is no waypoint", target.name),
                        None => format!("there is no Gateway {namespace}/{}", target.name),
                    };
                    self.warn_of_target(key, at, &reason);
                }
                self.behind(&[self.waypoint_address(namespace, &target.name)])
            }
            TargetKind::GatewayClass => {
                if *namespace != self.options.root_namespace {
                    let reason = format!(
                        "policies for a GatewayClass are of the root namespace, {}",
                        self.options.root_namespace
                    );
                    self.warn_of_target(key, at, &reason);
                    return Vec::new();
                }
                self.behind(&self.waypoints_of_class(&target.name))
            }
        }
    }

    /// Of these services those that have a waypoint: nobody else judges requests.
    fn with_waypoint(
        &mut self,
        key: &ObjectKey,
        at: usize,
        target: &PolicyTarget,
        services: Vec<ServiceKey>,
    ) -> Vec<ServiceKey> {
        let what = if target.kind == TargetKind::Service { "service" } else { "ServiceEntry" };
        let (there, absent): (Vec<_>, Vec<_>) =
            services.into_iter().partition(|service| self.out.services.contains_key(service));
        if there.is_empty() || !absent.is_empty() {
            self.warn_of_target(key, at, &format!("there is no {what} {}/{}", key.namespace, target.name));
        }
        let waypoint =
            |service: &ServiceKey| self.out.services.get(service).is_some_and(|held| held.waypoint.is_some());
        let (judged, unjudged): (Vec<_>, Vec<_>) = there.into_iter().partition(waypoint);
        if !unjudged.is_empty() {
            let reason = format!(
                "{what} {}/{} names no waypoint (istio.io/use-waypoint): NOBODY judges by this policy",
                key.namespace, target.name
            );
            self.warn_of_target(key, at, &reason);
        }
        judged
    }

    /// The services behind such waypoints, and the waypoints' own, which stand for calls of workloads by address; as
    /// far as they are here.
    fn behind(&self, waypoints: &[GatewayAddress]) -> Vec<ServiceKey> {
        let is_meant = |service: &&Service| {
            let own = |waypoint: &GatewayAddress| match waypoint {
                GatewayAddress::Host { service: own, .. } => *own == service.key,
                GatewayAddress::Address { .. } => false,
            };
            waypoints.iter().any(|waypoint| service.waypoint.as_ref() == Some(waypoint) || own(waypoint))
        };
        self.out.services.values().filter(is_meant).map(|service| service.key.clone()).collect()
    }

    /// Told where all of the policy's namespace is known, and nowhere else.
    fn warn_of_target(&mut self, key: &ObjectKey, at: usize, reason: &str) {
        if !self.is_own(&key.namespace) {
            return;
        }
        self.warn(key, &format!("spec.targetRefs[{at}]"), reason);
    }

    /// Whether a namespace's objects are all here, and not those alone that concern others.
    pub(super) fn is_own(&self, namespace: &str) -> bool {
        self.view.own.as_ref().is_none_or(|own| own.contains(namespace))
    }
}

#[cfg(test)]
pub(crate) mod tests;
