//! The counters and histograms of requests, by bounded label sets.

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
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabel, EncodeLabelSet, LabelSetEncoder, NoLabelSet},
    metrics::MetricType,
};

use crate::record::{
    End,
    labels::{Facts, Labels},
    same::{CACHED, Same},
};

/// The upper bounds of Istio's buckets, of milliseconds and bytes alike.
const BOUNDS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5, 6e5, 1.8e6,
    3.6e6,
];

/// What a request adds to the labels of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Outcome {
    protocol: &'static str,
    status: u16,
    grpc: Option<u16>,
    flag: &'static str,
}

/// The last status of gRPC that there is; what is none counts as `UNKNOWN`, so that no backend makes labels of numbers.
const LAST_STATUS: u16 = 16;
const UNKNOWN: u16 = 2;

impl Outcome {
    pub(super) fn new(protocol: &'static str, status: u16, grpc: Option<u16>, flag: &'static str) -> Self {
        let grpc = grpc.map(|status| if status > LAST_STATUS { UNKNOWN } else { status });
        Self { protocol, status, grpc, flag }
    }
}

/// One label set.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RequestLabels {
    base: Labels,
    outcome: Outcome,
}

impl EncodeLabelSet for RequestLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let Outcome { protocol, status, grpc, flag } = self.outcome;
        ("request_protocol", protocol).encode(encoder.encode_label())?;
        ("response_code", u64::from(status)).encode(encoder.encode_label())?;
        match grpc {
            Some(status) => ("grpc_response_status", u64::from(status)).encode(encoder.encode_label())?,
            None => ("grpc_response_status", "").encode(encoder.encode_label())?,
        }
        ("reporter", "waypoint").encode(encoder.encode_label())?;
        ("response_flags", flag).encode(encoder.encode_label())?;
        self.base.encode_but(&["reporter", "response_flags"], encoder)
    }
}

#[derive(Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// In thousandths, so that it can be added to without a lock.
    sum: AtomicU64,
}

impl Histogram {
    fn add(&self, value: f64) {
        let bucket = BOUNDS.partition_point(|bound| *bound < value);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add((value * 1000.0) as u64, Relaxed);
    }

