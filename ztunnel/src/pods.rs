//! The pods this ztunnel serves: their namespaces, listeners and identities, and the directory in which
//! a worker finds the pod that a same-node connection goes to.
//!
//! It takes pods from ZDS and gives listeners to workers. What is done with a connection is not decided
//! here.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::TcpListener,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use capture::{Netns, Pins, PodSlots, Role, Splices, sockdiag::Diag, socket_cookie};
use hbone::client::Peers;
use mesh::{Identity, Workload};
use tokio_util::sync::CancellationToken;

use crate::{
    dns::{Dns, Names},
    foreign,
    shared::Shared,
    sockets::{self, Inside, Measure, OnwardPorts, OriginalDestination, Own, SocketOptions},
    worker::{Command, Workers},
    zds::{self, PodInfo},
};

/// The listeners of a pod, in the order of their slots.
pub(crate) const ROLES: [Role; 3] = [Role::Outbound, Role::Inbound, Role::Hbone];

/// A fixed port may still be held by an app, or by a ztunnel that does not share it: attempts, and the wait between them.
const BUSY_PORT: (usize, Duration) = (20, Duration::from_millis(100));

/// One pod, as long as anything of it is served.
pub(crate) struct Pod {
    pub(crate) uid: Arc<str>,
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) identity: Identity,
    pub(crate) netns: Netns,
    /// The kernel's number for the namespace; `None` where the kernel knows none.
    pub(crate) cookie: Option<u64>,
    pub(crate) own: Own,
    pub(crate) onward_ports: OnwardPorts,
    /// Where the original destination of an accepted connection is found.
    pub(crate) original: OriginalDestination,
    /// Cancelled when no further connection is taken.
    pub(crate) accepting: CancellationToken,
    /// Cancelled when the grace of a pod that is gone is over.
    pub(crate) ended: CancellationToken,
    connections: AtomicUsize,
    /// The listeners' ports; whoever dials one of them dials ztunnel and not the app.
    ports: Vec<u16>,
    slots: Mutex<Option<PodSlots>>,
    listeners: Mutex<Vec<Arc<TcpListener>>>,
    cookies: Vec<u64>,
    /// `None` where its queries are none of ours.
    pub(crate) dns: Option<Dns>,
    pub(crate) names: Names,
    /// Who does not answer it.
    pub(crate) peers: Arc<Peers>,
}

/// Who holds a pod's slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// We do, or the pod has no slots (a foreign CNI plugin's rules lead to ports).
    Us,
    /// Another ztunnel does.
    Another,
    /// One slot at least is empty: connections to it fail.
    Nobody,
}

/// A place among a pod's connections; given back when dropped.
pub(crate) struct Place {
    pod: Arc<Pod>,
}

impl Pod {
    /// Whether a destination port is one of our own listeners.
    pub(crate) fn is_own_port(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    /// Takes a place among the pod's connections; `None` when all `limit` are taken.
    pub(crate) fn place(self: &Arc<Self>, limit: usize) -> Option<Place> {
        let place = Place { pod: self.clone() };
        // Over the limit, dropping the place takes the count back.
        (self.connections.fetch_add(1, Ordering::Relaxed) < limit).then_some(place)
    }

    /// How many connections and tunnels the pod has now.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Whether the mesh's workload is this pod.
    pub(crate) fn is(&self, workload: &Workload) -> bool {
        workload.namespace == self.namespace
            && workload.name == self.name
            && workload.identity() == self.identity
    }

    /// What a connection from within the pod needs.
    pub(crate) fn inside(&self) -> Inside<'_> {
        Inside { netns: &self.netns, own: &self.own, ports: &self.onward_ports }
    }

    /// Asks the kernel about the sockets of this pod.
    pub(crate) fn ask<T>(&self, question: impl FnOnce(&Diag) -> io::Result<T>) -> io::Result<T> {
        self.onward_ports.ask(&self.netns, question)
    }

    /// Who holds the slots.
    pub(crate) fn holder(&self) -> Holder {
        let slots = self.slots();
        let Some(slots) = slots.as_ref() else { return Holder::Us };
        let held: Vec<Option<u64>> = ROLES.iter().map(|role| slots.holder(*role)).collect();
        judge_holders(&held, &self.cookies)
    }

