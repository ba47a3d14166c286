//! Waiting longer from failure to failure, and never in step with others.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// How long to wait after the next failure.
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// It went well.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }

    /// Waits between half of the time that it is due and the whole.
    pub async fn wait(&mut self) {
        tokio::time::sleep(jittered(self.next)).await;
        self.next = (self.next * 2).min(LONGEST);
    }
}

/// Between half of `time` and all of it.
pub fn jittered(time: Duration) -> Duration {
    // The keys of a hasher are random: enough to be out of step.
    let random = RandomState::new().hash_one(0) >> 32;
    time / 2 + (time / 2).mul_f64(random as f64 / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_grows_to_a_bound_and_begins_anew() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            backoff.wait().await;
        }
        let begun = tokio::time::Instant::now();
        backoff.wait().await;
        assert!(begun.elapsed() >= LONGEST / 2 && begun.elapsed() <= LONGEST + Duration::from_millis(1));
        backoff.reset();
        let begun = tokio::time::Instant::now();
        backoff.wait().await;
        assert!(begun.elapsed() <= FIRST + Duration::from_millis(1));
    }
}
