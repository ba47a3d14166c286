//! The counters behind the labels. One label set has all five counters, so a connection looks it up
//! once; a worker finds it by the addresses of the workloads in a cache of its own, without hashing
//! two dozen strings and without a lock.

#![expect(
    clippy::mutable_key_type,
    reason = "a `Key` is compared and hashed by address, which no counter changes"
)]

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt,
    hash::{Hash, Hasher},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::{
    End,
    labels::{Facts, Labels},
    same::{CACHED, Same},
};

/// The counters of one label set.
#[derive(Debug, Default)]
pub(super) struct Series {
    pub(super) opened: AtomicU64,
    closed: AtomicU64,
    failed: AtomicU64,
    /// Bytes from source to destination.
    pub(super) received: AtomicU64,
    /// Bytes from destination to source.
    pub(super) sent: AtomicU64,
    /// Connections that hold it.
    live: AtomicU64,
    /// When it was last taken, in the map's own time (one step per look-up of the map).
    used: AtomicU64,
    /// It is no longer in the map.
    retired: AtomicBool,
}

/// All label sets.
pub(super) struct SeriesMap {
    max: usize,
    inner: Mutex<Inner>,
    overflow: Arc<Series>,
}

#[derive(Default)]
struct Inner {
    by_labels: HashMap<Labels, Arc<Series>>,
    clock: u64,
}

impl SeriesMap {
    pub(super) fn new(max: usize) -> Self {
        Self { max: max.max(1), inner: Mutex::default(), overflow: Arc::default() }
    }

    /// The series of a connection that opens; it must be given back to [`Self::close`].
    pub(super) fn open(self: &Arc<Self>, facts: &Facts) -> Arc<Series> {
        self.take(facts, End::Finished)
    }

    /// Counts the end of a connection: closed if it had a series, else failed.
    pub(super) fn close(self: &Arc<Self>, opened: Option<Arc<Series>>, facts: &Facts, end: End) {
        match opened {
            Some(series) => {
                series.closed.fetch_add(1, Ordering::Relaxed);
                series.live.fetch_sub(1, Ordering::SeqCst);
            }
            None => {
                let series = self.take(facts, end);
                series.failed.fetch_add(1, Ordering::Relaxed);
                series.live.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    /// Finds the series and marks it as held.
    fn take(self: &Arc<Self>, facts: &Facts, end: End) -> Arc<Series> {
        // A derived source has no workload to tell it by; it is rare (another cluster's pod).
        if facts.derived.is_some() && facts.source.is_none() {
            return self.look_up(facts, end);
        }
        let cached = CACHE.try_with(|cache| self.take_cached(&mut cache.borrow_mut(), facts, end));
        // A thread that is ending has no cache any more.
        cached.unwrap_or_else(|_| self.look_up(facts, end))
    }

    fn take_cached(self: &Arc<Self>, cache: &mut Cache, facts: &Facts, end: End) -> Arc<Series> {
        let key = Key::new(self, facts, end);
        if let Some(series) = cache.get(&key)
            && series.hold()
        {
            return series.clone();
        }
        let series = self.look_up(facts, end);
        if cache.len() >= CACHED {
            cache.clear();
        }
        cache.insert(key, series.clone());
        series
    }

    fn look_up(&self, facts: &Facts, end: End) -> Arc<Series> {
        let labels = Labels::of(facts, end);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        let now = inner.clock;
        if !inner.by_labels.contains_key(&labels) && inner.by_labels.len() >= self.max {
            inner.forget(self.max.div_ceil(8));
        }
        let full = inner.by_labels.len() >= self.max;
        let series = match inner.by_labels.get(&labels) {
            Some(series) => series.clone(),
            None if full => self.overflow.clone(),
            None => inner.by_labels.entry(labels).or_default().clone(),
        };
        series.used.store(now, Ordering::Relaxed);
        // Under the lock nothing is retired, so what was found can be held.
        series.live.fetch_add(1, Ordering::SeqCst);
        series
    }
}

impl Series {
    /// Marks it as held, unless it was retired meanwhile.
    fn hold(&self) -> bool {
        // The other side (`forget`) sets `retired` and then reads `live`: one of the two sees the other.
        self.live.fetch_add(1, Ordering::SeqCst);
        let usable = !self.retired.load(Ordering::SeqCst);
        if !usable {
            self.live.fetch_sub(1, Ordering::SeqCst);
        }
        usable
    }
}

impl Inner {
    /// Forgets up to `count` series that no connection holds, the longest unused first.
    fn forget(&mut self, count: usize) {
        let idle = |series: &Series| series.live.load(Ordering::SeqCst) == 0;
        let mut unused: Vec<(u64, Labels)> = self
            .by_labels
            .iter()
            .filter(|(_, series)| idle(series))
            .map(|(labels, series)| (series.used.load(Ordering::Relaxed), labels.clone()))
            .collect();
        unused.sort_unstable_by_key(|(used, _)| *used);
        for (_, labels) in unused.into_iter().take(count) {
            let Some(series) = self.by_labels.get(&labels) else { continue };
            series.retired.store(true, Ordering::SeqCst);
            if idle(series) {
                self.by_labels.remove(&labels);
            } else {
                series.retired.store(false, Ordering::SeqCst);
            }
        }
    }
}

type Cache = HashMap<Key, Arc<Series>>;

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::new(HashMap::new());
}

/// A label set of a map, told by what its labels come from.
struct Key {
    map: Arc<SeriesMap>,
    flags: &'static str,
    same: Same,
}

impl Key {
    fn new(map: &Arc<SeriesMap>, facts: &Facts, end: End) -> Self {
        Self { map: map.clone(), flags: end.flags(), same: Same::of(facts) }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.map, &other.map) && self.flags == other.flags && self.same == other.same
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (Arc::as_ptr(&self.map), self.flags).hash(state);
        self.same.hash(state);
    }
}

impl fmt::Debug for SeriesMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeriesMap").field("max", &self.max).finish_non_exhaustive()
    }
}

impl Collector for SeriesMap {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // The lock is held while copying the pointers, not while writing a megabyte of text.
        let mut all: Vec<(Labels, Arc<Series>)> = {
            let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.by_labels.iter().map(|(labels, series)| (labels.clone(), series.clone())).collect()
        };
        all.push((Labels::overflow(), self.overflow.clone()));
        type Counter = fn(&Series) -> &AtomicU64;
        let families: [(&str, &str, Counter); 5] = [
            ("tcp_connections_opened", "TCP connections opened", |s| &s.opened),
            ("tcp_connections_closed", "TCP connections closed", |s| &s.closed),
            ("tcp_connections_failed", "TCP connections refused or not carried", |s| &s.failed),
            ("tcp_received_bytes", "Bytes from source to destination", |s| &s.received),
            ("tcp_sent_bytes", "Bytes from destination to source", |s| &s.sent),
        ];
        for (name, help, counter) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, series) in &all {
                let value = counter(series).load(Ordering::Relaxed);
                if value > 0 {
                    let mut sample = family.encode_family(labels)?;
                    sample.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
                }
            }
        }
        Ok(())
    }
}
