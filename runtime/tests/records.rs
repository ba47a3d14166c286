//! The record of a connection: one line and one count, whatever happens.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use mesh::{Identity, PolicyKey, Service, ServiceKey, Workload};
use runtime::{
    logging::{AccessLog, Format},
    metrics::{Exposition, Metrics},
    record::{Bytes, Connection, Derived, Direction, End, Options, Records, Security, Tcp},
};

struct World {
    records: Records,
    metrics: Arc<Metrics>,
    lines: Arc<Mutex<String>>,
    client: Arc<Workload>,
    server: Arc<Workload>,
    service: Arc<Service>,
}

fn world(format: Format, max_series: usize) -> World {
    let metrics = Metrics::new("test");
    let lines = Arc::new(Mutex::new(String::new()));
    let sink = lines.clone();
    let log = AccessLog::to(format, move |line| sink.lock().expect("not poisoned").push_str(line));
    let records = Records::new(&metrics, log, Options { max_series });
    let service = Service {
        canonical: false,
        ..Service::named(
            ServiceKey { namespace: "shop".into(), hostname: "cart.shop.svc.cluster.local".into() },
            "cart",
        )
    };
    World {
        records,
        metrics,
        lines,
        client: Arc::new(Workload::named("c//Pod/web/front-1", "web", "front-1")),
        server: Arc::new(Workload::named("c//Pod/shop/cart-1", "shop", "cart-1")),
        service: Arc::new(service),
    }
}

impl World {
    fn begin(&self, direction: Direction) -> Connection {
        let mut connection = self.records.begin(direction, address("10.0.0.1:4000"), address("10.9.0.1:80"));
        connection.source(&self.client);
        connection.destination(&self.server);
        connection.service(&self.service);
        connection
    }

    fn lines(&self) -> String {
        self.lines.lock().expect("not poisoned").clone()
    }

