//! Workers: threads with a single-threaded runtime each; a connection stays on the worker that was chosen
//! when it was accepted.
//!
//! A listener has a home worker, which accepts and hands a connection on at most once, when it has much
//! more to carry than another.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::TcpListener,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use capture::{Netns, Role};
use hbone::{
    Baggage,
    client::{Pool, TunnelSummary},
};
use mesh::Workload;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::{
    io::Interest,
    sync::{mpsc, oneshot},
    task::LocalSet,
};

use crate::{
    dns, fd, inbound,
    live::{Live, Stop},
    outbound,
    pods::Pod,
    rejudge,
    shared::Shared,
    sockets::{self, Accepted},
    vouch::Vouchers,
};

/// Connections accepted in a row before the worker's other tasks get a turn.
const ACCEPT_BURST: usize = 32;

/// The wait after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What a worker is told.
pub(crate) enum Command {
    Listen {
        pod: Arc<Pod>,
        role: Role,
        listener: Arc<TcpListener>,
    },
    /// Answer the pod's DNS queries over UDP.
    Dns {
        pod: Arc<Pod>,
    },
    Carry {
        pod: Arc<Pod>,
        role: Role,
        accepted: Accepted,
    },
    /// No new stream enters a tunnel of that pod.
    ForgetTunnels {
        uid: Arc<str>,
    },
    /// The grace of a pod that is gone is over.
    EndPod {
        pod: Arc<Pod>,
    },
    /// This ztunnel ends now.
    EndAll,
    Connections(oneshot::Sender<Vec<Value>>),
    Tunnels(oneshot::Sender<Vec<Value>>),
}

/// The way to one worker.
struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    /// Connections it carries, those on their way to it included.
    load: Arc<AtomicUsize>,
}

/// All workers of this ztunnel.
#[derive(Clone)]
pub(crate) struct Workers {
    handles: Arc<[Handle]>,
}

impl Workers {
    /// Starts `count` workers; with `bind` on a core each, where there are as many.
    ///
    /// Unbound is what measures better: a node's cores belong to its apps as well, and the kernel moves a
    /// worker away from a core that an app keeps busy, or next to the app that it serves.
    pub(crate) fn start(count: usize, bind: bool, shared: &Arc<Shared>) -> io::Result<Self> {
        let mut handles = Vec::new();
        let mut mailboxes = Vec::new();
        for _ in 0..count {
            let (commands, mailbox) = mpsc::unbounded_channel();
            handles.push(Handle { commands, load: Arc::default() });
            mailboxes.push(mailbox);
        }
        let workers = Self { handles: handles.into() };
        let cores = if bind { cores() } else { Vec::new() };
        for (index, mailbox) in mailboxes.into_iter().enumerate() {
            let (shared, workers) = (shared.clone(), workers.clone());
            let core = cores.get(index % cores.len().max(1)).copied().filter(|_| count <= cores.len());
            thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                if let Some(core) = core {
                    bind_to(core);
                }
                run(index, workers, shared, mailbox);
            })?;
        }
        Ok(workers)
    }

    pub(crate) fn count(&self) -> usize {
        self.handles.len()
    }

    /// Tells one worker; any number names one.
    pub(crate) fn send(&self, worker: usize, command: Command) {
        // A worker ends only with the process; what it is told then does not matter any more.
        let _ = self.handles[worker % self.handles.len()].commands.send(command);
    }

    pub(crate) fn broadcast(&self, command: impl Fn() -> Command) {
        for handle in self.handles.iter() {
            let _ = handle.commands.send(command());
        }
    }

    /// All live connections, for the admin endpoint.
    pub(crate) async fn connections(&self) -> Vec<Value> {
        self.gather(Command::Connections).await
    }

    /// All outbound tunnels, for the admin endpoint.
    pub(crate) async fn tunnels(&self) -> Vec<Value> {
        self.gather(Command::Tunnels).await
    }

    async fn gather(&self, ask: impl Fn(oneshot::Sender<Vec<Value>>) -> Command) -> Vec<Value> {
        let mut all = Vec::new();
        for handle in self.handles.iter() {
            let (answer, part) = oneshot::channel();
            let _ = handle.commands.send(ask(answer));
            all.extend(part.await.unwrap_or_default());
        }
        all
    }

    /// Who should carry a connection that `home` has accepted.
    fn choose(&self, home: usize) -> usize {
        let loads = self.handles.iter().map(|handle| handle.load.load(Ordering::Relaxed));
        choose(home, loads)
    }
}

