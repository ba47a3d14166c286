//! Waiting for what is bound to happen, with a limit and a reason.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Polls `probe` every 5 ms until it gives a value, at most for `limit`; says how long it took.
///
/// # Errors
/// When the limit passes, or at once when `probe` fails.
pub fn eventually<T>(
    limit: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<(T, Duration)> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe()? {
            return Ok((value, start.elapsed()));
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain: {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Polls `probe` every 5 ms for the whole of `span`; fails at the first time it is not so.
pub fn holds_for(span: Duration, what: &str, mut probe: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < span {
        if !probe()? {
            bail!("did not hold after {:?} of {span:?}: {what}", start.elapsed());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
