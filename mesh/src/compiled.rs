//! Policies compiled for judging: what cannot match is left out, long lists are searched, not walked.
//!
//! The meaning of a policy is settled here, once, when it is put:
//! - a policy without rules never matches; a rule without clauses always does (`rules: [{}]`, with which
//!   people allow or deny everything, arrives in that form); a clause without matches matches;
//! - an empty match is what is left when layer-7 fields were taken out of a match. It never helps an
//!   ALLOW (it is skipped, and a clause of nothing else never matches) and always a DENY (it matches);
//! - IPv4-mapped IPv6 networks are IPv4 networks; a network holds addresses of its own family only;
//! - no string matches a caller without identity, so that only the `not_` fields hold for it.

use std::{net::IpAddr, sync::Arc};

use ipnet::{IpNet, Ipv4Net};

use crate::{Action, Attempt, Clause, Identity, Match, Policy, Rule, ServiceAccountMatch, StringMatch};

/// The facts of one attempt in the form that conditions read.
pub(crate) struct Facts<'a> {
    pub(crate) identity: Option<&'a Identity>,
    /// `TRUST_DOMAIN/ns/NS/sa/SA`, when there is an identity.
    pub(crate) principal: Option<String>,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) port: u16,
}

impl<'a> Facts<'a> {
    pub(crate) fn of(attempt: &Attempt<'a>) -> Self {
        Self::of_call(attempt.source, attempt.source_ip, attempt.destination_ip, attempt.destination_port)
    }

    pub(crate) fn of_call(
        identity: Option<&'a Identity>,
        source: IpAddr,
        destination: IpAddr,
        port: u16,
    ) -> Self {
        let principal = |id: &Identity| {
            [id.trust_domain(), "/ns/", id.namespace(), "/sa/", id.service_account()].concat()
        };
        Self {
            identity,
            principal: identity.map(principal),
            source: source.to_canonical(),
            destination: destination.to_canonical(),
            port,
        }
    }
}

/// A rule that can match: clauses AND, matches OR, conditions AND. None of the lists within is empty.
pub(crate) struct CompiledRule {
    clauses: Box<[CompiledClause]>,
}

type CompiledClause = Box<[Box<[Condition]>]>;

impl CompiledRule {
    pub(crate) fn matches(&self, facts: &Facts<'_>) -> bool {
        self.clauses.iter().all(|clause| {
            clause.iter().any(|conditions| conditions.iter().all(|condition| condition.holds(facts)))
        })
    }
}

/// The rules of a policy that can match, each beside the clauses that decide it (for the index).
pub(crate) fn compile(policy: &Policy) -> Vec<(CompiledRule, Vec<Vec<Match>>)> {
    policy.rules.iter().filter_map(|rule| compile_rule(rule, policy.action)).collect()
}

fn compile_rule(rule: &Rule, action: Action) -> Option<(CompiledRule, Vec<Vec<Match>>)> {
    let mut deciding = Vec::with_capacity(rule.clauses.len());
    for clause in &rule.clauses {
        match decide(clause, action) {
            Decided::Always => {}
            Decided::Never => return None,
            Decided::By(matches) => deciding.push(matches),
        }
    }
    let clause = |matches: &Vec<Match>| matches.iter().map(conditions_of).collect();
    Some((CompiledRule { clauses: deciding.iter().map(clause).collect() }, deciding))
}

enum Decided {
    Always,
    Never,
    By(Vec<Match>),
}

fn decide(clause: &Clause, action: Action) -> Decided {
    let empty = clause.matches.iter().filter(|m| m.is_empty()).count();
    match action {
        _ if clause.matches.is_empty() => Decided::Always,
        Action::Deny if empty > 0 => Decided::Always,
        Action::Allow if empty == clause.matches.len() => Decided::Never,
        Action::Allow | Action::Deny => {
            Decided::By(clause.matches.iter().filter(|m| !m.is_empty()).map(canonical).collect())
        }
    }
}

/// The match with its networks in the form that addresses are compared in.
pub(crate) fn canonical(m: &Match) -> Match {
    let mut m = m.clone();
    for nets in [&mut m.source_ips, &mut m.not_source_ips, &mut m.destination_ips, &mut m.not_destination_ips]
    {
        nets.iter_mut().for_each(|net| *net = canonical_net(*net));
    }
    m
}

fn canonical_net(net: IpNet) -> IpNet {
    match (net, net.addr().to_canonical()) {
        (IpNet::V6(v6), IpAddr::V4(v4)) if v6.prefix_len() >= 96 => {
            IpNet::V4(Ipv4Net::new_assert(v4, v6.prefix_len() - 96)).trunc()
        }
        _ => net.trunc(),
    }
}

/// One field of a match with all its values.
pub(crate) struct Condition {
    /// It is the `not_` field.
    negated: bool,
    test: Test,
}

