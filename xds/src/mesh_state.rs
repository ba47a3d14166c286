//! The newest snapshot, for whoever decides from it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use arc_swap::{ArcSwap, Guard};
use mesh::Snapshot;
use tokio::sync::watch;

/// Holds the newest [`Snapshot`]. Reading it takes no lock; followers are told of each new one.
pub struct Mesh {
    current: ArcSwap<Snapshot>,
    changes: watch::Sender<Arc<Snapshot>>,
    connection: watch::Sender<Connection>,
    refused: AtomicU64,
    connects: AtomicU64,
}

/// How it stands with control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connection {
    /// Not connected; the text says why, empty before the first attempt has ended.
    Away(String),
    /// A discovery stream is open.
    Up,
}

impl Mesh {
    /// An empty mesh, of which nothing is known yet.
    pub fn new() -> Arc<Self> {
        let empty = Arc::new(Snapshot::default());
        Arc::new(Self {
            current: ArcSwap::new(empty.clone()),
            changes: watch::Sender::new(empty),
            connection: watch::Sender::new(Connection::Away(String::new())),
            refused: AtomicU64::new(0),
            connects: AtomicU64::new(0),
        })
    }

    /// The newest snapshot. Take it once per decision.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The newest snapshot for a look that ends before the next await: cheaper than [`Self::current`].
    pub fn glance(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Follows the snapshots; slow followers see the newest and miss those between.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.changes.subscribe()
    }

    /// Waits until the first complete state is there.
    pub async fn complete(&self) {
        let mut changes = self.subscribe();
        // The sender lives as long as `self`, so this ends only by completeness.
        let _ = changes.wait_for(|snapshot| snapshot.is_complete()).await;
    }

    /// Follows the state of the connection to control.
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.subscribe()
    }

    /// Resources that were refused since the start.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Discovery streams that were opened since the start.
    pub fn connects(&self) -> u64 {
        self.connects.load(Relaxed)
    }

    /// Replaces the snapshot. For the client, and for tests that bring a mesh of their own.
    pub fn publish(&self, snapshot: Snapshot) {
        let snapshot = Arc::new(snapshot);
        self.current.store(snapshot.clone());
        self.changes.send_replace(snapshot);
    }

    pub(crate) fn set_connection(&self, connection: Connection) {
        if connection == Connection::Up {
            self.connects.fetch_add(1, Relaxed);
        }
        self.connection.send_replace(connection);
    }

    pub(crate) fn count_refused(&self, resources: usize) {
        self.refused.fetch_add(resources as u64, Relaxed);
    }
}
