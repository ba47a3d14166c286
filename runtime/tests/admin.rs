//! The admin servers over real sockets.

use runtime::{
    admin::{Addresses, Handlers, Servers},
    drain, logging,
    metrics::Metrics,
    readiness::Readiness,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

async fn request(address: Option<std::net::SocketAddr>, head: &str) -> String {
    let mut stream = TcpStream::connect(address.expect("an address")).await.expect("connects");
    let head = if head.contains(" HTTP/1.1") { head.to_owned() } else { format!("{head} HTTP/1.1") };
    let head = format!("{head}\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("reads");
    answer
}

#[tokio::test]
async fn the_three_servers_answer() {
    let loopback = Some("127.0.0.1:0".parse().expect("an address"));
    let addresses = Addresses { admin: loopback, metrics: loopback, ready: loopback };
    let (metrics, readiness, handlers) = (Metrics::new("test"), Readiness::new(), Handlers::new());
    let logging = logging::init(logging::Format::Text, "info").expect("the first to set up logging");
    handlers.add("/echo", "says it back", |query| async move {
        match query.get("word") {
            Some(word) => Ok(serde_json::json!({ "word": word })),
            None => Err("word= is missing".to_owned()),
        }
    });
    let servers =
        Servers::bind("test", addresses, metrics, readiness.clone(), logging.levels(), handlers).await;
    let servers = servers.expect("binds");
    let at = servers.addresses();
    let (drain, watch) = drain::channel();
    servers.spawn(watch);

    let task = readiness.task("world", "its creation");
    let unready = request(at.ready, "GET /healthz/ready").await;
    assert!(unready.starts_with("HTTP/1.1 503 "), "{unready}");
    assert!(unready.ends_with("not ready: world waits for its creation\n"), "{unready}");
    task.ready();
    assert!(request(at.ready, "GET /healthz/ready").await.starts_with("HTTP/1.1 200 "));
    assert!(request(at.ready, "GET /metrics").await.starts_with("HTTP/1.1 404 "));

    let shown = request(at.metrics, "GET /metrics").await;
    assert!(
        shown.contains("version=0.0.4") && shown.contains("culvert_build_info{component=\"test\""),
        "{shown}"
    );

    assert!(request(at.admin, "GET /").await.contains("\"/echo\": \"says it back\""));
    assert!(request(at.admin, "GET /echo?word=a%20b").await.contains("\"word\": \"a b\""));
    let missing = request(at.admin, "GET /echo").await;
    assert!(missing.starts_with("HTTP/1.1 400 ") && missing.ends_with("word= is missing\n"), "{missing}");

    assert!(request(at.admin, "GET /logging?level=debug").await.starts_with("HTTP/1.1 405 "));
    assert!(request(at.admin, "POST /logging?level=test=debug").await.ends_with("test=debug\n"));
    assert_eq!(logging.levels().current(), "test=debug");
    assert!(request(at.admin, "POST /logging?level=x=y").await.starts_with("HTTP/1.1 400 "));
    // A web page can make a browser send a POST to loopback; it cannot hide where it comes from.
    assert!(
        request(at.admin, "POST /logging?level=off HTTP/1.1\r\nOrigin: http://x").await.contains(" 403 ")
    );
    assert_eq!(logging.levels().current(), "test=debug");

    drain.start();
    assert!(request(at.ready, "GET /healthz/ready").await.ends_with("draining\n"));

    let taken = Addresses { metrics: at.metrics, ..Addresses::default() };
    let (metrics, handlers) = (Metrics::new("test"), Handlers::new());
    let bound = Servers::bind("test", taken, metrics, readiness, logging.levels(), handlers).await;
    let error = bound.err().expect("the address is taken").to_string();
    assert!(error.contains("metrics server") && error.contains("--metrics-addr"), "{error}");
}
