//! The exporter, against a collector that answers as it is told.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use proto::otlp::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use runtime::metrics::Exposition;
use tokio::{net::TcpListener, sync::Notify};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response};

use super::*;

/// A collector that answers as it is told, and otherwise takes all.
#[derive(Default)]
struct Collector {
    answers: Mutex<VecDeque<Result<ExportTraceServiceResponse, Status>>>,
    requests: Mutex<Vec<ExportTraceServiceRequest>>,
    came: Notify,
}

impl Collector {
    fn names(&self) -> Vec<Vec<String>> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let names = |request: &ExportTraceServiceRequest| {
            request.resource_spans[0].scope_spans[0].spans.iter().map(|span| span.name.clone()).collect()
        };
        requests.iter().map(names).collect()
    }

    async fn came(&self, requests: usize) {
        while self.names().len() < requests {
            timeout(Duration::from_secs(20), self.came.notified()).await.expect("it comes");
        }
    }
}

struct Served(Arc<Collector>);

#[tonic::async_trait]
impl TraceService for Served {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request.into_inner());
        self.0.came.notify_one();
        let answer = self.0.answers.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        answer.unwrap_or_else(|| Ok(ExportTraceServiceResponse::default())).map(Response::new)
    }
}

async fn collector(answers: Vec<Result<ExportTraceServiceResponse, Status>>) -> (Arc<Collector>, SocketAddr) {
    let collector = Arc::new(Collector { answers: Mutex::new(answers.into()), ..Collector::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Served(collector.clone())))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    (collector, address)
}

fn start(address: SocketAddr) -> (Exporter, Recorder, Arc<runtime::metrics::Metrics>) {
    let registry = runtime::metrics::Metrics::new("test");
    let metrics = Arc::new(Metrics::new(&registry, &Arc::default()));
    let reporter = Reporter {
        gateway: "wp".into(),
        namespace: "shop".into(),
        pod: "wp-1".into(),
        node: "a".into(),
        cluster: "Kubernetes".into(),
    };
    let endpoint = endpoint(&format!("http://{address}"), None).unwrap();
    let (exporter, recorder) = Exporter::start(&endpoint, &reporter, metrics);
    (exporter, recorder, registry)
}

fn span(name: &str) -> Span {
    Span { name: name.to_owned(), ..Span::default() }
}

fn count(registry: &runtime::metrics::Metrics, outcome: &str) -> u64 {
    let text = registry.encode(Exposition::Prometheus);
    let line = format!("culvert_waypoint_spans_total{{outcome=\"{outcome}\"}} ");
    text.lines().find_map(|text| text.strip_prefix(&line)?.parse().ok()).unwrap_or_default()
}

#[tokio::test]
async fn spans_are_sent_together_and_say_who_reports() {
    let (collector, address) = collector(Vec::new()).await;
    let (exporter, recorder, registry) = start(address);
    for name in ["a", "b", "c"] {
        recorder.record(span(name));
    }
    collector.came(1).await;
    assert_eq!(collector.names(), [["a", "b", "c"]]);
    let request = collector.requests.lock().unwrap()[0].clone();
    let attributes = &request.resource_spans[0].resource.as_ref().unwrap().attributes;
    let of = |key: &str| {
        let pair = attributes.iter().find(|pair| pair.key == key).unwrap();
        pair.value.clone().unwrap().value
    };
    assert_eq!(of("service.name"), Some(Value::StringValue("wp.shop".into())));
    assert_eq!(of("k8s.pod.name"), Some(Value::StringValue("wp-1".into())));
    // What waits at the end is sent, without the second that a batch is collected.
    recorder.record(span("last"));
    exporter.finish().await;
    assert_eq!(
        (collector.names()[1].as_slice(), count(&registry, "exported")),
        (&["last".to_owned()][..], 4)
    );
}

#[tokio::test]
async fn what_may_be_taken_later_is_sent_again_and_what_may_not_is_not() {
    let partial = ExportTracePartialSuccess { rejected_spans: 1, error_message: "too long".into() };
    let answers = vec![
        Err(Status::unavailable("not yet")),
        Ok(ExportTraceServiceResponse::default()),
        Err(Status::invalid_argument("never")),
        Ok(ExportTraceServiceResponse { partial_success: Some(partial) }),
    ];
    let (collector, address) = collector(answers).await;
    let (exporter, recorder, registry) = start(address);
    recorder.record(span("again"));
    collector.came(2).await;
    recorder.record(span("never"));
    collector.came(3).await;
    recorder.record(span("half"));
    recorder.record(span("half"));
    exporter.finish().await;
    assert_eq!(collector.names(), [vec!["again"], vec!["again"], vec!["never"], vec!["half", "half"]]);
    let counts = ["exported", "lost", "rejected", "dropped"].map(|outcome| count(&registry, outcome));
    assert_eq!(counts, [2, 1, 1, 0]);
}

#[tokio::test]
async fn nobody_waits_for_a_collector_that_is_away() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let (exporter, recorder, registry) = start(address);
    // On this thread the task cannot run meanwhile: what does not fit is dropped.
    for _ in 0..QUEUE + 100 {
        recorder.record(span("x"));
    }
    assert_eq!(count(&registry, "dropped"), 100);
    let begun = std::time::Instant::now();
    exporter.finish().await;
    assert!(begun.elapsed() < LAST + Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(count(&registry, "exported"), 0);
    assert_eq!(count(&registry, "lost"), QUEUE as u64);
}

#[test]
fn a_pause_is_never_shorter_and_up_to_a_half_longer() {
    assert_eq!(jittered(PAUSE, 0), PAUSE);
    assert_eq!(jittered(PAUSE, u32::MAX), PAUSE * 3 / 2);
}
