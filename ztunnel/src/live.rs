//! The connections of a worker: who they are, how many bytes went, and a way to end each with a reason.
//! A new snapshot re-judges them here.
//!
//! One registry per worker and on its thread only: a connection costs no lock.

use std::{
    cell::{Cell, OnceCell, RefCell, RefMut},
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::Bound,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hbone::copy::Meter;
use mesh::{Attempt, Decision, Identity, Passage, PolicyKey, Refusal, Snapshot, Verdict, Workload};
use runtime::record::{Bytes, Connection as Record};
use serde_json::Value;
use tokio::{sync::Notify, time::Instant};

use crate::pods::Pod;

/// Connections looked at before the worker's other tasks get a turn: at most 2 µs each.
const CHUNK: usize = 64;

/// How long a connection that was allowed goes on while a policy that is to judge it has not come. Control
/// sends a policy before the workloads that name it, others may not; who is new is refused at once.
pub(crate) const MISSING_GRACE: Duration = Duration::from_millis(1500);

/// Why a connection was ended from outside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stop {
    /// A new snapshot does not allow it any more.
    #[error("{0}")]
    Refused(Refusal),
    #[error("the pod is gone")]
    PodGone,
    #[error("this ztunnel ends")]
    Ends,
}

/// Which way a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// Captured from a pod, and not planned yet.
    Outbound,
    Passthrough,
    Plain,
    SameNode,
    /// Within the node, and past ztunnel in the kernel.
    Spliced,
    /// Through a tunnel.
    Hbone,
    /// Out of a tunnel.
    InboundHbone,
    InboundPlain,
}

impl Path {
    fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Passthrough => "passthrough",
            Self::Plain => "plain",
            Self::SameNode => "same-node",
            Self::Spliced => "spliced",
            Self::Hbone => "hbone",
            Self::InboundHbone => "inbound-hbone",
            Self::InboundPlain => "inbound-plain",
        }
    }
}

/// The facts by which a connection was admitted, kept to judge it again.
pub(crate) struct Admitted {
    source: Option<Identity>,
    source_ip: IpAddr,
    destination: RefCell<Arc<Workload>>,
    address: SocketAddr,
    /// The waypoint that brought it.
    through: Option<Passage>,
}

impl Admitted {
    /// An attempt of `source` (a proved identity, or nobody) to reach a workload at `address`.
    pub(crate) fn attempt(
        source: Option<Identity>,
        source_ip: IpAddr,
        destination: Arc<Workload>,
        address: SocketAddr,
    ) -> Self {
        Self { source, source_ip, destination: RefCell::new(destination), address, through: None }
    }

    /// The same, brought by a waypoint.
    pub(crate) fn through(self, passage: Option<Passage>) -> Self {
        Self { through: passage, ..self }
    }

    pub(crate) fn judge(&self, snapshot: &Snapshot) -> Decision {
        snapshot.admit(&Attempt {
            source: self.source.as_ref(),
            source_ip: self.source_ip,
            destination: &self.destination.borrow(),
            destination_ip: self.address.ip(),
            destination_port: self.address.port(),
            through: self.through.as_ref(),
        })
    }

    /// Whether a refusal is for want of policies that may still come.
    fn awaits(&self, refusal: &Refusal, snapshot: &Snapshot) -> bool {
        matches!(refusal, Refusal::PolicyMissing(_))
            && !snapshot.has_unusable_policy_for(&self.destination.borrow())
    }

    /// What a newer snapshot says, if it can say anything else than the one before; a workload that is
    /// gone from it is judged as it was last known.
    fn judge_again(&self, snapshot: &Snapshot, policies_changed: bool) -> Option<Decision> {
        let known = self.destination.borrow().clone();
        match snapshot.workload(&known.uid) {
            Some(workload) if !Arc::ptr_eq(workload, &known) => {
                self.destination.replace(workload.clone());
            }
            Some(_) | None if !policies_changed => return None,
            Some(_) | None => {}
        }
        Some(self.judge(snapshot))
    }
}

