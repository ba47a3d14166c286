//! Who is connected, and how far each has come: for status, and for whoever must wait until nobody
//! holds an old state any more.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use serde::Serialize;
use tokio::sync::watch;

/// One connected client.
#[derive(Debug, Clone, Serialize)]
pub struct ClientStatus {
    /// The node its token proved.
    pub node: String,
    /// What it calls itself.
    pub id: String,
    pub address: Option<SocketAddr>,
    #[serde(serialize_with = "seconds")]
    pub connected_since: SystemTime,
    /// The generation of workloads and services it acknowledged last; `None` if it never asked for them.
    pub acknowledged: Option<u64>,
    /// Per type, the last refusal, in the client's own words.
    pub refused: BTreeMap<&'static str, String>,
}

fn seconds<S: serde::Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// All connected clients.
pub struct Clients {
    connected: Mutex<Connected>,
    changes: watch::Sender<()>,
}

#[derive(Default)]
struct Connected {
    next: u64,
    clients: BTreeMap<u64, ClientStatus>,
}

impl Default for Clients {
    fn default() -> Self {
        Self { connected: Mutex::default(), changes: watch::Sender::new(()) }
    }
}

impl Clients {
    /// Enters a client; it is struck out when the guard is dropped.
    pub(super) fn enter(self: &Arc<Self>, client: ClientStatus) -> Entered {
        let mut connected = self.lock();
        connected.next += 1;
        let number = connected.next;
        connected.clients.insert(number, client);
        drop(connected);
        Entered { clients: self.clone(), number }
    }

    /// Everybody who is connected.
    pub fn list(&self) -> Vec<ClientStatus> {
        self.lock().clients.values().cloned().collect()
    }

    /// How many are connected.
    pub fn count(&self) -> usize {
        self.lock().clients.len()
    }

    /// Waits until every connected client that follows workloads has `generation` in force. A client
    /// that goes away is not waited for: when it comes back it is told everything before it acts.
    pub async fn acknowledged(&self, generation: u64) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let behind = |client: &ClientStatus| client.acknowledged.is_some_and(|at| at < generation);
            if !self.lock().clients.values().any(behind) {
                return;
            }
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connected> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's entry.
pub(super) struct Entered {
    clients: Arc<Clients>,
    number: u64,
}

impl Entered {
    pub(super) fn update(&self, change: impl FnOnce(&mut ClientStatus)) {
        if let Some(client) = self.clients.lock().clients.get_mut(&self.number) {
            change(client);
        }
        self.clients.changes.send_replace(());
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.clients.lock().clients.remove(&self.number);
        self.clients.changes.send_replace(());
    }
}
