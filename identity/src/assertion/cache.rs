//! What was signed and verified lately, so that neither costs anything per connection.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use mesh::Identity;

use super::{BadAssertion, CannotAssert, Claims, FRESH, sign::sign, verify::verify};
use crate::{Certified, Store};

/// Assertions kept on either side; beyond it those that are over go, and then all.
const KEPT: usize = 2048;

/// A caller who is proved, and until when.
#[derive(Debug, Clone)]
pub struct Verified {
    pub claims: Arc<Claims>,
    pub end: SystemTime,
}

/// Signs and verifies for all workers of a program.
#[derive(Default)]
pub struct Assertions {
    signed: Cache<Claims, Signed>,
    /// By the header as it came: the same text proves the same.
    verified: Cache<Box<str>, Judged>,
}

#[derive(Clone)]
struct Signed {
    header: Arc<str>,
    end: SystemTime,
    /// The certificate that it was signed by.
    serial: Arc<str>,
}

#[derive(Clone)]
struct Judged {
    verified: Verified,
    /// The roots that it was judged by.
    roots: u64,
}

impl Assertions {
    /// The header that says so, signed with the caller's key. It has at least two thirds of its life left.
    ///
    /// # Errors
    /// If the certificate's key is none that assertions are signed by, or its chain too large.
    pub fn assert(
        &self,
        store: &Store,
        certified: &Certified,
        claims: &Claims,
    ) -> Result<Arc<str>, CannotAssert> {
        let now = store.now();
        if let Some(held) = self.signed.get(claims)
            && now < held.end
            && *held.serial == *certified.serial
        {
            return Ok(held.header);
        }
        let header: Arc<str> = sign(certified, claims, now)?.into();
        let signed =
            Signed { header: header.clone(), end: now + FRESH, serial: certified.serial.as_str().into() };
        self.signed.put(claims.clone(), signed, |held| now < held.end);
        Ok(header)
    }

    /// Who calls, by the word of a header that `peer` brought to whoever holds `certified`.
    ///
    /// # Errors
    /// If it is not to be believed, with the reason.
    pub fn verify(
        &self,
        store: &Store,
        certified: &Certified,
        peer: &Identity,
        header: &str,
    ) -> Result<Verified, BadAssertion> {
        let now = store.now();
        let roots = certified.roots_generation;
        let held = self.verified.get(header).filter(|held| now < held.verified.end && held.roots == roots);
        let verified = match held {
            Some(held) => held.verified,
            None => {
                let (claims, end) = verify(header, &*store.callers(certified), now)?;
                let verified = Verified { claims: Arc::new(claims), end };
                let judged = Judged { verified: verified.clone(), roots };
                self.verified.put(header.into(), judged, |held| now < held.verified.end);
                verified
            }
        };
        if verified.claims.waypoint == *peer {
            return Ok(verified);
        }
        Err(BadAssertion::WrongWaypoint {
            caller: verified.claims.caller.clone(),
            wanted: verified.claims.waypoint.clone().into(),
            found: peer.clone().into(),
        })
    }
}

/// A bounded map, looked at by all threads.
struct Cache<K, V>(Mutex<HashMap<K, V>>);

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn put(&self, key: K, value: V, is_alive: impl Fn(&V) -> bool) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() >= KEPT {
            held.retain(|_, value| is_alive(value));
        }
        if held.len() >= KEPT {
            held.clear();
        }
        held.insert(key, value);
    }
}