enum Test {
    Port(Box<[u16]>),
    Account(Box<[ServiceAccountMatch]>),
    Principal(Strings),
    Namespace(Strings),
    Source(Networks),
    Destination(Networks),
}

impl Condition {
    pub(crate) fn holds(&self, facts: &Facts<'_>) -> bool {
        self.test.holds(facts) != self.negated
    }
}

impl Test {
    fn holds(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Port(ports) => ports.binary_search(&facts.port).is_ok(),
            Self::Account(accounts) => facts.identity.is_some_and(|caller| {
                let caller = (caller.namespace(), caller.service_account());
                accounts.binary_search_by(|a| (&*a.namespace, &*a.service_account).cmp(&caller)).is_ok()
            }),
            Self::Principal(strings) => facts.principal.as_ref().is_some_and(|text| strings.hold(text)),
            Self::Namespace(strings) => facts.identity.is_some_and(|caller| strings.hold(caller.namespace())),
            Self::Source(networks) => networks.hold(facts.source),
            Self::Destination(networks) => networks.hold(facts.destination),
        }
    }
}

/// The conditions of a match, those that are cheapest to judge first.
pub(crate) fn conditions_of(m: &Match) -> Box<[Condition]> {
    fn declared<T>(values: &[T], test: impl FnOnce(&[T]) -> Test) -> Option<Test> {
        (!values.is_empty()).then(|| test(values))
    }
    let tests = [
        (false, declared(&m.destination_ports, |v| Test::Port(sorted(v)))),
        (true, declared(&m.not_destination_ports, |v| Test::Port(sorted(v)))),
        (false, declared(&m.service_accounts, |v| Test::Account(sorted(v)))),
        (true, declared(&m.not_service_accounts, |v| Test::Account(sorted(v)))),
        (false, declared(&m.principals, |v| Test::Principal(Strings::of(v)))),
        (true, declared(&m.not_principals, |v| Test::Principal(Strings::of(v)))),
        (false, declared(&m.namespaces, |v| Test::Namespace(Strings::of(v)))),
        (true, declared(&m.not_namespaces, |v| Test::Namespace(Strings::of(v)))),
        (false, declared(&m.source_ips, |v| Test::Source(Networks::of(v)))),
        (true, declared(&m.not_source_ips, |v| Test::Source(Networks::of(v)))),
        (false, declared(&m.destination_ips, |v| Test::Destination(Networks::of(v)))),
        (true, declared(&m.not_destination_ips, |v| Test::Destination(Networks::of(v)))),
    ];
    tests.into_iter().filter_map(|(negated, test)| Some(Condition { negated, test: test? })).collect()
}

fn sorted<T: Ord + Clone>(values: &[T]) -> Box<[T]> {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.dedup();
    values.into()
}

/// String matches of one field.
pub(crate) struct Strings {
    exact: Box<[Arc<str>]>,
    parts: Box<[Part]>,
    presence: bool,
}

enum Part {
    Prefix(Arc<str>),
    Suffix(Arc<str>),
}

impl Strings {
    pub(crate) fn of(values: &[StringMatch]) -> Self {
        let (mut exact, mut parts, mut presence) = (Vec::new(), Vec::new(), false);
        for value in values {
            match value {
                StringMatch::Exact(text) => exact.push(text.clone()),
                StringMatch::Prefix(text) => parts.push(Part::Prefix(text.clone())),
                StringMatch::Suffix(text) => parts.push(Part::Suffix(text.clone())),
                StringMatch::Presence => presence = true,
            }
        }
        Self { exact: sorted(&exact), parts: parts.into(), presence }
    }

    /// Whether a text that is there matches.
    pub(crate) fn hold(&self, text: &str) -> bool {
        self.presence
            || self.exact.binary_search_by(|held| (**held).cmp(text)).is_ok()
            || self.parts.iter().any(|part| match part {
                Part::Prefix(prefix) => text.starts_with(&**prefix),
                Part::Suffix(suffix) => text.ends_with(&**suffix),
            })
    }
}

/// Networks of one field as disjoint ranges in order.
struct Networks {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl Networks {
    fn of(nets: &[IpNet]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for net in nets {
            match net {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        Self { v4: merged(v4), v6: merged(v6) }
    }

    fn hold(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => within(&self.v4, address.to_bits()),
            IpAddr::V6(address) => within(&self.v6, address.to_bits()),
        }
    }
}

fn merged<T: Ord + Copy>(mut ranges: Vec<(T, T)>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(range) if first <= range.1 => range.1 = range.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged.into()
}

fn within<T: Ord + Copy>(ranges: &[(T, T)], value: T) -> bool {
    let after = ranges.partition_point(|range| range.0 <= value);
    after > 0 && value <= ranges[after - 1].1
}
