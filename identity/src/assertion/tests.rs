//! Assertions from one node to another, and every way to come by one that is not to be believed.

use std::sync::Arc;

use mesh::ServiceKey;
use proptest::prelude::*;

use super::*;
use crate::{
    Certified, Issued, Issuer, Store, StoreOptions, TokioClock, authority::Authority, issuer::IssueError,
};

/// An authority in this process, which signs whatever it is asked for.
struct Local(Arc<Authority>);

impl Issuer for Local {
    fn issue(
        &self,
        identity: &Identity,
        csr_pem: String,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send>> {
        let signed = self.0.sign(&csr_pem, identity, Duration::from_secs(3600));
        Box::pin(async move {
            let chain_pem = signed.map_err(|error| IssueError::Denied(error.to_string()))?;
            Ok(Issued { chain_pem })
        })
    }
}

/// A node: a store, and what it has signed and verified.
struct Side {
    store: Arc<Store>,
    assertions: Assertions,
}

impl Side {
    fn new(authority: &Arc<Authority>) -> Self {
        let clock = TokioClock::starting_at(SystemTime::now());
        let options = StoreOptions { clock: Arc::new(clock), ..StoreOptions::default() };
        Self {
            store: Store::new(Arc::new(Local(authority.clone())), options),
            assertions: Assertions::default(),
        }
    }

    async fn hold(&self, name: &str) -> Arc<Certified> {
        self.store.hold(&who(name));
        self.store.certified(&who(name)).await.expect("a certificate")
    }

    async fn assert(&self, caller: &str, claims: &Claims) -> Arc<str> {
        let certified = self.hold(caller).await;
        self.assertions.assert(&self.store, &certified, claims).expect("signed")
    }

