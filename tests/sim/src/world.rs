//! A calling node and a called node that trust one authority, and the wires between them.

use std::{
    cell::{Cell, RefCell},
    future::{Future, pending},
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use hbone::{
    Settings,
    client::{Connect, Key, OpenError, Pool, TunnelInfo},
    copy::{End, Meter, relay},
    server::{Arrival, Ends, Limits, ServeError, Served, serve},
};
use identity::{Identity, IssueError, Issued, Issuer, Store, StoreOptions, authority::Authority};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::{JoinHandle, LocalSet, spawn_local},
};

use crate::pipe::{Pipe, Wire, pipe};

/// Runs a test on one thread with paused time. What hangs for a day of that time has failed.
pub fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let local = LocalSet::new();
    let bounded = async { tokio::time::timeout(Duration::from_secs(24 * 3600), test).await };
    local.block_on(&runtime, bounded).expect("the test hangs");
}

/// Signs at once, for anybody.
pub struct Obliging(pub Arc<Authority>);

impl Issuer for Obliging {
    fn issue(
        &self,
        identity: &Identity,
        csr_pem: String,
    ) -> Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send>> {
        let signed = self.0.sign(&csr_pem, identity, Duration::from_secs(7 * 24 * 3600));
        Box::pin(async move {
            signed
                .map(|chain_pem| Issued { chain_pem })
                .map_err(|error| IssueError::Denied(error.to_string()))
        })
    }
}

/// A connection that has reached the called node.
pub struct Accepted {
    /// The app's end of the socket.
    pub app: Pipe,
    /// How the copy at the called node ended.
    pub end: JoinHandle<End>,
    pub authority: String,
    pub caller: Identity,
    pub forwarded: Option<hbone::Forwarded>,
}

/// A connection as the calling node sees it.
pub struct Caller {
    /// The app's end of the socket.
    pub app: Pipe,
    pub end: JoinHandle<End>,
    pub info: TunnelInfo,
    pub meter: Arc<Meter>,
}

/// How the called node answers a CONNECT instead of accepting it.
pub type Judge = dyn Fn(&Arrival) -> Option<http::StatusCode>;

/// See the module.
pub struct World {
    pub authority: Arc<Authority>,
    pub caller: Identity,
    pub called: Identity,
    pub calling_store: Arc<Store>,
    pub called_store: Arc<Store>,
    pub settings: Settings,
    pub limits: Limits,
    /// Wires of all tunnels, in the order they were dialled.
    pub wires: Rc<RefCell<Vec<Wire>>>,
    pub served: Rc<RefCell<Vec<Result<Served, ServeError>>>>,
    pub judge: Rc<RefCell<Box<Judge>>>,
    /// Each new wire is chopped by it.
    pub chop: Cell<Option<u64>>,
    /// Bytes that a wire holds each way.
    pub wire_capacity: Cell<usize>,
    /// Bytes that an app's socket holds each way.
    pub socket_capacity: Cell<usize>,
    ended: Notify,
    drain: watch::Sender<bool>,
    arrived: mpsc::UnboundedSender<Accepted>,
    accepted: RefCell<mpsc::UnboundedReceiver<Accepted>>,
}

impl World {
    pub async fn new() -> Rc<Self> {
        Self::with_settings(Settings::default()).await
    }

    pub async fn with_settings(settings: Settings) -> Rc<Self> {
        let authority = Arc::new(Authority::ephemeral("cluster.local").expect("an authority"));
        let caller = Identity::new("cluster.local", "default", "caller");
        let called = Identity::new("cluster.local", "default", "called");
        let store = |authority: &Arc<Authority>, identity: &Identity| {
            let store = Store::new(Arc::new(Obliging(authority.clone())), StoreOptions::default());
            store.hold(identity);
            store
        };
        let (arrived, accepted) = mpsc::unbounded_channel();
        let world = Self {
            calling_store: store(&authority, &caller),
            called_store: store(&authority, &called),
            limits: Limits { settings: settings.clone(), ..Limits::default() },
            authority,
            caller,
            called,
            settings,
            wires: Rc::default(),
            served: Rc::default(),
            judge: Rc::new(RefCell::new(Box::new(|_| None))),
            chop: Cell::new(None),
            wire_capacity: Cell::new(256 << 10),
            socket_capacity: Cell::new(64 << 10),
            ended: Notify::new(),
            drain: watch::Sender::new(false),
            arrived,
            accepted: RefCell::new(accepted),
        };
        world.calling_store.certified(&world.caller).await.expect("a certificate");
        world.called_store.certified(&world.called).await.expect("a certificate");
        Rc::new(world)
    }

    pub fn pool(&self) -> Pool {
        Pool::new(self.settings.clone(), self.calling_store.clone())
    }

    pub fn key(&self) -> Key {
        Key {
            source: self.caller.clone(),
            source_ip: IpAddr::from([10, 0, 0, 1]),
            peer: SocketAddr::from(([10, 0, 0, 2], 15008)),
            expected: Arc::from([self.called.clone()]),
        }
    }

