//! The record of a request: one line, one count of each metric, and whoever hears of it.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use mesh::{
    Identity, PolicyKey, RouteKey, ServiceKey, Workload,
    route::RouteKind,
    trace::{RequestId, TraceId},
};
use runtime::{
    logging::{AccessLog, Format},
    metrics::{Exposition, Metrics},
    record::{Flag, Options, Request, Requests},
};
use serde_json::Value;

struct World {
    requests: Requests,
    metrics: Arc<Metrics>,
    lines: Arc<Mutex<String>>,
}

fn world(format: Format, max_series: usize) -> World {
    let metrics = Metrics::new("test");
    let lines = Arc::new(Mutex::new(String::new()));
    let sink = lines.clone();
    let log = AccessLog::to(format, move |line| sink.lock().expect("not poisoned").push_str(line));
    World { requests: Requests::new(&metrics, log, Options { max_series }), metrics, lines }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn backend() -> (ServiceKey, u16) {
    (ServiceKey { namespace: "shop".into(), hostname: "cart-v2.shop.svc".into() }, 80)
}

impl World {
    fn begin(&self) -> Request {
        let mut record = self.requests.begin(address("10.0.0.1:4000"), "HTTP/2", "POST", "/a?b=c");
        record.authority("cart:80");
        record.called(None, 80);
        record.source(
            &Identity::new("cluster.local", "web", "front"),
            Some(&Arc::new(Workload::named("c//Pod/web/front-1", "web", "front-1"))),
        );
        record
    }

    /// One that was tried twice, and answered.
    fn answered(&self) -> Request {
        let mut record = self.begin();
        record.id(RequestId::of(b"mine-1").expect("a name"));
        record.trace(TraceId::random(7));
        let key = RouteKey { namespace: "shop".into(), name: "cart".into(), kind: RouteKind::Http };
        record.route(&key, 1, Some(&"canary".into()));
        record.policy(&PolicyKey { namespace: "shop".into(), name: "readers".into() });
        let pod = Arc::new(Workload::named("c//Pod/shop/cart-1", "shop", "cart-1"));
        assert_eq!(record.try_at(Some(backend()), &pod, address("10.0.0.2:8080")), 0);
        record.upstream_time(Duration::from_secs(9));
        assert_eq!(record.try_at(Some(backend()), &pod, address("10.0.0.3:8080")), 1);
        record.upstream_time(Duration::from_millis(5));
        record.status(200);
        record.received(b"hello");
        record.sent(b"hi");
        record
    }

    fn lines(&self) -> String {
        self.lines.lock().expect("not poisoned").clone()
    }

    /// The sum of a metric's samples whose labels contain all of `labels`.
    fn sum(&self, metric: &str, labels: &[&str]) -> f64 {
        let text = self.metrics.encode(Exposition::Prometheus);
        let of =
            |line: &&str| line.starts_with(&format!("{metric}{{")) && labels.iter().all(|l| line.contains(l));
        let value =
            |line: &str| line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok()).expect("a value");
        text.lines().filter(of).map(value).sum()
    }
}

#[test]
fn a_line_says_what_people_look_for() {
    let world = world(Format::Json, 10);
    drop(world.answered());
    let line: Value = serde_json::from_str(&world.lines()).expect("one line of JSON");
    for (key, expected) in [
        ("protocol", "HTTP/2"),
        ("method", "POST"),
        ("authority", "cart:80"),
        ("path", "/a?b=c"),
        ("flags", "-"),
        ("request_id", "mine-1"),
        ("trace_id", "00000000000000000000000000000007"),
        ("src.addr", "10.0.0.1:4000"),
        ("src.workload", "front-1"),
        ("src.namespace", "web"),
        ("src.identity", "spiffe://cluster.local/ns/web/sa/front"),
        ("backend", "cart-v2.shop.svc:80"),
        ("dst.addr", "10.0.0.3:8080"),
        ("dst.workload", "cart-1"),
        ("dst.namespace", "shop"),
        ("route", "shop/cart"),
        ("rule_name", "canary"),
        ("policy", "shop/readers"),
        ("upstream_duration", "5.000ms"),
    ] {
        assert_eq!(line[key], expected, "{key}: {line}");
    }
    for (key, expected) in [("status", 200), ("rule", 1), ("tries", 2), ("bytes_recv", 5), ("bytes_sent", 2)]
    {
        assert_eq!(line[key], expected, "{key}: {line}");
    }
    assert!(line["duration"].as_str().is_some_and(|text| text.ends_with("ms")), "{line}");
}

#[test]
fn who_leaves_before_he_is_answered_is_told_of_as_that() {
    let world = world(Format::Json, 10);
    drop(world.begin());
    let line: Value = serde_json::from_str(&world.lines()).expect("one line of JSON");
    assert_eq!((&line["status"], &line["flags"]), (&0.into(), &"DC".into()), "{line}");
    assert_eq!(line["error"], "the caller left before it was answered");
    let labels = ["response_code=\"0\"", "response_flags=\"DC\""];
    assert_eq!(world.sum("istio_requests_total", &labels), 1.0);
}