    async fn verify(&self, peer: &str, header: &str) -> Result<Claims, BadAssertion> {
        let certified = self.hold("web").await;
        let verified = self.assertions.verify(&self.store, &certified, &who(peer), header)?;
        Ok(Claims::clone(&verified.claims))
    }
}

fn who(name: &str) -> Identity {
    Identity::new("cluster.local", "shop", name)
}

fn said(caller: &str) -> Claims {
    let service = ServiceKey { namespace: "shop".into(), hostname: "web.shop.svc.cluster.local".into() };
    Claims {
        caller: who(caller),
        address: "10.1.0.5".parse().expect("an address"),
        waypoint: who("wp"),
        behind: Behind::Service(service),
    }
}

fn authority() -> Arc<Authority> {
    Arc::new(Authority::ephemeral("cluster.local").expect("an authority"))
}

async fn advance(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_signed_at_one_end_is_believed_at_the_other() {
    let ca = authority();
    let (here, there) = (Side::new(&ca), Side::new(&ca));
    let header = here.assert("storefront", &said("storefront")).await;
    assert!(header.len() < 2048, "{} bytes are much for a header", header.len());
    assert_eq!(there.verify("wp", &header).await, Ok(said("storefront")));
    assert_eq!(claims(&header).map(|(claims, _)| claims), Ok(said("storefront")));
    let by_address = Claims {
        address: "fd00::7".parse().expect("an address"),
        behind: Behind::Workload("c//Pod/shop/web".into()),
        ..said("storefront")
    };
    let header = here.assert("storefront", &by_address).await;
    assert_eq!(there.verify("wp", &header).await, Ok(by_address));
}

#[tokio::test(start_paused = true)]
async fn it_ends_after_a_minute_whether_it_was_seen_before_or_not() {
    let ca = authority();
    let (here, there, unseen) = (Side::new(&ca), Side::new(&ca), Side::new(&ca));
    let header = here.assert("storefront", &said("storefront")).await;
    // Seconds are what is written down.
    advance(LIFE - Duration::from_secs(2)).await;
    assert!(there.verify("wp", &header).await.is_ok());
    advance(Duration::from_secs(3)).await;
    // At a node that has never seen it, too.
    for refused in [there.verify("wp", &header).await, unseen.verify("wp", &header).await] {
        assert!(matches!(refused, Err(BadAssertion::Expired { .. })), "{refused:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_from_the_future_is_not_believed() {
    let ca = authority();
    let (here, there) = (Side::new(&ca), Side::new(&ca));
    let certified = here.hold("storefront").await;
    let by = |seconds| there.store.now() + Duration::from_secs(seconds);
    let header = sign::sign(&certified, &said("storefront"), by(20)).expect("signed");
    assert!(there.verify("wp", &header).await.is_ok(), "clocks differ");
    let header = sign::sign(&certified, &said("storefront"), by(40)).expect("signed");
    assert!(matches!(there.verify("wp", &header).await, Err(BadAssertion::Future { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_time_without_an_end_and_an_address_that_nobody_calls_from_are_malformed() {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
    let ca = authority();
    let (here, there) = (Side::new(&ca), Side::new(&ca));
    let header = here.assert("storefront", &said("storefront")).await;
    let mut bytes = BASE64.decode(&*header).expect("base64");
    for seconds in [u64::MAX, i64::MAX as u64, i64::MAX as u64 - 59, i64::MAX as u64 - 60] {
        bytes[1..9].copy_from_slice(&seconds.to_be_bytes());
        let header = BASE64.encode(&bytes);
        assert!(there.verify("wp", &header).await.is_err(), "{seconds}");
        let _ = claims(&header);
    }
    for address in ["127.0.0.1", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "224.0.0.1", "ff02::1"] {
        let odd = Claims { address: address.parse().expect("an address"), ..said("storefront") };
        let header = here.assert("storefront", &odd).await;
        let refused = there.verify("wp", &header).await;
        assert!(matches!(refused, Err(BadAssertion::Malformed(_))), "{address}: {refused:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_waypoint_that_brings_it_is_not_believed() {
    let ca = authority();
    let (here, there) = (Side::new(&ca), Side::new(&ca));
    let header = here.assert("storefront", &said("storefront")).await;
    for _ in 0..2 {
        let refused = there.verify("wp2", &header).await;
        assert!(matches!(&refused, Err(BadAssertion::WrongWaypoint { found, .. }) if **found == who("wp2")));
        assert!(there.verify("wp", &header).await.is_ok(), "what was verified is remembered");
    }
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_is_not_trusted_and_a_name_that_is_not_in_it_are_refused() {
    let (ca, other) = (authority(), authority());
    let (forger, there) = (Side::new(&other), Side::new(&ca));
    let header = forger.assert("storefront", &said("storefront")).await;
    assert!(matches!(there.verify("wp", &header).await, Err(BadAssertion::Untrusted { .. })));
    // The intern has a certificate, and says that it is the storefront.
    let intern = Side::new(&ca);
    let header = intern.assert("intern", &said("storefront")).await;
    assert!(matches!(there.verify("wp", &header).await, Err(BadAssertion::WrongCaller { .. })));
    // Another trust domain of the same authority.
    let foreign = Claims { caller: Identity::new("elsewhere", "shop", "x"), ..said("x") };
    let side = Side::new(&ca);
    side.store.hold(&foreign.caller);
    let certified = side.store.certified(&foreign.caller).await.expect("a certificate");
    let header = side.assertions.assert(&side.store, &certified, &foreign).expect("signed");
    assert!(matches!(there.verify("wp", &header).await, Err(BadAssertion::Untrusted { .. })));
}

#[tokio::test(start_paused = true)]
async fn whatever_is_changed_it_is_refused() {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
    let ca = authority();
    let (here, there) = (Side::new(&ca), Side::new(&ca));
    let header = here.assert("storefront", &said("storefront")).await;
    let mut bytes = BASE64.decode(&*header).expect("base64");
    for at in 0..bytes.len() {
        bytes[at] ^= 1;
        let changed = there.verify("wp", &BASE64.encode(&bytes)).await;
        assert!(changed.is_err(), "byte {at}: {changed:?}");
        bytes[at] ^= 1;
    }
    for length in 0..bytes.len() {
        assert!(there.verify("wp", &BASE64.encode(&bytes[..length])).await.is_err());
    }
    bytes.push(0);
    assert!(there.verify("wp", &BASE64.encode(&bytes)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn it_is_signed_once_and_anew_before_it_is_old() {
    let here = Side::new(&authority());
    let first = here.assert("storefront", &said("storefront")).await;
    advance(FRESH - Duration::from_secs(1)).await;
    assert!(Arc::ptr_eq(&first, &here.assert("storefront", &said("storefront")).await));
    let other = Claims { waypoint: who("wp2"), ..said("storefront") };
    assert_ne!(first, here.assert("storefront", &other).await);
    advance(Duration::from_secs(2)).await;
    assert_ne!(first, here.assert("storefront", &said("storefront")).await);
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in ".{0,200}") {
        let _ = wire::read(&bytes);
        let mut versioned = vec![1];
        versioned.extend_from_slice(&bytes);
        let _ = wire::read(&versioned);
        let _ = claims(&text);
    }
}
