//! The certificates of the identities that run on this node: fetched, renewed, cached, handed over.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh::Identity;
use rustls::{ClientConfig, ServerConfig};

use crate::{BadChain, CertificateError, Certified, Clock, HandoverError, Issuer, SystemClock};

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
    #[allow(dead_code)]
    options: StoreOptions,
}

impl Store {
    /// Makes an empty store. Must be called inside a tokio runtime, on which renewals will run.
    pub fn new(issuer: Arc<dyn Issuer>, options: StoreOptions) -> Arc<Self> {
        let _ = issuer;
        Arc::new(Self { options })
    }

    /// Starts to fetch and renew certificates of `identity`; counted, one [`Store::release`] each.
    pub fn hold(self: &Arc<Self>, identity: &Identity) {
        let _ = identity;
        panic!("stub")
    }

    /// Takes one [`Store::hold`] back; with the last one the key is dropped.
    pub fn release(&self, identity: &Identity) {
        let _ = identity;
        panic!("stub")
    }

    /// A valid certificate, waiting for the first one no longer than [`StoreOptions::patience`].
    pub async fn certified(&self, identity: &Identity) -> Result<Arc<Certified>, CertificateError> {
        let _ = identity;
        panic!("stub")
    }

    /// A valid certificate if there is one now.
    pub fn current(&self, identity: &Identity) -> Option<Arc<Certified>> {
        let _ = identity;
        panic!("stub")
    }

    /// The client side of a tunnel: shows `certified`, accepts exactly one of `expected`. Cached.
    pub fn client_config(&self, certified: &Arc<Certified>, expected: &Arc<[Identity]>) -> Arc<ClientConfig> {
        let _ = (certified, expected);
        panic!("stub")
    }

    /// The server side of a tunnel: shows `certified`, demands a certificate of an accepted trust
    /// domain. Cached.
    pub fn server_config(&self, certified: &Arc<Certified>) -> Arc<ServerConfig> {
        let _ = certified;
        panic!("stub")
    }

    /// Replaces the roots (PEM) that are trusted besides the one in each issued chain. New handshakes see them at once.
    pub fn set_roots(&self, extra_pem: &str) -> Result<(), BadChain> {
        let _ = extra_pem;
        panic!("stub")
    }

    /// Counts changes of roots: a tunnel made under an older number was judged by older roots.
    pub fn roots_generation(&self) -> u64 {
        panic!("stub")
    }

    /// Everything the next ztunnel needs to serve without asking the authority first. Holds keys.
    pub fn export(&self) -> Vec<u8> {
        panic!("stub")
    }

    /// Takes what [`Store::export`] gave; returns how many certificates are still of use.
    pub fn import(&self, bytes: &[u8]) -> Result<usize, HandoverError> {
        let _ = bytes;
        panic!("stub")
    }

    /// One line per identity, for the admin endpoint.
    pub fn summaries(&self) -> Vec<CertificateSummary> {
        panic!("stub")
    }
}
