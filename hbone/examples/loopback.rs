//! What a pair of tunnel ends costs on this machine: app → client end → TLS, HTTP/2 → server end → app,
//! each end on a thread of its own, everything over loopback sockets.
//!
//! ```text
//! cargo run --release -p hbone --example loopback -- bulk 1 5       # streams, seconds
//! cargo run --release -p hbone --example loopback -- requests 32 5  # connections, seconds
//! cargo run --release -p hbone --example loopback -- connects 1 5   # connections at a time, seconds
//! cargo run --release -p hbone --example loopback -- idle 2000 1    # connections; KB of memory each
//! ```
//! `plain-bulk` and so on do the same by `copy::direct`, without a tunnel.

use std::{
    future::{Future, pending},
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use hbone::{
    Settings,
    client::{Connect, Key, Pool},
    copy::{Meter, direct, relay},
    server::{Arrival, Ends, Limits, serve},
};
use identity::{Identity, IssueError, Issued, Issuer, Store, StoreOptions, authority::Authority};
use tokio::task::{LocalSet, spawn_local};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Signs for both ends.
struct Local(Arc<Authority>);

impl Issuer for Local {
    fn issue(
        &self,
        identity: &Identity,
        csr_pem: String,
    ) -> Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send>> {
        let signed = self.0.sign(&csr_pem, identity, Duration::from_secs(3600));
        Box::pin(async move {
            signed
                .map(|chain_pem| Issued { chain_pem })
                .map_err(|error| IssueError::Denied(error.to_string()))
        })
    }
}

fn identity_of(name: &str) -> Identity {
    Identity::new("cluster.local", "default", name)
}

/// Runs `end` on a thread of its own.
fn end_thread<F: Future<Output = Result<(), Failure>>>(end: impl FnOnce() -> F + Send + 'static) {
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        if let Err(error) = LocalSet::new().block_on(&runtime, end()) {
            eprintln!("an end failed: {error}");
            std::process::exit(1);
        }
    });
}

async fn store_of(authority: Arc<Authority>, identity: &Identity) -> Result<Arc<Store>, Failure> {
    let store = Store::new(Arc::new(Local(authority)), StoreOptions::default());
    store.hold(identity);
    store.certified(identity).await?;
    Ok(store)
}

/// The server end: each CONNECT goes to the address that it names.
async fn server_end(authority: Arc<Authority>, ready: mpsc::Sender<SocketAddr>) -> Result<(), Failure> {
    let identity = identity_of("server");
    let store = store_of(authority, &identity).await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    ready.send(listener.local_addr()?)?;
    loop {
        let (tcp, remote) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        let ends = Ends { remote, local: tcp.local_addr()? };
        let config = store.server_config(&store.certified(&identity).await?);
        spawn_local(async move {
            let served = serve(tcp, ends, config, &Limits::default(), pending(), handle).await;
            if let Err(error) = served {
                eprintln!("{error}");
            }
        });
    }
}

async fn handle(arrival: Arrival) {
    let hbone::Authority::Ip(target) = arrival.authority else { return };
    let Ok(app) = dial_app(target).await else { return };
    if let Ok(tunnel) = arrival.accept(None) {
        relay(app, tunnel, &Meter::new(), pending()).await;
    }
}

/// The client end: what it accepts goes through the tunnel (or past it) to `app`.
async fn client_end(
    authority: Arc<Authority>,
    server: SocketAddr,
    app: SocketAddr,
    plain: bool,
    ready: mpsc::Sender<SocketAddr>,
) -> Result<(), Failure> {
    let source = identity_of("client");
    let pool = Pool::new(Settings::default(), store_of(authority, &source).await?);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    ready.send(listener.local_addr()?)?;
    let expected: Arc<[Identity]> = Arc::from([identity_of("server")]);
    loop {
        let (tcp, remote) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        let key =
            Key { source: source.clone(), source_ip: remote.ip(), peer: server, expected: expected.clone() };
        let connect = Connect {
            authority: app.to_string(),
            source: remote,
            service_host: None,
            baggage: Some("k8s.namespace.name=default,service.name=client".to_owned()),
            traceparent: None,
            assertion: None,
        };
        let pool = pool.clone();
        spawn_local(async move {
            if plain {
                if let Ok(app) = dial_app(app).await {
                    direct(tcp, app, &Meter::new(), pending(), ()).await;
                }
                return;
            }
            let dial = async move || dial_app(server).await;
            match pool.open(&key, dial, &connect).await {
                Ok((tunnel, _)) => drop(relay(tcp, tunnel, &Meter::new(), pending()).await),
                Err(error) => eprintln!("{error}"),
            }
        });
    }
}

/// The called app: swallows (bulk) or echoes, a thread per connection.
fn app(echo: bool) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::Builder::new()
                .stack_size(512 << 10)
                .spawn(move || serve_app(stream, echo))
                .expect("a thread");
        }
    });
    Ok(address)
}

