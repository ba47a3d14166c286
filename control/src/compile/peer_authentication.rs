//! PeerAuthentication: who may still come in plaintext. STRICT becomes a DENY of callers without an
//! identity, by the very mechanism of every other policy.
//!
//! The narrowest word counts: a selector's, then the namespace's, then the mesh's (the root namespace).
//! Of two in one scope the older one holds, as in Istio.

use std::{collections::BTreeMap, sync::Arc};

use mesh::{Action, Clause, Match, PEER_AUTHENTICATION, Policy, PolicyKey, Rule, Scope, StringMatch};

use super::Compiler;
use crate::manifest::{MtlsMode, ObjectKey, PeerAuthentication};

/// In the root namespace, behind [`PEER_AUTHENTICATION`]: every port refuses plaintext.
const STRICT: &str = "strict";

/// One in effect: strict or not, and the ports that differ.
#[derive(Default, Clone)]
struct Effective {
    strict: bool,
    ports: BTreeMap<u16, bool>,
}

impl Compiler<'_, '_> {
    pub(super) fn peer_authentications(&mut self) {
        let mut all = self.all_peer_authentications();
        all.sort_by(|(a_key, a), (b_key, b)| {
            let age = |policy: &PeerAuthentication| {
                // Without a time stamp it is from now: younger than any other.
                policy.metadata.creation_timestamp.clone().unwrap_or_else(|| "~".into())
            };
            age(a).cmp(&age(b)).then_with(|| a_key.cmp(b_key))
        });
        for (key, policy) in &all {
            let modes =
                policy.spec.mtls.iter().chain(policy.spec.port_level_mtls.iter().flat_map(|p| p.values()));
            if modes.into_iter().any(|mtls| mtls.mode == MtlsMode::Disable) {
                self.warn(key, "spec.mtls.mode", "an ambient mesh has no DISABLE: taken as PERMISSIVE");
            }
        }
        let workloads: Vec<Arc<str>> = self.out.workloads.keys().cloned().collect();
        for uid in workloads {
            self.protect(&uid, &all);
        }
    }

    fn protect(&mut self, uid: &str, all: &[(ObjectKey, &PeerAuthentication)]) {
        let Some(workload) = self.out.workloads.get(uid) else { return };
        let labels = self.labels_of(uid);
        let root = &self.options.root_namespace;
        let find = |wanted: &dyn Fn(&ObjectKey, &PeerAuthentication) -> bool| {
            all.iter().find(|(key, policy)| wanted(key, policy))
        };
        let own = find(&|key, policy| {
            key.namespace == workload.namespace
                && policy.selector().is_some_and(|selector| selector.matches(labels))
        });
        let namespace =
            find(&|key, policy| key.namespace == workload.namespace && policy.selector().is_none());
        let mesh = find(&|key, policy| key.namespace == *root && policy.selector().is_none());
        let mode = |found: Option<&(ObjectKey, &PeerAuthentication)>| {
            found
                .and_then(|(_, policy)| policy.spec.mtls)
                .map(|mtls| mtls.mode)
                .filter(|m| *m != MtlsMode::Unset)
        };
        let strict = mode(own).or_else(|| mode(namespace)).or_else(|| mode(mesh)) == Some(MtlsMode::Strict);
        let ports = own.and_then(|(_, policy)| policy.spec.port_level_mtls.as_ref());
        let ports = ports.into_iter().flatten().filter_map(|(port, mtls)| match mtls.mode {
            MtlsMode::Unset => None,
            mode => Some((*port, mode == MtlsMode::Strict)),
        });
        let ports = ports.filter(|(_, port)| *port != strict).collect();
        let effective = Effective { strict, ports };
        let Some((name, rule)) = deny(&effective, own.map(|(key, _)| key), root) else { return };
        let policy = Policy {
            key: name.clone(),
            scope: Scope::WorkloadSelector,
            action: Action::Deny,
            dry_run: false,
            rules: vec![rule],
        };
        self.out.policies.insert(name.clone(), policy);
        if let Some(workload) = self.out.workloads.get_mut(uid) {
            workload.authorization_policies.push(name);
        }
    }
}

/// The policy that refuses plaintext where it must; `None` where all of it is permitted.
fn deny(effective: &Effective, own: Option<&ObjectKey>, root: &Arc<str>) -> Option<(PolicyKey, Rule)> {
    let without_identity =
        Clause { matches: vec![Match { not_principals: vec![StringMatch::Presence], ..Match::default() }] };
    let ports: Vec<u16> = effective.ports.keys().copied().collect();
    let (name, port_clause) = match (own, effective.strict, ports.is_empty()) {
        (_, false, true) => return None,
        (_, true, true) | (None, true, false) => (
            PolicyKey { namespace: root.clone(), name: format!("{PEER_AUTHENTICATION}{STRICT}").into() },
            None,
        ),
        // Ports come from a selector's own policy only.
        (None, false, false) => return None,
        (Some(key), strict, false) => {
            // A mode that was inherited is part of the name: two workloads may inherit differently.
            let mode = if strict { "strict" } else { "permissive" };
            let name = format!("{PEER_AUTHENTICATION}{}_{mode}", key.name);
            let fields = if strict {
                Match { not_destination_ports: ports, ..Match::default() }
            } else {
                Match { destination_ports: ports, ..Match::default() }
            };
            let name = PolicyKey { namespace: key.namespace.clone(), name: name.into() };
            (name, Some(Clause { matches: vec![fields] }))
        }
    };
    let clauses = std::iter::once(without_identity).chain(port_clause).collect();
    Some((name, Rule { clauses }))
}
