//! The newest assertion of each caller: a connection may last longer than the assertion that it began with, and what
//! it needs of backends later is opened with one that holds then.
//!
//! A connection holds its own: whatever others bring, it does not lose it. What no connection holds is forgotten.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use identity::assertion::{Claims, LIFE};

/// Below so many callers nothing is looked through for what is to be forgotten.
const FEW: usize = 1024;

/// What a caller's ztunnel has said last, of one caller and what it calls.
pub(crate) struct Asserted(Mutex<Held>);

/// An assertion and its end.
struct Held {
    header: Arc<str>,
    end: SystemTime,
}

/// By what is claimed: who calls, from where, and what.
#[derive(Default)]
pub(crate) struct Vault(Mutex<Callers>);

#[derive(Default)]
struct Callers {
    said: HashMap<Claims, Arc<Asserted>>,
    /// With so many it is looked through again.
    full: usize,
}

impl Asserted {
    /// The newest one; whether it still holds is the destination's to judge, by its own clock.
    pub(crate) fn header(&self) -> Arc<str> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).header.clone()
    }

    /// Takes it, unless a newer one is there.
    fn put(&self, header: &str, end: SystemTime) {
        // One from the future would otherwise outweigh all that come after it.
        let end = end.min(SystemTime::now() + LIFE);
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.end <= end {
            *held = Held { header: header.into(), end };
        }
    }
}

/// Whoever has it can bring calls in the caller's name as this waypoint: it is shown to nobody.
impl fmt::Debug for Asserted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asserted")
    }
}

impl Vault {
    /// Keeps an assertion for a connection, as long as what is returned lives.
    pub(crate) fn put(&self, claims: &Claims, header: &str, end: SystemTime) -> Arc<Asserted> {
        let mut callers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = callers.said.get(claims) {
            known.put(header, end);
            return known.clone();
        }
        if callers.said.len() >= callers.full.max(FEW) {
            callers.said.retain(|_, said| Arc::strong_count(said) > 1);
            callers.full = 2 * callers.said.len();
        }
        let said = Arc::new(Asserted(Mutex::new(Held { header: "".into(), end: SystemTime::UNIX_EPOCH })));
        said.put(header, end);
        callers.said.insert(claims.clone(), said.clone());
        said
    }

    /// Takes a newer one for the connections that there are; for others nothing is kept.
    pub(crate) fn renew(&self, claims: &Claims, header: &str, end: SystemTime) {
        let callers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = callers.said.get(claims) {
            known.put(header, end);
        }
    }

    /// How many callers are remembered.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).said.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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

    fn within(seconds: u64) -> SystemTime {
        SystemTime::now() + Duration::from_secs(seconds)
    }

    #[test]
    fn the_newest_is_kept_and_callers_do_not_mix() {
        let vault = Vault::default();
        let a = vault.put(&said("a"), "a-1", within(20));
        let again = vault.put(&said("a"), "a-2", within(40));
        vault.put(&said("a"), "a-old", within(30));
        let b = vault.put(&said("b"), "b-1", within(20));
        assert_eq!((&*a.header(), &*again.header(), &*b.header()), ("a-2", "a-2", "b-1"));
        vault.renew(&said("b"), "b-2", within(50));
        assert_eq!((&*a.header(), &*b.header()), ("a-2", "b-2"));
    }

    #[test]
    fn one_from_the_future_does_not_outweigh_the_next() {
        let vault = Vault::default();
        let said_by_a = vault.put(&said("a"), "odd", within(1_000_000));
        std::thread::sleep(Duration::from_millis(2));
        vault.renew(&said("a"), "right", within(60));
        assert_eq!(&*said_by_a.header(), "right");
    }

    #[test]
    fn what_is_brought_for_no_connection_is_not_kept() {
        let vault = Vault::default();
        vault.renew(&said("a"), "x", within(60));
        assert_eq!(vault.len(), 0);
    }

    #[test]
    fn it_does_not_grow_without_end_and_a_connection_loses_nothing() {
        let vault = Vault::default();
        let mine = vault.put(&said("mine"), "mine", within(60));
        for number in 0..20 * FEW {
            vault.put(&said(&number.to_string()), "x", within(60));
        }
        assert!(vault.len() <= 2 * FEW, "{}", vault.len());
        assert_eq!(&*mine.header(), "mine");
        vault.renew(&said("mine"), "newer", within(60));
        assert_eq!(&*mine.header(), "newer");
    }
}
