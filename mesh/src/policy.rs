//! Layer-4 authorization policies. The shape is that of `istio.security.Authorization`.

use std::{fmt, sync::Arc};

use ipnet::IpNet;

/// A policy's name: `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// How the names of those policies begin that control makes of PeerAuthentications, and istiod's one; no object of a user
/// has such a name: Kubernetes allows no underscore in one.
pub const PEER_AUTHENTICATION: &str = "culvert_peer_authentication_";
const OF_ISTIOD: &str = "istio_converted_static_strict";

impl PolicyKey {
    /// Whether it is no object of a user's, but made of PeerAuthentications: what it refuses is plaintext.
    pub fn is_peer_authentication(&self) -> bool {
        self.name.starts_with(PEER_AUTHENTICATION) || &*self.name == OF_ISTIOD
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which workloads a policy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every workload of the mesh (a policy in the root namespace without selector).
    Global,
    /// Every workload of the policy's namespace.
    Namespace,
    /// The workloads that name it in `authorization_policies`.
    WorkloadSelector,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Allow,
    Deny,
}

/// One policy: rules OR, clauses AND, matches OR, fields AND, values OR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub key: PolicyKey,
    pub scope: Scope,
    pub action: Action,
    /// Only reported, never enforced.
    pub dry_run: bool,
    /// Without rules the policy never matches.
    pub rules: Vec<Rule>,
}

/// All clauses must match; a rule without clauses always does: it is what `rules: [{}]` compiles to, with
/// which people allow or deny everything (`istio.security.Rule`; a rule that must never match is left out).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    pub clauses: Vec<Clause>,
}

/// One match suffices; a clause without matches matches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Clause {
    pub matches: Vec<Match>,
}

/// All fields that are not empty must match, each with one of its values, and none of its `not_` values.
///
/// A match without any field is what is left when its layer-7 fields were taken out: it never helps an
/// ALLOW (it is skipped, and a clause of nothing else never matches) and it makes a DENY's clause match.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// The caller's namespace, of its proved identity.
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub service_accounts: Vec<ServiceAccountMatch>,
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// Matched against `TRUST_DOMAIN/ns/NS/sa/SA`.
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    pub source_ips: Vec<IpNet>,
    pub not_source_ips: Vec<IpNet>,
    pub destination_ips: Vec<IpNet>,
    pub not_destination_ips: Vec<IpNet>,
    /// The workload's real port, not the service's.
    pub destination_ports: Vec<u16>,
    pub not_destination_ports: Vec<u16>,
}

impl Match {
    /// Whether it has no field at all.
    pub fn is_empty(&self) -> bool {
        let Self {
            namespaces,
            not_namespaces,
            service_accounts,
            not_service_accounts,
            principals,
            not_principals,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports,
            not_destination_ports,
        } = self;
        [namespaces, not_namespaces, principals, not_principals].iter().all(|field| field.is_empty())
            && [service_accounts, not_service_accounts].iter().all(|field| field.is_empty())
            && [source_ips, not_source_ips, destination_ips, not_destination_ips].iter().all(|f| f.is_empty())
            && [destination_ports, not_destination_ports].iter().all(|field| field.is_empty())
    }
}

/// A namespace and a service account, both exact.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceAccountMatch {
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
}

/// How one value of a text field is compared; a caller without identity has no text that any matches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StringMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    /// Any value, as long as there is one.
    Presence,
}
