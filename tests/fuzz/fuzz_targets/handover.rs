//! The certificates that one ztunnel hands to the next: bytes of any kind, and a true handover with
//! bytes of it changed.
#![no_main]

use std::{
    future::ready,
    pin::Pin,
    sync::{Arc, LazyLock},
    time::Duration,
};

use identity::{Identity, IssueError, Issued, Issuer, Store, StoreOptions, authority::Authority};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().expect("a runtime"));

/// What a store with two certificates hands over.
static HANDOVER: LazyLock<Vec<u8>> = LazyLock::new(|| {
    RUNTIME.block_on(async {
        let authority = Authority::ephemeral("cluster.local").expect("a key and a certificate can be made");
        let store = Store::new(Arc::new(Signs(authority)), StoreOptions::default());
        for name in ["one", "two"] {
            let identity = Identity::new("cluster.local", "ns", name);
            store.hold(&identity);
            store.certified(&identity).await.expect("the authority signs");
        }
        store.export()
    })
});

struct Signs(Authority);

impl Issuer for Signs {
    fn issue(
        &self,
        identity: &Identity,
        csr_pem: String,
    ) -> Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send>> {
        let signed = self.0.sign(&csr_pem, identity, Duration::from_secs(3600));
        let issued =
            signed.map(|chain_pem| Issued { chain_pem }).map_err(|e| IssueError::Denied(e.to_string()));
        Box::pin(ready(issued))
    }
}

struct Nobody;

impl Issuer for Nobody {
    fn issue(
        &self,
        _: &Identity,
        _: String,
    ) -> Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send>> {
        Box::pin(ready(Err(IssueError::Denied("nobody signs here".to_owned()))))
    }
}

fuzz_target!(|bytes: &[u8]| {
    import(bytes);
    // Each three bytes are a place and what is written there.
    let mut changed = HANDOVER.clone();
    for change in bytes.chunks_exact(3) {
        let place = usize::from(u16::from_le_bytes([change[0], change[1]])) % changed.len();
        changed[place] = change[2];
    }
    import(&changed);
});

fn import(bytes: &[u8]) {
    let _inside = RUNTIME.enter();
    let store = Store::new(Arc::new(Nobody), StoreOptions::default());
    if let Ok(taken) = store.import(bytes) {
        assert!(taken <= bytes.len());
    }
}
