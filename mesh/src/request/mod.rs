//! Authorization of requests at a waypoint: AuthorizationPolicies with `targetRefs`, fields of layer 7 among theirs.
//!
//! The order is that of the layer-4 proxies ([`crate::admit`]): a DENY that matches refuses; without any ALLOW it is
//! allowed; an ALLOW that matches allows; else it is refused. AUDIT decides nothing and is told.

mod judge;
mod path;

use std::{net::IpAddr, sync::Arc};

pub use judge::RequestPolicies;
pub use path::{Ambiguity, BadTemplate, NormalPath, PathPattern, Template, normal_path};

use crate::{Identity, Match, PolicyKey, StringMatch};

/// What is done where a policy matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestAction {
    Allow,
    Deny,
    /// It is told, and decides nothing.
    Audit,
}

/// A policy for requests: rules OR, clauses AND, matches OR, fields AND, values OR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestPolicy {
    pub key: PolicyKey,
    pub action: RequestAction,
    /// Only reported, never enforced.
    pub dry_run: bool,
    /// Without rules the policy never matches.
    pub rules: Vec<RequestRule>,
}

/// All clauses must match; without any it matches everything (`rules: [{}]`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestRule {
    pub clauses: Vec<RequestClause>,
}

/// One match suffices; a clause without matches matches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestClause {
    pub matches: Vec<RequestMatch>,
}

/// All that is said must hold.
///
/// Where no request can be read (a connection that is carried as it is), what asks for more than the caller never
/// helps an ALLOW, and is passed over in a DENY, which so denies more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestMatch {
    /// The caller, and addresses; its ports are the service's.
    pub caller: Match,
    pub paths: Vec<PathPattern>,
    pub not_paths: Vec<PathPattern>,
    pub values: Vec<ValueMatch>,
}

/// One value of the request, and what it must be: any of these, if there are some, and none of those.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueMatch {
    pub of: Subject,
    pub values: Vec<StringMatch>,
    pub not_values: Vec<StringMatch>,
}

/// What a value is of. Of what has several values any may match, and none may match what is excluded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// In lower case; its port is looked at by patterns that have one.
    Host,
    Method,
    /// By its name in lower case.
    Header(Arc<str>),
    /// `ISSUER/SUBJECT` of the token.
    Principal,
    /// The token's `aud`.
    Audience,
    /// The token's `azp`.
    Presenter,
    /// A claim of the token, by the names on the way to it.
    Claim(Box<[Arc<str>]>),
}

/// What is asked of a request's head.
pub trait Head {
    fn method(&self) -> &str;
    /// Whether a value of that header, by its name in lower case, passes the test; each of several by itself.
    fn has(&self, name: &str, test: &mut dyn FnMut(&str) -> bool) -> bool;
}

/// What a token proved.
pub trait Token {
    /// `ISSUER/SUBJECT`.
    fn principal(&self) -> Option<&str>;
    /// The texts of a claim: itself, or those of its list.
    fn claim(&self, path: &[Arc<str>]) -> Vec<&str>;
}

/// The token of a request that brought none.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoToken;

impl Token for NoToken {
    fn principal(&self) -> Option<&str> {
        None
    }

    fn claim(&self, _: &[Arc<str>]) -> Vec<&str> {
        Vec::new()
    }
}

/// A request, as far as it could be read.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a, R, T> {
    pub head: &'a R,
    /// The host that it names, with its port if it names one.
    pub host: &'a str,
    pub path: &'a NormalPath<'a>,
    pub token: Option<&'a T>,
}

/// Somebody asks for something.
#[derive(Debug, Clone, Copy)]
pub struct RequestAttempt<'a, R, T> {
    /// Who was proved to call.
    pub source: Option<&'a Identity>,
    pub source_ip: IpAddr,
    pub destination_ip: IpAddr,
    /// Of the service.
    pub port: u16,
    /// `None` where the connection is carried as it is.
    pub content: Option<Content<'a, R, T>>,
}

/// The verdict, and what else is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestDecision {
    pub verdict: RequestVerdict,
    /// AUDIT policies that match.
    pub audited: Vec<PolicyKey>,
    /// Policies in dry-run that would have changed the verdict, were they enforced.
    pub dry_run: Vec<PolicyKey>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestVerdict {
    /// By the named ALLOW policy, or because none is for the request.
    Allow(Option<PolicyKey>),
    Refuse(RequestRefusal),
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestRefusal {
    #[error("denied by policy {0}")]
    Denied(PolicyKey),
    /// ALLOW policies are there and none matches; the first of them is named.
    #[error("no ALLOW policy matches (policy {0} among them)")]
    NotAllowed(PolicyKey),
    #[error("{1}, and policy {0} judges by paths")]
    Ambiguous(PolicyKey, Ambiguity),
}

impl RequestRefusal {
    /// The policy that decided, or the first of those that did.
    pub fn policy(&self) -> &PolicyKey {
        match self {
            Self::Denied(policy) | Self::NotAllowed(policy) | Self::Ambiguous(policy, _) => policy,
        }
    }
}
