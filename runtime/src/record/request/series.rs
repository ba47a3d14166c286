//! The counters and histograms of requests, by bounded label sets.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
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
};

/// The upper bounds of Istio's buckets, of milliseconds and bytes alike.
const BOUNDS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5, 6e5, 1.8e6,
    3.6e6,
];

/// One label set: a connection's, and what a request adds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RequestLabels {
    base: Labels,
    protocol: &'static str,
    status: u16,
    grpc: Option<u16>,
    flag: &'static str,
}

impl RequestLabels {
    pub(super) fn of(
        facts: &Facts,
        protocol: &'static str,
        status: u16,
        grpc: Option<u16>,
        flag: &'static str,
    ) -> Self {
        Self { base: Labels::of(facts, End::Finished), protocol, status, grpc, flag }
    }

    fn overflow() -> Self {
        Self { base: Labels::overflow(), protocol: "unknown", status: 0, grpc: None, flag: "-" }
    }
}

impl EncodeLabelSet for RequestLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        ("request_protocol", self.protocol).encode(encoder.encode_label())?;
        ("response_code", u64::from(self.status)).encode(encoder.encode_label())?;
        match self.grpc {
            Some(status) => ("grpc_response_status", u64::from(status)).encode(encoder.encode_label())?,
            None => ("grpc_response_status", "").encode(encoder.encode_label())?,
        }
        ("reporter", "waypoint").encode(encoder.encode_label())?;
        ("response_flags", self.flag).encode(encoder.encode_label())?;
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
        let bounds = BOUNDS.into_iter().chain([f64::MAX]);
        let buckets: Vec<_> =
            bounds.zip(&self.buckets).map(|(bound, count)| (bound, count.load(Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        (self.sum.load(Relaxed) as f64 / 1000.0, count, buckets)
    }
}

#[derive(Default)]
struct Series {
    requests: AtomicU64,
    duration: Histogram,
    request: Histogram,
    response: Histogram,
}

/// All label sets; once there are too many, what is new counts under labels that are all `unknown`.
pub(super) struct Kept {
    most: usize,
    series: Mutex<HashMap<RequestLabels, Arc<Series>>>,
}

impl Kept {
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(1), series: Mutex::default() }
    }

    pub(super) fn count(&self, labels: RequestLabels, age: Duration, received: u64, sent: u64) {
        let series = {
            let mut held = self.series.lock().unwrap_or_else(PoisonError::into_inner);
            let full = held.len() >= self.most && !held.contains_key(&labels);
            let labels = if full { RequestLabels::overflow() } else { labels };
            held.entry(labels).or_default().clone()
        };
        series.requests.fetch_add(1, Relaxed);
        series.duration.add(age.as_secs_f64() * 1000.0);
        series.request.add(received as f64);
        series.response.add(sent as f64);
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
        let mut family =
            encoder.encode_descriptor("requests", "Requests answered", None, MetricType::Counter)?;
        for (labels, series) in &all {
            let mut sample = family.encode_family(labels)?;
            sample.encode_counter::<NoLabelSet, _, u64>(&series.requests.load(Relaxed), None)?;
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
