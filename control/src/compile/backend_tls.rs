//! BackendTLSPolicies to what waypoints are told: with which services TLS is begun, and whom they believe.
//!
//! What cannot be used closes the way: a waypoint that was to prove whom it speaks with does not speak in plaintext.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh::{
    ServiceKey,
    route::{BackendTls, Protocol, RouteKind, Trust},
};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::{
    Compiler,
    standing::{Condition, ParentStatus, Unresolved},
    waypoints::{is_service, is_service_entry},
};
use crate::manifest::{BackendTlsPolicy, Kind, Object, ObjectKey, Reference, RefusedPolicy, TrustManifest};

/// The most bytes of certificates of a policy.
const MOST_BYTES: usize = 256 << 10;

/// By service, each for a port or for all of them.
pub(super) type OfBackends = BTreeMap<ServiceKey, Vec<Arc<BackendTls>>>;

/// When what a caller sends is passed through as it is, and no TLS begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passed {
    /// It is his own TLS.
    Always,
    /// Where it is his own TLS.
    Begun,
}

/// What a policy says is not accepted, and why.
type Rejected = Option<(&'static str, String)>;

impl Compiler<'_, '_> {
    /// Of several policies for one thing the oldest holds.
    pub(super) fn backend_tls(&mut self) -> OfBackends {
        let mut all = self.of_kind(Kind::BackendTLSPolicy, |object| match object {
            Object::BackendTLSPolicy(policy) => Some(&**policy),
            _ => None,
        });
        let age = |policy: &BackendTlsPolicy| policy.metadata.creation_timestamp.clone();
        all.sort_by_cached_key(|(key, policy)| (age(policy), key.clone()));
        let mut found = OfBackends::new();
        for (key, policy) in all {
            for (field, reason) in &policy.remarks {
                self.warn(&key, field, reason.clone());
            }
            let (trust, unresolved, rejected) = self.trust(&key, policy);
            for (at, target) in policy.targets.iter().enumerate() {
                let field = format!("spec.targetRefs[{at}]");
                let (group, kind) = (target.group.as_deref(), target.kind.as_deref());
                if !is_service(group, kind, "Service") && !is_service_entry(group, kind) {
                    let reason = "a target is a Service or a ServiceEntry: of this nobody takes notice";
                    self.warn(&key, &format!("{field}.kind"), reason);
                    continue;
                }
                let (services, port) = match self.tls_target(&key, target) {
                    Ok(found) => found,
                    Err(message) => {
                        self.warn(&key, &field, message.clone());
                        let condition = Condition::not_accepted("TargetNotFound", message);
                        self.tls_standing(&key, target, vec![condition]);
                        continue;
                    }
                };
                let is_free = |service: &&ServiceKey| {
                    let held = found.get(*service).into_iter().flatten();
                    !held.into_iter().any(|tls: &Arc<BackendTls>| tls.port == port)
                };
                let free: Vec<ServiceKey> = services.iter().filter(is_free).cloned().collect();
                let accepted = if free.is_empty() {
                    let message = "an older BackendTLSPolicy is for the same".to_owned();
                    self.warn(&key, &field, message.clone());
                    Condition::not_accepted("Conflicted", message)
                } else if let Some((reason, message)) = &rejected {
                    Condition::not_accepted(reason, message.clone())
                } else {
                    let message = "waypoints begin TLS with it".to_owned();
                    Condition::of("Accepted", true, "Accepted", message)
                };
                let conditions = vec![accepted, Condition::references(&unresolved)];
                self.tls_standing(&key, target, conditions);
                for service in free {
                    let tls = BackendTls {
                        policy: format!("{}/{}", key.namespace, key.name).into(),
                        port,
                        hostname: policy.hostname.clone(),
                        trust: trust.clone(),
                        names: policy.names.clone(),
                    };
                    found.entry(service).or_default().push(Arc::new(tls));
                }
            }
            if let Some(refused) = &policy.refused {
                self.refused_tls(&key, policy, refused);
            }
        }
        found
    }

    /// Says of each target at which ports what callers have begun in TLS themselves is passed through. When all routes are
    /// known.
    pub(super) fn tls_of_callers(&mut self) {
        let all = self.of_kind(Kind::BackendTLSPolicy, |object| match object {
            Object::BackendTLSPolicy(policy) => Some(&**policy),
            _ => None,
        });
        for (key, policy) in all {
            for target in &policy.targets {
                let Ok((services, _)) = self.tls_target(&key, target) else { continue };
                let name = format!("{}/{}", key.namespace, key.name);
                let own: Vec<(u16, Passed)> =
                    services.iter().flat_map(|service| self.passed_through(service, &name)).collect();
                let ports = |passed: Passed| -> String {
                    let ports: BTreeSet<u16> =
                        own.iter().filter(|(_, of)| *of == passed).map(|(port, _)| *port).collect();
                    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
                };
                let mut message = String::new();
                let (always, begun) = (ports(Passed::Always), ports(Passed::Begun));
                if !always.is_empty() {
                    message += &format!(", but not at port {always}, whose TLS a TLSRoute leads on as it is");
                }
                if !begun.is_empty() {
                    message += &format!(
                        "; at port {begun}, which may speak no HTTP, TLS that a caller has begun himself is passed through"
                    );
                }
                let statuses = self.out.routes_status.get_mut(&key).into_iter().flatten();
                let mut conditions = statuses
                    .filter(|status| status.parent == *target)
                    .flat_map(|status| &mut status.conditions);
                if let Some(condition) = conditions.find(|of| of.kind == "Accepted" && of.status) {
                    condition.message += &message;
                }
            }
        }
    }

    /// The ports of a service that this policy is for, and at which callers' own TLS is passed through.
    fn passed_through(&self, service: &ServiceKey, policy: &str) -> Vec<(u16, Passed)> {
        let (Some(held), Some(routes)) = (self.out.services.get(service), self.out.routes.get(service))
        else {
            return Vec::new();
        };
        let ports = held.ports.iter().map(|mapping| mapping.service_port);
        let own = ports.filter(|port| routes.tls(*port).is_some_and(|tls| *tls.policy == *policy));
        let passed = |port: u16| match (routes.kind(port, None), routes.protocol(port)) {
            (Some(RouteKind::Tls), _) => Some(Passed::Always),
            (Some(RouteKind::Tcp), _) => None,
            (_, Protocol::Tcp) => Some(Passed::Begun),
            (_, Protocol::Unknown) if routes.may_be_bytes(port, None) => Some(Passed::Begun),
            (_, Protocol::Http1 | Protocol::Http2 | Protocol::Unknown) => None,
        };
        own.filter_map(|port| Some((port, passed(port)?))).collect()
    }

    /// Says to each target of what is written now that it is refused, and what holds instead; and of what nothing holds.
    fn refused_tls(&mut self, key: &ObjectKey, policy: &BackendTlsPolicy, refused: &RefusedPolicy) {
        let instead = if policy.is_stand_in() {
            for (field, reason) in &refused.left_out {
                self.warn(key, field, format!("{reason}: the policy is refused, and closes no way to it"));
            }
            "until it is mended nothing is sent to its targets but what callers have begun in TLS themselves"
        } else {
            "the last version that was accepted holds while this control runs"
        };
        let message = format!("{}; {instead}", refused.reason);
        self.out.routes_status.remove(key);
        for target in &refused.targets {
            let conditions = vec![Condition::not_accepted("Invalid", message.clone())];
            self.tls_standing(key, target, conditions);
        }
    }

    fn tls_standing(&mut self, key: &ObjectKey, target: &Reference, conditions: Vec<Condition>) {
        let status = ParentStatus { parent: target.clone(), conditions };
        self.out.routes_status.entry(key.clone()).or_default().push(status);
    }

    /// The services of a target, and the one port, if it names one.
    fn tls_target(
        &self,
        key: &ObjectKey,
        target: &Reference,
    ) -> Result<(Vec<ServiceKey>, Option<u16>), String> {
        let (namespace, name) = (&*key.namespace, &*target.name);
        let (services, what) = if is_service(target.group.as_deref(), target.kind.as_deref(), "Service") {
            (vec![self.service_key(namespace, name)], "service")
        } else {
            (self.hosts_of(namespace, name), "ServiceEntry")
        };
        let held: Vec<ServiceKey> =
            services.into_iter().filter(|service| self.out.services.contains_key(service)).collect();
        if held.is_empty() {
            return Err(format!("there is no {what} {namespace}/{name}"));
        }
        let section = target.section_name.as_deref().filter(|section| !section.is_empty());
        let port = match section {
            Some(section) => {
                let port = self.port_named(namespace, name, what, section);
                Some(port.ok_or_else(|| format!("{what} {namespace}/{name} has no port named {section}"))?)
            }
            None => None,
        };
        Ok((held, port))
    }

    /// Whom a policy believes; what of its references is wrong; and whether that is all of them.
    fn trust(&mut self, key: &ObjectKey, policy: &BackendTlsPolicy) -> (Trust, Vec<Unresolved>, Rejected) {
        let references = match &policy.trust {
            TrustManifest::System => return (Trust::System, Vec::new(), None),
            TrustManifest::Unknown(named) => {
                let message = format!("{named:?} are no certificates that are known here: System are");
                self.warn(key, "spec.validation.wellKnownCACertificates", message.clone());
                return (Trust::Nobody(message.as_str().into()), Vec::new(), Some(("Invalid", message)));
            }
            TrustManifest::Refused => {
                let reason = policy.refused.as_ref().map_or("", |refused| &refused.reason);
                return (Trust::Nobody(format!("the policy is refused: {reason}").into()), Vec::new(), None);
            }
            TrustManifest::Certificates(references) => references,
        };
        let (mut pem, mut unresolved) = (String::new(), Vec::new());
        for (at, reference) in references.iter().enumerate() {
            let found = if reference.is_config_map() {
                self.certificates(&key.namespace, &reference.name)
                    .map_err(|message| Unresolved::new("name", "InvalidCACertificateRef", message))
            } else {
                let message = format!("certificates are in a ConfigMap, and not in a {}", reference.kind);
                Err(Unresolved::new("kind", "InvalidKind", message))
            };
            match found {
                Ok(found) => {
                    pem.push_str(&found);
                    pem.push('\n');
                }
                Err(wrong) => {
                    let field = format!("spec.validation.caCertificateRefs[{at}].{}", wrong.part);
                    self.warn(key, &field, wrong.message.clone());
                    unresolved.push(wrong);
                }
            }
        }
        let words: Vec<&str> = unresolved.iter().map(|wrong| wrong.message.as_str()).collect();
        let words = words.join("; ");
        match (unresolved.is_empty(), pem.len()) {
            (true, length) if length > MOST_BYTES => {
                let message = format!("{length} bytes of certificates; {MOST_BYTES} at most");
                (Trust::Nobody(message.as_str().into()), unresolved, Some(("Invalid", message)))
            }
            (true, _) => (Trust::Roots(pem.into()), unresolved, None),
            (false, length) => {
                let none = (length == 0).then(|| ("NoValidCACertificate", words.clone()));
                (Trust::Nobody(words.into()), unresolved, none)
            }
        }
    }

    /// The certificates of a ConfigMap, of which each can be used.
    fn certificates(&self, namespace: &str, name: &str) -> Result<Arc<str>, String> {
        let key = ObjectKey { kind: Kind::ConfigMap, namespace: namespace.into(), name: name.into() };
        let Some(Object::ConfigMap(found)) = self.view.get(&key) else {
            return Err(format!("there is no ConfigMap {namespace}/{name}"));
        };
        let pem = found
            .certificates
            .as_ref()
            .ok_or_else(|| format!("ConfigMap {namespace}/{name} has no key ca.crt"))?;
        let wrong = |error: String| format!("ca.crt of ConfigMap {namespace}/{name}: {error}");
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(wrong("it holds no certificate in PEM".to_owned()));
        }
        Ok(pem.clone())
    }
}

#[cfg(test)]
mod tests;
