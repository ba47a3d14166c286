//! Readiness: the program is ready when every named task is.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The readiness of one program; clones share it.
#[derive(Clone, Default)]
pub struct Readiness {
    /// What each task still waits for; `None` once it is ready.
    tasks: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
}

/// One condition of readiness. Dropping it changes nothing.
#[must_use = "a task that is never made ready keeps the program unready"]
pub struct Task {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// With no task registered: ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a condition that does not hold yet; `waiting_for` says what it takes.
    pub fn task(&self, name: &'static str, waiting_for: impl Into<String>) -> Task {
        self.lock().insert(name, Some(waiting_for.into()));
        Task { name, readiness: self.clone() }
    }

    /// Whether every task is ready.
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(Option::is_none)
    }

    /// The tasks that are not ready, with what each waits for.
    pub fn pending(&self) -> Vec<(&'static str, String)> {
        self.lock().iter().filter_map(|(name, waiting)| Some((*name, waiting.clone()?))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Option<String>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Task {
    /// The condition holds.
    pub fn ready(&self) {
        self.readiness.lock().insert(self.name, None);
    }

    /// The condition holds no longer; `waiting_for` says what it takes.
    pub fn not_ready(&self, waiting_for: impl Into<String>) {
        self.readiness.lock().insert(self.name, Some(waiting_for.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_every_task() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());
        let xds = readiness.task("xds", "the first state from control");
        let zds = readiness.task("zds", "the agent");
        xds.ready();
        assert!(!readiness.is_ready());
        assert_eq!(readiness.pending(), [("zds", "the agent".to_owned())]);
        zds.ready();
        assert!(readiness.is_ready());
        zds.not_ready("the agent again");
        assert!(!readiness.is_ready());
    }
}
