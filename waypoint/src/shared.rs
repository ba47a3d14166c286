//! What all threads of this waypoint share. Everything a request needs is read without a lock, but for the callers'
//! assertions.

use std::{sync::Arc, time::Duration};

use mesh::{Identity, Snapshot};
use runtime::{
    drain,
    record::{Records, Requests},
};

use crate::{limits::Limits, metrics::Metrics, trace::Tracer, vault::Vault};

/// The resolved configuration, as far as connections need it.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Who this waypoint is.
    pub(crate) identity: Identity,
    pub(crate) network: Arc<str>,
    pub(crate) hbone: hbone::Settings,
    pub(crate) max_tunnels: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_connections_per_source: usize,
    pub(crate) patience: Duration,
    pub(crate) dial_timeout: Duration,
    pub(crate) backend_idle: Duration,
    pub(crate) http_idle: Duration,
    pub(crate) head_timeout: Duration,
}

pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) mesh: Arc<xds::Mesh>,
    pub(crate) store: Arc<identity::Store>,
    pub(crate) limits: Arc<Limits>,
    /// The newest assertion of each caller.
    pub(crate) vault: Vault,
    /// Who does not answer.
    pub(crate) peers: Arc<hbone::client::Peers>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) records: Records,
    pub(crate) requests: Requests,
    /// Without one the headers of traces pass as they came.
    pub(crate) tracer: Option<Arc<Tracer>>,
    pub(crate) drain: drain::Watch,
}

impl Shared {
    /// A complete state of the mesh, waited for no longer than patience; `None` if there is none.
    pub(crate) async fn state(&self) -> Option<Arc<Snapshot>> {
        let complete = |snapshot: &Snapshot| snapshot.is_complete() && snapshot.has_routes();
        let now = self.mesh.current();
        if complete(&now) {
            return Some(now);
        }
        let mut changes = self.mesh.subscribe();
        let arrival = changes.wait_for(|snapshot| complete(snapshot));
        let arrived = tokio::time::timeout(self.settings.patience, arrival).await.ok()?.ok()?;
        Some(Arc::clone(&arrived))
    }
}
