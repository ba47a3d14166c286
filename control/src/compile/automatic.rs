//! Addresses for hosts of ServiceEntries that have none, so that a connection to such a host can be recognised.
//!
//! They follow from the set of entries alone: replicas of control, and a control after a restart, give the same
//! ones without a word between them. A host's place is the hash of its name; where two have the same place, the
//! one whose name comes first keeps it and the other takes the next free one. So a host moves only when one that
//! collides with it comes or goes, and not when any other does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use mesh::ServiceKey;

use super::external::wants_address;
use crate::manifest::ServiceEntry;

/// Places there are: the hosts of 240.240.0.0/16, without the first and the last address.
const PLACES: u16 = u16::MAX - 1;

/// The addresses of each host; of those for which there is no place left, none.
pub(crate) type Given = BTreeMap<ServiceKey, [IpAddr; 2]>;

/// What entries ask for, of one namespace or of several.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wants {
    hosts: BTreeSet<ServiceKey>,
    /// Addresses that somebody has already.
    taken: BTreeSet<IpAddr>,
}

impl Wants {
    /// What an entry of this namespace asks for.
    pub(crate) fn add(&mut self, namespace: &Arc<str>, entry: &ServiceEntry) {
        self.taken.extend(entry.addresses());
        for host in &entry.spec.hosts {
            let given: Vec<_> = entry.given(host).collect();
            if wants_address(entry, host) && given.is_empty() {
                self.hosts
                    .insert(ServiceKey { namespace: namespace.clone(), hostname: host.as_str().into() });
            }
            self.taken.extend(given);
        }
    }

    /// What others ask for, too.
    pub(crate) fn extend(&mut self, other: &Self) {
        self.hosts.extend(other.hosts.iter().cloned());
        self.taken.extend(&other.taken);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.taken.is_empty()
    }
}

/// Gives each host one address of both families.
pub(crate) fn give(Wants { hosts, taken }: &Wants) -> Given {
    let mut given = Given::new();
    let mut full = BTreeSet::new();
    for host in hosts {
        let first = u16::try_from(hash(host) % u64::from(PLACES)).unwrap_or(0);
        let free =
            (0..PLACES).map(|step| (u32::from(first) + u32::from(step)) % u32::from(PLACES)).find(|place| {
                !full.contains(place) && addresses(*place).iter().all(|address| !taken.contains(address))
            });
        let Some(place) = free else { continue };
        full.insert(place);
        given.insert(host.clone(), addresses(place));
    }
    given
}

fn addresses(place: u32) -> [IpAddr; 2] {
    let [_, _, high, low] = (place + 1).to_be_bytes();
    let v6 = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0xf0f0, u16::from_be_bytes([high, low]));
    [IpAddr::V4(Ipv4Addr::new(240, 240, high, low)), IpAddr::V6(v6)]
}

/// FNV-1a: it must be the same in every version of control, which the standard library's does not promise.
fn hash(host: &ServiceKey) -> u64 {
    let parts: [&Arc<str>; 2] = [&host.namespace, &host.hostname];
    let bytes = parts.into_iter().flat_map(|part| part.bytes().chain([b'/']));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> ServiceKey {
        ServiceKey { namespace: "shop".into(), hostname: name.into() }
    }

    fn all_of(hosts: BTreeSet<ServiceKey>) -> Given {
        give(&Wants { hosts, taken: BTreeSet::new() })
    }

    fn many(count: usize) -> BTreeSet<ServiceKey> {
        (0..count).map(|n| host(&format!("h{n}.example"))).collect()
    }

    #[test]
    fn addresses_are_of_the_ranges_and_nobodys_twice() {
        let given = all_of(many(2_000));
        let all: BTreeSet<IpAddr> = given.values().flatten().copied().collect();
        assert_eq!(all.len(), 4_000);
        assert!(all.iter().all(mesh::is_automatic), "{all:?}");
        assert!(!all.contains(&"240.240.0.0".parse().unwrap()));
        assert_eq!(given[&host("h7.example")], all_of(many(2_000))[&host("h7.example")]);
    }

    /// The same in every version: an upgrade must not move what apps have in their caches.
    #[test]
    fn a_known_name_has_its_known_address() {
        let given = all_of(BTreeSet::from([host("api.example.com")]));
        let known = ["240.240.119.233", "2001:2::f0f0:77e9"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(given[&host("api.example.com")], known);
    }

    #[test]
    fn who_does_not_collide_does_not_move() {
        let (before, after) = (all_of(many(500)), all_of(many(501)));
        let moved = before.iter().filter(|(host, had)| after[*host] != **had).count();
        assert!(moved <= 1, "{moved} moved");
    }

    #[test]
    fn what_somebody_has_is_not_given_again() {
        let one = host("api.example.com");
        let [v4, _] = all_of(BTreeSet::from([one.clone()]))[&one];
        let [other, _] =
            give(&Wants { hosts: BTreeSet::from([one.clone()]), taken: BTreeSet::from([v4]) })[&one];
        assert_ne!(v4, other);
    }

    #[test]
    fn when_all_are_given_the_rest_have_none() {
        let given = all_of(many(PLACES as usize + 3));
        assert_eq!(given.len(), PLACES as usize);
    }
}