fn serve_app(mut stream: TcpStream, echo: bool) {
    let mut buffer = vec![0; if echo { 4096 } else { 256 << 10 }];
    let _ = stream.set_nodelay(true);
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if echo && stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// Runs `work` on `count` threads for a while; `work` returns what it has done each time.
fn measure<C: Send + 'static>(
    count: usize,
    seconds: u64,
    start: impl Fn() -> io::Result<C>,
    work: impl Fn(&mut C) -> io::Result<u64> + Clone + Send + 'static,
) -> Result<(u64, Duration, Vec<u32>), Failure> {
    let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut threads = Vec::new();
    let begun = Instant::now();
    for _ in 0..count {
        let (mut context, work, over, done) = (start()?, work.clone(), over.clone(), done.clone());
        threads.push(thread::spawn(move || {
            let mut took = Vec::new();
            while !over.load(Relaxed) {
                let start = Instant::now();
                match work(&mut context) {
                    Ok(amount) => drop(done.fetch_add(amount, Relaxed)),
                    Err(error) => {
                        eprintln!("{error}");
                        break;
                    }
                }
                took.push(start.elapsed().as_micros() as u32);
            }
            took
        }));
    }
    thread::sleep(Duration::from_secs(seconds));
    over.store(true, Relaxed);
    let (total, elapsed) = (done.load(Relaxed), begun.elapsed());
    let mut took: Vec<u32> =
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect();
    took.sort_unstable();
    Ok((total, elapsed, took))
}

fn ping(stream: &mut TcpStream) -> io::Result<u64> {
    let mut buffer = [0; 64];
    stream.write_all(&[1; 64])?;
    stream.read_exact(&mut buffer)?;
    Ok(1)
}

/// Seconds of CPU and KB of memory of this process.
fn usage() -> Result<(f64, u64), Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    Ok((ticks / 100.0, rss.split_whitespace().next().unwrap_or("0").parse()?))
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mode = arguments.first().map_or("bulk", String::as_str);
    let number = |index: usize, default: u64| arguments.get(index).map_or(Ok(default), |text| text.parse());
    let (count, seconds) = (number(1, 1)? as usize, number(2, 4)?);
    let (plain, what) = mode.strip_prefix("plain-").map_or((false, mode), |what| (true, what));

    let authority = Arc::new(Authority::ephemeral("cluster.local")?);
    let app = app(what != "bulk")?;
    let (ready, address) = mpsc::channel();
    let of_server = authority.clone();
    end_thread(move || server_end(of_server, ready));
    let server = address.recv()?;
    let (ready, address) = mpsc::channel();
    end_thread(move || client_end(authority, server, app, plain, ready));
    let entry = address.recv()?;
    let connect = move || {
        let stream = TcpStream::connect(entry)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    ping_once(what, connect)?;

    let (cpu, rss) = usage()?;
    match what {
        "bulk" => {
            let piece = vec![7; 128 << 10];
            let (bytes, elapsed, _) = measure(count, seconds, connect, move |stream: &mut TcpStream| {
                stream.write_all(&piece)?;
                Ok(piece.len() as u64)
            })?;
            let gbit = bytes as f64 * 8.0 / elapsed.as_secs_f64() / 1e9;
            let per_gb = (usage()?.0 - cpu) / (bytes as f64 / 1e9);
            println!("{mode}: {gbit:.2} Gbit/s, {per_gb:.2} CPU-s per GB (apps included)");
        }
        "requests" => {
            let (requests, elapsed, took) = measure(count, seconds, connect, ping)?;
            report(mode, requests, elapsed, &took, usage()?.0 - cpu);
        }
        "connects" => {
            let (requests, elapsed, took) =
                measure(count, seconds, || Ok(()), move |()| ping(&mut connect()?))?;
            report(mode, requests, elapsed, &took, usage()?.0 - cpu);
        }
        "idle" => {
            let mut open = Vec::new();
            for _ in 0..count {
                let mut stream = connect()?;
                ping(&mut stream)?;
                open.push(stream);
            }
            thread::sleep(Duration::from_secs(seconds));
            let grown = usage()?.1 - rss;
            println!("{mode}: {:.1} KB per connection, both ends and both apps", grown as f64 / count as f64);
        }
        other => return Err(format!("{other}: bulk, requests, connects or idle").into()),
    }
    Ok(())
}

/// The first connection pays for the handshake.
fn ping_once(what: &str, connect: impl Fn() -> io::Result<TcpStream>) -> io::Result<()> {
    if what == "bulk" { connect()?.write_all(&[0; 64]) } else { ping(&mut connect()?).map(drop) }
}

fn report(mode: &str, requests: u64, elapsed: Duration, took: &[u32], cpu: f64) {
    let rate = requests as f64 / elapsed.as_secs_f64();
    let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or(0);
    let each = cpu * 1e6 / requests.max(1) as f64;
    println!(
        "{mode}: {rate:.0}/s, p50 {} µs, p99 {} µs, {each:.1} CPU-µs each (apps included)",
        at(0.5),
        at(0.99)
    );
}

async fn dial_app(to: SocketAddr) -> std::io::Result<tokio::net::TcpStream> {
    let stream = tokio::net::TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