    /// The sum of a metric's samples whose labels contain all of `labels`.
    fn sum(&self, metric: &str, labels: &[&str]) -> u64 {
        let text = self.metrics.encode(Exposition::Prometheus);
        let of =
            |line: &&str| line.starts_with(&format!("{metric}{{")) && labels.iter().all(|l| line.contains(l));
        let value =
            |line: &str| line.rsplit(' ').next().and_then(|v| v.parse::<u64>().ok()).expect("a value");
        text.lines().filter(of).map(value).sum()
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn key(namespace: &str, name: &str) -> PolicyKey {
    PolicyKey { namespace: namespace.into(), name: name.into() }
}

#[test]
fn a_connection_in_full_is_one_line_and_five_counters() {
    let world = world(Format::Text, 100);
    let mut connection = world.begin(Direction::Outbound);
    connection.source_identity(&Identity::new("cluster.local", "web", "front"));
    connection.destination_identity(&Identity::new("cluster.local", "shop", "cart"));
    connection.security(Security::MutualTls);
    connection.tunnel(address("10.0.1.2:15008"));
    connection.dry_run(&[key("shop", "strict"), key("shop", "later")]);
    connection.opened();
    assert_eq!(world.sum("istio_tcp_connections_opened_total", &["reporter=\"source\""]), 1);

    connection.progress(Bytes { forth: 100, back: 5 });
    connection.progress(Bytes { forth: 150, back: 2000 });
    assert_eq!(world.sum("istio_tcp_received_bytes_total", &[]), 150);
    connection.tcp(Tcp { rtt: Duration::from_micros(1500), retransmits: 2, delivery_rate: 0 });
    connection.end(End::Finished);
    assert_eq!(world.lines(), "");
    drop(connection);

    let line = world.lines();
    let (before, after) = line.split_once(" duration=").expect("a duration");
    assert_eq!(
        before,
        "direction=outbound src.addr=10.0.0.1:4000 src.workload=front-1 src.namespace=web \
         src.identity=spiffe://cluster.local/ns/web/sa/front dst.addr=10.9.0.1:80 \
         dst.hbone_addr=10.0.1.2:15008 dst.service=cart.shop.svc.cluster.local dst.workload=cart-1 \
         dst.namespace=shop dst.identity=spiffe://cluster.local/ns/shop/sa/cart security=mutual_tls \
         bytes_sent=150 bytes_recv=2000"
    );
    let (_, rest) = after.split_once("ms ").expect("in milliseconds");
    assert_eq!(rest, "rtt=1.500ms retransmits=2 dry_run=shop/strict,shop/later\n");

    let labels = [
        "source_workload=\"front-1\"",
        "source_workload_namespace=\"web\"",
        "source_principal=\"spiffe://cluster.local/ns/web/sa/front\"",
        "destination_service=\"cart.shop.svc.cluster.local\"",
        "destination_service_name=\"cart\"",
        "destination_service_namespace=\"shop\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/cart\"",
        "request_protocol=\"tcp\"",
        "response_flags=\"-\"",
        "connection_security_policy=\"mutual_tls\"",
        "source_cluster=\"unknown\"",
    ];
    assert_eq!(world.sum("istio_tcp_connections_closed_total", &labels), 1);
    assert_eq!(world.sum("istio_tcp_sent_bytes_total", &labels), 2000);
    assert_eq!(world.sum("istio_tcp_connections_failed_total", &[]), 0);
}

#[test]
fn a_refusal_counts_as_failed_and_names_the_policy() {
    let world = world(Format::Json, 100);
    let mut connection = world.begin(Direction::Inbound);
    connection.policy(&key("shop", "deny-web"));
    connection.end_because(End::Denied, "denied by policy shop/deny-web");
    connection.end(End::Finished);
    drop(connection);
    let line: serde_json::Value = serde_json::from_str(&world.lines()).expect("one JSON object");
    assert_eq!(line["policy"], "shop/deny-web");
    assert_eq!(line["reason"], "denied");
    assert_eq!(line["error"], "denied by policy shop/deny-web");
    assert_eq!(line["security"], "plain");
    assert_eq!(line.get("src.identity"), None);
    let labels = ["reporter=\"destination\"", "response_flags=\"DENY\"", "source_principal=\"unknown\""];
    assert_eq!(world.sum("istio_tcp_connections_failed_total", &labels), 1);
    assert_eq!(world.sum("istio_tcp_connections_opened_total", &[]), 0);
    assert_eq!(world.sum("istio_tcp_connections_closed_total", &[]), 0);
}

#[test]
fn a_dropped_task_still_leaves_its_record() {
    let world = world(Format::Text, 100);
    let mut connection = world.begin(Direction::Inbound);
    connection.opened();
    connection.opened();
    connection.progress(Bytes { forth: 7, back: 9 });
    drop(connection);
    let line = world.lines();
    assert!(line.contains(" bytes_sent=9 bytes_recv=7 ") && line.ends_with(" reason=abandoned\n"), "{line}");
    assert_eq!(world.sum("istio_tcp_connections_opened_total", &[]), 1);
    assert_eq!(world.sum("istio_tcp_connections_closed_total", &[]), 1);
}

#[test]
fn what_a_peer_says_stays_in_its_field() {
    let world = world(Format::Text, 100);
    let mut connection =
        world.records.begin(Direction::Inbound, address("10.0.0.1:4000"), address("10.9.0.1:80"));
    connection.derived_source(Derived {
        workload: Some("x\" policy=none\n".into()),
        namespace: Some("n".repeat(5000).into()),
        ..Derived::default()
    });
    connection.opened();
    drop(connection);
    let line = world.lines();
    assert_eq!(line.lines().count(), 1);
    assert!(line.contains(r#"src.workload="x\" policy=none\n" "#), "{line}");
    let text = world.metrics.encode(Exposition::Prometheus);
    assert!(text.contains(r#"source_workload="x\" policy=none\n","#), "{text}");
    assert!(!text.contains(&"n".repeat(513)));
}

#[test]
fn label_sets_are_bounded_and_those_in_use_are_kept() {
    let world = world(Format::Text, 8);
    let named = |index: usize| Arc::new(Workload::named(format!("u{index}"), "web", format!("pod-{index}")));
    let open = |index: usize| {
        let mut connection =
            world.records.begin(Direction::Outbound, address("10.0.0.1:1"), address("10.0.0.2:1"));
        connection.source(&named(index));
        connection.opened();
        connection
    };
    // One that stays open, then many that come and go.
    let held = open(1000);
    (0..100).for_each(|index| drop(open(index)));
    let pod = |index: usize| format!("source_workload=\"pod-{index}\"");
    assert_eq!(world.sum("istio_tcp_connections_opened_total", &[&pod(1000)]), 1);
    assert_eq!(world.sum("istio_tcp_connections_opened_total", &[&pod(99)]), 1);
    assert_eq!(world.sum("istio_tcp_connections_opened_total", &[&pod(1)]), 0);
    // All in use: the rest counts together.
    let many: Vec<_> = (200..220).map(open).collect();
    let opened = world.metrics.encode(Exposition::Prometheus);
    let sets = opened.lines().filter(|line| line.starts_with("istio_tcp_connections_opened_total{")).count();
    assert_eq!(sets, 8 + 1);
    assert_eq!(world.sum("istio_tcp_connections_opened_total", &["reporter=\"unknown\""]), 20 - 7);
    drop((held, many));
    assert_eq!(world.sum("istio_tcp_connections_closed_total", &["reporter=\"unknown\""]), 20 - 7);
}

#[test]
fn a_new_version_of_a_workload_counts_in_the_same_series() {
    let world = world(Format::Text, 100);
    drop(world.begin(Direction::Outbound));
    let again = World { client: Arc::new(Workload::clone(&world.client)), ..world };
    drop(again.begin(Direction::Outbound));
    assert_eq!(again.sum("istio_tcp_connections_failed_total", &["source_workload=\"front-1\""]), 2);
}

#[test]
fn live_connections_show_as_json() {
    let world = world(Format::Text, 100);
    let mut connection = world.begin(Direction::Inbound);
    connection.opened();
    connection.progress(Bytes { forth: 1, back: 2 });
    let json = connection.json();
    assert_eq!(json["src"]["workload"], "front-1");
    assert_eq!((&json["bytes_sent"], &json["opened"]), (&2.into(), &true.into()));
}

/// Not a measurement, but a fence: a record must stay far below a connection's own cost. The
/// target is 2 µs in an optimised build; this build is not, and the machine may be busy.
#[test]
fn a_record_is_cheap() {
    let world = world(Format::Text, 100);
    let quiet = Records::new(&world.metrics, AccessLog::none(), Options::default());
    let identity = world.client.identity();
    let best = (0..20)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..1000 {
                let mut c = quiet.begin(Direction::Outbound, address("10.0.0.1:1"), address("10.0.0.2:1"));
                c.source(&world.client);
                c.destination(&world.server);
                c.service(&world.service);
                c.source_identity(&identity);
                c.security(Security::MutualTls);
                c.opened();
                c.progress(Bytes { forth: 10, back: 10 });
                c.end(End::Finished);
            }
            start.elapsed() / 1000
        })
        .min()
        .expect("rounds");
    println!("one record: {best:?}");
    assert!(best < Duration::from_micros(50), "one record costs {best:?}");
}
