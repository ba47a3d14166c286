//! How many connections callers may have here at a time: all together, and each by itself, so that one caller cannot
//! take what is meant for all.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Connections that are carried now, counted.
#[derive(Debug)]
pub(crate) struct Limits {
    most: usize,
    most_of_source: usize,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    all: usize,
    /// Only those who have some.
    sources: HashMap<IpAddr, usize>,
}

/// A connection that is counted, as long as this lives.
#[derive(Debug)]
pub(crate) struct Counted {
    limits: Arc<Limits>,
    source: IpAddr,
}

/// Which limit a connection is beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Beyond {
    #[error("this waypoint carries {0} connections already (--max-connections)")]
    All(usize),
    #[error("{0} has {1} connections here already (--max-connections-per-source)")]
    Source(IpAddr, usize),
}

impl Limits {
    /// Of all callers together, and of each.
    pub(crate) fn new(most: usize, most_of_source: usize) -> Arc<Self> {
        Arc::new(Self { most, most_of_source, now: Mutex::default() })
    }

    /// Counts one more of `source`.
    ///
    /// # Errors
    /// If that were too many.
    pub(crate) fn count(self: &Arc<Self>, source: IpAddr) -> Result<Counted, Beyond> {
        let mut now = self.lock();
        if now.all >= self.most {
            return Err(Beyond::All(now.all));
        }
        let of_source = now.sources.get(&source).copied().unwrap_or_default();
        if of_source >= self.most_of_source {
            return Err(Beyond::Source(source, of_source));
        }
        now.all += 1;
        *now.sources.entry(source).or_default() += 1;
        drop(now);
        Ok(Counted { limits: self.clone(), source })
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut now = self.limits.lock();
        now.all = now.all.saturating_sub(1);
        if let Entry::Occupied(mut of_source) = now.sources.entry(self.source) {
            *of_source.get_mut() -= 1;
            if *of_source.get() == 0 {
                of_source.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_does_not_take_what_is_for_all_and_gives_back_what_it_had() {
        let limits = Limits::new(3, 2);
        let [one, other, third]: [IpAddr; 3] =
            ["10.0.0.1", "10.0.0.2", "fd00::3"].map(|ip| ip.parse().unwrap());
        let first = limits.count(one).unwrap();
        let _second = limits.count(one).unwrap();
        assert_eq!(limits.count(one).unwrap_err(), Beyond::Source(one, 2));
        let _others = limits.count(other).unwrap();
        assert_eq!(limits.count(third).unwrap_err(), Beyond::All(3));
        drop(first);
        let again = limits.count(one).unwrap();
        drop(again);
        drop(limits.count(third).unwrap());
        assert_eq!(limits.lock().sources.len(), 2, "whoever has none is not remembered");
    }
}
