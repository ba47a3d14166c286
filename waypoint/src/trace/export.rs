//! Spans on their way to a collector (OTLP over gRPC), in batches, by one task: who records one waits for nobody.
//!
//! Between the workers and the task is a bounded queue; what does not fit is dropped and counted. A batch goes out when
//! it is full, or after a second. A collector that cannot be reached is asked again for a while, later each time, and
//! then the batch is lost.

use std::{sync::Arc, time::Duration};

use proto::otlp::{
    AnyValue, ExportTraceServiceRequest, InstrumentationScope, KeyValue, Resource, ResourceSpans, ScopeSpans,
    Span, any_value::Value, trace_service_client::TraceServiceClient,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};
use tonic::{
    Code, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::metrics::Metrics;

/// Spans that may wait; each has about 2 KiB.
const QUEUE: usize = 4096;
/// Spans of one batch.
const BATCH: usize = 512;
/// How long a batch is collected.
const COLLECT: Duration = Duration::from_secs(1);
/// How long a connection to the collector may take to be made, and an answer to come.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);
/// How often a batch is sent at most, and the first pause before it is sent again: it doubles.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// What one flush at the end may take.
const LAST: Duration = Duration::from_secs(5);
/// Idle connections that something between has forgotten are found out.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The semantic conventions that attributes are named by.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.30.0";

/// Who reports.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    /// The waypoint's Gateway.
    pub(crate) gateway: String,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) node: String,
    pub(crate) cluster: String,
}

/// Takes spans, without waiting.
#[derive(Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Span>,
    metrics: Arc<Metrics>,
}

impl Recorder {
    /// Hands on a span; it is dropped where too many wait.
    pub(crate) fn record(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.metrics.spans("dropped", 1);
        }
    }
}

/// The task that sends.
pub(crate) struct Exporter {
    task: JoinHandle<()>,
    ending: watch::Sender<bool>,
}

impl Exporter {
    /// Starts the task.
    pub(crate) fn start(endpoint: &Endpoint, reporter: &Reporter, metrics: Arc<Metrics>) -> (Self, Recorder) {
        let (queue, spans) = mpsc::channel(QUEUE);
        let (ending, is_ending) = watch::channel(false);
        let sender = Sender {
            collector: TraceServiceClient::new(endpoint.connect_lazy()),
            address: endpoint.uri().to_string(),
            resource: resource(reporter),
            metrics: metrics.clone(),
            is_ending,
            is_failing: false,
        };
        (Self { task: tokio::spawn(sender.run(spans)), ending }, Recorder { queue, metrics })
    }

    /// Sends what waits, for a while, and ends.
    pub(crate) async fn finish(self) {
        self.ending.send_replace(true);
        if timeout(LAST, self.task).await.is_err() {
            tracing::warn!("the collector of spans did not take the last ones in time; they are lost");
        }
    }
}

/// Where the collector is, over TLS where its scheme is https.
///
/// # Errors
/// With what is wrong of the address or of the roots; these are a PEM file or what is in one.
pub(crate) fn endpoint(uri: &str, ca: Option<&str>) -> Result<Endpoint, String> {
    let bad = |reason: String| format!("{reason}; give http://HOST:4317 or https://HOST:4317");
    let endpoint = Endpoint::from_shared(uri.to_owned()).map_err(|error| bad(error.to_string()))?;
    let has_host = endpoint.uri().authority().is_some();
    let is_bare = matches!(endpoint.uri().path(), "" | "/") && endpoint.uri().query().is_none();
    let endpoint = match endpoint.uri().scheme_str() {
        Some("http") if has_host && is_bare => endpoint,
        Some("https") if has_host && is_bare => {
            let tls = ClientTlsConfig::new();
            let tls = match ca {
                Some(pem) if pem.trim_start().starts_with("-----BEGIN") => {
                    tls.ca_certificate(Certificate::from_pem(pem))
                }
                Some(path) => {
                    let pem = std::fs::read(path).map_err(|error| format!("cannot read {path}: {error}"))?;
                    tls.ca_certificate(Certificate::from_pem(pem))
                }
                None => tls.with_native_roots(),
            };
            endpoint
                .tls_config(tls)
                .map_err(|error| format!("no roots to know it by ({error}): name them by --otlp-ca"))?
        }
        _ => return Err(bad("it is no address of a collector".to_owned())),
    };
    Ok(endpoint
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_while_idle(true))
}

