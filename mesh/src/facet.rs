//! What a rule can be found by: the facts of an attempt that must hold for the rule to match.
//!
//! A rule hangs in the index under one *facet* of the caller or the address (its principal, the first 12
//! bytes of it, its /24, …) and possibly the destination port. Here is which facets a rule offers and
//! which values of them an attempt has; choosing among them is the index's.

use std::{
    hash::{BuildHasher, Hash, Hasher, RandomState},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::{Match, StringMatch, compiled::Facts};

/// A kind of key, the most telling kinds first. Lengths are in bytes of text and bits of networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Facet {
    Principal,
    Account,
    Anonymous,
    SourceV4(u8),
    SourceV6(u8),
    PrincipalPrefix(usize),
    PrincipalSuffix(usize),
    Namespace,
    NamespacePrefix(usize),
    NamespaceSuffix(usize),
    DestinationV4(u8),
    DestinationV6(u8),
    Identified,
    Any,
}

/// A facet, and whether the destination port is part of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Shape {
    pub(crate) facet: Facet,
    pub(crate) with_port: bool,
}

/// A facet with the value a rule wants.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Want {
    pub(crate) facet: Facet,
    value: Vec<u8>,
}

impl Want {
    pub(crate) const ANY: Self = Self { facet: Facet::Any, value: Vec::new() };

    fn of(facet: Facet, value: &[u8]) -> Self {
        Self { facet, value: value.to_vec() }
    }

    /// The key for the want alone, or with one port.
    pub(crate) fn key(&self, port: Option<u16>, hasher: &RandomState) -> u64 {
        hash(hasher, self.facet, &[&self.value], port)
    }
}

/// The key under which a rule that matches these facts hangs, if it hangs under this shape; `None` when
/// no rule of this shape can match.
pub(crate) fn key_of(facts: &Facts<'_>, shape: Shape, hasher: &RandomState) -> Option<u64> {
    let facet = shape.facet;
    let port = shape.with_port.then_some(facts.port);
    let text = |text: Option<&[u8]>| text.map(|text| hash(hasher, facet, &[text], port));
    let net = |address: IpAddr, length: u8| {
        let masked = IpNet::new(address, length).ok()?.trunc();
        Some(address_hash(hasher, facet, masked.addr(), port))
    };
    let principal = facts.principal.as_deref().map(str::as_bytes);
    let namespace = facts.identity.map(|caller| caller.namespace().as_bytes());
    match facet {
        Facet::Any => text(Some(&[])),
        Facet::Anonymous => facts.identity.is_none().then(|| hash(hasher, facet, &[&[]], port)),
        Facet::Identified => facts.identity.and_then(|_| text(Some(&[]))),
        Facet::Principal => text(principal),
        Facet::PrincipalPrefix(length) => text(principal.and_then(|t| t.get(..length))),
        Facet::PrincipalSuffix(length) => text(principal.and_then(|t| t.get(t.len().checked_sub(length)?..))),
        Facet::Namespace => text(namespace),
        Facet::NamespacePrefix(length) => text(namespace.and_then(|t| t.get(..length))),
        Facet::NamespaceSuffix(length) => text(namespace.and_then(|t| t.get(t.len().checked_sub(length)?..))),
        Facet::Account => facts.identity.map(|caller| {
            let parts = [caller.namespace().as_bytes(), b"/", caller.service_account().as_bytes()];
            hash(hasher, facet, &parts, port)
        }),
        Facet::SourceV4(length) if facts.source.is_ipv4() => net(facts.source, length),
        Facet::SourceV6(length) if facts.source.is_ipv6() => net(facts.source, length),
        Facet::DestinationV4(length) if facts.destination.is_ipv4() => net(facts.destination, length),
        Facet::DestinationV6(length) if facts.destination.is_ipv6() => net(facts.destination, length),
        Facet::SourceV4(_) | Facet::SourceV6(_) | Facet::DestinationV4(_) | Facet::DestinationV6(_) => None,
    }
}

/// The ways to find a match, each a list of wants of which one must be met for the match to match.
pub(crate) fn ways(m: &Match) -> Vec<Vec<Want>> {
    let mut ways = vec![
        m.service_accounts
            .iter()
            .map(|a| {
                Want::of(
                    Facet::Account,
                    &[a.namespace.as_bytes(), b"/", a.service_account.as_bytes()].concat(),
                )
            })
            .collect(),
        m.source_ips.iter().map(|net| of_net(net, Facet::SourceV4, Facet::SourceV6)).collect(),
        m.destination_ips.iter().map(|net| of_net(net, Facet::DestinationV4, Facet::DestinationV6)).collect(),
        of_strings(&m.principals, Facet::Principal, Facet::PrincipalPrefix, Facet::PrincipalSuffix),
        of_strings(&m.namespaces, Facet::Namespace, Facet::NamespacePrefix, Facet::NamespaceSuffix),
    ];
    if m.not_principals.contains(&StringMatch::Presence) || m.not_namespaces.contains(&StringMatch::Presence)
    {
        ways.push(vec![Want::of(Facet::Anonymous, &[])]);
    }
    ways.retain(|way| !way.is_empty());
    for way in &mut ways {
        way.sort_unstable();
        way.dedup();
    }
    ways
}

fn of_net(net: &IpNet, v4: impl Fn(u8) -> Facet, v6: impl Fn(u8) -> Facet) -> Want {
    match net {
        IpNet::V4(net) => Want::of(v4(net.prefix_len()), &net.network().octets()),
        IpNet::V6(net) => Want::of(v6(net.prefix_len()), &net.network().octets()),
    }
}

fn of_strings(
    values: &[StringMatch],
    exact: Facet,
    prefix: impl Fn(usize) -> Facet,
    suffix: impl Fn(usize) -> Facet,
) -> Vec<Want> {
    let want = |value: &StringMatch| match value {
        StringMatch::Exact(text) => Want::of(exact, text.as_bytes()),
        StringMatch::Prefix(text) => Want::of(prefix(text.len()), text.as_bytes()),
        StringMatch::Suffix(text) => Want::of(suffix(text.len()), text.as_bytes()),
        StringMatch::Presence => Want::of(Facet::Identified, &[]),
    };
    values.iter().map(want).collect()
}

fn address_hash(hasher: &RandomState, facet: Facet, address: IpAddr, port: Option<u16>) -> u64 {
    match address {
        IpAddr::V4(address) => hash(hasher, facet, &[&address.octets()], port),
        IpAddr::V6(address) => hash(hasher, facet, &[&address.octets()], port),
    }
}

/// Keys are hashes: two values of one hash share a bucket, whose rules are all judged in full anyway.
fn hash(hasher: &RandomState, facet: Facet, parts: &[&[u8]], port: Option<u16>) -> u64 {
    let mut state = hasher.build_hasher();
    facet.hash(&mut state);
    port.hash(&mut state);
    for part in parts {
        state.write(part);
    }
    state.finish()
}