    pub fn connect(&self) -> Connect {
        Connect {
            authority: "10.0.0.2:8080".to_owned(),
            source: SocketAddr::from(([10, 0, 0, 1], 4711)),
            service_host: Some("called.default.svc.cluster.local".to_owned()),
            baggage: Some("k8s.namespace.name=default".to_owned()),
            traceparent: None,
            assertion: None,
        }
    }

    /// Asks all tunnels that are being served to drain.
    pub fn drain(&self) {
        self.drain.send_replace(true);
    }

    /// Tunnels from now on are served as usual again.
    pub fn undrain(&self) {
        self.drain.send_replace(false);
    }

    /// A new wire to the called node, which serves it.
    pub fn dial(self: &Rc<Self>) -> Pipe {
        let (near, far) = self.wire();
        self.serve(far);
        near
    }

    /// A new wire with nobody at its far end yet.
    pub fn wire(&self) -> (Pipe, Pipe) {
        let (near, far, wire) = pipe(self.wire_capacity.get(), self.chop.get());
        self.wires.borrow_mut().push(wire);
        (near, far)
    }

    /// The called node takes a connection.
    pub fn serve(self: &Rc<Self>, far: Pipe) {
        let world = self.clone();
        spawn_local(async move {
            let certified = world.called_store.certified(&world.called).await.expect("a certificate");
            let config = world.called_store.server_config(&certified);
            let ends = Ends {
                remote: SocketAddr::from(([10, 0, 0, 1], 50000)),
                local: SocketAddr::from(([10, 0, 0, 2], 15008)),
            };
            let mut drain = world.drain.subscribe();
            let drained = async move {
                if drain.wait_for(|drain| *drain).await.is_err() {
                    pending::<()>().await;
                }
            };
            let handling = world.clone();
            let handler = move |arrival| handling.clone().handle(arrival);
            let served = serve(far, ends, config, &world.limits, drained, handler).await;
            world.served.borrow_mut().push(served);
            world.ended.notify_one();
        });
    }

    async fn handle(self: Rc<Self>, arrival: Arrival) {
        let verdict = (self.judge.borrow())(&arrival);
        if let Some(status) = verdict {
            return arrival.refuse(status);
        }
        let (authority, caller) = (arrival.authority.to_string(), arrival.peer.clone());
        let forwarded = arrival.forwarded.clone();
        let Ok(tunnel) = arrival.accept(Some("k8s.namespace.name=default,service.name=called")) else {
            return;
        };
        let (near, app, _wire) = pipe(self.socket_capacity.get(), self.chop.get().map(|seed| seed ^ 77));
        let end = spawn_local(async move { relay(near, tunnel, &Meter::new(), pending()).await });
        // A test that is over takes no more.
        let _ = self.arrived.send(Accepted { app, end, authority, caller, forwarded });
    }

    /// The next connection at the called node.
    pub async fn accepted(&self) -> Accepted {
        std::future::poll_fn(|cx| self.accepted.borrow_mut().poll_recv(cx)).await.expect("the world goes on")
    }

    /// Waits until some tunnel is not served any more.
    pub async fn one_ended(&self) {
        self.ended.notified().await;
    }

    /// Opens a connection from an app of the calling node.
    pub async fn open(self: &Rc<Self>, pool: &Pool) -> Result<Caller, OpenError> {
        self.open_with(pool, &self.key(), &self.connect(), pending()).await
    }

    pub async fn open_with(
        self: &Rc<Self>,
        pool: &Pool,
        key: &Key,
        connect: &Connect,
        stop: impl Future<Output = ()> + 'static,
    ) -> Result<Caller, OpenError> {
        let world = self.clone();
        let dial = async move || io::Result::Ok(world.dial());
        let (tunnel, info) = pool.open(key, dial, connect).await?;
        let (near, app, _wire) = pipe(self.socket_capacity.get(), self.chop.get().map(|seed| seed ^ 99));
        let meter = Arc::new(Meter::new());
        let counted = meter.clone();
        let end = spawn_local(async move { relay(near, tunnel, &counted, stop).await });
        Ok(Caller { app, end, info, meter })
    }

    /// A connection from end to end.
    /// A stream as the client has it, and the other end.
    pub async fn stream(self: &Rc<Self>, pool: &Pool) -> (hbone::Stream, Accepted) {
        let world = self.clone();
        let dial = async move || io::Result::Ok(world.dial());
        let (tunnel, _) = pool.open(&self.key(), dial, &self.connect()).await.expect("a connection");
        (tunnel.into_stream(), self.accepted().await)
    }

    pub async fn pair(self: &Rc<Self>, pool: &Pool) -> (Caller, Accepted) {
        let caller = self.open(pool).await.expect("a connection");
        (caller, self.accepted().await)
    }
}
