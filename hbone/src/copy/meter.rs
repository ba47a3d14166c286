//! What one connection has carried.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

/// Counts what one connection has carried. Written by its worker, readable from any thread.
#[derive(Debug)]
pub struct Meter {
    sent: AtomicU64,
    received: AtomicU64,
    /// What went past the copy, and is in neither of the two.
    sent_aside: AtomicU64,
    received_aside: AtomicU64,
    start: Instant,
    /// Milliseconds from `start` to the last byte.
    last: AtomicU64,
}

impl Meter {
    /// A meter that starts now.
    pub fn new() -> Self {
        Self {
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent_aside: AtomicU64::new(0),
            received_aside: AtomicU64::new(0),
            start: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    /// Bytes from the first socket onward: taken by the tunnel, or by the second socket.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed) + self.sent_aside.load(Relaxed)
    }

    /// Bytes that came back, and that the first socket has taken.
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed) + self.received_aside.load(Relaxed)
    }

    /// The bytes that were copied, of those sent and of those received.
    pub fn copied(&self) -> (u64, u64) {
        (self.sent.load(Relaxed), self.received.load(Relaxed))
    }

    /// Tells how many bytes have gone past the copy so far, each way (see [`super::Aside`]).
    pub fn set_aside(&self, sent: u64, received: u64) {
        let grown = [(&self.sent_aside, sent), (&self.received_aside, received)]
            .map(|(counted, now)| counted.fetch_max(now, Relaxed) < now);
        if grown.contains(&true) {
            self.touch();
        }
    }

    /// Time since a byte moved.
    pub fn idle(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.last.load(Relaxed)))
    }

    // One writer only: a load and a store are enough, and cheaper than an atomic addition.
    pub(super) fn add_sent(&self, bytes: usize) {
        self.sent.store(self.sent.load(Relaxed) + bytes as u64, Relaxed);
    }

    pub(super) fn add_received(&self, bytes: usize) {
        self.received.store(self.received.load(Relaxed) + bytes as u64, Relaxed);
    }

    pub(super) fn touch(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Relaxed);
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}
