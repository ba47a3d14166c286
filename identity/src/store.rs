//! The certificates of the identities that run on this node: held, shared by all workers, handed over.
//!
//! [`renew`](crate::renew) keeps each one fresh; this is where the rest of the program asks for it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use mesh::Identity;
use rustls::{ClientConfig, ServerConfig};
use tokio::{runtime::Handle, task::AbortHandle};

use crate::{
    BadChain, CertificateError, Certified, Clock, HandoverError, Issuer, SystemClock,
    certificate::certificates,
    handover,
    renew::{Slot, Trust, renew},
    verify::ClientVerifier,
};

/// How a [`Store`] behaves.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Trust domains whose callers are accepted.
    pub trust_domains: Vec<String>,
    /// How long [`Store::certified`] waits for a first certificate.
    pub patience: Duration,
    /// How long one request to the authority may take.
    pub request_timeout: Duration,
    /// The first and the last pause between failed attempts.
    pub back_off: (Duration, Duration),
    pub clock: Arc<dyn Clock>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            trust_domains: vec!["cluster.local".to_owned()],
            patience: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            back_off: (Duration::from_millis(500), Duration::from_secs(150)),
            clock: Arc::new(SystemClock),
        }
    }
}

/// What the admin endpoint shows of one identity.
#[derive(Debug, Clone)]
pub struct CertificateSummary {
    pub identity: Identity,
    /// How many pods hold it.
    pub holders: usize,
    /// Hexadecimal; `None` before the first certificate.
    pub serial: Option<String>,
    pub not_before: Option<SystemTime>,
    pub not_after: Option<SystemTime>,
    /// When the next renewal (or the next attempt) is due.
    pub next_attempt: Option<SystemTime>,
    pub last_error: Option<String>,
}

/// All certificates of this node. Shared by every worker; its renewals run on the runtime in which
/// it was made.
pub struct Store {
    issuer: Arc<dyn Issuer>,
    options: StoreOptions,
    trust_domains: Arc<[String]>,
    trust: Arc<Mutex<Trust>>,
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: HashMap<Identity, Held>,
    /// Handed over and not held yet.
    inherited: HashMap<Identity, Arc<Certified>>,
}

struct Held {
    holders: usize,
    slot: Arc<Slot>,
    renewal: AbortHandle,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Makes an empty store. Must be called inside a tokio runtime, on which renewals will run.
    pub fn new(issuer: Arc<dyn Issuer>, options: StoreOptions) -> Arc<Self> {
        Arc::new(Self {
            issuer,
            trust_domains: options.trust_domains.clone().into(),
            trust: Arc::default(),
            options,
            runtime: Handle::current(),
            state: Mutex::default(),
        })
    }

    /// Starts to fetch and renew certificates of `identity`; counted, one [`Store::release`] each.
    pub fn hold(self: &Arc<Self>, identity: &Identity) {
        let mut state = lock(&self.state);
        if let Some(held) = state.held.get_mut(identity) {
            held.holders += 1;
            return;
        }
        let slot = Arc::new(Slot::new(identity.clone()));
        if let Some(certified) = state.inherited.remove(identity) {
            slot.publish(certified, &lock(&self.trust));
        }
        let task = renew(slot.clone(), self.issuer.clone(), self.options.clone(), self.trust.clone());
        let renewal = self.runtime.spawn(task).abort_handle();
        state.held.insert(identity.clone(), Held { holders: 1, slot, renewal });
    }

    /// Takes one [`Store::hold`] back; with the last one the key is dropped.
    pub fn release(&self, identity: &Identity) {
        let mut state = lock(&self.state);
        if let Some(held) = state.held.get_mut(identity) {
            held.holders -= 1;
            if held.holders == 0 {
                state.held.remove(identity);
            }
        }
    }

    /// Whether somebody holds it.
    pub fn is_held(&self, identity: &Identity) -> bool {
        lock(&self.state).held.contains_key(identity)
    }

    /// A valid certificate, waiting for the first one no longer than [`StoreOptions::patience`].
    pub async fn certified(&self, identity: &Identity) -> Result<Arc<Certified>, CertificateError> {
        let slot = self.slot(identity).ok_or_else(|| CertificateError::NotHeld(identity.clone()))?;
        let clock = &self.options.clock;
        if let Some(certified) = slot.current(clock.now()) {
            return Ok(certified);
        }
        let waiting = slot.wait(clock.as_ref());
        match tokio::time::timeout(self.options.patience, waiting).await {
            Ok(Some(certified)) => Ok(certified),
            Ok(None) => Err(CertificateError::NotHeld(identity.clone())),
            Err(_elapsed) => Err(CertificateError::NotYet {
                identity: identity.clone(),
                waited: self.options.patience,
                reason: slot.last_error().unwrap_or_else(|| "the authority has not answered".to_owned()),
            }),
        }
    }

