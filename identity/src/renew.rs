//! Keeps one identity's certificate fresh: fetches it, renews it at half its life, and goes on asking
//! with growing pauses while the authority is away. A valid certificate is kept until a new one is here.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use mesh::Identity;
use rand::Rng;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use crate::{
    CertificateSummary, Certified, Clock, Issuer, StoreOptions,
    certificate::{Chain, SecretKey},
    error::FetchError,
};

/// The clock may leap (a suspended machine): no sleep is longer than this, in tokio's time.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// The roots that are trusted besides those in the issued chains.
#[derive(Default)]
pub(crate) struct Trust {
    pub(crate) extra: Vec<CertificateDer<'static>>,
    pub(crate) generation: u64,
}

#[derive(Default)]
struct Status {
    certified: Option<Arc<Certified>>,
    next_attempt: Option<SystemTime>,
    last_error: Option<String>,
}

/// Where one identity's certificate lies.
pub(crate) struct Slot {
    identity: Identity,
    status: watch::Sender<Status>,
    /// Somebody waits for a certificate and there is none.
    wanted: Notify,
}

impl Slot {
    pub(crate) fn new(identity: Identity) -> Self {
        Self { identity, status: watch::Sender::default(), wanted: Notify::new() }
    }

    /// Puts a new certificate in, under the roots of now.
    pub(crate) fn publish(&self, certified: Arc<Certified>, trust: &Trust) {
        self.status.send_modify(|status| {
            status.certified = Some(certified);
            status.last_error = None;
        });
        self.rebase(trust);
    }

    /// Judges peers by other roots from now on. Where no root is left, nothing can be proved to
    /// anybody and the certificate is withdrawn.
    pub(crate) fn rebase(&self, trust: &Trust) {
        self.status.send_if_modified(|status| {
            let Some(old) = status.certified.as_ref() else { return false };
            if old.roots_generation == trust.generation {
                return false;
            }
            match old.with_roots(&trust.extra, trust.generation) {
                Ok(new) => status.certified = Some(Arc::new(new)),
                Err(error) => {
                    status.certified = None;
                    status.last_error = Some(error.to_string());
                }
            }
            true
        });
    }

    pub(crate) fn current(&self, now: SystemTime) -> Option<Arc<Certified>> {
        let status = self.status.borrow();
        status.certified.as_ref().filter(|certified| certified.is_valid_at(now)).cloned()
    }

    /// Waits for a valid certificate; `None` when the slot is given up.
    pub(crate) async fn wait(&self, clock: &dyn Clock) -> Option<Arc<Certified>> {
        let mut changes = self.status.subscribe();
        loop {
            if let Some(certified) = self.current(clock.now()) {
                return Some(certified);
            }
            self.wanted.notify_one();
            changes.changed().await.ok()?;
        }
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.status.borrow().last_error.clone()
    }

    pub(crate) fn summary(&self, identity: &Identity, holders: usize) -> CertificateSummary {
        let status = self.status.borrow();
        let certified = status.certified.as_ref();
        CertificateSummary {
            identity: identity.clone(),
            holders,
            serial: certified.map(|certified| certified.serial.clone()),
            not_before: certified.map(|certified| certified.not_before),
            not_after: certified.map(|certified| certified.not_after),
            next_attempt: status.next_attempt,
            last_error: status.last_error.clone(),
        }
    }

    fn schedule(&self, at: SystemTime) {
        self.status.send_modify(|status| status.next_attempt = Some(at));
    }
}

/// Runs for as long as the identity is held.
pub(crate) async fn renew(
    slot: Arc<Slot>,
    issuer: Arc<dyn Issuer>,
    options: StoreOptions,
    trust: Arc<Mutex<Trust>>,
) {
    let clock = options.clock.as_ref();
    let mut failures = 0;
    if let Some(inherited) = slot.current(clock.now()) {
        wait_for_half_life(&slot, &inherited, &options).await;
    }
    loop {
        match fetch(&slot.identity, issuer.as_ref(), &options, &trust).await {
            Ok(certified) => {
                failures = 0;
                tracing::debug!(identity = %slot.identity, serial = certified.serial, "certificate issued");
                let certified = Arc::new(certified);
                slot.publish(certified.clone(), &trust.lock().unwrap_or_else(PoisonError::into_inner));
                wait_for_half_life(&slot, &certified, &options).await;
            }
            Err(error) => {
                tracing::warn!(identity = %slot.identity, %error, "no certificate; trying again");
                let pause = back_off(failures, options.back_off);
                failures += 1;
                slot.status.send_modify(|status| {
                    status.last_error = Some(error.to_string());
                    status.next_attempt = Some(clock.now() + pause);
                });
                pause_or_wanted(&slot, pause, &options).await;
            }
        }
    }
}

