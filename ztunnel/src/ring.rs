//! A test ring: the whole of ztunnel but for the kernel programs, in one process and in real network
//! namespaces, with a mesh and an authority of the test's own. (Capture is tested by the node ring.)

use std::{
    collections::HashSet,
    fs,
    future::Future,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
    pin::Pin,
    process::Command,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use capture::Netns;
use hbone::{
    client::{Connect, Key, OpenError, Pool, TunnelInfo},
    copy::{Meter, relay},
};
use http::StatusCode;
use identity::{IssueError, Issued, Issuer, Store, StoreOptions, authority::Authority};
use mesh::{
    Action, Clause, Identity, Match, Policy, PolicyKey, Rule, Scope, Snapshot, StringMatch, Tunnel as Speaks,
    Workload,
};
use runtime::{
    drain,
    logging::AccessLog,
    readiness::Readiness,
    record::{Options, Records},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::LocalSet,
};

use crate::{
    config::Args,
    pods::{Directory, Manager},
    shared::Shared,
    sockets::{self, FirstBytes, Inside, Measure, OnwardPorts, Own},
    worker::Workers,
    zds::{PodInfo, Pods},
};

/// A network namespace of the test's own, with `lo` up and one address on it.
struct Namespace {
    name: String,
    address: IpAddr,
}

impl Namespace {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("cvz{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        ip(&["-n", &name, "addr", "add", "10.77.0.5/32", "dev", "lo"]);
        Self { name, address: "10.77.0.5".parse().unwrap() }
    }

    fn open(&self) -> Netns {
        Netns::open(&Path::new("/run/netns").join(&self.name)).unwrap()
    }

    fn descriptor(&self) -> OwnedFd {
        fs::File::open(Path::new("/run/netns").join(&self.name)).unwrap().into()
    }

    fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    fn can_connect(&self, port: u16) -> bool {
        self.open().enter(|| TcpStream::connect(self.port(port))).unwrap().is_ok()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("the ring needs iproute2");
    assert!(status.success(), "ip {arguments:?} failed; the ring needs root");
}

/// An authority in this process.
struct Here(Arc<Authority>);

impl Issuer for Here {
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

fn args() -> Args {
    let line = [
        "ztunnel",
        "--node",
        "a",
        "--control",
        "https://c:1",
        "--control-ca",
        "ca",
        "--token-file",
        "t",
        "--pins",
    ];
    let line = line.iter().chain(&["/nonexistent", "--pod-grace", "200ms", "--patience", "2s"]);
    runtime::config::resolve_from(line.map(Into::into), &|_| None, |_: &Args, _| {}).unwrap()
}

/// One ztunnel and one pod `web` in a namespace of its own.
struct Ring {
    namespace: Namespace,
    shared: Arc<Shared>,
    manager: Manager,
    authority: Arc<Authority>,
    _drain: drain::Drain,
}

impl Ring {
    async fn new() -> Self {
        let namespace = Namespace::new();
        let authority = Arc::new(Authority::ephemeral("cluster.local").unwrap());
        let store = Store::new(Arc::new(Here(authority.clone())), StoreOptions::default());
        let registry = runtime::metrics::Metrics::new("test");
        let (drain, watch) = drain::channel();
        let tally = Arc::default();
        let shared = Arc::new(Shared {
            settings: args().settings(),
            mesh: xds::Mesh::new(),
            store,
            assertions: identity::assertion::Assertions::default(),
            pods: Directory::default(),
            metrics: crate::metrics::Metrics::new(&registry, &tally),
            tally,
            records: Records::new(&registry, AccessLog::none(), Options::default()),
            drain: watch,
            carried: Arc::default(),
        });
        shared.mesh.publish(mesh_with(&namespace, &[]));
        let workers = Workers::start(2, false, &shared).unwrap();
        let ready = Readiness::new().task("pods", "the agent");
        let mut manager = Manager::new(shared.clone(), workers, "/nonexistent".into(), ready);
        manager.add(web(), namespace.descriptor()).await.unwrap();
        Self { namespace, shared, manager, authority, _drain: drain }
    }

    fn publish(&self, policies: &[Policy]) {
        self.shared.mesh.publish(mesh_with(&self.namespace, policies));
    }

    /// A caller with a proved identity.
    fn caller(&self, service_account: &str) -> Caller {
        let store = Store::new(Arc::new(Here(self.authority.clone())), StoreOptions::default());
        let source = Identity::new("cluster.local", "shop", service_account);
        store.hold(&source);
        let pool = Pool::new(hbone::Settings::default(), store);
        Caller { pool, source, netns: Rc::new(self.namespace.open()), address: self.namespace.address }
    }
}

struct Caller {
    pool: Pool,
    source: Identity,
    netns: Rc<Netns>,
    address: IpAddr,
}

impl Caller {
    async fn open(&self, authority: &str) -> Result<(DuplexStream, TunnelInfo), OpenError> {
        let peer = SocketAddr::new(self.address, 15008);
        let expected = Arc::from([Identity::new("cluster.local", "shop", "web")]);
        let key = Key { source: self.source.clone(), source_ip: self.address, peer, expected };
        let connect = Connect {
            authority: authority.to_owned(),
            source: SocketAddr::new(self.address, 1),
            service_host: None,
            baggage: None,
            traceparent: None,
            assertion: None,
        };
        let (netns, from, options) = (self.netns.clone(), self.address, args().settings().sockets);
        let dial = async move || {
            sockets::dial(&netns, &Own::Mark(0x539), Some(from), peer, Measure::No, &options).await
        };
        let (tunnel, info) = self.pool.open(&key, dial, &connect).await?;
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::task::spawn_local(async move {
            relay(theirs, tunnel, &Meter::new(), std::future::pending()).await;
        });
        Ok((ours, info))
    }

    async fn status(&self, authority: &str) -> StatusCode {
        match self.open(authority).await {
            Ok(_) => StatusCode::OK,
            Err(OpenError::Refused { status, .. }) => status,
            Err(error) => panic!("{error}"),
        }
    }
}

fn web() -> PodInfo {
    PodInfo {
        uid: "uid-web".into(),
        namespace: "shop".into(),
        name: "web".into(),
        service_account: "web".into(),
        answer_dns: None,
    }
}

fn mesh_with(namespace: &Namespace, policies: &[Policy]) -> Snapshot {
    let mut edit = Snapshot::default().edit();
    let mut web = Workload::named("Kubernetes//Pod/shop/web", "shop", "web");
    web.service_account = "web".into();
    web.addresses = vec![namespace.address];
    web.node = "a".into();
    web.tunnel = Speaks::Hbone;
    edit.put_workload(web);
    policies.iter().cloned().for_each(|policy| edit.put_policy(policy));
    edit.mark_addresses_complete();
    edit.mark_policies_complete();
    edit.finish()
}

fn deny(service_account: &str) -> Policy {
    let principal = format!("cluster.local/ns/shop/sa/{service_account}");
    let principals = vec![StringMatch::Exact(principal.as_str().into())];
    let clause = Clause { matches: vec![Match { principals, ..Match::default() }] };
    Policy {
        key: PolicyKey { namespace: "shop".into(), name: "deny".into() },
        scope: Scope::Namespace,
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule { clauses: vec![clause] }],
    }
}

/// An app in the namespace that sends back what it gets, and notes who called.
fn echo(namespace: &Namespace, port: u16) -> Arc<Mutex<Vec<SocketAddr>>> {
    let listener = namespace.open().enter(|| TcpListener::bind(namespace.port(port))).unwrap().unwrap();
    let callers: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
    let noted = callers.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            noted.lock().unwrap().push(stream.peer_addr().unwrap());
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    callers
}

/// Descriptors of this process that are the namespace with this inode (of nsfs, which has no names).
fn held(namespace: (u64, u64)) -> usize {
    let entries = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let number = |entry: fs::DirEntry| fs::metadata(entry.path()).map(|file| (file.dev(), file.ino()));
    entries.filter_map(|entry| number(entry).ok()).filter(|number| *number == namespace).count()
}

async fn until(what: &str, mut met: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !met() {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_proved_caller_reaches_the_app_from_its_own_address() {
    LocalSet::new()
        .run_until(async {
            let ring = Ring::new().await;
            let callers = echo(&ring.namespace, 8080);
            let (mut stream, info) = ring.caller("alice").open("10.77.0.5:8080").await.unwrap();
            assert_eq!(info.peer, Identity::new("cluster.local", "shop", "web"));
            assert_eq!(info.baggage.unwrap().namespace, "shop");
            stream.write_all(b"hello").await.unwrap();
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"hello");
            assert_eq!(ring.shared.carried(), 1);
            stream.shutdown().await.unwrap();
            assert_eq!(stream.read(&mut answer).await.unwrap(), 0, "the app's end follows ours");
            until("the connection is over", || ring.shared.carried() == 0).await;
            let callers = callers.lock().unwrap();
            assert_eq!(callers.len(), 1);
            assert_eq!(callers[0].ip(), ring.namespace.address);
            let port = callers[0].port();
            assert!((20000..=32767).contains(&port) || port >= 61000, "{port}");
        })
        .await;
}

#[tokio::test]
async fn a_connect_goes_to_this_pods_app_and_nowhere_else() {
    LocalSet::new()
        .run_until(async {
            let ring = Ring::new().await;
            let alice = ring.caller("alice");
            assert_eq!(alice.status("10.77.0.6:8080").await, StatusCode::BAD_REQUEST);
            assert_eq!(alice.status("127.0.0.1:8080").await, StatusCode::BAD_REQUEST);
            assert_eq!(alice.status("10.77.0.5:15008").await, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(alice.status("10.77.0.5:15001").await, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(
                alice.status("10.77.0.5:8099").await,
                StatusCode::SERVICE_UNAVAILABLE,
                "nobody listens"
            );
            assert_eq!(
                alice.status("nobody.shop.svc.cluster.local:80").await,
                StatusCode::SERVICE_UNAVAILABLE
            );
        })
        .await;
}

#[tokio::test]
async fn a_policy_refuses_new_connections_and_ends_live_ones() {
    LocalSet::new()
        .run_until(async {
            let ring = Ring::new().await;
            echo(&ring.namespace, 8080);
            let (alice, mallory) = (ring.caller("alice"), ring.caller("mallory"));
            let (mut good, _) = alice.open("10.77.0.5:8080").await.unwrap();
            let (mut bad, _) = mallory.open("10.77.0.5:8080").await.unwrap();
            ring.publish(&[deny("mallory")]);
            let mut byte = [0];
            let ended = tokio::time::timeout(Duration::from_secs(5), bad.read(&mut byte)).await;
            assert!(!matches!(ended.expect("the connection was not ended"), Ok(1..)));
            assert_eq!(mallory.status("10.77.0.5:8080").await, StatusCode::UNAUTHORIZED);
            good.write_all(b"x").await.unwrap();
            good.read_exact(&mut byte).await.unwrap();
            assert_eq!(&byte, b"x", "an allowed connection goes on");
        })
        .await;
}

#[tokio::test]
async fn a_pod_that_is_gone_leaves_no_listener_and_no_namespace_behind() {
    LocalSet::new()
        .run_until(async {
            let mut ring = Ring::new().await;
            echo(&ring.namespace, 8080);
            let file = fs::File::from(ring.namespace.descriptor()).metadata().unwrap();
            let number = (file.dev(), file.ino());
            let (mut stream, _) = ring.caller("alice").open("10.77.0.5:8080").await.unwrap();
            assert!(ring.namespace.can_connect(15001) && ring.namespace.can_connect(15006));
            assert!(ring.manager.knows("uid-web") && held(number) > 0);
            // The same pod again changes nothing.
            ring.manager.add(web(), ring.namespace.descriptor()).await.unwrap();

            ring.manager.retain(&HashSet::new());
            assert!(!ring.manager.knows("uid-web"));
            until("the listeners are closed", || !ring.namespace.can_connect(15001)).await;
            let mut byte = [0];
            let ended = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut byte)).await;
            assert!(!matches!(ended.expect("the connection outlived the grace"), Ok(1..)));
            until("every descriptor of the namespace is closed", || held(number) == 0).await;
        })
        .await;
}

#[test]
fn more_connections_than_ports_are_made_when_the_app_closes_first() {
    let namespace = Namespace::new();
    let listener = namespace.open().enter(|| TcpListener::bind(namespace.port(8080))).unwrap().unwrap();
    thread::spawn(move || listener.incoming().for_each(drop));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (netns, ports, options) = (namespace.open(), OnwardPorts::new(), args().settings().sockets);
    // 17,304 ports; from then on, each stands on the remains of an earlier connection.
    runtime.block_on(async {
        for count in 0..18_000 {
            let inside = Inside { netns: &netns, own: &Own::Mark(0x539), ports: &ports };
            let (caller, to) = (namespace.address, namespace.port(8080));
            let mut app = sockets::onward(&inside, caller, to, FirstBytes::Unknown, &options, |_from| ())
                .await
                .unwrap_or_else(|error| panic!("connection {count}: {error}"));
            assert_eq!(app.read(&mut [0]).await.unwrap(), 0, "the app closes");
        }
    });
}
