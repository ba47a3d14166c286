//! Facts, told by the addresses of what they are of: a worker finds counters by them in a cache of its own, without hashing
//! two dozen strings and without a lock.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use mesh::{Identity, Service, Workload};

use super::labels::{Direction, Facts, Security};

/// Entries of one thread's cache; beyond it the cache starts anew.
pub(super) const CACHED: usize = 1024;

/// It keeps alive what it is told by, so that an address is not used again.
pub(super) struct Same {
    direction: Direction,
    security: Security,
    source: Option<Arc<Workload>>,
    destination: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
    source_identity: Option<Identity>,
    destination_identity: Option<Identity>,
}

/// Everything by address, the identities by value.
type Parts<'a> =
    (Direction, Security, [Option<*const Workload>; 2], Option<*const Service>, [&'a Option<Identity>; 2]);

impl Same {
    /// Of facts without a derived source, which has no workload to tell it by.
    pub(super) fn of(facts: &Facts) -> Self {
        Self {
            direction: facts.direction,
            security: facts.security,
            source: facts.source.clone(),
            destination: facts.destination.clone(),
            service: facts.service.clone(),
            source_identity: facts.source_identity.clone(),
            destination_identity: facts.destination_identity.clone(),
        }
    }

    fn parts(&self) -> Parts<'_> {
        (
            self.direction,
            self.security,
            [&self.source, &self.destination].map(|workload| workload.as_ref().map(Arc::as_ptr)),
            self.service.as_ref().map(Arc::as_ptr),
            [&self.source_identity, &self.destination_identity],
        )
    }
}

impl PartialEq for Same {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for Same {}

impl Hash for Same {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}