    /// Whether another ztunnel takes what is new.
    pub(crate) fn has_successor(&self) -> bool {
        if self.slots().is_some() {
            return self.holder() == Holder::Another;
        }
        let shared = self.ask(Diag::listeners).and_then(|all| foreign::is_shared(&self.listeners(), &all));
        shared.unwrap_or_else(|error| {
            tracing::warn!(pod = %self.uid, %error, "whether another ztunnel serves the pod cannot be told");
            false
        })
    }

    /// Puts our listeners into the slots.
    pub(crate) fn take_slots(&self) -> Result<(), capture::Error> {
        let slots = self.slots();
        let Some(slots) = slots.as_ref() else { return Ok(()) };
        let listeners = self.listeners();
        for (role, listener) in ROLES.iter().zip(listeners.iter()) {
            slots.set(*role, listener.as_fd())?;
        }
        self.dns.as_ref().map_or(Ok(()), |dns| dns.offer(self, slots))
    }

    /// Does something with the slots, where the pod has any.
    pub(crate) fn with_slots(&self, deed: impl FnOnce(&PodSlots)) {
        if let Some(slots) = self.slots().as_ref() {
            deed(slots);
        }
    }

    /// Stops accepting: what waits in the queues is still taken, then the listeners close.
    pub(crate) fn close_listeners(&self) {
        self.accepting.cancel();
        self.listeners().clear();
        if let Some(dns) = &self.dns {
            dns.close(self);
        }
    }

    /// The agent may have made the slots anew: these are the ones that count from now on.
    fn renew_slots(&self, slots: PodSlots) {
        self.slots().replace(slots);
    }

    fn slots(&self) -> MutexGuard<'_, Option<PodSlots>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Arc<TcpListener>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pod.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn judge_holders(held: &[Option<u64>], ours: &[u64]) -> Holder {
    let another = |(held, ours): (&Option<u64>, &u64)| held.is_some_and(|held| held != *ours);
    if held.iter().zip(ours).any(another) {
        Holder::Another
    } else if held.contains(&None) {
        Holder::Nobody
    } else {
        Holder::Us
    }
}

/// The pods of this node by namespace and name; read without a lock.
#[derive(Default)]
pub(crate) struct Directory {
    pods: ArcSwap<ByName>,
    splices: ArcSwapOption<Splices>,
}

/// By namespace and name.
type ByName = HashMap<(Arc<str>, Arc<str>), Arc<Pod>>;

impl Directory {
    /// The pod that is `workload`, if it is served here.
    pub(crate) fn find(&self, workload: &Workload) -> Option<Arc<Pod>> {
        let pods = self.pods.load();
        pods.get(&(workload.namespace.clone(), workload.name.clone())).filter(|pod| pod.is(workload)).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Pod>> {
        self.pods.load().values().cloned().collect()
    }

    /// The splice of this node; `None` where the agent has not switched it on.
    pub(crate) fn splices(&self) -> Option<Arc<Splices>> {
        self.splices.load_full()
    }

    fn publish<'a>(&self, pods: impl Iterator<Item = &'a Arc<Pod>>) {
        let map = pods.map(|pod| ((pod.namespace.clone(), pod.name.clone()), pod.clone())).collect();
        self.pods.store(Arc::new(map));
    }
}

/// Why a pod cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("pod {uid} ({namespace}/{name}): {what}: {source}")]
    Io { uid: String, namespace: String, name: String, what: &'static str, source: io::Error },
    #[error("pod {uid}: {source}")]
    Capture { uid: String, source: capture::Error },
}

/// Takes pods in and lets them go.
pub(crate) struct Manager {
    shared: Arc<Shared>,
    workers: Workers,
    /// The folder of the agent's pins, and the pins once they are there.
    pins_folder: PathBuf,
    pins: Option<Arc<Pins>>,
    served: HashMap<String, Arc<Pod>>,
    next_worker: usize,
    agent: runtime::readiness::Task,
}

