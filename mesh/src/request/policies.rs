//! The policies for requests that are held, by what they are for.

use std::sync::Arc;

use imbl::{HashMap, OrdMap, OrdSet};

use super::{At, PolicyTarget, RequestPolicy, judge::Compiled};
use crate::PolicyKey;

/// All policies for requests of a snapshot.
#[derive(Clone, Default)]
pub(crate) struct RequestPolicies {
    held: OrdMap<PolicyKey, Held>,
    by_target: HashMap<PolicyTarget, OrdSet<PolicyKey>>,
    /// Sent, not understood, never held, and nobody could say what they are for: they are for everything.
    unreadable: OrdSet<PolicyKey>,
}

#[derive(Clone)]
struct Held {
    targets: Arc<[PolicyTarget]>,
    policy: Arc<Compiled>,
}

/// The policies that are for one request, by name.
pub(super) struct Applied<'s> {
    pub(super) policies: Vec<&'s Compiled>,
    /// The first one that could not be read.
    pub(super) unreadable: Option<&'s PolicyKey>,
}

impl Applied<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.unreadable.is_none()
    }
}

impl RequestPolicies {
    pub(crate) fn put(&mut self, policy: RequestPolicy) {
        self.remove(&policy.key);
        let targets: Arc<[PolicyTarget]> = policy.targets.as_slice().into();
        for target in &*targets {
            self.by_target.entry(target.clone()).or_default().insert(policy.key.clone());
        }
        self.held.insert(policy.key.clone(), Held { targets, policy: Arc::new(Compiled::new(policy)) });
    }

    pub(crate) fn remove(&mut self, key: &PolicyKey) {
        self.unreadable.remove(key);
        let Some(held) = self.held.remove(key) else { return };
        for target in &*held.targets {
            if let Some(keys) = self.by_target.get_mut(target) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_target.remove(target);
                }
            }
        }
    }

    /// One that was sent and cannot be read: its last good version holds, and where there is none, nothing passes.
    pub(crate) fn mark_unreadable(&mut self, key: &PolicyKey) {
        if !self.held.contains_key(key) {
            self.unreadable.insert(key.clone());
        }
    }

    pub(super) fn applied(&self, at: At<'_>) -> Applied<'_> {
        let mut policies = Vec::new();
        if !self.held.is_empty() {
            let gateway = PolicyTarget::Gateway { namespace: at.namespace.clone(), name: at.name.clone() };
            let class = PolicyTarget::GatewayClass(at.class.clone());
            let service = at.service.map(|service| PolicyTarget::Service(service.clone()));
            let mut keys: Vec<&PolicyKey> = [Some(gateway), Some(class), service]
                .iter()
                .flatten()
                .filter_map(|target| self.by_target.get(target))
                .flatten()
                .collect();
            keys.sort_unstable();
            keys.dedup();
            policies.extend(keys.into_iter().filter_map(|key| Some(&*self.held.get(key)?.policy)));
        }
        Applied { policies, unreadable: self.unreadable.get_min() }
    }
}