#[test]
fn a_line_of_text_says_the_same() {
    let world = world(Format::Text, 10);
    drop(world.answered());
    let mut refused = world.begin();
    refused.status(404);
    refused.flag(Flag::NoRoute, "no rule is for it");
    refused.flag(Flag::Timeout, "the second reason does not count");
    drop(refused);
    let lines = world.lines();
    for part in
        ["request_id=mine-1", "trace_id=0000", "backend=cart-v2.shop.svc:80", "upstream_duration=5.000ms"]
    {
        assert!(lines.contains(part), "{part}: {lines}");
    }
    let second = lines.lines().nth(1).expect("a second line");
    assert!(second.contains("status=404") && second.contains("flags=NR"), "{second}");
    assert!(second.ends_with("error=\"no rule is for it\""), "{second}");
    assert!(!second.contains("upstream_duration") && !second.contains("backend="), "{second}");
}

#[test]
fn a_request_counts_once_with_istios_labels() {
    let world = world(Format::Json, 10);
    for _ in 0..3 {
        drop(world.answered());
    }
    let labels = [
        "reporter=\"waypoint\"",
        "request_protocol=\"http\"",
        "response_code=\"200\"",
        "response_flags=\"-\"",
        "connection_security_policy=\"mutual_tls\"",
        "source_principal=\"spiffe://cluster.local/ns/web/sa/front\"",
        "source_workload_namespace=\"web\"",
        "destination_workload_namespace=\"shop\"",
        "grpc_response_status=\"\"",
    ];
    assert_eq!(world.sum("istio_requests_total", &labels), 3.0);
    assert_eq!(world.sum("istio_request_bytes_sum", &labels), 15.0);
    assert_eq!(world.sum("istio_response_bytes_sum", &labels), 6.0);
    assert_eq!(world.sum("istio_request_duration_milliseconds_count", &labels), 3.0);
    // Without the last bucket no quantile can be read from the others.
    for (bound, count) in [("1.0", 0.0), ("5.0", 3.0), ("3600000.0", 3.0), ("+Inf", 3.0)] {
        let bucket = format!("le=\"{bound}\"");
        assert_eq!(world.sum("istio_request_bytes_bucket", &[&bucket]), count, "{bound}");
    }
    assert_eq!(world.sum("istio_request_messages_total", &[]), 0.0, "none has messages");
}

#[test]
fn calls_of_grpc_count_their_messages() {
    let world = world(Format::Json, 10);
    let mut call = world.begin();
    call.grpc();
    // Two, of which one comes in pieces; and one back.
    call.received(&[0, 0, 0, 0, 1, 7, 0, 0]);
    call.received(&[0, 0, 2, 7]);
    call.received(&[7]);
    call.sent(&[1, 0, 0, 0, 0]);
    call.status(200);
    call.grpc_status(99);
    drop(call);
    // A status that there is not is `unknown`: a backend cannot make a label set of each number.
    let labels = ["request_protocol=\"grpc\"", "grpc_response_status=\"2\""];
    assert_eq!(world.sum("istio_requests_total", &labels), 1.0);
    assert_eq!(world.sum("istio_request_messages_total", &labels), 2.0);
    assert_eq!(world.sum("istio_response_messages_total", &labels), 1.0);
}

#[test]
fn label_sets_are_bounded_and_the_longest_unused_go() {
    let world = world(Format::Json, 8);
    let ended = |status: u16| {
        let mut record = world.answered();
        record.status(status);
    };
    for status in 200..300 {
        ended(status);
        // Always in use: never forgotten.
        ended(299);
    }
    let text = world.metrics.encode(Exposition::Prometheus);
    let sets = text.lines().filter(|line| line.starts_with("istio_requests_total{")).count();
    assert!(sets <= 9, "{sets} label sets");
    assert_eq!(world.sum("istio_requests_total", &["response_code=\"299\""]), 101.0);
    assert_eq!(world.sum("istio_requests_total", &["response_code=\"200\""]), 0.0);
}

#[test]
fn who_hears_of_it_hears_once_and_all() {
    let world = world(Format::Json, 10);
    let heard = Rc::new(RefCell::new(Vec::new()));
    let mut record = world.answered();
    let told = heard.clone();
    record.hear(Box::new(move |ended| {
        told.borrow_mut().push((ended.status, ended.tries, ended.path.to_owned(), ended.called_port));
    }));
    assert!(heard.borrow().is_empty());
    drop(record);
    assert_eq!(*heard.borrow(), [(200, 2, "/a?b=c".to_owned(), 80)]);
}
