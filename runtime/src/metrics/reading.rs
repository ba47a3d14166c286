//! Metrics that somebody else counts: each is read when it is asked for.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

type Read = Box<dyn Fn() -> u64 + Send + Sync>;

/// One metric, and how it is read.
pub struct Reading {
    name: &'static str,
    help: &'static str,
    grows: bool,
    read: Read,
}

impl Reading {
    /// What only grows.
    pub fn counter(
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Box<Self> {
        Box::new(Self { name, help, grows: true, read: Box::new(read) })
    }

    /// What is now.
    pub fn gauge(
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Box<Self> {
        Box::new(Self { name, help, grows: false, read: Box::new(read) })
    }
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Collector for Reading {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // As everywhere, the registry ends a sentence.
        let help = format!("{}.", self.help);
        let kind = if self.grows { MetricType::Counter } else { MetricType::Gauge };
        let mut metric = encoder.encode_descriptor(self.name, &help, None, kind)?;
        let value = (self.read)();
        match self.grows {
            true => metric.encode_counter::<NoLabelSet, _, u64>(&value, None),
            false => metric.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Exposition, Metrics};

    #[test]
    fn what_others_count_stands_under_its_prefix_as_all_else_does() {
        let metrics = Metrics::new("test");
        metrics.under("culvert_test", |registry| {
            registry.register_collector(Reading::counter("lost", "Things lost", || 7));
            registry.register_collector(Reading::gauge("absent", "Things away now", || 2));
        });
        let text = metrics.encode(Exposition::OpenMetrics);
        for line in [
            "# HELP culvert_test_lost Things lost.",
            "# TYPE culvert_test_lost counter",
            "culvert_test_lost_total 7",
            "culvert_test_absent 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
