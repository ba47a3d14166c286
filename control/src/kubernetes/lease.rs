//! Which replica of control leads: the one that holds the Lease `culvert-control`.
//!
//! Whoever holds it renews it; whoever does not watches whether it is renewed, by its own clock, so that no
//! two clocks are compared. The leader alone writes what belongs to the whole mesh. What two of them would
//! write is the same, so that a moment with two costs nothing.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::backoff::jittered;
use crate::metrics::Metrics;
use apiserver::{Api, ApiError};

pub const NAME: &str = "culvert-control";
/// A lease that is not renewed for this long is anybody's.
const LEASE: Duration = Duration::from_secs(15);
/// A leader that could not renew for this long leads no more.
const GIVE_UP: Duration = Duration::from_secs(10);
/// A renewal that is not answered by then has failed.
const ANSWER: Duration = Duration::from_secs(4);
/// How often it is renewed, or looked at.
const EVERY: Duration = Duration::from_secs(3);

/// Takes part in the election.
pub struct Election {
    api: Api,
    path: String,
    namespace: String,
    /// Who we are; no two processes are the same.
    identity: String,
    leading: watch::Sender<bool>,
    metrics: Arc<Metrics>,
    /// The lease as it was when it last differed, and when that was.
    seen: Option<(Value, Instant)>,
    renewed: Option<Instant>,
    /// The last turn failed, and somebody was told.
    failing: bool,
}

/// What is to be done about the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It is ours: it is renewed.
    Renew,
    /// It is nobody's, or its holder is gone.
    Take,
    Wait,
}

fn step(spec: &Value, identity: &str, unchanged: Duration) -> Step {
    let holder = spec["holderIdentity"].as_str().unwrap_or_default();
    // What the holder has promised.
    let seconds = spec["leaseDurationSeconds"].as_u64();
    let promised = seconds.map_or(LEASE, Duration::from_secs);
    match holder {
        _ if holder == identity => Step::Renew,
        "" => Step::Take,
        _ if unchanged > promised => Step::Take,
        _ => Step::Wait,
    }
}

impl Election {
    /// `identity` begins with the name of our pod, for people to read.
    pub fn new(api: Api, namespace: &str, pod: &str, metrics: Arc<Metrics>) -> Self {
        use std::hash::{BuildHasher, RandomState};
        Self {
            api,
            path: format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"),
            namespace: namespace.to_owned(),
            identity: format!("{pod}_{:016x}", RandomState::new().hash_one(pod)),
            leading: watch::Sender::new(false),
            metrics,
            seen: None,
            renewed: None,
            failing: false,
        }
    }

    /// Whether we lead.
    pub fn leading(&self) -> watch::Receiver<bool> {
        self.leading.subscribe()
    }

    /// Never ends.
    pub async fn run(mut self) {
        loop {
            let turn = timeout(ANSWER, self.turn()).await.unwrap_or(Err(ApiError::Silent));
            match &turn {
                Ok(true) => {
                    self.renewed = Some(Instant::now());
                    self.lead(true);
                }
                Ok(false) => self.lead(false),
                Err(error) => {
                    if !self.failing {
                        warn!("the lease {NAME} (said once until it works again): {error}");
                    }
                    if self.renewed.is_none_or(|renewed| renewed.elapsed() > GIVE_UP) {
                        self.lead(false);
                    }
                }
            }
            self.failing = turn.is_err();
            sleep(jittered(EVERY)).await;
        }
    }

    fn lead(&self, leads: bool) {
        let changed = self.leading.send_if_modified(|leading| std::mem::replace(leading, leads) != leads);
        self.metrics.set_leader(leads);
        if changed {
            info!(identity = self.identity, leads, "election");
        }
    }

    /// Whether we lead after it.
    async fn turn(&mut self) -> Result<bool, ApiError> {
        let named = format!("{}/{NAME}", self.path);
        let lease = match self.api.get(&named).await {
            Ok(lease) => lease,
            Err(error) if error.is_absent() => {
                let lease = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": NAME, "namespace": self.namespace},
                    "spec": self.spec(0, None),
                });
                return match self.api.post(&self.path, &lease).await {
                    Ok(_) => Ok(true),
                    Err(error) if error.is_conflict() => Ok(false),
                    Err(error) => Err(error),
                };
            }
            Err(error) => return Err(error),
        };
        let spec = lease["spec"].clone();
        let since = match &self.seen {
            Some((seen, since)) if *seen == spec => *since,
            _ => Instant::now(),
        };
        self.seen = Some((spec.clone(), since));
        let transitions = spec["leaseTransitions"].as_u64().unwrap_or(0);
        let spec = match step(&spec, &self.identity, since.elapsed()) {
            Step::Wait => return Ok(false),
            Step::Renew => self.spec(transitions, spec["acquireTime"].as_str()),
            Step::Take => self.spec(transitions + 1, None),
        };
        // With the version that was read: of two who take it, one is refused.
        let mut lease = lease;
        lease["spec"] = spec;
        match self.api.put(&named, &lease).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn spec(&self, transitions: u64, acquired: Option<&str>) -> Value {
        let now = format!("{:.6}", Timestamp::now());
        json!({
            "holderIdentity": self.identity,
            "leaseDurationSeconds": LEASE.as_secs(),
            "acquireTime": acquired.unwrap_or(&now),
            "renewTime": now,
            "leaseTransitions": transitions,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_its_holder_is_silent() {
        let held = |by: &str| json!({"holderIdentity": by, "leaseDurationSeconds": 15});
        let seconds = Duration::from_secs;
        assert_eq!(step(&held("us"), "us", seconds(99)), Step::Renew);
        assert_eq!(step(&held("other"), "us", seconds(15)), Step::Wait);
        assert_eq!(step(&held("other"), "us", seconds(16)), Step::Take);
        assert_eq!(step(&held(""), "us", seconds(0)), Step::Take);
        assert_eq!(step(&json!({}), "us", seconds(0)), Step::Take);
        // Who promises to renew less often is given longer.
        let slow = json!({"holderIdentity": "other", "leaseDurationSeconds": 60});
        assert_eq!(step(&slow, "us", seconds(30)), Step::Wait);
    }
}
