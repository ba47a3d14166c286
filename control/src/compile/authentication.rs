//! What a RequestAuthentication applies to: requests at the waypoints of its `targetRefs`; with the keys that were
//! fetched.

mod bound;

use std::collections::{BTreeMap, BTreeSet};

use mesh::{
    PolicyKey, ServiceKey,
    request::{RequestPolicy, Subject},
    route::Protocol,
    token::{Authentication, Keys, TokenRule},
};

use bound::{Bounded, bounded};

use super::Compiler;
use crate::manifest::{JwtRule, KeysOf, Kind, Object, ObjectKey, RequestAuthentication};

/// The rules for tokens, by the service whose requests bring them; by a waypoint's own service, those for calls of
/// workloads by their address.
pub(super) type OfTokens = BTreeMap<ServiceKey, Authentication>;

impl<'v> Compiler<'v, '_> {
    /// The rules for tokens, by what they are for. Those of Gateways may be other namespaces'.
    pub(super) fn authentications(&mut self) -> OfTokens {
        let mut found: BTreeMap<ServiceKey, Vec<TokenRule>> = BTreeMap::new();
        for (key, authentication) in self.all_authentications() {
            if self.is_own(&key.namespace) {
                for (field, reason) in &authentication.remarks {
                    self.warn(&key, field, reason.clone());
                }
            }
            let services = self.services_of(&key, &authentication.targets);
            let rules = authentication.rules.iter().enumerate();
            let rules: Vec<TokenRule> = rules.map(|(at, rule)| self.token_rule(&key, at, rule)).collect();
            for service in services {
                let all = found.entry(service.clone()).or_default();
                all.extend(rules.iter().cloned());
                if all.len() > Authentication::MOST {
                    let reason = format!(
                        "service {service} has more than {} rules; of those beyond no token is accepted there",
                        Authentication::MOST
                    );
                    self.warn(&key, "spec.jwtRules", reason);
                }
            }
        }
        let found = found.into_iter().filter(|(_, rules)| !rules.is_empty());
        found.map(|(service, rules)| self.bounded(service, rules)).collect()
    }

    fn bounded(&mut self, service: ServiceKey, rules: Vec<TokenRule>) -> (ServiceKey, Authentication) {
        let Bounded { rules, closed } = bounded(rules);
        let of_closed: BTreeSet<(&PolicyKey, &str)> = rules
            .iter()
            .filter(|rule| closed.contains(&rule.issuer))
            .map(|rule| (&rule.policy, &*rule.issuer))
            .collect();
        for (PolicyKey { namespace, name }, issuer) in of_closed {
            let reason = format!(
                "no token of {issuer} is accepted at service {service}: of the rules beyond {}, too many are of issuers \
                 whose names begin with {issuer}/, and whose a principal is could not be told",
                Authentication::MOST
            );
            let (namespace, name) = (namespace.clone(), name.clone());
            let key = ObjectKey { kind: Kind::RequestAuthentication, namespace, name };
            self.warn(&key, "spec.jwtRules", reason);
        }
        (service, Authentication::new(rules))
    }

    fn all_authentications(&self) -> Vec<(ObjectKey, &'v RequestAuthentication)> {
        let mut all = self.of_kind(Kind::RequestAuthentication, |object| match object {
            Object::RequestAuthentication(authentication) => Some(&**authentication),
            _ => None,
        });
        let foreign = self.view.foreign_authentications.iter();
        all.extend(foreign.map(|(key, authentication)| (key.clone(), *authentication)));
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    fn token_rule(&mut self, key: &ObjectKey, at: usize, rule: &JwtRule) -> TokenRule {
        let keys = match &rule.keys {
            KeysOf::Written(keys) => Keys { source: "".into(), known: Some(keys.clone()) },
            KeysOf::Fetched { from, .. } => {
                let fetched = self.view.keys.get(from);
                let known = fetched.and_then(|fetched| fetched.keys.clone());
                if let Some(problem) = fetched.and_then(|fetched| fetched.problem.as_ref())
                    && self.is_own(&key.namespace)
                {
                    let holds = match known {
                        Some(_) => "those that were fetched last hold",
                        None => "until then every token of the issuer is refused",
                    };
                    let reason = format!("its keys cannot be fetched from {from}: {problem}; {holds}");
                    self.warn(key, &format!("spec.jwtRules[{at}]"), reason);
                }
                Keys { source: from.to_string().into(), known }
            }
        };
        TokenRule {
            policy: PolicyKey { namespace: key.namespace.clone(), name: key.name.clone() },
            issuer: rule.issuer.clone(),
            audiences: rule.audiences.clone(),
            keys,
            from: rule.from.clone(),
            forward: rule.forward,
            payload_to: rule.payload_to.clone(),
            claims_to: rule.claims_to.clone(),
            spaced: rule.spaced.clone(),
        }
    }

    /// Tells of ports of a service that nobody has said what they speak of: where tokens are read, what is no HTTP is
    /// refused there.
    pub(super) fn warn_of_unsaid(&mut self, service: &ServiceKey) {
        let (Some(held), Some(routes)) = (self.out.services.get(service), self.out.routes.get(service))
        else {
            return;
        };
        if held.waypoint.is_none() || routes.authentication.is_empty() {
            return;
        }
        let is_unsaid =
            |port: &u16| routes.protocol(*port) == Protocol::Unknown && routes.kind(*port, None).is_none();
        let ports = held.ports.iter().map(|mapping| mapping.service_port).filter(is_unsaid);
        let ports: Vec<String> = ports.map(|port| port.to_string()).collect();
        if ports.is_empty() {
            return;
        }
        let policies: BTreeSet<PolicyKey> =
            routes.authentication.rules().iter().map(|rule| rule.policy.clone()).collect();
        for PolicyKey { namespace, name } in policies {
            if self.is_own(&namespace) {
                let reason = format!(
                    "nobody says what port {} of service {service} speaks: what is no HTTP is refused there, since tokens \
                     are read; name the port (http-…, tcp-…), or give it an appProtocol or, in a ServiceEntry, a protocol",
                    ports.join(", ")
                );
                let key = ObjectKey { kind: Kind::RequestAuthentication, namespace, name };
                self.warn(&key, "spec.targetRefs", reason);
            }
        }
    }

    /// Tells of policies that ask for a token where nobody reads any.
    pub(super) fn warn_of_tokens(&mut self, service: &ServiceKey, policies: &[RequestPolicy]) {
        for policy in policies.iter().filter(|policy| asks_for_token(policy)) {
            let PolicyKey { namespace, name } = policy.key.clone();
            if self.is_own(&namespace) {
                let reason = format!(
                    "it asks for a token, and no RequestAuthentication is for service {service}: nobody has one there"
                );
                let key = ObjectKey { kind: Kind::AuthorizationPolicy, namespace, name };
                self.warn(&key, "spec.rules", reason);
            }
        }
    }
}

fn asks_for_token(policy: &RequestPolicy) -> bool {
    let clauses = policy.rules.iter().flat_map(|rule| &rule.clauses);
    let mut values = clauses.flat_map(|clause| &clause.matches).flat_map(|one| &one.values);
    values.any(|value| match value.of {
        Subject::Principal | Subject::Audience | Subject::Presenter | Subject::Claim(_) => true,
        Subject::Host | Subject::Method | Subject::Header(_) => false,
    })
}

#[cfg(test)]
mod tests;
