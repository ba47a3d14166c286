//! The broker: tells every connected ztunnel which pods are this node's, over ZDS (Istio's protocol
//! between a CNI agent and ztunnel, `zds.proto`), and knows who has acknowledged what.
//!
//! There is one table of pods. Each connection compares what it has sent with the table and sends
//! what differs, one message at a time, each acknowledged; so a ztunnel that connects late, or beside
//! another that is about to leave, is told the same. A ztunnel that disconnects changes nothing but
//! who holds a pod: capture stays.

mod conversation;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use capture::Netns;
use prometheus_client::metrics::gauge::Gauge;
use proto::workload::zds::WorkloadInfo;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::seqpacket::Listener;

/// A takeover needs two; more are mistakes, which shall not starve the right one at once.
const MAX_ZTUNNELS: usize = 16;

/// A pod is held by at least one live ztunnel (its uid, true), or by none any more.
pub(crate) type Holding = (String, bool);

/// The table of pods; clones share it.
#[derive(Clone)]
pub(crate) struct Broker {
    shared: Arc<Shared>,
}

struct Shared {
    table: Mutex<Table>,
    /// Fires with each change of the table.
    changed: watch::Sender<()>,
    holdings: mpsc::UnboundedSender<Holding>,
    connected: Gauge,
    /// How many connections have acknowledged their snapshot.
    informed: watch::Sender<u64>,
}

#[derive(Default)]
struct Table {
    pods: BTreeMap<String, Entry>,
    /// Every pod of this node is in it, as far as anybody knows: snapshots may be sent.
    complete: bool,
    /// By uid, the connections that have acknowledged it.
    holders: BTreeMap<String, BTreeSet<u64>>,
    /// Numbers entries and connections.
    counter: u64,
    connections: BTreeMap<u64, String>,
}

#[derive(Clone)]
struct Entry {
    /// Another number is another entry, even with the same uid.
    number: u64,
    info: WorkloadInfo,
    /// Without one, a ztunnel that knows the pod is told to keep it.
    netns: Option<Arc<Netns>>,
}

impl Broker {
    /// With no pod and not complete. Who comes to hold a pod is told to `holdings`.
    pub(crate) fn new(holdings: mpsc::UnboundedSender<Holding>, connected: Gauge) -> Self {
        let (table, changed) = (Mutex::default(), watch::Sender::new(()));
        let informed = watch::Sender::new(0);
        Self { shared: Arc::new(Shared { table, changed, holdings, connected, informed }) }
    }

    /// Tells the ztunnels of a pod. One that is there already is replaced: it is deleted and added.
    pub(crate) fn put(&self, uid: &str, info: WorkloadInfo, netns: Arc<Netns>) {
        self.insert(uid, info, Some(netns));
    }

    /// A ztunnel that knows the pod shall keep it: its namespace is not at hand now.
    pub(crate) fn keep(&self, uid: &str, info: WorkloadInfo) {
        if !self.shared.lock().pods.contains_key(uid) {
            self.insert(uid, info, None);
        }
    }

    fn insert(&self, uid: &str, info: WorkloadInfo, netns: Option<Arc<Netns>>) {
        let mut table = self.shared.lock();
        let number = table.next();
        table.pods.insert(uid.to_owned(), Entry { number, info, netns });
        self.shared.release(&mut table, uid);
        drop(table);
        self.shared.changed.send_replace(());
    }

    /// Tells the ztunnels to let go of a pod.
    pub(crate) fn remove(&self, uid: &str) {
        let mut table = self.shared.lock();
        if table.pods.remove(uid).is_some() {
            self.shared.release(&mut table, uid);
            drop(table);
            self.shared.changed.send_replace(());
        }
    }

    /// Every pod is in the table: ztunnels may be told that what is not in it is gone.
    pub(crate) fn complete(&self) {
        self.shared.lock().complete = true;
        self.shared.changed.send_replace(());
    }

    /// Waits until a ztunnel has acknowledged the whole table.
    pub(crate) async fn informed(&self) {
        // The sender lives as long as `self`.
        let _ = self.shared.informed.subscribe().wait_for(|informed| *informed > 0).await;
    }

    /// Serves ztunnels for ever.
    pub(crate) async fn serve(self, listener: Listener) {
        let places = Arc::new(Semaphore::new(MAX_ZTUNNELS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok(connection) => {
                    let shared = self.shared.clone();
                    tokio::spawn(async move {
                        conversation::hold(&shared, &connection).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a ztunnel's connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// The connected ztunnels and who holds what, for people.
    pub(crate) fn dump(&self) -> serde_json::Value {
        let table = self.shared.lock();
        json!({
            "complete": table.complete,
            "ztunnels": table.connections.iter().map(|(id, state)| json!({
                "connection": id,
                "state": state,
                "pods": table.holders.values().filter(|holders| holders.contains(id)).count(),
            })).collect::<Vec<_>>(),
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody holds the pod any more.
    fn release(&self, table: &mut Table, uid: &str) {
        if table.holders.remove(uid).is_some() {
            self.tell(uid, false);
        }
    }

    fn tell(&self, uid: &str, held: bool) {
        // The other side ends with the program only.
        let _ = self.holdings.send((uid.to_owned(), held));
    }

    fn connect(&self) -> u64 {
        let mut table = self.lock();
        let id = table.next();
        table.connections.insert(id, "says hello".to_owned());
        self.connected.set(table.connections.len() as i64);
        id
    }

    fn state(&self, id: u64, state: &str) {
        self.lock().connections.insert(id, state.to_owned());
    }

    fn disconnect(&self, id: u64) {
        let mut table = self.lock();
        table.connections.remove(&id);
        self.connected.set(table.connections.len() as i64);
        table.holders.retain(|uid, holders| {
            let held = holders.remove(&id);
            if held && holders.is_empty() {
                self.tell(uid, false);
            }
            !holders.is_empty()
        });
    }

    /// The connection has acknowledged that entry of the pod, unless it is another by now.
    fn acknowledged(&self, id: u64, uid: &str, number: u64) {
        let mut table = self.lock();
        if table.pods.get(uid).is_some_and(|entry| entry.number == number) {
            let holders = table.holders.entry(uid.to_owned()).or_default();
            let first = holders.is_empty();
            holders.insert(id);
            if first {
                self.tell(uid, true);
            }
        }
    }
}

impl Table {
    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
