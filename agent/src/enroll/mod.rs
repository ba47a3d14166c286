//! Enrollment: what control wants of each pod meets what the kernel and the ztunnels say of it.
//!
//! One task owns every pod's state machine ([`machine`]); the steps it asks for run on threads that
//! may block ([`kernel`]) and come back as events. Nothing else in the agent decides anything about a
//! pod.

mod kernel;
mod machine;
#[cfg(test)]
mod machine_tests;
mod pod;
mod uninstall;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use capture::NodeOptions;
use proto::{node::PodReport, workload::zds::WorkloadInfo};
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{Instant, sleep},
};

pub(crate) use self::{kernel::told, uninstall::uninstall};
use self::{
    kernel::{Hand, Kernel},
    machine::{Action, Answer, Desire, Event, Report, Step},
    pod::Pod,
};
use crate::{
    broker::{Broker, Holding},
    metrics::Metrics,
    netns::Given,
    splice,
    state::{State, Wanted},
};

/// Pods that are attached to at a time: loading programs takes CPU that the pods want too.
const ATTACHING: usize = 4;
/// Other steps under way at a time. They are short, and a pod that starts waits for its own: none queues
/// behind a load of programs.
const STEPS: usize = 16;
/// A pod that control names no more is released after this long: as long as control gives the peers
/// to acknowledge a withdrawal.
const DELETED_GRACE: Duration = Duration::from_secs(5);
/// ztunnels are told all pods as soon as each was tried once after a start, or after this long.
const SETTLE_PATIENCE: Duration = Duration::from_secs(20);

/// How enrollment is set up.
pub(crate) struct Options {
    pub(crate) capture: NodeOptions,
    /// How to splice, if connections within the node are to be.
    pub(crate) splice: Option<splice::Options>,
    /// Between two probes of a captured pod.
    pub(crate) probe_every: Duration,
    /// How long connections from before the enrollment may live on.
    pub(crate) earlier: Option<Duration>,
    /// The node's procfs, where namespaces that control does not name are found.
    pub(crate) host_proc: PathBuf,
}

/// What comes in.
pub(crate) enum Input {
    /// What control wants of this node's pods, all of them.
    Directive(Vec<Wanted>),
    Holding(Holding),
    /// The container runtime has made this namespace for the pod.
    Sandbox(String, Arc<Given>),
    /// Nobody waits for that namespace of the pod any more (its inode): the pod does not start in it.
    SandboxOver(String, u64),
    /// Somebody wants to see how things stand.
    Dump(oneshot::Sender<Value>),
    /// Let the steps under way end, begin no more, and drop the answer's sender.
    Stop(oneshot::Sender<()>),
    /// What the task tells itself.
    Own(Own),
}

/// How a pod stands, for those who wait for its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) enroll: bool,
    /// The inode of the namespace whose capture was measured, while a ztunnel holds the pod.
    pub(crate) ready: Option<u64>,
    /// What is missing where it is not.
    pub(crate) why: String,
}

/// By uid, every pod that is known.
pub(crate) type Standings = Arc<BTreeMap<String, Standing>>;

/// A message of the task to itself; nobody else can make one.
pub(crate) struct Own(Inner);

enum Inner {
    Answer {
        uid: String,
        hand: Box<Hand>,
        answer: Answer,
    },
    Due {
        uid: String,
        number: u64,
    },
    /// Control named the pod no more when the number was its own.
    Deleted {
        uid: String,
        number: u64,
    },
    Settle,
}

