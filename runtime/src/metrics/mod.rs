//! The registry of metrics of one program, and how it is shown to Prometheus.
//!
//! Metrics are owned by what they measure: a part asks for its sub-registry, registers what it
//! needs and keeps the handles. There are no global metrics.

mod process;
mod reading;
mod text;

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::{metrics::info::Info, registry::Registry};

pub use reading::Reading;

/// The registry of one program.
pub struct Metrics {
    registry: Mutex<Registry>,
}

/// The form in which a scraper wants the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// The Prometheus text format 0.0.4, for scrapers that ask for nothing else.
    Prometheus,
    /// OpenMetrics 1.0 text.
    OpenMetrics,
}

impl Metrics {
    /// A registry with `culvert_build_info` and the metrics of the process (`process_…`).
    pub fn new(program: &'static str) -> Arc<Self> {
        let mut registry = Registry::default();
        let build = Info::new(vec![("component", program), ("version", crate::VERSION)]);
        registry.sub_registry_with_prefix("culvert").register("build", "Program and version", build);
        registry.register_collector(Box::new(process::Process::new()));
        Arc::new(Self { registry: Mutex::new(registry) })
    }

    /// Lets `register` add metrics under `prefix` (`istio`, `culvert`, …): a metric `x` becomes `prefix_x`.
    /// Counters are registered without `_total`, which is added when shown.
    pub fn under<T>(&self, prefix: &str, register: impl FnOnce(&mut Registry) -> T) -> T {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        register(registry.sub_registry_with_prefix(prefix))
    }

    /// All metrics as text.
    pub fn encode(&self, exposition: Exposition) -> String {
        let mut open = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a String fails only where a collector reports an error of its own; what was
        // written until then is still worth showing.
        if let Err(error) = prometheus_client::encoding::text::encode(&mut open, &registry) {
            tracing::warn!(%error, "a metric could not be encoded; the exposition is incomplete");
        }
        match exposition {
            Exposition::OpenMetrics => open,
            Exposition::Prometheus => text::to_prometheus(&open),
        }
    }
}

impl Exposition {
    /// The form for the value of an `Accept` header.
    pub fn accepted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            Some(_) | None => Self::Prometheus,
        }
    }

    /// The `Content-Type` of the answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn a_prefixed_counter_shows_in_both_forms() {
        let metrics = Metrics::new("test");
        let counter = Counter::<u64>::default();
        metrics.under("culvert", |registry| registry.register("things", "Things seen", counter.clone()));
        counter.inc_by(3);

        let plain = metrics.encode(Exposition::Prometheus);
        assert!(plain.contains("# TYPE culvert_things_total counter\nculvert_things_total 3\n"), "{plain}");
        assert!(plain.contains("# TYPE culvert_build_info gauge\n"), "{plain}");
        assert!(plain.contains("\nprocess_resident_memory_bytes "), "{plain}");
        assert!(!plain.contains("EOF"), "{plain}");

        let open = metrics.encode(Exposition::OpenMetrics);
        assert!(open.contains("# TYPE culvert_things counter\nculvert_things_total 3\n"), "{open}");
        assert!(open.ends_with("# EOF\n"), "{open}");
    }

    #[test]
    fn the_form_follows_the_accept_header() {
        assert_eq!(Exposition::accepted(None), Exposition::Prometheus);
        assert_eq!(Exposition::accepted(Some("text/plain")), Exposition::Prometheus);
        let prometheus_2 = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3";
        assert_eq!(Exposition::accepted(Some(prometheus_2)), Exposition::OpenMetrics);
    }
}