impl Manager {
    pub(crate) fn new(
        shared: Arc<Shared>,
        workers: Workers,
        pins_folder: PathBuf,
        agent: runtime::readiness::Task,
    ) -> Self {
        Self { shared, workers, pins_folder, pins: None, served: HashMap::new(), next_worker: 0, agent }
    }

    async fn open(&mut self, info: &PodInfo, netns: Netns) -> Result<Pod, OpenError> {
        let capture = |source| OpenError::Capture { uid: info.uid.clone(), source };
        let slots = self.slots(&info.uid).map_err(capture)?;
        let own = match (&self.pins, &slots) {
            (Some(pins), Some(_)) => Own::Storage(pins.clone()),
            _ => Own::Mark(foreign::MARK),
        };
        let failed = |what| {
            move |source| OpenError::Io {
                uid: info.uid.clone(),
                namespace: info.namespace.clone(),
                name: info.name.clone(),
                what,
                source,
            }
        };
        let at: Vec<(Role, u16)> = match slots {
            Some(_) => ROLES.map(|role| (role, 0)).to_vec(),
            None => foreign::PORTS.to_vec(),
        };
        let mut listeners = Vec::with_capacity(at.len());
        for (role, port) in at {
            // Tunnels cross the network; what is captured comes over the pod's own `lo`.
            let measure = if role == Role::Hbone { Measure::Yes } else { Measure::No };
            let listener = listen_patiently(&netns, &own, port, measure, &self.shared.settings.sockets);
            listeners
                .push(Arc::new(listener.await.map_err(failed("open a listener in its network namespace"))?));
        }
        let (mut ports, mut cookies) = (Vec::new(), Vec::new());
        for listener in &listeners {
            ports.push(listener.local_addr().map_err(failed("ask a listener's port"))?.port());
            cookies.push(socket_cookie(listener.as_fd()).map_err(failed("ask a listener's cookie"))?);
        }
        let answers = info.answer_dns.unwrap_or(self.shared.settings.dns);
        let dns = match slots {
            Some(_) if answers => Dns::open(&netns, &own).map(Some),
            Some(_) => Ok(None),
            // The rules lead queries here whether or not we know an answer.
            None => Dns::open_at_port(&netns, &own, answers).map(Some),
        };
        let dns = dns.map_err(failed("open a socket for DNS in its network namespace"))?;
        let original = match slots {
            Some(_) => OriginalDestination::LocalAddress,
            None => OriginalDestination::Netfilter,
        };
        Ok(Pod {
            uid: info.uid.as_str().into(),
            namespace: info.namespace.as_str().into(),
            name: info.name.as_str().into(),
            identity: Identity::new(
                self.shared.settings.trust_domain.clone(),
                info.namespace.as_str(),
                info.service_account.as_str(),
            ),
            cookie: netns.cookie().ok(),
            netns,
            own,
            onward_ports: OnwardPorts::new(),
            original,
            accepting: CancellationToken::new(),
            ended: CancellationToken::new(),
            connections: AtomicUsize::new(0),
            ports,
            slots: Mutex::new(slots),
            listeners: Mutex::new(listeners),
            cookies,
            dns,
            names: Names::default(),
            peers: Arc::new(Peers::counted(self.shared.tally.clone())),
        })
    }

    /// The agent whose pins these are may have switched the splice on or off.
    fn renew_splices(&self) {
        match Splices::open(&self.pins_folder) {
            Ok(splices) => self.shared.pods.splices.store(splices.map(Arc::new)),
            Err(error) => tracing::warn!(%error, "connections within this node are not spliced"),
        }
    }

    /// The pod's slots; `None` when its capture is not ours.
    fn slots(&mut self, uid: &str) -> Result<Option<PodSlots>, capture::Error> {
        if self.pins.is_none() {
            self.pins = match Pins::open(&self.pins_folder) {
                Ok(pins) => {
                    self.renew_splices();
                    Some(Arc::new(pins))
                }
                Err(capture::Error::NoPin { .. }) => None,
                Err(error) => return Err(error),
            };
        }
        match self.pins.as_ref().map(|pins| pins.pod(uid)) {
            None | Some(Err(capture::Error::NoPin { .. })) => Ok(None),
            Some(Ok(slots)) => Ok(Some(slots)),
            Some(Err(error)) => Err(error),
        }
    }

