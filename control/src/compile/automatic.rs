//! Addresses for hosts of ServiceEntries that have none, so that a connection to such a host can be recognised.
//!
//! They follow from the set of entries alone: replicas of control, and a control after a restart, give the same
//! ones without a word between them. A host's place is the hash of its name; where two have the same place, the
//! older one keeps it and the other takes the next free one (of the same age, as all are in a folder, the one whose
//! name comes first). So nobody's new entry moves a host of another: a host moves only when an older one goes whose
//! place it had been pushed from.

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
    /// With the time at which the oldest entry that names it was made, as Kubernetes writes it; the empty text where
    /// it is not known.
    hosts: BTreeMap<ServiceKey, Box<str>>,
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
                let host = ServiceKey { namespace: namespace.clone(), hostname: host.as_str().into() };
                self.host(host, entry.metadata.creation_timestamp.as_deref().unwrap_or_default());
            }
            self.taken.extend(given);
        }
    }

    /// What others ask for, too.
    pub(crate) fn extend(&mut self, other: &Self) {
        other.hosts.iter().for_each(|(host, made)| self.host(host.clone(), made));
        self.taken.extend(&other.taken);
    }

    fn host(&mut self, host: ServiceKey, made: &str) {
        let held = self.hosts.entry(host).or_insert_with(|| made.into());
        if made < &**held {
            *held = made.into();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.taken.is_empty()
    }
}

/// Gives each host one address of both families.
pub(crate) fn give(Wants { hosts, taken }: &Wants) -> Given {
    let mut free = Free::new(taken);
    let mut by_age: Vec<(&str, &ServiceKey)> = hosts.iter().map(|(host, made)| (&**made, host)).collect();
    by_age.sort_unstable();
    let mut given = Given::new();
    for (_, host) in by_age {
        let first = u16::try_from(hash(host) % u64::from(PLACES)).unwrap_or(0);
        // There are none for the younger ones either.
        let Some(place) = free.take(first) else { break };
        given.insert(host.clone(), addresses(place.into()));
    }
    given
}

/// The places that are free. Each knows where the search for the next free one goes on, so that a namespace that asks
/// for more than there are costs no more than others.
struct Free {
    /// Of a free place itself.
    next: Vec<u16>,
    left: u16,
}

impl Free {
    fn new(taken: &BTreeSet<IpAddr>) -> Self {
        let mut free = Self { next: (0..PLACES).collect(), left: PLACES };
        for place in 0..PLACES {
            if addresses(place.into()).iter().any(|address| taken.contains(address)) {
                free.remove(place);
            }
        }
        free
    }

    fn remove(&mut self, place: u16) {
        self.next[usize::from(place)] = (place + 1) % PLACES;
        self.left -= 1;
    }

    /// Takes the first free place from here on, round the end.
    fn take(&mut self, from: u16) -> Option<u16> {
        if self.left == 0 {
            return None;
        }
        let mut place = from;
        while self.next[usize::from(place)] != place {
            let after = self.next[usize::from(place)];
            // The way gets half as long each time that it is gone.
            self.next[usize::from(place)] = self.next[usize::from(after)];
            place = after;
        }
        self.remove(place);
        Some(place)
    }
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
        give(&Wants {
            hosts: hosts.into_iter().map(|host| (host, "".into())).collect(),
            taken: BTreeSet::new(),
        })
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

    /// By a name that comes first and collides, one could else take over the address that another's callers know.
    #[test]
    fn a_new_host_never_moves_an_older_one() {
        let victim = ServiceKey { namespace: "shop".into(), hostname: "pay.example.com".into() };
        let place = |host: &ServiceKey| hash(host) % u64::from(PLACES);
        let thief = (0..)
            .map(|number| ServiceKey { namespace: "aaa".into(), hostname: format!("h{number}").into() })
            .find(|thief| place(thief) == place(&victim))
            .unwrap();
        let alone = all_of(BTreeSet::from([victim.clone()]));
        let hosts = BTreeMap::from([
            (victim.clone(), "2026-01-01T00:00:00Z".into()),
            (thief.clone(), "2026-01-02T00:00:00Z".into()),
        ]);
        let both = give(&Wants { hosts, taken: BTreeSet::new() });
        assert_eq!(both[&victim], alone[&victim]);
        assert_ne!(both[&thief], both[&victim]);
    }

    #[test]
    fn what_somebody_has_is_not_given_again() {
        let one = host("api.example.com");
        let [v4, _] = all_of(BTreeSet::from([one.clone()]))[&one];
        let [other, _] =
            give(&Wants { hosts: BTreeMap::from([(one.clone(), "".into())]), taken: BTreeSet::from([v4]) })
                [&one];
        assert_ne!(v4, other);
    }

    #[test]
    fn when_all_are_given_the_rest_have_none() {
        let given = all_of(many(PLACES as usize + 3));
        assert_eq!(given.len(), PLACES as usize);
    }
}