/// The middle of the certificate's life, up to a twentieth of it to either side: a node's
/// certificates, all fetched in one second, are not all renewed in one second.
async fn wait_for_half_life(slot: &Slot, certified: &Certified, options: &StoreOptions) {
    let clock = options.clock.as_ref();
    let life = certified.not_after.duration_since(certified.not_before).unwrap_or(Duration::ZERO);
    let jitter = life.mul_f64(rand::rng().random_range(0.0..0.1));
    let due = certified.half_life() - life / 20 + jitter;
    let due = due.max(clock.now() + options.back_off.0);
    slot.schedule(due);
    while let Ok(left) = due.duration_since(clock.now()) {
        if left.is_zero() || slot.status.borrow().certified.is_none() {
            return;
        }
        sleep(left.min(LONGEST_SLEEP)).await;
    }
}

/// Sleeps, but no longer than the shortest pause where somebody waits for a first certificate.
async fn pause_or_wanted(slot: &Slot, pause: Duration, options: &StoreOptions) {
    let start = Instant::now();
    loop {
        let Some(left) = pause.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) else { return };
        tokio::select! {
            () = sleep(left) => return,
            () = slot.wanted.notified() => {
                if slot.current(options.clock.now()).is_none() {
                    sleep(options.back_off.0.min(left)).await;
                    return;
                }
            }
        }
    }
}

/// Doubles from the first pause to the last, a quarter more or less by chance.
fn back_off(failures: u32, (first, last): (Duration, Duration)) -> Duration {
    let pause = first.saturating_mul(1 << failures.min(20)).min(last);
    pause.mul_f64(rand::rng().random_range(0.75..1.25)).clamp(first, last)
}

/// One attempt: a new key, a request, an answer, and all the checks a peer would make.
async fn fetch(
    identity: &Identity,
    issuer: &dyn Issuer,
    options: &StoreOptions,
    trust: &Mutex<Trust>,
) -> Result<Certified, FetchError> {
    let (key, csr_pem) = request(identity).map_err(|error| FetchError::Request(error.to_string()))?;
    let issued = timeout(options.request_timeout, issuer.issue(identity, csr_pem))
        .await
        .map_err(|_elapsed| FetchError::Timeout(options.request_timeout))??;
    let chain = Chain::from_issued(&issued)?;
    let now = options.clock.now();
    let trust = trust.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Certified::new(identity.clone(), key, chain, &trust.extra, trust.generation, now)?)
}

/// A fresh P-256 key, and a request with an empty subject and the identity as its one (hence
/// critical) alternative name.
fn request(identity: &Identity) -> Result<(SecretKey, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().as_str().try_into()?)];
    let csr = params.serialize_request(&key)?.pem()?;
    Ok((SecretKey::from_pkcs8(key.serialize_der()), csr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_within_their_bounds() {
        let bounds = (Duration::from_millis(500), Duration::from_secs(150));
        for failures in 0..64 {
            let pause = back_off(failures, bounds);
            assert!(pause >= bounds.0 && pause <= bounds.1, "{failures}: {pause:?}");
        }
        assert!(back_off(0, bounds) < Duration::from_secs(1));
        assert!(back_off(30, bounds) > Duration::from_secs(100));
    }

    #[test]
    fn the_request_names_the_identity_only() {
        let identity = Identity::new("cluster.local", "default", "web");
        let (_key, pem) = request(&identity).expect("a request");
        let parsed = rcgen::CertificateSigningRequestParams::from_pem(&pem).expect("a valid request");
        assert_eq!(parsed.params.distinguished_name.iter().count(), 0);
        let names = [SanType::URI("spiffe://cluster.local/ns/default/sa/web".try_into().expect("a name"))];
        assert_eq!(parsed.params.subject_alt_names, names);
    }
}