    /// Another ztunnel has taken our pods over; what comes new is its as well.
    fn superseded(&self) -> bool {
        self.served.values().any(|pod| pod.holder() == Holder::Another)
    }

    async fn start(&mut self, info: &PodInfo, netns: Netns) -> Result<(), String> {
        let superseded = self.superseded();
        let pod = Arc::new(self.open(info, netns).await.map_err(|error| error.to_string())?);
        self.shared.store.hold(&pod.identity);
        let foreign = foreign::PORTS.iter().map(|(role, _)| *role);
        let roles: Vec<Role> = if pod.slots().is_some() { ROLES.to_vec() } else { foreign.collect() };
        for (role, listener) in roles.into_iter().zip(pod.listeners().iter()) {
            let home = self.next_worker;
            self.workers.send(home, Command::Listen { pod: pod.clone(), role, listener: listener.clone() });
        }
        if pod.dns.is_some() {
            self.workers.send(self.next_worker, Command::Dns { pod: pod.clone() });
        }
        self.next_worker += 1;
        self.served.insert(info.uid.clone(), pod.clone());
        self.publish();
        // Last, so that everything behind the listeners is there when the first connection comes.
        if !superseded && let Err(error) = pod.take_slots() {
            self.stop(&info.uid);
            return Err(format!("pod {}: {error}", info.uid));
        }
        let captured = if pod.slots().is_some() { "slots" } else { "ports 15001, 15006, 15008, 15053" };
        tracing::info!(
            pod = %format_args!("{}/{}", pod.namespace, pod.name), uid = %pod.uid, identity = %pod.identity, by = captured,
            "serving pod"
        );
        Ok(())
    }

    /// Closes the listeners now and ends what is still carried after the grace.
    fn stop(&mut self, uid: &str) {
        let Some(pod) = self.served.remove(uid) else { return };
        self.publish();
        pod.close_listeners();
        let (shared, workers) = (self.shared.clone(), self.workers.clone());
        let uid = pod.uid.clone();
        tracing::info!(pod = %format_args!("{}/{}", pod.namespace, pod.name), uid = %uid, "pod is gone");
        workers.broadcast(|| Command::ForgetTunnels { uid: uid.clone() });
        tokio::spawn(async move {
            tokio::time::sleep(shared.settings.pod_grace).await;
            workers.broadcast(|| Command::EndPod { pod: pod.clone() });
            pod.ended.cancel();
            shared.store.release(&pod.identity);
        });
    }

    fn publish(&self) {
        self.shared.pods.publish(self.served.values());
        self.shared.metrics.pods.set(i64::try_from(self.served.len()).unwrap_or(i64::MAX));
    }
}

impl zds::Pods for Manager {
    async fn add(&mut self, info: PodInfo, netns: OwnedFd) -> Result<(), String> {
        let netns = Netns::from_fd(netns).map_err(|error| format!("pod {}: {error}", info.uid))?;
        let error = |error: capture::Error| format!("pod {}: {error}", info.uid);
        let slots = self.slots(&info.uid).map_err(error)?;
        if let Some(known) = self.served.get(&info.uid) {
            let same_names = *known.namespace == *info.namespace
                && *known.name == *info.name
                && known.identity.service_account() == info.service_account;
            // The agent may have captured it anew since, in a way it was not before.
            let same_capture = known.slots().is_some() == slots.is_some();
            if same_names && same_capture && known.netns.inode() == netns.inode() {
                slots.into_iter().for_each(|slots| known.renew_slots(slots));
                return match known.holder() {
                    Holder::Us | Holder::Another => Ok(()),
                    Holder::Nobody => known.take_slots().map_err(error),
                };
            }
            self.stop(&info.uid);
        }
        self.start(&info, netns).await
    }

    fn delete(&mut self, uid: &str) {
        self.stop(uid);
    }

    fn knows(&self, uid: &str) -> bool {
        self.served.contains_key(uid)
    }

    fn retain(&mut self, named: &HashSet<String>) {
        let gone: Vec<String> = self.served.keys().filter(|uid| !named.contains(*uid)).cloned().collect();
        for uid in gone {
            self.stop(&uid);
        }
        self.agent.ready();
    }

