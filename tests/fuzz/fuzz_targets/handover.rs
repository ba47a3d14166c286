//! The certificates that one ztunnel hands to the next, read from bytes of any kind.
#![no_main]

use std::{future::ready, pin::Pin, sync::Arc};

use identity::{Identity, IssueError, Issued, Issuer, Store, StoreOptions};
use libfuzzer_sys::fuzz_target;

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
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let _inside = runtime.enter();
    let store = Store::new(Arc::new(Nobody), StoreOptions::default());
    if let Ok(taken) = store.import(bytes) {
        assert!(taken <= bytes.len());
    }
});
