//! The newest assertion of each caller: a connection may last longer than the assertion that it began with, and what
//! it needs of backends later is opened with one that holds then.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use identity::assertion::Claims;

/// Callers remembered; beyond it those whose assertions are over go, and then all.
const KEPT: usize = 16 << 10;

/// An assertion and its end.
#[derive(Debug, Clone)]
struct Held {
    header: Arc<str>,
    end: SystemTime,
}

/// By what is claimed: who calls, from where, and what.
#[derive(Default)]
pub(crate) struct Vault {
    held: Mutex<HashMap<Claims, Held>>,
}

impl Vault {
    /// Keeps an assertion, unless a newer one is there.
    pub(crate) fn put(&self, claims: &Claims, header: &Arc<str>, end: SystemTime) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() >= KEPT && !held.contains_key(claims) {
            let now = SystemTime::now();
            held.retain(|_, held| now < held.end);
            if held.len() >= KEPT {
                held.clear();
            }
        }
        match held.get_mut(claims) {
            Some(known) if known.end >= end => {}
            Some(known) => *known = Held { header: header.clone(), end },
            None => drop(held.insert(claims.clone(), Held { header: header.clone(), end })),
        }
    }

    /// The newest assertion that says so; whether it still holds is the destination's to judge, by its own clock.
    pub(crate) fn get(&self, claims: &Claims) -> Option<Arc<str>> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(claims).map(|held| held.header.clone())
    }

    /// How many callers are remembered.
    pub(crate) fn len(&self) -> usize {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use identity::assertion::LIFE;
    use mesh::{Behind, Identity};

    use super::*;

    fn said(caller: &str) -> Claims {
        Claims {
            caller: Identity::new("td", "ns", caller),
            address: [10, 0, 0, 1].into(),
            waypoint: Identity::new("td", "ns", "wp"),
            behind: Behind::Workload("w".into()),
        }
    }

    #[test]
    fn the_newest_is_kept_and_callers_do_not_mix() {
        let (vault, now) = (Vault::default(), SystemTime::now());
        let put = |caller: &str, header: &str, seconds| {
            vault.put(&said(caller), &header.into(), now + Duration::from_secs(seconds));
        };
        put("a", "a-1", 60);
        put("a", "a-2", 90);
        put("a", "a-old", 70);
        put("b", "b-1", 60);
        assert_eq!(vault.get(&said("a")).as_deref(), Some("a-2"));
        assert_eq!(vault.get(&said("b")).as_deref(), Some("b-1"));
        assert_eq!(vault.get(&said("c")), None);
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let (vault, now) = (Vault::default(), SystemTime::now());
        for number in 0..2 * KEPT {
            vault.put(&said(&number.to_string()), &"x".into(), now + LIFE);
        }
        assert!(vault.len() <= KEPT, "{}", vault.len());
    }
}
