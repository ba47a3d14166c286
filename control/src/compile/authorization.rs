//! Where an AuthorizationPolicy applies: mesh, namespace, or the workloads its selector names.

use std::sync::Arc;

use mesh::{Policy, PolicyKey, Scope};

use super::Compiler;

impl Compiler<'_, '_> {
    pub(super) fn authorization_policies(&mut self) {
        for (key, authorization) in self.all_authorizations() {
            for (field, reason) in &authorization.remarks {
                self.warn(&key, field, reason.clone());
            }
            let name = PolicyKey { namespace: key.namespace.clone(), name: key.name.clone() };
            let root = key.namespace == self.options.root_namespace;
            let scope = match (&authorization.selector, root) {
                (Some(_), _) => Scope::WorkloadSelector,
                (None, true) => Scope::Global,
                (None, false) => Scope::Namespace,
            };
            if let Some(selector) = &authorization.selector {
                let namespaces: Vec<Arc<str>> = if root {
                    self.by_namespace.keys().cloned().collect()
                } else {
                    vec![key.namespace.clone()]
                };
                let chosen =
                    namespaces.iter().flat_map(|namespace| self.select(namespace, &selector.match_labels));
                let chosen: Vec<Arc<str>> = chosen.collect();
                for uid in chosen {
                    if let Some(workload) = self.out.workloads.get_mut(&uid) {
                        workload.authorization_policies.push(name.clone());
                    }
                }
            }
            let policy = Policy {
                key: name.clone(),
                scope,
                action: authorization.action,
                dry_run: authorization.dry_run,
                rules: authorization.rules.clone(),
            };
            self.out.policies.insert(name, policy);
        }
    }
}