/// The home worker keeps what it accepts, for the handover costs a wake-up and a second tunnel to the
/// same peer, unless it carries more than twice as much as the idlest (and more than a handful).
fn choose(home: usize, loads: impl Iterator<Item = usize>) -> usize {
    let loads: Vec<usize> = loads.collect();
    let idlest = (0..loads.len()).min_by_key(|worker| loads[*worker]).unwrap_or(home);
    if loads[home] > 2 * loads[idlest] + 2 { idlest } else { home }
}

/// The cores this process may use.
fn cores() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).collect()
}

/// How many cores this process may use.
pub(crate) fn available_cores() -> usize {
    cores().len().max(1)
}

fn bind_to(core: usize) {
    let mut set = CpuSet::new();
    let bound = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = bound {
        tracing::warn!(core, %error, "a worker cannot be bound to its core; it runs where the kernel puts it");
    }
}

/// What the tasks of one worker share.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) live: Rc<Live>,
    workers: Workers,
    /// A pod's tunnels are its own: they live in its network namespace.
    pools: RefCell<HashMap<Arc<str>, Pool>>,
    /// Whom waypoints are kept told of.
    pub(crate) vouchers: Vouchers,
    /// What pods say of themselves to their peers, by the workload's uid.
    baggage: RefCell<HashMap<Arc<str>, Baggaged>>,
}

/// A workload and its baggage.
type Baggaged = (Arc<Workload>, Rc<str>);

/// Workloads whose baggage is kept; those of one node are far fewer.
const BAGGAGE_KEPT: usize = 4096;

