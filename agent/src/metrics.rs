//! What the agent counts. All of it is bounded by the pods of one node and the kernel's verdicts.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
};

/// One pod of this node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct PodLabels {
    namespace: String,
    pod: String,
}

/// One verdict of the kernel programs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    verdict: &'static str,
}

/// What the CNI plugin was answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabels {
    answer: &'static str,
}

/// The agent's metrics, under `culvert_`.
pub(crate) struct Metrics {
    captured: Family<PodLabels, Gauge>,
    connections: Family<PodLabels, Gauge>,
    verdicts: Family<VerdictLabels, Counter>,
    answers: Family<AnswerLabels, Counter>,
    /// By pod uid, the counts of its kernel programs at the last look.
    last: Mutex<BTreeMap<String, BTreeMap<&'static str, u64>>>,
    pub(crate) enrollment_seconds: Histogram,
    pub(crate) failures: Counter,
    pub(crate) ztunnels: Gauge,
    pub(crate) control: Gauge,
    pub(crate) splice: Gauge,
    pub(crate) kubelet: Gauge,
}

impl Metrics {
    /// The CNI plugin was told that a pod may start, or may not.
    pub(crate) fn plugin_answered(&self, start: bool) {
        let answer = if start { "start" } else { "refuse" };
        self.answers.get_or_create(&AnswerLabels { answer }).inc();
    }

    pub(crate) fn new(metrics: &runtime::metrics::Metrics) -> Self {
        let own = Self {
            captured: Family::default(),
            connections: Family::default(),
            verdicts: Family::default(),
            answers: Family::default(),
            last: Mutex::default(),
            // From 5 ms to 40 s.
            enrollment_seconds: Histogram::new(exponential_buckets(0.005, 2.0, 14)),
            failures: Counter::default(),
            ztunnels: Gauge::default(),
            control: Gauge::default(),
            splice: Gauge::default(),
            kubelet: Gauge::default(),
        };
        metrics.under("culvert", |registry| {
            let answers = "Pods that the CNI plugin asked about before their start, by what it was answered";
            registry.register("cni_pods", answers, own.answers.clone());
            let captured = "Whether the pod's capture was measured to work (1) or not (0)";
            registry.register("pod_captured", captured, own.captured.clone());
            let connections = "Captured connections of the pod that are alive";
            registry.register("pod_captured_connections", connections, own.connections.clone());
            let verdicts = "Packets by verdict of the kernel programs, over all pods of the node";
            registry.register("capture_packets", verdicts, own.verdicts.clone());
            let enrollment = "From the wish to enroll a pod until its capture was measured";
            registry.register("enrollment_seconds", enrollment, own.enrollment_seconds.clone());
            let failures = "Steps of enrollment that failed, probes among them";
            registry.register("enrollment_failures", failures, own.failures.clone());
            registry.register("ztunnels_connected", "Connected ztunnels", own.ztunnels.clone());
            let control = "Whether the stream to control stands (1) or not (0)";
            registry.register("control_connected", control, own.control.clone());
            let splice = "Whether connections within the node may be spliced (1) or not (0)";
            registry.register("agent_splice", splice, own.splice.clone());
            let kubelet = "Whether this node's kubelet is known, whose probes pass (1) or not (0)";
            registry.register("agent_kubelet_known", kubelet, own.kubelet.clone());
        });
        own
    }

    /// How a pod stands.
    pub(crate) fn pod(&self, namespace: &str, pod: &str, captured: bool, connections: usize) {
        let labels = PodLabels { namespace: namespace.to_owned(), pod: pod.to_owned() };
        self.captured.get_or_create(&labels).set(i64::from(captured));
        self.connections.get_or_create(&labels).set(i64::try_from(connections).unwrap_or(i64::MAX));
    }

    /// The pod is no concern any more.
    pub(crate) fn forget(&self, uid: &str, namespace: &str, pod: &str) {
        let labels = PodLabels { namespace: namespace.to_owned(), pod: pod.to_owned() };
        self.captured.remove(&labels);
        self.connections.remove(&labels);
        self.last.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Adds what the kernel programs of a pod have counted since the last look.
    pub(crate) fn count(&self, uid: &str, counters: &BTreeMap<&'static str, u64>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let last = last.entry(uid.to_owned()).or_default();
        for (verdict, count) in counters {
            let before = last.insert(*verdict, *count).unwrap_or(0);
            // Programs that were attached anew begin at nothing.
            let more = count.checked_sub(before).unwrap_or(*count);
            if more > 0 {
                self.verdicts.get_or_create(&VerdictLabels { verdict }).inc_by(more);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::metrics::Exposition;

    #[test]
    fn counters_add_up_over_pods_and_new_programs() {
        let registry = runtime::metrics::Metrics::new("test");
        let metrics = Metrics::new(&registry);
        metrics.count("a", &BTreeMap::from([("turned", 5), ("passed", 0)]));
        metrics.count("a", &BTreeMap::from([("turned", 7)]));
        metrics.count("a", &BTreeMap::from([("turned", 1)]));
        metrics.count("b", &BTreeMap::from([("turned", 10)]));
        metrics.pod("shop", "cart", true, 3);
        metrics.pod("shop", "gone", true, 3);
        metrics.forget("b", "shop", "gone");
        let text = registry.encode(Exposition::Prometheus);
        assert!(text.contains("culvert_capture_packets_total{verdict=\"turned\"} 18\n"), "{text}");
        assert!(!text.contains("verdict=\"passed\""), "{text}");
        assert!(text.contains("culvert_pod_captured{namespace=\"shop\",pod=\"cart\"} 1\n"), "{text}");
        assert!(!text.contains("gone"), "{text}");
    }
}
