//! Judges a worker's live connections again when the mesh has changed.

use std::{rc::Rc, time::Duration};

use crate::worker::Worker;

/// Follows the mesh for ever.
pub(crate) async fn run(worker: Rc<Worker>) {
    let mut changes = worker.shared.mesh.subscribe();
    let mut generation = worker.shared.mesh.current().policy_generation();
    while changes.changed().await.is_ok() {
        // Marks it seen: whatever comes while this one is judged brings another round.
        changes.mark_unchanged();
        let snapshot = worker.shared.mesh.current();
        let policies_changed = snapshot.policy_generation() != generation;
        generation = snapshot.policy_generation();
        let ended = worker.live.rejudge(&snapshot, policies_changed).await;
        if ended > 0 {
            worker.shared.metrics.rejudged.inc_by(ended);
            tracing::info!(
                worker = worker.index,
                connections = ended,
                "ended what the new state does not allow"
            );
        }
    }
}

/// How often the byte counters of connections that live long move on in the metrics.
const COUNT_EVERY: Duration = Duration::from_secs(5);

/// Keeps the byte counters of live connections moving, for ever.
pub(crate) async fn count(worker: Rc<Worker>) {
    loop {
        tokio::time::sleep(COUNT_EVERY).await;
        worker.live.progress().await;
    }
}
