//! Certificates over time: fetched, renewed, kept, handed over. Time is paused and leaps.

use std::{
    future::{Future, ready},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use identity::{
    CertificateError, HandoverError, Identity, IssueError, Issued, Issuer, Store, StoreOptions, TokioClock,
    authority::Authority,
};
use proptest::prelude::*;
use tokio::time::{Instant, sleep};

const TTL: Duration = Duration::from_secs(24 * 3600);

/// An authority that can be away, and that counts.
struct Fickle {
    authority: Authority,
    away: AtomicBool,
    asked: AtomicUsize,
    at: Mutex<Vec<Instant>>,
    /// Signs for this identity whatever is asked for.
    instead: Mutex<Option<Identity>>,
}

impl Issuer for Fickle {
    fn issue(
        &self,
        identity: &Identity,
        csr_pem: String,
    ) -> Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send>> {
        self.asked.fetch_add(1, SeqCst);
        self.at.lock().expect("a lock").push(Instant::now());
        if self.away.load(SeqCst) {
            return Box::pin(ready(Err(IssueError::Unavailable("away".to_owned()))));
        }
        let instead = self.instead.lock().expect("a lock").clone();
        let identity = instead.as_ref().unwrap_or(identity);
        let chain_pem = self.authority.sign(&csr_pem, identity, TTL).expect("a certificate");
        Box::pin(ready(Ok(Issued { chain_pem })))
    }
}

struct World {
    issuer: Arc<Fickle>,
    store: Arc<Store>,
    options: StoreOptions,
    web: Identity,
}

fn world() -> World {
    let clock = Arc::new(TokioClock::starting_at(SystemTime::now()));
    let authority = Authority::ephemeral("cluster.local").expect("an authority").with_clock(clock.clone());
    let issuer = Arc::new(Fickle {
        authority,
        away: AtomicBool::new(false),
        asked: AtomicUsize::new(0),
        at: Mutex::default(),
        instead: Mutex::default(),
    });
    let options = StoreOptions { clock, ..StoreOptions::default() };
    let store = Store::new(issuer.clone(), options.clone());
    World { issuer, store, options, web: Identity::new("cluster.local", "default", "web") }
}

#[tokio::test(start_paused = true)]
async fn the_first_certificate_is_waited_for() {
    let World { store, web, issuer, .. } = world();
    assert!(matches!(store.certified(&web).await, Err(CertificateError::NotHeld(_))));
    store.hold(&web);
    let certified = store.certified(&web).await.expect("a certificate");
    assert_eq!(certified.identity, web);
    assert_eq!(identity::peer_identity(&certified.chain), Ok(web.clone()));
    assert_eq!(certified.chain.len(), 1, "the root is not shown");
    assert_eq!(certified.roots.len(), 1);
    // One more holder costs nothing, and the last one takes the key along.
    store.hold(&web);
    store.release(&web);
    assert!(store.current(&web).is_some());
    store.release(&web);
    assert!(store.current(&web).is_none());
    assert_eq!(issuer.asked.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn renewed_at_half_life() {
    let World { store, web, issuer, .. } = world();
    store.hold(&web);
    let first = store.certified(&web).await.expect("a certificate");
    sleep(TTL.mul_f64(0.44)).await;
    assert_eq!(store.current(&web).expect("valid").serial, first.serial);
    sleep(TTL.mul_f64(0.12)).await;
    assert_ne!(store.current(&web).expect("valid").serial, first.serial);
    assert_eq!(issuer.asked.load(SeqCst), 2);
    sleep(10 * TTL).await;
    let asked = issuer.asked.load(SeqCst);
    assert!((18..=26).contains(&asked), "{asked} in ten lives and a half");
}

#[tokio::test(start_paused = true)]
async fn kept_while_valid_and_not_a_moment_longer() {
    let World { store, web, issuer, options } = world();
    store.hold(&web);
    let first = store.certified(&web).await.expect("a certificate");
    issuer.away.store(true, SeqCst);
    let left = first.not_after.duration_since(options.clock.now()).expect("valid");
    sleep(left - Duration::from_secs(5)).await;
    assert_eq!(store.current(&web).expect("kept").serial, first.serial);
    let summary = &store.summaries()[0];
    assert!(summary.last_error.as_deref().is_some_and(|error| error.contains("away")), "{summary:?}");
    sleep(Duration::from_secs(6)).await;
    assert!(store.current(&web).is_none());
    let start = Instant::now();
    let error = store.certified(&web).await.expect_err("expired");
    assert!(matches!(error, CertificateError::NotYet { .. }), "{error}");
    assert_eq!(start.elapsed(), options.patience);
    // The authority is back: who waits is served soon, whatever the back-off had come to.
    issuer.away.store(false, SeqCst);
    store.certified(&web).await.expect("a certificate");
}

#[tokio::test(start_paused = true)]
async fn attempts_grow_rare() {
    let World { store, web, issuer, .. } = world();
    issuer.away.store(true, SeqCst);
    store.hold(&web);
    sleep(Duration::from_secs(3600)).await;
    let at = issuer.at.lock().expect("a lock").clone();
    let pauses: Vec<_> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses[0] < Duration::from_secs(1), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause >= Duration::from_millis(500)), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(151)), "{pauses:?}");
    assert!(at.len() < 50, "{} attempts in an hour", at.len());
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_somebody_else_is_not_taken() {
    let World { store, web, issuer, .. } = world();
    *issuer.instead.lock().expect("a lock") = Some(Identity::new("cluster.local", "default", "other"));
    store.hold(&web);
    let error = store.certified(&web).await.expect_err("not ours");
    assert!(error.to_string().contains("spiffe://cluster.local/ns/default/sa/other"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn handed_over_and_taken_up() {
    let World { store, web, issuer, options } = world();
    let late = Identity::new("cluster.local", "default", "late");
    store.hold(&web);
    store.hold(&late);
    let old = store.certified(&web).await.expect("a certificate");
    store.certified(&late).await.expect("a certificate");
    let bytes = store.export();
    drop(store);
    // The authority is away while the next one starts.
    issuer.away.store(true, SeqCst);
    let next = Store::new(issuer.clone(), options.clone());
    assert_eq!(next.import(&bytes), Ok(2));
    assert!(next.current(&web).is_none(), "nobody holds it yet");
    next.hold(&web);
    let taken = next.certified(&web).await.expect("the one that was handed over");
    assert_eq!((&taken.serial, &taken.chain), (&old.serial, &old.chain));
    next.server_config(&taken);
    issuer.away.store(false, SeqCst);
    sleep(TTL + Duration::from_secs(2)).await;
    assert_ne!(next.current(&web).expect("renewed").serial, old.serial);
    // What has expired meanwhile is of no use.
    let later = Store::new(issuer, options);
    assert_eq!(later.import(&bytes), Ok(0));
}

#[tokio::test(start_paused = true)]
async fn roots_are_reloaded() {
    let World { store, web, issuer, .. } = world();
    let other = Authority::ephemeral("cluster.local").expect("an authority");
    store.hold(&web);
    let before = store.certified(&web).await.expect("a certificate");
    let expected: Arc<[Identity]> = Arc::from([web.clone()]);
    let config = store.client_config(&before, &expected);
    assert!(Arc::ptr_eq(&config, &store.client_config(&before, &expected)), "cached");
    let generation = store.roots_generation();
    store.set_roots(other.root_pem()).expect("a root");
    assert_eq!(store.roots_generation(), generation + 1);
    let after = store.current(&web).expect("kept");
    assert_eq!((after.roots.len(), &after.serial), (2, &before.serial));
    assert!(!Arc::ptr_eq(&config, &store.client_config(&after, &expected)), "made anew");
    assert!(store.set_roots("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
    assert_eq!(store.current(&web).expect("kept").roots.len(), 2, "a bad bundle changes nothing");
    // Renewals go on under the new bundle.
    sleep(TTL).await;
    let renewed = store.current(&web).expect("renewed");
    assert_ne!(renewed.serial, before.serial);
    assert_eq!(renewed.roots.len(), 2);
    assert!(issuer.asked.load(SeqCst) >= 2);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

#[test]
fn no_damaged_handover_is_taken_for_a_good_one() {
    runtime().block_on(async {
        let World { store, web, issuer, options } = world();
        store.hold(&web);
        store.certified(&web).await.expect("a certificate");
        let bytes = store.export();
        let next = Store::new(issuer, options);
        for length in 0..bytes.len() {
            assert!(next.import(&bytes[..length]).is_err(), "cut at {length}");
        }
        assert!(next.import(&[bytes.as_slice(), &[0]].concat()).is_err(), "a byte too many");
        assert_eq!(next.import(b"CVID\0\x02\0\0\0\0"), Err(HandoverError::Version(2)));
        assert_eq!(
            next.import(b"CVID\0\x01\xff\xff\xff\xff"),
            Err(HandoverError::TooLarge("10,000 identities"))
        );
    });
}

proptest! {
    #[test]
    fn no_bytes_panic(tail in prop::collection::vec(any::<u8>(), 0..200), honest in any::<bool>()) {
        runtime().block_on(async {
            let World { store, .. } = world();
            let head: &[u8] = if honest { b"CVID\0\x01\0\0\0\x01" } else { b"" };
            let _ = store.import(&[head, &tail].concat());
        });
    }
}
