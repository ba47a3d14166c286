//! The authority that signs now. It may be another one a moment later: whoever signs asks each time.

use std::sync::Arc;

use identity::authority::Authority;
use tokio::sync::watch;

/// Shared by all who sign, and by who follows where the authority is kept.
#[derive(Clone)]
pub struct Signer {
    now: watch::Sender<Arc<Authority>>,
}

impl Signer {
    pub fn new(authority: Authority) -> Self {
        Self { now: watch::Sender::new(Arc::new(authority)) }
    }

    /// The one that signs now.
    pub fn current(&self) -> Arc<Authority> {
        self.now.borrow().clone()
    }

    /// Another one signs from now on. What was signed before stays good for as long as its root is trusted.
    pub fn replace(&self, authority: Authority) {
        self.now.send_replace(Arc::new(authority));
    }

    /// Follows who signs.
    pub fn follow(&self) -> watch::Receiver<Arc<Authority>> {
        self.now.subscribe()
    }
}