fn resource(reporter: &Reporter) -> Resource {
    let Reporter { gateway, namespace, pod, node, cluster } = reporter;
    // As Istio calls them.
    let service = format!("{gateway}.{namespace}");
    let pairs = [
        ("service.name", service.as_str()),
        ("service.namespace", namespace),
        ("service.instance.id", pod),
        ("service.version", runtime::VERSION),
        ("k8s.pod.name", pod),
        ("k8s.namespace.name", namespace),
        ("k8s.node.name", node),
        ("k8s.cluster.name", cluster),
    ];
    let text = |text: &str| Some(AnyValue { value: Some(Value::StringValue(text.to_owned())) });
    let attributes = pairs.map(|(key, value)| KeyValue { key: key.to_owned(), value: text(value) });
    Resource { attributes: attributes.into(), ..Resource::default() }
}

struct Sender {
    collector: TraceServiceClient<Channel>,
    address: String,
    resource: Resource,
    metrics: Arc<Metrics>,
    is_ending: watch::Receiver<bool>,
    /// Said once until it works again.
    is_failing: bool,
}

impl Sender {
    /// Until it is told to end, and nothing waits any more.
    async fn run(mut self, mut spans: mpsc::Receiver<Span>) {
        loop {
            let mut batch = Vec::new();
            let mut ending = self.is_ending.clone();
            // What waits comes first, so that nothing does when it ends.
            tokio::select! {
                biased;
                count = spans.recv_many(&mut batch, BATCH) => if count == 0 { return },
                _ = ending.wait_for(|ending| *ending) => return,
            }
            let end = Instant::now() + COLLECT;
            while batch.len() < BATCH && !*ending.borrow() {
                let room = BATCH - batch.len();
                let more = timeout_at(end, spans.recv_many(&mut batch, room));
                tokio::select! {
                    count = more => if !matches!(count, Ok(1..)) { break },
                    _ = ending.wait_for(|ending| *ending) => {}
                }
            }
            self.send(batch).await;
        }
    }

    /// Sends a batch, again where that may help.
    async fn send(&mut self, spans: Vec<Span>) {
        let count = spans.len() as u64;
        let request = self.request(spans);
        let mut pause = PAUSE;
        for last in (0..TRIES).rev().map(|left| left == 0) {
            let error = match timeout(ANSWER, self.collector.export(request.clone())).await {
                Ok(Ok(answer)) => {
                    let partial = answer.into_inner().partial_success.unwrap_or_default();
                    return self.taken(count, partial.rejected_spans, &partial.error_message);
                }
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer in time"),
            };
            self.fails(&error);
            if last || !may_help(error.code()) || !self.rest(jittered(pause, rand::random())).await {
                break;
            }
            pause *= 2;
        }
        self.metrics.spans("lost", count);
    }

    fn taken(&mut self, count: u64, rejected: i64, message: &str) {
        let rejected = u64::try_from(rejected).unwrap_or_default().min(count);
        self.metrics.spans("exported", count - rejected);
        if rejected > 0 {
            self.metrics.spans("rejected", rejected);
            tracing::warn!(collector = %self.address, rejected, message, "the collector has rejected spans");
        }
        if std::mem::take(&mut self.is_failing) {
            tracing::info!(collector = %self.address, "the collector takes spans again");
        }
    }

    fn fails(&mut self, error: &Status) {
        if !std::mem::replace(&mut self.is_failing, true) {
            let (code, reason) = (error.code(), error.message());
            tracing::warn!(
                collector = %self.address, ?code, reason,
                "the collector does not take spans; said once until it does"
            );
        }
    }

    /// Waits before the next try; at the end there is none.
    async fn rest(&mut self, pause: Duration) -> bool {
        tokio::select! {
            () = sleep(pause) => true,
            _ = self.is_ending.wait_for(|ending| *ending) => false,
        }
    }

    fn request(&self, spans: Vec<Span>) -> ExportTraceServiceRequest {
        let scope = InstrumentationScope {
            name: "culvert-waypoint".to_owned(),
            version: runtime::VERSION.to_owned(),
            ..InstrumentationScope::default()
        };
        let scope_spans = ScopeSpans { scope: Some(scope), spans, schema_url: SCHEMA.to_owned() };
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![scope_spans],
                schema_url: SCHEMA.to_owned(),
            }],
        }
    }
}

/// Whether it may be taken when it is sent again (OTLP, "Failures").
fn may_help(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            | Code::ResourceExhausted
    )
}

/// Up to a half more: not all waypoints come back at once.
fn jittered(pause: Duration, random: u32) -> Duration {
    pause + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests;