/// The task that enrolls.
pub(crate) struct Enroller {
    kernel: Arc<Kernel>,
    broker: Broker,
    state: State,
    metrics: Arc<Metrics>,
    probe_every: Duration,
    pods: BTreeMap<String, Pod>,
    /// Pins of pods that nobody has named yet.
    strangers: BTreeSet<String>,
    /// Namespaces that were given and are not attached to yet.
    sandboxes: BTreeMap<String, Arc<Given>>,
    /// What is wanted of the pods is known, from control or from the file.
    told: bool,
    settled: bool,
    reports: watch::Sender<Option<Vec<PodReport>>>,
    standings: watch::Sender<Standings>,
    inputs: mpsc::UnboundedSender<Input>,
    attaching: Arc<Semaphore>,
    steps: Arc<Semaphore>,
    stopping: Option<oneshot::Sender<()>>,
}

impl Enroller {
    /// Opens the kernel side and finds what an agent before this one left.
    pub(crate) async fn open(
        options: Options,
        state: State,
        broker: Broker,
        metrics: Arc<Metrics>,
        inputs: mpsc::UnboundedSender<Input>,
    ) -> Result<Self, capture::Error> {
        let opened = tokio::task::spawn_blocking(move || {
            let kernel = Kernel::open(options.capture, options.earlier, options.host_proc)?;
            // Before the first pod is attached: it takes part only where splicing is switched on by then.
            let spliced = kernel.splice(options.splice.as_ref())?;
            let pinned = kernel.pinned()?;
            Ok((Arc::new(kernel), pinned, spliced))
        });
        let (kernel, pinned, spliced) = match opened.await {
            Ok(opened) => opened?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        metrics.splice.set(i64::from(spliced));
        let mut enroller = Self {
            kernel,
            broker,
            state,
            metrics,
            probe_every: options.probe_every,
            pods: BTreeMap::new(),
            strangers: pinned.into_iter().collect(),
            sandboxes: BTreeMap::new(),
            told: false,
            settled: false,
            reports: watch::Sender::new(None),
            standings: watch::Sender::new(Arc::default()),
            inputs,
            attaching: Arc::new(Semaphore::new(ATTACHING)),
            steps: Arc::new(Semaphore::new(STEPS)),
            stopping: None,
        };
        if let Some(wanted) = enroller.state.load() {
            tracing::info!(pods = wanted.len(), "serving what control wanted last, until it speaks");
            enroller.directive(wanted);
        }
        Ok(enroller)
    }

    /// A way to tell the kernel programs which cgroup is the kubelet's.
    pub(crate) fn kubelet(
        &self,
    ) -> impl Fn(Option<u64>) -> Result<(), capture::Error> + Clone + Send + 'static + use<> {
        let kernel = self.kernel.clone();
        move |cgroup| kernel.set_kubelet(cgroup)
    }

    /// The reports for control.
    pub(crate) fn reports(&self) -> watch::Receiver<Option<Vec<PodReport>>> {
        self.reports.subscribe()
    }

    /// How every pod stands.
    pub(crate) fn standings(&self) -> watch::Receiver<Standings> {
        self.standings.subscribe()
    }

    /// Runs until it is stopped. `told` is called once, when what is wanted of the pods is known.
    pub(crate) async fn run(mut self, mut inputs: mpsc::UnboundedReceiver<Input>, told: impl FnOnce()) {
        let mut told = Some(told);
        self.own(SETTLE_PATIENCE, Inner::Settle);
        self.publish(false);
        loop {
            if self.told
                && let Some(told) = told.take()
            {
                told();
            }
            if self.stopping.is_some() && self.is_idle() {
                return;
            }
            let Some(input) = inputs.recv().await else { return };
            let mut overdue = false;
            match input {
                Input::Directive(wanted) => self.directed(wanted),
                Input::Holding((uid, held)) => self.event(&uid, Event::Held(held)),
                Input::Sandbox(uid, given) => self.sandbox(uid, given),
                Input::SandboxOver(uid, inode) => {
                    if self.sandboxes.get(&uid).is_some_and(|given| given.netns.inode() == inode) {
                        self.sandboxes.remove(&uid);
                    }
                }
                Input::Dump(reply) => drop(reply.send(self.dump())),
                Input::Stop(done) => self.stopping = Some(done),
                Input::Own(Own(Inner::Answer { uid, hand, answer })) => self.answered(&uid, hand, answer),
                Input::Own(Own(Inner::Due { uid, number })) => self.event(&uid, Event::Due(number)),
                Input::Own(Own(Inner::Deleted { uid, number })) => self.deleted(&uid, number),
                Input::Own(Own(Inner::Settle)) => overdue = true,
            }
            self.publish(overdue);
        }
    }

