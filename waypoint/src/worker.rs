//! Workers: threads with a single-threaded runtime each. A tunnel goes to the worker that has the fewest, and stays
//! there with all that is carried in it.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use jwt::Remembered;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{net::TcpListener, sync::mpsc, task::LocalSet};

use crate::{body::kept::Budget, door, shared::Shared, upstream::Upstream};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// The wait after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// How long a caller's ztunnel may be silent before the kernel asks whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(180);
/// How often what is idle towards backends is looked after.
const SWEEP: Duration = Duration::from_secs(5);

/// The way to one worker.
struct Handle {
    tunnels: mpsc::UnboundedSender<(std::net::TcpStream, Load)>,
    load: Arc<AtomicUsize>,
}

/// All workers of this waypoint.
#[derive(Clone)]
pub(crate) struct Workers {
    handles: Arc<[Handle]>,
}

/// A tunnel counted as the load of its worker.
pub(crate) struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the tasks of one worker share.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) upstream: Upstream,
    /// Copies of requests on their way.
    pub(crate) mirrors: Rc<Cell<u32>>,
    /// Bytes of requests' bodies that are kept.
    pub(crate) kept: Budget,
    /// Tokens that were verified.
    pub(crate) tokens: RefCell<Remembered>,
}

impl Workers {
    pub(crate) fn start(count: usize, shared: &Arc<Shared>) -> io::Result<Self> {
        let mut handles = Vec::new();
        for index in 0..count {
            let (tunnels, mailbox) = mpsc::unbounded_channel();
            handles.push(Handle { tunnels, load: Arc::default() });
            let shared = shared.clone();
            thread::Builder::new().name(format!("worker-{index}")).spawn(move || run(shared, mailbox))?;
        }
        Ok(Self { handles: handles.into() })
    }

    pub(crate) fn count(&self) -> usize {
        self.handles.len()
    }

    /// Tunnels that each worker has.
    pub(crate) fn loads(&self) -> Vec<usize> {
        self.handles.iter().map(|handle| handle.load.load(Ordering::Relaxed)).collect()
    }

    fn give(&self, stream: std::net::TcpStream, most: usize) -> bool {
        let loads = self.loads();
        if loads.iter().sum::<usize>() >= most {
            return false;
        }
        let idlest = (0..loads.len()).min_by_key(|&worker| loads[worker]).unwrap_or(0);
        let handle = &self.handles[idlest];
        handle.load.fetch_add(1, Ordering::Relaxed);
        // A worker ends only with the process.
        handle.tunnels.send((stream, Load(handle.load.clone()))).is_ok()
    }
}

fn run(shared: Arc<Shared>, mut mailbox: mpsc::UnboundedReceiver<(std::net::TcpStream, Load)>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a worker's runtime cannot be made; ending");
            std::process::exit(1);
        }
    };
    let worker = Rc::new(Worker {
        upstream: Upstream::new(shared.clone()),
        shared,
        mirrors: Rc::default(),
        kept: Budget::default(),
        tokens: RefCell::default(),
    });
    LocalSet::new().block_on(&runtime, async move {
        let swept = worker.clone();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                swept.upstream.sweep();
            }
        });
        while let Some((stream, load)) = mailbox.recv().await {
            tokio::task::spawn_local(door::tunnel(worker.clone(), stream, load));
        }
    });
}

/// Listens for callers' ztunnels, on both families where the address is unspecified.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let named = |error: io::Error| {
        let text = format!("cannot listen on {address}: {error}. Choose another address with --listen");
        io::Error::new(error.kind(), text)
    };
    let make = || {
        let socket =
            Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        // What is accepted has it from here.
        socket.set_tcp_nodelay(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    make().map_err(named)
}

/// Takes callers until the drain, and hands them to the workers.
pub(crate) async fn accept(listener: TcpListener, workers: Workers, shared: Arc<Shared>) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.drain.started() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = accepted.and_then(|(stream, _)| {
            SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
            stream.into_std()
        });
        match stream {
            Ok(stream) => {
                if !workers.give(stream, shared.settings.max_tunnels) {
                    shared.metrics.refused("too-many-tunnels");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