/// One connection.
pub(crate) struct Connection {
    pub(crate) pod: Arc<Pod>,
    /// The destination's pod, where that is on this node too.
    pub(crate) other: OnceCell<Arc<Pod>>,
    pub(crate) path: Cell<Path>,
    pub(crate) admitted: OnceCell<Admitted>,
    pub(crate) meter: Meter,
    record: RefCell<Record>,
    /// The destination's own record of a same-node connection.
    inbound_record: RefCell<Option<Record>>,
    /// Since when it is not allowed for want of a policy only.
    missing: Cell<Option<Instant>>,
    stop: RefCell<Option<Stop>>,
    wake: Notify,
}

/// What judging again came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rejudged {
    /// Connections that were ended.
    pub(crate) ended: u64,
    /// When the first of those that wait for a missing policy has waited long enough.
    pub(crate) again: Option<Instant>,
}

impl Connection {
    /// The record; never held across an await.
    pub(crate) fn record(&self) -> RefMut<'_, Record> {
        self.record.borrow_mut()
    }

    /// Adds the destination's record of a same-node connection.
    pub(crate) fn add_inbound(&self, record: Record) {
        self.inbound_record.replace(Some(record));
    }

    /// Does the same to both records, or to the only one.
    pub(crate) fn records(&self, mut each: impl FnMut(&mut Record)) {
        each(&mut self.record.borrow_mut());
        if let Some(record) = self.inbound_record.borrow_mut().as_mut() {
            each(record);
        }
    }

    /// Does something to the record of the side that judged.
    pub(crate) fn judging_record(&self, act: impl FnOnce(&mut Record)) {
        match self.inbound_record.borrow_mut().as_mut() {
            Some(record) => act(record),
            None => act(&mut self.record.borrow_mut()),
        }
    }

    /// Moves the byte counters of the metrics on.
    pub(crate) fn progress(&self) {
        let (sent, received) = (self.meter.sent(), self.meter.received());
        let bytes = match self.path.get() {
            // Its first socket is the app's: the destination's.
            Path::InboundHbone => Bytes { forth: received, back: sent },
            Path::Outbound
            | Path::Passthrough
            | Path::Plain
            | Path::SameNode
            | Path::Spliced
            | Path::Hbone
            | Path::InboundPlain => Bytes { forth: sent, back: received },
        };
        self.records(|record| record.progress(bytes));
    }

    /// Whether one of its ends is this very pod, and not one that came back under the same uid.
    pub(crate) fn is_of(&self, pod: &Arc<Pod>) -> bool {
        Arc::ptr_eq(&self.pod, pod) || self.other.get().is_some_and(|other| Arc::ptr_eq(other, pod))
    }

    fn stop(&self, reason: Stop) {
        // The first reason holds.
        self.stop.borrow_mut().get_or_insert(reason);
        self.wake.notify_one();
    }

    fn json(&self) -> Value {
        self.progress();
        let mut json = self.record.borrow().json();
        json["path"] = self.path.get().name().into();
        json["pod"] = format!("{}/{}", self.pod.namespace, self.pod.name).into();
        if let Some(inbound) = self.inbound_record.borrow().as_ref() {
            // The destination judges, so the policy is in its record.
            for fact in ["policy", "dry_run"] {
                json[fact] = inbound.json()[fact].clone();
            }
        }
        json
    }

    /// Judges again and ends what is refused, or notes until when it may go on.
    fn rejudge(&self, snapshot: &Snapshot, policies_changed: bool, outcome: &mut Rejudged) {
        let Some(admitted) = self.admitted.get().filter(|_| self.stop.borrow().is_none()) else { return };
        let missing = self.missing.get();
        // Whose time may be over is judged whatever has changed.
        let decision = admitted.judge_again(snapshot, policies_changed || missing.is_some());
        match decision.map(|decision| decision.verdict) {
            Some(Verdict::Refuse(refusal)) => {
                let now = Instant::now();
                let until = missing.unwrap_or(now) + MISSING_GRACE;
                if admitted.awaits(&refusal, snapshot) && now < until {
                    self.missing.set(missing.or(Some(now)));
                    outcome.again = Some(outcome.again.map_or(until, |again| again.min(until)));
                } else {
                    self.stop(Stop::Refused(refusal));
                    outcome.ended += 1;
                }
            }
            Some(Verdict::Allow(policy)) => {
                self.missing.set(None);
                if let Some(policy) = policy {
                    self.judging_record(|record| record.policy(&policy));
                }
            }
            None => {}
        }
    }
}

