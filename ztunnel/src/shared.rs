//! What all threads of this ztunnel share. Everything a connection needs is read without a lock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mesh::{Snapshot, Workload};
use tokio::time::timeout;

use crate::{
    metrics::Metrics,
    pods::{Directory, Pod},
    sockets::SocketOptions,
};

/// The resolved configuration, as far as connections need it.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The node this ztunnel serves, as the mesh names it.
    pub(crate) node: Arc<str>,
    pub(crate) trust_domain: Arc<str>,
    pub(crate) sockets: SocketOptions,
    pub(crate) hbone: hbone::Settings,
    pub(crate) connections_per_pod: usize,
    /// How long the connections of a pod that is gone may go on.
    pub(crate) pod_grace: Duration,
    /// How long a new connection waits for the state of the mesh, or for its pod to appear in it.
    pub(crate) patience: Duration,
}

pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) mesh: Arc<xds::Mesh>,
    pub(crate) store: Arc<identity::Store>,
    pub(crate) pods: Directory,
    pub(crate) metrics: Metrics,
    pub(crate) records: runtime::record::Records,
    /// Started when a successor is to get the tunnels of our peers.
    pub(crate) drain: runtime::drain::Watch,
    /// Connections of all workers; tunnels do not count.
    pub(crate) carried: Arc<AtomicUsize>,
}

/// Why the state of the mesh is of no use for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unknown {
    #[error("the mesh state is not complete yet; is control reachable?")]
    Incomplete,
    #[error("control does not know this pod")]
    Pod,
    #[error("control knows a pod of this name with another service account or trust domain")]
    Identity,
}

impl Unknown {
    /// The reason's name in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Incomplete => "state-incomplete",
            Self::Pod => "pod-unknown",
            Self::Identity => "pod-identity",
        }
    }
}

impl Shared {
    /// How many connections are carried now.
    pub(crate) fn carried(&self) -> usize {
        self.carried.load(Ordering::Relaxed)
    }

    /// One snapshot, and the pod's own workload in it. Waits, bounded, while either is missing: a pod
    /// may connect before control's word of it has come.
    pub(crate) async fn state_for(&self, pod: &Pod) -> Result<(Arc<Snapshot>, Arc<Workload>), Unknown> {
        let first = self.mesh.current();
        match find(&first, pod) {
            Ok(workload) => return Ok((first, workload)),
            Err(Unknown::Identity) => return Err(Unknown::Identity),
            Err(Unknown::Incomplete | Unknown::Pod) => {}
        }
        let mut changes = self.mesh.subscribe();
        let arrival = async {
            loop {
                let snapshot = self.mesh.current();
                if let Ok(workload) = find(&snapshot, pod) {
                    return (snapshot, workload);
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        match timeout(self.settings.patience, arrival).await {
            Ok(found) => Ok(found),
            Err(_) => {
                let snapshot = self.mesh.current();
                find(&snapshot, pod).map(|workload| (snapshot.clone(), workload))
            }
        }
    }
}

fn find(snapshot: &Snapshot, pod: &Pod) -> Result<Arc<Workload>, Unknown> {
    if !snapshot.is_complete() {
        return Err(Unknown::Incomplete);
    }
    let workload = snapshot.pod(&pod.namespace, &pod.name).ok_or(Unknown::Pod)?;
    if pod.is(workload) { Ok(workload.clone()) } else { Err(Unknown::Identity) }
}
