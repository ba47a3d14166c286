//! What is kept of connections, and for whom.

use ::http::HeaderValue;
use http_body_util::BodyExt as _;
use hyper::{server, service::service_fn};
use mesh::{Behind, Identity};
use runtime::{logging::AccessLog, metrics::Metrics, record::Requests};
use tokio::{
    io::{AsyncReadExt as _, DuplexStream, duplex},
    sync::mpsc,
    task::{LocalSet, spawn_local},
    time::advance,
};

use super::*;

fn key(caller: &str, endpoint: u16) -> Key {
    let who = |name| Identity::new("cluster.local", "shop", name);
    Key {
        claims: Claims {
            caller: who(caller),
            address: [10, 0, 0, 9].into(),
            waypoint: who("wp"),
            behind: Behind::Workload("c//Pod/shop/web".into()),
        },
        asserted: true,
        endpoint: ([10, 0, 0, 1], endpoint).into(),
        tls: None,
    }
}

fn pools(most_idle: usize, most_keys: usize) -> Pools {
    Pools { most_idle, most_keys, ..Pools::new(Duration::from_secs(60)) }
}

/// A connection that speaks HTTP/1, and the backend's end of it.
async fn connection() -> (One, DuplexStream) {
    let (near, far) = duplex(4096);
    let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
    spawn_local(connection);
    sender.ready().await.unwrap();
    (One { sender, since: Instant::now(), parts: None }, far)
}

/// So many connections kept for a key, each a second younger than the one before it.
async fn keep(pools: &Pools, key: &Key, count: usize) -> Vec<DuplexStream> {
    let mut backends = Vec::new();
    for _ in 0..count {
        advance(Duration::from_secs(1)).await;
        let (one, backend) = connection().await;
        pools.put_one(key.clone(), one);
        backends.push(backend);
    }
    backends
}

fn held(pools: &Pools, key: &Key) -> usize {
    pools.kept.borrow().get(key).map_or(0, |kept| kept.ones.len())
}

#[tokio::test(start_paused = true)]
async fn what_one_caller_has_left_is_not_in_anothers_way() {
    let test = async {
        let pools = pools(32, 8192);
        let (greedy, other) = (key("greedy", 80), key("other", 80));
        let _greedy = keep(&pools, &greedy, 32).await;
        assert_eq!((held(&pools, &greedy), pools.ones.get()), (32, 32));
        let _other = keep(&pools, &other, 2).await;
        assert_eq!(held(&pools, &other), 2, "the newcomer has his place");
        assert_eq!(
            (held(&pools, &greedy), pools.ones.get()),
            (27, 29),
            "the eighth that was idle the longest is gone"
        );
        // Who goes on using what he has keeps it, whoever else comes.
        for _ in 0..20 {
            let mut one = pools.take_one(&other).expect("kept");
            one.since = Instant::now();
            pools.put_one(other.clone(), one);
            drop(keep(&pools, &greedy, 3).await);
            assert!(pools.ones.get() <= 32);
            assert!(held(&pools, &other) >= 1);
        }
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn so_many_callers_are_known_and_the_one_that_was_idle_the_longest_goes() {
    let test = async {
        let pools = pools(1024, 16);
        let mut backends = Vec::new();
        for endpoint in 0..40 {
            backends.extend(keep(&pools, &key("client", endpoint), 1).await);
            assert!(pools.kept.borrow().len() <= 16);
            assert_eq!(held(&pools, &key("client", endpoint)), 1, "{endpoint}");
        }
        assert_eq!(pools.ones.get(), pools.kept.borrow().len());
        assert_eq!(held(&pools, &key("client", 0)), 0);
    };
    LocalSet::new().run_until(test).await;
}

/// A request whose body is not over, and the caller's end of it.
async fn unfinished() -> (Request<Body>, DuplexStream) {
    let (mut caller, near) = duplex(4096);
    let (come, mut came) = mpsc::unbounded_channel();
    let service = service_fn(move |request: Request<Incoming>| {
        let _ = come.send(request.into_body());
        std::future::pending::<Result<Response<Body>, std::convert::Infallible>>()
    });
    spawn_local(server::conn::http1::Builder::new().serve_connection(TokioIo::new(near), service));
    caller.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nabc").await.unwrap();
    let inner = came.recv().await.unwrap();
    let requests = Requests::new(&Metrics::new("waypoint"), AccessLog::none(), Default::default());
    let record = requests.begin(([10, 0, 0, 1], 1).into(), "HTTP/1.1", "POST", "/");
    let body = Body::Request { inner, record: Rc::new(RefCell::new(record)) };
    let mut request = Request::post("/").body(body).unwrap();
    request.headers_mut().insert("host", HeaderValue::from_static("a"));
    (request, caller)
}

#[tokio::test(start_paused = true)]
async fn an_answer_before_the_requests_end_keeps_no_place_and_the_rest_still_arrives() {
    let test = async {
        let (pools, key) = (Rc::new(pools(32, 32)), key("slow", 80));
        let (mut one, mut backend) = connection().await;
        let (request, mut caller) = unfinished().await;
        let sending = spawn_local(async move {
            let response = one.sender.try_send_request(request).await.map_err(|_| "unsent").unwrap();
            (response, one)
        });
        let mut heard = Vec::new();
        while !heard.ends_with(b"abc") {
            assert_ne!(backend.read_buf(&mut heard).await.unwrap(), 0);
        }
        backend.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
        let (response, one) = sending.await.unwrap();
        let lease = Lease { pools: pools.clone(), held: Some((key.clone(), one)) };
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "no");
        drop(lease);
        assert!(pools.take_one(&key).is_none(), "it has a body to send still");
        pools.sweep();
        assert_eq!((held(&pools, &key), pools.ones.get()), (0, 0));
        caller.write_all(b"def").await.unwrap();
        while !heard.ends_with(b"abcdef") {
            assert_ne!(backend.read_buf(&mut heard).await.unwrap(), 0);
        }
        assert_eq!(backend.read_buf(&mut heard).await.unwrap(), 0, "and the connection ends with it");
    };
    LocalSet::new().run_until(test).await;
}