/// A worker's connections, by number.
pub(crate) struct Live {
    next: Cell<u64>,
    /// Counts the connections of all workers.
    count: Arc<AtomicUsize>,
    connections: RefCell<BTreeMap<u64, Rc<Connection>>>,
}

/// A connection's place in the registry; dropping it takes the connection out.
pub(crate) struct Carried {
    live: Rc<Live>,
    number: u64,
    connection: Rc<Connection>,
}

impl Live {
    pub(crate) fn new(count: Arc<AtomicUsize>) -> Rc<Self> {
        Rc::new(Self { next: Cell::new(0), count, connections: RefCell::default() })
    }

    pub(crate) fn enter(self: &Rc<Self>, pod: Arc<Pod>, path: Path, record: Record) -> Carried {
        let number = self.next.get();
        self.next.set(number + 1);
        let connection = Rc::new(Connection {
            pod,
            other: OnceCell::new(),
            path: Cell::new(path),
            admitted: OnceCell::new(),
            meter: Meter::new(),
            record: RefCell::new(record),
            inbound_record: RefCell::new(None),
            missing: Cell::new(None),
            stop: RefCell::new(None),
            wake: Notify::new(),
        });
        self.connections.borrow_mut().insert(number, connection.clone());
        self.count.fetch_add(1, Ordering::Relaxed);
        Carried { live: self.clone(), number, connection }
    }

    /// Ends all connections that `doomed` picks.
    pub(crate) fn stop(&self, reason: &Stop, doomed: impl Fn(&Connection) -> bool) {
        for connection in self.connections.borrow().values().filter(|c| doomed(c)) {
            connection.stop(reason.clone());
        }
    }

    /// Judges every admitted connection again, a few at a time. To be repeated at the time it says, where
    /// some wait for a policy.
    ///
    /// A connection that comes in the meantime has been judged by this snapshot or a newer one.
    pub(crate) async fn rejudge(&self, snapshot: &Snapshot, policies_changed: bool) -> Rejudged {
        let mut outcome = Rejudged::default();
        self.each(|connection| connection.rejudge(snapshot, policies_changed, &mut outcome)).await;
        outcome
    }

    /// Moves the byte counters of all connections on.
    pub(crate) async fn progress(&self) {
        self.each(Connection::progress).await;
    }

    /// Visits the connections that are there now, a few at a time.
    async fn each(&self, mut visit: impl FnMut(&Connection)) {
        let end = self.next.get();
        let mut from = 0;
        while from < end {
            let chunk: Vec<(u64, Rc<Connection>)> = self
                .connections
                .borrow()
                .range((Bound::Included(from), Bound::Excluded(end)))
                .take(CHUNK)
                .map(|(number, connection)| (*number, connection.clone()))
                .collect();
            let Some((last, _)) = chunk.last() else { return };
            from = last + 1;
            chunk.iter().for_each(|(_, connection)| visit(connection));
            tokio::task::yield_now().await;
        }
    }

    /// What the admin endpoint shows.
    pub(crate) fn json(&self) -> Vec<Value> {
        self.connections.borrow().values().map(|connection| connection.json()).collect()
    }
}

impl Carried {
    /// Completes when the connection is to end; at once if that has been said already.
    pub(crate) async fn stopped(&self) {
        while self.connection.stop.borrow().is_none() {
            self.connection.wake.notified().await;
        }
    }

    /// Why it was ended.
    pub(crate) fn reason(&self) -> Option<Stop> {
        self.connection.stop.borrow().clone()
    }
}

impl std::ops::Deref for Carried {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.live.connections.borrow_mut().remove(&self.number);
        self.live.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The policy that allowed, if one did.
pub(crate) fn allowed_by(decision: &Decision) -> Option<&PolicyKey> {
    match &decision.verdict {
        Verdict::Allow(policy) => policy.as_ref(),
        Verdict::Refuse(_) => None,
    }
}

#[cfg(test)]
pub(crate) mod tests;
