//! The policies that are held, by name and by whom they are for.
//!
//! A policy is compiled once, when it is put; nothing else is recompiled then.

use std::{collections::BTreeSet, sync::Arc};

use imbl::{HashMap, OrdMap};

use crate::{
    Action, Policy, PolicyKey, Scope, Workload,
    index::{Compiled, Index},
};

/// All policies of a snapshot.
#[derive(Clone, Default)]
pub(crate) struct Policies {
    held: HashMap<PolicyKey, Arc<Compiled>>,
    global: Arc<Scoped>,
    namespaces: HashMap<Arc<str>, Arc<Scoped>>,
    /// What a namespace without policies has.
    nothing: Arc<Scoped>,
    /// Sent, not understood, never held; with the scope, where that could be read.
    unusable: OrdMap<PolicyKey, Option<Scope>>,
    generation: u64,
}

/// The policies of one scope, by what they do.
#[derive(Clone, Default)]
pub(crate) struct Scoped {
    deny: Index,
    allow: Index,
    dry_deny: Index,
    dry_allow: Index,
}

impl Scoped {
    pub(crate) fn index(&self, action: Action, dry_run: bool) -> &Index {
        match (action, dry_run) {
            (Action::Deny, false) => &self.deny,
            (Action::Allow, false) => &self.allow,
            (Action::Deny, true) => &self.dry_deny,
            (Action::Allow, true) => &self.dry_allow,
        }
    }

    fn index_mut(&mut self, policy: &Policy) -> &mut Index {
        match (policy.action, policy.dry_run) {
            (Action::Deny, false) => &mut self.deny,
            (Action::Allow, false) => &mut self.allow,
            (Action::Deny, true) => &mut self.dry_deny,
            (Action::Allow, true) => &mut self.dry_allow,
        }
    }

    fn all(&self) -> [&Index; 4] {
        [&self.deny, &self.allow, &self.dry_deny, &self.dry_allow]
    }
}

/// The policies that judge one workload.
pub(crate) struct Applied<'s> {
    /// Those of the mesh and of the workload's namespace.
    pub(crate) scopes: [&'s Scoped; 2],
    /// Those the workload names.
    pub(crate) named: Vec<&'s Compiled>,
    /// The first policy by name that is for the workload and is not held.
    pub(crate) missing: Option<&'s PolicyKey>,
}

impl Policies {
    pub(crate) fn get(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.held.get(key).map(|compiled| &compiled.policy)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.held.values().map(|compiled| &compiled.policy)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn put(&mut self, policy: Policy) {
        if self.get(&policy.key).is_some_and(|held| **held == policy) {
            return;
        }
        self.take_out(&policy.key.clone());
        self.generation += 1;
        let policy = Arc::new(policy);
        let key = policy.key.clone();
        let compiled = match self.scoped(&key, policy.scope) {
            Some(scoped) => scoped.index_mut(&policy).put(policy.clone()),
            None => Arc::new(Compiled::alone(policy)),
        };
        self.held.insert(key, compiled);
    }

    pub(crate) fn remove(&mut self, key: &PolicyKey) {
        if self.take_out(key) {
            self.generation += 1;
        }
    }

    pub(crate) fn mark_unusable(&mut self, key: &PolicyKey, scope: Option<Scope>) {
        if !self.held.contains_key(key) && self.unusable.get(key) != Some(&scope) {
            self.unusable.insert(key.clone(), scope);
            self.generation += 1;
        }
    }

    pub(crate) fn applied_to<'s>(&'s self, workload: &'s Workload) -> Applied<'s> {
        let mut named = Vec::new();
        let mut missing = self.unusable_for(workload);
        for key in &workload.authorization_policies {
            match self.held.get(key) {
                Some(compiled) => named.push(&**compiled),
                None => missing = Some(missing.map_or(key, |first| first.min(key))),
            }
        }
        let namespace = self.namespaces.get(&*workload.namespace).unwrap_or(&self.nothing);
        Applied { scopes: [&self.global, namespace], named, missing }
    }

    pub(crate) fn names_for(&self, workload: &Workload) -> Vec<PolicyKey> {
        let applied = self.applied_to(workload);
        let indexes = applied.scopes.into_iter().flat_map(Scoped::all);
        let mut names: BTreeSet<_> = indexes.flat_map(Index::names).collect();
        names.extend(&workload.authorization_policies);
        names.extend(self.unusable_keys_for(workload));
        names.into_iter().cloned().collect()
    }

    /// Takes a policy or its mark out of everything; true when there was one.
    fn take_out(&mut self, key: &PolicyKey) -> bool {
        let marked = self.unusable.remove(key).is_some();
        let Some(compiled) = self.held.remove(key) else { return marked };
        let policy = &compiled.policy;
        if let Some(scoped) = self.scoped(key, policy.scope) {
            scoped.index_mut(policy).remove(&compiled);
            if policy.scope == Scope::Namespace && scoped.all().iter().all(|index| index.is_empty()) {
                self.namespaces.remove(&key.namespace);
            }
        }
        true
    }

    fn scoped(&mut self, key: &PolicyKey, scope: Scope) -> Option<&mut Scoped> {
        match scope {
            Scope::Global => Some(Arc::make_mut(&mut self.global)),
            Scope::Namespace => {
                Some(Arc::make_mut(self.namespaces.entry(key.namespace.clone()).or_default()))
            }
            Scope::WorkloadSelector => None,
        }
    }

    /// Whether a policy that is for the workload was sent and not understood: no wait will bring it.
    pub(crate) fn has_unusable_for(&self, workload: &Workload) -> bool {
        let named = |key: &PolicyKey| self.unusable.contains_key(key);
        self.unusable_for(workload).is_some() || workload.authorization_policies.iter().any(named)
    }

    fn unusable_for(&self, workload: &Workload) -> Option<&PolicyKey> {
        // Nearly always there is none at all.
        if self.unusable.is_empty() { None } else { self.unusable_keys_for(workload).next() }
    }

    /// The unusable policies that are for a workload by their scope, in order. Those that it names are
    /// not held either, and found so.
    fn unusable_keys_for(&self, workload: &Workload) -> impl Iterator<Item = &PolicyKey> {
        let applies = |(key, scope): &(&PolicyKey, &Option<Scope>)| match scope {
            Some(Scope::Global) => true,
            Some(Scope::Namespace) | None => key.namespace == workload.namespace,
            Some(Scope::WorkloadSelector) => false,
        };
        self.unusable.iter().filter(applies).map(|(key, _)| key)
    }
}