    fn connected(&mut self, connected: bool) {
        // Another agent may have made the pins anew; the pods that are served keep those they were marked by.
        self.pins = None;
        self.shared.metrics.agent_connected.set(i64::from(connected));
    }
}

async fn listen_patiently(
    netns: &Netns,
    own: &Own,
    port: u16,
    measure: Measure,
    options: &SocketOptions,
) -> io::Result<TcpListener> {
    let mut attempts = 1..BUSY_PORT.0;
    loop {
        match sockets::listen(netns, own, port, measure, options) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts.next().is_some() => {
                tokio::time::sleep(BUSY_PORT.1).await;
            }
            other => return other,
        }
    }
}

/// Keeps empty slots from staying empty: when a ztunnel that took over from us has died, connections
/// come to us again. Runs for ever.
pub(crate) async fn watch_slots(shared: Arc<Shared>, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for pod in shared.pods.all() {
            if pod.accepting.is_cancelled() {
                continue;
            }
            match pod.holder() {
                Holder::Nobody => {}
                Holder::Us => {
                    pod.dns.iter().for_each(|dns| pod.with_slots(|slots| dns.offer_again(&pod, slots)));
                    continue;
                }
                Holder::Another => continue,
            }
            match pod.take_slots() {
                Ok(()) => tracing::warn!(pod = %pod.uid, "took the pod's empty slots again"),
                Err(error) => {
                    tracing::debug!(pod = %pod.uid, %error, "the pod's empty slots cannot be taken")
                }
            }
        }
    }
}

#[cfg(test)]
impl Pod {
    /// A pod in the test's own namespace, without listeners.
    pub(crate) fn for_tests(namespace: &str, name: &str) -> Arc<Self> {
        Arc::new(Self {
            uid: format!("uid-{namespace}-{name}").into(),
            namespace: namespace.into(),
            name: name.into(),
            identity: Identity::new("cluster.local", namespace, name),
            netns: Netns::current().unwrap(),
            cookie: None,
            own: Own::Mark(foreign::MARK),
            onward_ports: OnwardPorts::new(),
            original: OriginalDestination::LocalAddress,
            accepting: CancellationToken::new(),
            ended: CancellationToken::new(),
            connections: AtomicUsize::new(0),
            ports: vec![40001, 40002, 40003],
            slots: Mutex::default(),
            listeners: Mutex::default(),
            cookies: vec![0; 3],
            dns: None,
            peers: Arc::default(),
            names: Names::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_ours_only_when_all_of_them_are() {
        assert_eq!(judge_holders(&[Some(1), Some(2), Some(3)], &[1, 2, 3]), Holder::Us);
        assert_eq!(judge_holders(&[Some(1), None, Some(3)], &[1, 2, 3]), Holder::Nobody);
        assert_eq!(judge_holders(&[None, None, None], &[1, 2, 3]), Holder::Nobody);
        assert_eq!(judge_holders(&[Some(9), None, Some(3)], &[1, 2, 3]), Holder::Another);
        assert_eq!(judge_holders(&[Some(7), Some(8), Some(9)], &[1, 2, 3]), Holder::Another);
    }

    #[test]
    fn a_pod_has_as_many_places_as_the_limit_and_gets_them_back() {
        let pod = Pod::for_tests("shop", "web");
        let first = pod.place(2).unwrap();
        let second = pod.place(2).unwrap();
        assert!(pod.place(2).is_none());
        assert_eq!(pod.connections(), 2, "a refused place is not counted");
        drop(first);
        assert!(pod.place(2).is_some());
        drop(second);
        assert_eq!(pod.connections(), 0);
    }

    #[test]
    fn the_directory_finds_a_pod_only_under_its_own_identity() {
        let directory = Directory::default();
        let pod = Pod::for_tests("shop", "web");
        directory.publish([&pod].into_iter());
        let mut workload = Workload::named("c//Pod/shop/web", "shop", "web");
        assert!(directory.find(&workload).is_none(), "another service account's pod of that name");
        workload.service_account = "web".into();
        assert!(directory.find(&workload).is_some_and(|found| Arc::ptr_eq(&found, &pod)));
    }
}