/// A connection counted as the load of its worker.
pub(crate) struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Worker {
    /// The tunnels of one pod.
    pub(crate) fn pool(&self, pod: &Pod) -> Pool {
        if let Some(pool) = self.pools.borrow().get(&pod.uid) {
            return pool.clone();
        }
        let Shared { settings, store, .. } = &*self.shared;
        let pool = Pool::with_peers(settings.hbone.clone(), store.clone(), pod.peers.clone());
        self.pools.borrow_mut().insert(pod.uid.clone(), pool.clone());
        pool
    }

    /// The `baggage` of one of this node's workloads.
    pub(crate) fn baggage(&self, workload: &Arc<Workload>) -> Rc<str> {
        let mut kept = self.baggage.borrow_mut();
        if let Some((known, text)) = kept.get(&workload.uid)
            && Arc::ptr_eq(known, workload)
        {
            return text.clone();
        }
        if kept.len() >= BAGGAGE_KEPT {
            kept.clear();
        }
        let text: Rc<str> = Baggage::of(workload).to_string().into();
        kept.insert(workload.uid.clone(), (workload.clone(), text.clone()));
        text
    }

    /// Counts one more connection as this worker's load.
    pub(crate) fn load(&self) -> Load {
        let load = self.workers.handles[self.index].load.clone();
        load.fetch_add(1, Ordering::Relaxed);
        Load(load)
    }

    fn forget_tunnels(&self, uid: &str) {
        if let Some(pool) = self.pools.borrow_mut().remove(uid) {
            pool.retain(|_| false);
        }
    }

    fn tunnels(&self) -> Vec<Value> {
        let pools = self.pools.borrow();
        let tunnels = pools.values().flat_map(Pool::summaries);
        let json = |tunnel: TunnelSummary| {
            json!({
                "source": tunnel.key.source.to_string(),
                "source_address": tunnel.key.source_ip.to_string(),
                "address": tunnel.key.peer.to_string(),
                "peer": tunnel.peer.to_string(),
                "streams": tunnel.streams,
                "bulk": tunnel.bulk,
                "age_seconds": tunnel.age.as_secs_f64(),
                "worker": self.index,
            })
        };
        tunnels.map(json).collect()
    }

    fn dispatch(self: &Rc<Self>, pod: &Arc<Pod>, role: Role, accepted: Accepted) {
        let chosen = self.workers.choose(self.index);
        self.workers.handles[chosen].load.fetch_add(1, Ordering::Relaxed);
        if chosen == self.index {
            self.carry(pod.clone(), role, accepted);
        } else {
            self.workers.send(chosen, Command::Carry { pod: pod.clone(), role, accepted });
        }
    }

    /// Takes a connection whose load is counted already.
    fn carry(self: &Rc<Self>, pod: Arc<Pod>, role: Role, accepted: Accepted) {
        let load = Load(self.workers.handles[self.index].load.clone());
        let Some(place) = pod.place(self.shared.settings.connections_per_pod) else {
            self.shared.metrics.refused("pod-limit");
            tracing::debug!(pod = %pod.uid, "the pod has as many connections as it may; one more is reset");
            accepted.reset();
            return;
        };
        let worker = self.clone();
        match role {
            Role::Outbound => tokio::task::spawn_local(async move {
                outbound::carry(&worker, &pod, accepted).await;
                drop((place, load));
            }),
            Role::Inbound => tokio::task::spawn_local(async move {
                inbound::plain(&worker, &pod, accepted).await;
                drop((place, load));
            }),
            Role::Hbone => tokio::task::spawn_local(async move {
                inbound::tunnel(&worker, &pod, accepted).await;
                drop((place, load));
            }),
            // Datagrams are not accepted: see `Command::Dns`.
            Role::Dns => return,
        };
    }

    fn obey(self: &Rc<Self>, command: Command) {
        match command {
            Command::Listen { pod, role, listener } => {
                let worker = self.clone();
                tokio::task::spawn_local(async move { worker.accept(pod, role, listener).await });
            }
            Command::Dns { pod } => drop(tokio::task::spawn_local(dns::serve(self.clone(), pod))),
            Command::Carry { pod, role, accepted } => self.carry(pod, role, accepted),
            Command::ForgetTunnels { uid } => self.forget_tunnels(&uid),
            Command::EndPod { pod } => {
                // A connection that was on its way may have opened one more.
                self.forget_tunnels(&pod.uid);
                self.live.stop(&Stop::PodGone, |connection| connection.is_of(&pod));
            }
            Command::EndAll => self.live.stop(&Stop::Ends, |_| true),
            // Whoever asked may have gone.
            Command::Connections(answer) => drop(answer.send(self.live.json())),
            Command::Tunnels(answer) => drop(answer.send(self.tunnels())),
        }
    }

    /// Accepts until the pod's listeners close, and then what still waits in the queue.
    async fn accept(self: Rc<Self>, pod: Arc<Pod>, role: Role, listener: Arc<TcpListener>) {
        let ready = match fd::watch(listener, Interest::READABLE) {
            Ok(ready) => ready,
            Err(error) => {
                tracing::error!(pod = %pod.uid, ?role, %error, "a listener cannot be watched; connections to it will hang");
                return;
            }
        };
        loop {
            let mut guard = tokio::select! {
                biased;
                () = pod.accepting.cancelled() => break,
                guard = ready.readable() => match guard {
                    Ok(guard) => guard,
                    Err(_) => break,
                },
            };
            match self.accept_some(&pod, role, &ready.get_ref().0) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) => {
                    tracing::warn!(pod = %pod.uid, ?role, %error, "cannot accept; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            tokio::task::yield_now().await;
        }
        while self.accept_some(&pod, role, &ready.get_ref().0).is_ok() {}
    }

    fn accept_some(self: &Rc<Self>, pod: &Arc<Pod>, role: Role, listener: &TcpListener) -> io::Result<()> {
        for _ in 0..ACCEPT_BURST {
            match sockets::accept(listener, pod.original) {
                Ok(accepted) => self.dispatch(pod, role, accepted),
                // The caller gave up while it waited.
                Err(error) if is_of_one_caller(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Errors of accept that say nothing of the listener.
fn is_of_one_caller(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::NotConnected | io::ErrorKind::Interrupted
    )
}

fn run(index: usize, workers: Workers, shared: Arc<Shared>, mut mailbox: mpsc::UnboundedReceiver<Command>) {
    if let Err(error) = Netns::settle() {
        tracing::warn!(worker = index, %error, "opening sockets in pods takes longer than it need");
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(worker = index, %error, "a worker's runtime cannot be made; ending");
            std::process::exit(1);
        }
    };
    let live = Live::new(shared.carried.clone());
    let worker = Rc::new(Worker {
        index,
        shared,
        live,
        workers,
        pools: RefCell::default(),
        vouchers: Vouchers::default(),
        baggage: RefCell::default(),
    });
    LocalSet::new().block_on(&runtime, async move {
        tokio::task::spawn_local(rejudge::run(worker.clone()));
        tokio::task::spawn_local(rejudge::count(worker.clone()));
        while let Some(command) = mailbox.recv().await {
            worker.obey(command);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_worker_keeps_its_connections_until_it_has_much_more() {
        assert_eq!(choose(0, [0, 0].into_iter()), 0);
        assert_eq!(choose(0, [2, 0].into_iter()), 0);
        assert_eq!(choose(0, [3, 0].into_iter()), 1);
        assert_eq!(choose(1, [4, 9].into_iter()), 1);
        assert_eq!(choose(1, [4, 11].into_iter()), 0);
        assert_eq!(choose(2, [7, 1, 9].into_iter()), 1);
    }

    #[test]
    fn this_process_has_a_core() {
        assert!(available_cores() >= 1);
        assert!(!cores().is_empty());
    }
}