    /// Sum, count, and each bucket with its upper bound.
    fn read(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let buckets: Vec<_> =
            bounds.zip(&self.buckets).map(|(bound, count)| (bound, count.load(Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        (self.sum.load(Relaxed) as f64 / 1000.0, count, buckets)
    }
}

/// What is counted of one request.
pub(super) struct Counts {
    pub(super) age: Duration,
    /// Bytes of the request's body and of its answer's.
    pub(super) received: u64,
    pub(super) sent: u64,
    /// Messages of a call of gRPC, forth and back.
    pub(super) messages: [u64; 2],
}

#[derive(Default)]
struct Series {
    requests: AtomicU64,
    messages: [AtomicU64; 2],
    duration: Histogram,
    request: Histogram,
    response: Histogram,
    /// When a worker last looked it up, or counted by its cache, in the map's own time.
    used: AtomicU64,
    /// It is no longer in the map.
    is_retired: AtomicBool,
}

impl Series {
    fn add(&self, counts: &Counts) {
        self.requests.fetch_add(1, Relaxed);
        self.duration.add(counts.age.as_secs_f64() * 1000.0);
        self.request.add(counts.received as f64);
        self.response.add(counts.sent as f64);
        for (sum, count) in self.messages.iter().zip(counts.messages) {
            if count > 0 {
                sum.fetch_add(count, Relaxed);
            }
        }
    }
}

/// All label sets. Once there are too many the longest unused are forgotten, and their counts with them.
pub(super) struct Kept {
    most: usize,
    /// Steps with each label set that is new.
    clock: AtomicU64,
    series: Mutex<HashMap<RequestLabels, Arc<Series>>>,
}

impl Kept {
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(1), clock: AtomicU64::new(0), series: Mutex::default() }
    }

    pub(super) fn count(self: &Arc<Self>, facts: &Facts, outcome: Outcome, counts: &Counts) {
        let cached = CACHE.try_with(|cache| self.cached(&mut cache.borrow_mut(), facts, outcome));
        // A thread that is ending has no cache any more.
        let series = cached.unwrap_or_else(|_| self.look_up(facts, outcome));
        series.used.store(self.clock.load(Relaxed), Relaxed);
        series.add(counts);
    }

    fn cached(self: &Arc<Self>, cache: &mut Cache, facts: &Facts, outcome: Outcome) -> Arc<Series> {
        let key = Key { kept: self.clone(), outcome, same: Same::of(facts) };
        if let Some(series) = cache.get(&key)
            && !series.is_retired.load(Relaxed)
        {
            return series.clone();
        }
        let series = self.look_up(facts, outcome);
        if cache.len() >= CACHED {
            cache.clear();
        }
        cache.insert(key, series.clone());
        series
    }

    fn look_up(&self, facts: &Facts, outcome: Outcome) -> Arc<Series> {
        let labels = RequestLabels { base: Labels::of(facts, End::Finished), outcome };
        let mut held = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = held.get(&labels) {
            return series.clone();
        }
        if held.len() >= self.most {
            forget(&mut held, self.most.div_ceil(8));
        }
        self.clock.fetch_add(1, Relaxed);
        held.entry(labels).or_default().clone()
    }
}

/// Forgets `count` label sets, the longest unused first; what is counted there in this very moment is forgotten as well.
fn forget(held: &mut HashMap<RequestLabels, Arc<Series>>, count: usize) {
    let mut all: Vec<(u64, RequestLabels)> =
        held.iter().map(|(labels, series)| (series.used.load(Relaxed), labels.clone())).collect();
    all.sort_unstable_by_key(|(used, _)| *used);
    for (_, labels) in all.into_iter().take(count) {
        if let Some(series) = held.remove(&labels) {
            series.is_retired.store(true, Relaxed);
        }
    }
}

type Cache = HashMap<Key, Arc<Series>>;

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::new(HashMap::new());
}

/// A label set, told by what its labels come from.
struct Key {
    kept: Arc<Kept>,
    outcome: Outcome,
    same: Same,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kept, &other.kept) && self.outcome == other.outcome && self.same == other.same
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (Arc::as_ptr(&self.kept), self.outcome).hash(state);
        self.same.hash(state);
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("most", &self.most).finish_non_exhaustive()
    }
}

impl Collector for Kept {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all: Vec<(RequestLabels, Arc<Series>)> = {
            let held = self.series.lock().unwrap_or_else(PoisonError::into_inner);
            held.iter().map(|(labels, series)| (labels.clone(), series.clone())).collect()
        };
        type Count = fn(&Series) -> &AtomicU64;
        let counters: [(&str, &str, Count); 3] = [
            ("requests", "Requests answered", |s| &s.requests),
            ("request_messages", "Messages of gRPC that callers have sent", |s| &s.messages[0]),
            ("response_messages", "Messages of gRPC that backends have sent", |s| &s.messages[1]),
        ];
        for (name, help, of) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, series) in &all {
                // Only calls of gRPC have messages.
                let value = of(series).load(Relaxed);
                if value > 0 || name == "requests" {
                    family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
                }
            }
        }
        type Of = fn(&Series) -> &Histogram;
        let histograms: [(&str, &str, Of); 3] = [
            ("request_duration_milliseconds", "From a request's head to the end of its answer", |s| {
                &s.duration
            }),
            ("request_bytes", "Bytes of requests' bodies", |s| &s.request),
            ("response_bytes", "Bytes of answers' bodies", |s| &s.response),
        ];
        for (name, help, of) in histograms {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (labels, series) in &all {
                let (sum, count, buckets) = of(series).read();
                family.encode_family(labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
            }
        }
        Ok(())
    }
}