    /// A valid certificate if there is one now.
    pub fn current(&self, identity: &Identity) -> Option<Arc<Certified>> {
        self.slot(identity)?.current(self.options.clock.now())
    }

    fn slot(&self, identity: &Identity) -> Option<Arc<Slot>> {
        lock(&self.state).held.get(identity).map(|held| held.slot.clone())
    }

    /// The client side of a tunnel: shows `certified`, accepts exactly one of `expected`. Cached.
    pub fn client_config(&self, certified: &Arc<Certified>, expected: &Arc<[Identity]>) -> Arc<ClientConfig> {
        certified.client_config(expected, &self.options.clock)
    }

    /// Who judges the certificates of callers, as the server side of a tunnel does.
    pub(crate) fn callers(&self, certified: &Certified) -> Arc<ClientVerifier> {
        certified.callers(&self.trust_domains)
    }

    /// The server side of a tunnel: shows `certified`, demands a certificate of an accepted trust
    /// domain. Cached.
    pub fn server_config(&self, certified: &Arc<Certified>) -> Arc<ServerConfig> {
        certified.server_config(&self.trust_domains, &self.options.clock)
    }

    /// Replaces the roots (PEM) that are trusted besides the one in each issued chain. New handshakes
    /// see them at once. A text that does not parse changes nothing.
    pub fn set_roots(&self, extra_pem: &str) -> Result<(), BadChain> {
        let extra = certificates(extra_pem)?;
        let mut usable = rustls::RootCertStore::empty();
        for root in &extra {
            usable.add(root.clone()).map_err(|error| BadChain::NotX509(error.to_string()))?;
        }
        let state = lock(&self.state);
        let mut trust = lock(&self.trust);
        if trust.extra != extra {
            trust.extra = extra;
            trust.generation += 1;
            state.held.values().for_each(|held| held.slot.rebase(&trust));
        }
        Ok(())
    }

    /// Counts changes of roots: a tunnel made under an older number was judged by older roots.
    pub fn roots_generation(&self) -> u64 {
        lock(&self.trust).generation
    }

    /// The time of day that validity is judged by.
    pub fn now(&self) -> SystemTime {
        self.options.clock.now()
    }

    /// Everything the next ztunnel needs to serve without asking the authority first. Holds keys.
    pub fn export(&self) -> Vec<u8> {
        let now = self.options.clock.now();
        let state = lock(&self.state);
        let held: Vec<_> = state.held.values().filter_map(|held| held.slot.current(now)).collect();
        handover::write(held.iter().map(AsRef::as_ref))
    }

    /// Takes what [`Store::export`] gave; returns how many certificates are still of use. Those whose
    /// identity is held already serve at once, the others from their [`Store::hold`] on.
    pub fn import(&self, bytes: &[u8]) -> Result<usize, HandoverError> {
        let all = handover::read(bytes)?;
        let now = self.options.clock.now();
        let mut state = lock(&self.state);
        let trust = lock(&self.trust);
        let mut taken = 0;
        for inherited in all {
            let identity = inherited.identity;
            let made = Certified::new(
                identity.clone(),
                inherited.key,
                inherited.chain,
                &trust.extra,
                trust.generation,
                now,
            );
            let certified = match made {
                Ok(certified) if certified.is_valid_at(now) => Arc::new(certified),
                Ok(_expired) => continue,
                Err(error) => {
                    tracing::warn!(%identity, %error, "a handed-over certificate is of no use");
                    continue;
                }
            };
            taken += 1;
            match state.held.get(&identity) {
                Some(held) if held.slot.current(now).is_none() => held.slot.publish(certified, &trust),
                Some(_) => {}
                None => drop(state.inherited.insert(identity, certified)),
            }
        }
        Ok(taken)
    }

    /// One line per identity, for the admin endpoint.
    pub fn summaries(&self) -> Vec<CertificateSummary> {
        let mut all: Vec<_> = lock(&self.state)
            .held
            .iter()
            .map(|(identity, held)| held.slot.summary(identity, held.holders))
            .collect();
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }
}