    /// No step is under way.
    fn is_idle(&self) -> bool {
        self.attaching.available_permits() == ATTACHING && self.steps.available_permits() == STEPS
    }

    /// Control has spoken: what it wants is kept, and done.
    fn directed(&mut self, wanted: Vec<Wanted>) {
        if let Err(error) = self.state.keep(&wanted) {
            tracing::error!(%error, "what control wants cannot be kept for the next start");
        }
        self.directive(wanted);
        // What is pinned and known to nobody belongs to pods that are gone.
        for uid in std::mem::take(&mut self.strangers) {
            tracing::info!(uid, "discarding the capture of a pod that is gone");
            let kernel = self.kernel.clone();
            tokio::task::spawn_blocking(move || {
                if let Err(error) = kernel.discard(&uid) {
                    tracing::warn!(uid, %error, "what is left of a pod that is gone cannot be discarded");
                }
            });
        }
    }

    fn directive(&mut self, wanted: Vec<Wanted>) {
        self.told = true;
        let named: BTreeSet<&str> = wanted.iter().map(|pod| pod.uid.as_str()).collect();
        let unnamed: Vec<String> =
            self.pods.keys().filter(|uid| !named.contains(uid.as_str())).cloned().collect();
        for uid in unnamed {
            self.unnamed(&uid);
        }
        for wanted in wanted {
            let uid = wanted.uid.clone();
            let pinned = self.strangers.remove(&uid);
            let every = self.probe_every;
            let pod = self.pods.entry(uid.clone()).or_insert_with(|| Pod::new(wanted.clone(), pinned, every));
            pod.deleted = None;
            pod.wanted = wanted;
            self.desire(&uid, pinned);
        }
    }

    /// Tells a pod's machine what is desired of it, by what is wanted and known now.
    fn desire(&mut self, uid: &str, pinned: bool) {
        // One whose namespace the CNI plugin has given waits for us, and has no address before we are done.
        let given = self.sandboxes.contains_key(uid);
        let Some(pod) = self.pods.get_mut(uid) else { return };
        // Once begun, an enrollment is not undone by an address that is not named for a while.
        let begun = pod.machine.desire() == Desire::Enrolled;
        let desire = match (pod.wanted.enroll, pod.wanted.withdrawn) {
            (true, _) if pinned || begun || given || pod.wanted.is_ready() => Desire::Enrolled,
            (true, _) => Desire::Released,
            (false, false) => Desire::Withdrawing,
            (false, true) => Desire::Released,
        };
        if desire != Desire::Enrolled {
            pod.wanted_since = None;
        } else if !begun {
            pod.wanted_since = Some(Instant::now());
        }
        self.event(uid, Event::Desired(desire));
    }

    /// Control names the pod no more.
    fn unnamed(&mut self, uid: &str) {
        let Some(pod) = self.pods.get_mut(uid).filter(|pod| pod.deleted.is_none()) else { return };
        let number = rand::random();
        pod.deleted = Some(number);
        pod.wanted_since = None;
        // Of one that was found, the steps to come tell whether it is gone.
        let named = !pod.wanted.netns.as_os_str().is_empty();
        if named && fs::metadata(&pod.wanted.netns).is_err() {
            self.deleted(uid, number);
        } else {
            self.event(uid, Event::Desired(Desire::Withdrawing));
            self.own(DELETED_GRACE, Inner::Deleted { uid: uid.to_owned(), number });
        }
    }

