//! How long to wait before the next attempt.

use std::time::Duration;

use rand::Rng;

/// Exponential back-off with full jitter: a fleet that lost its control plane at one moment does not
/// come back at one moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    least: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(least: Duration, most: Duration) -> Self {
        Self { least, most, next: least }
    }

    /// The next wait: between a half and the whole of the current step, which then doubles.
    pub(crate) fn wait(&mut self) -> Duration {
        let wait = self.next.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.next = (self.next * 2).min(self.most);
        wait
    }

    /// An attempt succeeded.
    pub(crate) fn reset(&mut self) {
        self.next = self.least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_ceiling_and_starts_over() {
        let (least, most) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(least, most);
        for step in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.wait();
            assert!(
                wait <= Duration::from_millis(step) && wait >= Duration::from_millis(step / 2),
                "{wait:?}"
            );
        }
        backoff.reset();
        assert!(backoff.wait() <= least);
    }
}
