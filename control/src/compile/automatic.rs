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

/// Places there are: the hosts of 240.240.0.0/16, without the first and the last address.
const PLACES: u16 = u16::MAX - 1;

/// The addresses of each host; of those for which there is no place left, none.
pub(super) type Given = BTreeMap<ServiceKey, [IpAddr; 2]>;

/// Gives each host one address of both families. `taken` are those that somebody has already.
pub(super) fn give(hosts: BTreeSet<ServiceKey>, taken: &BTreeSet<IpAddr>) -> Given {
    let mut given = Given::new();
    let mut full = BTreeSet::new();
    for host in hosts {
        let first = u16::try_from(hash(&host) % u64::from(PLACES)).unwrap_or(0);
        let free =
            (0..PLACES).map(|step| (u32::from(first) + u32::from(step)) % u32::from(PLACES)).find(|place| {
                !full.contains(place) && addresses(*place).iter().all(|address| !taken.contains(address))
            });
        let Some(place) = free else { continue };
        full.insert(place);
        given.insert(host, addresses(place));
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

    fn many(count: usize) -> BTreeSet<ServiceKey> {
        (0..count).map(|n| host(&format!("h{n}.example"))).collect()
    }

    #[test]
    fn addresses_are_of_the_ranges_and_nobodys_twice() {
        let given = give(many(2_000), &BTreeSet::new());
        let all: BTreeSet<IpAddr> = given.values().flatten().copied().collect();
        assert_eq!(all.len(), 4_000);
        assert!(all.iter().all(mesh::is_automatic), "{all:?}");
        assert!(!all.contains(&"240.240.0.0".parse().unwrap()));
        assert_eq!(given[&host("h7.example")], give(many(2_000), &BTreeSet::new())[&host("h7.example")]);
    }

    /// The same in every version: an upgrade must not move what apps have in their caches.
    #[test]
    fn a_known_name_has_its_known_address() {
        let given = give(BTreeSet::from([host("api.example.com")]), &BTreeSet::new());
        let known = ["240.240.119.233", "2001:2::f0f0:77e9"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(given[&host("api.example.com")], known);
    }

    #[test]
    fn who_does_not_collide_does_not_move() {
        let (before, after) = (give(many(500), &BTreeSet::new()), give(many(501), &BTreeSet::new()));
        let moved = before.iter().filter(|(host, had)| after[*host] != **had).count();
        assert!(moved <= 1, "{moved} moved");
    }

    #[test]
    fn what_somebody_has_is_not_given_again() {
        let one = host("api.example.com");
        let [v4, _] = give(BTreeSet::from([one.clone()]), &BTreeSet::new())[&one];
        let [other, _] = give(BTreeSet::from([one.clone()]), &BTreeSet::from([v4]))[&one];
        assert_ne!(v4, other);
    }

    #[test]
    fn when_all_are_given_the_rest_have_none() {
        let given = give(many(PLACES as usize + 3), &BTreeSet::new());
        assert_eq!(given.len(), PLACES as usize);
    }
}