    fn deleted(&mut self, uid: &str, number: u64) {
        if self.pods.get(uid).is_some_and(|pod| pod.deleted == Some(number)) {
            self.event(uid, Event::Desired(Desire::Released));
        }
    }

    /// The container runtime has made a namespace for the pod.
    fn sandbox(&mut self, uid: String, given: Arc<Given>) {
        let Some(pod) = self.pods.get(&uid) else { return };
        if pod.netns == Some(given.netns.inode()) {
            return;
        }
        self.sandboxes.insert(uid.clone(), given);
        self.desire(&uid, false);
        self.event(&uid, Event::Sandbox);
    }

    /// A step is over.
    fn answered(&mut self, uid: &str, hand: Box<Hand>, answer: Answer) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        self.metrics.count(uid, &hand.counters);
        match (pod.guarded, hand.guarded) {
            (false, true) => {
                tracing::info!(uid, "the guard on the host's end of the pod's link was measured")
            }
            (true, false) if hand.netns.is_some() => {
                tracing::warn!(uid, "the guard on the host's end of the pod's link does not see its packets");
            }
            (true, false) | (true, true) | (false, false) => {}
        }
        (pod.guarded, pod.earlier) = (hand.guarded, hand.earlier);
        pod.netns = hand.netns.as_ref().map(|netns| netns.inode());
        let (netns, attached) = (pod.netns, matches!(answer, Answer::Attached { .. }));
        if attached && self.sandboxes.get(uid).is_some_and(|given| netns == Some(given.netns.inode())) {
            self.sandboxes.remove(uid);
        }
        match &answer {
            Answer::NamespaceGone(reason) => {
                tracing::info!(uid, pod = pod.name(), reason, "the pod has lost its network namespace");
            }
            Answer::Failed(reason) => {
                self.metrics.failures.inc();
                let pod = pod.name();
                tracing::error!(uid, pod, reason, "a step of enrollment failed; it is tried again");
            }
            Answer::Probed(Err(reason), _) => {
                self.metrics.failures.inc();
                tracing::warn!(uid, pod = pod.name(), reason, "a probe failed; it is tried again");
            }
            Answer::Learned(earlier) => {
                tracing::info!(uid, pod = pod.name(), earlier, "open connections recorded");
            }
            Answer::Probed(Ok(()), _) => pod.measured = Some(Instant::now()),
            Answer::Attached { .. } | Answer::Counted(_) | Answer::Done => {}
        }
        pod.hand = Some(hand);
        self.event(uid, Event::Done(answer));
        if netns.is_some() && self.sandboxes.contains_key(uid) {
            self.event(uid, Event::Sandbox);
        }
    }

    /// Gives an event to a pod's machine and does what it asks for.
    fn event(&mut self, uid: &str, event: Event) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let before = pod.machine.report();
        let actions = pod.machine.on(event);
        let after = pod.machine.report();
        if before != after {
            pod.log(&after);
            if after == Report::Measured
                && let Some(since) = pod.wanted_since.take()
            {
                self.metrics.enrollment_seconds.observe(since.elapsed().as_secs_f64());
            }
        }
        for action in actions {
            match action {
                Action::Run(step) => self.run_step(uid, step),
                Action::Announce => self.announce(uid),
                Action::Retract => self.broker.remove(uid),
                Action::Wake(after, number) => {
                    // Spread, so that the pods of a node do not move in step.
                    let after = after.mul_f64(rand::random_range(0.85..1.15));
                    self.own(after, Inner::Due { uid: uid.to_owned(), number });
                }
            }
        }
        if let Some(pod) = self.pods.get(uid)
            && pod.deleted.is_some()
            && pod.machine.is_finished()
        {
            self.metrics.forget(uid, &pod.wanted.namespace, &pod.wanted.name);
            self.pods.remove(uid);
            self.sandboxes.remove(uid);
        }
    }

    fn run_step(&mut self, uid: &str, step: Step) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let Some(mut hand) = pod.hand.take() else {
            tracing::error!(uid, ?step, "a step was asked for while another is under way");
            return;
        };
        if self.stopping.is_some() {
            // What is pinned stays as it is; the next agent goes on.
            return;
        }
        let named = !self.pods[uid].wanted.netns.as_os_str().is_empty();
        let other = named
            && step == Step::Attach
            && self.pods.iter().any(|(other, pod)| {
                other != uid
                    && pod.wanted.netns == self.pods[uid].wanted.netns
                    && pod.machine.mode().is_some()
            });
        let places = if step == Step::Attach { &self.attaching } else { &self.steps };
        let (kernel, places, inputs) = (self.kernel.clone(), places.clone(), self.inputs.clone());
        let given = self.sandboxes.get(uid).cloned();
        let (uid, path) = (uid.to_owned(), self.pods[uid].wanted.netns.clone());
        tokio::spawn(async move {
            let Ok(place) = places.acquire().await else { return };
            let name = uid.clone();
            let performed = tokio::task::spawn_blocking(move || {
                let answer = if other {
                    Answer::Failed(format!("another pod has the network namespace {}", path.display()))
                } else {
                    kernel.perform(&name, &path, given, step, &mut hand)
                };
                (hand, answer)
            });
            let (hand, answer) = match performed.await {
                Ok(performed) => performed,
                // The hand is lost with the panic; attaching anew makes another.
                Err(panic) => (Box::default(), Answer::Failed(format!("{step:?} failed: {panic}"))),
            };
            drop(place);
            let _ = inputs.send(Input::Own(Own(Inner::Answer { uid, hand, answer })));
        });
    }

    fn announce(&self, uid: &str) {
        let Some(pod) = self.pods.get(uid) else { return };
        if let Some(netns) = pod.hand.as_ref().and_then(|hand| hand.netns.clone()) {
            self.broker.put(uid, pod.info(), netns);
        }
    }

    /// Tells control and the ztunnels what has become known.
    fn publish(&mut self, overdue: bool) {
        let standings = self.pods.iter().map(|(uid, pod)| (uid.clone(), pod.standing())).collect();
        self.standings.send_if_modified(|held| {
            let changed = **held != standings;
            if changed {
                *held = Arc::new(standings);
            }
            changed
        });
        if !self.settled {
            let tried = self.pods.values().all(|pod| pod.machine.is_settled());
            // Pins without a word of what is wanted: to say that there is no pod would cut them off.
            let known = self.told || self.strangers.is_empty();
            if !(overdue || tried) {
                return;
            }
            if known || overdue {
                self.settled = true;
                self.complete();
            }
        }
        for pod in self.pods.values() {
            let captured = pod.machine.report() == Report::Measured;
            let (namespace, name) = (&pod.wanted.namespace, &pod.wanted.name);
            self.metrics.pod(namespace, name, captured, pod.machine.connections());
        }
        let reports: Vec<PodReport> = self.pods.values().map(Pod::report).collect();
        self.reports.send_if_modified(|held| {
            let changed = held.as_ref() != Some(&reports);
            if changed {
                *held = Some(reports);
            }
            changed
        });
    }

    /// Lets the ztunnels know of all pods; those whose capture stands and is out of reach they keep.
    fn complete(&self) {
        for (uid, pod) in &self.pods {
            if pod.machine.is_pinned() {
                self.broker.keep(uid, pod.info());
            }
        }
        for uid in &self.strangers {
            self.broker.keep(uid, WorkloadInfo::default());
        }
        self.broker.complete();
    }

    fn own(&self, after: Duration, own: Inner) {
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            sleep(after).await;
            let _ = inputs.send(Input::Own(Own(own)));
        });
    }

    fn dump(&self) -> Value {
        let pods: Vec<Value> = self.pods.values().map(Pod::dump).collect();
        json!({ "told": self.told, "settled": self.settled, "pods": pods, "zds": self.broker.dump() })
    }
}
