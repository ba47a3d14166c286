//! Judges a worker's live connections again when the mesh has changed.

use std::{rc::Rc, time::Duration};

use tokio::time::Instant;

use crate::{live::Live, worker::Worker};

/// Follows the mesh for ever.
pub(crate) async fn run(worker: Rc<Worker>) {
    let ended = |ended| {
        worker.shared.metrics.rejudged.inc_by(ended);
        tracing::info!(worker = worker.index, connections = ended, "ended what the new state does not allow");
    };
    follow(&worker.live, &worker.shared.mesh, ended).await;
}

/// Judges whenever the mesh has changed, and again when the time of those is over that wait for a missing
/// policy; tells how many it ended.
async fn follow(live: &Live, mesh: &xds::Mesh, ended: impl Fn(u64)) {
    let mut changes = mesh.subscribe();
    let mut generation = mesh.current().policy_generation();
    let mut again = None;
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = until(again) => {}
        }
        // Marks it seen: whatever comes while this one is judged brings another round.
        changes.mark_unchanged();
        let snapshot = mesh.current();
        let policies_changed = snapshot.policy_generation() != generation;
        generation = snapshot.policy_generation();
        let outcome = live.rejudge(&snapshot, policies_changed).await;
        again = outcome.again;
        if outcome.ended > 0 {
            ended(outcome.ended);
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use mesh::Refusal;

    use super::*;
    use crate::live::{MISSING_GRACE, Stop, tests::World};

    /// Time goes on by the half of the grace, and whoever has something to do does it.
    async fn half_a_grace() {
        tokio::time::sleep(MISSING_GRACE / 2 + Duration::from_millis(10)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_policy_is_ended_by_the_clock_and_not_by_the_next_change() {
        let mut world = World::new();
        let mesh = xds::Mesh::new();
        mesh.publish(world.snapshot.clone());
        let (live, carried, ended) = (world.live.clone(), world.admitted("alice"), Cell::new(0));
        let changes = async {
            tokio::task::yield_now().await;
            let key = world.name_a_policy("late");
            mesh.publish(world.snapshot.clone());
            half_a_grace().await;
            assert_eq!(carried.reason(), None);
            half_a_grace().await;
            assert_eq!(carried.reason(), Some(Stop::Refused(Refusal::PolicyMissing(key))));
        };
        tokio::select! {
            () = follow(&live, &mesh, |number| ended.set(ended.get() + number)) => {}
            () = changes => {}
        }
        assert_eq!(ended.get(), 1);
    }
}
